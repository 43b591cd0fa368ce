use egui::{Align, Frame, Layout, Margin, Panel, Ui};
use lathe_protocol::Connection;

use crate::theme::{self, Tone, colors, icons, space};

/// A thin line above everything while the way to the host is cut.
pub(super) fn banner(ui: &mut Ui, connection: &Connection) {
    let Some(trouble) = &connection.trouble else { return };
    Panel::top("connection")
        .resizable(false)
        .show_separator_line(false)
        .frame(Frame::new().fill(colors(ui).warning_soft).inner_margin(Margin::symmetric(14, 6)))
        .show(ui, |ui| {
            ui.with_layout(Layout::left_to_right(Align::Center), |ui| {
                ui.spacing_mut().item_spacing.x = space::S;
                ui.spacing_mut().interact_size.y = 20.0;
                ui.label(theme::icon(icons::WARNING_CIRCLE).color(Tone::Warning.color(ui)));
                ui.label(trouble);
            });
        });
}
