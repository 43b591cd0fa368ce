//! Where CUDA's libraries lie on a machine, and how a worker is led to them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use directories::BaseDirs;

use super::Library;

/// What the system's loader reads.
const SEARCH: &str = if cfg!(windows) { "PATH" } else { "LD_LIBRARY_PATH" };

/// The folders that may hold them, in the order they are asked, of those that exist: the data folder's `cuda`, the one
/// beside our program, what the environment names, toolkits, Python's packages, the system's own.
pub(super) fn folders(data_dir: &Path, program: &Path) -> Vec<PathBuf> {
    let env = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let own = data_dir.join("cuda");
    let mut all = vec![own.clone(), own.join("lib"), program.with_file_name("cuda")];
    all.extend(of_packages(&own));
    all.extend(std::env::split_paths(&env(SEARCH).unwrap_or_default()));
    let named = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env).map(PathBuf::from);
    all.extend(named.chain(toolkits()).flat_map(|root| of_toolkit(&root)));
    for python in ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env).map(PathBuf::from) {
        all.push(python.join("lib"));
        all.extend(of_python(&python));
    }
    all.extend(BaseDirs::new().iter().flat_map(|dirs| of_python(&dirs.home_dir().join(".local"))));
    all.extend(of_system());
    let mut seen = Vec::new();
    all.retain(|folder| {
        let is_new = folder.is_dir() && !seen.contains(folder);
        if is_new {
            seen.push(folder.clone());
        }
        is_new
    });
    all
}

/// Folders in a folder whose name begins so.
fn subfolders(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    let mut found: Vec<PathBuf> = named.map(|entry| entry.path()).collect();
    // The newest version first, as far as names tell.
    found.sort();
    found.reverse();
    found
}

#[cfg(not(windows))]
fn toolkits() -> Vec<PathBuf> {
    let numbered = subfolders("/usr/local".as_ref(), "cuda-13");
    ["/usr/local/cuda", "/opt/cuda"].into_iter().map(PathBuf::from).chain(numbered).collect()
}

#[cfg(windows)]
fn toolkits() -> Vec<PathBuf> {
    let programs = std::env::var_os("ProgramFiles").map(PathBuf::from).unwrap_or_default();
    subfolders(&programs.join("NVIDIA GPU Computing Toolkit").join("CUDA"), "v13")
}

fn of_toolkit(root: &Path) -> Vec<PathBuf> {
    let parts: &[&str] =
        if cfg!(windows) { &["bin/x64", "bin"] } else { &["lib64", "lib", "targets/x86_64-linux/lib"] };
    parts.iter().map(|part| root.join(part)).collect()
}

/// Of the environments in a folder: `lib/python3.12/site-packages` and what lies in it.
fn of_python(root: &Path) -> Vec<PathBuf> {
    let packages = if cfg!(windows) {
        vec![root.join("Lib").join("site-packages")]
    } else {
        let versions = subfolders(&root.join("lib"), "python");
        versions.into_iter().map(|version| version.join("site-packages")).collect()
    };
    packages.iter().flat_map(|packages| of_packages(packages)).collect()
}

/// NVIDIA's packages, as pip unpacks them: `nvidia/cu13/lib`.
fn of_packages(packages: &Path) -> Vec<PathBuf> {
    let parts: &[&str] = if cfg!(windows) { &["bin/x86_64", "bin"] } else { &["lib"] };
    let all = subfolders(&packages.join("nvidia"), "");
    all.iter().flat_map(|package| parts.iter().map(|part| package.join(part))).collect()
}

#[cfg(windows)]
fn of_system() -> Vec<PathBuf> {
    let windows = std::env::var_os("SystemRoot").map(PathBuf::from);
    windows.map(|windows| windows.join("System32")).into_iter().collect()
}

/// What the loader is configured with, then what it looks through anyway.
#[cfg(not(windows))]
fn of_system() -> Vec<PathBuf> {
    const USUAL: [&str; 8] = [
        "/lib/x86_64-linux-gnu",
        "/usr/lib/x86_64-linux-gnu",
        "/lib64",
        "/usr/lib64",
        "/lib",
        "/usr/lib",
        "/usr/lib/wsl/lib",
        "/run/opengl-driver/lib",
    ];
    let mut configured = of_config("/etc/ld.so.conf".as_ref());
    let more = subfolders("/etc/ld.so.conf.d".as_ref(), "");
    configured.extend(more.iter().flat_map(|file| of_config(file)));
    configured.extend(USUAL.map(PathBuf::from));
    configured
}

/// The folders in a file of the loader's.
#[cfg(not(windows))]
fn of_config(file: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(str::trim).filter(|line| line.starts_with('/')).map(PathBuf::from).collect()
}

/// Leads a worker to these libraries and to what lies beside them, before any others of the same names.
pub(super) fn give_libraries(command: &mut Command, libraries: &[(&Library, PathBuf)], folder: &Path) {
    let mut folders: Vec<PathBuf> = Vec::new();
    // Without the links an older library of the short name may be taken, where there is one.
    folders.extend(links(libraries, &folder.join("lib")));
    for folder in libraries.iter().filter_map(|(_, path)| path.parent()) {
        if !folders.iter().any(|known| known == folder) {
            folders.push(folder.to_path_buf());
        }
    }
    let given = std::env::var_os(SEARCH).filter(|value| !value.is_empty());
    folders.extend(given.iter().flat_map(std::env::split_paths));
    // A path with a colon in it cannot be said.
    if let Ok(search) = std::env::join_paths(folders) {
        command.env(SEARCH, search);
    }
}

/// A folder of links to them, under each of the names that a worker may ask for; none if it cannot be written.
#[cfg(unix)]
fn links(libraries: &[(&Library, PathBuf)], folder: &Path) -> Option<PathBuf> {
    std::fs::create_dir_all(folder).ok()?;
    for (library, path) in libraries {
        for name in [library.file, library.short] {
            let link = folder.join(name);
            if std::fs::read_link(&link).is_ok_and(|to| to == *path) {
                continue;
            }
            // Another worker that starts just now sees the old one or the new one.
            let aside = crate::files::aside(&link);
            std::os::unix::fs::symlink(path, &aside).ok()?;
            std::fs::rename(&aside, &link).ok()?;
        }
    }
    Some(folder.to_path_buf())
}

/// The names there have versions in them.
#[cfg(windows)]
fn links(_: &[(&Library, PathBuf)], _: &Path) -> Option<PathBuf> {
    None
}
