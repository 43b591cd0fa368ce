use serde::{Deserialize, Serialize};

use super::MemoryEstimate;

/// Resident memory of a process that did what a run's step does, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasuredMemory {
    /// Before the model: the process and its tokenizer.
    pub program: u64,
    /// With the model's weights and the adapter's.
    pub loaded: u64,
    /// With gradients and the optimizer's moments.
    pub ready: u64,
    /// The most there ever was.
    pub peak: u64,
}

/// What the memory of one forward, backward and update was predicted to be, and what it was.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ProbeReport {
    pub predicted: MemoryEstimate,
    pub measured: MeasuredMemory,
    pub row_tokens: usize,
    /// Of the step alone.
    pub seconds: f64,
}

/// What came to be between two looks at a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phase {
    pub name: &'static str,
    pub predicted: u64,
    pub measured: u64,
}

impl ProbeReport {
    /// Predicted and measured bytes of what can be told apart from outside.
    pub fn phases(&self) -> [Phase; 4] {
        let Self { predicted: parts, measured, .. } = self;
        let from = |before: u64, after: u64| after.saturating_sub(before);
        let step = parts.activations + parts.logits + parts.workspace;
        [
            ("Program", parts.program, measured.program),
            ("Weights, adapter", parts.weights + parts.adapter, from(measured.program, measured.loaded)),
            (
                "Gradients, optimizer",
                parts.gradients + parts.optimizer,
                from(measured.loaded, measured.ready),
            ),
            ("Forward and backward", step, from(measured.ready, measured.peak)),
        ]
        .map(|(name, predicted, measured)| Phase { name, predicted, measured })
    }

    /// Measured over predicted, of the peak.
    pub fn ratio(&self) -> f64 {
        self.measured.peak as f64 / self.predicted.total().max(1) as f64
    }

    /// E.g. `Measured 2.1 % less than predicted`.
    pub fn verdict(&self) -> String {
        let percent = (self.ratio() - 1.0) * 100.0;
        let than = if percent < 0.0 { "less" } else { "more" };
        format!("Measured {:.1} % {than} than predicted", percent.abs())
    }
}
