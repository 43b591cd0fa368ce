//! How fast models of real shapes train and write on this card, and how much of it they take.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lathe_engine::{
    Result, batch, lora,
    model::{Compute, Decoder, LoadFor, Model},
    tokenize::TokenizedRow,
    train::{PassOptions, Weights, accumulate, optimizer, trainables},
};
use lathe_kernels::Sampling;
use lathe_kernels::gpu;
use lathe_protocol::{LoraConfig, Method, RunConfig};

use crate::models::Shape;

const WARM_UPS: usize = 2;
const STEPS: usize = 5;
/// Tokens of a prompt.
const PROMPT: usize = 64;
/// Sequences that are written side by side.
const BATCH: usize = 8;

/// A number beside what is asked of it.
#[derive(Debug, Clone)]
pub struct Measured {
    pub what: String,
    pub value: f64,
    pub unit: &'static str,
    /// At least it for a speed, at most for the rest.
    pub target: Option<f64>,
}

impl Measured {
    pub fn meets_target(&self) -> Option<bool> {
        let target = self.target?;
        Some(if self.unit == "tok/s" { self.value >= target } else { self.value <= target })
    }
}

/// The most memory that tensors take of a card while this lives, looked at every other millisecond.
struct Peak {
    most: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Peak {
    fn watch(compute: &Compute) -> Result<Self> {
        let (most, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (seen, ends, device) = (most.clone(), stop.clone(), compute.device.clone());
        let look = move || {
            while !ends.load(Ordering::Relaxed) {
                if let Some([now, _]) = gpu::memory_in_use(&device) {
                    seen.fetch_max(now, Ordering::Relaxed);
                }
                thread::sleep(Duration::from_millis(2));
            }
        };
        let thread = thread::Builder::new().name("peak".into()).spawn(look);
        let thread = thread.map_err(candle_core::Error::wrap)?;
        Ok(Self { most, stop, thread })
    }

    /// In GB.
    fn end(self) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        // A thread that panicked has told so itself; what it saw still counts.
        drop(self.thread.join());
        self.most.load(Ordering::Relaxed) as f64 / 1e9
    }
}

/// A training run to time.
pub struct Training<'a> {
    pub load_for: LoadFor,
    pub lora: LoraConfig,
    /// Lengths of one packed row each, with the tokens a second and the GB that are asked for.
    pub lengths: &'a [(usize, f64, f64)],
}

/// LoRA steps with every block recomputed: forward, backward and update over one row.
pub fn training(
    folder: &Path,
    shape: &Shape,
    run: &Training<'_>,
    compute: &Compute,
    tell: &mut dyn FnMut(Measured),
) -> Result<()> {
    let started = Instant::now();
    let peak = Peak::watch(compute)?;
    let mut model = Model::load_on(folder, run.load_for, compute.clone())?;
    tell(Measured {
        what: format!("{} loads for training", shape.name),
        value: started.elapsed().as_secs_f64(),
        unit: "s",
        target: None,
    });
    let loading = peak.end();
    tell(Measured {
        what: format!("{} at most while it loads", shape.name),
        value: loading,
        unit: "GB",
        target: None,
    });
    lora::attach_fresh(&mut model, &run.lora, 1)?;
    let trainables = trainables(&model, Method::Lora);
    let mut optimizer = optimizer(&trainables, &RunConfig::default())?;
    for (length, speed, memory) in run.lengths {
        let batch = batch::pack([&row(*length, shape.vocab_size)]);
        let options = PassOptions {
            rope: model.rope_table(*length),
            dropout_key: None,
            neftune: None,
            recomputed_blocks: Some(1),
            offload: None,
        };
        let mut step = || -> Result<f64> {
            optimizer.clear_gradients()?;
            let weights = Weights::Even(1.0 / batch.num_loss_tokens() as f64);
            let losses = accumulate(&model, &trainables, &batch, &options, weights, &mut optimizer)?;
            let norm = optimizer.gradient_norm()?;
            optimizer.step(1.0, 1e-4)?;
            Ok(norm + losses.iter().map(|token| token.loss).sum::<f64>())
        };
        for _ in 0..WARM_UPS {
            step()?;
        }
        let peak = Peak::watch(compute)?;
        let started = Instant::now();
        for _ in 0..STEPS {
            step()?;
        }
        compute.device.synchronize()?;
        let seconds = started.elapsed().as_secs_f64() / STEPS as f64;
        let what = format!("{} trains on {length} tokens", shape.name);
        tell(Measured {
            what: what.clone(),
            value: *length as f64 / seconds,
            unit: "tok/s",
            target: Some(*speed),
        });
        tell(Measured { what, value: peak.end(), unit: "GB", target: Some(*memory) });
    }
    Ok(())
}

/// Replies to time.
pub struct Writing {
    pub load_for: LoadFor,
    /// Of each, written one by one.
    pub num_tokens: usize,
    /// Seconds that are asked for, from opening the model's folder on.
    pub first_token: Option<f64>,
    /// Tokens a second that are asked for, of one reply.
    pub speed: f64,
}

/// Time to the first token from a file in the page cache, then tokens one by one, of one sequence and of several.
pub fn writing(
    folder: &Path,
    shape: &Shape,
    run: &Writing,
    compute: &Compute,
    tell: &mut dyn FnMut(Measured),
) -> Result<()> {
    let Writing { load_for, num_tokens, first_token, speed } = *run;
    let started = Instant::now();
    let model = Model::load_on(folder, load_for, compute.clone())?;
    let prompt = row(PROMPT, shape.vocab_size).ids;
    let greedy = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 };
    // The first steps are launched one by one, and then captured.
    let warm_ups = WARM_UPS + 1;
    for batch in [1, BATCH] {
        let mut decoder = Decoder::new(&model, PROMPT + warm_ups + num_tokens, batch)?;
        let mut decoding = decoder.with(&model, greedy)?;
        for sequence in 0..batch {
            let logits = decoding.prefill(sequence, &prompt)?;
            decoding.start(sequence, &logits, 0)?;
        }
        if batch == 1 {
            let what = format!("{} writes its first token", shape.name);
            tell(Measured { what, value: started.elapsed().as_secs_f64(), unit: "s", target: first_token });
        }
        for _ in 0..warm_ups {
            decoding.step()?;
        }
        let started = Instant::now();
        for _ in 0..num_tokens {
            decoding.step()?;
        }
        let value = (batch * num_tokens) as f64 / started.elapsed().as_secs_f64();
        let (what, target) = match batch {
            1 => (format!("{} writes", shape.name), Some(speed)),
            _ => (format!("{} writes {batch} replies at once", shape.name), None),
        };
        tell(Measured { what, value, unit: "tok/s", target });
    }
    Ok(())
}

/// All of it learned but the first token.
fn row(length: usize, vocab_size: usize) -> TokenizedRow {
    let ids = (0..length).map(|t| ((t * 7919 + t * t * 31) % vocab_size) as u32).collect();
    let loss_mask = (0..length).map(|t| t > 0).collect();
    TokenizedRow { ids, loss_mask, ..TokenizedRow::default() }
}
