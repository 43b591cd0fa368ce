//! Prefill and greedy decode of SmolLM2 Q4_1. Each side is a process of its own with as many threads.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result};
use lathe_engine::{
    chat::ChatSession,
    model::{LoadFor, Model},
};
use rand::{Rng as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

use super::{
    Setup, median_of, process,
    table::{Goal, Row},
};

const PREFILL_TOKENS: usize = 512;
const DECODE_TOKENS: usize = 64;
const DEPTHS: [usize; 2] = [0, 512];

/// What lab/peers/llama_cpp.py prints, and our child too.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Speeds {
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: f64,
    pub load_seconds: f64,
}

pub fn measure(setup: &Setup) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for depth in DEPTHS {
        let measured = setup.alternate(&mut [
            ("lathe", &mut || Ok(Ok(lathe(setup, depth)?))),
            ("llama.cpp", &mut || llama_cpp(setup, depth)),
        ])?;
        let [ours, theirs] = measured.as_slice() else { unreachable!("two sides") };
        let mut row = |measure: String, number: fn(&Speeds) -> f64, goal| {
            rows.push(Row {
                measure,
                unit: "tok/s",
                lathe: median_of(ours, number),
                peer_name: "llama.cpp",
                peer: median_of(theirs, number),
                goal,
            });
        };
        if depth == 0 {
            let prefill = format!("Prefill of {PREFILL_TOKENS} tokens, Q4_1");
            row(prefill, |speeds| speeds.prefill_tokens_per_second, Goal::TimesOrMore(0.5));
        }
        let decode = format!("Greedy decode at depth {depth}, Q4_1");
        row(decode, |speeds| speeds.decode_tokens_per_second, Goal::TimesOrMore(0.8));
    }
    Ok(rows)
}

/// The peer's speeds.
pub fn llama_cpp(setup: &Setup, depth: usize) -> Result<super::Measured<Speeds>> {
    let model = setup.smollm2.display().to_string();
    let [depth, prefill, decode] = [depth, PREFILL_TOKENS, DECODE_TOKENS].map(|count| count.to_string());
    let threads = setup.threads.to_string();
    let args = ["--model", &model, "--threads", &threads, "--depth", &depth, "--prefill", &prefill];
    setup.peer.run("llama_cpp.py", &[&args[..], &["--decode", &decode]].concat())
}

/// Ours, by this same program started anew: the number of threads is settled when a process begins.
pub fn lathe(setup: &Setup, depth: usize) -> Result<Speeds> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("bench-child").arg("--model").arg(&setup.smollm2);
    command.args(["--depth", &depth.to_string()]).env("RAYON_NUM_THREADS", setup.threads.to_string());
    let (values, _) = process::json_lines(&mut command)?;
    let value = values.into_iter().next_back().context("The measuring process printed nothing")?;
    Ok(serde_json::from_value(value)?)
}

#[derive(clap::Args)]
pub struct ChildArgs {
    #[arg(long)]
    model: PathBuf,
    #[arg(long)]
    depth: usize,
}

/// Measures in this process and prints one JSON line.
pub fn child(args: &ChildArgs) -> Result<()> {
    let ChildArgs { model, depth } = args;
    println!("{}", serde_json::to_string(&speeds(model, *depth)?)?);
    Ok(())
}

fn speeds(path: &Path, depth: usize) -> Result<Speeds> {
    let started = Instant::now();
    let session = ChatSession::load(path, &[], &|| started.elapsed().as_secs_f64())?;
    let load_seconds = session.load_seconds();
    drop(session);

    let model = Model::load(path, LoadFor::Inference)?;
    let capacity = PREFILL_TOKENS.max(depth + DECODE_TOKENS) + 8;
    let rope = model.rope_table(capacity);
    let mut cache = model.new_cache(capacity)?;
    // Random tokens: the end token does not stop anybody.
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    let prompt: Vec<u32> =
        (0..capacity).map(|_| rng.random_range(0..model.config.vocab_size as u32)).collect();
    let mut feed = |ids: &[u32], from: Option<usize>| -> Result<Vec<f32>> {
        if let Some(num_tokens) = from {
            cache.truncate(num_tokens);
        }
        Ok(model.decode(ids, &mut cache, &rope)?.to_vec1()?)
    };
    feed(&prompt[..8], None)?;

    let started = Instant::now();
    feed(&prompt[..PREFILL_TOKENS], Some(0))?;
    let prefill_seconds = started.elapsed().as_secs_f64();

    // At depth 0 there is one token to begin with, as llama.cpp keeps the logits of the one before.
    let mut logits = feed(&prompt[..depth.max(1)], Some(0))?;
    let started = Instant::now();
    for _ in 0..DECODE_TOKENS {
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        let (id, _) = best.context("The model has no vocabulary")?;
        logits = feed(&[id as u32], None)?;
    }
    let decode_seconds = started.elapsed().as_secs_f64();
    Ok(Speeds {
        prefill_tokens_per_second: PREFILL_TOKENS as f64 / prefill_seconds,
        decode_tokens_per_second: DECODE_TOKENS as f64 / decode_seconds,
        load_seconds,
    })
}
