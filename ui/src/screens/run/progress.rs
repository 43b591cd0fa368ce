use egui::{Align, Layout, Rect, Role, Sense, Ui, WidgetInfo, vec2};
use lathe_protocol::{RunEntry, RunStatus};

use crate::{
    RunView, format,
    theme::{self, Tone, colors, size, space},
    widgets::{spinner_line, stat, status_tone},
};

const BAR_HEIGHT: f32 = 8.0;

/// How far the run is, and the numbers that matter.
pub fn ui(ui: &mut Ui, run: &RunEntry, view: &RunView, loss: Option<f64>) {
    let is_running = run.status == RunStatus::Running;
    let (step, total) = (view.step().max(run.step), view.total_steps.max(run.total_steps));
    let fraction = if total == 0 { 0.0 } else { (step as f32 / total as f32).min(1.0) };
    if let Some(doing) = run.doing.as_deref().filter(|_| is_running) {
        spinner_line(ui, doing);
    } else {
        ui.horizontal(|ui| {
            ui.label(theme::strong(format!("Step {}", format::count(step as u64))).size(size::LARGE));
            ui.label(theme::weak(ui, format!("of {}", format::count(total as u64))));
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                let eta = view.eta_secs().filter(|_| is_running);
                if let Some(eta) = eta {
                    ui.label(theme::strong(format!("{} left", format::duration(eta))));
                    ui.label(theme::weak(ui, "·"));
                }
                ui.label(theme::weak(ui, format!("{:.0} %", fraction * 100.0)));
            });
        });
    }
    bar(ui, fraction, status_tone(run.status), &run.name, ui.available_width());
    if view.steps.is_empty() {
        return;
    }
    ui.add_space(space::S);
    let text = |value: Option<f64>| value.map_or("–".into(), format::number);
    let lowest = view.evals.iter().map(|eval| eval.loss).reduce(f64::min);
    let eval = view.evals.last();
    let accuracy = eval.map_or("–".into(), |eval| format!("{:.1} %", eval.token_accuracy * 100.0));
    let mut quality = vec![
        ("Loss, smoothed", text(loss)),
        ("Eval loss", text(eval.map(|eval| eval.loss).or(run.eval_loss))),
        ("Lowest eval loss", text(lowest)),
        ("Eval perplexity", text(eval.map(|eval| eval.perplexity))),
        ("Eval token accuracy", accuracy),
    ];
    let of_step = view.last.and_then(|last| last.preference);
    if let Some(preference) = eval.and_then(|eval| eval.preference).or(of_step) {
        quality.truncate(3);
        quality.push(("Reward margin", format::number(preference.margin)));
        quality.push(("Chosen preferred", format!("{:.1} %", preference.accuracy * 100.0)));
    }
    let mut pace = vec![
        ("Tokens/s", run.tokens_per_second.map_or("–".into(), |speed| format::count(speed.round() as u64))),
        ("Epoch", view.last.map_or("–".into(), |last| format!("{:.2}", last.epoch))),
        ("Training time", format::duration(view.trained_secs)),
    ];
    if let Some(bytes) = view.steps.iter().rev().find_map(|step| step.memory_bytes) {
        pace.push(("Memory", format::gib(bytes)));
    }
    let width = ui.available_width() / quality.len() as f32;
    for stats in [&quality, &pace] {
        ui.horizontal_top(|ui| {
            ui.spacing_mut().item_spacing.x = 0.0;
            for (name, value) in stats {
                ui.vertical(|ui| {
                    ui.set_width(width);
                    stat(ui, name, value);
                });
            }
        });
    }
}

/// How far a run is.
pub fn bar(ui: &mut Ui, fraction: f32, tone: Tone, name: &str, width: f32) {
    let (rect, response) = ui.allocate_exact_size(vec2(width, BAR_HEIGHT), Sense::hover());
    let radius = BAR_HEIGHT / 2.0;
    ui.painter().rect_filled(rect, radius, colors(ui).neutral_soft);
    if fraction > 0.0 {
        let filled =
            Rect::from_min_size(rect.min, vec2((rect.width() * fraction).max(BAR_HEIGHT), BAR_HEIGHT));
        ui.painter().rect_filled(filled, radius, tone.color(ui));
    }
    response.widget_info(|| {
        WidgetInfo::labeled(Role::ProgressIndicator, true, format!("{name}: {:.0} % done", fraction * 100.0))
    });
}
