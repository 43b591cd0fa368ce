//! Documents that must keep up with the code.

use std::{fmt::Write as _, path::Path};

use anyhow::{Context as _, Result};
use lathe_protocol::CONFIG_KEYS;

use super::crates;
use crate::repo;

/// The table of configuration keys stands between these lines of the README.
const BEGIN: &str = "<!-- config keys: written by `cargo xtask tidy --fix` -->\n";
const END: &str = "<!-- end of config keys -->\n";
/// What the README must speak of.
const README_MENTIONS: [&str; 4] = ["quickstart", "fetch-smollm2", "cargo xtask test", "ARCHITECTURE.md"];

pub fn check(root: &Path) -> Result<Vec<String>> {
    let readme = repo::read_to_string(&root.join("README.md"))?;
    let architecture = repo::read_to_string(&root.join("ARCHITECTURE.md"))?;
    let mut problems = Vec::new();
    match with_table(&readme) {
        Some(expected) if expected == readme => {}
        Some(_) => problems.push(
            "the table of config keys is out of date; `cargo xtask tidy --fix` writes it: README.md".into(),
        ),
        None => problems.push(format!("no line {:?}: README.md", BEGIN.trim_end())),
    }
    problems
        .extend(missing(&readme, README_MENTIONS).map(|word| format!("does not mention {word}: README.md")));
    let folders: Vec<String> = crates::folders().map(|folder| format!("`{folder}/`")).collect();
    let unnamed = missing(&architecture, folders.iter().map(String::as_str));
    problems.extend(unnamed.map(|folder| format!("no row for {folder}: ARCHITECTURE.md")));
    Ok(problems)
}

/// Writes the generated parts anew.
pub fn fix(root: &Path) -> Result<()> {
    let path = root.join("README.md");
    let readme = repo::read_to_string(&path)?;
    let fixed =
        with_table(&readme).with_context(|| format!("No line {:?} in README.md", BEGIN.trim_end()))?;
    if fixed != readme {
        repo::write(&path, fixed)?;
    }
    Ok(())
}

fn missing<'a>(text: &'a str, words: impl IntoIterator<Item = &'a str>) -> impl Iterator<Item = &'a str> {
    words.into_iter().filter(move |word| !text.contains(word))
}

/// The document with the table as it should be; `None` without a place for it.
fn with_table(document: &str) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{}{END}{after}", table()))
}

fn table() -> String {
    let mut table = String::from("| key | values | what it does |\n|---|---|---|\n");
    for key in CONFIG_KEYS {
        let values = key.range.replace('|', "\\|");
        // Writing to a string cannot fail.
        writeln!(table, "| `{}` | {values} | {} |", key.name, key.help).ok();
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_written_between_its_marks() {
        let document = format!("a\n{BEGIN}outdated\n{END}b\n");
        let fixed = with_table(&document).unwrap();
        assert!(fixed.starts_with("a\n") && fixed.ends_with("b\n") && !fixed.contains("outdated"));
        assert!(fixed.contains("| `lora.r` | 1..=4096 |"));
        assert_eq!(with_table(&fixed).unwrap(), fixed);
        assert_eq!(with_table("no marks"), None);
    }

    #[test]
    fn what_is_not_mentioned_is_named() {
        assert_eq!(missing("a b", ["a", "c"]).collect::<Vec<_>>(), ["c"]);
    }
}
