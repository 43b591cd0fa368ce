mod heat;
mod table;

use egui::Ui;
use lathe_protocol::{CommandBody, Event, EventBody, RunDetails, SweepPlace};

use super::run::smoothing_slider;
use crate::{
    Asked, Outbox, Route, format,
    smoothing::{self, Smoother},
    theme::{self, icons, space},
    widgets::{
        Button, card,
        chart::{Chart, ChartLink, Look, Series, legend},
        error_box, icon_button, page_with, segmented, spinner_line,
    },
};

/// What x counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Axis {
    #[default]
    Steps,
    Tokens,
}

/// Several runs over each other.
pub struct Compare {
    runs: Vec<Compared>,
    axis: Axis,
    /// Chosen by hand.
    smoothing: Option<f64>,
    link: ChartLink,
    loss: Chart,
    eval: Chart,
}

struct Compared {
    id: String,
    asked: Asked<Box<RunDetails>>,
}

impl Default for Compare {
    fn default() -> Self {
        let chart = |title, height| Chart {
            series: Vec::new(),
            lead: None,
            height,
            ..Chart::single(title, 0, format::number)
        };
        Self {
            runs: Vec::new(),
            axis: Axis::Steps,
            smoothing: None,
            link: ChartLink::new("Step"),
            loss: chart("Loss, smoothed", 280.0),
            eval: chart("Eval loss", 200.0),
        }
    }
}

impl Compare {
    /// Asks for each run anew; what is known of it shows until then.
    pub fn show(&mut self, runs: &[String], out: &mut Outbox) {
        let mut before = std::mem::take(&mut self.runs);
        for id in runs {
            let place = before.iter().position(|run| run.id == *id);
            let known = place.map(|place| before.swap_remove(place));
            let mut run = known.unwrap_or_else(|| Compared { id: id.clone(), asked: Asked::default() });
            run.asked.ask(out, CommandBody::RunsShow { run: id.clone() });
            self.runs.push(run);
        }
        for mut gone in before {
            gone.asked.stop(out);
        }
        self.draw();
    }

    pub fn apply(&mut self, event: &Event) {
        let mut is_new = false;
        for run in &mut self.runs {
            run.asked.apply(event, |body| match body {
                EventBody::Run(details) => {
                    is_new = true;
                    Some(details.clone())
                }
                _ => None,
            });
        }
        if is_new {
            self.draw();
        }
    }

    /// What was chosen, or what suits the longest run.
    fn smoothing(&self) -> f64 {
        let longest = self.details().map(|details| details.run.total_steps).max().unwrap_or_default();
        self.smoothing.unwrap_or_else(|| smoothing::suited_to(longest))
    }

    fn details(&self) -> impl Iterator<Item = &RunDetails> {
        self.runs.iter().filter_map(|run| run.asked.value.as_deref())
    }

    /// Makes the curves anew; those that were off stay off.
    fn draw(&mut self) {
        let hidden: Vec<String> = self
            .loss
            .series
            .iter()
            .filter(|series| !series.shown)
            .map(|series| series.name.clone())
            .collect();
        let (mut losses, mut evals, mut extent) = (Vec::new(), Vec::new(), 1.0_f64);
        let smoothing = self.smoothing();
        let of_sweep = heat::sweep_of(&self.details().collect::<Vec<_>>()).is_some();
        for (index, details) in self.details().enumerate() {
            // In its sweep a run is known by its values.
            let place = details.run.sweep.as_ref().filter(|_| of_sweep);
            let name = &place.map_or_else(|| details.run.name.clone(), SweepPlace::text);
            let mut loss = Series::new(name, index, Look::Line);
            let mut eval = Series::new(name, index, Look::Marked);
            loss.shown = !hidden.contains(name);
            let mut smoother = Smoother::default();
            let (mut tokens, mut next_eval) = (0, details.evals.iter().peekable());
            for point in &details.steps {
                tokens += point.step.tokens;
                let x = match self.axis {
                    Axis::Steps => point.step.step as f64,
                    Axis::Tokens => tokens as f64,
                };
                extent = extent.max(x);
                loss.push(x, smoother.push(point.step.loss, smoothing));
                while let Some(metrics) = next_eval.next_if(|eval| eval.step <= point.step.step) {
                    eval.push(x, metrics.loss);
                }
            }
            losses.push(loss);
            evals.push(eval);
        }
        (self.loss.series, self.eval.series) = (losses, evals);
        let x_name = if self.axis == Axis::Steps { "Step" } else { "Token" };
        if self.link.x_name != x_name {
            self.link = ChartLink::new(x_name);
        }
        self.link.extent = (0.0, extent);
    }

    pub fn ui(&mut self, ui: &mut Ui, out: &mut Outbox) {
        let runs = format::plural(self.runs.len(), "run");
        let title = match heat::sweep_of(&self.details().collect::<Vec<_>>()) {
            Some(sweep) => format!("Sweep {sweep}: {runs}"),
            None => format!("Compare {runs}"),
        };
        let mut goes_back = false;
        page_with(
            ui,
            "compare",
            |ui| {
                goes_back = icon_button(ui, icons::ARROW_LEFT, "All runs").clicked();
                ui.label(theme::title(title));
            },
            |ui| {
                ui.spacing_mut().item_spacing.y = space::M;
                for error in self.runs.iter().filter_map(|run| run.asked.error.as_ref()) {
                    error_box(ui, error);
                }
                if self.runs.iter().any(|run| run.asked.is_waiting() && run.asked.value.is_none()) {
                    spinner_line(ui, "Reading the runs' histories");
                }
                if self.details().next().is_some() {
                    heat::ui(ui, &self.details().collect::<Vec<_>>(), out);
                    self.charts(ui);
                    table::ui(ui, &self.details().collect::<Vec<_>>(), self.smoothing(), out);
                }
            },
        );
        if goes_back {
            out.go(Route::Runs);
        }
    }

    fn charts(&mut self, ui: &mut Ui) {
        let before = (self.axis, self.smoothing());
        let (mut axis, mut smoothing) = before;
        ui.horizontal_wrapped(|ui| {
            segmented(ui, &mut axis, &[(Axis::Steps, "By step"), (Axis::Tokens, "By tokens")]);
            ui.add_space(space::S);
            for series in &mut self.loss.series {
                legend(ui, series);
            }
        });
        for (eval, loss) in self.eval.series.iter_mut().zip(&self.loss.series) {
            eval.shown = loss.shown;
        }
        let Self { link, loss, eval, .. } = self;
        link.begin(ui);
        let mut log = loss.log;
        card(ui, |ui| {
            loss.ui(ui, link, |ui, link| {
                log ^= Button::secondary("Log scale").selected(log).clicked(ui);
                smoothing_slider(ui, &mut smoothing);
                if link.is_zoomed() && icon_button(ui, icons::ARROWS_LEFT_RIGHT, "Show everything").clicked()
                {
                    link.reset_zoom();
                }
            });
        });
        (loss.log, eval.log) = (log, log);
        if !eval.is_empty() {
            card(ui, |ui| eval.ui(ui, link, |_, _| {}));
        }
        let moved = smoothing.total_cmp(&before.1).is_ne();
        if axis != before.0 || moved {
            self.axis = axis;
            self.smoothing = if moved { Some(smoothing) } else { self.smoothing };
            self.draw();
        }
    }
}
