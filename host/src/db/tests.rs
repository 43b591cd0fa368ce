use lathe_protocol::{
    EvalMetrics, LogLevel, LogLine, Method, MetricPoint, OddsMetrics, PreferenceMetrics, RunConfig, RunEntry,
    RunStatus, SampleText, StepMetrics, StopThen, SweepPlace, SweepValue,
};

use super::*;

fn record(id: &str, name: &str) -> RunRecord {
    RunRecord {
        entry: RunEntry {
            id: id.into(),
            name: name.into(),
            status: RunStatus::Running,
            model: "starter".into(),
            data: "/d.jsonl".into(),
            method: Method::Lora,
            out_dir: "/o".into(),
            created_secs: 7,
            step: 0,
            total_steps: 0,
            last_loss: None,
            eval_loss: None,
            error: None,
            divergence: None,
            tokens_per_second: None,
            doing: None,
            queue_position: None,
            held_here: false,
            device: "cuda:1".into(),
            runs_on: None,
            sweep: Some(SweepPlace {
                name: "s".into(),
                index: 1,
                values: vec![SweepValue { key: "lora.r".into(), value: "8".into() }],
            }),
        },
        config: RunConfig { seed: 5, ..RunConfig::default() },
        eval_data: Some("/e.jsonl".into()),
        init_adapter: None,
        force: true,
    }
}

fn preference() -> PreferenceMetrics {
    let odds = Some(OddsMetrics { nll_loss: 2.5, log_odds_ratio: -0.5, log_odds_chosen: 0.25 });
    PreferenceMetrics { chosen_reward: 0.5, rejected_reward: -0.25, accuracy: 0.75, margin: 0.75, odds }
}

fn point(step: usize) -> MetricPoint {
    MetricPoint {
        step: StepMetrics {
            step,
            loss: 2.0 / step as f64,
            grad_norm: 1.0,
            lr: 1e-4,
            tokens_per_second: 100.0,
            tokens: 64,
            loss_tokens: 32,
            epoch: 0.5,
            memory_bytes: (step > 1).then_some(1 << 30),
            preference: (step > 2).then(preference),
        },
        at_secs: 1e9 + step as f64,
    }
}

#[test]
fn a_run_and_its_metrics_come_back_as_they_went_in() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&dir.path().join("lathe.db")).unwrap();
    let mut run = record("a", "pirate");
    db.insert_run(&mut run, &|_| false).unwrap();
    assert_eq!(db.run("a").unwrap(), Some(run.clone()));
    for step in 1..=3 {
        db.add_step("a", &point(step)).unwrap();
    }
    let eval = EvalMetrics {
        step: 3,
        loss: 1.0,
        perplexity: 2.7,
        token_accuracy: 0.5,
        loss_tokens: 9,
        rows: 2,
        preference: Some(preference()),
    };
    db.add_eval("a", &eval).unwrap();
    assert_eq!(db.steps("a", 0).unwrap(), [point(1), point(2), point(3)]);
    assert_eq!(db.evals("a", 0).unwrap(), [eval]);
    let entry = db.run("a").unwrap().unwrap().entry;
    assert_eq!((entry.step, entry.eval_loss), (3, Some(1.0)));

    // Resumed from step 2: step 3 will be taken again.
    db.set_totals("a", 2, 10).unwrap();
    assert_eq!(db.steps("a", 0).unwrap().len(), 2);
    assert!(db.evals("a", 0).unwrap().is_empty());

    db.request_stop("a", StopThen::Keep).unwrap();
    assert_eq!(db.stop_requested("a").unwrap(), Some(StopThen::Keep));
    db.set_running("a", "/o", "cpu").unwrap();
    assert_eq!(db.stop_requested("a").unwrap(), None);
    db.delete_run("a").unwrap();
    assert!(db.steps("a", 0).unwrap().is_empty(), "metrics go with their run");
}

#[test]
fn a_taken_name_gets_a_number() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&dir.path().join("lathe.db")).unwrap();
    let mut names = Vec::new();
    for id in ["a", "b", "c"] {
        let mut run = record(id, "pirate");
        db.insert_run(&mut run, &|name| name == "pirate-2").unwrap();
        names.push(run.entry.name);
    }
    assert_eq!(names, ["pirate", "pirate-3", "pirate-4"]);
}

#[test]
fn two_writers_at_once_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lathe.db");
    let writers: Vec<_> = ["a", "b", "c"]
        .map(|id| {
            let path = path.clone();
            std::thread::Builder::new()
                .name(id.into())
                .spawn(move || {
                    // Opening races too: all three create the schema.
                    let db = Db::open(&path).unwrap();
                    db.insert_run(&mut record(id, "same"), &|_| false).unwrap();
                    for step in 1..=200 {
                        db.add_step(id, &point(step)).unwrap();
                    }
                })
                .unwrap()
        })
        .into_iter()
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
    let db = Db::open(&path).unwrap();
    assert_eq!(db.runs().unwrap().len(), 3);
    for id in ["a", "b", "c"] {
        assert_eq!(db.steps(id, 0).unwrap().len(), 200);
    }
    assert_eq!(db.quick_check().unwrap(), "ok");
}

#[test]
fn a_damaged_file_is_an_error_with_a_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lathe.db");
    std::fs::write(&path, vec![b'x'; 4096]).unwrap();
    let error = Db::open(&path).err().unwrap();
    assert!(error.message.ends_with("lathe.db"), "{error}");
    assert!(error.hint.unwrap().contains("rebuilt"));
}

#[test]
fn samples_and_logs_are_read_from_where_one_left_off() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&dir.path().join("lathe.db")).unwrap();
    db.insert_run(&mut record("a", "pirate"), &|_| false).unwrap();
    let sample = |step| SampleText { step, prompt: "Who?".into(), text: format!("Arr {step}") };
    let line = |message: &str| LogLine { at_secs: 1e9, level: LogLevel::Warn, message: message.into() };
    for step in 1..=3 {
        db.add_sample("a", &sample(step)).unwrap();
        db.add_log("a", &line("Rough sea")).unwrap();
    }
    let samples = db.samples("a", 0).unwrap();
    assert_eq!(samples.iter().map(|(_, sample)| sample.step).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(db.samples("a", samples[1].0).unwrap(), [(samples[2].0, sample(3))]);
    let logs = db.logs("a", 0).unwrap();
    assert_eq!((logs.len(), &logs[0].1), (3, &line("Rough sea")));
    assert!(db.logs("a", logs[2].0).unwrap().is_empty());
    // Samples of steps that are taken again go, what was logged stays.
    db.set_totals("a", 2, 10).unwrap();
    assert_eq!((db.samples("a", 0).unwrap().len(), db.logs("a", 0).unwrap().len()), (2, 3));
    assert_eq!(db.starts("a").unwrap(), Some(1));
}

#[test]
fn the_speed_is_that_of_the_last_twenty_steps() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&dir.path().join("lathe.db")).unwrap();
    for id in ["a", "b"] {
        db.insert_run(&mut record(id, id), &|_| false).unwrap();
    }
    for step in 1..=50 {
        let mut point = point(step);
        point.step.tokens_per_second = if step > 30 { 10.0 } else { 1000.0 };
        db.add_step("a", &point).unwrap();
    }
    let speeds: Vec<_> = db.runs().unwrap().into_iter().map(|run| run.entry.tokens_per_second).collect();
    assert_eq!(speeds, [None, Some(10.0)]);
}

#[test]
fn the_queue_has_no_gaps_for_who_looks() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&dir.path().join("lathe.db")).unwrap();
    for id in ["a", "b", "c", "d"] {
        let mut run = record(id, id);
        run.entry.status = RunStatus::Queued;
        db.insert_run(&mut run, &|_| false).unwrap();
    }
    assert!(db.dequeue("b").unwrap() && !db.dequeue("b").unwrap());
    assert!(db.move_queued("a", 99).unwrap() && !db.move_queued("b", 0).unwrap());
    assert_eq!(db.queued().unwrap(), ["c", "d", "a"]);
    db.enqueue("b").unwrap();
    let place = |id: &str| db.run(id).unwrap().unwrap().entry.queue_position;
    assert_eq!(["a", "b", "c", "d"].map(place), [Some(2), Some(3), Some(0), Some(1)]);
    db.set_running("c", "/o", "cpu").unwrap();
    assert_eq!((place("c"), place("d")), (None, Some(0)));
}

#[test]
fn a_failed_transaction_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&dir.path().join("lathe.db")).unwrap();
    db.insert_run(&mut record("a", "pirate"), &|_| false).unwrap();
    let outcome: Result<()> = db.exclusively(|| {
        db.delete_run("a")?;
        Err(ErrorInfo::new(ErrorCode::Busy, "changed its mind"))
    });
    assert!(outcome.is_err());
    assert!(db.run("a").unwrap().is_some());
}

#[test]
fn a_database_of_the_first_version_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lathe.db");
    let old = Connection::open(&path).unwrap();
    old.execute_batch(MIGRATIONS[0]).unwrap();
    old.execute_batch(
        "INSERT INTO runs (id, name, status, model, data, method, out_dir, config, created_secs, stop_requested)
            VALUES ('a', 'pirate', 'stopped', 'starter', '/d', 'lora', '/o', '{}', 7, 1);
         INSERT INTO metrics VALUES ('a', 1, 2.0, 1.0, 1e-4, 100.0, 64, 32, 0.5, 1e9);
         PRAGMA user_version = 1;",
    )
    .unwrap();
    drop(old);
    let db = Db::open(&path).unwrap();
    let run = db.run("a").unwrap().unwrap();
    assert_eq!((run.entry.status, run.entry.tokens_per_second), (RunStatus::Stopped, Some(100.0)));
    assert_eq!((db.stop_requested("a").unwrap(), db.starts("a").unwrap()), (None, Some(0)));
    assert_eq!(db.steps("a", 0).unwrap()[0].step.memory_bytes, None);
    db.add_step("a", &point(2)).unwrap();
    assert_eq!(db.steps("a", 1).unwrap(), [point(2)]);
}
