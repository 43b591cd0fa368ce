//! Which of the known shapes a file's rows have.

use std::{collections::BTreeMap, path::Path};

use lathe_protocol::{DatasetShape, ErrorCode};
use serde_json::{Map, Value};

use super::{RawExample, row_error};
use crate::{Error, Result};

/// A shape by the roles its columns have.
struct Roles {
    shape: DatasetShape,
    needed: &'static [&'static str],
    optional: &'static [&'static str],
}

const fn roles(
    shape: DatasetShape,
    needed: &'static [&'static str],
    optional: &'static [&'static str],
) -> Roles {
    Roles { shape, needed, optional }
}

/// The shapes, the surest sign first.
const SHAPES: &[Roles] = &[
    roles(DatasetShape::Messages, &["messages"], &["tools", "reasoning_effort", "style"]),
    roles(DatasetShape::ShareGpt, &["conversations"], &["system", "tools", "reasoning_effort", "style"]),
    roles(
        DatasetShape::Preference,
        &["chosen", "rejected"],
        &["prompt", "tools", "reasoning_effort", "style"],
    ),
    roles(DatasetShape::PromptCompletion, &["prompt", "completion"], &["tools", "reasoning_effort", "style"]),
    roles(
        DatasetShape::Alpaca,
        &["instruction", "output"],
        &["input", "system", "tools", "reasoning_effort", "style"],
    ),
    roles(DatasetShape::Text, &["text"], &[]),
];

const HINT: &str = "a row has messages; or conversations; or instruction and output; or prompt and completion; \
                    or prompt, chosen and rejected; or text";
const EXAMPLE: &str = "columns=prompt=question,completion=answer";

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

impl Roles {
    fn of(shape: DatasetShape) -> Option<&'static Self> {
        SHAPES.iter().find(|roles| roles.shape == shape)
    }

    fn all(&self) -> impl Iterator<Item = &'static str> {
        self.needed.iter().chain(self.optional).copied()
    }

    fn has(&self, role: &str) -> bool {
        self.all().any(|known| known == role)
    }

    /// The first field a row lacks to be of this shape.
    fn missing_in(&self, fields: &Map<String, Value>) -> Option<&'static str> {
        // Exports with one column a field write null for what a row does not have.
        self.needed.iter().copied().find(|&field| fields.get(field).is_none_or(Value::is_null))
    }
}

/// The roles that columns of this shape have.
pub fn roles_of(shape: DatasetShape) -> Vec<String> {
    Roles::of(shape).into_iter().flat_map(Roles::all).map(String::from).collect()
}

/// Every role there is.
pub fn all_roles() -> Vec<String> {
    let mut found = Vec::new();
    for role in SHAPES.iter().flat_map(Roles::all) {
        if !found.iter().any(|known| known == role) {
            found.push(role.to_string());
        }
    }
    found
}

/// An error for a mapping (role -> column) that does not fit the rows.
///
/// Errors: a role that no shape has, roles of different shapes, a column that no row has.
pub(super) fn check_mapping(
    examples: &[RawExample],
    mapping: &BTreeMap<String, String>,
    path: &Path,
) -> Result<()> {
    for (role, column) in mapping {
        if !SHAPES.iter().any(|roles| roles.has(role)) {
            return Err(Error::invalid(ErrorCode::Usage, format!("columns: there is no role {role:?}"))
                .hint(format!("the roles are {}", all_roles().join(", "))));
        }
        if !examples.iter().any(|example| example.fields.contains_key(column)) {
            let columns: Vec<_> = super::columns(examples).into_iter().map(|column| column.name).collect();
            return Err(Error::data(format!(
                "columns: there is no column {column:?} to take for {role}: {}",
                path.display()
            ))
            .hint(format!("the file has {}", columns.join(", "))));
        }
    }
    if !mapping.is_empty() && !SHAPES.iter().any(|roles| mapping.keys().all(|role| roles.has(role))) {
        let given: Vec<_> = mapping.keys().map(String::as_str).collect();
        let message = format!("columns: no kind of row has {} together", given.join(" and "));
        return Err(Error::invalid(ErrorCode::Usage, message).hint(HINT));
    }
    Ok(())
}

/// Gives the columns that `mapping` names their roles' names.
pub(super) fn rename(fields: &mut Map<String, Value>, mapping: &BTreeMap<String, String>) {
    if mapping.is_empty() {
        return;
    }
    let value = |(role, column): (&String, &String)| Some((role.clone(), fields.get(column)?.clone()));
    let renamed: Vec<_> = mapping.iter().filter_map(value).collect();
    // A column that has a mapped role's name is another thing than what was mapped.
    fields.retain(|name, _| !mapping.iter().any(|(role, column)| name == role || name == column));
    fields.extend(renamed);
}

/// The shape of the first row, among those with all of `mapped` roles.
pub(super) fn detect(
    first: Option<&RawExample>,
    mapped: &BTreeMap<String, String>,
    path: &Path,
) -> Result<DatasetShape> {
    let Some(first) = first else { return Ok(DatasetShape::Text) };
    shape_of(&first.fields, mapped).map(|roles| roles.shape).ok_or_else(|| unknown(first, path))
}

/// An error for a row that is not of the file's shape.
pub(super) fn check(
    example: &RawExample,
    shape: DatasetShape,
    mapped: &BTreeMap<String, String>,
    path: &Path,
) -> Result<()> {
    let RawExample { row, line, fields } = example;
    let Some(missing) = Roles::of(shape).and_then(|roles| roles.missing_in(fields)) else { return Ok(()) };
    Err(match shape_of(fields, mapped) {
        Some(other) => {
            let (is, was) = (name(other.shape), name(shape));
            let problem = format!("mixed shapes: this row is {is}, the first row is {was}");
            row_error(path, *row, *line, "", &problem).hint("split the file into one file a shape")
        }
        None => row_error(path, *row, *line, missing, "missing field").hint(HINT),
    })
}

fn shape_of(fields: &Map<String, Value>, mapped: &BTreeMap<String, String>) -> Option<&'static Roles> {
    let mut candidates = SHAPES.iter().filter(|roles| mapped.keys().all(|role| roles.has(role)));
    candidates.find(|roles| roles.missing_in(fields).is_none())
}

fn unknown(example: &RawExample, path: &Path) -> Error {
    let RawExample { row, line, fields } = example;
    let hint = format!("{HINT}; name columns that are called otherwise, e.g. --set {EXAMPLE}");
    // A row with half of a shape's fields is more likely short of one than of another shape.
    for roles in SHAPES {
        if let Some(missing) = roles.missing_in(fields)
            && roles.needed.iter().any(|field| fields.get(*field).is_some_and(|value| !value.is_null()))
        {
            let have: Vec<_> = fields.keys().map(String::as_str).collect();
            let problem = format!("missing field: the row has {}", have.join(", "));
            return row_error(path, *row, *line, missing, &problem).hint(hint);
        }
    }
    let names: Vec<_> = fields.keys().take(12).map(String::as_str).collect();
    let have = if names.is_empty() { "none".to_string() } else { names.join(", ") };
    row_error(path, *row, *line, "", &format!("no known shape: its fields are {have}")).hint(hint)
}
