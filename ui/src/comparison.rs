//! Runs side by side: what tells them apart, and what each came to.

use std::collections::BTreeSet;

use lathe_protocol::{CONFIG_KEYS, RunDetails, RunStatus};
use serde_json::Value;

use crate::RunView;

/// A setting that is not the same in every run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Dotted, e.g. `lora.r`.
    pub key: String,
    /// One a run.
    pub values: Vec<String>,
}

/// What differs between runs: model, data, and the keys of their configs in the order of [`CONFIG_KEYS`].
pub fn differences(runs: &[&RunDetails]) -> Vec<Difference> {
    let facts: Vec<Vec<(String, Value)>> = runs.iter().map(|run| facts(run)).collect();
    let mut seen = BTreeSet::new();
    let mut keys: Vec<&str> =
        facts.iter().flatten().map(|(key, _)| key.as_str()).filter(|key| seen.insert(*key)).collect();
    let place = |key: &str| CONFIG_KEYS.iter().position(|known| known.name == key);
    keys.sort_by_key(|key| place(key).map_or(0, |place| place + 1));
    let values = |key: &str| -> Vec<Option<&Value>> {
        facts.iter().map(|facts| facts.iter().find(|(name, _)| name == key).map(|(_, value)| value)).collect()
    };
    let differing = keys.into_iter().map(|key| (key, values(key)));
    differing
        .filter(|(_, values)| values.windows(2).any(|pair| pair[0] != pair[1]))
        .map(|(key, values)| Difference {
            key: key.to_owned(),
            values: values.into_iter().map(text).collect(),
        })
        .collect()
}

fn facts(details: &RunDetails) -> Vec<(String, Value)> {
    let RunDetails { run, config, init_adapter, eval_data, .. } = details;
    let mut facts = vec![
        ("model".to_owned(), Value::from(run.model.as_str())),
        ("data".to_owned(), Value::from(run.data.as_str())),
        ("eval_data".to_owned(), Value::from(eval_data.as_deref())),
        ("init_adapter".to_owned(), Value::from(init_adapter.as_deref())),
    ];
    if let Ok(config) = serde_json::to_value(config) {
        flatten(String::new(), config, &mut facts);
    }
    facts
}

fn flatten(prefix: String, value: Value, facts: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
                flatten(key, value, facts);
            }
        }
        value => facts.push((prefix, value)),
    }
}

fn text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "–".into(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) if items.is_empty() => "none".into(),
        Some(Value::Array(items)) => items.iter().map(|item| text(Some(item))).collect::<Vec<_>>().join(", "),
        Some(value) => value.to_string(),
    }
}

/// What tells the runs apart: the keys of their sweep, or whatever differs.
pub fn distinctions(runs: &[&RunDetails]) -> Vec<Difference> {
    sweep_keys(runs).unwrap_or_else(|| differences(runs))
}

/// The keys of the sweep that all the runs are of, with their values as they were written.
fn sweep_keys(runs: &[&RunDetails]) -> Option<Vec<Difference>> {
    let first = runs.first()?.run.sweep.as_ref()?;
    let places =
        runs.iter().map(|details| details.run.sweep.as_ref().filter(|place| place.name == first.name));
    let places: Vec<_> = places.collect::<Option<_>>()?;
    let values = |key: &str| -> Option<Vec<String>> {
        places.iter().map(|place| place.value(key).map(str::to_owned)).collect()
    };
    first
        .values
        .iter()
        .map(|value| Some(Difference { key: value.key.clone(), values: values(&value.key)? }))
        .collect()
}

/// What a run came to, so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Of the weights that are saved.
    pub eval_loss: Option<f64>,
    /// Of training, smoothed.
    pub loss: Option<f64>,
    /// Spent on steps.
    pub seconds: f64,
    pub tokens_per_second: Option<f64>,
}

impl Outcome {
    pub fn of(details: &RunDetails) -> Self {
        let view = RunView::of_record(details);
        let mut evals = details.evals.iter().map(|eval| eval.loss);
        let eval_loss = if details.config.keeps_best() { evals.reduce(f64::min) } else { evals.next_back() };
        let tokens: usize = details.steps.iter().map(|point| point.step.tokens).sum();
        let seconds = view.trained_secs;
        Self {
            eval_loss,
            loss: view.smoothed_loss(),
            seconds,
            tokens_per_second: (seconds > 0.0).then_some(tokens as f64 / seconds),
        }
    }
}

/// The run with the lowest eval loss, or, if nothing is held out, with the lowest loss; none that failed or diverged.
pub fn best(runs: &[&RunDetails]) -> Option<usize> {
    let outcomes: Vec<Outcome> = runs.iter().map(|details| Outcome::of(details)).collect();
    let has_evals = outcomes.iter().any(|outcome| outcome.eval_loss.is_some());
    let score = |outcome: &Outcome| if has_evals { outcome.eval_loss } else { outcome.loss };
    let sound = |index: &usize| !matches!(runs[*index].run.status, RunStatus::Failed | RunStatus::Diverged);
    let scores = (0..runs.len()).filter(sound).filter_map(|index| Some((index, score(&outcomes[index])?)));
    scores.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(index, _)| index)
}
