//! What runs and chats run on: each GPU, and the CPU as one more. A device trains one run at a time.

use lathe_protocol::{ErrorCode, ErrorInfo, Placement, RunConfig, RunStatus, training_memory};

use crate::{
    Paths, Shared,
    db::RunRecord,
    error::{Result, usage},
    models,
};

pub(crate) const AUTO: &str = "auto";
pub(crate) const CPU: &str = "cpu";
/// Of a card's memory, what a run may take: the driver and the display have some of it.
pub(crate) const USABLE: f64 = 0.95;

/// The device as it is named everywhere: `auto`, `cpu` or `cuda:N`. An error if this machine has no such device.
pub(crate) fn checked(host: &Shared, device: &str) -> Result<String> {
    let index = match device {
        AUTO | CPU => return Ok(device.to_owned()),
        "cuda" => Some(0),
        _ => device.strip_prefix("cuda:").and_then(|index| index.parse::<usize>().ok()),
    };
    let Some(index) = index else {
        return Err(usage(format!("Unknown device {device:?}")).hint("write auto, cpu or cuda:N"));
    };
    let gpus = &host.options.gpus;
    if let Some(gpu) = gpus.iter().find(|gpu| gpu.index == index) {
        return Ok(gpu.device());
    }
    if gpus.is_empty() {
        let message = format!("Device {device} is not available: this version computes on the CPU only");
        return Err(
            ErrorInfo::new(ErrorCode::Device, message).hint("leave --device out, or say --device cpu")
        );
    }
    let names: Vec<String> = gpus.iter().map(lathe_protocol::Gpu::device).collect();
    Err(ErrorInfo::new(ErrorCode::Device, format!("This machine has no device {device}"))
        .hint(format!("it has {} and cpu", names.join(", "))))
}

/// What the run may run on, the best first. `auto` is every card with room for it; the CPU, if none has.
pub(super) fn candidates(host: &Shared, device: &str, model: &str, config: &RunConfig) -> Vec<String> {
    let gpus = &host.options.gpus;
    if device != AUTO || gpus.is_empty() {
        let device = if device == AUTO { CPU } else { device };
        return vec![device.to_owned()];
    }
    let needed_bytes = needed_bytes(host.paths(), model, config);
    let has_room =
        |total_bytes: u64| needed_bytes.is_none_or(|bytes| bytes as f64 <= total_bytes as f64 * USABLE);
    let fitting = gpus.iter().filter(|gpu| has_room(gpu.vram_total_bytes));
    let fitting: Vec<String> = fitting.map(lathe_protocol::Gpu::device).collect();
    if fitting.is_empty() { vec![CPU.to_owned()] } else { fitting }
}

/// What the run takes of a card, if its model's files tell.
fn needed_bytes(paths: &Paths, model: &str, config: &RunConfig) -> Option<u64> {
    let shape = models::shape(&models::resolve(paths, model).ok()?.path)?;
    Some(training_memory(&shape, config, config.max_seq_len, Placement::Cuda).total())
}

/// The devices that are training.
pub(crate) fn busy(runs: &[RunRecord]) -> Vec<String> {
    let running = runs.iter().filter(|run| run.entry.status == RunStatus::Running);
    // Versions before devices knew only the CPU.
    running.map(|run| run.entry.runs_on.clone().unwrap_or_else(|| CPU.into())).collect()
}

/// The first that is free.
pub(crate) fn first_free(candidates: &[String], busy: &[String]) -> Option<String> {
    candidates.iter().find(|device| !busy.contains(device)).cloned()
}

/// What something beside the runs (a chat) computes on: where nothing trains, if there is such a device.
pub(crate) fn beside_runs(
    host: &Shared,
    device: &str,
    runs: impl FnOnce() -> Result<Vec<RunRecord>>,
) -> Result<String> {
    let device = checked(host, device)?;
    if device != AUTO {
        return Ok(device);
    }
    if host.options.gpus.is_empty() {
        return Ok(CPU.to_owned());
    }
    let all: Vec<String> = host.options.gpus.iter().map(lathe_protocol::Gpu::device).collect();
    Ok(first_free(&all, &busy(&runs()?)).unwrap_or_else(|| CPU.to_owned()))
}
