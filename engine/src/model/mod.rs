//! Decoders of the Llama, Qwen and gpt-oss families: one forward for training and for inference.
//!
//! Tensor letters: T tokens, C hidden, H heads, G key/value heads, D head dim, V vocabulary, E experts. There is no
//! batch dimension: a batch is one row of tokens cut into segments.

mod bare;
mod compute;
mod config;
mod decoder;
mod gguf_config;
mod load;
mod mlp;
mod nf4;
mod projection;
mod rope_scaling;
mod token_rows;
mod whole;

use std::sync::Arc;

use candle_core::{DType, Tensor, Var};
use lathe_kernels::{
    Attention, FrozenLinear, Positions, QuantizedLinear, RopeTable, Segment, Segments, Targets, TokenLosses,
    linear_cross_entropy, linear_cross_entropy_trainable, linear_cross_entropy_with_rows, rms_norm,
    rms_norm_frozen, rope,
};

pub use compute::Compute;
pub use config::{ExpertsConfig, ModelConfig};
pub use decoder::{Decoder, Decoding};
pub use load::LoadFor;
pub use mlp::{ExpertParameter, MixtureOfExperts, Mlp};
pub use projection::{BaseLinear, Dora, LoraWeights, Projection};
pub use rope_scaling::{RopeScaling, Yarn};
pub use token_rows::TokenRows;
pub use whole::Trainable;

use crate::{Error, Result};

/// A weight vector of a norm.
pub enum Norm {
    Frozen(Tensor),
    Trainable(Var),
}

/// The table of token embeddings, (V, C).
pub enum Embedding {
    /// In f32; in bf16 if it is large or only looked up, and stored so.
    Frozen(Tensor),
    Trainable(Var),
    /// Rows are dequantised as they are looked up.
    Quantized(QuantizedLinear),
}

impl Embedding {
    /// The whole table: in f32, but for a frozen one that is large.
    fn dense(&self) -> Result<Tensor> {
        match self {
            Self::Frozen(table) => Ok(table.clone()),
            Self::Trainable(table) => Ok(table.as_tensor().clone()),
            Self::Quantized(table) => Ok(table.dequantize()?),
        }
    }
}

/// The projection from hidden states to logits.
pub enum OutputHead {
    /// The embedding table, used again.
    Tied,
    Own(BaseLinear),
}

pub struct Block {
    pub attention: Attention,
    pub input_norm: Norm,
    pub q: Projection,
    pub k: Projection,
    pub v: Projection,
    pub o: Projection,
    /// Per-head norms of q and k (Qwen3).
    pub q_norm: Option<Norm>,
    pub k_norm: Option<Norm>,
    pub post_attention_norm: Norm,
    pub mlp: Mlp,
}

pub struct Model {
    pub config: ModelConfig,
    pub embedding: Embedding,
    /// Of an adapter's own tokens.
    pub token_rows: Option<TokenRows>,
    pub blocks: Vec<Block>,
    pub final_norm: Norm,
    pub head: OutputHead,
    pub compute: Compute,
    inverse_frequencies: Vec<f32>,
}

/// What a forward pass needs beside the hidden states.
#[derive(Clone)]
pub struct Context {
    /// Position of each token in its own example.
    pub positions: Arc<Positions>,
    /// Which tokens see which.
    pub segments: Arc<Segments>,
    pub rope: Arc<RopeTable>,
    /// Key of this pass's dropout masks; `None` while not training.
    pub dropout_key: Option<u64>,
}

/// Keys and values of the tokens seen so far: `capacity` rows of each layer's buffers.
pub struct KvCache {
    /// (rows, G·D) each; several caches may share them.
    layers: Arc<Vec<(Tensor, Tensor)>>,
    first_row: usize,
    num_tokens: usize,
    capacity: usize,
}

impl KvCache {
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all but the first `num_tokens`.
    pub fn truncate(&mut self, num_tokens: usize) {
        self.num_tokens = self.num_tokens.min(num_tokens);
    }
}

impl Norm {
    fn forward(&self, x: &Tensor, eps: f64) -> Result<Tensor> {
        Ok(match self {
            Self::Frozen(weight) => rms_norm_frozen(x, weight, eps)?,
            Self::Trainable(weight) => rms_norm(x, weight, eps)?,
        })
    }
}

impl Model {
    /// A rotary table for positions `0..num_positions`.
    pub fn rope_table(&self, num_positions: usize) -> Arc<RopeTable> {
        let attention_factor = self.config.rope_scaling.attention_factor();
        Arc::new(RopeTable::new(&self.inverse_frequencies, attention_factor, num_positions))
    }

    /// One decoder block: (T,C) -> (T,C).
    pub fn block(&self, layer: usize, h: &Tensor, context: &Context) -> Result<Tensor> {
        self.block_with(layer, h, context, |q, k, v| {
            Ok(self.blocks[layer].attention.forward(&q, &k, &v, &context.segments)?)
        })
    }

    fn block_with(
        &self,
        layer: usize,
        h: &Tensor,
        context: &Context,
        attend: impl FnOnce(Tensor, Tensor, Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let Block { input_norm, q, k, v, o, q_norm, k_norm, post_attention_norm, mlp, .. } =
            &self.blocks[layer];
        let eps = self.config.rms_norm_eps;
        let key = context.dropout_key;
        // 1. Attention: (T,C) -> q (T,H·D), k and v (T,G·D) -> (T,H·D) -> (T,C)
        let x = input_norm.forward(h, eps)?;
        let q = self.rotate(&q.forward(&x, key)?, q_norm.as_ref(), context)?;
        let k = self.rotate(&k.forward(&x, key)?, k_norm.as_ref(), context)?;
        let v = v.forward(&x, key)?;
        let h = (h + o.forward(&attend(q, k, v)?, key)?)?;
        // 2. MLP: (T,C) -> (T,I) -> (T,C)
        let x = post_attention_norm.forward(&h, eps)?;
        Ok((&h + mlp.forward(&x, key)?)?)
    }

    /// Norms (Qwen3) and rotates the heads of q or k.
    fn rotate(&self, x: &Tensor, norm: Option<&Norm>, context: &Context) -> Result<Tensor> {
        let x = match norm {
            None => x.clone(),
            Some(norm) => {
                let (num_tokens, width) = x.dims2()?;
                let head_dim = self.config.head_dim;
                // (T,H·D) -> (T·H,D) and back
                let heads = x.reshape((num_tokens * width / head_dim, head_dim))?;
                norm.forward(&heads, self.config.rms_norm_eps)?.reshape((num_tokens, width))?
            }
        };
        Ok(rope(&x, &context.rope, &context.positions)?)
    }

    /// All blocks: embeddings (T,C) -> hidden states before the final norm (T,C).
    pub fn hidden(&self, embeddings: Tensor, context: &Context) -> Result<Tensor> {
        (0..self.blocks.len()).try_fold(embeddings, |h, layer| self.block(layer, &h, context))
    }

    pub fn norm(&self, h: &Tensor) -> Result<Tensor> {
        self.final_norm.forward(h, self.config.rms_norm_eps)
    }

    /// Normed hidden states (T,C) -> logits (T,V) in f32.
    pub fn logits(&self, h: &Tensor) -> Result<Tensor> {
        let logits = match (&self.head, &self.embedding) {
            (OutputHead::Own(linear), _) => linear.forward(h)?,
            (OutputHead::Tied, Embedding::Frozen(table)) => FrozenLinear::new(table, None)?.forward(h)?,
            (OutputHead::Tied, Embedding::Trainable(table)) => lathe_kernels::linear(h, table)?,
            (OutputHead::Tied, Embedding::Quantized(table)) => table.forward(h)?,
        };
        let logits = self.head_rows().map_or(Ok(logits.clone()), |own| own.join_logits(h, &logits))?;
        Ok(logits.to_dtype(DType::F32)?)
    }

    /// The cross-entropy of normed hidden states (N,C) against targets (N), summed, and each state's own; the logits
    /// never exist as a whole.
    pub fn cross_entropy(&self, h: &Tensor, targets: Targets<'_>) -> Result<(Tensor, TokenLosses)> {
        if let Some(own) = self.head_rows() {
            let table = FrozenLinear::new(&self.embedding.dense()?, None)?;
            let rows = (own.ids.as_slice(), own.rows.as_tensor());
            return Ok(linear_cross_entropy_with_rows(h, &table, rows, targets)?);
        }
        Ok(match (&self.head, &self.embedding) {
            (OutputHead::Tied, Embedding::Trainable(table)) => {
                linear_cross_entropy_trainable(h, table, targets)?
            }
            (OutputHead::Own(BaseLinear::Trainable { weight, .. }), _) => {
                linear_cross_entropy_trainable(h, weight, targets)?
            }
            (OutputHead::Tied, Embedding::Frozen(table)) => {
                linear_cross_entropy(h, &FrozenLinear::new(table, None)?, targets)?
            }
            (OutputHead::Own(BaseLinear::Dense(frozen)), _) => linear_cross_entropy(h, frozen, targets)?,
            (OutputHead::Tied, Embedding::Quantized(table))
            | (OutputHead::Own(BaseLinear::Gguf { weight: table, .. }), _) => {
                linear_cross_entropy(h, &FrozenLinear::new(&table.dequantize()?, None)?, targets)?
            }
        })
    }

    pub fn num_parameters(&self) -> usize {
        let count = |(rows, columns): (usize, usize)| rows * columns;
        let ModelConfig { hidden_size, vocab_size, num_layers, .. } = self.config;
        let linears: usize = self.projections().filter_map(|p| p.base.shape().ok()).map(count).sum();
        let heads = if matches!(self.head, OutputHead::Tied) { 1 } else { 2 };
        let experts: usize = self.blocks.iter().map(|block| block.mlp.num_expert_parameters()).sum();
        let token_rows = self.token_rows.as_ref().map_or(0, |own| own.rows.elem_count());
        linears + experts + token_rows + heads * vocab_size * hidden_size + (2 * num_layers + 1) * hidden_size
    }

    /// Logits of every token of one example: ids (T) -> (T,V).
    pub fn all_logits(&self, ids: &[u32]) -> Result<Tensor> {
        let num_tokens = ids.len();
        let context = Context {
            positions: Arc::new((0..num_tokens as u32).collect::<Vec<_>>().into()),
            segments: Arc::new(vec![Segment::square(0..num_tokens)].into()),
            rope: self.rope_table(num_tokens),
            dropout_key: None,
        };
        let h = self.hidden(self.embed(ids)?, &context)?;
        self.logits(&self.norm(&h)?)
    }

    /// An empty cache for up to `capacity` tokens.
    pub fn new_cache(&self, capacity: usize) -> Result<KvCache> {
        Ok(KvCache { layers: self.new_layers(capacity)?, first_row: 0, num_tokens: 0, capacity })
    }

    /// So many empty caches side by side in the same buffers.
    fn new_caches(&self, capacity: usize, count: usize) -> Result<Vec<KvCache>> {
        let layers = self.new_layers(count * capacity)?;
        let cache = |i| KvCache { layers: layers.clone(), first_row: i * capacity, num_tokens: 0, capacity };
        Ok((0..count).map(cache).collect())
    }

    /// Keys and values of each layer, (rows, G·D).
    fn new_layers(&self, num_rows: usize) -> Result<Arc<Vec<(Tensor, Tensor)>>> {
        let width = self.config.num_kv_heads * self.config.head_dim;
        let Compute { device, dtype } = &self.compute;
        let buffer = || Tensor::zeros((num_rows, width), *dtype, device);
        (0..self.blocks.len()).map(|_| Ok((buffer()?, buffer()?))).collect::<Result<_>>().map(Arc::new)
    }

    /// Feeds `ids` after what the cache holds; logits of the last of them, (V).
    ///
    /// `rope` covers the cache's capacity. Errors: more tokens than the cache takes.
    pub fn decode(&self, ids: &[u32], cache: &mut KvCache, rope: &Arc<RopeTable>) -> Result<Tensor> {
        let (first_row, past, new) = (cache.first_row, cache.num_tokens, ids.len());
        if past + new > cache.capacity {
            return Err(Error::model(format!(
                "{} tokens do not fit a context of {}",
                past + new,
                cache.capacity
            )));
        }
        let context = Context {
            positions: Arc::new((past as u32..(past + new) as u32).collect::<Vec<_>>().into()),
            segments: Arc::new(vec![Segment { queries: 0..new, keys: 0..past + new }].into()),
            rope: rope.clone(),
            dropout_key: None,
        };
        let mut h = self.embed(ids)?;
        for (layer, (keys, values)) in cache.layers.iter().enumerate() {
            let output = self.block_with(layer, &h, &context, |q, k, v| {
                keys.slice_set(&k.contiguous()?, 0, first_row + past)?;
                values.slice_set(&v.contiguous()?, 0, first_row + past)?;
                let [k, v] = [keys, values].map(|part| part.narrow(0, first_row, past + new));
                Ok(self.blocks[layer].attention.forward(&q, &k?, &v?, &context.segments)?)
            })?;
            // Detached, so that no block's activations outlive it where adapters or weights learn.
            h = output.detach();
        }
        cache.num_tokens += new;
        let last = self.norm(&h.narrow(0, new - 1, 1)?)?;
        Ok(self.logits(&last)?.squeeze(0)?)
    }

    /// Every linear of every block.
    pub fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.blocks.iter().flat_map(|block| {
            let Block { q, k, v, o, mlp, .. } = block;
            [q, k, v, o].into_iter().chain(mlp.projections())
        })
    }

    pub fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        self.blocks.iter_mut().flat_map(|block| {
            let Block { q, k, v, o, mlp, .. } = block;
            [q, k, v, o].into_iter().chain(mlp.projections_mut())
        })
    }

    /// The experts of every block that has some.
    pub fn experts(&self) -> impl Iterator<Item = &MixtureOfExperts> {
        self.blocks.iter().filter_map(|block| match &block.mlp {
            Mlp::Experts(experts) => Some(experts),
            Mlp::Dense { .. } => None,
        })
    }

    pub fn experts_mut(&mut self) -> impl Iterator<Item = &mut MixtureOfExperts> {
        self.blocks.iter_mut().filter_map(|block| match &mut block.mlp {
            Mlp::Experts(experts) => Some(experts),
            Mlp::Dense { .. } => None,
        })
    }

    /// Takes the norms that DoRA divides by and lays out experts' updates once and for all: no adapter changes, and none
    /// is added, from here on.
    pub fn fix_adapters(&mut self) -> Result<()> {
        for experts in self.experts_mut() {
            experts.fixed_updates = experts.updates()?.map(|updates| updates.detach());
        }
        for Projection { base, lora, .. } in self.projections_mut() {
            for weights in lora {
                if weights.dora.is_some() {
                    let norms = base.adapted_row_norms(weights)?;
                    weights.dora.iter_mut().for_each(|dora| dora.norms = Some(norms.clone()));
                }
            }
        }
        Ok(())
    }
}
