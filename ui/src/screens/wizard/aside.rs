use egui::{Frame, Margin, Ui};
use lathe_protocol::in_catalog;

use super::{Step, Wizard, preset::Preset};
use crate::{
    Store, format,
    theme::{self, RADIUS, colors, icons, space},
};

impl Wizard {
    /// The choice at hand in plain words.
    pub(super) fn aside(&self, ui: &mut Ui, store: &Store) {
        Frame::new()
            .fill(colors(ui).panel)
            .corner_radius(RADIUS)
            .inner_margin(Margin::same(space::L as i8))
            .show(ui, |ui| {
                ui.set_min_width(ui.available_width());
                match self.step {
                    Step::Model => self.about_models(ui, store),
                    Step::Data => self.about_data(ui),
                    Step::Method => self.about_methods(ui),
                    Step::Review => self.about_starting(ui),
                }
            });
    }

    fn about_models(&self, ui: &mut Ui, store: &Store) {
        title(ui, "Which model?");
        text(
            ui,
            "Fine-tuning teaches a model that already speaks. Bigger ones know more and answer better; smaller ones train and answer faster, and fit more machines.",
        );
        text(ui, "Start small: if a small model learns your task halfway, a bigger one will learn it well.");
        if let Some(details) = &self.details.value {
            topic(ui, &format!("What follows from {}", format::file_name(&details.name)));
            for told in &details.consequences {
                ui.vertical(|ui| {
                    ui.spacing_mut().item_spacing.y = 1.0;
                    ui.label(&told.topic);
                    ui.label(theme::small(ui, &told.text));
                });
            }
        }
        topic(ui, "The badges");
        let memory = store.memory_bytes().map_or_else(|| "this machine’s memory".into(), format::gib);
        text(
            ui,
            &format!("They compare what a run takes with {memory}. Tight means: close other programs first."),
        );
        topic(ui, "Instruct or not");
        text(
            ui,
            "Instruct models already answer in turns, so that a few hundred rows are enough to change how.",
        );
        if let Some(model) = self.choices.model.as_deref().and_then(in_catalog) {
            topic(ui, &format!("Licence: {}", model.license));
            text(
                ui,
                if model.license == "apache-2.0" {
                    "Free for any use, also commercial, as long as the licence goes along."
                } else {
                    "Meta’s own: free for most, with rules on naming and on what it must not be used for. Read it before you pass a model on."
                },
            );
        }
    }

    fn about_data(&self, ui: &mut Ui) {
        title(ui, "What does it learn?");
        text(
            ui,
            "Coloured tokens are what the model learns to write. The rest it only reads, as it will when you ask it something.",
        );
        text(
            ui,
            "A few hundred good rows beat thousands of mixed ones. Write them as you want the answers to be.",
        );
        topic(ui, "Files it reads");
        for (shape, fields) in [
            ("Conversations", "messages"),
            ("ShareGPT", "conversations"),
            ("Alpaca", "instruction, output"),
            ("Prompt and completion", "prompt, completion"),
            ("Preference", "prompt, chosen, rejected"),
            ("Text", "text, or a .txt file"),
        ] {
            ui.vertical(|ui| {
                ui.spacing_mut().item_spacing.y = 1.0;
                ui.label(shape);
                ui.label(theme::small(ui, fields));
            });
        }
        if let Some(report) = self.report() {
            topic(ui, "How it is written");
            text(
                ui,
                &format!("By the {}. What is learned was found by {}.", report.template, report.mask_source),
            );
            topic(ui, "The cut");
            text(
                ui,
                "Rows longer than the cut lose their end. A higher cut takes more memory, so cut where few rows are longer.",
            );
        }
    }

    fn about_methods(&self, ui: &mut Ui) {
        title(ui, "How does it learn?");
        text(
            ui,
            "LoRA leaves the model as it is and learns a small adapter beside it: megabytes instead of gigabytes, and it can be switched off.",
        );
        let objective = self.choices.config.objective;
        if objective.takes_pairs() {
            topic(ui, "DPO");
            text(
                ui,
                "Raises the chosen answer over the rejected one, measured against the model as it was before. Beta holds it there: a higher one, closer.",
            );
            topic(ui, "ORPO");
            text(
                ui,
                "Learns to write the chosen answers as any training does, and pushes the rejected ones away beside it. Beta says how hard. It needs no reference.",
            );
            topic(ui, "Rewards");
            text(
                ui,
                "While it trains, the margin says how far apart the two answers are, and the accuracy how often the chosen one is ahead.",
            );
        }
        topic(ui, "Rank");
        text(
            ui,
            "How much the adapter can hold. A tone needs little, a new skill more. Alpha, twice the rank, keeps its strength the same.",
        );
        topic(ui, "Epochs");
        text(
            ui,
            "How often each row is seen. Once changes the tone, two or three times teach. More, and it learns by heart: watch the held-out loss.",
        );
        topic(ui, "Batch");
        let config = &self.choices.config;
        let rows = format::plural(config.batch_size * config.grad_accum, "row");
        let several = "with several, a single odd one does not lead the model astray";
        text(ui, &format!("A step learns from {rows} at once: {several}."));
        if !self.choices.config.styles.is_empty() {
            topic(ui, "Styles");
            text(
                ui,
                "Each is a token behind the question that asks for a way of answering. The rows say which by a field named style; in chat you choose.",
            );
        }
        if Preset::of(&self.choices.config).is_none() {
            topic(ui, "Custom");
            text(ui, "You changed something a preset sets. Choosing a preset sets it back.");
        }
    }

    fn about_starting(&self, ui: &mut Ui) {
        title(ui, "Ready?");
        text(ui, "Start begins at once and shows the run. Queue waits until its device is free.");
        text(
            ui,
            "A run can be stopped at any time and resumed later; checkpoints are kept. It goes on when you leave this page.",
        );
        if self.sweep.on {
            topic(ui, "Sweep");
            text(
                ui,
                "Runs that differ in one or two settings only. They wait in the queue, and the comparison shows which held-out loss is lowest.",
            );
        }
        topic(ui, "Afterwards");
        text(
            ui,
            "The adapter lies in your library: chat with it, compare it with the model as it was, or take its folder along.",
        );
        if self.choices.config.eval_ratio <= 0.0 && self.eval_data().is_none() {
            topic(ui, "No held-out rows");
            text(ui, "Without them nobody can tell whether the model learns the task or only your rows.");
        }
    }
}

fn title(ui: &mut Ui, text: &str) {
    ui.horizontal(|ui| {
        ui.label(theme::icon(icons::INFO).color(colors(ui).accent));
        ui.label(theme::heading(text));
    });
}

fn topic(ui: &mut Ui, text: &str) {
    ui.add_space(space::S);
    ui.label(theme::strong(text));
}

fn text(ui: &mut Ui, text: &str) {
    ui.label(theme::weak(ui, text));
}
