//! Progress on stderr: bars on a terminal, a line now and then elsewhere.

use std::{
    io::{IsTerminal as _, stderr},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use lathe_protocol::{Download, EvalMetrics, EventBody};
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
        prepare(self.bar.get_or_insert_with(|| ProgressBar::new(total)), what, done, total);
    }

    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// Shows how far a preparation is; `total` is 0 if nobody knows.
fn prepare(bar: &ProgressBar, what: &str, done: u64, total: u64) {
    bar.set_style(style(if total > 0 {
        "{msg}  {bar:30.cyan/dim}  {bytes} of {total_bytes}"
    } else {
        "{spinner} {msg}"
    }));
    bar.set_length(total);
    bar.set_message(what.to_owned());
    bar.set_position(done);
    bar.tick();
}

/// A download.
pub struct Downloading {
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
    last_note: Option<String>,
}

impl Downloading {
    pub fn new() -> Self {
        Self { bar: None, last_line: None, last_note: None }
    }

    pub fn show(&mut self, download: &Download) {
        if stderr().is_terminal() {
            let bar = self.bar.get_or_insert_with(|| ProgressBar::new(0));
            bar.set_style(style(if download.total_bytes > 0 {
                "{bar:30.cyan/dim} {percent}%  {msg}"
            } else {
                "{spinner} {msg}"
            }));
            bar.set_length(download.total_bytes);
            bar.set_message(Self::line(download));
            bar.set_position(download.done_bytes);
            return bar.tick();
        }
        let is_news = download.note.is_some() && download.note != self.last_note;
        let is_due = self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY);
        self.last_note.clone_from(&download.note);
        if download.total_bytes > 0 && is_due || is_news {
            self.last_line = Some(Instant::now());
            note!("{}", Self::line(download));
        }
    }

    fn line(download: &Download) -> String {
        let Download { done_bytes, total_bytes, done_files, total_files, bytes_per_second, .. } = download;
        let mut line = match total_bytes {
            0 => format!("Asking for {}", download.model),
            _ => format!(
                "{} of {}, {done_files} of {total_files} files",
                format::bytes(*done_bytes),
                format::bytes(*total_bytes)
            ),
        };
        if *bytes_per_second > 0.0 {
            append!(line, ", {}/s", format::bytes(*bytes_per_second as u64));
        }
        if let Some(eta) = download.eta_seconds.filter(|_| done_bytes < total_bytes) {
            append!(line, ", {} left", format::duration(eta));
        }
        if let Some(note) = &download.note {
            append!(line, "  {note}");
        }
        line
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
            EventBody::Progress { what, done, total } => prepare(&bar, what, *done, *total),
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
