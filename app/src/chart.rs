//! The loss curve as a PNG.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Once,
};

use lathe_ui::{LossPoint, RunView};
use plotters::{
    coord::Shift,
    prelude::*,
    style::{
        FontStyle, register_font,
        text_anchor::{HPos, Pos, VPos},
    },
};

use crate::output;

type Failure = Box<dyn std::error::Error>;
type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

const SIZE: (u32, u32) = (1280, 720);
const MARGIN: i32 = 56;
const FONT: &str = "Ubuntu";

const INK: RGBColor = RGBColor(0x1f, 0x24, 0x2c);
const FAINT_INK: RGBColor = RGBColor(0x6b, 0x74, 0x80);
const GRID: RGBColor = RGBColor(0xe8, 0xea, 0xee);
const AXIS: RGBColor = RGBColor(0xb9, 0xc0, 0xc9);
const PAPER: RGBColor = RGBColor(0xff, 0xff, 0xff);
const RAW: RGBColor = RGBColor(0xa9, 0xc7, 0xee);
const SMOOTHED: RGBColor = RGBColor(0x1d, 0x5f, 0xbf);
const HELD_OUT: RGBColor = RGBColor(0xd9, 0x57, 0x1c);

/// Writes `loss.png` into `folder`; nothing if there is no curve yet.
pub fn write(view: &RunView, folder: &Path) -> Result<Option<PathBuf>, Failure> {
    static FONTS: Once = Once::new();
    if view.losses.is_empty() {
        return Ok(None);
    }
    FONTS.call_once(|| {
        // Fails only for a broken font, and drawing then says so.
        drop(register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT));
    });
    let path = folder.join("loss.png");
    let aside = folder.join(format!(".loss.{}.png", std::process::id()));
    let drawn = draw(view, &aside).and_then(|()| Ok(std::fs::rename(&aside, &path)?));
    if drawn.is_err() {
        drop(std::fs::remove_file(&aside));
    }
    drawn.map(|()| Some(path))
}

fn draw(view: &RunView, path: &Path) -> Result<(), Failure> {
    let area = BitMapBackend::new(path, SIZE).into_drawing_area();
    area.fill(&PAPER)?;
    draw_titles(view, &area)?;
    draw_legend(view, &area)?;

    let (steps, losses) = ranges(view);
    let of_pairs = view.last.is_some_and(|last| last.preference.is_some());
    let plot = area.margin(116, 28, 30, MARGIN);
    let mut chart = ChartBuilder::on(&plot)
        .x_label_area_size(52)
        .y_label_area_size(72)
        .build_cartesian_2d(steps, losses)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(AXIS)
        .x_labels(10)
        .y_labels(7)
        .x_desc("optimizer step")
        .y_desc(if of_pairs { "loss (a pair)" } else { "loss (nats a token)" })
        .axis_desc_style(text(17, FAINT_INK))
        .label_style(text(17, FAINT_INK))
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|loss| format!("{loss:.2}"))
        .draw()?;
    let line =
        |value: fn(&LossPoint) -> f64| view.losses.iter().map(move |point| (point.step as f64, value(point)));
    chart.draw_series(LineSeries::new(line(|point| point.loss), RAW.stroke_width(2)))?;
    chart.draw_series(LineSeries::new(line(|point| point.smoothed), SMOOTHED.stroke_width(4)))?;
    if view.losses.len() == 1 {
        chart.draw_series(line(|point| point.loss).map(|at| Circle::new(at, 5, SMOOTHED.filled())))?;
    }
    let evals: Vec<(f64, f64)> = view.evals.iter().map(|eval| (eval.step as f64, eval.loss)).collect();
    if evals.len() > 1 {
        chart.draw_series(LineSeries::new(evals.iter().copied(), HELD_OUT.stroke_width(2)))?;
    }
    chart.draw_series(evals.iter().map(|at| Circle::new(*at, 8, PAPER.filled())))?;
    chart.draw_series(evals.iter().map(|at| Circle::new(*at, 6, HELD_OUT.filled())))?;
    area.present()?;
    Ok(())
}

/// Steps from 0 on; losses with a little air, and never so little that noise looks like a cliff.
fn ranges(view: &RunView) -> (Range<f64>, Range<f64>) {
    let raw = view.losses.iter().map(|point| point.loss);
    let values: Vec<f64> =
        raw.chain(view.evals.iter().map(|eval| eval.loss)).filter(|loss| loss.is_finite()).collect();
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
    let air = ((high - low) * 0.08).max(0.05);
    let last = view.losses.last().map_or(1, |point| point.step).max(view.total_steps).max(1);
    (0.0..last as f64 * 1.01, (low - air).max(0.0)..high + air)
}

fn draw_titles(view: &RunView, area: &Area<'_>) -> Result<(), Failure> {
    let title = view.name.as_deref().unwrap_or("Training");
    area.draw(&Text::new(title.to_owned(), (MARGIN, 30), text(34, INK)))?;
    let mut facts = vec![format!("{} of {} steps", view.step(), view.total_steps)];
    if let Some(smoothed) = view.smoothed_loss() {
        facts.push(format!("loss {smoothed:.3}"));
    }
    if let Some(eval) = view.evals.last() {
        facts.push(format!("held-out loss {:.3}", eval.loss));
        facts.push(match eval.preference {
            Some(preference) => output::preference(&preference),
            None => format!("perplexity {:.2}", eval.perplexity),
        });
    }
    area.draw(&Text::new(facts.join("   ·   "), (MARGIN, 74), text(20, FAINT_INK)))?;
    Ok(())
}

/// At the top right, from right to left.
fn draw_legend(view: &RunView, area: &Area<'_>) -> Result<(), Failure> {
    let mut entries = vec![("loss", RAW), ("smoothed", SMOOTHED)];
    if !view.evals.is_empty() {
        entries.push(("held-out", HELD_OUT));
    }
    let middle = 48;
    let mut right = SIZE.0 as i32 - 30;
    for (label, color) in entries.into_iter().rev() {
        let style = text(18, INK).pos(Pos::new(HPos::Right, VPos::Center));
        let (width, _) = area.estimate_text_size(label, &style)?;
        area.draw(&Text::new(label, (right, middle), style))?;
        right -= width as i32 + 12;
        if color == HELD_OUT {
            area.draw(&Circle::new((right - 8, middle), 6, color.filled()))?;
            right -= 40;
        } else {
            area.draw(&Rectangle::new([(right - 26, middle - 2), (right, middle + 1)], color.filled()))?;
            right -= 52;
        }
    }
    Ok(())
}

fn text(size: i32, color: RGBColor) -> TextStyle<'static> {
    (FONT, size).into_font().color(&color)
}

#[cfg(test)]
mod tests {
    use lathe_protocol::{EvalMetrics, EventBody, StepMetrics};

    use super::*;

    /// `LATHE_KEEP_CHART=DIR` keeps the picture, to look at.
    #[test]
    fn a_curve_becomes_a_png() {
        let mut view = RunView::default();
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(write(&view, dir.path()).unwrap(), None);
        view.apply(
            &EventBody::RunStarted { run: "r".into(), name: "starter-pirate".into(), out_dir: "/o".into() },
            0.0,
        );
        view.apply(
            &EventBody::TrainingStarted {
                total_steps: 200,
                first_step: 0,
                trainable_parameters: 1,
                total_parameters: 2,
                rows: 3,
                tokens_per_epoch: 4,
            },
            0.0,
        );
        for step in 1..=200usize {
            let noise = ((step * 7919) % 100) as f64 / 250.0;
            let loss = 0.6 + 3.0 * (-(step as f64) / 40.0).exp() + noise;
            view.apply(
                &EventBody::Step(StepMetrics {
                    step,
                    loss,
                    grad_norm: 1.0,
                    lr: 1e-3,
                    tokens_per_second: 1.0,
                    tokens: 1,
                    loss_tokens: 1,
                    epoch: 0.0,
                    memory_bytes: None,
                    preference: None,
                }),
                step as f64,
            );
            if step % 50 == 0 {
                let loss = loss + 0.1;
                let (perplexity, token_accuracy) = (loss.exp(), 0.5);
                view.apply(
                    &EventBody::Eval(EvalMetrics {
                        step,
                        loss,
                        perplexity,
                        token_accuracy,
                        loss_tokens: 1,
                        rows: 1,
                        preference: None,
                    }),
                    step as f64,
                );
            }
        }
        let path = write(&view, dir.path()).unwrap().unwrap();
        let png = std::fs::read(&path).unwrap();
        assert!(png.starts_with(b"\x89PNG") && png.len() > 10_000);
        if let Ok(keep) = std::env::var("LATHE_KEEP_CHART") {
            std::fs::copy(&path, Path::new(&keep).join("loss.png")).unwrap();
        }
    }
}
