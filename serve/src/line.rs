//! One viewer's WebSocket.

use std::{sync::Arc, time::Duration};

use axum::extract::ws::{Message, WebSocket, close_code};
use lathe_host::{Sink, ViewerId};
use lathe_protocol::{Batch, ErrorCode, ErrorInfo, FromViewer, Resume, ToViewer, VIEWER_VERSION};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};

use crate::http::Rooms;

/// Batches on their way; a viewer that leaves more unread is cut.
const MAX_BATCHES: usize = 64;
const HELLO_TIME: Duration = Duration::from_secs(10);
/// A viewer answers every batch, and there is one every 15 s.
const SILENCE: Duration = Duration::from_secs(45);
const WRITE_TIME: Duration = Duration::from_secs(20);

/// Says why, and ends the line.
pub async fn refuse(mut socket: WebSocket, error: ErrorInfo) {
    if say(&mut socket, &ToViewer::Refused { error }).await {
        // It has been told; how it takes that is its own.
        drop(timeout(WRITE_TIME, socket.send(Message::Close(None))).await);
    }
}

pub async fn talk(mut socket: WebSocket, rooms: Arc<Rooms>) {
    let hello = timeout(HELLO_TIME, hear(&mut socket)).await;
    let Ok(Heard::Said(FromViewer::Hello { version, resume })) = hello else { return };
    if version != VIEWER_VERSION {
        let message = format!("This window is of Lathe {version}, the other side of {VIEWER_VERSION}");
        let error =
            ErrorInfo::new(ErrorCode::Usage, message).hint("reload the page, or use the same version");
        return refuse(socket, error).await;
    }
    let (id, welcome, mut batches) = enter(&rooms, resume);
    if say(&mut socket, &welcome).await {
        converse(&mut socket, &rooms, id, &mut batches).await;
    }
}

/// Into the session that the viewer had, or into a new one.
fn enter(rooms: &Rooms, resume: Option<Resume>) -> (ViewerId, ToViewer, mpsc::Receiver<Batch>) {
    let Rooms { viewers, instance, .. } = rooms;
    let name = |id: ViewerId| format!("{instance}-{}", id.0);
    if let Some(Resume { session, received }) = resume
        && let Some(id) = session.rsplit_once('-').filter(|(of, _)| of == instance).map(|(_, id)| id)
        && let Ok(id) = id.parse().map(ViewerId)
    {
        let (sink, batches) = new_line();
        if let Some(heard) = viewers.resume(id, received, sink) {
            return (id, ToViewer::Welcome { session, is_new: false, heard }, batches);
        }
    }
    let (sink, batches) = new_line();
    let id = viewers.connect_by_line(sink);
    (id, ToViewer::Welcome { session: name(id), is_new: true, heard: 0 }, batches)
}

fn new_line() -> (Sink, mpsc::Receiver<Batch>) {
    let (sender, receiver) = mpsc::channel(MAX_BATCHES);
    (Box::new(move |batch| sender.try_send(batch).is_ok()), receiver)
}

/// Until the line ends, or the switchboard lets go of it.
async fn converse(socket: &mut WebSocket, rooms: &Rooms, id: ViewerId, batches: &mut mpsc::Receiver<Batch>) {
    let mut heard_at = Instant::now();
    loop {
        tokio::select! {
            batch = batches.recv() => {
                let Some(batch) = batch else { return };
                if !say(socket, &ToViewer::Batch(batch)).await {
                    return;
                }
            }
            heard = timeout_at(heard_at + SILENCE, hear(socket)) => {
                heard_at = Instant::now();
                match heard {
                    Ok(Heard::Said(FromViewer::Command { number, command })) => {
                        rooms.viewers.numbered_command(id, number, *command);
                    }
                    Ok(Heard::Said(FromViewer::Seen { events })) => rooms.viewers.seen(id, events),
                    Ok(Heard::Left) => return rooms.viewers.leave(id),
                    // Whoever lost the line comes back.
                    Ok(Heard::Said(FromViewer::Hello { .. }) | Heard::Nothing) | Err(_) => return,
                }
            }
        }
    }
}

enum Heard {
    Said(FromViewer),
    /// The window was closed, or the page left.
    Left,
    Nothing,
}

async fn hear(socket: &mut WebSocket) -> Heard {
    loop {
        return match socket.recv().await {
            Some(Ok(Message::Text(json))) => serde_json::from_str(&json).map_or(Heard::Nothing, Heard::Said),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(Message::Close(Some(frame)))) if frame.code == close_code::AWAY => Heard::Left,
            _ => Heard::Nothing,
        };
    }
}

async fn say(socket: &mut WebSocket, message: &ToViewer) -> bool {
    let Ok(json) = serde_json::to_string(message) else { return false };
    timeout(WRITE_TIME, socket.send(Message::Text(json.into()))).await.is_ok_and(|sent| sent.is_ok())
}
