//! Runs that the guard ended: what is recorded of them, and how they go on.

use lathe_protocol::{Divergence, DivergenceSign, RowPlace};

use super::*;

fn divergence(rows: Vec<RowPlace>) -> Divergence {
    Divergence {
        step: 2,
        sign: DivergenceSign::LossSpike,
        loss: Some(11.5),
        grad_norm: Some(3.0),
        usual: Some(2.0),
        resumes_from: 1,
        rows,
    }
}

/// Starts a run that diverges at step 2.
fn diverge(bench: &Bench, out: &Path, divergence: &Divergence) -> ErrorInfo {
    let error = ErrorInfo::new(ErrorCode::Diverged, "Training diverged at step 2").hint("look at the rows");
    let events =
        [training_started(), step(1), EventBody::Diverged(divergence.clone()), EventBody::Failed { error }];
    failure(&ask(&mut bench.host(&events, "", &[]), 1, train(bench, out)))
}

/// The config that a resumed run keeps.
fn resumed_with(bench: &Bench, out: &Path, how: ResumeHow) -> serde_json::Value {
    let events = [training_started(), step(2), training_done(false), EventBody::Done];
    let mut host = bench.host(&events, "", &[]);
    let resume = CommandBody::RunsResume {
        run: "model-pirate".into(),
        how,
        start: TrainStart::Attached,
        device: None,
    };
    let events = ask(&mut host, 1, resume);
    assert_eq!(events.last(), Some(&EventBody::Done), "{events:?}");
    let kept = crate::config::build(Some(&out.join("run.toml")), &[]).unwrap();
    serde_json::to_value(kept).unwrap()
}

#[test]
fn a_diverged_run_says_so_and_goes_on_as_it_is_told() {
    let bench = Bench::new();
    let out = bench.path("out");
    let found =
        divergence(vec![RowPlace { row: 3, line: 5, file: None }, RowPlace { row: 8, line: 12, file: None }]);
    let error = diverge(&bench, &out, &found);
    let run = &listed(&bench)[0];
    assert_eq!((run.status, run.divergence.as_ref()), (RunStatus::Diverged, Some(&found)));
    assert_eq!(
        error.hint.unwrap(),
        format!(
            "go on from the checkpoint of step 1: lathe runs resume {} with --skip-rows to leave those rows out, \
             or --lower-rate to halve the learning rate, or --ignore-spikes to go on anyway",
            run.id
        )
    );
    // Its folder alone tells the same.
    assert_eq!(Provenance::read(&out).unwrap().run.divergence.as_ref(), Some(&found));

    let kept = resumed_with(&bench, &out, ResumeHow::SkipRows);
    assert_eq!(kept["skip_rows"], serde_json::json!([3, 8]));
    let db = Db::open(&bench.paths.db()).unwrap();
    let record = db.runs().unwrap().remove(0);
    assert_eq!(record.config.skip_rows, [3, 8]);
    assert_eq!((record.entry.status, record.entry.divergence), (RunStatus::Stopped, None));
}

#[test]
fn a_lower_rate_and_spikes_ignored_are_kept_for_later_resumes() {
    let bench = Bench::new();
    let out = bench.path("out");
    diverge(&bench, &out, &divergence(Vec::new()));
    let mut host = finished_host(&bench, &out);
    let resume = |how| CommandBody::RunsResume {
        run: "model-pirate".into(),
        how,
        start: TrainStart::Attached,
        device: None,
    };
    let error = failure(&ask(&mut host, 1, resume(ResumeHow::SkipRows)));
    assert!(error.message.starts_with("No rows to skip"), "{error}");
    assert_eq!(resumed_with(&bench, &out, ResumeHow::LowerRate)["learning_rate"], 1e-4);
    assert_eq!(resumed_with(&bench, &out, ResumeHow::IgnoreSpikes)["spike_threshold"], 0.0);
    let kept = resumed_with(&bench, &out, ResumeHow::AsItWas);
    assert_eq!((&kept["learning_rate"], &kept["spike_threshold"]), (&1e-4.into(), &0.0.into()));
}
