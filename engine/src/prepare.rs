//! A data file's rows into rows of tokens: the one road that training, evaluation and preflight share.

use lathe_protocol::RowIssue;

use crate::{Result, data::Dataset, text_files::TextFiles, tokenize::TokenizedRow};

/// The rows that can be learned from, cut to length, in the file's order.
#[derive(Debug, Clone, PartialEq)]
pub struct PreparedRows {
    pub rows: Vec<TokenizedRow>,
    /// Lengths of all rows of the file before truncation.
    pub lengths: Vec<usize>,
    pub truncated_rows: usize,
    /// Rows without a trained token as they are.
    pub rows_nothing_to_learn: usize,
    /// Rows whose trained tokens all lay past the cut.
    pub rows_emptied_by_truncation: usize,
    /// The first few rows with something to say.
    pub issues: Vec<RowIssue>,
}

/// Parses, renders, encodes and truncates every row, on all of rayon's threads.
pub fn rows(_text_files: &TextFiles, _dataset: &Dataset, _max_seq_len: usize) -> Result<PreparedRows> {
    todo!()
}
