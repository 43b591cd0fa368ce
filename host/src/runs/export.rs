//! A run's metrics for other programs.

use std::{collections::BTreeMap, path::Path};

use lathe_protocol::{
    ErrorCode, ErrorInfo, EvalMetrics, EventBody, LogFormat, MetricPoint, PreferenceMetrics,
};

use super::{
    event_file::{self, Scalars},
    find, open_db,
};
use crate::{error::Result, files, job::Job, paths::absolute};

const COLUMNS: [&str; 13] = [
    "step",
    "wall_time",
    "epoch",
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "tokens",
    "loss_tokens",
    "memory_bytes",
    "eval_loss",
    "eval_perplexity",
    "eval_token_accuracy",
];

type OfPairs = fn(&PreferenceMetrics) -> Option<f64>;

/// Metrics of training on pairs, by TRL's names.
const OF_PAIRS: [(&str, OfPairs); 7] = [
    ("rewards/chosen", |metrics| Some(metrics.chosen_reward)),
    ("rewards/rejected", |metrics| Some(metrics.rejected_reward)),
    ("rewards/accuracies", |metrics| Some(metrics.accuracy)),
    ("rewards/margins", |metrics| Some(metrics.margin)),
    ("nll_loss", |metrics| metrics.odds.map(|odds| odds.nll_loss)),
    ("log_odds_ratio", |metrics| metrics.odds.map(|odds| odds.log_odds_ratio)),
    ("log_odds_chosen", |metrics| metrics.odds.map(|odds| odds.log_odds_chosen)),
];

/// Writes `NAME.csv`, or an event file in a folder `NAME`, which TensorBoard takes for a run. What was exported before
/// is replaced.
pub(crate) fn export(job: &Job, name: &str, format: LogFormat, out: &str) -> Result<()> {
    let db = open_db(job.host.paths())?;
    let entry = find(&job.host, &db, name)?.entry;
    let (steps, evals) = db.at_once(|| Ok((db.steps(&entry.id, 0)?, db.evals(&entry.id, 0)?)))?;
    if steps.is_empty() && evals.is_empty() {
        let message = format!("Run {} has no metrics yet: there is nothing to export", entry.name);
        return Err(ErrorInfo::new(ErrorCode::NotFound, message));
    }
    let lines = by_step(&steps, &evals);
    let out = absolute(Path::new(out));
    let path = match format {
        LogFormat::Csv => out.join(format!("{}.csv", entry.name)),
        LogFormat::Tensorboard => {
            out.join(&entry.name).join(format!("events.out.tfevents.{}.lathe", entry.created_secs))
        }
    };
    files::create_dir_all(path.parent().unwrap_or(&out))?;
    let bytes = match format {
        LogFormat::Csv => csv_file(&lines)?,
        LogFormat::Tensorboard => event_file::write(entry.created_secs as f64, &scalars(&lines)),
    };
    files::write_atomic(&path, &bytes)?;
    let paths = vec![path.display().to_string()];
    job.emit(EventBody::Exported { paths, steps: steps.len(), evals: evals.len() });
    Ok(())
}

/// A step's metrics and those of the evaluation after it.
type Line<'a> = (Option<&'a MetricPoint>, Option<&'a EvalMetrics>);

fn by_step<'a>(steps: &'a [MetricPoint], evals: &'a [EvalMetrics]) -> BTreeMap<usize, Line<'a>> {
    let mut lines: BTreeMap<usize, Line<'a>> =
        steps.iter().map(|point| (point.step.step, (Some(point), None))).collect();
    for eval in evals {
        lines.entry(eval.step).or_default().1 = Some(eval);
    }
    lines
}

fn csv_file(lines: &BTreeMap<usize, Line<'_>>) -> Result<Vec<u8>> {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    let failed =
        |error: csv::Error| ErrorInfo::new(ErrorCode::Internal, format!("Cannot write CSV: {error}"));
    let is_of_pairs =
        lines.values().any(|(point, _)| point.is_some_and(|point| point.step.preference.is_some()));
    let of_pairs = if is_of_pairs { OF_PAIRS.as_slice() } else { &[] };
    let mut heads: Vec<String> = COLUMNS.map(String::from).to_vec();
    for prefix in ["", "eval_"] {
        heads.extend(of_pairs.iter().map(|(name, _)| format!("{prefix}{name}")));
    }
    writer.write_record(heads).map_err(failed)?;
    for (step, (point, eval)) in lines {
        let of_point = |value: &dyn Fn(&MetricPoint) -> String| point.map(value).unwrap_or_default();
        let of_eval = |value: &dyn Fn(&EvalMetrics) -> f64| {
            eval.map(|eval| value(eval).to_string()).unwrap_or_default()
        };
        let fields = [
            step.to_string(),
            of_point(&|point| point.at_secs.to_string()),
            of_point(&|point| point.step.epoch.to_string()),
            of_point(&|point| point.step.loss.to_string()),
            of_point(&|point| point.step.lr.to_string()),
            of_point(&|point| point.step.grad_norm.to_string()),
            of_point(&|point| point.step.tokens_per_second.to_string()),
            of_point(&|point| point.step.tokens.to_string()),
            of_point(&|point| point.step.loss_tokens.to_string()),
            of_point(&|point| point.step.memory_bytes.map(|bytes| bytes.to_string()).unwrap_or_default()),
            of_eval(&|eval| eval.loss),
            of_eval(&|eval| eval.perplexity),
            of_eval(&|eval| eval.token_accuracy),
        ];
        let preferences =
            [point.and_then(|point| point.step.preference), eval.and_then(|eval| eval.preference)];
        let of_pairs = preferences.iter().flat_map(|preference| {
            of_pairs.iter().map(|(_, value)| {
                preference.as_ref().and_then(value).map(|value| value.to_string()).unwrap_or_default()
            })
        });
        writer.write_record(fields.into_iter().chain(of_pairs)).map_err(failed)?;
    }
    writer
        .into_inner()
        .map_err(|error| ErrorInfo::new(ErrorCode::Internal, format!("Cannot write CSV: {error}")))
}

/// An evaluation is taken to be of its step's time, or of the last before.
fn scalars(lines: &BTreeMap<usize, Line<'_>>) -> Vec<Scalars> {
    let mut at_secs = 0.0;
    let mut events = Vec::with_capacity(lines.len());
    for (step, (point, eval)) in lines {
        let mut values = Vec::new();
        if let Some(MetricPoint { step, at_secs: now }) = point {
            at_secs = *now;
            let of_step = [
                ("loss", step.loss),
                ("grad_norm", step.grad_norm),
                ("learning_rate", step.lr),
                ("tokens_per_second", step.tokens_per_second),
            ];
            values.extend(tagged("train", &of_step, step.preference));
        }
        if let Some(eval) = eval {
            let of_eval = [
                ("loss", eval.loss),
                ("perplexity", eval.perplexity),
                ("token_accuracy", eval.token_accuracy),
            ];
            values.extend(tagged("eval", &of_eval, eval.preference));
        }
        events.push(Scalars { at_secs, step: *step, values });
    }
    events
}

fn tagged(group: &str, values: &[(&str, f64)], preference: Option<PreferenceMetrics>) -> Vec<(String, f64)> {
    let of_pairs = OF_PAIRS.iter().filter_map(|(name, value)| Some((*name, value(preference.as_ref()?)?)));
    values.iter().copied().chain(of_pairs).map(|(name, value)| (format!("{group}/{name}"), value)).collect()
}
