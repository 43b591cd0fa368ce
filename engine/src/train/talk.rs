use std::sync::atomic::{AtomicBool, Ordering};

use lathe_protocol::{AnsweredBy, ChatStats, ErrorInfo, EventBody, Method, RunVoice};

use super::Surroundings;
use crate::{
    Result,
    chat::{self, Reading, ReplyRequest},
    model::Model,
    text_files::TextFiles,
};

/// Something said to a model that trains.
pub struct Question {
    pub request: ReplyRequest,
    /// To be answered without the adapter.
    pub base: bool,
}

/// Whoever talks to a model while it trains.
pub struct Audience<'a> {
    /// The next question that waits, if one does.
    pub next_question: &'a dyn Fn() -> Option<Question>,
    /// Set while the answer being written should end.
    pub cancel: &'a AtomicBool,
}

/// Answers between steps, by the weights that learn: what they are is only read.
pub(super) struct Talk<'a> {
    text_files: &'a TextFiles,
    audience: &'a Audience<'a>,
    world: &'a Surroundings<'a>,
    /// Of what learns.
    voice: RunVoice,
    total_steps: usize,
    num_answers: u64,
}

impl<'a> Talk<'a> {
    pub fn new(
        text_files: &'a TextFiles,
        world: &'a Surroundings<'a>,
        method: Method,
        total_steps: usize,
    ) -> Option<Self> {
        let audience = world.audience.as_ref()?;
        let voice = if method == Method::Full { RunVoice::Model } else { RunVoice::Adapter };
        Some(Self { text_files, audience, world, voice, total_steps, num_answers: 0 })
    }

    /// What can be asked of the model.
    pub fn ready(&self, model: &Model) -> EventBody {
        EventBody::ChatReady {
            load_seconds: 0.0,
            supports_thinking: self.text_files.supports_thinking(),
            supports_effort: self.text_files.supports_effort(),
            context_length: chat::context_length(model),
            styles: self.text_files.styles.clone(),
        }
    }

    /// Answers all that waits, until the run is to stop. A question that cannot be answered harms no run.
    pub fn answer(&mut self, model: &mut Model, step: usize, emit: &mut dyn FnMut(EventBody)) {
        while !self.world.stop.load(Ordering::Relaxed)
            && let Some(Question { mut request, base }) = (self.audience.next_question)()
        {
            let voice = if base { RunVoice::Base } else { self.voice };
            let by = AnsweredBy { step, total_steps: self.total_steps, voice };
            let answered = if base {
                // Styles are the adapter's.
                request.messages.iter_mut().for_each(|message| message.style = None);
                model.without_adapters(|model| self.reply(model, &request, by, emit)).flatten()
            } else {
                self.reply(model, &request, by, emit)
            };
            self.num_answers += 1;
            emit(match answered {
                Ok(stats) => EventBody::ReplyDone(stats),
                Err(error) => EventBody::ReplyFailed { error: ErrorInfo::from(error) },
            });
        }
    }

    /// With room for this reply alone: the weights of the next will be others.
    fn reply(
        &self,
        model: &Model,
        request: &ReplyRequest,
        by: AnsweredBy,
        emit: &mut dyn FnMut(EventBody),
    ) -> Result<ChatStats> {
        let Self { text_files, audience, world, num_answers, .. } = self;
        let (_, prompt) = chat::render_prompt(text_files, request)?;
        let capacity = (prompt.len() + request.sampling.max_tokens).min(chat::context_length(model));
        let mut reading = Reading::new(model, capacity)?.after(*num_answers);
        emit(EventBody::ReplyStarted(by));
        let mut pass_on = |delta| emit(EventBody::Reply(delta));
        reading.reply(model, text_files, request, audience.cancel, world.clock, &mut pass_on)
    }
}
