//! Generated tokens into what a person reads: text by channel, markers never shown.

use std::sync::Arc;

use lathe_protocol::ReplyDelta;
use tokenizers::Tokenizer;

use crate::text_files::TextFiles;

/// How a model marks the parts of its reply.
pub enum Parser {
    /// Everything is the answer.
    Plain(Arc<Tokenizer>),
    /// `<think>…</think>` and `<tool_call>…</tool_call>` around parts of it.
    Tagged(Arc<Tokenizer>),
}

impl Parser {
    /// For a reply to `prompt`, the rendered conversation, which may have opened the thinking already.
    pub fn for_model(_text_files: &TextFiles, _prompt: &str) -> Self {
        todo!()
    }

    /// Takes the next token; gives what can be shown by now, often nothing.
    pub fn push(&mut self, _id: u32) -> Vec<ReplyDelta> {
        todo!()
    }

    /// Gives what was held back.
    pub fn finish(&mut self) -> Vec<ReplyDelta> {
        todo!()
    }
}
