use std::{collections::BTreeSet, path::Path};

use candle_core::Tensor;
use lathe_protocol::{ErrorCode, ends_in, is_saved, matches_pattern};

use super::{PREFIX, PeftConfig, RESIZED_TABLES, TOKEN_ROWS, WEIGHTS_FILE, expert_modules, tensor_names};
use crate::{
    Error, Result, lora,
    model::{Compute, Dora, LoraWeights, Model},
    styles,
    weights::SafetensorsFolder,
};

/// Puts the adapter of a PEFT folder onto the model, beside those already there.
///
/// Which modules have one is what its tensors say, with what rank is in their shapes.
/// Errors: a tensor for a module the model lacks, a shape that does not fit, an A without its B, a DoRA adapter beside
/// another.
pub fn attach(model: &mut Model, folder: &Path) -> Result<PeftConfig> {
    let config = PeftConfig::read(folder)?;
    let mut stored = Stored::open(folder, &config, model.compute.clone())?;
    let mut num_attached = 0;
    for projection in model.projections_mut() {
        let (out_features, in_features) = projection.base.shape()?;
        let Some(lora) = stored.lora(&projection.name, &projection.name, [1, out_features, in_features])?
        else {
            continue;
        };
        if projection.lora.iter().chain([&lora]).any(|lora| lora.dora.is_some())
            && !projection.lora.is_empty()
        {
            return Err(stored.wrong("A DoRA adapter cannot be worn beside another"));
        }
        projection.lora.push(lora);
        num_attached += 1;
    }
    let targets = config.target_parameters.as_deref().unwrap_or_default();
    for experts in model.experts_mut() {
        let is_target = |parameter: &str| targets.iter().any(|target| ends_in(parameter, target));
        let [(router, _), ..] = experts.parameters();
        if is_target(&router) {
            let (num_experts, hidden_size) = experts.router.base.shape()?;
            let lora = stored.lora(&experts.router.name, &router, [1, num_experts, hidden_size])?;
            num_attached += usize::from(lora.is_some());
            experts.router.lora.extend(lora);
        }
        let modules = expert_modules(experts, is_target(&experts.down.name));
        for (parameter, module) in [&mut experts.gate_up, &mut experts.down].into_iter().zip(&modules) {
            let shape = [parameter.num_experts, parameter.out_features, parameter.in_features];
            if is_target(&parameter.name)
                && let Some(lora) = stored.lora(module, &parameter.name, shape)?
            {
                parameter.lora.push(lora);
                num_attached += 1;
            }
        }
    }
    for module in model.modules_to_save() {
        if is_saved(&module, config.modules_to_save.as_deref().unwrap_or_default())
            && let Some(weight) = stored.take(&format!("{PREFIX}{module}.weight"))?
        {
            model.make_trainable(&module, Some(weight))?;
            num_attached += 1;
        }
    }
    if !config.token_ids().is_empty() {
        styles::check_base(model, folder)?;
        let Some(rows) = stored.take(TOKEN_ROWS)? else {
            return Err(stored.wrong("The adapter has no rows for its tokens"));
        };
        model.set_token_rows(config.token_ids().to_vec(), &rows).map_err(|error| {
            stored
                .wrong(&error.to_string())
                .hint("it was trained on another base model, and --force cannot mend shapes")
        })?;
        for name in RESIZED_TABLES {
            stored.unused.remove(name);
        }
        num_attached += 1;
    }
    stored.refuse_rest()?;
    if num_attached == 0 {
        return Err(stored.wrong("The adapter holds no tensors"));
    }
    Ok(config)
}

/// The tensors of a PEFT folder, and which of them nobody asked for yet.
struct Stored<'a> {
    folder: &'a Path,
    config: &'a PeftConfig,
    weights: SafetensorsFolder,
    unused: BTreeSet<String>,
    /// The model's.
    compute: Compute,
}

impl<'a> Stored<'a> {
    fn open(folder: &'a Path, config: &'a PeftConfig, compute: Compute) -> Result<Self> {
        let weights = SafetensorsFolder::open_file(&folder.join(WEIGHTS_FILE))?;
        let unused = weights.names().map(String::from).collect();
        Ok(Self { folder, config, weights, unused, compute })
    }

    fn wrong(&self, message: &str) -> Error {
        Error::invalid(ErrorCode::Adapter, format!("{message}: {}", self.folder.display()))
    }

    fn take(&mut self, name: &str) -> Result<Option<Tensor>> {
        self.unused.remove(name).then(|| self.weights.read(name)).transpose()
    }

    /// The adapter under a module's name, of so many matrices (O, C); `path` is what patterns match.
    fn lora(
        &mut self,
        module: &str,
        path: &str,
        [num_matrices, out_features, in_features]: [usize; 3],
    ) -> Result<Option<LoraWeights>> {
        let [a_name, b_name, magnitude_name] = tensor_names(module);
        let (a, b) = match (self.take(&a_name)?, self.take(&b_name)?) {
            (None, None) => return Ok(None),
            (Some(a), Some(b)) => (a, b),
            _ => {
                return Err(
                    self.wrong(&format!("The adapter has only one of lora_A and lora_B for {path:?}"))
                );
            }
        };
        let rows = a.dims().first().copied().unwrap_or(0);
        if a.dims() != [rows, in_features]
            || b.dims() != [out_features, rows]
            || rows == 0
            || !rows.is_multiple_of(num_matrices)
        {
            let of_experts =
                if num_matrices > 1 { format!(" in each of {num_matrices} experts") } else { String::new() };
            return Err(self
                .wrong(&format!(
                    "The adapter does not fit: {path:?} is {out_features} x {in_features}{of_experts}, lora_A is {:?}, lora_B {:?}",
                    a.dims(),
                    b.dims()
                ))
                .hint("it was trained on another base model, and --force cannot mend shapes"));
        }
        let dora = if self.config.use_dora {
            match self.take(&magnitude_name)? {
                Some(magnitude) if magnitude.dims() == [out_features] => {
                    Some(Dora { magnitude: self.compute.var(&magnitude)?, norms: None })
                }
                Some(magnitude) => {
                    let found = magnitude.dims();
                    return Err(self.wrong(&format!(
                        "The adapter does not fit: {path:?} has {out_features} outputs, its magnitudes are {found:?}"
                    )));
                }
                None => return Err(self.wrong(&format!("The adapter has no magnitudes for {path:?}"))),
            }
        } else {
            None
        };
        Ok(Some(LoraWeights {
            a: self.compute.var(&a)?,
            b: self.compute.var(&b)?,
            scale: lora::scale(rows / num_matrices, self.alpha(path)?, self.config.use_rslora),
            dropout: self.config.lora_dropout,
            dora,
        }))
    }

    fn alpha(&self, path: &str) -> Result<f64> {
        for (pattern, alpha) in &self.config.alpha_pattern {
            if matches_pattern(path, pattern)? {
                let wrong =
                    || self.wrong(&format!("alpha_pattern: {pattern:?} is {alpha}, which is no number"));
                return alpha.as_f64().ok_or_else(wrong);
            }
        }
        Ok(self.config.lora_alpha)
    }

    /// Errors: tensors that nothing of the model took.
    fn refuse_rest(&self) -> Result<()> {
        match self.unused.first() {
            None => Ok(()),
            Some(name) => Err(self
                .wrong(&format!(
                    "The adapter has {} tensors the model has no place for, first {name:?}",
                    self.unused.len()
                ))
                .hint("it was trained on another base model, and --force cannot mend shapes")),
        }
    }
}
