//! One worker process: started, listened to, told to stop, and buried.

mod memory;

use std::{
    io::{self, BufRead as _, BufReader, Read as _},
    path::PathBuf,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command as Process, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use lathe_protocol::{
    ErrorCode, ErrorInfo, EventBody, Gpu, Job as WorkerJob, ReplyDelta, Request, handshake, read_frame,
    write_frame,
};

use crate::{
    Shared, cuda,
    devices::{self, Devices},
    error::Result,
    gpus,
    job::{Job, StopLevel, ToWorker},
    models, settings,
};
use memory::Memory;

const STDERR_TAIL_BYTES: usize = 8 << 10;
/// Pieces of a reply are gathered this long, so that a fast model does not flood the window.
const GATHER: Duration = Duration::from_millis(30);
const TICK: Duration = Duration::from_millis(100);
/// From SIGTERM to kill, and from the last frame to the end of the process.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// Threads that the engine computes on.
const THREADS: &str = "RAYON_NUM_THREADS";

/// What the observer of a worker sees.
pub(crate) enum Beat<'a> {
    /// May be amended before it is forwarded.
    Event(&'a mut EventBody),
    /// About ten times a second.
    Tick,
}

/// Whether the observer wants the worker to stop.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    Continue,
    Stop,
    /// At once, unsaved.
    Abort,
}

enum FromWorker {
    Ready,
    /// The first line was something else.
    NotAWorker(String),
    Event(Box<EventBody>),
    Broken(io::Error),
    Closed,
}

enum Phase {
    Starting,
    Running,
    Stopping { since: Instant },
    Terminating { since: Instant },
}

/// Starts a worker, on a card's if one is given, and checks its handshake, nothing more.
pub(crate) fn probe(job: &mut Job, card: Option<&Gpu>) -> Result<Duration> {
    let started = Instant::now();
    let mut worker = Worker::start(job, None, card)?;
    let answer = worker.output.recv_timeout(job.host.options.handshake_timeout);
    let verdict = worker.expect_handshake(answer.ok());
    drop(worker.input.try_send(ToWorker::Close));
    worker.bury(Duration::from_millis(500));
    verdict.map(|()| started.elapsed())
}

/// Runs `work` in a worker process and forwards its events, `Done` and `Failed` apart: those are the answer.
///
/// `observe` sees every event first. A worker that ends without a last word is [`ErrorCode::WorkerDied`].
pub(crate) fn run(
    job: &mut Job,
    work: WorkerJob,
    grace: Duration,
    observe: &mut dyn FnMut(&Job, Beat<'_>) -> Verdict,
) -> Result<()> {
    let card = card_of(&job.host, &work)?;
    // Until the worker has ended.
    let _used = models::hold(job.host.paths(), work.model().as_ref());
    let free_before = card.as_ref().and_then(|card| job.host.gpus.free_bytes(&job.host.options, card.index));
    let mut worker = Worker::start(job, Some(work), card.as_ref())?;
    let outcome = worker.supervise(job, grace, observe);
    worker.bury(if outcome.is_ok() { LAST_WAIT } else { Duration::ZERO });
    if let (Some(card), Some(free_before)) = (card, free_before) {
        gpus::await_given_back(job, card.index, free_before);
    }
    outcome
}

/// The card that the work is for; none if it is the CPU's.
fn card_of(host: &Shared, work: &WorkerJob) -> Result<Option<Gpu>> {
    let Some(device) = work.device().filter(|device| *device != devices::CPU) else { return Ok(None) };
    let devices = Devices::of(host);
    let device = devices.checked(device)?;
    Ok(devices.card(&device).cloned())
}

struct Worker {
    child: Child,
    input: SyncSender<ToWorker>,
    output: Receiver<FromWorker>,
    stderr: Arc<Mutex<Vec<u8>>>,
    /// What [`oom_kills`] was at its start.
    oom_kills: u64,
}

impl Worker {
    /// The first frame is `work`; what the job is told later follows it.
    fn start(job: &mut Job, work: Option<WorkerJob>, card: Option<&Gpu>) -> Result<Self> {
        let options = &job.host.options;
        let mut process = if let Some(card) = card {
            cuda::command(options, card)?
        } else {
            let mut process = Process::new(&options.worker_exe);
            process.args(&options.worker_args);
            process
        };
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if matches!(
            work,
            Some(WorkerJob::Train(_) | WorkerJob::Probe(_) | WorkerJob::Eval(_) | WorkerJob::Logits(_))
        ) {
            // candle's own threads wait for each other by spinning, which starves the engine's. Only its k-quant
            // products, in chats, need them.
            process.env("CANDLE_NUM_THREADS", "1");
        }
        let threads = settings::load(&options.paths.settings).unwrap_or_default().threads;
        if threads > 0 && std::env::var_os(THREADS).is_none() {
            process.env(THREADS, threads.to_string());
        }
        own_group(&mut process);
        let exe = PathBuf::from(process.get_program());
        let cannot_start = |error: &io::Error| {
            let exe = exe.display();
            ErrorInfo::new(ErrorCode::WorkerDied, format!("Cannot start the worker: {error}: {exe}"))
                .hint("reinstall Lathe, or run `lathe doctor`")
        };
        let mut child = process.spawn().map_err(|error| cannot_start(&error))?;
        let (Some(stdin), Some(stdout), Some(stderr), Some(to_worker)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take(), job.to_worker.take())
        else {
            return Err(ErrorInfo::new(ErrorCode::Internal, "A job started a second worker"));
        };
        let id = job.id.0;
        let (sender, output) = sync_channel(256);
        let tail = Arc::new(Mutex::new(Vec::new()));
        let tail_writer = tail.clone();
        let spawned = thread::Builder::new()
            .name(format!("worker-{id}-in"))
            .spawn(move || write_requests(stdin, work, &to_worker))
            .and_then(|_| {
                thread::Builder::new()
                    .name(format!("worker-{id}-out"))
                    .spawn(move || read_events(stdout, &sender))
            })
            .and_then(|_| {
                thread::Builder::new()
                    .name(format!("worker-{id}-err"))
                    .spawn(move || keep_tail(stderr, &tail_writer))
            });
        let input = job.control.to_worker.clone();
        let worker = Self { child, input, output, stderr: tail, oom_kills: oom_kills() };
        match spawned {
            Ok(_) => Ok(worker),
            Err(error) => {
                worker.bury(Duration::ZERO);
                Err(cannot_start(&error))
            }
        }
    }

    fn supervise(
        &mut self,
        job: &Job,
        grace: Duration,
        observe: &mut dyn FnMut(&Job, Beat<'_>) -> Verdict,
    ) -> Result<()> {
        let handshake_due = Instant::now() + job.host.options.handshake_timeout;
        let mut phase = Phase::Starting;
        let mut gathered = Gathered::default();
        let mut next_tick = Instant::now() + TICK;
        let mut wanted = Verdict::Continue;
        let mut memory = Memory::of(self.child.id());
        let mut gone_since = None;
        loop {
            let due = gathered.due.map_or(next_tick, |due| due.min(next_tick));
            let received = self.output.recv_timeout(due.saturating_duration_since(Instant::now()));
            gathered.flush_if_due(job);
            match received {
                Ok(FromWorker::Event(event)) => match *event {
                    EventBody::Done => {
                        gathered.flush(job);
                        return Ok(());
                    }
                    EventBody::Failed { error } => {
                        gathered.flush(job);
                        return Err(error);
                    }
                    mut event => {
                        if let EventBody::Step(step) = &mut event {
                            step.memory_bytes = memory.bytes();
                        }
                        wanted = wanted.max(observe(job, Beat::Event(&mut event)));
                        gathered.forward(job, event);
                    }
                },
                Ok(FromWorker::Closed) => {
                    gathered.flush(job);
                    let when = if matches!(phase, Phase::Starting) { " before it was ready" } else { "" };
                    return Err(self.died(&format!("The worker died{when}"), None));
                }
                Ok(FromWorker::Broken(error)) => {
                    gathered.flush(job);
                    return Err(self.died("The worker sent a broken frame", Some(&error.to_string())));
                }
                Ok(answer) => {
                    self.expect_handshake(Some(answer))?;
                    if matches!(phase, Phase::Starting) {
                        phase = Phase::Running;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(self.died("The worker died", None)),
            }
            if Instant::now() >= next_tick {
                next_tick = Instant::now() + TICK;
                wanted = wanted.max(observe(job, Beat::Tick));
                if matches!(phase, Phase::Starting) && Instant::now() >= handshake_due {
                    self.expect_handshake(None)?;
                }
                // Its stdout closes with it, unless a process of its own still holds that.
                if matches!(self.child.try_wait(), Ok(Some(_)))
                    && gone_since.get_or_insert_with(Instant::now).elapsed() >= LAST_WAIT
                {
                    gathered.flush(job);
                    return Err(self.died("The worker died", None));
                }
            }
            phase = self.escalate(job, phase, wanted, grace)?;
        }
    }

    /// Stop, then SIGTERM after `grace`, then kill; a second stop of the job's kills at once.
    fn escalate(&mut self, job: &Job, phase: Phase, wanted: Verdict, grace: Duration) -> Result<Phase> {
        let level = job.stop_level();
        if level == StopLevel::Abort || wanted == Verdict::Abort {
            self.kill();
            return Err(ErrorInfo::new(ErrorCode::WorkerDied, "Stopped at once, before it could save"));
        }
        Ok(match phase {
            Phase::Starting | Phase::Running if wanted == Verdict::Stop || level == StopLevel::Stop => {
                // Full or closed: the worker is stuck or gone, and what follows deals with it.
                drop(self.input.try_send(ToWorker::Request(Request::Stop)));
                drop(self.input.try_send(ToWorker::Close));
                Phase::Stopping { since: Instant::now() }
            }
            Phase::Stopping { since } if since.elapsed() >= grace => {
                terminate(&mut self.child);
                Phase::Terminating { since: Instant::now() }
            }
            Phase::Terminating { since } if since.elapsed() >= LAST_WAIT => {
                self.kill();
                phase
            }
            phase => phase,
        })
    }

    fn expect_handshake(&mut self, answer: Option<FromWorker>) -> Result<()> {
        match answer {
            Some(FromWorker::Ready) => Ok(()),
            Some(FromWorker::NotAWorker(line)) => {
                self.kill();
                let wanted = handshake();
                Err(ErrorInfo {
                    details: self.stderr_tail(),
                    ..ErrorInfo::new(
                        ErrorCode::WorkerDied,
                        format!(
                            "The worker is of another version: it said {line:?}, not {:?}",
                            wanted.trim_end()
                        ),
                    )
                    .hint("reinstall Lathe, so that all its parts are of one version; a worker for cards is built with: cargo xtask cuda")
                })
            }
            Some(FromWorker::Closed | FromWorker::Broken(_) | FromWorker::Event(_)) => {
                Err(self.died("The worker died before it was ready", None))
            }
            None => {
                self.kill();
                Err(self.died("The worker did not answer in time", None))
            }
        }
    }

    /// The worker is dead or useless: how it ended, and the last it said on stderr.
    fn died(&mut self, what: &str, why: Option<&str>) -> ErrorInfo {
        let status = wait_for_end(&mut self.child, Duration::from_secs(1));
        let ending = status.map_or_else(|| "still running, killed".to_owned(), describe_exit);
        // The stderr thread may need a moment to read the last words.
        thread::sleep(Duration::from_millis(30));
        let details = self.stderr_tail();
        // Rust's own last word when an allocation fails, or the kernel's choice.
        let refused = details.as_ref().is_some_and(|words| words.contains("memory allocation of"));
        if refused || (status.is_some_and(was_killed) && oom_kills() > self.oom_kills) {
            let message = format!("Memory gave out: the worker ended ({ending})");
            return ErrorInfo { details, ..ErrorInfo::new(ErrorCode::OutOfMemory, message) };
        }
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        ErrorInfo { details, ..ErrorInfo::new(ErrorCode::WorkerDied, format!("{what} ({ending}){why}")) }
    }

    fn stderr_tail(&self) -> Option<String> {
        let tail = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&tail).trim().to_owned();
        (!text.is_empty()).then_some(text)
    }

    fn kill(&mut self) {
        // Fails only if the process is gone already.
        drop(self.child.kill());
    }

    /// Waits for the end of the process, `wait` at most, then kills it.
    fn bury(mut self, wait: Duration) {
        if wait_for_end(&mut self.child, wait).is_none() {
            self.kill();
            drop(self.child.wait());
        }
    }
}

/// Text of one channel, waiting for more.
#[derive(Default)]
struct Gathered {
    delta: Option<ReplyDelta>,
    due: Option<Instant>,
}

impl Gathered {
    fn forward(&mut self, job: &Job, event: EventBody) {
        let EventBody::Reply(delta) = event else {
            self.flush(job);
            job.emit(event);
            return;
        };
        match &mut self.delta {
            Some(gathered) if gathered.channel == delta.channel => gathered.text.push_str(&delta.text),
            _ => {
                self.flush(job);
                self.delta = Some(delta);
                self.due = Some(Instant::now() + GATHER);
            }
        }
        self.flush_if_due(job);
    }

    fn flush_if_due(&mut self, job: &Job) {
        if self.due.is_some_and(|due| Instant::now() >= due) {
            self.flush(job);
        }
    }

    fn flush(&mut self, job: &Job) {
        self.due = None;
        if let Some(delta) = self.delta.take() {
            job.emit(EventBody::Reply(delta));
        }
    }
}

fn write_requests(mut stdin: ChildStdin, work: Option<WorkerJob>, requests: &Receiver<ToWorker>) {
    // A write fails when the worker is gone, which its stdout tells better.
    if let Some(work) = work
        && write_frame(&mut stdin, &work).is_err()
    {
        return;
    }
    while let Ok(ToWorker::Request(request)) = requests.recv() {
        if write_frame(&mut stdin, &request).is_err() {
            return;
        }
    }
}

fn read_events(stdout: ChildStdout, sender: &SyncSender<FromWorker>) {
    let mut stdout = BufReader::new(stdout);
    let mut line = Vec::new();
    let wanted = handshake();
    let first = match stdout.by_ref().take(256).read_until(b'\n', &mut line) {
        Err(error) => FromWorker::Broken(error),
        Ok(0) => FromWorker::Closed,
        Ok(_) if line == wanted.as_bytes() => FromWorker::Ready,
        Ok(_) => FromWorker::NotAWorker(String::from_utf8_lossy(&line).trim_end().to_owned()),
    };
    let mut goes_on = matches!(first, FromWorker::Ready);
    let mut message = first;
    // A send fails when nobody listens any more.
    while sender.send(message).is_ok() && goes_on {
        message = match read_frame::<EventBody>(&mut stdout) {
            Ok(Some(event)) => FromWorker::Event(Box::new(event)),
            Ok(None) => FromWorker::Closed,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => FromWorker::Closed,
            Err(error) => FromWorker::Broken(error),
        };
        goes_on = matches!(message, FromWorker::Event(_));
    }
}

fn keep_tail(mut stderr: ChildStderr, tail: &Mutex<Vec<u8>>) {
    let mut piece = [0; 4096];
    loop {
        match stderr.read(&mut piece) {
            Ok(0) => return,
            Ok(count) => {
                let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
                tail.extend_from_slice(&piece[..count]);
                let excess = tail.len().saturating_sub(STDERR_TAIL_BYTES);
                tail.drain(..excess);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn wait_for_end(child: &mut Child, wait: Duration) -> Option<ExitStatus> {
    let due = Instant::now() + wait;
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() >= due {
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(unix)]
fn describe_exit(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(9)) => "killed by signal 9, perhaps for want of memory".into(),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

#[cfg(unix)]
fn was_killed(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt as _;
    status.signal() == Some(9)
}

#[cfg(not(unix))]
fn was_killed(_: ExitStatus) -> bool {
    false
}

/// Processes that the kernel has killed for want of memory since it started; 0 where it does not tell.
fn oom_kills() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[cfg(not(unix))]
fn describe_exit(status: ExitStatus) -> String {
    status.code().map_or_else(|| status.to_string(), |code| format!("exit code {code}"))
}

/// Ctrl-C in a terminal goes to the whole process group: the worker gets one of its own and hears of it from us.
#[cfg(unix)]
fn own_group(process: &mut Process) {
    use std::os::unix::process::CommandExt as _;
    process.process_group(0);
}

#[cfg(windows)]
fn own_group(process: &mut Process) {
    use std::os::windows::process::CommandExt as _;
    const CREATE_NEW_PROCESS_GROUP: u32 = 0x0000_0200;
    process.creation_flags(CREATE_NEW_PROCESS_GROUP);
}

/// Asks the worker and whatever it started to end.
#[cfg(unix)]
fn terminate(child: &mut Child) {
    if let Some(group) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
        // Fails only if they are gone already.
        rustix::process::kill_process_group(group, rustix::process::Signal::TERM).ok();
    }
}

#[cfg(not(unix))]
fn terminate(child: &mut Child) {
    drop(child.kill());
}

#[cfg(test)]
mod tests;
