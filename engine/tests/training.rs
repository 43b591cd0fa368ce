//! Optimizer steps against a peft loop over the same rows (tests/golden/train.py) and a full fine-tune in
//! transformers (tests/golden/full.py).
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    cell::Cell,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use lathe_engine::{
    tokenize::TokenizedRow,
    train::{self, Surroundings},
};
use lathe_protocol::{EventBody, RunConfig, StepMetrics, TrainJob};
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data").join(name)
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn rows(model: &str) -> Vec<TokenizedRow> {
    let rows = read(&golden(model).join("expected_tokens.json"));
    let rows = rows.as_array().unwrap().iter().enumerate();
    rows.map(|(row, value)| TokenizedRow {
        row,
        line: row + 1,
        ids: serde_json::from_value(value["ids"].clone()).unwrap(),
        loss_mask: value["mask"].as_array().unwrap().iter().map(|bit| bit.as_u64() == Some(1)).collect(),
    })
    .collect()
}

fn truncated(mut rows: Vec<TokenizedRow>, max_seq_len: usize) -> Vec<TokenizedRow> {
    for row in &mut rows {
        row.ids.truncate(max_seq_len);
        row.loss_mask.truncate(max_seq_len);
    }
    rows
}

fn job(model: &str, config: RunConfig, out_dir: &Path) -> TrainJob {
    TrainJob {
        model: golden(model).display().to_string(),
        model_name: model.into(),
        data: "rows".into(),
        eval_data: None,
        out_dir: out_dir.display().to_string(),
        init_adapter: (config.method != lathe_protocol::Method::Full)
            .then(|| golden(model).join("init").display().to_string()),
        config,
        resume: false,
        device: "cpu".into(),
    }
}

/// Runs the job, stopping it after `stop_after` steps if given.
fn run(job: &TrainJob, rows: &[TokenizedRow], stop_after: Option<usize>) -> Vec<StepMetrics> {
    let stop = AtomicBool::new(false);
    let now = Cell::new(0.0);
    let clock = || {
        now.set(now.get() + 1.0);
        now.get()
    };
    let mut steps = Vec::new();
    let world = Surroundings { clock: &clock, stop: &stop };
    train::run_on_rows(job, rows, &[], None, &world, &mut |event| {
        if let EventBody::Step(step) = event {
            steps.push(step);
            if stop_after == Some(steps.len()) {
                stop.store(true, Ordering::Relaxed);
            }
        }
    })
    .unwrap();
    steps
}

fn check(model: &str, expected: &Value, checkpointing: bool) {
    let mut config: RunConfig = serde_json::from_value(expected["config"].clone()).unwrap();
    config.gradient_checkpointing = checkpointing;
    config.warmup_ratio = 0.0; // the references warm up by steps or not at all
    let out_dir = tempfile::tempdir().unwrap();
    let rows = truncated(rows(model), config.max_seq_len);
    let steps = run(&job(model, config, out_dir.path()), &rows, None);
    let expected = expected["steps"].as_array().unwrap();
    assert_eq!(steps.len(), expected.len());
    for (step, expected) in steps.iter().zip(expected) {
        let close = |name: &str, actual: f64| {
            let expected = expected[name].as_f64().unwrap();
            assert!(
                (actual - expected).abs() <= 1e-4 * expected.abs(),
                "{model} step {}: {name} {actual}, expected {expected}",
                step.step
            );
        };
        close("loss", step.loss);
        close("grad_norm", step.grad_norm);
        close("lr", step.lr);
        close("loss_tokens", step.loss_tokens as f64);
    }
}

#[test]
fn eight_steps_equal_those_of_peft() {
    for model in ["tiny-llama", "tiny-qwen3"] {
        let expected = read(&golden(model).join("expected_train.json"));
        for setting in ["unpacked", "packed"] {
            check(model, &expected[setting], false);
        }
    }
}

#[test]
fn eight_steps_of_gpt_oss_equal_those_of_peft() {
    for model in ["tiny-gpt-oss", "tiny-gpt-oss-mxfp4"] {
        let expected = read(&golden(model).join("expected_train.json"));
        check(model, &expected, false);
        check(model, &expected, true);
    }
}

#[test]
fn eight_steps_of_qlora_equal_those_of_peft_on_the_dequantised_weights() {
    let expected = read(&golden("tiny-qwen3").join("expected_train_nf4.json"));
    check("tiny-qwen3", &expected, false);
    check("tiny-qwen3", &expected, true);
    let with_experts = read(&golden("tiny-gpt-oss").join("expected_train_nf4.json"));
    check("tiny-gpt-oss", &with_experts, false);
    check("tiny-gpt-oss", &with_experts, true);
}

#[test]
fn gradient_checkpointing_changes_nothing() {
    let expected = read(&golden("tiny-qwen3").join("expected_train.json"));
    check("tiny-qwen3", &expected["packed"], true);
    check("tiny-qwen3", &read(&golden("tiny-qwen3").join("expected_full.json")), true);
}

#[test]
fn a_full_fine_tune_equals_that_of_transformers() {
    check("tiny-qwen3", &read(&golden("tiny-qwen3").join("expected_full.json")), false);
}

#[test]
fn resuming_gives_the_same_losses_to_the_bit() {
    let expected = read(&golden("tiny-qwen3").join("expected_train.json"));
    let mut config: RunConfig = serde_json::from_value(expected["packed"]["config"].clone()).unwrap();
    config.shuffle = true;
    config.lora.dropout = 0.1;
    config.neftune_alpha = 5.0;
    let rows = truncated(rows("tiny-qwen3"), config.max_seq_len);
    let undisturbed_dir = tempfile::tempdir().unwrap();
    let undisturbed = run(&job("tiny-qwen3", config.clone(), undisturbed_dir.path()), &rows, None);

    let out_dir = tempfile::tempdir().unwrap();
    let mut job = job("tiny-qwen3", config, out_dir.path());
    let mut steps = run(&job, &rows, Some(3));
    job.resume = true;
    steps.extend(run(&job, &rows, Some(2)));
    steps.extend(run(&job, &rows, None));
    assert_eq!(steps.len(), undisturbed.len());
    for (resumed, undisturbed) in steps.iter().zip(&undisturbed) {
        assert_eq!(resumed.loss.to_bits(), undisturbed.loss.to_bits(), "step {}", undisturbed.step);
        assert_eq!(resumed.grad_norm.to_bits(), undisturbed.grad_norm.to_bits(), "step {}", undisturbed.step);
    }
}

#[test]
fn a_broken_checkpoint_is_passed_over_for_the_one_before() {
    let expected = read(&golden("tiny-llama").join("expected_train.json"));
    let mut config: RunConfig = serde_json::from_value(expected["packed"]["config"].clone()).unwrap();
    config.save_steps = 1;
    let rows = truncated(rows("tiny-llama"), config.max_seq_len);
    let out_dir = tempfile::tempdir().unwrap();
    let mut job = job("tiny-llama", config, out_dir.path());
    run(&job, &rows, Some(4));
    let newest = out_dir.path().join("checkpoints/step-00000004/optimizer.safetensors");
    let bytes = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &bytes[..bytes.len() / 2]).unwrap();
    job.resume = true;
    let steps = run(&job, &rows, None);
    assert_eq!(steps.first().unwrap().step, 4, "resumed after step 3");
}
