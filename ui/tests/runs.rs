//! Run, Runs and Compare, over a scripted engine.

mod support;

use egui::{Theme, Vec2};
use egui_kittest::{Harness, SnapshotResults, kittest::Queryable as _};
use lathe_protocol::{
    CommandBody, Divergence, DivergenceSign, ErrorCode, ErrorInfo, EventBody, JobId, LogFormat, LogLevel,
    ResumeHow, RowPlace, RunEntry, RunStatus, SampleText, StopThen, TrainStart,
};
use lathe_ui::Route;
use support::{ScriptedLink, Window, fixtures, runs, window, window_of_size};

type Test = Harness<'static, Window>;

fn open(all: Vec<RunEntry>, route: Route) -> (Test, ScriptedLink) {
    let link = runs::link(all);
    let mut harness = window(link.clone(), Theme::Light);
    go(&mut harness, route);
    (harness, link)
}

fn go(harness: &mut Test, route: Route) {
    harness.state_mut().0.go(route);
    harness.run_steps(4);
}

fn click(harness: &mut Test, label: &str) {
    harness.get_by_label(label).click();
    harness.run_steps(4);
}

fn shows(harness: &Test, label: &str) -> bool {
    harness.query_all_by_label(label).next().is_some()
}

fn sent(link: &ScriptedLink, is: impl Fn(&CommandBody) -> bool) -> Vec<CommandBody> {
    link.script.borrow().sent.iter().map(|command| command.body.clone()).filter(is).collect()
}

/// As the newest job whose command `is`.
fn say(link: &ScriptedLink, is: impl Fn(&CommandBody) -> bool, body: EventBody) {
    let job = job(link, is);
    link.script.borrow_mut().say(job, body);
}

fn job(link: &ScriptedLink, is: impl Fn(&CommandBody) -> bool) -> JobId {
    link.script.borrow().job(is).expect("a job was started")
}

fn is_watch(body: &CommandBody) -> bool {
    matches!(body, CommandBody::RunsWatch { .. })
}

fn is_stop(body: &CommandBody) -> bool {
    matches!(body, CommandBody::RunsStop { .. })
}

fn is_resume(body: &CommandBody) -> bool {
    matches!(body, CommandBody::RunsResume { .. })
}

#[test]
fn the_whole_history_shows_and_live_steps_are_added() {
    let all = vec![runs::long(200, 300)];
    let (mut harness, link) = open(all.clone(), Route::Run(all[0].id.clone()));
    assert!(shows(&harness, "Step 200"));
    harness.get_by_label_contains("Loss chart: 0.");
    assert!(shows(&harness, "My lamp does not turn on"));
    for event in [
        EventBody::Step(runs::step(201, 300, 0)),
        EventBody::Log { level: LogLevel::Warn, message: "The disk is nearly full".into() },
        EventBody::Sample(SampleText { step: 201, prompt: "Are you there?".into(), text: "Always.".into() }),
    ] {
        say(&link, is_watch, event);
    }
    harness.run_steps(4);
    for label in ["Step 201", "The disk is nearly full", "Are you there?", "Always."] {
        assert!(shows(&harness, label), "{label}");
    }
}

#[test]
fn the_command_that_does_a_run_again_is_copied_with_what_has_changed() {
    let all = vec![runs::long(200, 300)];
    let id = all[0].id.clone();
    let (mut harness, link) = open(all, Route::Run(id.clone()));
    click(&mut harness, "Copy the command");
    let is_asked = |body: &CommandBody| *body == CommandBody::RunsReproduce { run: id.clone() };
    let command = "lathe train --model starter --data 'my data.jsonl'";
    let body = EventBody::Reproduction {
        run: id.clone(),
        args: Vec::new(),
        command: command.into(),
        warnings: vec!["The data is gone: my data.jsonl".into()],
    };
    let asked = job(&link, is_asked);
    link.script.borrow_mut().answer(asked, body);
    let mut copied = Vec::new();
    for _ in 0..4 {
        harness.step();
        copied.extend(harness.output().platform_output.commands.clone());
    }
    assert!(copied.contains(&egui::OutputCommand::CopyText(command.into())), "{copied:?}");
    assert!(shows(&harness, "The data is gone: my data.jsonl"));
}

#[test]
fn metrics_are_exported_into_a_folder_that_is_chosen() {
    let all = vec![runs::long(200, 300)];
    let id = all[0].id.clone();
    let (mut harness, link) = open(all, Route::Run(id.clone()));
    click(&mut harness, "Export logs…");
    click(&mut harness, "TensorBoard…");
    let browse = job(&link, |body| matches!(body, CommandBody::Browse { .. }));
    link.script.borrow_mut().answer(browse, EventBody::Folder(support::wizard::folder()));
    harness.run_steps(4);
    click(&mut harness, "Choose this folder");
    let is_export = |body: &CommandBody| matches!(body, CommandBody::RunsExport { .. });
    let out = support::wizard::folder().path;
    let expected = CommandBody::RunsExport { run: id, format: LogFormat::Tensorboard, out };
    assert_eq!(sent(&link, is_export), [expected]);
    let exported = EventBody::Exported { paths: vec!["/logs/events".into()], steps: 200, evals: 4 };
    let asked = job(&link, is_export);
    link.script.borrow_mut().answer(asked, exported);
    harness.run_steps(4);
    assert!(shows(&harness, "Exported to /logs/events"));
}

#[test]
fn every_chart_shows_the_numbers_under_the_pointer_and_a_drag_zooms_all() {
    let all = vec![runs::long(200, 300)];
    let (mut harness, _link) = open(all.clone(), Route::Run(all[0].id.clone()));
    let chart = harness.get_by_label_contains("Loss chart").rect();
    harness.hover_at(chart.center());
    harness.run_steps(6);
    if let Ok(folder) = std::env::var("LOOKS") {
        harness
            .render()
            .expect("a picture")
            .save(format!("{folder}/hover.png"))
            .expect("a folder to write to");
    }
    assert!(harness.query_all_by_label_contains("at step ").count() >= 2);
    assert!(!shows(&harness, "Show all steps"));
    let start = chart.left_center() + Vec2::new(100.0, 0.0);
    harness.hover_at(start);
    harness.run_steps(2);
    harness.drag_at(start);
    harness.run_steps(2);
    harness.hover_at(chart.center());
    harness.run_steps(2);
    harness.drop_at(chart.center());
    harness.run_steps(2);
    click(&mut harness, "Show all steps");
    assert!(!shows(&harness, "Show all steps"));
}

#[test]
fn a_rewound_run_shows_its_history_as_it_then_is() {
    let all = vec![runs::long(200, 300)];
    let (mut harness, link) = open(all.clone(), Route::Run(all[0].id.clone()));
    let rewound = runs::details(RunEntry { step: 150, ..all[0].clone() }, 0);
    say(&link, is_watch, EventBody::Run(Box::new(rewound)));
    let listed = vec![RunEntry { step: 150, ..all[0].clone() }];
    say(&link, |body| *body == CommandBody::RunsFollow, EventBody::Runs { runs: listed });
    harness.run_steps(4);
    assert!(shows(&harness, "Step 150"));
}

#[test]
fn a_run_is_watched_once_however_often_it_is_shown() {
    let all = fixtures::runs();
    let (mut harness, link) = open(all.clone(), Route::Run(all[0].id.clone()));
    go(&mut harness, Route::Runs);
    go(&mut harness, Route::Run(all[0].id.clone()));
    assert_eq!(sent(&link, is_watch).len(), 1);
    let first = job(&link, is_watch);
    go(&mut harness, Route::Run(all[2].id.clone()));
    assert_eq!(sent(&link, is_watch).len(), 2);
    let stopped =
        link.script.borrow().sent.iter().any(|sent| sent.job == first && sent.body == CommandBody::Stop);
    assert!(stopped, "the other run is no longer watched");
}

#[test]
fn buttons_send_what_they_say_and_discarding_asks_first() {
    let all = fixtures::runs();
    let run = all[0].id.clone();
    let stop = |then| CommandBody::RunsStop { run: run.clone(), then };
    for (label, then) in [("Pause", StopThen::Pause), ("Stop and keep", StopThen::Keep)] {
        let (mut harness, link) = open(all.clone(), Route::Run(run.clone()));
        click(&mut harness, label);
        assert_eq!(sent(&link, is_stop), [stop(then)]);
        click(&mut harness, label);
        assert_eq!(sent(&link, is_stop).len(), 1, "once, while it is being done");
    }
    let (mut harness, link) = open(all.clone(), Route::Run(run.clone()));
    click(&mut harness, "Stop and discard…");
    assert!(sent(&link, is_stop).is_empty());
    click(&mut harness, "Cancel");
    assert!(sent(&link, is_stop).is_empty());
    click(&mut harness, "Stop and discard…");
    click(&mut harness, "Discard");
    assert_eq!(sent(&link, is_stop), [stop(StopThen::Discard)]);
    say(&link, is_stop, EventBody::Done);
    harness.run_steps(4);
    assert_eq!(harness.state().0.route(), &Route::Runs);
}

#[test]
fn a_resume_that_fails_says_why_where_it_was_asked_for() {
    let all = fixtures::runs();
    let (mut harness, link) = open(all.clone(), Route::Run(all[3].id.clone()));
    click(&mut harness, "Resume");
    let error = ErrorInfo::new(ErrorCode::NotFound, "The model is gone: SmolLM2").hint("download it again");
    say(&link, is_resume, EventBody::Failed { error });
    harness.run_steps(4);
    assert!(shows(&harness, "The model is gone: SmolLM2"));
    assert!(shows(&harness, "Hint: download it again"));
    click(&mut harness, "Resume");
    assert!(!shows(&harness, "The model is gone: SmolLM2"));
    assert_eq!(sent(&link, is_resume).len(), 2);
}

/// A run that spiked, at two rows.
fn diverged(sign: DivergenceSign, rows: Vec<RowPlace>) -> RunEntry {
    let divergence = Divergence {
        step: 312,
        sign,
        loss: (sign == DivergenceSign::LossSpike).then_some(11.25),
        grad_norm: Some(4.5),
        usual: Some(1.75),
        resumes_from: 300,
        rows,
    };
    let run = fixtures::run("too-hot", RunStatus::Diverged, 3, 311);
    RunEntry { divergence: Some(divergence), ..run }
}

#[test]
fn a_diverged_run_names_its_rows_and_goes_on_as_it_is_told() {
    let rows = vec![RowPlace { row: 3, line: 4, file: None }, RowPlace { row: 17, line: 18, file: None }];
    let run = diverged(DivergenceSign::LossSpike, rows);
    for (label, how) in [
        ("Skip these rows and go on", ResumeHow::SkipRows),
        ("Lower the rate and go on", ResumeHow::LowerRate),
        ("Go on anyway", ResumeHow::IgnoreSpikes),
    ] {
        let (mut harness, link) = open(vec![run.clone()], Route::Run(run.id.clone()));
        harness.get_by_label_contains("the loss rose to 11.2500, from 1.7500 in the steps before");
        harness.get_by_label_contains("3 (line 4), 17 (line 18)");
        click(&mut harness, label);
        let resume =
            CommandBody::RunsResume { run: run.id.clone(), how, start: TrainStart::Detached, device: None };
        assert_eq!(sent(&link, is_resume), [resume]);
        assert!(!shows(&harness, label), "once");
    }
    // Without rows to blame none can be skipped, and what is no number cannot be ignored.
    let run = diverged(DivergenceSign::EvalNotFinite, Vec::new());
    let (mut harness, link) = open(vec![run.clone()], Route::Run(run.id.clone()));
    assert!(!shows(&harness, "Skip these rows and go on"));
    click(&mut harness, "Go on anyway");
    let is_plain =
        |body: &CommandBody| matches!(body, CommandBody::RunsResume { how: ResumeHow::AsItWas, .. });
    assert_eq!(sent(&link, is_plain).len(), 1);
}

/// The names in the table, from the top.
fn names(harness: &Test, all: &[RunEntry]) -> Vec<String> {
    let mut rows: Vec<(f32, String)> = all
        .iter()
        .filter_map(|run| {
            let label = format!("Select {}", run.name);
            let top = harness.query_by_label(&label)?.rect().top();
            Some((top, run.name.clone()))
        })
        .collect();
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    rows.into_iter().map(|(_, name)| name).collect()
}

#[test]
fn the_table_sorts_and_filters() {
    let all = fixtures::runs();
    let (mut harness, _link) = open(all.clone(), Route::Runs);
    let newest = ["support-tone", "support-tone-r32", "pirate", "house-style", "first-try"];
    assert_eq!(names(&harness, &all), newest);
    click(&mut harness, "Sort by name");
    let by_name = ["first-try", "house-style", "pirate", "support-tone", "support-tone-r32"];
    assert_eq!(names(&harness, &all), by_name);
    click(&mut harness, "Sort by loss");
    assert_eq!(names(&harness, &all)[0], "pirate");
    click(&mut harness, "Sort by loss");
    let last = names(&harness, &all).pop();
    assert_eq!(last.as_deref(), Some("support-tone-r32"), "without a loss: last either way");
    click(&mut harness, "Finished");
    assert_eq!(names(&harness, &all), ["pirate"]);
    click(&mut harness, "All");
    harness.get_by_role(egui::accesskit::Role::TextInput).focus();
    harness.run_steps(2);
    harness.get_by_role(egui::accesskit::Role::TextInput).type_text("TONE");
    harness.run_steps(4);
    assert_eq!(names(&harness, &all).len(), 2);
}

#[test]
fn a_click_on_a_row_opens_its_run() {
    let all = fixtures::runs();
    for beside_the_name in [0.0, 300.0] {
        let (mut harness, _link) = open(all.clone(), Route::Runs);
        let place = harness.get_by_label("pirate").rect().center() + Vec2::new(beside_the_name, 0.0);
        harness.hover_at(place);
        harness.run_steps(2);
        harness.drag_at(place);
        harness.run_steps(2);
        harness.drop_at(place);
        harness.run_steps(3);
        assert_eq!(harness.state().0.route(), &Route::Run(all[2].id.clone()));
    }
}

#[test]
fn the_queue_can_be_reordered_started_and_left() {
    let mut all = fixtures::runs();
    let mut second = fixtures::run("night-shift", RunStatus::Queued, 2, 0);
    second.queue_position = Some(1);
    all.push(second.clone());
    let (mut harness, link) = open(all, Route::Runs);
    click(&mut harness, "Move night-shift up");
    let moved = CommandBody::RunsMove { run: second.id.clone(), position: 0 };
    assert_eq!(sent(&link, |body| matches!(body, CommandBody::RunsMove { .. })), [moved]);
    click(&mut harness, "Remove support-tone-r32 from the queue");
    assert!(sent(&link, is_stop).is_empty());
    click(&mut harness, "Remove");
    assert_eq!(sent(&link, is_stop).len(), 1);
}

#[test]
fn an_interrupted_run_is_offered_to_resume() {
    let mut all = fixtures::runs();
    all[3].status = RunStatus::Interrupted;
    let (mut harness, link) = open(all, Route::Runs);
    click(&mut harness, "Resume house-style");
    assert_eq!(sent(&link, is_resume).len(), 1);
}

#[test]
fn compared_runs_show_the_settings_that_differ_and_no_others() {
    let all = fixtures::runs();
    let (mut harness, _link) = open(all.clone(), Route::Runs);
    click(&mut harness, "Select pirate");
    click(&mut harness, "Select house-style");
    click(&mut harness, "Compare 2 runs");
    for key in ["learning_rate", "lora.r"] {
        assert!(shows(&harness, key));
    }
    for key in ["seed", "lora.alpha", "model", "data", "eval_data"] {
        assert!(!shows(&harness, key), "{key} is the same");
    }
    assert!(shows(&harness, "Loss, smoothed chart"));
    click(&mut harness, "By tokens");
}

#[test]
fn without_runs_it_says_what_to_do() {
    let (mut harness, _link) = open(Vec::new(), Route::Runs);
    assert!(shows(&harness, "No runs yet"));
    click(&mut harness, "Start a fine-tune…");
    assert_eq!(harness.state().0.route(), &Route::NewRun);
}

#[test]
fn every_status_has_its_own_buttons() {
    let mut all = fixtures::runs();
    all.push(fixtures::run("kept", RunStatus::Kept, 9, 120));
    all.push(fixtures::run("cut-off", RunStatus::Interrupted, 8, 120));
    for (index, labels) in [
        (1, vec!["Start now", "Remove from queue…"]),
        (2, vec!["Test in chat", "Delete…", "Open folder"]),
        (3, vec!["Resume", "Keep as it is", "Delete…"]),
        (4, vec!["Resume", "Loss is not finite at step 312"]),
        (5, vec!["Test in chat", "Resume"]),
        (6, vec!["Resume", "Keep as it is"]),
    ] {
        let (mut harness, _link) = open(all.clone(), Route::Run(all[index].id.clone()));
        for label in labels {
            assert!(shows(&harness, label), "{label} of {}", all[index].name);
        }
        if let Ok(folder) = std::env::var("LOOKS") {
            let path = format!("{folder}/status_{}.png", all[index].name);
            harness.render().expect("a picture").save(path).expect("a folder to write to");
        }
    }
}

#[test]
fn a_run_on_pairs_shows_its_rewards_and_another_none() {
    let run = |name: &str| RunEntry { name: name.into(), id: name.into(), ..runs::long(40, 60) };
    for (name, expected) in [("tone-dpo", true), ("tone", false)] {
        let (harness, _) = open(vec![run(name)], Route::Run(name.into()));
        for label in ["Reward margin", "Chosen preferred"] {
            assert_eq!(shows(&harness, label), expected, "{label} of {name}");
        }
    }
}

/// Pictures at the usual size are kept; with `LOOKS` set to a folder, larger ones are written there.
#[test]
fn pictures() {
    let mut all = fixtures::runs();
    all[0] = runs::long(2000, 3000);
    all[3].status = RunStatus::Interrupted;
    let mut night = fixtures::run("night-shift", RunStatus::Queued, 2, 0);
    night.queue_position = Some(1);
    all.insert(2, night);
    let rows = (40..52).map(|row| RowPlace { row, line: row + 1, file: None }).collect();
    let diverged = diverged(DivergenceSign::LossSpike, rows);
    let alone = vec![diverged.clone()];
    let preference =
        vec![RunEntry { name: "tone-dpo".into(), id: "tone-dpo".into(), ..runs::long(400, 600) }];
    let compared = [0, 3, 4].map(|index: usize| all[index].id.clone()).to_vec();
    let mut results = SnapshotResults::new();
    for (theme, ending) in [(Theme::Light, "light"), (Theme::Dark, "dark")] {
        for (name, all, route) in [
            ("run", &all, Route::Run(all[0].id.clone())),
            ("run_preference", &preference, Route::Run("tone-dpo".into())),
            ("run_diverged", &alone, Route::Run(diverged.id.clone())),
            ("runs", &all, Route::Runs),
            ("compare", &all, Route::Compare(compared.clone())),
        ] {
            let picture = |size: Vec2| {
                let mut harness = window_of_size(runs::link(all.clone()), theme, size);
                go(&mut harness, route.clone());
                harness
            };
            let mut usual = picture(Vec2::new(1280.0, 800.0));
            usual.snapshot(format!("{name}_{ending}"));
            results.extend(usual.take_snapshot_results());
            if let Ok(folder) = std::env::var("LOOKS") {
                for size in [Vec2::new(1920.0, 1080.0), Vec2::new(1280.0, 1700.0)] {
                    let path = format!("{folder}/{name}_{ending}_{}x{}.png", size.x, size.y);
                    picture(size).render().expect("a picture").save(path).expect("a folder to write to");
                }
            }
        }
    }
}
