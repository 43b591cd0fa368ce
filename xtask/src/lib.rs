//! What the tools of this repository share.

#![expect(clippy::print_stdout, reason = "tools of the terminal")]

pub mod pip;
pub mod repo;
pub mod smollm2;
