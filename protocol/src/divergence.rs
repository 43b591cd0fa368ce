use serde::{Deserialize, Serialize};

/// What gave a diverging run away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DivergenceSign {
    /// Loss or gradient norm is infinite or no number.
    NotFinite,
    /// The held-out loss is infinite or no number, after the step's update.
    EvalNotFinite,
    LossSpike,
    GradNormSpike,
}

impl DivergenceSign {
    /// Whether a run that is no longer watched for spikes would pass it.
    pub fn is_spike(self) -> bool {
        matches!(self, Self::LossSpike | Self::GradNormSpike)
    }
}

/// Why the guard ended a run. Numbers that are not finite are none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    pub step: usize,
    pub sign: DivergenceSign,
    pub loss: Option<f64>,
    pub grad_norm: Option<f64>,
    /// Of what spiked, the mean of the steps before.
    pub usual: Option<f64>,
    /// The checkpoint's step that a resume goes on from; 0 is the beginning.
    pub resumes_from: usize,
    /// The step's rows, in the order of the file.
    pub rows: Vec<RowPlace>,
}

/// A row of the data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowPlace {
    /// From 0, through all files.
    pub row: usize,
    /// Line of its file, from 1; 0 in a file without lines.
    pub line: usize,
    /// Name of its file, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// E.g. `17 (line 18)`, or `17 (line 4 of b.jsonl)`.
impl std::fmt::Display for RowPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { row, line, file } = self;
        match (line, file) {
            (0, None) => write!(f, "{row}"),
            (0, Some(file)) => write!(f, "{row} (of {file})"),
            (line, None) => write!(f, "{row} (line {line})"),
            (line, Some(file)) => write!(f, "{row} (line {line} of {file})"),
        }
    }
}

impl Divergence {
    /// What was seen, e.g. `the loss rose to 11.2, from 2.1 in the steps before`.
    pub fn what(&self) -> String {
        let number =
            |value: Option<f64>| value.map_or("no finite number".into(), |value| format!("{value:.4}"));
        let rose = |what: &str, value| {
            format!("the {what} rose to {}, from {} in the steps before", number(value), number(self.usual))
        };
        match self.sign {
            DivergenceSign::LossSpike => rose("loss", self.loss),
            DivergenceSign::GradNormSpike => rose("gradient norm", self.grad_norm),
            DivergenceSign::EvalNotFinite => "the held-out loss is no finite number".into(),
            DivergenceSign::NotFinite => {
                format!("the loss is {}, the gradient norm {}", number(self.loss), number(self.grad_norm))
            }
        }
    }

    /// The rows, the first few of many, e.g. `3 (line 4), 17 (line 18)`.
    pub fn rows_text(&self) -> String {
        const SHOWN: usize = 8;
        let places = self.rows.iter().take(SHOWN).map(RowPlace::to_string);
        let text = places.collect::<Vec<_>>().join(", ");
        match self.rows.len().checked_sub(SHOWN) {
            None | Some(0) => text,
            Some(more) => format!("{text} and {more} more"),
        }
    }

    /// Where a resume goes on, e.g. `step 50`.
    pub fn resumes_from_text(&self) -> String {
        match self.resumes_from {
            0 => "the beginning".into(),
            step => format!("the checkpoint of step {step}"),
        }
    }
}
