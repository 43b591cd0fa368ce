//! PEFT folders: `adapter_config.json` and `adapter_model.safetensors`, read and written as PEFT does.

use std::{collections::BTreeMap, path::Path};

use candle_core::{Tensor, Var};
use lathe_protocol::{ErrorCode, LoraConfig};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Error, Result,
    family::ModelFamily,
    files, lora,
    model::{LoraWeights, Model, Projection},
    styles,
    weights::SafetensorsFolder,
};

pub const CONFIG_FILE: &str = "adapter_config.json";
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";
/// The rows of [`TokenIndices`].
pub const TOKEN_ROWS: &str = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta";
/// What PEFT writes beside them for a model whose tables were resized: these tables whole, and a tied head's rows again.
const RESIZED_TABLES: [&str; 5] = [
    "base_model.model.model.embed_tokens.weight",
    "base_model.model.model.embed_tokens.token_adapter.base_layer.weight",
    "base_model.model.lm_head.weight",
    "base_model.model.lm_head.token_adapter.base_layer.weight",
    "base_model.model.lm_head.token_adapter.trainable_tokens_delta",
];

/// `adapter_config.json`, the keys that matter for LoRA.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeftConfig {
    pub peft_type: String,
    #[serde(default)]
    pub task_type: Option<String>,
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    pub r: usize,
    pub lora_alpha: f64,
    #[serde(default)]
    pub lora_dropout: f64,
    /// A list of names, or one regular expression.
    pub target_modules: Value,
    #[serde(default)]
    pub target_parameters: Option<Vec<String>>,
    #[serde(default)]
    pub use_rslora: bool,
    #[serde(default)]
    pub use_dora: bool,
    #[serde(default)]
    pub modules_to_save: Option<Vec<String>>,
    #[serde(default = "no_bias")]
    pub bias: String,
    #[serde(default)]
    pub fan_in_fan_out: bool,
    #[serde(default)]
    pub inference_mode: bool,
    #[serde(default)]
    pub rank_pattern: BTreeMap<String, usize>,
    #[serde(default)]
    pub alpha_pattern: BTreeMap<String, f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trainable_token_indices: Option<TokenIndices>,
}

/// Tokens whose rows of the embedding table an adapter replaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenIndices {
    OfEmbedding(Vec<u32>),
    ByModule(BTreeMap<String, Vec<u32>>),
}

fn no_bias() -> String {
    "none".into()
}

impl PeftConfig {
    pub fn new(config: &LoraConfig, family: ModelFamily, base_model: &str) -> Self {
        Self {
            peft_type: "LORA".into(),
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: Some(base_model.into()),
            r: config.r,
            lora_alpha: config.alpha,
            lora_dropout: config.dropout,
            target_modules: lora::resolve_targets(&config.targets, family).into(),
            target_parameters: None,
            use_rslora: config.use_rslora,
            use_dora: false,
            modules_to_save: None,
            bias: no_bias(),
            fan_in_fan_out: false,
            inference_mode: true,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            trainable_token_indices: None,
        }
    }

    /// Tokens that the adapter has rows for.
    pub fn token_ids(&self) -> &[u32] {
        match &self.trainable_token_indices {
            None => &[],
            Some(TokenIndices::OfEmbedding(ids)) => ids,
            Some(TokenIndices::ByModule(by_module)) => {
                by_module.get("embed_tokens").map_or(&[], Vec::as_slice)
            }
        }
    }

    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG_FILE);
        let config: Self = files::read_json(&path).map_err(|error| match error {
            Error::Invalid { message, .. } => {
                Error::invalid(ErrorCode::Adapter, message).hint("expected PEFT's adapter_config.json")
            }
            other => other,
        })?;
        let unsupported = if config.peft_type == "LORA" {
            [
                (config.use_dora, "use_dora"),
                (config.fan_in_fan_out, "fan_in_fan_out"),
                (config.bias != "none", "a bias other than \"none\""),
                (
                    config.modules_to_save.as_ref().is_some_and(|modules| !modules.is_empty()),
                    "modules_to_save",
                ),
                (
                    config.target_parameters.as_ref().is_some_and(|names| !names.is_empty()),
                    "target_parameters",
                ),
                (!config.alpha_pattern.is_empty(), "alpha_pattern"),
                (
                    matches!(&config.trainable_token_indices, Some(TokenIndices::ByModule(modules))
                        if modules.keys().any(|module| module != "embed_tokens")),
                    "trainable_token_indices of other modules than embed_tokens",
                ),
            ]
            .into_iter()
            .find_map(|(present, what)| present.then_some(what.to_owned()))
        } else {
            Some(format!("peft_type {:?}", config.peft_type))
        };
        match unsupported {
            None => Ok(config),
            Some(what) => Err(Error::invalid(
                ErrorCode::Adapter,
                format!("Adapters with {what} are not supported by this version: {}", path.display()),
            )),
        }
    }
}

/// Puts the adapter of a PEFT folder onto the model, beside those already there.
///
/// Errors: a tensor for a module the model lacks, a shape that does not fit, an A without its B.
pub fn attach(model: &mut Model, folder: &Path) -> Result<PeftConfig> {
    let config = PeftConfig::read(folder)?;
    let weights = SafetensorsFolder::open_file(&folder.join(WEIGHTS_FILE))?;
    let wrong =
        |message: String| Error::invalid(ErrorCode::Adapter, format!("{message}: {}", folder.display()));
    let mut unused: std::collections::BTreeSet<String> = weights.names().map(String::from).collect();
    let mut num_attached = 0;
    for projection in model.projections_mut() {
        let (a_name, b_name) = tensor_names(projection);
        match (unused.remove(&a_name), unused.remove(&b_name)) {
            (false, false) => continue,
            (true, true) => {}
            _ => {
                return Err(wrong(format!(
                    "The adapter has only one of lora_A and lora_B for {:?}",
                    projection.name
                )));
            }
        }
        let (a, b) = (weights.read(&a_name)?, weights.read(&b_name)?);
        let (out_features, in_features) = projection.base.shape()?;
        let rank = a.dims().first().copied().unwrap_or(0);
        if a.dims() != [rank, in_features] || b.dims() != [out_features, rank] || rank == 0 {
            return Err(wrong(format!(
                "The adapter does not fit: {:?} is {out_features} x {in_features}, lora_A is {:?}, lora_B {:?}",
                projection.name,
                a.dims(),
                b.dims()
            ))
            .hint("it was trained on another base model"));
        }
        projection.lora.push(LoraWeights {
            a: Var::from_tensor(&a)?,
            b: Var::from_tensor(&b)?,
            scale: lora::scale(rank, config.lora_alpha, config.use_rslora),
            dropout: config.lora_dropout,
        });
        num_attached += 1;
    }
    if !config.token_ids().is_empty() {
        styles::check_base(model, folder)?;
        model
            .set_token_rows(config.token_ids().to_vec(), &weights.read(TOKEN_ROWS)?)
            .map_err(|error| wrong(error.to_string()).hint("it was trained on another base model"))?;
        unused.remove(TOKEN_ROWS);
        for name in RESIZED_TABLES {
            unused.remove(name);
        }
        num_attached += 1;
    }
    if let Some(name) = unused.first() {
        return Err(wrong(format!(
            "The adapter has {} tensors the model has no place for, first {name:?}",
            unused.len()
        ))
        .hint("it was trained on another base model"));
    }
    if num_attached == 0 {
        return Err(wrong("The adapter holds no tensors".into()));
    }
    Ok(config)
}

pub fn tensor_names(projection: &Projection) -> (String, String) {
    let name = &projection.name;
    (format!("{PREFIX}{name}.lora_A.weight"), format!("{PREFIX}{name}.lora_B.weight"))
}

/// The model's (only) adapter under PEFT's names.
pub fn tensors(model: &Model) -> BTreeMap<String, Tensor> {
    let token_rows = model.token_rows.as_ref();
    let token_rows = token_rows.map(|own| (TOKEN_ROWS.to_owned(), own.rows.as_tensor().clone()));
    model
        .projections()
        .filter_map(|projection| {
            let (a_name, b_name) = tensor_names(projection);
            projection
                .lora
                .first()
                .map(|lora| [(a_name, lora.a.as_tensor().clone()), (b_name, lora.b.as_tensor().clone())])
        })
        .flatten()
        .chain(token_rows)
        .collect()
}

/// Writes the adapter into `folder`, each file whole or not at all.
pub fn save(model: &Model, config: &PeftConfig, folder: &Path) -> Result<()> {
    files::create_dir_all(folder)?;
    files::write_safetensors(&folder.join(WEIGHTS_FILE), &tensors(model))?;
    files::write_json(&folder.join(CONFIG_FILE), config)
}
