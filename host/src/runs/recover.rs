//! How a run that diverged or ran out of memory goes on.

use std::path::Path;

use lathe_protocol::{Divergence, Placement, Remedy, ResumeHow, RunConfig, RunEntry, training_memory};

use crate::{
    error::{Result, usage},
    gpus, hardware, models,
    paths::Paths,
};

/// What `how` makes of the run's settings. They are kept, so that every later resume is the same.
///
/// Errors: rows are to be skipped, and none are to blame; it takes the least memory already.
pub(super) fn change(config: &mut RunConfig, entry: &RunEntry, how: ResumeHow) -> Result<()> {
    match how {
        ResumeHow::AsItWas => {}
        ResumeHow::LowerRate => config.learning_rate /= 2.0,
        ResumeHow::IgnoreSpikes => config.spike_threshold = 0.0,
        ResumeHow::LessMemory => {
            if !can_take_less_memory(config) {
                return Err(
                    usage(format!("Run {} recomputes every block already", entry.name)).hint(LESS_FROM_ANEW)
                );
            }
            config.gradient_checkpointing = true;
            config.gradient_checkpointing_every = 1;
        }
        ResumeHow::SkipRows => {
            let Some(Divergence { rows, .. }) =
                entry.divergence.as_ref().filter(|found| !found.rows.is_empty())
            else {
                return Err(usage(format!("No rows to skip: run {} has diverged at none", entry.name))
                    .hint("leave --skip-rows out, or use --lower-rate"));
            };
            config.skip_rows.extend(rows.iter().map(|place| place.row));
            config.skip_rows.sort_unstable();
            config.skip_rows.dedup();
        }
    }
    Ok(())
}

const LESS_FROM_ANEW: &str =
    "start a new run with a lower max_seq_len or batch_size, --init-adapter from its newest checkpoint";

fn can_take_less_memory(config: &RunConfig) -> bool {
    config.recomputed_blocks() != Some(1)
}

/// Of a run that is predicted to take more memory than is free: what would fit.
pub(super) fn what_fits(paths: &Paths, model: &Path, config: &RunConfig) -> Option<String> {
    let shape = models::shape(model)?;
    let free_bytes = hardware::detect(paths, gpus::Seen::default()).ram_available_bytes;
    let rows = config.max_seq_len;
    let needed = training_memory(&shape, config, rows, Placement::Cpu).total();
    if free_bytes == 0 || needed <= free_bytes {
        return None;
    }
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    let remedy = Remedy::sentence(Remedy::find(&shape, config, rows, Placement::Cpu, free_bytes));
    Some(format!("it needs {:.1} GiB, {:.1} are free; {remedy}", gib(needed), gib(free_bytes)))
}

/// What to do when memory gave out under a run that has a checkpoint to go on from.
pub(super) fn memory_hint(run: &str, config: &RunConfig) -> String {
    if can_take_less_memory(config) {
        format!("close other programs, or let it take less: lathe runs resume {run} --less-memory")
    } else {
        format!("close other programs, then: lathe runs resume {run}; or {LESS_FROM_ANEW}")
    }
}

/// The ways on, as a person would type them.
pub fn recovery_hint(run: &str, divergence: &Divergence) -> String {
    let mut ways = Vec::new();
    if !divergence.rows.is_empty() {
        ways.push("--skip-rows to leave those rows out");
    }
    ways.push("--lower-rate to halve the learning rate");
    if divergence.sign.is_spike() {
        ways.push("--ignore-spikes to go on anyway");
    }
    let from = divergence.resumes_from_text();
    format!("go on from {from}: lathe runs resume {run} with {}", ways.join(", or "))
}
