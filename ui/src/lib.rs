//! What a person sees: egui views over the protocol's state.
//!
//! Drawing does nothing but fill an [`Outbox`] with commands; no file, no thread, no clock of its own, so that the same
//! code runs in a native window and in a browser.

mod address;
mod app;
pub mod comparison;
mod config_keys;
mod fit;
pub mod format;
pub mod origins;
mod outbox;
mod picker;
mod run_view;
mod screens;
mod smoothing;
mod store;
pub mod theme;
pub mod widgets;

pub use app::{CloseWish, Lathe, Options};
pub use fit::Fit;
pub use outbox::{Action, Asked, Outbox, Progress, Route};
pub use picker::{Accept, Pick, Picker};
pub use run_view::{LossPoint, RunPhase, RunView};
pub use store::Store;
