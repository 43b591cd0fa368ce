//! Parquet files, as Hugging Face and pandas write them.

use std::{fs::File, path::Path};

use parquet::{
    file::reader::{FileReader as _, SerializedFileReader},
    record::reader::RowIter,
};
use serde_json::{Map, Value};

use crate::{Error, Result, foreign};

/// More than a page of 1 MB has. They may all be one row's, which is read whole: a damaged count takes all memory.
const MAX_PAGE_ELEMENTS: usize = 1 << 20;

/// Pages are decoded as rows are asked for, one a column at a time.
pub(super) struct ParquetRows {
    rows: RowIter<'static>,
    pub num_rows: usize,
}

impl ParquetRows {
    pub fn open(file: File, path: &Path) -> Result<Self> {
        let opened = guarded(|| {
            let reader = SerializedFileReader::new(file)?;
            let largest = largest_page_of_lists(&reader)?;
            let num_rows = reader.metadata().file_metadata().num_rows() as usize;
            Ok((Self { rows: reader.into_iter(), num_rows }, largest))
        });
        let (rows, largest) = opened.map_err(|error| {
            Error::data(format!("Not a readable Parquet file: {error}: {}", path.display()))
                .hint("the download or the copy may be incomplete")
        })?;
        if largest > MAX_PAGE_ELEMENTS {
            return Err(Error::data(format!(
                "A page of the Parquet file has lists of {largest} elements: {}",
                path.display()
            ))
            .hint("the file may be damaged; if it is not, write it with pages of 1 MB, or as JSONL"));
        }
        Ok(rows)
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

/// Elements of a page's lists, by what the pages say of themselves.
fn largest_page_of_lists(reader: &SerializedFileReader<File>) -> parquet::errors::Result<usize> {
    let schema = reader.metadata().file_metadata().schema_descr();
    let mut largest = 0;
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group)?;
        for column in (0..schema.num_columns()).filter(|i| schema.column(*i).max_rep_level() > 0) {
            let mut pages = group.get_column_page_reader(column)?;
            while let Some(page) = pages.peek_next_page()? {
                largest = largest.max(page.num_levels.unwrap_or_default());
                pages.skip_next_page()?;
            }
        }
    }
    Ok(largest)
}

/// What the library says, or panics with.
fn guarded<T>(read: impl FnOnce() -> parquet::errors::Result<T>) -> std::result::Result<T, String> {
    foreign::guarded(read).and_then(|outcome| outcome.map_err(|error| error.to_string()))
}
