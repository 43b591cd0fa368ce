//! Sweeps: what they queue, how their runs are worked off.

use lathe_protocol::{Method, SweepKey, SweepRequest, TrainRequest};

use super::{
    live::{by_name, endless_options, wait_for},
    *,
};
use crate::{Host, HostOptions, testing::gpu};

fn sweep(bench: &Bench, keys: &[(&str, &str)]) -> CommandBody {
    let mut train =
        TrainRequest { out_dir: None, name: Some("s".into()), ..bench.train_request(Path::new("")) };
    train.config.method = Method::Full;
    let keys = keys.iter().map(|(key, values)| SweepKey::new(key, values)).collect();
    CommandBody::Sweep(Box::new(SweepRequest { train, keys }))
}

fn work(sweep: Option<&str>) -> CommandBody {
    CommandBody::QueueWork { sweep: sweep.map(str::to_owned) }
}

/// Workers that train two steps and are done; those with seed 2 fail.
fn finishing_options(bench: &Bench) -> HostOptions {
    let failed = EventBody::Failed { error: ErrorInfo::new(ErrorCode::Data, "Bad luck") };
    let script = "timeout 0.3 cat > $FRAMES/job; \
                  if grep -aq '\"seed\":2,' $FRAMES/job; then cat $FRAMES/bad; else cat $FRAMES/end; fi";
    let end: &[EventBody] = &[step(2), training_done(true), EventBody::Done];
    bench.options(&[training_started(), step(1)], script, &[("end", end), ("bad", &[failed])])
}

#[test]
fn a_sweep_queues_a_run_for_each_combination() {
    let bench = Bench::new();
    let mut host = bench.shell_host("exit 1");
    let keys = [("learning_rate", "1e-4,3e-4"), ("lora.r", "8, 16")];
    let events = ask(&mut host, 1, sweep(&bench, &keys));
    let EventBody::Runs { runs } = &events[0] else { panic!("{events:?}") };
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let expected = [
        "s-learning_rate-1e-4-r-8",
        "s-learning_rate-1e-4-r-16",
        "s-learning_rate-3e-4-r-8",
        "s-learning_rate-3e-4-r-16",
    ];
    assert_eq!(names, expected);
    assert!(runs.iter().enumerate().all(|(place, run)| run.queue_position == Some(place)), "{runs:?}");
    assert_eq!(runs[2].sweep.as_ref().unwrap().text(), "learning_rate=3e-4 · lora.r=8");
    let config = folder::LockedFolder::open(runs[2].out_dir.as_ref()).unwrap().read_run().unwrap().config;
    assert!((config.learning_rate - 3e-4).abs() < 1e-12 && config.lora.r == 8);

    let error = failure(&ask(&mut host, 2, sweep(&bench, &keys)));
    assert!(error.message.contains("\"s\" is taken"), "{error}");
    // Its place in the sweep survives the database.
    files::remove_quietly(&bench.paths.db());
    assert!(listed(&bench).iter().all(|run| run.sweep.as_ref().is_some_and(|place| place.name == "s")));
}

#[test]
fn a_sweep_that_cannot_be_says_why_and_queues_nothing() {
    let bench = Bench::new();
    let check = |keys: &[(&str, &str)], expected: &str| {
        let error = failure(&ask(&mut bench.shell_host("exit 1"), 1, sweep(&bench, keys)));
        assert_eq!(error.code, ErrorCode::Usage, "{error}");
        assert!(format!("{} {:?}", error.message, error.hint).contains(expected), "{error}");
        assert!(listed(&bench).is_empty() && files::names_in(&bench.paths.runs()).unwrap().is_empty());
    };
    check(&[], "one key or two, not 0");
    check(&[("seed", "1"), ("lora.r", "1"), ("epochs", "1")], "one key or two, not 3");
    check(&[("learning_rat", "1e-4")], "did you mean learning_rate?");
    check(&[("lora.r", "8,many")], "lora.r cannot be \"many\"");
    check(&[("seed", "1"), ("lora.r", "8,0")], "seed=1, lora.r=0: lora.r = 0 is out of range");
    check(&[("lora.r", "8,16,8")], "lora.r = 8 is there twice");
    check(
        &[("learning_rate", "1e-4,0.0001")],
        "learning_rate = 1e-4 and learning_rate = 0.0001 are the same",
    );
    check(&[("seed", "1"), ("seed", "2")], "seed is swept twice");
    check(&[("seed", " , ")], "seed has no values");
}

#[test]
fn a_run_that_fails_does_not_stop_the_others() {
    let bench = Bench::new();
    let mut host = Host::start(finishing_options(&bench)).unwrap();
    ask(&mut host, 1, sweep(&bench, &[("seed", "1,2,3")]));
    let events = ask(&mut host, 2, work(Some("s")));
    assert_eq!(events, [EventBody::Done]);
    let states = ["s-seed-1", "s-seed-2", "s-seed-3"].map(|name| by_name(&bench, name));
    let statuses = states.each_ref().map(|run| run.status);
    assert_eq!(statuses, [RunStatus::Completed, RunStatus::Failed, RunStatus::Completed], "{states:?}");
    assert_eq!(states[1].error.as_deref(), Some("Bad luck"));
    let error = failure(&ask(&mut host, 3, CommandBody::SweepResume { sweep: "s".into() }));
    assert!(error.message.contains("Nothing of sweep s"), "{error}");
}

#[test]
fn told_to_stop_it_leaves_the_rest_queued_and_goes_on_later() {
    let bench = Bench::new();
    let mut host = Host::start(endless_options(&bench)).unwrap();
    ask(&mut host, 1, sweep(&bench, &[("seed", "1,2,3")]));
    send(&mut host, 2, work(Some("s")));
    wait_for("a step", || by_name(&bench, "s-seed-1").step == 1);
    send(&mut host, 2, CommandBody::Stop);
    assert_eq!(to_the_end(&mut host, 2), [EventBody::Done]);
    let statuses = ["s-seed-1", "s-seed-2", "s-seed-3"].map(|name| by_name(&bench, name).status);
    assert_eq!(statuses, [RunStatus::Stopped, RunStatus::Queued, RunStatus::Queued]);
    drop(host);

    let mut host = Host::start(finishing_options(&bench)).unwrap();
    let events = ask(&mut host, 1, CommandBody::SweepResume { sweep: "s".into() });
    assert!(
        matches!(&events[0], EventBody::Runs { runs } if runs.iter().all(|run| run.status == RunStatus::Queued))
    );
    // A sweep's own work starts nothing else, whose runs nobody works off.
    let mut other = TrainRequest { start: TrainStart::Queued, ..bench.train_request(Path::new("")) };
    (other.out_dir, other.name) = (None, Some("other".into()));
    ask(&mut host, 2, CommandBody::Train(Box::new(other)));
    ask(&mut host, 3, CommandBody::RunsMove { run: "other".into(), position: 0 });
    assert_eq!(ask(&mut host, 4, work(Some("s"))), [EventBody::Done]);
    assert_eq!(by_name(&bench, "other").status, RunStatus::Queued);
    // But it waits its turn where somebody does.
    let elsewhere = queue::queue_lock(&bench.paths).unwrap();
    elsewhere.lock_shared().unwrap();
    let db = Db::open(&bench.paths.db()).unwrap();
    db.enqueue(&by_name(&bench, "s-seed-2").id).unwrap();
    assert!(queue::claim(&host.shared, &db, Some("s")).unwrap().is_none());
    drop(elsewhere);
    assert!(queue::claim(&host.shared, &db, Some("s")).unwrap().is_some());
}

#[test]
fn several_devices_and_two_processes_share_a_sweep_and_start_each_run_once() {
    let bench = Bench::new();
    let script = "echo started >> $FRAMES/log; sleep 0.4; cat $FRAMES/end";
    let end: &[EventBody] = &[training_done(true), EventBody::Done];
    let options = bench.options(&[training_started(), step(1)], script, &[("end", end)]);
    let options = HostOptions { gpus: vec![gpu(0, 24), gpu(1, 24)], ..options };
    let mut hosts = [options.clone(), options].map(|options| Host::start(options).unwrap());
    ask(&mut hosts[0], 1, sweep(&bench, &[("seed", "1,2,3"), ("lora.r", "4,8")]));
    for host in &mut hosts {
        send(host, 2, work(Some("s")));
    }
    for host in &mut hosts {
        assert_eq!(to_the_end(host, 2), [EventBody::Done]);
    }
    assert_eq!(fs::read_to_string(bench.path("log")).unwrap(), "started\n".repeat(6));
    let runs = listed(&bench);
    assert!(runs.iter().all(|run| run.status == RunStatus::Completed), "{runs:?}");
    let on: std::collections::BTreeSet<_> = runs.iter().filter_map(|run| run.runs_on.as_deref()).collect();
    assert_eq!(on.into_iter().collect::<Vec<_>>(), ["cuda:0", "cuda:1"]);
}
