use std::sync::Mutex;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Var, bail};
use rayon::prelude::*;

use crate::simd;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWParams {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
}

impl Default for AdamWParams {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
}

/// AdamW with decoupled weight decay over a fixed list of tensors, its moments in f32.
///
/// Source: arXiv 1711.05101, in PyTorch's order of operations.
#[derive(Debug, Clone)]
pub struct AdamW {
    params: AdamWParams,
    /// First and second moments of each tensor.
    pub moments: Vec<(Vec<f32>, Vec<f32>)>,
    /// Updates made so far.
    pub num_updates: usize,
}

impl AdamW {
    /// Zero moments for tensors of these lengths.
    pub fn new(params: AdamWParams, lengths: impl IntoIterator<Item = usize>) -> Self {
        let moments = lengths.into_iter().map(|length| (vec![0.0; length], vec![0.0; length])).collect();
        Self { params, moments, num_updates: 0 }
    }

    /// One update in place. `gradients` are multiplied by `gradient_scale` (clipping) first; each tensor has its decay.
    pub fn step(
        &mut self,
        vars: &[(Var, f64)],
        gradients: &[Vec<f32>],
        gradient_scale: f64,
        learning_rate: f64,
    ) -> Result<()> {
        if vars.len() != self.moments.len() || gradients.len() != self.moments.len() {
            bail!(
                "AdamW over {} tensors got {} and {} gradients",
                self.moments.len(),
                vars.len(),
                gradients.len()
            );
        }
        self.num_updates += 1;
        let AdamWParams { beta1, beta2, eps } = self.params;
        let correction1 = 1.0 - beta1.powi(self.num_updates as i32);
        let correction2 = 1.0 - beta2.powi(self.num_updates as i32);
        for (((var, weight_decay), gradient), (m, v)) in vars.iter().zip(gradients).zip(&mut self.moments) {
            let update = Update {
                gradient,
                moments: Mutex::new((m, v)),
                gradient_scale: gradient_scale as f32,
                decay: (1.0 - learning_rate * weight_decay) as f32,
                step_size: (learning_rate / correction1) as f32,
                inverse_root_correction2: (1.0 / correction2.sqrt()) as f32,
                beta1: beta1 as f32,
                beta2: beta2 as f32,
                eps: eps as f32,
            };
            var.inplace_op1(&update)?;
        }
        Ok(())
    }
}

/// The Euclidean norm over all gradients together.
pub fn global_norm(gradients: &[Vec<f32>]) -> f64 {
    let squares: Vec<f64> = gradients
        .par_iter()
        .map(|gradient| {
            // Chunks in f32, their sums in f64: no loss however many elements there are.
            gradient
                .chunks(1024)
                .map(|chunk| {
                    f64::from(simd::dispatch(
                        #[inline(always)]
                        || simd::sum_by(chunk, |x| x * x),
                    ))
                })
                .sum::<f64>()
        })
        .collect();
    squares.iter().sum::<f64>().sqrt()
}

struct Update<'a> {
    gradient: &'a [f32],
    moments: Mutex<(&'a mut Vec<f32>, &'a mut Vec<f32>)>,
    gradient_scale: f32,
    decay: f32,
    step_size: f32,
    inverse_root_correction2: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
}

impl Update<'_> {
    #[inline(always)]
    fn apply(&self, weights: &mut [f32], gradient: &[f32], m: &mut [f32], v: &mut [f32]) {
        for (((w, g), m), v) in weights.iter_mut().zip(gradient).zip(m).zip(v) {
            let g = g * self.gradient_scale;
            *m = self.beta1 * *m + (1.0 - self.beta1) * g;
            *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
            let denominator = v.sqrt() * self.inverse_root_correction2 + self.eps;
            *w = *w * self.decay - self.step_size * *m / denominator;
        }
    }
}

impl InplaceOp1 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("AdamW updates contiguous f32 tensors only");
        };
        let weights = &mut values[start..end];
        if weights.len() != self.gradient.len() {
            bail!("a gradient of {} elements for a tensor of {}", self.gradient.len(), weights.len());
        }
        let mut moments = self.moments.lock().map_err(|_| candle_core::Error::Msg("poisoned".into()))?;
        let (m, v) = &mut *moments;
        let chunk = weights.len().div_ceil(rayon::current_num_threads()).max(1 << 14);
        weights
            .par_chunks_mut(chunk)
            .zip(self.gradient.par_chunks(chunk))
            .zip(m.par_chunks_mut(chunk))
            .zip(v.par_chunks_mut(chunk))
            .for_each(|(((weights, gradient), m), v)| {
                simd::dispatch(
                    #[inline(always)]
                    || self.apply(weights, gradient, m, v),
                );
            });
        Ok(())
    }
}
