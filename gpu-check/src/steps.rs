//! Training steps of tiny models on the GPU against the same steps on the CPU.

use std::{path::Path, sync::Arc};

use candle_core::{Result, Tensor, bail};
use lathe_engine::{
    batch, lora,
    model::{LoadFor, Model},
    tokenize::TokenizedRow,
    train::{PassOptions, Weights, accumulate, optimizer, trainables},
};
use lathe_kernels::{AdamW, gpu::Offload};
use lathe_protocol::{LoraConfig, Method, RunConfig};

use crate::{
    models::{self, Shape},
    twins::{compute, note, random},
};

const STEPS: usize = 3;
const LEARNING_RATE: f64 = 2e-3;
/// Of a loss and of all gradients together.
const LOSS_TOLERANCE: f32 = 2e-2;
const GRADIENT_TOLERANCE: f32 = 0.12;

pub fn qwen3_in_nf4_trains_as_on_the_cpu() -> Result<()> {
    check(
        &models::TINY_QWEN3,
        LoadFor::Qlora { double_quant: true },
        &LoraConfig { r: 8, ..LoraConfig::default() },
    )
}

pub fn gpt_oss_in_mxfp4_trains_as_on_the_cpu() -> Result<()> {
    let config = LoraConfig {
        r: 8,
        target_parameters: vec!["experts.gate_up_proj".into(), "experts.down_proj".into()],
        ..LoraConfig::default()
    };
    check(&models::TINY_GPT_OSS, LoadFor::Lora, &config)
}

/// A model, what learns of it, and its losses.
struct Run {
    losses: Vec<f64>,
    /// Of the first step.
    gradients: Vec<Vec<f32>>,
}

fn check(shape: &Shape, load_for: LoadFor, config: &LoraConfig) -> Result<()> {
    let folder = tempfile::tempdir().map_err(candle_core::Error::wrap)?;
    models::write(folder.path(), shape, 3).map_err(candle_core::Error::wrap)?;
    let mut failed = Ok(());
    for (recomputed, offloads) in [(None, false), (Some(1), true)] {
        let on_gpu = run(folder.path(), load_for, config, true, recomputed, offloads)?;
        let on_cpu = run(folder.path(), load_for, config, false, recomputed, false)?;
        for (step, (found, expected)) in on_gpu.losses.iter().zip(&on_cpu.losses).enumerate() {
            let off = (found / expected - 1.0).abs() as f32;
            note(off / LOSS_TOLERANCE);
            if off.is_nan() || off > LOSS_TOLERANCE {
                failed =
                    failed.and_then(|()| bail!("the loss of step {step} is {found}, on the CPU {expected}"));
            }
        }
        let pairs = || on_gpu.gradients.iter().flatten().zip(on_cpu.gradients.iter().flatten());
        let squares =
            |value: fn((&f32, &f32)) -> f32| pairs().map(value).map(|v| f64::from(v * v)).sum::<f64>();
        let off = (squares(|(found, expected)| found - expected) / squares(|(_, expected)| *expected)).sqrt()
            as f32;
        note(off / GRADIENT_TOLERANCE);
        if off.is_nan() || off > GRADIENT_TOLERANCE {
            failed =
                failed.and_then(|()| bail!("the gradients are {off} of their size from those of the CPU"));
        }
        if on_gpu.losses.last() >= on_gpu.losses.first() {
            failed = failed.and_then(|()| bail!("nothing is learned: {:?}", on_gpu.losses));
        }
    }
    failed
}

fn run(
    path: &Path,
    load_for: LoadFor,
    config: &LoraConfig,
    on_gpu: bool,
    recomputed_blocks: Option<usize>,
    offloads: bool,
) -> Result<Run> {
    let mut model = Model::load_on(path, load_for, compute(on_gpu)).map_err(candle_core::Error::wrap)?;
    lora::attach_fresh(&mut model, config, 1).map_err(candle_core::Error::wrap)?;
    let trainables = trainables(&model, Method::Lora);
    // B is no longer zero, so that A has gradients.
    for (index, trainable) in trainables.iter().enumerate().filter(|(_, t)| t.name.contains("lora_B")) {
        let values = (random(trainable.var.dims(), index as u64)? * 0.05)?;
        trainable.var.set(&values.to_device(trainable.var.device())?)?;
    }
    let run_config = RunConfig { weight_decay: 0.01, ..RunConfig::default() };
    let mut optimizer: AdamW = optimizer(&trainables, &run_config).map_err(candle_core::Error::wrap)?;
    let rows: Vec<TokenizedRow> =
        [41, 7, 25].iter().enumerate().map(|(row, length)| tokens(row, *length)).collect();
    let batch = batch::pack(&rows);
    let offload = offloads.then(|| Offload::new(&model.compute.device)).transpose()?.map(Arc::new);
    let options = PassOptions {
        rope: model.rope_table(64),
        dropout_key: None,
        neftune: None,
        recomputed_blocks,
        offload,
    };
    let mut run = Run { losses: Vec::new(), gradients: Vec::new() };
    for step in 0..STEPS {
        optimizer.clear_gradients()?;
        let weights = Weights::Even(1.0 / batch.num_loss_tokens() as f64);
        let losses = accumulate(&model, &trainables, &batch, &options, weights, &mut optimizer)
            .map_err(candle_core::Error::wrap)?;
        run.losses.push(losses.iter().map(|token| token.loss).sum::<f64>() / losses.len() as f64);
        if step == 0 {
            run.gradients = optimizer.gradients()?;
        }
        optimizer.step(1.0, LEARNING_RATE)?;
    }
    Ok(run)
}

/// A row of which the second half is learned.
fn tokens(row: usize, length: usize) -> TokenizedRow {
    let ids = (0..length).map(|t| ((t * t * 7 + 31 * row + t) % 320) as u32).collect();
    let loss_mask = (0..length).map(|t| t >= length / 2).collect();
    TokenizedRow { ids, loss_mask, ..TokenizedRow::default() }
}

/// Values that a tensor's logits have on the GPU and on the CPU, all of them one prompt's.
pub fn decoding_gives_the_logits_of_a_forward() -> Result<()> {
    for shape in [&models::TINY_QWEN3, &models::TINY_GPT_OSS] {
        let folder = tempfile::tempdir().map_err(candle_core::Error::wrap)?;
        models::write(folder.path(), shape, 5).map_err(candle_core::Error::wrap)?;
        let ids: Vec<u32> = tokens(2, 40).ids;
        let load = |on_gpu| Model::load_on(folder.path(), LoadFor::Inference, compute(on_gpu));
        let expected =
            load(false).and_then(|model| model.all_logits(&ids)).map_err(candle_core::Error::wrap)?;
        let model = load(true).map_err(candle_core::Error::wrap)?;
        let rope = model.rope_table(64);
        let mut cache = model.new_cache(64).map_err(candle_core::Error::wrap)?;
        let mut feed = |ids: &[u32]| model.decode(ids, &mut cache, &rope).map_err(candle_core::Error::wrap);
        // A prompt at once, then token by token.
        let mut found = vec![feed(&ids[..25])?];
        for id in &ids[25..] {
            found.push(feed(&[*id])?);
        }
        let found = Tensor::stack(&found, 0)?;
        crate::twins::check_near(&found, &expected.narrow(0, 24, 16)?, 0.1)?;
    }
    Ok(())
}
