use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What a run was made of: `provenance.json` in its folder, in each of its checkpoints, and in its adapter's folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Origins {
    /// Version that wrote it.
    pub lathe: String,
    #[serde(default)]
    pub candle: String,
    #[serde(default)]
    pub machine: Machine,
    #[serde(default)]
    pub threads: usize,
    #[serde(default)]
    pub device: String,
    pub base: BasePrint,
    #[serde(default)]
    pub tokenizer_hash: String,
    #[serde(default)]
    pub template_hash: String,
    #[serde(default)]
    pub data: Vec<FilePrint>,
    #[serde(default)]
    pub eval_data: Vec<FilePrint>,
    /// Its weights' file.
    #[serde(default)]
    pub init_adapter: Option<FilePrint>,
    /// Whole, the seed among it. Of another version it may have other keys.
    #[serde(default)]
    pub config: Map<String, Value>,
    /// What was wrong with the adapter it started from, and overruled.
    #[serde(default)]
    pub forced: Vec<String>,
    /// Of the weights beside it; none before there are any.
    #[serde(default)]
    pub metrics: Option<WeightsMetrics>,
}

/// Where a run was computed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub os: String,
    pub cpu: String,
}

/// A file by what is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePrint {
    pub path: String,
    pub sha256: String,
    pub size_bytes: u64,
    /// Of data, those that could be learned from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<usize>,
}

/// What weights at a step were worth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct WeightsMetrics {
    pub step: usize,
    pub loss: Option<f64>,
    /// Of the evaluation at this step, if there was one.
    #[serde(default)]
    pub eval_loss: Option<f64>,
    #[serde(default)]
    pub perplexity: Option<f64>,
    #[serde(default)]
    pub token_accuracy: Option<f64>,
}

/// What a model is known by, wherever its files lie and however they are cut into shards.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BasePrint {
    /// As it was asked for.
    pub name: String,
    /// The architecture by transformers' names, the same of a folder and of a GGUF of it.
    pub config: BTreeMap<String, String>,
    /// Of `config`.
    pub config_hash: String,
    /// The types its tensors are stored in, e.g. `BF16`.
    pub storage: String,
    /// Of the weights' index: every tensor's name, type, shape and size.
    pub index_hash: String,
    /// Of the index with pieces of every tensor's bytes.
    pub weights_hash: String,
    /// Of the norms as bf16, which quantising leaves alone.
    pub norms_hash: String,
}

/// Whether a model is the one an adapter was trained on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseMatch {
    Same,
    /// As far as can be told: it is stored in another form.
    OtherForm(String),
    /// With what differs, a line each.
    Other(Vec<String>),
}

impl Origins {
    pub const NAME: &str = "provenance.json";
}

impl BasePrint {
    /// Whether `here` is the model that this is the print of:
    ///
    /// 1. another architecture is another base;
    /// 2. the same bytes are the same base;
    /// 3. other bytes of the same names, types and shapes are another base;
    /// 4. another form (a GGUF, NF4, another float) with other norms is another base;
    /// 5. another form with the same norms is taken for the same base, with a warning.
    pub fn matches(&self, here: &Self) -> BaseMatch {
        let keys: std::collections::BTreeSet<_> = self.config.keys().chain(here.config.keys()).collect();
        let value =
            |print: &Self, key: &String| print.config.get(key).map_or("none", String::as_str).to_owned();
        let differing: Vec<String> = keys
            .into_iter()
            .filter(|key| self.config.get(*key) != here.config.get(*key))
            .map(|key| format!("{key} {} there, {} here", value(self, key), value(here, key)))
            .collect();
        if !differing.is_empty() {
            return BaseMatch::Other(differing);
        }
        if self.weights_hash == here.weights_hash {
            return BaseMatch::Same;
        }
        let names = |there: &str, is_here: &str| {
            format!(
                "it was trained on {} ({}), this is {} ({})",
                self.name,
                short(there),
                here.name,
                short(is_here)
            )
        };
        if self.index_hash == here.index_hash {
            let told = names(&self.weights_hash, &here.weights_hash);
            return BaseMatch::Other(vec![format!("the same shapes, other weights: {told}")]);
        }
        let forms = format!("{} there, {} here", self.storage, here.storage);
        if self.norms_hash != here.norms_hash {
            let told = names(&self.norms_hash, &here.norms_hash);
            return BaseMatch::Other(vec![format!(
                "stored in another form ({forms}), with other norms: {told}"
            )]);
        }
        BaseMatch::OtherForm(format!(
            "The base is stored in another form than the adapter was trained on ({forms}): the architecture and the \
             norms are the same, the other weights cannot be compared"
        ))
    }
}

/// The beginning of a hash, for people.
fn short(hash: &str) -> &str {
    hash.get(..8).unwrap_or(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(config: &[(&str, &str)], [index, weights, norms]: [&str; 3]) -> BasePrint {
        BasePrint {
            name: format!("model-{weights}"),
            config: config.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            config_hash: String::new(),
            storage: index.into(),
            index_hash: index.into(),
            weights_hash: weights.into(),
            norms_hash: norms.into(),
        }
    }

    #[test]
    fn a_base_is_told_from_another() {
        let small: &[(&str, &str)] = &[("hidden_size", "576"), ("num_hidden_layers", "30")];
        let large: &[(&str, &str)] =
            &[("hidden_size", "2048"), ("num_hidden_layers", "30"), ("num_experts", "8")];
        let trained_on = print(small, ["BF16", "w", "n"]);
        for (here, expected) in [
            (print(small, ["BF16", "w", "n"]), "same"),
            (print(small, ["Q8_0", "w8", "n"]), "form: BF16 there, Q8_0 here"),
            (print(small, ["U8", "w4", "n"]), "form: BF16 there, U8 here"),
            (
                print(small, ["Q8_0", "x8", "m"]),
                "other: stored in another form (BF16 there, Q8_0 here), with other norms: it was trained on model-w (n), this is model-x8 (m)",
            ),
            (
                print(small, ["BF16", "x", "n"]),
                "other: the same shapes, other weights: it was trained on model-w (w), this is model-x (x)",
            ),
            (
                print(large, ["BF16", "w", "n"]),
                "other: hidden_size 576 there, 2048 here; num_experts none there, 8 here",
            ),
            (
                BasePrint::default(),
                "other: hidden_size 576 there, none here; num_hidden_layers 30 there, none here",
            ),
        ] {
            let told = match trained_on.matches(&here) {
                BaseMatch::Same => "same".to_owned(),
                BaseMatch::OtherForm(text) => {
                    format!("form: {}", text.split(['(', ')']).nth(1).unwrap_or_default())
                }
                BaseMatch::Other(lines) => format!("other: {}", lines.join("; ")),
            };
            assert_eq!(told, expected);
        }
    }
}
