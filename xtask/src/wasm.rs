//! `cargo xtask wasm`: the window as a page for browsers and webviews, in the folder `web` of the target folder.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use flate2::{Compression, write::GzEncoder};
use wasm_bindgen_cli_support::Bindgen;

use crate::repo;

const TARGET: &str = "wasm32-unknown-unknown";
/// What the page is made of besides the wasm, and where it lies.
const FILES: [(&str, &str); 4] = [
    ("index.html", "web/page/index.html"),
    ("lathe.css", "web/page/lathe.css"),
    ("start.js", "web/page/start.js"),
    ("icon.png", "resources/icons/lathe.png"),
];

/// Builds the page, and returns its folder. Says so and does nothing if rustup cannot add the target.
pub fn wasm() -> Result<Option<PathBuf>> {
    if !has_target() {
        println!("skipped: rustup cannot add {TARGET}, so whether web/ builds for it is not known");
        return Ok(None);
    }
    build().map(Some)
}

/// Whether rustup has Rust's side of it, or could add it.
fn has_target() -> bool {
    Command::new("rustup").args(["target", "add", TARGET]).status().is_ok_and(|status| status.success())
}

/// Builds the page, and returns its folder.
pub fn build() -> Result<PathBuf> {
    // 1. The program.
    ensure!(has_target(), "The page needs Rust's {TARGET}: `rustup target add {TARGET}`");
    let args = ["build", "--profile", "wasm", "--package", "lathe-web", "--lib", "--target", TARGET];
    repo::run(repo::cargo().args(args))?;

    // 2. What leads JavaScript into it.
    let target = repo::target_dir()?;
    let (made, page) = (target.join(TARGET).join("wasm/lathe_web.wasm"), target.join("web"));
    repo::create_dir_all(&page)?;
    Bindgen::new()
        .input_path(&made)
        .out_name("lathe")
        .web(true)
        .and_then(|bindgen| {
            bindgen
                .typescript(false)
                .omit_default_module_path(false)
                .remove_producers_section(true)
                .remove_name_section(true)
                .generate(&page)
        })
        .with_context(|| format!("wasm-bindgen cannot use {}", made.display()))?;

    // 3. The page around it, and what is sent compressed.
    for (name, source) in FILES {
        let source = repo::root().join(source);
        let bytes = std::fs::read(&source).with_context(|| format!("Cannot read {}", source.display()))?;
        repo::write(&page.join(name), bytes)?;
    }
    for name in ["lathe_bg.wasm", "lathe.js"] {
        let (whole, packed) = compress(&page.join(name))?;
        println!("{name}: {:.2} MB, {:.2} MB compressed", whole as f64 / 1e6, packed as f64 / 1e6);
    }
    println!("the page: {}", page.display());
    Ok(page)
}

/// Writes `path.gz`; the sizes of both.
fn compress(path: &Path) -> Result<(usize, usize)> {
    let bytes = std::fs::read(path).with_context(|| format!("Cannot read {}", path.display()))?;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&bytes)?;
    let packed = encoder.finish()?;
    repo::write(&PathBuf::from(format!("{}.gz", path.display())), &packed)?;
    Ok((bytes.len(), packed.len()))
}
