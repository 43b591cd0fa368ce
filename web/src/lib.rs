//! The window in a browser or a webview: `ui` as wasm, over a WebSocket to `lathe serve-ui` or over the IPC of the shell
//! around it. Empty on any other target.

#![cfg(target_arch = "wasm32")]

mod shell;
mod socket;
mod window;

use std::{
    cell::RefCell,
    panic,
    rc::Rc,
    sync::{Arc, OnceLock},
};

use eframe::{WebOptions, WebRunner};
use lathe_protocol::EngineLink;
use lathe_ui::Lathe;
use wasm_bindgen::prelude::*;
use web_sys::HtmlCanvasElement;

use shell::ShellLink;
use socket::SocketLink;
use window::Window;

/// What `start.js` holds.
#[wasm_bindgen]
pub struct Page {
    runner: WebRunner,
    /// The first panic: those that come of it say less.
    panic: Arc<OnceLock<String>>,
}

#[wasm_bindgen]
impl Page {
    #[wasm_bindgen(constructor)]
    #[expect(clippy::new_without_default, reason = "JavaScript knows no default")]
    pub fn new() -> Self {
        let runner = WebRunner::new();
        let panic = Arc::new(OnceLock::new());
        let (first, hook_of_runner) = (panic.clone(), panic::take_hook());
        panic::set_hook(Box::new(move |info| {
            first.get_or_init(|| info.to_string());
            hook_of_runner(info);
        }));
        Self { runner, panic }
    }

    /// Draws into the canvas from now on. Fails if the browser has no WebGL.
    pub async fn open(&self, canvas: HtmlCanvasElement) -> Result<(), JsValue> {
        let options = WebOptions { dithering: false, ..WebOptions::default() };
        let create: eframe::AppCreator<'static> = Box::new(|creation| {
            let ctx = creation.egui_ctx.clone();
            let link: Box<dyn EngineLink> = match shell::find() {
                Some(shell) => Box::new(ShellLink::connect(&shell, ctx.clone())?),
                None => Box::new(SocketLink::connect(ctx.clone())?),
            };
            let lathe = Lathe::new(&ctx, link, lathe_ui::Options { clock: now_secs });
            Ok(Box::new(Window::new(lathe, ctx)?))
        });
        self.runner.start(canvas, options, create).await
    }

    /// What it died of, if it did.
    pub fn panic(&self) -> Option<String> {
        self.panic.get().cloned()
    }
}

type Shared<T> = Rc<RefCell<T>>;

fn now_secs() -> f64 {
    js_sys::Date::now() / 1000.0
}

/// For errors of the browser, which are values of JavaScript.
fn js_error(what: &str) -> impl FnOnce(JsValue) -> String {
    move |error| format!("{what}: {error:?}")
}
