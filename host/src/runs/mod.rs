//! Runs: started, queued, recorded, watched, stopped from anywhere, resumed, removed.

mod event_file;
mod export;
mod folder;
mod naming;
mod queue;
mod recover;
mod reproduce;
mod stop;
mod sweep;
mod talk;
#[cfg(test)]
mod tests;
mod train;
mod watch;

use std::{
    fs,
    path::{Path, PathBuf},
};

use lathe_protocol::{ErrorCode, ErrorInfo, EventBody, RunEntry, RunStatus};

pub(crate) use export::export;
pub(crate) use folder::Provenance;
pub(crate) use queue::{assign, device_beside, is_any_queued, move_queued, work, work_off_queue};
pub use recover::recovery_hint;
pub(crate) use reproduce::reproduce;
pub(crate) use stop::stop;
pub(crate) use sweep::{resume_sweep, sweep};
pub(crate) use talk::talk;
pub(crate) use train::{resume, train};
pub(crate) use watch::{follow, show, watch};

use crate::{
    Paths, Shared,
    db::{Db, RunRecord},
    error::{Result, did_you_mean, io_error, near, not_found},
    files,
    job::Job,
    paths::absolute,
};

pub(crate) fn list(job: &Job) -> Result<()> {
    let runs = entries(&job.host, &open_db(job.host.paths())?)?;
    job.emit(EventBody::Runs { runs });
    Ok(())
}

pub(crate) fn remove(job: &Job, name: &str) -> Result<()> {
    let db = open_db(job.host.paths())?;
    let RunRecord { entry, .. } = find(&job.host, &db, name)?;
    // A queued one may have been started this moment.
    if entry.status == RunStatus::Running || entry.status == RunStatus::Queued && !db.dequeue(&entry.id)? {
        return Err(ErrorInfo::new(
            ErrorCode::Busy,
            format!("Run {} is running: {}", entry.name, entry.out_dir),
        )
        .hint(format!("stop it first: lathe runs stop {}", entry.id)));
    }
    let dir = PathBuf::from(&entry.out_dir);
    let freed_bytes = delete(job.host.paths(), &db, &entry)?;
    let mut what = format!("run {}", entry.name);
    if dir.exists() {
        what = format!("{what} (its {} stays in {})", folder::result_name(entry.method), dir.display());
    }
    job.emit(EventBody::Removed { what, freed_bytes });
    Ok(())
}

/// Removes a run's folder (of one of the user's, what is the run's in it) and its row. Returns the bytes freed.
fn delete(paths: &Paths, db: &Db, entry: &RunEntry) -> Result<u64> {
    let dir = Path::new(&entry.out_dir);
    let is_ours = dir.parent() == Some(paths.runs().as_path());
    let freed = if !dir.exists() {
        0
    } else if is_ours {
        let freed = files::size_below(dir);
        let aside = files::aside(dir);
        fs::rename(dir, &aside).map_err(io_error("remove", dir))?;
        fs::remove_dir_all(&aside).map_err(io_error("remove", &aside))?;
        freed
    } else {
        folder::clear(dir, entry)?
    };
    db.delete_run(&entry.id)?;
    Ok(freed)
}

/// The database, with every run folder in it that it did not know: it may have been deleted.
fn open_db(paths: &Paths) -> Result<Db> {
    let db = Db::open(&paths.db())?;
    let known: Vec<String> = db.runs()?.into_iter().map(|record| record.entry.id).collect();
    for name in files::names_in(&paths.runs())? {
        let dir = paths.runs().join(&name);
        // One that is just being removed lies aside.
        if !name.starts_with('.')
            && let Some(provenance) = Provenance::read(&dir).filter(|found| !known.contains(&found.run.id))
        {
            adopt(&db, provenance.into_record(&dir))?;
        }
    }
    Ok(db)
}

/// Records a run that has a folder but no row.
fn adopt(db: &Db, mut record: RunRecord) -> Result<RunRecord> {
    let name = record.entry.name.clone();
    for count in 1..1000 {
        let inserted = db.try_insert(&record).map_err(|error| {
            ErrorInfo::new(ErrorCode::Io, format!("Cannot record run {}: {error}", record.entry.id))
        })?;
        if inserted || db.run(&record.entry.id)?.is_some() {
            break;
        }
        record.entry.name = format!("{name}-{}", count + 1);
    }
    Ok(record)
}

/// Every run as it is, newest first.
fn entries(host: &Shared, db: &Db) -> Result<Vec<RunEntry>> {
    Ok(all(host, db)?.into_iter().map(|record| record.entry).collect())
}

fn all(host: &Shared, db: &Db) -> Result<Vec<RunRecord>> {
    let mut runs = db.runs()?;
    for RunRecord { entry, .. } in &mut runs {
        look_closer(host, db, entry)?;
    }
    Ok(runs)
}

/// One that claims to run, but that no process holds, was interrupted.
fn look_closer(host: &Shared, db: &Db, entry: &mut RunEntry) -> Result<()> {
    if entry.status != RunStatus::Running {
        return Ok(());
    }
    entry.held_here = host.holds(&entry.id);
    if !entry.held_here && !folder::is_running(entry.out_dir.as_ref()) {
        entry.status = RunStatus::Interrupted;
        // It may have ended between the two looks.
        if let Some(now) = db.run(&entry.id)?
            && now.entry.status != RunStatus::Running
        {
            *entry = now.entry;
        }
    }
    Ok(())
}

/// By id, name, the beginning of an id, or folder.
fn find(host: &Shared, db: &Db, name: &str) -> Result<RunRecord> {
    let runs = all(host, db)?;
    let dir = absolute(Path::new(name)).display().to_string();
    let exact = |record: &&RunRecord| {
        let entry = &record.entry;
        entry.id == name || entry.name == name || (!name.is_empty() && entry.out_dir == dir)
    };
    if let Some(record) = runs.iter().find(exact) {
        return Ok(record.clone());
    }
    let by_prefix: Vec<&RunRecord> =
        runs.iter().filter(|record| name.len() >= 3 && record.entry.id.starts_with(name)).collect();
    match by_prefix.as_slice() {
        [one] => Ok((*one).clone()),
        [] => {
            let names = runs.iter().map(|record| record.entry.name.as_str());
            let hint = did_you_mean(&near(name, names), "`lathe runs list` shows the runs");
            Err(not_found(format!("No run named {name:?}")).hint(hint))
        }
        several => {
            let ids: Vec<&str> = several.iter().map(|record| record.entry.id.as_str()).collect();
            Err(not_found(format!("{name:?} could be several runs"))
                .hint(format!("write the whole id: {}", ids.join(" or "))))
        }
    }
}

fn status_word(status: RunStatus) -> &'static str {
    match status {
        RunStatus::Queued => "queued",
        RunStatus::Running => "running",
        RunStatus::Stopped => "stopped",
        RunStatus::Kept => "kept",
        RunStatus::Interrupted => "interrupted",
        RunStatus::OutOfMemory => "out of memory",
        RunStatus::Diverged => "diverged",
        RunStatus::Completed => "completed",
        RunStatus::Failed => "failed",
    }
}
