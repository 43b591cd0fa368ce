//! One example's road: data, template, tokens, model, LoRA, training, sampling, export.
//!
//! Synchronous. It spawns no process, opens no socket and reads no clock except the one it is handed.

pub mod adapter;
mod error;
pub mod files;
pub mod gguf;
pub mod lora;
pub mod model;
pub mod rng;
pub mod weights;

pub use error::{Error, Result};
