//! A model's words: its tokenizer, chat template and special tokens.

use std::{path::Path, sync::Arc};

use candle_core::quantized::gguf_file::Content;
use tokenizers::Tokenizer;

use crate::{Result, template::ChatTemplate};

/// What a model's own files say about text.
pub struct TextFiles {
    /// Without post-processing, truncation and padding: ids are exactly the text's.
    pub tokenizer: Arc<Tokenizer>,
    /// The model's own.
    pub template: Option<ChatTemplate>,
    /// Any of these ends a reply.
    pub stop_ids: Vec<u32>,
    pub bos: Option<SpecialToken>,
    pub eos: Option<SpecialToken>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialToken {
    pub id: u32,
    pub text: String,
}

impl TextFiles {
    /// Reads a model folder or a `.gguf` file.
    pub fn open(_model: &Path) -> Result<Self> {
        todo!()
    }

    /// From a GGUF's metadata that is read already; `path` is for errors.
    pub fn from_gguf(_content: &Content, _path: &Path) -> Result<Self> {
        todo!()
    }

    /// The model's template, or ChatML for a model without one.
    pub fn chat_template(&self) -> &ChatTemplate {
        todo!()
    }
}
