use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use lathe_protocol::{
    ChatJob, Command, CommandBody, DataJob, EngineLink, ErrorCode, ErrorInfo, EvalJob, Event, EventBody,
    Job as WorkerJob, JobId, LogLevel, LogitsJob, Request, RunConfig,
};

use crate::{
    Paths, adapters, config, doctor,
    error::{Result, io_error, not_found, usage},
    files, hardware,
    job::{Control, Job, ToWorker},
    models,
    paths::absolute,
    runs,
    worker::{self, Verdict},
};

/// How a host finds its surroundings.
#[derive(Debug, Clone)]
pub struct HostOptions {
    pub paths: Paths,
    /// Started with `worker_args`, it speaks the frames of `lathe_protocol` on stdin and stdout.
    pub worker_exe: PathBuf,
    pub worker_args: Vec<String>,
    pub handshake_timeout: Duration,
    /// From a stop to SIGTERM, for anything but training.
    pub stop_grace: Duration,
    /// From a stop to SIGTERM, for training: the step at hand must end and be saved.
    pub train_stop_grace: Duration,
}

impl HostOptions {
    pub fn new(paths: Paths, worker_exe: PathBuf, worker_args: Vec<String>) -> Self {
        Self {
            paths,
            worker_exe,
            worker_args,
            handshake_timeout: Duration::from_secs(20),
            stop_grace: Duration::from_secs(10),
            train_stop_grace: Duration::from_secs(110),
        }
    }
}

/// What every job of a host shares.
pub(crate) struct Shared {
    pub(crate) options: HostOptions,
}

impl Shared {
    pub(crate) fn paths(&self) -> &Paths {
        &self.options.paths
    }
}

struct RunningJob {
    control: Arc<Control>,
    thread: JoinHandle<()>,
}

/// The host in this process. Dropping it stops its jobs (a run checkpoints) and waits for them.
pub struct Host {
    shared: Arc<Shared>,
    jobs: HashMap<JobId, RunningJob>,
    sender: SyncSender<Event>,
    /// None only while dropping.
    events: Option<Receiver<Event>>,
    /// Said by [`Host::send`] itself.
    own_events: Vec<Event>,
}

impl Host {
    pub fn start(options: HostOptions) -> Result<Self> {
        let data_dir = &options.paths.data_dir;
        std::fs::create_dir_all(data_dir).map_err(|error| {
            io_error("create the data folder", data_dir)(error)
                .hint("choose another with --data-dir or LATHE_DATA_DIR")
        })?;
        let (sender, events) = sync_channel(1024);
        Ok(Self {
            shared: Arc::new(Shared { options }),
            jobs: HashMap::new(),
            sender,
            events: Some(events),
            own_events: Vec::new(),
        })
    }

    pub fn paths(&self) -> &Paths {
        self.shared.paths()
    }

    /// Like [`EngineLink::drain`], but waits up to `timeout` for something to happen.
    pub fn wait(&mut self, timeout: Duration) -> Vec<Event> {
        let mut drained = self.drain();
        if drained.is_empty()
            && let Some(event) = self.events.as_ref().and_then(|events| events.recv_timeout(timeout).ok())
        {
            drained.push(event);
            drained.extend(self.drain());
        }
        drained
    }

    fn tell(&mut self, job: JobId, body: EventBody) {
        self.own_events.push(Event { job, body });
    }

    fn start_job(&mut self, Command { job: id, body }: Command) {
        if self.jobs.contains_key(&id) {
            let message = format!("A job with id {} runs already: command ignored", id.0);
            return self.tell(id, EventBody::Log { level: LogLevel::Warn, message });
        }
        let (to_worker, requests) = sync_channel(64);
        let control = Arc::new(Control::new(to_worker));
        let mut job = Job {
            id,
            host: self.shared.clone(),
            control: control.clone(),
            to_worker: Some(requests),
            events: self.sender.clone(),
        };
        let thread = thread::Builder::new().name(format!("job-{}", id.0)).spawn(move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| run(&mut job, body))).unwrap_or_else(|_| {
                Err(ErrorInfo::new(ErrorCode::Internal, "Lathe has a bug: a job of the host panicked")
                    .hint("the message above says where; please report it"))
            });
            job.emit(match outcome {
                Ok(()) => EventBody::Done,
                Err(error) => EventBody::Failed { error },
            });
        });
        match thread {
            Ok(thread) => {
                self.jobs.insert(id, RunningJob { control, thread });
            }
            Err(error) => {
                let error = ErrorInfo::new(ErrorCode::Internal, format!("Cannot start a thread: {error}"));
                self.tell(id, EventBody::Failed { error });
            }
        }
    }

    /// To a running job. One that ended has said so already.
    fn pass_on(&mut self, id: JobId, body: CommandBody) {
        let Some(job) = self.jobs.get(&id) else {
            let message = format!("Job {} has ended", id.0);
            return self.tell(id, EventBody::Log { level: LogLevel::Warn, message });
        };
        let request = match body {
            CommandBody::Reply { messages, sampling, thinking, effort } => {
                Request::Reply { messages, sampling, thinking, effort }
            }
            CommandBody::CancelReply => Request::CancelReply,
            _ => return job.control.stop(),
        };
        if let Err(TrySendError::Full(_)) = job.control.to_worker.try_send(ToWorker::Request(request)) {
            let message = "The chat is busy with what it was asked before: request dropped".to_owned();
            self.tell(id, EventBody::Log { level: LogLevel::Warn, message });
        }
    }
}

impl EngineLink for Host {
    fn send(&mut self, command: Command) {
        self.jobs.retain(|_, job| !job.thread.is_finished());
        match command.body {
            body @ (CommandBody::Reply { .. } | CommandBody::CancelReply | CommandBody::Stop) => {
                self.pass_on(command.job, body);
            }
            _ => self.start_job(command),
        }
    }

    fn drain(&mut self) -> Vec<Event> {
        let mut drained = std::mem::take(&mut self.own_events);
        drained.extend(self.events.iter().flat_map(Receiver::try_iter));
        drained
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Jobs that wait for room in the channel go on once nobody listens.
        self.events = None;
        for job in self.jobs.values() {
            job.control.stop();
        }
        for (_, job) in self.jobs.drain() {
            // A panic was reported as the job's failure.
            drop(job.thread.join());
        }
    }
}

fn run(job: &mut Job, body: CommandBody) -> Result<()> {
    match body {
        CommandBody::Hardware => job.emit(EventBody::Hardware(hardware::detect(job.host.paths()))),
        CommandBody::Doctor => doctor::check(job),

        CommandBody::ModelsList => job.emit(EventBody::Models { models: models::list(job.host.paths())? }),
        CommandBody::ModelsShow { model } => models::show(job, &model)?,
        CommandBody::ModelsImport { path, name } => models::import(job, &path, name.as_deref())?,
        CommandBody::ModelsVerify { model } => models::verify(job, &model)?,
        CommandBody::ModelsRemove { model } => models::remove(job, &model)?,

        CommandBody::DataCheck { model, data, config } => {
            let data = data_job(job, &model, &data, config)?;
            simple_worker(job, WorkerJob::CheckData(data))?;
        }
        CommandBody::DataShow { model, data, row, config } => {
            let data = data_job(job, &model, &data, config)?;
            simple_worker(job, WorkerJob::ShowData { data, row })?;
        }

        CommandBody::Train(request) => runs::train(job, *request)?,
        CommandBody::RunsList => runs::list(job)?,
        CommandBody::RunsShow { run } => runs::show(job, &run)?,
        CommandBody::RunsResume { run } => runs::resume(job, &run)?,
        CommandBody::RunsStop { run } => runs::stop(job, &run)?,
        CommandBody::RunsRemove { run } => runs::remove(job, &run)?,

        CommandBody::AdaptersList => {
            job.emit(EventBody::Adapters { adapters: adapters::list(job.host.paths())? });
        }
        CommandBody::AdaptersShow { adapter } => {
            let entry = adapters::show(job.host.paths(), &adapter)?;
            job.emit(EventBody::Adapter(Box::new(entry)));
        }
        CommandBody::AdaptersImport { path, name } => {
            let entry = adapters::import(job.host.paths(), &absolute(path.as_ref()), name.as_deref())?;
            job.emit(EventBody::Adapter(Box::new(entry)));
        }
        CommandBody::AdaptersRemove { adapter } => {
            let freed_bytes = adapters::remove(job.host.paths(), &adapter)?;
            job.emit(EventBody::Removed { what: format!("adapter {adapter}"), freed_bytes });
        }

        CommandBody::Chat { model, adapters, device } => {
            let paths = job.host.paths();
            let model = models::resolve(paths, &model)?.path_string();
            let adapters =
                adapters.iter().map(|adapter| adapters::resolve(paths, adapter)).collect::<Result<_>>()?;
            let device = resolve_device(&device)?;
            simple_worker(job, WorkerJob::Chat(ChatJob { model, adapters, device }))?;
        }
        CommandBody::Logits { model, adapter, ids, out, device } => {
            let paths = job.host.paths();
            let model = models::resolve(paths, &model)?.path_string();
            let adapter = adapter.map(|adapter| adapters::resolve(paths, &adapter)).transpose()?;
            let device = resolve_device(&device)?;
            if ids.is_empty() {
                return Err(usage("No token ids given").hint("--ids takes numbers, e.g. --ids 1,2,3"));
            }
            let out = absolute(out.as_ref()).display().to_string();
            simple_worker(job, WorkerJob::Logits(LogitsJob { model, adapter, ids, out, device }))?;
        }
        CommandBody::Eval { model, adapter, data, config, device } => {
            let adapter = adapter.map(|adapter| adapters::resolve(job.host.paths(), &adapter)).transpose()?;
            let device = resolve_device(&device)?;
            let data = data_job(job, &model, &data, config)?;
            simple_worker(job, WorkerJob::Eval(EvalJob { data, adapter, device }))?;
        }

        CommandBody::Reply { .. } | CommandBody::CancelReply | CommandBody::Stop => {}
    }
    Ok(())
}

fn simple_worker(job: &mut Job, work: WorkerJob) -> Result<()> {
    let grace = job.host.options.stop_grace;
    worker::run(job, work, grace, &mut |_, _| Verdict::Continue)
}

fn data_job(job: &Job, model: &str, data: &str, config: RunConfig) -> Result<DataJob> {
    config::validate(&config)?;
    let data = data_path(data)?;
    let model = models::resolve(job.host.paths(), model)?.path_string();
    Ok(DataJob { model, data, config })
}

/// The data file's full path, if it is there.
pub(crate) fn data_path(data: &str) -> Result<String> {
    let path = absolute(data.as_ref());
    if path.is_file() {
        return Ok(path.display().to_string());
    }
    let kind = if path.is_dir() { "Data must be a file, this is a folder" } else { "No such data file" };
    let folder = path.parent().map(files::names_in).and_then(Result::ok).unwrap_or_default();
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let near = crate::error::near(&name, folder.iter().map(String::as_str));
    Err(not_found(format!("{kind}: {}", path.display()))
        .hint(crate::error::did_you_mean(&near, "check the spelling of the path")))
}

/// `auto` and `cpu` are the CPU; this build knows no other device.
pub(crate) fn resolve_device(device: &str) -> Result<String> {
    let is_cuda =
        device == "cuda" || device.strip_prefix("cuda:").is_some_and(|index| index.parse::<u32>().is_ok());
    match device {
        "auto" | "cpu" => Ok("cpu".into()),
        _ if is_cuda => Err(ErrorInfo::new(
            ErrorCode::Device,
            format!("Device {device} is not available: this version computes on the CPU only"),
        )
        .hint("leave --device out, or say --device cpu")),
        _ => Err(usage(format!("Unknown device {device:?}")).hint("write auto, cpu or cuda:N")),
    }
}
