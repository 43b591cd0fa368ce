use egui::{Align, Frame, Label, Layout, Margin, TextEdit, Ui, vec2};
use lathe_protocol::{ChatLane, ChatRecord};

use super::{
    Wish,
    engine::{Engine, Standing},
    messages::side_by_side,
    run,
    view::View,
};
use crate::{
    Store, format,
    theme::{self, Tone, icons, size, space},
    widgets::{dot, icon_button},
};

/// The conversation's title, and where its model stands.
pub(super) fn ui(
    ui: &mut Ui,
    view: &mut View,
    record: &mut ChatRecord,
    engines: &[Engine; 2],
    store: &Store,
) {
    ui.horizontal(|ui| {
        ui.set_height(42.0);
        let name = if view.list_open { "Hide the conversations" } else { "Show the conversations" };
        if icon_button(ui, icons::SIDEBAR_SIMPLE, name).clicked() {
            view.list_open = !view.list_open;
        }
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            let name = if view.panel_open { "Hide the settings" } else { "Show the settings" };
            if icon_button(ui, icons::SLIDERS_HORIZONTAL, name).clicked() {
                view.panel_open = !view.panel_open;
            }
            if record.lanes.len() == 1 {
                standing(ui, &record.lanes[0], &engines[0]);
            }
            ui.with_layout(Layout::top_down(Align::Min), |ui| {
                ui.spacing_mut().item_spacing.y = 0.0;
                ui.spacing_mut().interact_size.y = 0.0;
                title(ui, view, record);
                let about = match &record.lanes[..] {
                    [ChatLane { run: Some(run), .. }] => {
                        format!("{} · {}", run.name, run::voice(run, store).to_lowercase())
                    }
                    [lane] => format!("{} · {}", format::file_name(&lane.model), adapters_of(lane)),
                    _ => "Two models side by side".to_owned(),
                };
                ui.horizontal(|ui| {
                    ui.add_space(2.0);
                    ui.add(Label::new(theme::small(ui, about)).truncate());
                });
            });
        });
    });
    if record.lanes.len() == 2 {
        ui.add_space(space::XS);
        side_by_side(ui, |ui, lane| side(ui, &record.lanes[lane], &engines[lane], store));
    }
    ui.add_space(space::XS);
    ui.add(egui::Separator::default().spacing(1.0));
}

fn title(ui: &mut Ui, view: &mut View, record: &mut ChatRecord) {
    let edit = TextEdit::singleline(&mut record.title)
        .hint_text(theme::strong("New chat").size(size::HEADING))
        .font(egui::FontId::new(size::HEADING, theme::semibold()))
        .frame(Frame::new().inner_margin(Margin::symmetric(2, 2)))
        .desired_width(f32::INFINITY)
        .clip_text(true);
    if ui.add(edit).on_hover_text("Title of this conversation").changed() {
        view.wish(Wish::Changed);
    }
}

fn adapters_of(lane: &ChatLane) -> String {
    let adapters: Vec<&str> = lane.adapters.iter().map(|adapter| format::file_name(adapter)).collect();
    let adapters = if adapters.is_empty() { "no adapter".into() } else { adapters.join(" + ") };
    lane.style.as_ref().map_or(adapters.clone(), |style| format!("{adapters}, {style}"))
}

/// Of two models: what tells this one from the other, and where it stands.
fn side(ui: &mut Ui, lane: &ChatLane, engine: &Engine, store: &Store) {
    let (name, of) = match &lane.run {
        Some(run) => (run::voice(run, store).to_owned(), run.name.as_str()),
        None if lane.adapters.is_empty() => ("Base model".to_owned(), lane.model.as_str()),
        None => (adapters_of(lane), lane.model.as_str()),
    };
    ui.spacing_mut().item_spacing = vec2(space::S, 0.0);
    ui.spacing_mut().interact_size.y = 0.0;
    ui.horizontal(|ui| {
        ui.label(theme::strong(name));
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| standing(ui, lane, engine));
    });
    ui.add(Label::new(theme::small(ui, format::file_name(of))).truncate());
}

fn standing(ui: &mut Ui, lane: &ChatLane, engine: &Engine) {
    let (tone, text) = match &engine.standing {
        Standing::Loading(_) if lane.run.is_some() => (Tone::Warning, "Connecting…".to_owned()),
        Standing::Ready { .. } if lane.run.is_some() && engine.serves(lane) => {
            (Tone::Success, "Training".to_owned())
        }
        _ if lane.run.is_some() => (Tone::Neutral, "Not connected".to_owned()),
        _ if !engine.serves(lane) && !matches!(engine.standing, Standing::Failed(_)) => {
            (Tone::Neutral, "Not loaded".to_owned())
        }
        Standing::NotLoaded => (Tone::Neutral, "Not loaded".to_owned()),
        Standing::Loading(Some(progress)) if progress.total > 0 => {
            let percent = 100.0 * progress.done as f64 / progress.total as f64;
            (Tone::Warning, format!("Loading {percent:.0} %"))
        }
        Standing::Loading(_) => (Tone::Warning, "Loading…".to_owned()),
        Standing::Ready { .. } if engine.writing.is_some() => (Tone::Accent, "Writing…".to_owned()),
        Standing::Ready { .. } => (Tone::Success, "Ready".to_owned()),
        Standing::Failed(_) => (Tone::Error, "Stopped working".to_owned()),
    };
    let response = ui.label(theme::small(ui, text));
    dot(ui, tone);
    if let Standing::Ready { load_seconds, context_length, .. } = engine.standing
        && lane.run.is_none()
    {
        let context = format::count(context_length as u64);
        response.on_hover_text(format!("Loaded in {load_seconds:.1} s, context of {context} tokens"));
    }
}
