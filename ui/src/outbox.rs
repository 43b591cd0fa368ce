use lathe_protocol::{ChatLane, Command, CommandBody, ErrorInfo, Event, EventBody, JobId};

use crate::theme::Tone;

/// A place in the window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    Bench,
    NewRun,
    Runs,
    /// One run, by its id.
    Run(String),
    /// Several runs over each other, by their ids.
    Compare(Vec<String>),
    Adapters,
    Models,
    Chat,
    Settings,
}

/// What a screen wants of the window, beyond commands to the host.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    Go(Route),
    /// The wizard, with this model chosen.
    NewRun {
        model: Option<String>,
    },
    /// What the Hub tells of a model, with its download.
    GetModel {
        model: String,
    },
    /// What the Hub has of that name.
    SearchHub {
        query: String,
    },
    /// A new chat with this model, or this run.
    Chat(ChatLane),
    Toast {
        tone: Tone,
        text: String,
    },
    /// In the file manager.
    OpenFolder {
        path: String,
    },
    RefreshModels,
    RefreshAdapters,
    RefreshSettings,
}

/// Everything a screen wants done once it is drawn: drawing itself does nothing.
#[derive(Debug, Default)]
pub struct Outbox {
    last_job: u64,
    /// Whether files are chosen in the system's own dialogs.
    pub(crate) has_dialogs: bool,
    pub(crate) commands: Vec<Command>,
    pub(crate) actions: Vec<Action>,
}

impl Outbox {
    /// Starts a job.
    pub fn ask(&mut self, body: CommandBody) -> JobId {
        self.last_job += 1;
        let job = JobId(self.last_job);
        self.commands.push(Command { job, body });
        job
    }

    /// To a job that runs.
    pub fn send(&mut self, job: JobId, body: CommandBody) {
        self.commands.push(Command { job, body });
    }

    pub fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub fn go(&mut self, route: Route) {
        self.act(Action::Go(route));
    }

    /// A new chat with a model as it is.
    pub fn chat(&mut self, model: &str) {
        self.act(Action::Chat(ChatLane { model: model.to_owned(), ..ChatLane::default() }));
    }

    pub fn toast(&mut self, tone: Tone, text: impl Into<String>) {
        self.act(Action::Toast { tone, text: text.into() });
    }
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub what: String,
    pub done: u64,
    /// 0 when unknown.
    pub total: u64,
}

/// A question to the host and its newest answer, which stays until the next one is there.
#[derive(Debug, Clone)]
pub struct Asked<T> {
    pub value: Option<T>,
    pub error: Option<ErrorInfo>,
    pub progress: Option<Progress>,
    job: Option<JobId>,
}

impl<T> Default for Asked<T> {
    fn default() -> Self {
        Self { value: None, error: None, progress: None, job: None }
    }
}

impl<T> Asked<T> {
    /// Asks (again); an answer to an earlier question no longer counts, and its job is stopped.
    pub fn ask(&mut self, out: &mut Outbox, body: CommandBody) {
        self.stop(out);
        self.job = Some(out.ask(body));
        self.error = None;
    }

    pub fn stop(&mut self, out: &mut Outbox) {
        self.progress = None;
        if let Some(job) = self.job.take() {
            out.send(job, CommandBody::Stop);
        }
    }

    pub fn clear(&mut self, out: &mut Outbox) {
        self.stop(out);
        (self.value, self.error) = (None, None);
    }

    pub fn job(&self) -> Option<JobId> {
        self.job
    }

    pub fn is_waiting(&self) -> bool {
        self.job.is_some()
    }

    /// Takes what belongs to this question. True if the event was the job's end.
    pub fn apply(&mut self, event: &Event, take: impl FnOnce(&EventBody) -> Option<T>) -> bool {
        if self.job != Some(event.job) {
            return false;
        }
        match &event.body {
            EventBody::Done => self.job = None,
            EventBody::Failed { error } => {
                self.job = None;
                self.error = Some(error.clone());
            }
            EventBody::Progress { what, done, total } => {
                self.progress = Some(Progress { what: what.clone(), done: *done, total: *total });
            }
            body => {
                if let Some(value) = take(body) {
                    self.value = Some(value);
                }
            }
        }
        if self.job.is_none() {
            self.progress = None;
        }
        self.job.is_none()
    }
}
