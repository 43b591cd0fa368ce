//! What becomes of a run that is stopped.

use lathe_protocol::AdapterUpdate;

use super::*;
use crate::adapters;

fn stop_as(then: StopThen) -> CommandBody {
    CommandBody::RunsStop { run: "model-pirate".into(), then }
}

/// A host whose worker saves a checkpoint of an adapter, then trains until it is told to stop.
fn saving_host(bench: &Bench, out: &Path) -> crate::Host {
    adapters::tests::write_adapter(&bench.path("made"));
    let checkpoint = out.join("checkpoints/step-00000001");
    let script = format!(
        "mkdir -p {0}; cp {1}/* {0}; cat >/dev/null; cat $FRAMES/end",
        checkpoint.display(),
        bench.path("made").display()
    );
    let end: &[EventBody] = &[training_done(false), EventBody::Done];
    bench.host(&[training_started(), step(1)], &script, &[("end", end)])
}

fn library(bench: &Bench) -> Vec<String> {
    adapters::list(&bench.paths).unwrap().into_iter().map(|adapter| adapter.name).collect()
}

fn wait_for_checkpoint(out: &Path) {
    let due = Instant::now() + Duration::from_mins(1);
    while !out.join("checkpoints/step-00000001/adapter_model.safetensors").exists() {
        assert!(Instant::now() < due);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_kept_runs_adapter_is_in_the_library_until_the_final_one_takes_its_place() {
    let bench = Bench::new();
    let out = bench.path("out");
    let mut host = saving_host(&bench, &out);
    send(&mut host, 1, train(&bench, &out));
    wait_for_checkpoint(&out);
    // Somebody else's, which came meanwhile, is left alone.
    adapters::import(&bench.paths, &bench.path("made"), Some("model-pirate")).unwrap();

    let mut other = bench.shell_host("exit 1");
    let events = ask(&mut other, 1, stop_as(StopThen::Keep));
    let EventBody::Runs { runs } = &events[events.len() - 2] else { panic!("{events:?}") };
    assert_eq!(runs[0].status, RunStatus::Kept);
    let events = to_the_end(&mut host, 1);
    assert!(events.iter().any(|event| matches!(event, EventBody::Adapter(_))), "{events:?}");
    assert_eq!(library(&bench), ["model-pirate", "model-pirate-2"]);
    let kept = adapters::show(&bench.paths, "model-pirate-2").unwrap();
    assert_eq!((kept.run.as_deref(), kept.problem), (Some("model-pirate"), None));
    let error = failure(&ask(&mut other, 2, stop_as(StopThen::Keep)));
    assert!(error.message.contains("it is kept"), "{error}");

    // It goes on to its end; notes and name stay.
    let update = AdapterUpdate { name: Some("captain".into()), notes: Some("Arr".into()), tags: None };
    adapters::update(&bench.paths, "model-pirate-2", &update).unwrap();
    let resume = CommandBody::RunsResume {
        run: "model-pirate".into(),
        how: ResumeHow::AsItWas,
        start: TrainStart::Attached,
        device: None,
    };
    let events = ask(&mut finished_host(&bench, &out), 1, resume);
    assert_eq!(events.last(), Some(&EventBody::Done), "{events:?}");
    assert_eq!(library(&bench), ["captain", "model-pirate"]);
    assert_eq!(adapters::show(&bench.paths, "captain").unwrap().notes, "Arr");
    let provenance = Provenance::read(&bench.paths.adapters().join("captain")).unwrap();
    assert_eq!(provenance.run.status, RunStatus::Completed);
    assert_eq!(listed(&bench)[0].status, RunStatus::Completed);
}

#[test]
fn a_discarded_run_is_gone_at_once_whoever_holds_it() {
    let bench = Bench::new();
    let mut request = bench.train_request(Path::new(""));
    request.out_dir = None;
    // Deaf to a stop: it is not waited for.
    let script = "trap '' TERM; echo > $FRAMES/trains; while true; do sleep 0.1; done";
    let mut host = bench.host(&[training_started(), step(1)], script, &[]);
    send(&mut host, 1, CommandBody::Train(Box::new(request)));
    let due = Instant::now() + Duration::from_mins(1);
    while listed(&bench).first().is_none_or(|run| run.step == 0) {
        assert!(Instant::now() < due, "{:?}", listed(&bench));
    }
    let events = ask(&mut bench.shell_host("exit 1"), 1, stop_as(StopThen::Discard));
    assert!(matches!(&events[events.len() - 2], EventBody::Removed { freed_bytes: 1.., .. }), "{events:?}");
    assert!(listed(&bench).is_empty());
    assert!(files::names_in(&bench.paths.runs()).unwrap().is_empty());
    assert!(failure(&to_the_end(&mut host, 1)).message.contains("was discarded"));
    assert_eq!(host.active_runs(), 0);
}

#[test]
fn a_run_that_stopped_before_can_still_be_kept_or_discarded() {
    let bench = Bench::new();
    let out = bench.path("out");
    let mut host = saving_host(&bench, &out);
    send(&mut host, 1, train(&bench, &out));
    wait_for_checkpoint(&out);
    ask(&mut bench.shell_host("exit 1"), 1, stop_as(StopThen::Pause));
    to_the_end(&mut host, 1);
    assert!(library(&bench).is_empty());

    let mut other = bench.shell_host("exit 1");
    let events = ask(&mut other, 1, stop_as(StopThen::Keep));
    assert!(matches!(events[0], EventBody::Adapter(_)), "{events:?}");
    assert_eq!((listed(&bench)[0].status, library(&bench).len()), (RunStatus::Kept, 1));
    ask(&mut other, 2, stop_as(StopThen::Discard));
    assert!(listed(&bench).is_empty() && !out.exists());
    assert_eq!(library(&bench).len(), 1, "what was kept stays");
}

#[test]
fn a_queued_run_is_taken_out_of_the_queue_or_removed() {
    let bench = Bench::new();
    let mut host = bench.shell_host("exit 1");
    let mut request = bench.train_request(Path::new(""));
    (request.out_dir, request.start) = (None, TrainStart::Queued);
    ask(&mut host, 1, CommandBody::Train(Box::new(request)));
    assert_eq!(listed(&bench)[0].status, RunStatus::Queued);
    for then in [StopThen::Pause, StopThen::Keep] {
        ask(&mut host, 2, stop_as(then));
        let run = listed(&bench).remove(0);
        assert_eq!((run.status, run.step, run.queue_position), (RunStatus::Stopped, 0, None));
        assert_eq!(Provenance::read(run.out_dir.as_ref()).unwrap().run.status, RunStatus::Stopped);
        let again = CommandBody::RunsResume {
            run: run.id,
            how: ResumeHow::AsItWas,
            start: TrainStart::Queued,
            device: None,
        };
        assert_eq!(ask(&mut host, 3, again).last(), Some(&EventBody::Done));
        assert_eq!(listed(&bench)[0].queue_position, Some(0));
    }
    // A deleted database forgets no queued run either.
    for name in ["lathe.db", "lathe.db-wal", "lathe.db-shm"] {
        files::remove_quietly(&bench.paths.data_dir.join(name));
    }
    assert_eq!(listed(&bench)[0].queue_position, Some(0));
    ask(&mut host, 4, stop_as(StopThen::Discard));
    assert!(listed(&bench).is_empty());
    assert!(files::names_in(&bench.paths.runs()).unwrap().is_empty());
}
