//! The chat screen, over a scripted engine.
#![expect(clippy::unwrap_used, reason = "a failing test may panic")]

mod support;

use egui::{Key, Role as Widget, Theme, Vec2};
use egui_kittest::{Harness, kittest::Queryable};
use lathe_protocol::{
    ChatRecord, ChatStats, CommandBody, ErrorCode, ErrorInfo, EventBody, JobId, LogLevel,
    ReplyChannel::{Answer, Thinking},
    Role,
};
use lathe_ui::Route;
use support::{
    ScriptedLink, Window,
    chat::{self, delta},
    fixtures, window_of_size,
};

struct Test {
    harness: Harness<'static, Window>,
    link: ScriptedLink,
}

fn open_sized(records: Vec<ChatRecord>, theme: Theme, size: Vec2) -> Test {
    let link = ScriptedLink::new(move |command, script| match command.body {
        CommandBody::SettingsShow => {
            let mut settings = fixtures::settings();
            settings.settings.theme = match theme {
                Theme::Light => lathe_protocol::Theme::Light,
                Theme::Dark => lathe_protocol::Theme::Dark,
            };
            script.answer(command.job, EventBody::Settings(Box::new(settings)));
        }
        _ => chat::answer(&records, command, script),
    });
    let mut harness = window_of_size(link.clone(), theme, size);
    harness.state_mut().0.go(Route::Chat);
    let mut test = Test { harness, link };
    test.steps();
    test
}

fn open(records: Vec<ChatRecord>) -> Test {
    open_sized(records, Theme::Light, Vec2::new(1280.0, 800.0))
}

impl Test {
    fn steps(&mut self) {
        self.harness.run_steps(6);
    }

    fn click(&mut self, name: &str) {
        self.harness.get_by_label(name).click();
        self.steps();
    }

    fn choose(&mut self, list: &str, option: &str) {
        self.harness.get_by_role_and_label(Widget::ComboBox, list).click();
        self.steps();
        self.click_last(option);
    }

    /// The last of several of this name: the lowest on the screen.
    fn click_last(&mut self, name: &str) {
        self.harness.get_all_by_label(name).last().unwrap().click();
        self.steps();
    }

    fn send(&mut self, text: &str) {
        self.type_into("Write a message…", text);
        self.harness.key_press(Key::Enter);
        self.steps();
    }

    /// `hint` is what the field says while it is empty.
    fn type_into(&mut self, hint: &str, text: &str) {
        let field = |harness: &Harness<'_, Window>, act: &dyn Fn(egui_kittest::Node<'_>)| {
            act(harness.get_by(|node| node.data().placeholder() == Some(hint)));
        };
        field(&self.harness, &|field| field.focus());
        self.steps();
        field(&self.harness, &|field| field.type_text(text));
        self.steps();
    }

    fn say(&mut self, job: JobId, body: EventBody) {
        self.link.script.borrow_mut().say(job, body);
        self.steps();
    }

    fn reply(&mut self, job: JobId, text: &str) {
        self.say(job, delta(Answer, text));
        self.say(job, EventBody::ReplyDone(chat::stats()));
    }

    fn jobs(&self) -> Vec<JobId> {
        self.link.script.borrow().chat_jobs().into_iter().map(|(job, _)| job).collect()
    }

    fn prompts(&self) -> Vec<(JobId, Vec<(Role, String)>)> {
        self.link.script.borrow().prompts()
    }

    fn saved(&self) -> ChatRecord {
        self.link.script.borrow().last_saved().unwrap()
    }

    fn sees(&self, text: &str) -> bool {
        self.harness.query_all_by_label_contains(text).next().is_some()
    }
}

/// Parents and texts of a lane.
fn nodes(record: &ChatRecord, lane: usize) -> Vec<(Option<usize>, &str)> {
    record.lanes[lane].nodes.iter().map(|node| (node.parent, node.message.content.as_str())).collect()
}

#[test]
fn a_conversation_is_kept_as_it_was() {
    let mut test = open(Vec::new());
    test.send("Why is the sky blue, and why is the evening sky red?");
    let jobs = test.jobs();
    assert_eq!(jobs.len(), 1);
    test.say(jobs[0], delta(Answer, "Because of "));
    assert!(test.sees("Because of"));
    test.reply(jobs[0], "scattering.");
    test.send("And at noon?");
    test.reply(jobs[0], "Still blue.");
    let saved = test.saved();
    assert_eq!(saved.title, "Why is the sky blue, and why is the…");
    let question = "Why is the sky blue, and why is the evening sky red?";
    assert_eq!(
        nodes(&saved, 0),
        [
            (None, question),
            (Some(0), "Because of scattering."),
            (Some(1), "And at noon?"),
            (Some(2), "Still blue.")
        ]
    );
    assert_eq!((saved.lanes[0].leaf, saved.lanes.len()), (Some(3), 1));
    assert_eq!(saved.lanes[0].nodes[3].stats, Some(chat::stats()));
    assert!(test.sees("1.2 s to first token · 84.3 tokens/s · 213 tokens · loaded in 0.3 s (not counted)"));
    let second: Vec<String> = test.prompts()[1].1.iter().map(|(_, text)| text.clone()).collect();
    assert_eq!(second, [question, "Because of scattering.", "And at noon?"]);
    assert_eq!(test.jobs().len(), 1, "the model stays loaded");
}

#[test]
fn a_reply_can_be_stopped() {
    let mut test = open(Vec::new());
    test.send("Count to a million");
    let job = test.jobs()[0];
    test.say(job, delta(Answer, "one, two"));
    test.click("Stop");
    assert!(test.link.script.borrow().was_sent(job, &CommandBody::CancelReply));
    let stats = ChatStats { finished: false, output_tokens: 3, ..chat::stats() };
    test.say(job, EventBody::ReplyDone(stats));
    assert_eq!(test.saved().lanes[0].nodes[1].stats, Some(stats));
    assert!(test.sees("3 tokens · stopped"));
}

#[test]
fn another_answer_is_a_branch_of_its_own() {
    let mut test = open(Vec::new());
    test.send("Name a fruit");
    let job = test.jobs()[0];
    test.reply(job, "apple");
    test.click("Answer again");
    test.reply(job, "pear");
    let saved = test.saved();
    assert_eq!(nodes(&saved, 0), [(None, "Name a fruit"), (Some(0), "apple"), (Some(0), "pear")]);
    assert_eq!(saved.lanes[0].leaf, Some(2));
    assert!(test.sees("2/2") && !test.sees("apple"));
    test.click("Previous branch");
    assert!(test.sees("1/2") && test.sees("apple") && !test.sees("pear"));
    assert_eq!(test.saved().lanes[0].leaf, Some(1));
}

#[test]
fn a_question_can_be_asked_anew() {
    let mut test = open(Vec::new());
    test.send("Name a fruit");
    let job = test.jobs()[0];
    test.reply(job, "apple");
    test.click("Edit the message");
    test.type_into("The message", " or two");
    test.click("Send anew");
    test.reply(job, "apple, pear");
    let saved = test.saved();
    let texts: Vec<_> = nodes(&saved, 0);
    assert_eq!(texts.len(), 4);
    assert_eq!((texts[2].0, texts[3]), (None, (Some(2), "apple, pear")));
    assert!(texts[2].1.contains("Name a fruit") && texts[2].1.contains("or two"));
    assert_eq!(test.prompts()[1].1.len(), 1);
    test.click("Previous branch");
    assert_eq!(test.saved().lanes[0].leaf, Some(1));
}

#[test]
fn two_models_are_asked_the_same() {
    let mut test = open(chat::records());
    test.harness.get_by_role_and_label(Widget::Switch, "Compare two").click();
    test.steps();
    test.send("Who are you?");
    let jobs = test.link.script.borrow().chat_jobs();
    assert_eq!(jobs.iter().map(|(_, adapters)| adapters.len()).collect::<Vec<_>>(), [0, 1]);
    let prompts = test.prompts();
    assert_eq!(prompts.len(), 2);
    assert_eq!(prompts[0].1, prompts[1].1);
    assert_eq!((prompts[0].0, prompts[1].0), (jobs[0].0, jobs[1].0));
    test.reply(jobs[1].0, "A pirate");
    test.reply(jobs[0].0, "An assistant");
    assert!(test.sees("A pirate") && test.sees("An assistant"));
    let saved = test.saved();
    assert_eq!(nodes(&saved, 0), [(None, "Who are you?"), (Some(0), "An assistant")]);
    assert_eq!(nodes(&saved, 1), [(None, "Who are you?"), (Some(0), "A pirate")]);
}

#[test]
fn a_failed_reply_loses_nothing() {
    let mut test = open(Vec::new());
    test.send("A long story");
    let job = test.jobs()[0];
    let error = chat::error("Conversation does not fit: 9,000 tokens, room for 8,192");
    test.say(job, EventBody::ReplyFailed { error });
    assert!(test.sees("Conversation does not fit"));
    assert_eq!(nodes(&test.saved(), 0), [(None, "A long story"), (Some(0), "")]);
    test.click("Try again");
    test.reply(job, "Once upon a time");
    let saved = test.saved();
    assert_eq!(nodes(&saved, 0), [(None, "A long story"), (Some(0), "Once upon a time")]);
    assert!(!test.sees("Conversation does not fit"));

    test.say(job, EventBody::Failed { error: chat::error("The worker was killed") });
    assert!(test.sees("The worker was killed"));
    test.click("Load again");
    assert_eq!(test.jobs().len(), 2);
}

#[test]
fn the_cpu_answers_only_after_a_question_where_a_card_is() {
    let refusal = || ErrorInfo {
        code: ErrorCode::NeedsCpu,
        message: "The graphics card cannot be used: Lathe's worker for graphics cards is missing".into(),
        hint: Some("build it with: cargo xtask cuda".into()),
        details: None,
    };
    let devices = |test: &Test| -> Vec<String> {
        let script = test.link.script.borrow();
        let devices = script.sent.iter().filter_map(|command| match &command.body {
            CommandBody::Chat { device, .. } => Some(device.clone()),
            _ => None,
        });
        devices.collect()
    };
    let mut test = open(Vec::new());
    test.send("Hello");
    let job = test.jobs()[0];
    test.say(job, EventBody::Failed { error: refusal() });
    assert!(test.sees("On the CPU, answers come slower."));
    test.click("Cancel");
    assert_eq!(devices(&test), ["auto"]);

    test.click("Try again");
    let job = test.jobs()[1];
    test.say(job, EventBody::Failed { error: refusal() });
    test.click("Use the CPU");
    assert_eq!(devices(&test), ["auto", "auto", "cpu"]);
    let job = test.jobs()[2];
    test.reply(job, "Hi");
    assert_eq!(nodes(&test.saved(), 0), [(None, "Hello"), (Some(0), "Hi")]);
}

#[test]
fn an_adapter_of_another_base_is_used_only_after_a_question() {
    let refusal = || ErrorInfo {
        code: ErrorCode::OtherBase,
        message: "The adapter was trained on another base: hidden_size 576 there, 2048 here".into(),
        hint: None,
        details: None,
    };
    let forced = |test: &Test| -> Vec<bool> {
        let script = test.link.script.borrow();
        let forced = script.sent.iter().filter_map(|command| match &command.body {
            CommandBody::Chat { force, .. } => Some(*force),
            _ => None,
        });
        forced.collect()
    };
    let mut test = open(Vec::new());
    test.send("Hello");
    let job = test.jobs()[0];
    test.say(job, EventBody::Failed { error: refusal() });
    test.click("Cancel");
    assert_eq!((forced(&test), test.saved().lanes[0].forced), (vec![false], false));
    assert!(test.sees("hidden_size 576 there"));

    test.click("Try again");
    let job = test.jobs()[1];
    test.say(job, EventBody::Failed { error: refusal() });
    test.click("Use it");
    assert_eq!((forced(&test), test.saved().lanes[0].forced), (vec![false, false, true], true));
    let job = test.jobs()[2];
    test.say(job, EventBody::Log { level: LogLevel::Warn, message: "Forced: another base".into() });
    assert!(test.sees("Forced: another base"));
    test.reply(job, "Hi");
    assert_eq!(nodes(&test.saved(), 0), [(None, "Hello"), (Some(0), "Hi")]);
}

#[test]
fn another_adapter_restarts_the_model() {
    let mut test = open(chat::records());
    test.send("Hello");
    let job = test.jobs()[0];
    test.reply(job, "Hi");
    test.harness.get_by_role_and_label(Widget::ComboBox, "Adapter").click();
    test.steps();
    test.click_last("pirate");
    assert!(test.link.script.borrow().was_sent(job, &CommandBody::Stop));
    test.send("Hello again");
    assert_eq!(test.link.script.borrow().chat_jobs()[1].1, ["pirate"]);
    assert_eq!(test.prompts()[1].1.len(), 3);
}

#[test]
fn kept_conversations_are_listed_and_opened() {
    let mut test = open(chat::records());
    assert!(test.sees("Three days in Lisbon"));
    test.click_last("Explain how LoRA fine-tuning works");
    assert!(test.sees("It adds two small matrices."));
    test.type_into("Search conversations", "lisbon");
    assert!(!test.sees("Unique lines in Python") && test.sees("Three days in Lisbon"));
}

#[test]
fn an_answer_goes_on_while_another_conversation_is_read() {
    let mut test = open(chat::records());
    test.send("A long story");
    let job = test.jobs()[0];
    test.say(job, delta(Answer, "Once upon "));
    test.click_last("Three days in Lisbon");
    assert!(test.sees("The model is answering in another conversation"));
    test.reply(job, "a time");
    assert_eq!(nodes(&test.saved(), 0), [(None, "A long story"), (Some(0), "Once upon a time")]);
    test.click_last("A long story");
    assert!(test.sees("Once upon a time"));
}

#[test]
fn a_conversation_is_deleted_only_after_a_question() {
    let removed = |test: &Test| {
        let script = test.link.script.borrow();
        script.job(|body| matches!(body, CommandBody::ChatsRemove { chat } if chat == "trip")).is_some()
    };
    let mut test = open(chat::records());
    test.click_last("More about this conversation");
    test.click("Delete…");
    assert!(test.sees("Delete this conversation?") && !removed(&test));
    test.click("Delete");
    assert!(removed(&test) && !test.sees("Three days in Lisbon"));
}

#[test]
fn of_a_long_conversation_only_what_is_in_view_is_drawn() {
    let texts: Vec<String> = (0..500).map(|index| format!("Message {index}\n\n{}", chat::ANSWER)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let long = chat::record("long", "Long", 0, vec![chat::lane(None, &texts)]);
    let mut test = open(vec![long]);
    test.click_last("Long");
    assert!(test.sees("Message 499") && !test.sees("Message 100"));
    test.harness.hover_at(egui::pos2(720.0, 400.0));
    test.harness.event(egui::Event::MouseWheel {
        unit: egui::MouseWheelUnit::Point,
        delta: egui::vec2(0.0, 5000.0),
        phase: egui::TouchPhase::Move,
        source: egui::MouseWheelSource::Unknown,
        modifiers: egui::Modifiers::NONE,
    });
    test.harness.run_steps(30);
    assert!(!test.sees("Message 499"));
    test.click("Jump to the newest");
    test.harness.run_steps(30);
    assert!(test.sees("Message 499") && !test.sees("Jump to the newest"));
}

/// The screen with these conversations, the one of this title open.
fn picture(title: Option<&str>, theme: Theme, size: Vec2, name: &str) {
    let mut test = open_sized(if title.is_some() { chat::records() } else { Vec::new() }, theme, size);
    if let Some(title) = title {
        test.click_last(title);
    }
    // Rows find their heights.
    test.harness.run_steps(10);
    test.harness.try_snapshot(name).unwrap();
}

const SIZE: Vec2 = Vec2::new(1280.0, 800.0);

#[test]
fn every_kind_of_text_looks_right() {
    let mut test = open(chat::records());
    test.click_last("Unique lines in Python");
    test.click_last("Answer again");
    let job = test.jobs()[0];
    test.say(job, delta(Thinking, "The user said thanks; I might ask whether more is wanted."));
    test.say(
        job,
        delta(
            Answer,
            "# Glad to help\nRead [the docs](https://docs.python.org), or ~~not~~:\n> A quote of **two**\n> lines\n\n\
             - [x] done\n- open\n  1. nested\n  2. more\n\n<b>html</b>\n\n---\n## Smaller\n1. In a list\n   \
             ```js\n   let x = `a`; // y\n   ```",
        ),
    );
    let mut error = chat::error("Conversation does not fit: 9,000 tokens, room for 8,192");
    error.hint = Some("begin a new conversation, or lower the longest answer".into());
    test.say(job, EventBody::ReplyFailed { error });
    test.harness.run_steps(10);
    test.harness.try_snapshot("chat_texts").unwrap();
}

#[test]
fn it_looks_right() {
    for (theme, ending) in [(Theme::Light, "light"), (Theme::Dark, "dark")] {
        picture(Some("Unique lines in Python"), theme, SIZE, &format!("chat_{ending}"));
        picture(Some("Late order, base against pirate"), theme, SIZE, &format!("chat_compare_{ending}"));
        picture(None, theme, SIZE, &format!("chat_empty_{ending}"));
    }
}

#[test]
fn it_looks_right_on_a_large_screen() {
    let size = Vec2::new(1920.0, 1080.0);
    picture(Some("Unique lines in Python"), Theme::Light, size, "chat_large");
    picture(Some("Late order, base against pirate"), Theme::Dark, size, "chat_compare_large");
}

#[test]
fn effort_appears_with_a_model_that_has_it_and_reaches_it() {
    let mut test = open(Vec::new());
    test.click("Load now");
    assert!(!test.sees("Reasoning effort"));
    let job = test.jobs()[0];
    let ready = EventBody::ChatReady {
        load_seconds: 0.3,
        supports_thinking: true,
        supports_effort: true,
        context_length: 8192,
        styles: Vec::new(),
    };
    test.say(job, ready);
    assert!(test.sees("Longest thought in tokens"));
    test.click("High");
    test.send("Why?");
    let script = test.link.script.borrow();
    let asked = script.sent.iter().rev().find_map(|command| match &command.body {
        CommandBody::Reply { effort, .. } => Some(effort.clone()),
        _ => None,
    });
    assert_eq!(asked, Some(Some("high".into())));
}

#[test]
fn a_style_of_the_adapter_reaches_the_model_with_its_settings() {
    let mut test = open(chat::records());
    assert!(!test.sees("Style"), "without an adapter there are no styles");
    test.choose("Adapter", "house-style-draft");
    test.click("Load now");
    test.choose("Style", "detailed");
    assert!(test.sees("Unless set below: at most 384 tokens, at least 24 tokens, temperature 0"));
    assert_eq!(test.jobs().len(), 1, "another style loads nothing");
    test.send("Why?");
    let asked = |test: &Test| {
        let script = test.link.script.borrow();
        let asked = script.sent.iter().rev().find_map(|command| match &command.body {
            CommandBody::Reply { messages, sampling, .. } => {
                let style = messages.last().and_then(|message| message.style.clone());
                Some((style, sampling.max_tokens, sampling.min_tokens))
            }
            _ => None,
        });
        asked.unwrap()
    };
    assert_eq!(asked(&test), (Some("detailed".into()), 384, 24));

    // Another adapter does not know the style, neither for the question nor for those before it.
    let job = test.jobs()[0];
    test.reply(job, "Because.");
    test.choose("Adapter", "pirate");
    assert!(!test.sees("Style"));
    test.send("And then?");
    assert_eq!(asked(&test), (None, 512, 0));
}
