//! `cargo xtask bundle`: what people install.
//!
//! Three Debian packages: `lathe` (window, command line, and the wasm window for `serve-ui`), `lathe-desktop` (the
//! companion, which needs WebKitGTK), and with `--cuda` the add-on `lathe-cuda` (the worker for cards, with CUDA's
//! libraries). AppImage and NSIS hold the first two and are made by Tauri's own tool, on a machine that has it.

mod cuda_libraries;
mod deb;
mod try_out;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::json;

use self::deb::{Built, File, Package};
use crate::{cuda, desktop, repo, wasm};

/// Where the programs lie: beside each other, as they look for each other.
const HOME: &str = "usr/lib/lathe";
/// Packed.
const MOST_BYTES: u64 = 60_000_000;
/// Packed, with the add-on.
const MOST_BYTES_WITH_CUDA: u64 = 700_000_000;

#[derive(clap::Args)]
pub struct Args {
    /// What to make; may be given several times
    #[arg(long, value_enum, default_values = ["deb"])]
    format: Vec<Format>,
    /// Also the add-on package for NVIDIA cards, with CUDA's libraries
    #[arg(long)]
    cuda: bool,
    /// Installs the packages here (as root), starts what is in them, and removes them again
    #[arg(long)]
    try_out: bool,
    /// Where they go [default: bundle/ in cargo's target folder]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Deb,
    /// Needs `cargo install tauri-cli --version ^2`, which fetches linuxdeploy
    Appimage,
    /// On Windows; needs `cargo install tauri-cli --version ^2`, which fetches NSIS
    Nsis,
}

pub fn bundle(args: &Args) -> Result<()> {
    let target = repo::target_dir()?;
    let out = args.out.clone().unwrap_or_else(|| target.join("bundle"));
    repo::create_dir_all(&out)?;
    let web = wasm::build()?;
    repo::run(repo::cargo().args(["build", "--release", "-p", "lathe"]))?;
    for format in &args.format {
        match format {
            Format::Deb => debs(args, &target, &web, &out)?,
            Format::Appimage => by_tauri("appimage", &target, &web)?,
            Format::Nsis => by_tauri("nsis", &target, &web)?,
        }
    }
    Ok(())
}

fn debs(args: &Args, target: &Path, web: &Path, out: &Path) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let desktop = desktop::desktop()?;
    let mut packages = vec![lathe(target, web)?, companion(&desktop, version)];
    if args.cuda {
        packages.push(cuda_add_on(version, out)?);
    }
    let mut built = Vec::new();
    for package in &packages {
        let package = deb::build(package, version, out)?;
        tell(&package);
        built.push(package);
    }
    let without_cuda = built[0].packed_bytes + built[1].packed_bytes;
    println!("\nwithout CUDA  {:.1} MB packed, {:.0} MB may be", mb(without_cuda), mb(MOST_BYTES));
    if let Some(add_on) = built.get(2) {
        let all = without_cuda + add_on.packed_bytes;
        println!("with CUDA     {:.1} MB packed, {:.0} MB may be", mb(all), mb(MOST_BYTES_WITH_CUDA));
    }
    if args.try_out {
        try_out::try_out(&built.iter().map(|package| package.path.as_path()).collect::<Vec<_>>())?;
    }
    Ok(())
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn tell(built: &Built) {
    println!(
        "\n{}  {:.1} MB packed, {:.1} MB installed",
        built.path.display(),
        mb(built.packed_bytes),
        mb(built.unpacked_bytes())
    );
    for (path, bytes) in &built.contents {
        println!("  {:>10.1} kB  {path}", *bytes as f64 / 1e3);
    }
}

/// The window, the command line, and the window for browsers.
fn lathe(target: &Path, web: &Path) -> Result<Package> {
    let root = repo::root();
    let mut files = vec![
        program(target.join("release").join("lathe"), "lathe"),
        plain(root.join("resources/packaging/lathe.desktop"), "usr/share/applications/lathe.desktop"),
        plain(root.join("resources/icons/lathe.png"), "usr/share/icons/hicolor/128x128/apps/lathe.png"),
        plain(root.join("LICENSE"), "usr/share/doc/lathe/copyright"),
        plain(root.join("THIRD_PARTY.md"), "usr/share/doc/lathe/THIRD_PARTY.md"),
    ];
    for entry in fs::read_dir(web).with_context(|| format!("Cannot read {}", web.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push(plain(path, format!("{HOME}/web/{name}")));
    }
    files.sort_by(|a, b| a.to.cmp(&b.to));
    Ok(Package {
        name: "lathe",
        summary: "fine-tunes and runs language models on your own workstation",
        description: "A native window and a command line that choose a model that fits, show which tokens are trained, \
                      fine-tune with LoRA, and talk to the result. Without Python.",
        depends: Vec::new(),
        // Loaded when the window opens; the command line goes without.
        recommends: "libgl1, libegl1, libx11-6, libx11-xcb1, libxcursor1, libxi6, libxkbcommon0, libxkbcommon-x11-0, \
                     libwayland-client0, ca-certificates",
        files,
        links: vec![("usr/bin/lathe", "../lib/lathe/lathe")],
    })
}

/// Tray, notifications, file dialogs, and a Lathe on another machine.
fn companion(desktop: &Path, version: &str) -> Package {
    let root = repo::root();
    Package {
        name: "lathe-desktop",
        summary: "Lathe's companion: tray, notifications, other machines",
        description: "The same window in a webview, with an icon in the tray that shows how far a run is, a word when it \
                      has ended, and the way to a Lathe on another machine.",
        depends: vec![format!("lathe (= {version})"), "libayatana-appindicator3-1".into()],
        recommends: "",
        files: vec![
            program(desktop.to_path_buf(), desktop::PROGRAM),
            plain(
                root.join("resources/packaging/lathe-desktop.desktop"),
                "usr/share/applications/lathe-desktop.desktop",
            ),
            plain(root.join("resources/packaging/lathe.xml"), "usr/share/mime/packages/lathe.xml"),
            plain(root.join("LICENSE"), "usr/share/doc/lathe-desktop/copyright"),
        ],
        links: vec![("usr/bin/lathe-desktop", "../lib/lathe/lathe-desktop")],
    }
}

/// The worker for cards, and the libraries it loads.
fn cuda_add_on(version: &str, out: &Path) -> Result<Package> {
    let worker = cuda::build_worker()?;
    let mut files = vec![program(worker, "lathe-worker-cuda")];
    for library in cuda_libraries::fetch(&out.join("cuda"))? {
        let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push(plain(library, format!("{HOME}/cuda/{name}")));
    }
    files.push(plain(repo::root().join("LICENSE"), "usr/share/doc/lathe-cuda/copyright"));
    Ok(Package {
        name: "lathe-cuda",
        summary: "Lathe's worker for NVIDIA graphics cards",
        description: "Needs a card of the Ampere family or newer and a driver of version 580 or newer. Holds CUDA 13's \
                      cuBLAS and cuRAND.",
        depends: vec![format!("lathe (= {version})")],
        recommends: "",
        files,
        links: Vec::new(),
    })
}

fn program(from: PathBuf, name: &str) -> File {
    File { from, to: format!("{HOME}/{name}"), is_program: true }
}

fn plain(from: PathBuf, to: impl Into<String>) -> File {
    File { from, to: to.into(), is_program: false }
}

/// With `lathe` beside the companion, and the wasm window in it.
fn by_tauri(format: &str, target: &Path, web: &Path) -> Result<()> {
    let folder = target.join("bundle").join("sidecar");
    repo::create_dir_all(&folder)?;
    // Tauri wants the triple in the name, and installs it without.
    let suffix = std::env::consts::EXE_SUFFIX;
    let lathe = folder.join(format!("lathe-{}{suffix}", cuda::host_triple()?));
    let built = target.join("release").join(format!("lathe{suffix}"));
    fs::copy(&built, &lathe).with_context(|| format!("Cannot copy {}", built.display()))?;
    let config = json!({
        "build": { "frontendDist": web },
        "bundle": { "externalBin": [folder.join("lathe")] },
    });
    let mut command = repo::cargo();
    command.args(["tauri", "build", "--bundles", format, "--config", &config.to_string()]);
    command.current_dir(repo::root().join("src-tauri"));
    repo::run(&mut command).context("`cargo install tauri-cli --version ^2` brings Tauri's tool")
}
