//! What is learned from pairs: DPO (arXiv 2305.18290, eq. 7) and ORPO (arXiv 2403.07691, eq. 6), as TRL has them.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use lathe_kernels::{RopeTable, TokenLoss};
use lathe_protocol::{EventBody, Objective, OddsMetrics, PreferenceMetrics, RunConfig};

use super::evaluate;
use crate::{
    Error, Result,
    batch::{self, Batch, PairTargets},
    corpus::Rows,
    model::Model,
    tokenize::{TokenizedRow, Tokens},
};

/// No odds are taken of a mean log-probability above it.
const HIGHEST_LOGP: f64 = -1e-6;

/// Log-probabilities of a pair's chosen and rejected answer by the model as it was before training.
pub type Reference = [f64; 2];

/// Pairs laid out for one forward pass.
pub struct PairBatch {
    pub batch: Batch,
    targets: Vec<PairTargets>,
    references: Vec<Reference>,
}

impl PairBatch {
    /// The pairs at `indices` of `rows`. Without references (not DPO), theirs are zero.
    ///
    /// Errors: a row that is no pair.
    pub fn new(
        rows: &Rows<'_>,
        indices: &[usize],
        references: &[Reference],
        objective: Objective,
    ) -> Result<Self> {
        let loaded = indices.iter().map(|index| rows.get(*index)).collect::<Result<Vec<_>>>()?;
        let pairs = loaded.iter().map(|row| pair(row)).collect::<Result<Vec<_>>>()?;
        let (batch, targets) = batch::pack_pairs(pairs, objective == Objective::Orpo);
        let references =
            indices.iter().map(|index| references.get(*index).copied().unwrap_or_default()).collect();
        Ok(Self { batch, targets, references })
    }

    pub fn num_pairs(&self) -> usize {
        self.targets.len()
    }

    /// Tokens of the chosen sides that are targets.
    pub fn num_chosen_tokens(&self) -> usize {
        self.targets.iter().map(|pair| pair.prompt.len() + pair.chosen.len()).sum()
    }

    /// The losses of the chosen answers' tokens.
    pub fn chosen<'a>(&'a self, tokens: &'a [TokenLoss]) -> impl Iterator<Item = &'a TokenLoss> {
        self.targets.iter().flat_map(|pair| &tokens[pair.chosen.clone()])
    }

    fn verdicts(&self, tokens: &[TokenLoss], config: &RunConfig) -> Vec<Verdict> {
        let judge = |(pair, reference): (&PairTargets, &Reference)| {
            let logps = [&pair.chosen, &pair.rejected].map(|side| logp(tokens, side));
            match config.objective {
                Objective::Orpo => {
                    Verdict::orpo(logps, [pair.chosen.len(), pair.rejected.len()], config.beta)
                }
                _ => Verdict::dpo(logps, *reference, config.beta),
            }
        };
        self.targets.iter().zip(&self.references).map(judge).collect()
    }

    /// How much each token's loss counts in the loss of a step over so many pairs and tokens of chosen sides.
    pub fn weights(
        &self,
        tokens: &[TokenLoss],
        config: &RunConfig,
        num_pairs: usize,
        num_chosen_tokens: usize,
    ) -> Vec<f32> {
        let mut weights = vec![0.0; tokens.len()];
        for (pair, verdict) in self.targets.iter().zip(self.verdicts(tokens, config)) {
            let [by_chosen, by_rejected] =
                verdict.by_logps.map(|derivative| (-derivative / num_pairs as f64) as f32);
            weights[pair.chosen.clone()].fill(by_chosen);
            weights[pair.rejected.clone()].fill(by_rejected);
            if config.objective == Objective::Orpo {
                let of_likelihood = 1.0 / num_chosen_tokens as f32;
                let side = pair.prompt.start..pair.chosen.end;
                weights[side].iter_mut().for_each(|weight| *weight += of_likelihood);
            }
        }
        weights
    }
}

fn pair(row: &TokenizedRow) -> Result<(&TokenizedRow, &Tokens)> {
    let rejected = row.rejected.as_ref();
    rejected
        .map(|rejected| (row, rejected))
        .ok_or_else(|| Error::data(format!("Row {} (line {}) is no pair of answers", row.row, row.line)))
}

fn logp(tokens: &[TokenLoss], side: &Range<usize>) -> f64 {
    -tokens[side.clone()].iter().map(|token| token.loss).sum::<f64>()
}

/// What a pair's log-probabilities come to.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Verdict {
    /// Without ORPO's likelihood.
    loss: f64,
    /// Derivatives of the loss by the answers' summed log-probabilities.
    by_logps: [f64; 2],
    rewards: [f64; 2],
    log_odds: f64,
}

impl Verdict {
    /// `−log σ(β (gain of the chosen − gain of the rejected))`, gains being over the reference.
    fn dpo(logps: [f64; 2], reference: Reference, beta: f64) -> Self {
        let rewards = [0, 1].map(|side| beta * (logps[side] - reference[side]));
        let margin = rewards[0] - rewards[1];
        let pull = beta * sigmoid(-margin);
        Self { loss: softplus(-margin), by_logps: [-pull, pull], rewards, log_odds: 0.0 }
    }

    /// `−β log σ(log odds of the chosen − log odds of the rejected)`, odds being of mean log-probabilities.
    fn orpo(logps: [f64; 2], lengths: [usize; 2], beta: f64) -> Self {
        let means = [0, 1].map(|side| logps[side] / lengths[side].max(1) as f64);
        let odds = means.map(|mean| mean.min(HIGHEST_LOGP)).map(|mean| mean - (-mean.exp_m1()).ln());
        let log_odds = odds[0] - odds[1];
        let pull = beta * sigmoid(-log_odds);
        // d(log odds)/d(mean) = 1 / (1 − p)
        let by_logp =
            |side: usize| pull / (-means[side].min(HIGHEST_LOGP).exp_m1() * lengths[side].max(1) as f64);
        Self {
            loss: beta * softplus(-log_odds),
            by_logps: [-by_logp(0), by_logp(1)],
            rewards: means.map(|mean| beta * mean),
            log_odds,
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `log(1 + eˣ)`
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Sums over the pairs of a step or an evaluation.
#[derive(Debug, Clone, Copy, Default)]
pub struct PairSums {
    num_pairs: usize,
    loss: f64,
    rewards: [f64; 2],
    num_right: usize,
    log_odds: f64,
    log_odds_ratio: f64,
    nll: f64,
    num_chosen_tokens: usize,
}

impl PairSums {
    pub fn add(&mut self, pairs: &PairBatch, tokens: &[TokenLoss], config: &RunConfig) {
        for Verdict { loss, rewards, log_odds, .. } in pairs.verdicts(tokens, config) {
            self.num_pairs += 1;
            self.loss += loss;
            self.rewards = [0, 1].map(|side| self.rewards[side] + rewards[side]);
            self.num_right += usize::from(rewards[0] > rewards[1]);
            self.log_odds += log_odds;
            self.log_odds_ratio -= softplus(-log_odds);
        }
        if config.objective == Objective::Orpo {
            let sides = pairs.targets.iter().map(|pair| pair.prompt.start..pair.chosen.end);
            self.nll -= sides.map(|side| logp(tokens, &side)).sum::<f64>();
            self.num_chosen_tokens += pairs.num_chosen_tokens();
        }
    }

    /// The loss, and what else is said of it.
    pub fn means(&self, objective: Objective) -> (f64, PreferenceMetrics) {
        let mean = |sum: f64| sum / self.num_pairs.max(1) as f64;
        let odds = (objective == Objective::Orpo).then(|| OddsMetrics {
            nll_loss: self.nll / self.num_chosen_tokens.max(1) as f64,
            log_odds_ratio: mean(self.log_odds_ratio),
            log_odds_chosen: mean(self.log_odds),
        });
        let [chosen_reward, rejected_reward] = self.rewards.map(mean);
        let metrics = PreferenceMetrics {
            chosen_reward,
            rejected_reward,
            accuracy: mean(self.num_right as f64),
            margin: chosen_reward - rejected_reward,
            odds,
        };
        (mean(self.loss) + odds.map_or(0.0, |odds| odds.nll_loss), metrics)
    }
}

/// The log-probabilities of the pairs among `rows` that `needed` says, by the model as it is; zero for the others, and
/// for objectives without a reference. `None` if stopped midway.
///
/// A run takes them before its first step, from weights that nothing has changed yet: those of the base, since a fresh
/// adapter adds nothing, or those of the adapter it goes on from. So there is no second model, whatever learns.
pub fn references(
    model: &Model,
    rows: &Rows<'_>,
    needed: impl Fn(usize) -> bool,
    config: &RunConfig,
    stop: &AtomicBool,
    emit: &mut dyn FnMut(EventBody),
) -> Result<Option<Vec<Reference>>> {
    let mut references = vec![[0.0; 2]; rows.len()];
    if config.objective != Objective::Dpo {
        return Ok(Some(references));
    }
    let lengths = rows.lengths();
    let order: Vec<usize> = (0..rows.len()).filter(|row| needed(*row)).collect();
    let rope = rope_table(model, rows);
    let mut done = 0;
    for sequence in batch::sequences(&lengths, &order, config.sequence_tokens(), true) {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let what = "Taking the reference's probabilities".into();
        emit(EventBody::Progress { what, done, total: order.len() as u64 });
        let pairs = PairBatch::new(rows, &sequence, &[], config.objective)?;
        let tokens = evaluate(model, &pairs.batch, &rope)?;
        for (row, pair) in sequence.iter().zip(&pairs.targets) {
            references[*row] = [&pair.chosen, &pair.rejected].map(|side| logp(&tokens, side));
        }
        done += sequence.len() as u64;
    }
    Ok(Some(references))
}

/// For the longest side of `rows`.
pub fn rope_table(model: &Model, rows: &Rows<'_>) -> Arc<RopeTable> {
    model.rope_table(rows.longest_side())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The derivatives against differences of the loss.
    fn check(verdict: impl Fn([f64; 2]) -> Verdict, logps: [f64; 2]) {
        const EPS: f64 = 1e-5;
        for side in 0..2 {
            let moved = |by: f64| {
                let mut logps = logps;
                logps[side] += by;
                verdict(logps).loss
            };
            let numeric = (moved(EPS) - moved(-EPS)) / (2.0 * EPS);
            let found = verdict(logps).by_logps[side];
            assert!((found - numeric).abs() < 1e-7 * found.abs().max(1.0), "{logps:?}: {found} {numeric}");
        }
    }

    #[test]
    fn the_weights_are_the_losses_derivatives() {
        for logps in [[-12.0, -30.0], [-80.0, -2.0], [-0.5, -900.0]] {
            check(|logps| Verdict::dpo(logps, [-20.0, -25.0], 0.3), logps);
            check(|logps| Verdict::orpo(logps, [4, 7], 0.3), logps);
        }
    }

    #[test]
    fn an_answer_that_is_certain_has_finite_odds() {
        let Verdict { loss, by_logps, .. } = Verdict::orpo([0.0, 0.0], [4, 7], 0.1);
        assert!(loss.is_finite() && by_logps.iter().all(|derivative| derivative.is_finite()));
    }
}
