//! The way to a host through the program around a webview: one `connect(channel)` and one `command(command)`.

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

use eframe::egui;
use js_sys::{Array, Function, Object, Promise, Reflect};
use lathe_protocol::{Command, Connection, EngineLink, Event, ToViewer};
use wasm_bindgen::{JsCast as _, prelude::*};
use wasm_bindgen_futures::{JsFuture, spawn_local};

use crate::{Shared, js_error};

/// The shell's `window.__TAURI__.core`, if there is one.
pub fn find() -> Option<JsValue> {
    let window = web_sys::window()?;
    let shell = Reflect::get(&window, &"__TAURI__".into()).ok().filter(JsValue::is_object)?;
    Reflect::get(&shell, &"core".into()).ok().filter(JsValue::is_object)
}

pub struct ShellLink {
    ends: Shared<Ends>,
    _on_message: Closure<dyn FnMut(JsValue)>,
}

#[derive(Default)]
struct Ends {
    events: Vec<Event>,
    connection: Connection,
    /// Not taken by the shell yet, in their order.
    commands: VecDeque<Command>,
    /// Whether somebody hands commands over just now.
    is_sending: bool,
    invoke: Option<Function>,
}

impl ShellLink {
    pub fn connect(core: &JsValue, ctx: egui::Context) -> Result<Self, String> {
        let get = |name: &str| Reflect::get(core, &name.into()).and_then(JsValue::dyn_into::<Function>);
        let (invoke, channel) = get("invoke")
            .and_then(|invoke| Ok((invoke, get("Channel")?)))
            .map_err(js_error("The shell around this page is not Lathe's"))?;
        let channel =
            Reflect::construct(&channel, &Array::new()).map_err(js_error("Cannot make a channel"))?;
        let ends: Shared<Ends> = Rc::new(RefCell::new(Ends { is_sending: true, ..Ends::default() }));
        let heard = ends.clone();
        let on_message = Closure::<dyn FnMut(JsValue)>::new(move |message: JsValue| {
            heard.borrow_mut().take(&message);
            ctx.request_repaint();
        });
        Reflect::set(&channel, &"onmessage".into(), on_message.as_ref())
            .map_err(js_error("Cannot listen"))?;
        ends.borrow_mut().invoke = Some(invoke.clone());
        let connected = ends.clone();
        spawn_local(async move {
            match call(&invoke, "connect", "channel", &channel).await {
                Ok(()) => hand_over(connected).await,
                Err(trouble) => connected.borrow_mut().connection.trouble = Some(trouble),
            }
        });
        Ok(Self { ends, _on_message: on_message })
    }
}

impl EngineLink for ShellLink {
    fn send(&mut self, command: Command) {
        let mut ends = self.ends.borrow_mut();
        ends.commands.push_back(command);
        if !ends.is_sending {
            ends.is_sending = true;
            spawn_local(hand_over(self.ends.clone()));
        }
    }

    fn drain(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.ends.borrow_mut().events)
    }

    fn connection(&self) -> Connection {
        self.ends.borrow().connection.clone()
    }
}

impl Ends {
    fn take(&mut self, message: &JsValue) {
        match serde_json::from_str(&message.as_string().unwrap_or_default()) {
            Ok(ToViewer::Batch(batch)) => self.events.extend(batch.events),
            Ok(ToViewer::Connection(connection)) => self.connection = connection,
            Ok(ToViewer::Refused { error }) => self.connection.trouble = Some(error.message),
            Ok(ToViewer::Welcome { .. }) => {}
            Err(error) => self.connection.trouble = Some(format!("The shell is of another version: {error}")),
        }
    }
}

/// Gives the shell one command after the other: calls side by side could overtake each other.
async fn hand_over(ends: Shared<Ends>) {
    loop {
        let next = {
            let mut ends = ends.borrow_mut();
            let next = ends.commands.pop_front();
            ends.is_sending = next.is_some();
            next.zip(ends.invoke.clone())
        };
        let Some((command, invoke)) = next else { return };
        let outcome = match serde_json::to_string(&command) {
            Ok(json) => call(&invoke, "command", "command", &json.into()).await,
            Err(error) => Err(format!("A command cannot be said: {error}")),
        };
        if let Err(trouble) = outcome {
            ends.borrow_mut().connection.trouble = Some(trouble);
        }
    }
}

async fn call(invoke: &Function, name: &str, argument: &str, value: &JsValue) -> Result<(), String> {
    let arguments = Object::new();
    let called = Reflect::set(&arguments, &argument.into(), value)
        .and_then(|_| invoke.call2(&JsValue::UNDEFINED, &name.into(), &arguments))
        .map_err(js_error("Cannot call the shell"))?;
    JsFuture::from(Promise::resolve(&called)).await.map_err(js_error("The shell did not answer"))?;
    Ok(())
}
