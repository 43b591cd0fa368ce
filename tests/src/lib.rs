//! Whole-program tests live in `tests/`: real processes, real files. This crate is empty.
