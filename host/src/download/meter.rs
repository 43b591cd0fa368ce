use std::{
    cell::RefCell,
    collections::VecDeque,
    time::{Duration, Instant},
};

use lathe_protocol::{Download, DownloadStatus};

const TELL_EVERY: Duration = Duration::from_millis(200);
/// The speed is that of so long.
const WINDOW: Duration = Duration::from_secs(6);

/// Counts what comes, and tells of it a few times a second.
pub(crate) struct Meter<'a> {
    state: RefCell<State>,
    tell: &'a dyn Fn(&Download),
}

struct State {
    download: Download,
    /// Bytes that came over the network so far, at moments of the window.
    came: VecDeque<(Instant, u64)>,
    total_came: u64,
    told: Option<Instant>,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(model: &str, revision: Option<&str>, tell: &'a dyn Fn(&Download)) -> Self {
        let download = Download {
            model: model.to_owned(),
            revision: revision.map(str::to_owned),
            status: DownloadStatus::Running,
            held_here: false,
            done_bytes: 0,
            total_bytes: 0,
            done_files: 0,
            total_files: 0,
            bytes_per_second: 0.0,
            eta_seconds: None,
            note: None,
            error: None,
        };
        let state = State { download, came: VecDeque::new(), total_came: 0, told: None };
        Self { state: RefCell::new(state), tell }
    }

    pub(super) fn begin(&self, total_bytes: u64, total_files: usize) {
        let mut state = self.state.borrow_mut();
        state.download.total_bytes = total_bytes;
        state.download.total_files = total_files;
        state.came.push_back((Instant::now(), 0));
        drop(state);
        self.tell_now();
    }

    /// Of bytes that were here already.
    pub(super) fn found(&self, bytes: u64) {
        self.state.borrow_mut().download.done_bytes += bytes;
        self.tick();
    }

    pub(super) fn came(&self, bytes: u64) {
        let mut state = self.state.borrow_mut();
        state.total_came += bytes;
        state.download.done_bytes += bytes;
        drop(state);
        self.tick();
    }

    /// Of bytes that have to be fetched again.
    pub(super) fn lost(&self, bytes: u64) {
        let mut state = self.state.borrow_mut();
        state.download.done_bytes = state.download.done_bytes.saturating_sub(bytes);
    }

    pub(super) fn file_done(&self) {
        self.state.borrow_mut().download.done_files += 1;
        self.tell_now();
    }

    pub(crate) fn note(&self, note: Option<String>) {
        self.state.borrow_mut().download.note = note;
        self.tell_now();
    }

    /// Tells if it is time to.
    pub(crate) fn tick(&self) {
        if self.state.borrow().told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.tell_now();
        }
    }

    pub(crate) fn tell_now(&self) {
        let mut state = self.state.borrow_mut();
        let now = Instant::now();
        state.told = Some(now);
        let total_came = state.total_came;
        state.came.push_back((now, total_came));
        while state.came.get(1).is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            state.came.pop_front();
        }
        let (since, before) = state.came[0];
        let seconds = now.duration_since(since).as_secs_f64();
        let speed = if seconds > 0.05 { (total_came - before) as f64 / seconds } else { 0.0 };
        let left = state.download.total_bytes.saturating_sub(state.download.done_bytes);
        state.download.bytes_per_second = speed;
        state.download.eta_seconds = (speed > 0.0).then(|| left as f64 / speed);
        (self.tell)(&state.download);
    }

    /// The last word.
    pub(crate) fn end(&self, status: DownloadStatus) -> Download {
        let mut state = self.state.borrow_mut();
        let download = &mut state.download;
        download.status = status;
        (download.bytes_per_second, download.eta_seconds, download.note) = (0.0, None, None);
        download.clone()
    }
}
