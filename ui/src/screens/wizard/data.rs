use egui::{Align, Layout, Ui};
use lathe_protocol::{DataReport, DatasetShape};

use super::{
    Wizard,
    files::Purpose,
    mapping::{self, mapping_form},
};
use crate::{
    Outbox, Store, config_keys, format,
    theme::{self, Tone, icons, space},
    widgets::{
        Button, card, empty_state, error_box, histogram, icon_button, key_value, notice, section, stat,
    },
};

const CUT_WIDTH: f32 = 96.0;

impl Wizard {
    pub(super) fn data_step(&mut self, ui: &mut Ui, store: &Store, out: &mut Outbox) {
        if self.choices.data.is_none() {
            let how = if store.connection.is_remote {
                "Choose a file of the machine that Lathe runs on"
            } else {
                "Drop a file onto the window, or choose one"
            };
            let text = format!(
                "{how}: .jsonl, .json, .csv, .tsv, .parquet, .txt or .md, also gzipped. To try things out, choose \
                 pirate.jsonl under “Sample data”."
            );
            let title = "What is the model to learn from?";
            card(ui, |ui| {
                if empty_state(ui, icons::FILE_TEXT, title, &text, Some("Browse…")) {
                    self.browse(Purpose::Data, out);
                }
            });
            return;
        }
        self.file_card(ui, out);
        if let Some(error) = self.preflight.error() {
            error_box(ui, error);
        }
        if let Some((columns, roles)) = self.preflight.unknown_shape() {
            let (columns, mut roles) = (columns.to_vec(), roles.to_vec());
            // What most files of their own make have.
            roles.sort_by_key(|role| !["prompt", "completion"].contains(&role.as_str()));
            section(ui, "What is what?", |ui| {
                let text = "The columns have names Lathe does not know. Say which one is taken for what; \
                            usually prompt and completion are enough.";
                ui.label(theme::weak(ui, text));
                ui.add_space(space::XS);
                let first_row =
                    columns.iter().map(|column| (column.name.as_str(), mapping::one_line(&column.example)));
                key_value(ui, "first row", first_row);
                ui.separator();
                mapping_form(ui, &columns, &roles, &mut self.choices.config.columns);
            });
        }
        let Some(report) = self.preflight.report().cloned() else { return };
        findings(ui, &report);
        section(ui, "As the model sees it", |ui| self.rows.ui(ui, report.rows));
        self.lengths(ui, &report);
        self.held_out(ui, out);
        self.mixture(ui, &report, out);
        self.similar_rows(ui, &report);
        if !report.columns.is_empty() {
            section(ui, "Columns", |ui| {
                mapping_form(ui, &report.columns, &report.roles, &mut self.choices.config.columns);
                let unused = report.columns.iter().filter(|column| column.role.is_none());
                let unused: Vec<_> = unused.map(|column| column.name.as_str()).collect();
                if !unused.is_empty() {
                    ui.label(theme::small(ui, format!("Not used: {}", unused.join(", "))));
                }
            });
        }
    }

    fn file_card(&mut self, ui: &mut Ui, out: &mut Outbox) {
        let path = self.choices.data.clone().unwrap_or_default();
        card(ui, |ui| {
            ui.horizontal(|ui| {
                ui.label(theme::icon(icons::FILE_TEXT).size(22.0).color(Tone::Accent.color(ui)));
                ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                    if Button::secondary("Browse…").icon(icons::FOLDER_OPEN).clicked(ui) {
                        self.browse(Purpose::Data, out);
                    }
                    if icon_button(ui, icons::ARROW_CLOCKWISE, "Check the data again").clicked() {
                        self.rows.forget(out);
                        self.preflight.again(out);
                    }
                    ui.with_layout(Layout::top_down(Align::Min), |ui| {
                        ui.spacing_mut().item_spacing.y = 0.0;
                        ui.add(egui::Label::new(theme::heading(format::file_name(&path))).truncate());
                        ui.add(egui::Label::new(theme::small(ui, &path)).truncate());
                    });
                });
            });
            if self.preflight.is_waiting() {
                self.preflight.waiting(ui);
            }
            let Some(report) = self.preflight.report() else { return };
            ui.add_space(space::XS);
            ui.horizontal_wrapped(|ui| {
                ui.spacing_mut().item_spacing.x = space::XL;
                let learned = 100.0 * report.loss_tokens as f64 / report.tokens.max(1) as f64;
                stat(ui, "Shape", shape_name(report.shape));
                stat(ui, "Rows", &format::count(report.rows as u64));
                stat(ui, "Tokens", &format::short_count(report.tokens));
                stat(ui, "Learned", &format!("{learned:.0} %"));
                stat(ui, "Steps an epoch", &format::count(report.steps_per_epoch as u64));
            });
        });
    }

    fn lengths(&mut self, ui: &mut Ui, report: &DataReport) {
        let DataReport { lengths, max_seq_len, truncated_rows, .. } = report;
        section(ui, "Lengths of the rows", |ui| {
            histogram(ui, "Lengths of the rows", &lengths.histogram, lengths.max, *max_seq_len);
            ui.horizontal_wrapped(|ui| {
                ui.spacing_mut().item_spacing.x = space::XL;
                stat(ui, "Half are up to", &format::plural(lengths.p50, "token"));
                stat(ui, "95 % are up to", &format::plural(lengths.p95, "token"));
                stat(ui, "Longest", &format::plural(report.longest_row_tokens(), "token"));
                stat(ui, "Cut rows", &format::count(*truncated_rows as u64));
                let nothing = report.rows_nothing_to_learn + report.rows_emptied_by_truncation;
                stat(ui, "Nothing to learn", &format::plural(nothing, "row"));
            });
            if let Some(key) = config_keys::config_key("max_seq_len") {
                ui.horizontal(|ui| {
                    ui.label("Cut rows after");
                    ui.scope(|ui| {
                        ui.set_max_width(CUT_WIDTH);
                        self.form.control(ui, &mut self.choices.config, key, "Cut rows after");
                    });
                    ui.label("tokens");
                });
                self.form.message(ui, key);
            }
        });
    }
}

/// What preflight has to say.
pub(super) fn findings(ui: &mut Ui, report: &DataReport) {
    if report.loss_tokens == 0 {
        notice(ui, Tone::Error, NOTHING_TO_LEARN);
    }
    for warning in &report.warnings {
        notice(ui, Tone::Warning, warning);
    }
    if report.issues.is_empty() {
        return;
    }
    let title = format!("{} to look at", format::plural(report.issues.len(), "row"));
    ui.collapsing(title, |ui| {
        for issue in &report.issues {
            ui.label(theme::weak(ui, format!("Row {}: {}", issue.place, issue.issue)));
        }
    });
}

pub(super) const NOTHING_TO_LEARN: &str = "There is nothing to learn: no token of the rows is one the model is to write. \
     Look at the preview and the columns, or cut the rows later.";

pub(super) fn shape_name(shape: DatasetShape) -> &'static str {
    match shape {
        DatasetShape::Messages => "Conversations",
        DatasetShape::ShareGpt => "ShareGPT",
        DatasetShape::Alpaca => "Alpaca",
        DatasetShape::PromptCompletion => "Prompt and completion",
        DatasetShape::Preference => "Preference",
        DatasetShape::Text => "Text",
    }
}
