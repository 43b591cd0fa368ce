//! What the targets share.

use std::path::{Path, PathBuf};

use lathe_engine::foreign::panic_is_expected;

/// A folder of this process's own, in memory where there is such a place.
pub fn folder(target: &str) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    let folder = parent.join(format!("lathe-fuzz-{target}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder to write inputs to");
    folder
}

/// Passes over the panics that the engine makes errors of, of which libFuzzer's hook would make a crash.
pub fn spare_expected_panics() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !panic_is_expected() {
            hook(info);
        }
    }));
}

/// A file of the repository.
pub fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
