use std::time::{Duration, Instant};

use lathe_protocol::{EventBody, RunDetails, RunEntry, RunStatus};

use super::{entries, find, folder, open_db};
use crate::{
    Shared,
    db::{Db, RunRecord},
    error::Result,
    job::Job,
};

const FOLLOW_EVERY: Duration = Duration::from_millis(500);
/// While steps stream, the list is told no more often than this.
const TELL_EVERY: Duration = Duration::from_secs(1);
const WATCH_EVERY: Duration = Duration::from_millis(250);

/// Tells of every run, now and whenever something changed, until the job is stopped.
pub(crate) fn follow(job: &Job) -> Result<()> {
    let db = open_db(job.host.paths())?;
    let mut told: Option<(Vec<RunEntry>, Instant)> = None;
    let mut version = None;
    loop {
        let is_due = told.as_ref().is_none_or(|(_, at)| at.elapsed() >= TELL_EVERY);
        // A process that dies says so nowhere: only its lock tells.
        let any_runs =
            told.as_ref().is_some_and(|(runs, _)| runs.iter().any(|run| run.status == RunStatus::Running));
        if is_due && (any_runs || version != Some(db.version()?)) {
            version = Some(db.version()?);
            let runs = entries(&job.host, &db)?;
            if told.as_ref().is_none_or(|(told, _)| *told != runs) {
                job.emit(EventBody::Runs { runs: runs.clone() });
                told = Some((runs, Instant::now()));
            }
        }
        if !job.rest(FOLLOW_EVERY) {
            return Ok(());
        }
    }
}

pub(crate) fn show(job: &Job, name: &str) -> Result<()> {
    let db = open_db(job.host.paths())?;
    let record = find(&job.host, &db, name)?;
    job.emit(EventBody::Run(Box::new(Watched::begin(&db, record)?.0)));
    Ok(())
}

/// Tells of a run as it is recorded, whichever process runs it, until the job is stopped or the run removed.
pub(crate) fn watch(job: &Job, name: &str) -> Result<()> {
    let db = open_db(job.host.paths())?;
    let record = find(&job.host, &db, name)?;
    let id = record.entry.id.clone();
    let mut version = db.version()?;
    let (details, mut watched) = db.at_once(|| Watched::begin(&db, record))?;
    job.emit(EventBody::Run(Box::new(details)));
    while job.rest(WATCH_EVERY) {
        let is_new = std::mem::replace(&mut version, db.version()?) != version;
        if !is_new && watched.entry.status != RunStatus::Running {
            continue;
        }
        // Before the look into the database: a run that ends says so there, then lets go of its folder.
        let was_held = is_held(&job.host, &watched.entry);
        let events = db.at_once(|| {
            let Some(mut record) = db.run(&id)? else { return Ok(None) };
            let entry = &mut record.entry;
            if entry.status == RunStatus::Running {
                entry.held_here = job.host.holds(&id);
                if !was_held && !is_held(&job.host, entry) {
                    entry.status = RunStatus::Interrupted;
                }
            }
            // Training began anew: steps may be gone.
            if db.starts(&id)? != Some(watched.starts) {
                let (details, begun) = Watched::begin(&db, record)?;
                watched = begun;
                return Ok(Some(vec![EventBody::Run(Box::new(details))]));
            }
            watched.news(&db, record.entry).map(Some)
        })?;
        let Some(events) = events else { return Ok(()) };
        for event in events {
            job.emit(event);
        }
    }
    Ok(())
}

fn is_held(host: &Shared, entry: &RunEntry) -> bool {
    host.holds(&entry.id) || folder::is_running(entry.out_dir.as_ref())
}

/// How far a watched run was told.
struct Watched {
    entry: RunEntry,
    starts: usize,
    step: usize,
    eval_step: usize,
    /// Rows of their tables.
    sample: i64,
    log: i64,
    checkpoints: Vec<String>,
}

impl Watched {
    /// All there is.
    fn begin(db: &Db, record: RunRecord) -> Result<(RunDetails, Self)> {
        let RunRecord { entry, config, eval_data, init_adapter, .. } = record;
        let id = &entry.id;
        let (steps, evals) = (db.steps(id, 0)?, db.evals(id, 0)?);
        let (samples, log) = (db.samples(id, 0)?, db.logs(id, 0)?);
        let checkpoints = folder::checkpoints(entry.out_dir.as_ref());
        let watched = Self {
            starts: db.starts(id)?.unwrap_or_default(),
            step: steps.last().map_or(0, |point| point.step.step),
            eval_step: evals.last().map_or(0, |eval| eval.step),
            sample: samples.last().map_or(0, |(row, _)| *row),
            log: log.last().map_or(0, |(row, _)| *row),
            checkpoints: checkpoints.clone(),
            entry: entry.clone(),
        };
        let details = RunDetails {
            run: entry,
            config,
            init_adapter,
            eval_data,
            steps,
            evals,
            samples: samples.into_iter().map(|(_, sample)| sample).collect(),
            log: log.into_iter().map(|(_, line)| line).collect(),
            checkpoints,
        };
        Ok((details, watched))
    }

    /// What came since the last look.
    fn news(&mut self, db: &Db, entry: RunEntry) -> Result<Vec<EventBody>> {
        let mut events = Vec::new();
        for point in db.steps(&entry.id, self.step)? {
            self.step = point.step.step;
            events.push(EventBody::Step(point.step));
        }
        for eval in db.evals(&entry.id, self.eval_step)? {
            self.eval_step = eval.step;
            events.push(EventBody::Eval(eval));
        }
        for (row, sample) in db.samples(&entry.id, self.sample)? {
            self.sample = row;
            events.push(EventBody::Sample(sample));
        }
        for (row, line) in db.logs(&entry.id, self.log)? {
            self.log = row;
            events.push(EventBody::Log { level: line.level, message: line.message });
        }
        let checkpoints = folder::checkpoints(entry.out_dir.as_ref());
        for path in checkpoints.iter().filter(|path| !self.checkpoints.contains(path)) {
            let step = folder::checkpoint_step(path).unwrap_or_default();
            events.push(EventBody::Checkpoint { step, path: path.clone() });
        }
        self.checkpoints = checkpoints;
        if apart_from_steps(&entry) != apart_from_steps(&self.entry) {
            events.push(EventBody::RunChanged(Box::new(entry.clone())));
        }
        self.entry = entry;
        Ok(events)
    }
}

/// What the other events do not tell.
fn apart_from_steps(entry: &RunEntry) -> RunEntry {
    RunEntry { step: 0, last_loss: None, eval_loss: None, tokens_per_second: None, ..entry.clone() }
}
