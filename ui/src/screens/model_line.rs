use egui::{Align, Label, Layout, Ui};
use lathe_protocol::{CatalogModel, Gate, ModelShape};

use crate::{
    format,
    theme::{self, Tone, space},
    widgets::badge,
};

const LINE_HEIGHT: f32 = 20.0;

/// A model in two lines of a card, be it here, in the catalog, or on the Hub.
pub struct ModelLine<'a> {
    pub name: &'a str,
    pub about: &'a str,
    pub parameters: Option<u64>,
    /// 0 if unknown.
    pub size_bytes: u64,
    pub license: Option<&'a str>,
    pub shape: Option<ModelShape>,
    pub problem: Option<&'a str>,
}

impl<'a> ModelLine<'a> {
    pub fn of_catalog(model: &'a CatalogModel) -> Self {
        Self {
            name: &model.name,
            about: &model.good_for,
            parameters: Some(model.parameters),
            size_bytes: model.download_bytes,
            license: Some(&model.license),
            shape: Some(model.shape),
            problem: None,
        }
    }

    pub fn is_found(&self, wanted: &str) -> bool {
        self.name.to_lowercase().contains(&wanted.trim().to_lowercase())
    }

    /// Its name with words about it on the right; below, what it is good for and facts.
    pub fn ui(&self, ui: &mut Ui, badges: &[(Tone, &str)]) {
        // Lines of text, which no control makes higher.
        ui.spacing_mut().item_spacing.y = space::XS;
        ui.spacing_mut().interact_size.y = LINE_HEIGHT;
        ui.horizontal(|ui| {
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                for (tone, text) in badges {
                    badge(ui, *tone, text);
                }
                ui.with_layout(Layout::left_to_right(Align::Center), |ui| {
                    let (owner, name) = self.name.rsplit_once('/').unwrap_or(("", self.name));
                    ui.add(Label::new(theme::strong(name)).truncate());
                    ui.add(Label::new(theme::small(ui, owner)).truncate());
                });
            });
        });
        let Self { parameters, size_bytes, license, .. } = self;
        let facts = [
            parameters.map(|parameters| format!("{} parameters", format::short_count(parameters))),
            (*size_bytes > 0).then(|| format::bytes(*size_bytes)),
            license.map(str::to_owned),
        ];
        let facts = facts.into_iter().flatten().collect::<Vec<_>>().join("  ·  ");
        ui.horizontal(|ui| {
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                ui.label(theme::small(ui, facts));
                ui.with_layout(Layout::left_to_right(Align::Center), |ui| {
                    let about = theme::weak(ui, self.problem.unwrap_or(self.about));
                    ui.add(Label::new(about).truncate());
                });
            });
        });
    }
}

/// What the owner of a model asks for, if anything.
pub fn gate_badge(gate: Gate) -> Option<(Tone, &'static str)> {
    match gate {
        Gate::Open => None,
        Gate::Agree => Some((Tone::Warning, "Agree to its terms")),
        Gate::Ask => Some((Tone::Warning, "Ask for access")),
    }
}
