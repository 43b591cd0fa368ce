//! Which of the known shapes a file's rows have.

use std::path::Path;

use lathe_protocol::DatasetShape;
use serde_json::{Map, Value};

use super::{RawExample, row_error};
use crate::Result;

/// The shapes by the fields they need, the surest sign first.
const SHAPES: &[(DatasetShape, &[&str])] = &[
    (DatasetShape::Messages, &["messages"]),
    (DatasetShape::ShareGpt, &["conversations"]),
    (DatasetShape::Preference, &["chosen", "rejected"]),
    (DatasetShape::PromptCompletion, &["prompt", "completion"]),
    (DatasetShape::Alpaca, &["instruction", "output"]),
    (DatasetShape::Text, &["text"]),
];

const HINT: &str = "a row has messages; or conversations; or instruction and output; or prompt and completion; \
                    or prompt, chosen and rejected; or text";

/// What a shape is called in messages.
pub fn name(shape: DatasetShape) -> &'static str {
    match shape {
        DatasetShape::Messages => "messages",
        DatasetShape::ShareGpt => "ShareGPT conversations",
        DatasetShape::Alpaca => "Alpaca",
        DatasetShape::PromptCompletion => "prompt and completion",
        DatasetShape::Preference => "preference",
        DatasetShape::Text => "text",
    }
}

/// The one shape that all rows have.
pub fn detect(examples: &[RawExample], path: &Path) -> Result<DatasetShape> {
    let Some(first) = examples.first() else { return Ok(DatasetShape::Text) };
    let Some(shape) = shape_of(&first.fields) else { return Err(unknown(first, path)) };
    for example in examples {
        if let Some(missing) = missing_field(shape, &example.fields) {
            return Err(match shape_of(&example.fields) {
                Some(other) => {
                    let (is, was) = (name(other), name(shape));
                    let problem = format!("mixed shapes: this row is {is}, the first row is {was}");
                    row_error(path, example.row, example.line, "", &problem)
                        .hint("split the file into one file a shape")
                }
                None => row_error(path, example.row, example.line, missing, "missing field").hint(HINT),
            });
        }
    }
    Ok(shape)
}

fn shape_of(fields: &Map<String, Value>) -> Option<DatasetShape> {
    let known = SHAPES.iter().find(|(shape, _)| missing_field(*shape, fields).is_none());
    known.map(|(shape, _)| *shape)
}

fn missing_field(shape: DatasetShape, fields: &Map<String, Value>) -> Option<&'static str> {
    let (_, needed) = SHAPES.iter().find(|(other, _)| *other == shape)?;
    // Exports with one column a field write null for what a row does not have.
    needed.iter().copied().find(|&field| fields.get(field).is_none_or(Value::is_null))
}

fn unknown(example: &RawExample, path: &Path) -> crate::Error {
    let RawExample { row, line, fields } = example;
    // A row with half of a shape's fields is more likely short of one than of another shape.
    for (shape, needed) in SHAPES {
        if let Some(missing) = missing_field(*shape, fields)
            && needed.iter().any(|field| fields.get(*field).is_some_and(|value| !value.is_null()))
        {
            let have: Vec<_> = fields.keys().map(String::as_str).collect();
            let problem = format!("missing field: the row has {}", have.join(", "));
            return row_error(path, *row, *line, missing, &problem).hint(HINT);
        }
    }
    let names: Vec<_> = fields.keys().take(12).map(String::as_str).collect();
    let have = if names.is_empty() { "none".to_string() } else { names.join(", ") };
    row_error(path, *row, *line, "", &format!("no known shape: its fields are {have}")).hint(HINT)
}
