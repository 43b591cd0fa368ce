//! Parquet files, as Hugging Face and pandas write them.

use std::{fs::File, path::Path};

use parquet::{
    file::reader::{FileReader as _, SerializedFileReader},
    record::reader::RowIter,
};
use serde_json::{Map, Value};

use crate::{Error, Result, foreign};

/// Pages are decoded as rows are asked for, one a column at a time.
pub(super) struct ParquetRows {
    rows: RowIter<'static>,
    pub num_rows: usize,
}

impl ParquetRows {
    pub fn open(file: File, path: &Path) -> Result<Self> {
        let reader = guarded(|| SerializedFileReader::new(file)).map_err(|error| {
            Error::data(format!("Not a readable Parquet file: {error}: {}", path.display()))
                .hint("the download or the copy may be incomplete")
        })?;
        let num_rows = reader.metadata().file_metadata().num_rows() as usize;
        Ok(Self { rows: reader.into_iter(), num_rows })
    }

    pub fn next(&mut self, row: usize, path: &Path) -> Result<Option<Map<String, Value>>> {
        let next = guarded(|| Ok(self.rows.next().transpose()?.map(|row| row.to_json_value())));
        let next = next.map_err(|error| {
            Error::data(format!("Row {row} of the Parquet file cannot be read: {error}: {}", path.display()))
                .hint("the file may be damaged: download or write it again")
        })?;
        Ok(next.map(|row| match row {
            Value::Object(fields) => fields,
            // A row is a group of columns.
            _ => Map::new(),
        }))
    }
}

/// What the library says, or panics with.
fn guarded<T>(read: impl FnOnce() -> parquet::errors::Result<T>) -> std::result::Result<T, String> {
    foreign::guarded(read).and_then(|outcome| outcome.map_err(|error| error.to_string()))
}
