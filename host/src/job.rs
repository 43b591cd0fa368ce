use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
        mpsc::{Receiver, SyncSender},
    },
    time::{Duration, Instant},
};

use lathe_protocol::{ErrorCode, ErrorInfo, Event, EventBody, JobId, LogLevel, Request};

use crate::{Shared, error::Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(crate) enum StopLevel {
    Run,
    Stop,
    /// Stop was asked twice: at once, unsaved.
    Abort,
}

pub(crate) enum ToWorker {
    Request(Request),
    /// Closes the worker's stdin.
    Close,
}

/// A running job, as the host's caller reaches it.
pub(crate) struct Control {
    stops: AtomicU8,
    pub(crate) to_worker: SyncSender<ToWorker>,
}

impl Control {
    pub(crate) fn new(to_worker: SyncSender<ToWorker>) -> Self {
        Self { stops: AtomicU8::new(0), to_worker }
    }

    pub(crate) fn stop(&self) {
        self.stops.fetch_add(1, Ordering::Relaxed);
    }
}

/// A running job, as its own thread sees it.
pub(crate) struct Job {
    pub(crate) id: JobId,
    pub(crate) host: Arc<Shared>,
    pub(crate) control: Arc<Control>,
    /// For the one worker the job may start.
    pub(crate) to_worker: Option<Receiver<ToWorker>>,
    pub(crate) events: SyncSender<Event>,
}

impl Job {
    pub(crate) fn emit(&self, body: EventBody) {
        // Fails only while the host is being dropped: nobody listens.
        drop(self.events.send(Event { job: self.id, body }));
    }

    pub(crate) fn log(&self, level: LogLevel, message: impl Into<String>) {
        self.emit(EventBody::Log { level, message: message.into() });
    }

    pub(crate) fn stop_level(&self) -> StopLevel {
        match self.control.stops.load(Ordering::Relaxed) {
            0 => StopLevel::Run,
            1 => StopLevel::Stop,
            _ => StopLevel::Abort,
        }
    }

    /// An error once the job was told to stop.
    pub(crate) fn check_stop(&self) -> Result<()> {
        match self.stop_level() {
            StopLevel::Run => Ok(()),
            _ => Err(ErrorInfo::new(ErrorCode::Busy, "Stopped on request; nothing was changed")),
        }
    }

    pub(crate) fn progress(&self, what: impl Into<String>, total: u64) -> Progress<'_> {
        Progress { job: self, what: what.into(), done: 0, total, told: None }
    }
}

/// Tells how far something is, a few times a second, and ends it when the job is to stop.
pub(crate) struct Progress<'a> {
    job: &'a Job,
    what: String,
    done: u64,
    total: u64,
    told: Option<Instant>,
}

impl Progress<'_> {
    pub(crate) fn advance(&mut self, by: u64) -> Result<()> {
        self.job.check_stop()?;
        self.done += by;
        if self.told.is_none_or(|told| told.elapsed() > Duration::from_millis(150)) {
            self.told = Some(Instant::now());
            let Self { what, done, total, .. } = self;
            self.job.emit(EventBody::Progress { what: what.clone(), done: *done, total: *total });
        }
        Ok(())
    }
}
