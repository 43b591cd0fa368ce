//! Compiles the CUDA sources of `kernels` as C++.

use std::{fs, path::Path};

fn main() {
    let cuda = Path::new("../kernels/cuda");
    println!("cargo::rerun-if-changed={}", cuda.display());
    println!("cargo::rerun-if-changed=cpp");
    let files = fs::read_dir(cuda).expect("kernels/cuda is there");
    let mut sources: Vec<_> = files.map(|file| file.expect("a readable folder").path()).collect();
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.sort();
    // `-x c++` holds for the files behind it: cc puts flags before the file.
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .debug(false)
        .include("cpp")
        .include(cuda)
        .define("LATHE_EMULATOR", None)
        .flag("-xc++")
        .flag("-U_FORTIFY_SOURCE")
        .flag("-Wno-unknown-pragmas")
        .file("cpp/emulator.cpp")
        .files(sources)
        // Kernels make themselves known when the program starts; nothing names them.
        .link_lib_modifier("+whole-archive")
        .compile("lathe_emulator");
}
