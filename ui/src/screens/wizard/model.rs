use egui::{Align, Layout, Ui};
use lathe_protocol::{ModelEntry, ModelShape, catalog, in_catalog};

use super::{Wizard, files::Purpose};
use crate::{
    Outbox, Store, fit, format,
    theme::{self, Tone, icons, space},
    widgets::{
        Button, badge, card, clickable_card, error_box, icon_button, notice, progress_line, search,
        spinner_line,
    },
};

const LINE_HEIGHT: f32 = 20.0;

/// A line of the list, of a model that is here or of the catalog.
struct Line<'a> {
    name: &'a str,
    about: &'a str,
    parameters: Option<u64>,
    size_bytes: u64,
    license: Option<&'a str>,
    shape: Option<ModelShape>,
    problem: Option<&'a str>,
}

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
            });
        });
        self.importing(ui, out);
        if let Some(error) = &store.models.error {
            error_box(ui, error);
        }
        let here: Vec<Line<'_>> =
            store.models().iter().map(line_of_entry).filter(|line| self.is_found(line)).collect();
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
        let not_here = catalog().iter().filter(|model| store.model(&model.name).is_none());
        let not_here: Vec<Line<'_>> = not_here
            .map(|model| Line {
                name: &model.name,
                about: &model.good_for,
                parameters: Some(model.parameters),
                size_bytes: model.download_bytes,
                license: Some(&model.license),
                shape: Some(model.shape),
                problem: None,
            })
            .filter(|line| self.is_found(line))
            .collect();
        if not_here.is_empty() {
            return;
        }
        ui.add_space(space::S);
        ui.label(theme::heading("Not on this machine yet"));
        ui.label(theme::weak(
            ui,
            "This version does not download. Choose one to see how to get it; \
             what Python tools put into the Hugging Face cache shows up above by itself.",
        ));
        for line in &not_here {
            self.line(ui, line, store);
            if self.choices.model.as_deref() == Some(line.name) {
                how_to_get(ui, line.name);
            }
        }
    }

    fn is_found(&self, line: &Line<'_>) -> bool {
        line.name.to_lowercase().contains(&self.model_search.trim().to_lowercase())
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

    fn line(&mut self, ui: &mut Ui, line: &Line<'_>, store: &Store) {
        let Line { name, about, shape, problem, .. } = line;
        if let Some(problem) = problem {
            card(ui, |ui| {
                compact(ui);
                first_row(ui, name, Some((Tone::Error, "Cannot be used".into())));
                second_row(ui, line, problem);
            });
            return;
        }
        let selected = self.choices.model.as_deref() == Some(name);
        let fit = shape.and_then(|shape| {
            let (memory, fit) = fit::memory(&shape, &self.choices.config, self.longest_row(), store);
            fit.map(|fit| (fit.tone(), fit.words(memory.total())))
        });
        let response = clickable_card(ui, name, selected, |ui| {
            compact(ui);
            first_row(ui, name, fit);
            second_row(ui, line, about);
        });
        if response.clicked() {
            self.choices.model = Some((*name).to_owned());
        }
    }
}

fn line_of_entry(entry: &ModelEntry) -> Line<'_> {
    let ModelEntry { name, parameters, size_bytes, license, shape, problem, path, .. } = entry;
    let about = match in_catalog(name) {
        Some(model) => model.good_for.as_str(),
        None if name == "starter" => "Comes with Lathe; tiny, to try things out in a minute",
        None => path,
    };
    Line {
        name,
        about,
        parameters: *parameters,
        size_bytes: *size_bytes,
        license: license.as_deref(),
        shape: *shape,
        problem: problem.as_deref(),
    }
}

/// Lines of text, which no control makes higher.
fn compact(ui: &mut Ui) {
    ui.spacing_mut().item_spacing.y = space::XS;
    ui.spacing_mut().interact_size.y = LINE_HEIGHT;
}

fn first_row(ui: &mut Ui, name: &str, status: Option<(Tone, String)>) {
    ui.horizontal(|ui| {
        ui.label(theme::strong(format::file_name(name)));
        if let Some((owner, _)) = name.split_once('/') {
            ui.label(theme::small(ui, owner));
        }
        if let Some((tone, text)) = status {
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| badge(ui, tone, &text));
        }
    });
}

/// What it is good for on the left, facts on the right.
fn second_row(ui: &mut Ui, line: &Line<'_>, about: &str) {
    let Line { parameters, size_bytes, license, .. } = line;
    let facts = [
        parameters.map(|parameters| format!("{} parameters", format::short_count(parameters))),
        Some(format::bytes(*size_bytes)),
        license.map(str::to_owned),
    ];
    let facts = facts.into_iter().flatten().collect::<Vec<_>>().join("  ·  ");
    ui.horizontal(|ui| {
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            ui.label(theme::small(ui, facts));
            ui.with_layout(Layout::left_to_right(Align::Center), |ui| {
                ui.add(egui::Label::new(theme::weak(ui, about)).truncate());
            });
        });
    });
}

fn how_to_get(ui: &mut Ui, name: &str) {
    let command = format!("hf download {name}");
    notice(
        ui,
        Tone::Accent,
        &format!(
            "{name} is not on this machine. Get it with the command below, or import a folder or .gguf file of it."
        ),
    );
    ui.horizontal(|ui| {
        ui.label(egui::RichText::new(&command).monospace());
        if icon_button(ui, icons::COPY, "Copy the command").clicked() {
            ui.ctx().copy_text(command);
        }
    });
}
