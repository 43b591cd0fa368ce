use egui::{
    Align, ComboBox, DragValue, Frame, Label, Layout, Margin, Role, ScrollArea, Slider, TextEdit, Ui,
    WidgetInfo,
};
use lathe_protocol::{AdapterEntry, ChatLane, ChatRecord, SamplingParams, Thinking};

use super::{
    Wish,
    engine::{Engine, Standing},
    run,
    view::View,
};
use crate::{
    Store, format,
    theme::{self, icons, space},
    widgets::{Button, card, choice, segmented, switch, tool_button},
};

/// As templates know them, and as people read them.
const EFFORTS: [(&str, &str); 3] = [("low", "Low"), ("medium", "Medium"), ("high", "High")];

/// Which model answers, and how.
pub(super) fn ui(
    ui: &mut Ui,
    view: &mut View,
    record: &mut ChatRecord,
    engines: &[Engine; 2],
    store: &Store,
) {
    ScrollArea::vertical().id_salt("chat settings").auto_shrink(false).show(ui, |ui| {
        let margin = Margin { left: 1, right: 8, top: 1, bottom: space::L as i8 };
        Frame::new().inner_margin(margin).show(ui, |ui| {
            card(ui, |ui| models(ui, view, record, engines, store));
            card(ui, |ui| {
                let label = ui.label(theme::strong("System prompt"));
                let edit = TextEdit::multiline(&mut record.system)
                    .hint_text("How the model should behave")
                    .desired_rows(3)
                    .desired_width(f32::INFINITY)
                    .margin(Margin::symmetric(10, 7));
                if ui.add(edit).labelled_by(label.id).changed() {
                    view.wish(Wish::Changed);
                }
            });
            reasoning(ui, view, record, &engines[..record.lanes.len()]);
            card(ui, |ui| sampling(ui, view, &mut record.sampling));
        });
    });
}

/// What can be said about thinking, once a loaded model knows it.
fn reasoning(ui: &mut Ui, view: &mut View, record: &mut ChatRecord, engines: &[Engine]) {
    let can = |ability: fn(&Standing) -> bool| engines.iter().any(|engine| ability(&engine.standing));
    let thinks = can(|standing| matches!(standing, Standing::Ready { supports_thinking: true, .. }));
    let has_effort = can(|standing| matches!(standing, Standing::Ready { supports_effort: true, .. }));
    if !thinks && !has_effort {
        return;
    }
    let before = (record.thinking, record.effort.clone(), record.sampling.thinking_budget);
    card(ui, |ui| {
        if has_effort {
            ui.label(theme::strong("Reasoning effort"));
            let mut options = vec![(None, "Usual")];
            options.extend(EFFORTS.map(|(effort, name)| (Some(effort.to_owned()), name)));
            segmented(ui, &mut record.effort, &options);
        }
        ui.label(theme::strong("Thinking"));
        let options = [(Thinking::Show, "Show"), (Thinking::Hide, "Hide"), (Thinking::Off, "Off")];
        segmented(ui, &mut record.thinking, &options);
        let help = "After so many tokens of thinking the answer begins; 0 sets no limit";
        let mut budget = record.sampling.thinking_budget.unwrap_or(0);
        let all = |value: f64, _| if value == 0.0 { "no limit".to_owned() } else { format!("{value:.0}") };
        number(
            ui,
            "Longest thought in tokens",
            help,
            DragValue::new(&mut budget).range(0..=32_768).speed(8).custom_formatter(all),
        );
        record.sampling.thinking_budget = (budget > 0).then_some(budget);
    });
    if before != (record.thinking, record.effort.clone(), record.sampling.thinking_budget) {
        view.wish(Wish::Changed);
    }
}

fn number(ui: &mut Ui, name: &str, help: &str, value: DragValue<'_>) {
    ui.horizontal(|ui| {
        let label = ui.label(theme::weak(ui, name)).on_hover_text(help);
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            ui.add(value).labelled_by(label.id).on_hover_text(help);
        });
    });
}

fn models(ui: &mut Ui, view: &mut View, record: &ChatRecord, engines: &[Engine; 2], store: &Store) {
    let writing = engines.iter().any(|engine| engine.writing.is_some());
    let mut comparing = record.lanes.len() == 2;
    ui.add_enabled_ui(!writing, |ui| {
        for (index, lane) in record.lanes.iter().enumerate() {
            let side = match (comparing, index) {
                (false, _) => "",
                (true, 0) => "Left ",
                (true, _) => "Right ",
            };
            let mut changed = lane.clone();
            pickers(ui, side, &mut changed, &engines[index], store);
            if changed != *lane {
                view.wish(Wish::Lane(index, changed));
            }
            ui.add_space(space::XS);
        }
        if switch(ui, &mut comparing, "Compare two").changed() {
            view.wish(Wish::Compare(comparing));
        }
    });
    ui.label(theme::small(ui, "The same message goes to two models, or to one with and without an adapter."));
    if record.lanes.iter().all(|lane| lane.run.is_some()) {
        return;
    }
    ui.add_space(space::XS);
    let loaded = record.lanes.iter().zip(engines).all(|(lane, engine)| engine.serves(lane));
    if loaded {
        let unload = Button::secondary("Unload").tooltip("Frees the memory; the next message loads it again");
        if unload.enabled(!writing).clicked(ui) {
            view.wish(Wish::Unload);
        }
    } else {
        let load = Button::secondary("Load now").icon(icons::LIGHTNING).enabled(!writing);
        if load.tooltip("Otherwise the first message loads it").clicked(ui) {
            view.wish(Wish::Load);
        }
    }
}

fn pickers(ui: &mut Ui, side: &str, lane: &mut ChatLane, engine: &Engine, store: &Store) {
    let sentence_case = |word: &str| {
        if side.is_empty() { word.to_owned() } else { format!("{side}{}", word.to_lowercase()) }
    };
    if let Some(run) = &mut lane.run {
        run::picker(ui, &sentence_case("Run in training"), run, store);
        return style_choice(ui, &sentence_case("Style"), lane, engine, store);
    }
    let name = sentence_case("Model");
    ui.label(theme::strong(&name));
    model_choice(ui, &name, lane, store);
    let name = sentence_case("Adapter");
    ui.label(theme::strong(&name));
    let adapters = lane.adapters.clone();
    adapter_choice(ui, &name, lane, store.adapters());
    if lane.adapters != adapters {
        lane.style = None;
    }
    style_choice(ui, &sentence_case("Style"), lane, engine, store);
}

/// The ways of answering that the lane's adapters were trained in.
fn style_choice(ui: &mut Ui, name: &str, lane: &mut ChatLane, engine: &Engine, store: &Store) {
    let styles = run::styles(lane, engine, store);
    let mut options = vec![(None, "Usual".to_owned())];
    options.extend(styles.iter().map(|style| (Some(style.name.clone()), style.name.clone())));
    if options.len() == 1 {
        return;
    }
    ui.label(theme::strong(name));
    choice(ui, name, &mut lane.style, &options);
    let chosen = styles.iter().find(|style| Some(&style.name) == lane.style.as_ref());
    let settings = chosen.map(|style| style.settings()).filter(|settings| !settings.is_empty());
    if let Some(settings) = settings {
        ui.label(theme::small(ui, format!("Unless set below: {settings}")));
    }
}

fn model_choice(ui: &mut Ui, name: &str, lane: &mut ChatLane, store: &Store) {
    let usable = store.models().iter().filter(|model| model.problem.is_none());
    let shown = format::file_name(&lane.model).to_owned();
    let response = ComboBox::from_id_salt(name)
        .selected_text(shown)
        .width(ui.available_width())
        .truncate()
        .show_ui(ui, |ui| {
            for model in usable {
                let text =
                    format!("{} · {}", format::file_name(&model.name), format::bytes(model.size_bytes));
                let option = ui.selectable_label(model.name == lane.model, text);
                if option.on_hover_text(&model.name).clicked() && model.name != lane.model {
                    lane.model.clone_from(&model.name);
                    lane.adapters.clear();
                }
            }
        })
        .response;
    response.widget_info(|| WidgetInfo::labeled(Role::ComboBox, true, name));
}

/// Adapters of other models are listed, and say whose they are.
fn adapter_choice(ui: &mut Ui, name: &str, lane: &mut ChatLane, adapters: &[AdapterEntry]) {
    let shown = if lane.adapters.is_empty() { "None".to_owned() } else { lane.adapters.join(" + ") };
    let response = ComboBox::from_id_salt(name)
        .selected_text(shown)
        .width(ui.available_width())
        .truncate()
        .show_ui(ui, |ui| {
            if ui.selectable_label(lane.adapters.is_empty(), "None").clicked() {
                lane.adapters.clear();
            }
            for adapter in adapters {
                let base = adapter.base_model.as_deref();
                let obstacle = match (&adapter.problem, base) {
                    (Some(problem), _) => Some(problem.clone()),
                    (None, Some(base)) if base == lane.model => None,
                    (None, Some(base)) => Some(format!("made for {}", format::file_name(base))),
                    (None, None) => Some("its model is not known".to_owned()),
                };
                let selected = lane.adapters == [adapter.name.as_str()];
                let text = match &obstacle {
                    Some(obstacle) => format!("{} · {obstacle}", adapter.name),
                    None => adapter.name.clone(),
                };
                let option = egui::Button::selectable(selected, text);
                if ui.add_enabled(obstacle.is_none(), option).clicked() {
                    lane.adapters = vec![adapter.name.clone()];
                }
            }
        })
        .response;
    response.widget_info(|| WidgetInfo::labeled(Role::ComboBox, true, name));
}

fn sampling(ui: &mut Ui, view: &mut View, sampling: &mut SamplingParams) {
    let before = sampling.clone();
    ui.spacing_mut().interact_size.y = 28.0;
    ui.horizontal(|ui| {
        ui.label(theme::strong("Sampling"));
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            let changed = *sampling != SamplingParams::default();
            if tool_button(ui, icons::ARROW_CLOCKWISE, "Reset the sampling", changed).clicked() {
                *sampling = SamplingParams::default();
            }
        });
    });
    let SamplingParams { temperature, top_p, top_k, max_tokens, seed, .. } = sampling;
    let help = "0 always takes the likeliest token; higher values vary more";
    slider(ui, "Temperature", help, temperature, 2.0);
    slider(ui, "Top-p", "Only the likeliest tokens that together reach this share", top_p, 1.0);
    let all = |value: f64, _| if value == 0.0 { "all".to_owned() } else { format!("{value:.0}") };
    let top_k = DragValue::new(top_k).range(0..=1000).custom_formatter(all);
    number(ui, "Top-k", "Only so many of the likeliest tokens; 0 keeps all", top_k);
    let max_tokens = DragValue::new(max_tokens).range(1..=32_768).speed(8);
    number(ui, "Longest answer in tokens", "An answer that gets longer is cut", max_tokens);
    number(ui, "Seed", "The same seed draws the same answer", DragValue::new(seed));
    if *sampling != before {
        view.wish(Wish::Changed);
    }
}

fn slider(ui: &mut Ui, name: &str, help: &str, value: &mut f64, max: f64) {
    let label = ui
        .horizontal(|ui| {
            let label = ui.add(Label::new(theme::weak(ui, name))).on_hover_text(help);
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| ui.label(format!("{value:.2}")));
            label
        })
        .inner;
    ui.spacing_mut().slider_width = ui.available_width();
    let slider = Slider::new(value, 0.0..=max).step_by(0.05).show_value(false);
    ui.add(slider).labelled_by(label.id).on_hover_text(help);
}
