//! Talking to a run while it trains, over a scripted engine.
#![expect(clippy::unwrap_used, reason = "a failing test may panic")]

mod support;

use egui::{Key, Role as Widget, Theme};
use egui_kittest::{Harness, kittest::Queryable as _};
use lathe_protocol::{
    AdapterEntry, AnsweredBy, ChatRecord, CommandBody, EventBody, ReplyChannel::Answer, RunEntry, RunStatus,
    RunVoice, Style,
};
use lathe_ui::Route;
use support::{
    ScriptedLink, Window,
    chat::{self, delta},
    fixtures, runs, window,
};

const RUN: &str = "support-tone";

struct Test {
    harness: Harness<'static, Window>,
    link: ScriptedLink,
    run: RunEntry,
}

/// What a chat's job was started with.
fn is_talk(body: &CommandBody) -> bool {
    matches!(body, CommandBody::TalkToRun { .. } | CommandBody::Chat { .. })
}

impl Test {
    /// On the page of a run in training, whose library will hold its adapter.
    fn open() -> Self {
        let run = runs::long(120, 500);
        let all = vec![run.clone()];
        let link = ScriptedLink::new(move |command, script| match &command.body {
            CommandBody::TalkToRun { .. } => script.say(
                command.job,
                EventBody::ChatReady {
                    load_seconds: 0.0,
                    supports_thinking: true,
                    supports_effort: false,
                    context_length: 2048,
                    styles: vec![Style::new("brief")],
                },
            ),
            CommandBody::AdaptersList => {
                let of_run = AdapterEntry {
                    name: RUN.into(),
                    run: Some(RUN.into()),
                    ..fixtures::adapters().remove(0)
                };
                script.answer(command.job, EventBody::Adapters { adapters: vec![of_run] });
            }
            CommandBody::ChatsList | CommandBody::ChatsSave(_) | CommandBody::Chat { .. } => {
                chat::answer(&[], command, script);
            }
            _ => runs::answer(command, script, &all),
        });
        let mut harness = window(link.clone(), Theme::Light);
        harness.state_mut().0.go(Route::Run(run.id.clone()));
        let mut test = Self { harness, link, run };
        test.steps();
        test
    }

    fn steps(&mut self) {
        self.harness.run_steps(6);
    }

    fn click(&mut self, name: &str) {
        self.harness.get_by_label(name).click();
        self.steps();
    }

    fn sees(&self, text: &str) -> bool {
        self.harness.query_all_by_label_contains(text).next().is_some()
    }

    fn ask(&mut self, text: &str) {
        const HINT: Option<&str> = Some("Write a message…");
        self.harness.get_by(|node| node.data().placeholder() == HINT).focus();
        self.steps();
        self.harness.get_by(|node| node.data().placeholder() == HINT).type_text(text);
        self.steps();
        self.harness.key_press(Key::Enter);
        self.steps();
    }

    /// Of the newest job of a chat.
    fn say(&mut self, body: EventBody) {
        let mut script = self.link.script.borrow_mut();
        let job = script.job(is_talk).unwrap();
        script.say(job, body);
        drop(script);
        self.steps();
    }

    fn answer(&mut self, step: usize, voice: RunVoice, text: &str) {
        self.say(EventBody::ReplyStarted(AnsweredBy { step, total_steps: 500, voice }));
        self.say(delta(Answer, text));
        self.say(EventBody::ReplyDone(lathe_protocol::ChatStats { load_seconds: 0.0, ..chat::stats() }));
    }

    /// The run, as the list tells it from now on.
    fn run_is(&mut self, status: RunStatus) {
        let run = RunEntry { status, step: 500, ..self.run.clone() };
        let mut script = self.link.script.borrow_mut();
        let list = script.job(|body| matches!(body, CommandBody::RunsFollow)).unwrap();
        script.say(list, EventBody::Runs { runs: vec![run] });
        drop(script);
        self.steps();
    }

    /// What chats were started with.
    fn talks(&self) -> Vec<CommandBody> {
        let script = self.link.script.borrow();
        script.sent.iter().map(|command| command.body.clone()).filter(is_talk).collect()
    }

    fn replies_asked(&self) -> usize {
        let script = self.link.script.borrow();
        script.sent.iter().filter(|command| matches!(command.body, CommandBody::Reply { .. })).count()
    }

    fn saved(&self) -> ChatRecord {
        self.link.script.borrow().last_saved().unwrap()
    }
}

#[test]
fn a_run_answers_as_of_its_step_with_its_adapter_and_without() {
    let mut test = Test::open();
    test.click("Talk to it");
    let talk = |base| CommandBody::TalkToRun { run: test.run.id.clone(), base };
    let [adapter, base] = [talk(false), talk(true)];
    assert_eq!(test.talks(), std::slice::from_ref(&adapter));
    assert!(test.sees("brief") || test.sees("Style"), "the run's styles");
    assert!(!test.sees("Load now"));
    test.ask("My lamp does not turn on");
    assert!(test.sees("Answers after this step"));
    test.answer(120, RunVoice::Adapter, "Sorry to hear that! Hold the power button for ten seconds.");
    assert!(test.sees("step 120 of 500 · adapter") && !test.sees("Answers after this step"));

    test.click("Base");
    assert_eq!(test.talks(), [adapter, base]);
    test.ask("And without what you have learned?");
    test.answer(134, RunVoice::Base, "Did you check the bulb?");
    let kept: Vec<_> = test.saved().lanes[0]
        .nodes
        .iter()
        .filter_map(|node| Some((node.answered_by?.step, node.answered_by?.voice)))
        .collect();
    assert_eq!(kept, [(120, RunVoice::Adapter), (134, RunVoice::Base)]);
    test.click("Adapter as of now");
    test.ask("Thank you!");
    test.harness.snapshot("talk");
}

#[test]
fn a_run_that_ended_offers_what_it_learned() {
    let mut test = Test::open();
    test.click("Talk to it");
    test.ask("Hello");
    test.answer(120, RunVoice::Adapter, "Hello, Ada!");
    test.ask("Are you there?");
    test.run_is(RunStatus::Completed);
    test.say(EventBody::Failed { error: chat::error("Run support-tone has ended after step 500 of 500") });
    assert!(test.sees("has ended after step 500") && test.sees("Try again"));
    let asked = test.replies_asked();
    test.ask("Still?");
    assert_eq!(test.replies_asked(), asked, "nobody answers");
    test.harness.snapshot("talk_ended");

    test.click("Go on with the adapter");
    assert!(!test.sees("Go on with the adapter"));
    test.click("Send");
    assert_eq!(
        test.talks().last(),
        Some(&CommandBody::Chat {
            model: test.run.model.clone(),
            adapters: vec![RUN.into()],
            device: "auto".into(),
            force: false,
        })
    );
    assert!(test.sees("step 120 of 500 · adapter"), "old answers keep their step");
}

#[test]
fn a_paused_run_answers_again_once_it_goes_on() {
    let mut test = Test::open();
    test.click("Talk to it");
    test.run_is(RunStatus::Stopped);
    test.say(EventBody::Failed { error: chat::error("Run support-tone does not train: it is stopped") });
    assert!(test.sees("resume it, or keep what it has learned"));
    test.run_is(RunStatus::Running);
    assert!(!test.sees("Go to the run"));
    test.ask("Hello again");
    assert_eq!((test.talks().len(), test.replies_asked()), (2, 1));
    test.answer(130, RunVoice::Adapter, "Hello!");

    test.run_is(RunStatus::Interrupted);
    test.click("Go to the run");
    assert_eq!(*test.harness.state().0.route(), Route::Run(test.run.id.clone()));
}

#[test]
fn the_adapter_and_the_base_of_one_run_are_compared_side_by_side() {
    let mut test = Test::open();
    test.click("Talk to it");
    test.harness.get_by_role_and_label(Widget::Switch, "Compare two").click();
    test.steps();
    test.ask("Hello");
    let talk = |base| CommandBody::TalkToRun { run: test.run.id.clone(), base };
    assert_eq!(test.talks(), [talk(false), talk(true)]);
    assert_eq!(test.replies_asked(), 2);
    test.answer(120, RunVoice::Base, "Hi");
    assert!(test.sees("step 120 of 500 · base"));
}
