//! `lathe` without a subcommand: the window, and what goes on without it.

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use eframe::egui::{self, ViewportBuilder};
use lathe_host::Host;
use lathe_protocol::{Command, EngineLink, ErrorCode, ErrorInfo, Event};
use lathe_ui::{CloseWish, Lathe, Options};

use crate::{cli::Global, note, session};

const ICON: &[u8] = include_bytes!("../../resources/icons/lathe.png");

/// Opens the window and stays until it is closed, or, without it, until this program's runs have ended.
pub fn open(global: &Global) -> Result<ExitCode, ErrorInfo> {
    let repaint: Arc<Mutex<Option<egui::Context>>> = Arc::default();
    let to_wake = repaint.clone();
    let wake = move || {
        if let Some(ctx) = lock(&to_wake).as_ref() {
            ctx.request_repaint();
        }
    };
    let mut host_options = session::host_options(global)?;
    host_options.runs_queue = true;
    host_options.on_event = Some(Arc::new(wake.clone()));
    let host = Arc::new(Mutex::new(Host::start(host_options)?));
    session::on_interrupt(wake);
    let wish: Arc<Mutex<CloseWish>> = Arc::default();

    let options = eframe::NativeOptions {
        viewport: ViewportBuilder::default()
            .with_title("Lathe")
            .with_app_id("lathe")
            .with_inner_size([1280.0, 800.0])
            .with_min_inner_size([960.0, 600.0])
            .with_icon(eframe::icon_data::from_png_bytes(ICON).unwrap_or_default()),
        // Flat colours have no bands to hide, and a renderer without a GPU pays for each pixel.
        dithering: false,
        ..Default::default()
    };
    let link = HostLink(host.clone());
    let closed_with = wish.clone();
    let outcome = eframe::run_native(
        "Lathe",
        options,
        Box::new(move |creation| {
            *lock(&repaint) = Some(creation.egui_ctx.clone());
            let lathe = Lathe::new(&creation.egui_ctx, Box::new(link), Options { clock: now_secs });
            Ok(Box::new(Window { lathe, closed_with }))
        }),
    );
    outcome.map_err(|error| {
        // What went wrong stands last, after places in other people's source.
        let error = error.to_string();
        let reason = error.rsplit(": ").next().unwrap_or(&error).trim_end_matches('.');
        ErrorInfo::new(ErrorCode::Device, format!("Cannot open a window: {reason}")).hint(
            "`lathe quickstart` takes you down the whole road without one; `lathe --help` lists the commands",
        )
    })?;
    if *lock(&wish) == CloseWish::KeepRunning {
        go_on_without_window(&host);
    }
    Ok(ExitCode::SUCCESS)
}

/// Until the runs of this program, its queue and its downloads are done, or it is told to stop: then runs checkpoint.
fn go_on_without_window(host: &Mutex<Host>) {
    note!(
        "The window is closed; Lathe goes on until its runs and downloads are done. Ctrl-C ends them: runs write a checkpoint, downloads can be resumed"
    );
    loop {
        let mut host = lock(host);
        if !host.has_work() || session::interrupts() > 0 {
            return;
        }
        // Events are for a window.
        drop(host.wait(Duration::from_millis(500)));
    }
}

/// The host, as the window reaches it.
struct HostLink(Arc<Mutex<Host>>);

impl EngineLink for HostLink {
    fn send(&mut self, command: Command) {
        lock(&self.0).send(command);
    }

    fn drain(&mut self) -> Vec<Event> {
        lock(&self.0).drain()
    }
}

struct Window {
    lathe: Lathe,
    closed_with: Arc<Mutex<CloseWish>>,
}

impl eframe::App for Window {
    fn logic(&mut self, ctx: &egui::Context, _frame: &mut eframe::Frame) {
        if session::interrupts() > 0 {
            self.lathe.close(ctx);
        }
        self.lathe.logic(ctx);
    }

    fn ui(&mut self, ui: &mut egui::Ui, _frame: &mut eframe::Frame) {
        self.lathe.ui(ui);
    }

    fn clear_color(&self, visuals: &egui::Visuals) -> [f32; 4] {
        visuals.panel_fill.to_normalized_gamma_f32()
    }

    fn on_exit(&mut self, _gl: Option<&eframe::glow::Context>) {
        *lock(&self.closed_with) = self.lathe.close_wish();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Whoever panicked has said so; what it held is still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_secs() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
