use std::{path::Path, thread, time::Duration};

use lathe_protocol::{AdapterEntry, ErrorCode, ErrorInfo, EventBody, Method, RunStatus, StopThen};

use super::{Provenance, delete, find, folder, look_closer, open_db, status_word};
use crate::{
    Paths, adapters,
    db::{Db, RunRecord},
    error::{Result, usage},
    files,
    job::Job,
};

/// Asks whichever process holds the run to stop it, and waits until it did. What it leaves undone is done here.
pub(crate) fn stop(job: &Job, name: &str, then: StopThen) -> Result<()> {
    let host = &job.host;
    let db = open_db(host.paths())?;
    let record = find(host, &db, name)?;
    let entry = &record.entry;
    let can_be_stopped = match then {
        StopThen::Pause => matches!(entry.status, RunStatus::Queued | RunStatus::Running),
        StopThen::Keep => !matches!(entry.status, RunStatus::Completed | RunStatus::Kept),
        StopThen::Discard => entry.status != RunStatus::Completed,
    };
    if !can_be_stopped {
        let status = status_word(entry.status);
        let message = format!("Run {} does not run: it is {status}: {}", entry.name, entry.out_dir);
        return Err(ErrorInfo::new(ErrorCode::NotFound, message));
    }
    if then == StopThen::Keep && entry.method == Method::Full {
        return Err(usage(format!("Run {} trains every weight: there is no adapter to keep", entry.name))
            .hint("stop it without --keep; its checkpoints hold the model"));
    }
    // Counted while it is there.
    let size_bytes = if then == StopThen::Discard { files::size_below(entry.out_dir.as_ref()) } else { 0 };
    let was_queued = entry.status == RunStatus::Queued && db.dequeue(&entry.id)?;
    if !was_queued && matches!(entry.status, RunStatus::Queued | RunStatus::Running) {
        db.request_stop(&entry.id, then)?;
        wait(job, &db, &record)?;
    }
    let Some(mut record) = db.run(&entry.id)? else {
        let what = format!("run {}", entry.name);
        job.emit(EventBody::Removed { what, freed_bytes: size_bytes });
        return Ok(());
    };
    look_closer(host, &db, &mut record.entry)?;
    if was_queued {
        Provenance::of(&record).write(Path::new(&record.entry.out_dir))?;
    }
    let is_over = matches!(
        record.entry.status,
        RunStatus::Stopped
            | RunStatus::Interrupted
            | RunStatus::OutOfMemory
            | RunStatus::Diverged
            | RunStatus::Failed
    );
    if then == StopThen::Discard && (is_over || record.entry.status == RunStatus::Kept) {
        // Whoever held it may be quicker.
        let freed_bytes = delete(host.paths(), &db, &record.entry)?.max(size_bytes);
        job.emit(EventBody::Removed { what: format!("run {}", record.entry.name), freed_bytes });
        return Ok(());
    }
    if then == StopThen::Keep && is_over && !was_queued {
        let adapter = keep(host.paths(), &mut record)?;
        db.set_status(&record.entry.id, record.entry.status, None)?;
        job.emit(EventBody::Adapter(Box::new(adapter)));
    }
    job.emit(EventBody::Runs { runs: vec![record.entry] });
    Ok(())
}

/// Until no process works on the run.
fn wait(job: &Job, db: &Db, record: &RunRecord) -> Result<()> {
    let entry = &record.entry;
    let mut progress = job.progress(format!("Stopping {}", entry.name), 0);
    let mut checked = 0u32;
    while folder::is_running(entry.out_dir.as_ref()) {
        progress.advance(0)?;
        thread::sleep(Duration::from_millis(100));
        checked += 1;
        if checked.is_multiple_of(20)
            && db.run(&entry.id)?.is_none_or(|now| now.entry.status != RunStatus::Running)
        {
            break;
        }
    }
    Ok(())
}

/// Takes the newest checkpoint's adapter into the library and marks the run as kept.
pub(super) fn keep(paths: &Paths, record: &mut RunRecord) -> Result<AdapterEntry> {
    let folder = Path::new(&record.entry.out_dir);
    let checkpoint = folder::checkpoints(folder).pop().ok_or_else(|| {
        let message = format!("Run {} has no checkpoint yet: there is nothing to keep", record.entry.name);
        ErrorInfo::new(ErrorCode::NotFound, message)
    })?;
    let mut kept = record.clone();
    kept.entry.status = RunStatus::Kept;
    (kept.entry.error, kept.entry.divergence) = (None, None);
    let provenance = Provenance::of(&kept);
    let adapter = adapters::import_of_run(paths, checkpoint.as_ref(), &provenance)?;
    provenance.write(folder)?;
    *record = kept;
    Ok(adapter)
}
