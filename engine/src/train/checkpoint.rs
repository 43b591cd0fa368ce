use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::Tensor;
use lathe_kernels::{AdamW, Dynamic8, Moments};
use lathe_protocol::{ErrorCode, EvalMetrics, StepMetrics, Told};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result, adapter,
    files::{self, Values},
    model::Trainable,
    train::{checksums, guard::Recent},
    weights::SafetensorsFolder,
};

const STATE_FILE: &str = "state.json";
/// Metrics of the last steps that a checkpoint keeps: more than a host can lag behind.
const MAX_TOLD: usize = 64;
const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// Where a run stands. With the config it is the data cursor and the state of every random stream: both are functions
/// of the seed and the step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps done.
    pub step: usize,
    pub num_updates: usize,
    /// Hash of the tokens and masks trained on: a run never continues on other data.
    pub data_hash: String,
    pub last_loss: Option<f64>,
    pub best_eval_loss: Option<f64>,
    /// The step of [`Self::best_eval_loss`].
    #[serde(default)]
    pub best_step: Option<usize>,
    pub evals_without_improvement: usize,
    /// What the guard compares the next step with.
    #[serde(default)]
    pub recent: Recent,
    #[serde(default)]
    pub told: Told,
}

impl State {
    pub fn add_step(&mut self, step: StepMetrics) {
        add_last(&mut self.told.steps, step);
    }

    pub fn add_eval(&mut self, eval: EvalMetrics) {
        add_last(&mut self.told.evals, eval);
    }
}

fn add_last<T>(last: &mut Vec<T>, value: T) {
    if last.len() == MAX_TOLD {
        last.remove(0);
    }
    last.push(value);
}

pub fn folder(out_dir: &Path) -> PathBuf {
    out_dir.join("checkpoints")
}

pub fn of_step(out_dir: &Path, step: usize) -> PathBuf {
    folder(out_dir).join(format!("step-{step:08}"))
}

/// Writes `checkpoints/step-N` aside, syncs it and renames it into place; then drops all but the newest `keep` and the
/// best.
pub fn save(
    out_dir: &Path,
    state: &State,
    trainables: &[Trainable],
    optimizer: &AdamW,
    save_weights: impl FnOnce(&Path) -> Result<()>,
    keep: usize,
) -> Result<PathBuf> {
    let checkpoints = folder(out_dir);
    let place = of_step(out_dir, state.step);
    if place.exists() {
        if checksums::verify(&place).is_ok() {
            return Ok(place);
        }
        // Broken, and passed over when the run resumed.
        std::fs::remove_dir_all(&place).map_err(Error::io("remove a broken checkpoint", &place))?;
    }
    let aside = checkpoints.join(format!(".step-{:08}.partial", state.step));
    if aside.exists() {
        std::fs::remove_dir_all(&aside).map_err(Error::io("remove a half-written checkpoint", &aside))?;
    }
    let written = files::create_dir_all(&aside)
        .and_then(|()| save_weights(&aside))
        .and_then(|()| save_moments(&aside.join(OPTIMIZER_FILE), trainables, &optimizer.moments()?))
        .and_then(|()| files::write_json(&aside.join(STATE_FILE), state))
        .and_then(|()| checksums::write(&aside))
        .and_then(|()| files::sync_dir(&aside))
        .and_then(|()| {
            std::fs::rename(&aside, &place).map_err(Error::io("put the checkpoint in its place", &place))
        });
    if let Err(error) = written {
        // A full disk gets its space back; the error that matters is the one just met.
        std::fs::remove_dir_all(&aside).ok();
        return Err(error);
    }
    files::sync_dir(&checkpoints)?;
    let is_best = |path: &&PathBuf| state.best_step.is_some() && step(path) == state.best_step;
    for old in list(out_dir)?.iter().rev().skip(keep.max(1)).filter(|path| !is_best(path)) {
        std::fs::remove_dir_all(old).map_err(Error::io("remove an old checkpoint", old))?;
    }
    Ok(place)
}

/// Moments as they are held: those in 8 bits as bytes, with their blocks' scales beside them.
fn save_moments(path: &Path, trainables: &[Trainable], moments: &[Moments]) -> Result<()> {
    let mut values = BTreeMap::new();
    for (trainable, moments) in trainables.iter().zip(moments) {
        let dims = || trainable.var.dims().to_vec();
        let [first, second] = moment_names(trainable);
        match moments {
            Moments::F32 { m, v } => {
                values.insert(first, Values::Slice(m, dims()));
                values.insert(second, Values::Slice(v, dims()));
            }
            Moments::Dynamic8 { m, v } => {
                for (name, moment) in [(first, m), (second, v)] {
                    let scales = Values::Slice(&moment.scales, vec![moment.scales.len()]);
                    values.insert(scales_name(&name), scales);
                    values.insert(name, Values::Bytes(&moment.codes, dims()));
                }
            }
        }
    }
    files::write_values(path, &values)
}

fn moment_names(trainable: &Trainable) -> [String; 2] {
    ["exp_avg", "exp_avg_sq"].map(|moment| format!("{}.{moment}", trainable.name))
}

fn scales_name(moment: &str) -> String {
    format!("{moment}.absmax")
}

/// The run's checkpoints, oldest first.
pub fn list(out_dir: &Path) -> Result<Vec<PathBuf>> {
    let checkpoints = folder(out_dir);
    if !checkpoints.exists() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(&checkpoints).map_err(Error::io("list the checkpoints", &checkpoints))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io("list the checkpoints", &checkpoints))?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("step-")) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Of a checkpoint's folder, `…/step-N`.
pub fn step(path: &Path) -> Option<usize> {
    path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()
}

/// Puts weights and moments of one checkpoint back.
///
/// Errors: a missing, broken or changed file, a tensor that does not fit, other data than it was trained on.
pub fn load(
    checkpoint: &Path,
    trainables: &[Trainable],
    optimizer: &mut AdamW,
    data_hash: &str,
) -> Result<State> {
    checksums::verify(checkpoint)?;
    let state: State = files::read_json(&checkpoint.join(STATE_FILE))?;
    if state.data_hash != data_hash {
        return Err(Error::invalid(
            ErrorCode::Data,
            format!("The data has changed since step {} of this run: {}", state.step, checkpoint.display()),
        )
        .hint(
            "put the data file back as it was, or start a new run with --init-adapter from this checkpoint",
        ));
    }
    let weights_file = [adapter::WEIGHTS_FILE, "model.safetensors"].map(|name| checkpoint.join(name));
    let weights_file = weights_file.iter().find(|path| path.exists()).unwrap_or(&weights_file[0]);
    let weights = SafetensorsFolder::open_file(weights_file)?;
    let moments = SafetensorsFolder::open_file(&checkpoint.join(OPTIMIZER_FILE))?;
    let floats = |file: &SafetensorsFolder, name: &str, dims: &[usize]| -> Result<Vec<f32>> {
        let values = file.read(name)?;
        if values.dims() == dims {
            return Ok(values.flatten_all()?.to_vec1()?);
        }
        Err(Error::invalid(
            ErrorCode::Adapter,
            format!("{name:?} of the checkpoint does not fit the model: {}", checkpoint.display()),
        ))
    };
    // Read everything before anything is changed: a broken checkpoint leaves the model as it was.
    let mut loaded = Vec::with_capacity(trainables.len());
    let mut loaded_moments = Vec::with_capacity(trainables.len());
    for (trainable, old) in trainables.iter().zip(&*optimizer.moments()?) {
        let dims = trainable.var.dims();
        let [first, second] = moment_names(trainable);
        let in_8_bits = |name: &str, old: &Dynamic8| -> Result<Dynamic8> {
            Ok(Dynamic8 {
                codes: moments.read_bytes(name, Some(dims))?,
                scales: floats(&moments, &scales_name(name), &[old.scales.len()])?,
            })
        };
        loaded_moments.push(match old {
            Moments::F32 { .. } => {
                Moments::F32 { m: floats(&moments, &first, dims)?, v: floats(&moments, &second, dims)? }
            }
            Moments::Dynamic8 { m, v } => {
                Moments::Dynamic8 { m: in_8_bits(&first, m)?, v: in_8_bits(&second, v)? }
            }
        });
        loaded.push(floats(&weights, &trainable.name, dims)?);
    }
    for (trainable, weight) in trainables.iter().zip(loaded) {
        trainable.var.set(&Tensor::from_vec(weight, trainable.var.dims(), trainable.var.device())?)?;
    }
    optimizer.set_moments(loaded_moments)?;
    optimizer.num_updates = state.num_updates;
    Ok(state)
}
