//! The Hugging Face cache: what lies in it, what deleting would free, moved to another disk. As `huggingface_hub` has it.

mod layout;
mod locks;
mod moving;
mod plan;
mod scan;
mod store;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use lathe_protocol::{
    CacheFile, CacheRepo, CacheReport, CacheRevision, CacheTarget, ErrorCode, ErrorInfo, EventBody, RepoKind,
};

pub(crate) use layout::{below, blob_of, folder_of, kind_of};
pub(crate) use locks::{hold, use_model};
pub(crate) use plan::remove_folder;

use crate::{
    error::{Result, not_found},
    files, hardware,
    job::Job,
    paths::absolute,
};
use moving::{Move, Step};
use plan::Plan;
use scan::{Found, Repo, Scan};

pub(crate) fn show(job: &Job) -> Result<()> {
    let cache = &job.host.paths().hf_cache;
    job.emit(EventBody::Cache(Box::new(report(cache)?)));
    Ok(())
}

pub(crate) fn plan(job: &Job, targets: Vec<CacheTarget>) -> Result<()> {
    let scan = Scan::of(&job.host.paths().hf_cache)?;
    job.emit(EventBody::CachePlan(Plan::of(&scan, &targets)?.report(targets)));
    Ok(())
}

pub(crate) fn delete(job: &Job, targets: &[CacheTarget]) -> Result<()> {
    let scan = Scan::of(&job.host.paths().hf_cache)?;
    let plan = Plan::of(&scan, targets)?;
    if plan.is_empty() {
        return Err(not_found("There is nothing of that kind in the cache")
            .hint("`lathe models cache` lists what is there"));
    }
    job.check_stop()?;
    plan.execute(&scan)?;
    job.emit(EventBody::Removed { what: plan.summary(), freed_bytes: plan.freed_bytes() });
    Ok(())
}

/// Moves the cache, or one repository into `to`, where it keeps its folder's name.
pub(crate) fn move_to(job: &Job, repo: Option<(RepoKind, String)>, to: &str) -> Result<()> {
    let cache = &job.host.paths().hf_cache;
    let to = absolute(to.as_ref());
    let what =
        repo.as_ref().map_or_else(|| "the cache".to_owned(), |(kind, id)| format!("{} {id}", kind.word()));
    let repo = repo.map(|(kind, id)| folder_of(kind, &id));
    let repo = repo.as_deref();
    moving::recover(cache)?;
    let place = repo.map_or_else(|| cache.clone(), |repo| cache.join(repo));
    if !place.is_dir() {
        return Err(not_found(format!("There is no {what} to move: {}", place.display()))
            .hint("`lathe models cache` lists what is there"));
    }
    let real = cache.canonicalize().unwrap_or_else(|_| cache.clone());
    let _held = match repo {
        Some(repo) => vec![locks::hold(&real, repo)?],
        None => locks::hold_all(&real)?,
    };
    let to = moving::destination(repo, &to);
    let was_interrupted = moving::complete(cache, repo, &to, &mut |_| Ok(()))?;
    if was_interrupted && place.canonicalize().is_ok_and(|place| place == to) {
        job.emit(EventBody::Moved { what, to: to.display().to_string(), bytes: 0 });
        return Ok(());
    }
    let planned = Move::plan(cache, repo, to)?;
    let (bytes, to) = (planned.bytes, planned.to.display().to_string());
    let mut progress = job.progress(format!("Moving {what}"), bytes);
    planned.execute(&mut |step| match step {
        Step::Copied(bytes) => progress.advance(bytes).map_err(|stopped| {
            ErrorInfo::new(
                ErrorCode::Busy,
                "Stopped: all is where it was; what was copied waits beside the new place",
            )
            .hint(stopped.hint.unwrap_or_else(|| "the same command goes on from there".into()))
        }),
        _ => Ok(()),
    })?;
    job.emit(EventBody::Moved { what, to, bytes });
    Ok(())
}

/// The folder of a revision: by a branch, a tag, or the beginning of a commit; none means what the repository's id alone does.
pub(crate) fn snapshot(cache: &Path, kind: RepoKind, id: &str, revision: Option<&str>) -> Result<PathBuf> {
    let repo = cache.join(folder_of(kind, id));
    let snapshots = repo.join("snapshots");
    let commits = files::names_in(&snapshots)?;
    let wanted = revision.unwrap_or("main");
    let named = fs::read_to_string(repo.join("refs").join(wanted)).unwrap_or_default();
    let mut found: Vec<&String> = commits.iter().filter(|commit| **commit == named.trim()).collect();
    if found.is_empty() {
        found = match revision {
            Some(start) => commits.iter().filter(|commit| commit.starts_with(start)).collect(),
            None => commits.iter().collect(),
        };
    }
    match found.as_slice() {
        [one] => Ok(snapshots.join(one)),
        [] => {
            let message = format!("No revision {wanted:?} of {id} in the cache: {}", repo.display());
            Err(not_found(message).hint("`lathe models cache --revisions` lists them"))
        }
        several => {
            let commits: Vec<&str> = several.iter().map(|commit| commit.as_str()).collect();
            Err(not_found(format!("{id} has several revisions in the cache: {}", commits.join(", ")))
                .hint("name one: owner/name@COMMIT"))
        }
    }
}

/// What lies in the cache.
pub(crate) fn report(cache: &Path) -> Result<CacheReport> {
    let scan = Scan::of(cache)?;
    let size = |files: &[Found]| files.iter().map(|file| file.size).sum::<u64>();
    let shared = scan.store.as_ref().map(store::Store::unreferenced).transpose()?.unwrap_or_default();
    let mut repos: Vec<CacheRepo> = scan.repos.iter().map(|repo| repo_report(&scan, repo)).collect();
    repos.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.path.cmp(&b.path)));
    let unreferenced = scan.repos.iter().map(|repo| size(&repo.unreferenced)).sum::<u64>();
    let incomplete = scan.repos.iter().map(|repo| size(&repo.incomplete)).sum::<u64>();
    Ok(CacheReport {
        path: cache.display().to_string(),
        target: (scan.dir != cache).then(|| scan.dir.display().to_string()),
        size_bytes: scan.size()?,
        unreferenced_bytes: unreferenced + shared.iter().map(|(_, size)| size).sum::<u64>(),
        incomplete_bytes: incomplete + size(&scan.stray) + size(&scan.leftovers),
        disk_free_bytes: hardware::disk_of(&scan.dir).1,
        repos,
        leftovers: scan.leftovers.iter().chain(&scan.stray).map(file).collect(),
        warnings: scan.broken.iter().map(|broken| broken.why.clone()).collect(),
    })
}

fn repo_report(scan: &Scan, repo: &Repo) -> CacheRepo {
    let mut revisions: Vec<CacheRevision> = repo
        .revisions
        .iter()
        .enumerate()
        .map(|(place, revision)| CacheRevision {
            commit: revision.commit.clone(),
            refs: revision.refs.clone(),
            size_bytes: repo.size_of(&revision.files.iter().collect::<BTreeSet<_>>()),
            own_bytes: plan::own_bytes(scan, repo, place),
            num_files: revision.files.len(),
            modified_secs: revision.modified_secs,
        })
        .collect();
    revisions.sort_by(|a, b| b.modified_secs.cmp(&a.modified_secs).then_with(|| a.commit.cmp(&b.commit)));
    let target = layout::is_link(&repo.dir).then(|| repo.dir.canonicalize().ok()).flatten();
    CacheRepo {
        kind: repo.kind,
        id: repo.id.clone(),
        path: repo.dir.display().to_string(),
        target: target.map(|target| target.display().to_string()),
        size_bytes: repo.size(),
        num_files: repo.blobs.len(),
        accessed_secs: repo.accessed_secs,
        modified_secs: repo.modified_secs,
        revisions,
        unreferenced: repo.unreferenced.iter().map(file).collect(),
        incomplete: repo.incomplete.iter().map(file).collect(),
    }
}

fn file(found: &Found) -> CacheFile {
    CacheFile { path: found.path.display().to_string(), size_bytes: found.size }
}
