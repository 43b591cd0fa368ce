use egui::{Button, Label, Role, ScrollArea, Stroke, Ui, WidgetInfo, vec2};
use lathe_protocol::{RunDetails, SweepPlace};

use crate::{
    Outbox, Route,
    comparison::{self, Outcome},
    format,
    theme::{self, RADIUS_SMALL, colors, icons, space},
    widgets::{section, status_name},
};

const CELL_WIDTH: f32 = 116.0;
const CELL_HEIGHT: f32 = 44.0;

/// The eval losses, or losses, of a sweep over its values, the lower the deeper; nothing if the runs are not of one sweep.
pub fn ui(ui: &mut Ui, runs: &[&RunDetails], out: &mut Outbox) {
    let Some(name) = sweep_of(runs) else { return };
    let distinctions = comparison::distinctions(runs);
    let (Some(down), across) = (distinctions.first(), distinctions.get(1)) else { return };
    let outcomes: Vec<Outcome> = runs.iter().map(|details| Outcome::of(details)).collect();
    let has_evals = outcomes.iter().any(|outcome| outcome.eval_loss.is_some());
    let scores: Vec<Option<f64>> =
        outcomes.iter().map(|outcome| if has_evals { outcome.eval_loss } else { outcome.loss }).collect();
    let best = comparison::best(runs);
    let what = if has_evals { "Eval loss" } else { "Loss, smoothed," };
    section(ui, &format!("{what} over the sweep"), |ui| {
        if let Some(best) = best {
            ui.label(theme::weak(ui, format!("Lowest with {}", place(runs[best]).unwrap_or_default())));
        }
        ui.add_space(space::S);
        let columns = across.map_or(vec![String::new()], |key| distinct(&key.values));
        ScrollArea::horizontal().id_salt("heat").show(ui, |ui| {
            egui::Grid::new(("heat", name)).spacing([space::XS, space::XS]).show(ui, |ui| {
                let head = across.map_or_else(String::new, |key| format!("{}  \\  {}", down.key, key.key));
                ui.label(theme::small(ui, if across.is_some() { head } else { down.key.clone() }));
                for column in &columns {
                    ui.vertical_centered(|ui| ui.label(theme::strong(column)));
                }
                ui.end_row();
                for row in distinct(&down.values) {
                    ui.add(Label::new(theme::strong(&row)).extend());
                    for column in &columns {
                        let of_cell = |index: &usize| {
                            down.values[*index] == row
                                && across.is_none_or(|key| key.values[*index] == *column)
                        };
                        match (0..runs.len()).find(of_cell) {
                            Some(index) => {
                                let shade = shade(&scores, scores[index]);
                                cell(ui, runs[index], scores[index], shade, best == Some(index), out);
                            }
                            // Its run was removed.
                            None => drop(ui.allocate_space(vec2(CELL_WIDTH, CELL_HEIGHT))),
                        }
                    }
                    ui.end_row();
                }
            });
        });
    });
}

/// The name of the sweep that all the runs are of.
pub fn sweep_of<'a>(runs: &[&'a RunDetails]) -> Option<&'a str> {
    let name = |details: &&'a RunDetails| details.run.sweep.as_ref().map(|place| place.name.as_str());
    let first = name(runs.first()?)?;
    runs.iter().all(|details| name(details) == Some(first)).then_some(first)
}

fn place(details: &RunDetails) -> Option<String> {
    details.run.sweep.as_ref().map(SweepPlace::text)
}

fn distinct(values: &[String]) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    for value in values {
        if !seen.contains(value) {
            seen.push(value.clone());
        }
    }
    seen
}

/// 1 for the lowest score, 0 for the highest.
fn shade(scores: &[Option<f64>], score: Option<f64>) -> f32 {
    let known = || scores.iter().flatten().copied().filter(|score| score.is_finite());
    let (Some(low), Some(high), Some(score)) = (known().reduce(f64::min), known().reduce(f64::max), score)
    else {
        return 0.0;
    };
    if high > low { ((high - score) / (high - low)) as f32 } else { 1.0 }
}

fn cell(ui: &mut Ui, details: &RunDetails, score: Option<f64>, shade: f32, is_best: bool, out: &mut Outbox) {
    let run = &details.run;
    let number = score.map_or_else(|| status_name(run.status).to_owned(), format::number);
    let text = if is_best {
        theme::strong(format!("{} {number}", icons::SEAL_CHECK))
    } else {
        theme::strong(&number)
    };
    let palette = colors(ui);
    let fill = palette.card.lerp_to_gamma(palette.success, 0.05 + 0.4 * shade);
    let stroke = if is_best { Stroke::new(2.0, palette.success) } else { Stroke::new(1.0, palette.border) };
    let button = Button::new(text.color(palette.text))
        .fill(if score.is_some() { fill } else { palette.field })
        .stroke(stroke)
        .corner_radius(RADIUS_SMALL)
        .min_size(vec2(CELL_WIDTH, CELL_HEIGHT));
    let response = ui.add(button);
    let place = place(details).unwrap_or_default();
    let best = if is_best { ", the lowest" } else { "" };
    response.widget_info(|| WidgetInfo::labeled(Role::Button, true, format!("{place}: {number}{best}")));
    if response.on_hover_text(format!("{}\n{place}", run.name)).clicked() {
        out.go(Route::Run(run.id.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_is_deepest_and_what_is_no_number_has_no_shade() {
        let scores = [Some(1.0), Some(3.0), None, Some(2.0), Some(f64::INFINITY)];
        let of = |score| (shade(&scores, score) * 100.0).round() as i32;
        assert_eq!([of(scores[0]), of(scores[1]), of(None), of(scores[3])], [100, 0, 0, 50]);
    }
}
