//! NVIDIA's compiler: that of an installed toolkit, else the pinned wheels in a virtual environment.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{pip, repo};

/// The first that knows all cards from Ampere to Blackwell.
const OLDEST: (u32, u32) = (12, 8);
const WHEELS: &str = include_str!("nvcc-wheels.txt");
const PROGRAM: &str = if cfg!(windows) { "nvcc.exe" } else { "nvcc" };

pub struct Nvcc {
    pub path: PathBuf,
    pub version: (u32, u32),
}

impl Nvcc {
    /// The one that `NVCC` names; else an installed one that is new enough; else the wheels' in `folder`.
    pub fn find(folder: &Path) -> Result<Self> {
        if let Some(path) = std::env::var_os("NVCC") {
            let nvcc = Self::at(path.into()).context("NVCC names no compiler that works")?;
            if nvcc.version < OLDEST {
                bail!(
                    "{}: {}\nhint: unset NVCC to have a newer one fetched",
                    nvcc.too_old(),
                    nvcc.path.display()
                );
            }
            return Ok(nvcc);
        }
        for path in installed().into_iter().filter(|path| path.is_file()) {
            match Self::at(path) {
                Ok(nvcc) if nvcc.version >= OLDEST => return Ok(nvcc),
                Ok(nvcc) => println!("passed over: {}: {}", nvcc.too_old(), nvcc.path.display()),
                Err(error) => println!("passed over: {error:#}"),
            }
        }
        Self::of_wheels(folder)
    }

    fn at(path: PathBuf) -> Result<Self> {
        let output = Command::new(&path)
            .arg("--version")
            .output()
            .with_context(|| format!("Cannot start the compiler: {}", path.display()))?;
        let version = version(&String::from_utf8_lossy(&output.stdout))
            .ok_or_else(|| anyhow!("It does not say its version: {}", path.display()))?;
        Ok(Self { path, version })
    }

    fn too_old(&self) -> String {
        let (major, minor) = self.version;
        format!("nvcc is {major}.{minor}, {}.{} or newer is needed", OLDEST.0, OLDEST.1)
    }

    fn of_wheels(folder: &Path) -> Result<Self> {
        if let Some(path) = in_environment(folder) {
            return Self::at(path);
        }
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            bail!(
                "No nvcc of {}.{} or newer found\nhint: install CUDA's toolkit, and set NVCC to its nvcc",
                OLDEST.0,
                OLDEST.1
            );
        }
        println!(
            "no toolkit found: fetching CUDA 13.0's compiler with pip (400 MB) into {}",
            folder.display()
        );
        repo::create_dir_all(folder)?;
        let python = folder.join("bin/python");
        // One that was left half-made is made anew.
        let mut venv = Command::new(repo::python());
        venv.args(["-m", "venv", "--clear"]).arg(folder);
        pip::run(&mut venv, "a virtual environment for CUDA's compiler")?;
        let wheels = folder.join("nvcc-wheels.txt");
        repo::write(&wheels, WHEELS)?;
        let mut install = Command::new(&python);
        install.args(["-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "-r"]).arg(&wheels);
        pip::run(&mut install, "CUDA's compiler")?;
        let path = in_environment(folder)
            .ok_or_else(|| anyhow!("pip left no nvcc in {}\nhint: remove the folder", folder.display()))?;
        Self::at(path)
    }

    /// The toolkit's folder.
    fn root(&self) -> &Path {
        self.path.ancestors().nth(2).unwrap_or(&self.path)
    }

    /// A library of the toolkit's.
    pub fn library(&self, name: &str) -> Result<PathBuf> {
        let folders = ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"];
        let mut paths = folders.iter().map(|folder| self.root().join(folder).join(name));
        paths.find(|path| path.exists()).ok_or_else(|| {
            anyhow!(
                "The toolkit lacks {name}: {}\nhint: unset NVCC to have one fetched",
                self.root().display()
            )
        })
    }
}

/// Where installed ones lie, whether they do or not.
fn installed() -> Vec<PathBuf> {
    let variables = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let roots = variables.chain(["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from));
    let mut all: Vec<PathBuf> = roots.map(|root| root.join("bin").join(PROGRAM)).collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    all.extend(std::env::split_paths(&path).map(|folder| folder.join(PROGRAM)));
    all
}

/// The compiler of a virtual environment, if its wheels are there to the last.
fn in_environment(folder: &Path) -> Option<PathBuf> {
    let versions = std::fs::read_dir(folder.join("lib")).ok()?;
    versions.flatten().find_map(|python| {
        let toolkit = python.path().join("site-packages/nvidia/cu13");
        let all = ["nvvm/bin/cicc", "include/crt/host_config.h", "include/cuda_runtime.h", "include/cccl"];
        let is_whole = all.iter().all(|part| toolkit.join(part).exists());
        Some(toolkit.join("bin/nvcc")).filter(|nvcc| is_whole && nvcc.exists())
    })
}

/// Of `Cuda compilation tools, release 13.0, V13.0.88`.
fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once("release ")?.1.split(',').next()?.split_once('.')?;
    Some((major.parse().ok()?, minor.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_says_its_version() {
        let said = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88\n";
        assert_eq!(version(said), Some((13, 0)));
        assert_eq!(version("release 12.9, V12.9.1"), Some((12, 9)));
        assert_eq!(version("gcc (Debian) 12.2"), None);
        assert!((12, 9) > OLDEST && (12, 6) < OLDEST && (13, 0) > OLDEST);
    }

    #[test]
    fn every_wheel_is_pinned_to_the_byte() {
        let lines: Vec<_> = WHEELS.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(
            lines.len() == 5 && lines.iter().all(|line| line.contains("==13.0.") && line.contains("sha256:"))
        );
    }

    #[test]
    fn an_environment_that_is_not_whole_has_no_compiler() {
        let folder = tempfile::tempdir().unwrap();
        let toolkit = folder.path().join("lib/python3.12/site-packages/nvidia/cu13");
        for part in ["bin/nvcc", "nvvm/bin/cicc", "include/crt/host_config.h", "include/cuda_runtime.h"] {
            assert_eq!(in_environment(folder.path()), None);
            std::fs::create_dir_all(toolkit.join(part)).unwrap();
        }
        std::fs::create_dir_all(toolkit.join("include/cccl")).unwrap();
        assert_eq!(in_environment(folder.path()), Some(toolkit.join("bin/nvcc")));
    }
}
