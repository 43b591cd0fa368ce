use lathe_protocol::{Download, DownloadStatus, ErrorCode, ErrorInfo};
use rusqlite::{Row, params};

use super::{Db, from_word, word};
use crate::error::Result;

/// Of the `downloads` table: the status of the row is that of the record.
fn read(row: &Row<'_>) -> rusqlite::Result<Option<Download>> {
    let (status, record): (String, String) = (row.get("status")?, row.get("record")?);
    // One of another version of Lathe is no longer told of.
    Ok(serde_json::from_str(&record).ok().map(|download: Download| Download {
        status: from_word(&status).unwrap_or(DownloadStatus::Paused),
        ..download
    }))
}

fn record(download: &Download) -> Result<String> {
    serde_json::to_string(download).map_err(|error| {
        ErrorInfo::new(ErrorCode::Internal, format!("The download cannot be written: {error}"))
    })
}

impl Db {
    /// In the queue's order.
    pub(crate) fn downloads(&self) -> Result<Vec<Download>> {
        let rows = self.all("SELECT status, record FROM downloads ORDER BY position, model", [], read)?;
        Ok(rows.into_iter().flatten().collect())
    }

    pub(crate) fn download(&self, model: &str) -> Result<Option<Download>> {
        self.one("SELECT status, record FROM downloads WHERE model = ?1", [model], read).map(Option::flatten)
    }

    /// To the end of the queue, or to its front; in place of what was known of the model.
    pub(crate) fn queue_download(&self, download: &Download, is_first: bool) -> Result<()> {
        let place = if is_first { "min(position) - 1" } else { "max(position) + 1" };
        self.write(
            &format!(
                "INSERT OR REPLACE INTO downloads (model, status, position, record)
                 VALUES (?1, 'queued', (SELECT ifnull({place}, 0) FROM downloads), ?2)"
            ),
            params![download.model, record(download)?],
        )
        .map(drop)
    }

    /// The next of the queue, running from now on.
    pub(crate) fn claim_download(&self) -> Result<Option<Download>> {
        self.one(
            "UPDATE downloads SET status = 'running' WHERE model =
                (SELECT model FROM downloads WHERE status = 'queued' ORDER BY position LIMIT 1)
             RETURNING status, record",
            [],
            read,
        )
        .map(Option::flatten)
    }

    /// What becomes of one that runs; false if it was paused or removed meanwhile.
    pub(crate) fn tell_download(&self, download: &Download) -> Result<bool> {
        let changed = self.write(
            "UPDATE downloads SET status = ?2, record = ?3 WHERE model = ?1 AND status = 'running'",
            params![download.model, word(&download.status), record(download)?],
        )?;
        Ok(changed > 0)
    }

    /// Of one that waits or runs; false if it does neither.
    pub(crate) fn pause_download(&self, model: &str) -> Result<bool> {
        let paused =
            "UPDATE downloads SET status = 'paused' WHERE model = ?1 AND status IN ('queued', 'running')";
        Ok(self.write(paused, [model])? > 0)
    }

    /// Of all that a process left behind which is no more.
    pub(crate) fn pause_downloads(&self) -> Result<()> {
        self.write("UPDATE downloads SET status = 'paused' WHERE status IN ('queued', 'running')", [])
            .map(drop)
    }

    pub(crate) fn delete_download(&self, model: &str) -> Result<bool> {
        Ok(self.write("DELETE FROM downloads WHERE model = ?1", [model])? > 0)
    }
}
