use std::sync::atomic::{AtomicBool, Ordering};

use lathe_protocol::{EventBody, Message, Role, SampleText, SamplingParams, Style, Thinking};

use crate::{
    Error, Result,
    chat::{self, Reading, ReplyRequest},
    model::{Decoder, Decoding, Model},
    reply::Parser,
    sample,
    text_files::TextFiles,
};

/// Most tokens of a sample.
const MAX_TOKENS: usize = 64;
/// Most prompts that a GPU answers side by side.
const MAX_BATCH: usize = 8;

/// Prompts that the model being trained answers, greedily: what it has learned so far, in words.
pub struct Samples<'a> {
    text_files: &'a TextFiles,
    /// What each is called, and what is asked: a prompt, in every style of the run.
    requests: Vec<(String, ReplyRequest)>,
    /// Tokens of the longest prompt and its answer.
    capacity: usize,
}

impl<'a> Samples<'a> {
    /// Errors: a prompt that the chat template refuses.
    pub fn new(text_files: &'a TextFiles, prompts: &[String]) -> Result<Self> {
        let in_styles = |prompt: &String| {
            let in_style = |style: &Style| {
                (format!("{prompt} ({})", style.name), request(prompt, Some(style.name.clone())))
            };
            match text_files.styles.as_slice() {
                [] => vec![(prompt.clone(), request(prompt, None))],
                styles => styles.iter().map(in_style).collect(),
            }
        };
        let requests: Vec<_> = prompts.iter().flat_map(in_styles).collect();
        let mut capacity = 0;
        for (_, request) in &requests {
            let (_, ids) = chat::render_prompt(text_files, request)?;
            capacity = capacity.max(ids.len() + MAX_TOKENS);
        }
        Ok(Self { text_files, requests, capacity })
    }

    /// Emits an answer to each prompt by the model as it is, until `stop` is set. The model is only read.
    pub fn answer(
        &self,
        model: &Model,
        step: usize,
        stop: &AtomicBool,
        emit: &mut dyn FnMut(EventBody),
    ) -> Result<()> {
        let mut emit_text = |prompt: &str, text: &str| {
            let (prompt, text) = (prompt.to_owned(), text.trim().to_owned());
            emit(EventBody::Sample(SampleText { step, prompt, text }));
        };
        if model.compute.is_gpu() && !self.requests.is_empty() {
            let texts = self.texts(model, stop)?;
            self.requests.iter().zip(&texts).for_each(|((prompt, _), text)| emit_text(prompt, text));
            return Ok(());
        }
        for (prompt, request) in &self.requests {
            let mut reading = Reading::new(model, self.capacity)?;
            let mut text = String::new();
            reading.reply(model, self.text_files, request, stop, &|| 0.0, &mut |delta| {
                text.push_str(&delta.text);
            })?;
            if stop.load(Ordering::Relaxed) {
                break;
            }
            emit_text(prompt, &text);
        }
        Ok(())
    }

    /// The answers, some of them written side by side; none once `stop` is set.
    fn texts(&self, model: &Model, stop: &AtomicBool) -> Result<Vec<String>> {
        let mut texts = vec![String::new(); self.requests.len()];
        let mut slots: Vec<Option<Answer>> = Vec::new();
        slots.resize_with(self.requests.len().min(MAX_BATCH), || None);
        let mut decoder = Decoder::new(model, self.capacity, slots.len())?;
        let mut decoding = decoder.with(model, sample::sampling(&sampling()))?;
        let mut waiting = self.requests.iter().enumerate();
        while !stop.load(Ordering::Relaxed) {
            // 1. Where one has ended, the next begins.
            for (sequence, slot) in slots.iter_mut().enumerate().filter(|(_, slot)| slot.is_none()) {
                if let Some((index, (_, request))) = waiting.next() {
                    *slot = Some(self.begin(&mut decoding, sequence, index, request)?);
                }
            }
            if slots.iter().all(Option::is_none) {
                return Ok(texts);
            }
            // 2. Each takes its token, which may be its last.
            for (sequence, slot) in slots.iter_mut().enumerate() {
                if let Some(mut answer) = slot.take_if(|answer| answer.take(self.text_files)) {
                    answer.parser.finish().iter().for_each(|delta| answer.text.push_str(&delta.text));
                    texts[answer.index] = answer.text;
                    decoding.clear(sequence)?;
                }
            }
            // 3. A step of those that go on.
            if slots.iter().any(Option::is_some) {
                for (slot, id) in slots.iter_mut().zip(decoding.step()?) {
                    if let Some(answer) = slot {
                        answer.next = id;
                    }
                }
            }
        }
        Ok(Vec::new())
    }

    /// Reads a prompt in this place of the batch.
    fn begin(
        &self,
        decoding: &mut Decoding<'_>,
        sequence: usize,
        index: usize,
        request: &ReplyRequest,
    ) -> Result<Answer> {
        let (prompt, ids) = chat::render_prompt(self.text_files, request)?;
        let mut logits = None;
        for chunk in ids.chunks(chat::PREFILL_CHUNK) {
            logits = Some(decoding.prefill(sequence, chunk)?);
        }
        let logits = logits.ok_or_else(|| Error::data("A sample prompt without tokens"))?;
        let next = decoding.start(sequence, &logits, 0)?;
        let parser = Parser::for_model(self.text_files, &prompt);
        Ok(Answer { index, parser, text: String::new(), num_tokens: 0, next })
    }
}

/// An answer that is being written.
struct Answer {
    /// Of its prompt.
    index: usize,
    parser: Parser,
    text: String,
    num_tokens: usize,
    next: u32,
}

impl Answer {
    /// Takes the next token; whether it was the last.
    fn take(&mut self, text_files: &TextFiles) -> bool {
        self.num_tokens += 1;
        if text_files.stop_ids.contains(&self.next) {
            return true;
        }
        self.parser.push(self.next).iter().for_each(|delta| self.text.push_str(&delta.text));
        self.num_tokens == MAX_TOKENS
    }
}

fn sampling() -> SamplingParams {
    SamplingParams { max_tokens: MAX_TOKENS, ..SamplingParams::default() }
}

fn request(prompt: &str, style: Option<String>) -> ReplyRequest {
    ReplyRequest {
        messages: vec![Message { style, ..Message::new(Role::User, prompt) }],
        sampling: sampling(),
        thinking: Thinking::Show,
        effort: None,
        now: None,
    }
}
