//! The queue of downloads: kept in SQLite, worked off one model at a time by whichever process was first.

#[cfg(test)]
mod tests;

use std::{
    fs::{File, OpenOptions, TryLockError},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lathe_protocol::{Download, DownloadAct, DownloadStatus, ErrorCode, ErrorInfo, EventBody};

use crate::{
    Paths, Shared,
    db::Db,
    download::{Meter, discard_partial},
    error::{Result, io_error, not_found, usage},
    files,
    host::cannot_start_thread,
    hub::{Named, pull_model},
    job::Job,
    models::hub as cache,
    s3,
};

const LOOK_EVERY: Duration = Duration::from_millis(300);
/// For a download that was discarded to let go of its files.
const LET_GO: Duration = Duration::from_secs(3);
/// Held by the process that works off the queue.
const WORKED_OFF: &str = ".downloads.lock";

/// The thread that works off the queue, once there was something to do.
#[derive(Default)]
pub(crate) struct Downloads {
    worker: Mutex<Option<JoinHandle<()>>>,
}

impl Downloads {
    /// For the host, when it closes.
    pub(crate) fn take(&self) -> Option<JoinHandle<()>> {
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        worker.inspect(|worker| worker.thread().unpark())
    }

    /// Whether this process works off the queue.
    fn is_here(&self) -> bool {
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        worker.as_ref().is_some_and(|worker| !worker.is_finished())
    }

    fn unpark(&self) {
        if let Some(worker) = &*self.worker.lock().unwrap_or_else(PoisonError::into_inner) {
            worker.thread().unpark();
        }
    }
}

/// Sees to it that somebody works off the queue. What a process left behind that is no more is paused then.
fn start(host: &Arc<Shared>, db: &Db) -> Result<()> {
    let mut worker = host.downloads.worker.lock().unwrap_or_else(PoisonError::into_inner);
    if worker.as_ref().is_some_and(|worker| !worker.is_finished()) || host.is_closing() {
        return Ok(());
    }
    let path = host.paths().data_dir.join(WORKED_OFF);
    let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let lock = lock.map_err(io_error("lock", &path))?;
    match lock.try_lock() {
        Ok(()) => {}
        // Another process does.
        Err(TryLockError::WouldBlock) => return Ok(()),
        Err(TryLockError::Error(error)) => return Err(io_error("lock", &path)(error)),
    }
    db.pause_downloads()?;
    let shared = host.clone();
    let spawned = thread::Builder::new().name("downloads".into()).spawn(move || work_off(&shared, lock));
    *worker = Some(spawned.map_err(|error| cannot_start_thread(&error))?);
    Ok(())
}

/// Until the host is dropped.
fn work_off(host: &Arc<Shared>, lock: File) {
    // Whoever starts next looks again.
    let Ok(db) = open_db(host) else { return };
    while !host.is_closing() {
        // A database that fails now may answer at the next look.
        if !work_off_next(host, &db).unwrap_or(false) && !host.is_closing() {
            thread::park_timeout(LOOK_EVERY);
        }
    }
    // If this fails, whoever starts next does it.
    drop(db.pause_downloads());
    drop(lock);
}

/// Whether there was one.
fn work_off_next(host: &Arc<Shared>, db: &Db) -> Result<bool> {
    let Some(Download { model, revision, .. }) = db.claim_download()? else { return Ok(false) };
    let revision = revision.as_deref();
    // What cannot be written now is written with what comes next.
    let tell = |download: &Download| drop(db.tell_download(download));
    let meter = Meter::new(&model, revision, &tell);
    let is_wanted = || {
        let is_running =
            || Ok(db.download(&model)?.is_some_and(|found| found.status == DownloadStatus::Running));
        if host.is_closing() || !is_running()? {
            return Err(ErrorInfo::new(ErrorCode::Busy, "The download was paused"));
        }
        Ok(())
    };
    let outcome = pull_model(&Job::unheard(host.clone()), &model, revision, &meter, &is_wanted);
    let last = match outcome {
        Ok(_) => meter.end(DownloadStatus::Done),
        Err(_) if host.is_closing() => meter.end(DownloadStatus::Paused),
        Err(error) => Download { error: Some(error), ..meter.end(DownloadStatus::Failed) },
    };
    // One that was paused or removed says so already.
    db.tell_download(&last)?;
    Ok(true)
}

fn open_db(host: &Shared) -> Result<Db> {
    Db::open(&host.paths().db())
}

/// Tells of the list now and whenever it changes, until the job is stopped.
pub(crate) fn follow(job: &Job) -> Result<()> {
    let db = open_db(&job.host)?;
    let mut told = None;
    loop {
        start(&job.host, &db)?;
        let downloads = list(&job.host, &db)?;
        if told.as_ref() != Some(&downloads) {
            job.emit(EventBody::Downloads { downloads: downloads.clone() });
            told = Some(downloads);
        }
        if !job.rest(LOOK_EVERY) {
            return Ok(());
        }
    }
}

pub(crate) fn add(job: &Job, model: &str, revision: Option<String>) -> Result<()> {
    let model = name_of(model)?;
    let db = open_db(&job.host)?;
    start(&job.host, &db)?;
    db.exclusively(|| {
        let known = db.download(&model)?;
        let is_under_way = |known: &Download| {
            known.revision == revision
                && matches!(known.status, DownloadStatus::Queued | DownloadStatus::Running)
        };
        if known.as_ref().is_some_and(is_under_way) {
            return Ok(());
        }
        let known = known.filter(|known| known.revision == revision);
        db.queue_download(&queued(model, revision, known.as_ref()), false)
    })?;
    tell(job, &db)
}

/// What was fetched so far is worth showing.
fn queued(model: String, revision: Option<String>, known: Option<&Download>) -> Download {
    Download {
        model,
        revision,
        status: DownloadStatus::Queued,
        held_here: false,
        done_bytes: known.map_or(0, |known| known.done_bytes),
        total_bytes: known.map_or(0, |known| known.total_bytes),
        done_files: known.map_or(0, |known| known.done_files),
        total_files: known.map_or(0, |known| known.total_files),
        bytes_per_second: 0.0,
        eta_seconds: None,
        note: None,
        error: None,
    }
}

pub(crate) fn act(job: &Job, model: &str, act: DownloadAct) -> Result<()> {
    let db = open_db(&job.host)?;
    start(&job.host, &db)?;
    let unknown = || not_found(format!("No download of {model} in the list"));
    let known = db.download(model)?.ok_or_else(unknown)?;
    match act {
        DownloadAct::Pause => {
            if !db.pause_download(model)? {
                return Err(usage(format!("The download of {model} neither waits nor runs")));
            }
        }
        DownloadAct::Resume | DownloadAct::First => {
            let is_waiting = known.status == DownloadStatus::Queued;
            let is_under_way =
                known.status == DownloadStatus::Running || (is_waiting && act == DownloadAct::Resume);
            if !is_under_way {
                let download = queued(known.model.clone(), known.revision.clone(), Some(&known));
                db.queue_download(&download, act == DownloadAct::First)?;
            }
        }
        DownloadAct::Forget => drop(db.delete_download(model)?),
        DownloadAct::Discard => {
            db.delete_download(model)?;
            let freed_bytes = discard(job, model)?;
            job.emit(EventBody::Removed { what: format!("unfinished files of {model}"), freed_bytes });
        }
    }
    tell(job, &db)
}

fn tell(job: &Job, db: &Db) -> Result<()> {
    job.host.downloads.unpark();
    job.emit(EventBody::Downloads { downloads: list(&job.host, db)? });
    Ok(())
}

fn list(host: &Shared, db: &Db) -> Result<Vec<Download>> {
    let is_here = host.downloads.is_here();
    let mut downloads = db.downloads()?;
    for download in &mut downloads {
        download.held_here =
            is_here && matches!(download.status, DownloadStatus::Queued | DownloadStatus::Running);
    }
    Ok(downloads)
}

/// Whether this process has something to fetch.
pub(crate) fn is_any_here(host: &Shared) -> Result<bool> {
    Ok(host.downloads.is_here() && list(host, &open_db(host)?)?.iter().any(|download| download.held_here))
}

/// What it is called in the list, however it was written.
fn name_of(model: &str) -> Result<String> {
    Ok(if s3::is_name(model) { s3::Named::parse(model)?.text() } else { Named::parse(model)?.text() })
}

/// The folder of its repository, and where that lies.
fn place_of(paths: &Paths, model: &str) -> Result<(PathBuf, String)> {
    if s3::is_name(model) {
        let named = s3::Named::parse(model)?;
        return Ok((named.home(paths), named.folder()));
    }
    Ok((paths.hf_cache.clone(), cache::repo_folder(&Named::parse(model)?.id)))
}

/// Deletes the model's files that are not whole; those that somebody else is fetching stay.
fn discard(job: &Job, model: &str) -> Result<u64> {
    let (home, folder) = place_of(job.host.paths(), model)?;
    let (blobs, locks) = (home.join(&folder).join("blobs"), home.join(".locks").join(&folder));
    let due = Instant::now() + LET_GO;
    let mut freed = 0;
    loop {
        let mut is_left = false;
        for name in files::names_in(&blobs)?.iter().filter(|name| name.ends_with(".incomplete")) {
            match discard_partial(&blobs.join(name), &locks)? {
                Some(bytes) => freed += bytes,
                None => is_left = true,
            }
        }
        if !is_left || Instant::now() > due || !job.rest(LOOK_EVERY / 3) {
            return Ok(freed);
        }
    }
}
