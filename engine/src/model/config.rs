use serde_json::Value;

use crate::{Error, Result, gguf::GgufMetadata};

/// The architectures that Lathe trains and runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelFamily {
    Llama,
    Qwen2,
    Qwen3,
}

const SUPPORTED: &str = "llama (Llama 3, SmolLM2), qwen2 (Qwen2.5), qwen3";

impl ModelFamily {
    /// By `model_type` of a `config.json`, or `general.architecture` of a GGUF.
    fn by_name(name: &str) -> Result<Self> {
        match name {
            "llama" => Ok(Self::Llama),
            "qwen2" => Ok(Self::Qwen2),
            "qwen3" => Ok(Self::Qwen3),
            _ => Err(Error::model(format!("Architecture {name:?} is not supported"))
                .hint(format!("supported are {SUPPORTED}"))),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

/// How the rotary frequencies are stretched beyond the trained length.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// Positions divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Llama 3: low frequencies divided by `factor`, high ones kept, those between interpolated.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: f64,
    },
}

/// Everything about a decoder's shape, from `config.json` or a GGUF's metadata.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub family: ModelFamily,
    pub hidden_size: usize,
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
}

impl ModelConfig {
    /// From a `config.json` in transformers' v4 (`rope_theta`, `rope_scaling`) or v5 (`rope_parameters`) spelling.
    pub fn from_json(json: &Value) -> Result<Self> {
        let family = match json.get("model_type").and_then(Value::as_str) {
            Some(name) => ModelFamily::by_name(name)?,
            None => return Err(Error::model("config.json has no model_type")),
        };
        if let Some(method) = json.pointer("/quantization_config/quant_method").and_then(Value::as_str) {
            return Err(Error::model(format!(
                "Weights quantised with {method:?} are not supported by this version"
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
        let config = Self {
            family,
            hidden_size,
            intermediate_size: size("intermediate_size")?,
            num_layers: size("num_hidden_layers")?,
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
            rope_scaling: rope.map_or(Ok(RopeScaling::None), rope_scaling_from_json)?,
            tie_word_embeddings: json.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
        };
        config.check()
    }

    /// From a GGUF's metadata; `tied` is whether it lacks an output projection of its own.
    pub fn from_gguf(metadata: &GgufMetadata<'_>, tied: bool, vocab_size: usize) -> Result<Self> {
        let architecture = metadata.string("general.architecture")?;
        let family = ModelFamily::by_name(&architecture)?;
        let size = |key: &str| metadata.number(&format!("{architecture}.{key}")).map(|value| value as usize);
        let hidden_size = size("embedding_length")?;
        let num_heads = size("attention.head_count")?;
        let rope_scaling = match metadata.string(&format!("{architecture}.rope.scaling.type")).as_deref() {
            Err(_) | Ok("none") => RopeScaling::None,
            Ok("linear") => RopeScaling::Linear {
                factor: metadata.number(&format!("{architecture}.rope.scaling.factor"))?,
            },
            Ok(other) => {
                return Err(Error::model(format!("RoPE scaling {other:?} is not supported by this version")));
            }
        };
        let config = Self {
            family,
            hidden_size,
            intermediate_size: size("feed_forward_length")?,
            num_layers: size("block_count")?,
            num_heads,
            num_kv_heads: size("attention.head_count_kv").unwrap_or(num_heads),
            head_dim: size("attention.key_length").unwrap_or(hidden_size / num_heads.max(1)),
            vocab_size,
            max_position_embeddings: size("context_length").unwrap_or(2048),
            rms_norm_eps: metadata.number(&format!("{architecture}.attention.layer_norm_rms_epsilon"))?,
            rope_theta: metadata.number(&format!("{architecture}.rope.freq_base")).unwrap_or(10_000.0),
            rope_scaling,
            tie_word_embeddings: tied,
        };
        config.check()
    }

    fn check(self) -> Result<Self> {
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
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(Error::model(format!("The model's config says {name} is 0")));
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) || !self.head_dim.is_multiple_of(2) {
            return Err(Error::model(format!(
                "{} attention heads of {} cannot share {} key/value heads",
                self.num_heads, self.head_dim, self.num_kv_heads
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
        plain
            .enumerate()
            .map(|(i, frequency)| frequency / factors.and_then(|f| f.get(i)).copied().unwrap_or(1.0))
            .map(|frequency| self.rope_scaling.apply(frequency))
            .collect()
    }
}

impl RopeScaling {
    /// Source: transformers' `_compute_llama3_parameters`.
    fn apply(&self, frequency: f32) -> f32 {
        match *self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor as f32,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let wavelength = 2.0 * std::f64::consts::PI / f64::from(frequency);
                if wavelength < original_max_position_embeddings / high_freq_factor {
                    return frequency;
                }
                if wavelength > original_max_position_embeddings / low_freq_factor {
                    return frequency / factor as f32;
                }
                let smooth = (original_max_position_embeddings / wavelength - low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
                ((1.0 - smooth) * f64::from(frequency) / factor + smooth * f64::from(frequency)) as f32
            }
        }
    }
}

fn rope_scaling_from_json(rope: &Value) -> Result<RopeScaling> {
    let kind =
        rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str).unwrap_or("default");
    let number = |key: &str| {
        rope.get(key)
            .and_then(Value::as_f64)
            .ok_or_else(|| Error::model(format!("RoPE scaling {kind:?} lacks the number {key:?}")))
    };
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: number("factor")? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_position_embeddings: number("original_max_position_embeddings")?,
        }),
        _ => Err(Error::model(format!("RoPE scaling {kind:?} is not supported by this version"))
            .hint("supported are default, linear and llama3")),
    }
}
