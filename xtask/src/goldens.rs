//! `cargo xtask goldens`: the reference implementations' numbers that the tests hold us to.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{repo, smollm2};

#[derive(clap::Args)]
pub struct Args {
    /// Python of a virtual environment with tests/golden/requirements.txt; without it, only says how
    #[arg(long, value_name = "PYTHON")]
    python: Option<PathBuf>,
    /// Qwen3's tokenizer_config.json, for templates.py
    #[arg(long, value_name = "FILE")]
    qwen3_config: Option<PathBuf>,
}

/// In order: each may read what those before it wrote.
const SCRIPTS: [&str; 13] = [
    "models.py",
    "lora.py",
    "train.py",
    "styles.py",
    "preference.py",
    "full.py",
    "nf4.py",
    "experts.py",
    "kinds.py",
    "adamw8bit.py",
    "gguf_models.py",
    "event_files.py",
    "hf_cache.py",
];

pub fn goldens(args: &Args) -> Result<()> {
    let Args { python, qwen3_config } = args;
    let Some(python) = python else {
        println!(
            "The goldens come from transformers, peft, TRL, llama.cpp and others, by the scripts in tests/golden:\n"
        );
        println!("  {} -m venv .cache/golden-venv", repo::python());
        println!("  .cache/golden-venv/bin/pip install -r tests/golden/requirements.txt");
        println!("  cargo xtask goldens --python .cache/golden-venv/bin/python");
        println!("\nThen look at `git diff tests/golden/data`.");
        return Ok(());
    };
    // A name alone is looked up; a path is meant from here, not from the scripts' folder.
    let python = if python.components().count() > 1 { std::path::absolute(python)? } else { python.clone() };
    let folder = repo::root().join("tests/golden");
    let run = |script: &str, args: &[&Path]| {
        println!("== {script}");
        repo::run(Command::new(&python).arg(folder.join(script)).args(args).current_dir(&folder))
    };
    for script in SCRIPTS {
        run(script, &[])?;
    }
    let smollm2 = smollm2::fetch()?;
    run("tokenizers_gguf.py", &[&smollm2])?;
    let Some(path) = qwen3_config else {
        println!("== templates.py skipped: needs --qwen3-config FILE; it says itself where to get that");
        return Ok(());
    };
    run("templates.py", &[&smollm2, &std::path::absolute(path)?])
}
