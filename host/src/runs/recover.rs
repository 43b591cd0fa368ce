//! How a run that diverged or ran out of memory goes on.

use std::path::Path;

use lathe_protocol::{Divergence, Placement, Remedy, ResumeHow, RunConfig, RunEntry, training_memory};

use crate::{
    Shared,
    devices::{self, Devices},
    error::{Result, usage},
    gpus, hardware, models,
    units::gib,
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

/// Of a run that is predicted to take more memory than its device has: what would fit.
pub(super) fn what_fits(host: &Shared, model: &Path, config: &RunConfig, device: &str) -> Option<String> {
    let shape = models::shape(model)?;
    let rows = config.max_seq_len;
    let placement = if device == devices::CPU { Placement::Cpu } else { Placement::Cuda };
    let (room, word) = if placement == Placement::Cpu {
        (hardware::detect(host.paths(), gpus::Seen::default()).ram_available_bytes, "free")
    } else {
        (devices::budget(Devices::of(host).card(device)?), "the card's")
    };
    let needed = training_memory(&shape, config, rows, placement).total();
    if room == 0 || needed <= room {
        return None;
    }
    let remedy = Remedy::sentence(Remedy::find(&shape, config, rows, placement, room));
    Some(format!("it needs {}, {} are {word}; {remedy}", gib(needed), gib(room)))
}

/// Of a run that a card's memory gave out under: what takes less, as far as the prediction tells. None on the CPU.
pub(super) fn takes_less(host: &Shared, model: &Path, config: &RunConfig, device: &str) -> Option<String> {
    let devices = Devices::of(host);
    let card = devices.card(device)?;
    let shape = models::shape(model)?;
    let needed = devices::needed_bytes(&shape, config);
    // It was said to fit: whatever is to help must take clearly less.
    let room = devices::budget(card).min(needed / 10 * 9);
    let remedies = Remedy::each(&shape, config, config.max_seq_len, Placement::Cuda, room);
    let total = gib(card.vram_total_bytes);
    let others = Some(card.vram_used_bytes()).filter(|others| *others >= NOTEWORTHY_BYTES);
    let others = others.map(|others| format!(", of which other programs hold {}", gib(others)));
    let advice = if remedies.is_empty() && needed <= devices::budget(card) {
        "It should fit: close other programs that use the card".to_owned()
    } else {
        Remedy::sentence_of(&remedies)
    };
    Some(format!(
        "it was predicted to need {} of {device}'s {total}{}. {advice}",
        gib(needed),
        others.unwrap_or_default()
    ))
}

/// What a display and the driver hold.
const NOTEWORTHY_BYTES: u64 = 1 << 30;

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
