use candle_core::{Device, Result, Tensor, bail};

use crate::gpu;

/// How the next token is drawn from its logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest.
    pub temperature: f32,
    /// So many of the likeliest tokens are kept; 0 is all.
    pub top_k: usize,
    /// Of these the smallest set of the likeliest that holds this much of the probability.
    pub top_p: f32,
}

/// Weights are counted in this, so that their sums are exact: 2^-40 of the likeliest token's.
const ONE: f32 = (1u64 << 40) as f32;

impl Sampling {
    /// The next token of each row, where the logits are; `draws` are uniform between 0 and 1, `forbidden` is never drawn.
    ///
    /// Shapes: logits (B,V) in f32, draws (B) -> (B). Softmax at the temperature; of equal logits the lower id is taken
    /// first. Of the tokens that are kept, in the order of ids, that one is drawn in whose share its draw falls.
    pub fn sample(&self, logits: &Tensor, forbidden: &[u32], draws: &[f32]) -> Result<Vec<u32>> {
        let (num_rows, _) = logits.dims2()?;
        if draws.len() != num_rows {
            bail!("{} draws for {num_rows} rows of logits", draws.len());
        }
        if !matches!(logits.device(), Device::Cpu) {
            return gpu::sampling::sample(*self, logits, forbidden, draws)?.to_vec1();
        }
        let mut rows = logits.to_vec2()?;
        Ok(rows.iter_mut().zip(draws).map(|(row, draw)| self.of_row(row, forbidden, *draw)).collect())
    }

    fn of_row(self, logits: &mut [f32], forbidden: &[u32], draw: f32) -> u32 {
        for id in forbidden {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if self.temperature <= 0.0 {
            return logits.iter().position(|logit| *logit >= largest).unwrap_or(0) as u32;
        }
        let weight = |logit: f32| {
            let power = (logit - largest) / self.temperature * std::f32::consts::LOG2_E;
            (power.exp2() * ONE) as u64
        };
        let mut kept: Vec<(u32, u64)> = (0..)
            .zip(logits.iter())
            .filter(|(_, logit)| !logit.is_nan())
            .map(|(id, logit)| (id, weight(*logit)))
            .collect();
        let is_cut = self.top_k > 0 && self.top_k < kept.len();
        if is_cut || self.top_p < 1.0 {
            let descending = |(a, _): &(u32, u64), (b, _): &(u32, u64)| {
                logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b))
            };
            if is_cut {
                kept.select_nth_unstable_by(self.top_k - 1, descending);
                kept.truncate(self.top_k);
            }
            kept.sort_unstable_by(descending);
            let total: u64 = kept.iter().map(|(_, weight)| weight).sum();
            let wanted = (f64::from(self.top_p) * total as f64) as u64;
            let mut held = 0;
            let is_enough = |(_, weight): &(u32, u64)| {
                held += weight;
                held >= wanted
            };
            let num_kept = kept.iter().position(is_enough).map_or(kept.len(), |last| last + 1);
            kept.truncate(num_kept);
            kept.sort_unstable_by_key(|(id, _)| *id);
        }
        let total: u64 = kept.iter().map(|(_, weight)| weight).sum();
        let target = ((f64::from(draw) * total as f64) as u64).min(total.saturating_sub(1));
        let mut before = 0;
        for (id, weight) in kept {
            before += weight;
            if target < before {
                return id;
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 };
    const PLAIN: Sampling = Sampling { temperature: 1.0, ..GREEDY };

    /// How often each token is drawn by evenly spread draws.
    fn counts(sampling: Sampling, logits: &[f32], forbidden: &[u32]) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        let logits = Tensor::new(logits, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        for draw in 0..1000 {
            let draws = [(draw as f32 + 0.5) / 1000.0];
            counts[sampling.sample(&logits, forbidden, &draws).unwrap()[0] as usize] += 1;
        }
        counts
    }

    #[test]
    fn tokens_are_drawn_by_their_weights() {
        let logits = [0.0, 3f32.ln(), f32::NEG_INFINITY, 2f32.ln(), f32::NAN];
        assert_eq!(counts(GREEDY, &logits, &[]), [0, 1000, 0, 0, 0]);
        assert_eq!(counts(GREEDY, &logits, &[1, 90]), [0, 0, 0, 1000, 0]);
        let near = |counts: Vec<usize>, expected: [usize; 5]| {
            assert!(counts.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= 1), "{counts:?}");
        };
        near(counts(PLAIN, &logits, &[]), [167, 500, 0, 333, 0]);
        near(counts(Sampling { top_k: 2, ..PLAIN }, &logits, &[]), [0, 600, 0, 400, 0]);
        near(counts(Sampling { top_p: 0.6, ..PLAIN }, &logits, &[]), [0, 600, 0, 400, 0]);
        near(counts(Sampling { top_k: 2, top_p: 0.5, ..PLAIN }, &logits, &[]), [0, 1000, 0, 0, 0]);
        near(counts(PLAIN, &logits, &[1]), [333, 0, 0, 667, 0]);
        near(counts(Sampling { temperature: 0.5, ..PLAIN }, &logits, &[]), [71, 643, 0, 286, 0]);
        // Of equals the first.
        assert_eq!(counts(Sampling { top_k: 1, ..PLAIN }, &[1.0, 1.0], &[]), [1000, 0]);
        assert!(PLAIN.sample(&Tensor::new(&[[0f32]], &Device::Cpu).unwrap(), &[], &[]).is_err());
    }
}
