//! A data file, read into rows and then into conversations.

mod conversation;
mod preference;
mod read;
mod shape;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use lathe_protocol::{ColumnView, DataFile, DatasetShape, Message, RowPlace};
use serde_json::{Map, Value};

pub use conversation::parse_conversation;
pub use preference::{Pair, parse_pair};
pub use read::{RawRow, RowReader};
pub use shape::{all_roles, name as shape_name, roles_of};

use crate::{Error, Result};

/// Rows looked at to tell a file's shape and columns.
const HEAD_ROWS: usize = 1000;
const HEAD_BYTES: usize = 4 << 20;
/// Length of a column's example.
const EXAMPLE_CHARS: usize = 80;

/// A data file, whose rows are all of one shape, and some of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    pub path: PathBuf,
    pub shape: DatasetShape,
    /// As the file names them, with the role each is taken for.
    pub columns: Vec<ColumnView>,
    mapping: BTreeMap<String, String>,
    /// The first ones, or those asked for.
    pub examples: Vec<RawExample>,
}

impl Dataset {
    /// Finds the shape of a file by its first rows, whose columns `mapping` (role -> column) names where they differ from
    /// their roles.
    ///
    /// Errors: a mapping that does not fit the rows; rows of no known shape, or of several.
    pub fn new(path: &Path, examples: Vec<RawExample>, mapping: &BTreeMap<String, String>) -> Result<Self> {
        let mut columns = columns(&examples);
        shape::check_mapping(&examples, mapping, path)?;
        let mut first = examples.first().cloned();
        if let Some(first) = &mut first {
            shape::rename(&mut first.fields, mapping);
        }
        let shape = shape::detect(first.as_ref(), mapping, path)?;
        let roles = roles_of(shape);
        for ColumnView { name, role, .. } in &mut columns {
            let mapped = mapping.iter().find(|(_, column)| *column == name).map(|(role, _)| role);
            let own = roles.iter().find(|role| *role == name).filter(|role| !mapping.contains_key(*role));
            *role = mapped.or(own).cloned();
        }
        let (path, mapping) = (path.to_path_buf(), mapping.clone());
        let mut dataset = Self { path, shape, columns, mapping, examples: Vec::new() };
        dataset.examples = examples.into_iter().map(|row| dataset.take(row)).collect::<Result<_>>()?;
        Ok(dataset)
    }

    /// Reads the beginning of a file.
    pub fn open(file: &DataFile) -> Result<Self> {
        let path = Path::new(&file.path);
        Self::new(path, read_head(path)?, &file.columns)
    }

    /// Role -> column, where the file's columns have other names than their roles.
    pub fn mapping(&self) -> &BTreeMap<String, String> {
        &self.mapping
    }

    /// Parses a row of the file and calls its columns by their roles.
    ///
    /// Errors: bad JSON; a row that lacks what the file's shape needs.
    pub fn parse(&self, row: RawRow) -> Result<RawExample> {
        self.take(row.parse(&self.path)?)
    }

    fn take(&self, mut row: RawExample) -> Result<RawExample> {
        shape::rename(&mut row.fields, &self.mapping);
        shape::check(&row, self.shape, &self.mapping, &self.path)?;
        Ok(row)
    }
}

/// The first rows of a file, as they stand there.
pub fn read_head(path: &Path) -> Result<Vec<RawExample>> {
    let rows = RowReader::open(path, 0)?.chunk(HEAD_ROWS, HEAD_BYTES)?;
    rows.into_iter().map(|row| row.parse(path)).collect()
}

/// Reads a data file whole and says what shape its rows have.
pub fn read_examples(path: &Path, mapping: &BTreeMap<String, String>) -> Result<Dataset> {
    let mut dataset =
        Dataset::open(&DataFile { columns: mapping.clone(), ..DataFile::new(path.display().to_string()) })?;
    let rows = RowReader::open(path, 0)?.map(|row| dataset.parse(row?));
    dataset.examples = rows.collect::<Result<_>>()?;
    Ok(dataset)
}

/// Reads up to `count` rows from `row` on, counted through all files: each file's own among them.
///
/// Errors: no such row.
pub fn read_window(files: &[DataFile], row: usize, count: usize) -> Result<Vec<Dataset>> {
    let end = row.saturating_add(count.max(1));
    let mut windows = Vec::new();
    let mut first_row = 0;
    for file in files {
        let mut dataset = Dataset::open(file)?;
        let mut wanted = Vec::new();
        for raw in RowReader::open(&dataset.path, first_row)? {
            let raw = raw?;
            if raw.row >= end {
                break;
            }
            first_row = raw.row + 1;
            if raw.row >= row {
                wanted.push(dataset.parse(raw)?);
            }
        }
        dataset.examples = wanted;
        if !dataset.examples.is_empty() {
            windows.push(dataset);
        }
        if first_row >= end {
            break;
        }
    }
    if windows.is_empty() {
        let path = files.last().map_or("", |file| &file.path);
        let whose = if files.len() > 1 { "files have" } else { "file has" };
        return Err(Error::data(format!("There is no row {row}: the {whose} {first_row} rows: {path}"))
            .hint(format!("rows are counted from 0 to {}", first_row.max(1) - 1)));
    }
    Ok(windows)
}

/// The columns of the first rows, in order of appearance, without their roles.
pub fn columns(examples: &[RawExample]) -> Vec<ColumnView> {
    let mut found: Vec<ColumnView> = Vec::new();
    for (name, value) in examples.iter().flat_map(|example| &example.fields) {
        if !found.iter().any(|column| column.name == *name) {
            found.push(ColumnView { name: name.clone(), role: None, example: example_of(value) });
        }
    }
    found
}

/// The beginning of a value, on one line.
fn example_of(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), String::from);
    let mut words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((cut, _)) = words.char_indices().nth(EXAMPLE_CHARS) {
        words.truncate(cut);
        words.push('…');
    }
    words
}

/// One row as it stands in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct RawExample {
    /// From 0, through all files of a run.
    pub row: usize,
    /// Line of the file it begins on, from 1; 0 in a file without lines.
    pub line: usize,
    pub fields: Map<String, Value>,
}

/// What one row teaches.
#[derive(Debug, Clone, PartialEq)]
pub enum Conversation {
    /// Turns, written out by the model's chat template.
    Chat(Chat),
    /// Text that no template touches.
    Raw(RawText),
}

/// Turns and what the template is told beside them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chat {
    pub messages: Vec<Message>,
    /// Tools in OpenAI's shape, as a list.
    pub tools: Option<Value>,
    pub reasoning_effort: Option<String>,
    /// Indices of assistant turns that are context, not lessons.
    pub unlearned: Vec<usize>,
}

impl Chat {
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }
}

/// TRL's convention for plain text: the loss is taken on `completion` and the end token behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawText {
    /// Empty for rows of shape `text`.
    pub prompt: String,
    pub completion: String,
    pub style: Option<String>,
}

/// An error about one place of the data: what, then row, line, field and path.
fn row_error(path: &Path, row: usize, line: usize, field: &str, problem: &str) -> Error {
    let field = if field.is_empty() { String::new() } else { format!(", {field}") };
    let place = RowPlace { row, line, file: None };
    Error::data(format!("Row {place}{field}: {problem}: {}", path.display()))
}
