use std::path::Path;

use lathe_kernels::gpu;
use lathe_protocol::{
    ErrorCode, EventBody, MeasuredMemory, Placement, ProbeJob, ProbeReport, training_memory,
};
use rand::Rng as _;

use super::{
    Surroundings, load,
    step::{self, Pass, trainables},
};
use crate::{
    Error, Result,
    corpus::Rows,
    inspect,
    model::Compute,
    rng,
    text_files::TextFiles,
    tokenize::{TokenizedRow, Tokens},
    weights::Weights,
};

/// Bytes: resident ones of this process, or those of its tensors on a card.
#[derive(Debug, Clone, Copy)]
pub struct ProcessMemory {
    pub now: u64,
    /// The most there ever was.
    pub peak: u64,
}

/// Does what a run's first step does, on a batch of rows made up of random tokens, and measures what that takes.
///
/// Errors: an unusable model; a system that does not tell the memory of a process.
pub fn probe(
    job: &ProbeJob,
    memory: &dyn Fn() -> Option<ProcessMemory>,
    world: &Surroundings<'_>,
    emit: &mut dyn FnMut(EventBody),
) -> Result<ProbeReport> {
    let ProbeJob { model: path, config, row_tokens, device } = job;
    let path = Path::new(path);
    let compute = Compute::open(device)?;
    // Of a card what lies there; of the CPU the process.
    let memory = || {
        let on_card = gpu::memory_in_use(&compute.device).map(|[now, peak]| ProcessMemory { now, peak });
        on_card
            .or_else(memory)
            .ok_or_else(|| Error::invalid(ErrorCode::Device, "The system does not tell a process's memory"))
    };
    let mut tell = |what: &str| emit(EventBody::Progress { what: what.into(), done: 0, total: 0 });
    let text_files = TextFiles::open(path)?.with_styles(&config.styles)?;
    let mut measured = MeasuredMemory { program: memory()?.now, ..MeasuredMemory::default() };

    // 1. The model
    tell("Loading the model");
    let shape = {
        let weights = Weights::open(path)?;
        inspect::shape(&weights.config(path)?, &weights)
    };
    let (model, _) = load::load_model(path, "", config, None, Some(&text_files), compute.clone())?;
    measured.loaded = memory()?.now;

    // 2. What learns. An update by nothing, so that gradients and moments are really there.
    let trainables = trainables(&model, config.method);
    let mut optimizer = step::optimizer(&trainables, config)?;
    optimizer.clear_gradients()?;
    optimizer.step(1.0, 0.0)?;
    measured.ready = memory()?.now;

    let placement = if compute.is_gpu() { Placement::Cuda } else { Placement::Cpu };

    // 3. The step
    tell("Measuring a step");
    let started = (world.clock)();
    let mut rng = rng::stream(config.seed, "probe", 0);
    let vocab_size = model.config.vocab_size as u32;
    let mut side = || Tokens {
        ids: (0..*row_tokens).map(|_| rng.random_range(0..vocab_size)).collect(),
        loss_mask: (0..*row_tokens).map(|token| token > 0).collect(),
    };
    let rows: Vec<TokenizedRow> = (0..config.batch_size)
        .map(|row| {
            let Tokens { ids, loss_mask } = side();
            let rejected = config.objective.takes_pairs().then(&mut side);
            TokenizedRow { row, line: row + 1, ids, loss_mask, rejected }
        })
        .collect();
    let rope = model.rope_table(*row_tokens);
    let pass = Pass {
        model: &model,
        trainables: &trainables,
        rows: &Rows::Memory(&rows),
        references: &[],
        rope: &rope,
        config,
        offload: step::offload(&model, config)?,
        stop: world.stop,
    };
    let window = vec![(0..rows.len()).collect()];
    if pass.run(0, &window, &mut optimizer)?.is_none() {
        return Err(Error::invalid(ErrorCode::Busy, "Stopped on request"));
    }
    optimizer.gradient_norm()?;
    optimizer.step(1.0, 0.0)?;
    measured.peak = memory()?.peak;
    Ok(ProbeReport {
        predicted: training_memory(&shape, config, *row_tokens, placement),
        measured,
        row_tokens: *row_tokens,
        seconds: (world.clock)() - started,
    })
}
