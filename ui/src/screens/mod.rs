//! One module a place in the window.

mod adapters;
mod bench;
mod chat;
mod compare;
mod fetching;
mod model_line;
mod models;
mod run;
mod run_actions;
mod runs;
mod settings;
mod wizard;

use egui::Ui;
use lathe_protocol::Event;

use crate::{Action, Outbox, Route, Store};

/// The state of every screen: leaving one loses nothing.
#[derive(Default)]
pub struct Screens {
    pub adapters: adapters::Adapters,
    pub chat: chat::Chat,
    pub compare: compare::Compare,
    pub models: models::Models,
    pub run: run::RunScreen,
    pub runs: runs::Runs,
    pub settings: settings::SettingsScreen,
    pub wizard: wizard::Wizard,
}

impl Screens {
    /// Before a screen is shown.
    pub fn enter(&mut self, route: &Route, out: &mut Outbox) {
        match route {
            Route::Run(run) => self.run.show(run, out),
            Route::Compare(runs) => self.compare.show(runs, out),
            Route::Chat => self.chat.enter(out),
            // Models that came into the cache since are found.
            Route::NewRun => out.act(Action::RefreshModels),
            Route::Models => {
                out.act(Action::RefreshModels);
                self.models.enter(out);
            }
            Route::Bench | Route::Runs | Route::Adapters | Route::Settings => {}
        }
    }

    pub fn apply(&mut self, event: &Event, store: &Store, out: &mut Outbox) {
        self.adapters.apply(event, out);
        self.chat.apply(event, store, out);
        self.compare.apply(event);
        self.models.apply(event, out);
        self.run.apply(event, store, out);
        self.runs.apply(event, out);
        self.settings.apply(event, out);
        self.wizard.apply(event, out);
    }

    pub fn ui(&mut self, ui: &mut Ui, route: &Route, store: &Store, out: &mut Outbox) {
        match route {
            Route::Bench => bench::ui(ui, store, out),
            Route::NewRun => self.wizard.ui(ui, store, out),
            Route::Runs => self.runs.ui(ui, store, out),
            Route::Run(_) => self.run.ui(ui, store, out),
            Route::Compare(_) => self.compare.ui(ui, out),
            Route::Adapters => self.adapters.ui(ui, store, out),
            Route::Models => self.models.ui(ui, store, out),
            Route::Chat => self.chat.ui(ui, store, out),
            Route::Settings => self.settings.ui(ui, store, out),
        }
    }
}
