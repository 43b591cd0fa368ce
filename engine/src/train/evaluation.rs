use lathe_kernels::CrossEntropyStats;
use lathe_protocol::{EvalMetrics, RunConfig};

use super::evaluate;
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
        self.metrics.perplexity.is_finite()
    }
}

/// Mean loss and accuracy over the trained tokens of `rows`.
pub fn evaluate_rows(model: &Model, rows: &Rows<'_>, config: &RunConfig, step: usize) -> Result<Evaluation> {
    let lengths = rows.lengths();
    let order: Vec<usize> = (0..rows.len()).collect();
    let rope = model.rope_table(lengths.iter().copied().max().unwrap_or(0));
    let mut total = CrossEntropyStats::default();
    let mut not_finite = Vec::new();
    for sequence in batch::sequences(&lengths, &order, config.max_seq_len, true) {
        let loaded = sequence.iter().map(|row| rows.get(*row)).collect::<Result<Vec<_>>>()?;
        let stats = evaluate(model, &batch::pack(loaded.iter().map(AsRef::as_ref)), &rope)?;
        if !stats.loss_sum.is_finite() {
            not_finite.extend(sequence);
        }
        total.loss_sum += stats.loss_sum;
        total.num_correct += stats.num_correct;
        total.num_tokens += stats.num_tokens;
    }
    let loss = total.loss_sum / total.num_tokens.max(1) as f64;
    let metrics = EvalMetrics {
        step,
        loss,
        perplexity: loss.exp(),
        token_accuracy: total.num_correct as f64 / total.num_tokens.max(1) as f64,
        loss_tokens: total.num_tokens,
        rows: rows.len(),
    };
    Ok(Evaluation { metrics, not_finite })
}
