use egui::{Slider, Ui, WidgetInfo, style::HandleShape};
use lathe_protocol::{EvalMetrics, StepMetrics};

use crate::{
    RunView, format,
    smoothing::{self, MAX_SMOOTHING, Smoother},
    theme::{self, icons, size, space},
    widgets::{
        Button, card,
        chart::{Chart, ChartLink, Look, Series},
        icon_button,
    },
};

const RAW: usize = 0;
const SMOOTHED: usize = 1;
const EVAL: usize = 2;
/// Narrower, the small charts stand below each other.
const MIN_CHART_WIDTH: f32 = 420.0;
/// While a run goes on, x ends a little beyond its newest step, and moves on in leaps of this factor: between them only
/// what is new is drawn anew.
const LEAP: f64 = 1.08;
const LOSS_HEIGHT: f32 = 240.0;
const MIB: f64 = (1u64 << 20) as f64;

/// A chart of a noisy number: every step faintly, and a smoothed line over it.
struct Noisy {
    chart: Chart,
    smoother: Smoother,
}

impl Noisy {
    fn new(title: &'static str, color: usize, value: fn(f64) -> String) -> Self {
        let series =
            vec![Series::new("Every step", color, Look::Faint), Series::new("Smoothed", color, Look::Line)];
        let chart = Chart { series, lead: Some(SMOOTHED), ..Chart::single(title, color, value) };
        Self { chart, smoother: Smoother::default() }
    }

    fn push(&mut self, x: f64, y: f64, smoothing: f64) {
        self.chart.series[RAW].push(x, y);
        self.chart.series[SMOOTHED].push(x, self.smoother.push(y, smoothing));
    }

    fn smooth(&mut self, smoothing: f64) {
        self.smoother = Smoother::default();
        let [raw, smoothed, ..] = self.chart.series.as_mut_slice() else { return };
        smoothed.clear();
        for (x, y) in raw.points() {
            smoothed.push(x, self.smoother.push(y, smoothing));
        }
    }
}

/// A run's curves.
pub struct RunCharts {
    link: ChartLink,
    loss: Noisy,
    rate: Chart,
    norm: Noisy,
    speed: Noisy,
    memory: Chart,
    /// Of pairs.
    margin: Noisy,
    accuracy: Noisy,
    smoothing: f64,
}

impl RunCharts {
    pub fn new(view: &RunView) -> Self {
        let mut loss = Noisy::new("Loss", 0, format::number);
        (loss.chart.height, loss.chart.has_legend) = (LOSS_HEIGHT, true);
        loss.chart.series.push(Series::new("Eval loss", 1, Look::Marked));
        let mut charts = Self {
            link: ChartLink::new("Step"),
            loss,
            rate: Chart::single("Learning rate", 2, format::number),
            norm: Noisy::new("Gradient norm", 4, format::number),
            speed: Noisy::new("Tokens/s", 5, |speed| format::count(speed.max(0.0).round() as u64)),
            memory: Chart::single("Memory, MiB", 7, |mib| format::count(mib.max(0.0).round() as u64)),
            margin: of_pairs("Reward margin", format::number),
            accuracy: of_pairs("Chosen preferred", |share| format!("{:.0} %", share * 100.0)),
            smoothing: smoothing::suited_to(view.total_steps),
        };
        for step in &view.steps {
            charts.add_step(step);
        }
        for eval in &view.evals {
            charts.add_eval(eval);
        }
        charts
    }

    pub fn add_step(&mut self, step: &StepMetrics) {
        let x = step.step as f64;
        self.loss.push(x, step.loss, self.smoothing);
        self.rate.series[0].push(x, step.lr);
        self.norm.push(x, step.grad_norm, self.smoothing);
        self.speed.push(x, step.tokens_per_second, self.smoothing);
        if let Some(preference) = &step.preference {
            self.margin.push(x, preference.margin, self.smoothing);
            self.accuracy.push(x, preference.accuracy, self.smoothing);
        }
        if let Some(bytes) = step.memory_bytes {
            self.memory.series[0].push(x, bytes as f64 / MIB);
        }
    }

    /// The newest, as smoothed in the chart.
    pub fn smoothed_loss(&self) -> Option<f64> {
        self.loss.chart.series[SMOOTHED].last().map(|(_, loss)| loss)
    }

    pub fn add_eval(&mut self, eval: &EvalMetrics) {
        let x = eval.step as f64;
        self.loss.chart.series[EVAL].push(x, eval.loss);
        if let Some(preference) = &eval.preference {
            self.margin.chart.series[EVAL].push(x, preference.margin);
            self.accuracy.chart.series[EVAL].push(x, preference.accuracy);
        }
    }

    /// Shown as the charts were that these replace.
    pub fn like(mut self, before: &Self) -> Self {
        for (series, before) in self.loss.chart.series.iter_mut().zip(&before.loss.chart.series) {
            series.shown = before.shown;
        }
        self.loss.chart.log = before.loss.chart.log;
        self.smooth(before.smoothing);
        self
    }

    fn smooth(&mut self, smoothing: f64) {
        self.smoothing = smoothing;
        let Self { loss, norm, speed, margin, accuracy, .. } = self;
        for noisy in [loss, norm, speed, margin, accuracy] {
            noisy.smooth(smoothing);
        }
    }

    pub fn ui(&mut self, ui: &mut Ui, is_running: bool, total_steps: usize) {
        let steps = &self.loss.chart.series[RAW];
        let last = steps.last().map_or(1.0, |(x, _)| x);
        let end = if is_running { leap(last).min(total_steps as f64).max(last) } else { last };
        self.link.extent = (steps.points().next().map_or(0.0, |(x, _)| x), end);
        self.link.begin(ui);
        let (mut log, mut smoothing) = (self.loss.chart.log, self.smoothing);
        card(ui, |ui| {
            self.loss.chart.ui(ui, &mut self.link, |ui, link| {
                log ^= Button::secondary("Log scale").selected(log).clicked(ui);
                smoothing_slider(ui, &mut smoothing);
                if link.is_zoomed() && icon_button(ui, icons::ARROWS_LEFT_RIGHT, "Show all steps").clicked() {
                    link.reset_zoom();
                }
            });
        });
        self.loss.chart.log = log;
        if smoothing.total_cmp(&self.smoothing).is_ne() {
            self.smooth(smoothing);
        }
        let Self { link, rate, norm, speed, memory, margin, accuracy, .. } = self;
        let of_pairs = [&mut margin.chart, &mut accuracy.chart];
        let small = of_pairs.into_iter().chain([rate, &mut norm.chart, &mut speed.chart, memory]);
        let mut small: Vec<&mut Chart> = small.filter(|chart| !chart.is_empty()).collect();
        side_by_side(ui, &mut small, |ui, chart| card(ui, |ui| chart.ui(ui, link, |_, _| {})));
    }
}

/// A number of pairs, in training and of those held out.
fn of_pairs(title: &'static str, value: fn(f64) -> String) -> Noisy {
    let mut noisy = Noisy::new(title, 3, value);
    noisy.chart.has_legend = true;
    noisy.chart.series.push(Series::new("Held out", 1, Look::Marked));
    noisy
}

/// Two in a row where there is room.
pub fn side_by_side<T>(ui: &mut Ui, items: &mut [T], mut each: impl FnMut(&mut Ui, &mut T)) {
    let gap = space::M;
    let columns = if ui.available_width() >= 2.0 * MIN_CHART_WIDTH + gap { 2 } else { 1 };
    let width = (ui.available_width() - gap * (columns - 1) as f32) / columns as f32;
    for row in items.chunks_mut(columns) {
        // The last one alone takes the whole row.
        let width = if row.len() == columns { width } else { ui.available_width() };
        ui.horizontal_top(|ui| {
            ui.spacing_mut().item_spacing.x = gap;
            for item in row {
                ui.vertical(|ui| {
                    ui.set_width(width);
                    ui.spacing_mut().item_spacing.x = space::S;
                    each(ui, item);
                });
            }
        });
    }
}

/// How far back the smoothed line looks.
pub fn smoothing_slider(ui: &mut Ui, smoothing: &mut f64) {
    ui.scope(|ui| {
        ui.spacing_mut().slider_width = 90.0;
        ui.spacing_mut().interact_size.y = size::HEADING;
        ui.visuals_mut().selection.bg_fill = theme::colors(ui).accent;
        let slider =
            Slider::new(smoothing, 0.0..=MAX_SMOOTHING).show_value(false).handle_shape(HandleShape::Circle);
        let response = ui.add(slider);
        response.widget_info(|| WidgetInfo::slider(true, *smoothing, "Smoothing"));
        response.on_hover_text(format!("{smoothing:.2}: how far back the smoothed lines look"));
    });
    ui.label(theme::small(ui, "Smoothing"));
}

fn leap(last: f64) -> f64 {
    LEAP.powf((last.max(10.0).ln() / LEAP.ln()).ceil())
}
