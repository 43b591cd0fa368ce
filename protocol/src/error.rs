use serde::{Deserialize, Serialize};

/// What kind of failure it was. Stable: scripts and the window choose their reaction by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// A flag, config key or value that cannot be.
    Usage,
    /// A file or folder could not be read or written.
    Io,
    /// A named thing (model, adapter, run) does not exist.
    NotFound,
    /// A model folder or file is malformed or of an unsupported kind.
    Model,
    /// A data file is malformed, or leaves nothing to learn.
    Data,
    /// An adapter does not fit its base or is malformed.
    Adapter,
    /// An adapter was trained on another base; it can be forced.
    OtherBase,
    /// A chat template failed to parse or render.
    Template,
    /// The job needs more memory than there is.
    OutOfMemory,
    /// A loss or gradient spiked or is not finite.
    Diverged,
    /// Another process holds what this one needs.
    Busy,
    /// The worker process died.
    WorkerDied,
    /// The device asked for is not there.
    Device,
    /// A graphics card is here, but cannot compute it; the CPU could, if it is asked for.
    NeedsCpu,
    /// The network, the Hub or another server: nothing came, or not what was asked for.
    Network,
    /// A token is needed, is wrong, or does not permit it.
    Access,
    /// A bug in Lathe.
    Internal,
}

/// One clear failure: what failed with its numbers and path, and apart from it what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorInfo {
    pub code: ErrorCode,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The last lines a dead worker wrote on stderr.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<String>,
}

impl ErrorInfo {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, details: None }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl std::fmt::Display for ErrorInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ErrorInfo {}
