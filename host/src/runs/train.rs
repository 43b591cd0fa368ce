use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use lathe_protocol::{
    ErrorCode, ErrorInfo, EventBody, Job as WorkerJob, LogLevel, LogLine, Method, MetricPoint, ResumeHow,
    RunEntry, RunStatus, StopThen, SweepPlace, TrainJob, TrainRequest, TrainStart, TrainSummary,
};

use super::{
    Provenance, adopt, delete, find,
    folder::{self, LockedFolder},
    naming::{made_up_name, new_id},
    open_db,
    queue::free_device,
    recover::{change, memory_hint, recovery_hint, takes_less, what_fits},
    stop,
    talk::Answering,
};
use crate::{
    Shared, adapters, config,
    db::{Db, RunRecord},
    devices::{self, Devices},
    error::{Result, usage},
    files, hardware,
    host::{cache_folder, data_files, data_path},
    job::Job,
    models,
    paths::absolute,
    worker::{self, Beat, Verdict},
};

const STOP_POLL: Duration = Duration::from_millis(500);

/// Starts or queues a run, or continues the one in `out_dir`.
pub(crate) fn train(job: &mut Job, request: TrainRequest) -> Result<()> {
    if request.resume {
        let dir = request.out_dir.as_deref().ok_or_else(|| {
            usage("Resuming needs the run's folder").hint("add --out DIR, or use `lathe runs resume ID`")
        })?;
        let device = Some(request.device.as_str()).filter(|device| *device != devices::AUTO);
        let run = reopen_folder(job, &absolute(dir.as_ref()), Some(&request), device)?;
        return go_on(job, run, ResumeHow::AsItWas, request.start);
    }
    let start = request.start;
    let created = create(&job.host, request, None)?;
    if start == TrainStart::Queued {
        job.emit(run_started(&created.record.entry));
        return Ok(());
    }
    let Created { db, folder, record, model, wanted } = created;
    let device = free_device(&job.host, &db, &record.entry, &wanted)?;
    let detaches = start == TrainStart::Detached;
    ActiveRun { db, folder, record, model, device, is_new: true, detaches }.run(job)
}

/// A run that has its row and its folder, locked.
pub(super) struct Created {
    db: Db,
    folder: LockedFolder,
    pub record: RunRecord,
    /// Folder or `.gguf` file.
    model: String,
    /// The devices it may run on.
    wanted: Vec<String>,
}

/// Makes a new run. One of a sweep may get another name than it asks for.
pub(super) fn create(host: &Shared, request: TrainRequest, sweep: Option<SweepPlace>) -> Result<Created> {
    let TrainRequest {
        model,
        data,
        eval_data,
        config: mut run_config,
        out_dir,
        name,
        init_adapter,
        force,
        device,
        start,
        resume: _,
    } = request;
    // 1. Everything that can be known to be wrong, before anything is written.
    let devices = Devices::of(host);
    let device = devices.checked(&device)?;
    config::validate(&run_config)?;
    let paths = host.paths().clone();
    let model = models::resolve(&paths, &model)?;
    let wanted = devices.candidates(&paths, &device, &model.name, &run_config)?;
    let data = data_files(&data, &mut run_config)?;
    let eval_data = eval_data.map(|path| data_path(&path)).transpose()?;
    let init_adapter = init_adapter.map(|adapter| adapters::resolve(&paths, &adapter)).transpose()?;
    if init_adapter.is_some() && run_config.method == Method::Full {
        return Err(usage("method = \"full\" cannot start from an adapter")
            .hint("use method = \"lora\", or leave --init-adapter out"));
    }
    if let Some(name) = &name {
        adapters::check_name(name)?;
    }

    // 2. A folder of its own, locked, and a name.
    let db = open_db(&paths)?;
    let (id, created_secs) = new_id(&paths);
    let dir = out_dir.map_or_else(|| paths.runs().join(&id), |dir| absolute(dir.as_ref()));
    let folder = LockedFolder::open(&dir)?;
    folder.refuse_if_taken()?;
    let wanted_name = name.clone().unwrap_or_else(|| made_up_name(&model.name, &data));
    let mut record = RunRecord {
        entry: RunEntry {
            id,
            name: wanted_name.clone(),
            status: if start == TrainStart::Queued { RunStatus::Queued } else { RunStatus::Running },
            model: model.name.clone(),
            data,
            method: run_config.method,
            out_dir: dir.display().to_string(),
            created_secs,
            step: 0,
            total_steps: 0,
            last_loss: None,
            eval_loss: None,
            error: None,
            divergence: None,
            tokens_per_second: None,
            doing: None,
            queue_position: None,
            held_here: false,
            device,
            runs_on: None,
            sweep,
        },
        config: run_config,
        eval_data,
        init_adapter,
        force,
    };
    let library = paths.adapters();
    let recorded = folder
        .write_config(&record.config)
        .and_then(|()| db.insert_run(&mut record, &|name| library.join(name).exists()))
        .and_then(|()| {
            if name.is_some() && record.entry.sweep.is_none() && record.entry.name != wanted_name {
                db.delete_run(&record.entry.id)?;
                return Err(usage(format!("The name {wanted_name:?} is taken"))
                    .hint(format!("choose another with --name, e.g. {}", record.entry.name)));
            }
            Provenance::of(&record).write(&folder.path)
        });
    if let Err(error) = recorded {
        folder.undo();
        return Err(error);
    }
    Ok(Created { db, folder, record, model: model.path_string(), wanted })
}

/// Continues a run by its name or id, or starts a queued one.
pub(crate) fn resume(
    job: &mut Job,
    name: &str,
    how: ResumeHow,
    start: TrainStart,
    device: Option<&str>,
) -> Result<()> {
    let entry = find(&job.host, &open_db(job.host.paths())?, name)?.entry;
    let run = reopen_folder(job, folder::of_run(&entry)?, None, device)?;
    go_on(job, run, how, start)
}

/// The run in a folder, on `asked` from now on.
fn reopen_folder(
    job: &Job,
    dir: &Path,
    request: Option<&TrainRequest>,
    asked: Option<&str>,
) -> Result<ActiveRun> {
    if !dir.is_dir() {
        return Err(ErrorInfo::new(ErrorCode::NotFound, format!("No such run folder: {}", dir.display()))
            .hint("leave --resume out to start a new run"));
    }
    folder::require_run(dir)?;
    reopen(job, LockedFolder::open(dir)?, request, asked, None)
}

fn go_on(job: &mut Job, mut run: ActiveRun, how: ResumeHow, start: TrainStart) -> Result<()> {
    run.change(how)?;
    if start == TrainStart::Queued {
        return run.enqueue(job);
    }
    run.detaches = start == TrainStart::Detached;
    run.run(job)
}

/// The run in a folder, if it can go on: on `device`, or where there is room for it. `asked` is what it is given to.
pub(super) fn reopen(
    job: &Job,
    folder: LockedFolder,
    request: Option<&TrainRequest>,
    asked: Option<&str>,
    device: Option<String>,
) -> Result<ActiveRun> {
    let paths = job.host.paths();
    let mut record = folder.read_run()?;
    let RunRecord { entry, config: run_config, .. } = &record;
    if let Some(request) = request {
        refuse_changes(request, &record)?;
    }
    if entry.status == RunStatus::Completed {
        let dir = folder.path.display();
        let message =
            format!("Nothing to resume: run {} is complete after {} steps: {dir}", entry.name, entry.step);
        let from = if entry.method == Method::Full {
            "or its folder as --model".to_owned()
        } else {
            dir.to_string()
        };
        return Err(ErrorInfo::new(ErrorCode::NotFound, message)
            .hint(format!("to train on, start a new run with --init-adapter {from}")));
    }
    config::validate(run_config)?;
    let model = models::resolve(paths, &entry.model)?.path_string();
    data_files(&entry.data, &mut run_config.clone())?;
    record.eval_data.as_deref().map(data_path).transpose()?;
    if let Some(adapter) = &record.init_adapter {
        adapters::resolve(paths, adapter)?;
    }

    let mut waiting = job.progress("Waiting for the run's old worker to end", 0);
    folder.wait_for_old_worker(&mut || waiting.advance(0))?;
    let db = open_db(paths)?;
    match db.run(&record.entry.id)? {
        Some(known) => (record.entry.name, record.entry.device) = (known.entry.name, known.entry.device),
        None => record = adopt(&db, record)?,
    }
    if let Some(asked) = asked {
        asked.clone_into(&mut record.entry.device);
    }
    let devices = Devices::of(&job.host);
    let entry = &mut record.entry;
    entry.device = devices.checked(&entry.device)?;
    let device = if let Some(device) = device {
        device
    } else {
        let wanted = devices.candidates(paths, &entry.device, &entry.model, &record.config)?;
        free_device(&job.host, &db, entry, &wanted)?
    };
    Ok(ActiveRun { db, folder, record, model, device, is_new: false, detaches: false })
}

/// A resumed run goes on as it began: what the request says must be what the folder says.
fn refuse_changes(request: &TrainRequest, record: &RunRecord) -> Result<()> {
    let changed = |key: &str, was: &str, now: &str| {
        Err(usage(format!("A resumed run keeps its settings: {key} is {was}, {now} was asked for"))
            .hint("leave it out to resume, or start a new run in another folder"))
    };
    let mut wanted = request.config.clone();
    for file in &mut wanted.data {
        file.path = absolute(file.path.as_ref()).display().to_string();
    }
    if let Some((key, was, now)) = config::differences(&record.config, &wanted).first() {
        return changed(key, was, now);
    }
    if !request.data.is_empty() {
        let data = absolute(request.data.as_ref()).display().to_string();
        if data != record.entry.data {
            return changed("the data", &record.entry.data, &data);
        }
    }
    let model = absolute(request.model.as_ref()).display().to_string();
    let short = record.entry.model.rsplit('/').next();
    if !request.model.is_empty()
        && ![&request.model, &model].contains(&&record.entry.model)
        && short != Some(&request.model)
    {
        return changed("the model", &record.entry.model, &request.model);
    }
    Ok(())
}

fn run_started(entry: &RunEntry) -> EventBody {
    let RunEntry { id, name, out_dir, .. } = entry.clone();
    EventBody::RunStarted { run: id, name, out_dir }
}

/// A run with its folder locked and its row written.
pub(super) struct ActiveRun {
    db: Db,
    folder: LockedFolder,
    record: RunRecord,
    /// Folder or `.gguf` file.
    model: String,
    /// What it runs on.
    device: String,
    /// Leaves nothing behind if training never begins.
    is_new: bool,
    /// The job ends when training begins.
    detaches: bool,
}

/// A run among those of this process, as long as it lives.
struct Active {
    host: Arc<Shared>,
    id: String,
}

impl Active {
    fn new(job: &Job, id: &str) -> Self {
        job.host.active().insert(id.to_owned(), job.control.clone());
        // The host may have looked already for what is to end with it.
        if job.host.is_closing() {
            job.control.wind_up();
        }
        Self { host: job.host.clone(), id: id.to_owned() }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.host.active().remove(&self.id);
    }
}

/// What was seen of the worker.
#[derive(Default)]
struct Seen {
    training: bool,
    doing: Option<String>,
    summary: Option<TrainSummary>,
    stop_polled: Option<Instant>,
    /// Asked through the database, by whatever process.
    stop: Option<StopThen>,
    answering: Answering,
    recording_failed: bool,
}

impl ActiveRun {
    /// Changes the run's settings before it goes on, in its folder and its row.
    fn change(&mut self, how: ResumeHow) -> Result<()> {
        let Self { db, folder, record, .. } = self;
        if how != ResumeHow::AsItWas {
            change(&mut record.config, &record.entry, how)?;
            folder.write_config(&record.config)?;
            db.set_config(&record.entry.id, &record.config)?;
        }
        Ok(())
    }

    /// Leaves the run to the queue.
    fn enqueue(mut self, job: &Job) -> Result<()> {
        let entry = &mut self.record.entry;
        entry.status = RunStatus::Queued;
        (entry.error, entry.divergence) = (None, None);
        self.db.enqueue(&entry.id)?;
        self.db.assign(&entry.id, &entry.device)?;
        Provenance::of(&self.record).write(&self.folder.path)?;
        job.emit(run_started(&self.record.entry));
        Ok(())
    }

    /// Stays with the run to its end.
    pub(super) fn run(mut self, job: &mut Job) -> Result<()> {
        let RunRecord { entry, config: run_config, eval_data, init_adapter, force } = &mut self.record;
        let _active = Active::new(job, &entry.id);
        if let Some(fits) = what_fits(&job.host, self.model.as_ref(), run_config, &self.device) {
            job.log(LogLevel::Warn, format!("Memory may give out: {fits}"));
        }
        entry.status = RunStatus::Running;
        entry.runs_on = Some(self.device.clone());
        (entry.error, entry.divergence) = (None, None);
        let work = WorkerJob::Train(Box::new(TrainJob {
            model: self.model.clone(),
            model_name: entry.model.clone(),
            data: entry.data.clone(),
            eval_data: eval_data.clone(),
            out_dir: entry.out_dir.clone(),
            config: run_config.clone(),
            cache: cache_folder(job)?,
            init_adapter: init_adapter.clone(),
            resume: !self.is_new,
            device: self.device.clone(),
            force: *force,
            machine: hardware::machine(),
        }));
        self.db.set_running(&entry.id, &entry.out_dir, &self.device)?;
        Provenance::of(&self.record).write(&self.folder.path)?;
        job.emit(run_started(&self.record.entry));
        let grace = job.host.options.train_stop_grace;
        let mut seen = Seen::default();
        let outcome = worker::run(job, work, grace, &mut |job, beat| self.observe(job, &mut seen, beat));
        self.finish(job, outcome, &seen)
    }

    fn observe(&mut self, job: &Job, seen: &mut Seen, beat: Beat<'_>) -> Verdict {
        let Self { db, record, .. } = self;
        let id = record.entry.id.clone();
        let Beat::Event(event) = beat else {
            if seen.stop_polled.is_none_or(|polled| polled.elapsed() >= STOP_POLL) {
                seen.stop_polled = Some(Instant::now());
                // A database that fails now may answer at the next look.
                seen.stop = db.stop_requested(&id).ok().flatten().or(seen.stop);
            }
            // So may it for questions, which wait.
            drop(seen.answering.tick(db, &id, &job.control));
            return match seen.stop {
                None => Verdict::Continue,
                Some(StopThen::Pause | StopThen::Keep) => Verdict::Stop,
                Some(StopThen::Discard) => Verdict::Abort,
            };
        };
        let entry = &mut record.entry;
        let recorded = match event {
            EventBody::Progress { what, .. } if !seen.training && seen.doing.as_ref() != Some(what) => {
                seen.doing = Some(what.clone());
                db.set_doing(&id, what)
            }
            EventBody::TrainingStarted { first_step, total_steps, .. } => {
                seen.training = true;
                (entry.step, entry.total_steps) = (*first_step, *total_steps);
                let recorded = db.set_totals(&id, *first_step, *total_steps);
                if self.detaches {
                    job.detach(event.clone());
                }
                recorded
            }
            EventBody::Step(step) => {
                (entry.step, entry.last_loss) = (step.step, Some(step.loss));
                db.add_step(&id, &MetricPoint { step: *step, at_secs: files::now_secs() })
            }
            EventBody::Retold(told) => db.add_missing(&id, told, files::now_secs()),
            EventBody::Eval(eval) => {
                entry.eval_loss = Some(eval.loss);
                db.add_eval(&id, eval)
            }
            EventBody::Sample(sample) => db.add_sample(&id, sample),
            EventBody::Log { level, message } => {
                let (at_secs, message) = (files::now_secs(), message.clone());
                db.add_log(&id, &LogLine { at_secs, level: *level, message })
            }
            EventBody::Diverged(divergence) => {
                entry.divergence = Some(divergence.clone());
                db.set_divergence(&id, divergence)
            }
            EventBody::Checkpoint { .. } => Provenance::of(record).write(&self.folder.path),
            EventBody::ChatReady { .. } => db.set_chat_ready(&id, event),
            EventBody::ReplyStarted(_)
            | EventBody::Reply(_)
            | EventBody::ReplyDone(_)
            | EventBody::ReplyFailed { .. } => seen.answering.hear(db, event),
            EventBody::TrainingDone(summary) => {
                seen.summary = Some(summary.clone());
                Ok(())
            }
            _ => Ok(()),
        };
        // The run is worth more than its record: say it once, and go on.
        if let Err(error) = recorded
            && !std::mem::replace(&mut seen.recording_failed, true)
        {
            job.log(LogLevel::Warn, format!("The run goes on, but cannot be recorded: {error}"));
        }
        Verdict::Continue
    }

    /// Writes down how the run ended, and takes what it learned into the library.
    fn finish(mut self, job: &Job, outcome: Result<()>, seen: &Seen) -> Result<()> {
        let paths = job.host.paths();
        let entry = &mut self.record.entry;
        let died = matches!(
            &outcome,
            Err(error) if matches!(error.code, ErrorCode::WorkerDied | ErrorCode::OutOfMemory)
        );
        let completed = outcome.is_ok() && seen.summary.as_ref().is_some_and(|summary| summary.completed);
        if seen.stop == Some(StopThen::Discard) && !completed {
            let Self { db, folder, record, .. } = self;
            drop(folder);
            delete(paths, &db, &record.entry)?;
            let message = format!("Run {} was discarded on request", record.entry.name);
            return Err(ErrorInfo::new(ErrorCode::Busy, message));
        }
        let outcome = match outcome {
            Err(error) if self.is_new && !seen.training => {
                self.db.delete_run(&entry.id)?;
                self.folder.undo();
                let fits = (error.code == ErrorCode::OutOfMemory).then(|| {
                    let (model, config) = (self.model.as_ref(), &self.record.config);
                    takes_less(&job.host, model, config, &self.device)
                        .or_else(|| what_fits(&job.host, model, config, &self.device))
                });
                let hint = fits.flatten().or(error.hint);
                return Err(ErrorInfo { hint, ..error });
            }
            Err(error) if died && (seen.training || entry.step > 0) => {
                let hint;
                (entry.status, hint) = if error.code == ErrorCode::OutOfMemory {
                    let config = &self.record.config;
                    let less = takes_less(&job.host, self.model.as_ref(), config, &self.device);
                    let less = less.map(|less| format!("; {less}")).unwrap_or_default();
                    (RunStatus::OutOfMemory, memory_hint(&entry.id, config) + &less)
                } else {
                    (RunStatus::Interrupted, format!("resume it with: lathe runs resume {}", entry.id))
                };
                let after =
                    if entry.step > 0 { format!(" after step {}", entry.step) } else { String::new() };
                Err(ErrorInfo { message: format!("{}{after}", error.message), ..error }.hint(hint))
            }
            Err(error) => {
                let divergence = entry.divergence.as_ref().filter(|_| error.code == ErrorCode::Diverged);
                entry.status = if divergence.is_some() { RunStatus::Diverged } else { RunStatus::Failed };
                let hint = match divergence {
                    Some(divergence) => Some(recovery_hint(&entry.id, divergence)),
                    // Whatever it was, once it is mended nothing is lost.
                    None if entry.step > 0 && error.code == ErrorCode::Io => {
                        let then = format!("then: lathe runs resume {}", entry.id);
                        Some(error.hint.map_or(then.clone(), |hint| format!("{hint}, {then}")))
                    }
                    None => error.hint,
                };
                Err(ErrorInfo { hint, ..error })
            }
            Ok(()) => {
                entry.status = if completed { RunStatus::Completed } else { RunStatus::Stopped };
                Ok(())
            }
        };
        entry.error = outcome.as_ref().err().map(|error| error.message.clone());
        let written = Provenance::of(&self.record).write(&self.folder.path);
        let learned = match self.record.entry.status {
            RunStatus::Completed if self.record.entry.method != Method::Full => {
                let provenance = Provenance::of(&self.record);
                Some(adapters::import_of_run(paths, &self.folder.path, &provenance))
            }
            RunStatus::Stopped if seen.stop == Some(StopThen::Keep) => {
                Some(stop::keep(paths, &mut self.record))
            }
            _ => None,
        };
        let entry = &self.record.entry;
        self.db.set_status(&entry.id, entry.status, entry.error.as_deref())?;
        if let Some(adapter) = learned {
            job.emit(EventBody::Adapter(Box::new(adapter?)));
        }
        outcome.and(written)
    }
}
