//! What some tests need of the system: browsers, a webview, a screen. Without them those tests say `skipped`.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::repo;

/// Debian's names.
const PACKAGES: [&str; 6] = [
    "chromium",
    "chromium-driver",
    "libayatana-appindicator3-1",
    "libwebkit2gtk-4.1-dev",
    "webkit2gtk-driver",
    "xvfb",
];
const TAURI_DRIVER: &str = "2.1.0";

/// Installs what is missing, on a Debian-like system and as root.
pub fn install() {
    let is_here = |package: &&str| repo::finds("dpkg-query", &["--show", package]);
    let missing: Vec<&str> = PACKAGES.into_iter().filter(|package| !is_here(package)).collect();
    if missing.is_empty() {
        return;
    }
    let list = missing.join(" ");
    if !repo::finds("apt-get", &["--version"]) || !is_root() {
        println!("skipped: some tests need more of this system: sudo apt-get install {list}");
        return;
    }
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["--yes", "--quiet", "--quiet"]).args(args).env("DEBIAN_FRONTEND", "noninteractive");
        repo::run(&mut command)
    };
    let install = [&["install", "--no-install-recommends"], missing.as_slice()].concat();
    if let Err(error) = apt(&["update"]).and_then(|()| apt(&install)) {
        println!("{error:#}\nGoing on without {list}: the tests that need them say \"skipped\".");
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// The program between a test and a webview; none where there is no webview to drive.
pub fn tauri_driver() -> Result<Option<PathBuf>> {
    if !repo::finds("WebKitWebDriver", &["--help"]) {
        return Ok(None);
    }
    let folder = repo::target_dir()?.join("tools");
    let driver = folder.join("bin").join("tauri-driver");
    if !driver.exists() {
        let mut cargo = repo::cargo();
        cargo.args(["install", "--quiet", "--locked", "tauri-driver", "--version", TAURI_DRIVER, "--root"]);
        repo::run(cargo.arg(&folder))?;
    }
    Ok(Some(driver))
}
