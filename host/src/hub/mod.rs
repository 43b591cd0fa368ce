//! The Hugging Face Hub: what is there, and how it comes here.

mod client;
mod files;
mod name;
mod pull;
mod refusal;
mod search;
mod show;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use files::{Wanted, pick_gguf, wanted};
pub(crate) use name::{Named, quant_of};
pub(crate) use pull::{pull, pull_model};
pub(crate) use search::search;
pub(crate) use show::{Heads, describe, heads, inspect_heads, show};
