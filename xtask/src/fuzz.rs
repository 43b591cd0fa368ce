//! `cargo xtask fuzz`: foreign bytes by the million at every parser that eats them.
//!
//! Needs cargo-fuzz (`cargo install cargo-fuzz`). Without a sanitizer it builds with stable Rust; what it looks for is
//! panics, hangs and memory, not unsafe code.

use std::{collections::BTreeMap, io::Write as _, path::Path};

use anyhow::{Result, bail};
use clap::Args as ClapArgs;
use flate2::{Compression, write::GzEncoder};
use lathe_protocol::{EventBody, LogLevel, Request, write_frame};

use crate::repo;

const TARGETS: [&str; 7] = ["adapter", "frames", "gguf", "harmony", "rows", "safetensors", "template"];
const MAX_INPUT_BYTES: usize = 16 << 10;
const TIMEOUT_SECONDS: usize = 20;
const MAX_MEMORY_MIB: usize = 1024;

#[derive(ClapArgs)]
pub struct Args {
    /// Which parsers [default: all]
    #[arg(value_parser = TARGETS)]
    targets: Vec<String>,
    /// Inputs for each
    #[arg(long, default_value_t = 1_000_000)]
    runs: u64,
}

pub fn fuzz(args: &Args) -> Result<()> {
    let all = TARGETS.map(String::from);
    let targets = if args.targets.is_empty() { all.as_slice() } else { &args.targets };
    for target in targets {
        let corpus = repo::root().join("fuzz/corpus").join(target);
        repo::create_dir_all(&corpus)?;
        for (index, seed) in seeds(target)?.into_iter().enumerate() {
            repo::write(&corpus.join(format!("seed-{index}")), seed)?;
        }
        let mut command = repo::cargo();
        command.args(["fuzz", "run", "--fuzz-dir", "fuzz", "--sanitizer", "none", target, "--"]);
        command.arg(format!("-runs={}", args.runs));
        command.arg(format!("-max_len={MAX_INPUT_BYTES}"));
        command.arg(format!("-timeout={TIMEOUT_SECONDS}"));
        command
            .args([format!("-rss_limit_mb={MAX_MEMORY_MIB}"), format!("-malloc_limit_mb={MAX_MEMORY_MIB}")]);
        repo::run(&mut command)?;
    }
    Ok(())
}

/// Sound inputs, from which the broken ones are made.
fn seeds(target: &str) -> Result<Vec<Vec<u8>>> {
    let golden = |name: &str| read(&format!("tests/golden/data/{name}"));
    Ok(match target {
        "adapter" => vec![
            adapter(&golden("tiny-llama/adapter/adapter_config.json")?, &[]),
            adapter(&golden("tiny-llama/init/adapter_config.json")?, STYLES.as_bytes()),
        ],
        "frames" => frames()?,
        "gguf" => vec![gguf()],
        "harmony" => HARMONY.iter().map(|text| text.as_bytes().to_vec()).collect(),
        "rows" => rows()?,
        "safetensors" => {
            vec![safetensors(&[("a.weight", "F32", &[2, 3]), ("b", "BF16", &[4]), ("c", "U8", &[3])])]
        }
        "template" => templates()?,
        _ => bail!("no target {target:?}"),
    })
}

fn read(path: &str) -> Result<Vec<u8>> {
    let path = repo::root().join(path);
    Ok(repo::read_to_string(&path)?.into_bytes())
}

const STYLES: &str = r#"{"styles": [{"name": "terse", "token": "<|terse|>", "max_new_tokens": 32}]}"#;

const HARMONY: [&str; 3] = [
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
    "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"a\": 1}<|call|>",
    "<|channel|>final<|message|>A <|start|>assistant<|channel|>final<|message|>B",
];

/// The three files, each behind its length.
fn adapter(config: &[u8], styles: &[u8]) -> Vec<u8> {
    let layer = "base_model.model.model.layers.0.self_attn.q_proj";
    let (a, b) = (format!("{layer}.lora_A.weight"), format!("{layer}.lora_B.weight"));
    let weights = safetensors(&[(&a, "F32", &[4, 32]), (&b, "F32", &[32, 4])]);
    let mut seed = Vec::new();
    for file in [config, styles, &weights] {
        seed.extend((file.len() as u16).to_le_bytes());
        seed.extend(file);
    }
    seed
}

fn frames() -> Result<Vec<Vec<u8>>> {
    let mut seeds = Vec::new();
    let log = EventBody::Log { level: LogLevel::Warn, message: "ü".into() };
    let progress = EventBody::Progress { what: "Loading".into(), done: 1, total: 2 };
    for event in [log, progress] {
        let mut frame = Vec::new();
        write_frame(&mut frame, &event)?;
        seeds.push(frame[4..].to_vec());
        seeds.push(frame);
    }
    seeds.push(serde_json::to_vec(&Request::Stop)?);
    Ok(seeds)
}

/// A file of one key of each kind and one tensor.
fn gguf() -> Vec<u8> {
    let mut file = b"GGUF".to_vec();
    file.extend(3_u32.to_le_bytes());
    file.extend(1_u64.to_le_bytes());
    let string = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let strings = |texts: &[&str]| {
        let mut list = [&8_u32.to_le_bytes()[..], &(texts.len() as u64).to_le_bytes()].concat();
        list.extend(texts.iter().flat_map(|text| string(text)));
        list
    };
    let number = |value: u32| value.to_le_bytes().to_vec();
    let keys: [(&str, u32, Vec<u8>); 14] = [
        ("general.architecture", 8, string("llama")),
        ("llama.block_count", 4, number(1)),
        ("llama.embedding_length", 4, number(32)),
        ("llama.feed_forward_length", 4, number(32)),
        ("llama.attention.head_count", 4, number(2)),
        ("llama.context_length", 4, number(64)),
        ("llama.attention.layer_norm_rms_epsilon", 6, 1e-5_f32.to_le_bytes().to_vec()),
        ("llama.vocab_size", 4, number(4)),
        ("tokenizer.ggml.model", 8, string("gpt2")),
        ("tokenizer.ggml.pre", 8, string("qwen2")),
        ("tokenizer.ggml.tokens", 9, strings(&["a", "b", "ab", "<|end|>"])),
        ("tokenizer.ggml.merges", 9, strings(&["a b"])),
        ("tokenizer.ggml.eos_token_id", 4, number(3)),
        ("tokenizer.chat_template", 8, string("{{ messages[0].content }}")),
    ];
    file.extend((keys.len() as u64).to_le_bytes());
    for (key, kind, value) in keys {
        file.extend([string(key), number(kind), value].concat());
    }
    file.extend(string("token_embd.weight"));
    file.extend(number(2));
    file.extend([32_u64, 4].map(u64::to_le_bytes).concat());
    // Q4_0: 18 bytes for 32 values.
    file.extend([number(2), 0_u64.to_le_bytes().to_vec()].concat());
    file.resize(file.len().next_multiple_of(32) + 4 * 18, 0x33);
    file
}

fn rows() -> Result<Vec<Vec<u8>>> {
    let texts = [
        (0, r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}"#),
        (0, "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"\", \"completion\": \"ü\"}\n"),
        (0, r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}"#),
        (0, r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#),
        (1, r#"[{"instruction": "a", "input": "", "output": "b"}]"#),
        (2, "instruction,output\n\"a, b\",c\n"),
        (3, "Some text.\n\nMore of it.\n"),
        (4, "question\tanswer\na\tb\n"),
    ];
    let mut seeds: Vec<Vec<u8>> =
        texts.iter().map(|(format, text)| [&[*format], text.as_bytes()].concat()).collect();
    let mut gzip = GzEncoder::new(vec![5], Compression::default());
    gzip.write_all(texts[0].1.as_bytes())?;
    seeds.push(gzip.finish()?);
    for entry in std::fs::read_dir(repo::root().join("tests/data/parquet"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "parquet") {
            seeds.push([vec![6], std::fs::read(path)?].concat());
        }
    }
    Ok(seeds)
}

/// A file of tensors of zeros.
fn safetensors(tensors: &[(&str, &str, &[usize])]) -> Vec<u8> {
    let mut header = BTreeMap::new();
    let mut end = 0;
    for (name, dtype, shape) in tensors {
        let width = match *dtype {
            "F32" => 4,
            "BF16" => 2,
            _ => 1,
        };
        let start = end;
        end += width * shape.iter().product::<usize>();
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
        header.insert(*name, entry);
    }
    let header = serde_json::json!(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; end]].concat()
}

fn templates() -> Result<Vec<Vec<u8>>> {
    let folder = repo::root().join("chat_templates");
    let mut seeds = vec![
        b"{% set ns = namespace(a=1) %}{% for m in messages %}{{ m | tojson(indent=2) }}{% endfor %}"
            .to_vec(),
        b"{{ strftime_now('%Y') }}{{ messages[0].content.strip().split(' ')[-1] }}".to_vec(),
    ];
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        if is_template(&path) {
            seeds.push(std::fs::read(path)?);
        }
    }
    Ok(seeds)
}

fn is_template(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "jinja")
}
