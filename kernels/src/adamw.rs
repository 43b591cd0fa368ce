use std::{borrow::Cow, sync::Mutex};

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, Var, bail};
use rayon::prelude::*;

use crate::{
    dynamic8::{BLOCK, Dynamic8, DynamicMap},
    gpu,
    seeded::add_to,
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

/// How moments are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MomentType {
    F32,
    /// In 8 bits, but for small tensors.
    Dynamic8,
}

impl MomentType {
    /// Zero moments of a tensor.
    pub(crate) fn zeros(self, length: usize) -> Moments {
        match (self, length) {
            (Self::F32, _) | (Self::Dynamic8, ..MIN_8BIT_ELEMENTS) => {
                Moments::F32 { m: vec![0.0; length], v: vec![0.0; length] }
            }
            (Self::Dynamic8, MIN_8BIT_ELEMENTS..) => {
                Moments::Dynamic8 { m: Dynamic8::zeros(length), v: Dynamic8::zeros(length) }
            }
        }
    }
}

/// AdamW with decoupled weight decay over a fixed list of tensors, and the gradients they have gathered.
///
/// All in f32, where the tensors are.
/// Source: arXiv 1711.05101, in PyTorch's order of operations. With moments in 8 bits: arXiv 2110.02861 and bitsandbytes'
/// `AdamW8bit`, which updates with the moments before they are rounded.
pub struct AdamW {
    params: AdamWParams,
    /// Each with its weight decay.
    vars: Vec<(Var, f64)>,
    held: Held,
    /// Updates made so far.
    pub num_updates: usize,
}

enum Held {
    Host { gradients: Vec<Vec<f32>>, moments: Vec<Moments> },
    Gpu(gpu::adamw::Held),
}

/// One update's numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    pub gradient_scale: f32,
    pub learning_rate: f64,
    pub step_size: f32,
    pub inverse_root_correction2: f32,
    pub beta1: f32,
    pub beta2: f32,
    /// Of the gradient in the new moments.
    pub share1: f32,
    pub share2: f32,
    pub eps: f32,
}

impl AdamW {
    /// Zero moments and gradients for tensors with their weight decays.
    pub fn new(params: AdamWParams, vars: Vec<(Var, f64)>, moments: MomentType) -> Result<Self> {
        if vars.iter().any(|(var, _)| var.device().is_cuda()) {
            return Self::on_gpu(params, vars, moments);
        }
        let lengths = || vars.iter().map(|(var, _)| var.elem_count());
        let held = Held::Host {
            gradients: lengths().map(|length| vec![0.0; length]).collect(),
            moments: lengths().map(|length| moments.zeros(length)).collect(),
        };
        Ok(Self { params, vars, held, num_updates: 0 })
    }

    /// [`Self::new`] with everything done by kernels.
    pub fn on_gpu(params: AdamWParams, vars: Vec<(Var, f64)>, moments: MomentType) -> Result<Self> {
        let held = Held::Gpu(gpu::adamw::Held::new(&vars, moments)?);
        Ok(Self { params, vars, held, num_updates: 0 })
    }

    /// Elements of all tensors.
    pub fn num_elements(&self) -> usize {
        self.vars.iter().map(|(var, _)| var.elem_count()).sum()
    }

    pub fn clear_gradients(&mut self) -> Result<()> {
        match &mut self.held {
            Held::Host { gradients, .. } => {
                for gradient in gradients {
                    gradient.fill(0.0);
                }
                Ok(())
            }
            Held::Gpu(held) => held.clear_gradients(),
        }
    }

    /// Adds to the gradient of tensor `index`. Errors: another number of values.
    pub fn add_gradient(&mut self, index: usize, gradient: &Tensor) -> Result<()> {
        match &mut self.held {
            Held::Host { gradients, .. } => add_to(&mut gradients[index], gradient),
            Held::Gpu(held) => held.add_gradient(index, gradient),
        }
    }

    /// The Euclidean norm over all gradients together.
    pub fn gradient_norm(&self) -> Result<f64> {
        match &self.held {
            Held::Host { gradients, .. } => Ok(global_norm(gradients)),
            Held::Gpu(held) => held.gradient_norm(),
        }
    }

    /// Each tensor's gradient.
    pub fn gradients(&self) -> Result<Vec<Vec<f32>>> {
        match &self.held {
            Held::Host { gradients, .. } => Ok(gradients.clone()),
            Held::Gpu(held) => held.gradients(),
        }
    }

    /// Each tensor's moments.
    pub fn moments(&self) -> Result<Cow<'_, [Moments]>> {
        match &self.held {
            Held::Host { moments, .. } => Ok(Cow::Borrowed(moments)),
            Held::Gpu(held) => Ok(Cow::Owned(held.moments()?)),
        }
    }

    /// Errors: moments that are held otherwise, or of another length, than those there are.
    pub fn set_moments(&mut self, new: Vec<Moments>) -> Result<()> {
        let fits = {
            let old = self.moments()?;
            let alike = |(old, new): (&Moments, &Moments)| match (old, new) {
                (Moments::F32 { m: old, .. }, Moments::F32 { m, v }) => {
                    m.len() == old.len() && v.len() == old.len()
                }
                (Moments::Dynamic8 { m: old, .. }, Moments::Dynamic8 { m, v }) => [m, v]
                    .iter()
                    .all(|new| new.codes.len() == old.codes.len() && new.scales.len() == old.scales.len()),
                _ => false,
            };
            old.len() == new.len() && old.iter().zip(&new).all(alike)
        };
        if !fits {
            bail!("moments that do not fit the {} tensors AdamW is over", self.vars.len());
        }
        match &mut self.held {
            Held::Host { moments, .. } => {
                *moments = new;
                Ok(())
            }
            Held::Gpu(held) => held.set_moments(&new),
        }
    }

    /// One update in place. Gradients are multiplied by `gradient_scale` (clipping) first; each tensor has its decay.
    pub fn step(&mut self, gradient_scale: f64, learning_rate: f64) -> Result<()> {
        self.num_updates += 1;
        let AdamWParams { beta1, beta2, eps } = self.params;
        let correction1 = 1.0 - beta1.powi(self.num_updates as i32);
        let correction2 = 1.0 - beta2.powi(self.num_updates as i32);
        let rates = Rates {
            gradient_scale: gradient_scale as f32,
            learning_rate,
            step_size: (learning_rate / correction1) as f32,
            inverse_root_correction2: (1.0 / correction2.sqrt()) as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            share1: (1.0 - beta1) as f32,
            share2: (1.0 - beta2) as f32,
            eps: eps as f32,
        };
        match &mut self.held {
            Held::Host { gradients, moments } => {
                for (((var, weight_decay), gradient), moments) in self.vars.iter().zip(gradients).zip(moments)
                {
                    let decay = (1.0 - learning_rate * weight_decay) as f32;
                    let update = Update { gradient, moments: Mutex::new(moments), rates, decay };
                    var.inplace_op1(&update)?;
                }
                Ok(())
            }
            Held::Gpu(held) => held.step(&rates),
        }
    }
}

fn global_norm(gradients: &[Vec<f32>]) -> f64 {
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
    rates: Rates,
    decay: f32,
}

impl Update<'_> {
    #[inline(always)]
    fn apply(&self, weights: &mut [f32], gradient: &[f32], m: &mut [f32], v: &mut [f32]) {
        let Rates { step_size, inverse_root_correction2, beta1, beta2, share1, share2, eps, .. } = self.rates;
        for (((w, g), m), v) in weights.iter_mut().zip(gradient).zip(m).zip(v) {
            let g = g * self.rates.gradient_scale;
            *m = beta1 * *m + share1 * g;
            *v = beta2 * *v + share2 * g * g;
            let denominator = v.sqrt() * inverse_root_correction2 + eps;
            *w = *w * self.decay - step_size * *m / denominator;
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
