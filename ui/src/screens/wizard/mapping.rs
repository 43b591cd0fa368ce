use std::collections::BTreeMap;

use egui::{Grid, Ui};
use lathe_protocol::ColumnView;

use crate::{
    theme::{self, space},
    widgets::choice,
};

const ROLE_WIDTH: f32 = 200.0;

/// Which column is taken for which role; what is chosen goes into `mapping` (role -> column).
pub(super) fn mapping_form(
    ui: &mut Ui,
    columns: &[ColumnView],
    roles: &[String],
    mapping: &mut BTreeMap<String, String>,
) {
    Grid::new("columns").num_columns(3).spacing([space::L, space::S]).min_col_width(96.0).show(ui, |ui| {
        for head in ["Role", "Column", "First row"] {
            ui.label(theme::small(ui, head));
        }
        ui.end_row();
        for role in roles {
            let detected = columns.iter().find(|column| column.role.as_ref() == Some(role));
            let taken = mapping.get(role).or(detected.map(|column| &column.name)).cloned();
            ui.vertical(|ui| {
                ui.set_width(ROLE_WIDTH);
                ui.spacing_mut().item_spacing.y = 0.0;
                ui.label(theme::strong(role));
                ui.label(theme::small(ui, meaning(role)));
            });
            let mut chosen = taken.clone().unwrap_or_default();
            let nothing = (String::new(), "Not there".to_owned());
            let named = columns.iter().map(|column| (column.name.clone(), column.name.clone()));
            let options: Vec<_> = std::iter::once(nothing).chain(named).collect();
            ui.scope(|ui| {
                ui.set_max_width(200.0);
                choice(ui, &format!("Column for {role}"), &mut chosen, &options);
            });
            let example =
                columns.iter().find(|column| column.name == chosen).map(|column| one_line(&column.example));
            ui.add(egui::Label::new(theme::weak(ui, example.unwrap_or_default())).truncate());
            ui.end_row();
            if chosen != taken.unwrap_or_default() {
                mapping.remove(role);
                // A column has one role.
                mapping.retain(|_, column| *column != chosen);
                let is_detected = detected.is_some_and(|column| column.name == chosen);
                if !chosen.is_empty() && !is_detected {
                    mapping.insert(role.clone(), chosen);
                }
            }
        }
    });
}

pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Of a role, in a few words.
fn meaning(role: &str) -> &'static str {
    match role {
        "messages" => "a conversation, role and content",
        "conversations" => "a conversation, from and value",
        "instruction" => "what is asked",
        "input" => "what it is asked about",
        "output" | "completion" => "the answer to learn",
        "prompt" => "what comes before the answer",
        "chosen" => "the better answer",
        "rejected" => "the worse answer",
        "system" => "the system prompt",
        "tools" => "functions to call",
        "reasoning_effort" => "how much to think",
        "style" => "the way of answering",
        "text" => "all of it is learned",
        _ => "",
    }
}
