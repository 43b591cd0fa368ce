//! Models of random weights in given shapes, as folders that transformers reads, too.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
};

use half::bf16;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

/// Values that are drawn; larger tensors repeat them.
const DRAWN: usize = 1 << 20;

/// What decides a model's size.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub name: &'static str,
    pub num_layers: usize,
    pub hidden: usize,
    /// Of the MLP, or of each expert.
    pub intermediate: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Qwen3,
    /// With experts in MXFP4, four a token.
    GptOss {
        num_experts: usize,
        window: usize,
    },
}

pub const QWEN3_14B: Shape = Shape {
    name: "Qwen3-14B",
    num_layers: 40,
    hidden: 5120,
    intermediate: 17_408,
    num_heads: 40,
    num_kv_heads: 8,
    head_dim: 128,
    vocab_size: 151_936,
    kind: Kind::Qwen3,
};

pub const GPT_OSS_20B: Shape = Shape {
    name: "gpt-oss-20b",
    num_layers: 24,
    hidden: 2880,
    intermediate: 2880,
    num_heads: 64,
    num_kv_heads: 8,
    head_dim: 64,
    vocab_size: 201_088,
    kind: Kind::GptOss { num_experts: 32, window: 128 },
};

pub const TINY_QWEN3: Shape = Shape {
    name: "tiny Qwen3",
    num_layers: 2,
    hidden: 64,
    intermediate: 192,
    num_heads: 4,
    num_kv_heads: 2,
    head_dim: 32,
    vocab_size: 320,
    kind: Kind::Qwen3,
};

pub const TINY_GPT_OSS: Shape = Shape {
    name: "tiny gpt-oss",
    num_layers: 2,
    hidden: 64,
    intermediate: 64,
    num_heads: 4,
    num_kv_heads: 2,
    head_dim: 32,
    vocab_size: 320,
    kind: Kind::GptOss { num_experts: 8, window: 16 },
};

/// A tensor to write.
struct Entry {
    name: String,
    dims: Vec<usize>,
    fill: Fill,
}

#[derive(Clone, Copy)]
enum Fill {
    /// bf16 ones.
    Ones,
    /// bf16, normally distributed with this deviation.
    Normal(f32),
    /// Bytes of any value.
    Codes,
    /// Bytes of this value.
    Scale(u8),
}

impl Fill {
    fn width(self) -> usize {
        match self {
            Self::Ones | Self::Normal(_) => 2,
            Self::Codes | Self::Scale(_) => 1,
        }
    }
}

/// Writes `config.json` and `model.safetensors`. Returns the latter's size in bytes.
pub fn write(folder: &Path, shape: &Shape, seed: u64) -> std::io::Result<u64> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("config.json"), config(shape).to_string())?;
    let entries = entries(shape);
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut end = 0;
    for Entry { name, dims, fill } in &entries {
        let start = end;
        end += dims.iter().product::<usize>() * fill.width();
        let dtype = if fill.width() == 2 { "BF16" } else { "U8" };
        header.insert(name.clone(), json!({"dtype": dtype, "shape": dims, "data_offsets": [start, end]}));
    }
    let mut header = Value::from(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = BufWriter::with_capacity(1 << 20, File::create(folder.join("model.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let normal: Vec<f32> =
        (0..DRAWN).map(|_| (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0).collect();
    let mut codes = vec![0u8; DRAWN];
    rng.fill_bytes(&mut codes);
    for Entry { dims, fill, .. } in &entries {
        let size = dims.iter().product::<usize>() * fill.width();
        let one: Vec<u8> = match fill {
            Fill::Ones => bf16::ONE.to_le_bytes().repeat(size / 2),
            Fill::Normal(deviation) => {
                normal.iter().flat_map(|value| bf16::from_f32(value * deviation).to_le_bytes()).collect()
            }
            Fill::Codes => codes.clone(),
            Fill::Scale(scale) => vec![*scale; size.min(DRAWN)],
        };
        // Each tensor begins elsewhere in what was drawn.
        let mut at = rng.random_range(0..one.len() / 2) * 2;
        let mut left = size;
        while left > 0 {
            let count = left.min(one.len() - at);
            file.write_all(&one[at..at + count])?;
            (left, at) = (left - count, 0);
        }
    }
    file.flush()?;
    Ok(8 + header.len() as u64 + end as u64)
}

fn config(shape: &Shape) -> Value {
    let Shape { num_layers, hidden, intermediate, num_heads, num_kv_heads, head_dim, vocab_size, .. } =
        *shape;
    let mut config = json!({
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab_size,
        "tie_word_embeddings": false,
        "attention_dropout": 0.0,
        "use_cache": true,
        "torch_dtype": "bfloat16",
    });
    let more = match shape.kind {
        Kind::Qwen3 => json!({
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "attention_bias": false,
            "max_position_embeddings": 40_960,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "use_sliding_window": false,
        }),
        Kind::GptOss { num_experts, window } => {
            let kind =
                |layer: usize| if layer.is_multiple_of(2) { "sliding_attention" } else { "full_attention" };
            json!({
                "architectures": ["GptOssForCausalLM"],
                "model_type": "gpt_oss",
                "attention_bias": true,
                "layer_types": (0..num_layers).map(kind).collect::<Vec<_>>(),
                "num_local_experts": num_experts,
                "num_experts_per_tok": 4,
                "sliding_window": window,
                "swiglu_limit": 7.0,
                "max_position_embeddings": 131_072,
                "rms_norm_eps": 1e-5,
                "rope_theta": 150_000.0,
                "rope_scaling": {
                    "beta_fast": 32.0,
                    "beta_slow": 1.0,
                    "factor": 32.0,
                    "original_max_position_embeddings": 4096,
                    "rope_type": "yarn",
                    "truncate": false,
                },
                "quantization_config": {
                    "quant_method": "mxfp4",
                    "modules_to_not_convert": [
                        "model.layers.*.self_attn",
                        "model.layers.*.mlp.router",
                        "model.embed_tokens",
                        "lm_head",
                    ],
                },
            })
        }
    };
    if let (Value::Object(config), Value::Object(more)) = (&mut config, more) {
        config.extend(more);
    }
    config
}

fn entries(shape: &Shape) -> Vec<Entry> {
    let Shape {
        num_layers, hidden, intermediate, num_heads, num_kv_heads, head_dim, vocab_size, kind, ..
    } = *shape;
    let mut entries = Vec::new();
    let mut push =
        |name: String, dims: &[usize], fill| entries.push(Entry { name, dims: dims.to_vec(), fill });
    // Sums over a row of inputs with deviation 1 have about deviation 1.
    let matrix = |in_features: usize| Fill::Normal(1.0 / (in_features as f32).sqrt());
    let small = Fill::Normal(0.1);
    push("model.embed_tokens.weight".into(), &[vocab_size, hidden], Fill::Normal(1.0));
    push("lm_head.weight".into(), &[vocab_size, hidden], matrix(hidden));
    push("model.norm.weight".into(), &[hidden], Fill::Ones);
    for layer in 0..num_layers {
        let layer = format!("model.layers.{layer}");
        push(format!("{layer}.input_layernorm.weight"), &[hidden], Fill::Ones);
        push(format!("{layer}.post_attention_layernorm.weight"), &[hidden], Fill::Ones);
        let widths = [
            ("q_proj", num_heads * head_dim, hidden),
            ("k_proj", num_kv_heads * head_dim, hidden),
            ("v_proj", num_kv_heads * head_dim, hidden),
            ("o_proj", hidden, num_heads * head_dim),
        ];
        for (name, outputs, inputs) in widths {
            push(format!("{layer}.self_attn.{name}.weight"), &[outputs, inputs], matrix(inputs));
            if kind != Kind::Qwen3 {
                push(format!("{layer}.self_attn.{name}.bias"), &[outputs], small);
            }
        }
        match kind {
            Kind::Qwen3 => {
                for name in ["q_norm", "k_norm"] {
                    push(format!("{layer}.self_attn.{name}.weight"), &[head_dim], Fill::Ones);
                }
                for (name, outputs, inputs) in [
                    ("gate_proj", intermediate, hidden),
                    ("up_proj", intermediate, hidden),
                    ("down_proj", hidden, intermediate),
                ] {
                    push(format!("{layer}.mlp.{name}.weight"), &[outputs, inputs], matrix(inputs));
                }
            }
            Kind::GptOss { num_experts, .. } => {
                push(format!("{layer}.self_attn.sinks"), &[num_heads], Fill::Normal(1.0));
                push(format!("{layer}.mlp.router.weight"), &[num_experts, hidden], matrix(hidden));
                push(format!("{layer}.mlp.router.bias"), &[num_experts], small);
                for (name, outputs, inputs) in
                    [("gate_up_proj", 2 * intermediate, hidden), ("down_proj", hidden, intermediate)]
                {
                    let module = format!("{layer}.mlp.experts.{name}");
                    // Codes have a root mean square of 3.
                    let scale = 127.0 - (3.0 * (inputs as f32).sqrt()).log2();
                    push(format!("{module}_bias"), &[num_experts, outputs], small);
                    push(format!("{module}_blocks"), &[num_experts, outputs, inputs / 32, 16], Fill::Codes);
                    push(
                        format!("{module}_scales"),
                        &[num_experts, outputs, inputs / 32],
                        Fill::Scale(scale as u8),
                    );
                }
            }
        }
    }
    entries
}
