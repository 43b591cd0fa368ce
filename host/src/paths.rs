use std::path::{Path, PathBuf};

use directories::{BaseDirs, ProjectDirs};

use crate::{
    error::{Result, usage},
    settings,
};

/// Where things lie on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    pub data_dir: PathBuf,
    /// The hub folder of the Hugging Face cache, shared with Python tools.
    pub hf_cache: PathBuf,
    /// The settings' file.
    pub settings: PathBuf,
}

impl Paths {
    /// The data folder: `data_dir`, or `LATHE_DATA_DIR`, or as the settings say, or the platform's.
    /// The cache: by `HF_HUB_CACHE` or `HF_HOME`, or as the settings say, or the usual one.
    /// The settings: in `LATHE_CONFIG_DIR`, or in a data folder that was asked for, or in the platform's folder.
    pub fn detect(data_dir: Option<&Path>) -> Result<Self> {
        Self::find(data_dir, &|name| {
            std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
        })
    }

    fn find(data_dir: Option<&Path>, env: &dyn Fn(&str) -> Option<PathBuf>) -> Result<Self> {
        let asked = data_dir.map(Path::to_path_buf).or_else(|| env("LATHE_DATA_DIR"));
        let platform = ProjectDirs::from("", "", "Lathe");
        let homeless = || usage("No home folder to keep data in").hint("name a folder with --data-dir");
        let settings = env("LATHE_CONFIG_DIR")
            .or_else(|| asked.clone())
            .or_else(|| Some(platform.as_ref()?.config_dir().to_path_buf()))
            .ok_or_else(homeless)?
            .join("settings.toml");
        // A damaged file is told of by whoever shows the settings.
        let chosen = settings::load(&settings).unwrap_or_default();
        let data_dir = asked
            .or_else(|| chosen.data_dir.map(PathBuf::from))
            .or_else(|| Some(platform.as_ref()?.data_dir().to_path_buf()))
            .ok_or_else(homeless)?;
        let hf_cache = env("HF_HUB_CACHE")
            .or_else(|| Some(env("HF_HOME")?.join("hub")))
            .or_else(|| chosen.hf_cache.map(PathBuf::from))
            .or_else(|| Some(BaseDirs::new()?.home_dir().join(".cache").join("huggingface").join("hub")))
            .unwrap_or_else(|| data_dir.join("hub"));
        Ok(Self {
            data_dir: absolute(&data_dir),
            hf_cache: absolute(&hf_cache),
            settings: absolute(&settings),
        })
    }

    /// For tests.
    #[cfg(test)]
    pub(crate) fn in_folder(dir: &Path) -> Self {
        Self { data_dir: dir.join("data"), hf_cache: dir.join("hub"), settings: dir.join("settings.toml") }
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

    /// Tokenised data, which can be made again.
    pub fn token_cache(&self) -> PathBuf {
        self.data_dir.join("cache").join("tokens")
    }

    /// Models of S3 buckets, by bucket.
    pub fn s3_models(&self) -> PathBuf {
        self.data_dir.join("models").join("s3")
    }

    pub(crate) fn starter(&self) -> PathBuf {
        self.data_dir.join("models").join("starter")
    }
}

/// The path from the root, symlinks untouched; as it is if the working folder is unknown.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_comes_before_the_environment_and_that_before_the_settings() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().display().to_string();
        let settings = "data_dir = \"/chosen\"\nhf_cache = \"/chosen/hub\"";
        std::fs::write(dir.path().join("settings.toml"), settings).unwrap();
        let check = |flag: Option<&str>, env: &[(&str, &str)], data_dir: &str, hf_cache: &str| {
            let env = |name: &str| {
                let mut set = env.iter().copied().chain([("LATHE_CONFIG_DIR", config.as_str())]);
                set.find(|(known, _)| *known == name).map(|(_, value)| PathBuf::from(value))
            };
            let paths = Paths::find(flag.map(Path::new), &env).unwrap();
            assert_eq!(
                (paths.data_dir.as_path(), paths.hf_cache.as_path()),
                (data_dir.as_ref(), hf_cache.as_ref())
            );
            assert_eq!(paths.settings, dir.path().join("settings.toml"));
        };
        check(None, &[], "/chosen", "/chosen/hub");
        check(None, &[("LATHE_DATA_DIR", "/env"), ("HF_HOME", "/hf")], "/env", "/hf/hub");
        check(Some("/flag"), &[("LATHE_DATA_DIR", "/env"), ("HF_HUB_CACHE", "/h")], "/flag", "/h");
    }

    #[test]
    fn a_data_folder_that_was_asked_for_has_settings_of_its_own() {
        let paths = Paths::find(Some("/flag".as_ref()), &|_| None).unwrap();
        assert_eq!(paths.settings, Path::new("/flag/settings.toml"));
        let env = |name: &str| (name == "LATHE_DATA_DIR").then(|| PathBuf::from("/env"));
        assert_eq!(Paths::find(None, &env).unwrap().settings, Path::new("/env/settings.toml"));
    }
}
