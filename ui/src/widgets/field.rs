use egui::{Response, Role, Sense, Stroke, TextEdit, Ui, WidgetInfo, WidgetText, vec2};

use crate::theme::{self, CONTROL_HEIGHT, RADIUS_SMALL, colors, icons, space};

/// A control under its label, with a line of help below. The label is the control's accessible name.
pub fn labelled(ui: &mut Ui, label: &str, help: &str, control: impl FnOnce(&mut Ui) -> Response) -> Response {
    ui.vertical(|ui| {
        ui.spacing_mut().item_spacing.y = space::XS;
        let label = ui.label(theme::strong(label).size(theme::size::BODY));
        let response = control(ui).labelled_by(label.id);
        if !help.is_empty() {
            ui.label(theme::small(ui, help));
        }
        response
    })
    .inner
}

/// A text field as wide as there is room, of the height of a button.
pub fn field(ui: &mut Ui, text: &mut String, hint: &str) -> Response {
    ui.add(
        TextEdit::singleline(text)
            .hint_text(hint)
            .desired_width(f32::INFINITY)
            .margin(vec2(space::S + 2.0, 7.0))
            .min_size(vec2(0.0, CONTROL_HEIGHT)),
    )
}

/// A field that filters a list.
pub fn search(ui: &mut Ui, text: &mut String, name: &str) -> Response {
    search_of_width(ui, text, name, 220.0)
}

/// A field that looks for something, as wide as there is room.
pub fn wide_search(ui: &mut Ui, text: &mut String, name: &str) -> Response {
    search_of_width(ui, text, name, f32::INFINITY)
}

fn search_of_width(ui: &mut Ui, text: &mut String, name: &str, width: f32) -> Response {
    let response = ui.add(
        TextEdit::singleline(text)
            .hint_text(name)
            .prefix(theme::icon(icons::MAGNIFYING_GLASS).color(colors(ui).text_faint))
            .desired_width(width)
            .margin(vec2(space::S + 2.0, 7.0)),
    );
    response.on_hover_text(name)
}

/// One of a few values, from a list that opens.
pub fn choice<T: PartialEq + Clone>(
    ui: &mut Ui,
    name: &str,
    value: &mut T,
    options: &[(T, impl AsRef<str>)],
) -> Response {
    let shown =
        options.iter().find(|(option, _)| option == value).map_or("Choose…", |(_, text)| text.as_ref());
    let mut changed = false;
    let mut response = egui::ComboBox::from_id_salt(name)
        .selected_text(shown)
        .width(ui.available_width().min(280.0))
        .truncate()
        .show_ui(ui, |ui| {
            for (option, text) in options {
                changed |= ui.selectable_value(value, option.clone(), text.as_ref()).changed();
            }
        })
        .response;
    response.widget_info(|| WidgetInfo::labeled(Role::ComboBox, true, name));
    if changed {
        response.mark_changed();
    }
    response
}

/// One of a few values, all in sight.
pub fn segmented<T: PartialEq + Clone>(ui: &mut Ui, value: &mut T, options: &[(T, &str)]) -> Response {
    let colors = colors(ui);
    let mut changed = false;
    let mut response = egui::Frame::new()
        .fill(colors.neutral_soft)
        .corner_radius(RADIUS_SMALL + 2)
        .inner_margin(3)
        .show(ui, |ui| {
            ui.horizontal(|ui| {
                ui.spacing_mut().item_spacing.x = 2.0;
                for (option, text) in options {
                    let selected = option == value;
                    let text = WidgetText::from(if selected { theme::strong(*text) } else { (*text).into() });
                    let button = egui::Button::new(text)
                        .fill(if selected { colors.card } else { egui::Color32::TRANSPARENT })
                        .stroke(if selected { Stroke::new(1.0, colors.border_strong) } else { Stroke::NONE })
                        .min_size(vec2(0.0, CONTROL_HEIGHT - 6.0));
                    if ui.add(button).clicked() && !selected {
                        *value = option.clone();
                        changed = true;
                    }
                }
            });
        })
        .response;
    if changed {
        response.mark_changed();
    }
    response
}

/// On or off; `name` stands beside it.
pub fn switch(ui: &mut Ui, on: &mut bool, name: &str) -> Response {
    let size = vec2(36.0, 20.0);
    ui.horizontal(|ui| {
        let (rect, mut response) = ui.allocate_exact_size(size, Sense::click());
        if response.clicked() {
            *on = !*on;
            response.mark_changed();
        }
        response.widget_info(|| WidgetInfo::selected(Role::Switch, ui.is_enabled(), *on, name));
        if ui.is_rect_visible(rect) {
            let colors = colors(ui);
            let how_on = ui.ctx().animate_bool_responsive(response.id, *on);
            let (ground, knob) =
                if *on { (colors.accent, colors.on_accent) } else { (colors.border_strong, colors.card) };
            ui.painter().rect_filled(rect, rect.height() / 2.0, ground);
            let x = egui::lerp(rect.left() + 10.0..=rect.right() - 10.0, how_on);
            ui.painter().circle_filled(egui::pos2(x, rect.center().y), 7.0, knob);
            if response.has_focus() {
                let stroke = Stroke::new(2.0, colors.accent);
                ui.painter().rect_stroke(rect.expand(2.0), 12.0, stroke, egui::StrokeKind::Outside);
            }
        }
        if !name.is_empty() {
            let label = ui.add(egui::Label::new(name).sense(Sense::click()));
            if label.clicked() {
                *on = !*on;
                response.mark_changed();
            }
        }
        response
    })
    .inner
}
