//! What chat templates expect of Python: `json.dumps`, `strftime` and string methods.

use std::fmt::Write as _;

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, ValueKind, from_args},
};

use super::Date;

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
            None => " ".repeat(usize::try_from(indent)?),
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

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// `strftime` in the C locale.
pub fn strftime(format: &str, date: Date) -> Result<String, Error> {
    let Date { year, month, day, hour, minute, second } = date;
    let month_name = MONTHS.get(month as usize - 1).copied().unwrap_or_default();
    let weekday = WEEKDAYS[weekday(date)];
    let hour12 = (hour + 11) % 12 + 1;
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let (padded, code) = match chars.next() {
            Some('-') => (false, chars.next()),
            code => (true, code),
        };
        let number = |value: u32, width: usize| {
            if padded { format!("{value:0width$}") } else { value.to_string() }
        };
        let piece = match code {
            Some('Y') => year.to_string(),
            Some('y') => number(year.rem_euclid(100).unsigned_abs(), 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('e') => format!("{day:2}"),
            Some('H') => number(hour, 2),
            Some('I') => number(hour12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('j') => number(day_of_year(date), 3),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('B') => month_name.into(),
            Some('b' | 'h') => month_name[..3].into(),
            Some('A') => weekday.into(),
            Some('a') => weekday[..3].into(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('%') => "%".into(),
            other => {
                let code = other.map(String::from).unwrap_or_default();
                let message = format!("strftime_now: unsupported format %{code}");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        };
        text.push_str(&piece);
    }
    Ok(text)
}

fn is_leap(year: i32) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn day_of_year(Date { year, month, day, .. }: Date) -> u32 {
    let days_before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month as usize - 1];
    days_before + day + u32::from(month > 2 && is_leap(year))
}

/// 0 is Sunday. Source: Sakamoto's method.
fn weekday(Date { year, month, day, .. }: Date) -> usize {
    let offset = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4][month as usize - 1];
    let year = if month < 3 { year - 1 } else { year };
    (year + year / 4 - year / 100 + year / 400 + offset + day as i32).rem_euclid(7) as usize
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
        let date = Date { year: 2024, month: 7, day: 6, hour: 15, minute: 4, second: 9 };
        assert_eq!(
            strftime("%d %b %Y, %A %-d %B %y, %I:%M:%S %p %j", date).unwrap(),
            "06 Jul 2024, Saturday 6 July 24, 03:04:09 PM 188"
        );
        assert_eq!(strftime("%Y-%m-%d %a %%", Date::default()).unwrap(), "2024-07-26 Fri %");
        assert!(strftime("%Q", date).is_err());
    }
}
