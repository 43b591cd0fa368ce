use egui::{Align, DragValue, Grid, Layout, Ui};
use lathe_protocol::{DataFile, DataReport, SimilarPair};

use super::{Wizard, files::Purpose};
use crate::{
    Outbox, config_keys, format,
    theme::{self, icons, space},
    widgets::{Button, icon_button, section},
};

const MOST_WEIGHT: f64 = 100.0;

impl Wizard {
    /// The files that are mixed, with their weights.
    pub(super) fn mixture(&mut self, ui: &mut Ui, report: &DataReport, out: &mut Outbox) {
        section(ui, "Files", |ui| {
            let text = "An epoch sees each row of a file as often as its weight says: 2 is twice, 0.5 is half of the \
                        rows, another half each epoch.";
            ui.label(theme::weak(ui, text));
            let mut removed = None;
            if !self.choices.config.data.is_empty() {
                Grid::new("mixture").num_columns(4).spacing([space::L, space::S]).show(ui, |ui| {
                    for (index, file) in self.choices.config.data.iter_mut().enumerate() {
                        let name = format::file_name(&file.path).to_owned();
                        ui.label(theme::strong(&name));
                        let rows = report.files.iter().find(|report| report.path == file.path);
                        ui.label(rows.map_or_else(String::new, |file| format::plural(file.rows, "row")));
                        let weight = DragValue::new(&mut file.weight).range(0.01..=MOST_WEIGHT).speed(0.01);
                        let weight = ui.add(weight.prefix("weight "));
                        weight.widget_info(|| {
                            let name = format!("Weight of {name}");
                            egui::WidgetInfo::labeled(egui::Role::SpinButton, true, &name)
                        });
                        if index > 0 {
                            ui.with_layout(Layout::left_to_right(Align::Center), |ui| {
                                if icon_button(ui, icons::TRASH, &format!("Leave out {name}")).clicked() {
                                    removed = Some(index);
                                }
                            });
                        }
                        ui.end_row();
                    }
                });
            }
            let files = &mut self.choices.config.data;
            if let Some(index) = removed {
                files.remove(index);
                if *files == [DataFile::new(files[0].path.clone())] {
                    files.clear();
                }
            }
            if Button::secondary("Add a file…").icon(icons::PLUS).clicked(ui) {
                self.browse(Purpose::MoreData, out);
            }
        });
    }

    /// Rows that resemble others, and whether they stay.
    pub(super) fn similar_rows(&mut self, ui: &mut Ui, report: &DataReport) {
        let pairs: Vec<_> = [("an earlier one", &report.duplicates), ("a held-out one", &report.leaks)]
            .into_iter()
            .flat_map(|(what, similar)| similar.pairs.iter().map(move |pair| (what, pair)))
            .collect();
        if pairs.is_empty() {
            return;
        }
        section(ui, "Rows like others", |ui| {
            if let Some(key) = config_keys::config_key("dedupe") {
                ui.horizontal(|ui| {
                    ui.label("Leave out");
                    self.form.control(ui, &mut self.choices.config, key, "Leave out rows like others");
                });
            }
            for (what, SimilarPair { row, like, similarity }) in pairs {
                let percent = similarity * 100.0;
                let text = format!("Row {row} is like {what}, {like}: {percent:.0} % alike");
                ui.label(theme::weak(ui, text));
            }
        });
    }
}
