//! A lane that a run in training answers in.

use egui::Ui;
use lathe_protocol::{ChatLane, Method, RunLane, RunStatus, Style};

use super::{
    Wish,
    engine::{Engine, Standing},
    view::View,
};
use crate::{
    Store,
    theme::{self, Tone, icons},
    widgets::{Button, offer, segmented},
};

/// Who answers.
pub(super) fn voice(run: &RunLane, store: &Store) -> &'static str {
    match store.run(&run.id).map(|entry| entry.method) {
        Some(Method::Full) => "Model as of now",
        _ if run.base => "Base",
        _ => "Adapter as of now",
    }
}

/// Whether the lane's run is there to answer. A lane without one needs none.
pub(super) fn answers(lane: &ChatLane, store: &Store) -> bool {
    let Some(run) = &lane.run else { return true };
    store.run(&run.id).is_some_and(|entry| entry.status == RunStatus::Running)
}

/// The ways of answering that can be chosen in a lane.
pub(super) fn styles<'a>(lane: &ChatLane, engine: &'a Engine, store: &'a Store) -> Vec<&'a Style> {
    match (&lane.run, &engine.standing) {
        (None, _) => store.styles_of(lane).collect(),
        (Some(RunLane { base: false, .. }), Standing::Ready { styles, .. }) => styles.iter().collect(),
        _ => Vec::new(),
    }
}

/// Where models and adapters are chosen in other lanes.
pub(super) fn picker(ui: &mut Ui, name: &str, run: &mut RunLane, store: &Store) {
    ui.label(theme::strong(name));
    ui.label(&run.name);
    if store.run(&run.id).is_some_and(|entry| entry.method == Method::Full) {
        ui.label(theme::small(ui, "It trains every weight: there is no base to compare with."));
    } else {
        segmented(ui, &mut run.base, &[(false, "Adapter as of now"), (true, "Base")]);
    }
    ui.label(theme::small(ui, "It answers between two of its steps, which waits for the answer."));
}

/// What a run that does not train leaves to talk to.
pub(super) fn succession(ui: &mut Ui, view: &mut View, index: usize, lane: &ChatLane, store: &Store) {
    let Some(run) = &lane.run else { return };
    if store.runs.value.is_none() || answers(lane, store) {
        return;
    }
    let chat = |text| Button::secondary(text).icon(icons::CHAT_CIRCLE);
    let page = || Button::secondary("Go to the run").icon(icons::CHART_LINE_UP);
    let with = |model: &str, adapters: Vec<String>| {
        Wish::Lane(index, ChatLane { model: model.to_owned(), adapters, run: None, ..lane.clone() })
    };
    let (text, button, wish) = match store.run(&run.id) {
        None => ("The run was removed.", chat("Go on with the base model"), with(&lane.model, Vec::new())),
        Some(entry) => match (entry.status, entry.method) {
            (RunStatus::Completed, Method::Full) => {
                let wish = with(&entry.out_dir, Vec::new());
                ("The run has ended, and its model is saved.", chat("Go on with the model"), wish)
            }
            (RunStatus::Completed | RunStatus::Kept, _) => {
                let of_run = |name: &Option<String>| name.as_ref() == Some(&entry.name);
                let adapter = store.adapters().iter().find(|adapter| of_run(&adapter.run));
                let adapter = adapter.map_or(&entry.name, |adapter| &adapter.name).clone();
                let wish = with(&lane.model, vec![adapter]);
                ("The run has ended, and its adapter is saved.", chat("Go on with the adapter"), wish)
            }
            (RunStatus::Queued, _) => {
                ("The run is queued: it answers once it trains.", page(), Wish::GoToRun(run.id.clone()))
            }
            _ => {
                let text = "The run does not train now: resume it, or keep what it has learned.";
                (text, page(), Wish::GoToRun(run.id.clone()))
            }
        },
    };
    if offer(ui, Tone::Neutral, text, button) {
        view.wish(wish);
    }
}
