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

use lathe_protocol::{ColumnView, DatasetShape, Message};
use serde_json::{Map, Value};

pub use conversation::parse_conversation;
pub use preference::{Pair, parse_pair};
pub use read::read_rows;
pub use shape::{all_roles, name as shape_name, roles_of};

use crate::{Error, Result};

/// Rows looked at to tell a file's columns.
const COLUMN_ROWS: usize = 50;
/// Length of a column's example.
const EXAMPLE_CHARS: usize = 80;

/// A data file's rows, all of one shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    pub path: PathBuf,
    pub shape: DatasetShape,
    /// As the file names them, with the role each is taken for.
    pub columns: Vec<ColumnView>,
    pub examples: Vec<RawExample>,
}

impl Dataset {
    /// Finds the shape of rows whose columns `mapping` (role -> column) names where they differ from their roles.
    ///
    /// Errors: a mapping that does not fit the rows; rows of no known shape, or of several.
    pub fn new(
        path: &Path,
        mut examples: Vec<RawExample>,
        mapping: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let mut columns = columns(&examples);
        shape::rename(&mut examples, mapping, path)?;
        let shape = shape::detect(&examples, mapping, path)?;
        let roles = roles_of(shape);
        for ColumnView { name, role, .. } in &mut columns {
            let mapped = mapping.iter().find(|(_, column)| *column == name).map(|(role, _)| role);
            let own = roles.iter().find(|role| *role == name).filter(|role| !mapping.contains_key(*role));
            *role = mapped.or(own).cloned();
        }
        Ok(Self { path: path.to_path_buf(), shape, columns, examples })
    }
}

/// Reads a data file and says what shape its rows have.
pub fn read_examples(path: &Path, mapping: &BTreeMap<String, String>) -> Result<Dataset> {
    Dataset::new(path, read_rows(path)?, mapping)
}

/// The columns of the first rows, in order of appearance, without their roles.
pub fn columns(examples: &[RawExample]) -> Vec<ColumnView> {
    let mut found: Vec<ColumnView> = Vec::new();
    for (name, value) in examples.iter().take(COLUMN_ROWS).flat_map(|example| &example.fields) {
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
    /// From 0.
    pub row: usize,
    /// Line of the file it begins on, from 1.
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
    Error::data(format!("Row {row} (line {line}){field}: {problem}: {}", path.display()))
}
