use std::{
    io::{IsTerminal as _, stderr, stdin},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use lathe_host::{Host, HostOptions, Paths};
use lathe_protocol::{
    Command, CommandBody, EngineLink as _, ErrorCode, ErrorInfo, Event, EventBody, JobId, LogLevel,
};

use crate::{cli::Global, note, output::Output};

/// How often Ctrl-C (or SIGTERM) came.
static INTERRUPTS: AtomicUsize = AtomicUsize::new(0);

/// Said at the first Ctrl-C of a run.
pub const STOPPING: &str = "stopping after this step and saving; once more ends it at once, unsaved";

const WAIT: Duration = Duration::from_millis(50);

/// What Ctrl-C does to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnInterrupt {
    /// Ends it at once: there is nothing to save.
    Abort,
    /// The first lets it save, the second ends it at once.
    Save,
}

/// A host that re-executes this program as its workers.
pub fn host_options(global: &Global) -> Result<HostOptions, ErrorInfo> {
    let paths = Paths::detect(global.data_dir.as_deref())?;
    let exe = std::env::current_exe().map_err(|error| {
        ErrorInfo::new(ErrorCode::Io, format!("Cannot find Lathe's own program: {error}"))
    })?;
    Ok(HostOptions::new(paths, exe, vec!["worker".into()]))
}

/// From now on Ctrl-C and SIGTERM are counted, and `then` is called.
pub fn on_interrupt(then: impl Fn() + Send + 'static) {
    let handler = ctrlc::set_handler(move || {
        INTERRUPTS.fetch_add(1, Ordering::Relaxed);
        then();
    });
    if let Err(error) = handler {
        note!("warning: Ctrl-C will not save a run: {error}");
    }
}

/// Ctrl-C and SIGTERM, so far.
pub fn interrupts() -> usize {
    INTERRUPTS.load(Ordering::Relaxed)
}

/// Asks a person, who answers yes or no.
pub fn ask_yes(question: &str) -> bool {
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    let is_heard = stdin().read_line(&mut answer).is_ok();
    is_heard && ["y", "yes"].contains(&answer.trim().to_lowercase().as_str())
}

/// A host of our own, and how to talk with the person in front of it.
pub struct Session {
    pub out: Output,
    pub device: String,
    pub verbose: bool,
    host: Host,
    last_job: u64,
}

impl Session {
    pub fn open(global: &Global) -> Result<Self, ErrorInfo> {
        let host = Host::start(host_options(global)?)?;
        on_interrupt(|| {});
        let out = Output { json: global.json, ends_with_reader: true };
        Ok(Self { out, device: global.device.clone(), verbose: global.verbose, host, last_job: 0 })
    }

    pub fn paths(&self) -> &Paths {
        self.host.paths()
    }

    /// Whether to compute on the CPU what no graphics card here can: asked of a person, never decided. From then on it is
    /// the device.
    pub fn agrees_to_cpu(&mut self, error: &ErrorInfo) -> bool {
        let is_asked = error.code == ErrorCode::NeedsCpu && self.device == "auto";
        if !is_asked || !self.can_ask() {
            return false;
        }
        note!("{}", error.message);
        let agrees = ask_yes("Use the CPU instead?");
        if agrees {
            "cpu".clone_into(&mut self.device);
        }
        agrees
    }

    /// Whether a person is there to answer.
    pub fn can_ask(&self) -> bool {
        !self.out.json && stdin().is_terminal() && stderr().is_terminal()
    }

    pub fn start(&mut self, body: CommandBody) -> JobId {
        self.last_job += 1;
        let job = JobId(self.last_job);
        self.host.send(Command { job, body });
        job
    }

    pub fn send(&mut self, job: JobId, body: CommandBody) {
        self.host.send(Command { job, body });
    }

    /// What happened to the job of late, logs apart. Waits a moment if nothing did.
    pub fn events(&mut self, job: JobId) -> Vec<EventBody> {
        let events = self.all_events().into_iter().filter(|event| event.job == job);
        events.map(|event| event.body).collect()
    }

    /// Like [`Self::events`], of every job.
    pub fn all_events(&mut self) -> Vec<Event> {
        let mut events = self.host.wait(WAIT);
        events.retain(|event| match &event.body {
            EventBody::Log { level, message } => {
                self.log(*level, message);
                false
            }
            _ => true,
        });
        events
    }

    fn log(&self, level: LogLevel, message: &str) {
        match level {
            LogLevel::Debug if !self.verbose => {}
            LogLevel::Debug | LogLevel::Info => note!("{message}"),
            LogLevel::Warn => note!("warning: {message}"),
        }
    }

    /// Runs a job to its end.
    pub fn run(
        &mut self,
        body: CommandBody,
        on_interrupt: OnInterrupt,
        each: &mut dyn FnMut(&Self, EventBody),
    ) -> Result<(), ErrorInfo> {
        let job = self.start(body);
        let mut stops = 0;
        let before = interrupts();
        loop {
            for body in self.events(job) {
                match body {
                    EventBody::Done => return Ok(()),
                    EventBody::Failed { error } => return Err(error),
                    body => each(self, body),
                }
            }
            let wanted = (interrupts() - before) * if on_interrupt == OnInterrupt::Abort { 2 } else { 1 };
            while stops < wanted.min(2) {
                stops += 1;
                if on_interrupt == OnInterrupt::Save && stops == 1 {
                    note!("{STOPPING}");
                }
                self.send(job, CommandBody::Stop);
            }
        }
    }

    /// Runs a job whose answer is one event.
    pub fn ask(&mut self, body: CommandBody) -> Result<EventBody, ErrorInfo> {
        let mut answer = None;
        let mut bar = crate::progress::Preparation::new();
        self.run(body, OnInterrupt::Abort, &mut |_, event| match event {
            EventBody::Progress { what, done, total } => bar.show(&what, done, total),
            event => answer = Some(event),
        })?;
        bar.clear();
        answer.ok_or_else(|| ErrorInfo::new(ErrorCode::Internal, "The job ended without an answer"))
    }
}
