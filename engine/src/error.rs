use std::path::{Path, PathBuf};

use lathe_protocol::{ErrorCode, ErrorInfo};

pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong in the engine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing `path` failed.
    #[error("Cannot {action}: {source}: {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    /// The input is at fault: what, with its numbers and path, and what to do about it.
    #[error("{message}")]
    Invalid { code: ErrorCode, message: String, hint: Option<String> },
    /// Whoever wanted it no longer does.
    #[error("Stopped on request")]
    Stopped,
    /// A tensor operation failed, which is a bug of ours or a broken model. A card's own failures are `Invalid`:
    /// [`crate::device`] tells them apart.
    #[error("Tensor operation failed: {}", without_backtrace(.0))]
    Tensor(candle_core::Error),
}

impl Error {
    pub fn invalid(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Invalid { code, message: message.into(), hint: None }
    }

    pub fn model(message: impl Into<String>) -> Self {
        Self::invalid(ErrorCode::Model, message)
    }

    pub fn data(message: impl Into<String>) -> Self {
        Self::invalid(ErrorCode::Data, message)
    }

    /// For `map_err` on file operations: `Error::io("read the model's config", path)`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, path: path.as_ref().to_path_buf(), source }
    }

    #[must_use]
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        if let Self::Invalid { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }
}

/// candle's message alone: with `RUST_BACKTRACE` set it prints its stack into the sentence.
pub(crate) fn without_backtrace(mut error: &candle_core::Error) -> String {
    while let candle_core::Error::WithBacktrace { inner, .. } = error {
        error = inner;
    }
    error.to_string()
}

impl From<ErrorInfo> for Error {
    fn from(ErrorInfo { code, message, hint, .. }: ErrorInfo) -> Self {
        Self::Invalid { code, message, hint }
    }
}

impl From<Error> for ErrorInfo {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                Self::new(ErrorCode::Io, message).hint("free some disk space")
            }
            Error::Io { .. } => Self::new(ErrorCode::Io, message),
            Error::Invalid { code, hint, .. } => Self { hint, ..Self::new(code, message) },
            Error::Stopped => Self::new(ErrorCode::Busy, message),
            Error::Tensor(_) => Self::new(ErrorCode::Internal, message),
        }
    }
}
