//! What a deletion would free, and the deletion. The numbers are those of `delete_revisions` of `huggingface_hub`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use lathe_protocol::{CachePlan, CacheTarget, ErrorCode, ErrorInfo};

use super::{
    layout::{folder_of, is_link, is_real_dir, own_size},
    locks::{self, Held},
    scan::{Found, Repo, Scan},
};
use crate::{
    error::{Result, did_you_mean, io_error, near, not_found},
    files,
};

#[derive(Default)]
pub(super) struct Plan {
    pub freed: u64,
    /// Of whole repositories, what `hf cache` does not count.
    besides: u64,
    lines: Vec<String>,
    num_files: usize,
    /// Whole, as they lie in the cache.
    repos: Vec<PathBuf>,
    refs: Vec<PathBuf>,
    snapshots: Vec<PathBuf>,
    blobs: BTreeSet<PathBuf>,
    leftovers: Vec<PathBuf>,
    /// Of the shared store: those that may be referred to no more.
    payloads: BTreeSet<PathBuf>,
    /// The repositories it touches.
    folders: BTreeSet<String>,
}

/// What the targets come to, by place in [`Scan::repos`].
struct Chosen {
    revisions: BTreeMap<usize, BTreeSet<usize>>,
    whole: BTreeSet<usize>,
    broken: BTreeSet<PathBuf>,
    unreferenced: bool,
    incomplete: bool,
}

impl Plan {
    pub(super) fn of(scan: &Scan, targets: &[CacheTarget]) -> Result<Self> {
        let chosen = choose(scan, targets)?;
        let mut plan = Self::default();
        let mut counted = BTreeMap::new();
        for (place, repo) in scan.repos.iter().enumerate() {
            let revisions = chosen.revisions.get(&place);
            let is_whole = chosen.whole.contains(&place)
                || revisions.is_some_and(|revisions| revisions.len() == repo.revisions.len());
            if is_whole {
                plan.add_repo(scan, repo, &chosen, &mut counted)?;
                continue;
            }
            if let Some(revisions) = revisions {
                plan.add_revisions(repo, revisions, &mut counted);
            }
            if chosen.unreferenced && !repo.unreferenced.is_empty() {
                plan.add_files(
                    repo,
                    &repo.unreferenced.iter().collect::<Vec<_>>(),
                    "unreferenced",
                    &mut counted,
                );
            }
            if chosen.incomplete {
                let idle: Vec<&Found> =
                    repo.incomplete.iter().filter(|file| !locks::is_downloaded(scan, &file.path)).collect();
                plan.add_files(repo, &idle, "unfinished", &mut counted);
            }
        }
        for dir in &chosen.broken {
            plan.add_broken(scan, dir);
        }
        if chosen.incomplete {
            plan.add_leftovers(scan, &chosen.broken);
        }
        if chosen.unreferenced {
            plan.add_payloads(scan)?;
        }
        plan.num_files += counted.len();
        plan.freed += freed(scan, &counted);
        plan.payloads.extend(counted.keys().filter_map(|blob| scan.store.as_ref()?.target_of(blob)));
        plan.blobs
            .extend(counted.into_keys().filter(|blob| !plan.repos.iter().any(|repo| blob.starts_with(repo))));
        Ok(plan)
    }

    pub(super) fn report(self, targets: Vec<CacheTarget>) -> CachePlan {
        let Self { freed, besides, lines, num_files, .. } = self;
        CachePlan { targets, freed_bytes: freed, besides_bytes: besides, lines, num_files }
    }

    pub(super) fn freed_bytes(&self) -> u64 {
        self.freed + self.besides
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// In a few words.
    pub(super) fn summary(&self) -> String {
        match self.lines.as_slice() {
            [one] => one.clone(),
            lines => format!("{} and {} more", lines[0], lines.len() - 1),
        }
    }

    fn add_repo(
        &mut self,
        scan: &Scan,
        repo: &Repo,
        chosen: &Chosen,
        counted: &mut BTreeMap<PathBuf, u64>,
    ) -> Result<()> {
        let revisions = match repo.revisions.len() {
            1 => "its 1 revision".to_owned(),
            count => format!("all {count} revisions"),
        };
        let target = link_target(&repo.dir);
        if let Some(other) = target.as_ref().filter(|target| !is_moved(&repo.dir, target)) {
            // A link that a person made: what it leads to is theirs.
            self.lines.push(format!(
                "{}, the link alone; its files stay in {}",
                repo.label(),
                other.display()
            ));
        } else {
            let place = target.map(|target| format!(", in {}", target.display())).unwrap_or_default();
            self.lines.push(format!("{}, {revisions}{place}", repo.label()));
            let own = repo.blobs.iter().filter(|(path, _)| path.starts_with(&repo.dir));
            counted.extend(own.map(|(path, stat)| (path.clone(), stat.size)));
            for (files, are_asked_for) in
                [(&repo.unreferenced, chosen.unreferenced), (&repo.incomplete, chosen.incomplete)]
            {
                let size: u64 = files.iter().map(|file| file.size).sum();
                *(if are_asked_for { &mut self.freed } else { &mut self.besides }) += size;
                self.num_files += files.len();
            }
            if let Some(store) = &scan.store {
                let names = files::names_in(&repo.dir.join("blobs"))?;
                let blobs = names.into_iter().map(|name| repo.dir.join("blobs").join(name));
                self.payloads.extend(blobs.filter_map(|blob| store.target_of(&blob)));
            }
        }
        self.repos.push(repo.dir.clone());
        self.folders.insert(repo.folder());
        Ok(())
    }

    fn add_revisions(
        &mut self,
        repo: &Repo,
        revisions: &BTreeSet<usize>,
        counted: &mut BTreeMap<PathBuf, u64>,
    ) {
        for &place in revisions {
            let revision = &repo.revisions[place];
            let refs =
                if revision.refs.is_empty() { "detached".to_owned() } else { revision.refs.join(", ") };
            let commit = revision.commit.get(..12).unwrap_or(&revision.commit);
            self.lines.push(format!("{}, revision {commit} ({refs})", repo.label()));
            self.refs.extend(revision.refs.iter().map(|name| repo.dir.join("refs").join(name)));
            self.snapshots.push(revision.dir.clone());
        }
        counted.extend(blobs_of(repo, revisions));
        self.folders.insert(repo.folder());
    }

    fn add_files(&mut self, repo: &Repo, files: &[&Found], what: &str, counted: &mut BTreeMap<PathBuf, u64>) {
        if files.is_empty() {
            return;
        }
        self.lines.push(format!("{}, {}", repo.label(), several(files.len(), what)));
        counted.extend(files.iter().map(|file| (file.path.clone(), file.size)));
        self.folders.insert(repo.folder());
    }

    fn add_broken(&mut self, scan: &Scan, dir: &Path) {
        let target = link_target(dir).filter(|target| is_moved(dir, target));
        let real = target.as_deref().unwrap_or(dir);
        self.freed += own_size(real);
        self.num_files += super::layout::below(real).map_or(1, |files| files.len());
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        self.lines.push(format!("{name}, which is broken"));
        if let Some(store) = &scan.store {
            let blobs = files::names_in(&dir.join("blobs")).unwrap_or_default();
            let blobs = blobs.into_iter().map(|name| dir.join("blobs").join(name));
            self.payloads.extend(blobs.filter_map(|blob| store.target_of(&blob)));
        }
        self.repos.push(dir.to_path_buf());
        self.folders.insert(name);
    }

    fn add_leftovers(&mut self, scan: &Scan, broken: &BTreeSet<PathBuf>) {
        let stray = scan.stray.iter().filter(|file| {
            !broken.iter().any(|dir| file.path.starts_with(dir)) && !locks::is_downloaded(scan, &file.path)
        });
        let stray: Vec<&Found> = stray.collect();
        let leftovers: Vec<&Found> = scan
            .leftovers
            .iter()
            .filter(|file| !self.repos.iter().any(|dir| file.path.starts_with(dir)))
            .collect();
        let found: Vec<&Found> = leftovers.iter().chain(&stray).copied().collect();
        if found.is_empty() {
            return;
        }
        self.lines.push(match found.len() {
            1 => "1 leftover of something interrupted".into(),
            count => format!("{count} leftovers of something interrupted"),
        });
        self.num_files += found.len();
        self.freed += found.iter().map(|file| file.size).sum::<u64>();
        self.blobs.extend(stray.into_iter().map(|file| file.path.clone()));
        self.leftovers.extend(leftovers.into_iter().map(|file| file.path.clone()));
    }

    /// Those of the shared store that nothing refers to as it is.
    fn add_payloads(&mut self, scan: &Scan) -> Result<()> {
        let Some(store) = &scan.store else { return Ok(()) };
        let found = store.unreferenced()?;
        if !found.is_empty() {
            self.lines.push(format!("{} of the shared store", several(found.len(), "unreferenced")));
            self.num_files += found.len();
            self.freed += found.iter().map(|(_, size)| size).sum::<u64>();
            self.payloads.extend(found.into_iter().map(|(path, _)| path));
        }
        Ok(())
    }

    /// Deletes it. What can be seen goes first and in one step each: interrupted, it leaves whole revisions and files that count as
    /// unreferenced or as leftovers.
    pub(super) fn execute(&self, scan: &Scan) -> Result<()> {
        let mut held: Vec<(&String, Held)> = Vec::new();
        for folder in &self.folders {
            held.push((folder, locks::hold(&scan.dir, folder)?));
        }
        self.check_places(scan)?;
        // 1. Names, then revisions, then repositories vanish.
        for path in &self.refs {
            fs::remove_file(path).map_err(io_error("remove", path))?;
        }
        let mut aside = Vec::new();
        for path in &self.snapshots {
            // Beside the folder of snapshots: in it, it would be one.
            let repo = path.parent().and_then(Path::parent).unwrap_or(path);
            aside.push(set_aside(path, &repo.join("removed"))?);
        }
        for path in &self.repos {
            if let Some(target) = link_target(path).filter(|target| is_moved(path, target)) {
                aside.push(set_aside(&target, &target)?);
            }
            aside.push(set_aside(path, path)?);
        }
        // 2. What nothing refers to any more.
        for path in aside.iter().chain(&self.blobs).chain(&self.leftovers) {
            remove(path).map_err(io_error("remove", path))?;
        }
        for payload in &self.payloads {
            if let Some(store) = &scan.store {
                store.sweep(payload)?;
            }
        }
        // 3. The locks of what is gone.
        for (folder, held) in held {
            drop(held);
            if self.repos.iter().any(|repo| repo.ends_with(folder)) {
                files::remove_quietly(&locks::folder(&scan.dir, folder));
            }
        }
        Ok(())
    }

    /// An error if a path leads out of the cache: its folder is a link somewhere.
    fn check_places(&self, scan: &Scan) -> Result<()> {
        let within = |path: &PathBuf| {
            let Some(parent) = path.parent() else { return false };
            let Ok(real) = parent.canonicalize() else { return false };
            real.starts_with(&scan.dir)
                || scan.repos.iter().filter(|repo| path.starts_with(&repo.dir)).any(|repo| {
                    link_target(&repo.dir)
                        .is_some_and(|target| is_moved(&repo.dir, &target) && real.starts_with(&target))
                })
        };
        let all = self.refs.iter().chain(&self.snapshots).chain(&self.repos).chain(&self.blobs);
        match all.into_iter().find(|path| path.parent().is_some_and(Path::exists) && !within(path)) {
            Some(path) => Err(ErrorInfo::new(
                ErrorCode::Io,
                format!("Not deleted: a link leads out of the cache: {}", path.display()),
            )
            .hint("delete it with your file manager, if it is yours")),
            None => Ok(()),
        }
    }
}

fn several(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what} file") } else { format!("{count} {what} files") }
}

fn choose(scan: &Scan, targets: &[CacheTarget]) -> Result<Chosen> {
    let mut chosen = Chosen {
        revisions: BTreeMap::new(),
        whole: BTreeSet::new(),
        broken: BTreeSet::new(),
        unreferenced: targets.contains(&CacheTarget::Unreferenced),
        incomplete: targets.contains(&CacheTarget::Incomplete),
    };
    for target in targets {
        match target {
            CacheTarget::Repo { kind, id } => {
                let dir = scan.dir.join(folder_of(*kind, id));
                if let Some(place) = scan.repos.iter().position(|repo| repo.dir == dir) {
                    chosen.whole.insert(place);
                } else if scan.broken.iter().any(|broken| broken.dir == dir) {
                    chosen.broken.insert(dir);
                } else {
                    return Err(unknown(scan, kind.word(), id));
                }
            }
            CacheTarget::Revision { kind, id, commit } => {
                let repo = scan.repos.iter().position(|repo| repo.kind == *kind && repo.id == *id);
                let place = repo.ok_or_else(|| unknown(scan, kind.word(), id))?;
                let revisions = &scan.repos[place].revisions;
                let revision = revisions.iter().position(|revision| revision.commit == *commit);
                let revision = revision.ok_or_else(|| {
                    not_found(format!("No revision {commit:?} of {} {id} in the cache", kind.word()))
                        .hint("`lathe models cache --revisions` lists them")
                })?;
                chosen.revisions.entry(place).or_default().insert(revision);
            }
            CacheTarget::Detached => {
                for (place, repo) in scan.repos.iter().enumerate() {
                    let detached: BTreeSet<usize> = (0..repo.revisions.len())
                        .filter(|&revision| repo.revisions[revision].refs.is_empty())
                        .collect();
                    if !detached.is_empty() {
                        chosen.revisions.entry(place).or_default().extend(detached);
                    }
                }
            }
            CacheTarget::Unreferenced | CacheTarget::Incomplete => {}
        }
    }
    Ok(chosen)
}

fn unknown(scan: &Scan, kind: &str, id: &str) -> ErrorInfo {
    let hint = did_you_mean(
        &near(id, scan.repos.iter().map(|repo| repo.id.as_str())),
        "`lathe models cache` lists what is there",
    );
    not_found(format!("No {kind} named {id:?} in the cache: {}", scan.dir.display())).hint(hint)
}

/// The blobs that only these revisions refer to, with their sizes. What lies elsewhere than in the repository is nobody's to delete.
fn blobs_of(repo: &Repo, revisions: &BTreeSet<usize>) -> BTreeMap<PathBuf, u64> {
    let others: BTreeSet<&PathBuf> = repo
        .revisions
        .iter()
        .enumerate()
        .filter(|(place, _)| !revisions.contains(place))
        .flat_map(|(_, revision)| &revision.files)
        .collect();
    let mine = revisions.iter().flat_map(|&place| &repo.revisions[place].files);
    mine.filter(|blob| !others.contains(blob) && blob.starts_with(&repo.dir))
        .filter_map(|blob| Some((blob.clone(), repo.blobs.get(blob)?.size)))
        .collect()
}

/// The bytes that deleting one revision alone frees.
pub(super) fn own_bytes(scan: &Scan, repo: &Repo, revision: usize) -> u64 {
    freed(scan, &blobs_of(repo, &BTreeSet::from([revision])))
}

/// The bytes that come free with these blobs: what lies in the shared store only with the last link to it.
fn freed(scan: &Scan, blobs: &BTreeMap<PathBuf, u64>) -> u64 {
    let Some(store) = &scan.store else { return blobs.values().sum() };
    let paths: BTreeSet<PathBuf> = blobs.keys().cloned().collect();
    let (mut own, mut shared) = (0, BTreeSet::new());
    for (path, size) in blobs {
        match store.target_of(path) {
            Some(payload) => drop(shared.insert(payload)),
            None => own += size,
        }
    }
    own + shared.iter().map(|payload| store.freed_with(payload, &paths)).sum::<u64>()
}

fn link_target(dir: &Path) -> Option<PathBuf> {
    is_link(dir).then(|| dir.canonicalize().ok()).flatten()
}

/// Whether a link of the cache leads to a repository of its own name: one that was moved to another disk.
fn is_moved(link: &Path, target: &Path) -> bool {
    link.file_name() == target.file_name()
        && (is_real_dir(&target.join("snapshots")) || is_real_dir(&target.join("blobs")))
}

/// Renamed to a name that nobody looks for, beside `like`.
fn set_aside(path: &Path, like: &Path) -> Result<PathBuf> {
    let aside = files::aside(like);
    fs::rename(path, &aside).map_err(io_error("remove", path))?;
    Ok(aside)
}

/// Removes a folder that is laid out like a repository, with all that is in it. Returns the bytes freed.
pub(crate) fn remove_folder(home: &Path, folder: &str) -> Result<u64> {
    let _held = locks::hold(home, folder)?;
    let repo = home.join(folder);
    let freed = own_size(&repo);
    let aside = set_aside(&repo, &repo)?;
    remove(&aside).map_err(io_error("remove", &aside))?;
    Ok(freed)
}

/// Links are removed, not followed. What is gone already is no error.
fn remove(path: &Path) -> io::Result<()> {
    let removed = if is_real_dir(path) { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
