use std::{borrow::Cow, ops::Range, sync::Arc};

use lathe_protocol::RowPlace;

use crate::{
    Result,
    batch::{self, Batch},
    similar::{Print, Prints},
    store::Store,
    tokenize::TokenizedRow,
};

/// Prints read at a time.
const PRINTS_BLOCK: usize = 1024;

/// A file of a corpus.
pub(super) struct CorpusFile {
    pub store: Store,
    /// Rows of the files before it.
    pub first_row: usize,
    /// Where there are several.
    pub name: Option<String>,
    pub weight: f64,
}

impl CorpusFile {
    pub fn place(&self, row: usize) -> RowPlace {
        let line = self.store.rows[row].line as usize;
        RowPlace { row: self.first_row + row, line, file: self.name.clone() }
    }

    /// A row, cut to length.
    pub fn read(&self, row: usize, max_seq_len: usize) -> Result<TokenizedRow> {
        let RowPlace { row: number, line, .. } = self.place(row);
        let mut sides = self.store.read(row)?.into_iter();
        let (ids, loss_mask) = sides.next().map(|tokens| (tokens.ids, tokens.loss_mask)).unwrap_or_default();
        let mut row = TokenizedRow { row: number, line, ids, loss_mask, rejected: sides.next() };
        row.truncate(max_seq_len);
        Ok(row)
    }
}

/// A row of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowRef {
    pub file: u32,
    pub row: u32,
    /// After the cut; of a pair, of both sides.
    pub num_tokens: u32,
    pub num_learned: u32,
}

/// Rows that lie in stores, in the files' order: sixteen bytes each in memory.
#[derive(Clone)]
pub struct StoredRows {
    files: Arc<Vec<CorpusFile>>,
    rows: Vec<RowRef>,
    /// Where they are cut.
    max_seq_len: usize,
}

/// Neighbouring rows of one file.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    pub rows: Range<usize>,
    /// How often an epoch sees each of them.
    pub weight: f64,
}

impl StoredRows {
    pub(super) fn new(files: Arc<Vec<CorpusFile>>, max_seq_len: usize) -> Self {
        Self { files, rows: Vec::new(), max_seq_len }
    }

    pub(super) fn push(&mut self, row: RowRef) {
        self.rows.push(row);
    }

    /// Takes rows out; how many they were.
    pub(super) fn drop(&mut self, dropped: &[bool]) -> usize {
        let before = self.rows.len();
        let mut dropped = dropped.iter();
        self.rows.retain(|_| dropped.next() == Some(&false));
        before - self.rows.len()
    }

    pub fn retain(&mut self, keep: impl Fn(&RowPlace) -> bool) {
        let files = self.files.clone();
        self.rows.retain(|row| keep(&files[row.file as usize].place(row.row as usize)));
    }

    /// Takes the marked rows out, and returns them.
    pub(super) fn split_off(&mut self, marked: &[bool]) -> Self {
        let mut taken = Self::new(self.files.clone(), self.max_seq_len);
        let mut marked = marked.iter();
        self.rows.retain(|row| {
            let stays = marked.next() == Some(&false);
            if !stays {
                taken.rows.push(*row);
            }
            stays
        });
        taken
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// How many rows each file has, with those that are not among these.
    pub fn rows_of_files(&self) -> impl Iterator<Item = usize> {
        self.files.iter().map(|file| file.store.rows.len())
    }

    /// How many of these each file has.
    pub fn counts_of_files(&self) -> Vec<usize> {
        let mut counts = vec![0; self.files.len()];
        self.rows.iter().for_each(|row| counts[row.file as usize] += 1);
        counts
    }

    pub fn num_learned(&self, row: usize) -> usize {
        self.rows[row].num_learned as usize
    }

    pub fn place(&self, row: usize) -> RowPlace {
        let RowRef { file, row, .. } = self.rows[row];
        self.files[file as usize].place(row as usize)
    }
}

/// The rows of a run, wherever they lie.
#[derive(Clone)]
pub enum Rows<'a> {
    Memory(&'a [TokenizedRow]),
    Stored(StoredRows),
}

impl Rows<'_> {
    pub fn len(&self) -> usize {
        match self {
            Self::Memory(rows) => rows.len(),
            Self::Stored(rows) => rows.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of each row; of a pair, of both sides.
    pub fn lengths(&self) -> Vec<usize> {
        match self {
            Self::Memory(rows) => rows.iter().map(TokenizedRow::num_tokens).collect(),
            Self::Stored(rows) => rows.rows.iter().map(|row| row.num_tokens as usize).collect(),
        }
    }

    /// Tokens of the longest row, or of the longest side of a pair.
    pub fn longest_side(&self) -> usize {
        let longest = match self {
            Self::Memory(rows) => rows.iter().map(TokenizedRow::longest_side).max(),
            Self::Stored(StoredRows { files, rows, max_seq_len }) => {
                let lengths =
                    rows.iter().flat_map(|row| files[row.file as usize].store.rows[row.row as usize].lengths);
                lengths.max().map(|length| (length as usize).min(*max_seq_len))
            }
        };
        longest.unwrap_or(0)
    }

    pub fn get(&self, row: usize) -> Result<Cow<'_, TokenizedRow>> {
        match self {
            Self::Memory(rows) => Ok(Cow::Borrowed(&rows[row])),
            Self::Stored(rows) => {
                let RowRef { file, row, .. } = rows.rows[row];
                rows.files[file as usize].read(row as usize, rows.max_seq_len).map(Cow::Owned)
            }
        }
    }

    /// Some rows, end to end.
    pub fn pack(&self, rows: &[usize]) -> Result<Batch> {
        let loaded = rows.iter().map(|row| self.get(*row)).collect::<Result<Vec<_>>>()?;
        Ok(batch::pack(loaded.iter().map(AsRef::as_ref)))
    }

    pub fn place(&self, row: usize) -> RowPlace {
        match self {
            Self::Memory(rows) => RowPlace { row: rows[row].row, line: rows[row].line, file: None },
            Self::Stored(rows) => rows.place(row),
        }
    }

    /// How often an epoch sees which rows.
    pub fn shares(&self) -> Vec<Share> {
        let Self::Stored(StoredRows { files, rows, .. }) = self else {
            return vec![Share { rows: 0..self.len(), weight: 1.0 }];
        };
        let mut start = 0;
        let chunks = rows.chunk_by(|a, b| a.file == b.file).map(|chunk| {
            let rows = start..start + chunk.len();
            start = rows.end;
            Share { rows, weight: files[chunk[0].file as usize].weight }
        });
        chunks.collect()
    }
}

impl Prints for StoredRows {
    fn num_rows(&self) -> usize {
        self.rows.len()
    }

    fn each(&self, visit: &mut dyn FnMut(usize, &Print)) -> Result<()> {
        // Those at hand: of one file, from a row on.
        let mut block = (0, 0, Vec::new());
        for (index, RowRef { file, row, .. }) in self.rows.iter().enumerate() {
            let (file, row) = (*file as usize, *row as usize);
            if block.0 != file || !(block.1..block.1 + block.2.len()).contains(&row) {
                let store = &self.files[file].store;
                let count = PRINTS_BLOCK.min(store.rows.len() - row);
                block = (file, row, store.read_prints(row, count)?);
            }
            visit(index, &block.2[row - block.1]);
        }
        Ok(())
    }

    fn print(&self, row: usize) -> Result<Print> {
        let RowRef { file, row, .. } = self.rows[row];
        Ok(self.files[file as usize].store.read_prints(row as usize, 1)?[0])
    }
}

/// Rows behind others.
pub(super) struct Pair<'a> {
    pub first: &'a StoredRows,
    pub second: &'a StoredRows,
}

impl Prints for Pair<'_> {
    fn num_rows(&self) -> usize {
        self.first.len() + self.second.len()
    }

    fn each(&self, visit: &mut dyn FnMut(usize, &Print)) -> Result<()> {
        self.first.each(visit)?;
        self.second.each(&mut |row, print| visit(self.first.len() + row, print))
    }

    fn print(&self, row: usize) -> Result<Print> {
        match row.checked_sub(self.first.len()) {
            None => self.first.print(row),
            Some(row) => self.second.print(row),
        }
    }
}
