//! The `lathe` program on a data folder of its own, for the whole-program tests in `tests/`.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

pub mod driver;

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// A fresh data folder and cache, and the program that uses them.
pub struct Lathe {
    folder: TempDir,
}

pub fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The program lies beside the folder of the test's own.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program =
        test.parent().unwrap().parent().unwrap().join(format!("lathe{}", std::env::consts::EXE_SUFFIX));
    assert!(program.exists(), "build it first: cargo build --release -p lathe ({})", program.display());
    program
}

impl Default for Lathe {
    fn default() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }
}

impl Lathe {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(args).env("LATHE_DATA_DIR", self.path("data")).env("HF_HUB_CACHE", self.path("hub"));
        command.env_remove("HF_HOME").stdin(Stdio::null());
        // This machine's own cards are no part of a test.
        command.env("LATHE_NVML", "none").env_remove("CUDA_VISIBLE_DEVICES");
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs it with `--json`, expects success, gives the lines of stdout.
    pub fn json(&self, args: &[&str]) -> Vec<Value> {
        let output = self.run(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        lines(&output.stdout)
    }

    /// Runs it, expects the exit code, gives stderr.
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        stderr
    }

    /// Whether something with this in it was saved in the database.
    pub fn has_saved(&self, text: &str) -> bool {
        ["data/lathe.db", "data/lathe.db-wal"].into_iter().any(|file| {
            let bytes = std::fs::read(self.path(file)).unwrap_or_default();
            bytes.windows(text.len()).any(|window| window == text.as_bytes())
        })
    }

    /// Starts it with `--json`; its stdout is read line by line.
    pub fn start(&self, args: &[&str]) -> Running {
        let mut command = self.command(&[args, &["--json"]].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Running { child, lines }
    }
}

pub struct Running {
    pub child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Running {
    /// The next object of this kind; the others before it are passed over. `None` at the end of stdout.
    pub fn next(&mut self, kind: &str) -> Option<Value> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            let value: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
            if value["kind"] == kind {
                return Some(value);
            }
        }
    }

    pub fn step(&mut self, step: u64) -> Value {
        loop {
            let event = self.next("step").unwrap_or_else(|| panic!("ended before step {step}"));
            if event["step"] == step {
                return event;
            }
        }
    }

    /// The process ids of its children: the worker.
    pub fn workers(&self) -> Vec<u32> {
        let path = format!("/proc/{0}/task/{0}/children", self.child.id());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut found: Vec<u32> = text.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        // Threads start children too.
        if let Ok(tasks) = std::fs::read_dir(format!("/proc/{}/task", self.child.id())) {
            for task in tasks.flatten() {
                let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
                found.extend(text.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

pub fn lines(stdout: &[u8]) -> Vec<Value> {
    let text = String::from_utf8(stdout.to_vec()).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")))
        .collect()
}

pub fn kill_9(pid: u32) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

/// Whether the process has gone within `limit` (a zombie counts as gone).
pub fn is_gone_within(pid: u32, limit: Duration) -> bool {
    let started = Instant::now();
    while started.elapsed() < limit {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        if status.is_empty() || status.contains("State:\tZ") {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

/// The `(step, loss)` of every step event, the loss as it was printed.
pub fn losses(events: &[Value]) -> Vec<(u64, String)> {
    let steps = events.iter().filter(|event| event["kind"] == "step");
    steps.map(|event| (event["step"].as_u64().unwrap(), event["loss"].to_string())).collect()
}
