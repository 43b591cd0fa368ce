//! Models elsewhere, and on their way here.

use serde::{Deserialize, Serialize};

use crate::{ErrorInfo, ModelShape};

/// The `model_type`s and GGUF architectures that Lathe trains and runs.
pub const MODEL_TYPES: [&str; 7] = ["llama", "qwen2", "qwen3", "qwen3_moe", "qwen3moe", "gpt_oss", "gpt-oss"];

/// Who may download a model of the Hub.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// Everybody.
    #[default]
    Open,
    /// Whoever agrees to its terms on its page.
    Agree,
    /// Whom its owner lets in.
    Ask,
}

/// A model that a search on the Hub found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubModel {
    /// Its Hub id.
    pub name: String,
    /// Of the last 30 days.
    pub downloads: u64,
    pub likes: u64,
    pub license: Option<String>,
    pub gate: Gate,
    pub is_private: bool,
    /// As `config.json` names it, e.g. `Qwen3ForCausalLM`.
    pub architecture: Option<String>,
    pub parameters: Option<u64>,
    /// Seconds since 1970.
    pub updated_secs: Option<u64>,
    /// Why this version cannot use it, if the search tells.
    pub problem: Option<String>,
}

/// What the Hub tells of a model before it is downloaded: its file list, `config.json` and the headers of its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HubDetails {
    pub name: String,
    /// Of the commit.
    pub revision: String,
    pub license: Option<String>,
    pub gate: Gate,
    pub architecture: Option<String>,
    pub parameters: Option<u64>,
    pub shape: Option<ModelShape>,
    /// Those that a download fetches, and those that it leaves.
    pub files: Vec<HubFile>,
    /// Of what a download fetches.
    pub size_bytes: u64,
    /// Of that, what is not here yet.
    pub missing_bytes: u64,
    /// Free where it would go.
    pub disk_free_bytes: u64,
    /// Why it cannot be downloaded or used, if so.
    pub problem: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubFile {
    /// In the repository, with its folders.
    pub name: String,
    pub size_bytes: u64,
    /// Whether a download fetches it.
    pub is_wanted: bool,
    /// Whether it is in the cache.
    pub is_here: bool,
}

/// How far a download is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DownloadStatus {
    /// Waits for those before it.
    Queued,
    Running,
    /// By a person, or because Lathe was closed: goes on where it was.
    Paused,
    Failed,
    Done,
}

/// A model on its way here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Download {
    /// A Hub id, or `s3://bucket/prefix`.
    pub model: String,
    /// A branch, tag or commit; none means `main`.
    pub revision: Option<String>,
    pub status: DownloadStatus,
    /// Whether it is fetched, or waits, in the program that tells of it: it is paused when that ends.
    #[serde(default)]
    pub held_here: bool,
    pub done_bytes: u64,
    /// 0 until the file list is known.
    pub total_bytes: u64,
    pub done_files: usize,
    pub total_files: usize,
    /// Over the last seconds; 0 when not running.
    pub bytes_per_second: f64,
    pub eta_seconds: Option<f64>,
    /// What it is doing besides, e.g. `Connection lost; trying again in 4 s (2 of 8)`.
    pub note: Option<String>,
    /// Of a failed one.
    pub error: Option<ErrorInfo>,
}

/// What can be done with a download in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DownloadAct {
    Pause,
    /// Also of a failed one: to the end of the queue.
    Resume,
    /// Next after what is running.
    First,
    /// Out of the list; what was fetched so far stays, as an incomplete file of the cache.
    Forget,
    /// Out of the list, and what was fetched so far of files that are not whole is deleted.
    Discard,
}
