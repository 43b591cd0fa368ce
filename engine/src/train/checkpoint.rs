use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use lathe_kernels::AdamW;
use lathe_protocol::ErrorCode;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result, adapter,
    files::{self, Values},
    model::Trainable,
    train::guard::Recent,
    weights::SafetensorsFolder,
};

const STATE_FILE: &str = "state.json";
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
        return Ok(place);
    }
    let aside = checkpoints.join(format!(".step-{:08}.partial", state.step));
    if aside.exists() {
        std::fs::remove_dir_all(&aside).map_err(Error::io("remove a half-written checkpoint", &aside))?;
    }
    files::create_dir_all(&aside)?;
    save_weights(&aside)?;
    let mut moments = BTreeMap::new();
    for (trainable, (m, v)) in trainables.iter().zip(&optimizer.moments) {
        let dims = trainable.var.dims();
        moments.insert(format!("{}.exp_avg", trainable.name), Values::Slice(m, dims));
        moments.insert(format!("{}.exp_avg_sq", trainable.name), Values::Slice(v, dims));
    }
    files::write_values(&aside.join(OPTIMIZER_FILE), &moments)?;
    files::write_json(&aside.join(STATE_FILE), state)?;
    files::sync_dir(&aside)?;
    std::fs::rename(&aside, &place).map_err(Error::io("put the checkpoint in its place", &place))?;
    files::sync_dir(&checkpoints)?;
    let is_best = |path: &&PathBuf| state.best_step.is_some() && step(path) == state.best_step;
    for old in list(out_dir)?.iter().rev().skip(keep.max(1)).filter(|path| !is_best(path)) {
        std::fs::remove_dir_all(old).map_err(Error::io("remove an old checkpoint", old))?;
    }
    Ok(place)
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
/// Errors: a missing or broken file, a tensor that does not fit, other data than it was trained on.
pub fn load(
    checkpoint: &Path,
    trainables: &[Trainable],
    optimizer: &mut AdamW,
    data_hash: &str,
) -> Result<State> {
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
    // Read everything before anything is changed: a broken checkpoint leaves the model as it was.
    let mut loaded = Vec::with_capacity(trainables.len());
    for trainable in trainables {
        let weight = weights.read(&trainable.name)?;
        let m = moments.read(&format!("{}.exp_avg", trainable.name))?;
        let v = moments.read(&format!("{}.exp_avg_sq", trainable.name))?;
        if [&weight, &m, &v].iter().any(|tensor| tensor.dims() != trainable.var.dims()) {
            return Err(Error::invalid(
                ErrorCode::Adapter,
                format!(
                    "{:?} of the checkpoint does not fit the model: {}",
                    trainable.name,
                    checkpoint.display()
                ),
            ));
        }
        loaded.push((weight, m.flatten_all()?.to_vec1()?, v.flatten_all()?.to_vec1()?));
    }
    for ((trainable, slot), (weight, m, v)) in trainables.iter().zip(&mut optimizer.moments).zip(loaded) {
        trainable.var.set(&weight)?;
        *slot = (m, v);
    }
    optimizer.num_updates = state.num_updates;
    Ok(state)
}
