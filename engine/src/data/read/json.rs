//! One JSON object a line, or an array of them. The content decides: both occur under either name.

use std::{
    io::{BufRead as _, Read as _},
    path::Path,
};

use serde_json::{Map, Value};

use super::{ENCODING_HINT, Input, MAX_ROW_BYTES, kind, not_utf8, num_newlines, row_error};
use crate::{Error, Result};

/// Finds where each row begins and ends; [`parse`] does the rest.
pub(super) struct JsonRows {
    input: Input,
    is_array: bool,
    /// From 1, of what is read next.
    line: usize,
    /// Bytes of that line which are read.
    column: usize,
    /// Whether a row was read.
    begun: bool,
}

/// Line, bytes before it on the line, and text of a row.
type Found = (usize, usize, Vec<u8>);

impl JsonRows {
    pub fn new(input: Input, path: &Path) -> Result<Self> {
        let mut rows = Self { input, is_array: false, line: 1, column: 0, begun: false };
        if rows.peek(path)? == Some(b'[') {
            rows.advance(1);
            rows.is_array = true;
        }
        Ok(rows)
    }

    pub fn next(&mut self, row: usize, path: &Path) -> Result<Option<Found>> {
        if self.is_array { self.next_element(row, path) } else { self.next_line(row, path) }
    }

    fn next_line(&mut self, row: usize, path: &Path) -> Result<Option<Found>> {
        loop {
            let mut text = Vec::new();
            let mut input = (&mut self.input).take(MAX_ROW_BYTES);
            let num_bytes = input.read_until(b'\n', &mut text).map_err(Error::io("read", path))?;
            if num_bytes == 0 {
                return Ok(None);
            }
            let (line, column) = (self.line, self.column);
            if text.ends_with(b"\n") {
                (self.line, self.column) = (line + 1, 0);
            } else if num_bytes as u64 == MAX_ROW_BYTES {
                return Err(too_long(row, line, path));
            }
            text.truncate(text.trim_ascii_end().len());
            if !text.is_empty() {
                return Ok(Some((line, column, text)));
            }
        }
    }

    fn next_element(&mut self, row: usize, path: &Path) -> Result<Option<Found>> {
        let fail = |line: usize, problem: &str| {
            let problem = format!("bad JSON: {problem}");
            Err(row_error(path, row, line, "", &problem)
                .hint("a .json file holds one array of objects: [{…}, {…}]"))
        };
        // 1. What stands between two rows
        match (self.peek(path)?, self.begun) {
            (Some(b']'), _) => {
                self.advance(1);
                return match self.peek(path)? {
                    None => Ok(None),
                    Some(_) => fail(self.line, "something follows the array of rows"),
                };
            }
            (None, _) => return fail(self.line, "the array of rows is not closed"),
            (Some(b','), true) => {
                self.advance(1);
                if self.peek(path)?.is_none() {
                    return fail(self.line, "the array of rows is not closed");
                }
            }
            (Some(_), true) => return fail(self.line, "expected a comma or ] after the row before"),
            (Some(_), false) => {}
        }
        self.begun = true;

        // 2. The row, to the bracket that closes it
        let (line, column) = (self.line, self.column);
        let mut text = Vec::new();
        let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
        loop {
            let buffer = self.input.fill_buf().map_err(Error::io("read", path))?;
            if buffer.is_empty() {
                // An object that is cut off: parsing says where.
                return Ok(Some((line, column, text)));
            }
            let mut end = None;
            for (at, byte) in buffer.iter().enumerate() {
                if in_string {
                    match byte {
                        _ if escaped => escaped = false,
                        b'\\' => escaped = true,
                        b'"' => in_string = false,
                        _ => {}
                    }
                    continue;
                }
                let is_first = text.is_empty() && at == 0;
                match byte {
                    b'"' => in_string = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' if depth > 0 => {
                        depth -= 1;
                        if depth == 0 {
                            end = Some(at + 1);
                            break;
                        }
                    }
                    // A row that is no object ends before what follows it.
                    b',' | b']' | b'}' | b' ' | b'\n' if depth == 0 && !is_first => {
                        end = Some(at);
                        break;
                    }
                    _ => {}
                }
            }
            let num_bytes = end.unwrap_or(buffer.len());
            text.extend_from_slice(&buffer[..num_bytes]);
            self.advance(num_bytes);
            if end.is_some() {
                return Ok(Some((line, column, text)));
            }
            if text.len() as u64 > MAX_ROW_BYTES {
                return Err(too_long(row, line, path));
            }
        }
    }

    /// The next byte that is no white space.
    fn peek(&mut self, path: &Path) -> Result<Option<u8>> {
        loop {
            let buffer = self.input.fill_buf().map_err(Error::io("read", path))?;
            let blank = buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            let (found, is_end) = (buffer.get(blank).copied(), buffer.is_empty());
            self.advance(blank);
            if found.is_some() || is_end {
                return Ok(found);
            }
        }
    }

    /// Goes past bytes that the input holds.
    fn advance(&mut self, num_bytes: usize) {
        let passed = &self.input.buffer()[..num_bytes];
        match passed.iter().rposition(|byte| *byte == b'\n') {
            Some(last) => {
                self.line += num_newlines(passed);
                self.column = num_bytes - last - 1;
            }
            None => self.column += num_bytes,
        }
        self.input.consume(num_bytes);
    }
}

fn too_long(row: usize, line: usize, path: &Path) -> Error {
    row_error(path, row, line, "", "longer than 64 MiB")
        .hint("each line must be one whole JSON object, e.g. {\"messages\": […]}")
}

/// The fields of a row that begins behind `column` bytes of its line.
pub(super) fn parse(
    text: &[u8],
    column: usize,
    row: usize,
    line: usize,
    path: &Path,
) -> Result<Map<String, Value>> {
    let text = std::str::from_utf8(text).map_err(|error| {
        let line = line + num_newlines(&text[..error.valid_up_to()]);
        row_error(path, row, line, "", &not_utf8(text, error, column)).hint(ENCODING_HINT)
    })?;
    let value = serde_json::from_str(text).map_err(|error| {
        let column = error.column() + if error.line() == 1 { column } else { 0 };
        let message = error.to_string();
        // serde_json's message without its own idea of the line.
        let what = message.rsplit_once(" at line ").map_or(message.as_str(), |(what, _)| what);
        let problem = format!("bad JSON at column {column}: {what}");
        row_error(path, row, line + error.line().max(1) - 1, "", &problem)
            .hint("each line must be one whole JSON object, e.g. {\"messages\": […]}")
    })?;
    match value {
        Value::Object(fields) => Ok(fields),
        other => {
            let problem = format!("a row must be a JSON object, this one is {}", kind(&other));
            Err(row_error(path, row, line, "", &problem))
        }
    }
}
