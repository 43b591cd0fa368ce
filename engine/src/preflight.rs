//! What a data file is worth to a model, before any training.

use lathe_protocol::{DataReport, RowView, RunConfig};

use crate::{Result, data::Dataset, prepare::PreparedRows, text_files::TextFiles};

/// The findings about a whole data file.
pub fn check(_text_files: &TextFiles, _dataset: &Dataset, _config: &RunConfig) -> Result<DataReport> {
    todo!()
}

/// The findings about rows that are prepared already.
pub fn report(
    _text_files: &TextFiles,
    _dataset: &Dataset,
    _prepared: &PreparedRows,
    _config: &RunConfig,
) -> DataReport {
    todo!()
}

/// One row, token by token.
pub fn show_row(
    _text_files: &TextFiles,
    _dataset: &Dataset,
    _row: usize,
    _max_seq_len: usize,
) -> Result<RowView> {
    todo!()
}

/// An error if no token would be trained.
pub fn refuse_nothing(_report: &DataReport) -> Result<()> {
    todo!()
}
