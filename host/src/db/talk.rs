use lathe_protocol::{ErrorCode, ErrorInfo, EventBody, Request};
use rusqlite::params;

use super::Db;
use crate::error::Result;

impl Db {
    /// What can be asked of a run in training.
    pub(crate) fn set_chat_ready(&self, run: &str, ready: &EventBody) -> Result<()> {
        self.write("UPDATE runs SET chat_ready = ?2 WHERE id = ?1", params![run, to_json(ready)?]).map(drop)
    }

    /// None until training begins.
    pub(crate) fn chat_ready(&self, run: &str) -> Result<Option<EventBody>> {
        let sql = "SELECT chat_ready FROM runs WHERE id = ?1";
        let json = self.one(sql, [run], |row| row.get::<_, Option<String>>(0))?;
        json.flatten().as_deref().map(from_json).transpose()
    }

    /// Its id.
    pub(crate) fn ask(&self, run: &str, request: &Request) -> Result<i64> {
        let sql = "INSERT INTO questions (run, request) VALUES (?1, ?2) RETURNING id";
        let id = self.one(sql, params![run, to_json(request)?], |row| row.get(0))?;
        Ok(id.unwrap_or_default())
    }

    pub(crate) fn cancel_question(&self, id: i64) -> Result<()> {
        self.write("UPDATE questions SET cancelled = 1 WHERE id = ?1", [id]).map(drop)
    }

    pub(crate) fn forget_question(&self, id: i64) -> Result<()> {
        self.write("DELETE FROM questions WHERE id = ?1", [id]).map(drop)
    }

    /// The first question to the run after the one with this id: its own id, and what is asked, if it can be read.
    pub(crate) fn next_question(&self, run: &str, after: i64) -> Result<Option<(i64, Result<Request>)>> {
        let sql = "SELECT id, request FROM questions WHERE run = ?1 AND id > ?2 ORDER BY id LIMIT 1";
        let found = self.one(sql, params![run, after], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))?;
        Ok(found.map(|(id, request)| (id, from_json(&request))))
    }

    /// Whether nobody waits for the answer any more.
    pub(crate) fn is_cancelled(&self, id: i64) -> Result<bool> {
        let sql = "SELECT cancelled FROM questions WHERE id = ?1";
        Ok(self.one(sql, [id], |row| row.get(0))?.unwrap_or(true))
    }

    /// Of a question that was forgotten, nothing is kept.
    pub(crate) fn add_reply(&self, question: i64, event: &EventBody) -> Result<()> {
        let sql = "INSERT INTO replies (question, event) SELECT id, ?2 FROM questions WHERE id = ?1";
        self.write(sql, params![question, to_json(event)?]).map(drop)
    }

    /// What was said in reply after the event with this id. None once the question is gone.
    pub(crate) fn replies(&self, question: i64, after: i64) -> Result<Option<Vec<(i64, EventBody)>>> {
        if self.one("SELECT id FROM questions WHERE id = ?1", [question], |_| Ok(()))?.is_none() {
            return Ok(None);
        }
        let sql = "SELECT id, event FROM replies WHERE question = ?1 AND id > ?2 ORDER BY id";
        let found =
            self.all(sql, params![question, after], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))?;
        found.into_iter().map(|(id, event)| Ok((id, from_json(&event)?))).collect::<Result<_>>().map(Some)
    }
}

fn to_json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|error| ErrorInfo::new(ErrorCode::Internal, format!("Cannot be written: {error}")))
}

fn from_json<T: serde::de::DeserializeOwned>(json: &str) -> Result<T> {
    serde_json::from_str(json).map_err(|error| {
        ErrorInfo::new(ErrorCode::Io, format!("What was said to or by the run cannot be read: {error}"))
            .hint("the run and the chat may be of two versions of Lathe")
    })
}
