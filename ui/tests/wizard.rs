//! The wizard of a new run, over a scripted engine.
#![expect(clippy::unwrap_used, reason = "a failing test may panic")]

mod support;

use std::{path::Path, sync::Arc};

use egui::{Key, Modifiers, Role, Theme, Vec2};
use egui_kittest::{Harness, kittest::Queryable};
use lathe_protocol::{
    Command, CommandBody, Consequence, DataFile, ErrorCode, ErrorInfo, EventBody, ModelDetails, ModelEntry,
    Objective, RunConfig, Schedule, Style, TrainRequest, TrainStart,
};
use lathe_ui::Route;
use support::{
    Script, ScriptedLink, Window, fixtures, wait_until,
    wizard::{
        self, DATA, MODEL, RUN, choose_data, click, enter, fill_in, is_enabled, open_with, sent_requests,
        settle, train_started,
    },
};

fn open() -> (Harness<'static, Window>, ScriptedLink) {
    open_with(Theme::Light, Vec2::new(1280.0, 800.0), |_, _| false)
}

fn type_into(harness: &mut Harness<'_, Window>, label: &str, text: &str) {
    harness.get_by_role_and_label(Role::TextInput, label).focus();
    harness.step();
    harness.key_press_modifiers(Modifiers::COMMAND, Key::A);
    harness.get_by_role_and_label(Role::TextInput, label).type_text(text);
    settle(harness);
}

#[test]
fn four_steps_lead_to_a_running_run() {
    let (mut harness, link) = open_with(Theme::Light, Vec2::new(1280.0, 800.0), train_started);
    fill_in(&mut harness);
    type_into(&mut harness, "Name", "tone-2");
    click(&mut harness, "Start");
    let mut config = RunConfig {
        eval_ratio: 0.05,
        epochs: 3.0,
        batch_size: 1,
        grad_accum: 16,
        packing: false,
        learning_rate: 2e-4,
        schedule: Schedule::Cosine,
        warmup_ratio: 0.03,
        ..RunConfig::default()
    };
    (config.lora.r, config.lora.alpha) = (32, 64.0);
    let request = TrainRequest {
        model: MODEL.into(),
        data: DATA.into(),
        eval_data: None,
        config,
        out_dir: None,
        name: Some("tone-2".into()),
        init_adapter: None,
        force: false,
        resume: false,
        device: "auto".into(),
        start: TrainStart::Detached,
    };
    assert_eq!(sent_requests(&link), [request]);
    assert_eq!(*harness.state().0.route(), Route::Run(RUN.into()));
}

#[test]
fn queueing_leads_to_the_runs() {
    let (mut harness, link) = open_with(Theme::Light, Vec2::new(1280.0, 800.0), train_started);
    fill_in(&mut harness);
    click(&mut harness, "Queue");
    let request = &sent_requests(&link)[0];
    assert_eq!((request.start, &request.name), (TrainStart::Queued, &None));
    assert_eq!(*harness.state().0.route(), Route::Runs);
}

#[test]
fn control_and_enter_continue() {
    let (mut harness, _) = open();
    click(&mut harness, MODEL);
    harness.key_press_modifiers(Modifiers::COMMAND, Key::Enter);
    settle(&mut harness);
    harness.get_by_label("What is the model to learn from?");
}

#[test]
fn going_back_loses_nothing() {
    let (mut harness, link) = open_with(Theme::Light, Vec2::new(1280.0, 800.0), train_started);
    fill_in(&mut harness);
    for _ in 0..3 {
        click(&mut harness, "Back");
    }
    harness.get_by_role_and_label(Role::Tab, "Models").click();
    settle(&mut harness);
    enter(&mut harness);
    click(&mut harness, "Step 4: Review");
    click(&mut harness, "Start");
    let request = &sent_requests(&link)[0];
    assert_eq!((request.model.as_str(), request.data.as_str(), request.config.lora.r), (MODEL, DATA, 32));
}

#[test]
fn a_failed_start_is_told_and_everything_kept() {
    let fail = |command: &Command, script: &mut Script| {
        let is_train = matches!(command.body, CommandBody::Train(_));
        if is_train {
            let error =
                ErrorInfo::new(ErrorCode::OutOfMemory, "Does not fit: needs 9.1 GiB").hint("train less");
            script.say(command.job, EventBody::Failed { error });
        }
        is_train
    };
    let (mut harness, link) = open_with(Theme::Light, Vec2::new(1280.0, 800.0), fail);
    fill_in(&mut harness);
    click(&mut harness, "Start");
    harness.get_by_label("Does not fit: needs 9.1 GiB");
    assert_eq!(*harness.state().0.route(), Route::NewRun);
    click(&mut harness, "Start");
    assert_eq!(sent_requests(&link).len(), 2);
}

#[test]
fn a_run_on_its_way_can_be_called_off() {
    let prepare = |command: &Command, script: &mut Script| {
        let is_train = matches!(command.body, CommandBody::Train(_));
        if is_train {
            let what = "Loading the model".to_owned();
            script.say(command.job, EventBody::Progress { what, done: 1, total: 4 });
        }
        is_train
    };
    let (mut harness, link) = open_with(Theme::Light, Vec2::new(1280.0, 800.0), prepare);
    fill_in(&mut harness);
    click(&mut harness, "Start");
    harness.get_by_label("Loading the model");
    click(&mut harness, "Cancel");
    assert!(is_enabled(&harness, "Start"));
    let script = link.script.borrow();
    let job = script.job(|body| matches!(body, CommandBody::Train(_))).unwrap();
    assert!(script.sent.iter().any(|command| command.job == job && command.body == CommandBody::Stop));
}

#[test]
fn an_unknown_shape_is_mended_by_saying_what_is_what() {
    let unknown = |command: &Command, script: &mut Script| {
        let CommandBody::DataCheck { config, .. } = &command.body else { return false };
        if config.columns.len() == 2 {
            return false;
        }
        let columns = vec![
            wizard::column("question", None, "What is 2 + 2?"),
            wizard::column("reply", None, "It is 4"),
        ];
        let roles = ["messages", "conversations", "prompt", "completion", "instruction", "output", "text"];
        script.say(command.job, EventBody::DataColumns { columns, roles: roles.map(String::from).to_vec() });
        let error = ErrorInfo::new(ErrorCode::Data, "The rows have no known shape: question, reply");
        script.say(command.job, EventBody::Failed { error });
        true
    };
    let (mut harness, link) = open_with(Theme::Light, Vec2::new(1280.0, 800.0), unknown);
    click(&mut harness, MODEL);
    click(&mut harness, "Continue");
    choose_data(&mut harness);
    assert!(!is_enabled(&harness, "Continue"));
    harness.render().unwrap().save(shot("mapping")).unwrap();
    for (role, column) in [("prompt", "question"), ("completion", "reply")] {
        click(&mut harness, &format!("Column for {role}"));
        harness.get_all_by_label(column).last().unwrap().click();
        settle(&mut harness);
    }
    wait_until(&mut harness, "the data is fine", |harness| is_enabled(harness, "Continue"));
    let script = link.script.borrow();
    let mut checks = script.sent.iter().filter_map(|command| match &command.body {
        CommandBody::DataCheck { config, .. } => Some(&config.columns),
        _ => None,
    });
    let columns = checks.next_back().unwrap();
    assert_eq!((columns["prompt"].as_str(), columns["completion"].as_str()), ("question", "reply"));
}

#[test]
fn the_rows_that_are_looked_at_are_fetched_once() {
    let (mut harness, link) = open();
    click(&mut harness, MODEL);
    click(&mut harness, "Continue");
    choose_data(&mut harness);
    for _ in 0..9 {
        click(&mut harness, "Row after");
    }
    harness.get_by_label("Row 10 of 1,200, 88 tokens");
    let script = link.script.borrow();
    let shown = script.sent.iter().filter_map(|command| match &command.body {
        CommandBody::DataShow { row, count, .. } => Some((*row, *count)),
        _ => None,
    });
    assert_eq!(shown.collect::<Vec<_>>(), [(0, 16), (16, 16)]);
}

#[test]
fn held_out_rows_may_be_a_file() {
    let (mut harness, link) = open_with(Theme::Light, Vec2::new(1280.0, 800.0), train_started);
    click(&mut harness, MODEL);
    click(&mut harness, "Continue");
    choose_data(&mut harness);
    click(&mut harness, "A file of their own");
    assert!(!is_enabled(&harness, "Continue"));
    click(&mut harness, "Choose the file…");
    click(&mut harness, "house_style.csv");
    click(&mut harness, "Choose");
    for _ in 0..2 {
        wait_until(&mut harness, "the data is checked", |harness| is_enabled(harness, "Continue"));
        click(&mut harness, "Continue");
    }
    click(&mut harness, "Start");
    let request = &sent_requests(&link)[0];
    assert_eq!(request.eval_data.as_deref(), Some("/home/ada/data/house_style.csv"));
    assert!(request.config.eval_ratio <= 0.0);
}

#[test]
fn several_files_are_checked_and_learned_from_together() {
    let (mut harness, link) = open_with(Theme::Light, Vec2::new(1280.0, 1600.0), train_started);
    click(&mut harness, MODEL);
    click(&mut harness, "Continue");
    choose_data(&mut harness);
    wait_until(&mut harness, "the data is checked", |harness| is_enabled(harness, "Continue"));
    click(&mut harness, "Add a file…");
    click(&mut harness, "house_style.csv");
    click(&mut harness, "Choose");
    let files = [DATA, "/home/ada/data/house_style.csv"].map(DataFile::new);
    wait_until(&mut harness, "both files are checked", |_| {
        link.script.borrow().sent.iter().any(
            |command| matches!(&command.body, CommandBody::DataCheck { config, .. } if config.data == files),
        )
    });
    for _ in 0..2 {
        wait_until(&mut harness, "the data is checked", |harness| is_enabled(harness, "Continue"));
        click(&mut harness, "Continue");
    }
    click(&mut harness, "Start");
    assert_eq!(sent_requests(&link)[0].config.data, files);
}

#[test]
fn a_bad_value_blocks_and_says_why() {
    let (mut harness, _) = open();
    click(&mut harness, MODEL);
    click(&mut harness, "Continue");
    choose_data(&mut harness);
    click(&mut harness, "Continue");
    click(&mut harness, "Advanced");
    type_into(&mut harness, "Find a setting", "lora.r");
    type_into(&mut harness, "lora.r", "0");
    harness.get_by_label("From 1 to 4096");
    assert!(!is_enabled(&harness, "Continue"));
    type_into(&mut harness, "lora.r", "12");
    assert!(is_enabled(&harness, "Continue"));
    let custom = "You changed something a preset sets. Choosing a preset sets it back.";
    harness.get_by_label(custom);
    click(&mut harness, "Reset lora.r");
    assert!(harness.query_by_label(custom).is_none(), "16 is what Balanced sets");
}

#[test]
fn what_lora_adapts_is_written_in_the_window_and_settings_that_exclude_each_other_block() {
    let (mut harness, _) = open();
    click(&mut harness, MODEL);
    click(&mut harness, "Continue");
    choose_data(&mut harness);
    click(&mut harness, "Continue");
    click(&mut harness, "Advanced");
    type_into(&mut harness, "Find a setting", "lora.");
    for (key, written, blocks) in [
        ("lora.targets", r"regex:.*\.(q|v)_proj", false),
        ("lora.layers", "0-7, 12", true), // an expression names its layers itself
        ("lora.targets", "q_proj, v_proj", false),
        ("lora.modules_to_save", "embed_tokens", false),
        ("lora.target_parameters", "mlp.experts.down_proj", false),
        ("lora.dropout", "0.1", true),
        ("lora.dropout", "0", false),
        ("lora.layers", "12-0", true),
    ] {
        type_into(&mut harness, key, written);
        assert_eq!(is_enabled(&harness, "Continue"), !blocks, "{key} = {written}");
    }
}

#[test]
fn verbosity_control_brings_its_styles_to_the_check_and_the_run() {
    let (mut harness, link) = open_with(Theme::Light, Vec2::new(1280.0, 800.0), train_started);
    fill_in(&mut harness);
    click(&mut harness, "Back");
    click(&mut harness, "Verbosity control");
    harness.run_steps(40);
    let checked = link.script.borrow().sent.iter().rev().find_map(|command| match &command.body {
        CommandBody::DataCheck { config, .. } => Some(config.styles.clone()),
        _ => None,
    });
    assert_eq!(checked, Some(Style::terse_and_detailed()));
    click(&mut harness, "Continue");
    harness.get_by_label_contains("terse, detailed");
    click(&mut harness, "Start");
    assert_eq!(sent_requests(&link)[0].config.styles, Style::terse_and_detailed());
}

/// A host whose data file has pairs.
fn of_pairs(command: &Command, script: &mut Script) -> bool {
    match &command.body {
        CommandBody::DataCheck { .. } => {
            let report = Box::new(wizard::preference_report());
            script.answer(command.job, EventBody::DataReport(report));
        }
        CommandBody::DataShow { row, count, .. } => {
            for row in *row..row + count {
                script.say(command.job, EventBody::Row(wizard::pair_view(row)));
            }
            script.say(command.job, EventBody::Done);
        }
        _ => return train_started(command, script),
    }
    true
}

#[test]
fn pairs_bring_their_objective_to_the_check_and_the_run() {
    let (mut harness, link) = open_with(Theme::Light, Vec2::new(1280.0, 800.0), of_pairs);
    click(&mut harness, MODEL);
    click(&mut harness, "Continue");
    choose_data(&mut harness);
    harness.run_steps(40);
    for label in ["Chosen", "Rejected"] {
        harness.get_by_label(label);
    }
    let checked = link.script.borrow().sent.iter().rev().find_map(|command| match &command.body {
        CommandBody::DataCheck { config, .. } => Some(config.objective),
        _ => None,
    });
    assert_eq!(checked, Some(Objective::Dpo));
    harness.remove_cursor();
    settle(&mut harness);
    harness.snapshot("wizard_pairs_light");
    click(&mut harness, "Continue");
    assert!(harness.query_by_label("Balanced").is_none(), "presets for other rows are not offered");
    harness.remove_cursor();
    settle(&mut harness);
    harness.snapshot("wizard_objective_light");
    click(&mut harness, "Preference (ORPO)");
    click(&mut harness, "Continue");
    harness.get_by_label_contains("ORPO, beta 0.1");
    click(&mut harness, "Back");
    click(&mut harness, "Preference (DPO)");
    click(&mut harness, "Continue");
    click(&mut harness, "Start");
    let config = &sent_requests(&link)[0].config;
    assert_eq!((config.objective, config.learning_rate), (Objective::Dpo, 5e-5));
}

#[test]
fn nothing_to_learn_blocks_the_start() {
    let nothing = |command: &Command, script: &mut Script| {
        let is_check = matches!(command.body, CommandBody::DataCheck { .. });
        if is_check {
            let report = lathe_protocol::DataReport { loss_tokens: 0, ..wizard::report() };
            script.answer(command.job, EventBody::DataReport(Box::new(report)));
        }
        is_check
    };
    let (mut harness, link) = open_with(Theme::Light, Vec2::new(1280.0, 800.0), nothing);
    fill_in(&mut harness);
    assert!(!is_enabled(&harness, "Start") && !is_enabled(&harness, "Queue"));
    harness.key_press_modifiers(Modifiers::COMMAND, Key::Enter);
    settle(&mut harness);
    assert!(sent_requests(&link).is_empty());
}

#[derive(Debug)]
struct Dropped(&'static str);

impl egui::DroppedFile for Dropped {
    fn path(&self) -> &Path {
        Path::new(self.0)
    }

    fn bytes(&self) -> Result<Vec<u8>, String> {
        Err("not read".into())
    }
}

#[test]
fn a_dropped_gguf_is_imported_and_chosen() {
    let imported = || ModelEntry { name: "local/tiny".into(), ..fixtures::models()[1].clone() };
    let import = move |command: &Command, script: &mut Script| {
        match &command.body {
            CommandBody::ModelsImport { path, name: None } if path == "/home/ada/tiny.gguf" => {
                script.answer(command.job, EventBody::Models { models: vec![imported()] });
            }
            CommandBody::ModelsList => {
                let mut models = fixtures::models();
                models.push(imported());
                script.answer(command.job, EventBody::Models { models });
            }
            _ => return false,
        }
        true
    };
    let (mut harness, _) = open_with(Theme::Light, Vec2::new(1280.0, 800.0), import);
    assert!(!is_enabled(&harness, "Continue"));
    harness.input_mut().dropped_files.push(Arc::new(Dropped("/home/ada/tiny.gguf")));
    settle(&mut harness);
    assert!(is_enabled(&harness, "Continue"), "the imported model is chosen");
    // From another place, it leads here.
    harness.state_mut().0.go(Route::Adapters);
    harness.input_mut().dropped_files.push(Arc::new(Dropped(DATA)));
    settle(&mut harness);
    assert_eq!(harness.state().0.route(), &Route::NewRun);
    harness.get_by_label("support_chats.jsonl");
}

/// A file of pictures that are only looked at.
fn shot(name: &str) -> String {
    format!("{}/wizard_{name}.png", std::env::temp_dir().display())
}

/// Every step as it looks; at 1280×800 also compared.
fn pictures(theme: Theme, size: Vec2, suffix: &str, compare: bool) {
    let (mut harness, _) = open_with(theme, size, |_, _| false);
    let take = |harness: &mut Harness<'static, Window>, name: &str| {
        harness.remove_cursor();
        settle(harness);
        let name = format!("wizard_{name}_{suffix}");
        if compare {
            harness.snapshot(&name);
        } else {
            harness.render().unwrap().save(shot(&name)).unwrap();
        }
    };
    if !compare {
        click(&mut harness, "meta-llama/Llama-3.2-1B-Instruct");
        take(&mut harness, "catalog");
    }
    click(&mut harness, MODEL);
    take(&mut harness, "model");
    click(&mut harness, "Continue");
    click(&mut harness, "Browse…");
    harness.remove_cursor();
    settle(&mut harness);
    harness.render().unwrap().save(shot(&format!("picker_{suffix}"))).unwrap();
    click(&mut harness, "support_chats.jsonl");
    click(&mut harness, "Choose");
    if !compare {
        harness.hover_at(egui::pos2(380.0, 596.0));
        harness.run_steps(8);
        harness.render().unwrap().save(shot(&format!("hover_{suffix}"))).unwrap();
    }
    take(&mut harness, "data");
    click(&mut harness, "Continue");
    take(&mut harness, "method");
    if !compare {
        click(&mut harness, "Advanced");
        take(&mut harness, "advanced");
        click(&mut harness, "Advanced");
    }
    click(&mut harness, "Continue");
    take(&mut harness, "review");
}

#[test]
fn the_steps_look_right_in_light() {
    pictures(Theme::Light, Vec2::new(1280.0, 800.0), "light", true);
}

#[test]
fn the_steps_look_right_in_dark() {
    pictures(Theme::Dark, Vec2::new(1280.0, 800.0), "dark", true);
}

/// Not compared: other sizes, and what is further down.
#[test]
fn the_steps_fit_other_windows() {
    pictures(Theme::Light, Vec2::new(1920.0, 1080.0), "large", false);
    pictures(Theme::Dark, Vec2::new(1000.0, 1400.0), "narrow", false);
    pictures(Theme::Light, Vec2::new(1280.0, 2600.0), "tall", false);
}

#[test]
fn what_follows_from_a_model_is_told_once_it_is_chosen() {
    let told = |name: &str| {
        let entry = fixtures::models().into_iter().find(|entry| entry.name == name)?;
        Some(ModelDetails {
            name: entry.name,
            path: entry.path,
            architecture: entry.architecture?,
            parameters: entry.parameters?,
            size_bytes: entry.size_bytes,
            shape: entry.shape?,
            dtypes: [("BF16".to_owned(), 272)].into(),
            has_chat_template: true,
            default_targets: vec!["q_proj".into()],
            consequences: vec![Consequence {
                topic: "Replies".into(),
                text: "All of a reply is the answer.".into(),
            }],
            files: Vec::new(),
        })
    };
    let answer = move |command: &Command, script: &mut Script| {
        let CommandBody::ModelsShow { model } = &command.body else { return false };
        script.answer(command.job, EventBody::ModelDetails(Box::new(told(model).unwrap())));
        true
    };
    let (mut harness, link) = open_with(Theme::Light, Vec2::new(1280.0, 1700.0), answer);
    assert!(harness.query_by_label("All of a reply is the answer.").is_none());
    click(&mut harness, MODEL);
    harness.get_by_label("What follows from SmolLM2-135M-Instruct");
    harness.get_by_label("All of a reply is the answer.");
    let asked = |command: &Command| matches!(command.body, CommandBody::ModelsShow { .. });
    assert_eq!(link.script.borrow().sent.iter().filter(|command| asked(command)).count(), 1);
}
