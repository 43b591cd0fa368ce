//! `cargo xtask desktop`: the packaged companion, `src-tauri/`, with the wasm window in it.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{repo, wasm};

pub const PROGRAM: &str = "lathe-desktop";

/// Builds it, and returns where it is.
pub fn desktop() -> Result<PathBuf> {
    ensure!(has_webview(), "webkit2gtk-4.1 is missing: `apt-get install libwebkit2gtk-4.1-dev`, or the like");
    let web = wasm::build()?;
    repo::run(cargo("build", &web).args(["--release", "-p", PROGRAM]))?;
    Ok(repo::target_dir()?.join("release").join(format!("{PROGRAM}{}", std::env::consts::EXE_SUFFIX)))
}

/// A cargo that finds the wasm window at `web`.
pub fn cargo(what: &str, web: &std::path::Path) -> std::process::Command {
    let mut cargo = repo::cargo();
    cargo.arg(what).env("TAURI_CONFIG", json!({ "build": { "frontendDist": web } }).to_string());
    cargo
}

/// On Linux the webview is a system package.
fn has_webview() -> bool {
    !cfg!(target_os = "linux") || repo::finds("pkg-config", &["--exists", "webkit2gtk-4.1"])
}

/// Clippy and tests, and the program for the tests that drive it, where what it takes is there.
pub fn check() -> Result<()> {
    if !has_webview() || !wasm::has_target() {
        println!(
            "skipped: src-tauri/ takes webkit2gtk-4.1 and the wasm target, so whether it builds is not known"
        );
        return Ok(());
    }
    let web = wasm::build()?;
    let package = ["--release", "--package", PROGRAM];
    repo::run(cargo("clippy", &web).args(package).args(["--all-targets", "--", "-D", "warnings"]))?;
    repo::run(cargo("test", &web).args(package))?;
    repo::run(cargo("build", &web).args(package))
}
