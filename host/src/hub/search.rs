use futures::TryStreamExt as _;
use hf_hub::repository::ModelInfo;
use lathe_protocol::{EventBody, Gate, HubModel, MODEL_TYPES, in_catalog};
use serde_json::Value;

use super::client::Hub;
use crate::{
    error::Result,
    job::Job,
    net::{self, patiently},
};

/// Asked for at least, since those that cannot be used go behind the others.
const LEAST_ASKED: usize = 60;

pub(crate) fn search(job: &Job, query: &str, limit: usize) -> Result<()> {
    let hub = Hub::open(&job.host)?;
    let words = query.trim();
    let asked = hub.asked("", None);
    let found: Vec<ModelInfo> = net::block_on(job, &|| Ok(()), async {
        patiently(hub.retries(), &|_| {}, || async {
            let models = hub
                .hf
                .list_models()
                .maybe_search((!words.is_empty()).then_some(words))
                // Without words: what there is to talk with.
                .maybe_pipeline_tag(words.is_empty().then_some("text-generation"))
                .sort("downloads")
                .full(true)
                .card_data(true)
                .fetch_config(true)
                .limit(limit.max(LEAST_ASKED))
                .send();
            let models = models.map_err(|error| asked.failed(&error))?;
            models.try_collect().await.map_err(|error| asked.failed(&error))
        })
        .await
    })?;
    let mut models: Vec<HubModel> = found.iter().map(model).collect();
    models.sort_by_key(|model| model.problem.is_some());
    models.truncate(limit);
    job.emit(EventBody::HubModels { models });
    Ok(())
}

fn model(info: &ModelInfo) -> HubModel {
    let config = info.config.as_ref().unwrap_or(&Value::Null);
    let architecture = config["architectures"][0].as_str().or_else(|| config["model_type"].as_str());
    let gguf = info.gguf.as_ref().and_then(|gguf| gguf["architecture"].as_str());
    HubModel {
        name: info.id.clone(),
        downloads: info.downloads.unwrap_or(0),
        likes: info.likes.unwrap_or(0),
        license: license(info),
        gate: gate(info),
        is_private: info.private.unwrap_or(false),
        architecture: architecture.or(gguf).map(str::to_owned),
        parameters: info
            .safetensors
            .as_ref()
            .map(|safetensors| safetensors.total)
            .or_else(|| in_catalog(&info.id).map(|known| known.parameters)),
        updated_secs: info.last_modified.as_deref().and_then(seconds),
        problem: problem(info),
    }
}

pub(super) fn gate(info: &ModelInfo) -> Gate {
    match &info.gated {
        Some(Value::String(mode)) if mode == "manual" => Gate::Ask,
        Some(Value::String(_) | Value::Bool(true)) => Gate::Agree,
        _ => Gate::Open,
    }
}

/// Of the model card; of `other` its name.
pub(super) fn license(info: &ModelInfo) -> Option<String> {
    let card = info.card_data.as_ref().unwrap_or(&Value::Null);
    let of_card = |key: &str| {
        let value = &card[key];
        value.as_str().or_else(|| value[0].as_str()).map(str::to_owned)
    };
    let tag = || {
        let mut tags = info.tags.as_ref()?.iter();
        tags.find_map(|tag| tag.strip_prefix("license:")).map(str::to_owned)
    };
    match of_card("license").or_else(tag) {
        Some(other) if other == "other" => of_card("license_name").or(Some(other)),
        license => license,
    }
}

/// Why a model of this kind cannot be used, as far as its description tells.
fn problem(info: &ModelInfo) -> Option<String> {
    let config = info.config.as_ref().unwrap_or(&Value::Null);
    let tags = info.tags.as_deref().unwrap_or_default();
    let is_tagged = |tag: &str| tags.iter().any(|found| found.eq_ignore_ascii_case(tag));
    let names: Option<Vec<&str>> =
        info.siblings.as_ref().map(|files| files.iter().map(|file| file.rfilename.as_str()).collect());
    let has = |extension: &str| {
        names.as_ref().is_some_and(|names| names.iter().any(|name| name.ends_with(extension)))
    };
    if info.disabled == Some(true) {
        return Some("It was taken out of the Hub".into());
    }
    if names.is_some() && !has(".safetensors") && !has(".gguf") {
        return Some("It has neither safetensors nor GGUF weights".into());
    }
    if has("adapter_config.json") && !has("/config.json") && config["model_type"].is_null() {
        return Some("It is an adapter, not a model".into());
    }
    if is_tagged("mlx") && !has(".gguf") {
        return Some("Its weights are quantised by MLX, which is for Apple's machines".into());
    }
    problem_of_config(config)
}

/// The same, of a `config.json` alone.
pub(super) fn problem_of_config(config: &Value) -> Option<String> {
    if let Some(model_type) = config["model_type"].as_str()
        && !MODEL_TYPES.contains(&model_type)
    {
        return Some(unsupported(model_type));
    }
    let quantization = &config["quantization_config"];
    match quantization["quant_method"].as_str() {
        None | Some("mxfp4") => None,
        // A search tells no more than the method.
        Some("bitsandbytes") if quantization["load_in_8bit"] != true => None,
        Some("bitsandbytes") => {
            Some("Its weights are in bitsandbytes' 8 bits; 4 bits (NF4) can be used".into())
        }
        Some(method) => {
            Some(format!("Its weights are quantised by {}, which Lathe does not read", method.to_uppercase()))
        }
    }
}

pub(super) fn unsupported(model_type: &str) -> String {
    format!("Its architecture, {model_type}, is not supported; Llama, Qwen2.5, Qwen3 and gpt-oss are")
}

/// Of `2025-08-05T17:00:00.000Z`.
fn seconds(text: &str) -> Option<u64> {
    let time: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(time.as_second()).ok()
}
