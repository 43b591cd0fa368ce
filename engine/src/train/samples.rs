use std::sync::atomic::{AtomicBool, Ordering};

use lathe_protocol::{EventBody, Message, Role, SampleText, SamplingParams, Style, Thinking};

use crate::{
    Result,
    chat::{self, Reading, ReplyRequest},
    model::Model,
    text_files::TextFiles,
};

/// Most tokens of a sample.
const MAX_TOKENS: usize = 64;

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
        for (prompt, request) in &self.requests {
            let mut reading = Reading::new(model, self.capacity)?;
            let mut text = String::new();
            reading.reply(model, self.text_files, request, stop, &|| 0.0, &mut |delta| {
                text.push_str(&delta.text);
            })?;
            if stop.load(Ordering::Relaxed) {
                break;
            }
            emit(EventBody::Sample(SampleText {
                step,
                prompt: prompt.clone(),
                text: text.trim().to_owned(),
            }));
        }
        Ok(())
    }
}

fn request(prompt: &str, style: Option<String>) -> ReplyRequest {
    ReplyRequest {
        messages: vec![Message { style, ..Message::new(Role::User, prompt) }],
        sampling: SamplingParams { max_tokens: MAX_TOKENS, ..SamplingParams::default() },
        thinking: Thinking::Show,
        effort: None,
        now: None,
    }
}
