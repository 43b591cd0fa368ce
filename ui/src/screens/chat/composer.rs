use egui::{
    Align, Frame, Key, KeyboardShortcut, Label, Layout, Margin, Modifiers, ScrollArea, Stroke, TextEdit, Ui,
};

use super::{
    Wish,
    engine::Standing,
    messages::READABLE_WIDTH,
    run,
    view::{Shown, View},
};
use crate::{
    Store,
    theme::{self, RADIUS, Tone, colors, icons},
    widgets::{Button, error_box, notice},
};

const MAX_LINES: f32 = 8.0;

/// Where a question is written; Enter sends it, Shift+Enter begins a line.
pub(super) fn ui(ui: &mut Ui, view: &mut View, shown: &Shown, store: &Store) {
    ui.vertical_centered(|ui| {
        ui.set_max_width(READABLE_WIDTH.min(ui.available_width()));
        ui.with_layout(Layout::top_down(Align::Min), |ui| {
            for (index, lane) in shown.record.lanes.iter().enumerate() {
                for warning in &shown.engines[index].warnings {
                    notice(ui, Tone::Warning, warning);
                }
                if lane.run.is_some() {
                    run::succession(ui, view, index, lane, store);
                } else if let Standing::Failed(error) = &shown.engines[index].standing {
                    error_box(ui, error);
                    if Button::secondary("Load again").icon(icons::ARROW_CLOCKWISE).clicked(ui) {
                        view.wish(Wish::Load);
                    }
                }
            }
            field(ui, view, shown, store);
        });
    });
}

fn field(ui: &mut Ui, view: &mut View, shown: &Shown, store: &Store) {
    let colors = colors(ui);
    let writing = shown.is_writing();
    let undisturbed = view.editing.is_none() && ui.memory(|memory| memory.top_modal_layer().is_none());
    if writing && undisturbed && ui.input(|input| input.key_pressed(Key::Escape)) {
        view.wish(Wish::Stop);
    }
    let somebody_answers = shown.record.lanes.iter().all(|lane| run::answers(lane, store));
    let may_send =
        !writing && !shown.is_writing_elsewhere() && somebody_answers && !view.text.trim().is_empty();
    let focused = ui.memory(|memory| memory.has_focus(text_id()));
    let border = if focused { colors.accent } else { colors.border_strong };
    let send = Frame::new()
        .fill(colors.field)
        .stroke(Stroke::new(1.0, border))
        .corner_radius(RADIUS + 2)
        .inner_margin(Margin { left: 14, right: 8, top: 6, bottom: 8 })
        .show(ui, |ui| {
            text(ui, view);
            ui.horizontal(|ui| {
                ui.add(Label::new(theme::small(ui, hint(shown)).color(colors.text_faint)).selectable(false));
                ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                    if !writing {
                        return Button::primary("Send").icon(icons::ARROW_UP).enabled(may_send).clicked(ui);
                    }
                    if Button::secondary("Stop").icon(icons::STOP).clicked(ui) {
                        view.wish(Wish::Stop);
                    }
                    false
                })
                .inner
            })
            .inner
        })
        .inner;
    let enter = focused
        && ui.input(|input| input.key_pressed(Key::Enter) && !input.modifiers.shift && !input.modifiers.alt);
    if (send || enter) && may_send {
        let text = std::mem::take(&mut view.text);
        view.wish(Wish::Send(text));
        view.wants_focus = true;
    }
}

fn hint(shown: &Shown) -> &'static str {
    if shown.is_writing_elsewhere() {
        "The model is answering in another conversation"
    } else if shown.is_writing() {
        "Escape stops the answer"
    } else {
        "Enter sends, Shift+Enter begins a new line"
    }
}

fn text_id() -> egui::Id {
    egui::Id::unique("chat composer")
}

fn text(ui: &mut Ui, view: &mut View) {
    let row = ui.text_style_height(&egui::TextStyle::Body);
    ScrollArea::vertical().id_salt("composer text").max_height(MAX_LINES * row + 12.0).show(ui, |ui| {
        let edit = TextEdit::multiline(&mut view.text)
            .id(text_id())
            .hint_text("Write a message…")
            .frame(Frame::new().inner_margin(Margin::symmetric(0, 7)))
            .desired_rows(1)
            .desired_width(f32::INFINITY)
            .return_key(KeyboardShortcut::new(Modifiers::SHIFT, Key::Enter));
        let response = ui.add(edit);
        if std::mem::take(&mut view.wants_focus) {
            response.request_focus();
        }
    });
}
