//! What takes the engine itself: the bench beside the peers, and the recipe of the starter model. `cargo xtask` builds and
//! starts it, so that its other tasks need not wait for the engine.

#![expect(clippy::print_stdout, reason = "a tool of the terminal")]

mod bench;
mod starter;

use std::process::ExitCode;

use clap::Parser;
use xtask::{pip, repo, smollm2};

#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Task {
    /// Make resources/starter from nothing
    TrainStarter(starter::Args),
    /// Measure Lathe beside its peers
    Bench(bench::Args),
    /// One side of a measurement, started by `bench`
    #[command(hide = true)]
    BenchChild(bench::ChildArgs),
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::TrainStarter(args) => starter::train_starter(&args),
        Task::Bench(args) => bench::bench(&args),
        Task::BenchChild(args) => bench::child(&args),
    };
    repo::exit_code(done)
}
