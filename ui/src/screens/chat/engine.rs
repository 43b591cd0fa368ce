use lathe_protocol::{
    AnsweredBy, ChatLane, ChatStats, CommandBody, ErrorInfo, Event, EventBody, JobId, LogLevel, ReplyDelta,
    RunLane, Style,
};

use crate::{Outbox, Progress};

/// Where a model stands.
#[derive(Debug, Default)]
pub enum Standing {
    #[default]
    NotLoaded,
    Loading(Option<Progress>),
    Ready {
        load_seconds: f64,
        supports_thinking: bool,
        supports_effort: bool,
        context_length: usize,
        /// Those of an adapter in training.
        styles: Vec<Style>,
    },
    /// Its job failed, and no reply was there to carry the error.
    Failed(ErrorInfo),
}

/// The answer that is being written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub chat: String,
    pub node: usize,
}

/// What an engine's job said about the answer being written.
#[derive(Debug)]
pub enum Heard {
    /// Of a run in training.
    Started(AnsweredBy),
    Delta(ReplyDelta),
    Done(ChatStats),
    Failed(ErrorInfo),
    /// The job ended without a word.
    Ended,
}

/// One loaded model with its adapters, or a run in training, and the reply it is writing.
#[derive(Debug, Default)]
pub struct Engine {
    job: Option<JobId>,
    model: String,
    adapters: Vec<String>,
    forced: bool,
    /// What the worker has to say of the adapters.
    pub warnings: Vec<String>,
    run: Option<RunLane>,
    /// A person has agreed to compute on the CPU what no graphics card can.
    pub on_cpu: bool,
    pub standing: Standing,
    pub writing: Option<Target>,
    /// A reply to ask for once the model is loaded.
    waiting: Option<CommandBody>,
}

impl Engine {
    /// Whether it holds (or is loading) what the lane wants.
    pub fn serves(&self, lane: &ChatLane) -> bool {
        let Self { job, model, adapters, forced, run, .. } = self;
        job.is_some()
            && (model, adapters, forced, run) == (&lane.model, &lane.adapters, &lane.forced, &lane.run)
    }

    pub fn is_job(&self, job: JobId) -> bool {
        self.job == Some(job)
    }

    pub fn load(&mut self, lane: &ChatLane, out: &mut Outbox) {
        if self.serves(lane) {
            return;
        }
        self.unload(out);
        self.model.clone_from(&lane.model);
        self.adapters.clone_from(&lane.adapters);
        self.forced = lane.forced;
        self.run.clone_from(&lane.run);
        self.job = Some(out.ask(match &lane.run {
            Some(run) => CommandBody::TalkToRun { run: run.id.clone(), base: run.base },
            None => CommandBody::Chat {
                model: lane.model.clone(),
                adapters: lane.adapters.clone(),
                device: if self.on_cpu { "cpu".into() } else { "auto".into() },
                force: lane.forced,
            },
        }));
        self.standing = Standing::Loading(None);
    }

    /// Returns the answer that was being written, if any.
    pub fn unload(&mut self, out: &mut Outbox) -> Option<Target> {
        if let Some(job) = self.job.take() {
            out.send(job, CommandBody::Stop);
        }
        self.standing = Standing::NotLoaded;
        self.waiting = None;
        self.warnings.clear();
        self.writing.take()
    }

    /// Loads what the lane wants, then asks it.
    pub fn reply(&mut self, lane: &ChatLane, target: Target, request: CommandBody, out: &mut Outbox) {
        self.load(lane, out);
        self.writing = Some(target);
        match (&self.standing, self.job) {
            (Standing::Ready { .. }, Some(job)) => out.send(job, request),
            _ => self.waiting = Some(request),
        }
    }

    /// Ends the reply. Returns its answer if that ends at once: the model was not even loaded.
    pub fn cancel(&mut self, out: &mut Outbox) -> Option<Target> {
        if self.waiting.take().is_some() {
            return self.unload(out);
        }
        if let (Some(job), Some(_)) = (self.job, &self.writing) {
            out.send(job, CommandBody::CancelReply);
        }
        None
    }

    /// What was heard for the answer being written.
    pub fn apply(&mut self, event: &Event, out: &mut Outbox) -> Option<(Target, Heard)> {
        if self.job != Some(event.job) {
            return None;
        }
        let heard = match &event.body {
            EventBody::Progress { what, done, total } => {
                self.standing =
                    Standing::Loading(Some(Progress { what: what.clone(), done: *done, total: *total }));
                return None;
            }
            EventBody::ChatReady {
                load_seconds,
                supports_thinking,
                supports_effort,
                context_length,
                styles,
            } => {
                self.standing = Standing::Ready {
                    load_seconds: *load_seconds,
                    supports_thinking: *supports_thinking,
                    supports_effort: *supports_effort,
                    context_length: *context_length,
                    styles: styles.clone(),
                };
                if let Some(request) = self.waiting.take() {
                    out.send(event.job, request);
                }
                return None;
            }
            EventBody::Log { level: LogLevel::Warn, message } => {
                self.warnings.push(message.clone());
                return None;
            }
            EventBody::ReplyStarted(by) => Heard::Started(*by),
            EventBody::Reply(delta) => Heard::Delta(delta.clone()),
            EventBody::ReplyDone(stats) => Heard::Done(*stats),
            EventBody::ReplyFailed { error } => Heard::Failed(error.clone()),
            EventBody::Failed { error } => {
                let standing = match self.writing {
                    Some(_) => Standing::NotLoaded,
                    None => Standing::Failed(error.clone()),
                };
                let (writing, on_cpu) = (self.writing.take(), self.on_cpu);
                *self = Self { on_cpu, standing, writing, ..Self::default() };
                Heard::Failed(error.clone())
            }
            EventBody::Done => {
                *self = Self { on_cpu: self.on_cpu, writing: self.writing.take(), ..Self::default() };
                Heard::Ended
            }
            _ => return None,
        };
        let target = match heard {
            Heard::Started(_) | Heard::Delta(_) => self.writing.clone(),
            _ => self.writing.take(),
        };
        target.map(|target| (target, heard))
    }
}
