//! Whole runs from a data file: rows held out, and samples of the model in training.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use lathe_engine::{
    Result,
    chat::{ChatSession, ReplyRequest},
    train::{self, Surroundings},
};
use lathe_protocol::{
    EvalMetrics, EventBody, Machine, Message, Method, Role, RunConfig, SampleText, SamplingParams, Thinking,
    TrainJob,
};

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/tiny-qwen3")
}

fn config() -> RunConfig {
    let mut config = RunConfig { max_seq_len: 128, grad_accum: 1, max_steps: 5, ..RunConfig::default() };
    config.learning_rate = 1e-2;
    config.lora.r = 4;
    config
}

fn job(config: RunConfig, out_dir: &Path) -> TrainJob {
    TrainJob {
        model: model().display().to_string(),
        model_name: "tiny".into(),
        data: model().join("rows.jsonl").display().to_string(),
        eval_data: None,
        out_dir: out_dir.display().to_string(),
        init_adapter: None,
        config,
        resume: false,
        device: "cpu".into(),
        force: false,
        machine: Machine::default(),
        cache: out_dir.join("cache").display().to_string(),
    }
}

/// Runs the job; it is stopped by the first event that `ends` picks.
fn run(job: &TrainJob, ends: impl Fn(&EventBody) -> bool) -> Result<Vec<EventBody>> {
    let stop = AtomicBool::new(false);
    let mut events = Vec::new();
    train::run(job, &Surroundings { clock: &|| 0.0, stop: &stop, audience: None }, &mut |event| {
        if ends(&event) {
            stop.store(true, Ordering::Relaxed);
        }
        events.push(event);
    })?;
    Ok(events)
}

fn never(_: &EventBody) -> bool {
    false
}

fn losses(events: &[EventBody]) -> Vec<u64> {
    let loss = |event: &EventBody| match event {
        EventBody::Step(step) => Some(step.loss.to_bits()),
        _ => None,
    };
    events.iter().filter_map(loss).collect()
}

fn evals(events: &[EventBody]) -> Vec<EvalMetrics> {
    let eval = |event: &EventBody| match event {
        EventBody::Eval(eval) => Some(*eval),
        _ => None,
    };
    events.iter().filter_map(eval).collect()
}

fn samples(events: &[EventBody]) -> Vec<SampleText> {
    let sample = |event: &EventBody| match event {
        EventBody::Sample(sample) => Some(sample.clone()),
        _ => None,
    };
    events.iter().filter_map(sample).collect()
}

#[test]
fn held_out_rows_are_evaluated_not_trained_and_the_same_when_resumed() {
    let config = RunConfig { eval_ratio: 0.2, eval_steps: 1, ..config() };
    let out_dir = tempfile::tempdir().unwrap();
    let undisturbed = run(&job(config.clone(), out_dir.path()), never).unwrap();
    let mut rows = undisturbed.iter().filter_map(|event| match event {
        EventBody::DataReport(report) => Some((report.rows, report.held_out_rows)),
        EventBody::TrainingStarted { rows, .. } => Some((*rows, 0)),
        _ => None,
    });
    // A fifth of 23 rows is 5.
    assert_eq!((rows.next(), rows.next()), (Some((23, 5)), Some((18, 0))));
    let expected = evals(&undisturbed);
    assert_eq!((expected.len(), expected[0].rows), (5, 5));

    let out_dir = tempfile::tempdir().unwrap();
    let mut job = job(config, out_dir.path());
    let second_step = |event: &EventBody| matches!(event, EventBody::Step(step) if step.step == 2);
    let mut found = evals(&run(&job, second_step).unwrap());
    job.resume = true;
    found.extend(evals(&run(&job, never).unwrap()));
    assert_eq!(found, expected);
}

#[test]
fn what_evaluated_best_is_kept_and_early_stopping_counts_from_a_minimum_delta() {
    // Learns by heart, and so gets worse on what is held out.
    let config = RunConfig {
        eval_ratio: 0.2,
        eval_steps: 1,
        save_total_limit: 1,
        max_steps: 40,
        keep_best: true,
        ..config()
    };
    let out_dir = tempfile::tempdir().unwrap();
    let events = run(&job(config.clone(), out_dir.path()), never).unwrap();
    let found = evals(&events);
    let best = found.iter().min_by(|a, b| a.loss.total_cmp(&b.loss)).unwrap();
    assert!(best.step < 40, "it must get worse for this test to say anything: {found:?}");
    let whole = losses(&events);
    let kept = std::fs::read(out_dir.path().join("adapter_model.safetensors")).unwrap();

    // The same weights as a run that ends there.
    let till_best = |event: &EventBody| matches!(event, EventBody::Eval(eval) if eval.step == best.step);
    let short_dir = tempfile::tempdir().unwrap();
    run(&job(config.clone(), short_dir.path()), till_best).unwrap();
    let checkpoint = short_dir.path().join(format!("checkpoints/step-{:08}", best.step));
    assert_eq!(std::fs::read(checkpoint.join("adapter_model.safetensors")).unwrap(), kept);

    // Spoiled, it is told of and the last step's weights are kept.
    let spoiled_dir = tempfile::tempdir().unwrap();
    let path = spoiled_dir.path().join(format!("checkpoints/step-{:08}/state.json", best.step));
    let last = |event: &EventBody| {
        if matches!(event, EventBody::Step(step) if step.step == 40) {
            std::fs::write(&path, "{}").unwrap();
        }
        false
    };
    let events = run(&job(config.clone(), spoiled_dir.path()), last).unwrap();
    let told = |event: &EventBody| matches!(event, EventBody::Log { message, .. } if message.contains("cannot be read"));
    assert!(events.iter().any(told));
    assert_ne!(std::fs::read(spoiled_dir.path().join("adapter_model.safetensors")).unwrap(), kept);

    // No evaluation improves by so much, so patience is spent after the first and two more.
    let strict = RunConfig { early_stopping_patience: 2, early_stopping_min_delta: 10.0, ..config };
    let strict_dir = tempfile::tempdir().unwrap();
    let events = run(&job(strict, strict_dir.path()), never).unwrap();
    assert_eq!(losses(&events), whole[..3]);
}

#[test]
fn a_share_and_a_file_of_held_out_rows_together_are_refused() {
    let out_dir = tempfile::tempdir().unwrap();
    let mut job = job(RunConfig { eval_ratio: 0.1, ..config() }, out_dir.path());
    job.eval_data = Some(job.data.clone());
    let error = run(&job, never).unwrap_err().to_string();
    assert_eq!(error, "Rows cannot be held out (eval_ratio = 0.1) beside a file of them");
}

#[test]
fn samples_come_with_checkpoints_and_evaluations_and_change_no_loss() {
    for (method, gradient_checkpointing) in
        [(Method::Lora, false), (Method::Lora, true), (Method::Qlora, false), (Method::Full, false)]
    {
        let mut config =
            RunConfig { method, gradient_checkpointing, save_steps: 2, eval_ratio: 0.2, ..config() };
        config.lora.dropout = 0.1;
        config.neftune_alpha = 5.0;
        let out_dir = tempfile::tempdir().unwrap();
        let expected = losses(&run(&job(config.clone(), out_dir.path()), never).unwrap());

        config.sample_prompts = vec!["Hi".into(), "What is the capital of France?".into()];
        config.eval_steps = 3;
        let out_dir = tempfile::tempdir().unwrap();
        let events = run(&job(config, out_dir.path()), never).unwrap();
        assert_eq!(losses(&events), expected);
        let found: Vec<_> =
            samples(&events).into_iter().map(|sample| (sample.step, sample.prompt.len())).collect();
        assert_eq!(found, [2, 3, 4, 5].map(|step| [(step, 2), (step, 30)]).concat());
    }
}

/// What the model says with this adapter.
fn answer(adapter: &Path, question: &str) -> String {
    let mut session = ChatSession::load(&model(), &[adapter.into()], &|| 0.0).unwrap();
    let request = ReplyRequest {
        messages: vec![Message::new(Role::User, question)],
        sampling: SamplingParams { max_tokens: 64, ..SamplingParams::default() },
        thinking: Thinking::Show,
        effort: None,
        now: None,
    };
    let mut said = String::new();
    session
        .reply(&request, &AtomicBool::new(false), &|| 0.0, &mut |delta| said.push_str(&delta.text))
        .unwrap();
    said.trim().to_owned()
}

#[test]
fn a_sample_is_what_a_chat_with_the_saved_adapter_says() {
    let question = "What is the capital of France?";
    let config = RunConfig { sample_prompts: vec![question.into()], ..config() };
    let out_dir = tempfile::tempdir().unwrap();
    let sampled = samples(&run(&job(config, out_dir.path()), never).unwrap()).pop().unwrap();
    assert!(!sampled.text.is_empty());
    assert_eq!((sampled.step, sampled.text), (5, answer(out_dir.path(), question)));
}

#[test]
fn an_adapter_trained_in_nf4_chats_on_the_unquantised_model() {
    let out_dir = tempfile::tempdir().unwrap();
    let events = run(&job(RunConfig { method: Method::Qlora, ..config() }, out_dir.path()), never).unwrap();
    assert_eq!(losses(&events).len(), 5);
    assert!(!answer(out_dir.path(), "Hi").is_empty());
}

#[test]
fn stopping_ends_the_samples() {
    let config = RunConfig { sample_prompts: vec!["Hi".into(), "Ho".into()], save_steps: 1, ..config() };
    let out_dir = tempfile::tempdir().unwrap();
    let events = run(&job(config, out_dir.path()), |event| matches!(event, EventBody::Sample(_))).unwrap();
    assert_eq!((losses(&events).len(), samples(&events).len()), (1, 1));
}
