//! What follows from a model's architecture: the one place that tells the families apart.

mod explain;

pub use explain::explain;

use crate::{Error, Result};

/// The architectures that Lathe trains and runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelFamily {
    Llama,
    Qwen2,
    Qwen3,
    /// Qwen3 with experts.
    Qwen3Moe,
    /// Mixture of experts, with attention sinks and sliding windows.
    GptOss,
}

const SUPPORTED: &str = "llama (Llama 3, SmolLM2), qwen2 (Qwen2.5), qwen3, qwen3_moe, gpt_oss";

impl ModelFamily {
    /// By `model_type` of a `config.json`, or `general.architecture` of a GGUF.
    pub fn by_name(name: &str) -> Result<Self> {
        match name {
            "llama" => Ok(Self::Llama),
            "qwen2" => Ok(Self::Qwen2),
            "qwen3" => Ok(Self::Qwen3),
            "qwen3_moe" | "qwen3moe" => Ok(Self::Qwen3Moe),
            "gpt_oss" | "gpt-oss" => Ok(Self::GptOss),
            _ => Err(Error::model(format!("Architecture {name:?} is not supported"))
                .hint(format!("supported are {SUPPORTED}"))),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Qwen3Moe => "qwen3_moe",
            Self::GptOss => "gpt_oss",
        }
    }

    /// Whether q and k are normed head by head. Biases need no such answer: they are where the weights have them.
    pub fn has_head_norms(self) -> bool {
        matches!(self, Self::Qwen3 | Self::Qwen3Moe)
    }

    /// Whether each head has a learned logit that takes part of the softmax and adds nothing.
    pub fn has_sinks(self) -> bool {
        self == Self::GptOss
    }

    /// Whether `layer_types` makes some layers see only the last `sliding_window` tokens.
    pub fn has_sliding_layers(self) -> bool {
        self == Self::GptOss
    }

    /// Whether the MLP is a router and its experts.
    pub fn has_experts(self) -> bool {
        matches!(self, Self::Qwen3Moe | Self::GptOss)
    }

    /// Whether weights in this format can be read. MXFP4 holds experts only, NF4 linears only.
    pub fn reads_quantized(self, format: &str) -> bool {
        match format {
            "mxfp4" => self == Self::GptOss,
            "nf4" => true,
            _ => false,
        }
    }

    /// Whether llama.cpp's converter interleaves the two halves of q's and k's heads.
    pub fn interleaves_heads_in_gguf(self) -> bool {
        self == Self::Llama
    }

    /// What LoRA adapts unless told otherwise, which is every linear of the blocks: experts are no linears.
    pub fn default_targets(self) -> &'static [&'static str] {
        match self {
            Self::Llama | Self::Qwen2 | Self::Qwen3 => {
                &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
            }
            Self::Qwen3Moe | Self::GptOss => &["q_proj", "k_proj", "v_proj", "o_proj"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_has_its_name_and_others_are_told_which_there_are() {
        use ModelFamily::{GptOss, Llama, Qwen2, Qwen3, Qwen3Moe};
        for family in [Llama, Qwen2, Qwen3, Qwen3Moe, GptOss] {
            assert_eq!(ModelFamily::by_name(family.name()).ok(), Some(family));
            assert!(SUPPORTED.contains(family.name()));
        }
        for name in lathe_protocol::MODEL_TYPES {
            assert!(ModelFamily::by_name(name).is_ok(), "{name} is found on the Hub, not here");
        }
        let Err(Error::Invalid { message, hint, .. }) = ModelFamily::by_name("mamba") else {
            panic!("mamba was taken for a decoder")
        };
        assert_eq!(message, "Architecture \"mamba\" is not supported");
        assert!(hint.is_some_and(|hint| hint.contains("gpt_oss")));
    }
}
