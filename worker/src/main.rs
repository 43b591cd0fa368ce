//! `lathe-worker-cuda`: the worker for NVIDIA cards, a program of its own because it needs their libraries.

use std::process::ExitCode;

fn main() -> ExitCode {
    lathe_worker::main()
}
