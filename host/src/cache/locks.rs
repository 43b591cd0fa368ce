//! Who works in the cache: `.locks/REPOSITORY/*.lock`, held by whoever downloads, of whatever program, and by Lathe's workers.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use lathe_protocol::{ErrorCode, ErrorInfo};

use super::{layout::kind_of, scan::Scan};
use crate::{
    error::{Result, io_error},
    files,
};

/// Held, together with others, by those that use a model.
const IN_USE: &str = "lathe-in-use.lock";

/// Locks that are held until this is dropped.
pub(crate) struct Held {
    _locks: Vec<File>,
}

pub(super) fn folder(cache: &Path, repo: &str) -> PathBuf {
    cache.join(".locks").join(repo)
}

/// A repository for ourselves, by its folder's name; an error if it is downloaded or used.
pub(crate) fn hold(cache: &Path, repo: &str) -> Result<Held> {
    let folder = folder(cache, repo);
    files::create_dir_all(&folder)?;
    let mut names = files::names_in(&folder)?;
    names.retain(|name| Path::new(name).extension().is_some_and(|ending| ending == "lock") && name != IN_USE);
    names.push(IN_USE.into());
    let mut locks = Vec::new();
    for name in names {
        let path = folder.join(&name);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io_error("open the lock", &path))?;
        match lock.try_lock() {
            Ok(()) => locks.push(lock),
            Err(TryLockError::WouldBlock) => {
                let what = if name == IN_USE { "used by a chat or a run" } else { "being downloaded" };
                let message = format!("This repository is {what}: {}", cache.join(repo).display());
                return Err(
                    ErrorInfo::new(ErrorCode::Busy, message).hint("wait until that has ended, or stop it")
                );
            }
            Err(TryLockError::Error(error)) => return Err(io_error("lock", &path)(error)),
        }
    }
    Ok(Held { _locks: locks })
}

/// The whole cache for ourselves.
pub(super) fn hold_all(cache: &Path) -> Result<Vec<Held>> {
    let mut repos = files::names_in(cache)?;
    repos.retain(|name| kind_of(name).is_some());
    // The cache's own, so that an empty one is held too.
    repos.push(String::new());
    repos.iter().map(|repo| hold(cache, repo)).collect()
}

/// Whether Lathe works on a repository, or on the whole cache (an empty name).
pub(super) fn is_held(cache: &Path, repo: &str) -> bool {
    files::is_locked(&folder(cache, repo).join(IN_USE))
}

/// Says that the model that lies there is used, until the result is dropped. None if it is not of the cache, or the cache cannot be
/// written to.
pub(crate) fn use_model(cache: &Path, model: &Path) -> Option<File> {
    let inside = model.strip_prefix(cache).ok()?;
    let folder = folder(cache, inside.components().next()?.as_os_str().to_str()?);
    fs::create_dir_all(&folder).ok()?;
    let path = folder.join(IN_USE);
    let lock = File::options().create(true).truncate(false).write(true).open(path).ok()?;
    lock.try_lock_shared().ok()?;
    Some(lock)
}

/// Whether somebody writes to a partial file `HASH.incomplete` or `HASH.XXXX.incomplete` right now.
pub(super) fn is_downloaded(scan: &Scan, partial: &Path) -> bool {
    let lock = || {
        let repo = partial.strip_prefix(&scan.dir).ok()?.components().next()?.as_os_str().to_str()?;
        let hash = partial.file_name()?.to_str()?.split('.').next()?;
        Some(folder(&scan.dir, repo).join(format!("{hash}.lock")))
    };
    lock().is_some_and(|lock| files::is_locked(&lock))
}
