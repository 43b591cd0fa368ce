//! `cargo xtask desktop`: the packaged companion, `src-tauri/`, with the wasm window in it.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{repo, wasm};

pub const PROGRAM: &str = "lathe-desktop";
/// Is put over `tauri.conf.json`.
const CONFIG: &str = "TAURI_CONFIG";

/// Builds it, and returns where it is.
pub fn desktop() -> Result<PathBuf> {
    ensure!(has_webview(), "webkit2gtk-4.1 is missing: `apt-get install libwebkit2gtk-4.1-dev`, or the like");
    let web = wasm::build()?;
    let mut cargo = repo::cargo();
    cargo.args(["build", "--release", "--package", PROGRAM]).env(CONFIG, config(&web));
    repo::run(&mut cargo)?;
    Ok(repo::target_dir()?.join("release").join(format!("{PROGRAM}{}", std::env::consts::EXE_SUFFIX)))
}

/// Commands for the whole workspace, the companion with the page in the folder `web`. Without a page, or a webview, they
/// leave it out, and this says so.
pub fn workspace(web: Option<&Path>) -> impl Fn(&str) -> Command {
    let config = web.filter(|_| has_webview()).map(config);
    if config.is_none() {
        println!("skipped: {PROGRAM} takes webkit2gtk-4.1 and the page, so whether it builds is not known");
    }
    move |what| {
        let mut cargo = repo::cargo();
        cargo.args([what, "--release", "--workspace"]);
        match &config {
            Some(config) => cargo.env(CONFIG, config),
            None => cargo.args(["--exclude", PROGRAM]),
        };
        cargo
    }
}

/// Where it finds the page.
fn config(web: &Path) -> String {
    json!({ "build": { "frontendDist": web } }).to_string()
}

/// On Linux the webview is a system package.
fn has_webview() -> bool {
    !cfg!(target_os = "linux") || repo::finds("pkg-config", &["--exists", "webkit2gtk-4.1"])
}
