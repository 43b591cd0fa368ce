use std::{
    collections::HashMap,
    ffi::OsString,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use lathe_protocol::{
    ChatJob, Command, CommandBody, DataJob, EngineLink, ErrorCode, ErrorInfo, EvalJob, Event, EventBody, Gpu,
    Job as WorkerJob, JobId, LogLevel, LogitsJob, Request, RunConfig, Shell,
};

use crate::{
    Paths, adapters, browse, cache, chats, config, doctor,
    downloads::{self, Downloads},
    error::{Result, io_error, not_found, usage},
    files,
    gpus::{self, Gpus},
    hardware, hub,
    job::{Control, Job, Outlet, ToWorker},
    models,
    net::NetOptions,
    paths::absolute,
    probe, runs,
    s3::S3Options,
    settings, token, token_cache,
    worker::{self, Verdict},
};

/// How a host finds its surroundings.
#[derive(Clone)]
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
    /// Whether queued runs are started here.
    pub runs_queue: bool,
    /// Cards that runs can run on whatever the driver tells: what tests fill in. Empty, the cards that are seen are used,
    /// if all that takes is there.
    pub gpus: Vec<Gpu>,
    /// The worker for cards, in place of `lathe-worker-cuda` beside `worker_exe` or in the data folder's `workers/`.
    /// From `LATHE_WORKER_CUDA`.
    pub cuda_worker: Option<PathBuf>,
    /// The folders that CUDA's libraries are looked for in, in place of the usual ones.
    pub cuda_libraries: Option<Vec<PathBuf>>,
    /// Of the cards, those that may be used. From `CUDA_VISIBLE_DEVICES`.
    pub cuda_visible: Option<String>,
    /// The driver's library that tells of the cards, in place of the system's own. From `LATHE_NVML`.
    pub nvml: Option<OsString>,
    pub net: NetOptions,
    /// Who asks which S3 server.
    pub s3: S3Options,
    /// Called, on any thread, after every event that [`EngineLink::drain`] can give.
    pub on_event: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl HostOptions {
    pub fn new(paths: Paths, worker_exe: PathBuf, worker_args: Vec<String>) -> Self {
        let env = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            paths,
            worker_exe,
            worker_args,
            handshake_timeout: Duration::from_secs(20),
            stop_grace: Duration::from_secs(10),
            train_stop_grace: Duration::from_secs(110),
            runs_queue: false,
            gpus: Vec::new(),
            cuda_worker: env("LATHE_WORKER_CUDA").map(|path| absolute(path.as_ref())),
            cuda_libraries: None,
            // Empty, it hides them all.
            cuda_visible: std::env::var_os("CUDA_VISIBLE_DEVICES")
                .map(|cards| cards.to_string_lossy().into_owned()),
            nvml: env("LATHE_NVML"),
            net: NetOptions::from_env(),
            s3: S3Options::from_env(),
            on_event: None,
        }
    }
}

/// What every job of a host shares.
pub(crate) struct Shared {
    pub(crate) options: HostOptions,
    pub(crate) outlet: Outlet,
    pub(crate) gpus: Gpus,
    /// The runs of this process by id.
    active: Mutex<HashMap<String, Arc<Control>>>,
    pub(crate) downloads: Downloads,
    closing: AtomicBool,
}

impl Shared {
    pub(crate) fn paths(&self) -> &Paths {
        &self.options.paths
    }

    /// The runs of this process by id.
    pub(crate) fn active(&self) -> MutexGuard<'_, HashMap<String, Arc<Control>>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn holds(&self, run: &str) -> bool {
        self.active().contains_key(run)
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }
}

struct RunningJob {
    control: Arc<Control>,
    thread: JoinHandle<()>,
}

impl RunningJob {
    /// So that a job that rests sees at once that it is to stop.
    fn unpark(&self) {
        self.thread.thread().unpark();
    }
}

/// The host in this process. Dropping it stops its jobs and runs (a run checkpoints) and waits for them.
pub struct Host {
    pub(crate) shared: Arc<Shared>,
    jobs: HashMap<JobId, RunningJob>,
    /// Ended for whoever asked for them; their runs go on.
    detached: Vec<RunningJob>,
    queue: Option<JoinHandle<()>>,
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
        let outlet = Outlet { sender, on_event: options.on_event.clone() };
        let runs_queue = options.runs_queue;
        let (active, closing) = (Mutex::default(), AtomicBool::new(false));
        let shared = Arc::new(Shared {
            options,
            outlet,
            gpus: Gpus::default(),
            active,
            downloads: Downloads::default(),
            closing,
        });
        let start_queue = || {
            let shared = shared.clone();
            thread::Builder::new().name("queue".into()).spawn(move || runs::work_off_queue(&shared))
        };
        let queue = runs_queue.then(start_queue).transpose().map_err(|error| cannot_start_thread(&error))?;
        Ok(Self {
            shared,
            jobs: HashMap::new(),
            detached: Vec::new(),
            queue,
            events: Some(events),
            own_events: Vec::new(),
        })
    }

    pub fn paths(&self) -> &Paths {
        self.shared.paths()
    }

    /// The runs that end with this host.
    pub fn active_runs(&self) -> usize {
        self.shared.active().len()
    }

    /// Whether a run or a download of this host goes on, or a run waits in the queue. What cannot be read counts as empty.
    pub fn has_work(&self) -> bool {
        self.active_runs() > 0
            || runs::is_any_queued(self.paths()).unwrap_or(false)
            || downloads::is_any_here(&self.shared).unwrap_or(false)
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
        self.shared.outlet.wake();
    }

    /// Forgets jobs that ended, and sets those apart whose run goes on.
    fn tidy_jobs(&mut self) {
        self.detached.extend(self.jobs.extract_if(|_, job| job.control.is_detached()).map(|(_, job)| job));
        self.jobs.retain(|_, job| !job.thread.is_finished());
        self.detached.retain(|job| !job.thread.is_finished());
    }

    fn start_job(&mut self, Command { job: id, body }: Command) {
        if self.jobs.contains_key(&id) {
            let message = format!("A job with id {} runs already: command ignored", id.0);
            return self.tell(id, EventBody::Log { level: LogLevel::Warn, message });
        }
        let mut job = Job::new(id, self.shared.clone());
        let control = job.control.clone();
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
            Err(error) => self.tell(id, EventBody::Failed { error: cannot_start_thread(&error) }),
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
                Request::Reply { messages, sampling, thinking, effort, base: false }
            }
            CommandBody::CancelReply => Request::CancelReply,
            _ => {
                job.control.stop();
                return job.unpark();
            }
        };
        if let Err(TrySendError::Full(_)) = job.control.to_worker.try_send(ToWorker::Request(request)) {
            let message = "The chat is busy with what it was asked before: request dropped".to_owned();
            self.tell(id, EventBody::Log { level: LogLevel::Warn, message });
        }
    }
}

pub(crate) fn cannot_start_thread(error: &std::io::Error) -> ErrorInfo {
    ErrorInfo::new(ErrorCode::Internal, format!("Cannot start a thread: {error}"))
}

impl EngineLink for Host {
    fn send(&mut self, command: Command) {
        self.tidy_jobs();
        match command.body {
            body if body.is_for_running_job() => self.pass_on(command.job, body),
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
        self.shared.closing.store(true, Ordering::SeqCst);
        for job in self.jobs.values().chain(&self.detached) {
            job.control.wind_up();
            job.unpark();
        }
        // The queue's too.
        for run in self.shared.active().values() {
            run.wind_up();
        }
        if let Some(queue) = &self.queue {
            queue.thread().unpark();
        }
        let jobs = self.jobs.drain().map(|(_, job)| job).chain(self.detached.drain(..));
        for thread in jobs.map(|job| job.thread).chain(self.queue.take()).chain(self.shared.downloads.take())
        {
            // A panic was reported as the job's failure.
            drop(thread.join());
        }
    }
}

fn run(job: &mut Job, body: CommandBody) -> Result<()> {
    match body {
        CommandBody::Hardware => {
            let seen = job.host.gpus.look(&job.host.options);
            job.emit(EventBody::Hardware(hardware::detect(job.host.paths(), seen)));
        }
        CommandBody::GpusFollow => gpus::follow(job),
        CommandBody::Doctor => doctor::check(job),

        CommandBody::ModelsList => job.emit(EventBody::Models { models: models::list(job.host.paths())? }),
        CommandBody::ModelsShow { model } => models::show(job, &model)?,
        CommandBody::ModelsImport { path, name } => models::import(job, &path, name.as_deref())?,
        CommandBody::ModelsVerify { model } => models::verify(job, &model)?,
        CommandBody::ModelsRemove { model } => models::remove(job, &model)?,

        CommandBody::ModelsPull { model, revision } => hub::pull(job, &model, revision.as_deref())?,
        CommandBody::HubSearch { query, limit } => hub::search(job, &query, limit)?,
        CommandBody::HubShow { model, revision } => hub::show(job, &model, revision.as_deref())?,
        CommandBody::DownloadsFollow => downloads::follow(job)?,
        CommandBody::DownloadsAdd { model, revision } => downloads::add(job, &model, revision)?,
        CommandBody::DownloadsAct { model, act } => downloads::act(job, &model, act)?,

        CommandBody::CacheShow => cache::show(job)?,
        CommandBody::CachePlan { targets } => cache::plan(job, targets)?,
        CommandBody::CacheDelete { targets } => cache::delete(job, &targets)?,
        CommandBody::CacheMove { repo, to } => cache::move_to(job, repo, &to)?,

        CommandBody::DataCheck { model, data, eval_data, config } => {
            let mut data = data_job(job, &model, &data, config)?;
            data.eval_data = eval_data.map(|path| data_path(&path)).transpose()?;
            simple_worker(job, WorkerJob::CheckData(data))?;
        }
        CommandBody::DataShow { model, data, row, count, config } => {
            let data = data_job(job, &model, &data, config)?;
            simple_worker(job, WorkerJob::ShowData { data, row, count })?;
        }
        CommandBody::DataCache => token_cache::show(job)?,
        CommandBody::DataCacheClear => token_cache::clear(job)?,

        CommandBody::Train(request) => runs::train(job, *request)?,
        CommandBody::Probe { model, config, longest_row, device } => {
            probe::probe(job, &model, config, longest_row, &device)?;
        }
        CommandBody::Sweep(request) => runs::sweep(job, *request)?,
        CommandBody::RunsList => runs::list(job)?,
        CommandBody::RunsShow { run } => runs::show(job, &run)?,
        CommandBody::RunsReproduce { run } => runs::reproduce(job, &run)?,
        CommandBody::RunsExport { run, format, out } => runs::export(job, &run, format, &out)?,
        CommandBody::RunsFollow => runs::follow(job)?,
        CommandBody::RunsWatch { run } => runs::watch(job, &run)?,
        CommandBody::RunsResume { run, how, start, device } => {
            runs::resume(job, &run, how, start, device.as_deref())?;
        }
        CommandBody::RunsStop { run, then } => runs::stop(job, &run, then)?,
        CommandBody::RunsMove { run, position } => runs::move_queued(job, &run, position)?,
        CommandBody::RunsAssign { run, device } => runs::assign(job, &run, &device)?,
        CommandBody::RunsRemove { run } => runs::remove(job, &run)?,
        CommandBody::SweepResume { sweep } => runs::resume_sweep(job, &sweep)?,
        CommandBody::QueueWork { sweep } => runs::work(job, sweep.as_deref())?,

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
        CommandBody::AdaptersUpdate { adapter, update } => {
            let entry = adapters::update(job.host.paths(), &adapter, &update)?;
            job.emit(EventBody::Adapter(Box::new(entry)));
        }
        CommandBody::AdaptersRemove { adapter } => {
            let freed_bytes = adapters::remove(job.host.paths(), &adapter)?;
            job.emit(EventBody::Removed { what: format!("adapter {adapter}"), freed_bytes });
        }

        CommandBody::ChatsList => chats::list(job)?,
        CommandBody::ChatsShow { chat } => chats::show(job, &chat)?,
        CommandBody::ChatsSave(record) => chats::save(job, &record)?,
        CommandBody::ChatsRemove { chat } => chats::remove(job, &chat)?,

        CommandBody::SettingsShow => settings::show(job)?,
        CommandBody::SettingsSave(settings) => settings::save(job, &settings)?,
        CommandBody::TokenSave { token } => {
            token::save(&token)?;
            settings::show(job)?;
        }
        CommandBody::TokenRemove => {
            token::remove()?;
            settings::show(job)?;
        }

        CommandBody::Browse { folder } => {
            job.emit(EventBody::Folder(browse::browse(job.host.paths(), folder.as_deref())?));
        }
        CommandBody::OpenFolder { path } => browse::open(&path)?,

        CommandBody::ShellShow => job.emit(EventBody::Shell(Shell::default())),
        CommandBody::ShellPick { .. } | CommandBody::ShellConnect { .. } => {
            return Err(usage("Only the desktop app can do this"));
        }

        CommandBody::Chat { model, adapters, device, force } => {
            let paths = job.host.paths();
            let model = models::resolve(paths, &model)?.path_string();
            let adapters =
                adapters.iter().map(|adapter| adapters::resolve(paths, adapter)).collect::<Result<_>>()?;
            let device = runs::device_beside(&job.host, &device)?;
            simple_worker(job, WorkerJob::Chat(ChatJob { model, adapters, device, force }))?;
        }
        CommandBody::TalkToRun { run, base } => runs::talk(job, &run, base)?,
        CommandBody::Logits { model, adapter, ids, out, device, force } => {
            let paths = job.host.paths();
            let model = models::resolve(paths, &model)?.path_string();
            let adapter = adapter.map(|adapter| adapters::resolve(paths, &adapter)).transpose()?;
            let device = runs::device_beside(&job.host, &device)?;
            if ids.is_empty() {
                return Err(usage("No token ids given").hint("--ids takes numbers, e.g. --ids 1,2,3"));
            }
            let out = absolute(out.as_ref()).display().to_string();
            simple_worker(job, WorkerJob::Logits(LogitsJob { model, adapter, ids, out, device, force }))?;
        }
        CommandBody::Eval { model, adapter, data, config, device, force } => {
            let adapter = adapter.map(|adapter| adapters::resolve(job.host.paths(), &adapter)).transpose()?;
            let device = runs::device_beside(&job.host, &device)?;
            let data = data_job(job, &model, &data, config)?;
            simple_worker(job, WorkerJob::Eval(EvalJob { data, adapter, device, force }))?;
        }

        CommandBody::Reply { .. } | CommandBody::CancelReply | CommandBody::Stop => {}
    }
    Ok(())
}

fn simple_worker(job: &mut Job, work: WorkerJob) -> Result<()> {
    let grace = job.host.options.stop_grace;
    worker::run(job, work, grace, &mut |_, _| Verdict::Continue).map_err(|error| match error {
        ErrorInfo { code: ErrorCode::OutOfMemory, hint: None, .. } => {
            error.hint("close other programs, or choose a smaller model or one that is quantised")
        }
        error => error,
    })
}

fn data_job(job: &Job, model: &str, data: &str, mut config: RunConfig) -> Result<DataJob> {
    config::validate(&config)?;
    let data = data_files(data, &mut config)?;
    let model = models::resolve(job.host.paths(), model)?.path_string();
    let cache = cache_folder(job)?;
    Ok(DataJob { model, data, eval_data: None, config, cache })
}

/// The folder of tokenised data, with room for more.
pub(crate) fn cache_folder(job: &Job) -> Result<String> {
    token_cache::prune(job.host.paths())?;
    Ok(job.host.paths().token_cache().display().to_string())
}

/// Makes the paths of the data files full: the first of them.
pub(crate) fn data_files(data: &str, config: &mut RunConfig) -> Result<String> {
    for file in &mut config.data {
        file.path = data_path(&file.path)?;
    }
    match config.data.first() {
        Some(first) => Ok(first.path.clone()),
        None => data_path(data),
    }
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
