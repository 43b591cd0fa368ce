//! A safetensors file: its header, and every tensor of it.

#![no_main]

use std::{path::PathBuf, sync::LazyLock};

use lathe_engine::weights::SafetensorsFolder;
use lathe_fuzz::folder;
use libfuzzer_sys::fuzz_target;

static FILE: LazyLock<PathBuf> = LazyLock::new(|| folder("safetensors").join("model.safetensors"));

fuzz_target!(|bytes: &[u8]| {
    std::fs::write(&*FILE, bytes).expect("written");
    let Ok(file) = SafetensorsFolder::open_file(&FILE) else { return };
    for name in file.names() {
        drop(file.read(name));
        drop(file.read_compact(name));
        drop(file.read_bytes(name, None));
    }
});
