//! `cargo xtask tidy`: the invariants of ARCHITECTURE.md that no compiler checks.

mod crates;
mod docs;
mod paths;
mod text;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::repo;

#[derive(clap::Args)]
pub struct Args {
    /// Write the generated parts of the documents instead of only comparing them
    #[arg(long)]
    fix: bool,
}

/// Folders that are nobody's source.
const SKIPPED_FOLDERS: [&str; 5] = [".git", ".cache", "target", "node_modules", "__pycache__"];

/// A text file of the repository.
pub struct SourceFile {
    /// From the root, with `/`.
    pub path: String,
    pub text: String,
}

impl SourceFile {
    fn is_rust(&self) -> bool {
        Path::new(&self.path).extension().is_some_and(|extension| extension == "rs")
    }
}

pub fn tidy(args: &Args) -> Result<()> {
    if args.fix {
        docs::fix(&repo::root())?;
    }
    check()
}

/// Errors: any invariant broken, each printed in a line with its path last.
pub fn check() -> Result<()> {
    let root = repo::root();
    let files = source_files(&root)?;
    let mut problems = crates::check(&root)?;
    for file in &files {
        problems.extend(paths::check(file));
        problems.extend(text::check(file));
    }
    problems.extend(docs::check(&root)?);
    let starter = root.join("resources/starter");
    let (size, most) = (repo::folder_bytes(&starter)?, repo::MAX_STARTER_BYTES);
    if size > most {
        problems.push(format!("{size} bytes, {most} are allowed: {}", starter.display()));
    }
    for problem in &problems {
        println!("tidy: {problem}");
    }
    match problems.len() {
        0 => {
            println!("tidy: {} files, all in order", files.len());
            Ok(())
        }
        count => bail!("{count} invariants broken"),
    }
}

/// Every text file a person writes.
fn source_files(root: &Path) -> Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    for path in walk(root)? {
        let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
        if text::is_source(&relative) {
            files.push(SourceFile { path: relative, text: repo::read_to_string(&path)? });
        }
    }
    Ok(files)
}

/// All files under a folder, in order.
fn walk(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut entries = std::fs::read_dir(folder)
        .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
        .with_context(|| format!("Cannot list {}", folder.display()))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    let mut files = Vec::new();
    for entry in entries {
        let file_type = entry.file_type()?;
        if file_type.is_dir() {
            if !SKIPPED_FOLDERS.contains(&entry.file_name().to_string_lossy().as_ref()) {
                files.extend(walk(&entry.path())?);
            }
        } else if file_type.is_file() {
            files.push(entry.path());
        }
    }
    Ok(files)
}
