use lathe_protocol::{Divergence, ErrorCode, ErrorInfo, RunConfig, RunEntry, RunStatus, StopThen};
use rusqlite::{Row, params};
use serde::Serialize;

use super::{Db, failed, from_word, word};
use crate::error::Result;

/// `place`: how many queued runs come before. `speed`: the mean of the last steps'.
const SELECT: &str = "
    SELECT *,
        (SELECT count(*) FROM runs AS before
            WHERE before.status = 'queued' AND before.queue_position < runs.queue_position) AS place,
        (SELECT avg(tokens_per_second) FROM
            (SELECT tokens_per_second FROM metrics WHERE run = runs.id ORDER BY step DESC LIMIT 20)) AS speed
    FROM runs";

/// A run as it is recorded.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RunRecord {
    pub entry: RunEntry,
    pub config: RunConfig,
    pub eval_data: Option<String>,
    pub init_adapter: Option<String>,
    /// It may start from an adapter of another base.
    pub force: bool,
}

impl Db {
    /// Inserts the run under a free name: its own, or with `-2`, `-3`, … after it. `taken` knows names used elsewhere.
    pub(crate) fn insert_run(&self, record: &mut RunRecord, taken: &dyn Fn(&str) -> bool) -> Result<()> {
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

    /// False if the id or the name is taken. A queued run gets the last place.
    pub(crate) fn try_insert(&self, record: &RunRecord) -> rusqlite::Result<bool> {
        let RunRecord { entry, config, eval_data, init_adapter, force } = record;
        let count = self.connection.execute(
            "INSERT INTO runs (id, name, status, model, data, eval_data, init_adapter, method, out_dir, config,
                created_secs, step, total_steps, last_loss, eval_loss, error, divergence, device, runs_on, sweep,
                force, queue_position)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17,
                ?18, ?19, ?20, ?21,
                (SELECT ifnull(max(queue_position), 0) + 1 FROM runs WHERE ?3 = 'queued'))
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
                json(entry.divergence.as_ref()),
                entry.device,
                entry.runs_on,
                json(entry.sweep.as_ref()),
                force,
            ],
        )?;
        Ok(count == 1)
    }

    pub(crate) fn runs(&self) -> Result<Vec<RunRecord>> {
        self.all(&format!("{SELECT} ORDER BY created_secs DESC, id DESC"), [], run_record)
    }

    pub(crate) fn run(&self, id: &str) -> Result<Option<RunRecord>> {
        self.one(&format!("{SELECT} WHERE id = ?1"), [id], run_record)
    }

    /// The ids of the queued runs, the next to start first.
    pub(crate) fn queued(&self) -> Result<Vec<String>> {
        let sql = "SELECT id FROM runs WHERE status = 'queued' ORDER BY queue_position, created_secs, id";
        self.all(sql, [], |row| row.get(0))
    }

    /// Puts a run that does not run at the end of the queue.
    pub(crate) fn enqueue(&self, id: &str) -> Result<()> {
        self.write(
            "UPDATE runs SET status = 'queued', error = NULL, divergence = NULL, stop_then = NULL,
                queue_position = (SELECT ifnull(max(queue_position), 0) + 1 FROM runs WHERE status = 'queued')
             WHERE id = ?1",
            [id],
        )
        .map(drop)
    }

    /// Takes a run out of the queue. False if it is in it no more.
    pub(crate) fn dequeue(&self, id: &str) -> Result<bool> {
        let sql = "UPDATE runs SET status = 'stopped' WHERE id = ?1 AND status = 'queued'";
        self.write(sql, [id]).map(|count| count == 1)
    }

    /// Gives a queued run another place; 0 is the first. False if it is not queued.
    pub(crate) fn move_queued(&self, id: &str, position: usize) -> Result<bool> {
        self.exclusively(|| {
            let mut queue = self.queued()?;
            let Some(from) = queue.iter().position(|queued| queued == id) else { return Ok(false) };
            let moved = queue.remove(from);
            queue.insert(position.min(queue.len()), moved);
            for (place, id) in queue.iter().enumerate() {
                self.write("UPDATE runs SET queue_position = ?2 WHERE id = ?1", params![id, place])?;
            }
            Ok(true)
        })
    }

    /// Where a queued run is to run. False if it is not queued.
    pub(crate) fn assign(&self, id: &str, device: &str) -> Result<bool> {
        let sql = "UPDATE runs SET device = ?2 WHERE id = ?1 AND status = 'queued'";
        self.write(sql, params![id, device]).map(|count| count == 1)
    }

    pub(crate) fn set_status(&self, id: &str, status: RunStatus, error: Option<&str>) -> Result<()> {
        let sql = "UPDATE runs SET status = ?2, error = ?3, doing = NULL WHERE id = ?1";
        self.write(sql, params![id, word(&status), error]).map(drop)
    }

    /// A run starts (again): whatever was asked of it before is over.
    pub(crate) fn set_running(&self, id: &str, out_dir: &str, device: &str) -> Result<()> {
        self.write(
            "UPDATE runs SET status = 'running', error = NULL, divergence = NULL, stop_then = NULL, doing = NULL,
                chat_ready = NULL, out_dir = ?2, runs_on = ?3
             WHERE id = ?1",
            params![id, out_dir, device],
        )?;
        self.write("DELETE FROM questions WHERE run = ?1", [id]).map(drop)
    }

    pub(crate) fn set_divergence(&self, id: &str, divergence: &Divergence) -> Result<()> {
        let divergence = serde_json::to_string(divergence).unwrap_or_default();
        self.write("UPDATE runs SET divergence = ?2 WHERE id = ?1", params![id, divergence]).map(drop)
    }

    pub(crate) fn set_config(&self, id: &str, config: &RunConfig) -> Result<()> {
        let config = serde_json::to_string(config).unwrap_or_default();
        self.write("UPDATE runs SET config = ?2 WHERE id = ?1", params![id, config]).map(drop)
    }

    pub(crate) fn set_doing(&self, id: &str, doing: &str) -> Result<()> {
        self.write("UPDATE runs SET doing = ?2 WHERE id = ?1", params![id, doing]).map(drop)
    }

    /// Training begins at `first_step`. Steps after it were taken before, and will be again.
    pub(crate) fn set_totals(&self, id: &str, first_step: usize, total_steps: usize) -> Result<()> {
        self.exclusively(|| {
            self.write(
                "UPDATE runs SET step = ?2, total_steps = ?3, starts = starts + 1, doing = NULL WHERE id = ?1",
                params![id, first_step, total_steps],
            )?;
            self.forget_after(id, first_step)
        })
    }

    /// How often training began.
    pub(crate) fn starts(&self, id: &str) -> Result<Option<usize>> {
        self.one("SELECT starts FROM runs WHERE id = ?1", [id], |row| row.get(0))
    }

    pub(crate) fn request_stop(&self, id: &str, then: StopThen) -> Result<()> {
        self.write("UPDATE runs SET stop_then = ?2 WHERE id = ?1", params![id, word(&then)]).map(drop)
    }

    pub(crate) fn stop_requested(&self, id: &str) -> Result<Option<StopThen>> {
        let then = self
            .one("SELECT stop_then FROM runs WHERE id = ?1", [id], |row| row.get::<_, Option<String>>(0))?;
        Ok(then.flatten().and_then(|then| from_word(&then)))
    }

    pub(crate) fn delete_run(&self, id: &str) -> Result<()> {
        self.write("DELETE FROM runs WHERE id = ?1", [id]).map(drop)
    }
}

fn json(value: Option<&impl Serialize>) -> Option<String> {
    value.and_then(|value| serde_json::to_string(value).ok())
}

fn run_record(row: &Row<'_>) -> rusqlite::Result<RunRecord> {
    let status = from_word(&row.get::<_, String>("status")?).unwrap_or(RunStatus::Interrupted);
    let place: usize = row.get("place")?;
    let config: String = row.get("config")?;
    let divergence: Option<String> = row.get("divergence")?;
    let sweep: Option<String> = row.get("sweep")?;
    Ok(RunRecord {
        entry: RunEntry {
            id: row.get("id")?,
            name: row.get("name")?,
            status,
            model: row.get("model")?,
            data: row.get("data")?,
            method: from_word(&row.get::<_, String>("method")?).unwrap_or_default(),
            out_dir: row.get("out_dir")?,
            created_secs: row.get("created_secs")?,
            step: row.get("step")?,
            total_steps: row.get("total_steps")?,
            last_loss: row.get("last_loss")?,
            eval_loss: row.get("eval_loss")?,
            error: row.get("error")?,
            divergence: divergence.and_then(|divergence| serde_json::from_str(&divergence).ok()),
            tokens_per_second: row.get("speed")?,
            doing: row.get("doing")?,
            queue_position: (status == RunStatus::Queued).then_some(place),
            held_here: false,
            device: row.get("device")?,
            runs_on: row.get("runs_on")?,
            sweep: sweep.and_then(|sweep| serde_json::from_str(&sweep).ok()),
        },
        config: serde_json::from_str(&config).unwrap_or_default(),
        eval_data: row.get("eval_data")?,
        init_adapter: row.get("init_adapter")?,
        force: row.get("force")?,
    })
}
