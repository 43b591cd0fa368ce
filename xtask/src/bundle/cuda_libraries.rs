//! CUDA's libraries for the add-on package, from NVIDIA's own wheels: those that their licence lets others pass on.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{
    pip::{self, Wheel},
    repo,
};

const CUBLAS: Wheel = Wheel {
    name: "nvidia-cublas",
    version: "13.0.2.14",
    file_name: "nvidia_cublas-13.0.2.14-py3-none-manylinux_2_27_x86_64.whl",
    sha256: "0cf238ffdbe46c00cb9aa98e7bca745c223a5ca5a53e686ac8b3e5a08fe80d6c",
};
const CURAND: Wheel = Wheel {
    name: "nvidia-curand",
    version: "10.4.0.35",
    file_name: "nvidia_curand-10.4.0.35-py3-none-manylinux_2_27_x86_64.whl",
    sha256: "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc",
};
/// Wheel, member, and the member's SHA-256.
const MEMBERS: [(&Wheel, &str, &str); 4] = [
    (
        &CUBLAS,
        "nvidia/cu13/lib/libcublas.so.13",
        "1d5f1452af53a0b1cf36bc7d8116d2a22a5f2cffbaa8fca25a1b70360a2e8d7a",
    ),
    (
        &CUBLAS,
        "nvidia/cu13/lib/libcublasLt.so.13",
        "4c15f403ac2a8040a3291d07f6c351b5c1f730b45f2ea41f302e415e9600655b",
    ),
    (
        &CUBLAS,
        "nvidia_cublas-13.0.2.14.dist-info/licenses/License.txt",
        "ad6f5853fba0ca0d159d0f58d49ae49830c2f8c93f7a92648b9ce90adb4c6ccd",
    ),
    (
        &CURAND,
        "nvidia/cu13/lib/libcurand.so.10",
        "b53732a66b302b11926e00f762e2c2ba67058347ff93cf4ae709de45e93e06da",
    ),
];

/// The libraries and NVIDIA's licence, fetched into `folder` unless they are there.
pub fn fetch(folder: &Path) -> Result<Vec<PathBuf>> {
    repo::create_dir_all(folder)?;
    let mut files = Vec::new();
    for (wheel, member, sha256) in MEMBERS {
        let file = folder.join(member.rsplit('/').next().unwrap_or(member));
        if !file.exists() {
            pip::extract_member(&wheel.fetch(folder)?, member, &file, sha256)?;
        }
        files.push(file);
    }
    Ok(files)
}
