use std::mem::discriminant;

use super::{ExpertFormat, ModelShape, Placement, training_memory};
use crate::{Method, Optimizer, Quant, RunConfig};

const NOTHING_FITS: &str = "No single change makes it fit: choose a smaller model";
/// Lengths of rows that are told apart.
const LENGTH_STEP: usize = 64;

/// A single change of a run's configuration, for want of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Fewer rows a pass, as many a step.
    SmallerBatch {
        batch_size: usize,
        grad_accum: usize,
    },
    Checkpointing,
    Adamw8bit,
    Qlora,
    /// Adapters, where every weight learns.
    Lora,
    ShorterRows(usize),
}

impl Remedy {
    /// The single change that makes a run take less than `budget_bytes`: of those that do, the one that costs least.
    pub fn find(
        shape: &ModelShape,
        config: &RunConfig,
        longest_row_tokens: usize,
        placement: Placement,
        budget_bytes: u64,
    ) -> Option<Self> {
        let mut possible = Self::possible(shape, config, longest_row_tokens).into_iter();
        possible.find(|remedy| remedy.fits(shape, config, longest_row_tokens, placement, budget_bytes))
    }

    /// Like [`Self::find`], of each kind of change.
    pub fn each(
        shape: &ModelShape,
        config: &RunConfig,
        longest_row_tokens: usize,
        placement: Placement,
        budget_bytes: u64,
    ) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        for remedy in Self::possible(shape, config, longest_row_tokens) {
            let is_known = found.iter().any(|known| discriminant(known) == discriminant(&remedy));
            if !is_known && remedy.fits(shape, config, longest_row_tokens, placement, budget_bytes) {
                found.push(remedy);
            }
        }
        found
    }

    fn fits(
        self,
        shape: &ModelShape,
        config: &RunConfig,
        longest_row_tokens: usize,
        placement: Placement,
        budget_bytes: u64,
    ) -> bool {
        let mut changed = config.clone();
        self.apply(&mut changed);
        training_memory(shape, &changed, longest_row_tokens, placement).total() < budget_bytes
    }

    /// What can be changed, the least costly first.
    fn possible(shape: &ModelShape, config: &RunConfig, longest_row_tokens: usize) -> Vec<Self> {
        let RunConfig { batch_size, grad_accum, max_seq_len, packing, .. } = *config;
        let rows_a_step = batch_size * grad_accum;
        let smaller = (1..batch_size).rev().filter(|batch_size| rows_a_step.is_multiple_of(*batch_size));
        let mut possible: Vec<Self> = smaller
            .map(|batch_size| Self::SmallerBatch { batch_size, grad_accum: rows_a_step / batch_size })
            .collect();
        if config.recomputed_blocks() != Some(1) {
            possible.push(Self::Checkpointing);
        }
        if config.optimizer != Optimizer::Adamw8bit {
            possible.push(Self::Adamw8bit);
        }
        if config.method == Method::Full {
            possible.push(Self::Lora);
        } else if config.base_quant() == Quant::None && shape.linears == Quant::None && !shape.refuses_nf4() {
            possible.push(Self::Qlora);
        }
        let longest = if packing { max_seq_len } else { max_seq_len.min(longest_row_tokens) };
        let lengths = (1..longest.div_ceil(LENGTH_STEP)).rev().map(|steps| steps * LENGTH_STEP);
        possible.extend(lengths.map(Self::ShorterRows));
        possible
    }

    pub fn apply(self, config: &mut RunConfig) {
        match self {
            Self::SmallerBatch { batch_size, grad_accum } => {
                (config.batch_size, config.grad_accum) = (batch_size, grad_accum);
            }
            Self::Checkpointing => {
                (config.gradient_checkpointing, config.gradient_checkpointing_every) = (true, 1);
            }
            Self::Adamw8bit => config.optimizer = Optimizer::Adamw8bit,
            Self::Qlora => config.method = Method::Qlora,
            Self::Lora => config.method = Method::Lora,
            Self::ShorterRows(max_seq_len) => config.max_seq_len = max_seq_len,
        }
    }

    /// As keys of the configuration, e.g. `batch_size=1 grad_accum=8`.
    pub fn settings(self) -> String {
        match self {
            Self::SmallerBatch { batch_size, grad_accum } => {
                format!("batch_size={batch_size} grad_accum={grad_accum}")
            }
            Self::Checkpointing => "gradient_checkpointing=true".into(),
            Self::Adamw8bit => "optimizer=adamw8bit".into(),
            Self::Qlora => "method=qlora".into(),
            Self::Lora => "method=lora".into(),
            Self::ShorterRows(max_seq_len) => format!("max_seq_len={max_seq_len}"),
        }
    }

    /// What [`Self::find`] found, for whoever has a run that does not fit.
    pub fn sentence(found: Option<Self>) -> String {
        let Some(remedy) = found else {
            return NOTHING_FITS.into();
        };
        let effect = match remedy {
            Self::SmallerBatch { .. } => "it learns the same",
            Self::Checkpointing => "it learns the same, slower",
            Self::Adamw8bit => "the optimizer keeps its moments in 8 bits",
            Self::Qlora => "the frozen weights are held in 4 bits",
            Self::Lora => "an adapter learns instead of every weight",
            Self::ShorterRows(_) => "longer rows are cut",
        };
        format!("It fits with {}: {effect}", remedy.settings())
    }

    /// What [`Self::each`] found, for whoever may choose.
    pub fn sentence_of(found: &[Self]) -> String {
        match found {
            [] => NOTHING_FITS.into(),
            [one] => Self::sentence(Some(*one)),
            all => {
                let all: Vec<String> =
                    all.iter().map(|remedy| format!("with {}", remedy.settings())).collect();
                format!("It fits {}", all.join(", or "))
            }
        }
    }
}

impl ModelShape {
    /// Whether it cannot be trained in NF4: a GGUF and a model of MXFP4 are quantised already, and otherwise.
    pub fn refuses_nf4(&self) -> bool {
        let format = self.experts.map(|experts| experts.format);
        self.is_gguf || matches!(format, Some(ExpertFormat::Mxfp4 | ExpertFormat::Blocks(_)))
    }
}
