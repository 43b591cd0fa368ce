use lathe_kernels::{ClampedSwiGlu, RouterSoftmax};
use serde_json::Value;

use super::RopeScaling;
use crate::{Error, Result, family::ModelFamily};

/// More than any model has. Lists of so many are made before a file's tensors are looked at.
const MAX_LAYERS: usize = 10_000;
/// No width, vocabulary or context of a model is larger.
const MAX_SIZE: usize = 1 << 24;

/// Everything about a decoder's shape, from `config.json` or a GGUF's metadata.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub family: ModelFamily,
    pub hidden_size: usize,
    /// Of one expert where there are any.
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    pub tie_word_embeddings: bool,
    /// How many tokens each layer sees, its own included; `None` is all of them.
    pub windows: Vec<Option<usize>>,
    pub experts: Option<ExpertsConfig>,
}

/// The shape of a mixture of experts.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertsConfig {
    pub num_experts: usize,
    pub experts_per_token: usize,
    pub activation: ClampedSwiGlu,
    pub router_softmax: RouterSoftmax,
    /// Layers that have a plain MLP instead, and its inner width.
    pub dense_layers: Vec<usize>,
    pub dense_intermediate_size: usize,
}

impl ExpertsConfig {
    /// gpt-oss' activation; its config names no other.
    pub(super) const GPT_OSS: ClampedSwiGlu = ClampedSwiGlu { alpha: 1.702, limit: 7.0, offset: 1.0 };
}

impl ModelConfig {
    /// From a `config.json` in transformers' v4 (`rope_theta`, `rope_scaling`) or v5 (`rope_parameters`) spelling.
    pub fn from_json(json: &Value) -> Result<Self> {
        let family = match json.get("model_type").and_then(Value::as_str) {
            Some(name) => ModelFamily::by_name(name)?,
            None => return Err(Error::model("config.json has no model_type")),
        };
        if let Some(format) = quantized_format(json).filter(|format| !family.reads_quantized(format)) {
            return Err(Error::model(format!(
                "Weights quantised with {format:?} are not supported by this version"
            ))
            .hint("use the unquantised model, or a GGUF of it"));
        }
        let activation = json.get("hidden_act").and_then(Value::as_str).unwrap_or("silu");
        if activation != "silu" {
            return Err(Error::model(format!("Activation {activation:?} is not supported, only \"silu\"")));
        }
        if json.get("use_sliding_window").and_then(Value::as_bool) == Some(true) {
            return Err(Error::model("Sliding-window attention is not supported by this version"));
        }
        let size = |key: &str| {
            json.get(key)
                .and_then(Value::as_u64)
                .map(|value| value as usize)
                .ok_or_else(|| Error::model(format!("config.json has no whole number {key:?}")))
        };
        let number = |key: &str| json.get(key).and_then(Value::as_f64);
        let hidden_size = size("hidden_size")?;
        let num_heads = size("num_attention_heads")?;
        let rope =
            json.get("rope_parameters").or_else(|| json.get("rope_scaling")).filter(|value| !value.is_null());
        let num_layers = checked_layers(size("num_hidden_layers")?)?;
        let config = Self {
            family,
            hidden_size,
            intermediate_size: size(match family {
                ModelFamily::Qwen3Moe => "moe_intermediate_size",
                _ => "intermediate_size",
            })?,
            num_layers,
            num_heads,
            num_kv_heads: size("num_key_value_heads").unwrap_or(num_heads),
            head_dim: size("head_dim").unwrap_or(hidden_size / num_heads.max(1)),
            vocab_size: size("vocab_size")?,
            max_position_embeddings: size("max_position_embeddings").unwrap_or(2048),
            rms_norm_eps: number("rms_norm_eps").unwrap_or(1e-6),
            rope_theta: rope
                .and_then(|rope| rope.get("rope_theta"))
                .and_then(Value::as_f64)
                .or_else(|| number("rope_theta"))
                .unwrap_or(10_000.0),
            rope_scaling: rope.map_or(Ok(RopeScaling::None), RopeScaling::from_json)?,
            tie_word_embeddings: json.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
            windows: windows_from_json(json, family, num_layers)?,
            experts: experts_from_json(json, family, num_layers)?,
        };
        config.check()
    }

    pub(super) fn check(self) -> Result<Self> {
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_layers),
            ("num_attention_heads", self.num_heads),
            ("num_key_value_heads", self.num_kv_heads),
            ("head_dim", self.head_dim),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        if let Some((name, size)) = sizes.iter().find(|(_, size)| !(1..=MAX_SIZE).contains(size)) {
            return Err(Error::model(format!("The model's config says {name} is {size}")));
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) || !self.head_dim.is_multiple_of(2) {
            return Err(Error::model(format!(
                "{} attention heads of {} cannot share {} key/value heads",
                self.num_heads, self.head_dim, self.num_kv_heads
            )));
        }
        if let Some(ExpertsConfig { num_experts, experts_per_token, .. }) = &self.experts
            && !(1..=*num_experts).contains(experts_per_token)
        {
            return Err(Error::model(format!(
                "The model's config says {experts_per_token} of {num_experts} experts run for a token"
            )));
        }
        Ok(self)
    }

    /// The rotary inverse frequencies (D/2), computed in f32 as transformers does.
    ///
    /// `factors` (a GGUF's `rope_freqs.weight`) divide them.
    pub fn inverse_frequencies(&self, factors: Option<&[f32]>) -> Vec<f32> {
        let half = self.head_dim / 2;
        let plain = (0..half).map(|i| {
            let exponent = (2 * i) as f32 / self.head_dim as f32;
            1.0 / (self.rope_theta as f32).powf(exponent)
        });
        let mut frequencies: Vec<f32> = plain
            .enumerate()
            .map(|(i, frequency)| frequency / factors.and_then(|f| f.get(i)).copied().unwrap_or(1.0))
            .collect();
        self.rope_scaling.stretch(&mut frequencies, self.rope_theta);
        frequencies
    }
}

/// Errors: more layers than any model has.
pub(super) fn checked_layers(num_layers: usize) -> Result<usize> {
    if num_layers > MAX_LAYERS {
        return Err(Error::model(format!("The model's config says it has {num_layers} layers")));
    }
    Ok(num_layers)
}

/// The `quant_method` of the weights; "nf4" where it is bitsandbytes' and they are in NF4.
fn quantized_format(json: &Value) -> Option<&str> {
    let config = json.get("quantization_config")?;
    match config.get("quant_method")?.as_str()? {
        "bitsandbytes" if config.get("load_in_4bit")?.as_bool()? => {
            config.get("bnb_4bit_quant_type")?.as_str()
        }
        method => Some(method),
    }
}

/// The window of each layer, by `layer_types`.
fn windows_from_json(json: &Value, family: ModelFamily, num_layers: usize) -> Result<Vec<Option<usize>>> {
    if !family.has_sliding_layers() {
        return Ok(vec![None; num_layers]);
    }
    let window = json.get("sliding_window").and_then(Value::as_u64).filter(|window| *window > 0);
    let window = window
        .map(|window| window as usize)
        .ok_or_else(|| Error::model("config.json has no whole number \"sliding_window\" above 0"))?;
    let Some(layer_types) = json.get("layer_types").and_then(Value::as_array) else {
        // transformers' default: every other layer, from the first.
        return Ok((0..num_layers).map(|layer| (layer % 2 == 0).then_some(window)).collect());
    };
    if layer_types.len() != num_layers {
        return Err(Error::model(format!(
            "config.json has {} layer_types for {num_layers} layers",
            layer_types.len()
        )));
    }
    layer_types
        .iter()
        .map(|layer_type| match layer_type.as_str() {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") => Ok(Some(window)),
            _ => Err(Error::model(format!("Attention of type {layer_type} is not supported"))
                .hint("supported are full_attention and sliding_attention")),
        })
        .collect()
}

fn experts_from_json(json: &Value, family: ModelFamily, num_layers: usize) -> Result<Option<ExpertsConfig>> {
    let size = |key: &str| {
        json.get(key)
            .and_then(Value::as_u64)
            .map(|value| value as usize)
            .ok_or_else(|| Error::model(format!("config.json has no whole number {key:?}")))
    };
    let number = |key: &str| json.get(key).and_then(Value::as_f64).map(|value| value as f32);
    let experts_per_token = || size("num_experts_per_tok");
    match family {
        ModelFamily::Llama | ModelFamily::Qwen2 | ModelFamily::Qwen3 => Ok(None),
        ModelFamily::Qwen3Moe => {
            let step = size("decoder_sparse_step").unwrap_or(1).max(1);
            let mlp_only: Vec<usize> = match json.get("mlp_only_layers").and_then(Value::as_array) {
                Some(layers) => layers.iter().filter_map(Value::as_u64).map(|layer| layer as usize).collect(),
                None => Vec::new(),
            };
            let is_dense = |layer: &usize| mlp_only.contains(layer) || !(layer + 1).is_multiple_of(step);
            let dense_layers: Vec<usize> = (0..num_layers).filter(is_dense).collect();
            let sums_to_one = json.get("norm_topk_prob").and_then(Value::as_bool) == Some(true);
            Ok(Some(ExpertsConfig {
                // transformers 5 writes the latter.
                num_experts: size("num_experts").or_else(|_| size("num_local_experts"))?,
                experts_per_token: experts_per_token()?,
                activation: ClampedSwiGlu::PLAIN,
                // A softmax over all experts, its top-k made to sum to 1, is that over the top-k.
                router_softmax: if sums_to_one { RouterSoftmax::Chosen } else { RouterSoftmax::All },
                dense_intermediate_size: if dense_layers.is_empty() { 0 } else { size("intermediate_size")? },
                dense_layers,
            }))
        }
        ModelFamily::GptOss => Ok(Some(ExpertsConfig {
            num_experts: size("num_local_experts")?,
            experts_per_token: experts_per_token()?,
            activation: ClampedSwiGlu {
                alpha: number("swiglu_alpha").unwrap_or(ExpertsConfig::GPT_OSS.alpha),
                limit: number("swiglu_limit").unwrap_or(ExpertsConfig::GPT_OSS.limit),
                ..ExpertsConfig::GPT_OSS
            },
            router_softmax: RouterSoftmax::Chosen,
            dense_layers: Vec::new(),
            dense_intermediate_size: 0,
        })),
    }
}
