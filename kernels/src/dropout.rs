use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::{cpu, gpu};

/// Dropout whose mask is a function of a key and the element's index, so that it needs no state: the backward, a
/// recomputation and a resumed run draw the same mask.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability of dropping an element, 0..1.
    pub probability: f32,
    pub key: u64,
}

impl Dropout {
    /// Gradient: reaches the elements that are kept, scaled as they are.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        if gpu::is_on_gpu(x) {
            return gpu::dropout::dropout(self, x);
        }
        x.contiguous()?.apply_op1(self)
    }

    /// An element is dropped whose 32 bits lie below.
    pub(crate) fn threshold(&self) -> u32 {
        (f64::from(self.probability) * 2f64.powi(32)) as u32
    }

    /// What the others are multiplied with.
    pub(crate) fn keep_scale(&self) -> f32 {
        1.0 / (1.0 - self.probability)
    }

    /// Zeroes dropped elements and scales the others by `1 / (1 − p)`.
    pub(crate) fn apply(&self, values: &mut [f32]) {
        let (threshold, keep_scale) = (self.threshold(), self.keep_scale());
        for (index, value) in values.iter_mut().enumerate() {
            let bits = (splitmix64(self.key ^ index as u64) >> 32) as u32;
            *value = if bits < threshold { 0.0 } else { *value * keep_scale };
        }
    }
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut values = cpu::slice(storage, layout)?.to_vec();
        self.apply(&mut values);
        Ok((CpuStorage::F32(values), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = cpu::with_slice(dy, |dy| Ok(dy.to_vec()))?;
        self.apply(&mut dx);
        Ok(Some(cpu::tensor(dx, x.shape())?))
    }
}

/// Source: Steele et al., "Fast splittable pseudorandom number generators" (the SplitMix64 finaliser).
pub(crate) fn splitmix64(seed: u64) -> u64 {
    let z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_drops_the_share_it_should_and_keeps_the_mean() {
        let dropout = Dropout { probability: 0.25, key: 7 };
        let mut values = vec![1.0; 100_000];
        dropout.apply(&mut values);
        let dropped = values.iter().filter(|value| **value == 0.0).count();
        assert!((24_000..26_000).contains(&dropped), "{dropped}");
        let mean: f32 = values.iter().sum::<f32>() / values.len() as f32;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        let mut again = vec![1.0; 100_000];
        dropout.apply(&mut again);
        assert_eq!(values, again);
    }
}
