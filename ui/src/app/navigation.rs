use egui::{Key, KeyboardShortcut, Modifiers, RichText, Role, Sense, Ui, WidgetInfo, vec2};
use lathe_protocol::{Download, DownloadStatus, RunEntry, RunStatus};

use crate::{
    Action, Outbox, Route, Store,
    theme::{self, RADIUS_SMALL, colors, icons, size, space},
    widgets::Button,
};

pub(super) const NEW_RUN: KeyboardShortcut = KeyboardShortcut::new(Modifiers::COMMAND, Key::N);

const PLACES: [(Route, &str, &str, Key); 6] = [
    (Route::Bench, icons::HOUSE, "Bench", Key::Num1),
    (Route::Runs, icons::CHART_LINE_UP, "Runs", Key::Num2),
    (Route::Adapters, icons::PUZZLE_PIECE, "Adapters", Key::Num3),
    (Route::Models, icons::CUBE, "Models", Key::Num4),
    (Route::Chat, icons::CHAT_CIRCLE, "Chat", Key::Num5),
    (Route::Settings, icons::GEAR_SIX, "Settings", Key::Num6),
];

/// Ctrl+1 … Ctrl+6 (Command on a Mac).
pub(super) fn shortcuts() -> impl Iterator<Item = (KeyboardShortcut, Route)> {
    PLACES.into_iter().map(|(route, _, _, key)| (KeyboardShortcut::new(Modifiers::COMMAND, key), route))
}

pub(super) fn ui(ui: &mut Ui, route: &Route, store: &Store, out: &mut Outbox) {
    ui.spacing_mut().item_spacing.y = 2.0;
    ui.add_space(space::S);
    ui.horizontal(|ui| {
        ui.add_space(space::S);
        ui.label(theme::icon(icons::CIRCLE_NOTCH).size(22.0).color(colors(ui).accent));
        ui.label(theme::strong("Lathe").size(20.0));
    });
    ui.add_space(space::L);
    let new_run = Button::primary("New fine-tune…")
        .icon(icons::PLUS)
        .min_width(ui.available_width())
        .shortcut(ui.ctx().format_shortcut(&NEW_RUN));
    if new_run.clicked(ui) {
        out.act(Action::NewRun { model: None });
    }
    ui.add_space(space::L);
    for (place, icon, name, key) in PLACES {
        let note = match place {
            Route::Runs => runs(store),
            Route::Models => downloads(store),
            _ => String::new(),
        };
        let selected = match &place {
            Route::Runs => matches!(route, Route::Runs | Route::Run(_) | Route::Compare(_)),
            place => place == route,
        };
        let shortcut = KeyboardShortcut::new(Modifiers::COMMAND, key);
        let response = item(ui, icon, name, selected, &note);
        if response.on_hover_text(ui.ctx().format_shortcut(&shortcut)).clicked() {
            out.go(place);
        }
    }
}

/// How many are under way, if any.
fn runs(store: &Store) -> String {
    let under_way = |run: &&RunEntry| matches!(run.status, RunStatus::Running | RunStatus::Queued);
    match store.runs().iter().filter(under_way).count() {
        0 => String::new(),
        count => count.to_string(),
    }
}

/// How far those that run and wait are together, if any.
fn downloads(store: &Store) -> String {
    let under_way =
        |download: &&Download| matches!(download.status, DownloadStatus::Running | DownloadStatus::Queued);
    let known = store.downloads().iter().filter(under_way);
    if !store.downloads().iter().any(|download| download.status == DownloadStatus::Running) {
        return String::new();
    }
    let (done, total) = known
        .fold((0, 0), |(done, total), download| (done + download.done_bytes, total + download.total_bytes));
    format!("↓ {:.0} %", done as f64 / total.max(1) as f64 * 100.0)
}

fn item(ui: &mut Ui, icon: &str, name: &str, selected: bool, note: &str) -> egui::Response {
    let colors = colors(ui);
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), 36.0), Sense::click());
    response.widget_info(|| WidgetInfo::selected(Role::Tab, true, selected, name));
    let ground = if selected {
        colors.accent_soft
    } else if response.hovered() || response.has_focus() {
        colors.neutral_soft
    } else {
        egui::Color32::TRANSPARENT
    };
    ui.painter().rect_filled(rect, RADIUS_SMALL, ground);
    let color = if selected { colors.accent } else { colors.text_weak };
    let text = if selected { theme::strong(name) } else { RichText::new(name) };
    let mut content = ui.new_child(
        egui::UiBuilder::new()
            .max_rect(rect.shrink2(vec2(space::M, 0.0)))
            .layout(egui::Layout::left_to_right(egui::Align::Center)),
    );
    content.style_mut().interaction.selectable_labels = false;
    content.label(theme::icon(icon).color(color).size(18.0));
    content.label(text.color(if selected { colors.accent } else { colors.text }));
    if !note.is_empty() {
        content.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
            ui.label(theme::strong(note).size(size::SMALL).color(colors.accent));
        });
    }
    response
}
