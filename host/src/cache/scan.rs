//! What lies in the cache, counted as `scan_cache_dir` of `huggingface_hub` does.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use lathe_protocol::RepoKind;

use super::{
    layout::{below, blob_of, is_link, kind_of, own_size},
    moving,
    store::{self, Store},
};
use crate::{error::Result, files};

/// Made by operating systems, in whatever folder.
const IGNORED: [&str; 3] = [".DS_Store", "Thumbs.db", "desktop.ini"];
const PARTIAL: &str = ".incomplete";

pub(super) struct Scan {
    /// Where the cache really lies.
    pub dir: PathBuf,
    pub repos: Vec<Repo>,
    pub broken: Vec<Broken>,
    pub store: Option<Store>,
    pub leftovers: Vec<Found>,
    /// Partial downloads of broken repositories.
    pub stray: Vec<Found>,
}

/// A repository that can be read.
pub(super) struct Repo {
    pub kind: RepoKind,
    pub id: String,
    /// In the cache.
    pub dir: PathBuf,
    pub revisions: Vec<Revision>,
    /// What its revisions refer to, by path.
    pub blobs: BTreeMap<PathBuf, Stat>,
    pub unreferenced: Vec<Found>,
    pub incomplete: Vec<Found>,
    pub accessed_secs: u64,
    pub modified_secs: u64,
}

pub(super) struct Revision {
    pub commit: String,
    pub dir: PathBuf,
    pub refs: Vec<String>,
    /// The blob of each file.
    pub files: Vec<PathBuf>,
    pub modified_secs: u64,
}

/// What is not laid out as it should be.
pub(super) struct Broken {
    pub dir: PathBuf,
    pub why: String,
}

pub(super) struct Found {
    pub path: PathBuf,
    pub size: u64,
}

#[derive(Clone, Copy)]
pub(super) struct Stat {
    pub size: u64,
    accessed_secs: u64,
    modified_secs: u64,
}

impl Scan {
    /// A cache that is not there yet is an empty one.
    pub(super) fn of(cache: &Path) -> Result<Self> {
        moving::recover(cache)?;
        let dir = cache.canonicalize().unwrap_or_else(|_| cache.to_path_buf());
        let mut scan = Self {
            store: Store::open(&dir),
            dir,
            repos: Vec::new(),
            broken: Vec::new(),
            leftovers: Vec::new(),
            stray: Vec::new(),
        };
        scan.leftovers.extend(moving::leftover_beside(cache).map(found));
        for name in files::names_in(&scan.dir)? {
            let path = scan.dir.join(&name);
            if IGNORED.contains(&name.as_str()) || [".locks", "CACHEDIR.TAG"].contains(&name.as_str()) {
                continue;
            }
            if name == store::FOLDER && scan.store.is_some() {
                continue;
            }
            if moving::is_away(&path) || files::is_aside(&name) {
                if moving::is_leftover(&path) || files::is_abandoned(&name) {
                    scan.leftovers.push(found(path));
                }
                continue;
            }
            match Repo::read(&path, &name) {
                Ok(repo) => {
                    let inner = files::names_in(&repo.dir)?;
                    let inner = inner.into_iter().filter(|name| files::is_abandoned(name));
                    scan.leftovers.extend(inner.map(|name| found(repo.dir.join(name))));
                    scan.repos.push(repo);
                }
                Err(why) => {
                    scan.stray.extend(partial_files(&path));
                    scan.broken.push(Broken { dir: path, why });
                }
            }
        }
        Ok(scan)
    }

    /// Of what revisions refer to, each blob once, also when repositories share it, and of all that the store holds.
    pub(super) fn size(&self) -> Result<u64> {
        let is_shared =
            |blob: &Path| self.store.as_ref().is_some_and(|store| store.target_of(blob).is_some());
        let blobs: BTreeMap<&PathBuf, u64> = self
            .repos
            .iter()
            .flat_map(|repo| repo.blobs.iter().map(|(path, stat)| (path, stat.size)))
            .filter(|(path, _)| !is_shared(path))
            .collect();
        let shared = self.store.as_ref().map(Store::payloads).transpose()?.unwrap_or_default();
        Ok(blobs.values().sum::<u64>() + shared.iter().map(|(_, size)| size).sum::<u64>())
    }
}

impl Repo {
    /// The error is a sentence.
    fn read(dir: &Path, name: &str) -> std::result::Result<Self, String> {
        let shown = dir.display();
        if !dir.is_dir() {
            let what = if is_link(dir) { "A link to nothing" } else { "Not a folder" };
            return Err(format!("{what}: {shown}"));
        }
        let (kind, id) = kind_of(name).ok_or_else(|| format!("Not the name of a repository: {shown}"))?;
        let snapshots = dir.join("snapshots");
        if !snapshots.is_dir() {
            return Err(format!("It has no snapshots: {shown}"));
        }
        let unreadable = |error: std::io::Error| format!("It cannot be read: {error}: {shown}");
        let mut refs = refs(dir)?;
        let mut blobs = BTreeMap::new();
        let mut revisions = Vec::new();
        for commit in files::names_in(&snapshots).map_err(|error| error.to_string())? {
            let folder = snapshots.join(&commit);
            if IGNORED.contains(&commit.as_str()) {
                continue;
            }
            if !folder.is_dir() {
                return Err(format!("A file lies among its snapshots: {}", folder.display()));
            }
            let mut files = BTreeSet::new();
            let paths = below(&folder).map_err(unreadable)?;
            for path in &paths {
                let blob = blob_of(path);
                let stat = Stat::of(&blob).ok_or_else(|| {
                    format!("{} points to a blob that is gone: {}", path.display(), blob.display())
                })?;
                blobs.insert(blob.clone(), stat);
                files.insert(blob);
            }
            let newest = files.iter().filter_map(|blob| blobs.get(blob)).map(|stat| stat.modified_secs).max();
            let modified_secs = newest.or_else(|| Some(Stat::of(&folder)?.modified_secs)).unwrap_or_default();
            let refs = refs.remove(&commit).unwrap_or_default();
            // A file for each path, also where two are one blob.
            let files = paths.iter().map(|path| blob_of(path)).collect();
            revisions.push(Revision { commit, dir: folder, refs, files, modified_secs });
        }
        if let Some((commit, names)) = refs.first_key_value() {
            return Err(format!(
                "{} means the revision {commit}, which is not there: {shown}",
                names.join(", ")
            ));
        }
        let of_folder = Stat::of(dir).unwrap_or(Stat { size: 0, accessed_secs: 0, modified_secs: 0 });
        let newest =
            |secs: fn(&Stat) -> u64| blobs.values().map(secs).max().unwrap_or_else(|| secs(&of_folder));
        let incomplete = partial_files(dir);
        let mut unreferenced = Vec::new();
        for name in files::names_in(&dir.join("blobs")).map_err(|error| error.to_string())? {
            let path = dir.join("blobs").join(&name);
            let is_known =
                blobs.contains_key(&path) || name.ends_with(PARTIAL) || IGNORED.contains(&name.as_str());
            if !is_known && !path.is_dir() {
                unreferenced.push(found(path));
            }
        }
        Ok(Self {
            kind,
            id,
            dir: dir.to_path_buf(),
            accessed_secs: newest(|stat| stat.accessed_secs),
            modified_secs: newest(|stat| stat.modified_secs),
            revisions,
            blobs,
            unreferenced,
            incomplete,
        })
    }

    /// Of these blobs, each once.
    pub(super) fn size_of(&self, blobs: &BTreeSet<&PathBuf>) -> u64 {
        blobs.iter().filter_map(|blob| self.blobs.get(*blob)).map(|stat| stat.size).sum()
    }

    pub(super) fn size(&self) -> u64 {
        self.blobs.values().map(|stat| stat.size).sum()
    }

    /// `model owner/name`.
    pub(super) fn label(&self) -> String {
        format!("{} {}", self.kind.word(), self.id)
    }

    pub(super) fn folder(&self) -> String {
        super::folder_of(self.kind, &self.id)
    }
}

impl Stat {
    /// Of what a path leads to.
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        let secs = |time: std::io::Result<SystemTime>| {
            time.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs())
        };
        Some(Self {
            size: metadata.len(),
            accessed_secs: secs(metadata.accessed()),
            modified_secs: secs(metadata.modified()),
        })
    }
}

/// The branches and tags of each revision.
fn refs(dir: &Path) -> std::result::Result<BTreeMap<String, Vec<String>>, String> {
    let folder = dir.join("refs");
    let mut refs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    if !folder.exists() {
        return Ok(refs);
    }
    let unreadable =
        |error: std::io::Error| format!("Its refs cannot be read: {error}: {}", folder.display());
    for path in below(&folder).map_err(unreadable)? {
        let name = path.strip_prefix(&folder).unwrap_or(&path).to_string_lossy().replace('\\', "/");
        if !name.rsplit('/').next().is_some_and(|last| IGNORED.contains(&last)) {
            let commit = fs::read_to_string(&path).map_err(unreadable)?;
            refs.entry(commit.trim().to_owned()).or_default().push(name);
        }
    }
    Ok(refs)
}

fn partial_files(dir: &Path) -> Vec<Found> {
    let blobs = dir.join("blobs");
    let names = files::names_in(&blobs).unwrap_or_default();
    names
        .into_iter()
        .filter(|name| name.ends_with(PARTIAL))
        .filter_map(|name| {
            let path = blobs.join(name);
            let size = fs::metadata(&path).ok()?.len();
            Some(Found { path, size })
        })
        .collect()
}

fn found(path: PathBuf) -> Found {
    let size = if is_link(&path) {
        fs::metadata(&path).map_or(0, |metadata| metadata.len())
    } else {
        own_size(&path)
    };
    Found { path, size }
}
