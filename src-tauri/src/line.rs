//! The way from the page to the Lathe that it shows.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lathe_host::{ViewerId, Viewers};
use lathe_protocol::{Batch, Command, Event, EventBody, JobId, ToViewer};
use tauri::ipc::Channel;

use crate::elsewhere::Elsewhere;

/// Where the page hears of things. A page that was reloaded is another one.
#[derive(Clone)]
pub struct Page {
    /// Of JSON: as values of JavaScript, large numbers would lose digits.
    channel: Channel<String>,
    /// Events so far.
    given: Arc<Mutex<u64>>,
}

impl Page {
    pub fn new(channel: Channel<String>) -> Self {
        Self { channel, given: Arc::default() }
    }

    /// False once the page is gone.
    pub fn give(&self, events: Vec<Event>) -> bool {
        let mut given = lock(&self.given);
        let first = *given;
        *given += events.len() as u64;
        self.tell(&ToViewer::Batch(Batch { first, heard: 0, events }))
    }

    /// A whole answer.
    pub fn answer(&self, job: JobId, body: EventBody) {
        self.give(vec![Event { job, body }, Event { job, body: EventBody::Done }]);
    }

    pub fn tell(&self, message: &ToViewer) -> bool {
        serde_json::to_string(message).is_ok_and(|json| self.channel.send(json).is_ok())
    }
}

/// The page's line; dropped, its jobs end, but for runs that are on their own.
pub enum Line {
    Here { viewers: Arc<Viewers>, id: ViewerId },
    There(Arc<Elsewhere>),
}

impl Line {
    pub fn here(viewers: &Arc<Viewers>, page: &Page) -> Self {
        let page = page.clone();
        let id = viewers.connect(Box::new(move |batch| page.give(batch.events)));
        Self::Here { viewers: viewers.clone(), id }
    }

    pub fn there(remote: &Arc<Elsewhere>, page: &Page) -> Self {
        remote.show_to(page.clone());
        Self::There(remote.clone())
    }

    pub fn send(&self, command: Command) {
        match self {
            Self::Here { viewers, id } => viewers.command(*id, command),
            Self::There(remote) => remote.send(command),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        match self {
            Self::Here { viewers, id } => viewers.leave(*id),
            Self::There(remote) => remote.hide(),
        }
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panicked has said so; what it held is still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
