use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Theme {
    /// As the operating system has it.
    #[default]
    System,
    Light,
    Dark,
}

/// What a person chose, kept in a file. Never a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    pub theme: Theme,
    /// Threads a job computes on; 0 means all cores.
    pub threads: usize,
    /// Of the Hugging Face Hub.
    pub endpoint: String,
    /// Hugging Face cache; none means as the environment says. Takes effect at the next start.
    pub hf_cache: Option<String>,
    /// Where Lathe keeps its data; none means the platform's folder. Takes effect at the next start.
    pub data_dir: Option<String>,
    /// Most that tokenised data may take on disk; what was used longest ago goes first.
    pub token_cache_gb: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            theme: Theme::System,
            threads: 0,
            endpoint: "https://huggingface.co".into(),
            hf_cache: None,
            data_dir: None,
            token_cache_gb: 20,
        }
    }
}

/// The settings, and what they come to on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsView {
    pub settings: Settings,
    /// The file that keeps them.
    pub path: String,
    /// In use now.
    pub data_dir: String,
    /// In use now.
    pub hf_cache: String,
    pub token: TokenStatus,
    pub version: String,
}

/// Where the Hugging Face token is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenStatus {
    Absent,
    Keyring,
    /// In `HF_TOKEN`, which comes before the keyring.
    Environment,
    /// In this file of Python's tools, behind the keyring.
    File(String),
    /// There is no keyring, and why.
    NoKeyring(String),
}

impl TokenStatus {
    pub fn is_there(&self) -> bool {
        matches!(self, Self::Keyring | Self::Environment | Self::File(_))
    }
}

/// A text that appears in no log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}
