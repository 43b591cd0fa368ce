use lathe_protocol::{
    EvalMetrics, LogLevel, LogLine, MetricPoint, PreferenceMetrics, SampleText, StepMetrics, Told,
};
use rusqlite::{Row, params};

use super::{Db, from_word, word};
use crate::error::Result;

impl Db {
    pub(crate) fn add_step(&self, id: &str, point: &MetricPoint) -> Result<()> {
        let MetricPoint { step, .. } = point;
        self.exclusively(|| {
            self.insert_step("REPLACE", id, point)?;
            let sql = "UPDATE runs SET step = ?2, last_loss = ?3 WHERE id = ?1";
            self.write(sql, params![id, step.step, step.loss]).map(drop)
        })
    }

    /// What is there already stays as it is.
    pub(crate) fn add_missing(&self, id: &str, told: &Told, at_secs: f64) -> Result<()> {
        self.exclusively(|| {
            for step in &told.steps {
                self.insert_step("IGNORE", id, &MetricPoint { step: *step, at_secs })?;
            }
            told.evals.iter().try_for_each(|eval| self.insert_eval("IGNORE", id, eval))
        })
    }

    /// `or`: what to do where the step is there already.
    fn insert_step(&self, or: &str, id: &str, point: &MetricPoint) -> Result<()> {
        let MetricPoint { step, at_secs } = point;
        self.write(
            &format!(
                "INSERT OR {or} INTO metrics VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)"
            ),
            params![
                id,
                step.step,
                step.loss,
                step.grad_norm,
                step.lr,
                step.tokens_per_second,
                step.tokens,
                step.loss_tokens,
                step.epoch,
                at_secs,
                step.memory_bytes,
                preference_text(step.preference),
            ],
        )
        .map(drop)
    }

    fn insert_eval(&self, or: &str, id: &str, eval: &EvalMetrics) -> Result<()> {
        let EvalMetrics { step, loss, perplexity, token_accuracy, loss_tokens, rows, preference } = eval;
        let sql = format!("INSERT OR {or} INTO evals VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)");
        let preference = preference_text(*preference);
        let values = params![id, step, loss, perplexity, token_accuracy, loss_tokens, rows, preference];
        self.write(&sql, values).map(drop)
    }

    pub(crate) fn add_eval(&self, id: &str, eval: &EvalMetrics) -> Result<()> {
        self.exclusively(|| {
            self.insert_eval("REPLACE", id, eval)?;
            self.write("UPDATE runs SET eval_loss = ?2 WHERE id = ?1", params![id, eval.loss]).map(drop)
        })
    }

    pub(crate) fn add_sample(&self, id: &str, sample: &SampleText) -> Result<()> {
        let SampleText { step, prompt, text } = sample;
        let sql = "INSERT INTO samples (run, step, prompt, text) VALUES (?1, ?2, ?3, ?4)";
        self.write(sql, params![id, step, prompt, text]).map(drop)
    }

    pub(crate) fn add_log(&self, id: &str, line: &LogLine) -> Result<()> {
        let LogLine { at_secs, level, message } = line;
        let sql = "INSERT INTO logs (run, at_secs, level, message) VALUES (?1, ?2, ?3, ?4)";
        self.write(sql, params![id, at_secs, word(level), message]).map(drop)
    }

    /// Metrics and samples of later steps than `step`.
    pub(super) fn forget_after(&self, id: &str, step: usize) -> Result<()> {
        for table in ["metrics", "evals", "samples"] {
            self.write(&format!("DELETE FROM {table} WHERE run = ?1 AND step > ?2"), params![id, step])?;
        }
        Ok(())
    }

    /// Those after the step `after`.
    pub(crate) fn steps(&self, id: &str, after: usize) -> Result<Vec<MetricPoint>> {
        self.all(
            "SELECT step, loss, grad_norm, lr, tokens_per_second, tokens, loss_tokens, epoch, memory_bytes, at_secs,
                    preference
             FROM metrics WHERE run = ?1 AND step > ?2 ORDER BY step",
            params![id, after],
            metric_point,
        )
    }

    /// Those after the step `after`.
    pub(crate) fn evals(&self, id: &str, after: usize) -> Result<Vec<EvalMetrics>> {
        let sql = "SELECT * FROM evals WHERE run = ?1 AND step > ?2 ORDER BY step";
        self.all(sql, params![id, after], |row| {
            Ok(EvalMetrics {
                step: row.get("step")?,
                loss: row.get("loss")?,
                perplexity: row.get("perplexity")?,
                token_accuracy: row.get("token_accuracy")?,
                loss_tokens: row.get("loss_tokens")?,
                rows: row.get("rows")?,
                preference: preference_of(row.get("preference")?),
            })
        })
    }

    /// Those recorded after the row `after`, each with its row.
    pub(crate) fn samples(&self, id: &str, after: i64) -> Result<Vec<(i64, SampleText)>> {
        let sql = "SELECT * FROM samples WHERE run = ?1 AND id > ?2 ORDER BY id";
        self.all(sql, params![id, after], |row| {
            let sample =
                SampleText { step: row.get("step")?, prompt: row.get("prompt")?, text: row.get("text")? };
            Ok((row.get("id")?, sample))
        })
    }

    /// Those recorded after the row `after`, each with its row.
    pub(crate) fn logs(&self, id: &str, after: i64) -> Result<Vec<(i64, LogLine)>> {
        let sql = "SELECT * FROM logs WHERE run = ?1 AND id > ?2 ORDER BY id";
        self.all(sql, params![id, after], |row| {
            let level = from_word(&row.get::<_, String>("level")?).unwrap_or(LogLevel::Info);
            let line = LogLine { at_secs: row.get("at_secs")?, level, message: row.get("message")? };
            Ok((row.get("id")?, line))
        })
    }
}

fn preference_text(metrics: Option<PreferenceMetrics>) -> Option<String> {
    metrics.and_then(|metrics| serde_json::to_string(&metrics).ok())
}

fn preference_of(text: Option<String>) -> Option<PreferenceMetrics> {
    text.and_then(|text| serde_json::from_str(&text).ok())
}

/// By position: there may be a hundred thousand.
fn metric_point(row: &Row<'_>) -> rusqlite::Result<MetricPoint> {
    Ok(MetricPoint {
        step: StepMetrics {
            step: row.get(0)?,
            loss: row.get(1)?,
            grad_norm: row.get(2)?,
            lr: row.get(3)?,
            tokens_per_second: row.get(4)?,
            tokens: row.get(5)?,
            loss_tokens: row.get(6)?,
            epoch: row.get(7)?,
            memory_bytes: row.get(8)?,
            preference: preference_of(row.get(10)?),
        },
        at_secs: row.get(9)?,
    })
}
