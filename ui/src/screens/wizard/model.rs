use egui::{Align, Layout, Ui};
use lathe_protocol::{DownloadStatus, Gate, ModelEntry, catalog, in_catalog};

use super::{
    super::model_line::{ModelLine, gate_badge},
    Wizard,
    files::Purpose,
};
use crate::{
    Action, Outbox, Store, fit, format,
    theme::{self, Tone, icons, space},
    widgets::{Button, card, clickable_card, error_box, progress_line, search, spinner_line},
};

impl Wizard {
    pub(super) fn model_step(&mut self, ui: &mut Ui, store: &Store, out: &mut Outbox) {
        ui.horizontal(|ui| {
            search(ui, &mut self.model_search, "Find a model");
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                let import = Button::secondary("Import…").icon(icons::UPLOAD_SIMPLE);
                if import.tooltip("A model folder or a .gguf file; dropping one here works, too").clicked(ui)
                {
                    self.browse(Purpose::Import, out);
                }
                let hub = Button::secondary("Search the Hub…").icon(icons::MAGNIFYING_GLASS);
                if hub.tooltip("For models that are not listed here").clicked(ui) {
                    out.act(Action::SearchHub { query: self.model_search.trim().to_owned() });
                }
            });
        });
        self.importing(ui, out);
        if let Some(error) = &store.models.error {
            error_box(ui, error);
        }
        let here: Vec<ModelLine<'_>> = store
            .models()
            .iter()
            .map(line_of_entry)
            .filter(|line| line.is_found(&self.model_search))
            .collect();
        ui.label(theme::heading("On this machine"));
        if store.models.value.is_none() && store.models.is_waiting() {
            spinner_line(ui, "Looking for models");
        } else if here.is_empty() {
            ui.label(theme::weak(
                ui,
                if store.models().is_empty() { "No model yet" } else { "None of that name" },
            ));
        }
        for line in &here {
            self.line(ui, line, store);
        }
        let not_here: Vec<ModelLine<'_>> = catalog()
            .iter()
            .filter(|model| store.model(&model.name).is_none())
            .map(ModelLine::of_catalog)
            .filter(|line| line.is_found(&self.model_search))
            .collect();
        if !not_here.is_empty() {
            ui.add_space(space::S);
            ui.label(theme::heading("Not on this machine yet"));
        }
        for line in &not_here {
            self.line(ui, line, store);
            if self.choices.model.as_deref() == Some(line.name) {
                self.download(ui, line, store, out);
            }
        }
    }

    /// How the chosen model comes here.
    fn download(&mut self, ui: &mut Ui, line: &ModelLine<'_>, store: &Store, out: &mut Outbox) {
        let Self { fetching, .. } = self;
        card(ui, |ui| {
            if let Some(download) =
                store.download(line.name).filter(|download| download.status != DownloadStatus::Done)
            {
                fetching.ui(ui, download, false, store, out);
                return;
            }
            ui.horizontal(|ui| {
                let text = format!("Download {}", format::bytes(line.size_bytes));
                let button = Button::primary(&text).icon(icons::DOWNLOAD_SIMPLE);
                if button.enabled(!fetching.is_busy(line.name)).clicked(ui) {
                    fetching.start(line.name, None, out);
                }
                if Button::ghost("Details…").clicked(ui) {
                    out.act(Action::GetModel { model: line.name.to_owned() });
                }
                let text = "You can go on as soon as it is here";
                ui.add(egui::Label::new(theme::weak(ui, text)).truncate());
            });
            fetching.refusal(ui, line.name, store, out);
        });
    }

    fn importing(&mut self, ui: &mut Ui, out: &mut Outbox) {
        if let Some(error) = &self.import.error {
            error_box(ui, error);
        }
        if !self.import.is_waiting() {
            return;
        }
        card(ui, |ui| {
            ui.horizontal(|ui| {
                ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                    if Button::secondary("Cancel").clicked(ui) {
                        self.import.stop(out);
                    }
                    ui.vertical(|ui| match &self.import.progress {
                        Some(progress) => progress_line(ui, progress),
                        None => spinner_line(ui, "Importing the model"),
                    });
                });
            });
        });
    }

    fn line(&mut self, ui: &mut Ui, line: &ModelLine<'_>, store: &Store) {
        let ModelLine { name, shape, .. } = line;
        if line.problem.is_some() {
            card(ui, |ui| line.ui(ui, &[(Tone::Error, "Cannot be used")]));
            return;
        }
        let selected = self.choices.model.as_deref() == Some(name);
        let fit = shape.and_then(|shape| {
            let (memory, fit) = fit::memory(&shape, &self.choices.config, self.longest_row(), store);
            fit.map(|fit| (fit.tone(), fit.words(memory.total())))
        });
        let gate =
            in_catalog(name).filter(|_| store.model(name).is_none()).map_or(Gate::Open, |known| known.gate);
        let fit = fit.as_ref().map(|(tone, words)| (*tone, words.as_str()));
        let badges: Vec<_> = fit.into_iter().chain(gate_badge(gate)).collect();
        if clickable_card(ui, name, selected, |ui| line.ui(ui, &badges)).clicked() {
            self.choices.model = Some((*name).to_owned());
        }
    }
}

fn line_of_entry(entry: &ModelEntry) -> ModelLine<'_> {
    let ModelEntry { name, parameters, size_bytes, license, shape, problem, path, .. } = entry;
    let about = match in_catalog(name) {
        Some(model) => model.good_for.as_str(),
        None if name == "starter" => "Comes with Lathe; tiny, to try things out in a minute",
        None => path,
    };
    ModelLine {
        name,
        about,
        parameters: *parameters,
        size_bytes: *size_bytes,
        license: license.as_deref(),
        shape: *shape,
        problem: problem.as_deref(),
    }
}
