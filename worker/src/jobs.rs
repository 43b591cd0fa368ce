use std::{
    fs::File,
    path::{Path, PathBuf},
};

use lathe_engine::{
    Error, Result,
    chat::{ChatSession, ReplyRequest},
    data::{self, Dataset},
    inspect,
    model::Compute,
    origins::{self, Checked},
    preflight,
    store::Reading,
    text_files::TextFiles,
    train::{self, Audience, Question, Surroundings},
};
use lathe_protocol::{ChatJob, DataFile, DataJob, EventBody, Job, LogLevel, Request};

use crate::{Channel, Output, memory::Meter};

/// Runs a job, emitting what comes of it; `Done` and `Failed` are the caller's.
pub(crate) fn run(job: Job, channel: &Channel, output: &Output) -> Result<()> {
    match job {
        Job::CheckData(DataJob { model, data, eval_data, config, cache }) => {
            let text_files = TextFiles::open(Path::new(&model))?.with_styles(&config.styles)?;
            let files = config.files(&data);
            tell_columns_of_unknown(&files[0], output)?;
            let mut emit = |event| output.emit(&event);
            let mut reading = Reading { cache: Path::new(&cache), stop: &channel.stop, emit: &mut emit };
            let report = preflight::check(&text_files, &files, eval_data.as_deref(), &config, &mut reading)?;
            output.emit(&EventBody::DataReport(Box::new(report)));
        }
        Job::ShowData { data: DataJob { model, data, config, .. }, row, count } => {
            let text_files = TextFiles::open(Path::new(&model))?.with_styles(&config.styles)?;
            let files = config.files(&data);
            for dataset in data::read_window(&files, row, count)? {
                for example in &dataset.examples {
                    let mut view = preflight::show_row(&text_files, &dataset, example, config.max_seq_len)?;
                    let name = dataset.path.file_name().unwrap_or_default().to_string_lossy();
                    view.place.file = (files.len() > 1).then(|| name.into_owned());
                    output.emit(&EventBody::Row(view));
                }
            }
        }
        Job::Train(job) => {
            let _held = lock_out_dir(Path::new(&job.out_dir))?;
            let clock = || channel.clock();
            let next_question = || question(channel.requests.try_recv().ok()?);
            let audience = Audience { next_question: &next_question, cancel: &channel.cancel_reply };
            let world = Surroundings { clock: &clock, stop: &channel.stop, audience: Some(audience) };
            let summary = train::run(&job, &world, &mut |event| output.emit(&event))?;
            output.emit(&EventBody::TrainingDone(summary));
        }
        Job::Probe(job) => {
            let (clock, meter) = (|| channel.clock(), Meter::start());
            let world = Surroundings { clock: &clock, stop: &channel.stop, audience: None };
            let report = train::probe(&job, &|| meter.read(), &world, &mut |event| output.emit(&event))?;
            output.emit(&EventBody::Probe(report));
        }
        Job::Chat(job) => chat(&job, channel, output)?,
        Job::Logits(job) => {
            check_bases(&job.model, job.adapter.as_slice(), job.force, output)?;
            let (num_tokens, vocab_size) = inspect::logits(&job)?;
            output.emit(&EventBody::LogitsWritten { path: job.out, num_tokens, vocab_size });
        }
        Job::Eval(job) => {
            check_bases(&job.data.model, job.adapter.as_slice(), job.force, output)?;
            let metrics = inspect::eval(&job, &channel.stop, &mut |event| output.emit(&event))?;
            output.emit(&EventBody::Eval(metrics));
        }
        Job::DescribeModel { model } => {
            output.emit(&EventBody::ModelDetails(Box::new(inspect::describe(Path::new(&model))?)));
        }
        Job::Origins(job) => output.emit(&EventBody::Origins(Box::new(origins::now(&job)?))),
    }
    Ok(())
}

/// The columns of a file whose shape is not known, before the error about it.
fn tell_columns_of_unknown(file: &DataFile, output: &Output) -> Result<()> {
    let path = Path::new(&file.path);
    let rows = data::read_head(path)?;
    let columns = data::columns(&rows);
    Dataset::new(path, rows, &file.columns).map(drop).inspect_err(|_| {
        output.emit(&EventBody::DataColumns { columns, roles: data::all_roles() });
    })
}

/// Refuses adapters of another base unless forced to, and says what is to be said of them.
fn check_bases(model: &str, adapters: &[String], force: bool, output: &Output) -> Result<()> {
    let Checked { notes, warnings, forced } = origins::check_bases(Path::new(model), adapters, force)?;
    let told = notes.into_iter().map(|note| (LogLevel::Info, note));
    let forced = forced.into_iter().map(|refusal| format!("Forced: {refusal}"));
    let told = told.chain(warnings.into_iter().chain(forced).map(|warning| (LogLevel::Warn, warning)));
    told.for_each(|(level, message)| output.emit(&EventBody::Log { level, message }));
    Ok(())
}

fn chat(job: &ChatJob, channel: &Channel, output: &Output) -> Result<()> {
    let clock = || channel.clock();
    let adapters: Vec<PathBuf> = job.adapters.iter().map(PathBuf::from).collect();
    check_bases(&job.model, &job.adapters, job.force, output)?;
    let compute = Compute::open(&job.device)?;
    let mut session = ChatSession::load_on(compute, Path::new(&job.model), &adapters, &clock)?;
    output.emit(&EventBody::ChatReady {
        load_seconds: session.load_seconds(),
        supports_thinking: session.supports_thinking(),
        supports_effort: session.supports_effort(),
        context_length: session.context_length(),
        styles: session.styles().to_vec(),
    });
    // Ends when the listener drops its sender: stop, or the end of stdin.
    while let Ok(request) = channel.requests.recv() {
        let Some(Question { request, .. }) = question(request) else { continue };
        let reply = session.reply(&request, &channel.cancel_reply, &clock, &mut |delta| {
            output.emit(&EventBody::Reply(delta));
        });
        output.emit(&match reply {
            Ok(stats) => EventBody::ReplyDone(stats),
            // The question was at fault, and the next may not be.
            Err(error @ Error::Invalid { .. }) => EventBody::ReplyFailed { error: error.into() },
            Err(error) => return Err(error),
        });
    }
    Ok(())
}

/// What is asked, now.
fn question(request: Request) -> Option<Question> {
    let Request::Reply { messages, sampling, thinking, effort, base } = request else { return None };
    let now = Some(jiff::Zoned::now().datetime());
    Some(Question { request: ReplyRequest { messages, sampling, thinking, effort, now }, base })
}

/// Held while this worker may write into the run's folder: a host that was killed is gone before its worker is.
fn lock_out_dir(out_dir: &Path) -> Result<File> {
    let path = out_dir.join(".worker.lock");
    let file = File::create(&path).map_err(Error::io("lock the run's folder", &path))?;
    file.lock().map_err(Error::io("lock the run's folder", &path))?;
    Ok(file)
}
