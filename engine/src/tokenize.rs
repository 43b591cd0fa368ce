//! Text into token ids, spans of bytes into a loss mask.

use std::ops::Range;

use lathe_protocol::ErrorCode;

use crate::{Error, Result, template::Rendered, text_files::TextFiles};

/// One example's tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    pub ids: Vec<u32>,
    /// Whether the model is trained to predict this token. Never the first, which nothing precedes.
    pub loss_mask: Vec<bool>,
}

/// One row of the data file, ready to be batched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizedRow {
    /// From 0, in the data file.
    pub row: usize,
    /// Line of the file, from 1.
    pub line: usize,
    pub ids: Vec<u32>,
    /// As [`Tokens::loss_mask`]. Of a pair's side, its answer: all that follows the prompt.
    pub loss_mask: Vec<bool>,
    /// The other side of a pair, whose chosen one this is then.
    pub rejected: Option<Tokens>,
}

impl TokenizedRow {
    /// Of both sides.
    pub fn num_tokens(&self) -> usize {
        self.ids.len() + self.rejected.as_ref().map_or(0, |rejected| rejected.ids.len())
    }

    /// Tokens of the longer side.
    pub fn longest_side(&self) -> usize {
        self.rejected.as_ref().map_or(0, |rejected| rejected.ids.len()).max(self.ids.len())
    }

    /// Of both sides.
    pub fn num_loss_tokens(&self) -> usize {
        self.loss_masks().map(num_learned).sum()
    }

    /// Whether something is learned from it: of a pair, from either side.
    pub fn learns(&self) -> bool {
        self.loss_masks().all(|loss_mask| num_learned(loss_mask) > 0)
    }

    fn loss_masks(&self) -> impl Iterator<Item = &[bool]> {
        let rejected = self.rejected.iter().map(|rejected| rejected.loss_mask.as_slice());
        std::iter::once(self.loss_mask.as_slice()).chain(rejected)
    }

    /// Cuts the end off each side.
    pub fn truncate(&mut self, max_seq_len: usize) {
        let Self { ids, loss_mask, rejected, .. } = self;
        let rejected = rejected.iter_mut().map(|rejected| (&mut rejected.ids, &mut rejected.loss_mask));
        for (ids, loss_mask) in std::iter::once((ids, loss_mask)).chain(rejected) {
            ids.truncate(max_seq_len);
            loss_mask.truncate(max_seq_len);
        }
    }
}

fn num_learned(loss_mask: &[bool]) -> usize {
    loss_mask.iter().filter(|&&learned| learned).count()
}

/// Ids and loss mask of a rendered conversation.
pub fn encode(text_files: &TextFiles, rendered: &Rendered) -> Result<Tokens> {
    encode_with_bytes(text_files, rendered).map(|(tokens, _)| tokens)
}

/// Also where in the text each token comes from, in bytes. Tokens the tokenizer adds come from nowhere: empty ranges.
pub fn encode_with_bytes(text_files: &TextFiles, rendered: &Rendered) -> Result<(Tokens, Vec<Range<usize>>)> {
    let Rendered { text, assistant_spans, bare } = rendered;
    let (prefix, suffix): (&[u32], &[u32]) =
        if *bare { (&text_files.prefix_ids, &text_files.suffix_ids) } else { (&[], &[]) };
    // `encode` counts offsets in bytes. A character that several tokens share gives each of them its own range.
    let encoding =
        text_files.tokenizer.encode(text.as_str(), false).map_err(|error| tokenizer_fails(&error))?;

    let num_tokens = prefix.len() + encoding.len() + suffix.len();
    let mut tokens =
        Tokens { ids: Vec::with_capacity(num_tokens), loss_mask: Vec::with_capacity(num_tokens) };
    let mut bytes = Vec::with_capacity(num_tokens);
    for &id in prefix {
        tokens.ids.push(id);
        tokens.loss_mask.push(false);
        bytes.push(0..0);
    }
    let mut spans = assistant_spans.iter().peekable();
    for (&id, &(start, end)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
        // Both go forward, so the span this token may lie in is the first that does not end before it.
        while spans.next_if(|span| span.end <= start).is_some() {}
        tokens.ids.push(id);
        tokens.loss_mask.push(spans.peek().is_some_and(|span| span.contains(&start)));
        bytes.push(start..end);
    }
    for &id in suffix {
        tokens.ids.push(id);
        // It ends the text, so it is learned with the text's end.
        tokens.loss_mask.push(assistant_spans.last().is_some_and(|span| span.end == text.len()));
        bytes.push(text.len()..text.len());
    }
    if let Some(first) = tokens.loss_mask.first_mut() {
        *first = false;
    }
    Ok((tokens, bytes))
}

/// Ids of a text as it stands: special tokens in it are recognised, none is added.
pub fn encode_plain(text_files: &TextFiles, text: &str) -> Result<Vec<u32>> {
    let encoding = text_files.tokenizer.encode_fast(text, false).map_err(|error| tokenizer_fails(&error))?;
    Ok(encoding.get_ids().to_vec())
}

fn tokenizer_fails(error: &tokenizers::Error) -> Error {
    Error::invalid(ErrorCode::Model, format!("The tokenizer fails: {error}"))
}
