//! The switchboard: several viewers share one host.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant},
};

use lathe_protocol::{
    Batch, Command, CommandBody, EngineLink as _, ErrorCode, ErrorInfo, Event, EventBody, JobId,
};

use crate::{Host, HostOptions, Paths, error::Result};

/// Events are gathered so long.
const GATHER: Duration = Duration::from_millis(30);
/// A quiet line is sent an empty batch so often, so that both ends know that it stands.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A viewer whose line was cut is waited for so long.
const GRACE: Duration = Duration::from_mins(1);
/// A viewer that is behind by more is given up.
const MAX_BACKLOG_BYTES: usize = 32 << 20;
/// More events are several batches.
const MAX_BATCH_EVENTS: usize = 1000;

/// Takes a batch without waiting; false means that the line is cut, or its viewer too slow.
pub type Sink = Box<dyn FnMut(Batch) -> bool + Send>;

/// Never used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ViewerId(pub u64);

/// A host and those who look at it. Dropping it drops the host, whose jobs stop and runs checkpoint.
pub struct Viewers {
    board: Arc<Board>,
    thread: Option<JoinHandle<()>>,
}

struct Board {
    state: Mutex<State>,
    closing: AtomicBool,
}

struct State {
    host: Host,
    viewers: HashMap<ViewerId, Viewer>,
    /// By the host's ids: whose it is, and by which id.
    jobs: HashMap<JobId, (ViewerId, JobId)>,
    last_job: u64,
    last_viewer: u64,
    limits: Limits,
}

/// What tests make smaller.
#[derive(Debug, Clone, Copy)]
struct Limits {
    grace: Duration,
    backlog_bytes: usize,
}

/// Events that were not given or may not have arrived yet, the oldest first.
#[derive(Default)]
struct Backlog {
    events: VecDeque<(Event, usize)>,
    bytes: usize,
    /// The oldest one's place among all of the session.
    first: u64,
    /// The place of the next to be given on this line.
    next: u64,
}

struct Viewer {
    /// None while its line is cut.
    sink: Option<Sink>,
    /// Since its line is cut, or nothing was given.
    quiet_since: Instant,
    /// Whether what was given may be lost, and is kept until it was seen.
    may_lose: bool,
    backlog: Backlog,
    heard: u64,
    /// By the viewer's ids.
    jobs: HashMap<JobId, OpenJob>,
}

struct OpenJob {
    id: JobId,
    goes_on_alone: bool,
}

impl Viewers {
    /// Starts the host and its switchboard; `options.on_event` is not called.
    pub fn start(options: HostOptions) -> Result<Self> {
        Self::with_limits(options, Limits { grace: GRACE, backlog_bytes: MAX_BACKLOG_BYTES })
    }

    fn with_limits(mut options: HostOptions, limits: Limits) -> Result<Self> {
        let switch: Arc<OnceLock<Thread>> = Arc::default();
        let to_wake = switch.clone();
        options.on_event = Some(Arc::new(move || {
            if let Some(thread) = to_wake.get() {
                thread.unpark();
            }
        }));
        let state = State {
            host: Host::start(options)?,
            viewers: HashMap::new(),
            jobs: HashMap::new(),
            last_job: 0,
            last_viewer: 0,
            limits,
        };
        let board = Arc::new(Board { state: Mutex::new(state), closing: AtomicBool::new(false) });
        let shared = board.clone();
        let thread = thread::Builder::new().name("viewers".into()).spawn(move || shared.distribute());
        let thread = thread.map_err(|error| {
            ErrorInfo::new(ErrorCode::Internal, format!("Cannot start a thread: {error}"))
        })?;
        // It is set once, here.
        drop(switch.set(thread.thread().clone()));
        Ok(Self { board, thread: Some(thread) })
    }

    /// A viewer in this process: what its sink took is there.
    pub fn connect(&self, sink: Sink) -> ViewerId {
        self.board.lock().enter(sink, false)
    }

    /// A viewer at the end of a line that may break: what it was given is kept until it has seen it.
    pub fn connect_by_line(&self, sink: Sink) -> ViewerId {
        self.board.lock().enter(sink, true)
    }

    /// Goes on over a new line after `received` events, and tells how many commands have arrived. None if that cannot be
    /// without loss.
    pub fn resume(&self, id: ViewerId, received: u64, sink: Sink) -> Option<u64> {
        let heard = self.board.lock().resume(id, received, sink);
        self.wake();
        heard
    }

    /// From a viewer, which is perhaps gone: then nothing is done.
    pub fn command(&self, id: ViewerId, command: Command) {
        self.board.lock().command(id, command);
    }

    /// Like [`Self::command`]; one that came before is passed over.
    pub fn numbered_command(&self, id: ViewerId, number: u64, command: Command) {
        let mut state = self.board.lock();
        let Some(viewer) = state.viewers.get_mut(&id) else { return };
        if number == viewer.heard + 1 {
            viewer.heard = number;
            state.command(id, command);
        }
    }

    pub fn seen(&self, id: ViewerId, events: u64) {
        if let Some(viewer) = self.board.lock().viewers.get_mut(&id) {
            viewer.backlog.forget(events);
        }
    }

    /// The viewer has gone for good: its jobs are stopped, but for runs that are on their own.
    pub fn leave(&self, id: ViewerId) {
        self.board.lock().leave(id);
    }

    pub fn count(&self) -> usize {
        self.board.lock().viewers.len()
    }

    pub fn paths(&self) -> Paths {
        self.board.lock().host.paths().clone()
    }

    /// See [`Host::active_runs`].
    pub fn active_runs(&self) -> usize {
        self.board.lock().host.active_runs()
    }

    /// See [`Host::has_work`].
    pub fn has_work(&self) -> bool {
        self.board.lock().host.has_work()
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Viewers {
    fn drop(&mut self) {
        self.board.closing.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take() {
            // A panic has said what it was.
            drop(thread.join());
        }
    }
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The switchboard's thread.
    fn distribute(&self) {
        while !self.closing.load(Ordering::SeqCst) {
            let due = {
                let mut state = self.lock();
                state.sort_events();
                let now = Instant::now();
                state.give(now);
                state.next_due(now)
            };
            // What comes meanwhile goes together.
            thread::sleep(GATHER);
            thread::park_timeout(due);
        }
    }
}

impl State {
    fn enter(&mut self, sink: Sink, may_lose: bool) -> ViewerId {
        self.last_viewer += 1;
        let id = ViewerId(self.last_viewer);
        let viewer = Viewer {
            sink: Some(sink),
            quiet_since: Instant::now(),
            may_lose,
            backlog: Backlog::default(),
            heard: 0,
            jobs: HashMap::new(),
        };
        self.viewers.insert(id, viewer);
        id
    }

    fn resume(&mut self, id: ViewerId, received: u64, sink: Sink) -> Option<u64> {
        let viewer = self.viewers.get_mut(&id)?;
        let Backlog { first, events, .. } = &viewer.backlog;
        if !(*first..=*first + events.len() as u64).contains(&received) {
            return None;
        }
        viewer.backlog.forget(received);
        viewer.backlog.next = received;
        viewer.sink = Some(sink);
        viewer.quiet_since = Instant::now();
        Some(viewer.heard)
    }

    fn command(&mut self, id: ViewerId, Command { job, body }: Command) {
        let Some(viewer) = self.viewers.get_mut(&id) else { return };
        let host_job = match viewer.jobs.get(&job) {
            Some(open) => open.id,
            // It has ended, and its end is on its way.
            None if body.is_for_running_job() => return,
            None => {
                self.last_job += 1;
                let host_job = JobId(self.last_job);
                viewer.jobs.insert(job, OpenJob { id: host_job, goes_on_alone: body.goes_on_alone() });
                self.jobs.insert(host_job, (id, job));
                host_job
            }
        };
        self.host.send(Command { job: host_job, body });
    }

    fn leave(&mut self, id: ViewerId) {
        let Some(viewer) = self.viewers.remove(&id) else { return };
        for OpenJob { id: job, goes_on_alone } in viewer.jobs.into_values() {
            self.jobs.remove(&job);
            if !goes_on_alone {
                self.host.send(Command { job, body: CommandBody::Stop });
            }
        }
    }

    /// What the host says goes to whom it concerns.
    fn sort_events(&mut self) {
        for Event { job: host_job, body } in self.host.drain() {
            let Some(&(id, job)) = self.jobs.get(&host_job) else { continue };
            let Some(viewer) = self.viewers.get_mut(&id) else { continue };
            if matches!(body, EventBody::Done | EventBody::Failed { .. }) {
                self.jobs.remove(&host_job);
                viewer.jobs.remove(&job);
            }
            viewer.backlog.push(Event { job, body });
        }
    }

    /// Gives every viewer what is new, and gives up those that are gone or too far behind.
    fn give(&mut self, now: Instant) {
        for viewer in self.viewers.values_mut() {
            viewer.give(now);
        }
        let Limits { grace, backlog_bytes } = self.limits;
        let is_gone = |viewer: &Viewer| {
            viewer.backlog.bytes > backlog_bytes
                || viewer.sink.is_none() && (!viewer.may_lose || now >= viewer.quiet_since + grace)
        };
        let gone = self.viewers.iter().filter(|(_, viewer)| is_gone(viewer)).map(|(id, _)| *id);
        for id in gone.collect::<Vec<_>>() {
            self.leave(id);
        }
    }

    /// How long nothing has to be done, if nothing happens.
    fn next_due(&self, now: Instant) -> Duration {
        let by_line = self.viewers.values().filter(|viewer| viewer.may_lose);
        let due = by_line.map(|viewer| {
            let wait = if viewer.sink.is_some() { HEARTBEAT } else { self.limits.grace };
            (viewer.quiet_since + wait).saturating_duration_since(now)
        });
        due.min().unwrap_or(HEARTBEAT)
    }
}

impl Viewer {
    fn give(&mut self, now: Instant) {
        let Some(sink) = &mut self.sink else { return };
        let is_due = self.may_lose && now >= self.quiet_since + HEARTBEAT;
        let mut is_first = true;
        loop {
            let events = self.backlog.take(MAX_BATCH_EVENTS);
            if events.is_empty() && !(is_first && is_due) {
                return;
            }
            is_first = false;
            self.quiet_since = now;
            let first = self.backlog.next - events.len() as u64;
            if !sink(Batch { first, heard: self.heard, events }) {
                self.sink = None;
                return;
            }
            if !self.may_lose {
                self.backlog.forget(self.backlog.next);
            }
        }
    }
}

impl Backlog {
    fn push(&mut self, event: Event) {
        let bytes = json_bytes(&event);
        self.bytes += bytes;
        self.events.push_back((event, bytes));
    }

    /// The next to be given.
    fn take(&mut self, count: usize) -> Vec<Event> {
        let from = (self.next - self.first) as usize;
        let events: Vec<Event> =
            self.events.iter().skip(from).take(count).map(|(event, _)| event.clone()).collect();
        self.next += events.len() as u64;
        events
    }

    /// Lets go of those before `seen`.
    fn forget(&mut self, seen: u64) {
        while self.first < seen.min(self.next)
            && let Some((_, bytes)) = self.events.pop_front()
        {
            self.first += 1;
            self.bytes -= bytes;
        }
    }
}

/// What it takes on a line.
fn json_bytes(event: &Event) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Counting cannot fail.
    drop(serde_json::to_writer(&mut count, event));
    count.0
}

#[cfg(test)]
mod tests;
