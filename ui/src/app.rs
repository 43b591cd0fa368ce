mod closing;
mod connection;
mod navigation;
mod toasts;

use egui::{CentralPanel, Context, Frame, Margin, Panel, ThemePreference, Ui};
use lathe_protocol::{ChatLane, CommandBody, EngineLink, EventBody, Opened, RunStatus, Theme};

use self::{closing::Closing, toasts::Toasts};
use crate::{
    Action, Asked, Outbox, Route, Store,
    screens::Screens,
    theme::{self, Tone, colors, space},
};

/// While the machine is looked at, it is measured anew every so often.
const HARDWARE_PERIOD_SECS: f64 = 5.0;

/// What the window's surroundings give it.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Seconds since 1970.
    pub clock: fn() -> f64,
}

/// How the window wants the program to go on once it is closed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CloseWish {
    /// Runs of this program checkpoint and stop.
    #[default]
    Stop,
    /// The program goes on without a window until its runs and its queue are done.
    KeepRunning,
}

/// The whole window.
pub struct Lathe {
    link: Box<dyn EngineLink>,
    options: Options,
    store: Store,
    out: Outbox,
    route: Route,
    screens: Screens,
    toasts: Toasts,
    closing: Closing,
    hardware_asked_at: f64,
    opening_folder: Asked<()>,
}

impl Lathe {
    pub fn new(ctx: &Context, mut link: Box<dyn EngineLink>, options: Options) -> Self {
        theme::install(ctx);
        let mut out = Outbox::default();
        let mut store = Store { now_secs: (options.clock)(), ..Store::default() };
        store.open(&mut out);
        for command in out.commands.drain(..) {
            link.send(command);
        }
        Self {
            link,
            options,
            store,
            out,
            route: Route::Bench,
            screens: Screens::default(),
            toasts: Toasts::default(),
            closing: Closing::default(),
            hardware_asked_at: 0.0,
            opening_folder: Asked::default(),
        }
    }

    pub fn close_wish(&self) -> CloseWish {
        self.closing.wish()
    }

    /// Closes the window without asking: runs of this program checkpoint and stop.
    pub fn close(&mut self, ctx: &Context) {
        self.closing.close(ctx, CloseWish::Stop);
    }

    pub fn route(&self) -> &Route {
        &self.route
    }

    pub fn go(&mut self, route: Route) {
        self.screens.enter(&route, &mut self.out);
        self.route = route;
    }

    /// What stands in a browser's tab: the place, or how far its run is.
    pub fn title(&self) -> String {
        let place = match &self.route {
            _ if self.store.connection.trouble.is_some() => "Connection lost".into(),
            Route::Bench => "Bench".into(),
            Route::NewRun => "New fine-tune".into(),
            Route::Runs => "Runs".into(),
            Route::Run(id) => match self.store.run(id) {
                Some(run) if run.status == RunStatus::Running => {
                    format!("{}, step {} of {}", run.name, run.step, run.total_steps)
                }
                Some(run) => run.name.clone(),
                None => "Run".into(),
            },
            Route::Compare(_) => "Comparison".into(),
            Route::Adapters => "Adapters".into(),
            Route::Models => "Models".into(),
            Route::Chat => "Chat".into(),
            Route::Settings => "Settings".into(),
        };
        format!("{place} · Lathe")
    }

    /// The other side has forgotten what it was asked; whoever waited for it was told.
    fn ask_again(&mut self) {
        self.store.open(&mut self.out);
        self.go(self.route.clone());
    }

    /// Takes in what happened. Called before every frame, and when the window is hidden.
    pub fn logic(&mut self, ctx: &Context) {
        self.store.now_secs = (self.options.clock)();
        for event in self.link.drain() {
            if let EventBody::Opened(opened) = &event.body {
                self.open(opened);
            }
            self.store.apply(&event, &mut self.out);
            self.screens.apply(&event, &self.store, &mut self.out);
            if self.opening_folder.apply(&event, |_| None)
                && let Some(error) = self.opening_folder.error.take()
            {
                self.toasts.add(Tone::Error, error.message);
            }
        }
        let lost_before = self.store.connection.lost_sessions;
        self.store.connection = self.link.connection();
        if self.store.connection.lost_sessions != lost_before {
            self.ask_again();
        }
        if let Some(settings) = &self.store.settings.value {
            ctx.set_theme(match settings.settings.theme {
                Theme::System => ThemePreference::System,
                Theme::Light => ThemePreference::Light,
                Theme::Dark => ThemePreference::Dark,
            });
        }
        self.closing.logic(ctx, &self.store);
        if self.closing.wish() == CloseWish::KeepRunning {
            self.store.gpus.stop(&mut self.out);
            self.screens.chat.unload(&mut self.out);
        }
        self.flush();
    }

    fn open(&mut self, opened: &Opened) {
        let Self { store, out, screens, .. } = self;
        match opened {
            Opened::Dropped { paths } => {
                screens.wizard.take_files(paths.iter().cloned(), store, out);
                self.go(Route::NewRun);
            }
            Opened::Model { path } => {
                out.act(Action::Chat(ChatLane { model: path.clone(), ..ChatLane::default() }));
            }
            Opened::Adapter { path } => {
                screens.adapters.import(path.clone(), out);
                self.go(Route::Adapters);
            }
        }
    }

    pub fn ui(&mut self, ui: &mut Ui) {
        self.shortcuts(ui);
        // Wherever they are dropped, the wizard knows what to do with files.
        let dropped = ui.input(|input| input.raw.dropped_files.clone());
        if dropped.iter().any(|file| !file.path().is_absolute()) {
            let text = "A browser does not tell where a file lies: use Browse, on the machine Lathe runs on";
            self.toasts.add(Tone::Warning, text.into());
        } else if self.route != Route::NewRun && !dropped.is_empty() {
            self.go(Route::NewRun);
        }
        let Self { store, out, route, screens, .. } = self;
        connection::banner(ui, &store.connection);
        let colors = colors(ui);
        Panel::left("navigation")
            .exact_size(212.0)
            .resizable(false)
            .show_separator_line(false)
            .frame(Frame::new().fill(colors.panel).inner_margin(Margin::same(space::M as i8)))
            .show(ui, |ui| navigation::ui(ui, route, store, out));
        let margin = Margin { left: 28, right: 18, top: 20, bottom: 0 };
        CentralPanel::default()
            .frame(Frame::new().inner_margin(margin))
            .show(ui, |ui| screens.ui(ui, route, store, out));
        self.toasts.ui(ui);
        self.closing.ui(ui, &self.store, &mut self.out);
        self.watch_hardware(ui);
        self.flush();
    }

    /// Only where it is shown, and only while the window has the focus.
    fn watch_hardware(&mut self, ui: &Ui) {
        let Self { store, out, .. } = self;
        if self.route != Route::Bench || !ui.input(|input| input.focused) {
            store.gpus.stop(out);
            return;
        }
        // Each of its events draws a frame.
        if store.sees_gpus() && !store.gpus.is_waiting() {
            store.gpus.ask(out, CommandBody::GpusFollow);
        }
        if store.now_secs - self.hardware_asked_at >= HARDWARE_PERIOD_SECS && !store.hardware.is_waiting() {
            store.hardware.ask(out, CommandBody::Hardware);
            self.hardware_asked_at = store.now_secs;
        }
        ui.ctx().request_repaint_after_secs(HARDWARE_PERIOD_SECS as f32);
    }

    fn shortcuts(&mut self, ui: &mut Ui) {
        for (shortcut, route) in navigation::shortcuts() {
            if ui.input_mut(|input| input.consume_shortcut(&shortcut)) {
                self.out.go(route);
            }
        }
        // A shortcut also matches with Shift held, and Ctrl+Shift+N is a new chat.
        if ui.input_mut(|input| !input.modifiers.shift && input.consume_shortcut(&navigation::NEW_RUN)) {
            self.out.act(Action::NewRun { model: None });
        }
    }

    fn flush(&mut self) {
        while !self.out.actions.is_empty() {
            for action in std::mem::take(&mut self.out.actions) {
                self.act(action);
            }
        }
        for command in self.out.commands.drain(..) {
            self.link.send(command);
        }
    }

    fn act(&mut self, action: Action) {
        let Self { store, out, screens, .. } = self;
        match action {
            Action::Go(route) => self.go(route),
            Action::NewRun { model } => {
                if let Some(model) = model {
                    screens.wizard.choose_model(model);
                }
                self.go(Route::NewRun);
            }
            Action::GetModel { model } => {
                screens.models.get(model, out);
                self.go(Route::Models);
            }
            Action::SearchHub { query } => {
                screens.models.search(query, out);
                self.go(Route::Models);
            }
            Action::Chat(lane) => {
                screens.chat.begin(lane, store, out);
                self.go(Route::Chat);
            }
            Action::Toast { tone, text } => self.toasts.add(tone, text),
            Action::OpenFolder { path } if store.connection.is_remote => {
                let text = format!("On the machine Lathe runs on: {path}");
                self.toasts.add(Tone::Neutral, text);
            }
            Action::OpenFolder { path } => self.opening_folder.ask(out, CommandBody::OpenFolder { path }),
            Action::RefreshModels => store.models.ask(out, CommandBody::ModelsList),
            Action::RefreshAdapters => store.adapters.ask(out, CommandBody::AdaptersList),
            Action::RefreshSettings => store.settings.ask(out, CommandBody::SettingsShow),
        }
    }
}
