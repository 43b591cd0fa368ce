use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::{
    Buffer, Grid, ToArg,
    attention::{self, Tiles},
    is_on_gpu, launch, plain_bf16, sampling,
};
use crate::{Attention, Sampling, dropout::splitmix64};

/// Of no token.
const NO_TOKEN: u32 = u32::MAX;

/// How far each of B sequences is, on the device: what the launches of a decoding step read in place of values of the
/// host, so that they are the same in every step.
pub struct Sequences {
    capacity: usize,
    /// What each is continued with, (B).
    tokens: Tensor,
    /// How many tokens are in each one's part of the cache, (B).
    lengths: Tensor,
    /// How many a step adds, (B): 1, or 0 to those that are not continued.
    strides: Tensor,
    /// Keys of the draws, lower half first, (B,2).
    keys: Tensor,
    /// Uniform from 0 to 1, (B) in f32.
    draws: Tensor,
    /// What is not drawn, (B,F), filled up with [`NO_TOKEN`].
    forbidden: Tensor,
}

/// How one kind of attention of a step is divided among blocks.
pub struct Plan(Tiles);

impl Sequences {
    /// `batch` sequences that are not continued, each with `capacity` rows in the cache and up to `max_forbidden` tokens
    /// that it may not draw.
    pub fn new(device: &Device, batch: usize, capacity: usize, max_forbidden: usize) -> Result<Self> {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::U32, device);
        Ok(Self {
            capacity,
            tokens: zeros(&[batch])?,
            lengths: zeros(&[batch])?,
            strides: zeros(&[batch])?,
            keys: zeros(&[batch, 2])?,
            draws: Tensor::zeros(batch, DType::F32, device)?,
            forbidden: Tensor::full(NO_TOKEN, (batch, max_forbidden.max(1)), device)?,
        })
    }

    /// The tokens that a step feeds, (B), and, after it, those that it drew.
    pub fn tokens(&self) -> &Tensor {
        &self.tokens
    }

    /// The positions of these tokens, (B).
    pub fn lengths(&self) -> &Tensor {
        &self.lengths
    }

    /// The draw of a sequence with this key for what follows its first `length` tokens.
    pub fn draw(key: u64, length: usize) -> f32 {
        (splitmix64(key ^ length as u64) >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Continues a sequence with `length` tokens in its part of the cache; draws what follows them from `logits` (V).
    pub fn start(
        &self,
        sequence: usize,
        length: usize,
        key: u64,
        sampling: Sampling,
        logits: &Tensor,
    ) -> Result<()> {
        let device = self.tokens.device();
        let set =
            |values: &Tensor, value: u32| values.slice_set(&Tensor::new(&[value], device)?, 0, sequence);
        set(&self.lengths, length as u32)?;
        set(&self.strides, 1)?;
        let halves = Tensor::new(&[[key as u32, (key >> 32) as u32]], device)?;
        self.keys.slice_set(&halves, 0, sequence)?;
        self.draws.slice_set(&Tensor::new(&[Self::draw(key, length)], device)?, 0, sequence)?;
        // The kernel writes −∞ into logits.
        self.sample_rows(sampling, &logits.unsqueeze(0)?.copy()?, sequence..sequence + 1)
    }

    /// Continues a sequence no longer.
    pub fn stop(&self, sequence: usize) -> Result<()> {
        let zero = Tensor::zeros(1, DType::U32, self.tokens.device())?;
        self.strides.slice_set(&zero, 0, sequence)?;
        self.lengths.slice_set(&zero, 0, sequence)
    }

    /// Continues a sequence with this token in place of what was drawn.
    pub fn put(&self, sequence: usize, token: u32) -> Result<()> {
        self.tokens.slice_set(&Tensor::new(&[token], self.tokens.device())?, 0, sequence)
    }

    /// Lets a sequence draw none of these from here on.
    ///
    /// Errors: more than there is room for.
    pub fn forbid(&self, sequence: usize, tokens: &[u32]) -> Result<()> {
        let room = self.forbidden.dim(1)?;
        if tokens.len() > room {
            bail!("{} tokens to forbid, there is room for {room}", tokens.len());
        }
        let mut row = tokens.to_vec();
        row.resize(room, NO_TOKEN);
        let row = Tensor::from_vec(row, (1, room), self.tokens.device())?;
        self.forbidden.slice_set(&row, 0, sequence)
    }

    /// The rows of a table (V,C) in bf16 or f32 of the tokens, (B,C) in bf16. Of the tokens `own` names it is the row of
    /// theirs: ids (K) and rows (K,C) in f32.
    ///
    /// Tokens beyond the table that have no row of their own must not be there.
    pub fn embed(&self, table: &Tensor, own: Option<(&Tensor, &Tensor)>) -> Result<Tensor> {
        let (_, width) = table.dims2()?;
        let name = match table.dtype() {
            DType::BF16 => "embed_bf16",
            DType::F32 => "embed_f32",
            other => bail!("a table of tokens in {other:?}"),
        };
        let (own_ids, own_rows) = own.unzip();
        let num_own = match (own_ids, own_rows) {
            (Some(ids), Some(rows)) if rows.dims() == [ids.dims1()?, width] && rows.dtype() == DType::F32 => {
                ids.dims1()?
            }
            (None, None) => 0,
            _ => bail!("rows of tokens that do not fit a table of width {width}"),
        };
        let batch = self.tokens.dims1()?;
        let y = Buffer::new(table.device(), (batch, width), DType::BF16)?;
        let args: [&dyn ToArg; 7] = [table, &own_rows, &own_ids, &num_own, &self.tokens, &y, &width];
        launch(table.device(), name, Grid::line(batch, 256), &args)?;
        Ok(y.into_tensor())
    }

    /// A step's plan for layers with such heads and such a window.
    pub fn plan(&self, attention: &Attention) -> Result<Plan> {
        Ok(Plan(attention::sequence_tiles(attention, &self.lengths, self.capacity)?))
    }

    /// Attention of a query a sequence (B, H·D) to the keys of its part of the cache, once the new ones, k and v
    /// (B, G·D), are there, too. Keys and values are (B · capacity, G·D) in bf16.
    ///
    /// Outside autograd. Errors: shapes that do not fit; what no kernel takes.
    pub fn attend(
        &self,
        attention: &Attention,
        plan: &Plan,
        qkv: [&Tensor; 3],
        cache: [&Tensor; 2],
    ) -> Result<Tensor> {
        let batch = self.tokens.dims1()?;
        let width = attention.num_kv_heads * attention.head_dim;
        let [q, k, v] = [plain_bf16(qkv[0])?, plain_bf16(qkv[1])?, plain_bf16(qkv[2])?];
        let [keys, values] = cache;
        let is_cache = |part: &Tensor| part.dims() == [batch * self.capacity, width] && is_on_gpu(part);
        let fits = q.dims() == [batch, attention.num_heads * attention.head_dim]
            && [&k, &v].iter().all(|new| new.dims() == [batch, width])
            && cache.into_iter().all(is_cache);
        if !fits {
            bail!(
                "decoding of q {:?}, k {:?}, v {:?} with a cache {:?} of {batch} sequences",
                q.dims(),
                k.dims(),
                v.dims(),
                keys.dims()
            );
        }
        let Self { lengths, strides, capacity, .. } = self;
        let args: [&dyn ToArg; 8] = [&k, &v, keys, values, lengths, strides, capacity, &width];
        launch(q.device(), "cache_append", Grid::line(batch, 128), &args)?;
        attention::decode_sequences(attention, &plan.0, [&q, keys, values])
    }

    /// Ends a step: draws the next tokens from `logits` (B,V) in f32, of which those of what is forbidden become −∞.
    pub fn advance(&self, sampling: Sampling, logits: &Tensor) -> Result<()> {
        let Self { lengths, strides, keys, draws, tokens, .. } = self;
        let batch = tokens.dims1()?;
        let args: [&dyn ToArg; 5] = [lengths, strides, keys, draws, &batch];
        launch(tokens.device(), "cache_advance", Grid::line(batch.div_ceil(128), 128), &args)?;
        self.sample_rows(sampling, logits, 0..batch)
    }

    fn sample_rows(&self, sampling: Sampling, logits: &Tensor, rows: Range<usize>) -> Result<()> {
        let of_rows = |values: &Tensor| values.narrow(0, rows.start, rows.len());
        let (forbidden, draws) = (of_rows(&self.forbidden)?, of_rows(&self.draws)?);
        sampling::sample_into(sampling, logits, Some(&forbidden), &draws, &of_rows(&self.tokens)?)
    }
}
