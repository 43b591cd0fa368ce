//! What a run learns from and is measured on: the rows of its files that are worth something, cut to length.

mod rows;
#[cfg(test)]
mod tests;

use std::{path::Path, sync::Arc};

use lathe_protocol::{DataFile, Dedupe, ErrorCode, RowIssue, RowPlace, RunConfig, SimilarPair, SimilarRows};

use rows::{CorpusFile, RowRef};
pub use rows::{Rows, Share, StoredRows};

use crate::{
    Error, Result,
    data::Dataset,
    prepare,
    similar::{self, Match},
    store::{self, MAX_REMARKS, Reading},
    text_files::TextFiles,
};

/// So many pairs of rows that resemble each other are named.
const MAX_PAIRS: usize = 8;

/// A run's data, read and looked through.
pub struct Corpus {
    /// As far as they were read for their shapes.
    pub datasets: Vec<Dataset>,
    pub rows: StoredRows,
    pub held_out: StoredRows,
    pub findings: Findings,
}

/// What was found while rows were chosen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Findings {
    /// Of every row of the files, before they are cut; of pairs, of the chosen side.
    pub lengths: Vec<u32>,
    /// Of pairs, those of the other side.
    pub rejected_lengths: Vec<u32>,
    pub truncated_rows: usize,
    /// Rows without a trained token as they are.
    pub rows_nothing_to_learn: usize,
    /// Rows whose trained tokens all lay past the cut.
    pub rows_emptied_by_truncation: usize,
    /// The first few rows with something to say, in order.
    pub issues: Vec<RowIssue>,
    pub duplicates: SimilarRows,
    pub leaks: SimilarRows,
    pub rows_dropped: usize,
    /// Styles that rows are of.
    pub styles: Vec<String>,
}

/// Reads a run's files, and those rows that are held out: a share of them, or `eval_data`.
///
/// Errors: see [`store::open_or_build`]; one file twice.
pub fn read(
    text_files: &TextFiles,
    files: &[DataFile],
    eval_data: Option<&str>,
    config: &RunConfig,
    reading: &mut Reading<'_>,
) -> Result<Corpus> {
    refuse_twice(files)?;
    let (datasets, all) = open(text_files, files, reading)?;
    let mut findings = Findings::default();
    let mut rows = select(&all, config.max_seq_len, &mut findings)?;

    // 1. Duplicates among the rows, before any of them is held out
    let mut dropped = vec![false; rows.len()];
    note(&similar::find(&rows, None)?, &rows, config, &mut findings.duplicates, &mut dropped);
    findings.rows_dropped += rows.drop(&dropped);

    // 2. What is held out
    let held_out = if let Some(path) = eval_data {
        let (_, files) = open(text_files, &[config.eval_file(path)], reading)?;
        select(&files, config.max_seq_len, &mut Findings::default())?
    } else {
        rows.split_off(&prepare::held_out(rows.len(), config))
    };

    // 3. Rows that are learned from and measured on
    let pairs = rows::Pair { first: &held_out, second: &rows };
    let mut dropped = vec![false; rows.len()];
    let matches = similar::find(&pairs, Some(held_out.len()))?;
    note_leaks(&matches, &held_out, &rows, config, &mut findings.leaks, &mut dropped);
    findings.rows_dropped += rows.drop(&dropped);
    Ok(Corpus { datasets, rows, held_out, findings })
}

/// Reads one file to measure a model on.
pub fn read_one(
    text_files: &TextFiles,
    file: &DataFile,
    max_seq_len: usize,
    reading: &mut Reading<'_>,
) -> Result<(Dataset, StoredRows)> {
    let dataset = Dataset::open(file)?;
    let files = open(text_files, std::slice::from_ref(file), reading)?.1;
    Ok((dataset, select(&files, max_seq_len, &mut Findings::default())?))
}

fn refuse_twice(files: &[DataFile]) -> Result<()> {
    let real =
        |file: &DataFile| std::fs::canonicalize(&file.path).unwrap_or_else(|_| file.path.clone().into());
    for (index, file) in files.iter().enumerate() {
        if files[..index].iter().any(|other| real(other) == real(file)) {
            let message = format!("The same data file is given twice: {}", file.path);
            return Err(
                Error::invalid(ErrorCode::Usage, message).hint("to see its rows twice, give it weight 2")
            );
        }
    }
    Ok(())
}

fn open(
    text_files: &TextFiles,
    files: &[DataFile],
    reading: &mut Reading<'_>,
) -> Result<(Vec<Dataset>, Arc<Vec<CorpusFile>>)> {
    let (mut datasets, mut opened) = (Vec::new(), Vec::new());
    let mut first_row = 0;
    for file in files {
        let dataset = Dataset::open(file)?;
        let store = store::open_or_build(text_files, &dataset, first_row, reading)?;
        let num_rows = store.rows.len();
        let name = Path::new(&file.path).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = (files.len() > 1).then_some(name);
        opened.push(CorpusFile { store, first_row, name, weight: file.weight });
        datasets.push(dataset);
        first_row += num_rows;
    }
    Ok((datasets, Arc::new(opened)))
}

/// The rows with something to learn before the cut at `max_seq_len`.
fn select(files: &Arc<Vec<CorpusFile>>, max_seq_len: usize, findings: &mut Findings) -> Result<StoredRows> {
    let mut rows = StoredRows::new(files.clone(), max_seq_len);
    for (index, file) in files.iter().enumerate() {
        let meta = &file.store.meta;
        findings.styles.extend(meta.styles.iter().cloned());
        let mut remarks = meta.remarks.iter().peekable();
        let mut nothing = meta.nothing.iter().peekable();
        for (row, entry) in file.store.rows.iter().enumerate() {
            let [length, rejected_length] = entry.lengths;
            findings.lengths.push(length);
            findings.rejected_lengths.extend((rejected_length > 0).then_some(rejected_length));
            let issues = &mut findings.issues;
            let mut issue = |issue: String| issues.push(RowIssue { place: file.place(row), issue });
            let longest = length.max(rejected_length) as usize;
            if longest > max_seq_len {
                findings.truncated_rows += 1;
                if findings.truncated_rows <= MAX_REMARKS {
                    issue(format!("cut from {longest} to {max_seq_len} tokens"));
                }
            }
            if entry.num_learned == 0 {
                findings.rows_nothing_to_learn += 1;
                if let Some((_, why)) = nothing.next_if(|(at, _)| *at == row) {
                    issue(format!("nothing to learn: {why}"));
                }
                continue;
            }
            if let Some((_, remark)) = remarks.next_if(|(at, _)| *at == row) {
                issue(remark.clone());
            }
            let mut kept = RowRef {
                file: index as u32,
                row: row as u32,
                num_tokens: entry.num_tokens() as u32,
                num_learned: entry.num_learned,
            };
            if longest > max_seq_len {
                let cut = file.read(row, max_seq_len)?;
                kept.num_tokens = cut.num_tokens() as u32;
                kept.num_learned = if cut.learns() { cut.num_loss_tokens() as u32 } else { 0 };
            }
            if kept.num_learned == 0 {
                findings.rows_emptied_by_truncation += 1;
                if findings.rows_emptied_by_truncation <= MAX_REMARKS {
                    let all = match entry.num_learned {
                        _ if rejected_length > 0 => "an answer lies",
                        1 => "its one trained token lies",
                        _ => "all its trained tokens lie",
                    };
                    issue(format!("nothing left to learn: {all} past the cut at {max_seq_len} tokens"));
                }
                continue;
            }
            rows.push(kept);
        }
    }
    Ok(rows)
}

/// Counts rows that resemble an earlier one, and marks those that are to go.
fn note(
    matches: &[Match],
    rows: &StoredRows,
    config: &RunConfig,
    similar: &mut SimilarRows,
    dropped: &mut [bool],
) {
    for found in matches {
        count(found, rows.place(found.row), || rows.place(found.like), similar);
        dropped[found.row] = goes(config.dedupe, found);
    }
}

/// [`note`] on matches of `rows`, which stand behind `held_out`.
fn note_leaks(
    matches: &[Match],
    held_out: &StoredRows,
    rows: &StoredRows,
    config: &RunConfig,
    similar: &mut SimilarRows,
    dropped: &mut [bool],
) {
    for found in matches {
        let row = found.row - held_out.len();
        count(found, rows.place(row), || held_out.place(found.like), similar);
        dropped[row] = goes(config.dedupe, found);
    }
}

fn goes(dedupe: Dedupe, found: &Match) -> bool {
    dedupe == Dedupe::Near || (dedupe == Dedupe::Exact && found.is_exact)
}

fn count(found: &Match, row: RowPlace, like: impl Fn() -> RowPlace, similar: &mut SimilarRows) {
    if found.is_exact {
        similar.exact += 1;
    } else {
        similar.near += 1;
    }
    if similar.pairs.len() < MAX_PAIRS {
        similar.pairs.push(SimilarPair { row, like: like(), similarity: found.similarity });
    }
}
