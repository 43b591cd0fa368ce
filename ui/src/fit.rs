//! Whether a run fits this machine, and how long it takes.

use lathe_protocol::{
    MemoryEstimate, Method, ModelShape, Placement, RunConfig, RunEntry, chat_memory, in_catalog,
    training_flops, training_memory,
};

use crate::{Store, format, theme::Tone};

/// Up to this share of the memory, nothing else suffers.
const FITS: f64 = 0.8;
const TIGHT: f64 = 0.95;
/// Of a conversation of a usual length.
const CHAT_TOKENS: usize = 4096;
/// Of a core in training, roughly.
const FLOPS_A_CORE: f64 = 25e9;
const FLOPS_A_CORE_AVX512: f64 = 60e9;

/// How a need of memory stands to what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    Fits,
    Tight,
    /// By so many bytes; 0 if only what else runs has no room.
    TooBig(u64),
}

impl Fit {
    pub fn of(needed_bytes: u64, memory_bytes: u64) -> Self {
        let share = needed_bytes as f64 / memory_bytes.max(1) as f64;
        if share < FITS {
            Self::Fits
        } else if share < TIGHT {
            Self::Tight
        } else {
            Self::TooBig(needed_bytes.saturating_sub(memory_bytes))
        }
    }

    /// What is needed must be less, not to be too big.
    pub fn budget(memory_bytes: u64) -> u64 {
        (memory_bytes as f64 * TIGHT) as u64
    }

    pub fn tone(self) -> Tone {
        match self {
            Self::Fits => Tone::Success,
            Self::Tight => Tone::Warning,
            Self::TooBig(_) => Tone::Error,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Fits => "Fits",
            Self::Tight => "Tight",
            Self::TooBig(_) => "Does not fit",
        }
    }

    /// With what is needed.
    pub fn words(self, needed_bytes: u64) -> String {
        let needed = format::gib(needed_bytes);
        match self {
            Self::Fits => format!("Fits, takes {needed}"),
            Self::Tight => format!("Tight, takes {needed}"),
            Self::TooBig(0) => "Does not fit beside the system".into(),
            Self::TooBig(bytes) => format!("Does not fit, {} short", format::gib(bytes)),
        }
    }
}

/// Memory and fit of training a model of this shape with `config`; rows are as long as `longest_row`, if known.
pub fn memory(
    shape: &ModelShape,
    config: &RunConfig,
    longest_row: Option<usize>,
    store: &Store,
) -> (MemoryEstimate, Option<Fit>) {
    let estimate = training_memory(shape, config, longest_row.unwrap_or(config.max_seq_len), Placement::Cpu);
    (estimate, store.memory_bytes().map(|bytes| Fit::of(estimate.total(), bytes)))
}

/// Memory and fit of a chat with a model of this shape whose files have so many bytes.
pub fn chat(shape: &ModelShape, model_bytes: u64, store: &Store) -> (u64, Option<Fit>) {
    let needed = chat_memory(shape, model_bytes, shape.context_length.min(CHAT_TOKENS));
    (needed, store.memory_bytes().map(|bytes| Fit::of(needed, bytes)))
}

/// A model's shape, from its own files or the catalog.
pub fn shape_of(name: &str, store: &Store) -> Option<ModelShape> {
    let on_disk = store.model(name).and_then(|model| model.shape);
    on_disk.or_else(|| in_catalog(name).map(|model| model.shape))
}

/// How long a run takes, and how that is known.
#[derive(Debug, Clone, PartialEq)]
pub struct TimeEstimate {
    pub secs: f64,
    /// E.g. `as fast as your last run on this model`.
    pub why: &'static str,
}

/// The time `tokens` in rows of `row_tokens` take `model`; none if neither its shape nor this machine is known.
pub fn run_time(
    model: &str,
    config: &RunConfig,
    tokens: u64,
    row_tokens: usize,
    store: &Store,
) -> Option<TimeEstimate> {
    let same = |run: &&RunEntry| run.model == model && run.method == config.method;
    if let Some((_, speed)) = newest(store.runs().iter().filter(same)) {
        let why = "as fast as your last run on this model";
        return Some(TimeEstimate { secs: tokens as f64 / speed, why });
    }
    let flops = training_flops(&shape_of(model, store)?, config, tokens, row_tokens);
    let lora = store.runs().iter().filter(|run| run.method == Method::Lora);
    let known = lora.filter(|run| shape_of(&run.model, store).is_some());
    if let Some((run, speed)) = newest(known) {
        let other = shape_of(&run.model, store)?;
        let of_a_token = training_flops(&other, &RunConfig::default(), 1, row_tokens);
        let why = "reckoned from your last run on another model";
        return Some(TimeEstimate { secs: flops / (of_a_token * speed), why });
    }
    let hardware = store.hardware.value.as_ref()?;
    let avx512 = hardware.cpu_features.iter().any(|feature| feature.starts_with("avx512"));
    let a_core = if avx512 { FLOPS_A_CORE_AVX512 } else { FLOPS_A_CORE };
    let secs = flops / (a_core * hardware.physical_cores.max(1) as f64);
    Some(TimeEstimate { secs, why: "a rough guess from this machine's cores" })
}

/// The newest run whose speed is known, and it.
fn newest<'a>(runs: impl Iterator<Item = &'a RunEntry>) -> Option<(&'a RunEntry, f64)> {
    let with_speed = runs.filter_map(|run| Some((run, run.tokens_per_second.filter(|&speed| speed > 0.0)?)));
    with_speed.max_by_key(|(run, _)| run.created_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fit_says_by_how_much() {
        const GIB: u64 = 1 << 30;
        let words = |needed: u64| Fit::of(needed * GIB, 100 * GIB).words(needed * GIB);
        assert_eq!(words(79), "Fits, takes 79.0 GiB");
        assert_eq!(words(94), "Tight, takes 94.0 GiB");
        assert_eq!(words(98), "Does not fit beside the system");
        assert_eq!(words(104), "Does not fit, 4.0 GiB short");
    }
}
