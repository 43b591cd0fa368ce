//! Which weights get an adapter, and its fresh values.

use candle_core::{Device, Tensor, Var};
use lathe_protocol::{ErrorCode, LoraConfig, LoraTargets, REGEX_PREFIX, ends_in, indices_text, is_saved};
use rand::Rng as _;

use crate::{
    Error, Result, adapter,
    family::ModelFamily,
    model::{Dora, LoraWeights, MixtureOfExperts, Model},
    rng,
};

/// The scale of the update: `alpha / r`, or `alpha / sqrt(r)` (rsLoRA, arXiv 2312.03732).
pub fn scale(r: usize, alpha: f64, use_rslora: bool) -> f64 {
    alpha / if use_rslora { (r as f64).sqrt() } else { r as f64 }
}

/// The linears a config names as PEFT takes them: a list, a regular expression, or nothing.
pub fn resolve_targets(targets: &[String], family: ModelFamily) -> serde_json::Value {
    match targets {
        [] => family.default_targets().into(),
        [all] if all == "all-linear" => family.default_targets().into(),
        [none] if none == "none" => serde_json::Value::Null,
        [one] => one.strip_prefix(REGEX_PREFIX).map_or_else(|| targets.into(), Into::into),
        names => names.into(),
    }
}

/// Puts a fresh adapter on everything the config targets: A Kaiming-uniform(√5), B zero, DoRA's magnitudes the norms of
/// the rows as they are, what learns whole a copy of itself. All as PEFT does.
///
/// Errors: a target, parameter, layer or module that matches nothing, with what there is; settings that exclude each
/// other.
pub fn attach_fresh(model: &mut Model, config: &LoraConfig, seed: u64) -> Result<()> {
    let targets = LoraTargets::new(config)?;
    check_matches(model, config)?;
    let scale = scale(config.r, config.alpha, config.use_rslora);
    let compute = model.compute.clone();
    let fresh = |rows: usize, in_features: usize, out_features: usize, index: u64| -> Result<LoraWeights> {
        // Kaiming-uniform with a = √5 is uniform within ±1/√fan_in.
        let bound = 1.0 / (in_features as f32).sqrt();
        let mut rng = rng::stream(seed, "lora-init", index);
        let a: Vec<f32> = (0..rows * in_features).map(|_| rng.random_range(-bound..bound)).collect();
        let b = vec![0.0f32; out_features * rows];
        Ok(LoraWeights {
            a: compute.var(&Tensor::from_vec(a, (rows, in_features), &Device::Cpu)?)?,
            b: compute.var(&Tensor::from_vec(b, (out_features, rows), &Device::Cpu)?)?,
            scale,
            dropout: config.dropout,
            dora: None,
        })
    };
    for projection in model.projections_mut() {
        if !targets.has_linear(&projection.name) {
            continue;
        }
        let (out_features, in_features) = projection.base.shape()?;
        let mut lora = fresh(config.r, in_features, out_features, projection.index)?;
        if config.use_dora {
            let magnitude = Var::from_tensor(&projection.base.adapted_row_norms(&lora)?)?;
            lora.dora = Some(Dora { magnitude, norms: None });
        }
        projection.lora.push(lora);
    }
    for experts in model.experts_mut() {
        let [(router, _), ..] = experts.parameters();
        if targets.has_parameter(&router) {
            let (num_experts, hidden_size) = experts.router.base.shape()?;
            let lora = fresh(config.r, hidden_size, num_experts, experts.router.index)?;
            experts.router.lora.push(lora);
        }
        for parameter in [&mut experts.gate_up, &mut experts.down] {
            if targets.has_parameter(&parameter.name) {
                let rows = config.r * parameter.num_experts;
                let lora = fresh(rows, parameter.in_features, parameter.out_features, parameter.index)?;
                parameter.lora.push(lora);
            }
        }
    }
    if adapter::trainables(model).is_empty() {
        return Err(Error::invalid(ErrorCode::Usage, "lora.targets and lora.layers leave nothing to adapt")
            .hint("a target may name a layer that lora.layers leaves out"));
    }
    for module in model.modules_to_save() {
        if is_saved(&module, &config.modules_to_save) {
            model.make_trainable(&module, None)?;
        }
    }
    Ok(())
}

/// Errors: a name in the config that nothing of the model has, with what there is.
fn check_matches(model: &Model, config: &LoraConfig) -> Result<()> {
    let linears: Vec<&str> = model.projections().map(|projection| projection.name.as_str()).collect();
    let parameters: Vec<String> =
        model.experts().flat_map(MixtureOfExperts::parameters).map(|(name, _)| name).collect();
    let parameters: Vec<&str> = parameters.iter().map(String::as_str).collect();
    let refuse = |message: String, existing: &[&str], parts: usize| {
        let mut existing: Vec<&str> = existing.iter().map(|path| last_parts(path, parts)).collect();
        existing.sort_unstable();
        existing.dedup();
        Err(Error::invalid(ErrorCode::Usage, message).hint(format!("it has {}", existing.join(", "))))
    };
    let is_word = |target: &String| target == "all-linear" || target == "none";
    for target in config.targets.iter().filter(|target| !is_word(target)) {
        let only = LoraConfig { targets: vec![target.clone()], ..LoraConfig::default() };
        let one = LoraTargets::new(&only)?;
        if !linears.iter().any(|module| one.has_linear(module)) {
            let message = format!("lora.targets: {target:?} matches no linear of the model");
            return refuse(message, &linears, 1);
        }
    }
    for name in &config.target_parameters {
        if !parameters.iter().any(|parameter| ends_in(parameter, name)) {
            let message = format!("lora.target_parameters: {name:?} matches no tensor of the experts");
            if parameters.is_empty() {
                return Err(Error::invalid(ErrorCode::Usage, message)
                    .hint("it has no experts: name linears in lora.targets"));
            }
            return refuse(message, &parameters, 3);
        }
    }
    let num_layers = model.blocks.len();
    if let Some(layer) = config.layers.iter().find(|layer| **layer >= num_layers) {
        let all: Vec<usize> = (0..num_layers).collect();
        return Err(Error::invalid(ErrorCode::Usage, format!("lora.layers: the model has no layer {layer}"))
            .hint(format!("it has {}", indices_text(&all))));
    }
    let modules = model.modules_to_save();
    for name in &config.modules_to_save {
        let only = std::slice::from_ref(name);
        if !modules.iter().any(|module| is_saved(module, only)) {
            let existing: Vec<&str> = modules.iter().map(String::as_str).collect();
            let message = format!("lora.modules_to_save: {name:?} is no module that can learn whole");
            return refuse(message, &existing, 1);
        }
    }
    Ok(())
}

/// `b.c` of `a.b.c`, for two parts.
fn last_parts(path: &str, parts: usize) -> &str {
    path.rmatch_indices('.').nth(parts - 1).map_or(path, |(dot, _)| &path[dot + 1..])
}
