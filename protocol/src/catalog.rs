//! Models worth knowing, with or without a copy on this machine.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::ModelShape;

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
    use crate::ExpertFormat;

    #[test]
    fn the_shapes_give_the_parameters_told() {
        for model in catalog() {
            let (told, found) = (model.parameters as f64, model.shape.parameters() as f64);
            // All but biases and per-head norms; Qwen's experts have no biases.
            assert!((told - found).abs() / told < 8e-4, "{}: {told} told, {found} by shape", model.name);
        }
    }

    #[test]
    fn the_downloads_hold_two_bytes_a_weight_and_17_of_32_where_packed() {
        for model in catalog() {
            let shape = &model.shape;
            let packed =
                shape.experts.filter(|experts| experts.format == ExpertFormat::Mxfp4).map_or(0, |experts| {
                    shape.num_layers * experts.num_experts * 3 * shape.hidden_size * shape.intermediate_size
                });
            let expected = 2.0 * (model.parameters - packed as u64) as f64 + packed as f64 * 17.0 / 32.0;
            let ratio = model.download_bytes as f64 / expected;
            // Qwen3's small ones hold their tied table twice.
            assert!((0.995..1.3).contains(&ratio), "{}: {ratio}", model.name);
        }
    }
}
