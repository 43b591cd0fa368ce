//! Measurements as a Markdown table.

use std::{fmt::Write as _, path::Path, process::Command};

use anyhow::Result;

use super::Measured;
use crate::repo;

/// One line of a table.
pub struct Row {
    pub measure: String,
    pub unit: &'static str,
    pub lathe: Measured<f64>,
    pub peer_name: &'static str,
    pub peer: Measured<f64>,
    pub goal: Goal,
}

/// What Lathe means to reach.
#[derive(Clone, Copy)]
pub enum Goal {
    /// Times the peer's, at least.
    TimesOrMore(f64),
    /// Times the peer's, at most.
    TimesOrLess(f64),
    /// Of the peer's, by this share more or less.
    Within(f64),
    /// In the row's own unit.
    OrLess(f64),
    /// Told, not aimed at.
    None,
}

impl Goal {
    fn text(self, unit: &str) -> String {
        match self {
            Self::TimesOrMore(ratio) => format!("≥ {ratio}×"),
            Self::TimesOrLess(ratio) => format!("≤ {ratio}×"),
            Self::Within(share) => format!("± {:.0} %", share * 100.0),
            Self::OrLess(value) => format!("≤ {value} {unit}"),
            Self::None => "–".into(),
        }
    }

    fn met(self, lathe: f64, ratio: Option<f64>) -> Option<bool> {
        match self {
            Self::TimesOrMore(goal) => ratio.map(|ratio| ratio >= goal),
            Self::TimesOrLess(goal) => ratio.map(|ratio| ratio <= goal),
            Self::Within(share) => ratio.map(|ratio| (ratio - 1.0).abs() <= share),
            Self::OrLess(goal) => Some(lathe <= goal),
            Self::None => None,
        }
    }
}

pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { f64::midpoint(values[middle - 1], upper) })
}

pub fn render(rows: &[Row]) -> String {
    let mut text =
        String::from("| measure | Lathe | peer | | ratio | goal | |\n|---|---:|---:|---|---:|---|---|\n");
    for Row { measure, unit, lathe, peer_name, peer, goal } in rows {
        let number = |value: &Measured<f64>| match value {
            Ok(value) => format!("{} {unit}", rounded(*value)),
            Err(why) => why.clone(),
        };
        let ratio = lathe.as_ref().ok().zip(peer.as_ref().ok()).map(|(lathe, peer)| lathe / peer);
        let verdict = match lathe.as_ref().ok().and_then(|lathe| goal.met(*lathe, ratio)) {
            Some(true) => "met",
            Some(false) => "missed",
            None => "",
        };
        let ratio = ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}×"));
        let (lathe, peer, goal) = (number(lathe), number(peer), goal.text(unit));
        // Writing to a string cannot fail.
        writeln!(text, "| {measure} | {lathe} | {peer} | {peer_name} | {ratio} | {goal} | {verdict} |").ok();
    }
    text
}

/// Three significant digits.
fn rounded(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// When, where and how the numbers were taken.
pub fn provenance(note: &str) -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut git = Command::new("git");
    git.args(["rev-parse", "--short", "HEAD"]).current_dir(repo::root());
    let commit = git.output().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    format!(
        "{}, commit {}, {}, {note}: `cargo xtask {}`",
        jiff::Zoned::now().date(),
        commit.unwrap_or_default(),
        cpu(),
        arguments.join(" ")
    )
}

fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.to_owned())
}

/// Replaces one part's section of BENCHMARKS.md, or adds it.
pub fn write_section(path: &Path, name: &str, text: &str) -> Result<()> {
    let document = if path.exists() { repo::read_to_string(path)? } else { "# Benchmarks\n".to_owned() };
    repo::write(path, with_section(&document, name, text))?;
    println!("wrote {name}: {}", path.display());
    Ok(())
}

fn with_section(document: &str, name: &str, text: &str) -> String {
    let (begin, end) = (format!("<!-- bench {name} -->\n"), format!("<!-- end of bench {name} -->\n"));
    let section = format!("{begin}{}\n{end}", text.trim_end());
    match document.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1))) {
        Some((before, after)) => format!("{before}{section}{after}"),
        None => format!("{}\n\n{section}", document.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_ratio_and_goal() {
        let row = |lathe, peer: Measured<f64>, goal| {
            let row = Row { measure: "speed".into(), unit: "tok/s", lathe, peer_name: "peft", peer, goal };
            render(&[row]).lines().last().unwrap_or_default().to_owned()
        };
        assert_eq!(
            row(Ok(240.4), Ok(80.0), Goal::TimesOrMore(2.5)),
            "| speed | 240 tok/s | 80.0 tok/s | peft | 3.00× | ≥ 2.5× | met |"
        );
        assert_eq!(
            row(Ok(2.0), Err("not installed".into()), Goal::TimesOrLess(0.5)),
            "| speed | 2.00 tok/s | not installed | peft | – | ≤ 0.5× |  |"
        );
        assert!(row(Ok(94.0), Ok(100.0), Goal::Within(0.05)).ends_with("| 0.94× | ± 5 % | missed |"));
        assert!(row(Ok(2.0), Err(String::new()), Goal::OrLess(1.5)).ends_with("| ≤ 1.5 tok/s | missed |"));
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }

    #[test]
    fn a_section_is_added_once_and_then_replaced() {
        let once = with_section("# Benchmarks\n\nWords.\n", "load", "old\n");
        let twice = with_section(&once, "load", "new");
        assert_eq!(twice, "# Benchmarks\n\nWords.\n\n<!-- bench load -->\nnew\n<!-- end of bench load -->\n");
        assert!(with_section(&twice, "train", "t").starts_with(&twice));
    }
}
