use std::{
    fs::{File, TryLockError},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use lathe_protocol::{ErrorCode, EventBody, RunEntry, RunStatus};

use super::{
    all, entries, find,
    folder::{self, LockedFolder},
    open_db, status_word,
    train::{self, ActiveRun},
};
use crate::{
    Paths, Shared,
    db::{Db, RunRecord},
    devices::{self, Devices},
    error::{Result, io_error, usage},
    job::{Control, Job, StopLevel},
};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Held, shared, by every process that works off the whole queue.
const WORKED_OFF: &str = ".queue.lock";

/// Starts queued runs, each when its device is free, until the host is dropped.
pub(crate) fn work_off_queue(host: &Arc<Shared>) {
    // Without the lock, others only know less about who is at work.
    let lock = queue_lock(host.paths()).ok();
    let _held = lock.filter(|lock| lock.lock_shared().is_ok());
    let mut working = Working::default();
    while !host.is_closing() {
        // A database that fails now may answer at the next look.
        let started = working.start_next(host, None).unwrap_or(false);
        if !started && !host.is_closing() {
            thread::park_timeout(LOOK_EVERY);
        }
    }
    working.wait();
}

/// Like [`work_off_queue`], but until nothing is queued and what it started has ended, or the job is told to stop.
pub(crate) fn work(job: &Job, sweep: Option<&str>) -> Result<()> {
    let host = &job.host;
    let lock = queue_lock(host.paths())?;
    if sweep.is_none() {
        lock.lock_shared().map_err(io_error("lock", &host.paths().data_dir.join(WORKED_OFF)))?;
    }
    let mut working = Working::default();
    while job.stop_level() == StopLevel::Run && !host.is_closing() {
        // A database that fails now may answer at the next look.
        if working.start_next(host, sweep).unwrap_or(false) {
            continue;
        }
        if working.runs.is_empty() && !is_left(host, sweep).unwrap_or(true) {
            break;
        }
        job.rest(LOOK_EVERY / 2);
    }
    working.wind_up(job);
    Ok(())
}

/// Whether runs of the sweep, or any, are still queued or under way somewhere.
fn is_left(host: &Shared, sweep: Option<&str>) -> Result<bool> {
    let runs = entries(host, &open_db(host.paths())?)?;
    Ok(runs.iter().any(|run| match run.status {
        RunStatus::Queued => is_of(run, sweep),
        // Runs that are no sweep's end without us.
        RunStatus::Running => sweep.is_some() && is_of(run, sweep),
        _ => false,
    }))
}

fn is_of(run: &RunEntry, sweep: Option<&str>) -> bool {
    sweep.is_none_or(|name| run.sweep.as_ref().is_some_and(|place| place.name == name))
}

pub(super) fn queue_lock(paths: &Paths) -> Result<File> {
    let path = paths.data_dir.join(WORKED_OFF);
    File::options().create(true).truncate(false).write(true).open(&path).map_err(io_error("write", &path))
}

/// Whether some process starts queued runs in their order.
fn is_worked_off(paths: &Paths) -> bool {
    queue_lock(paths).is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
}

/// The runs that a queue has started, each on a thread of its own.
#[derive(Default)]
struct Working {
    runs: Vec<(Arc<Control>, JoinHandle<()>)>,
}

impl Working {
    /// Starts the next queued run whose device is free; of one sweep, if it is named. False if there is none.
    fn start_next(&mut self, host: &Arc<Shared>, sweep: Option<&str>) -> Result<bool> {
        self.forget_ended();
        let db = Db::open(&host.paths().db())?;
        if db.queued()?.is_empty() {
            return Ok(false);
        }
        let db = open_db(host.paths())?;
        let Some(claimed) = claim(host, &db, sweep)? else { return Ok(false) };
        let id = claimed.entry.id.clone();
        let job = Job::unheard(host.clone());
        let control = job.control.clone();
        let queue = thread::current();
        let spawned = thread::Builder::new().name(format!("run-{id}")).spawn(move || {
            claimed.run(job);
            queue.unpark();
        });
        match spawned {
            Ok(thread) => self.runs.push((control, thread)),
            Err(error) => {
                let message = format!("Cannot start a thread: {error}");
                db.set_status(&id, RunStatus::Failed, Some(&message))?;
            }
        }
        Ok(true)
    }

    fn forget_ended(&mut self) {
        self.runs.retain(|(_, thread)| !thread.is_finished());
    }

    /// Tells the runs what the job is told, until they have ended.
    fn wind_up(mut self, job: &Job) {
        while !self.runs.is_empty() {
            for (run, _) in &self.runs {
                run.wind_up();
                if job.stop_level() == StopLevel::Abort {
                    run.stop();
                }
            }
            thread::sleep(Duration::from_millis(50));
            self.forget_ended();
        }
    }

    fn wait(self) {
        for (_, run) in self.runs {
            // One that panicked leaves a run that nobody holds: it was interrupted.
            drop(run.join());
        }
    }
}

/// A run that is marked as running, and its folder, locked, if it can be.
pub(super) struct Claimed {
    entry: RunEntry,
    device: String,
    folder: Result<LockedFolder>,
}

impl Claimed {
    /// To its end. How it ended is in the database.
    fn run(self, mut job: Job) {
        let Self { entry, device, folder } = self;
        match folder.and_then(|folder| train::reopen(&job, folder, None, None, Some(device))) {
            Ok(run) => drop(ActiveRun::run(run, &mut job)),
            Err(error) => {
                let failed = open_db(job.host.paths())
                    .and_then(|db| db.set_status(&entry.id, RunStatus::Failed, Some(&error.message)));
                // Nobody holds it then: it reads as interrupted.
                drop(failed);
            }
        }
    }
}

/// The first queued run whose device is free. None if there is none, or if it is another's to start.
///
/// No other process can decide anything meanwhile, and the lock is there before the mark is seen.
pub(super) fn claim(host: &Shared, db: &Db, sweep: Option<&str>) -> Result<Option<Claimed>> {
    // Whoever works off the whole queue keeps its order; runs that nobody works off are not waited for.
    let keeps_order = sweep.is_none() || is_worked_off(host.paths());
    let devices = Devices::of(host);
    db.exclusively(|| {
        let runs = all(host, db)?;
        let mut taken = devices::busy(&runs);
        for RunRecord { entry, config, .. } in in_order(&runs) {
            let is_ours = is_of(entry, sweep);
            if !is_ours && !keeps_order {
                continue;
            }
            let wanted = match devices.candidates(host.paths(), &entry.device, &entry.model, config) {
                Ok(wanted) => wanted,
                // It waits for nothing that could come.
                Err(error) if is_ours => {
                    db.set_status(&entry.id, RunStatus::Failed, Some(&error.message))?;
                    continue;
                }
                Err(_) => continue,
            };
            let Some(device) = devices::first_free(&wanted, &taken) else { continue };
            taken.push(device.clone());
            if !is_ours {
                continue;
            }
            let folder = folder::of_run(entry).and_then(LockedFolder::open);
            // Somebody is just starting it by hand.
            if folder.as_ref().is_err_and(|error| error.code == ErrorCode::Busy) {
                continue;
            }
            db.set_running(&entry.id, &entry.out_dir, &device)?;
            return Ok(Some(Claimed { entry: entry.clone(), device, folder }));
        }
        Ok(None)
    })
}

/// The queued runs, the first to start first.
fn in_order(runs: &[RunRecord]) -> Vec<&RunRecord> {
    let mut queue: Vec<_> = runs.iter().filter(|run| run.entry.status == RunStatus::Queued).collect();
    queue.sort_by_key(|run| (run.entry.queue_position, run.entry.created_secs, run.entry.id.clone()));
    queue
}

/// What a run that is started at once runs on: of those it may, one that is free, else the one it would wait for.
pub(super) fn free_device(host: &Shared, db: &Db, entry: &RunEntry, wanted: &[String]) -> Result<String> {
    let mut others = all(host, db)?;
    others.retain(|other| other.entry.id != entry.id);
    let free = devices::first_free(wanted, &devices::busy(&others));
    Ok(free.or_else(|| wanted.first().cloned()).unwrap_or_else(|| devices::CPU.into()))
}

/// What a chat or an evaluation computes on, so that it holds up no run if it can be helped.
pub(crate) fn device_beside(host: &Shared, device: &str) -> Result<String> {
    Devices::of(host).beside_runs(device, || all(host, &open_db(host.paths())?))
}

pub(crate) fn is_any_queued(paths: &Paths) -> Result<bool> {
    Ok(!Db::open(&paths.db())?.queued()?.is_empty())
}

/// Gives a queued run another place; 0 is the next to start.
pub(crate) fn move_queued(job: &Job, name: &str, position: usize) -> Result<()> {
    let db = open_db(job.host.paths())?;
    let entry = find(&job.host, &db, name)?.entry;
    let is_queued = db.move_queued(&entry.id, position)?;
    answer_with_queue(job, &db, &entry, is_queued)
}

/// Gives a queued run to another device.
pub(crate) fn assign(job: &Job, name: &str, device: &str) -> Result<()> {
    let db = open_db(job.host.paths())?;
    let entry = find(&job.host, &db, name)?.entry;
    let is_queued = db.assign(&entry.id, &Devices::of(&job.host).checked(device)?)?;
    answer_with_queue(job, &db, &entry, is_queued)
}

fn answer_with_queue(job: &Job, db: &Db, entry: &RunEntry, is_queued: bool) -> Result<()> {
    if !is_queued {
        let status = status_word(entry.status);
        return Err(usage(format!("Run {} is not queued: it is {status}", entry.name)));
    }
    let runs = entries(&job.host, db)?.into_iter().filter(|run| run.status == RunStatus::Queued).collect();
    job.emit(EventBody::Runs { runs });
    Ok(())
}
