use std::{cmp::Ordering, collections::BTreeSet};

use lathe_protocol::{RunEntry, RunStatus};

use crate::{format, widgets::status_name};

/// Which runs show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    #[default]
    All,
    Active,
    Paused,
    Finished,
    Failed,
}

impl Kind {
    pub const ALL: [(Self, &str); 5] = [
        (Self::All, "All"),
        (Self::Active, "Active"),
        (Self::Paused, "Paused"),
        (Self::Finished, "Finished"),
        (Self::Failed, "Failed"),
    ];

    fn includes(self, status: RunStatus) -> bool {
        let kind = match status {
            RunStatus::Queued | RunStatus::Running => Self::Active,
            RunStatus::Stopped | RunStatus::Interrupted => Self::Paused,
            RunStatus::Kept | RunStatus::Completed => Self::Finished,
            RunStatus::OutOfMemory | RunStatus::Diverged | RunStatus::Failed => Self::Failed,
        };
        self == Self::All || self == kind
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    Status,
    Name,
    Model,
    Data,
    Progress,
    Loss,
    EvalLoss,
    Speed,
    Created,
}

impl Column {
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "Status",
            Self::Name => "Name",
            Self::Model => "Model",
            Self::Data => "Data",
            Self::Progress => "Progress",
            Self::Loss => "Loss",
            Self::EvalLoss => "Eval loss",
            Self::Speed => "Tokens/s",
            Self::Created => "Created",
        }
    }
}

/// How the table is ordered and what it leaves out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrangement {
    pub column: Column,
    pub ascending: bool,
    pub kind: Kind,
    pub search: String,
}

impl Default for Arrangement {
    fn default() -> Self {
        Self { column: Column::Created, ascending: false, kind: Kind::All, search: String::new() }
    }
}

impl Arrangement {
    /// Sorts by a column; by the same again, the other way round.
    pub fn sort_by(&mut self, column: Column) {
        // Newest first, the rest from A or from the smallest.
        self.ascending = if self.column == column { !self.ascending } else { column != Column::Created };
        self.column = column;
    }

    pub fn of<'a>(&self, runs: &'a [RunEntry]) -> Vec<&'a RunEntry> {
        let needle = self.search.trim().to_lowercase();
        let matches = |run: &&RunEntry| {
            let texts = [&run.name, &run.model, &run.data];
            self.kind.includes(run.status) && texts.iter().any(|text| text.to_lowercase().contains(&needle))
        };
        let mut rows: Vec<_> = runs.iter().filter(matches).collect();
        rows.sort_by(|a, b| self.order(a, b));
        rows
    }

    fn order(&self, a: &RunEntry, b: &RunEntry) -> Ordering {
        let turned = |order: Ordering| if self.ascending { order } else { order.reverse() };
        // What has no number yet stands last either way.
        let numbers = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => turned(a.total_cmp(&b)),
            (a, b) => b.is_some().cmp(&a.is_some()),
        };
        let texts = |a: &str, b: &str| turned(a.to_lowercase().cmp(&b.to_lowercase()));
        match self.column {
            Column::Status => texts(status_name(a.status), status_name(b.status)),
            Column::Name => texts(&a.name, &b.name),
            Column::Model => texts(&a.model, &b.model),
            Column::Data => texts(format::file_name(&a.data), format::file_name(&b.data)),
            Column::Progress => numbers(Some(fraction(a)), Some(fraction(b))),
            Column::Loss => numbers(a.last_loss, b.last_loss),
            Column::EvalLoss => numbers(a.eval_loss, b.eval_loss),
            Column::Speed => numbers(a.tokens_per_second, b.tokens_per_second),
            Column::Created => turned(a.created_secs.cmp(&b.created_secs)),
        }
        .then_with(|| b.created_secs.cmp(&a.created_secs))
    }
}

/// A row of the table.
pub enum Row<'a> {
    Run { run: &'a RunEntry, in_sweep: bool },
    Sweep(Sweep<'a>),
}

/// A sweep's runs, in its order.
pub struct Sweep<'a> {
    pub name: &'a str,
    pub runs: Vec<&'a RunEntry>,
    pub is_open: bool,
}

impl Sweep<'_> {
    /// `4 runs: 2 completed, 1 running, 1 queued`.
    pub fn text(&self) -> String {
        let mut counts: Vec<(&str, usize)> = Vec::new();
        for run in &self.runs {
            let name = status_name(run.status);
            match counts.iter_mut().find(|(known, _)| *known == name) {
                Some((_, count)) => *count += 1,
                None => counts.push((name, 1)),
            }
        }
        let counts: Vec<_> =
            counts.into_iter().map(|(name, count)| format!("{count} {}", name.to_lowercase())).collect();
        format!("{}: {}", format::plural(self.runs.len(), "run"), counts.join(", "))
    }

    pub fn lowest_eval_loss(&self) -> Option<f64> {
        self.runs.iter().filter_map(|run| run.eval_loss).reduce(f64::min)
    }
}

/// The runs that show, those of a sweep below its head, if that is open. The head stands where its first run would.
pub fn grouped<'a>(shown: &[&'a RunEntry], all: &'a [RunEntry], open: &BTreeSet<String>) -> Vec<Row<'a>> {
    let sweep_of = |run: &'a RunEntry| run.sweep.as_ref().map(|place| place.name.as_str());
    let mut rows = Vec::new();
    let mut done = BTreeSet::new();
    for run in shown {
        let Some(name) = sweep_of(run) else {
            rows.push(Row::Run { run, in_sweep: false });
            continue;
        };
        if !done.insert(name) {
            continue;
        }
        let mut runs: Vec<_> = all.iter().filter(|other| sweep_of(other) == Some(name)).collect();
        runs.sort_by_key(|run| run.sweep.as_ref().map(|place| place.index));
        let is_open = open.contains(name);
        rows.push(Row::Sweep(Sweep { name, runs, is_open }));
        if is_open {
            let its = shown.iter().filter(|other| sweep_of(other) == Some(name));
            rows.extend(its.map(|run| Row::Run { run, in_sweep: true }));
        }
    }
    rows
}

/// 0 to 1.
pub fn fraction(run: &RunEntry) -> f64 {
    if run.total_steps == 0 { 0.0 } else { (run.step as f64 / run.total_steps as f64).min(1.0) }
}

/// The queue, next first.
pub fn queue(runs: &[RunEntry]) -> Vec<&RunEntry> {
    let mut queue: Vec<_> = runs.iter().filter(|run| run.status == RunStatus::Queued).collect();
    queue.sort_by_key(|run| (run.queue_position.unwrap_or(usize::MAX), run.created_secs));
    queue
}
