use egui::{Align2, Area, Frame, Id, Margin, Order, Stroke, Ui};

use lathe_protocol::DataFile;

use super::{Step, Wizard};
use crate::{
    Accept, Outbox, Pick, Picker, Store,
    theme::{self, RADIUS, colors, icons, space},
};

/// What a file is chosen for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Import,
    Data,
    /// One more file to learn from.
    MoreData,
    EvalData,
}

impl Wizard {
    pub(super) fn browse(&mut self, purpose: Purpose, out: &mut Outbox) {
        let (title, accept) = match purpose {
            Purpose::Import => ("Import a model", Accept::MODEL),
            Purpose::Data => ("Choose the data", Accept::DATA),
            Purpose::MoreData => ("Choose one more file", Accept::DATA),
            Purpose::EvalData => ("Choose the held-out rows", Accept::DATA),
        };
        let near = match purpose {
            Purpose::Import => None,
            Purpose::Data | Purpose::MoreData => self.choices.data.as_ref(),
            Purpose::EvalData => self.choices.eval_data.as_ref().or(self.choices.data.as_ref()),
        };
        let folder = near.and_then(|path| path.rsplit_once(['/', '\\'])).map(|(folder, _)| folder.to_owned());
        self.picker = Some((purpose, Picker::open(title, accept, folder, out)));
    }

    pub(super) fn pick_files(&mut self, ui: &mut Ui, out: &mut Outbox) {
        let Some((purpose, picker)) = &mut self.picker else { return };
        let purpose = *purpose;
        let Some(pick) = picker.ui(ui, out) else { return };
        self.picker = None;
        if let Pick::Path(path) = pick {
            match purpose {
                Purpose::Import => self.import(path, out),
                Purpose::Data => self.set_data(path),
                Purpose::MoreData => self.add_data(path),
                Purpose::EvalData => self.choices.eval_data = Some(path),
            }
        }
    }

    pub(super) fn set_data(&mut self, path: String) {
        if self.choices.data.as_ref() != Some(&path) {
            // Columns of another file are others.
            self.choices.config.columns.clear();
            if let Some(first) = self.choices.config.data.first_mut() {
                *first = DataFile { weight: first.weight, ..DataFile::new(&path) };
            }
            self.choices.data = Some(path);
        }
    }

    /// Mixes a file into the data, if it is not there yet.
    fn add_data(&mut self, path: String) {
        let Some(first) = self.choices.data.clone() else { return self.set_data(path) };
        let files = &mut self.choices.config.data;
        if files.is_empty() {
            files.push(DataFile::new(first));
        }
        if files.iter().all(|file| file.path != path) {
            files.push(DataFile::new(path));
        }
    }

    pub(super) fn take_dropped_files(&mut self, ui: &Ui, store: &Store, out: &mut Outbox) {
        let dropped = ui.input(|input| input.raw.dropped_files.clone());
        let paths = dropped.iter().map(|file| file.path()).filter(|path| path.is_absolute());
        self.take_files(paths.map(|path| path.display().to_string()), store, out);
    }

    /// A folder or `.gguf` file is imported; any other file is the data.
    pub fn take_files(&mut self, paths: impl Iterator<Item = String>, store: &Store, out: &mut Outbox) {
        for path in paths {
            if Accept::DATA.takes_file(&path) {
                self.set_data(path);
                if self.step == Step::Model && self.locked(Step::Data, store).is_none() {
                    self.go_to(Step::Data);
                }
            } else {
                // What is neither a folder nor a model, the host finds out and says.
                self.go_to(Step::Model);
                self.import(path, out);
            }
        }
    }
}

/// While files hover over the window.
pub(super) fn drop_overlay(ui: &Ui) {
    if ui.input(|input| input.raw.hovered_files.is_empty()) {
        return;
    }
    let colors = colors(ui);
    let area = Area::new(Id::unique("wizard_drop")).order(Order::Foreground).interactable(false);
    area.anchor(Align2::CENTER_CENTER, [0.0, 0.0]).show(ui.ctx(), |ui| {
        Frame::new()
            .fill(colors.accent_soft)
            .stroke(Stroke::new(2.0, colors.accent))
            .corner_radius(RADIUS)
            .inner_margin(Margin::same(space::XL as i8))
            .show(ui, |ui| {
                ui.vertical_centered(|ui| {
                    ui.label(theme::icon(icons::UPLOAD_SIMPLE).size(32.0).color(colors.accent));
                    ui.label(theme::heading("Drop a model or data"));
                    ui.label("A folder or .gguf file is imported, any other file is the data");
                });
            });
    });
}
