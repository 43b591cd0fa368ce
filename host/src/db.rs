//! `lathe.db`: runs and their metrics. Safe to share between processes, and to delete.

use std::{path::Path, time::Duration};

use lathe_protocol::{
    ErrorCode, ErrorInfo, EvalMetrics, Method, MetricPoint, RunConfig, RunEntry, RunStatus, StepMetrics,
};
use rusqlite::{Connection, OptionalExtension as _, Row, TransactionBehavior, params};
use serde::{Serialize, de::DeserializeOwned};

use crate::error::Result;

const BUSY_TIMEOUT: Duration = Duration::from_secs(15);

/// Each is run once, in order; `user_version` counts those that were.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE runs (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        status TEXT NOT NULL,
        model TEXT NOT NULL,
        data TEXT NOT NULL,
        eval_data TEXT,
        init_adapter TEXT,
        method TEXT NOT NULL,
        out_dir TEXT NOT NULL,
        config TEXT NOT NULL,
        created_secs INTEGER NOT NULL,
        step INTEGER NOT NULL DEFAULT 0,
        total_steps INTEGER NOT NULL DEFAULT 0,
        last_loss REAL,
        eval_loss REAL,
        error TEXT,
        stop_requested INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE metrics (
        run TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        step INTEGER NOT NULL,
        loss REAL NOT NULL,
        grad_norm REAL NOT NULL,
        lr REAL NOT NULL,
        tokens_per_second REAL NOT NULL,
        tokens INTEGER NOT NULL,
        loss_tokens INTEGER NOT NULL,
        epoch REAL NOT NULL,
        at_secs REAL NOT NULL,
        PRIMARY KEY (run, step)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE evals (
        run TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        step INTEGER NOT NULL,
        loss REAL NOT NULL,
        perplexity REAL NOT NULL,
        token_accuracy REAL NOT NULL,
        loss_tokens INTEGER NOT NULL,
        rows INTEGER NOT NULL,
        PRIMARY KEY (run, step)
    ) STRICT, WITHOUT ROWID;
"];

/// A run as it is recorded.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RunRecord {
    pub entry: RunEntry,
    pub config: RunConfig,
    pub eval_data: Option<String>,
    pub init_adapter: Option<String>,
}

pub(crate) struct Db {
    connection: Connection,
}

impl Db {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::try_open(path).map_err(|error| {
            let message = format!("Cannot open the database: {error}: {}", path.display());
            ErrorInfo::new(ErrorCode::Io, message)
                .hint("if it is damaged, move it away: it is rebuilt from the run folders")
        })
    }

    fn try_open(path: &Path) -> rusqlite::Result<Self> {
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        // Two processes that create the file at once: the second waits, and finds WAL on.
        connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
        connection.execute_batch("PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON;")?;
        if user_version(&connection)? < MIGRATIONS.len() {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            // Another process may have been faster.
            for (index, migration) in MIGRATIONS.iter().enumerate().skip(user_version(&transaction)?) {
                transaction.execute_batch(migration)?;
                transaction.pragma_update(None, "user_version", index + 1)?;
            }
            transaction.commit()?;
        }
        Ok(Self { connection })
    }

    /// Inserts the run under a free name: its own, or with `-2`, `-3`, … after it. `taken` knows names used elsewhere.
    pub(crate) fn insert_run(&mut self, record: &mut RunRecord, taken: &dyn Fn(&str) -> bool) -> Result<()> {
        let wanted = record.entry.name.clone();
        for count in 1..10_000 {
            if count > 1 {
                record.entry.name = format!("{wanted}-{count}");
            }
            if taken(&record.entry.name) {
                continue;
            }
            if self.try_insert(record).map_err(|error| failed(&error))? {
                return Ok(());
            }
        }
        Err(ErrorInfo::new(ErrorCode::Usage, format!("No free name like {wanted:?}"))
            .hint("choose another with --name"))
    }

    /// False if the id or the name is taken.
    pub(crate) fn try_insert(&self, record: &RunRecord) -> rusqlite::Result<bool> {
        let RunRecord { entry, config, eval_data, init_adapter } = record;
        let count = self.connection.execute(
            "INSERT INTO runs (id, name, status, model, data, eval_data, init_adapter, method, out_dir, config,
                created_secs, step, total_steps, last_loss, eval_loss, error)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
             ON CONFLICT DO NOTHING",
            params![
                entry.id,
                entry.name,
                word(&entry.status),
                entry.model,
                entry.data,
                eval_data,
                init_adapter,
                word(&entry.method),
                entry.out_dir,
                serde_json::to_string(config).unwrap_or_default(),
                entry.created_secs,
                entry.step,
                entry.total_steps,
                entry.last_loss,
                entry.eval_loss,
                entry.error,
            ],
        )?;
        Ok(count == 1)
    }

    pub(crate) fn runs(&self) -> Result<Vec<RunRecord>> {
        self.all("SELECT * FROM runs ORDER BY created_secs DESC, id DESC", [], run_record)
    }

    pub(crate) fn run(&self, id: &str) -> Result<Option<RunRecord>> {
        self.connection
            .query_row("SELECT * FROM runs WHERE id = ?1", [id], run_record)
            .optional()
            .map_err(|error| failed(&error))
    }

    pub(crate) fn set_status(&self, id: &str, status: RunStatus, error: Option<&str>) -> Result<()> {
        self.write("UPDATE runs SET status = ?2, error = ?3 WHERE id = ?1", params![id, word(&status), error])
    }

    /// A run starts (again): whatever was asked of it before is over.
    pub(crate) fn set_running(&self, id: &str, out_dir: &str) -> Result<()> {
        self.write(
            "UPDATE runs SET status = 'running', error = NULL, stop_requested = 0, out_dir = ?2 WHERE id = ?1",
            params![id, out_dir],
        )
    }

    pub(crate) fn set_totals(&self, id: &str, first_step: usize, total_steps: usize) -> Result<()> {
        self.write(
            "UPDATE runs SET step = ?2, total_steps = ?3 WHERE id = ?1",
            params![id, first_step, total_steps],
        )?;
        // Steps after the checkpoint that a resumed run starts from are taken again.
        self.write("DELETE FROM metrics WHERE run = ?1 AND step > ?2", params![id, first_step])?;
        self.write("DELETE FROM evals WHERE run = ?1 AND step > ?2", params![id, first_step])
    }

    pub(crate) fn add_step(&mut self, id: &str, point: &MetricPoint) -> Result<()> {
        let MetricPoint { step, at_secs } = point;
        let mut add = || {
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO metrics VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                )?
                .execute(params![
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
                ])?;
            transaction
                .prepare_cached("UPDATE runs SET step = ?2, last_loss = ?3 WHERE id = ?1")?
                .execute(params![id, step.step, step.loss])?;
            transaction.commit()
        };
        add().map_err(|error| failed(&error))
    }

    pub(crate) fn add_eval(&self, id: &str, eval: &EvalMetrics) -> Result<()> {
        let EvalMetrics { step, loss, perplexity, token_accuracy, loss_tokens, rows } = eval;
        self.write(
            "INSERT OR REPLACE INTO evals VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![id, step, loss, perplexity, token_accuracy, loss_tokens, rows],
        )?;
        self.write("UPDATE runs SET eval_loss = ?2 WHERE id = ?1", params![id, loss])
    }

    pub(crate) fn steps(&self, id: &str) -> Result<Vec<MetricPoint>> {
        self.all("SELECT * FROM metrics WHERE run = ?1 ORDER BY step", [id], |row| {
            Ok(MetricPoint {
                step: StepMetrics {
                    step: row.get("step")?,
                    loss: row.get("loss")?,
                    grad_norm: row.get("grad_norm")?,
                    lr: row.get("lr")?,
                    tokens_per_second: row.get("tokens_per_second")?,
                    tokens: row.get("tokens")?,
                    loss_tokens: row.get("loss_tokens")?,
                    epoch: row.get("epoch")?,
                },
                at_secs: row.get("at_secs")?,
            })
        })
    }

    pub(crate) fn evals(&self, id: &str) -> Result<Vec<EvalMetrics>> {
        self.all("SELECT * FROM evals WHERE run = ?1 ORDER BY step", [id], |row| {
            Ok(EvalMetrics {
                step: row.get("step")?,
                loss: row.get("loss")?,
                perplexity: row.get("perplexity")?,
                token_accuracy: row.get("token_accuracy")?,
                loss_tokens: row.get("loss_tokens")?,
                rows: row.get("rows")?,
            })
        })
    }

    pub(crate) fn request_stop(&self, id: &str) -> Result<()> {
        self.write("UPDATE runs SET stop_requested = 1 WHERE id = ?1", [id])
    }

    pub(crate) fn stop_requested(&self, id: &str) -> Result<bool> {
        self.connection
            .query_row("SELECT stop_requested FROM runs WHERE id = ?1", [id], |row| row.get(0))
            .optional()
            .map(Option::unwrap_or_default)
            .map_err(|error| failed(&error))
    }

    pub(crate) fn delete_run(&self, id: &str) -> Result<()> {
        self.write("DELETE FROM runs WHERE id = ?1", [id])
    }

    /// `ok`, or what SQLite finds wrong.
    pub(crate) fn quick_check(&self) -> Result<String> {
        self.connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|error| failed(&error))
    }

    fn write(&self, sql: &str, params: impl rusqlite::Params) -> Result<()> {
        let mut statement = self.connection.prepare_cached(sql).map_err(|error| failed(&error))?;
        statement.execute(params).map(drop).map_err(|error| failed(&error))
    }

    fn all<T>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let mut statement = self.connection.prepare_cached(sql).map_err(|error| failed(&error))?;
        statement.query_map(params, read).and_then(Iterator::collect).map_err(|error| failed(&error))
    }
}

fn user_version(connection: &Connection) -> rusqlite::Result<usize> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

fn failed(error: &rusqlite::Error) -> ErrorInfo {
    let code = match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => ErrorCode::Busy,
        _ => ErrorCode::Io,
    };
    ErrorInfo::new(code, format!("The database failed: {error}"))
        .hint("if it goes on, `lathe doctor` checks the database")
}

fn run_record(row: &Row<'_>) -> rusqlite::Result<RunRecord> {
    let method: Method = from_word(&row.get::<_, String>("method")?).unwrap_or_default();
    let config: String = row.get("config")?;
    Ok(RunRecord {
        entry: RunEntry {
            id: row.get("id")?,
            name: row.get("name")?,
            status: from_word(&row.get::<_, String>("status")?).unwrap_or(RunStatus::Interrupted),
            model: row.get("model")?,
            data: row.get("data")?,
            method,
            out_dir: row.get("out_dir")?,
            created_secs: row.get("created_secs")?,
            step: row.get("step")?,
            total_steps: row.get("total_steps")?,
            last_loss: row.get("last_loss")?,
            eval_loss: row.get("eval_loss")?,
            error: row.get("error")?,
        },
        config: serde_json::from_str(&config).unwrap_or_default(),
        eval_data: row.get("eval_data")?,
        init_adapter: row.get("init_adapter")?,
    })
}

/// An enum's name as serde writes it.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

fn from_word<T: DeserializeOwned>(word: &str) -> Option<T> {
    serde_json::from_value(word.into()).ok()
}

#[cfg(test)]
mod tests;
