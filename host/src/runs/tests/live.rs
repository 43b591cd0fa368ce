//! Detached, queued, followed and watched runs.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use lathe_protocol::{EvalMetrics, LogLevel, Method, RunDetails, SampleText, TrainRequest};

use super::*;
use crate::{Host, HostOptions, testing::until};

/// A worker that trains until it is told to stop.
const UNTIL_STOPPED: &str = "cat >/dev/null; cat $FRAMES/end";

fn loading() -> EventBody {
    EventBody::Progress { what: "Loading the model".into(), done: 0, total: 0 }
}

fn started(bench: &Bench, start: TrainStart, name: &str) -> CommandBody {
    let mut request = TrainRequest { start, ..bench.train_request(Path::new("")) };
    request.out_dir = None;
    request.name = Some(name.into());
    // Its result is no adapter, so that the workers need not write one.
    request.config.method = Method::Full;
    CommandBody::Train(Box::new(request))
}

pub(super) fn endless_options(bench: &Bench) -> HostOptions {
    let end: &[EventBody] = &[training_done(false), EventBody::Done];
    bench.options(&[loading(), training_started(), step(1)], UNTIL_STOPPED, &[("end", end)])
}

pub(super) fn by_name(bench: &Bench, name: &str) -> RunEntry {
    listed(bench).into_iter().find(|run| run.name == name).unwrap_or_else(|| panic!("no run {name}"))
}

pub(super) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let due = Instant::now() + Duration::from_mins(1);
    while !is_so() {
        assert!(Instant::now() < due, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_detached_run_outlives_its_job_and_ends_with_its_host() {
    let bench = Bench::new();
    let mut host = Host::start(endless_options(&bench)).unwrap();
    let events = ask(&mut host, 1, started(&bench, TrainStart::Detached, "far"));
    assert!(matches!(events[0], EventBody::RunStarted { .. }), "{events:?}");
    assert_eq!(events[1..], [loading(), training_started(), EventBody::Done]);
    wait_for("a step", || by_name(&bench, "far").step == 1);
    assert_eq!(host.active_runs(), 1);
    assert_eq!(by_name(&bench, "far").status, RunStatus::Running);

    // The id is free again, and a late stop is not the run's.
    send(&mut host, 1, CommandBody::Stop);
    let events = ask(&mut host, 1, CommandBody::RunsList);
    let Some(EventBody::Runs { runs }) = events.iter().find(|event| matches!(event, EventBody::Runs { .. }))
    else {
        panic!("{events:?}")
    };
    assert!(runs[0].held_here && runs[0].status == RunStatus::Running, "{runs:?}");
    assert!(!by_name(&bench, "far").held_here, "of another host");
    assert!(runs[0].doing.is_none() && runs[0].tokens_per_second == Some(100.0));

    drop(host);
    assert_eq!(by_name(&bench, "far").status, RunStatus::Stopped);
}

#[test]
fn a_detached_run_that_never_trains_fails_with_its_job_and_leaves_nothing() {
    let bench = Bench::new();
    let error = ErrorInfo::new(ErrorCode::Data, "No row leaves anything to learn");
    let mut host = bench.host(&[loading(), EventBody::Failed { error: error.clone() }], "", &[]);
    assert_eq!(failure(&ask(&mut host, 1, started(&bench, TrainStart::Detached, "far"))), error);
    assert!(listed(&bench).is_empty() && files::names_in(&bench.paths.runs()).unwrap().is_empty());
    assert_eq!(host.active_runs(), 0);

    // Told to stop while it prepares.
    let end: &[EventBody] = &[EventBody::Done];
    let mut host = bench.host(&[loading()], UNTIL_STOPPED, &[("end", end)]);
    send(&mut host, 1, started(&bench, TrainStart::Detached, "far"));
    until(&mut host, 1, |events| events.contains(&loading()));
    wait_for("what it does", || by_name(&bench, "far").doing.as_deref() == Some("Loading the model"));
    send(&mut host, 1, CommandBody::Stop);
    to_the_end(&mut host, 1);
    assert_eq!(by_name(&bench, "far").status, RunStatus::Stopped);
}

#[test]
fn two_hosts_work_off_one_queue_in_its_order_and_start_each_run_once() {
    let bench = Bench::new();
    let mut host = bench.shell_host("exit 1");
    for (job, name) in (1..).zip(["a", "b", "c"]) {
        let events = ask(&mut host, job, started(&bench, TrainStart::Queued, name));
        assert!(matches!(events[..], [EventBody::RunStarted { .. }, EventBody::Done]), "{events:?}");
    }
    let places = || ["a", "b", "c"].map(|name| by_name(&bench, name).queue_position);
    assert_eq!(places(), [Some(0), Some(1), Some(2)]);
    let answer = ask(&mut host, 5, CommandBody::RunsMove { run: "c".into(), position: 0 });
    assert!(matches!(&answer[0], EventBody::Runs { runs } if runs.len() == 3));
    assert_eq!(places(), [Some(1), Some(2), Some(0)]);

    let script = "mkdir $FRAMES/busy || echo two at once >> $FRAMES/log; echo started >> $FRAMES/log; \
                  sleep 0.3; rmdir $FRAMES/busy; cat $FRAMES/end";
    let end: &[EventBody] = &[training_done(true), EventBody::Done];
    let options = bench.options(&[training_started(), step(1)], script, &[("end", end)]);
    let options = HostOptions { runs_queue: true, ..options };
    let hosts = [options.clone(), options].map(|options| Host::start(options).unwrap());
    wait_for("the queue to be empty", || listed(&bench).iter().all(|run| run.status == RunStatus::Completed));
    assert_eq!(fs::read_to_string(bench.path("log")).unwrap(), "started\n".repeat(3));
    let db = Db::open(&bench.paths.db()).unwrap();
    let first_step = |name: &str| db.steps(&by_name(&bench, name).id, 0).unwrap()[0].at_secs;
    assert!(first_step("c") < first_step("a") && first_step("a") < first_step("b"));
    drop(hosts);
    let error = failure(&ask(&mut host, 6, CommandBody::RunsMove { run: "c".into(), position: 0 }));
    assert!(error.message.contains("it is completed"), "{error}");
}

#[test]
fn a_queued_run_waits_while_another_runs_and_can_be_started_by_hand() {
    let bench = Bench::new();
    let options = HostOptions { runs_queue: true, ..endless_options(&bench) };
    let mut host = Host::start(options).unwrap();
    ask(&mut host, 1, started(&bench, TrainStart::Detached, "first"));
    ask(&mut host, 2, started(&bench, TrainStart::Queued, "second"));
    ask(&mut host, 3, started(&bench, TrainStart::Queued, "third"));
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(by_name(&bench, "second").queue_position, Some(0));
    assert_eq!(host.active_runs(), 1);

    let resume = CommandBody::RunsResume {
        run: "third".into(),
        how: ResumeHow::AsItWas,
        start: TrainStart::Detached,
        device: None,
    };
    let events = ask(&mut host, 4, resume);
    assert!(events.contains(&training_started()), "{events:?}");
    assert_eq!(host.active_runs(), 2);
    // Once both are stopped, the queue goes on.
    for (job, run) in [(5, "first"), (6, "third")] {
        ask(&mut host, job, CommandBody::RunsStop { run: run.into(), then: StopThen::Pause });
    }
    wait_for("the second run", || by_name(&bench, "second").step == 1);
    assert_eq!(host.active_runs(), 1);
}

#[test]
fn a_queued_run_that_cannot_start_says_why_and_lets_the_next_one_go() {
    let bench = Bench::new();
    let mut host = bench.shell_host("exit 1");
    for (job, name) in (1..).zip(["no-folder", "no-data", "dies"]) {
        ask(&mut host, job, started(&bench, TrainStart::Queued, name));
    }
    fs::remove_dir_all(by_name(&bench, "no-folder").out_dir).unwrap();
    let options = bench.options(&[loading()], "echo bang >&2; exit 3", &[]);
    let hidden = bench.path("hidden");
    fs::rename(bench.path("pirate.jsonl"), &hidden).unwrap();
    let queue = Host::start(HostOptions { runs_queue: true, ..options }).unwrap();
    wait_for("the first two", || by_name(&bench, "no-data").status == RunStatus::Failed);
    drop(queue);
    fs::rename(hidden, bench.path("pirate.jsonl")).unwrap();
    let errors = ["no-folder", "no-data"].map(|name| by_name(&bench, name).error.unwrap());
    assert!(errors[0].contains("folder is gone") && errors[1].contains("No such data file"), "{errors:?}");
    if by_name(&bench, "dies").status == RunStatus::Failed {
        // It was its turn already.
        ask(
            &mut host,
            4,
            CommandBody::RunsResume {
                run: "dies".into(),
                how: ResumeHow::AsItWas,
                start: TrainStart::Queued,
                device: None,
            },
        );
    }
    let options = bench.options(&[loading()], "echo bang >&2; exit 3", &[]);
    let _queue = Host::start(HostOptions { runs_queue: true, ..options }).unwrap();
    wait_for("the third", || by_name(&bench, "dies").status == RunStatus::Failed);
    assert!(by_name(&bench, "dies").error.unwrap().contains("exit code 3"));
}

fn run_of(event: &EventBody) -> Option<&RunDetails> {
    match event {
        EventBody::Run(details) => Some(details),
        _ => None,
    }
}

fn changed_to(events: &[EventBody], status: RunStatus) -> bool {
    events.iter().any(|event| matches!(event, EventBody::RunChanged(run) if run.status == status))
}

#[test]
fn another_host_watches_a_run_as_it_is_recorded() {
    let bench = Bench::new();
    let sample = EventBody::Sample(SampleText { step: 2, prompt: "Who?".into(), text: "Arr".into() });
    let log = EventBody::Log { level: LogLevel::Warn, message: "Rough sea".into() };
    let eval = EvalMetrics {
        step: 2,
        loss: 1.0,
        perplexity: 2.7,
        token_accuracy: 0.5,
        loss_tokens: 9,
        rows: 2,
        preference: None,
    };
    let more: &[EventBody] = &[step(2), EventBody::Eval(eval), sample.clone(), log.clone()];
    let end: &[EventBody] = &[training_done(false), EventBody::Done];
    let script =
        "while [ ! -e $FRAMES/go ]; do sleep 0.02; done; cat $FRAMES/more; cat >/dev/null; cat $FRAMES/end";
    let mut host = bench.host(&[training_started(), step(1)], script, &[("more", more), ("end", end)]);
    ask(&mut host, 1, started(&bench, TrainStart::Detached, "seen"));
    wait_for("a step", || by_name(&bench, "seen").step == 1);

    let mut other = bench.shell_host("exit 1");
    send(&mut other, 1, CommandBody::RunsWatch { run: "seen".into() });
    let events = until(&mut other, 1, |events| !events.is_empty());
    let record = run_of(&events[0]).unwrap();
    assert_eq!((record.steps.len(), record.run.status), (1, RunStatus::Running));

    let checkpoint = Path::new(&record.run.out_dir).join("checkpoints/step-00000002");
    fs::create_dir_all(&checkpoint).unwrap();
    fs::write(bench.path("go"), "").unwrap();
    let path = checkpoint.display().to_string();
    let wanted = [log, sample, EventBody::Eval(eval), EventBody::Checkpoint { step: 2, path }];
    let events = until(&mut other, 1, |events| wanted.iter().all(|event| events.contains(event)));
    let steps: Vec<usize> = events
        .iter()
        .filter_map(|event| if let EventBody::Step(step) = event { Some(step.step) } else { None })
        .collect();
    assert_eq!(steps, [2], "nothing twice");
    assert!(!changed_to(&events, RunStatus::Running), "a step is no change of the run: {events:?}");

    ask(&mut host, 2, CommandBody::RunsStop { run: "seen".into(), then: StopThen::Pause });
    until(&mut other, 1, |events| changed_to(events, RunStatus::Stopped));
    // It goes on from step 0 as its frames say: what was told before holds no more.
    fs::remove_file(bench.path("go")).unwrap();
    ask(
        &mut host,
        3,
        CommandBody::RunsResume {
            run: "seen".into(),
            how: ResumeHow::AsItWas,
            start: TrainStart::Detached,
            device: None,
        },
    );
    let events = until(&mut other, 1, |events| events.iter().any(|event| run_of(event).is_some()));
    let record = events.iter().find_map(run_of).unwrap();
    assert!(record.steps.len() <= 1 && record.samples.is_empty(), "{record:?}");
    assert_eq!(record.log.len(), 1, "the log stays");

    ask(&mut host, 4, CommandBody::RunsStop { run: "seen".into(), then: StopThen::Discard });
    assert_eq!(to_the_end(&mut other, 1).last(), Some(&EventBody::Done));
}

#[test]
fn the_list_is_told_again_when_something_changed_until_it_is_stopped() {
    let bench = Bench::new();
    let mut other = bench.shell_host("exit 1");
    send(&mut other, 1, CommandBody::RunsFollow);
    let is = |event: &EventBody, status: Option<RunStatus>| matches!(event, EventBody::Runs { runs } if runs.first().map(|run| run.status) == status);
    until(&mut other, 1, |events| events.iter().any(|event| is(event, None)));
    let mut host = Host::start(endless_options(&bench)).unwrap();
    ask(&mut host, 1, started(&bench, TrainStart::Detached, "seen"));
    until(&mut other, 1, |events| events.iter().any(|event| is(event, Some(RunStatus::Running))));
    drop(host);
    until(&mut other, 1, |events| events.iter().any(|event| is(event, Some(RunStatus::Stopped))));
    // As a host killed by -9 leaves it.
    let run = by_name(&bench, "seen");
    Db::open(&bench.paths.db()).unwrap().set_running(&run.id, &run.out_dir, "cpu").unwrap();
    until(&mut other, 1, |events| events.iter().any(|event| is(event, Some(RunStatus::Interrupted))));
    assert!(until(&mut other, 1, |_| true).is_empty());
    send(&mut other, 1, CommandBody::Stop);
    assert_eq!(to_the_end(&mut other, 1), [EventBody::Done]);
}

#[test]
fn every_event_wakes_the_window() {
    let bench = Bench::new();
    let woken = Arc::new(AtomicUsize::new(0));
    let count = woken.clone();
    let mut options = endless_options(&bench);
    options.on_event = Some(Arc::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
    }));
    let mut host = Host::start(options).unwrap();
    let events = ask(&mut host, 1, CommandBody::RunsList);
    assert_eq!(woken.load(Ordering::SeqCst), events.len());
    send(&mut host, 7, CommandBody::Stop);
    assert_eq!(woken.load(Ordering::SeqCst), events.len() + 1, "said by the host itself");
}
