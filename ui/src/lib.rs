//! What a person sees, as state over protocol events. Pure: no file, no thread, no clock of its own.

mod run_view;

pub use run_view::{LossPoint, RunPhase, RunView};
