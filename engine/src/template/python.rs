//! What chat templates expect of Python: `json.dumps`, `strftime` and string methods.

use std::fmt::Write as _;

use jiff::civil::DateTime;
use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, ValueKind, from_args},
};

/// Of JSON: a namespace can hold itself.
const MAX_DEPTH: usize = 256;
const MAX_INDENT: usize = 64;

/// transformers' `tojson`: `json.dumps` with `ensure_ascii=False`, nothing escaped for HTML.
#[expect(clippy::needless_pass_by_value, reason = "minijinja hands filters their arguments by value")]
pub fn tojson(value: &Value, ensure_ascii: Option<bool>, options: Kwargs) -> Result<Value, Error> {
    let ensure_ascii = match options.get::<Option<bool>>("ensure_ascii")? {
        Some(given) => given,
        None => ensure_ascii.unwrap_or(false),
    };
    let indent = match options.get::<Option<Value>>("indent")?.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_string(),
            None => " ".repeat(usize::try_from(indent)?.min(MAX_INDENT)),
        }),
    };
    let (item, key) = match options.get::<Option<Value>>("separators")?.filter(|given| !given.is_none()) {
        Some(pair) => (pair.get_item_by_index(0)?.to_string(), pair.get_item_by_index(1)?.to_string()),
        // Python drops the space after a comma that ends a line.
        None => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
    };
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut writer = JsonWriter { text: String::new(), ensure_ascii, indent, item, key, sort_keys };
    writer.value(value, 0)?;
    Ok(Value::from(writer.text))
}

struct JsonWriter {
    text: String,
    ensure_ascii: bool,
    indent: Option<String>,
    /// Between items.
    item: String,
    /// Between a key and its value.
    key: String,
    sort_keys: bool,
}

impl JsonWriter {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(Error::new(ErrorKind::InvalidOperation, "the value is nested too deeply for JSON"));
        }
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => self.text.push_str(&value.to_string()),
            ValueKind::Number => self.text.push_str(&float(f64::try_from(value.clone())?)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                self.text.push('[');
                let mut is_empty = true;
                for item in value.try_iter()? {
                    self.next_item(&mut is_empty, depth + 1);
                    self.value(&item, depth + 1)?;
                }
                self.close(']', is_empty, depth);
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.text.push('{');
                let mut is_empty = true;
                for key in keys {
                    self.next_item(&mut is_empty, depth + 1);
                    self.string(&key.to_string());
                    self.text.push_str(&self.key.clone());
                    self.value(&value.get_item(&key)?, depth + 1)?;
                }
                self.close('}', is_empty, depth);
            }
            other => {
                let message = format!("Object of type {other} is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        Ok(())
    }

    fn next_item(&mut self, is_first: &mut bool, depth: usize) {
        if !*is_first {
            self.text.push_str(&self.item);
        }
        *is_first = false;
        self.new_line(depth);
    }

    fn close(&mut self, bracket: char, is_empty: bool, depth: usize) {
        if !is_empty {
            self.new_line(depth);
        }
        self.text.push(bracket);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.text.push('\n');
            self.text.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        for c in text.chars() {
            match c {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a String cannot fail.
                        write!(self.text, "\\u{unit:04x}").ok();
                    }
                }
                c => self.text.push(c),
            }
        }
        self.text.push('"');
    }
}

/// Python's `repr` of a float: the shortest digits that read back the same, an exponent from 1e16 and below 1e-4.
fn float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = value.to_string();
    if plain.contains('.') { plain } else { plain + ".0" }
}

/// Python's string methods that minijinja's own set lacks, then that set.
pub fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        match name {
            "removeprefix" => {
                let (prefix,): (&str,) = from_args(args)?;
                return Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)));
            }
            "removesuffix" => {
                let (suffix,): (&str,) = from_args(args)?;
                return Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)));
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// Python's `strftime`, in the C locale.
pub fn strftime(format: &str, date: DateTime) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, date).map_err(|error| {
        let message = format!("strftime_now: {error}");
        Error::new(ErrorKind::InvalidOperation, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(value: &str, options: &str) -> String {
        let mut env = minijinja::Environment::new();
        env.add_filter("tojson", tojson);
        env.render_str(&format!("{{{{ {value} | tojson({options}) }}}}"), ()).unwrap()
    }

    #[test]
    fn json_is_what_python_writes() {
        assert_eq!(json("{'b': [1, 2.5, none], 'a': {}}", ""), r#"{"b": [1, 2.5, null], "a": {}}"#);
        assert_eq!(json("{'b': 1, 'a': true}", "sort_keys=true"), r#"{"a": true, "b": 1}"#);
        assert_eq!(json("['<a href=\\'x\\'>&é🙂\\n\"']", ""), "[\"<a href='x'>&é🙂\\n\\\"\"]");
        assert_eq!(json("'é🙂'", "ensure_ascii=true"), r#""\u00e9\ud83d\ude42""#);
        assert_eq!(json("{'a': [1], 'b': []}", "indent=2"), "{\n  \"a\": [\n    1\n  ],\n  \"b\": []\n}");
        assert_eq!(json("[1, {'a': 2}]", "separators=(',', ':')"), r#"[1,{"a":2}]"#);
        assert_eq!(
            json("[1.0, 1e16, 0.0001, 0.00001, 123456789.125]", ""),
            "[1.0, 1e+16, 0.0001, 1e-05, 123456789.125]"
        );
    }

    #[test]
    fn dates_are_what_python_writes() {
        let date = jiff::civil::date(2024, 7, 6).at(15, 4, 9, 0);
        assert_eq!(
            strftime("%d %b %Y, %A %-d %B %y, %I:%M:%S %p %j", date).unwrap(),
            "06 Jul 2024, Saturday 6 July 24, 03:04:09 PM 188"
        );
        assert_eq!(strftime("%F %T %e %H %a %%", date).unwrap(), "2024-07-06 15:04:09  6 15 Sat %");
        assert!(strftime("%!", date).is_err());
    }
}
