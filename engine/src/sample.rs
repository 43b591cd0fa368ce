//! The next token from its logits.

use candle_core::Tensor;
use lathe_kernels::Sampling;
use lathe_protocol::SamplingParams;
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;

use crate::{Result, rng};

/// How tokens are drawn, as the kernels take it.
pub(crate) fn sampling(params: &SamplingParams) -> Sampling {
    let SamplingParams { temperature, top_k, top_p, .. } = *params;
    Sampling { temperature: temperature as f32, top_k, top_p: top_p as f32 }
}

/// Draws tokens for one reply.
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// `reply` numbers the reply within its chat, so that regenerating with one seed is repeatable.
    pub fn new(params: SamplingParams, reply: u64) -> Self {
        let rng = rng::stream(params.seed, "sample", reply);
        Self { params, rng }
    }

    /// Draws from logits (V) in f32, where they are; never one of `forbidden`.
    pub fn next_token(&mut self, logits: &Tensor, forbidden: &[u32]) -> Result<u32> {
        let draw = if self.params.temperature > 0.0 { self.rng.random_range(0.0..1.0) } else { 0.0 };
        Ok(sampling(&self.params).sample(&logits.unsqueeze(0)?, forbidden, &[draw])?[0])
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn replies_of_one_seed_are_drawn_alike() {
        let logits = Tensor::new(&[0f32, 1.0, 2.0, 0.5], &Device::Cpu).unwrap();
        let draw = |params: &SamplingParams, reply| -> Vec<u32> {
            let mut sampler = Sampler::new(params.clone(), reply);
            (0..40).map(|_| sampler.next_token(&logits, &[1]).unwrap()).collect()
        };
        let params = SamplingParams { temperature: 1.0, seed: 7, ..SamplingParams::default() };
        assert_eq!(draw(&params, 0), draw(&params, 0));
        assert_ne!(draw(&params, 0), draw(&params, 1));
        assert!(!draw(&params, 0).contains(&1));
        assert_eq!(draw(&SamplingParams::default(), 0), [2; 40]);
    }
}
