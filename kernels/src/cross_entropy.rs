use std::{
    ops::Range,
    sync::{Arc, Mutex, OnceLock},
};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::{
    FrozenLinear,
    cpu::{self, Matrix, Store},
    simd,
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

/// Sum over rows of `−log softmax(h Wᵀ)[target]`, with a frozen output projection.
///
/// Shapes: h (N,C), W (V,C), targets (N) -> scalar. F32; the projection as [`FrozenLinear`] holds it.
/// Gradient: reaches h; it is computed with the loss (if h is in autograd at all), chunk by chunk, so that the logits
/// never exist as a whole.
/// Errors: a target beyond the vocabulary; a projection with a bias.
pub fn linear_cross_entropy(
    h: &Tensor,
    projection: &FrozenLinear,
    targets: &[u32],
) -> Result<(Tensor, CrossEntropyStats)> {
    if projection.bias().is_some() {
        bail!("the output projection has a bias, which the loss would leave out");
    }
    let op = LinearCrossEntropy::new(targets, h.track_op());
    let stats = op.stats.clone();
    let loss = h.contiguous()?.apply_op1(Frozen { op, projection: projection.clone() })?;
    let stats = *stats.lock().map_err(|_| candle_core::Error::Msg("poisoned".into()))?;
    Ok((loss, stats))
}

/// [`linear_cross_entropy`] with an output projection that learns. Gradient: reaches h and W.
pub fn linear_cross_entropy_trainable(
    h: &Tensor,
    weight: &Tensor,
    targets: &[u32],
) -> Result<(Tensor, CrossEntropyStats)> {
    let op = LinearCrossEntropy::new(targets, true);
    let stats = op.stats.clone();
    let loss = h.contiguous()?.apply_op2(&weight.contiguous()?, Trainable { op })?;
    let stats = *stats.lock().map_err(|_| candle_core::Error::Msg("poisoned".into()))?;
    Ok((loss, stats))
}

/// Takes some rows of the output projection.
type ForTile<'a> = dyn FnMut(Range<usize>, Matrix<'_>) + 'a;

struct LinearCrossEntropy {
    targets: Vec<u32>,
    needs_gradient: bool,
    stats: Arc<Mutex<CrossEntropyStats>>,
    gradients: OnceLock<Gradients>,
}

struct Gradients {
    dh: Vec<f32>,
    /// Empty for a frozen projection.
    dweight: Vec<f32>,
}

impl LinearCrossEntropy {
    fn new(targets: &[u32], needs_gradient: bool) -> Self {
        Self { targets: targets.to_vec(), needs_gradient, stats: Arc::default(), gradients: OnceLock::new() }
    }

    /// The loss; `for_tiles` calls what it is given with the weight (V,C) in parts.
    fn run(
        &self,
        h: &[f32],
        (vocab_size, width): (usize, usize),
        for_tiles: impl Fn(&mut ForTile<'_>) -> Result<()>,
        weight_learns: bool,
    ) -> Result<f32> {
        let num_rows = self.targets.len();
        if h.len() != num_rows * width {
            bail!("{} hidden values of width {width} for {num_rows} targets", h.len());
        }
        if let Some(target) = self.targets.iter().find(|target| **target as usize >= vocab_size) {
            bail!("target {target} lies beyond the vocabulary of {vocab_size}");
        }
        let mut dh = vec![0.0; if self.needs_gradient { h.len() } else { 0 }];
        let mut dweight = vec![0.0; if weight_learns { vocab_size * width } else { 0 }];
        let mut logits = vec![0.0; CHUNK_ROWS.min(num_rows) * vocab_size];
        let mut stats = CrossEntropyStats { num_tokens: num_rows, ..Default::default() };
        for first in (0..num_rows).step_by(CHUNK_ROWS) {
            let last = (first + CHUNK_ROWS).min(num_rows);
            let rows = last - first;
            let h_chunk = Matrix::new(&h[first * width..last * width], rows, width);
            let logits = &mut logits[..rows * vocab_size];
            // 1. Logits: (n, C) x (C, V)
            for_tiles(&mut |outputs, weight| {
                let logits = &mut logits[outputs.start..];
                let threads = cpu::all_threads();
                cpu::matmul_strided(logits, vocab_size, Store::Overwrite, 1.0, h_chunk, weight.t(), threads);
            })?;
            // 2. Losses, and in the logits' place their gradient: softmax − onehot
            let losses: Vec<(f64, bool)> = logits
                .par_chunks_exact_mut(vocab_size)
                .zip(&self.targets[first..last])
                .map(|(logits, target)| loss_and_gradient(logits, *target as usize))
                .collect();
            for (loss, correct) in losses {
                stats.loss_sum += loss;
                stats.num_correct += usize::from(correct);
            }
            if !self.needs_gradient {
                continue;
            }
            // 3. dh = dlogits W; dW += dlogitsᵀ h
            let dh = &mut dh[first * width..last * width];
            for_tiles(&mut |outputs, weight| {
                let store = if outputs.start == 0 { Store::Overwrite } else { Store::Add };
                let dlogits = Matrix::strided(&logits[outputs.start..], rows, outputs.len(), vocab_size);
                cpu::matmul(dh, store, 1.0, dlogits, weight);
            })?;
            if weight_learns {
                let dlogits = Matrix::new(logits, rows, vocab_size);
                cpu::matmul(&mut dweight, Store::Add, 1.0, dlogits.t(), h_chunk);
            }
        }
        *self.stats.lock().map_err(|_| candle_core::Error::Msg("poisoned".into()))? = stats;
        self.gradients
            .set(Gradients { dh, dweight })
            .map_err(|_| candle_core::Error::Msg("a cross-entropy op ran twice".into()))?;
        Ok(stats.loss_sum as f32)
    }

    fn scaled(&self, seed: &Tensor) -> Result<(f32, &Gradients)> {
        match self.gradients.get() {
            Some(gradients) => Ok((seed.to_scalar()?, gradients)),
            None => bail!("backward of a cross-entropy op that never ran"),
        }
    }
}

fn loss_and_gradient(logits: &mut [f32], target: usize) -> (f64, bool) {
    simd::dispatch(
        #[inline(always)]
        || {
            let target_logit = logits[target];
            let max = simd::max(logits);
            let sum = simd::exp_in_place(logits, 1.0, max);
            let inverse = 1.0 / sum;
            for value in logits.iter_mut() {
                *value *= inverse;
            }
            logits[target] -= 1.0;
            (f64::from(sum).ln() + f64::from(max) - f64::from(target_logit), target_logit >= max)
        },
    )
}

fn scale(values: &[f32], by: f32, shape: &Shape) -> Result<Tensor> {
    cpu::tensor(values.iter().map(|value| value * by).collect(), shape)
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
        let shape = self.projection.shape();
        let loss = self.op.run(h, shape, |f| self.projection.for_tiles(f), false)?;
        Ok((CpuStorage::F32(vec![loss]), ().into()))
    }

    fn bwd(&self, h: &Tensor, _loss: &Tensor, seed: &Tensor) -> Result<Option<Tensor>> {
        let (by, gradients) = self.op.scaled(seed)?;
        Ok(Some(scale(&gradients.dh, by, h.shape())?))
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
        let in_one = |f: &mut ForTile<'_>| {
            f(0..vocab_size, weight);
            Ok(())
        };
        let loss = self.op.run(cpu::slice(s1, l1)?, (vocab_size, width), in_one, true)?;
        Ok((CpuStorage::F32(vec![loss]), ().into()))
    }

    fn bwd(
        &self,
        h: &Tensor,
        weight: &Tensor,
        _loss: &Tensor,
        seed: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (by, gradients) = self.op.scaled(seed)?;
        Ok((Some(scale(&gradients.dh, by, h.shape())?), Some(scale(&gradients.dweight, by, weight.shape())?)))
    }
}
