//! The way to a Lathe on another machine.

mod connect;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc::SyncSender, mpsc::sync_channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use futures_util::{SinkExt as _, StreamExt as _};
use lathe_protocol::{
    Command, Connection, EngineLink, ErrorCode, ErrorInfo, Event, FromViewer, ToViewer, ViewerEnd,
};
use tokio::{
    runtime,
    sync::Notify,
    time::{Instant, timeout, timeout_at},
};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use connect::{Door, Socket};

/// The server says something more often than that.
const SILENCE: Duration = Duration::from_secs(40);
const WRITE_TIME: Duration = Duration::from_secs(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
const LOST: &str = "Connection lost, trying again… Runs go on meanwhile";

/// A host at the other end of a line that mends itself, as the window reaches it.
pub struct Remote {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    ends: Mutex<Ends>,
    /// Something is to be written, or to be ended.
    changed: Notify,
    on_event: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct Ends {
    end: ViewerEnd,
    outgoing: Vec<FromViewer>,
    was_welcome: bool,
    is_closing: bool,
}

/// How a line ended.
enum Outcome {
    Failed(ErrorInfo),
    /// Trying again would change nothing.
    Refused(ErrorInfo),
    Closed,
}

impl Remote {
    /// Connects by the link that `lathe serve-ui` printed, which is used up by it. `on_event` is called, on any thread, when
    /// there is something to drain, and when the connection changes.
    pub fn connect(link: &str, on_event: Box<dyn Fn() + Send + Sync>) -> Result<Self, ErrorInfo> {
        let mut door = Door::from_link(link)?;
        let shared = Arc::new(Shared { ends: Mutex::default(), changed: Notify::new(), on_event });
        let (sender, first) = sync_channel(1);
        let of_thread = shared.clone();
        let thread = thread::Builder::new().name("remote".into()).spawn(move || {
            match runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(keep(&of_thread, &mut door, &sender)),
                Err(error) => drop(sender.send(Err(internal(&error)))),
            }
        });
        let mut remote = Self { shared, thread: None };
        remote.thread = Some(thread.map_err(|error| internal(&error))?);
        first.recv().map_err(|error| internal(&error))??;
        Ok(remote)
    }
}

fn internal(error: &dyn std::fmt::Display) -> ErrorInfo {
    ErrorInfo::new(ErrorCode::Internal, format!("Cannot start the connection: {error}"))
}

impl EngineLink for Remote {
    fn send(&mut self, command: Command) {
        let mut ends = self.shared.lock();
        let message = ends.end.send(command);
        ends.outgoing.extend(message);
        drop(ends);
        self.shared.changed.notify_one();
    }

    fn drain(&mut self) -> Vec<Event> {
        let mut ends = self.shared.lock();
        let events = ends.end.drain();
        if !events.is_empty() && ends.end.is_up() {
            let seen = ends.end.seen();
            ends.outgoing.push(seen);
            drop(ends);
            self.shared.changed.notify_one();
        }
        events
    }

    fn connection(&self) -> Connection {
        self.shared.lock().end.connection().clone()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.shared.lock().is_closing = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic has said what it was.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closing(&self) -> bool {
        self.lock().is_closing
    }
}

/// One line after the other, until it is closed or refused. What comes of the first is told.
async fn keep(shared: &Shared, door: &mut Door, first: &SyncSender<Result<(), ErrorInfo>>) {
    let mut failures = 0;
    while !shared.is_closing() {
        let outcome = match door.open().await {
            Ok(mut socket) => {
                failures = 0;
                talk(shared, &mut socket, first).await
            }
            Err(error) => Outcome::Failed(error),
        };
        let outcome = match outcome {
            Outcome::Failed(error) if error.code == ErrorCode::Access || !shared.lock().was_welcome => {
                Outcome::Refused(error)
            }
            outcome => outcome,
        };
        match outcome {
            Outcome::Failed(_) => shared.lock().end.cut(LOST),
            Outcome::Refused(error) => {
                shared.lock().end.refuse(&error);
                (shared.on_event)();
                // Nobody waits for it any more, unless it is the first.
                return drop(first.try_send(Err(error)));
            }
            Outcome::Closed => return,
        }
        (shared.on_event)();
        let pause = LONGEST_PAUSE.min(Duration::from_millis(250) * 2u32.pow(failures));
        failures = (failures + 1).min(6);
        let due = Instant::now() + pause;
        // Commands wake it too, but do not hurry it.
        while !shared.is_closing() && timeout_at(due, shared.changed.notified()).await.is_ok() {}
    }
}

async fn talk(shared: &Shared, socket: &mut Socket, first: &SyncSender<Result<(), ErrorInfo>>) -> Outcome {
    let hello = {
        let mut ends = shared.lock();
        // What was meant for the line before comes again after the welcome.
        ends.outgoing.clear();
        ends.end.hello()
    };
    if !write(socket, &hello).await {
        return lost();
    }
    loop {
        tokio::select! {
            heard = timeout(SILENCE, socket.next()) => {
                let Ok(Some(Ok(message))) = heard else { return lost() };
                let Message::Text(json) = message else { continue };
                let message = match serde_json::from_str::<ToViewer>(&json) {
                    Ok(ToViewer::Refused { error }) => return Outcome::Refused(error),
                    Ok(message) => message,
                    Err(error) => {
                        let message = format!("The other side says what is not understood: {error}");
                        return Outcome::Refused(ErrorInfo::new(ErrorCode::Network, message));
                    }
                };
                let is_welcome = matches!(message, ToViewer::Welcome { .. });
                let answers = {
                    let mut ends = shared.lock();
                    ends.was_welcome |= is_welcome;
                    ends.end.take(message)
                };
                if is_welcome {
                    // The constructor waits for the first, nobody for the others.
                    drop(first.try_send(Ok(())));
                }
                (shared.on_event)();
                for answer in answers {
                    if !write(socket, &answer).await {
                        return lost();
                    }
                }
            }
            () = shared.changed.notified() => {
                let (outgoing, is_closing) = {
                    let mut ends = shared.lock();
                    (std::mem::take(&mut ends.outgoing), ends.is_closing)
                };
                for message in outgoing {
                    if !write(socket, &message).await {
                        return lost();
                    }
                }
                if is_closing {
                    leave(socket).await;
                    return Outcome::Closed;
                }
            }
        }
    }
}

fn lost() -> Outcome {
    Outcome::Failed(ErrorInfo::new(ErrorCode::Network, "The connection was cut"))
}

/// Says that nobody will come back.
async fn leave(socket: &mut Socket) {
    let frame = CloseFrame { code: CloseCode::Away, reason: "closed".into() };
    // One that cannot be told finds out.
    drop(timeout(Duration::from_secs(1), socket.send(Message::Close(Some(frame)))).await);
    drop(timeout(Duration::from_millis(500), socket.next()).await);
}

async fn write(socket: &mut Socket, message: &FromViewer) -> bool {
    let Ok(json) = serde_json::to_string(message) else { return false };
    timeout(WRITE_TIME, socket.send(Message::Text(json.into()))).await.is_ok_and(|sent| sent.is_ok())
}
