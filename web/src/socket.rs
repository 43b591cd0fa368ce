use std::{cell::RefCell, rc::Rc};

use eframe::egui;
use lathe_protocol::{Command, Connection, EngineLink, Event, FromViewer, ToViewer, ViewerEnd};
use wasm_bindgen::{JsCast as _, prelude::*};
use web_sys::{CloseEvent, MessageEvent, WebSocket};

use crate::{Shared, js_error, now_secs};

/// The server says something more often than that.
const SILENCE_SECS: f64 = 40.0;
const OPENING_SECS: f64 = 15.0;
const LONGEST_PAUSE_SECS: f64 = 8.0;
const LOST: &str = "Connection lost, trying again… Runs go on meanwhile";

/// The way to the Lathe this page came from.
pub struct SocketLink {
    line: Shared<Line>,
    _tick: Closure<dyn FnMut()>,
}

struct Line {
    end: ViewerEnd,
    url: String,
    ctx: egui::Context,
    socket: Option<Socket>,
    /// When something came last, or the socket was made.
    heard_at: f64,
    retry_at: f64,
    failures: i32,
    /// Refused: trying again would change nothing.
    is_over: bool,
}

/// A WebSocket and what it calls.
struct Socket {
    inner: WebSocket,
    _on_open: Closure<dyn FnMut()>,
    _on_message: Closure<dyn FnMut(MessageEvent)>,
    _on_close: Closure<dyn FnMut(CloseEvent)>,
}

impl SocketLink {
    pub fn connect(ctx: egui::Context) -> Result<Self, String> {
        let page = web_sys::window().ok_or("There is no window")?;
        let location = page.location();
        let secure = location.protocol().is_ok_and(|protocol| protocol == "https:");
        let host = location.host().map_err(js_error("The page has no address"))?;
        let line = Rc::new(RefCell::new(Line {
            end: ViewerEnd::default(),
            url: format!("{}://{host}/line", if secure { "wss" } else { "ws" }),
            ctx,
            socket: None,
            heard_at: 0.0,
            retry_at: 0.0,
            failures: 0,
            is_over: false,
        }));
        let ticking = Rc::downgrade(&line);
        let tick = Closure::<dyn FnMut()>::new(move || {
            if let Some(line) = ticking.upgrade() {
                watch(&line);
            }
        });
        page.set_interval_with_callback_and_timeout_and_arguments_0(tick.as_ref().unchecked_ref(), 500)
            .map_err(js_error("Cannot set a timer"))?;
        watch(&line);
        Ok(Self { line, _tick: tick })
    }
}

impl EngineLink for SocketLink {
    fn send(&mut self, command: Command) {
        let mut line = self.line.borrow_mut();
        if let Some(message) = line.end.send(command) {
            line.write(&message);
        }
    }

    fn drain(&mut self) -> Vec<Event> {
        let mut line = self.line.borrow_mut();
        let events = line.end.drain();
        if !events.is_empty() && line.end.is_up() {
            let seen = line.end.seen();
            line.write(&seen);
        }
        events
    }

    fn connection(&self) -> Connection {
        self.line.borrow().end.connection().clone()
    }
}

impl Line {
    fn write(&self, message: &FromViewer) {
        if let (Some(Socket { inner, .. }), Ok(json)) = (&self.socket, serde_json::to_string(message)) {
            // A line that breaks says so by itself; what did not arrive is sent again.
            drop(inner.send_with_str(&json));
        }
    }

    fn take(&mut self, json: &str) {
        self.heard_at = now_secs();
        let message = match serde_json::from_str::<ToViewer>(json) {
            Ok(message) => message,
            Err(error) => {
                return self.give_up(format!("Lathe said what this window does not understand: {error}"));
            }
        };
        let is_refused = matches!(message, ToViewer::Refused { .. });
        for answer in self.end.take(message) {
            self.write(&answer);
        }
        if is_refused {
            self.is_over = true;
        } else if self.end.is_up() {
            self.failures = 0;
        }
        self.ctx.request_repaint();
    }

    fn give_up(&mut self, trouble: String) {
        self.lose();
        self.end.cut(trouble);
        self.is_over = true;
    }

    /// No word comes any more from the socket there was.
    fn lose(&mut self) {
        if let Some(Socket { inner, .. }) = &self.socket {
            inner.set_onopen(None);
            inner.set_onmessage(None);
            inner.set_onclose(None);
            drop(inner.close());
        }
        if !self.is_over {
            self.end.cut(LOST);
            let pause = (0.5 * 2f64.powi(self.failures)).min(LONGEST_PAUSE_SECS);
            self.failures += 1;
            self.retry_at = now_secs() + pause;
        }
        self.ctx.request_repaint();
    }
}

/// Opens a socket when there is none and it is time, and leaves one that has fallen silent.
fn watch(line: &Shared<Line>) {
    let now = now_secs();
    let mut open = line.borrow_mut();
    let Line { socket, is_over, retry_at, heard_at, .. } = &*open;
    let state = socket.as_ref().map_or(WebSocket::CLOSED, |socket| socket.inner.ready_state());
    let silence = now - heard_at;
    match state {
        WebSocket::OPEN if silence > SILENCE_SECS => open.lose(),
        WebSocket::CONNECTING if silence > OPENING_SECS => open.lose(),
        WebSocket::OPEN | WebSocket::CONNECTING => {}
        _ if *is_over || now < *retry_at => {}
        _ => {
            open.heard_at = now;
            match new_socket(line, &open.url) {
                Ok(socket) => open.socket = Some(socket),
                Err(trouble) => open.give_up(trouble),
            }
        }
    }
}

fn new_socket(line: &Shared<Line>, url: &str) -> Result<Socket, String> {
    let socket = WebSocket::new(url).map_err(js_error("This page may open no WebSocket"))?;
    let opened = Rc::downgrade(line);
    let on_open = Closure::<dyn FnMut()>::new(move || {
        if let Some(line) = opened.upgrade() {
            let line = line.borrow();
            line.write(&line.end.hello());
        }
    });
    let told = Rc::downgrade(line);
    let on_message = Closure::<dyn FnMut(MessageEvent)>::new(move |event: MessageEvent| {
        if let (Some(line), Some(json)) = (told.upgrade(), event.data().as_string()) {
            line.borrow_mut().take(&json);
        }
    });
    let closed = Rc::downgrade(line);
    let on_close = Closure::<dyn FnMut(CloseEvent)>::new(move |_| {
        if let Some(line) = closed.upgrade() {
            line.borrow_mut().lose();
        }
    });
    socket.set_onopen(Some(on_open.as_ref().unchecked_ref()));
    socket.set_onmessage(Some(on_message.as_ref().unchecked_ref()));
    socket.set_onclose(Some(on_close.as_ref().unchecked_ref()));
    Ok(Socket { inner: socket, _on_open: on_open, _on_message: on_message, _on_close: on_close })
}
