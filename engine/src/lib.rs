//! One example's road: data, template, tokens, model, LoRA, training, sampling, export.
//!
//! Synchronous. It spawns no process, opens no socket and reads no clock except the one it is handed.

mod error;
pub mod files;

pub use error::{Error, Result};
