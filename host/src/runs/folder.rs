//! A run's folder: `run.toml`, `lathe.json`, `.lock`, and what the worker leaves there.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use lathe_protocol::{ErrorCode, ErrorInfo, Method, Origins, RunConfig, RunEntry, RunStatus};
use serde::{Deserialize, Serialize};

use crate::{
    config,
    db::RunRecord,
    error::{Result, io_error},
    files,
};

const LOCK: &str = ".lock";
/// Held by the worker itself, which may outlive its host for a moment.
const WORKER_LOCK: &str = ".worker.lock";
pub(super) const CONFIG: &str = "run.toml";
const PROVENANCE: &str = "lathe.json";

/// `lathe.json`: where a run or adapter comes from. Enough to rebuild the run's row in the database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Provenance {
    /// The version that wrote it.
    pub lathe: String,
    pub run: RunEntry,
    pub eval_data: Option<String>,
    pub init_adapter: Option<String>,
    /// It may start from an adapter of another base.
    #[serde(default)]
    pub force: bool,
    pub config: RunConfig,
}

impl Provenance {
    /// None if there is none, or none that we understand.
    pub(crate) fn read(folder: &Path) -> Option<Self> {
        files::read_json(&folder.join(PROVENANCE)).ok()
    }

    pub(super) fn of(record: &RunRecord) -> Self {
        let RunRecord { entry, config, eval_data, init_adapter, force } = record.clone();
        // What is true of a moment only stays out.
        let run = RunEntry {
            tokens_per_second: None,
            doing: None,
            queue_position: None,
            held_here: false,
            ..entry
        };
        Self { lathe: env!("CARGO_PKG_VERSION").into(), run, eval_data, init_adapter, force, config }
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        files::write_json(&folder.join(PROVENANCE), self)
    }

    /// As a run in `folder`, which may have been moved since.
    pub(super) fn into_record(self, folder: &Path) -> RunRecord {
        let Self { run, eval_data, init_adapter, force, config, lathe: _ } = self;
        let entry = RunEntry { out_dir: folder.display().to_string(), ..run };
        RunRecord { entry, config, eval_data, init_adapter, force }
    }
}

/// A run folder that no other process works in. Dropping it unlocks.
#[derive(Debug)]
pub(super) struct LockedFolder {
    pub path: PathBuf,
    /// Whether it was made for this run.
    pub is_new: bool,
    _lock: File,
}

impl LockedFolder {
    /// Makes the folder if need be, and locks it.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let is_new = !path.exists();
        files::create_dir_all(path)?;
        let lock_path = path.join(LOCK);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(io_error("write", &lock_path))?;
        // Somebody may just be looking whether the run goes on.
        let due = Instant::now() + Duration::from_secs(1);
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Self { path: path.to_path_buf(), is_new, _lock: lock }),
                Err(TryLockError::WouldBlock) if Instant::now() < due => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => {
                    let message = format!("Another Lathe process works in this folder: {}", path.display());
                    return Err(ErrorInfo::new(ErrorCode::Busy, message)
                        .hint("`lathe runs list` shows what runs, `lathe runs stop` ends it"));
                }
                Err(TryLockError::Error(error)) => return Err(io_error("lock", &lock_path)(error)),
            }
        }
    }

    /// An error if the folder holds a run, an adapter or a model: nothing is overwritten.
    pub(super) fn refuse_if_taken(&self) -> Result<()> {
        const SIGNS: [(&str, &str); 7] = [
            (CONFIG, "a run"),
            (PROVENANCE, "a run"),
            ("checkpoints", "a run's checkpoints"),
            ("adapter_config.json", "an adapter"),
            ("adapter_model.safetensors", "an adapter"),
            ("config.json", "a model"),
            ("model.safetensors", "a model"),
        ];
        let Some((sign, what)) = SIGNS.iter().find(|(name, _)| self.path.join(name).exists()) else {
            return Ok(());
        };
        let message = format!("The output folder holds {what} already ({sign}): {}", self.path.display());
        Err(ErrorInfo::new(ErrorCode::Io, message)
            .hint("add --resume to continue it, or choose another folder"))
    }

    pub(super) fn write_config(&self, run_config: &RunConfig) -> Result<()> {
        files::write_atomic(&self.path.join(CONFIG), config::to_toml(run_config)?.as_bytes())
    }

    /// The config and the provenance of the run that lies here.
    pub(super) fn read_run(&self) -> Result<RunRecord> {
        let run_config = config::build(Some(&self.path.join(CONFIG)), &[])?;
        let provenance =
            Provenance::read(&self.path).ok_or_else(|| nothing_to_resume(&self.path, PROVENANCE))?;
        Ok(RunRecord { config: run_config, ..provenance.into_record(&self.path) })
    }

    /// Waits until the worker of a host that died has saved and ended. `each` may end the wait.
    pub(super) fn wait_for_old_worker(&self, each: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        while files::is_locked(&self.path.join(WORKER_LOCK)) {
            each()?;
            thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Removes what [`Self::open`] and the start of a run made: it never began.
    pub(super) fn undo(self) {
        for name in [CONFIG, PROVENANCE, Origins::NAME, WORKER_LOCK, LOCK] {
            files::remove_quietly(&self.path.join(name));
        }
        if self.is_new {
            // Not if something else lies in it by now.
            drop(fs::remove_dir(&self.path));
        }
    }
}

/// The run's folder, if it is still there.
pub(super) fn of_run(entry: &RunEntry) -> Result<&Path> {
    let dir = Path::new(&entry.out_dir);
    if dir.is_dir() {
        return Ok(dir);
    }
    let message = format!("The run's folder is gone: {}", dir.display());
    Err(ErrorInfo::new(ErrorCode::NotFound, message)
        .hint(format!("`lathe runs rm {}` removes it from the list", entry.id)))
}

/// An error if no run lies in the folder.
pub(super) fn require_run(folder: &Path) -> Result<()> {
    if folder.join(CONFIG).is_file() { Ok(()) } else { Err(nothing_to_resume(folder, CONFIG)) }
}

fn nothing_to_resume(folder: &Path, missing: &str) -> ErrorInfo {
    let message = format!("No run to resume in this folder: it has no {missing}: {}", folder.display());
    ErrorInfo::new(ErrorCode::NotFound, message).hint("leave --resume out to start a new run")
}

/// Whether a process works in the folder.
pub(super) fn is_running(folder: &Path) -> bool {
    files::is_locked(&folder.join(LOCK)) || files::is_locked(&folder.join(WORKER_LOCK))
}

/// The checkpoints' folders, oldest first.
pub(super) fn checkpoints(folder: &Path) -> Vec<String> {
    let folder = folder.join("checkpoints");
    let names = files::names_in(&folder).unwrap_or_default();
    let mut found: Vec<(usize, String)> = names
        .into_iter()
        .map(|name| folder.join(name).display().to_string())
        .filter_map(|path| Some((checkpoint_step(&path)?, path)))
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// Of a checkpoint's folder, `…/step-N`.
pub(super) fn checkpoint_step(path: &str) -> Option<usize> {
    Path::new(path).file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()
}

/// Removes a run's traces from a folder of the user's; a finished adapter or model stays. Returns the bytes freed.
pub(super) fn clear(folder: &Path, entry: &RunEntry) -> Result<u64> {
    let mut doomed = vec!["checkpoints", LOCK, WORKER_LOCK];
    if entry.status != RunStatus::Completed {
        doomed.extend([CONFIG, PROVENANCE, Origins::NAME, "loss.png"]);
    }
    let mut freed = 0;
    for path in doomed.iter().map(|name| folder.join(name)) {
        if path.is_dir() {
            freed += files::size_below(&path);
            fs::remove_dir_all(&path).map_err(io_error("remove", &path))?;
        } else if let Ok(metadata) = fs::metadata(&path) {
            freed += metadata.len();
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
    }
    // Only if nothing is left in it.
    drop(fs::remove_dir(folder));
    Ok(freed)
}

/// What a finished run leaves: an adapter, or a model.
pub(super) fn result_name(method: Method) -> &'static str {
    if method == Method::Full { "model" } else { "adapter" }
}
