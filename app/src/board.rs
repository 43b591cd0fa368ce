//! Several runs at once on stderr: a bar for each that is under way, a line for each that ends.

use std::{
    collections::{HashMap, HashSet},
    io::{IsTerminal as _, stderr},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar};
use lathe_protocol::{RunEntry, RunStatus};

use crate::{append, commands::status, note, output, progress::style};

const LINE_EVERY: Duration = Duration::from_secs(10);

pub struct Board {
    bars: MultiProgress,
    under_way: HashMap<String, Line>,
    waiting: HashSet<String>,
    lines: bool,
}

struct Line {
    bar: ProgressBar,
    told: Instant,
}

impl Board {
    /// `lines`: whether to write lines where there is no terminal for bars. `waiting`: the runs that are to come.
    pub fn new<'a>(lines: bool, waiting: impl Iterator<Item = &'a RunEntry>) -> Self {
        Self {
            bars: MultiProgress::new(),
            under_way: HashMap::new(),
            waiting: waiting.map(|run| run.id.clone()).collect(),
            lines: lines || stderr().is_terminal(),
        }
    }

    /// The runs as they are now.
    pub fn show(&mut self, runs: &[&RunEntry]) {
        for run in runs {
            let is_new = self.waiting.contains(&run.id);
            match run.status {
                RunStatus::Running => self.go_on(run),
                RunStatus::Queued => {}
                _ if is_new || self.under_way.contains_key(&run.id) => self.end(run),
                _ => {}
            }
        }
    }

    fn go_on(&mut self, run: &RunEntry) {
        self.waiting.remove(&run.id);
        if !self.under_way.contains_key(&run.id) {
            self.say(&format!("{}: under way on {}", title(run), run.runs_on.as_deref().unwrap_or("cpu")));
            let bar = self.bars.add(ProgressBar::new(0));
            bar.set_style(style("{prefix}  {bar:24.cyan/dim} {pos}/{len}  {msg}"));
            bar.set_prefix(title(run));
            self.under_way.insert(run.id.clone(), Line { bar, told: Instant::now() });
        }
        let Some(Line { bar, told }) = self.under_way.get_mut(&run.id) else { return };
        bar.set_length(run.total_steps as u64);
        bar.set_position(run.step as u64);
        bar.set_message(numbers(run));
        if told.elapsed() >= LINE_EVERY && !stderr().is_terminal() {
            *told = Instant::now();
            let line = format!("{}: step {}/{}  {}", title(run), run.step, run.total_steps, numbers(run));
            self.say(&line);
        }
    }

    fn end(&mut self, run: &RunEntry) {
        self.waiting.remove(&run.id);
        if let Some(line) = self.under_way.remove(&run.id) {
            line.bar.finish_and_clear();
        }
        let mut text = format!("{}: {} at step {}/{}", title(run), status(run), run.step, run.total_steps);
        match (run.eval_loss, &run.error) {
            (_, Some(error)) => append!(text, ": {error}"),
            (Some(eval), None) => append!(text, ", held-out loss {eval:.4}"),
            (None, None) => append!(text, ", loss {}", output::loss(run.last_loss)),
        }
        self.say(&text);
    }

    /// Above the bars.
    pub fn say(&self, text: &str) {
        if self.lines {
            self.bars.suspend(|| note!("{text}"));
        }
    }
}

/// In its sweep it is known by its values.
pub fn title(run: &RunEntry) -> String {
    run.sweep.as_ref().map_or_else(|| run.name.clone(), lathe_protocol::SweepPlace::text)
}

fn numbers(run: &RunEntry) -> String {
    if let Some(doing) = &run.doing {
        return doing.clone();
    }
    let mut text = format!("loss {}", output::loss(run.last_loss));
    if let Some(speed) = run.tokens_per_second {
        append!(text, "  {speed:.0} tokens/s");
    }
    text
}
