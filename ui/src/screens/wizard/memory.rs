//! What memory the run takes: predicted, and on the last page measured.

use egui::Ui;
use lathe_protocol::{CommandBody, Event, EventBody, Placement, ProbeReport, Remedy, RunConfig};

use super::Wizard;
use crate::{
    Asked, Outbox, Store,
    fit::{self, Fit},
    format,
    theme::{self, Tone, icons, size, space},
    widgets::{Button, Part, badge, error_box, notice, offer, progress_line, spinner_line, stacked_bar},
};

/// Of a line of text beside a badge.
const LINE_HEIGHT: f32 = 22.0;

/// What is measured.
#[derive(Debug, Clone, PartialEq)]
struct Question {
    model: String,
    config: RunConfig,
    longest_row: Option<usize>,
}

/// One step of the run as it is configured, done to see what it takes.
#[derive(Default)]
pub(super) struct Measurement {
    of: Option<Question>,
    answer: Asked<ProbeReport>,
}

impl Measurement {
    pub(super) fn apply(&mut self, event: &Event) {
        self.answer.apply(event, |body| match body {
            EventBody::Probe(report) => Some(*report),
            _ => None,
        });
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.answer.is_waiting()
    }

    fn cancel(&mut self, out: &mut Outbox) {
        self.of = None;
        self.answer.clear(out);
    }
}

impl Wizard {
    /// The bar, and if the run does not fit, what would make it.
    pub(super) fn memory(&mut self, ui: &mut Ui, store: &Store) {
        let config = &self.choices.config;
        let shape = self.choices.model.as_ref().and_then(|model| fit::shape_of(model, store));
        let Some(shape) = shape else {
            ui.label(theme::weak(ui, "The model does not tell its sizes, so its memory cannot be predicted"));
            return;
        };
        let longest_row = self.longest_row();
        let (estimate, fit) = fit::memory(&shape, config, longest_row, store);
        let parts = estimate.parts().map(|(name, bytes)| Part { name, bytes });
        let capacity = store.memory_bytes().unwrap_or_default();
        ui.spacing_mut().interact_size.y = LINE_HEIGHT;
        ui.horizontal(|ui| {
            ui.label(theme::strong(format::gib(estimate.total())).size(size::HEADING));
            ui.label(theme::weak(ui, format!("of {} memory", format::gib(capacity))));
            if let Some(fit) = fit {
                ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                    badge(ui, fit.tone(), fit.word());
                });
            }
        });
        stacked_bar(ui, "Memory", &parts, capacity);
        if matches!(fit, Some(Fit::TooBig(_))) {
            let row = longest_row.unwrap_or(config.max_seq_len);
            let remedy = Remedy::find(&shape, config, row, Placement::Cpu, Fit::budget(capacity));
            let text = format!("It will likely run out of memory. {}", Remedy::sentence(remedy));
            match remedy {
                None => notice(ui, Tone::Warning, &text),
                Some(remedy) => {
                    let set = format!("Set {}", remedy.settings());
                    if offer(ui, Tone::Warning, &text, Button::secondary(&set)) {
                        remedy.apply(&mut self.choices.config);
                        self.form.forget_drafts();
                    }
                }
            }
        }
    }

    /// A button, the measurement on its way, or what came of it.
    pub(super) fn measurement(&mut self, ui: &mut Ui, out: &mut Outbox) {
        let question = self.choices.model.clone().map(|model| Question {
            model,
            config: self.choices.config.clone(),
            longest_row: self.longest_row(),
        });
        // What was measured is another run by now.
        if self.measurement.of.is_some() && self.measurement.of != question {
            self.measurement.cancel(out);
        }
        if self.measurement.is_waiting() {
            ui.horizontal(|ui| {
                ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                    if Button::secondary("Cancel measuring").icon(icons::X).clicked(ui) {
                        self.measurement.cancel(out);
                    }
                    ui.with_layout(egui::Layout::left_to_right(egui::Align::Center), |ui| {
                        match &self.measurement.answer.progress {
                            Some(progress) => progress_line(ui, progress),
                            None => spinner_line(ui, "Starting a worker"),
                        }
                    });
                });
            });
            return;
        }
        if let Some(error) = &self.measurement.answer.error {
            error_box(ui, error);
        }
        if let Some(report) = &self.measurement.answer.value {
            measured(ui, report);
        }
        ui.horizontal(|ui| {
            let button = Button::secondary("Measure it").icon(icons::GAUGE);
            let help = "Does one step on rows as long as the longest, and looks at the memory it takes";
            if button.tooltip(help).clicked(ui)
                && let Some(question) = question
            {
                let Question { model, config, longest_row } = question.clone();
                let device = self.choices.device.clone();
                let command = CommandBody::Probe { model, config, longest_row, device };
                self.measurement.answer.ask(out, command);
                self.measurement.of = Some(question);
            }
            if self.measurement.answer.value.is_none() {
                ui.label(theme::small(ui, "The prediction, put to the test with one step"));
            }
        });
    }
}

/// Predicted beside measured.
fn measured(ui: &mut Ui, report: &ProbeReport) {
    egui::Grid::new("measured").num_columns(3).spacing([space::XL, space::XS]).min_row_height(20.0).show(
        ui,
        |ui| {
            for title in ["One step", "Predicted", "Measured"] {
                ui.label(theme::small(ui, title));
            }
            ui.end_row();
            for phase in report.phases() {
                ui.label(theme::weak(ui, phase.name));
                ui.label(format::gib(phase.predicted));
                ui.label(format::gib(phase.measured));
                ui.end_row();
            }
            ui.label(theme::strong("In all"));
            ui.label(theme::strong(format::gib(report.predicted.total())));
            ui.label(theme::strong(format::gib(report.measured.peak)));
            ui.end_row();
        },
    );
    ui.label(report.verdict());
}
