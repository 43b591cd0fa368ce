//! `cargo xtask bench`: Lathe beside its peers, in one run, on one machine, on the same bytes.

mod data;
mod decode;
mod gpt_oss;
mod load;
mod memory;
mod process;
mod table;
mod train;

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;

use crate::{repo, smollm2};
use process::Peer;
use table::Row;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// LoRA on SmolLM2-135M, against transformers and peft
    Train,
    /// Prefill and greedy decode of the Q4_1 GGUF, against llama.cpp
    Decode,
    /// Time until the GGUF is ready to chat, and of `lathe --help`
    Load,
    /// Preflight of 2 GB in 1,000,000 rows, and tokenising against transformers
    Data,
    /// Memory of a gpt-oss with the real shapes of its layers
    GptOss,
    /// Peak memory of a training step beside its prediction, over a grid of configurations
    Memory,
    All,
}

#[derive(clap::Args)]
pub struct Args {
    #[arg(value_enum, default_value = "all")]
    part: Part,
    /// Python of a virtual environment with the peers (tests/golden/requirements.txt)
    #[arg(long, value_name = "PYTHON")]
    python: Option<PathBuf>,
    /// Measurements of each side; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    threads: u32,
    /// Rows of chat a training measurement goes over, at least 8
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(8..=200))]
    rows: u32,
    /// Put the tables into BENCHMARKS.md
    #[arg(long)]
    write: bool,
}

/// What every part needs.
struct Setup {
    smollm2: PathBuf,
    peer: Peer,
    repeats: u32,
    threads: u32,
    num_rows: usize,
    /// For what the measurements write.
    scratch: tempfile::TempDir,
}

pub use decode::{ChildArgs, child};

pub fn bench(args: &Args) -> Result<()> {
    let Args { part, python, repeats, threads, rows, write } = args;
    let setup = Setup {
        smollm2: smollm2::fetch()?,
        peer: Peer::new(python.as_deref(), *threads)?,
        repeats: *repeats,
        threads: *threads,
        num_rows: *rows as usize,
        scratch: tempfile::tempdir()?,
    };
    for (this, name, run) in [
        (Part::Train, "train", train::measure as fn(&Setup) -> Result<Vec<Row>>),
        (Part::Decode, "decode", decode::measure),
        (Part::Load, "load", load::measure),
        (Part::Data, "data", data::measure),
        (Part::GptOss, "gpt-oss", gpt_oss::measure),
        (Part::Memory, "memory", memory::measure),
    ] {
        if *part != Part::All && *part != this {
            continue;
        }
        println!("== {name}");
        let text = table::render(&run(&setup)?);
        println!("\n{text}");
        if *write {
            let note = table::provenance(&setup.note());
            table::write_section(&repo::root().join("BENCHMARKS.md"), name, &format!("{note}\n\n{text}"))?;
        }
    }
    Ok(())
}

impl Setup {
    fn note(&self) -> String {
        let Self { repeats, threads, .. } = self;
        format!("{threads} threads, median of {repeats} alternating measurements")
    }

    /// The GGUF's weights as a folder that transformers reads, made once.
    fn hf_folder(&self) -> Result<Measured<String>> {
        let folder = repo::cache_dir().join("smollm2/hf");
        let path = folder.display().to_string();
        if folder.join("tokenizer_config.json").exists() {
            return Ok(Ok(path));
        }
        println!("writing SmolLM2 for the peer: {path}");
        let gguf = self.smollm2.display().to_string();
        Ok(self.peer.run_quietly("gguf_to_hf.py", &["--gguf", &gguf, "--out", &path])?.map(|_| path))
    }

    /// Measures every side in turn, again and again, so that a busy moment of the machine hits all of them.
    fn alternate<T>(&self, sides: &mut [(&str, &mut Measure<'_, T>)]) -> Result<Vec<Measured<Vec<T>>>> {
        let mut taken: Vec<Measured<Vec<T>>> = sides.iter().map(|_| Ok(Vec::new())).collect();
        for repeat in 1..=self.repeats {
            for (side, taken) in sides.iter_mut().zip(&mut taken) {
                // A side that cannot be measured is not asked again.
                let Ok(values) = taken else { continue };
                println!("{} {repeat}/{}", side.0, self.repeats);
                match side.1()? {
                    Ok(value) => values.push(value),
                    Err(why) => *taken = Err(why),
                }
            }
        }
        Ok(taken)
    }
}

/// One side of a comparison.
type Measure<'a, T> = dyn FnMut() -> Result<Measured<T>> + 'a;

/// A measurement, or why there is none, in a word or two.
type Measured<T> = Result<T, String>;

/// The median of one number of each measurement.
fn median_of<T>(measured: &Measured<Vec<T>>, number: impl Fn(&T) -> f64) -> Measured<f64> {
    let values = measured.as_ref().map_err(Clone::clone)?;
    table::median(values.iter().map(number).collect()).ok_or_else(|| "none".to_owned())
}
