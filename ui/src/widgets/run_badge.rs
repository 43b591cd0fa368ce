use egui::{Response, Ui};
use lathe_protocol::RunStatus;

use super::badge;
use crate::theme::Tone;

/// A run's status in a word.
pub fn status_name(status: RunStatus) -> &'static str {
    match status {
        RunStatus::Queued => "Queued",
        RunStatus::Running => "Running",
        RunStatus::Stopped => "Paused",
        RunStatus::Kept => "Kept",
        RunStatus::Interrupted => "Interrupted",
        RunStatus::OutOfMemory => "Out of memory",
        RunStatus::Diverged => "Diverged",
        RunStatus::Completed => "Completed",
        RunStatus::Failed => "Failed",
    }
}

pub fn status_tone(status: RunStatus) -> Tone {
    match status {
        RunStatus::Queued | RunStatus::Stopped => Tone::Neutral,
        RunStatus::Running => Tone::Accent,
        RunStatus::Kept | RunStatus::Completed => Tone::Success,
        RunStatus::Interrupted => Tone::Warning,
        RunStatus::OutOfMemory | RunStatus::Diverged | RunStatus::Failed => Tone::Error,
    }
}

pub fn run_badge(ui: &mut Ui, status: RunStatus) -> Response {
    badge(ui, status_tone(status), status_name(status))
}
