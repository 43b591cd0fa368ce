//! The tokens of a data file on disk: rows are read one at a time, and never all in memory.
//!
//! A folder of four files. `tokens.bin`: each token as u32, its highest bit telling whether it is learned. `rows.bin`: a
//! [`RowEntry`] a row. `prints.bin`: a [`Print`] a row. `meta.json`: lengths and checksums of these, and remarks.

mod build;

use std::{
    fs::File,
    io::{BufWriter, Read as _, Write as _},
    path::{Path, PathBuf},
};

use crc32fast::Hasher;
use serde::{Deserialize, Serialize};

pub use build::{Reading, open_or_build};

use crate::{Error, Result, files, prepare::EncodedRow, similar::Print, tokenize::Tokens};

const TOKENS: &str = "tokens.bin";
const ROWS: &str = "rows.bin";
const PRINTS: &str = "prints.bin";
const META: &str = "meta.json";
const LEARNED: u32 = 1 << 31;
/// So many remarks of each kind are kept.
pub const MAX_REMARKS: usize = 8;

/// Where a row's tokens lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowEntry {
    /// In tokens.
    pub offset: u64,
    /// Line of the data file, from 1; 0 in a file without lines.
    pub line: u32,
    /// Of its one sequence of tokens, or of a pair's chosen and rejected.
    pub lengths: [u32; 2],
    /// 0 if nothing can be learned from it, whatever the tokens say.
    pub num_learned: u32,
}

impl RowEntry {
    const NUM_BYTES: usize = 24;

    pub fn num_tokens(&self) -> usize {
        self.lengths.iter().map(|length| *length as usize).sum()
    }

    fn to_bytes(self) -> [u8; Self::NUM_BYTES] {
        let Self { offset, line, lengths: [first, second], num_learned } = self;
        let mut bytes = [0; Self::NUM_BYTES];
        bytes[..8].copy_from_slice(&offset.to_le_bytes());
        for (at, number) in [line, first, second, num_learned].into_iter().enumerate() {
            bytes[8 + 4 * at..12 + 4 * at].copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
        Self {
            offset: u64::from(number(0)) | u64::from(number(4)) << 32,
            line: number(8),
            lengths: [number(12), number(16)],
            num_learned: number(20),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Meta {
    /// Length and CRC-32 of `tokens.bin`, `rows.bin` and `prints.bin`.
    files: [(u64, u32); 3],
    /// Of the first few rows with something to learn and something to say.
    pub remarks: Vec<(usize, String)>,
    /// Why the first few rows have nothing to learn.
    pub nothing: Vec<(usize, String)>,
    /// Styles that rows with something to learn are of.
    pub styles: Vec<String>,
}

/// The rows of one data file, in its order.
pub struct Store {
    pub rows: Vec<RowEntry>,
    pub(crate) meta: Meta,
    folder: PathBuf,
    tokens: File,
    prints: File,
}

impl Store {
    /// Opens what [`Writer`] left.
    ///
    /// Errors: a file that is missing, cut short or changed.
    fn open(folder: &Path) -> Result<Self> {
        let meta: Meta = files::read_json(&folder.join(META))?;
        for (name, (length, checksum)) in [TOKENS, ROWS, PRINTS].iter().zip(meta.files) {
            let path = folder.join(name);
            if self::checksum(&path)? != (length, checksum) {
                return Err(Error::data(format!("Changed since it was written: {}", path.display())));
            }
        }
        let rows = std::fs::read(folder.join(ROWS)).map_err(Error::io("read", folder))?;
        let open = |name: &str| File::open(folder.join(name)).map_err(Error::io("read", folder.join(name)));
        Ok(Self {
            rows: rows.chunks_exact(RowEntry::NUM_BYTES).map(RowEntry::from_bytes).collect(),
            meta,
            folder: folder.to_path_buf(),
            tokens: open(TOKENS)?,
            prints: open(PRINTS)?,
        })
    }

    /// The sequences of tokens of a row: one, or two.
    pub fn read(&self, row: usize) -> Result<Vec<Tokens>> {
        let entry = self.rows[row];
        let mut bytes = vec![0; 4 * entry.num_tokens()];
        files::read_exact_at(&self.tokens, &mut bytes, 4 * entry.offset)
            .map_err(Error::io("read tokens", &self.folder))?;
        let (codes, _) = bytes.as_chunks::<4>();
        let mut codes = codes.iter().map(|code| u32::from_le_bytes(*code));
        let lengths = entry.lengths.iter().filter(|length| **length > 0);
        let sequence = |length: &u32| {
            let (ids, loss_mask) =
                codes.by_ref().take(*length as usize).map(|code| (code & !LEARNED, code >= LEARNED)).unzip();
            Tokens { ids, loss_mask }
        };
        Ok(lengths.map(sequence).collect())
    }

    /// The prints of `count` rows from `row` on.
    pub fn read_prints(&self, row: usize, count: usize) -> Result<Vec<Print>> {
        let mut bytes = vec![0; Print::NUM_BYTES * count];
        files::read_exact_at(&self.prints, &mut bytes, (Print::NUM_BYTES * row) as u64)
            .map_err(Error::io("read prints", &self.folder))?;
        let (prints, _) = bytes.as_chunks::<{ Print::NUM_BYTES }>();
        Ok(prints.iter().map(Print::from_bytes).collect())
    }
}

/// Length and CRC-32 of a file.
fn checksum(path: &Path) -> Result<(u64, u32)> {
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let mut hasher = Hasher::new();
    let (mut length, mut buffer) = (0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(Error::io("read", path))? {
            0 => return Ok((length, hasher.finalize())),
            num_bytes => {
                hasher.update(&buffer[..num_bytes]);
                length += num_bytes as u64;
            }
        }
    }
}

/// One of a store's files, being written.
struct Part {
    file: BufWriter<File>,
    path: PathBuf,
    length: u64,
    hasher: Hasher,
}

impl Part {
    fn create(path: PathBuf) -> Result<Self> {
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        Ok(Self { file: BufWriter::with_capacity(1 << 18, file), path, length: 0, hasher: Hasher::new() })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        self.file.write_all(bytes).map_err(Error::io("write tokens", &self.path))
    }

    fn finish(mut self) -> Result<(u64, u32)> {
        self.file.flush().map_err(Error::io("write tokens", &self.path))?;
        Ok((self.length, self.hasher.finalize()))
    }
}

/// Writes a store, row by row.
struct Writer {
    tokens: Part,
    rows: Part,
    prints: Part,
    num_rows: usize,
    meta: Meta,
    folder: PathBuf,
}

impl Writer {
    fn create(folder: &Path) -> Result<Self> {
        files::create_dir_all(folder)?;
        let part = |name: &str| Part::create(folder.join(name));
        let (tokens, rows, prints) = (part(TOKENS)?, part(ROWS)?, part(PRINTS)?);
        Ok(Self { tokens, rows, prints, num_rows: 0, meta: Meta::default(), folder: folder.to_path_buf() })
    }

    fn push(&mut self, row: EncodedRow) -> Result<()> {
        let EncodedRow { line, tokens, rejected, remark, useless, style, print } = row;
        let mut entry =
            RowEntry { offset: self.tokens.length / 4, line: line as u32, lengths: [0; 2], num_learned: 0 };
        let mut bytes = Vec::with_capacity(4 * tokens.ids.len());
        let mut learns = !useless;
        for (tokens, length) in [&tokens].into_iter().chain(&rejected).zip(&mut entry.lengths) {
            *length = tokens.ids.len() as u32;
            let mut num_learned = 0;
            for (id, learned) in tokens.ids.iter().zip(&tokens.loss_mask) {
                num_learned += u32::from(*learned);
                bytes.extend((id | if *learned { LEARNED } else { 0 }).to_le_bytes());
            }
            learns &= num_learned > 0;
            entry.num_learned += num_learned;
        }
        if !learns {
            entry.num_learned = 0;
        }
        self.tokens.write(&bytes)?;
        self.rows.write(&entry.to_bytes())?;
        self.prints.write(&print.to_bytes())?;
        if entry.num_learned == 0 {
            let why = remark.unwrap_or_else(|| "the template leaves the assistant's words out".into());
            push_first(&mut self.meta.nothing, (self.num_rows, why));
        } else {
            if let Some(remark) = remark {
                push_first(&mut self.meta.remarks, (self.num_rows, remark));
            }
            if let Some(style) = style.filter(|style| !self.meta.styles.contains(style)) {
                self.meta.styles.push(style);
            }
        }
        self.num_rows += 1;
        Ok(())
    }

    fn finish(self) -> Result<()> {
        let Self { tokens, rows, prints, mut meta, folder, .. } = self;
        meta.files = [tokens.finish()?, rows.finish()?, prints.finish()?];
        files::write_json(&folder.join(META), &meta)
    }
}

fn push_first(list: &mut Vec<(usize, String)>, item: (usize, String)) {
    if list.len() < MAX_REMARKS {
        list.push(item);
    }
}
