//! Everything a GPU computes, against the same on the CPU: each kernel and its twin, and steps of whole models.
//!
//! The checks run on a card, by `cargo xtask gpu-check`, and without one on the emulated GPU, as tests.

pub mod cases;
pub mod models;
pub mod speed;
pub mod steps;
pub mod twins;
