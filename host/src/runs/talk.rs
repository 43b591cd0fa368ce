//! Talking to a run in training, whichever process holds it: questions and replies pass through the database.

use std::{
    collections::VecDeque,
    sync::mpsc::Receiver,
    time::{Duration, Instant},
};

use lathe_protocol::{ErrorCode, ErrorInfo, EventBody, Method, Request, RunEntry, RunStatus};

use super::{find, look_closer, open_db, status_word};
use crate::{
    Paths, adapters,
    db::Db,
    error::{Result, not_found},
    job::{Control, Job, StopLevel, ToWorker},
};

const POLL: Duration = Duration::from_millis(50);
/// A process that dies writes nothing: its run is looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Passes questions to a run and its replies back, until the job is stopped or the run ends, which is an error.
pub(crate) fn talk(job: &mut Job, name: &str, base: bool) -> Result<()> {
    let db = open_db(job.host.paths())?;
    let run = find(&job.host, &db, name)?.entry;
    let Some(requests) = job.to_worker.take() else {
        return Err(ErrorInfo::new(ErrorCode::Internal, "A job talks to a second run"));
    };
    let mut asked = VecDeque::new();
    let outcome = converse(job, &db, &run, base, &requests, &mut asked);
    for question in asked {
        db.forget_question(question.id)?;
    }
    outcome
}

/// A question whose answer is not over.
struct Asked {
    id: i64,
    /// The last event that was passed on.
    seen: i64,
}

fn converse(
    job: &Job,
    db: &Db,
    run: &RunEntry,
    base: bool,
    requests: &Receiver<ToWorker>,
    asked: &mut VecDeque<Asked>,
) -> Result<()> {
    let mut is_ready = false;
    let mut version = None;
    let mut looked = Instant::now();
    while job.stop_level() == StopLevel::Run {
        match requests.recv_timeout(POLL) {
            Ok(ToWorker::Request(Request::Reply { messages, sampling, thinking, effort, .. })) => {
                let request = Request::Reply { messages, sampling, thinking, effort, base };
                asked.push_back(Asked { id: db.ask(&run.id, &request)?, seen: 0 });
            }
            Ok(ToWorker::Request(Request::CancelReply)) => {
                if let Some(question) = asked.front() {
                    db.cancel_question(question.id)?;
                }
            }
            _ => {}
        }
        let now = Some(db.version()?);
        if std::mem::replace(&mut version, now) == now && looked.elapsed() < LOOK_EVERY {
            continue;
        }
        looked = Instant::now();
        // Before what it said is read: a run that is over says nothing more.
        let over = why_over(job, db, run)?;
        if !is_ready
            && over.is_none()
            && let Some(ready) = db.chat_ready(&run.id)?
        {
            is_ready = true;
            job.emit(ready);
        }
        while let Some(question) = asked.front_mut() {
            let Some(events) = db.replies(question.id, question.seen)? else {
                return Err(not_found(format!("Run {} began anew before it answered", run.name)));
            };
            let mut is_answered = false;
            for (id, event) in events {
                question.seen = id;
                is_answered |= ends_reply(&event);
                job.emit(event);
            }
            if !is_answered {
                break;
            }
            db.forget_question(question.id)?;
            asked.pop_front();
        }
        if let Some(error) = over {
            return Err(error);
        }
        if !is_ready {
            job.progress("Waiting for training to begin", 0).advance(0)?;
        }
    }
    Ok(())
}

fn ends_reply(event: &EventBody) -> bool {
    matches!(event, EventBody::ReplyDone(_) | EventBody::ReplyFailed { .. })
}

/// Why the run does not answer (any more), and who does.
fn why_over(job: &Job, db: &Db, run: &RunEntry) -> Result<Option<ErrorInfo>> {
    let RunEntry { id, name, .. } = run;
    let Some(mut record) = db.run(id)? else {
        return Ok(Some(not_found(format!("Run {name} was removed: nobody is there to answer"))));
    };
    let now = &mut record.entry;
    look_closer(&job.host, db, now)?;
    Ok(match now.status {
        RunStatus::Running => None,
        RunStatus::Completed | RunStatus::Kept => {
            let message = format!("Run {name} has ended after step {} of {}", now.step, now.total_steps);
            Some(
                not_found(message)
                    .hint(format!("go on with what it learned: {}", successor(job.host.paths(), now))),
            )
        }
        RunStatus::Queued => Some(not_found(format!("Run {name} is queued: it answers once it trains"))),
        status => {
            let message = format!("Run {name} does not train: it is {}", status_word(status));
            Some(not_found(message).hint(format!("resume it: lathe runs resume {id}")))
        }
    })
}

fn successor(paths: &Paths, run: &RunEntry) -> String {
    match run.method {
        Method::Full => format!("lathe chat --model {}", run.out_dir),
        Method::Lora | Method::Qlora => {
            let adapter = adapters::of_run(paths, run);
            let adapter = adapter.as_ref().unwrap_or(&run.out_dir);
            format!("lathe chat --model {} --adapter {adapter}", run.model)
        }
    }
}

/// Hands a run's questions to its worker, one at a time, and keeps its replies for whoever asked.
#[derive(Default)]
pub(super) struct Answering {
    /// The newest question that was handed on.
    newest: i64,
    is_waiting: bool,
    is_cancelled: bool,
}

impl Answering {
    pub(super) fn tick(&mut self, db: &Db, run: &str, control: &Control) -> Result<()> {
        let request = if !self.is_waiting {
            let Some((id, request)) = db.next_question(run, self.newest)? else { return Ok(()) };
            *self = Self { newest: id, is_waiting: true, is_cancelled: false };
            match request {
                Ok(request) => request,
                Err(error) => return self.hear(db, &EventBody::ReplyFailed { error }),
            }
        } else if !self.is_cancelled && db.is_cancelled(self.newest)? {
            self.is_cancelled = true;
            Request::CancelReply
        } else {
            return Ok(());
        };
        // A worker that takes nothing is about to end, which is told by the run's record.
        drop(control.to_worker.try_send(ToWorker::Request(request)));
        Ok(())
    }

    pub(super) fn hear(&mut self, db: &Db, event: &EventBody) -> Result<()> {
        self.is_waiting &= !ends_reply(event);
        db.add_reply(self.newest, event)
    }
}
