//! A loaded model that answers conversations.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use jiff::civil::DateTime;
use lathe_protocol::{
    ChatStats, ErrorCode, Message, REASONING_EFFORTS, ReplyDelta, SamplingParams, Style, Thinking,
};

use crate::{
    Error, Result, adapter,
    data::Chat,
    model::{Compute, LoadFor, Model},
    reply::{ANSWER_AT_ONCE, Parser, ReplyForm},
    styles,
    template::RenderOptions,
    text_files::TextFiles,
    tokenize,
    writing::Memory,
};

/// Most tokens a conversation may hold, whatever the model could take: the cache is allocated for it.
const MAX_CONTEXT_TOKENS: usize = 8192;
/// Prompt tokens fed in one forward pass.
pub(crate) const PREFILL_CHUNK: usize = 512;

/// Most tokens of a conversation with this model.
pub(crate) fn context_length(model: &Model) -> usize {
    model.config.max_position_embeddings.min(MAX_CONTEXT_TOKENS)
}

/// What one reply is asked for.
#[derive(Debug, Clone)]
pub struct ReplyRequest {
    pub messages: Vec<Message>,
    pub sampling: SamplingParams,
    pub thinking: Thinking,
    pub effort: Option<String>,
    /// What the template takes for now; the fixed day of training when `None`.
    pub now: Option<DateTime>,
}

/// A loaded model with its adapters, in one conversation.
pub struct ChatSession {
    model: Model,
    text_files: TextFiles,
    reading: Reading,
    load_seconds: f64,
}

impl ChatSession {
    /// Loads a model and puts the adapters on it. `clock` tells seconds.
    pub fn load(model_path: &Path, adapters: &[PathBuf], clock: &dyn Fn() -> f64) -> Result<Self> {
        Self::load_on(Compute::cpu(), model_path, adapters, clock)
    }

    /// [`Self::load`] for computing elsewhere than on the CPU.
    pub fn load_on(
        compute: Compute,
        model_path: &Path,
        adapters: &[PathBuf],
        clock: &dyn Fn() -> f64,
    ) -> Result<Self> {
        let started = clock();
        let text_files = TextFiles::open_with(model_path, adapters)?;
        let mut model = Model::load_on(model_path, LoadFor::Inference, compute)?;
        for folder in adapters {
            adapter::attach(&mut model, folder)?;
        }
        model.fix_adapters()?;
        let reading = Reading::new(&model, context_length(&model))?;
        Ok(Self { model, text_files, reading, load_seconds: clock() - started })
    }

    pub fn load_seconds(&self) -> f64 {
        self.load_seconds
    }

    pub fn context_length(&self) -> usize {
        self.reading.memory.capacity()
    }

    pub fn supports_thinking(&self) -> bool {
        self.text_files.supports_thinking()
    }

    pub fn supports_effort(&self) -> bool {
        self.text_files.supports_effort()
    }

    pub fn styles(&self) -> &[Style] {
        &self.text_files.styles
    }

    /// [`Reading::reply`] of this session's model.
    pub fn reply(
        &mut self,
        request: &ReplyRequest,
        cancel: &AtomicBool,
        clock: &dyn Fn() -> f64,
        emit: &mut dyn FnMut(ReplyDelta),
    ) -> Result<ChatStats> {
        let Self { model, text_files, reading, load_seconds } = self;
        let stats = reading.reply(model, text_files, request, cancel, clock, emit)?;
        Ok(ChatStats { load_seconds: *load_seconds, ..stats })
    }
}

/// A conversation as the template writes it, up to where the answer begins, and its tokens.
///
/// Errors: no messages; a reasoning effort or style the model does not have; a template that refuses them.
pub(crate) fn render_prompt(text_files: &TextFiles, request: &ReplyRequest) -> Result<(String, Vec<u32>)> {
    let ReplyRequest { messages, thinking, effort, now, .. } = request;
    if messages.is_empty() {
        return Err(Error::invalid(ErrorCode::Usage, "The conversation is empty"));
    }
    if let Some(effort) = effort {
        let refuse = |message: String, hint: &str| Err(Error::invalid(ErrorCode::Usage, message).hint(hint));
        if !text_files.supports_effort() {
            let message = format!("This model has no reasoning effort to set to {effort:?}");
            return refuse(message, "leave --effort out; gpt-oss models have it");
        }
        if !REASONING_EFFORTS.contains(&effort.as_str()) {
            return refuse(format!("There is no reasoning effort {effort:?}"), "low, medium or high");
        }
    }
    let options = RenderOptions {
        add_generation_prompt: true,
        enable_thinking: (*thinking == Thinking::Off).then_some(false),
        reasoning_effort: effort.clone(),
        now: *now,
    };
    let mut chat = Chat::new(messages.clone());
    styles::apply(&text_files.styles, &mut chat.messages)?;
    let mut prompt = text_files.chat_template().prompt(&chat, &options)?;
    if *thinking == Thinking::Off && text_files.reply_form() == ReplyForm::Harmony {
        // Its template has no word for it.
        prompt.push_str(ANSWER_AT_ONCE);
    }
    let ids = tokenize::encode_plain(text_files, &prompt)?;
    Ok((prompt, ids))
}

/// The thoughts of one reply.
#[derive(Default)]
struct Thought {
    /// Markers and what was forced are not counted.
    tokens: usize,
    seconds: f64,
    /// When the thought that is not over yet began.
    since: Option<f64>,
    /// Tokens that end it, to be written before any is chosen again.
    ending: VecDeque<u32>,
}

impl Thought {
    fn note(&mut self, is_thinking: bool, now: f64) {
        match self.since {
            None if is_thinking => self.since = Some(now),
            Some(since) if !is_thinking => {
                self.seconds += now - since;
                self.since = None;
            }
            _ => {}
        }
    }

    /// Whether it goes on for longer than `budget` tokens, and nothing is done about it yet.
    fn is_over(&self, budget: usize) -> bool {
        self.since.is_some() && self.tokens >= budget && self.ending.is_empty()
    }
}

/// What a model has read and written so far, by which it goes on: tokens, with their keys and values.
pub struct Reading {
    memory: Memory,
    /// The tokens in memory.
    ids: Vec<u32>,
    num_replies: u64,
}

impl Reading {
    /// Room for `capacity` tokens.
    pub fn new(model: &Model, capacity: usize) -> Result<Self> {
        Ok(Self { memory: Memory::new(model, capacity)?, ids: Vec::new(), num_replies: 0 })
    }

    /// One that draws as if it had written so many replies.
    #[must_use]
    pub fn after(self, num_replies: u64) -> Self {
        Self { num_replies, ..self }
    }

    /// Writes a reply, piece by piece, until the model ends it, the token limit does, or `cancel` is set. Loading time
    /// is not this one's to know.
    ///
    /// Errors: a conversation longer than the room, or none; a reasoning effort the model does not have.
    pub fn reply(
        &mut self,
        model: &Model,
        text_files: &TextFiles,
        request: &ReplyRequest,
        cancel: &AtomicBool,
        clock: &dyn Fn() -> f64,
        emit: &mut dyn FnMut(ReplyDelta),
    ) -> Result<ChatStats> {
        let started = clock();
        let (prompt, prompt_ids) = render_prompt(text_files, request)?;
        let sampling = &request.sampling;
        let (prompt_tokens, capacity) = (prompt_ids.len(), self.memory.capacity());
        if prompt_tokens >= capacity {
            return Err(Error::invalid(
                ErrorCode::Usage,
                format!("The conversation has {prompt_tokens} tokens, the context holds {capacity}"),
            )
            .hint("start a new conversation, or shorten it"));
        }

        // 1. Read what is new: everything after the longest prefix that memory shares with the prompt.
        let Self { memory, ids, num_replies } = self;
        let shared = ids.iter().zip(&prompt_ids).take_while(|(a, b)| a == b).count();
        let shared = shared.min(prompt_tokens - 1);
        memory.truncate(shared);
        ids.truncate(shared);
        let mut writer = memory.writer(model, sampling, *num_replies)?;
        *num_replies += 1;
        for chunk in prompt_ids[shared..].chunks(PREFILL_CHUNK) {
            writer.read(chunk)?;
            ids.extend_from_slice(chunk);
            if cancel.load(Ordering::Relaxed) {
                break;
            }
        }

        // 2. Write, one token at a time.
        let mut parser = Parser::for_model(text_files, &prompt);
        let mut thought = Thought::default();
        thought.note(parser.is_thinking(), clock());
        // Before so many tokens none may end the reply.
        let stop_ids = text_files.stop_ids.as_slice();
        let forbidden =
            |output_tokens: usize| if output_tokens < sampling.min_tokens { stop_ids } else { &[] };
        let mut output_tokens = 0;
        let mut finished = false;
        let mut first_token_at = clock();
        while output_tokens < sampling.max_tokens && !cancel.load(Ordering::Relaxed) {
            if sampling.thinking_budget.is_some_and(|budget| thought.is_over(budget)) {
                thought.ending = tokenize::encode_plain(text_files, parser.end_of_thinking())?.into();
            }
            let forced = thought.ending.pop_front();
            let id = match forced {
                Some(id) => id,
                None => match writer.draw(forbidden(output_tokens))? {
                    Some(id) => id,
                    None => break,
                },
            };
            output_tokens += 1;
            if output_tokens == 1 {
                first_token_at = clock();
            }
            if stop_ids.contains(&id) {
                finished = true;
                break;
            }
            parser.push(id).into_iter().for_each(&mut *emit);
            let is_thinking = parser.is_thinking();
            thought.tokens += usize::from(is_thinking && thought.since.is_some() && forced.is_none());
            thought.note(is_thinking, clock());
            if writer.is_full() {
                break;
            }
            writer.write(id, forbidden(output_tokens))?;
            ids.push(id);
        }
        parser.finish().into_iter().for_each(&mut *emit);
        thought.note(false, clock());
        let seconds = clock() - first_token_at;
        let tokens_per_second =
            if output_tokens > 1 { (output_tokens - 1) as f64 / seconds.max(1e-9) } else { 0.0 };
        Ok(ChatStats {
            load_seconds: 0.0,
            ttft_seconds: first_token_at - started,
            prompt_tokens,
            output_tokens,
            tokens_per_second,
            thinking_tokens: thought.tokens,
            thinking_seconds: thought.seconds,
            finished,
        })
    }
}

#[cfg(test)]
mod tests {
    use lathe_protocol::{ReplyChannel, Role};

    use super::*;

    const GPTOSS: &str = include_str!("../../chat_templates/gptoss.jinja");
    /// A prompt that opens the thought, as the words of a tiny random model never would.
    const QWEN_THINKS: &str = "{{ messages[0].content }}<|im_end|>\n<|im_start|>assistant\n<think>\n";
    const GPTOSS_THINKS: &str = "{{ reasoning_effort }}<|start|>assistant<|channel|>analysis<|message|>";

    /// The tiny Qwen3 with another template.
    fn session(template: &str) -> ChatSession {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/tiny-qwen3");
        let folder = tempfile::tempdir().unwrap();
        for name in ["config.json", "model.safetensors", "tokenizer.json"] {
            std::fs::copy(golden.join(name), folder.path().join(name)).unwrap();
        }
        std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
        ChatSession::load(folder.path(), &[], &|| 0.0).unwrap()
    }

    fn request(thinking_budget: Option<usize>) -> ReplyRequest {
        ReplyRequest {
            messages: vec![Message::new(Role::User, "Hi")],
            sampling: SamplingParams {
                max_tokens: 96,
                temperature: 1.0,
                thinking_budget,
                ..SamplingParams::default()
            },
            thinking: Thinking::Show,
            effort: None,
            now: None,
        }
    }

    /// The statistics, and each channel's words.
    fn reply(session: &mut ChatSession, request: &ReplyRequest) -> (ChatStats, String, String) {
        let (mut thought, mut answer) = (String::new(), String::new());
        let ticks = std::cell::Cell::new(0.0);
        let clock = || ticks.replace(ticks.get() + 1.0);
        let mut emit = |delta: ReplyDelta| match delta.channel {
            ReplyChannel::Thinking => thought.push_str(&delta.text),
            _ => answer.push_str(&delta.text),
        };
        let stats = session.reply(request, &AtomicBool::new(false), &clock, &mut emit).unwrap();
        (stats, thought, answer)
    }

    #[test]
    fn a_thought_ends_with_its_budget_and_the_answer_follows() {
        for template in [QWEN_THINKS, GPTOSS_THINKS] {
            let mut session = session(template);
            let (stats, thought, answer) = reply(&mut session, &request(Some(5)));
            assert_eq!(stats.thinking_tokens, 5, "{thought:?}");
            assert!(stats.thinking_seconds > 0.0);
            assert!(!thought.is_empty() && !answer.is_empty(), "{thought:?} {answer:?}");
            assert!(
                !thought.contains('<') && !answer.contains("think>") && !answer.contains("<|"),
                "{answer:?}"
            );
            let (stats, thought, answer) = reply(&mut session, &request(Some(0)));
            assert_eq!((stats.thinking_tokens, thought.as_str()), (0, ""));
            assert!(!answer.is_empty());
            let (stats, _, answer) = reply(&mut session, &request(None));
            assert!(stats.thinking_tokens > 5 && answer.is_empty(), "{answer:?}");
        }
    }

    #[test]
    fn effort_and_thinking_reach_a_gptoss_prompt() {
        let session = session(GPTOSS);
        assert!(session.supports_thinking() && session.supports_effort());
        let prompt = |thinking, effort: Option<&str>| {
            let request = ReplyRequest { thinking, effort: effort.map(Into::into), ..request(None) };
            render_prompt(&session.text_files, &request).map(|(prompt, _)| prompt)
        };
        let low = prompt(Thinking::Show, Some("low")).unwrap();
        assert!(low.contains("\nReasoning: low\n") && low.ends_with("<|start|>assistant"));
        let off = prompt(Thinking::Off, None).unwrap();
        assert!(off.contains("\nReasoning: medium\n") && off.ends_with("<|channel|>final<|message|>"));
        let error = prompt(Thinking::Show, Some("max")).unwrap_err();
        assert_eq!(error.to_string(), "There is no reasoning effort \"max\"");
    }
}
