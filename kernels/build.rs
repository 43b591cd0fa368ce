//! Compiles the CUDA sources, for a build with the feature `cuda`: a file of machine code a source, for all cards it is
//! to run on, and a table of what lies where.
//!
//! `NVCC` names the compiler (`nvcc` if unset) and `LATHE_CUDA_ARCHS` the cards, as compute capabilities without their
//! dot. Newer cards than the last of them compile its PTX when they first load it.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Ampere (A100 and others), Ada, Hopper, Blackwell (workstations).
const ARCHS: &str = "80,86,89,90,120";

fn main() {
    println!("cargo::rerun-if-changed=cuda");
    println!("cargo::rerun-if-env-changed=NVCC");
    println!("cargo::rerun-if-env-changed=LATHE_CUDA_ARCHS");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let files = fs::read_dir("cuda").expect("the folder cuda is there");
    let mut sources: Vec<PathBuf> = files.map(|file| file.expect("a readable folder").path()).collect();
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.sort();
    let mut table = String::from("&[\n");
    for source in &sources {
        let fatbin = out_dir.join(source.file_name().expect("a file")).with_extension("fatbin");
        compile(source, &fatbin);
        let text = fs::read_to_string(source).expect("a readable source");
        let names = text.split("EXPORT_KERNEL(").skip(1).filter_map(|rest| rest.split(')').next());
        let names: Vec<&str> = names.collect();
        for name in &names {
            // The names are read from the text: a macro's parameter would be none.
            let is_name = name.starts_with(|first: char| first.is_ascii_lowercase()) && *name != "name";
            assert!(is_name, "{}: EXPORT_KERNEL({name}) names no kernel", source.display());
        }
        let fatbin = fatbin.to_str().expect("a target folder in UTF-8");
        writeln!(table, "    (&{names:?}, include_bytes!({fatbin:?})),").expect("a string takes it");
    }
    table.push_str("]\n");
    fs::write(out_dir.join("modules.rs"), table).expect("OUT_DIR can be written");
}

fn compile(source: &Path, fatbin: &Path) {
    let archs = env::var("LATHE_CUDA_ARCHS").ok().filter(|archs| !archs.trim().is_empty());
    let archs = archs.unwrap_or_else(|| ARCHS.into());
    let archs: Vec<&str> = archs.split(',').map(str::trim).collect();
    let mut command = Command::new(env::var_os("NVCC").unwrap_or_else(|| "nvcc".into()));
    command.args([
        "-std=c++17",
        "-O3",
        "--fatbin",
        "--compress-mode=size",
        "--threads",
        "0",
        "-I",
        "cuda",
        "-o",
    ]);
    command.arg(fatbin).arg(source);
    for arch in &archs {
        command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    }
    if let Some(last) = archs.last() {
        command.arg(format!("-gencode=arch=compute_{last},code=compute_{last}"));
    }
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("nvcc could not compile {}: {status}", source.display()),
        Err(error) => panic!("nvcc cannot be started ({error}): `cargo xtask cuda` brings one"),
    }
}
