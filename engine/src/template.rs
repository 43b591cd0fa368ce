//! Chat templates: a conversation into text, and which bytes of it the assistant wrote.

use std::{collections::BTreeMap, ops::Range};

use lathe_protocol::Role;

use crate::{Result, data::Chat};

/// A model's chat template, compiled.
pub struct ChatTemplate {
    /// Where it comes from, in words, e.g. `chat_template.jinja of the model`.
    pub origin: String,
}

/// What a template is told beside the conversation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RenderOptions {
    /// End with the header of the assistant's next turn.
    pub add_generation_prompt: bool,
    /// Left undefined for the template when `None`.
    pub enable_thinking: Option<bool>,
    /// Wins over the conversation's own.
    pub reasoning_effort: Option<String>,
    pub date: Date,
}

/// The moment a template's `strftime_now` tells. Its default is a fixed day, so that rows trained today and resumed
/// tomorrow are the same tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date {
    pub year: i32,
    /// 1..=12
    pub month: u32,
    /// 1..=31
    pub day: u32,
    pub hour: u32,
    pub minute: u32,
    pub second: u32,
}

impl Default for Date {
    /// 26 July 2024, the day Llama 3's own template falls back to.
    fn default() -> Self {
        Self { year: 2024, month: 7, day: 26, hour: 0, minute: 0, second: 0 }
    }
}

/// A conversation as text.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    pub text: String,
    /// Bytes the assistant wrote, end token included, in order.
    pub assistant_spans: Vec<Range<usize>>,
    /// Whether the tokenizer adds its own first and last tokens; a chat template writes them itself.
    pub bare: bool,
}

/// The bytes of one turn, its header included.
#[derive(Debug, Clone, PartialEq)]
pub struct TurnSpan {
    pub role: Role,
    pub bytes: Range<usize>,
}

impl ChatTemplate {
    /// Compiles `source`; `specials` are the tokens it may name (`bos_token`, `eos_token`, ..).
    pub fn new(
        _source: &str,
        origin: impl Into<String>,
        _specials: &BTreeMap<String, String>,
    ) -> Result<Self> {
        Ok(Self { origin: origin.into() })
    }

    /// The text alone: a prompt to generate from.
    pub fn prompt(&self, _chat: &Chat, _options: &RenderOptions) -> Result<String> {
        todo!()
    }
}

/// The text, and which of it the assistant wrote.
pub fn render(_template: &ChatTemplate, _chat: &Chat, _options: &RenderOptions) -> Result<Rendered> {
    todo!()
}
