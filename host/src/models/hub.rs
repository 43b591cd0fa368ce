//! The Hugging Face cache as `huggingface_hub` lays it out: `models--owner--name/{blobs,refs,snapshots}`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use lathe_protocol::RepoKind;

use crate::{cache, error::Result, files};

/// A model's repository in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Repo {
    /// `owner/name`.
    pub id: String,
    pub dir: PathBuf,
}

/// One revision on disk.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub revision: String,
    pub path: PathBuf,
    /// Whether the repo's id alone means this one.
    pub is_main: bool,
}

pub(crate) fn repo_folder(id: &str) -> String {
    cache::folder_of(RepoKind::Model, id)
}

pub(crate) fn repos(folder: &Path) -> Result<Vec<Repo>> {
    let names = files::names_in(folder)?;
    Ok(names
        .into_iter()
        .filter_map(|name| {
            let (RepoKind::Model, id) = cache::kind_of(&name)? else { return None };
            Some(Repo { id, dir: folder.join(name) })
        })
        .collect())
}

impl Repo {
    /// Every revision, the main one first.
    pub(crate) fn snapshots(&self) -> Result<Vec<Snapshot>> {
        let folder = self.dir.join("snapshots");
        let main = fs::read_to_string(self.dir.join("refs").join("main")).unwrap_or_default();
        let mut snapshots: Vec<Snapshot> = files::names_in(&folder)?
            .into_iter()
            .filter(|name| folder.join(name).is_dir())
            .map(|revision| Snapshot {
                path: folder.join(&revision),
                is_main: revision == main.trim(),
                revision,
            })
            .collect();
        if !snapshots.iter().any(|snapshot| snapshot.is_main) {
            // Fetched by commit or tag: the newest stands for the repo.
            let newest = snapshots.iter_mut().max_by_key(|snapshot| {
                fs::metadata(&snapshot.path)
                    .and_then(|metadata| metadata.modified())
                    .unwrap_or(SystemTime::UNIX_EPOCH)
            });
            if let Some(newest) = newest {
                newest.is_main = true;
            }
        }
        snapshots.sort_by_key(|snapshot| !snapshot.is_main);
        Ok(snapshots)
    }

    pub(crate) fn main(&self) -> Result<Option<Snapshot>> {
        Ok(self.snapshots()?.into_iter().next())
    }
}

/// Bytes of the files below `folder`, those reached twice through links counted once.
pub(crate) fn distinct_size(folder: &Path) -> u64 {
    let mut seen = BTreeSet::new();
    files::files_below(folder).map_or(0, |found| {
        found
            .into_iter()
            .filter(|(path, _)| seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())))
            .map(|(_, size)| size)
            .sum()
    })
}
