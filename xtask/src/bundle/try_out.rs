//! What a person does with the packages: install, start, use, remove. On this machine, so as root.

use std::{
    collections::HashSet,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::repo;

/// From the start of a program to a window that shows something.
const MOST_TO_WINDOW: Duration = Duration::from_millis(1500);

pub fn try_out(packages: &[&Path]) -> Result<()> {
    let names: Vec<String> = packages.iter().map(|path| name_of(path)).collect::<Result<_>>()?;
    repo::run(apt().arg("install").args(packages))?;
    let tried = use_them();
    // Whatever came of it, nothing stays behind.
    repo::run(apt().arg("purge").args(&names))?;
    tried?;
    for left in ["/usr/bin/lathe", "/usr/bin/lathe-desktop", "/usr/lib/lathe", "/usr/share/doc/lathe"] {
        ensure!(fs::symlink_metadata(left).is_err(), "Removing the packages left {left}");
    }
    println!("installed, used and removed; nothing was left");
    Ok(())
}

fn use_them() -> Result<()> {
    let data = tempfile::tempdir()?;
    let lathe = |args: &[&str]| {
        let mut command = Command::new("/usr/bin/lathe");
        command.arg("--data-dir").arg(data.path()).args(args);
        command
    };
    repo::run(&mut lathe(&["--version"]))?;
    // Which starts the worker, too.
    repo::run(&mut lathe(&["doctor"]))?;
    repo::run(&mut lathe(&["chat", "--model", "starter", "-p", "What is the capital of Italy?"]))?;
    let screen = Screen::start()?;
    for program in ["/usr/bin/lathe", "/usr/bin/lathe-desktop"] {
        let mut command = Command::new(program);
        command.env("LATHE_DATA_DIR", data.path());
        let taken = screen.time_to_window(command)?;
        let verdict = if taken <= MOST_TO_WINDOW { "" } else { ", more than is wanted" };
        println!("{program}: a window after {:.2} s{verdict}", taken.as_secs_f64());
    }
    Ok(())
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.args(["--yes", "--quiet", "--no-install-recommends"]).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn name_of(package: &Path) -> Result<String> {
    let name = package.file_name().unwrap_or_default().to_string_lossy();
    let name = name.split_once('_').map(|(name, _)| name.to_owned());
    name.with_context(|| format!("Not a package: {}", package.display()))
}

/// An X server without a screen.
struct Screen {
    server: Child,
    display: String,
    shot: PathBuf,
}

impl Screen {
    fn start() -> Result<Self> {
        let mut server = Command::new("Xvfb")
            .args(["-displayfd", "1", "-screen", "0", "1280x800x24+32"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("Cannot start Xvfb: apt-get install xvfb x11-apps")?;
        // Its number, as soon as it is ready.
        let mut number = String::new();
        if let Some(told) = server.stdout.take() {
            BufReader::new(told).read_line(&mut number)?;
        }
        let display = format!(":{}", number.trim());
        Ok(Self { server, display, shot: std::env::temp_dir().join("lathe-bundle.xwd") })
    }

    /// Until something is drawn in many colours: text, not an empty frame.
    fn time_to_window(&self, mut command: Command) -> Result<Duration> {
        ensure!(self.colours()? == 1, "The screen shows something before the program starts");
        let started = Instant::now();
        let mut program = command
            .env("DISPLAY", &self.display)
            .env_remove("WAYLAND_DISPLAY")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let taken = loop {
            if self.colours()? > 32 {
                break Ok(started.elapsed());
            }
            if let Some(status) = program.try_wait()? {
                break Err(anyhow::anyhow!("The window's program ended at once ({status})"));
            }
            if started.elapsed() > Duration::from_secs(30) {
                break Err(anyhow::anyhow!("No window in 30 s"));
            }
            thread::sleep(Duration::from_millis(20));
        };
        program.kill()?;
        program.wait()?;
        // What it drew goes with it; a webview is a process of its own, and takes a moment.
        let ended = Instant::now();
        while self.colours()? > 1 && ended.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(20));
        }
        taken
    }

    /// How many colours the screen shows.
    fn colours(&self) -> Result<usize> {
        let taken = Command::new("xwd")
            .args(["-silent", "-root", "-display", &self.display, "-out"])
            .arg(&self.shot)
            .status()
            .context("Cannot start xwd: apt-get install x11-apps")?;
        if !taken.success() {
            bail!("xwd failed ({taken})");
        }
        colours(&fs::read(&self.shot)?).with_context(|| format!("Not a picture: {}", self.shot.display()))
    }
}

/// Of a picture in the form of xwd, with 32 bits a pixel: a header of big-endian words, a table, the pixels.
fn colours(picture: &[u8]) -> Option<usize> {
    let word = |index: usize| {
        let bytes = picture.get(4 * index..)?.first_chunk::<4>()?;
        Some(u32::from_be_bytes(*bytes) as usize)
    };
    let (header, table) = (word(0)?, 12 * word(19)?);
    let pixels = picture.get(header + table..)?.chunks_exact(4);
    Some(pixels.collect::<HashSet<_>>().len())
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
        fs::remove_file(&self.shot).ok();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_table_of_a_picture_is_no_colour_of_it() {
        let mut picture: Vec<u8> = (0..25_u32)
            .flat_map(|word| match word {
                0 => 104_u32.to_be_bytes(),
                19 => 2_u32.to_be_bytes(),
                word => word.to_be_bytes(),
            })
            .collect();
        picture.extend(*b"xwd\0");
        picture.extend(0..24);
        picture.extend([[1, 2, 3, 0], [1, 2, 3, 0], [4, 5, 6, 0]].concat());
        assert_eq!(super::colours(&picture), Some(2));
        assert_eq!(super::colours(&picture[..50]), None);
    }
}
