use std::sync::Mutex;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Var, bail};
use rayon::prelude::*;

use crate::{
    dynamic8::{BLOCK, Dynamic8, DynamicMap},
    simd,
};

/// Tensors of fewer elements keep their moments in f32 (bitsandbytes' `min_8bit_size`).
const MIN_8BIT_ELEMENTS: usize = 4096;
/// Blocks that a thread takes at a time.
const BLOCKS_AT_A_TIME: usize = 64;

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

/// First and second moments of a tensor's gradient.
#[derive(Debug, Clone, PartialEq)]
pub enum Moments {
    F32 {
        m: Vec<f32>,
        v: Vec<f32>,
    },
    /// m in the signed type, v in the unsigned.
    Dynamic8 {
        m: Dynamic8,
        v: Dynamic8,
    },
}

impl Moments {
    fn f32(length: usize) -> Self {
        Self::F32 { m: vec![0.0; length], v: vec![0.0; length] }
    }

    fn dynamic8(length: usize) -> Self {
        Self::Dynamic8 { m: Dynamic8::zeros(length), v: Dynamic8::zeros(length) }
    }
}

/// AdamW with decoupled weight decay over a fixed list of tensors.
///
/// Source: arXiv 1711.05101, in PyTorch's order of operations. With moments in 8 bits: arXiv 2110.02861 and bitsandbytes'
/// `AdamW8bit`, which updates with the moments before they are rounded.
#[derive(Debug, Clone)]
pub struct AdamW {
    params: AdamWParams,
    /// Of each tensor.
    pub moments: Vec<Moments>,
    /// Updates made so far.
    pub num_updates: usize,
}

impl AdamW {
    /// Zero moments in f32 for tensors of these lengths.
    pub fn new(params: AdamWParams, lengths: impl IntoIterator<Item = usize>) -> Self {
        Self { params, moments: lengths.into_iter().map(Moments::f32).collect(), num_updates: 0 }
    }

    /// Zero moments in 8 bits for tensors of these lengths, but for the small ones.
    pub fn new_8bit(params: AdamWParams, lengths: impl IntoIterator<Item = usize>) -> Self {
        let zeros = |length| match length {
            ..MIN_8BIT_ELEMENTS => Moments::f32(length),
            MIN_8BIT_ELEMENTS.. => Moments::dynamic8(length),
        };
        Self { params, moments: lengths.into_iter().map(zeros).collect(), num_updates: 0 }
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
        for (((var, weight_decay), gradient), moments) in vars.iter().zip(gradients).zip(&mut self.moments) {
            let update = Update {
                gradient,
                moments: Mutex::new(moments),
                gradient_scale: gradient_scale as f32,
                decay: (1.0 - learning_rate * weight_decay) as f32,
                step_size: (learning_rate / correction1) as f32,
                inverse_root_correction2: (1.0 / correction2.sqrt()) as f32,
                beta1: beta1 as f32,
                beta2: beta2 as f32,
                share1: (1.0 - beta1) as f32,
                share2: (1.0 - beta2) as f32,
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
    moments: Mutex<&'a mut Moments>,
    gradient_scale: f32,
    decay: f32,
    step_size: f32,
    inverse_root_correction2: f32,
    beta1: f32,
    beta2: f32,
    /// Of the gradient in the new moments.
    share1: f32,
    share2: f32,
    eps: f32,
}

impl Update<'_> {
    #[inline(always)]
    fn apply(&self, weights: &mut [f32], gradient: &[f32], m: &mut [f32], v: &mut [f32]) {
        for (((w, g), m), v) in weights.iter_mut().zip(gradient).zip(m).zip(v) {
            let g = g * self.gradient_scale;
            *m = self.beta1 * *m + self.share1 * g;
            *v = self.beta2 * *v + self.share2 * g * g;
            let denominator = v.sqrt() * self.inverse_root_correction2 + self.eps;
            *w = *w * self.decay - self.step_size * *m / denominator;
        }
    }

    fn apply_f32(&self, weights: &mut [f32], m: &mut [f32], v: &mut [f32]) {
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
    }

    /// A block is read, updated and written at a time: of the moments nothing else exists in f32.
    fn apply_dynamic8(&self, weights: &mut [f32], m: &mut Dynamic8, v: &mut Dynamic8) {
        let chunk = BLOCKS_AT_A_TIME * BLOCK;
        weights
            .par_chunks_mut(chunk)
            .zip(self.gradient.par_chunks(chunk))
            .zip(m.par_parts_mut(BLOCKS_AT_A_TIME))
            .zip(v.par_parts_mut(BLOCKS_AT_A_TIME))
            .for_each(|(((weights, gradient), m), v)| {
                simd::dispatch(
                    #[inline(always)]
                    || self.apply_blocks(weights, gradient, m, v),
                );
            });
    }

    #[inline(always)]
    fn apply_blocks(
        &self,
        weights: &mut [f32],
        gradient: &[f32],
        (m_codes, m_scales): (&mut [u8], &mut [f32]),
        (v_codes, v_scales): (&mut [u8], &mut [f32]),
    ) {
        let (signed, unsigned) = (DynamicMap::signed(), DynamicMap::unsigned());
        let blocks = weights.chunks_mut(BLOCK).zip(gradient.chunks(BLOCK));
        let m_blocks = m_codes.chunks_mut(BLOCK).zip(m_scales);
        let v_blocks = v_codes.chunks_mut(BLOCK).zip(v_scales);
        for (((weights, gradient), (m_codes, m_scale)), (v_codes, v_scale)) in
            blocks.zip(m_blocks).zip(v_blocks)
        {
            let (mut m, mut v) = ([0.0; BLOCK], [0.0; BLOCK]);
            let (m, v) = (&mut m[..weights.len()], &mut v[..weights.len()]);
            signed.decode(m_codes, *m_scale, m);
            unsigned.decode(v_codes, *v_scale, v);
            self.apply(weights, gradient, m, v);
            *m_scale = signed.encode(m, m_codes);
            *v_scale = unsigned.encode(v, v_codes);
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
        match &mut **moments {
            Moments::F32 { m, v } => self.apply_f32(weights, m, v),
            Moments::Dynamic8 { m, v } => self.apply_dynamic8(weights, m, v),
        }
        Ok(())
    }
}
