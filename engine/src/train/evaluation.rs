use lathe_kernels::{CrossEntropyStats, TokenLoss};
use lathe_protocol::{EvalMetrics, RunConfig};

use super::{
    evaluate,
    preference::{self, PairBatch, PairSums, Reference},
};
use crate::{Result, batch, corpus::Rows, model::Model};

/// What held-out rows say of the model.
pub struct Evaluation {
    pub metrics: EvalMetrics,
    /// Indices of the rows whose loss is not finite, with those packed beside them.
    pub not_finite: Vec<usize>,
}

impl Evaluation {
    /// Whether the numbers are numbers.
    pub fn is_sound(&self) -> bool {
        self.metrics.perplexity.is_finite() && self.metrics.loss.is_finite()
    }
}

/// Mean loss and accuracy over the trained tokens of `rows`, or over their pairs, given their references.
pub fn evaluate_rows(
    model: &Model,
    rows: &Rows<'_>,
    references: &[Reference],
    config: &RunConfig,
    step: usize,
) -> Result<Evaluation> {
    let lengths = rows.lengths();
    let order: Vec<usize> = (0..rows.len()).collect();
    let rope = preference::rope_table(model, rows);
    let mut total = CrossEntropyStats::default();
    let (mut sums, mut loss_tokens) = (PairSums::default(), 0);
    let mut not_finite = Vec::new();
    for sequence in batch::sequences(&lengths, &order, config.sequence_tokens(), true) {
        let tokens = if config.objective.takes_pairs() {
            let pairs = PairBatch::new(rows, &sequence, references, config.objective)?;
            let tokens = evaluate(model, &pairs.batch, &rope)?;
            sums.add(&pairs, &tokens, config);
            let chosen: Vec<TokenLoss> = pairs.chosen(&tokens).copied().collect();
            total.add(&chosen);
            tokens
        } else {
            let tokens = evaluate(model, &rows.pack(&sequence)?, &rope)?;
            total.add(&tokens);
            tokens
        };
        loss_tokens += tokens.len();
        if !tokens.iter().all(|token| token.loss.is_finite()) {
            not_finite.extend(sequence);
        }
    }
    let mean = total.loss_sum / total.num_tokens.max(1) as f64;
    let of_pairs = config.objective.takes_pairs().then(|| sums.means(config.objective));
    let metrics = EvalMetrics {
        step,
        loss: of_pairs.map_or(mean, |(loss, _)| loss),
        perplexity: mean.exp(),
        token_accuracy: total.num_correct as f64 / total.num_tokens.max(1) as f64,
        loss_tokens,
        rows: rows.len(),
        preference: of_pairs.map(|(_, preference)| preference),
    };
    Ok(Evaluation { metrics, not_finite })
}
