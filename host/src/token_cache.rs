//! What tokenised data takes on disk. The engine fills the folder; here the oldest goes, and all of it on request.

use std::{fs, path::Path, time::SystemTime};

use lathe_protocol::{EventBody, TokenCache};

use crate::{
    Paths,
    error::{Result, io_error},
    files,
    job::Job,
    settings,
};

/// Written whenever an entry is used.
const USED: &str = "used";

struct Entry {
    folder: std::path::PathBuf,
    size_bytes: u64,
    used: SystemTime,
}

fn entries(folder: &Path) -> Result<Vec<Entry>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let names = files::names_in(folder)?;
    let entry = |name: String| {
        let folder = folder.join(name);
        let file = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
        let used = file(&folder.join(USED)).or_else(|| file(&folder)).unwrap_or(SystemTime::UNIX_EPOCH);
        Entry { size_bytes: files::size_below(&folder), folder, used }
    };
    Ok(names.into_iter().map(entry).collect())
}

fn limit_bytes(paths: &Paths) -> u64 {
    // A damaged file is told of by whoever shows the settings.
    settings::load(&paths.settings).unwrap_or_default().token_cache_gb.saturating_mul(1 << 30)
}

/// Removes what was used longest ago, until the rest is within the limit of the settings.
pub(crate) fn prune(paths: &Paths) -> Result<()> {
    let mut entries = entries(&paths.token_cache())?;
    let mut size: u64 = entries.iter().map(|entry| entry.size_bytes).sum();
    entries.sort_by_key(|entry| entry.used);
    let limit = limit_bytes(paths);
    for entry in entries {
        if size <= limit {
            break;
        }
        // Open elsewhere, it stays on Windows; the next time it goes.
        if fs::remove_dir_all(&entry.folder).is_ok() {
            size -= entry.size_bytes;
        }
    }
    Ok(())
}

pub(crate) fn show(job: &Job) -> Result<()> {
    let paths = job.host.paths();
    let entries = entries(&paths.token_cache())?;
    job.emit(EventBody::TokenCache(TokenCache {
        folder: paths.token_cache().display().to_string(),
        entries: entries.len(),
        size_bytes: entries.iter().map(|entry| entry.size_bytes).sum(),
        limit_bytes: limit_bytes(paths),
    }));
    Ok(())
}

pub(crate) fn clear(job: &Job) -> Result<()> {
    let mut freed_bytes = 0;
    for Entry { folder, size_bytes, .. } in entries(&job.host.paths().token_cache())? {
        fs::remove_dir_all(&folder).map_err(io_error("remove tokenised data", &folder))?;
        freed_bytes += size_bytes;
    }
    job.emit(EventBody::Removed { what: "the tokenised data".into(), freed_bytes });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::in_folder(dir.path());
        fs::write(&paths.settings, "token_cache_gb = 1").unwrap();
        for (name, used_secs) in [("old", 100), ("new", 300), ("middle", 200)] {
            let entry = paths.token_cache().join(name);
            fs::create_dir_all(&entry).unwrap();
            // Holes, which take no room here.
            fs::File::create(entry.join("tokens.bin")).unwrap().set_len(600 << 20).unwrap();
            let used = fs::File::create(entry.join(USED)).unwrap();
            used.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(used_secs)).unwrap();
        }
        prune(&paths).unwrap();
        assert_eq!(files::names_in(&paths.token_cache()).unwrap(), ["new"]);
        fs::write(&paths.settings, "token_cache_gb = 0").unwrap();
        prune(&paths).unwrap();
        assert!(files::names_in(&paths.token_cache()).unwrap().is_empty());
    }
}
