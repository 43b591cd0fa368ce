//! Text into token ids, spans of bytes into a loss mask.

use crate::{Result, template::Rendered, text_files::TextFiles};

/// One example's tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    pub ids: Vec<u32>,
    /// Whether the model is trained to predict this token. Never the first, which nothing precedes.
    pub loss_mask: Vec<bool>,
}

/// One row of the data file, ready to be batched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedRow {
    /// From 0, in the data file.
    pub row: usize,
    /// Line of the file, from 1.
    pub line: usize,
    pub ids: Vec<u32>,
    pub loss_mask: Vec<bool>,
}

impl TokenizedRow {
    pub fn num_loss_tokens(&self) -> usize {
        self.loss_mask.iter().filter(|&&learned| learned).count()
    }

    /// Cuts the end off.
    pub fn truncate(&mut self, max_seq_len: usize) {
        self.ids.truncate(max_seq_len);
        self.loss_mask.truncate(max_seq_len);
    }
}

/// Ids and loss mask of a rendered conversation.
pub fn encode(_text_files: &TextFiles, _rendered: &Rendered) -> Result<Tokens> {
    todo!()
}

/// Ids of a text as it stands: special tokens in it are recognised, none is added.
pub fn encode_plain(_text_files: &TextFiles, _text: &str) -> Result<Vec<u32>> {
    todo!()
}
