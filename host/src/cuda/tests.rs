#![cfg(unix)]

use std::{collections::HashMap, ffi::OsStr, fs};

use super::*;
use crate::{Paths, testing::gpu};

/// Options of a host that looks for libraries in `lib` alone.
fn options(dir: &Path) -> HostOptions {
    let lathe = dir.join("bin/lathe");
    HostOptions {
        cuda_worker: None,
        cuda_libraries: Some(vec![dir.join("lib")]),
        ..HostOptions::new(Paths::in_folder(dir), lathe, Vec::new())
    }
}

fn put(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, "").unwrap();
}

fn put_libraries(dir: &Path) {
    for library in LIBRARIES.iter().chain([&DRIVER]) {
        put(&dir.join("lib").join(library.file));
    }
}

#[test]
fn each_thing_that_is_missing_is_a_sentence_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    let lacks = || -> Vec<(String, String)> {
        let missing = find(&options).err().unwrap_or_default();
        missing.into_iter().map(|lack| (lack.message, lack.hint)).collect()
    };
    let told = |message: &str, hint: &str| (message.to_owned(), hint.to_owned());
    let worker = told(
        "Lathe's worker for graphics cards is missing: lathe-worker-cuda",
        "build it with: cargo xtask cuda",
    );
    let driver = told(
        "The NVIDIA driver's CUDA library is missing: libcuda.so.1",
        "install the driver with its compute part; a container is started with --gpus all",
    );
    let own = dir.path().join("data/cuda").display().to_string();
    let install = format!(
        "install CUDA 13's toolkit, or: pip install --target \"{own}\" nvidia-cublas==13.0.2.14 nvidia-curand==10.4.0.35"
    );
    let all = "CUDA's libraries libcublas.so.13, libcublasLt.so.13 and libcurand.so.10 are missing";
    assert_eq!(lacks(), [worker.clone(), driver, told(all, &install)]);

    put_libraries(dir.path());
    assert_eq!(lacks(), [worker]);
    put(&dir.path().join("data/workers/lathe-worker-cuda"));
    assert_eq!(lacks(), []);
    fs::remove_file(dir.path().join("lib/libcurand.so.10")).unwrap();
    assert_eq!(lacks(), [told("CUDA's library libcurand.so.10 is missing", &install)]);
    let looked = find(&options).unwrap_err().remove(0).looked;
    assert_eq!(looked, [dir.path().join("lib")]);
}

#[test]
fn the_worker_is_the_one_that_is_named_or_lies_beside_the_program() {
    let dir = tempfile::tempdir().unwrap();
    put_libraries(dir.path());
    let mut options = options(dir.path());
    put(&dir.path().join("data/workers/lathe-worker-cuda"));
    put(&dir.path().join("bin/lathe-worker-cuda"));
    assert_eq!(find(&options).unwrap().worker, dir.path().join("bin/lathe-worker-cuda"));
    options.cuda_worker = Some(dir.path().join("mine"));
    let message = format!("LATHE_WORKER_CUDA names no file: {}", dir.path().join("mine").display());
    assert_eq!(find(&options).unwrap_err()[0].message, message);
    put(&dir.path().join("mine"));
    assert_eq!(find(&options).unwrap().worker, dir.path().join("mine"));
}

#[test]
fn a_worker_sees_its_card_alone_and_the_libraries_that_were_found() {
    let dir = tempfile::tempdir().unwrap();
    put_libraries(dir.path());
    put(&dir.path().join("bin/lathe-worker-cuda"));
    let options = options(dir.path());
    let card = Gpu { uuid: Some("GPU-5555".into()), ..gpu(1, 24) };
    let command = command(&options, &card).unwrap();
    assert_eq!(command.get_program(), dir.path().join("bin/lathe-worker-cuda"));
    let env: HashMap<_, _> = command.get_envs().filter_map(|(name, value)| Some((name, value?))).collect();
    let of = |name: &str| env[OsStr::new(name)].to_string_lossy().into_owned();
    assert_eq!(of("CUDA_VISIBLE_DEVICES"), "GPU-5555");
    assert_eq!((of("CUDA_DEVICE_ORDER"), of("LATHE_CARD")), ("PCI_BUS_ID".into(), "cuda:1".into()));
    let links = dir.path().join("data/workers/lib");
    let search = format!("{}:{}", links.display(), dir.path().join("lib").display());
    assert!(of("LD_LIBRARY_PATH").starts_with(&search), "{}", of("LD_LIBRARY_PATH"));
    for name in ["libcublas.so", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so", "libcurand.so.10"] {
        assert!(fs::read_link(links.join(name)).unwrap().starts_with(dir.path().join("lib")), "{name}");
    }
    // They follow the libraries when those are found elsewhere.
    let elsewhere = HostOptions { cuda_libraries: Some(vec![dir.path().join("data/cuda")]), ..options };
    for library in LIBRARIES.iter().chain([&DRIVER]) {
        put(&dir.path().join("data/cuda").join(library.file));
    }
    super::command(&elsewhere, &card).unwrap();
    assert_eq!(
        fs::read_link(links.join("libcublas.so")).unwrap(),
        dir.path().join("data/cuda/libcublas.so.13")
    );
}

#[test]
fn libraries_are_found_as_pip_unpacks_them() {
    let dir = tempfile::tempdir().unwrap();
    let library = dir.path().join("cuda/nvidia/cu13/lib/libcublas.so.13");
    put(&library);
    let folders = places::folders(dir.path(), &dir.path().join("lathe"));
    let first = folders.iter().find(|folder| folder.join("libcublas.so.13").is_file()).unwrap();
    assert_eq!(*first, library.parent().unwrap());
    assert!(folders.iter().all(|folder| folder.is_dir()));
}

#[test]
fn a_driver_or_a_card_that_is_too_old_says_so() {
    let card =
        |driver: &str, cuda: &str| Gpu { driver: Some(driver.into()), cuda: Some(cuda.into()), ..gpu(0, 24) };
    assert_eq!(driver_lacks(&[card("580.82.07", "13.0")]), None);
    assert_eq!(driver_lacks(&[card("610.1", "13.4")]), None);
    assert_eq!(driver_lacks(&[gpu(0, 24)]), None, "it does not tell");
    let lack = driver_lacks(&[card("550.54.15", "12.4")]).unwrap();
    let message = "The NVIDIA driver 550.54.15 is too old: it runs CUDA up to 12.4, 13.0 is needed";
    assert_eq!((lack.message.as_str(), lack.hint.as_str()), (message, "update the driver to 580 or newer"));

    let old = Gpu { compute_capability: Some((7, 5)), ..gpu(1, 4) };
    let message = "Card 1 (Test) is too old: it has compute 7.5, 8.0 is needed";
    assert_eq!(card_lacks(&old, None).as_deref(), Some(message));
    let new = Gpu { compute_capability: Some((12, 0)), uuid: Some("GPU-7e6b-1".into()), ..gpu(1, 4) };
    assert_eq!(card_lacks(&new, None), None);
    for (visible, is_hidden) in
        [("1", false), ("0,1", false), ("GPU-7e6b", false), ("0", true), ("GPU-1", true), ("", true)]
    {
        assert_eq!(card_lacks(&new, Some(visible)).is_some(), is_hidden, "{visible}");
    }
}
