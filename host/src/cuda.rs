//! What computing on a card takes beside the card: the worker made for it, and CUDA's libraries. Looked for anew each
//! time, so that what was just installed is found.

mod places;

use std::path::{Path, PathBuf};

use lathe_protocol::{ErrorCode, ErrorInfo, Gpu};

use crate::{HostOptions, error::Result};

/// In the folder of `lathe`, or in the data folder's `workers/`.
const WORKER: &str = "lathe-worker-cuda";
/// The oldest card that the kernels are made for, Ampere's.
const OLDEST_COMPUTE: (u32, u32) = (8, 0);
/// The CUDA that the worker is made with.
const OLDEST_CUDA: (u32, u32) = (13, 0);
const OLDEST_DRIVER: &str = "580";
/// The libraries' packages that run with every driver that will do.
const WHEELS: &str = "nvidia-cublas==13.0.2.14 nvidia-curand==10.4.0.35";

/// A library of CUDA's.
#[derive(Debug)]
struct Library {
    file: &'static str,
    /// Another name that a worker may ask for first, under which an older one might lie.
    #[cfg(not(windows))]
    short: &'static str,
}

#[cfg(not(windows))]
const DRIVER: Library = Library { file: "libcuda.so.1", short: "libcuda.so" };
#[cfg(not(windows))]
const LIBRARIES: [Library; 3] = [
    Library { file: "libcublas.so.13", short: "libcublas.so" },
    Library { file: "libcublasLt.so.13", short: "libcublasLt.so" },
    Library { file: "libcurand.so.10", short: "libcurand.so" },
];
#[cfg(windows)]
const DRIVER: Library = Library { file: "nvcuda.dll" };
#[cfg(windows)]
const LIBRARIES: [Library; 4] = [
    Library { file: "cudart64_13.dll" },
    Library { file: "cublas64_13.dll" },
    Library { file: "cublasLt64_13.dll" },
    Library { file: "curand64_10.dll" },
];

/// Something that is not there: a sentence, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    /// As `lathe doctor` calls it.
    pub(crate) name: &'static str,
    pub(crate) message: String,
    pub(crate) hint: String,
    /// The folders it was looked for in, of those that exist.
    pub(crate) looked: Vec<PathBuf>,
}

impl Missing {
    fn new(name: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, message: message.into(), hint: hint.into(), looked: Vec::new() }
    }
}

/// All that is needed is there.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) worker: PathBuf,
    /// Where each library lies.
    libraries: Vec<(&'static Library, PathBuf)>,
}

/// The worker and the libraries, or all that is missing.
pub(crate) fn find(options: &HostOptions) -> std::result::Result<Setup, Vec<Missing>> {
    let mut missing = Vec::new();
    let worker = find_worker(options).map_err(|lack| missing.push(lack)).ok();
    let folders = options.cuda_libraries.clone();
    let folders = folders.unwrap_or_else(|| places::folders(&options.paths.data_dir, &options.worker_exe));
    let lies_in = |library: &Library| {
        folders.iter().map(|folder| folder.join(library.file)).find(|path| path.is_file())
    };
    if lies_in(&DRIVER).is_none() {
        missing.push(Missing {
            looked: folders.clone(),
            ..Missing::new(
                "cuda driver",
                format!("The NVIDIA driver's CUDA library is missing: {}", DRIVER.file),
                "install the driver with its compute part; a container is started with --gpus all",
            )
        });
    }
    let (mut libraries, mut absent) = (Vec::new(), Vec::new());
    for library in &LIBRARIES {
        match lies_in(library) {
            Some(path) => libraries.push((library, path)),
            None => absent.push(library.file),
        }
    }
    if !absent.is_empty() {
        let own = options.paths.data_dir.join("cuda");
        let (what, are) =
            if absent.len() == 1 { ("CUDA's library", "is") } else { ("CUDA's libraries", "are") };
        let message = format!("{what} {} {are} missing", all_of(&absent));
        let hint =
            format!("install CUDA 13's toolkit, or: pip install --target \"{}\" {WHEELS}", own.display());
        missing.push(Missing { looked: folders, ..Missing::new("cuda libraries", message, hint) });
    }
    match worker {
        Some(worker) if missing.is_empty() => Ok(Setup { worker, libraries }),
        _ => Err(missing),
    }
}

/// Its program's name, also as the driver tells of it.
pub(crate) fn worker_file() -> String {
    format!("{WORKER}{}", std::env::consts::EXE_SUFFIX)
}

fn find_worker(options: &HostOptions) -> std::result::Result<PathBuf, Missing> {
    const NAME: &str = "cuda worker";
    let hint = "build it with: cargo xtask cuda";
    if let Some(path) = &options.cuda_worker {
        let message = || format!("LATHE_WORKER_CUDA names no file: {}", path.display());
        return if path.is_file() { Ok(path.clone()) } else { Err(Missing::new(NAME, message(), hint)) };
    }
    let file = worker_file();
    let beside = options.worker_exe.parent().map(Path::to_path_buf);
    let folders: Vec<PathBuf> = beside.into_iter().chain([options.paths.data_dir.join("workers")]).collect();
    let found = folders.iter().map(|folder| folder.join(&file)).find(|path| path.is_file());
    found.ok_or_else(|| Missing {
        looked: folders,
        ..Missing::new(NAME, format!("Lathe's worker for graphics cards is missing: {file}"), hint)
    })
}

/// Why the driver of these cards will not do.
pub(crate) fn driver_lacks(gpus: &[Gpu]) -> Option<Missing> {
    let gpu = gpus.first()?;
    let cuda = gpu.cuda.as_deref()?;
    let (major, minor) = cuda.split_once('.')?;
    let runs = (major.parse().ok()?, minor.parse().ok()?);
    (runs < OLDEST_CUDA).then(|| {
        let driver = gpu.driver.as_deref().map(|driver| format!(" {driver}")).unwrap_or_default();
        Missing::new(
            "driver",
            format!(
                "The NVIDIA driver{driver} is too old: it runs CUDA up to {cuda}, {}.{} is needed",
                OLDEST_CUDA.0, OLDEST_CUDA.1
            ),
            format!("update the driver to {OLDEST_DRIVER} or newer"),
        )
    })
}

/// Why this card will not do, whatever is installed.
pub(crate) fn card_lacks(gpu: &Gpu, visible: Option<&str>) -> Option<String> {
    let Gpu { index, name, .. } = gpu;
    if visible.is_some_and(|visible| !is_among(gpu, visible)) {
        return Some(format!("Card {index} ({name}) is hidden by CUDA_VISIBLE_DEVICES"));
    }
    let compute = gpu.compute_capability.filter(|compute| *compute < OLDEST_COMPUTE)?;
    let ((major, minor), (least, least_minor)) = (compute, OLDEST_COMPUTE);
    Some(format!(
        "Card {index} ({name}) is too old: it has compute {major}.{minor}, {least}.{least_minor} is needed"
    ))
}

/// Whether a list such as `0,GPU-7e6b` has the card in it.
fn is_among(gpu: &Gpu, visible: &str) -> bool {
    let uuid = gpu.uuid.as_deref().unwrap_or_default();
    let mut names = visible.split(',').map(str::trim).filter(|name| !name.is_empty());
    names.any(|name| match name.parse::<usize>() {
        Ok(index) => index == gpu.index,
        Err(_) => uuid.starts_with(name),
    })
}

/// `a`, `a and b`, `a, b and c`.
fn all_of(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// The sentences of all that is missing, as one.
pub(crate) fn sentences(missing: &[Missing]) -> String {
    missing.iter().map(|lack| lack.message.as_str()).collect::<Vec<_>>().join(". ")
}

pub(crate) fn hints(missing: &[Missing]) -> String {
    missing.iter().map(|lack| lack.hint.as_str()).collect::<Vec<_>>().join("; ")
}

/// A worker that sees this card alone, and the libraries that were found.
pub(crate) fn command(options: &HostOptions, gpu: &Gpu) -> Result<std::process::Command> {
    let setup = find(options)
        .map_err(|missing| ErrorInfo::new(ErrorCode::Device, sentences(&missing)).hint(hints(&missing)))?;
    let mut command = std::process::Command::new(&setup.worker);
    // NVML's order is that of the slots; CUDA's own is not, and an index may change its meaning.
    let card = gpu.uuid.clone().unwrap_or_else(|| gpu.index.to_string());
    command.env("CUDA_DEVICE_ORDER", "PCI_BUS_ID").env("CUDA_VISIBLE_DEVICES", card);
    command.env("LATHE_CARD", gpu.device());
    if std::env::var_os("CUDA_CACHE_PATH").is_none() {
        // Kernels that the driver compiles for its card are kept from one worker to the next.
        command.env("CUDA_CACHE_PATH", options.paths.data_dir.join("cache").join("cuda"));
    }
    places::give_libraries(&mut command, &setup.libraries, &options.paths.data_dir.join("workers"));
    Ok(command)
}

#[cfg(test)]
mod tests;
