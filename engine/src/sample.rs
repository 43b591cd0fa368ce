//! The next token from its logits.

use lathe_protocol::SamplingParams;
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;

use crate::rng;

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

    /// Greedy at temperature 0; else softmax at the temperature, kept to `top_k` tokens and the smallest set that
    /// holds `top_p` of the probability.
    pub fn next_token(&mut self, logits: &[f32]) -> u32 {
        if self.params.temperature <= 0.0 {
            return argmax(logits);
        }
        let mut candidates: Vec<(u32, f32)> =
            logits.iter().enumerate().map(|(id, logit)| (id as u32, *logit)).collect();
        let descending = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let top_k = self.params.top_k;
        if top_k > 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, descending);
            candidates.truncate(top_k);
        }
        candidates.sort_unstable_by(descending);
        let max = candidates.first().map_or(0.0, |candidate| candidate.1);
        let weights: Vec<f64> = candidates
            .iter()
            .map(|(_, logit)| (f64::from(logit - max) / self.params.temperature).exp())
            .collect();
        let total: f64 = weights.iter().sum();
        let mut kept = 0;
        let mut kept_weight = 0.0;
        for weight in &weights {
            kept += 1;
            kept_weight += weight;
            if kept_weight >= self.params.top_p * total {
                break;
            }
        }
        let mut draw = self.rng.random_range(0.0..1.0) * kept_weight;
        for ((id, _), weight) in candidates.iter().zip(&weights).take(kept) {
            draw -= weight;
            if draw < 0.0 {
                return *id;
            }
        }
        candidates[kept.saturating_sub(1)].0
    }
}

/// Makes sure that none of these tokens is drawn.
pub fn forbid(logits: &mut [f32], ids: &[u32]) {
    for id in ids {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(params: SamplingParams, logits: &[f32]) -> Vec<usize> {
        let mut sampler = Sampler::new(params, 0);
        let mut counts = vec![0; logits.len()];
        for _ in 0..10_000 {
            counts[sampler.next_token(logits) as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_likeliest_token() {
        assert_eq!(draws(SamplingParams::default(), &[0.0, 2.0, 1.0]), [0, 10_000, 0]);
    }

    #[test]
    fn what_is_forbidden_is_not_drawn() {
        let mut logits = [0.0, 2.0, 1.0];
        forbid(&mut logits, &[1, 7]);
        assert_eq!(draws(SamplingParams::default(), &logits), [0, 0, 10_000]);
        let drawn = draws(SamplingParams { temperature: 1.0, ..Default::default() }, &logits);
        assert!(drawn[1] == 0 && drawn[0] > 0, "{drawn:?}");
    }

    #[test]
    fn temperature_one_follows_the_softmax() {
        let params = SamplingParams { temperature: 1.0, ..Default::default() };
        let counts = draws(params, &[0.0, 3f32.ln(), f32::NEG_INFINITY]);
        assert!((2_300..2_700).contains(&counts[0]) && counts[2] == 0, "{counts:?}");
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [0.0, 1.0, 2.0, 3.0];
        let top_k = draws(SamplingParams { temperature: 1.0, top_k: 2, ..Default::default() }, &logits);
        assert!(top_k[0] == 0 && top_k[1] == 0 && top_k[2] > 0, "{top_k:?}");
        let top_p = draws(SamplingParams { temperature: 1.0, top_p: 0.6, ..Default::default() }, &logits);
        assert_eq!(top_p, [0, 0, 0, 10_000]);
    }
}
