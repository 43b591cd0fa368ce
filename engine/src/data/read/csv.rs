//! Tables of text, the columns' names in their first line.

use std::path::Path;

use csv::{ErrorKind, Position, Reader, ReaderBuilder, StringRecord};
use serde_json::{Map, Value};

use super::{ENCODING_HINT, Input, row_error};
use crate::{Error, Result};

pub(super) struct CsvRows {
    reader: Reader<Input>,
    header: Vec<String>,
    record: StringRecord,
}

impl CsvRows {
    pub fn new(input: Input, delimiter: u8, path: &Path) -> Result<Self> {
        let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(input);
        let header = reader.headers().map_err(|error| bad_csv(&error, 0, path))?;
        let header = header.iter().map(|name| name.trim().to_string()).collect();
        Ok(Self { reader, header, record: StringRecord::new() })
    }

    /// Line and cells of the next row.
    pub fn next(&mut self, row: usize, path: &Path) -> Result<Option<(usize, Map<String, Value>)>> {
        let Self { reader, header, record } = self;
        if !reader.read_record(record).map_err(|error| bad_csv(&error, row, path))? {
            return Ok(None);
        }
        let line = record.position().map_or(0, Position::line) as usize;
        let cells = header.iter().zip(record.iter());
        Ok(Some((line, cells.map(|(name, cell)| (name.clone(), Value::from(cell))).collect())))
    }
}

fn bad_csv(error: &csv::Error, row: usize, path: &Path) -> Error {
    let line = |position: &Option<Position>| position.as_ref().map_or(0, Position::line) as usize;
    match error.kind() {
        ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let problem = format!("{len} cells, but the header names {expected_len}");
            row_error(path, row, line(pos), "", &problem)
                .hint("put text that holds a comma, a quote or a line break in double quotes")
        }
        ErrorKind::Utf8 { pos, err } => {
            let problem =
                format!("cell {} is not UTF-8 at its byte {}", err.field() + 1, err.valid_up_to() + 1);
            row_error(path, row, line(pos), "", &problem).hint(ENCODING_HINT)
        }
        _ => Error::data(format!("Row {row}: bad CSV: {error}: {}", path.display())),
    }
}
