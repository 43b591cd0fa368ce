use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use candle_core::{Tensor, Var, backprop::GradStore};
use lathe_kernels::{
    AdamW, AdamWParams, CrossEntropyStats, MomentType, RopeTable, Targets, TokenLoss, TokenLosses,
    gpu::Offload, seeded,
};
use lathe_protocol::{Method, Optimizer, PreferenceMetrics, RunConfig};

use super::{
    Window,
    preference::{PairBatch, PairSums, Reference},
};
use crate::{
    Error, Result, adapter,
    batch::Batch,
    corpus::Rows,
    model::{Compute, Context, Model, Trainable},
    rng,
};

/// Everything that learns under `method`, in a fixed order.
pub fn trainables(model: &Model, method: Method) -> Vec<Trainable> {
    if method == Method::Full { model.whole_weights() } else { adapter::trainables(model) }
}

/// What training holds beside the weights that learn: gradients and moments, one for each trainable.
pub fn optimizer(trainables: &[Trainable], config: &RunConfig) -> Result<AdamW> {
    let decay = |decays| if decays { config.weight_decay } else { 0.0 };
    let vars = trainables.iter().map(|t| (t.var.clone(), decay(t.decays))).collect();
    let moments = match config.optimizer {
        Optimizer::Adamw => MomentType::F32,
        Optimizer::Adamw8bit => MomentType::Dynamic8,
    };
    Ok(AdamW::new(AdamWParams::default(), vars, moments)?)
}

/// Where activations wait, if they are to leave the device. On the CPU they are in the host's memory already.
pub(super) fn offload(model: &Model, config: &RunConfig) -> Result<Option<Arc<Offload>>> {
    let leaves = config.activation_offloading && config.gradient_checkpointing && model.compute.is_gpu();
    Ok(leaves.then(|| Offload::new(&model.compute.device)).transpose()?.map(Arc::new))
}

/// How one forward and backward is to be done.
pub struct PassOptions {
    pub rope: Arc<RopeTable>,
    pub dropout_key: Option<u64>,
    pub neftune: Option<Neftune>,
    /// Recompute so many blocks at a time in the backward instead of keeping their activations.
    pub recomputed_blocks: Option<usize>,
    /// Where the inputs of recomputed blocks wait for the backward, if not on the device.
    pub offload: Option<Arc<Offload>>,
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
    pub rows: &'a Rows<'a>,
    /// Of the rows, for DPO.
    pub references: &'a [Reference],
    pub rope: &'a Arc<RopeTable>,
    pub config: &'a RunConfig,
    pub offload: Option<Arc<Offload>>,
    pub stop: &'a AtomicBool,
}

/// What a window's forward came to.
pub(super) struct WindowLoss {
    pub loss: f64,
    pub loss_tokens: usize,
    pub preference: Option<PreferenceMetrics>,
}

impl Pass<'_> {
    /// Sets the optimizer's gradients to those of the window's loss. None if stopped midway.
    pub fn run(&self, step: usize, window: &Window, optimizer: &mut AdamW) -> Result<Option<WindowLoss>> {
        optimizer.clear_gradients()?;
        if self.config.objective.takes_pairs() {
            return self.run_on_pairs(step, window, optimizer);
        }
        let batches =
            window.iter().map(|micro_batch| self.rows.pack(micro_batch)).collect::<Result<Vec<_>>>()?;
        let loss_tokens: usize = batches.iter().map(Batch::num_loss_tokens).sum();
        let mut stats = CrossEntropyStats::default();
        for (micro_batch, batch) in batches.iter().enumerate() {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let options = self.options(step, micro_batch);
            let weights = Weights::Even(1.0 / loss_tokens as f64);
            stats.add(&accumulate(self.model, self.trainables, batch, &options, weights, optimizer)?);
        }
        let loss = stats.loss_sum / stats.num_tokens as f64;
        Ok(Some(WindowLoss { loss, loss_tokens: stats.num_tokens, preference: None }))
    }

    /// The loss is the mean over the window's pairs, and ORPO's likelihood that over its chosen sides' tokens.
    fn run_on_pairs(
        &self,
        step: usize,
        window: &Window,
        optimizer: &mut AdamW,
    ) -> Result<Option<WindowLoss>> {
        let Self { model, trainables, rows, references, config, .. } = self;
        let batches = window
            .iter()
            .map(|micro_batch| PairBatch::new(rows, micro_batch, references, config.objective))
            .collect::<Result<Vec<_>>>()?;
        let num_pairs = batches.iter().map(PairBatch::num_pairs).sum();
        let num_chosen_tokens = batches.iter().map(PairBatch::num_chosen_tokens).sum();
        let mut sums = PairSums::default();
        for (micro_batch, pairs) in batches.iter().enumerate() {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let options = self.options(step, micro_batch);
            let weigh = |tokens: &[TokenLoss]| pairs.weights(tokens, config, num_pairs, num_chosen_tokens);
            let weights = Weights::OfLosses(&weigh);
            let tokens = accumulate(model, trainables, &pairs.batch, &options, weights, optimizer)?;
            sums.add(pairs, &tokens, config);
        }
        let (loss, preference) = sums.means(config.objective);
        let loss_tokens = batches.iter().map(|pairs| pairs.batch.num_loss_tokens()).sum();
        Ok(Some(WindowLoss { loss, loss_tokens, preference: Some(preference) }))
    }

    fn options(&self, step: usize, micro_batch: usize) -> PassOptions {
        let config = self.config;
        let index = (step as u64) << 20 | micro_batch as u64;
        PassOptions {
            rope: self.rope.clone(),
            dropout_key: (config.lora.dropout > 0.0).then(|| rng::key(config.seed, "dropout", index)),
            neftune: (config.neftune_alpha > 0.0).then(|| Neftune {
                alpha: config.neftune_alpha,
                key: rng::key(config.seed, "neftune", index),
            }),
            recomputed_blocks: config.recomputed_blocks(),
            offload: self.offload.clone(),
        }
    }
}

/// How much each trained token's loss counts.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    /// Each the same.
    Even(f64),
    /// What they count follows from the losses themselves: those of a pair, by how far its sides are apart. Such a
    /// forward takes the output projection twice, first for the losses alone.
    OfLosses(&'a dyn Fn(&[TokenLoss]) -> Vec<f32>),
}

fn context(batch: &Batch, options: &PassOptions) -> Context {
    Context {
        positions: batch.positions.clone(),
        segments: batch.segments.clone(),
        rope: options.rope.clone(),
        dropout_key: options.dropout_key,
    }
}

/// The losses of the batch's trained tokens, without gradients.
pub fn evaluate(model: &Model, batch: &Batch, rope: &Arc<RopeTable>) -> Result<Vec<TokenLoss>> {
    let options = PassOptions {
        rope: rope.clone(),
        dropout_key: None,
        neftune: None,
        recomputed_blocks: None,
        offload: None,
    };
    let context = context(batch, &options);
    let mut h = model.embed(&batch.ids)?;
    for layer in 0..model.blocks.len() {
        // Detached, so that no block's activations outlive it.
        h = model.block(layer, &h, &context)?.detach();
    }
    loss(model, &h, batch, Weights::Even(1.0))?.1.read().map_err(Into::into)
}

/// The weighted loss of the batch's trained tokens, from the hidden states before the final norm; and each token's own.
fn loss(model: &Model, h: &Tensor, batch: &Batch, weights: Weights<'_>) -> Result<(Tensor, TokenLosses)> {
    let rows = Tensor::new(batch.loss_positions.as_slice(), h.device())?;
    let h = model.norm(&h.index_select(&rows, 0)?)?;
    let even = Targets::even(&batch.targets);
    match weights {
        Weights::Even(scale) => {
            let (loss, tokens) = model.cross_entropy(&h, even)?;
            Ok(((loss * scale)?, tokens))
        }
        Weights::OfLosses(weigh) => {
            let (_, tokens) = model.cross_entropy(&h.detach(), even)?;
            let weights = weigh(&tokens.read()?);
            Ok(model.cross_entropy(&h, Targets { weights: Some(&weights), ..even })?)
        }
    }
}

/// Forward and backward of one batch: adds the gradient of its weighted loss to the optimizer's, which is over the
/// trainables. The losses of its tokens.
pub fn accumulate(
    model: &Model,
    trainables: &[Trainable],
    batch: &Batch,
    options: &PassOptions,
    weights: Weights<'_>,
    optimizer: &mut AdamW,
) -> Result<Vec<TokenLoss>> {
    let context = context(batch, options);
    let mut embeddings = model.embed(&batch.ids)?;
    if let Some(neftune) = &options.neftune {
        embeddings = (embeddings + neftune.noise(batch, model)?)?;
    }
    let Some(recomputed_blocks) = options.recomputed_blocks else {
        let h = model.hidden(embeddings, &context)?;
        let (loss, tokens) = loss(model, &h, batch, weights)?;
        add_gradients(trainables, loss.backward()?, optimizer)?;
        return Ok(tokens.read()?);
    };
    // 1. Forward, keeping the input of each group of blocks only.
    let num_groups = model.blocks.len().div_ceil(recomputed_blocks);
    let mut inputs = Inputs::new(options.offload.as_deref());
    let mut h = embeddings.detach();
    for layer in 0..model.blocks.len() {
        let output = model.block(layer, &h, &context)?.detach();
        let input = std::mem::replace(&mut h, output);
        if layer.is_multiple_of(recomputed_blocks) {
            inputs.push(input)?;
        }
    }
    // 2. The head: the gradient of the last block's output.
    let output = Var::from_tensor(&h)?;
    let (loss, tokens) = loss(model, &output, batch, weights)?;
    let mut store = loss.backward()?;
    let mut dy = store.remove(&output);
    add_gradients(trainables, store, optimizer)?;
    drop((h, output));
    inputs.turn_around()?;
    // 3. Backward, one group at a time, re-run on a variable of its input.
    for group in (0..num_groups).rev() {
        let Some(seed) = dy else { break };
        let input = Var::from_tensor(&inputs.pop()?)?;
        let first = group * recomputed_blocks;
        let mut output = input.as_tensor().clone();
        for layer in first..model.blocks.len().min(first + recomputed_blocks) {
            output = model.block(layer, &output, &context)?;
        }
        let mut store = seeded(&output, &seed)?.backward()?;
        dy = store.remove(&input);
        add_gradients(trainables, store, optimizer)?;
    }
    // 4. The embeddings, where they learn.
    if let Some(seed) = dy
        && embeddings.track_op()
    {
        add_gradients(trainables, seeded(&embeddings, &seed)?.backward()?, optimizer)?;
    }
    Ok(tokens.read()?)
}

/// The inputs of groups of blocks between the forward and the backward, the last first.
enum Inputs<'a> {
    Here(Vec<Tensor>),
    Away { offload: &'a Offload, count: usize },
}

impl<'a> Inputs<'a> {
    fn new(offload: Option<&'a Offload>) -> Self {
        offload.map_or(Self::Here(Vec::new()), |offload| Self::Away { offload, count: 0 })
    }

    fn push(&mut self, input: Tensor) -> Result<()> {
        match self {
            Self::Here(inputs) => inputs.push(input),
            Self::Away { offload, count } => {
                offload.park(*count, &input)?;
                *count += 1;
            }
        }
        Ok(())
    }

    /// The backward begins: the last is called.
    fn turn_around(&self) -> Result<()> {
        match self {
            Self::Away { offload, count } if *count > 0 => Ok(offload.call(count - 1)?),
            _ => Ok(()),
        }
    }

    /// The last, while the one before it is called.
    fn pop(&mut self) -> Result<Tensor> {
        let none = || Error::model("The backward asks for more inputs than the forward kept");
        match self {
            Self::Here(inputs) => inputs.pop().ok_or_else(none),
            Self::Away { offload, count } => {
                *count = count.checked_sub(1).ok_or_else(none)?;
                let input = offload.take(*count)?;
                if *count > 0 {
                    offload.call(*count - 1)?;
                }
                Ok(input)
            }
        }
    }
}

fn add_gradients(trainables: &[Trainable], mut store: GradStore, optimizer: &mut AdamW) -> Result<()> {
    for (index, trainable) in trainables.iter().enumerate() {
        if let Some(gradient) = store.remove(&trainable.var) {
            optimizer.add_gradient(index, &gradient)?;
        }
    }
    Ok(())
}

impl Neftune {
    /// (T,C)
    fn noise(&self, batch: &Batch, model: &Model) -> Result<Tensor> {
        use rand::Rng as _;
        let hidden_size = model.config.hidden_size;
        let Compute { device, dtype } = &model.compute;
        let mut rng = crate::rng::stream(self.key, "neftune", 0);
        let mut noise = Vec::with_capacity(batch.ids.len() * hidden_size);
        for segment in batch.segments.iter() {
            let elements = segment.queries.len() * hidden_size;
            let magnitude = (self.alpha / (elements as f64).sqrt()) as f32;
            noise.extend((0..elements).map(|_| rng.random_range(-magnitude..=magnitude)));
        }
        Ok(Tensor::from_vec(noise, (batch.ids.len(), hidden_size), device)?.to_dtype(*dtype)?)
    }
}
