//! What runs and chats run on: each GPU, and the CPU as one more. A device trains one run at a time.

use lathe_protocol::{
    ErrorCode, ErrorInfo, Gpu, ModelShape, Placement, Remedy, RunConfig, RunStatus, training_memory,
};

use crate::{
    Paths, Shared,
    db::RunRecord,
    error::{Result, usage},
    gpus::Seen,
    models,
    units::gib,
};

pub(crate) const AUTO: &str = "auto";
pub(crate) const CPU: &str = "cpu";
/// Of a card's memory, what a run may take: the driver and the display have some of it.
pub(crate) const USABLE: f64 = 0.95;

/// What can be computed on here, as it was just seen. The CPU is no way out: where a card is, it must be asked for.
pub(crate) struct Devices {
    seen: Seen,
}

impl Devices {
    pub(crate) fn of(host: &Shared) -> Self {
        Self { seen: host.gpus.look(&host.options) }
    }

    fn gpus(&self) -> impl Iterator<Item = &Gpu> {
        self.seen.usable()
    }

    /// The device as it is named everywhere: `auto`, `cpu` or `cuda:N`.
    ///
    /// Errors: this machine has no such device, or a card that cannot be used, which `auto` would pass over.
    pub(crate) fn checked(&self, device: &str) -> Result<String> {
        let index = match device {
            CPU => return Ok(device.to_owned()),
            AUTO => return self.seen.refusal().map_or_else(|| Ok(device.to_owned()), Err),
            "cuda" => Some(0),
            _ => device.strip_prefix("cuda:").and_then(|index| index.parse::<usize>().ok()),
        };
        let Some(index) = index else {
            return Err(usage(format!("Unknown device {device:?}")).hint("write auto, cpu or cuda:N"));
        };
        let seen = &self.seen.gpus;
        match seen.iter().find(|gpu| gpu.index == index) {
            Some(gpu) if gpu.is_usable => return Ok(gpu.device()),
            Some(_) => {}
            None => {
                let names: Vec<String> = seen.iter().map(Gpu::device).chain([CPU.to_owned()]).collect();
                let why = self.seen.gpu_note.as_ref().filter(|_| seen.is_empty());
                let why = why.map(|why| format!(": {why}")).unwrap_or_default();
                return Err(ErrorInfo::new(
                    ErrorCode::Device,
                    format!("This machine has no device {device}{why}"),
                )
                .hint(format!("it has {}", names.join(", "))));
            }
        }
        let refusal = self.seen.refusal().map(|error| ErrorInfo { code: ErrorCode::Device, ..error });
        Err(refusal.unwrap_or_else(|| {
            let why = self.seen.gpu_note.as_deref().unwrap_or("it is not usable");
            let names: Vec<String> = self.gpus().map(Gpu::device).collect();
            ErrorInfo::new(ErrorCode::Device, format!("Device {device} cannot be used: {why}"))
                .hint(format!("there are {} and cpu", names.join(", ")))
        }))
    }

    /// What the run may run on, the best first. `auto` is every card with room for it, or the CPU where no card is.
    ///
    /// Errors: no card that is here can be used, or has the room.
    pub(crate) fn candidates(
        &self,
        paths: &Paths,
        device: &str,
        model: &str,
        config: &RunConfig,
    ) -> Result<Vec<String>> {
        if device != AUTO {
            return Ok(vec![device.to_owned()]);
        }
        if let Some(refusal) = self.seen.refusal() {
            return Err(refusal);
        }
        let Some(largest) = self.gpus().max_by_key(|gpu| gpu.vram_total_bytes) else {
            return Ok(vec![CPU.to_owned()]);
        };
        let shape = shape(paths, model);
        let needed = shape.map(|shape| needed_bytes(&shape, config));
        let has_room = |gpu: &&Gpu| needed.is_none_or(|bytes| bytes <= budget(gpu));
        let fitting: Vec<String> = self.gpus().filter(has_room).map(Gpu::device).collect();
        match (shape, needed) {
            (Some(shape), Some(needed)) if fitting.is_empty() => {
                Err(does_not_fit(&shape, config, needed, largest))
            }
            _ => Ok(fitting),
        }
    }

    /// What something beside the runs (a chat) computes on: a card where nothing trains, or the CPU where no card is.
    ///
    /// Errors: as [`Self::checked`]; every card trains.
    pub(crate) fn beside_runs(
        &self,
        device: &str,
        runs: impl FnOnce() -> Result<Vec<RunRecord>>,
    ) -> Result<String> {
        let device = self.checked(device)?;
        if device != AUTO {
            return Ok(device);
        }
        let all: Vec<String> = self.gpus().map(Gpu::device).collect();
        let Some(first) = all.first() else { return Ok(CPU.to_owned()) };
        first_free(&all, &busy(&runs()?)).ok_or_else(|| {
            ErrorInfo::new(ErrorCode::NeedsCpu, format!("Every graphics card trains: {}", all.join(", ")))
                .hint(format!(
                    "share one with its run: --device {first}; or compute on the CPU: --device cpu"
                ))
        })
    }

    /// The card of this name.
    pub(crate) fn card(&self, device: &str) -> Option<&Gpu> {
        self.gpus().find(|gpu| gpu.device() == device)
    }
}

/// Of a card's memory, what a run may take.
pub(crate) fn budget(gpu: &Gpu) -> u64 {
    (gpu.vram_total_bytes as f64 * USABLE) as u64
}

fn does_not_fit(shape: &ModelShape, config: &RunConfig, needed: u64, largest: &Gpu) -> ErrorInfo {
    let device = largest.device();
    let message = format!(
        "The run fits no graphics card: it needs {}, {device} has {}",
        gib(needed),
        gib(largest.vram_total_bytes)
    );
    let remedies = Remedy::each(shape, config, config.max_seq_len, Placement::Cuda, budget(largest));
    ErrorInfo::new(ErrorCode::NeedsCpu, message).hint(format!(
        "{}; or compute on the CPU: --device cpu; or try it all the same: --device {device}",
        Remedy::sentence_of(&remedies)
    ))
}

/// As its files tell.
fn shape(paths: &Paths, model: &str) -> Option<ModelShape> {
    models::shape(&models::resolve(paths, model).ok()?.path)
}

/// What the run takes of a card.
pub(crate) fn needed_bytes(shape: &ModelShape, config: &RunConfig) -> u64 {
    training_memory(shape, config, config.max_seq_len, Placement::Cuda).total()
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
