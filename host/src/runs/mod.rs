//! Runs: started, recorded, resumed, stopped from anywhere, removed.

mod folder;
#[cfg(test)]
mod tests;
mod train;

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use lathe_protocol::{ErrorCode, ErrorInfo, EventBody, RunDetails, RunStatus};

pub(crate) use folder::Provenance;
pub(crate) use train::{resume, train};

use crate::{
    Paths,
    db::{Db, RunRecord},
    error::{Result, did_you_mean, io_error, near, not_found},
    files,
    job::Job,
    paths::absolute,
};

pub(crate) fn list(job: &Job) -> Result<()> {
    let runs = all(&open_db(job.host.paths())?)?.into_iter().map(|record| record.entry).collect();
    job.emit(EventBody::Runs { runs });
    Ok(())
}

pub(crate) fn show(job: &Job, name: &str) -> Result<()> {
    let db = open_db(job.host.paths())?;
    let RunRecord { entry, config, eval_data, init_adapter } = find(&db, name)?;
    let details = RunDetails {
        steps: db.steps(&entry.id)?,
        evals: db.evals(&entry.id)?,
        checkpoints: folder::checkpoints(entry.out_dir.as_ref()),
        run: entry,
        config,
        init_adapter,
        eval_data,
    };
    job.emit(EventBody::Run(Box::new(details)));
    Ok(())
}

/// Asks whichever process holds the run to checkpoint and stop, and waits until it did.
pub(crate) fn stop(job: &Job, name: &str) -> Result<()> {
    let db = open_db(job.host.paths())?;
    let RunRecord { entry, .. } = find(&db, name)?;
    if entry.status != RunStatus::Running {
        let status = status_word(entry.status);
        return Err(ErrorInfo::new(
            ErrorCode::NotFound,
            format!("Run {} does not run: it is {status}: {}", entry.name, entry.out_dir),
        ));
    }
    db.request_stop(&entry.id)?;
    let mut progress = job.progress(format!("Stopping {}", entry.name), 0);
    let mut checked = 0u32;
    while folder::is_running(entry.out_dir.as_ref()) {
        progress.advance(0)?;
        thread::sleep(Duration::from_millis(100));
        checked += 1;
        if checked.is_multiple_of(20) && find(&db, &entry.id)?.entry.status != RunStatus::Running {
            break;
        }
    }
    let entry = find(&db, &entry.id)?.entry;
    job.emit(EventBody::Runs { runs: vec![entry] });
    Ok(())
}

pub(crate) fn remove(job: &Job, name: &str) -> Result<()> {
    let paths = job.host.paths();
    let db = open_db(paths)?;
    let RunRecord { entry, .. } = find(&db, name)?;
    if entry.status == RunStatus::Running {
        return Err(ErrorInfo::new(
            ErrorCode::Busy,
            format!("Run {} is running: {}", entry.name, entry.out_dir),
        )
        .hint(format!("stop it first: lathe runs stop {}", entry.id)));
    }
    let dir = PathBuf::from(&entry.out_dir);
    let is_ours = dir.parent() == Some(paths.runs().as_path());
    let mut what = format!("run {}", entry.name);
    let freed_bytes = if !dir.exists() {
        0
    } else if is_ours {
        let freed = files::size_below(&dir);
        let aside = files::aside(&dir);
        fs::rename(&dir, &aside).map_err(io_error("remove", &dir))?;
        fs::remove_dir_all(&aside).map_err(io_error("remove", &aside))?;
        freed
    } else {
        let freed = folder::clear(&dir, &entry)?;
        if dir.exists() {
            what = format!("{what} (its {} stays in {})", folder::result_name(entry.method), dir.display());
        }
        freed
    };
    db.delete_run(&entry.id)?;
    job.emit(EventBody::Removed { what, freed_bytes });
    Ok(())
}

/// The database, with every run folder in it that it did not know: it may have been deleted.
fn open_db(paths: &Paths) -> Result<Db> {
    let db = Db::open(&paths.db())?;
    let known: Vec<String> = db.runs()?.into_iter().map(|record| record.entry.id).collect();
    for name in files::names_in(&paths.runs())? {
        let dir = paths.runs().join(&name);
        if let Some(provenance) = Provenance::read(&dir).filter(|found| !known.contains(&found.run.id)) {
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

/// Every run as it is: one that claims to run, but that no process holds, was interrupted.
fn all(db: &Db) -> Result<Vec<RunRecord>> {
    let mut runs = db.runs()?;
    for RunRecord { entry, .. } in &mut runs {
        if entry.status == RunStatus::Running && !folder::is_running(entry.out_dir.as_ref()) {
            entry.status = RunStatus::Interrupted;
        }
    }
    // A run may have ended between the two looks.
    for RunRecord { entry, .. } in &mut runs {
        if entry.status == RunStatus::Interrupted
            && let Some(now) = db.run(&entry.id)?
            && now.entry.status != RunStatus::Running
        {
            *entry = now.entry;
        }
    }
    Ok(runs)
}

/// By id, name, the beginning of an id, or folder.
fn find(db: &Db, name: &str) -> Result<RunRecord> {
    let runs = all(db)?;
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
        RunStatus::Interrupted => "interrupted",
        RunStatus::Completed => "completed",
        RunStatus::Failed => "failed",
    }
}
