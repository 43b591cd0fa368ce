use std::{io, path::Path};

use lathe_protocol::{ErrorCode, ErrorInfo};

pub type Result<T> = std::result::Result<T, ErrorInfo>;

/// For `map_err` on file operations: `io_error("read the config", path)`.
pub(crate) fn io_error(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> ErrorInfo {
    move |source| {
        let path = path.as_ref().display();
        let error = ErrorInfo::new(ErrorCode::Io, format!("Cannot {action}: {source}: {path}"));
        match source.kind() {
            io::ErrorKind::StorageFull => error.hint("free some disk space, then try again"),
            io::ErrorKind::PermissionDenied => error.hint("check who owns the file or folder"),
            _ => error,
        }
    }
}

pub(crate) fn not_found(message: impl Into<String>) -> ErrorInfo {
    ErrorInfo::new(ErrorCode::NotFound, message)
}

pub(crate) fn usage(message: impl Into<String>) -> ErrorInfo {
    ErrorInfo::new(ErrorCode::Usage, message)
}

/// The candidates that look like `name`, likeliest first, at most three.
pub(crate) fn near<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let wanted = name.to_lowercase();
    let mut scored: Vec<(f64, &str)> = candidates
        .into_iter()
        .map(|candidate| {
            let lower = candidate.to_lowercase();
            let last = lower.rsplit('/').next().unwrap_or(&lower);
            let contains = if !wanted.is_empty() && lower.contains(&wanted) { 0.9 } else { 0.0 };
            let score =
                strsim::jaro_winkler(&wanted, &lower).max(strsim::jaro_winkler(&wanted, last)).max(contains);
            (score, candidate)
        })
        .filter(|(score, _)| *score >= 0.8)
        .collect();
    scored.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    scored.into_iter().take(3).map(|(_, candidate)| candidate).collect()
}

/// `did you mean a, b or c?`, or `otherwise` without near matches.
pub(crate) fn did_you_mean(near: &[&str], otherwise: &str) -> String {
    match near {
        [] => otherwise.to_owned(),
        [one] => format!("did you mean {one}?"),
        [first @ .., last] => format!("did you mean {} or {last}?", first.join(", ")),
    }
}
