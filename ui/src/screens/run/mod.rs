mod charts;
mod diverged;
mod head;
mod progress;
mod record;
mod texts;

use egui::Ui;
use lathe_protocol::{
    ChatLane, CommandBody, Event, EventBody, Method, ResumeHow, RunDetails, RunEntry, RunLane, RunStatus,
};

use self::{charts::RunCharts, head::Deed, record::Record, texts::Samples};
pub use self::{
    charts::{side_by_side, smoothing_slider},
    progress::bar,
};
use super::run_actions::RunActions;
use crate::{
    Action, Asked, Outbox, Route, RunView, Store, format,
    theme::{Tone, icons, space},
    widgets::{Button, card, choices, empty_state, error_box, offer, page_with, spinner_line},
};

/// A run: what it does, what it did, and what can be done about it.
#[derive(Default)]
pub struct RunScreen {
    /// The run's id.
    id: String,
    watch: Asked<()>,
    open: Option<OpenRun>,
    actions: RunActions,
    folder: Asked<()>,
    record: Record,
}

/// What the watch has told so far.
struct OpenRun {
    entry: RunEntry,
    data_name: String,
    view: RunView,
    charts: RunCharts,
    samples: Samples,
}

impl OpenRun {
    fn new(details: &RunDetails, before: Option<Self>) -> Self {
        let view = RunView::of_record(details);
        let charts = RunCharts::new(&view);
        let (charts, samples) = match before {
            Some(before) => (charts.like(&before.charts), before.samples),
            None => (charts, Samples::default()),
        };
        let data_name = format::data_name(&details.run.data, &details.config);
        Self { entry: details.run.clone(), data_name, view, charts, samples }
    }

    fn apply(&mut self, event: &EventBody, now_secs: f64) {
        match event {
            EventBody::RunChanged(entry) => {
                self.view.total_steps = entry.total_steps;
                self.entry = (**entry).clone();
            }
            EventBody::Step(step) => self.charts.add_step(step),
            EventBody::Eval(eval) => self.charts.add_eval(eval),
            _ => {}
        }
        self.view.apply(event, now_secs);
    }
}

impl RunScreen {
    /// Watches the run from now on, and no other.
    pub fn show(&mut self, run: &str, out: &mut Outbox) {
        if self.id != run {
            run.clone_into(&mut self.id);
            self.open = None;
            self.watch.clear(out);
            self.record = Record::default();
        }
        self.actions.forget(run);
        self.folder.error = None;
        if !self.watch.is_waiting() {
            self.watch.ask(out, CommandBody::RunsWatch { run: run.to_owned() });
        }
    }

    pub fn apply(&mut self, event: &Event, store: &Store, out: &mut Outbox) {
        self.actions.apply(event, out);
        self.folder.apply(event, |_| None);
        self.record.apply(event, out);
        let Self { id, watch, open, .. } = self;
        watch.apply(event, |body| {
            match (body, &mut *open) {
                (EventBody::Run(details), _) if details.run.id == *id => {
                    let before = open.take();
                    *open = Some(OpenRun::new(details, before));
                }
                (body, Some(open)) => open.apply(body, store.now_secs),
                (_, None) => {}
            }
            None
        });
    }

    pub fn ui(&mut self, ui: &mut Ui, store: &Store, out: &mut Outbox) {
        if self.actions.take_removed().is_some_and(|removed| removed == self.id) {
            out.go(Route::Runs);
        }
        let Self { id, watch, open, actions, folder, record } = self;
        // The list is as new as the watch, and is there before it.
        let Some(run) = store.run(id).or(open.as_ref().map(|open| &open.entry)).cloned() else {
            return missing(ui, watch, out);
        };
        let mut from_head = None;
        let is_busy = actions.is_busy(id);
        let from_body = page_with(
            ui,
            id,
            |ui| from_head = head::ui(ui, &run, is_busy),
            |ui| {
                ui.spacing_mut().item_spacing.y = space::M;
                let data_name = open.as_ref().map(|open| open.data_name.as_str());
                head::facts(ui, &run, data_name, store.now_secs);
                actions.ui(ui, Some(id), out);
                if let Some(error) = &folder.error {
                    error_box(ui, error);
                }
                record.ui(ui, id, out);
                let deed = notices(ui, &run, actions);
                match (open, &watch.error) {
                    (Some(open), _) => open.ui(ui, &run),
                    (None, Some(error)) => error_box(ui, error),
                    (None, None) => spinner_line(ui, "Reading the run's history"),
                }
                deed
            },
        );
        match from_head.or(from_body) {
            None => {}
            Some(Deed::Back) => out.go(Route::Runs),
            Some(Deed::Resume(how)) => actions.resume(&run, how, out),
            Some(Deed::Stop(then)) => actions.stop(&run, then, out),
            Some(Deed::Discard) => actions.discard(&run),
            Some(Deed::Remove) => actions.remove(&run),
            Some(Deed::OpenFolder) if store.connection.is_remote => {
                out.act(Action::OpenFolder { path: run.out_dir.clone() });
            }
            Some(Deed::OpenFolder) => {
                folder.ask(out, CommandBody::OpenFolder { path: run.out_dir.clone() });
            }
            Some(Deed::CopyCommand) => record.copy_command(id, out),
            Some(Deed::ExportLogs) => record.export(),
            Some(Deed::Chat) => out.act(Action::Chat(chat(&run))),
            Some(Deed::Talk) => out.act(Action::Chat(talk(&run))),
        }
    }
}

/// What the run has learned, to talk to: an adapter of its name, or the trained model itself.
fn chat(run: &RunEntry) -> ChatLane {
    let (model, adapters) = match run.method {
        Method::Full => (run.out_dir.clone(), Vec::new()),
        Method::Lora | Method::Qlora => (run.model.clone(), vec![run.name.clone()]),
    };
    ChatLane { model, adapters, ..ChatLane::default() }
}

/// What it learns, while it does.
fn talk(run: &RunEntry) -> ChatLane {
    let lane = RunLane { id: run.id.clone(), name: run.name.clone(), base: false };
    ChatLane { model: run.model.clone(), run: Some(lane), ..ChatLane::default() }
}

fn missing(ui: &mut Ui, watch: &Asked<()>, out: &mut Outbox) {
    if let Some(error) = &watch.error {
        error_box(ui, error);
    } else if watch.is_waiting() {
        return spinner_line(ui, "Looking for the run");
    }
    let text = "It was removed, or belongs to another data folder.";
    if empty_state(ui, icons::CHART_LINE_UP, "This run is not here", text, Some("All runs")) {
        out.go(Route::Runs);
    }
}

/// What a person must know about the run before they look at its curves.
fn notices(ui: &mut Ui, run: &RunEntry, actions: &RunActions) -> Option<Deed> {
    if actions.is_busy(&run.id) {
        let doing = if run.status == RunStatus::Running { "Stopping after this step" } else { "Starting" };
        spinner_line(ui, actions.doing(&run.id).unwrap_or(doing));
        return None;
    }
    let resume = || Button::secondary("Resume").icon(icons::PLAY);
    let as_it_was = Deed::Resume(ResumeHow::AsItWas);
    match run.status {
        RunStatus::Interrupted => {
            let text = format!(
                "The run's process ended at step {}. It can go on from its newest checkpoint.",
                format::count(run.step as u64)
            );
            return offer(ui, Tone::Warning, &text, resume()).then_some(as_it_was);
        }
        RunStatus::OutOfMemory => return out_of_memory(ui, run).map(Deed::Resume),
        RunStatus::Diverged => {
            let how = run.divergence.as_ref().and_then(|divergence| diverged::ui(ui, divergence));
            return how.map(Deed::Resume);
        }
        RunStatus::Failed => {
            let error = run.error.as_deref().unwrap_or("The run failed");
            return offer(ui, Tone::Error, error, resume()).then_some(as_it_was);
        }
        RunStatus::Queued => {
            let text = match run.queue_position {
                Some(0) | None => "Next in the queue: starts when the running one ends".to_owned(),
                Some(before) => format!("In the queue, after {}", format::plural(before, "other run")),
            };
            let now = Button::secondary("Start now").icon(icons::PLAY);
            return offer(ui, Tone::Neutral, &text, now).then_some(as_it_was);
        }
        _ => {}
    }
    None
}

/// Memory gave out under the run: the ways to go on.
fn out_of_memory(ui: &mut Ui, run: &RunEntry) -> Option<ResumeHow> {
    let step = format::count(run.step as u64);
    let text = format!(
        "Memory gave out after step {step}. Nothing is lost: the run can go on from its newest checkpoint."
    );
    let mut wanted = None;
    choices(ui, Tone::Error, &text, |ui| {
        let tooltip = "Recomputes activations instead of keeping them: slower, with the same losses";
        if Button::secondary("Go on with less memory").tooltip(tooltip).clicked(ui) {
            wanted = Some(ResumeHow::LessMemory);
        }
        let tooltip = "With the settings it had; close other programs first";
        if Button::secondary("Go on as it was").tooltip(tooltip).clicked(ui) {
            wanted = Some(ResumeHow::AsItWas);
        }
    });
    wanted
}

impl OpenRun {
    fn ui(&mut self, ui: &mut Ui, run: &RunEntry) {
        let Self { view, charts, samples, .. } = self;
        card(ui, |ui| progress::ui(ui, run, view, charts.smoothed_loss()));
        if !view.steps.is_empty() {
            charts.ui(ui, run.status == RunStatus::Running, view.total_steps);
        }
        let mut texts = Vec::new();
        if !view.samples.is_empty() {
            texts.push(Text::Samples);
        }
        if !view.log.is_empty() {
            texts.push(Text::Log);
        }
        side_by_side(ui, &mut texts, |ui, text| match text {
            Text::Samples => samples.ui(ui, &view.samples),
            Text::Log => texts::log(ui, &view.log, run.created_secs as f64),
        });
    }
}

enum Text {
    Samples,
    Log,
}
