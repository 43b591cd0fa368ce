//! gpt-oss with the real shapes of its layers, two of the 20B's 24: memory near the file's size.

use std::{
    borrow::Cow,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use half::bf16;
use lathe_protocol::{ExpertFormat, ExpertsShape, ModelShape, Placement, Quant, RunConfig, training_memory};
use rand::{RngCore as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, View, serialize_to_file};
use serde_json::{Value, json};

use super::{
    Setup, median_of, process,
    table::{Goal, Row},
};
use crate::repo;

/// Of a model of random weights.
pub struct Dims {
    num_layers: usize,
    /// Also the experts' inner width.
    hidden: usize,
    num_experts: usize,
    num_heads: usize,
    num_kv_heads: usize,
    vocab_size: usize,
}

const REAL_LAYERS: Dims = Dims {
    num_layers: 2,
    hidden: 2880,
    num_experts: 32,
    num_heads: 64,
    num_kv_heads: 8,
    vocab_size: 201_088,
};
/// Trained in seconds, and yet larger than the process around it.
pub const TINY: Dims =
    Dims { num_layers: 6, hidden: 768, num_experts: 8, num_heads: 16, num_kv_heads: 4, vocab_size: 32_768 };
const HEAD_DIM: usize = 64;
const EXPERTS_PER_TOKEN: usize = 4;
const MAX_SEQ_LEN: usize = 256;

/// Memory as a multiple of the model's file.
const MOST_MEMORY: f64 = 1.3;

struct Measurement {
    /// Peaks in multiples of the file's size; training's without its activations.
    chat_memory: f64,
    training_memory: f64,
    reply_speed: f64,
    training_speed: f64,
}

pub fn measure(setup: &Setup) -> Result<Vec<Row>> {
    let lathe = process::build_lathe()?;
    let model = setup.scratch.path().join("gpt-oss");
    let file_bytes = write_model(&model, &REAL_LAYERS)?;
    println!("{} of 24 layers, random weights, {:.2} GB", REAL_LAYERS.num_layers, file_bytes as f64 / 1e9);
    let data = setup.scratch.path().join("rows.jsonl");
    repo::write(&data, rows())?;
    let measured = setup
        .alternate(&mut [("lathe", &mut || Ok(Ok(run(setup, &lathe, &model, &data, file_bytes as f64)?)))])?;
    let [ours] = measured.as_slice() else { unreachable!("one side") };
    let row = |measure: &str, unit, number: fn(&Measurement) -> f64, goal| Row {
        measure: measure.into(),
        unit,
        lathe: median_of(ours, number),
        peer_name: "",
        peer: Err("–".into()),
        goal,
    };
    let memory = Goal::OrLess(MOST_MEMORY);
    Ok(vec![
        row("Chat, peak RSS", "× the file", |this| this.chat_memory, memory),
        row("LoRA step, peak RSS but for activations", "× the file", |this| this.training_memory, memory),
        row("Chat, greedy decode", "tok/s", |this| this.reply_speed, Goal::None),
        row("LoRA training", "tok/s", |this| this.training_speed, Goal::None),
    ])
}

fn run(setup: &Setup, lathe: &Path, model: &Path, data: &Path, file_bytes: f64) -> Result<Measurement> {
    let folder = tempfile::tempdir_in(setup.scratch.path())?;
    let command = |subcommand: &str| {
        let mut command = Command::new(lathe);
        command.arg(subcommand).arg("--model").arg(model).args(["--json", "--device", "cpu"]);
        command.arg("--data-dir").arg(folder.path().join("data"));
        command.env("RAYON_NUM_THREADS", setup.threads.to_string());
        command
    };
    let of_last = |events: &[Value], kind: &str, key: &str| {
        let event = events.iter().rfind(|event| event["kind"] == kind);
        event.and_then(|event| event[key].as_f64()).with_context(|| format!("no {key} of {kind}"))
    };
    let (events, chat_bytes) = process::json_lines(command("chat").args([
        "-p",
        "Hello there",
        "--max-tokens",
        "16",
        "--temperature",
        "0",
    ]))?;
    let reply_speed = of_last(&events, "stats", "tokens_per_second")?;
    let mut train = command("train");
    train.arg("--data").arg(data).arg("--out").arg(folder.path().join("out"));
    train.args(["--max-steps", "2"]);
    let length = format!("max_seq_len={MAX_SEQ_LEN}");
    for setting in ["packing=true", "batch_size=1", "grad_accum=1", "save_steps=0", length.as_str()] {
        train.args(["--set", setting]);
    }
    let (events, training_bytes) = process::json_lines(&mut train)?;
    let config = RunConfig { packing: true, batch_size: 1, max_seq_len: MAX_SEQ_LEN, ..RunConfig::default() };
    let estimate = training_memory(&shape(), &config, MAX_SEQ_LEN, Placement::Cpu);
    let activations = (estimate.activations + estimate.logits + estimate.workspace) as f64;
    Ok(Measurement {
        chat_memory: chat_bytes as f64 / file_bytes,
        training_memory: (training_bytes as f64 - activations) / file_bytes,
        reply_speed,
        training_speed: of_last(&events, "step", "tokens_per_second")?,
    })
}

fn shape() -> ModelShape {
    let Dims { num_layers, hidden, num_experts, num_heads, num_kv_heads, vocab_size } = REAL_LAYERS;
    ModelShape {
        num_layers,
        hidden_size: hidden,
        intermediate_size: hidden,
        num_attention_heads: num_heads,
        num_key_value_heads: num_kv_heads,
        head_dim: HEAD_DIM,
        vocab_size,
        context_length: 131_072,
        tie_word_embeddings: false,
        is_gguf: false,
        linears: Quant::None,
        experts: Some(ExpertsShape {
            num_experts,
            experts_per_token: EXPERTS_PER_TOKEN,
            format: ExpertFormat::Mxfp4,
        }),
    }
}

fn rows() -> String {
    let row = |index: usize| {
        let text = format!("Tell me more about number {index}. ").repeat(12);
        json!({ "prompt": text, "completion": format!("Number {index} is one more than {}.", index.max(1) - 1) })
    };
    (0..16).map(|index| row(index).to_string() + "\n").collect()
}

/// A model folder of random weights; its size in bytes.
pub fn write_model(folder: &Path, size: &Dims) -> Result<u64> {
    fs::create_dir_all(folder)?;
    let starter = repo::root().join("resources/starter");
    fs::copy(starter.join("tokenizer_config.json"), folder.join("tokenizer_config.json"))?;
    let tokenizer = tokenizer(&starter.join("tokenizer.json"), size.vocab_size)?;
    repo::write(&folder.join("tokenizer.json"), tokenizer.to_string())?;
    fs::copy(repo::root().join("chat_templates/chatml.jinja"), folder.join("chat_template.jinja"))?;
    repo::write(&folder.join("config.json"), config(size).to_string())?;
    let weights: PathBuf = folder.join("model.safetensors");
    serialize_to_file(tensors(size), None, &weights)?;
    Ok(fs::metadata(weights)?.len())
}

/// The tokenizer at `path` with as many tokens as a model has, for their memory.
fn tokenizer(path: &Path, vocab_size: usize) -> Result<Value> {
    let mut tokenizer: Value = serde_json::from_str(&repo::read_to_string(path)?)?;
    let vocab = tokenizer["model"]["vocab"].as_object_mut().context("no vocabulary")?;
    for id in vocab.len()..vocab_size {
        vocab.insert(format!("unused token {id}"), id.into());
    }
    Ok(tokenizer)
}

fn config(size: &Dims) -> Value {
    let Dims { num_layers, hidden, num_experts, num_heads, num_kv_heads, vocab_size } = *size;
    let layer_types: Vec<&str> =
        ["sliding_attention", "full_attention"].into_iter().cycle().take(num_layers).collect();
    json!({
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "num_hidden_layers": num_layers,
        "hidden_size": hidden, "intermediate_size": hidden, "head_dim": HEAD_DIM,
        "num_attention_heads": num_heads, "num_key_value_heads": num_kv_heads, "attention_bias": true,
        "num_local_experts": num_experts, "num_experts_per_tok": EXPERTS_PER_TOKEN, "vocab_size": vocab_size,
        "layer_types": layer_types, "sliding_window": 128, "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5, "rope_theta": 150_000, "swiglu_limit": 7.0, "tie_word_embeddings": false,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
            "original_max_position_embeddings": 4096
        },
        "quantization_config": { "quant_method": "mxfp4" }, "torch_dtype": "bfloat16"
    })
}

fn tensors(size: &Dims) -> Vec<(String, Random)> {
    let Dims { num_layers, hidden, num_experts, num_heads, num_kv_heads, vocab_size } = *size;
    let (q, kv) = (num_heads * HEAD_DIM, num_kv_heads * HEAD_DIM);
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[usize], kind: Kind| {
        let seed = tensors.len() as u64;
        tensors.push((name, Random { shape: shape.to_vec(), kind, seed }));
    };
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        add(name.into(), &[vocab_size, hidden], Kind::Weights);
    }
    add("model.norm.weight".into(), &[hidden], Kind::Ones);
    for layer in 0..num_layers {
        let mut add =
            |name: &str, shape: &[usize], kind| add(format!("model.layers.{layer}.{name}"), shape, kind);
        add("input_layernorm.weight", &[hidden], Kind::Ones);
        add("post_attention_layernorm.weight", &[hidden], Kind::Ones);
        add("self_attn.sinks", &[num_heads], Kind::Weights);
        for (name, outputs, inputs) in
            [("q_proj", q, hidden), ("k_proj", kv, hidden), ("v_proj", kv, hidden), ("o_proj", hidden, q)]
        {
            add(&format!("self_attn.{name}.weight"), &[outputs, inputs], Kind::Weights);
            add(&format!("self_attn.{name}.bias"), &[outputs], Kind::Weights);
        }
        add("mlp.router.weight", &[num_experts, hidden], Kind::Weights);
        add("mlp.router.bias", &[num_experts], Kind::Weights);
        for (name, outputs) in [("gate_up_proj", 2 * hidden), ("down_proj", hidden)] {
            let name = format!("mlp.experts.{name}");
            add(&format!("{name}_blocks"), &[num_experts, outputs, hidden / 32, 16], Kind::Codes);
            add(&format!("{name}_scales"), &[num_experts, outputs, hidden / 32], Kind::Scales);
            add(&format!("{name}_bias"), &[num_experts, outputs], Kind::Weights);
        }
    }
    tensors
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// bf16 within ±0.03.
    Weights,
    Ones,
    /// Any byte is two codes.
    Codes,
    /// Powers of two that make such weights of the codes.
    Scales,
}

/// A tensor that exists only while it is written.
struct Random {
    shape: Vec<usize>,
    kind: Kind,
    seed: u64,
}

impl View for Random {
    fn dtype(&self) -> Dtype {
        match self.kind {
            Kind::Weights | Kind::Ones => Dtype::BF16,
            Kind::Codes | Kind::Scales => Dtype::U8,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.data_len()];
        match self.kind {
            Kind::Ones => bytes.as_chunks_mut().0.fill(bf16::ONE.to_le_bytes()),
            Kind::Scales => bytes.fill(119),
            Kind::Codes => ChaCha8Rng::seed_from_u64(self.seed).fill_bytes(&mut bytes),
            Kind::Weights => {
                ChaCha8Rng::seed_from_u64(self.seed).fill_bytes(&mut bytes);
                for pair in bytes.as_chunks_mut().0 {
                    let value = f32::from(i16::from_le_bytes(*pair)) / f32::from(i16::MAX) * 0.03;
                    *pair = bf16::from_f32(value).to_le_bytes();
                }
            }
        }
        bytes.into()
    }

    fn data_len(&self) -> usize {
        let values: usize = self.shape.iter().product();
        if self.dtype() == Dtype::BF16 { 2 * values } else { values }
    }
}
