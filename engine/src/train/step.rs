use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use candle_core::{Tensor, Var, backprop::GradStore};
use lathe_kernels::{AdamW, AdamWParams, CrossEntropyStats, RopeTable, add_to, seeded};
use lathe_protocol::{Method, Optimizer, RunConfig};

use super::Window;
use crate::{
    Result, adapter,
    batch::{self, Batch},
    model::{Context, Model, Trainable},
    rng,
    tokenize::TokenizedRow,
};

/// Everything that learns under `method`, in a fixed order.
pub fn trainables(model: &Model, method: Method) -> Vec<Trainable> {
    if method == Method::Full { model.whole_weights() } else { adapter::trainables(model) }
}

/// What training holds beside the weights that learn.
pub(super) struct Learning {
    /// Of the window at hand, one for each trainable.
    pub gradients: Vec<Vec<f32>>,
    /// Each trainable with its weight decay.
    pub vars: Vec<(Var, f64)>,
    pub optimizer: AdamW,
}

impl Learning {
    pub fn new(trainables: &[Trainable], config: &RunConfig) -> Self {
        let lengths = trainables.iter().map(|trainable| trainable.var.elem_count());
        let decay = |decays| if decays { config.weight_decay } else { 0.0 };
        Self {
            gradients: lengths.clone().map(|length| vec![0.0; length]).collect(),
            vars: trainables.iter().map(|t| (t.var.clone(), decay(t.decays))).collect(),
            optimizer: match config.optimizer {
                Optimizer::Adamw => AdamW::new(AdamWParams::default(), lengths),
                Optimizer::Adamw8bit => AdamW::new_8bit(AdamWParams::default(), lengths),
            },
        }
    }
}

/// How one forward and backward is to be done.
pub struct PassOptions {
    pub rope: Arc<RopeTable>,
    pub dropout_key: Option<u64>,
    pub neftune: Option<Neftune>,
    /// Recompute so many blocks at a time in the backward instead of keeping their activations.
    pub recomputed_blocks: Option<usize>,
}

/// Uniform noise of magnitude `alpha / sqrt(L·C)` on the embeddings of an example of L tokens (arXiv 2310.05914).
pub struct Neftune {
    pub alpha: f64,
    pub key: u64,
}

/// Forward and backward of whole windows of a run.
pub(super) struct Pass<'a> {
    pub model: &'a Model,
    pub trainables: &'a [Trainable],
    pub rows: &'a [TokenizedRow],
    pub rope: Arc<RopeTable>,
    pub config: &'a RunConfig,
    pub stop: &'a AtomicBool,
}

impl Pass<'_> {
    /// Sets `gradients` to those of the window's loss over its trained tokens. None if stopped midway.
    pub fn run(
        &self,
        step: usize,
        window: &Window,
        gradients: &mut [Vec<f32>],
    ) -> Result<Option<CrossEntropyStats>> {
        let Self { model, trainables, rows, rope, config, stop } = self;
        let batches: Vec<_> =
            window.iter().map(|micro_batch| batch::pack(micro_batch.iter().map(|row| &rows[*row]))).collect();
        let loss_tokens: usize = batches.iter().map(Batch::num_loss_tokens).sum();
        let mut stats = CrossEntropyStats::default();
        for gradient in gradients.iter_mut() {
            gradient.fill(0.0);
        }
        for (micro_batch, batch) in batches.iter().enumerate() {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let index = (step as u64) << 20 | micro_batch as u64;
            let options = PassOptions {
                rope: rope.clone(),
                dropout_key: (config.lora.dropout > 0.0).then(|| rng::key(config.seed, "dropout", index)),
                neftune: (config.neftune_alpha > 0.0).then(|| Neftune {
                    alpha: config.neftune_alpha,
                    key: rng::key(config.seed, "neftune", index),
                }),
                recomputed_blocks: config.recomputed_blocks(),
            };
            let loss_scale = 1.0 / loss_tokens as f64;
            let part = accumulate(model, trainables, batch, &options, loss_scale, gradients)?;
            stats.loss_sum += part.loss_sum;
            stats.num_tokens += part.num_tokens;
        }
        Ok(Some(stats))
    }
}

fn context(batch: &Batch, options: &PassOptions) -> Context {
    Context {
        positions: batch.positions.clone(),
        segments: batch.segments.clone(),
        rope: options.rope.clone(),
        dropout_key: options.dropout_key,
    }
}

/// The loss summed over the batch's trained tokens, without gradients.
pub fn evaluate(model: &Model, batch: &Batch, rope: &Arc<RopeTable>) -> Result<CrossEntropyStats> {
    let options =
        PassOptions { rope: rope.clone(), dropout_key: None, neftune: None, recomputed_blocks: None };
    let context = context(batch, &options);
    let mut h = model.embed(&batch.ids)?;
    for layer in 0..model.blocks.len() {
        // Detached, so that no block's activations outlive it.
        h = model.block(layer, &h, &context)?.detach();
    }
    Ok(loss(model, &h, batch)?.1)
}

/// The summed loss over the batch's trained tokens, from the hidden states before the final norm.
fn loss(model: &Model, h: &Tensor, batch: &Batch) -> Result<(Tensor, CrossEntropyStats)> {
    let rows = Tensor::new(batch.loss_positions.as_slice(), h.device())?;
    let h = model.norm(&h.index_select(&rows, 0)?)?;
    model.cross_entropy(&h, &batch.targets)
}

/// Forward and backward of one batch: adds `loss_scale ×` the gradient of its summed loss to `gradients`.
pub fn accumulate(
    model: &Model,
    trainables: &[Trainable],
    batch: &Batch,
    options: &PassOptions,
    loss_scale: f64,
    gradients: &mut [Vec<f32>],
) -> Result<CrossEntropyStats> {
    let context = context(batch, options);
    let mut embeddings = model.embed(&batch.ids)?;
    if let Some(neftune) = &options.neftune {
        embeddings = (embeddings + neftune.noise(batch, model.config.hidden_size)?)?;
    }
    let Some(recomputed_blocks) = options.recomputed_blocks else {
        let h = model.hidden(embeddings, &context)?;
        let (loss, stats) = loss(model, &h, batch)?;
        add_gradients(trainables, (loss * loss_scale)?.backward()?, gradients)?;
        return Ok(stats);
    };
    // 1. Forward, keeping the input of each group of blocks only.
    let mut inputs = Vec::with_capacity(model.blocks.len().div_ceil(recomputed_blocks));
    let mut h = embeddings.detach();
    for layer in 0..model.blocks.len() {
        let output = model.block(layer, &h, &context)?.detach();
        let input = std::mem::replace(&mut h, output);
        if layer.is_multiple_of(recomputed_blocks) {
            inputs.push(input);
        }
    }
    // 2. The head: the gradient of the last block's output.
    let output = Var::from_tensor(&h)?;
    let (loss, stats) = loss(model, &output, batch)?;
    let mut store = (loss * loss_scale)?.backward()?;
    let mut dy = store.remove(&output);
    add_gradients(trainables, store, gradients)?;
    drop((h, output));
    // 3. Backward, one group at a time, re-run on a variable of its input.
    for (group, input) in inputs.into_iter().enumerate().rev() {
        let Some(seed) = dy else { break };
        let input = Var::from_tensor(&input)?;
        let first = group * recomputed_blocks;
        let mut output = input.as_tensor().clone();
        for layer in first..model.blocks.len().min(first + recomputed_blocks) {
            output = model.block(layer, &output, &context)?;
        }
        let mut store = seeded(&output, &seed)?.backward()?;
        dy = store.remove(&input);
        add_gradients(trainables, store, gradients)?;
    }
    // 4. The embeddings, where they learn.
    if let Some(seed) = dy
        && embeddings.track_op()
    {
        add_gradients(trainables, seeded(&embeddings, &seed)?.backward()?, gradients)?;
    }
    Ok(stats)
}

fn add_gradients(trainables: &[Trainable], mut store: GradStore, gradients: &mut [Vec<f32>]) -> Result<()> {
    for (trainable, sum) in trainables.iter().zip(gradients) {
        if let Some(gradient) = store.remove(&trainable.var) {
            add_to(sum, &gradient)?;
        }
    }
    Ok(())
}

impl Neftune {
    /// (T,C)
    fn noise(&self, batch: &Batch, hidden_size: usize) -> Result<Tensor> {
        use rand::Rng as _;
        let mut rng = crate::rng::stream(self.key, "neftune", 0);
        let mut noise = Vec::with_capacity(batch.ids.len() * hidden_size);
        for segment in batch.segments.iter() {
            let elements = segment.queries.len() * hidden_size;
            let magnitude = (self.alpha / (elements as f64).sqrt()) as f32;
            noise.extend((0..elements).map(|_| rng.random_range(-magnitude..=magnitude)));
        }
        Ok(Tensor::from_vec(noise, (batch.ids.len(), hidden_size), &candle_core::Device::Cpu)?)
    }
}
