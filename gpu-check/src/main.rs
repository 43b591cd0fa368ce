//! Checks a card and times it: one table, from a program that needs nothing beside the driver and CUDA's libraries.
#![expect(clippy::print_stdout, reason = "a tool of the terminal")]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use clap::Parser;
use lathe_engine::{
    Error, Result, device,
    foreign::panic_is_expected,
    model::{Compute, LoadFor},
};
use lathe_gpu_check::{
    cases, for_each_check,
    models::{self, GPT_OSS_20B, QWEN3_14B, Shape},
    speed::{self, Measured, Training, Writing},
    steps, twins,
};
use lathe_protocol::LoraConfig;

/// Checks every kernel of Lathe against its twin on the CPU, then times models of real shapes with random weights.
#[derive(Parser)]
struct Args {
    /// The card, as `nvidia-smi` counts it.
    #[arg(long, default_value = "cuda:0")]
    device: String,
    /// Only check; write no models and time nothing.
    #[arg(long)]
    no_speed: bool,
    /// Where models are written, 28 GB at a time; they stay there for the peers' side.
    #[arg(long, default_value = "gpu-check-models")]
    models: PathBuf,
    /// Only what has this in its name.
    #[arg(long, default_value = "")]
    only: String,
}

/// Tokens of a reply that is timed.
const WRITTEN: usize = 128;

type Check = (&'static str, fn() -> candle_core::Result<()>);

macro_rules! checks {
    ($($path:path),* $(,)?) => {
        &[$((stringify!($path), || $path())),*]
    };
}

const CHECKS: &[Check] = for_each_check!(checks);

fn main() -> ExitCode {
    let args = Args::parse();
    // A library that is missing panics where it is first asked for, and is told as an error.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !panic_is_expected() {
            hook(info);
        }
    }));
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    let device = device::open(&args.device)?;
    let compute = Compute::on(device.clone());
    if let Some((free, total)) = device::memory(&device) {
        println!("{}: {:.1} of {:.1} GB free", args.device, free as f64 / 1e9, total as f64 / 1e9);
    }
    twins::set_target(device);
    println!("{:<72} {:>8} {:>10} {:>8}", "check", "", "tolerance", "seconds");
    let mut num_failed = 0;
    for (name, check) in CHECKS.iter().filter(|(name, _)| name.contains(&args.only)) {
        let started = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(check));
        let seconds = started.elapsed().as_secs_f64();
        let used = format!("{:.0} %", 100.0 * twins::take_worst());
        let failure = match result {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("it panicked, see above".to_owned()),
        };
        let verdict = if failure.is_none() { "ok" } else { "FAILED" };
        println!("{:<72} {verdict:>8} {used:>10} {seconds:>8.1}", name.replace(' ', ""));
        if let Some(failure) = failure {
            num_failed += 1;
            println!("  {}", failure.lines().next().unwrap_or_default());
        }
    }
    println!("{num_failed} of {} checks failed", CHECKS.len());
    if !args.no_speed {
        println!("\n{:<56} {:>10} {:<6} {:>10}", "measured", "", "", "target");
        speeds(args, &compute, &mut tell)?;
    }
    Ok(num_failed == 0)
}

fn tell(measured: Measured) {
    let verdict = match measured.meets_target() {
        None => "",
        Some(true) => "met",
        Some(false) => "missed",
    };
    let target = measured.target.map_or(String::new(), |target| format!("{target:.1}"));
    let Measured { what, value, unit, .. } = measured;
    println!("{what:<56} {value:>10.1} {unit:<6} {target:>10} {verdict}");
}

fn speeds(args: &Args, compute: &Compute, tell: &mut dyn FnMut(Measured)) -> Result<()> {
    let is_wanted = |shape: &Shape| args.only.is_empty() || shape.name.contains(&args.only);
    if is_wanted(&GPT_OSS_20B) {
        let folder = write(&args.models, &GPT_OSS_20B, tell)?;
        let run = Writing {
            load_for: LoadFor::Inference,
            num_tokens: WRITTEN,
            first_token: Some(4.0),
            speed: 500.0,
        };
        speed::writing(&folder, &GPT_OSS_20B, &run, compute, tell)?;
        let run = Training {
            load_for: LoadFor::Lora,
            lora: LoraConfig { r: 16, ..LoraConfig::default() },
            lengths: &[(2048, 12_000.0, 17.5), (8192, 14_000.0, 20.5)],
        };
        speed::training(&folder, &GPT_OSS_20B, &run, compute, tell)?;
    }
    if is_wanted(&QWEN3_14B) {
        let folder = write(&args.models, &QWEN3_14B, tell)?;
        let in_nf4 = LoadFor::Qlora { double_quant: true };
        let run = Writing { load_for: in_nf4, num_tokens: WRITTEN, first_token: None, speed: 280.0 };
        speed::writing(&folder, &QWEN3_14B, &run, compute, tell)?;
        let run = Training {
            load_for: in_nf4,
            lora: LoraConfig { r: 16, ..LoraConfig::default() },
            lengths: &[(2048, 4500.0, 14.5)],
        };
        speed::training(&folder, &QWEN3_14B, &run, compute, tell)?;
    }
    Ok(())
}

/// Writes a model's folder, if it is not there yet.
fn write(models: &Path, shape: &Shape, tell: &mut dyn FnMut(Measured)) -> Result<PathBuf> {
    let folder = models.join(shape.name);
    if !folder.join("model.safetensors").exists() {
        let started = Instant::now();
        models::write(&folder, shape, 1).map_err(Error::io("write a model", &folder))?;
        let what = format!("{} is written, random weights", shape.name);
        tell(Measured { what, value: started.elapsed().as_secs_f64(), unit: "s", target: None });
    }
    Ok(folder)
}
