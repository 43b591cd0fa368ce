//! `cargo xtask cuda`: the worker for NVIDIA cards, from nothing but this checkout. No card is needed. `cargo xtask
//! gpu-check` builds the check of a card likewise.
//!
//! cudarc loads CUDA's libraries when they are first called instead of linking them, so the worker starts anywhere and
//! says itself what is missing. candle asks cudarc to link; a `--cfg` of the target's crates alone overrules that, and
//! empty archives in place of the libraries satisfy the linker. Only the runtime (cudart) is linked, and statically.

mod nvcc;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::repo;
use nvcc::Nvcc;

const WORKER: &str = "lathe-worker-cuda";
const CHECK: &str = "lathe-gpu-check";
/// Whose bindings cudarc has, and so whose libraries the worker wants.
const CUDARC_VERSION: &str = "13000";
/// Ampere: newer cards compile its PTX when a worker first starts there.
const OLDEST_CARD: &str = "80";
const LOADED: [&str; 5] = ["cuda", "cublas", "cublasLt", "curand", "nvrtc"];
/// Others that cudarc would look for libraries by.
const OTHER_HOMES: [&str; 4] = ["CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR", "CUDNN_LIB"];

#[derive(clap::Args)]
pub struct Args {
    /// What cargo does instead, in the same surroundings, e.g. test -p lathe-kernels --features cuda
    #[arg(last = true, value_name = "CARGO ARGS")]
    cargo: Vec<String>,
}

pub fn cuda(args: &Args) -> Result<()> {
    match args.cargo.split_first() {
        Some((what, rest)) => cargo(what, rest).map(drop),
        None => build_worker().map(drop),
    }
}

/// Builds the worker for cards and puts it beside `lathe`.
pub fn build_worker() -> Result<PathBuf> {
    build("lathe-worker", WORKER)
}

#[derive(clap::Args)]
pub struct CheckArgs {
    /// Of the program: --no-speed, --only qwen3, --models FOLDER, --device cuda:1
    #[arg(last = true, value_name = "ARGS")]
    check: Vec<String>,
}

/// Builds the check of a card, and runs it where there is one.
pub fn gpu_check(args: &CheckArgs) -> Result<()> {
    let program = build("lathe-gpu-check", CHECK)?;
    // The driver's own tool: no driver, no card.
    let has_card = Command::new("nvidia-smi").arg("-L").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !has_card.is_ok_and(|status| status.success()) {
        println!("\nThis machine has no NVIDIA card. On one that has, run the program alone:");
        println!("  ./{CHECK}            checks, then models of real shapes timed (41 GB on disk)");
        println!("  ./{CHECK} --no-speed checks only");
        return Ok(());
    }
    repo::run(Command::new(program).args(&args.check))
}

/// Builds a program with CUDA in it and puts it beside `lathe`.
fn build(package: &str, name: &str) -> Result<PathBuf> {
    let started = Instant::now();
    let arguments = ["-p", package, "--bin", name, "--features", "cuda"].map(str::to_owned);
    let built = cargo("build", &arguments)?;
    let program = format!("{name}{}", std::env::consts::EXE_SUFFIX);
    let place = repo::target_dir()?.join("release").join(&program);
    put(&built.join(&program), &place)?;
    let megabytes = place.metadata()?.len() as f64 / 1e6;
    println!("program  {megabytes:.1} MB in {} s: {}", started.elapsed().as_secs(), place.display());
    Ok(place)
}

/// Runs cargo with CUDA's compiler and cudarc's ways around it. Returns where programs are built.
fn cargo(what: &str, arguments: &[String]) -> Result<PathBuf> {
    let folder = repo::target_dir()?.join("cuda");
    require_cxx()?;
    let cap = compute_cap(std::env::var("LATHE_CUDA_ARCHS").ok().as_deref())?;
    let nvcc = Nvcc::find(&folder.join("nvcc"))?;
    println!("nvcc     {}.{}: {}", nvcc.version.0, nvcc.version.1, nvcc.path.display());
    let triple = host_triple()?;

    let mut cargo = repo::cargo();
    cargo.args([what, "--release", "--target", &triple]).args(arguments);
    cargo.env("CARGO_TARGET_DIR", &folder).env("NVCC", &nvcc.path);
    cargo.env("CUDA_COMPUTE_CAP", &cap).env("CUDARC_CUDA_VERSION", CUDARC_VERSION);
    if cfg!(unix) {
        cargo.env("CUDA_HOME", link_folder(&folder, &nvcc)?);
        for home in OTHER_HOMES {
            cargo.env_remove(home);
        }
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", rustflags());
    println!("kernels  for compute {cap}; the first build takes minutes");
    repo::run(&mut cargo)?;
    Ok(folder.join(&triple).join("release"))
}

/// Beside `lathe`, whole or not at all, also while an older one runs.
fn put(built: &Path, worker: &Path) -> Result<()> {
    let folder = worker.parent().ok_or_else(|| anyhow!("no folder: {}", worker.display()))?;
    repo::create_dir_all(folder)?;
    let aside = worker.with_extension("partial");
    std::fs::copy(built, &aside).with_context(|| format!("Cannot write {}", aside.display()))?;
    std::fs::rename(&aside, worker).with_context(|| format!("Cannot write {}", worker.display()))
}

/// As cargo names this machine.
pub fn host_triple() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().context("Cannot start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| anyhow!("rustc does not say what it builds for"))
}

/// nvcc hands the host's part of a kernel to this compiler.
fn require_cxx() -> Result<()> {
    let (program, hint) = if cfg!(windows) {
        ("cl", "run this in a Developer Command Prompt of Visual Studio")
    } else {
        ("g++", "install it, e.g. apt install g++")
    };
    if std::env::var_os("NVCC_CCBIN").is_some() {
        return Ok(());
    }
    match Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(_) => Ok(()),
        Err(error) => bail!("nvcc needs a C++ compiler, and {program} does not start: {error}\nhint: {hint}"),
    }
}

/// What candle's kernels are compiled for: they take one architecture. Our own take the whole list.
fn compute_cap(archs: Option<&str>) -> Result<String> {
    let Some(archs) = archs.filter(|archs| !archs.trim().is_empty()) else { return Ok(OLDEST_CARD.into()) };
    let archs: Vec<&str> = archs.split(',').map(str::trim).collect();
    let is_arch = |arch: &&str| {
        let digits = arch.trim_end_matches(['a', 'f']);
        arch.len() - digits.len() <= 1 && digits.parse::<u32>().is_ok_and(|cap| (80..1000).contains(&cap))
    };
    if let Some(wrong) = archs.iter().find(|arch| !is_arch(arch)) {
        bail!(
            "LATHE_CUDA_ARCHS has no architecture {wrong:?}\nhint: write e.g. 90, or 80,90; 80 is the oldest"
        );
    }
    Ok(if let [one] = archs[..] { one.into() } else { OLDEST_CARD.into() })
}

/// A home of libraries that are empty, but for the runtime.
fn link_folder(folder: &Path, nvcc: &Nvcc) -> Result<PathBuf> {
    let home = folder.join("link");
    let libraries = home.join("lib");
    repo::create_dir_all(&libraries)?;
    for name in LOADED {
        repo::write(&libraries.join(format!("lib{name}.a")), "!<arch>\n")?;
    }
    let runtime = nvcc.library("libcudart_static.a")?;
    let to = libraries.join("libcudart.a");
    std::fs::copy(&runtime, &to).with_context(|| format!("Cannot copy {}", runtime.display()))?;
    Ok(home)
}

/// What the environment says, and cudarc's way to its libraries.
fn rustflags() -> String {
    let given = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_else(|_| {
        let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
        flags.split_whitespace().collect::<Vec<_>>().join("\x1f")
    });
    let loading = "--cfg\x1ffeature=\"dynamic-loading\"";
    if given.is_empty() { loading.to_owned() } else { format!("{given}\x1f{loading}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_architecture_is_candles_too() {
        for (archs, expected) in [
            (None, "80"),
            (Some(""), "80"),
            (Some("90"), "90"),
            (Some(" 120a "), "120a"),
            (Some("80, 90"), "80"),
        ] {
            assert_eq!(compute_cap(archs).unwrap(), expected);
        }
        for wrong in ["70", "hopper", "80,", "90aa", "8.0"] {
            assert!(
                compute_cap(Some(wrong)).unwrap_err().to_string().contains("has no architecture"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_worker_is_put_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (built, worker) = (folder.path().join("built"), folder.path().join("release/worker"));
        assert!(put(&built, &worker).is_err() && !worker.exists());
        std::fs::write(&built, "new").unwrap();
        put(&built, &worker).unwrap();
        assert_eq!(std::fs::read_to_string(&worker).unwrap(), "new");
        assert_eq!(std::fs::read_dir(folder.path().join("release")).unwrap().count(), 1);
    }
}
