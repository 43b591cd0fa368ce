mod list;
mod queue;
mod table;

use std::collections::BTreeSet;

use egui::{Align, Layout, Ui};
use lathe_protocol::{Event, ResumeHow, RunStatus};

use self::{
    list::{Arrangement, Kind},
    queue::Wish,
    table::Click,
};
use super::run_actions::RunActions;
use crate::{
    Action, Outbox, Route, Store, format,
    theme::{self, Tone, icons, space},
    widgets::{Button, card, empty_state, error_box, offer, page, search, segmented, spinner_line},
};

/// Every run there is, and the queue.
#[derive(Default)]
pub struct Runs {
    arrangement: Arrangement,
    /// Ids of the runs to compare.
    selected: BTreeSet<String>,
    /// Sweeps whose runs show.
    open_sweeps: BTreeSet<String>,
    actions: RunActions,
}

impl Runs {
    pub fn apply(&mut self, event: &Event, out: &mut Outbox) {
        self.actions.apply(event, out);
    }

    pub fn ui(&mut self, ui: &mut Ui, store: &Store, out: &mut Outbox) {
        self.selected.retain(|id| store.run(id).is_some());
        let mut compares = false;
        let selected = self.selected.len();
        page(
            ui,
            "Runs",
            |ui| {
                let text =
                    if selected > 1 { format!("Compare {selected} runs") } else { "Compare".to_owned() };
                let compare = Button::secondary(&text).icon(icons::CHART_LINE);
                compares = compare.enabled(selected > 1).tooltip("Select two runs or more").clicked(ui);
            },
            |ui| {
                ui.spacing_mut().item_spacing.y = space::M;
                self.body(ui, store, out);
            },
        );
        if compares {
            out.go(Route::Compare(self.selected.iter().cloned().collect()));
        }
    }

    fn body(&mut self, ui: &mut Ui, store: &Store, out: &mut Outbox) {
        self.actions.ui(ui, None, out);
        if let Some(error) = &store.runs.error {
            error_box(ui, error);
        }
        if store.runs.value.is_none() {
            if store.runs.is_waiting() {
                spinner_line(ui, "Looking for runs");
            }
            return;
        }
        if store.runs().is_empty() {
            let text =
                "A run is one fine-tune of a model on your data. Its curves, samples and log will be here.";
            if empty_state(ui, icons::CHART_LINE_UP, "No runs yet", text, Some("Start a fine-tune…")) {
                out.act(Action::NewRun { model: None });
            }
            return;
        }
        self.interrupted(ui, store, out);
        self.queue(ui, store, out);
        self.table(ui, store, out);
    }

    /// Runs whose process ended under them: what else would one come here for?
    fn interrupted(&mut self, ui: &mut Ui, store: &Store, out: &mut Outbox) {
        for run in store.runs().iter().filter(|run| run.status == RunStatus::Interrupted) {
            let step = format::count(run.step as u64);
            let text = format!(
                "{} was interrupted at step {step}; it can go on from its newest checkpoint",
                run.name
            );
            let name = format!("Resume {}", run.name);
            let resume = Button::secondary(&name).icon(icons::PLAY).enabled(!self.actions.is_busy(&run.id));
            if offer(ui, Tone::Warning, &text, resume) {
                self.actions.resume(run, ResumeHow::AsItWas, out);
            }
        }
    }

    fn queue(&mut self, ui: &mut Ui, store: &Store, out: &mut Outbox) {
        let actions = &mut self.actions;
        let Some((run, wish)) = queue::ui(ui, store, |run| actions.is_busy(&run.id)) else { return };
        match wish {
            Wish::Open => out.go(Route::Run(run.id)),
            Wish::Move(position) => actions.move_to(&run, position, out),
            Wish::Assign(device) => actions.assign(&run, device, out),
            Wish::Start => actions.resume(&run, ResumeHow::AsItWas, out),
            Wish::Remove => actions.discard(&run),
        }
    }

    fn table(&mut self, ui: &mut Ui, store: &Store, out: &mut Outbox) {
        let Self { arrangement, selected, open_sweeps, .. } = self;
        card(ui, |ui| {
            ui.horizontal(|ui| {
                segmented(ui, &mut arrangement.kind, &Kind::ALL);
                ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                    search(ui, &mut arrangement.search, "Filter runs");
                });
            });
            let rows = list::grouped(&arrangement.of(store.runs()), store.runs(), open_sweeps);
            if rows.is_empty() {
                ui.add_space(space::M);
                ui.vertical_centered(|ui| ui.label(theme::weak(ui, "No run matches")));
                return;
            }
            match table::ui(ui, &rows, arrangement, selected, store.now_secs) {
                Some(Click::Run(run)) => out.go(Route::Run(run)),
                Some(Click::Compare(runs)) => out.go(Route::Compare(runs)),
                Some(Click::Fold(sweep)) => toggle(open_sweeps, sweep),
                None => {}
            }
        });
    }
}

fn toggle(set: &mut BTreeSet<String>, name: String) {
    if !set.remove(&name) {
        set.insert(name);
    }
}
