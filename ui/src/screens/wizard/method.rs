use egui::Ui;
use lathe_protocol::RunConfig;

use super::{Choices, Wizard, preset::Preset};
use crate::{
    Store, format,
    theme::{self, Tone, icons, size, space},
    widgets::{Button, badge, card, clickable_card, columns, field, icon_button, offer, section},
};

const PRESET_WIDTH: f32 = 300.0;
const PRESET_HEIGHT: f32 = 84.0;
/// Samples of the model in training, at most.
const MOST_PROMPTS: usize = 4;
/// Not among the rows of any sample.
const SAMPLE_PROMPT: &str = "What is the capital of Italy?";

impl Wizard {
    pub(super) fn method_step(&mut self, ui: &mut Ui, store: &Store) {
        self.presets(ui);
        self.offer_sample_settings(ui);
        section(ui, "What it takes", |ui| {
            self.memory(ui, store);
            self.duration(ui, store);
        });
        self.prompts(ui);
        card(ui, |ui| self.form.advanced(ui, &mut self.choices.config));
    }

    fn presets(&mut self, ui: &mut Ui) {
        let current = Preset::of(&self.choices.config);
        ui.horizontal(|ui| {
            ui.set_min_height(24.0);
            let for_pairs = self.choices.config.objective.takes_pairs();
            ui.label(theme::heading(if for_pairs { "By which objective?" } else { "How thoroughly?" }));
            if current.is_none() {
                badge(ui, Tone::Accent, "Custom");
            }
        });
        let offered = Preset::offered(self.choices.config.objective.takes_pairs());
        columns(ui, &offered, PRESET_WIDTH, |ui, preset| {
            let Preset { name, r, alpha, epochs, good_for, .. } = preset;
            let response = clickable_card(ui, name, current.as_ref() == Some(preset), |ui| {
                ui.spacing_mut().item_spacing.y = space::XS;
                ui.set_min_height(PRESET_HEIGHT);
                ui.label(theme::heading(*name));
                ui.label(theme::small(ui, format!("Rank {r}, alpha {alpha}, {}", epochs_words(*epochs))));
                ui.add_space(space::XS);
                ui.label(*good_for);
            });
            if response.clicked() {
                preset.apply(&mut self.choices.config);
                self.form.forget_drafts();
            }
        });
    }

    /// The presets suit models of a useful size; the starter is a hundredth of one.
    fn offer_sample_settings(&mut self, ui: &mut Ui) {
        let Choices { model, data, config, .. } = &mut self.choices;
        let (settings, lesson) = match data.as_deref().map(format::file_name) {
            Some("pirate.jsonl") => (RunConfig::for_the_samples(), "to talk like a pirate"),
            Some("verbosity.jsonl") => (RunConfig::for_the_verbosity_sample(), "to tell terse from detailed"),
            Some("concise.jsonl") => (RunConfig::for_the_preference_sample(), "to prefer terse answers"),
            _ => return,
        };
        let settings = RunConfig {
            columns: config.columns.clone(),
            eval_ratio: config.eval_ratio,
            sample_prompts: vec![SAMPLE_PROMPT.into()],
            ..settings
        };
        if model.as_deref() != Some("starter") || settings == *config {
            return;
        }
        let text =
            format!("The starter model is so small that it needs a higher rate and more epochs {lesson}");
        if offer(ui, Tone::Accent, &text, Button::secondary("Use the sample's settings")) {
            *config = settings;
            self.form.forget_drafts();
        }
    }

    pub(super) fn duration(&self, ui: &mut Ui, store: &Store) {
        ui.add_space(space::S);
        ui.horizontal_wrapped(|ui| match self.run_time(store) {
            Some(expected) => {
                ui.label(
                    theme::strong(format!("About {}", format::duration(expected.secs))).size(size::HEADING),
                );
                ui.label(theme::weak(ui, format!("{}, {}", self.steps_words(), expected.why)));
            }
            None => drop(ui.label(theme::weak(ui, "The time is told once the data is checked"))),
        });
    }

    fn steps_words(&self) -> String {
        let Some(report) = self.report() else { return String::new() };
        let config = &self.choices.config;
        let steps = if config.max_steps > 0 {
            config.max_steps
        } else {
            (report.steps_per_epoch as f64 * config.epochs).ceil() as usize
        };
        format::plural(steps, "step")
    }

    fn prompts(&mut self, ui: &mut Ui) {
        section(ui, "Ask these while it trains", |ui| {
            ui.label(theme::weak(ui, "Answered at every checkpoint, so that you see the model change"));
            let prompts = &mut self.choices.config.sample_prompts;
            let mut removed = None;
            for (index, prompt) in prompts.iter_mut().enumerate() {
                ui.horizontal(|ui| {
                    ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                        if icon_button(ui, icons::X, &format!("Remove question {}", index + 1)).clicked() {
                            removed = Some(index);
                        }
                        let response = field(ui, prompt, "e.g. What is the capital of France?");
                        response.widget_info(|| {
                            egui::WidgetInfo::labeled(
                                egui::Role::TextInput,
                                true,
                                format!("Question {}", index + 1),
                            )
                        });
                    });
                });
            }
            if let Some(index) = removed {
                prompts.remove(index);
            }
            if prompts.len() < MOST_PROMPTS
                && Button::secondary("Add a question").icon(icons::PLUS).clicked(ui)
            {
                prompts.push(String::new());
            }
        });
    }
}

pub(super) fn epochs_words(epochs: f64) -> String {
    if (epochs - 1.0).abs() < f64::EPSILON { "1 epoch".into() } else { format!("{epochs} epochs") }
}
