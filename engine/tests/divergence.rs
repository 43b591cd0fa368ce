//! The guard: runs that diverge end before the bad update, name their rows, and go on from the last sound checkpoint.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use candle_core::{Device, Tensor, safetensors};
use lathe_engine::{
    Error,
    tokenize::TokenizedRow,
    train::{self, Surroundings},
};
use lathe_protocol::{
    Divergence, DivergenceSign, ErrorCode, EventBody, Machine, RowPlace, RunConfig, TrainJob,
};

/// Its embedding is no number in [`poisoned_model`].
const POISON: u32 = 319;

/// A model with a token that spoils every row it is in, and no other.
fn poisoned_model(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/tiny-llama3-rope");
    std::fs::copy(source.join("config.json"), folder.join("config.json")).unwrap();
    let mut tensors: HashMap<String, Tensor> =
        safetensors::load(source.join("model.safetensors"), &Device::Cpu).unwrap();
    let embeddings = tensors.get_mut("model.embed_tokens.weight").unwrap();
    let (vocab_size, hidden_size) = embeddings.dims2().unwrap();
    assert_eq!(vocab_size, POISON as usize + 1);
    let poison = Tensor::full(f32::NAN, (1, hidden_size), &Device::Cpu).unwrap();
    let sound = embeddings.narrow(0, 0, vocab_size - 1).unwrap().to_dtype(poison.dtype()).unwrap();
    *embeddings = Tensor::cat(&[sound, poison], 0).unwrap();
    safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
    folder.to_path_buf()
}

/// A row of a file whose every third row is held out, behind a header line.
fn row(index: usize, ids: Vec<u32>) -> TokenizedRow {
    let row = index * 3;
    TokenizedRow { row, line: row + 2, loss_mask: vec![true; ids.len()], ids, rejected: None }
}

fn phrase(index: usize) -> Vec<u32> {
    (0..12).map(|place| 20 + (index as u32 * 31 + place * 7) % 200).collect()
}

fn config() -> RunConfig {
    let mut config = RunConfig {
        packing: false,
        grad_accum: 1,
        save_steps: 1,
        save_total_limit: 8,
        learning_rate: 1e-2,
        ..RunConfig::default()
    };
    config.lora.r = 4;
    config
}

fn job(model: &Path, config: RunConfig, out_dir: &Path) -> TrainJob {
    TrainJob {
        model: model.display().to_string(),
        model_name: "tiny".into(),
        data: "rows".into(),
        eval_data: None,
        out_dir: out_dir.display().to_string(),
        init_adapter: None,
        config,
        resume: false,
        device: "cpu".into(),
        force: false,
        machine: Machine::default(),
        cache: out_dir.join("cache").display().to_string(),
    }
}

/// What a run told, and how it ended.
struct Told {
    /// Step and loss.
    steps: Vec<(usize, f64)>,
    evals: usize,
    divergence: Option<Divergence>,
    end: Result<(), Error>,
}

impl Told {
    fn last_step(&self) -> usize {
        self.steps.last().unwrap().0
    }
}

fn run(job: &TrainJob, rows: &[TokenizedRow], eval_rows: &[TokenizedRow]) -> Told {
    let world = Surroundings { clock: &|| 0.0, stop: &AtomicBool::new(false), audience: None };
    let mut told = Told { steps: Vec::new(), evals: 0, divergence: None, end: Ok(()) };
    told.end = train::run_on_rows(job, rows, eval_rows, None, &world, &mut |event| match event {
        EventBody::Step(step) => told.steps.push((step.step, step.loss)),
        EventBody::Eval(_) => told.evals += 1,
        EventBody::Diverged(divergence) => told.divergence = Some(divergence),
        _ => {}
    })
    .map(drop);
    told
}

fn newest_checkpoint(out_dir: &Path) -> String {
    let entries = std::fs::read_dir(out_dir.join("checkpoints")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).max().unwrap()
}

#[test]
fn a_row_that_makes_no_number_is_named_and_a_resume_without_it_goes_on() {
    let model = tempfile::tempdir().unwrap();
    let model = poisoned_model(model.path());
    let mut rows: Vec<_> = (0..16).map(|index| row(index, phrase(index))).collect();
    rows[5].ids[3] = POISON;
    let out_dir = tempfile::tempdir().unwrap();
    let mut job = job(&model, RunConfig { grad_accum: 2, epochs: 2.0, ..config() }, out_dir.path());
    let told = run(&job, &rows, &[]);

    let Err(Error::Invalid { code: ErrorCode::Diverged, message, .. }) = &told.end else {
        panic!("{:?}", told.end)
    };
    let divergence = told.divergence.clone().unwrap();
    assert_eq!((divergence.sign, divergence.loss), (DivergenceSign::NotFinite, None));
    assert_eq!((divergence.step, divergence.rows.len()), (told.last_step() + 1, 2));
    assert!(divergence.rows.contains(&RowPlace { row: 15, line: 17, file: None }), "{divergence:?}");
    assert!(message.contains("15 (line 17)"), "{message}");
    // The checkpoint just before has weights that no step has shown to be sound.
    assert_eq!(divergence.resumes_from, told.last_step() - 1);
    assert_eq!(newest_checkpoint(out_dir.path()), format!("step-{:08}", divergence.resumes_from));

    // As it was, it comes to the same place; without the rows it goes on, from the same losses.
    job.resume = true;
    let again = run(&job, &rows, &[]);
    assert_eq!(again.divergence, Some(divergence.clone()));
    assert_eq!(again.steps, told.steps[divergence.resumes_from..]);
    job.config.skip_rows = divergence.rows.iter().map(|place| place.row).collect();
    let without = run(&job, &rows, &[]);
    assert!(without.end.is_ok(), "{:?}", without.end);
    assert_eq!(without.steps[..again.steps.len()], again.steps);
    assert!(without.steps.iter().all(|(_, loss)| loss.is_finite()));
    assert_eq!(without.last_step(), 16);
    // Nothing is learned at the step that lost its rows.
    let steps: Vec<usize> = without.steps.iter().map(|(step, _)| *step).collect();
    assert!(!steps.contains(&divergence.step), "{steps:?}");
}

#[test]
fn a_loss_that_spikes_names_its_row_and_passes_when_it_is_not_looked_for() {
    let model = tempfile::tempdir().unwrap();
    let model = poisoned_model(model.path());
    // One sentence until it is known by heart, then noise.
    let mut rows: Vec<_> = (0..60).map(|index| row(index, phrase(1))).collect();
    rows[50].ids = (0..12).map(|place| 301 - place * 23).collect();
    let out_dir = tempfile::tempdir().unwrap();
    let mut config = RunConfig { shuffle: false, spike_window: 10, save_steps: 20, ..config() };
    config.lora.targets = vec!["all-linear".into()];
    let mut job = job(&model, config, out_dir.path());
    let told = run(&job, &rows, &[]);
    let divergence = told.divergence.unwrap();
    assert_eq!((divergence.sign, divergence.step), (DivergenceSign::LossSpike, 51));
    assert_eq!(divergence.rows, [RowPlace { row: 150, line: 152, file: None }]);
    assert!(divergence.usual.unwrap() + 2.5 < divergence.loss.unwrap(), "{divergence:?}");
    assert_eq!(divergence.resumes_from, 40);

    job.resume = true;
    job.config.spike_threshold = 0.0;
    let on = run(&job, &rows, &[]);
    assert!(on.end.is_ok() && on.divergence.is_none());
    assert_eq!((on.steps[0].0, on.last_step()), (41, 60));
}

#[test]
fn a_learning_rate_that_blows_up_is_caught_and_a_lower_one_goes_on() {
    let model = tempfile::tempdir().unwrap();
    let model = poisoned_model(model.path());
    let rows: Vec<_> = (0..40).map(|index| row(index, phrase(index % 4))).collect();
    let out_dir = tempfile::tempdir().unwrap();
    let hot = RunConfig { learning_rate: 1e30, warmup_ratio: 0.0, ..config() };
    let mut job = job(&model, hot, out_dir.path());
    let told = run(&job, &rows, &[]);
    let divergence = told.divergence.clone().unwrap();
    // The first update spoils the weights, and so the checkpoint after it.
    assert_eq!((divergence.step, divergence.resumes_from), (2, 0));
    job.resume = true;
    job.config.learning_rate = 1e-3;
    let on = run(&job, &rows, &[]);
    assert!(on.end.is_ok(), "{:?}", on.end);
    assert_eq!(on.steps.len(), 40);
    assert_eq!(on.steps[0], told.steps[0]);
}

#[test]
fn a_held_out_loss_that_is_no_number_ends_the_run_too() {
    let model = tempfile::tempdir().unwrap();
    let model = poisoned_model(model.path());
    let rows: Vec<_> = (0..8).map(|index| row(index, phrase(index))).collect();
    let mut held_out: Vec<_> = (8..12).map(|index| row(index, phrase(index))).collect();
    held_out[2].ids[0] = POISON;
    let out_dir = tempfile::tempdir().unwrap();
    let mut job = job(&model, RunConfig { eval_steps: 3, max_seq_len: 12, ..config() }, out_dir.path());
    let told = run(&job, &rows, &held_out);
    assert_eq!((told.evals, told.last_step()), (0, 3));
    let divergence = told.divergence.clone().unwrap();
    assert_eq!((divergence.sign, divergence.resumes_from), (DivergenceSign::EvalNotFinite, 2));
    assert_eq!(divergence.rows, [RowPlace { row: 30, line: 32, file: None }]);
    // In a file of its own it is no row of the data, and cannot be skipped there.
    job.eval_data = Some("held-out".into());
    job.resume = true;
    assert_eq!(run(&job, &rows, &held_out).divergence.unwrap().rows, []);
}

#[test]
fn a_run_without_any_row_is_refused() {
    let model = tempfile::tempdir().unwrap();
    let model = poisoned_model(model.path());
    let rows = [row(0, phrase(0)), row(1, phrase(1))];
    let out_dir = tempfile::tempdir().unwrap();
    let job = job(&model, RunConfig { skip_rows: vec![0, 3], ..config() }, out_dir.path());
    let error = run(&job, &rows, &[]).end.unwrap_err();
    assert!(error.to_string().contains("none is left to train on"), "{error}");
}
