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
use lathe_protocol::{EventBody, Machine, Optimizer, RunConfig, StepMetrics, TrainJob};
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
        rejected: None,
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
        force: false,
        machine: Machine::default(),
        cache: out_dir.join("cache").display().to_string(),
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
    let world = Surroundings { clock: &clock, stop: &stop, audience: None };
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
    check_from(model, "init", expected, checkpointing);
}

/// [`check`] of a run that starts from another of the model's adapters than `init`.
fn check_from(model: &str, adapter: &str, expected: &Value, checkpointing: bool) {
    let mut config: RunConfig = serde_json::from_value(expected["config"].clone()).unwrap();
    config.gradient_checkpointing = checkpointing;
    config.warmup_ratio = 0.0; // the references warm up by steps or not at all
    let out_dir = tempfile::tempdir().unwrap();
    let rows = truncated(rows(model), config.max_seq_len);
    let mut job = job(model, config, out_dir.path());
    job.init_adapter = job.init_adapter.map(|_| golden(model).join(adapter).display().to_string());
    let steps = run(&job, &rows, None);
    let expected = expected["steps"].as_array().unwrap();
    assert_eq!(steps.len(), expected.len());
    for (step, expected) in steps.iter().zip(expected) {
        let close = |name: &str, actual: f64| {
            let expected = expected[name].as_f64().unwrap();
            assert!(
                (actual - expected).abs() <= 1e-4 * expected.abs(),
                "{model}/{adapter} step {}: {name} {actual}, expected {expected}",
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

/// (model, adapter of tests/golden/kinds.py).
const KINDS: [(&str, &str); 13] = [
    ("tiny-gpt-oss", "experts"),
    ("tiny-gpt-oss", "router"),
    ("tiny-gpt-oss", "dora-bias"),
    ("tiny-gpt-oss", "whole"),
    ("tiny-gpt-oss-mxfp4", "experts"),
    ("tiny-qwen3-moe", "attention"),
    ("tiny-qwen3-moe", "all-linear"),
    ("tiny-qwen3-moe", "experts"),
    ("tiny-qwen3-moe", "whole-tied"),
    ("tiny-qwen3-moe", "whole-tied-both"),
    ("tiny-qwen3", "rslora"),
    ("tiny-qwen3", "dora"),
    ("tiny-qwen3", "dora-nf4"),
];

#[test]
fn eight_steps_of_every_kind_of_adapter_equal_those_of_peft() {
    for (model, kind) in KINDS {
        let adapter = format!("kinds/{kind}");
        let expected = read(&golden(model).join(&adapter).join("expected_train.json"));
        check_from(model, &adapter, &expected, false);
        check_from(model, &adapter, &expected, true);
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
    let config = |model: &str, name: &str| -> RunConfig {
        let expected = read(&golden(model).join(name));
        let setting = expected.get("packed").unwrap_or(&expected);
        serde_json::from_value(setting["config"].clone()).unwrap()
    };
    let packed = config("tiny-qwen3", "expected_train.json");
    check_resumption("tiny-qwen3", "init", packed.clone(), 0.1);
    check_resumption("tiny-qwen3", "kinds/dora", packed, 0.1);
    let experts = config("tiny-gpt-oss", "expected_train.json");
    check_resumption("tiny-gpt-oss", "kinds/experts", experts.clone(), 0.0);
    check_resumption("tiny-gpt-oss", "kinds/whole", experts.clone(), 0.1);
    check_resumption("tiny-qwen3-moe", "kinds/whole-tied-both", experts, 0.1);
}

/// A full fine-tune of tiny-qwen3 over three epochs.
fn full_fine_tune(optimizer: Optimizer) -> RunConfig {
    let expected = read(&golden("tiny-qwen3").join("expected_full.json"));
    let config: RunConfig = serde_json::from_value(expected["config"].clone()).unwrap();
    RunConfig { optimizer, learning_rate: 3e-3, max_steps: 36, save_steps: 3, warmup_ratio: 0.0, ..config }
}

#[test]
fn with_moments_in_8_bits_the_loss_falls_as_in_f32() {
    let rows = rows("tiny-qwen3");
    let [plain, coded] = [Optimizer::Adamw, Optimizer::Adamw8bit].map(|optimizer| {
        let out_dir = tempfile::tempdir().unwrap();
        run(&job("tiny-qwen3", full_fine_tune(optimizer), out_dir.path()), &rows, None)
    });
    let mean = |steps: &[StepMetrics]| steps.iter().map(|step| step.loss).sum::<f64>() / steps.len() as f64;
    let [first, last] = [&coded[..12], &coded[24..]].map(mean);
    assert!(last < 0.8 * first, "{first} in the first epoch, {last} in the last");
    for (coded, plain) in coded.iter().zip(&plain) {
        let off = (coded.loss / plain.loss - 1.0).abs();
        assert!(off < 0.01, "step {}: {} in 8 bits, {} in f32", plain.step, coded.loss, plain.loss);
    }
    assert_ne!(coded[35].loss.to_bits(), plain[35].loss.to_bits(), "nothing was coded");
}

#[test]
fn resuming_with_moments_in_8_bits_gives_the_same_losses_to_the_bit() {
    let rows = rows("tiny-qwen3");
    let config = full_fine_tune(Optimizer::Adamw8bit);
    let undisturbed =
        run(&job("tiny-qwen3", config.clone(), tempfile::tempdir().unwrap().path()), &rows, None);
    let out_dir = tempfile::tempdir().unwrap();
    let mut job = job("tiny-qwen3", config, out_dir.path());
    let mut steps = run(&job, &rows, Some(5));
    let moments = out_dir.path().join("checkpoints/step-00000005/optimizer.safetensors");
    let moments = candle_core::safetensors::load(moments, &candle_core::Device::Cpu).unwrap();
    let of_embedding = &moments["model.embed_tokens.weight.exp_avg"];
    assert_eq!(of_embedding.dtype(), candle_core::DType::U8);
    job.resume = true;
    steps.extend(run(&job, &rows, None));
    let bits = |steps: &[StepMetrics]| {
        steps
            .iter()
            .map(|step| (step.step, step.loss.to_bits(), step.grad_norm.to_bits()))
            .collect::<Vec<_>>()
    };
    assert_eq!(bits(&steps), bits(&undisturbed));
}

fn check_resumption(model: &str, adapter: &str, mut config: RunConfig, dropout: f64) {
    config.shuffle = true;
    config.neftune_alpha = 5.0;
    config.gradient_checkpointing = dropout == 0.0;
    let rows = truncated(rows(model), config.max_seq_len);
    // The adapter's own dropout counts: a run goes on as it began.
    let init = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden(model).join(adapter)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, init.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = init.path().join("adapter_config.json");
    let mut peft_config = read(&path);
    peft_config["lora_dropout"] = dropout.into();
    std::fs::write(&path, peft_config.to_string()).unwrap();
    config.lora.dropout = dropout;

    let job = |out_dir: &tempfile::TempDir| {
        let init_adapter = Some(init.path().display().to_string());
        TrainJob { init_adapter, ..job(model, config.clone(), out_dir.path()) }
    };
    let undisturbed = run(&job(&tempfile::tempdir().unwrap()), &rows, None);
    let out_dir = tempfile::tempdir().unwrap();
    let mut job = job(&out_dir);
    let mut steps = run(&job, &rows, Some(3));
    job.resume = true;
    steps.extend(run(&job, &rows, Some(2)));
    steps.extend(run(&job, &rows, None));
    assert_eq!(steps.len(), undisturbed.len());
    for (resumed, undisturbed) in steps.iter().zip(&undisturbed) {
        let step = undisturbed.step;
        assert_eq!(resumed.loss.to_bits(), undisturbed.loss.to_bits(), "{model}/{adapter} step {step}");
        let norms = [resumed, undisturbed].map(|step| step.grad_norm.to_bits());
        assert_eq!(norms[0], norms[1], "{model}/{adapter} step {step}");
    }
}

#[test]
fn a_broken_checkpoint_is_passed_over_for_the_one_before() {
    type Spoil = fn(&mut Vec<u8>);
    let expected = read(&golden("tiny-llama").join("expected_train.json"));
    let mut config: RunConfig = serde_json::from_value(expected["packed"]["config"].clone()).unwrap();
    config.save_steps = 1;
    let rows = truncated(rows("tiny-llama"), config.max_seq_len);
    let out_dir = tempfile::tempdir().unwrap();
    let mut job = job("tiny-llama", config, out_dir.path());
    let expected = run(&job, &rows, Some(4));
    job.resume = true;
    let newest = out_dir.path().join("checkpoints/step-00000004");
    let optimizer = newest.join("optimizer.safetensors");
    let weights = newest.join("adapter_model.safetensors");
    let state = newest.join("state.json");
    let spoilings: [(&Path, Spoil); 3] = [
        (&optimizer, |bytes| bytes.truncate(bytes.len() / 2)),
        (&weights, |bytes| *bytes.last_mut().unwrap() ^= 1),
        (&state, Vec::clear),
    ];
    for (path, spoil) in spoilings {
        let mut bytes = std::fs::read(path).unwrap();
        spoil(&mut bytes);
        std::fs::write(path, bytes).unwrap();
        // From the one before, and the broken one is written anew.
        let steps = run(&job, &rows, Some(1));
        assert_eq!(steps, expected[3..], "{}", path.display());
    }
}
