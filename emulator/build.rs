//! Compiles the CUDA sources of `kernels`, and some that are wrong, as C++.

use std::{fs, path::Path};

fn main() {
    let cuda = Path::new("../kernels/cuda");
    println!("cargo::rerun-if-changed={}", cuda.display());
    println!("cargo::rerun-if-changed=cpp");
    let files = fs::read_dir(cuda).expect("kernels/cuda is there");
    let mut sources: Vec<_> = files.map(|file| file.expect("a readable folder").path()).collect();
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.push("cpp/faults.cu".into());
    sources.sort();
    let mut cpp = cc::Build::new();
    cpp.cpp(true).std("c++17").opt_level(2).debug(false).include("cpp").flag("-U_FORTIFY_SOURCE");
    cpp.clone().file("cpp/emulator.cpp").file("cpp/watch.cpp").compile("lathe_emulator_host");
    cpp.include(cuda)
        .define("LATHE_EMULATOR", None)
        // Holds for the files behind it: cc puts flags before the file.
        .flag("-xc++")
        .flag("-Wno-unknown-pragmas")
        // What these call is in watch.cpp.
        .flag("-fsanitize=thread")
        .flag("-fsanitize=alignment,bounds,shift")
        .flag("-fno-sanitize-recover=all")
        .files(sources)
        // Kernels make themselves known when the program starts; nothing names them.
        .link_lib_modifier("+whole-archive")
        .compile("lathe_emulator");
}
