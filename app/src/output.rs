//! What goes to stdout and stderr. A closed pipe is no reason to panic.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{SystemTime, UNIX_EPOCH},
};

use lathe_protocol::{ErrorInfo, OddsMetrics, PreferenceMetrics};
use lathe_ui::format;
use serde::Serialize;
use serde_json::{Value, json};

/// A line on stderr.
#[macro_export]
macro_rules! note {
    ($($arg:tt)*) => { $crate::output::to_stderr(&format!($($arg)*)) };
}

/// Formats onto the end of a `String`.
#[macro_export]
macro_rules! append {
    ($text:expr, $($arg:tt)*) => { $crate::output::append(&mut $text, format_args!($($arg)*)) };
}

pub fn append(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.push_str(&std::fmt::format(arguments));
}

pub fn to_stderr(line: &str) {
    // Nobody reads it: nobody is told.
    drop(writeln!(io::stderr(), "{line}"));
}

/// stdout, in one of its two manners.
pub struct Output {
    pub json: bool,
    /// Whether a reader that left ends the program. A training run goes on without one.
    pub ends_with_reader: bool,
}

impl Output {
    pub fn is_terminal(&self) -> bool {
        !self.json && io::stdout().is_terminal()
    }

    pub fn line(&self, line: &str) {
        self.text(&format!("{line}\n"));
    }

    pub fn text(&self, text: &str) {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        if written.is_err() && self.ends_with_reader {
            std::process::exit(0);
        }
    }

    pub fn object(&self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(json) => self.line(&json),
            Err(error) => note!("error: cannot write JSON: {error}"),
        }
    }

    /// The one error: for people on stderr, with `--json` for scripts on stdout too.
    pub fn error(&self, error: &ErrorInfo, verbose: bool) {
        note!("error: {}", error.message);
        if let Some(hint) = &error.hint {
            note!("hint: {hint}");
        }
        if let Some(details) = &error.details {
            let lines: Vec<&str> = details.lines().collect();
            let from = if verbose { 0 } else { lines.len().saturating_sub(8) };
            note!("the worker's last words:");
            for line in &lines[from..] {
                note!("  {line}");
            }
        }
        if self.json {
            let mut object = json!({"kind": "error"});
            if let (Value::Object(object), Ok(Value::Object(fields))) =
                (&mut object, serde_json::to_value(error))
            {
                object.extend(fields);
                object.entry("hint").or_insert(Value::Null);
            }
            self.object(&object);
        }
    }
}

/// `5 min ago`.
pub fn ago(then_secs: u64) -> String {
    let now =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(then_secs as f64, |since| since.as_secs_f64());
    format::ago(then_secs, now)
}

/// `2.1345`, or `-`.
/// How a model takes pairs of answers, in a few words.
pub fn preference(metrics: &PreferenceMetrics) -> String {
    let PreferenceMetrics { chosen_reward, rejected_reward, accuracy, margin, odds } = metrics;
    let mut text = format!(
        "rewards {chosen_reward:.3} and {rejected_reward:.3}, margin {margin:.3}, {:.1} % preferred",
        accuracy * 100.0
    );
    if let Some(OddsMetrics { nll_loss, log_odds_ratio, log_odds_chosen }) = odds {
        append!(text, ", nll {nll_loss:.4}, log odds {log_odds_chosen:.3}, ratio {log_odds_ratio:.3}");
    }
    text
}

pub fn loss(loss: Option<f64>) -> String {
    loss.map_or_else(|| "-".into(), |loss| format!("{loss:.4}"))
}

/// Columns, aligned: those whose heading begins with `>` to the right.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let titles: Vec<&str> = headings.iter().map(|heading| heading.trim_start_matches('>')).collect();
    let widths: Vec<usize> = titles
        .iter()
        .enumerate()
        .map(|(column, title)| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.max().unwrap_or(0).max(title.chars().count())
        })
        .collect();
    let render = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for ((cell, heading), &width) in cells.zip(headings).zip(&widths) {
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
            let (before, after) =
                if heading.starts_with('>') { (padding.as_str(), "") } else { ("", padding.as_str()) };
            line.push_str(before);
            line.push_str(cell);
            line.push_str(after);
            line.push_str("  ");
        }
        line.trim_end().to_owned() + "\n"
    };
    let mut text = render(&mut titles.into_iter());
    for row in rows {
        text.push_str(&render(&mut row.iter().map(String::as_str)));
    }
    text
}

/// `name    value` lines.
pub fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let line =
        |(name, value): &(&str, String)| format!("{name:<width$}  {value}").trim_end().to_owned() + "\n";
    fields.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align() {
        let rows = vec![vec!["a".into(), "10".into()], vec!["long".into(), "9".into()]];
        assert_eq!(table(&["name", ">size"], &rows), "name  size\na       10\nlong     9\n");
        assert_eq!(fields(&[("a", "1".into()), ("bcd", String::new())]), "a    1\nbcd\n");
    }
}
