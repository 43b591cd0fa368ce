//! Sweeps and devices: the wizard's sweep, the list's fold, the queue by device, the comparison.

mod support;

use egui::{Key, Modifiers, Role, Theme, Vec2};
use egui_kittest::{Harness, SnapshotResults, kittest::Queryable as _};
use lathe_protocol::{
    Command, CommandBody, ErrorCode, ErrorInfo, EventBody, RunDetails, RunEntry, RunStatus, SweepKey,
    SweepPlace, SweepRequest, TrainStart, sweep_points,
};
use lathe_ui::Route;
use support::{Script, ScriptedLink, Window, fixtures, runs, window_of_size, wizard};

type Test = Harness<'static, Window>;

const USUAL: Vec2 = Vec2::new(1280.0, 800.0);

fn keys() -> Vec<SweepKey> {
    vec![SweepKey::new("learning_rate", "1e-4,3e-4,1e-3"), SweepKey::new("lora.r", "8,16")]
}

/// Six runs, of which the last diverged, beside two that are no sweep's.
fn of_sweep() -> Vec<RunEntry> {
    let place = |(index, values)| {
        let place = SweepPlace { name: "tone-sweep".into(), index, values };
        let status = if index == 5 { RunStatus::Diverged } else { RunStatus::Completed };
        let run = fixtures::run(&format!("tone-sweep-{index}"), status, 3, if index == 5 { 40 } else { 500 });
        RunEntry {
            id: format!("sweep-{index}"),
            eval_loss: (index < 5).then_some(0.9 + 0.01 * index as f64),
            error: (index == 5).then(|| "The loss is no number at step 41".into()),
            sweep: Some(place),
            ..run
        }
    };
    let mut all = vec![fixtures::run("support-tone", RunStatus::Running, 1, 214)];
    all.extend(sweep_points(&keys()).into_iter().enumerate().map(place));
    all.push(fixtures::run("pirate", RunStatus::Completed, 26, 500));
    all
}

/// With eval losses that have their lowest in the middle of the grid.
fn history(id: &str, all: &[RunEntry]) -> Option<RunDetails> {
    let mut details = runs::of_id(id, all)?;
    if let Some(place) = &details.run.sweep {
        let [rate, rank] = [place.index / 2, place.index % 2].map(|index| index as f64);
        let factor = 1.0 + 0.12 * (rate - 1.0).powi(2) + 0.02 * rank;
        details.evals.iter_mut().for_each(|eval| eval.loss *= factor);
        if details.run.status == RunStatus::Diverged {
            details.evals.clear();
        }
    }
    Some(details)
}

fn answer(command: &Command, script: &mut Script, all: &[RunEntry], gpus: usize) {
    match &command.body {
        CommandBody::Hardware => {
            let gpus = (0..gpus).map(fixtures::gpu).collect();
            script.answer(command.job, EventBody::Hardware(fixtures::hardware(gpus)));
        }
        CommandBody::RunsShow { run } => {
            if let Some(details) = history(run, all) {
                script.answer(command.job, EventBody::Run(Box::new(details)));
            }
        }
        CommandBody::RunsFollow => script.say(command.job, EventBody::Runs { runs: all.to_vec() }),
        _ => wizard::answer(command, script),
    }
}

fn open(all: Vec<RunEntry>, gpus: usize, theme: Theme, size: Vec2) -> (Test, ScriptedLink) {
    open_on(ScriptedLink::new(move |command, script| answer(command, script, &all, gpus)), theme, size)
}

fn open_on(link: ScriptedLink, theme: Theme, size: Vec2) -> (Test, ScriptedLink) {
    let mut harness = window_of_size(link.clone(), theme, size);
    harness.input_mut().system_theme = Some(theme);
    harness.run_steps(4);
    (harness, link)
}

fn go(harness: &mut Test, route: Route) {
    harness.state_mut().0.go(route);
    harness.run_steps(4);
}

fn settle(harness: &mut Test) {
    harness.run_ok();
    harness.run_steps(4);
}

fn click(harness: &mut Test, label: &str) {
    harness.get_by_label(label).scroll_to_me();
    settle(harness);
    harness.get_by_label(label).click();
    settle(harness);
}

fn shows(harness: &Test, label: &str) -> bool {
    harness.query_all_by_label(label).next().is_some()
}

fn type_into(harness: &mut Test, label: &str, text: &str) {
    harness.get_by_role_and_label(Role::TextInput, label).focus();
    harness.step();
    harness.key_press_modifiers(Modifiers::COMMAND, Key::A);
    harness.get_by_role_and_label(Role::TextInput, label).type_text(text);
    settle(harness);
}

fn sent(link: &ScriptedLink, is: impl Fn(&CommandBody) -> bool) -> Vec<CommandBody> {
    link.script.borrow().sent.iter().map(|command| command.body.clone()).filter(is).collect()
}

/// The wizard's last step.
fn review(theme: Theme, size: Vec2, gpus: usize) -> (Test, ScriptedLink) {
    let (mut harness, link) = open(fixtures::runs(), gpus, theme, size);
    walk_to_review(&mut harness);
    (harness, link)
}

fn walk_to_review(harness: &mut Test) {
    harness.key_press_modifiers(Modifiers::COMMAND, Key::N);
    settle(harness);
    for label in [
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "Continue",
        "Browse…",
        "support_chats.jsonl",
        "Choose",
        "Continue",
        "Continue",
    ] {
        click(harness, label);
    }
}

fn choose(harness: &mut Test, combo: &str, option: &str) {
    harness.get_by_role_and_label(Role::ComboBox, combo).click();
    settle(harness);
    harness.get_by_role_and_label(Role::Button, option).scroll_to_me();
    settle(harness);
    harness.get_by_role_and_label(Role::Button, option).click();
    settle(harness);
}

#[test]
fn the_wizard_queues_a_sweep_of_two_keys() {
    let (mut harness, link) = review(Theme::Light, USUAL, 0);
    assert!(shows(&harness, "Queue") && !shows(&harness, "First setting of the sweep"));
    click(&mut harness, "Make it a sweep");
    type_into(&mut harness, "Values of learning_rate", "1e-4, 2e-4, nothing");
    assert!(harness.query_by_label_contains("learning_rate cannot be nothing").is_some());
    type_into(&mut harness, "Values of learning_rate", "1e-4, 2e-4, 0.0001");
    assert!(shows(&harness, "Two of the values are the same"));
    type_into(&mut harness, "Values of learning_rate", "1e-4, 2e-4");
    choose(&mut harness, "Second setting of the sweep", "lora.r");
    type_into(&mut harness, "Values of lora.r", "4, 8, 16");
    harness.get_by_label_contains("6 runs, about ");
    click(&mut harness, "Queue 6 runs");
    let sweeps = sent(&link, |body| matches!(body, CommandBody::Sweep(_)));
    let [CommandBody::Sweep(request)] = sweeps.as_slice() else { panic!("{sweeps:?}") };
    let SweepRequest { train, keys } = &**request;
    assert_eq!(*keys, [SweepKey::new("learning_rate", "1e-4,2e-4"), SweepKey::new("lora.r", "4,8,16")]);
    assert_eq!((train.start, train.device.as_str()), (TrainStart::Queued, "auto"));
}

#[test]
fn a_run_is_given_to_a_device_where_there_are_several() {
    let (harness, _) = review(Theme::Light, USUAL, 0);
    assert!(!shows(&harness, "Device"));
    let (mut harness, link) = review(Theme::Light, USUAL, 2);
    choose(&mut harness, "Device", "GPU 1: NVIDIA GeForce RTX 4090");
    click(&mut harness, "Queue");
    let trains = sent(&link, |body| matches!(body, CommandBody::Train(_)));
    let [CommandBody::Train(request)] = trains.as_slice() else { panic!("{trains:?}") };
    assert_eq!(request.device, "cuda:1");
}

#[test]
fn the_cpu_is_asked_for_where_no_card_can_be_used() {
    let asked = |link: &ScriptedLink| -> Vec<String> {
        let trains = sent(link, |body| matches!(body, CommandBody::Train(_)));
        let device = |body| if let CommandBody::Train(request) = body { Some(request.device) } else { None };
        trains.into_iter().filter_map(device).collect()
    };
    let refuse = |command: &Command, script: &mut Script, message: &str| {
        let error = ErrorInfo::new(ErrorCode::NeedsCpu, message).hint("compute on the CPU: --device cpu");
        script.say(command.job, EventBody::Failed { error });
    };
    let mut results = SnapshotResults::new();
    for (theme, name) in [(Theme::Light, "wizard_no_card_light"), (Theme::Dark, "wizard_no_card_dark")] {
        // 1. A card that something is missing for: said before anything is started.
        let link = ScriptedLink::new(move |command, script| match &command.body {
            CommandBody::Hardware => {
                let machine = fixtures::hardware(fixtures::seen_gpus(1));
                script.answer(command.job, EventBody::Hardware(machine));
            }
            CommandBody::Train(request) if request.device == "auto" => {
                refuse(command, script, "The graphics card cannot be used");
            }
            _ => answer(command, script, &fixtures::runs(), 0),
        });
        let (mut harness, link) = open_on(link, theme, USUAL);
        walk_to_review(&mut harness);
        harness.get_by_label_contains("The graphics card cannot be used. Lathe's worker for graphics cards");
        results.add(harness.try_snapshot(name));
        click(&mut harness, "Queue");
        assert_eq!(asked(&link), ["auto"], "never silently another");
        click(&mut harness, "Use the CPU");
        assert!(shows(&harness, "The run computes on the CPU: that was chosen"));
        click(&mut harness, "Queue");
        assert_eq!(asked(&link), ["auto", "cpu"]);
    }
    // 2. Cards that the run does not fit: said when it is started.
    let link = ScriptedLink::new(move |command, script| match &command.body {
        CommandBody::Train(request) if request.device == "auto" => {
            refuse(command, script, "The run fits no graphics card: it needs 30.1 GiB, cuda:0 has 24.0 GiB");
        }
        _ => answer(command, script, &fixtures::runs(), 2),
    });
    let (mut harness, link) = open_on(link, Theme::Light, USUAL);
    walk_to_review(&mut harness);
    assert!(!shows(&harness, "Use the CPU"));
    click(&mut harness, "Queue");
    harness.get_by_label_contains("it needs 30.1 GiB");
    click(&mut harness, "Use the CPU");
    click(&mut harness, "Queue");
    assert_eq!(asked(&link), ["auto", "cpu"]);
}

#[test]
fn a_sweeps_runs_fold_and_lead_to_their_comparison() {
    let (mut harness, _) = open(of_sweep(), 0, Theme::Light, USUAL);
    go(&mut harness, Route::Runs);
    assert!(shows(&harness, "6 runs: 5 completed, 1 diverged"));
    assert!(shows(&harness, "pirate") && !shows(&harness, "learning_rate=3e-4 · lora.r=8"));
    click(&mut harness, "Unfold tone-sweep");
    assert!(shows(&harness, "learning_rate=3e-4 · lora.r=8"));
    click(&mut harness, "Fold tone-sweep");
    assert!(!shows(&harness, "learning_rate=3e-4 · lora.r=8"));
    harness.get_by_role_and_label(Role::Link, "Compare").click();
    settle(&mut harness);
    assert!(shows(&harness, "Sweep tone-sweep: 6 runs"));
    assert!(shows(&harness, "Lowest with learning_rate=3e-4 · lora.r=8"));
    assert!(shows(&harness, "learning_rate=1e-3 · lora.r=16: Diverged"));
    let best = harness.query_all_by_label_contains(", the lowest").count();
    assert_eq!(best, 1);
    harness.get_by_label_contains("learning_rate=3e-4 · lora.r=8: ").click();
    harness.run_steps(4);
    assert_eq!(harness.state().0.route(), &Route::Run("sweep-2".into()));
}

/// Two cards and the CPU, with runs on some and a queue for each.
fn by_device() -> Vec<RunEntry> {
    let running = |name: &str, on: &str, step| RunEntry {
        runs_on: Some(on.into()),
        ..fixtures::run(name, RunStatus::Running, 2, step)
    };
    let queued = |name: &str, device: &str, place| RunEntry {
        device: device.into(),
        queue_position: Some(place),
        ..fixtures::run(name, RunStatus::Queued, 1, 0)
    };
    vec![
        running("support-tone", "cuda:0", 214),
        queued("night-shift", "cuda:0", 0),
        queued("harbour", "auto", 1),
        queued("support-tone-r32", "cuda:0", 2),
        queued("tiny", "cpu", 3),
    ]
}

#[test]
fn the_queue_shows_each_device_and_moves_runs_within_and_between() {
    let (mut harness, link) = open(by_device(), 2, Theme::Light, USUAL);
    go(&mut harness, Route::Runs);
    for label in ["GPU 0: NVIDIA GeForce RTX 4090", "step 214 of 500", "free"] {
        assert!(shows(&harness, label), "{label}");
    }
    // The one before it on its device, which is not the one before it in the queue.
    click(&mut harness, "Move support-tone-r32 up");
    let moves = sent(&link, |body| matches!(body, CommandBody::RunsMove { .. }));
    let run = by_device()[3].id.clone();
    assert_eq!(moves, [CommandBody::RunsMove { run, position: 0 }]);
    assert!(!shows(&harness, "Move harbour up"), "alone in its lane");
    choose(&mut harness, "Device of harbour", "CPU");
    let assigned = sent(&link, |body| matches!(body, CommandBody::RunsAssign { .. }));
    let run = by_device()[2].id.clone();
    assert_eq!(assigned, [CommandBody::RunsAssign { run, device: "cpu".into() }]);
}

#[test]
fn pictures() {
    let mut results = SnapshotResults::new();
    for (theme, ending) in [(Theme::Light, "light"), (Theme::Dark, "dark")] {
        let mut take = |harness: &mut Test, name: &str| {
            harness.remove_cursor();
            settle(harness);
            harness.snapshot(format!("{name}_{ending}"));
            results.extend(harness.take_snapshot_results());
        };
        let (mut harness, _) = review(theme, USUAL, 2);
        click(&mut harness, "Make it a sweep");
        choose(&mut harness, "Second setting of the sweep", "lora.r");
        type_into(&mut harness, "Values of lora.r", "8, 16");
        take(&mut harness, "wizard_sweep");
        let (mut harness, _) = open(of_sweep(), 0, theme, USUAL);
        go(&mut harness, Route::Runs);
        click(&mut harness, "Unfold tone-sweep");
        take(&mut harness, "runs_sweep");
        let all: Vec<String> = (0..6).map(|index| format!("sweep-{index}")).collect();
        go(&mut harness, Route::Compare(all));
        take(&mut harness, "compare_sweep");
        let (mut harness, _) = open(by_device(), 2, theme, USUAL);
        go(&mut harness, Route::Runs);
        take(&mut harness, "runs_devices");
    }
}
