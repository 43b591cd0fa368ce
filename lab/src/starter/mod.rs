//! `cargo xtask train-starter`: makes `resources/starter/` from nothing, the way a user would train: our own engine,
//! `method = "full"`, on permissive text.

pub mod chitchat;
mod corpus;
mod intents;
mod pack;
mod recipe;
mod text;
mod tokenizer;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::Instant,
};

use anyhow::{Result, anyhow};
use candle_core::Tensor;
use lathe_engine::{
    model::{Model, ModelConfig},
    train::{self, Surroundings, trainables},
};
use lathe_protocol::{EventBody, Machine, Method, RunConfig, TrainJob};
use rand::SeedableRng as _;
use rand_distr::Distribution as _;
use serde_json::Value;

use crate::repo;
use corpus::{Conversation, Corpus};

#[derive(clap::Args)]
pub struct Args {
    /// Folder for corpus, stages and checkpoints; a run that was broken off goes on there
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Train each stage for N steps only and pack nothing, to see that the recipe works
    #[arg(long, value_name = "N", conflicts_with = "pack")]
    max_steps: Option<usize>,
    /// Only write the corpora into the work folder
    #[arg(long, conflicts_with_all = ["max_steps", "pack"])]
    corpus_only: bool,
    /// Only put the model in DIR into resources/starter
    #[arg(long, value_name = "DIR")]
    pack: Option<PathBuf>,
}

pub fn train_starter(args: &Args) -> Result<()> {
    let Args { work, max_steps, corpus_only, pack } = args;
    if let Some(folder) = pack {
        return pack::pack(folder);
    }
    // A run of a few steps must not be resumed as the real one.
    let name = if max_steps.is_some() { "starter-smoke" } else { "starter" };
    let work = work.clone().unwrap_or_else(|| repo::cache_dir().join(name));
    repo::create_dir_all(&work)?;

    // 1. Corpus
    let corpus = Corpus::gather()?;
    let Corpus { intents, chitchat, pirate } = &corpus;
    let [mixed_path, intents_path, measured_path] =
        ["mixed.jsonl", "intents.jsonl", "measured.jsonl"].map(|name| work.join(name));
    corpus::write(&mixed_path, chitchat.iter().chain(intents))?;
    corpus::write(&intents_path, intents)?;
    corpus::write(&measured_path, intents.iter().step_by(recipe::MEASURED_ONE_IN))?;
    println!(
        "corpus: {} intents, {} chitchat conversations: {}",
        intents.len(),
        chitchat.len(),
        work.display()
    );
    if *corpus_only {
        return Ok(());
    }

    // 2. Tokenizer and fresh model
    let fresh = work.join("stage0");
    write_fresh_model(&fresh, intents.iter().chain(chitchat).chain(pirate))?;

    // 3. Two stages
    let limit = |config: RunConfig| RunConfig { max_steps: max_steps.unwrap_or(0), ..config };
    let (stage1, stage2) = (work.join("stage1"), work.join("stage2"));
    stage(&fresh, &stage1, &mixed_path, &measured_path, limit(recipe::stage1()))?;
    stage(&stage1, &stage2, &intents_path, &measured_path, limit(recipe::stage2()))?;

    // 4. Into the repository
    if max_steps.is_some() {
        println!("the recipe works; nothing packed: {}", stage2.display());
        return Ok(());
    }
    pack::pack(&stage2)
}

fn write_fresh_model<'a>(folder: &Path, conversations: impl Iterator<Item = &'a Conversation>) -> Result<()> {
    repo::create_dir_all(folder)?;
    let messages = conversations.flat_map(|conversation| &conversation.messages);
    let texts: Vec<&str> = messages.map(|message| message.content.as_str()).collect();
    let tokenizer = tokenizer::train(&texts, recipe::VOCAB_SIZE)?;
    tokenizer.save(folder.join("tokenizer.json"), true).map_err(|error| anyhow!("{error}"))?;
    let write = |name: &str, value: &Value| lathe_engine::files::write_json(&folder.join(name), value);
    write("config.json", &recipe::model_config())?;
    write("tokenizer_config.json", &recipe::tokenizer_config())?;
    write("generation_config.json", &recipe::generation_config())?;

    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(recipe::INIT_SEED);
    let mut normal = |count: usize| (0..count).map(|_| rand_distr::StandardNormal.sample(&mut rng)).collect();
    let model = Model::fresh(ModelConfig::from_json(&recipe::model_config())?, &mut normal)?;
    let tensors: BTreeMap<String, Tensor> = trainables(&model, Method::Full)
        .into_iter()
        .map(|trainable| (trainable.name, trainable.var.into_inner()))
        .collect();
    Ok(lathe_engine::files::write_safetensors(&folder.join("model.safetensors"), &tensors)?)
}

/// One training run, resumed if it was broken off.
fn stage(model: &Path, out: &Path, data: &Path, eval_data: &Path, config: RunConfig) -> Result<()> {
    println!("training {}", out.display());
    let started = Instant::now();
    let stop = AtomicBool::new(false);
    let job = TrainJob {
        model: model.display().to_string(),
        model_name: "starter".into(),
        data: data.display().to_string(),
        eval_data: Some(eval_data.display().to_string()),
        out_dir: out.display().to_string(),
        config,
        init_adapter: None,
        resume: true,
        device: "cpu".into(),
        force: false,
        machine: Machine::default(),
        cache: out.join("cache").display().to_string(),
    };
    let world = Surroundings { clock: &|| started.elapsed().as_secs_f64(), stop: &stop, audience: None };
    let mut total_steps = 0;
    train::run(&job, &world, &mut |event| {
        let seconds = started.elapsed().as_secs();
        match event {
            EventBody::TrainingStarted { total_steps: total, rows, tokens_per_epoch, .. } => {
                total_steps = total;
                println!("{rows} rows, {tokens_per_epoch} tokens an epoch, {total} steps");
            }
            EventBody::Step(step) if step.step.is_multiple_of(20) || step.step < 5 => println!(
                "{seconds:>6}s step {}/{total_steps} loss {:.4} grad norm {:.3} lr {:.2e} {:.0} tokens/s",
                step.step, step.loss, step.grad_norm, step.lr, step.tokens_per_second
            ),
            EventBody::Eval(eval) => {
                let share = 100.0 * eval.token_accuracy;
                println!("{seconds:>6}s measured: loss {:.4}, {share:.1} % of tokens right", eval.loss);
            }
            EventBody::Log { message, .. } => println!("{message}"),
            _ => {}
        }
    })?;
    Ok(())
}
