//! A Lathe on another machine. Its line outlives the page, which may be reloaded; its link works only once.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use lathe_protocol::{
    Command, CommandBody, Connection, EngineLink as _, ErrorCode, ErrorInfo, Event, EventBody, JobId,
    RunEntry, ToViewer,
};
use lathe_serve::Remote;

use crate::{
    line::{Page, lock},
    runs::{self, List},
};

/// Events are gathered so long.
const GATHER: Duration = Duration::from_millis(30);
/// Whether it is over is looked for at least so often.
const LOOK: Duration = Duration::from_secs(1);
/// Of the shell's own question about the runs.
const RUNS: JobId = JobId(1);

pub struct Elsewhere {
    pub address: String,
    state: Mutex<State>,
    is_over: AtomicBool,
}

struct State {
    remote: Remote,
    page: Option<Page>,
    /// A page counts its jobs from 1; on the line they follow those of the pages before it.
    first_job: u64,
    last_job: u64,
    /// Of the page, by the line's ids, those that end with it.
    open: BTreeSet<JobId>,
    told: Connection,
}

impl Elsewhere {
    /// Errors: the link cannot be used.
    pub fn connect(link: &str, runs: SyncSender<List>) -> Result<Arc<Self>, ErrorInfo> {
        // One that waits already is enough.
        let (wake, woken) = sync_channel(1);
        let wake = move || {
            wake.try_send(()).ok();
        };
        let mut remote = Remote::connect(link, Box::new(wake))?;
        remote.send(Command { job: RUNS, body: CommandBody::RunsFollow });
        let state = State {
            remote,
            page: None,
            first_job: RUNS.0,
            last_job: RUNS.0,
            open: BTreeSet::new(),
            told: Connection::default(),
        };
        let elsewhere = Arc::new(Self {
            address: address(link).to_owned(),
            state: Mutex::new(state),
            is_over: AtomicBool::new(false),
        });
        let listening = elsewhere.clone();
        let thread = thread::Builder::new().name("elsewhere".into());
        thread.spawn(move || listening.listen(&woken, &runs)).map_err(|error| {
            ErrorInfo::new(ErrorCode::Internal, format!("Cannot start a thread: {error}"))
        })?;
        Ok(elsewhere)
    }

    /// Leaves the other machine for good.
    pub fn end(&self) {
        self.hide();
        self.is_over.store(true, Ordering::SeqCst);
    }

    /// A page that knows nothing yet.
    pub fn show_to(&self, page: Page) {
        let mut state = lock(&self.state);
        state.first_job = state.last_job;
        page.tell(&ToViewer::Connection(state.told.clone()));
        state.page = Some(page);
    }

    /// The page is gone, and so is whoever asked.
    pub fn hide(&self) {
        let mut state = lock(&self.state);
        state.page = None;
        for job in std::mem::take(&mut state.open) {
            state.remote.send(Command { job, body: CommandBody::Stop });
        }
    }

    pub fn send(&self, Command { job, body }: Command) {
        let mut state = lock(&self.state);
        let job = JobId(state.first_job + job.0);
        state.last_job = state.last_job.max(job.0);
        if !body.is_for_running_job() && !body.goes_on_alone() {
            state.open.insert(job);
        }
        state.remote.send(Command { job, body });
    }

    fn listen(&self, woken: &Receiver<()>, runs: &SyncSender<List>) {
        while !self.is_over.load(Ordering::SeqCst) {
            if woken.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                continue;
            }
            thread::sleep(GATHER);
            for list in lock(&self.state).take() {
                runs::tell(runs, (Some(self.address.clone()), list));
            }
        }
        runs::tell(runs, (Some(self.address.clone()), Vec::new()));
    }
}

impl State {
    /// Gives the page what came, and returns the lists of runs.
    fn take(&mut self) -> Vec<Vec<RunEntry>> {
        let (mut lists, mut events) = (Vec::new(), Vec::new());
        for Event { job, body } in self.remote.drain() {
            match body {
                EventBody::Runs { runs } if job == RUNS => lists.push(runs),
                // The line was cut for too long: asked again.
                EventBody::Failed { .. } if job == RUNS => {
                    self.remote.send(Command { job: RUNS, body: CommandBody::RunsFollow });
                }
                body if job.0 > self.first_job => {
                    if matches!(body, EventBody::Done | EventBody::Failed { .. }) {
                        self.open.remove(&job);
                    }
                    events.push(Event { job: JobId(job.0 - self.first_job), body });
                }
                // Of an earlier page.
                _ => {}
            }
        }
        let connection = self.remote.connection();
        if let Some(page) = &self.page {
            if !events.is_empty() {
                page.give(events);
            }
            if connection != self.told {
                page.tell(&ToViewer::Connection(connection.clone()));
            }
        }
        self.told = connection;
        lists
    }
}

/// Of a link's machine, without its secrets.
fn address(link: &str) -> &str {
    let place = link.split_once("//").map_or(link, |(_, place)| place);
    place.split(['/', '#', '?']).next().unwrap_or(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_tells_no_secret() {
        assert_eq!(address("https://gpu-box:8474/#token=abc&fingerprint=ff"), "gpu-box:8474");
        assert_eq!(address("http://[::1]:8474#token=abc"), "[::1]:8474");
    }
}
