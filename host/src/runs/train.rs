use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use lathe_protocol::{
    ErrorCode, ErrorInfo, EventBody, Job as WorkerJob, LogLevel, Method, MetricPoint, RunEntry, RunStatus,
    TrainJob, TrainRequest, TrainSummary,
};

use super::{
    Provenance, adopt, find,
    folder::{self, LockedFolder},
    open_db,
};
use crate::{
    Paths, adapters, config,
    db::{Db, RunRecord},
    error::{Result, usage},
    files,
    host::{data_path, resolve_device},
    job::Job,
    models::{self, file_name},
    paths::absolute,
    worker::{self, Beat, Verdict},
};

const STOP_POLL: Duration = Duration::from_millis(500);

/// Starts a run, or continues the one in `out_dir`, and stays with it to its end.
pub(crate) fn train(job: &mut Job, request: TrainRequest) -> Result<()> {
    if request.resume {
        let dir = request.out_dir.as_deref().ok_or_else(|| {
            usage("Resuming needs the run's folder").hint("add --out DIR, or use `lathe runs resume ID`")
        })?;
        return resume_folder(job, &absolute(dir.as_ref()), Some(&request));
    }
    let TrainRequest {
        model, data, eval_data, config: run_config, out_dir, name, init_adapter, device, ..
    } = request;
    // 1. Everything that can be known to be wrong, before anything is written.
    let device = resolve_device(&device)?;
    config::validate(&run_config)?;
    let paths = job.host.paths().clone();
    let model = models::resolve(&paths, &model)?;
    let data = data_path(&data)?;
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
    let mut db = open_db(&paths)?;
    let (id, created_secs) = new_id(&paths);
    let dir = out_dir.map_or_else(|| paths.runs().join(&id), |dir| absolute(dir.as_ref()));
    let folder = LockedFolder::open(&dir)?;
    folder.refuse_if_taken()?;
    let wanted_name = name.clone().unwrap_or_else(|| made_up_name(&model.name, &data));
    let mut record = RunRecord {
        entry: RunEntry {
            id,
            name: wanted_name.clone(),
            status: RunStatus::Running,
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
        },
        config: run_config,
        eval_data,
        init_adapter,
    };
    let library = paths.adapters();
    let recorded = folder
        .write_config(&record.config)
        .and_then(|()| db.insert_run(&mut record, &|name| library.join(name).exists()))
        .and_then(|()| {
            if name.is_some() && record.entry.name != wanted_name {
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

    // 3. The run itself.
    run(job, ActiveRun { db, folder, record, is_new: true }, &model, device)
}

/// Continues a run by its name or id.
pub(crate) fn resume(job: &mut Job, name: &str) -> Result<()> {
    let dir = find(&open_db(job.host.paths())?, name)?.entry.out_dir;
    if !Path::new(&dir).is_dir() {
        return Err(ErrorInfo::new(ErrorCode::NotFound, format!("The run's folder is gone: {dir}"))
            .hint(format!("`lathe runs rm {name}` removes it from the list")));
    }
    resume_folder(job, dir.as_ref(), None)
}

fn resume_folder(job: &mut Job, dir: &Path, request: Option<&TrainRequest>) -> Result<()> {
    let paths = job.host.paths().clone();
    let device = resolve_device(request.map_or("auto", |request| &request.device))?;
    if !dir.is_dir() {
        return Err(ErrorInfo::new(ErrorCode::NotFound, format!("No such run folder: {}", dir.display()))
            .hint("leave --resume out to start a new run"));
    }
    folder::require_run(dir)?;
    let folder = LockedFolder::open(dir)?;
    let mut record = folder.read_run()?;
    let RunRecord { entry, config: run_config, .. } = &record;
    if let Some(request) = request {
        refuse_changes(request, &record)?;
    }
    if entry.status == RunStatus::Completed {
        let message = format!(
            "Nothing to resume: run {} is complete after {} steps: {}",
            entry.name,
            entry.step,
            dir.display()
        );
        return Err(ErrorInfo::new(ErrorCode::NotFound, message).hint(format!(
            "to train on, start a new run with --init-adapter {}",
            if entry.method == Method::Full {
                "or its folder as --model".into()
            } else {
                dir.display().to_string()
            }
        )));
    }
    config::validate(run_config)?;
    let model = models::resolve(&paths, &entry.model)?;
    data_path(&entry.data)?;
    record.eval_data.as_deref().map(data_path).transpose()?;
    if let Some(adapter) = &record.init_adapter {
        adapters::resolve(&paths, adapter)?;
    }

    let mut waiting = job.progress("Waiting for the run's old worker to end", 0);
    folder.wait_for_old_worker(&mut || waiting.advance(0))?;
    let db = open_db(&paths)?;
    record.entry.status = RunStatus::Running;
    record.entry.error = None;
    match db.run(&record.entry.id)? {
        Some(known) => record.entry.name = known.entry.name,
        None => record = adopt(&db, record)?,
    }
    db.set_running(&record.entry.id, &record.entry.out_dir)?;
    Provenance::of(&record).write(&folder.path)?;
    run(job, ActiveRun { db, folder, record, is_new: false }, &model, device)
}

/// A resumed run goes on as it began: what the request says must be what the folder says.
fn refuse_changes(request: &TrainRequest, record: &RunRecord) -> Result<()> {
    let changed = |key: &str, was: &str, now: &str| {
        Err(usage(format!("A resumed run keeps its settings: {key} is {was}, {now} was asked for"))
            .hint("leave it out to resume, or start a new run in another folder"))
    };
    if let Some((key, was, now)) = config::differences(&record.config, &request.config).first() {
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

/// A run with its folder locked and its row written.
struct ActiveRun {
    db: Db,
    folder: LockedFolder,
    record: RunRecord,
    is_new: bool,
}

/// What was seen of the worker.
#[derive(Default)]
struct Seen {
    anything: bool,
    training: bool,
    summary: Option<TrainSummary>,
    stop_polled: Option<Instant>,
    recording_failed: bool,
}

fn run(job: &mut Job, mut run: ActiveRun, model: &models::Resolved, device: String) -> Result<()> {
    let RunRecord { entry, config: run_config, eval_data, init_adapter } = &run.record;
    job.emit(EventBody::RunStarted {
        run: entry.id.clone(),
        name: entry.name.clone(),
        out_dir: entry.out_dir.clone(),
    });
    let work = WorkerJob::Train(Box::new(TrainJob {
        model: model.path_string(),
        model_name: entry.model.clone(),
        data: entry.data.clone(),
        eval_data: eval_data.clone(),
        out_dir: entry.out_dir.clone(),
        config: run_config.clone(),
        init_adapter: init_adapter.clone(),
        resume: !run.is_new,
        device,
    }));
    let grace = job.host.options.train_stop_grace;
    let mut seen = Seen::default();
    let outcome = worker::run(job, work, grace, &mut |job, beat| run.observe(job, &mut seen, beat));
    run.finish(job, outcome, &seen)
}

impl ActiveRun {
    fn observe(&mut self, job: &Job, seen: &mut Seen, beat: Beat<'_>) -> Verdict {
        let id = self.record.entry.id.clone();
        let Beat::Event(event) = beat else {
            if seen.stop_polled.is_none_or(|polled| polled.elapsed() >= STOP_POLL) {
                seen.stop_polled = Some(Instant::now());
                // A database that fails now may answer at the next look.
                if self.db.stop_requested(&id).unwrap_or(false) {
                    return Verdict::Stop;
                }
            }
            return Verdict::Continue;
        };
        seen.anything = true;
        let entry = &mut self.record.entry;
        let recorded = match event {
            EventBody::TrainingStarted { first_step, total_steps, .. } => {
                seen.training = true;
                (entry.step, entry.total_steps) = (*first_step, *total_steps);
                self.db.set_totals(&id, *first_step, *total_steps)
            }
            EventBody::Step(step) => {
                (entry.step, entry.last_loss) = (step.step, Some(step.loss));
                self.db.add_step(&id, &MetricPoint { step: *step, at_secs: files::now_secs() })
            }
            EventBody::Eval(eval) => {
                entry.eval_loss = Some(eval.loss);
                self.db.add_eval(&id, eval)
            }
            EventBody::Checkpoint { .. } => Provenance::of(&self.record).write(&self.folder.path),
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

    /// Writes down how the run ended, and takes a finished adapter into the library.
    fn finish(mut self, job: &Job, outcome: Result<()>, seen: &Seen) -> Result<()> {
        let entry = &mut self.record.entry;
        let died = matches!(&outcome, Err(error) if error.code == ErrorCode::WorkerDied);
        let never_began = if died { !seen.anything } else { !seen.training };
        let outcome = match outcome {
            Err(error) if self.is_new && never_began => {
                self.db.delete_run(&entry.id)?;
                self.folder.undo();
                return Err(error);
            }
            Err(error) if died => {
                entry.status = RunStatus::Interrupted;
                let hint = format!("resume it with: lathe runs resume {}", entry.id);
                let after =
                    if entry.step > 0 { format!(" after step {}", entry.step) } else { String::new() };
                Err(ErrorInfo { message: format!("{}{after}", error.message), ..error }.hint(hint))
            }
            Err(error) => {
                entry.status = RunStatus::Failed;
                Err(error)
            }
            Ok(()) => {
                let completed = seen.summary.as_ref().is_some_and(|summary| summary.completed);
                entry.status = if completed { RunStatus::Completed } else { RunStatus::Stopped };
                Ok(())
            }
        };
        entry.error = outcome.as_ref().err().map(|error| error.message.clone());
        self.db.set_status(&entry.id, entry.status, entry.error.as_deref())?;
        Provenance::of(&self.record).write(&self.folder.path)?;
        let entry = &self.record.entry;
        if entry.status == RunStatus::Completed && entry.method != Method::Full {
            let adapter = adapters::import(job.host.paths(), &self.folder.path, Some(&entry.name))?;
            job.emit(EventBody::Adapter(Box::new(adapter)));
        }
        outcome
    }
}

/// `2026-04-01-1530-3f9a`: sorts by time, easy to type the end of.
fn new_id(paths: &Paths) -> (String, u64) {
    let now = files::now_secs();
    let secs = now as u64;
    let (year, month, day) = civil_from_days((secs / 86_400).cast_signed());
    let (hour, minute) = (secs / 3600 % 24, secs / 60 % 60);
    let mut salt = ((now.fract() * 1e9) as u32) ^ std::process::id().wrapping_mul(0x9e37_79b9);
    loop {
        let id = format!("{year:04}-{month:02}-{day:02}-{hour:02}{minute:02}-{:04x}", (salt >> 8) & 0xffff);
        if !paths.runs().join(&id).exists() {
            return (id, secs);
        }
        salt = salt.wrapping_mul(0x9e37_79b9).wrapping_add(1);
    }
}

/// Days since 1970-01-01 to (year, month, day); Howard Hinnant's `civil_from_days`.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// `smollm2-135m-instruct-pirate` of a model's name and a data file.
fn made_up_name(model: &str, data: &str) -> String {
    let stem = |path: &str| {
        let path = PathBuf::from(path);
        let name = if models::is_gguf_path(&path) {
            path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
        } else {
            file_name(&path)
        };
        name.to_lowercase()
    };
    let data =
        Path::new(data).file_stem().map(|stem| stem.to_string_lossy().to_lowercase()).unwrap_or_default();
    adapters::clean_name(&format!("{}-{data}", stem(model)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (20_543, (2026, 3, 31)),
            (20_544, (2026, 4, 1)),
        ] {
            assert_eq!(civil_from_days(days), date);
        }
    }

    #[test]
    fn names_come_from_model_and_data() {
        assert_eq!(made_up_name("starter", "/x/Pirate talk.jsonl"), "starter-pirate-talk");
        assert_eq!(made_up_name("Qwen/Qwen3-0.6B", "/x/a.csv"), "qwen3-0.6b-a");
        assert_eq!(made_up_name("/m/Smol.Q4_1.gguf", "/x/a.csv"), "smol.q4_1-a");
    }
}
