//! PEFT folders: `adapter_config.json` and `adapter_model.safetensors`, read and written as PEFT does.

mod attach;

use std::{collections::BTreeMap, path::Path};

use lathe_protocol::{ErrorCode, LoraConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    Error, Result, files, lora,
    model::{MixtureOfExperts, Model, Trainable},
};

pub use attach::attach;

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
    /// A list of names, one regular expression, or null.
    pub target_modules: Value,
    /// As `target_modules`. What is read here and below is kept for who loads the adapter next: which modules have
    /// one, its tensors say.
    #[serde(default)]
    pub exclude_modules: Value,
    #[serde(default)]
    pub layers_to_transform: Value,
    #[serde(default)]
    pub layers_pattern: Value,
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
    pub rank_pattern: Map<String, Value>,
    /// `lora_alpha` of modules whose path matches a regular expression; the first that does counts.
    #[serde(default)]
    pub alpha_pattern: Map<String, Value>,
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
    /// Of an adapter that [`lora::attach_fresh`] has put on the model.
    pub fn new(config: &LoraConfig, model: &Model, base_model: &str) -> Self {
        let LoraConfig { layers, target_parameters, modules_to_save, .. } = config;
        // PEFT's layers are for modules alone, so parameters of some layers are named in full.
        let adapted = model.experts().flat_map(MixtureOfExperts::parameters);
        let adapted = adapted.filter(|(_, adapters)| !adapters.is_empty());
        let in_full: Vec<String> = adapted.map(|(name, _)| name).collect();
        let some = |names: &[String]| (!names.is_empty()).then(|| names.to_vec());
        Self {
            peft_type: "LORA".into(),
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: Some(base_model.into()),
            r: config.r,
            lora_alpha: config.alpha,
            lora_dropout: config.dropout,
            target_modules: lora::resolve_targets(&config.targets, model.config.family),
            exclude_modules: Value::Null,
            layers_to_transform: if layers.is_empty() { Value::Null } else { layers.as_slice().into() },
            layers_pattern: Value::Null,
            target_parameters: some(if layers.is_empty() { target_parameters } else { &in_full }),
            use_rslora: config.use_rslora,
            use_dora: config.use_dora,
            modules_to_save: some(modules_to_save),
            bias: no_bias(),
            fan_in_fan_out: false,
            inference_mode: true,
            rank_pattern: Map::new(),
            alpha_pattern: Map::new(),
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
        let adapts_experts = config.target_parameters.as_ref().is_some_and(|names| !names.is_empty());
        let unsupported = if config.peft_type == "LORA" {
            [
                (config.fan_in_fan_out, "fan_in_fan_out"),
                (config.bias != "none", "a bias other than \"none\""),
                (adapts_experts && config.use_dora, "use_dora and target_parameters"),
                (adapts_experts && config.lora_dropout > 0.0, "lora_dropout and target_parameters"),
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

/// The tensors of the model's (only) adapter under PEFT's names, in a fixed order.
pub fn trainables(model: &Model) -> Vec<Trainable> {
    let mut found = Vec::new();
    let mut push =
        |name, var: &candle_core::Var| found.push(Trainable { name, var: var.clone(), decays: true });
    let routers = model.experts().map(|experts| &experts.router);
    for projection in model.projections().chain(routers) {
        if let Some(lora) = projection.lora.first() {
            let [a, b, magnitude] = tensor_names(&projection.name);
            push(a, &lora.a);
            push(b, &lora.b);
            if let Some(dora) = &lora.dora {
                push(magnitude, &dora.magnitude);
            }
        }
    }
    for experts in model.experts() {
        let [gate_up, down] = [&experts.gate_up, &experts.down].map(|parameter| parameter.lora.first());
        let modules = expert_modules(experts, down.is_some());
        for (module, lora) in modules.iter().zip([gate_up, down]) {
            if let Some(lora) = lora {
                let [a, b, _] = tensor_names(module);
                push(a, &lora.a);
                push(b, &lora.b);
            }
        }
    }
    if let Some(own) = &model.token_rows {
        push(TOKEN_ROWS.into(), &own.rows);
    }
    let whole = model.whole_weights().into_iter();
    found.extend(whole.map(|weight| Trainable { name: format!("{PREFIX}{}", weight.name), ..weight }));
    found
}

/// A, B and DoRA's magnitudes of a module.
fn tensor_names(module: &str) -> [String; 3] {
    ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"].map(|part| format!("{PREFIX}{module}.{part}"))
}

/// The modules under whose names PEFT keeps the adapters of gate and up, and of down: it wraps the experts once for
/// each parameter that is adapted, gate and up first.
fn expert_modules(experts: &MixtureOfExperts, adapts_down: bool) -> [String; 2] {
    let module = experts.down.name.trim_end_matches(".down_proj");
    [if adapts_down { format!("{module}.base_layer") } else { module.into() }, module.into()]
}

/// Writes the adapter into `folder`, each file whole or not at all.
pub fn save(model: &Model, config: &PeftConfig, folder: &Path) -> Result<()> {
    files::create_dir_all(folder)?;
    let tensors = trainables(model).into_iter().map(|tensor| (tensor.name, tensor.var.as_tensor().clone()));
    files::write_safetensors(&folder.join(WEIGHTS_FILE), &tensors.collect::<BTreeMap<_, _>>())?;
    files::write_json(&folder.join(CONFIG_FILE), config)
}
