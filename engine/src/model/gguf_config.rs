//! A decoder's shape from a GGUF's metadata.

use lathe_kernels::{ClampedSwiGlu, RouterSoftmax};

use super::{ExpertsConfig, ModelConfig, RopeScaling, Yarn, config::checked_layers};
use crate::{
    Error, Result,
    family::ModelFamily,
    gguf::{GgufMetadata, Value},
};

/// Look-ups of the keys that begin with the architecture's name.
struct Keys<'a> {
    metadata: &'a GgufMetadata<'a>,
    architecture: &'a str,
}

impl Keys<'_> {
    fn number(&self, key: &str) -> Result<f64> {
        self.metadata.number(&format!("{}.{key}", self.architecture))
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.number(key).map(|value| value as usize)
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(&format!("{}.{key}", self.architecture)).ok()
    }
}

impl ModelConfig {
    /// From a GGUF's metadata; `tied` is whether it lacks an output projection of its own.
    pub fn from_gguf(metadata: &GgufMetadata<'_>, tied: bool, vocab_size: usize) -> Result<Self> {
        let architecture = metadata.string("general.architecture")?;
        let family = ModelFamily::by_name(architecture)?;
        let keys = Keys { metadata, architecture };
        let hidden_size = keys.size("embedding_length")?;
        let num_heads = keys.size("attention.head_count")?;
        let num_layers = checked_layers(keys.size("block_count")?)?;
        let intermediate_size = match keys.size("expert_feed_forward_length") {
            Ok(size) if family.has_experts() => size,
            _ => keys.size("feed_forward_length")?,
        };
        let config = Self {
            family,
            hidden_size,
            intermediate_size,
            num_layers,
            num_heads,
            num_kv_heads: keys.size("attention.head_count_kv").unwrap_or(num_heads),
            head_dim: keys.size("attention.key_length").unwrap_or(hidden_size / num_heads.max(1)),
            vocab_size,
            max_position_embeddings: keys.size("context_length").unwrap_or(2048),
            rms_norm_eps: keys.number("attention.layer_norm_rms_epsilon")?,
            rope_theta: keys.number("rope.freq_base").unwrap_or(10_000.0),
            rope_scaling: rope_scaling(&keys, family)?,
            tie_word_embeddings: tied,
            windows: windows(&keys, family, num_layers)?,
            experts: family.has_experts().then(|| experts(&keys, family)).transpose()?,
        };
        config.check()
    }
}

fn rope_scaling(keys: &Keys<'_>, family: ModelFamily) -> Result<RopeScaling> {
    let kind = match keys.value("rope.scaling.type") {
        None => return Ok(RopeScaling::None),
        Some(Value::String(kind)) => kind.as_str(),
        Some(other) => return Err(Error::model(format!("RoPE scaling {other:?} is no name"))),
    };
    match kind {
        "none" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: keys.number("rope.scaling.factor")? }),
        "yarn" => {
            let factor = keys.number("rope.scaling.factor")?;
            let scale = keys.number("rope.scaling.attn_factor").unwrap_or(1.0);
            Ok(RopeScaling::Yarn(Yarn {
                factor,
                attention_factor: scale * (1.0 + 0.1 * factor.max(1.0).ln()),
                beta_fast: keys.number("rope.scaling.yarn_beta_fast").unwrap_or(32.0),
                beta_slow: keys.number("rope.scaling.yarn_beta_slow").unwrap_or(1.0),
                // No key says so; gpt-oss was trained without, though llama.cpp rounds always.
                truncate: family != ModelFamily::GptOss,
                original_max_position_embeddings: keys.number("rope.scaling.original_context_length")?,
            }))
        }
        other => Err(Error::model(format!("RoPE scaling {other:?} is not supported by this version"))
            .hint("supported are none, linear and yarn")),
    }
}

/// Every other layer slides, from the first, unless the pattern says which do.
fn windows(keys: &Keys<'_>, family: ModelFamily, num_layers: usize) -> Result<Vec<Option<usize>>> {
    if !family.has_sliding_layers() {
        return Ok(vec![None; num_layers]);
    }
    let window = keys.size("attention.sliding_window")?;
    if window == 0 {
        return Err(Error::model("The GGUF's attention.sliding_window is 0"));
    }
    let slides: Vec<bool> = match keys.value("attention.sliding_window_pattern") {
        Some(Value::Array(layers)) => layers.iter().map(|slides| *slides == Value::Bool(true)).collect(),
        // Of so many layers the last is full.
        Some(Value::Integer(period @ 1..)) => {
            (1..=num_layers as i64).map(|layer| layer % period != 0).collect()
        }
        _ => (0..num_layers).map(|layer| layer % 2 == 0).collect(),
    };
    if slides.len() != num_layers {
        return Err(Error::model(format!(
            "The GGUF's sliding_window_pattern has {} entries for {num_layers} layers",
            slides.len()
        )));
    }
    Ok(slides.into_iter().map(|slides| slides.then_some(window)).collect())
}

fn experts(keys: &Keys<'_>, family: ModelFamily) -> Result<ExpertsConfig> {
    let sums_to_one = keys.value("expert_weights_norm") != Some(&Value::Bool(false));
    Ok(ExpertsConfig {
        num_experts: keys.size("expert_count")?,
        experts_per_token: keys.size("expert_used_count")?,
        activation: if family == ModelFamily::GptOss { ExpertsConfig::GPT_OSS } else { ClampedSwiGlu::PLAIN },
        router_softmax: if sums_to_one { RouterSoftmax::Chosen } else { RouterSoftmax::All },
        dense_layers: Vec::new(),
        dense_intermediate_size: 0,
    })
}
