//! The store of blobs that repositories share: `blobs/XX/HASH` in the cache, by `huggingface_hub`'s `_shared_blobs.py`.
//!
//! A repository's blob is then a link to it, and `HASH.refs` lists those links. The list is a hint: a line counts only while the
//! link is there, and without a list nothing is deleted.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
};

use super::layout::{is_hex, is_real_dir, is_real_file, kind_of, lexical};
use crate::{
    error::{Result, io_error},
    files,
};

pub(super) const FOLDER: &str = "blobs";
const MARKER: &str = ".huggingface-shared-blobs";

pub(super) struct Store {
    cache: PathBuf,
}

impl Store {
    /// None if there is none of a layout that we know.
    pub(super) fn open(cache: &Path) -> Option<Self> {
        let dir = cache.join(FOLDER);
        let marker = dir.join(MARKER);
        let is_ours = is_real_dir(&dir)
            && is_real_file(&marker)
            && fs::read_to_string(&marker).is_ok_and(|version| version == "1\n");
        is_ours.then(|| Self { cache: cache.to_path_buf() })
    }

    /// Everything in it, with its size.
    pub(super) fn payloads(&self) -> Result<Vec<(PathBuf, u64)>> {
        let dir = self.cache.join(FOLDER);
        let mut found = Vec::new();
        for prefix in files::names_in(&dir)? {
            let folder = dir.join(&prefix);
            if !is_hex(&prefix, 2) || !is_real_dir(&folder) {
                continue;
            }
            for name in files::names_in(&folder)? {
                let path = folder.join(&name);
                if is_hex(&name, 64) && name.starts_with(&prefix) && is_real_file(&path) {
                    let size = fs::symlink_metadata(&path).map_or(0, |metadata| metadata.len());
                    found.push((path, size));
                }
            }
        }
        Ok(found)
    }

    /// What a repository's blob stands for, if it is a link into the store.
    pub(super) fn target_of(&self, blob: &Path) -> Option<PathBuf> {
        self.link_of(blob).filter(|target| is_real_file(target))
    }

    fn link_of(&self, blob: &Path) -> Option<PathBuf> {
        if !self.is_blob(blob) {
            return None;
        }
        let target = lexical(&blob.parent()?.join(fs::read_link(blob).ok()?));
        let inside = target.strip_prefix(self.cache.join(FOLDER)).ok()?;
        let parts: Vec<&str> =
            inside.components().map(|part| part.as_os_str().to_str()).collect::<Option<_>>()?;
        let [prefix, hash] = parts.as_slice() else { return None };
        (is_hex(hash, 64) && hash.get(..2) == Some(*prefix)).then_some(target)
    }

    /// Whether it is `REPOSITORY/blobs/NAME` of this cache.
    fn is_blob(&self, path: &Path) -> bool {
        let Ok(inside) = path.strip_prefix(&self.cache) else { return false };
        let parts: Vec<_> = inside.components().map(|part| part.as_os_str().to_string_lossy()).collect();
        matches!(parts.as_slice(), [repo, blobs, _] if kind_of(repo).is_some() && blobs == "blobs")
    }

    /// The links to a payload; none if its list cannot be read.
    fn references(&self, payload: &Path) -> Option<BTreeSet<PathBuf>> {
        let list = with_ending(payload, "refs");
        if !is_real_file(&list) {
            return None;
        }
        let text = fs::read_to_string(list).ok()?;
        let links = text
            .lines()
            .filter(|line| {
                !line.starts_with('/') && !Path::new(line).components().any(|part| part.as_os_str() == "..")
            })
            .map(|line| self.cache.join(line))
            .filter(|link| self.link_of(link).as_deref() == Some(payload));
        Some(links.collect())
    }

    /// What no link refers to any more, with its size.
    pub(super) fn unreferenced(&self) -> Result<Vec<(PathBuf, u64)>> {
        let mut payloads = self.payloads()?;
        payloads.retain(|(payload, _)| self.references(payload).is_some_and(|links| links.is_empty()));
        Ok(payloads)
    }

    /// The bytes of a payload, if removing `blobs` leaves no link to it.
    pub(super) fn freed_with(&self, payload: &Path, blobs: &BTreeSet<PathBuf>) -> u64 {
        match self.references(payload) {
            Some(links) if !links.is_empty() && links.is_subset(blobs) => {
                fs::symlink_metadata(payload).map_or(0, |metadata| metadata.len())
            }
            _ => 0,
        }
    }

    /// Removes a payload that no link refers to any more.
    pub(super) fn sweep(&self, payload: &Path) -> Result<()> {
        let lock_path = with_ending(payload, "lock");
        if fs::symlink_metadata(&lock_path).is_ok_and(|metadata| !metadata.is_file()) {
            return Ok(());
        }
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(io_error("write", &lock_path))?;
        lock.lock().map_err(io_error("lock", &lock_path))?;
        let list = with_ending(payload, "refs");
        match self.references(payload) {
            Some(links) if links.is_empty() => {
                if is_real_file(payload) {
                    fs::remove_file(payload).map_err(io_error("remove", payload))?;
                }
                files::remove_quietly(&list);
                Ok(())
            }
            Some(links) => {
                let names = links.iter().filter_map(|link| link.strip_prefix(&self.cache).ok());
                let lines: Vec<String> = names.map(|name| name.display().to_string()).collect();
                files::write_atomic(&list, (lines.join("\n") + "\n").as_bytes())
            }
            None => Ok(()),
        }
    }
}

fn with_ending(payload: &Path, ending: &str) -> PathBuf {
    let name = payload.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    payload.with_file_name(format!("{name}.{ending}"))
}
