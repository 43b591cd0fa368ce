//! The file formats, read a row at a time: JSONL, JSON, CSV, Parquet and plain text.

mod csv;
mod json;
mod parquet;

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::{Map, Value};

use self::{csv::CsvRows, json::JsonRows, parquet::ParquetRows};
use super::{RawExample, row_error};
use crate::{Error, Result};

const FORMATS: &str = "Lathe reads .jsonl, .json, .csv, .tsv, .parquet, .txt and .md";
/// A row, and with it a text file, is held in memory as a whole.
const MAX_ROW_BYTES: u64 = 64 << 20;
const BUFFER_BYTES: usize = 1 << 18;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Csv { delimiter: u8 },
    Parquet,
    Text,
}

/// A row as it was read, in a form that is cheap to hand to another thread.
pub struct RawRow {
    /// From 0.
    pub row: usize,
    /// Line of the file it begins on, from 1; 0 in a file without lines.
    pub line: usize,
    content: Content,
}

enum Content {
    /// JSON that begins behind so many bytes of its line.
    Json {
        text: Vec<u8>,
        column: usize,
    },
    Fields(Map<String, Value>),
}

impl RawRow {
    /// About what it takes in memory.
    pub fn num_bytes(&self) -> usize {
        match &self.content {
            Content::Json { text, .. } => text.len(),
            Content::Fields(fields) => fields.values().map(num_bytes).sum(),
        }
    }

    /// Errors: bad JSON or UTF-8, at its row, line and column.
    pub fn parse(self, path: &Path) -> Result<RawExample> {
        let Self { row, line, content } = self;
        let fields = match content {
            Content::Json { text, column } => json::parse(&text, column, row, line, path)?,
            Content::Fields(fields) => fields,
        };
        Ok(RawExample { row, line, fields })
    }
}

fn num_bytes(value: &Value) -> usize {
    let inner = match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(num_bytes).sum(),
        Value::Object(fields) => fields.values().map(num_bytes).sum(),
        _ => 0,
    };
    inner + size_of::<Value>()
}

/// The rows of a data file, in order and in bounded memory.
///
/// A `.txt` or `.md` file is one row. Errors: [`Error::Invalid`] with the row, line and field at fault; a file without
/// rows. What follows an error is not read.
pub struct RowReader {
    path: PathBuf,
    source: Source,
    next_row: usize,
    first_row: usize,
    /// Bytes of the file taken so far, and of what they decompress to.
    taken: Arc<AtomicU64>,
    plain: Arc<AtomicU64>,
    size_bytes: u64,
    ended: bool,
    /// Of a row behind those of the last chunk.
    late_error: Option<Error>,
}

enum Source {
    Json(JsonRows),
    Csv(CsvRows),
    Parquet(Box<ParquetRows>),
    Text(Option<String>),
}

type Input = BufReader<Box<dyn Read + Send>>;

/// Counts what passes.
struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let num_bytes = self.inner.read(buffer)?;
        self.count.fetch_add(num_bytes as u64, Ordering::Relaxed);
        Ok(num_bytes)
    }
}

impl RowReader {
    /// Rows are counted from `first_row` on.
    pub fn open(path: &Path, first_row: usize) -> Result<Self> {
        let format = format_of(path)?;
        let file = File::open(path).map_err(Error::io("read", path))?;
        let size_bytes = file.metadata().map_err(Error::io("read", path))?.len();
        let (taken, plain) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let source = if format == Format::Parquet {
            Source::Parquet(Box::new(ParquetRows::open(file, path)?))
        } else {
            let mut input = open_text(file, path, &taken, &plain)?;
            match format {
                Format::Csv { delimiter } => Source::Csv(CsvRows::new(input, delimiter, path)?),
                Format::Text => Source::Text(Some(read_text(&mut input, path)?)),
                _ => Source::Json(JsonRows::new(input, path)?),
            }
        };
        let path = path.to_path_buf();
        Ok(Self {
            path,
            source,
            next_row: first_row,
            first_row,
            taken,
            plain,
            size_bytes,
            ended: false,
            late_error: None,
        })
    }

    /// How far it has come: bytes of the file read, and all of them.
    pub fn progress(&self) -> (u64, u64) {
        match &self.source {
            Source::Parquet(rows) => {
                let share = (self.next_row - self.first_row) as f64 / rows.num_rows.max(1) as f64;
                ((self.size_bytes as f64 * share) as u64, self.size_bytes)
            }
            _ => (self.taken.load(Ordering::Relaxed), self.size_bytes),
        }
    }

    /// The next rows, so many at most and about so many bytes. Empty at the end.
    pub fn chunk(&mut self, max_rows: usize, max_bytes: usize) -> Result<Vec<RawRow>> {
        let mut rows = Vec::new();
        let mut num_bytes = 0;
        while rows.len() < max_rows && num_bytes < max_bytes {
            match self.late_error.take().map(Err).or_else(|| self.next()) {
                None => break,
                Some(Ok(row)) => {
                    num_bytes += row.num_bytes();
                    rows.push(row);
                }
                Some(Err(error)) if rows.is_empty() => return Err(error),
                // What is wrong with the rows before it comes first.
                Some(Err(error)) => {
                    self.late_error = Some(error);
                    break;
                }
            }
        }
        Ok(rows)
    }

    fn read(&mut self) -> Result<Option<RawRow>> {
        let (row, path) = (self.next_row, self.path.as_path());
        let next = match &mut self.source {
            Source::Json(rows) => {
                rows.next(row, path)?.map(|(line, column, text)| (line, Content::Json { text, column }))
            }
            Source::Csv(rows) => rows.next(row, path)?.map(|(line, fields)| (line, Content::Fields(fields))),
            Source::Parquet(rows) => rows.next(row, path)?.map(|fields| (0, Content::Fields(fields))),
            Source::Text(text) => text
                .take()
                .filter(|text| !text.trim().is_empty())
                .map(|text| (1, Content::Fields(Map::from_iter([("text".to_string(), Value::from(text))])))),
        };
        let Some((line, content)) = next else {
            if row > self.first_row {
                return Ok(None);
            }
            let num_bytes = match &self.source {
                Source::Parquet(_) => self.size_bytes,
                _ => self.plain.load(Ordering::Relaxed),
            };
            let message = format!("The data file has no rows ({num_bytes} bytes): {}", path.display());
            return Err(Error::data(message));
        };
        self.next_row += 1;
        Ok(Some(RawRow { row, line, content }))
    }
}

impl Iterator for RowReader {
    type Item = Result<RawRow>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let row = self.read().transpose();
        self.ended = !matches!(row, Some(Ok(_)));
        row
    }
}

fn format_of(path: &Path) -> Result<Format> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let plain_name = name.strip_suffix(".gz").unwrap_or(&name);
    let extension = Path::new(plain_name).extension().unwrap_or_default().to_string_lossy();
    match &*extension {
        "jsonl" | "ndjson" | "json" => Ok(Format::Json),
        "csv" => Ok(Format::Csv { delimiter: b',' }),
        "tsv" => Ok(Format::Csv { delimiter: b'\t' }),
        "txt" | "text" | "md" | "markdown" => Ok(Format::Text),
        "parquet" if name == plain_name => Ok(Format::Parquet),
        "parquet" => {
            let message = format!("A Parquet file within gzip cannot be read: {}", path.display());
            Err(Error::data(message).hint("decompress it: Parquet is compressed by itself"))
        }
        "" => Err(Error::data(format!("The data file has no extension: {}", path.display())).hint(FORMATS)),
        other => {
            Err(Error::data(format!("Unknown kind of data file .{other}: {}", path.display())).hint(FORMATS))
        }
    }
}

/// The file's bytes, decompressed if it is gzip, from the first that is text.
fn open_text(file: File, path: &Path, taken: &Arc<AtomicU64>, plain: &Arc<AtomicU64>) -> Result<Input> {
    let failed = |error| Error::io("read", path)(error);
    let mut raw = BufReader::with_capacity(BUFFER_BYTES, Counted { inner: file, count: taken.clone() });
    let is_gzip = raw.fill_buf().map_err(failed)?.starts_with(&[0x1f, 0x8b]);
    let bytes: Box<dyn Read + Send> =
        if is_gzip { Box::new(flate2::bufread::MultiGzDecoder::new(raw)) } else { Box::new(raw) };
    let counted = Counted { inner: bytes, count: plain.clone() };
    let mut input: Input = BufReader::with_capacity(BUFFER_BYTES, Box::new(counted));
    let start = input.fill_buf().map_err(failed)?;
    if start.is_empty() {
        return Err(Error::data(format!("The data file is empty (0 bytes): {}", path.display())));
    }
    if start.starts_with(&[0xff, 0xfe]) || start.starts_with(&[0xfe, 0xff]) {
        return Err(Error::data(format!("The data file is UTF-16, not UTF-8: {}", path.display()))
            .hint("save it again as UTF-8"));
    }
    // Some editors on Windows begin a file with a byte order mark, which is no part of its first row.
    if start.starts_with(&[0xef, 0xbb, 0xbf]) {
        input.consume(3);
    }
    Ok(input)
}

const ENCODING_HINT: &str =
    "save the file as UTF-8; the byte above is from another encoding, often Windows-1252";

/// Where in a text the first byte is that is not UTF-8, in words.
fn not_utf8(bytes: &[u8], error: std::str::Utf8Error, column: usize) -> String {
    let at = error.valid_up_to();
    let column =
        bytes[..at].iter().rposition(|byte| *byte == b'\n').map_or(column + at, |line| at - line - 1);
    format!("not UTF-8 at byte {} of the line (0x{:02x})", column + 1, bytes[at])
}

/// The whole file is one row: where a text may be cut is for its author to say, in a JSONL file.
fn read_text(input: &mut Input, path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    input.take(MAX_ROW_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > MAX_ROW_BYTES {
        let message =
            format!("A text file is one row, and this one has more than 64 MiB: {}", path.display());
        return Err(Error::data(message).hint("split it into rows: a JSONL file of {\"text\": …}"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let (problem, bytes) = (error.utf8_error(), error.as_bytes());
        let line = 1 + num_newlines(&bytes[..problem.valid_up_to()]);
        let message = format!("Line {line}: {}: {}", not_utf8(bytes, problem, 0), path.display());
        Error::data(message).hint(ENCODING_HINT)
    })
}

fn num_newlines(bytes: &[u8]) -> usize {
    bytes.split(|&byte| byte == b'\n').count() - 1
}

/// What a JSON value is, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
