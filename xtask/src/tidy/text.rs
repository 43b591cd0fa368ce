//! What every text file keeps to.

use super::SourceFile;

const MAX_LINES: usize = 600;
const EXTENSIONS: [&str; 6] = [".rs", ".toml", ".md", ".py", ".html", ".css"];
/// Made by programs, or malformed on purpose.
const GENERATED: [&str; 3] = ["tests/golden/data/", "tests/data/", "resources/starter/tokenizer"];

/// Whether tidy looks into a file.
pub fn is_source(path: &str) -> bool {
    let known = EXTENSIONS.iter().any(|extension| path.ends_with(extension)) || path == ".ci/run";
    known && !GENERATED.iter().any(|folder| path.starts_with(folder))
}

pub fn check(file: &SourceFile) -> Vec<String> {
    let SourceFile { path, text } = file;
    let mut problems = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        if line.ends_with([' ', '\t', '\r']) {
            problems.push(format!("trailing white space: {path}:{number}"));
        }
        if line.contains('\t') {
            problems.push(format!("a tab: {path}:{number}"));
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        problems.push(format!("no line end at the end: {path}"));
    }
    if file.is_rust() {
        let num_lines = text.lines().count();
        if num_lines > MAX_LINES && !path.starts_with("tests/") && !path.contains("/tests/") {
            problems.push(format!("{num_lines} lines, {MAX_LINES} are allowed: {path}"));
        }
        let is_crate_root = path.ends_with("/src/lib.rs") || path.ends_with("/src/main.rs");
        if is_crate_root && !text.starts_with("//!") {
            problems.push(format!("the crate does not begin with what it is (`//!`): {path}"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_is_named_with_its_place() {
        let check = |path: &str, text: &str, expected: &[&str]| {
            assert_eq!(check(&SourceFile { path: path.to_owned(), text: text.to_owned() }), expected);
        };
        check("a/src/a.rs", "fn a() {}\n", &[]);
        check(
            "a/src/a.rs",
            "fn a() {} \n\tb",
            &[
                "trailing white space: a/src/a.rs:1",
                "a tab: a/src/a.rs:2",
                "no line end at the end: a/src/a.rs",
            ],
        );
        check(
            "a/src/lib.rs",
            "mod a;\n",
            &["the crate does not begin with what it is (`//!`): a/src/lib.rs"],
        );
        let long = "//! a\n".repeat(601);
        check("a/src/a.rs", &long, &["601 lines, 600 are allowed: a/src/a.rs"]);
        check("engine/tests/a.rs", &long, &[]);
    }

    #[test]
    fn data_is_not_source() {
        for (path, expected) in [
            ("engine/src/lib.rs", true),
            (".ci/run", true),
            ("tests/golden/data/a.md", false),
            ("resources/samples/pirate.jsonl", false),
        ] {
            assert_eq!(is_source(path), expected, "{path}");
        }
    }
}
