//! `lathe.db`: runs, their metrics, chats, downloads. Safe to share between processes, and to delete.

mod chats;
mod downloads;
mod metrics;
mod runs;
mod talk;
#[cfg(test)]
mod tests;

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use lathe_protocol::{ErrorCode, ErrorInfo};
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior};
use serde::{Serialize, de::DeserializeOwned};

pub(crate) use runs::RunRecord;

use crate::error::Result;

const BUSY_TIMEOUT: Duration = Duration::from_secs(15);
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// Each is run once, in order; `user_version` counts those that were. One that was released never changes.
const MIGRATIONS: &[&str] = &[
    "
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
",
    // stop_then: `pause`, `keep` or `discard`. starts: how often training began, so that who watches sees a rewind.
    "
    ALTER TABLE runs DROP COLUMN stop_requested;
    ALTER TABLE runs ADD COLUMN stop_then TEXT;
    ALTER TABLE runs ADD COLUMN starts INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE runs ADD COLUMN doing TEXT;
    ALTER TABLE runs ADD COLUMN queue_position INTEGER;
    ALTER TABLE metrics ADD COLUMN memory_bytes INTEGER;
    CREATE TABLE samples (
        id INTEGER PRIMARY KEY,
        run TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        step INTEGER NOT NULL,
        prompt TEXT NOT NULL,
        text TEXT NOT NULL
    ) STRICT;
    CREATE INDEX samples_of_run ON samples (run);
    CREATE TABLE logs (
        id INTEGER PRIMARY KEY,
        run TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        at_secs REAL NOT NULL,
        level TEXT NOT NULL,
        message TEXT NOT NULL
    ) STRICT;
    CREATE INDEX logs_of_run ON logs (run);
    CREATE TABLE chats (
        id TEXT PRIMARY KEY,
        updated_secs INTEGER NOT NULL,
        record TEXT NOT NULL
    ) STRICT;
",
    // divergence: JSON.
    "ALTER TABLE runs ADD COLUMN divergence TEXT;",
    // preference: JSON.
    "
    ALTER TABLE metrics ADD COLUMN preference TEXT;
    ALTER TABLE evals ADD COLUMN preference TEXT;
",
    // To a run in training, from whatever process. chat_ready, request, event: JSON.
    "
    ALTER TABLE runs ADD COLUMN chat_ready TEXT;
    CREATE TABLE questions (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        run TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        request TEXT NOT NULL,
        cancelled INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX questions_of_run ON questions (run);
    CREATE TABLE replies (
        id INTEGER PRIMARY KEY,
        question INTEGER NOT NULL REFERENCES questions (id) ON DELETE CASCADE,
        event TEXT NOT NULL
    ) STRICT;
    CREATE INDEX replies_of_question ON replies (question);
",
    // device: `auto`, `cpu` or `cuda:N`, as it was asked for. runs_on: the one it has or had. sweep: JSON.
    "
    ALTER TABLE runs ADD COLUMN device TEXT NOT NULL DEFAULT 'auto';
    ALTER TABLE runs ADD COLUMN runs_on TEXT;
    ALTER TABLE runs ADD COLUMN sweep TEXT;
",
    // force: it starts from an adapter of another base all the same.
    "ALTER TABLE runs ADD COLUMN force INTEGER NOT NULL DEFAULT 0;",
    // record: JSON. The status beside it is the one that holds.
    "
    CREATE TABLE downloads (
        model TEXT PRIMARY KEY,
        status TEXT NOT NULL,
        position INTEGER NOT NULL,
        record TEXT NOT NULL
    ) STRICT;
",
];

pub(crate) struct Db {
    connection: Connection,
}

impl Db {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let due = Instant::now() + BUSY_TIMEOUT;
        let opened = loop {
            match Self::try_open(path) {
                // SQLite itself does not wait for who turns WAL on, or closes the file as the last.
                Err(error) if is_busy(&error) && Instant::now() < due => thread::sleep(BUSY_PAUSE),
                opened => break opened,
            }
        };
        opened.map_err(|error| {
            let message = format!("Cannot open the database: {error}: {}", path.display());
            ErrorInfo::new(ErrorCode::Io, message)
                .hint("its folder must be writable; if it is damaged, move it away: it is rebuilt from the run folders")
        })
    }

    fn try_open(path: &Path) -> rusqlite::Result<Self> {
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
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

    /// What `act` does is done whole or not at all, and no other process writes meanwhile.
    pub(crate) fn exclusively<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        self.transaction(TransactionBehavior::Immediate, act)
    }

    /// All that `read` reads is of one moment.
    pub(crate) fn at_once<T>(&self, read: impl FnOnce() -> Result<T>) -> Result<T> {
        self.transaction(TransactionBehavior::Deferred, read)
    }

    fn transaction<T>(&self, behavior: TransactionBehavior, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let transaction =
            Transaction::new_unchecked(&self.connection, behavior).map_err(|error| failed(&error))?;
        let answer = act()?;
        transaction.commit().map_err(|error| failed(&error))?;
        Ok(answer)
    }

    /// Differs from the last call's if another connection wrote since.
    pub(crate) fn version(&self) -> Result<i64> {
        self.one("PRAGMA data_version", [], |row| row.get(0)).map(Option::unwrap_or_default)
    }

    /// `ok`, or what SQLite finds wrong.
    pub(crate) fn quick_check(&self) -> Result<String> {
        self.one("PRAGMA quick_check(1)", [], |row| row.get(0)).map(Option::unwrap_or_default)
    }

    /// Returns the number of rows changed.
    fn write(&self, sql: &str, params: impl rusqlite::Params) -> Result<usize> {
        let mut statement = self.connection.prepare_cached(sql).map_err(|error| failed(&error))?;
        statement.execute(params).map_err(|error| failed(&error))
    }

    fn one<T>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        let mut statement = self.connection.prepare_cached(sql).map_err(|error| failed(&error))?;
        statement.query_row(params, read).optional().map_err(|error| failed(&error))
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

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked)
    )
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
