//! Progress on stderr: bars on a terminal, a line now and then elsewhere.

use std::{
    io::{IsTerminal as _, stderr},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use lathe_protocol::{EvalMetrics, EventBody};
use lathe_ui::{RunView, format};

use crate::{append, note, output};

const LINE_EVERY: Duration = Duration::from_secs(10);

/// A long preparation.
pub struct Preparation {
    bar: Option<ProgressBar>,
}

impl Preparation {
    pub fn new() -> Self {
        Self { bar: None }
    }

    pub fn show(&mut self, what: &str, done: u64, total: u64) {
        if !stderr().is_terminal() {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| ProgressBar::new(total));
        bar.set_style(style(if total > 0 {
            "{msg}  {bar:30.cyan/dim}  {bytes} of {total_bytes}"
        } else {
            "{spinner} {msg}"
        }));
        bar.set_length(total);
        bar.set_message(what.to_owned());
        bar.set_position(done);
    }

    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// A training run.
pub struct Training {
    started: Instant,
    pub view: RunView,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
    lines: bool,
}

impl Training {
    /// `lines`: whether to write lines where there is no terminal for a bar.
    pub fn new(lines: bool) -> Self {
        Self { started: Instant::now(), view: RunView::default(), bar: None, last_line: None, lines }
    }

    pub fn apply(&mut self, event: &EventBody) {
        self.view.apply(event, self.started.elapsed().as_secs_f64());
        if stderr().is_terminal() {
            self.draw(event);
        } else if self.lines {
            self.write_line(event);
        }
    }

    fn draw(&mut self, event: &EventBody) {
        if matches!(event, EventBody::TrainingDone(_) | EventBody::Failed { .. } | EventBody::Adapter(_)) {
            return self.end();
        }
        // A handle to the one bar.
        let bar = self.bar.get_or_insert_with(|| ProgressBar::new(0)).clone();
        match event {
            EventBody::Progress { what, .. } => {
                bar.set_style(style("{spinner} {msg}"));
                bar.set_message(what.clone());
                bar.tick();
            }
            EventBody::TrainingStarted { total_steps, first_step, .. } => {
                bar.set_style(style("{bar:32.cyan/dim} {pos}/{len}  {msg}"));
                bar.set_length(*total_steps as u64);
                bar.set_position(*first_step as u64);
                bar.set_message("");
            }
            EventBody::Step(step) => {
                bar.set_position(step.step as u64);
                bar.set_message(self.view_line());
            }
            EventBody::Eval(eval) => {
                bar.println(eval_line(eval));
            }
            _ => {}
        }
    }

    fn view_line(&self) -> String {
        let mut line = format!("loss {}", output::loss(self.view.smoothed_loss()));
        if let Some(last) = self.view.last {
            if let Some(preference) = &last.preference {
                append!(line, "  {}", output::preference(preference));
            }
            append!(line, "  {:.0} tokens/s", last.tokens_per_second);
        }
        if let Some(eta) = self.view.eta_secs() {
            append!(line, "  {} left", format::duration(eta));
        }
        line
    }

    fn write_line(&mut self, event: &EventBody) {
        match event {
            EventBody::Step(step)
                if step.step == self.view.total_steps
                    || self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY) =>
            {
                self.last_line = Some(Instant::now());
                note!("step {}/{}  {}", step.step, self.view.total_steps, self.view_line());
            }
            EventBody::Eval(eval) => {
                note!("{}", eval_line(eval));
            }
            _ => {}
        }
    }

    /// Leaves the last state of the bar on the screen.
    pub fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.abandon();
            // The bar leaves the cursor behind it.
            note!("");
        }
    }
}

fn eval_line(eval: &EvalMetrics) -> String {
    let EvalMetrics { step, loss, perplexity, token_accuracy, .. } = eval;
    let accuracy = token_accuracy * 100.0;
    let mut line =
        format!("step {step}  held-out loss {loss:.4}  perplexity {perplexity:.2}  accuracy {accuracy:.1} %");
    if let Some(preference) = &eval.preference {
        append!(line, "  {}", output::preference(preference));
    }
    line
}

pub fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("━╸─")
}
