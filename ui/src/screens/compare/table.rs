use egui::{Label, RichText, ScrollArea, Ui};
use lathe_protocol::RunDetails;

use crate::{
    Outbox, Route,
    comparison::differences,
    format,
    smoothing::Smoother,
    theme::{self, colors, size, space},
    widgets::{link, run_badge, section},
};

const NAME_WIDTH: f32 = 170.0;
const MIN_WIDTH: f32 = 150.0;

/// How the runs ended, and the settings that differ: a column a run.
pub fn ui(ui: &mut Ui, runs: &[&RunDetails], smoothing: f64, out: &mut Outbox) {
    let differences = differences(runs);
    section(ui, "Results", |ui| {
        grid(ui, "results", runs.len(), |ui| {
            head(ui, runs, out);
            ui.label(theme::weak(ui, "Status"));
            for details in runs {
                run_badge(ui, details.run.status);
            }
            ui.end_row();
            for (name, value) in RESULTS {
                let values: Vec<_> = runs.iter().map(|details| value(details, smoothing)).collect();
                row(ui, name, &values);
            }
        });
    });
    section(ui, "Settings that differ", |ui| {
        if differences.is_empty() {
            ui.label(theme::weak(ui, "None: the runs have the same settings"));
            return;
        }
        grid(ui, "differences", runs.len(), |ui| {
            head(ui, runs, out);
            for difference in &differences {
                row(ui, &difference.key, &difference.values);
            }
        });
    });
}

type Result = (&'static str, fn(&RunDetails, f64) -> String);

const RESULTS: [Result; 6] = [
    ("Loss, smoothed", |details, smoothing| {
        let mut smoother = Smoother::default();
        let losses = details.steps.iter().map(|point| smoother.push(point.step.loss, smoothing));
        number(losses.last())
    }),
    ("Eval loss", |details, _| number(details.evals.last().map(|eval| eval.loss))),
    ("Lowest eval loss", |details, _| number(details.evals.iter().map(|eval| eval.loss).reduce(f64::min))),
    ("Steps", |details, _| {
        let run = &details.run;
        format!("{} of {}", format::count(run.step as u64), format::count(run.total_steps as u64))
    }),
    ("Tokens", |details, _| {
        format::short_count(details.steps.iter().map(|point| point.step.tokens as u64).sum())
    }),
    ("Tokens/s, mean", |details, _| {
        let speeds = details.steps.iter().map(|point| point.step.tokens_per_second);
        number((!details.steps.is_empty()).then(|| speeds.sum::<f64>() / details.steps.len() as f64))
    }),
];

fn number(value: Option<f64>) -> String {
    value.map_or("–".into(), format::number)
}

fn grid(ui: &mut Ui, id: &str, runs: usize, contents: impl FnOnce(&mut Ui)) {
    let room = ui.available_width() - NAME_WIDTH;
    let width = (room / runs as f32 - space::L).clamp(MIN_WIDTH, 320.0);
    ScrollArea::horizontal().id_salt(id).auto_shrink([false, true]).show(ui, |ui| {
        ui.spacing_mut().interact_size.y = size::HEADING;
        egui::Grid::new(id)
            .num_columns(runs + 1)
            .spacing([space::L, space::S])
            .min_col_width(width)
            .max_col_width(width)
            .show(ui, contents);
    });
}

fn head(ui: &mut Ui, runs: &[&RunDetails], out: &mut Outbox) {
    ui.label("");
    for (index, details) in runs.iter().enumerate() {
        ui.horizontal(|ui| {
            let (rect, _) = ui.allocate_exact_size(egui::vec2(12.0, 12.0), egui::Sense::hover());
            ui.painter().circle_filled(rect.center(), 4.5, colors(ui).series[index % 8]);
            if link(ui, &details.run.name).clicked() {
                out.go(Route::Run(details.run.id.clone()));
            }
        });
    }
    ui.end_row();
}

fn row(ui: &mut Ui, name: &str, values: &[String]) {
    ui.label(theme::weak(ui, name));
    for value in values {
        ui.add(Label::new(RichText::new(value)).truncate()).on_hover_text(value);
    }
    ui.end_row();
}
