use egui::{
    CornerRadius, FontId, Frame, Margin, ProgressBar, Response, RichText, Role, Sense, Ui, WidgetInfo, vec2,
};
use lathe_protocol::ErrorInfo;

use super::{Button, icon_button};
use crate::{
    Progress,
    theme::{self, RADIUS_SMALL, Tone, colors, icons, semibold, size, space},
};

/// What a person answers where no graphics card can compute something.
pub const USE_CPU: &str = "Use the CPU";

/// A word in a coloured pill.
pub fn badge(ui: &mut Ui, tone: Tone, text: &str) -> Response {
    let font = FontId::new(size::SMALL, semibold());
    let galley = ui.painter().layout_no_wrap(text.to_owned(), font, tone.color(ui));
    let (rect, response) = ui.allocate_exact_size(galley.size() + vec2(16.0, 6.0), Sense::hover());
    ui.painter().rect_filled(rect, rect.height() / 2.0, tone.soft(ui));
    ui.painter().galley(rect.min + vec2(8.0, 3.0), galley, tone.color(ui));
    response.widget_info(|| WidgetInfo::labeled(Role::Label, true, text));
    response
}

/// A small filled circle.
pub fn dot(ui: &mut Ui, tone: Tone) {
    let (rect, _) = ui.allocate_exact_size(vec2(10.0, 10.0), Sense::hover());
    ui.painter().circle_filled(rect.center(), 4.0, tone.color(ui));
}

/// What to do where there is nothing yet. True if its button was clicked.
pub fn empty_state(ui: &mut Ui, icon: &str, title: &str, text: &str, action: Option<&str>) -> bool {
    let mut clicked = false;
    ui.vertical_centered(|ui| {
        ui.add_space(space::XXL);
        ui.label(theme::icon(icon).size(40.0).color(colors(ui).text_faint));
        ui.add_space(space::XS);
        ui.label(theme::heading(title));
        ui.scope(|ui| {
            ui.set_max_width(440.0);
            ui.label(theme::weak(ui, text));
        });
        ui.add_space(space::S);
        if let Some(action) = action {
            clicked = Button::primary(action).clicked(ui);
        }
        ui.add_space(space::XXL);
    });
    clicked
}

/// A failure where it happened: what, what to do, and a button that copies both.
pub fn error_box(ui: &mut Ui, error: &ErrorInfo) {
    message_frame(ui, Tone::Error, |ui| {
        ui.horizontal_top(|ui| {
            ui.label(theme::icon(icons::WARNING_CIRCLE).color(Tone::Error.color(ui)));
            ui.with_layout(egui::Layout::right_to_left(egui::Align::Min), |ui| {
                if icon_button(ui, icons::COPY, "Copy the error").clicked() {
                    ui.ctx().copy_text(error_text(error));
                }
                ui.with_layout(egui::Layout::top_down(egui::Align::Min), |ui| {
                    ui.add(egui::Label::new(theme::strong(&error.message)).wrap());
                    if let Some(hint) = &error.hint {
                        ui.add(egui::Label::new(format!("Hint: {hint}")).wrap());
                    }
                    if let Some(details) = &error.details {
                        ui.collapsing("Details", |ui| {
                            ui.add(
                                egui::Label::new(RichText::new(details).monospace().size(size::SMALL)).wrap(),
                            );
                        });
                    }
                });
            });
        });
    });
}

fn error_text(error: &ErrorInfo) -> String {
    let mut text = format!("error: {}", error.message);
    for (name, part) in [("hint", &error.hint), ("details", &error.details)] {
        if let Some(part) = part {
            text.push('\n');
            text.push_str(name);
            text.push_str(": ");
            text.push_str(part);
        }
    }
    text
}

fn tone_icon(tone: Tone) -> &'static str {
    match tone {
        Tone::Neutral | Tone::Accent => icons::INFO,
        Tone::Success => icons::CHECK_CIRCLE,
        Tone::Warning => icons::WARNING,
        Tone::Error => icons::WARNING_CIRCLE,
    }
}

/// A remark with what can be done about it. True if its button was clicked.
pub fn offer(ui: &mut Ui, tone: Tone, text: &str, action: Button<'_>) -> bool {
    let mut clicked = false;
    message_frame(ui, tone, |ui| {
        ui.horizontal(|ui| {
            ui.label(theme::icon(tone_icon(tone)).color(tone.color(ui)));
            ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                clicked = action.clicked(ui);
                ui.with_layout(egui::Layout::left_to_right(egui::Align::Center), |ui| {
                    ui.add(egui::Label::new(text).wrap());
                });
            });
        });
    });
    clicked
}

/// A remark with several ways on below it.
pub fn choices(ui: &mut Ui, tone: Tone, text: &str, ways: impl FnOnce(&mut Ui)) {
    message_frame(ui, tone, |ui| {
        ui.horizontal_top(|ui| {
            ui.label(theme::icon(tone_icon(tone)).color(tone.color(ui)));
            ui.vertical(|ui| {
                ui.add(egui::Label::new(text).wrap());
                ui.add_space(space::S);
                ui.horizontal_wrapped(ways);
            });
        });
    });
}

/// A remark in a tone of its own.
pub fn notice(ui: &mut Ui, tone: Tone, text: &str) {
    let icon = tone_icon(tone);
    message_frame(ui, tone, |ui| {
        ui.horizontal_top(|ui| {
            ui.label(theme::icon(icon).color(tone.color(ui)));
            ui.add(egui::Label::new(text).wrap());
        });
    });
}

fn message_frame(ui: &mut Ui, tone: Tone, contents: impl FnOnce(&mut Ui)) {
    Frame::new()
        .fill(tone.soft(ui))
        .corner_radius(CornerRadius::same(RADIUS_SMALL + 2))
        .inner_margin(Margin::symmetric(12, 10))
        .show(ui, |ui| {
            ui.set_min_width(ui.available_width());
            contents(ui);
        });
}

/// How far a long thing is, in one line with a bar.
pub fn progress_line(ui: &mut Ui, progress: &Progress) {
    let Progress { what, done, total } = progress;
    if *total == 0 {
        return spinner_line(ui, what);
    }
    let fraction = *done as f32 / *total as f32;
    ui.horizontal(|ui| {
        ui.label(what);
        ui.label(theme::weak(ui, format!("{:.0} %", fraction * 100.0)));
    });
    ui.add(ProgressBar::new(fraction).desired_height(6.0).fill(colors(ui).accent));
}

/// Something is under way, and nobody knows how far.
pub fn spinner_line(ui: &mut Ui, what: &str) {
    ui.horizontal(|ui| {
        ui.add(egui::Spinner::new().size(16.0).color(colors(ui).accent));
        ui.label(theme::weak(ui, what));
    });
}
