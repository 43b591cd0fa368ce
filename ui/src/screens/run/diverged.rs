use egui::Ui;
use lathe_protocol::{Divergence, ResumeHow};

use crate::{
    format,
    theme::Tone,
    widgets::{Button, choices},
};

/// What the guard saw, with the ways to go on.
pub fn ui(ui: &mut Ui, divergence: &Divergence) -> Option<ResumeHow> {
    let step = format::count(divergence.step as u64);
    let mut text = format!(
        "Training diverged at step {step}: {}. The run was stopped, and goes on from {}.",
        divergence.what(),
        divergence.resumes_from_text()
    );
    if !divergence.rows.is_empty() {
        text =
            format!("{text}\nRows of that step, as the data file counts them: {}.", divergence.rows_text());
    }
    let mut wanted = None;
    choices(ui, Tone::Error, &text, |ui| {
        let mut way = |label: &str, tooltip: &str, how: ResumeHow| {
            if Button::secondary(label).tooltip(tooltip).clicked(ui) {
                wanted = Some(how);
            }
        };
        if !divergence.rows.is_empty() {
            let tooltip = "The run trains on all other rows, now and whenever it is resumed";
            way("Skip these rows and go on", tooltip, ResumeHow::SkipRows);
        }
        way("Lower the rate and go on", "Halves the learning rate", ResumeHow::LowerRate);
        if divergence.sign.is_spike() {
            let tooltip = "Spikes stop the run no more. A loss that is no number still does";
            way("Go on anyway", tooltip, ResumeHow::IgnoreSpikes);
        } else {
            let tooltip = "Tries the same step once more, on the same rows and at the same rate";
            way("Go on anyway", tooltip, ResumeHow::AsItWas);
        }
    });
    wanted
}
