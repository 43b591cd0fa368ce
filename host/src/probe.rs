//! One step of a run, measured in a worker of its own.

use std::time::Duration;

use lathe_protocol::{
    ErrorCode, ErrorInfo, Job as WorkerJob, Placement, ProbeJob, Remedy, RunConfig, training_memory,
};

use crate::{
    config,
    devices::Devices,
    error::Result,
    gpus, hardware,
    job::Job,
    models, runs,
    units::gib,
    worker::{self, Verdict},
};

/// Refuses what is predicted not to fit into the memory that is free: the system would end some process for it.
pub(crate) fn probe(
    job: &mut Job,
    model: &str,
    config: RunConfig,
    longest_row: Option<usize>,
    device: &str,
) -> Result<()> {
    config::validate(&config)?;
    let device = runs::device_beside(&job.host, device)?;
    let model = models::resolve(job.host.paths(), model)?;
    // A packed sequence is full.
    let longest_row = longest_row.filter(|_| !config.packing).unwrap_or(config.max_seq_len);
    let row_tokens = longest_row.min(config.max_seq_len);
    let (free_bytes, placement) = if let Some(gpu) = Devices::of(&job.host).card(&device) {
        (gpu.vram_free_bytes, Placement::Cuda)
    } else {
        let machine = hardware::detect(job.host.paths(), gpus::Seen::default());
        (machine.ram_available_bytes, Placement::Cpu)
    };
    if let Some(shape) = models::shape(&model.path).filter(|_| free_bytes > 0) {
        let needed = training_memory(&shape, &config, row_tokens, placement).total();
        if needed > free_bytes {
            let message = format!("The step does not fit: needs {}, {} free", gib(needed), gib(free_bytes));
            let remedy = Remedy::find(&shape, &config, row_tokens, placement, free_bytes);
            return Err(ErrorInfo::new(ErrorCode::OutOfMemory, message).hint(Remedy::sentence(remedy)));
        }
    }
    let work = ProbeJob { model: model.path_string(), config, row_tokens, device };
    // There is nothing to save: a stop ends it at once.
    worker::run(job, WorkerJob::Probe(Box::new(work)), Duration::ZERO, &mut |_, _| Verdict::Continue)
}
