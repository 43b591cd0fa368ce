//! One side of a measurement: a process that prints what it measured.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::de::DeserializeOwned;

use super::Measured;
use crate::repo;

/// How often the memory of a process is looked at. The high-water mark is the kernel's: only growth in the last
/// moment before the end can be missed.
const MEMORY_POLL: Duration = Duration::from_millis(20);

/// The reference implementations' side.
pub struct Peer {
    /// `None`: nobody said where it is.
    python: Option<PathBuf>,
    threads: u32,
}

impl Peer {
    pub fn new(python: Option<&Path>, threads: u32) -> Result<Self> {
        let python = python.map(std::path::absolute).transpose()?;
        if let Some(python) = &python {
            ensure!(python.exists(), "No such Python: {}", python.display());
        }
        Ok(Self { python, threads })
    }

    /// Runs a script of lab/peers, which prints one JSON line.
    pub fn run<T: DeserializeOwned>(&self, script: &str, args: &[&str]) -> Result<Measured<T>> {
        let stdout = match self.run_quietly(script, args)? {
            Ok(stdout) => stdout,
            Err(why) => return Ok(Err(why)),
        };
        let line = stdout.lines().last().unwrap_or_default();
        Ok(Ok(serde_json::from_str(line).with_context(|| format!("{script} printed {line:?}"))?))
    }

    /// Runs a script of lab/peers; what it printed.
    pub fn run_quietly(&self, script: &str, args: &[&str]) -> Result<Measured<String>> {
        let Some(python) = &self.python else { return Ok(Err("not installed".into())) };
        let output = Command::new(python)
            .arg(repo::root().join("lab/peers").join(script))
            .args(args)
            .env("OMP_NUM_THREADS", self.threads.to_string())
            .output()
            .with_context(|| format!("Cannot start {}", python.display()))?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            if stderr.contains("ModuleNotFoundError") {
                return Ok(Err("not installed".into()));
            }
            println!("{script} failed ({}):\n{stderr}", output.status);
            return Ok(Err(format!("failed ({})", output.status)));
        }
        Ok(Ok(String::from_utf8_lossy(&output.stdout).into_owned()))
    }
}

/// Builds the `lathe` that is measured.
pub fn build_lathe() -> Result<PathBuf> {
    repo::run(repo::cargo().args(["build", "--release", "--package", "lathe"]))?;
    let name = format!("lathe{}", std::env::consts::EXE_SUFFIX);
    Ok(repo::target_dir()?.join("release").join(name))
}

/// Runs a command that prints JSON lines, with its peak memory and that of its children, in bytes (0 where the
/// system does not tell).
pub fn json_lines(command: &mut Command) -> Result<(Vec<serde_json::Value>, u64)> {
    let line = repo::command_line(command);
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("Cannot start `{line}`"))?;
    let stdout = child.stdout.take().context("no stdout")?;
    let (id, done) = (child.id(), &AtomicBool::new(false));
    let (values, peak_bytes) = thread::scope(|scope| -> Result<_> {
        let watch =
            thread::Builder::new().name("memory".into()).spawn_scoped(scope, move || watch(id, done))?;
        let values = BufReader::new(stdout)
            .lines()
            .map(|text| {
                let text = text?;
                serde_json::from_str(&text).with_context(|| format!("`{line}` printed {text:?}"))
            })
            .collect::<Result<Vec<_>>>();
        done.store(true, Ordering::Relaxed);
        let peak_bytes = watch.join().unwrap_or_default();
        Ok((values?, peak_bytes))
    })?;
    finish(child, &line)?;
    Ok((values, peak_bytes))
}

fn finish(mut child: Child, line: &str) -> Result<()> {
    let status = child.wait()?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// The sum of the high-water marks of a process and its descendants.
fn watch(process: u32, done: &AtomicBool) -> u64 {
    let mut peaks: Vec<(u32, u64)> = Vec::new();
    while !done.load(Ordering::Relaxed) {
        for id in tree(process) {
            let Some(bytes) = high_water_bytes(id) else { continue };
            match peaks.iter_mut().find(|(known, _)| *known == id) {
                Some((_, peak)) => *peak = bytes.max(*peak),
                None => peaks.push((id, bytes)),
            }
        }
        thread::sleep(MEMORY_POLL);
    }
    peaks.iter().map(|(_, bytes)| bytes).sum()
}

/// A process and its descendants, by Linux's /proc.
fn tree(process: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let id: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
            // `id (name) state parent ..`, where the name may hold anything.
            let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
            Some((id, parent))
        })
        .collect();
    let mut tree = vec![process];
    let mut at = 0;
    while let Some(&parent) = tree.get(at) {
        tree.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(id, _)| *id));
        at += 1;
    }
    tree
}

fn high_water_bytes(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix(" kB")?;
    Some(kib.parse::<u64>().ok()? * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_with_the_memory_of_its_children() {
        let mut command = Command::new("bash");
        command.args(["-c", "echo '{\"a\":1}'; (sleep 0.2; true); echo '{\"a\":2}'"]);
        let (values, peak_bytes) = json_lines(&mut command).unwrap();
        assert_eq!(values, [serde_json::json!({ "a": 1 }), serde_json::json!({ "a": 2 })]);
        assert!(peak_bytes > 1 << 20, "{peak_bytes}");
        let mut command = Command::new("bash");
        assert!(json_lines(command.args(["-c", "exit 3"])).unwrap_err().to_string().contains('3'));
    }
}
