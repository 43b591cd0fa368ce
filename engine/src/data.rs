//! A data file, read into rows and then into conversations.

mod conversation;
mod read;
mod shape;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use lathe_protocol::{DatasetShape, Message};
use serde_json::{Map, Value};

pub use conversation::parse_conversation;
pub use read::read_examples;
pub use shape::name as shape_name;

use crate::Error;

/// A data file's rows, all of one shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    pub path: PathBuf,
    pub shape: DatasetShape,
    pub examples: Vec<RawExample>,
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
}

/// An error about one place of the data: what, then row, line, field and path.
fn row_error(path: &Path, row: usize, line: usize, field: &str, problem: &str) -> Error {
    let field = if field.is_empty() { String::new() } else { format!(", {field}") };
    Error::data(format!("Row {row} (line {line}){field}: {problem}: {}", path.display()))
}
