#![cfg(unix)]

mod devices;
mod diverged;
mod live;
mod stops;
mod sweep;
mod talk;

use std::time::{Duration, Instant};

use lathe_protocol::{CommandBody, ResumeHow, StopThen, TrainStart};

use super::*;
use crate::testing::{Bench, ask, failure, send, step, to_the_end, training_done, training_started};

fn train(bench: &Bench, out: &Path) -> CommandBody {
    CommandBody::Train(Box::new(bench.train_request(out)))
}

fn listed(bench: &Bench) -> Vec<RunEntry> {
    let events = ask(&mut bench.shell_host("exit 1"), 1, CommandBody::RunsList);
    match &events[0] {
        EventBody::Runs { runs } => runs.clone(),
        other => panic!("{other:?}"),
    }
}

/// What a worker does that finishes: writes an adapter.
fn finishing(bench: &Bench, out: &Path) -> String {
    crate::adapters::tests::write_adapter(&bench.path("made"));
    format!("cp {}/* {}; cat $FRAMES/end", bench.path("made").display(), out.display())
}

fn finished_host(bench: &Bench, out: &Path) -> crate::Host {
    let end: &[EventBody] = &[training_done(true), EventBody::Done];
    let events = [training_started(), step(1), step(2)];
    bench.host(&events, &finishing(bench, out), &[("end", end)])
}

#[test]
fn a_finished_run_is_recorded_and_its_adapter_in_the_library() {
    let bench = Bench::new();
    let out = bench.path("out");
    let events = ask(&mut finished_host(&bench, &out), 1, train(&bench, &out));
    assert_eq!(events.last(), Some(&EventBody::Done), "{events:?}");
    let Some(EventBody::Adapter(adapter)) = events.iter().rev().nth(1) else { panic!("{events:?}") };
    assert_eq!(adapter.name, "model-pirate");
    assert_eq!(adapter.run.as_deref(), Some("model-pirate"));

    let runs = listed(&bench);
    assert_eq!(runs.len(), 1);
    assert_eq!((runs[0].status, runs[0].step, runs[0].last_loss), (RunStatus::Completed, 2, Some(2.0)));
    for name in ["run.toml", "lathe.json", "adapter_config.json"] {
        assert!(out.join(name).exists(), "{name}");
    }

    // The folder is taken now, and the run complete.
    let error = failure(&ask(&mut finished_host(&bench, &out), 1, train(&bench, &out)));
    assert!(error.message.contains("holds a run already"), "{error}");
    assert!(error.hint.unwrap().contains("--resume"));
    let error = failure(&ask(
        &mut finished_host(&bench, &out),
        1,
        CommandBody::RunsResume {
            run: "model-pirate".into(),
            how: ResumeHow::AsItWas,
            start: TrainStart::Attached,
            device: None,
        },
    ));
    assert!(error.message.contains("is complete after 2 steps"), "{error}");

    // The next one gets another name.
    let second = bench.path("second");
    ask(&mut finished_host(&bench, &second), 1, train(&bench, &second));
    assert_eq!(listed(&bench).iter().filter(|run| run.name == "model-pirate-2").count(), 1);

    // A result of the user's stays, a record goes.
    ask(&mut bench.shell_host("exit 1"), 1, CommandBody::RunsRemove { run: "model-pirate".into() });
    assert!(out.join("adapter_model.safetensors").exists());
    assert_eq!(listed(&bench).len(), 1);
}

#[test]
fn a_worker_without_memory_leaves_a_run_that_can_take_less() {
    let bench = Bench::new();
    let out = bench.path("out");
    let script = "echo 'memory allocation of 99 bytes failed' >&2; kill -6 $$";
    let mut host = bench.host(&[training_started(), step(1)], script, &[]);
    let error = failure(&ask(&mut host, 1, train(&bench, &out)));
    assert_eq!(error.code, ErrorCode::OutOfMemory);
    let run = &listed(&bench)[0];
    assert_eq!((run.status, run.step), (RunStatus::OutOfMemory, 1));
    assert!(error.hint.unwrap().ends_with(&format!("lathe runs resume {} --less-memory", run.id)));

    let resume = || CommandBody::RunsResume {
        run: run.id.clone(),
        how: ResumeHow::LessMemory,
        start: TrainStart::Attached,
        device: None,
    };
    let error = failure(&ask(&mut bench.host(&[training_started(), step(2)], script, &[]), 1, resume()));
    assert!(error.hint.unwrap().contains("lower max_seq_len"));
    let record = Db::open(&bench.paths.db()).unwrap().runs().unwrap().remove(0);
    assert!(record.config.gradient_checkpointing);
    let error = failure(&ask(&mut finished_host(&bench, &out), 1, resume()));
    assert!(error.message.contains("recomputes every block already"), "{error}");
}

#[test]
fn a_killed_worker_leaves_an_interrupted_run_that_can_be_resumed() {
    let bench = Bench::new();
    let out = bench.path("out");
    let mut host = bench.host(&[training_started(), step(1)], "echo bang >&2; kill -9 $$", &[]);
    let error = failure(&ask(&mut host, 1, train(&bench, &out)));
    assert_eq!((error.code, error.details.as_deref()), (ErrorCode::WorkerDied, Some("bang")));
    assert!(error.message.contains("after step 1"), "{error}");
    let run = &listed(&bench)[0];
    assert_eq!((run.status, run.step), (RunStatus::Interrupted, 1));
    assert_eq!(error.hint.unwrap(), format!("resume it with: lathe runs resume {}", run.id));

    // The job of a resumed worker says so; other settings are refused.
    let mut changed = bench.train_request(&out);
    changed.resume = true;
    changed.config.seed = 7;
    let error = failure(&ask(&mut finished_host(&bench, &out), 1, CommandBody::Train(Box::new(changed))));
    assert!(error.message.contains("seed is 42, 7 was asked for"), "{error}");
    let script = format!("head -c 2000 > $FRAMES/job & sleep 0.2; {}", finishing(&bench, &out));
    let end: &[EventBody] = &[training_done(true), EventBody::Done];
    let mut host = bench.host(&[training_started(), step(1), step(2)], &script, &[("end", end)]);
    let events = ask(
        &mut host,
        1,
        CommandBody::RunsResume {
            run: run.id[..18].into(),
            how: ResumeHow::AsItWas,
            start: TrainStart::Attached,
            device: None,
        },
    );
    assert_eq!(events.last(), Some(&EventBody::Done), "{events:?}");
    assert_eq!(listed(&bench)[0].status, RunStatus::Completed);
}

#[test]
fn a_run_that_never_began_leaves_nothing() {
    let bench = Bench::new();
    let out = bench.path("out");
    let error = ErrorInfo::new(ErrorCode::Data, "No row leaves anything to learn");
    let failed = EventBody::Failed { error: error.clone() };
    let mut host = bench.host(std::slice::from_ref(&failed), "", &[]);
    assert_eq!(failure(&ask(&mut host, 1, train(&bench, &out))), error);
    assert!(!out.exists());
    assert!(listed(&bench).is_empty());

    let mut request = bench.train_request(&out);
    request.config.lora.r = 0;
    let mut host = bench.host(&[], "", &[]);
    let error = failure(&ask(&mut host, 1, CommandBody::Train(Box::new(request))));
    assert_eq!(error.code, ErrorCode::Usage);
    assert!(!out.exists());

    // A folder of the user's with something else in it stays.
    fs::create_dir(&out).unwrap();
    fs::write(out.join("notes.txt"), "mine").unwrap();
    let mut host = bench.host(&[failed], "", &[]);
    failure(&ask(&mut host, 1, train(&bench, &out)));
    assert_eq!(files::names_in(&out).unwrap(), ["notes.txt"]);
}

#[test]
fn another_process_stops_a_run() {
    let bench = Bench::new();
    let out = bench.path("out");
    let end: &[EventBody] = &[training_done(false), EventBody::Done];
    let mut host =
        bench.host(&[training_started(), step(1)], "cat >/dev/null; cat $FRAMES/end", &[("end", end)]);
    send(&mut host, 1, train(&bench, &out));
    let due = Instant::now() + Duration::from_mins(1);
    while listed(&bench).first().is_none_or(|run| run.step == 0) {
        assert!(Instant::now() < due);
    }
    assert_eq!(listed(&bench)[0].status, RunStatus::Running);

    let mut other = bench.shell_host("exit 1");
    let error = failure(&ask(&mut other, 1, CommandBody::RunsRemove { run: "model-pirate".into() }));
    assert_eq!(error.code, ErrorCode::Busy);
    let error = failure(&ask(&mut other, 2, train(&bench, &out)));
    assert_eq!(error.code, ErrorCode::Busy, "two runs in one folder: {error}");

    let events =
        ask(&mut other, 3, CommandBody::RunsStop { run: "model-pirate".into(), then: StopThen::Pause });
    assert_eq!(events.last(), Some(&EventBody::Done), "{events:?}");
    assert_eq!(to_the_end(&mut host, 1).last(), Some(&EventBody::Done));
    assert_eq!(listed(&bench)[0].status, RunStatus::Stopped);
    let error = failure(&ask(
        &mut other,
        4,
        CommandBody::RunsStop { run: "model-pirate".into(), then: StopThen::Pause },
    ));
    assert!(error.message.contains("it is stopped"), "{error}");
}

#[test]
fn a_host_that_vanished_leaves_an_interrupted_run() {
    let bench = Bench::new();
    let out = bench.path("out");
    ask(&mut finished_host(&bench, &out), 1, train(&bench, &out));
    // As a host killed by -9 leaves it: running on record, locked by nobody.
    let db = Db::open(&bench.paths.db()).unwrap();
    let id = listed(&bench)[0].id.clone();
    db.set_running(&id, &out.display().to_string(), "cpu").unwrap();
    assert_eq!(listed(&bench)[0].status, RunStatus::Interrupted);
    // Unless its worker is still saving.
    let lock = fs::File::create(out.join(".worker.lock")).unwrap();
    lock.lock().unwrap();
    assert_eq!(listed(&bench)[0].status, RunStatus::Running);
}

#[test]
fn without_its_database_everything_is_found_again() {
    let bench = Bench::new();
    let mut request = bench.train_request(Path::new(""));
    request.out_dir = None;
    let mut host = bench.host(
        &[training_started(), step(1), EventBody::Checkpoint { step: 1, path: "/c".into() }],
        "exit 1",
        &[],
    );
    failure(&ask(&mut host, 1, CommandBody::Train(Box::new(request))));
    let mut before = listed(&bench);
    assert_eq!(before.len(), 1);
    // Of the metrics nothing is left but the last.
    before[0].tokens_per_second = None;
    for name in ["lathe.db", "lathe.db-wal", "lathe.db-shm"] {
        files::remove_quietly(&bench.paths.data_dir.join(name));
    }
    assert_eq!(listed(&bench), before);
    let mut host = bench.shell_host("exit 1");
    ask(&mut host, 1, CommandBody::RunsRemove { run: before[0].id[..16].into() });
    assert!(listed(&bench).is_empty());
    assert!(files::names_in(&bench.paths.runs()).unwrap().is_empty());
}
