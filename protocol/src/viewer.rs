//! What a viewer and the Lathe it looks at say to each other over a line that may break, and the viewer's end of it.

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{Command, ErrorCode, ErrorInfo, Event, EventBody, JobId};

/// Both ends must be of the same version.
pub const VIEWER_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Events that were gathered for a moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// The first event's place among all of the session, from 0.
    pub first: u64,
    /// Commands of the session that have arrived.
    pub heard: u64,
    pub events: Vec<Event>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum FromViewer {
    /// First on every line.
    Hello { version: String, resume: Option<Resume> },
    /// Numbered from 1 in its session: one that comes twice counts once.
    Command { number: u64, command: Box<Command> },
    /// So many events were taken: they need not be kept any more. The answer to every batch.
    Seen { events: u64 },
}

/// The session a viewer wants to go on with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    pub session: String,
    /// Events that have arrived.
    pub received: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum ToViewer {
    /// First on every line. A new session knows nothing of what was asked before.
    Welcome {
        session: String,
        is_new: bool,
        heard: u64,
    },
    Batch(Batch),
    /// From a shell that has the line to another machine: how that stands.
    Connection(Connection),
    /// The last on its line.
    Refused {
        error: ErrorInfo,
    },
}

/// How the way to an engine stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Whether the engine is on another machine, or shown by a browser: no file manager of this one shows its folders.
    pub is_remote: bool,
    /// Sessions that were lost: when it grows, everything has to be asked again.
    pub lost_sessions: u64,
    /// What is wrong, as long as it is.
    pub trouble: Option<String>,
}

/// A viewer's end of the line: keeps what has not arrived, and knows what it has seen. Does no I/O.
#[derive(Debug)]
pub struct ViewerEnd {
    session: Option<String>,
    is_up: bool,
    received: u64,
    /// Not drained yet.
    events: VecDeque<Event>,
    last_number: u64,
    unheard: VecDeque<(u64, Command)>,
    open_jobs: BTreeSet<JobId>,
    connection: Connection,
}

impl Default for ViewerEnd {
    fn default() -> Self {
        Self {
            session: None,
            is_up: false,
            received: 0,
            events: VecDeque::new(),
            last_number: 0,
            unheard: VecDeque::new(),
            open_jobs: BTreeSet::new(),
            connection: Connection { is_remote: true, ..Connection::default() },
        }
    }
}

impl ViewerEnd {
    /// What a new line begins with.
    pub fn hello(&self) -> FromViewer {
        let received = self.received;
        let resume = self.session.clone().map(|session| Resume { session, received });
        FromViewer::Hello { version: VIEWER_VERSION.into(), resume }
    }

    /// What to write for it; nothing while there is no line, then it is kept.
    pub fn send(&mut self, command: Command) -> Option<FromViewer> {
        if !command.body.is_for_running_job() {
            self.open_jobs.insert(command.job);
        }
        self.last_number += 1;
        let number = self.last_number;
        self.unheard.push_back((number, command.clone()));
        self.is_up.then(|| FromViewer::Command { number, command: Box::new(command) })
    }

    /// Takes in what came, and gives what to write for it.
    pub fn take(&mut self, message: ToViewer) -> Vec<FromViewer> {
        match message {
            ToViewer::Welcome { session, is_new, heard } => {
                if is_new && self.session.is_some() {
                    self.lose_session();
                }
                self.session = Some(session);
                (self.is_up, self.connection.trouble) = (true, None);
                self.forget_heard(heard);
                let unheard = self.unheard.iter();
                unheard.map(|(number, command)| command_message(*number, command)).collect()
            }
            ToViewer::Batch(Batch { first, heard, events }) => {
                self.forget_heard(heard);
                let known = self.received.saturating_sub(first) as usize;
                for event in events.into_iter().skip(known) {
                    self.received += 1;
                    if matches!(event.body, EventBody::Done | EventBody::Failed { .. }) {
                        self.open_jobs.remove(&event.job);
                    }
                    self.events.push_back(event);
                }
                vec![self.seen()]
            }
            ToViewer::Connection(connection) => {
                self.connection = connection;
                Vec::new()
            }
            ToViewer::Refused { error } => {
                self.refuse(&error);
                Vec::new()
            }
        }
    }

    /// There is no line any more.
    pub fn cut(&mut self, trouble: impl Into<String>) {
        self.is_up = false;
        self.connection.trouble = Some(trouble.into());
    }

    /// There is no line, and there will be none.
    pub fn refuse(&mut self, error: &ErrorInfo) {
        let ErrorInfo { message, hint, .. } = error;
        self.cut(hint.as_ref().map_or_else(|| message.clone(), |hint| format!("{message}: {hint}")));
    }

    pub fn is_up(&self) -> bool {
        self.is_up
    }

    pub fn drain(&mut self) -> Vec<Event> {
        self.events.drain(..).collect()
    }

    /// What was drained need not be kept on the other side.
    pub fn seen(&self) -> FromViewer {
        FromViewer::Seen { events: self.received - self.events.len() as u64 }
    }

    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    fn forget_heard(&mut self, heard: u64) {
        while self.unheard.front().is_some_and(|(number, _)| *number <= heard) {
            self.unheard.pop_front();
        }
    }

    /// Nobody will hear of its jobs again: each ends here.
    fn lose_session(&mut self) {
        let error = ErrorInfo::new(ErrorCode::Network, "The connection was cut for too long")
            .hint("runs that were started go on; ask again for the rest");
        let jobs = std::mem::take(&mut self.open_jobs).into_iter();
        self.events = jobs.map(|job| failed(job, &error)).collect();
        self.unheard.clear();
        self.last_number = 0;
        // What was made here is not counted by the other side.
        self.received = 0;
        self.connection.lost_sessions += 1;
    }
}

fn failed(job: JobId, error: &ErrorInfo) -> Event {
    Event { job, body: EventBody::Failed { error: error.clone() } }
}

fn command_message(number: u64, command: &Command) -> FromViewer {
    FromViewer::Command { number, command: Box::new(command.clone()) }
}
