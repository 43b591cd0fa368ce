//! The Hugging Face cache, as `huggingface_hub` counts it.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RepoKind {
    Model,
    Dataset,
    Space,
    Kernel,
}

impl RepoKind {
    pub const ALL: [Self; 4] = [Self::Model, Self::Dataset, Self::Space, Self::Kernel];

    pub fn word(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
            Self::Space => "space",
            Self::Kernel => "kernel",
        }
    }
}

/// What lies in the cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CacheReport {
    pub path: String,
    /// Where it really lies, if `path` is a link.
    pub target: Option<String>,
    /// Of what revisions refer to, each blob once: what `hf cache` tells.
    pub size_bytes: u64,
    /// Of blobs that no revision refers to, in repositories and in the store they share.
    pub unreferenced_bytes: u64,
    /// Of downloads that were not finished, and of `leftovers`.
    pub incomplete_bytes: u64,
    pub disk_free_bytes: u64,
    /// Largest first.
    pub repos: Vec<CacheRepo>,
    /// What an interrupted import, removal or move left, a folder as one.
    pub leftovers: Vec<CacheFile>,
    /// Of what is not laid out as it should be, a sentence each.
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CacheRepo {
    pub kind: RepoKind,
    /// `owner/name`.
    pub id: String,
    pub path: String,
    /// Where it really lies, if `path` is a link.
    pub target: Option<String>,
    /// Of what its revisions refer to, each blob once.
    pub size_bytes: u64,
    pub num_files: usize,
    /// Seconds since 1970; so below.
    pub accessed_secs: u64,
    pub modified_secs: u64,
    /// Newest first.
    pub revisions: Vec<CacheRevision>,
    /// Blobs that no revision refers to.
    pub unreferenced: Vec<CacheFile>,
    /// Downloads that were not finished.
    pub incomplete: Vec<CacheFile>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CacheRevision {
    pub commit: String,
    /// Branches and tags that mean it; none means that it is detached.
    pub refs: Vec<String>,
    /// Of all its files, shared or not.
    pub size_bytes: u64,
    /// What deleting it alone frees.
    pub own_bytes: u64,
    pub num_files: usize,
    pub modified_secs: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheFile {
    pub path: String,
    pub size_bytes: u64,
}

/// Something of the cache that can be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum CacheTarget {
    Repo {
        kind: RepoKind,
        id: String,
    },
    Revision {
        kind: RepoKind,
        id: String,
        commit: String,
    },
    /// Revisions without a branch or tag, of all repositories: what `hf cache prune` deletes.
    Detached,
    /// Blobs that no revision refers to, of all repositories.
    Unreferenced,
    /// Unfinished downloads, of all repositories, but for those under way, and leftovers.
    Incomplete,
}

/// What a deletion would free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachePlan {
    pub targets: Vec<CacheTarget>,
    /// As `hf cache` counts it.
    pub freed_bytes: u64,
    /// Of unfinished and unreferenced files that go with whole repositories, which `hf cache` does not count.
    pub besides_bytes: u64,
    /// What goes, a line each, e.g. `model Qwen/Qwen3-0.6B, all 2 revisions`.
    pub lines: Vec<String>,
    pub num_files: usize,
}
