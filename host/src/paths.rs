use std::path::{Path, PathBuf};

use directories::{BaseDirs, ProjectDirs};

use crate::error::{Result, usage};

/// Where things lie on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    pub data_dir: PathBuf,
    /// The hub folder of the Hugging Face cache, shared with Python tools.
    pub hf_cache: PathBuf,
}

impl Paths {
    /// `data_dir` or else `LATHE_DATA_DIR` or else the platform's; the cache by `HF_HUB_CACHE`, `HF_HOME` or its default.
    pub fn detect(data_dir: Option<&Path>) -> Result<Self> {
        let data_dir = match data_dir.map(Path::to_path_buf).or_else(|| env_path("LATHE_DATA_DIR")) {
            Some(dir) => dir,
            None => ProjectDirs::from("", "", "Lathe")
                .ok_or_else(|| usage("No home folder to keep data in").hint("name a folder with --data-dir"))?
                .data_dir()
                .to_path_buf(),
        };
        let hf_cache = match env_path("HF_HUB_CACHE").or_else(|| Some(env_path("HF_HOME")?.join("hub"))) {
            Some(dir) => dir,
            None => match BaseDirs::new() {
                Some(base) => base.home_dir().join(".cache").join("huggingface").join("hub"),
                None => data_dir.join("hub"),
            },
        };
        Ok(Self { data_dir: absolute(&data_dir), hf_cache: absolute(&hf_cache) })
    }

    pub fn db(&self) -> PathBuf {
        self.data_dir.join("lathe.db")
    }

    pub fn runs(&self) -> PathBuf {
        self.data_dir.join("runs")
    }

    pub fn adapters(&self) -> PathBuf {
        self.data_dir.join("adapters")
    }

    pub fn samples(&self) -> PathBuf {
        self.data_dir.join("samples")
    }

    pub(crate) fn starter(&self) -> PathBuf {
        self.data_dir.join("models").join("starter")
    }
}

fn env_path(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The path from the root, symlinks untouched; as it is if the working folder is unknown.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}
