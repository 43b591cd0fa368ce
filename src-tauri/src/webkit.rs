//! What WebKitGTK must be told before it starts. It reads that from the environment that a program is born into.

use std::{env, os::unix::process::CommandExt as _, path::Path, process::Command};

/// There with NVIDIA's own driver.
const NVIDIA: &str = "/proc/driver/nvidia/version";

/// Begins this program anew with what is missing in its environment. A value that is there already is somebody's choice.
pub fn prepare() {
    let wanted = [
        // Hot wasm is compiled on other threads while it runs, and wrongly now and then: of 2.50's windows one in three
        // panicked in sound code, or died.
        ("JSC_useConcurrentJIT", "0", true),
        // Windows stay blank for some (tauri#9394).
        ("WEBKIT_DMABUF_RENDERER_FORCE_SHM", "1", Path::new(NVIDIA).exists()),
    ];
    let missing = wanted.into_iter().filter(|(name, _, is_due)| *is_due && env::var_os(name).is_none());
    let missing: Vec<(&str, &str)> = missing.map(|(name, value, _)| (name, value)).collect();
    if missing.is_empty() {
        return;
    }
    let Ok(this) = env::current_exe() else { return };
    let error = Command::new(this).args(env::args_os().skip(1)).envs(missing).exec();
    // It goes on as it is, and opens most times.
    eprintln!("warning: Cannot set WebKit's environment: {error}");
}
