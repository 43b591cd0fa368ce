//! Models worth knowing, with or without a copy on this machine.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::{Gate, ModelShape};

/// A model of the Hugging Face Hub that this version can train.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogModel {
    /// Its Hub id.
    pub name: String,
    pub family: String,
    pub parameters: u64,
    pub download_bytes: u64,
    pub license: String,
    #[serde(default)]
    pub gate: Gate,
    /// In a sentence.
    pub good_for: String,
    pub shape: ModelShape,
}

static CATALOG: LazyLock<Vec<CatalogModel>> = LazyLock::new(|| {
    // The file is part of the program, and a test parses it.
    serde_json::from_str(include_str!("../../resources/catalog.json"))
        .unwrap_or_else(|error| panic!("resources/catalog.json: {error}"))
});

/// By family, small to large.
pub fn catalog() -> &'static [CatalogModel] {
    &CATALOG
}

pub fn in_catalog(name: &str) -> Option<&'static CatalogModel> {
    catalog().iter().find(|model| model.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ExpertFormat, Quant};

    #[test]
    fn the_shapes_give_the_parameters_told() {
        for model in catalog() {
            let (told, found) = (model.parameters as f64, model.shape.parameters() as f64);
            // All but biases and per-head norms; Qwen's experts have no biases.
            assert!((told - found).abs() / told < 8e-4, "{}: {told} told, {found} by shape", model.name);
        }
    }

    #[test]
    fn the_downloads_hold_two_bytes_a_weight_and_fewer_where_packed() {
        for model in catalog() {
            let shape = &model.shape;
            let packed = |is_packed: bool, count: usize| if is_packed { count as f64 } else { 0.0 };
            let experts = shape.experts.map_or(0, |experts| {
                shape.num_layers * experts.num_experts * 3 * shape.hidden_size * shape.intermediate_size
            });
            let format = shape.experts.map(|experts| experts.format);
            let heads = shape.num_attention_heads + shape.num_key_value_heads;
            let attention = shape.num_layers * 2 * shape.hidden_size * heads * shape.head_dim;
            let mxfp4 = packed(format == Some(ExpertFormat::Mxfp4), experts);
            let nf4 = packed(format == Some(ExpertFormat::Nf4Double), experts)
                + packed(shape.linears == Quant::Nf4Double, attention);
            // A scale of 8 bits for 64 values, and one of 32 for 256 of those.
            let nf4_bytes = 0.5 + 1.0 / 64.0 + 4.0 / (64.0 * 256.0);
            let rest = model.parameters as f64 - mxfp4 - nf4;
            let ratio = model.download_bytes as f64 / (2.0 * rest + mxfp4 * 17.0 / 32.0 + nf4 * nf4_bytes);
            // Qwen3's small ones hold their tied table twice.
            assert!((0.995..1.3).contains(&ratio), "{}: {ratio}", model.name);
        }
    }

    #[test]
    fn metas_models_are_gated() {
        for model in catalog() {
            assert_eq!(model.gate != Gate::Open, model.name.starts_with("meta-llama/"), "{}", model.name);
        }
    }
}
