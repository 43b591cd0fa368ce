use std::{
    ops::Range,
    sync::{Arc, Mutex},
};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::{
    FrozenLinear,
    cpu::{self, Matrix, Store},
    gpu, simd,
};

/// Rows whose logits exist at a time.
const CHUNK_ROWS: usize = 128;

/// What the loss was taken over.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CrossEntropyStats {
    pub loss_sum: f64,
    /// Rows whose likeliest token is the target.
    pub num_correct: usize,
    pub num_tokens: usize,
}

impl CrossEntropyStats {
    pub fn add(&mut self, tokens: &[TokenLoss]) {
        for token in tokens {
            self.loss_sum += token.loss;
            self.num_correct += usize::from(token.is_likeliest);
        }
        self.num_tokens += tokens.len();
    }
}

/// One row's part of a loss, before its weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLoss {
    /// `−log p` of the target.
    pub loss: f64,
    pub is_likeliest: bool,
}

/// Each row's part of a loss, where it was computed.
pub struct TokenLosses(Computed);

enum Computed {
    Host(Vec<TokenLoss>),
    Gpu(gpu::cross_entropy::Losses),
}

impl TokenLosses {
    /// Waits for a GPU to come so far.
    pub fn read(self) -> Result<Vec<TokenLoss>> {
        match self.0 {
            Computed::Host(tokens) => Ok(tokens),
            Computed::Gpu(losses) => {
                let rows = losses.to_vec2::<f32>()?;
                let token =
                    |row: &Vec<f32>| TokenLoss { loss: f64::from(row[0]), is_likeliest: row[1] != 0.0 };
                Ok(rows.iter().map(token).collect())
            }
        }
    }
}

/// What each row should predict.
#[derive(Debug, Clone, Copy)]
pub struct Targets<'a> {
    /// (N)
    pub ids: &'a [u32],
    /// How much each row's loss counts, (N); all one if `None`.
    pub weights: Option<&'a [f32]>,
}

impl<'a> Targets<'a> {
    pub fn even(ids: &'a [u32]) -> Self {
        Self { ids, weights: None }
    }
}

/// Weighted sum over rows of `−log softmax(h Wᵀ)[target]`, with a frozen output projection; and each row's own.
///
/// Shapes: h (N,C), W (V,C), targets (N) -> scalar. F32; the projection as [`FrozenLinear`] holds it.
/// Gradient: reaches h; it is computed with the loss (if h is in autograd at all), chunk by chunk, so that the logits
/// never exist as a whole.
/// Errors: a target beyond the vocabulary; weights that are not one a row; a projection with a bias.
pub fn linear_cross_entropy(
    h: &Tensor,
    projection: &FrozenLinear,
    targets: Targets<'_>,
) -> Result<(Tensor, TokenLosses)> {
    refuse_bias(projection)?;
    if gpu::is_on_gpu(h) {
        return gpu::cross_entropy::frozen(h, projection, targets).map(of_gpu);
    }
    let op = LinearCrossEntropy::new(targets, h.track_op());
    let tokens = op.tokens.clone();
    let loss = h.contiguous()?.apply_op1(Frozen { op, projection: projection.clone() })?;
    Ok((loss, take(&tokens)?))
}

/// [`linear_cross_entropy`] with an output projection that learns. Gradient: reaches h and W.
pub fn linear_cross_entropy_trainable(
    h: &Tensor,
    weight: &Tensor,
    targets: Targets<'_>,
) -> Result<(Tensor, TokenLosses)> {
    if gpu::is_on_gpu(h) {
        return gpu::cross_entropy::trainable(h, weight, targets).map(of_gpu);
    }
    let op = LinearCrossEntropy::new(targets, true);
    let tokens = op.tokens.clone();
    let loss = h.contiguous()?.apply_op2(&weight.contiguous()?, Trainable { op })?;
    Ok((loss, take(&tokens)?))
}

/// [`linear_cross_entropy`] with a frozen output projection of which some rows are replaced by others that learn, or
/// follow its end.
///
/// Shapes: h (N,C), W (V,C), rows (K,C), which are rows `ids` (K) of the projection. Gradient: reaches h and rows.
/// Errors: an id that leaves rows without weights between it and W.
pub fn linear_cross_entropy_with_rows(
    h: &Tensor,
    projection: &FrozenLinear,
    (ids, rows): (&[u32], &Tensor),
    targets: Targets<'_>,
) -> Result<(Tensor, TokenLosses)> {
    refuse_bias(projection)?;
    if gpu::is_on_gpu(h) {
        return gpu::cross_entropy::with_rows(h, projection, (ids, rows), targets).map(of_gpu);
    }
    let op = LinearCrossEntropy::new(targets, h.track_op());
    let tokens = op.tokens.clone();
    let op = WithRows { op, projection: projection.clone(), ids: ids.to_vec() };
    let loss = h.contiguous()?.apply_op2(&rows.contiguous()?, op)?;
    Ok((loss, take(&tokens)?))
}

fn take(tokens: &Mutex<Vec<TokenLoss>>) -> Result<TokenLosses> {
    let tokens = std::mem::take(&mut *tokens.lock().map_err(|_| candle_core::Error::Msg("poisoned".into()))?);
    Ok(TokenLosses(Computed::Host(tokens)))
}

fn of_gpu((loss, losses): (Tensor, gpu::cross_entropy::Losses)) -> (Tensor, TokenLosses) {
    (loss, TokenLosses(Computed::Gpu(losses)))
}

fn refuse_bias(projection: &FrozenLinear) -> Result<()> {
    if projection.bias().is_some() {
        bail!("the output projection has a bias, which the loss would leave out");
    }
    Ok(())
}

/// The output projection, (V,C), and what of it learns.
#[derive(Clone, Copy)]
enum Projection<'a> {
    Frozen(&'a FrozenLinear),
    Trainable(Matrix<'a>),
    /// Frozen but for `rows` (K,C), which stand in for the rows `ids` or follow the last.
    WithRows {
        frozen: &'a FrozenLinear,
        ids: &'a [u32],
        rows: &'a [f32],
    },
}

impl Projection<'_> {
    /// (V,C), without rows after the end.
    fn shape(&self) -> (usize, usize) {
        match self {
            Self::Frozen(frozen) | Self::WithRows { frozen, .. } => frozen.shape(),
            Self::Trainable(weight) => weight.shape(),
        }
    }

    /// Calls `f(outputs, rows)` with the weight in parts: the rows `outputs` of it.
    fn for_tiles(&self, mut f: impl FnMut(Range<usize>, Matrix<'_>)) -> Result<()> {
        match self {
            Self::Frozen(frozen) | Self::WithRows { frozen, .. } => frozen.for_tiles(f),
            Self::Trainable(weight) => {
                f(0..self.shape().0, *weight);
                Ok(())
            }
        }
    }

    fn num_learned(&self) -> usize {
        match self {
            Self::Frozen(_) => 0,
            Self::Trainable(weight) => weight.shape().0 * weight.shape().1,
            Self::WithRows { rows, .. } => rows.len(),
        }
    }

    /// Rows, those after the end of the weight included.
    fn vocab_size(&self) -> Result<usize> {
        let (own, width) = self.shape();
        let Self::WithRows { ids, rows, .. } = self else { return Ok(own) };
        let vocab_size = ids.iter().map(|id| *id as usize + 1).fold(own, usize::max);
        if rows.len() != ids.len() * width || (own..vocab_size).any(|id| !ids.contains(&(id as u32))) {
            bail!("{} values of width {width} for rows {ids:?} beside {own}", rows.len());
        }
        Ok(vocab_size)
    }
}

struct LinearCrossEntropy {
    targets: Vec<u32>,
    weights: Option<Vec<f32>>,
    needs_gradient: bool,
    tokens: Arc<Mutex<Vec<TokenLoss>>>,
    /// From the forward until the backward takes them.
    gradients: Mutex<Option<Gradients>>,
}

struct Gradients {
    dh: Vec<f32>,
    /// Of what learns of the projection; empty for a frozen one.
    dweight: Vec<f32>,
}

impl LinearCrossEntropy {
    fn new(targets: Targets<'_>, needs_gradient: bool) -> Self {
        Self {
            targets: targets.ids.to_vec(),
            weights: targets.weights.map(<[f32]>::to_vec),
            needs_gradient,
            tokens: Arc::default(),
            gradients: Mutex::default(),
        }
    }

    fn weight(&self, row: usize) -> f32 {
        self.weights.as_ref().map_or(1.0, |weights| weights[row])
    }

    fn run(&self, h: &[f32], projection: Projection<'_>) -> Result<f32> {
        let num_rows = self.targets.len();
        let (vocab_size, (own_size, width)) = (projection.vocab_size()?, projection.shape());
        if h.len() != num_rows * width {
            bail!("{} hidden values of width {width} for {num_rows} targets", h.len());
        }
        if self.weights.as_ref().is_some_and(|weights| weights.len() != num_rows) {
            bail!("weights for another number of rows than {num_rows}");
        }
        if let Some(target) = self.targets.iter().find(|target| **target as usize >= vocab_size) {
            bail!("target {target} lies beyond the vocabulary of {vocab_size}");
        }
        let mut dh = vec![0.0; if self.needs_gradient { h.len() } else { 0 }];
        let mut dweight = vec![0.0; if self.needs_gradient { projection.num_learned() } else { 0 }];
        let mut logits = vec![0.0; CHUNK_ROWS.min(num_rows) * vocab_size];
        let mut tokens = Vec::with_capacity(num_rows);
        for first in (0..num_rows).step_by(CHUNK_ROWS) {
            let last = (first + CHUNK_ROWS).min(num_rows);
            let rows_of_chunk = last - first;
            let h_chunk = Matrix::new(&h[first * width..last * width], rows_of_chunk, width);
            let logits = &mut logits[..rows_of_chunk * vocab_size];
            // 1. Logits: (n, C) x (C, V), and (n, C) x (C, K) in the columns of the rows that learn
            projection.for_tiles(|outputs, weight| {
                let logits = &mut logits[outputs.start..];
                let threads = cpu::all_threads();
                cpu::matmul_strided(logits, vocab_size, Store::Overwrite, 1.0, h_chunk, weight.t(), threads);
            })?;
            if let Projection::WithRows { ids, rows, .. } = projection {
                let mut columns = vec![0.0; rows_of_chunk * ids.len()];
                let rows = Matrix::new(rows, ids.len(), width);
                cpu::matmul(&mut columns, Store::Overwrite, 1.0, h_chunk, rows.t());
                put_columns(logits, vocab_size, ids, &columns);
            }
            // 2. Losses, and in the logits' place their gradient: weight · (softmax − onehot)
            let losses = logits
                .par_chunks_exact_mut(vocab_size)
                .zip(first..last)
                .map(|(logits, row)| loss_and_gradient(logits, self.targets[row] as usize, self.weight(row)));
            tokens.par_extend(losses);
            if !self.needs_gradient {
                continue;
            }
            // 3. dh = dlogits W; dW += dlogitsᵀ h
            let dh = &mut dh[first * width..last * width];
            let columns = match projection {
                Projection::WithRows { ids, .. } => take_columns(logits, vocab_size, ids),
                _ => Vec::new(),
            };
            projection.for_tiles(|outputs, weight| {
                let store = if outputs.start == 0 { Store::Overwrite } else { Store::Add };
                let dlogits =
                    Matrix::strided(&logits[outputs.start..], rows_of_chunk, outputs.len(), vocab_size);
                cpu::matmul(dh, store, 1.0, dlogits, weight);
            })?;
            match projection {
                Projection::Frozen(_) => {}
                Projection::Trainable(_) => {
                    let dlogits = Matrix::strided(logits, rows_of_chunk, own_size, vocab_size);
                    cpu::matmul(&mut dweight, Store::Add, 1.0, dlogits.t(), h_chunk);
                }
                Projection::WithRows { ids, rows, .. } => {
                    let columns = Matrix::new(&columns, rows_of_chunk, ids.len());
                    cpu::matmul(dh, Store::Add, 1.0, columns, Matrix::new(rows, ids.len(), width));
                    cpu::matmul(&mut dweight, Store::Add, 1.0, columns.t(), h_chunk);
                }
            }
        }
        let loss: f64 =
            tokens.iter().enumerate().map(|(row, token)| f64::from(self.weight(row)) * token.loss).sum();
        *self.tokens.lock().map_err(|_| candle_core::Error::Msg("poisoned".into()))? = tokens;
        *self.gradients.lock().map_err(|_| candle_core::Error::Msg("poisoned".into()))? =
            Some(Gradients { dh, dweight });
        Ok(loss as f32)
    }

    /// The gradients times `seed`: of h, and of what learns of the projection. In place, for they are large.
    fn scaled(&self, seed: &Tensor) -> Result<[Vec<f32>; 2]> {
        let taken = self.gradients.lock().map_err(|_| candle_core::Error::Msg("poisoned".into()))?.take();
        let Some(Gradients { dh, dweight }) = taken else {
            bail!("backward of a cross-entropy op that did not run before it");
        };
        let by: f32 = seed.to_scalar()?;
        Ok([dh, dweight].map(|mut values| {
            for value in &mut values {
                *value *= by;
            }
            values
        }))
    }
}

fn loss_and_gradient(logits: &mut [f32], target: usize, weight: f32) -> TokenLoss {
    simd::dispatch(
        #[inline(always)]
        || {
            let target_logit = logits[target];
            let max = simd::max(logits);
            let sum = simd::exp_in_place(logits, 1.0, max);
            let scale = weight / sum;
            for value in logits.iter_mut() {
                *value *= scale;
            }
            logits[target] -= weight;
            TokenLoss {
                loss: f64::from(sum).ln() + f64::from(max) - f64::from(target_logit),
                is_likeliest: target_logit >= max,
            }
        },
    )
}

/// Puts (n, K) into the columns `ids` of `logits`, whose rows have `width` values.
fn put_columns(logits: &mut [f32], width: usize, ids: &[u32], columns: &[f32]) {
    for (row, values) in logits.chunks_exact_mut(width).zip(columns.chunks_exact(ids.len())) {
        for (id, value) in ids.iter().zip(values) {
            row[*id as usize] = *value;
        }
    }
}

/// The columns `ids` of `logits` as (n, K); zeros stay in their place.
fn take_columns(logits: &mut [f32], width: usize, ids: &[u32]) -> Vec<f32> {
    let rows = logits.chunks_exact_mut(width);
    rows.flat_map(|row| ids.iter().map(|id| std::mem::take(&mut row[*id as usize])).collect::<Vec<_>>())
        .collect()
}

struct Frozen {
    op: LinearCrossEntropy,
    projection: FrozenLinear,
}

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "linear-cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let h = cpu::slice(storage, layout)?;
        let loss = self.op.run(h, Projection::Frozen(&self.projection))?;
        Ok((CpuStorage::F32(vec![loss]), ().into()))
    }

    fn bwd(&self, h: &Tensor, _loss: &Tensor, seed: &Tensor) -> Result<Option<Tensor>> {
        let [dh, _] = self.op.scaled(seed)?;
        Ok(Some(cpu::tensor(dh, h.shape())?))
    }
}

struct Trainable {
    op: LinearCrossEntropy,
}

impl CustomOp2 for Trainable {
    fn name(&self) -> &'static str {
        "linear-cross-entropy-trainable"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (vocab_size, width) = l2.shape().dims2()?;
        let weight = Matrix::new(cpu::slice(s2, l2)?, vocab_size, width);
        let loss = self.op.run(cpu::slice(s1, l1)?, Projection::Trainable(weight))?;
        Ok((CpuStorage::F32(vec![loss]), ().into()))
    }

    fn bwd(
        &self,
        h: &Tensor,
        weight: &Tensor,
        _loss: &Tensor,
        seed: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dh, dweight] = self.op.scaled(seed)?;
        Ok((Some(cpu::tensor(dh, h.shape())?), Some(cpu::tensor(dweight, weight.shape())?)))
    }
}

struct WithRows {
    op: LinearCrossEntropy,
    projection: FrozenLinear,
    ids: Vec<u32>,
}

impl CustomOp2 for WithRows {
    fn name(&self) -> &'static str {
        "linear-cross-entropy-with-rows"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (h, rows) = (cpu::slice(s1, l1)?, cpu::slice(s2, l2)?);
        let with_rows = Projection::WithRows { frozen: &self.projection, ids: &self.ids, rows };
        let loss = self.op.run(h, with_rows)?;
        Ok((CpuStorage::F32(vec![loss]), ().into()))
    }

    fn bwd(
        &self,
        h: &Tensor,
        rows: &Tensor,
        _loss: &Tensor,
        seed: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dh, dweight] = self.op.scaled(seed)?;
        Ok((Some(cpu::tensor(dh, h.shape())?), Some(cpu::tensor(dweight, rows.shape())?)))
    }
}
