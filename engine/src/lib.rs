//! One example's road: data, template, tokens, model, LoRA, training, sampling, export.
//!
//! Synchronous. It spawns no process, opens no socket and reads no clock except the one it is handed.

pub mod adapter;
pub mod batch;
pub mod chat;
pub mod corpus;
pub mod data;
pub mod device;
mod error;
pub mod family;
pub mod files;
pub mod foreign;
pub mod gguf;
pub mod gguf_tokenizer;
pub mod inspect;
pub mod lora;
pub mod model;
pub mod origins;
pub mod preflight;
pub mod prepare;
pub mod reply;
pub mod rng;
pub mod sample;
pub mod similar;
pub mod store;
pub mod styles;
pub mod template;
pub mod text_files;
pub mod tokenize;
pub mod train;
pub mod weights;
mod writing;

pub use error::{Error, Result};
