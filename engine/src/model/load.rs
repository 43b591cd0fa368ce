use std::{cell::RefCell, path::Path, sync::Arc};

use candle_core::{DType, Device, Tensor, Var, quantized::QTensor};
use lathe_kernels::{Attention, ExpertMatrices, Experts, FrozenLinear, Mxfp4, Nf4};

use super::{
    BaseLinear, Block, Embedding, ExpertParameter, ExpertsConfig, MixtureOfExperts, Mlp, Model, ModelConfig,
    Norm, OutputHead, Projection, nf4,
};
use crate::{Error, Result, family::ModelFamily, gguf::QuantizedWeight, weights::Weights};

/// Larger tables of tokens stay in bf16, if their file has them so: half the memory, for some work at every product.
const MAX_F32_TABLE_BYTES: usize = 512 << 20;

/// What a model is loaded for; decides how its weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadFor {
    /// Chat and logits: a GGUF stays quantised.
    Inference,
    /// Adapters on a frozen base: dense f32 outside autograd.
    Lora,
    /// Like `Lora`, the blocks' linears in NF4.
    Qlora,
    /// Every weight a variable.
    Full,
}

impl Model {
    /// Loads a model folder or a `.gguf` file.
    ///
    /// Errors: unsupported architecture, a missing tensor, a tensor whose shape contradicts the config.
    pub fn load(path: &Path, load_for: LoadFor) -> Result<Self> {
        let weights = Weights::open(path)?;
        let config = weights.config(path)?;
        let factors = weights.rope_factors()?;
        let inverse_frequencies = config.inverse_frequencies(factors.as_deref());
        build(config, inverse_frequencies, Source::Stored(&weights), load_for)
    }

    /// A trainable model of the given shape with fresh weights: normal(0, 0.02) matrices, ones in norms, no biases.
    ///
    /// `normal` draws so many standard normal numbers.
    pub fn fresh(config: ModelConfig, mut normal: impl FnMut(usize) -> Vec<f32>) -> Result<Self> {
        let inverse_frequencies = config.inverse_frequencies(None);
        build(config, inverse_frequencies, Source::Fresh(RefCell::new(&mut normal)), LoadFor::Full)
    }
}

/// Where a model's tensors come from.
enum Source<'a> {
    Stored(&'a Weights),
    Fresh(RefCell<&'a mut dyn FnMut(usize) -> Vec<f32>>),
}

fn build(
    config: ModelConfig,
    inverse_frequencies: Vec<f32>,
    source: Source<'_>,
    load_for: LoadFor,
) -> Result<Model> {
    if load_for == LoadFor::Full && config.family.has_experts() {
        let name = config.family.name();
        return Err(Error::model(format!("Experts stay frozen: {name} cannot be trained whole"))
            .hint("use method = \"lora\""));
    }
    if let (Source::Stored(weights), LoadFor::Qlora) = (&source, load_for) {
        nf4::check_can_quantize(weights)?;
    }
    let loader = Loader { source, config: &config, load_for };
    let embedding = loader.embedding()?;
    let blocks = (0..config.num_layers).map(|layer| loader.block(layer)).collect::<Result<Vec<_>>>()?;
    let final_norm = loader.norm("model.norm.weight", config.hidden_size)?;
    let head = if config.tie_word_embeddings {
        OutputHead::Tied
    } else {
        OutputHead::Own(loader.linear("lm_head", config.vocab_size, config.hidden_size)?)
    };
    Ok(Model { config, embedding, token_rows: None, blocks, final_norm, head, inverse_frequencies })
}

struct Loader<'a, 'c> {
    source: Source<'a>,
    config: &'c ModelConfig,
    load_for: LoadFor,
}

impl Loader<'_, '_> {
    /// A dense tensor of exactly this shape.
    fn dense(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = match &self.source {
            Source::Stored(weights) => weights.dense(name, self.config)?,
            Source::Fresh(_) if name.ends_with("norm.weight") => {
                Tensor::ones(shape, DType::F32, &Device::Cpu)?
            }
            Source::Fresh(normal) => {
                let values = (normal.borrow_mut())(shape.iter().product());
                let values: Vec<f32> = values.into_iter().map(|value| value * 0.02).collect();
                Tensor::from_vec(values, shape, &Device::Cpu)?
            }
        };
        of_shape(tensor, name, shape)
    }

    /// Whether the model has this optional tensor.
    fn has(&self, name: &str) -> bool {
        match &self.source {
            Source::Stored(weights) => weights.has(name),
            Source::Fresh(_) => self.config.family.has_head_norms() && name.ends_with("_norm.weight"),
        }
    }

    /// A tensor in the blocks it is stored in, for inference.
    fn quantized(&self, name: &str) -> Result<Option<QTensor>> {
        match &self.source {
            Source::Stored(weights) if self.load_for == LoadFor::Inference => {
                weights.quantized(name, self.config)
            }
            _ => Ok(None),
        }
    }

    fn norm(&self, name: &str, width: usize) -> Result<Norm> {
        let weight = self.dense(name, &[width])?;
        Ok(match self.load_for {
            LoadFor::Full => Norm::Trainable(Var::from_tensor(&weight)?),
            LoadFor::Inference | LoadFor::Lora | LoadFor::Qlora => Norm::Frozen(weight),
        })
    }

    /// The embedding table or the output projection, (V, C): a frozen one too large for f32 stays as it is stored.
    fn table(&self, name: &str) -> Result<Tensor> {
        let shape = [self.config.vocab_size, self.config.hidden_size];
        let is_large = shape[0] * shape[1] * size_of::<f32>() > MAX_F32_TABLE_BYTES;
        if is_large && self.load_for != LoadFor::Full {
            return self.compact(name, &shape);
        }
        self.dense(name, &shape)
    }

    fn embedding(&self) -> Result<Embedding> {
        let name = "model.embed_tokens.weight";
        if let Some(table) = self.quantized(name)? {
            return Ok(Embedding::Quantized(QuantizedWeight::new(table)?));
        }
        let table = self.table(name)?;
        Ok(match self.load_for {
            LoadFor::Full => Embedding::Trainable(Var::from_tensor(&table)?),
            LoadFor::Inference | LoadFor::Lora | LoadFor::Qlora => Embedding::Frozen(table),
        })
    }

    fn linear(&self, module: &str, out_features: usize, in_features: usize) -> Result<BaseLinear> {
        let bias_name = format!("{module}.bias");
        let has_bias = self.has(&bias_name);
        let bias = has_bias.then(|| self.dense(&bias_name, &[out_features])).transpose()?;
        let name = format!("{module}.weight");
        if let Some(weight) = self.quantized(&name)? {
            if weight.shape().dims() != [out_features, in_features] {
                let found = weight.shape().dims();
                return Err(Error::model(format!(
                    "Tensor {name:?} has shape {found:?}, the config says [{out_features}, {in_features}]"
                )));
            }
            return Ok(BaseLinear::Gguf { weight: QuantizedWeight::new(weight)?, bias });
        }
        if let Some(weight) = self.nf4(&name, (out_features, in_features))? {
            return Ok(BaseLinear::Dense(FrozenLinear::nf4(weight, bias.as_ref())?));
        }
        let weight = if name == "lm_head.weight" {
            self.table(&name)?
        } else {
            self.dense(&name, &[out_features, in_features])?
        };
        Ok(match self.load_for {
            LoadFor::Full => BaseLinear::Trainable {
                weight: Var::from_tensor(&weight)?,
                bias: bias.map(|bias| Var::from_tensor(&bias)).transpose()?,
            },
            LoadFor::Inference | LoadFor::Lora | LoadFor::Qlora => {
                BaseLinear::Dense(FrozenLinear::new(&weight, bias.as_ref())?)
            }
        })
    }

    /// A weight that is held in NF4, because it is stored so, or because a block's linear is to be.
    fn nf4(&self, name: &str, shape: (usize, usize)) -> Result<Option<Nf4>> {
        let Source::Stored(Weights::Safetensors(folder)) = &self.source else { return Ok(None) };
        let stored = nf4::read(folder, name, shape)?;
        if stored.is_some() && self.load_for == LoadFor::Full {
            return Err(Error::model("A model stored in NF4 cannot be trained whole")
                .hint("use method = \"lora\", or the unquantised model"));
        }
        if stored.is_some() || self.load_for != LoadFor::Qlora || name == "lm_head.weight" {
            return Ok(stored);
        }
        Ok(Some(Nf4::quantize(&self.dense(name, &[shape.0, shape.1])?)?))
    }

    fn block(&self, layer: usize) -> Result<Block> {
        let ModelConfig { hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, .. } =
            *self.config;
        let prefix = format!("model.layers.{layer}");
        let mut index = layer as u64 * 7;
        let mut projection = |module: &str, out_features, in_features| -> Result<Projection> {
            index += 1;
            let name = format!("{prefix}.{module}");
            let base = self.linear(&name, out_features, in_features)?;
            Ok(Projection { name, base, lora: Vec::new(), index })
        };
        let head_norm = |module: &str| -> Result<Option<Norm>> {
            let name = format!("{prefix}.self_attn.{module}.weight");
            self.has(&name).then(|| self.norm(&name, head_dim)).transpose()
        };
        let sinks_name = format!("{prefix}.self_attn.sinks");
        let sinks =
            self.config.family.has_sinks().then(|| self.dense(&sinks_name, &[num_heads])).transpose()?;
        Ok(Block {
            attention: Attention {
                num_heads,
                num_kv_heads,
                head_dim,
                scale: 1.0 / (head_dim as f32).sqrt(),
                window: self.config.windows[layer],
                sinks: sinks.map(|sinks| sinks.to_vec1()).transpose()?.map(Arc::from),
            },
            q: projection("self_attn.q_proj", num_heads * head_dim, hidden_size)?,
            k: projection("self_attn.k_proj", num_kv_heads * head_dim, hidden_size)?,
            v: projection("self_attn.v_proj", num_kv_heads * head_dim, hidden_size)?,
            o: projection("self_attn.o_proj", hidden_size, num_heads * head_dim)?,
            mlp: match &self.config.experts {
                None => Mlp::Dense {
                    gate: projection("mlp.gate_proj", intermediate_size, hidden_size)?,
                    up: projection("mlp.up_proj", intermediate_size, hidden_size)?,
                    down: projection("mlp.down_proj", hidden_size, intermediate_size)?,
                },
                Some(experts) => Mlp::Experts(self.experts(layer, &format!("{prefix}.mlp"), experts)?),
            },
            input_norm: self.norm(&format!("{prefix}.input_layernorm.weight"), hidden_size)?,
            post_attention_norm: self
                .norm(&format!("{prefix}.post_attention_layernorm.weight"), hidden_size)?,
            q_norm: head_norm("q_norm")?,
            k_norm: head_norm("k_norm")?,
        })
    }

    fn experts(&self, layer: usize, module: &str, config: &ExpertsConfig) -> Result<MixtureOfExperts> {
        let ModelConfig { hidden_size, intermediate_size, .. } = *self.config;
        let ExpertsConfig { num_experts, experts_per_token, activation } = *config;
        let (router, experts) = if self.config.family == ModelFamily::Qwen3Moe {
            let router = self.dense(&format!("{module}.gate.weight"), &[num_experts, hidden_size])?;
            let (gate_up, down) = self.separate_experts(module, num_experts)?;
            let no_bias = |width| Tensor::zeros((num_experts, width), DType::F32, &Device::Cpu);
            let (gate_up_bias, down_bias) = (no_bias(2 * intermediate_size)?, no_bias(hidden_size)?);
            let experts = Experts::new((gate_up, &gate_up_bias), (down, &down_bias), activation)?;
            (FrozenLinear::new(&router, None)?, experts)
        } else {
            let router = self.dense(&format!("{module}.router.weight"), &[num_experts, hidden_size])?;
            let router_bias = self.dense(&format!("{module}.router.bias"), &[num_experts])?;
            let matrices = |name: &str, in_features: usize, out_features: usize| -> Result<_> {
                let name = format!("{module}.experts.{name}");
                let bias = self.dense(&format!("{name}_bias"), &[num_experts, out_features])?;
                let shape = [num_experts, in_features, out_features];
                let matrices = match self.packed(&name, shape)? {
                    Some(packed) => ExpertMatrices::Mxfp4(packed),
                    None => ExpertMatrices::Dense(self.compact(&name, &shape)?),
                };
                Ok((matrices, bias))
            };
            let (gate_up, gate_up_bias) = matrices("gate_up_proj", hidden_size, 2 * intermediate_size)?;
            let (down, down_bias) = matrices("down_proj", intermediate_size, hidden_size)?;
            let experts = Experts::new((gate_up, &gate_up_bias), (down, &down_bias), activation)?;
            (FrozenLinear::new(&router, Some(&router_bias))?, experts)
        };
        let router_name = if self.config.family == ModelFamily::Qwen3Moe { "gate" } else { "router" };
        let parameter = |name: &str, out_features, in_features, index| ExpertParameter {
            name: format!("{module}.experts.{name}"),
            num_experts,
            out_features,
            in_features,
            in_halves: self.config.family == ModelFamily::Qwen3Moe && name == "gate_up_proj",
            lora: Vec::new(),
            // The places that a dense block's linears have.
            index: layer as u64 * 7 + index,
        };
        Ok(MixtureOfExperts {
            router: Projection {
                name: format!("{module}.{router_name}"),
                base: BaseLinear::Dense(router),
                lora: Vec::new(),
                index: layer as u64 * 7 + 7,
            },
            experts: Arc::new(experts),
            experts_per_token,
            gate_up: parameter("gate_up_proj", 2 * intermediate_size, hidden_size, 5),
            down: parameter("down_proj", hidden_size, intermediate_size, 6),
            fixed_updates: None,
        })
    }

    /// Gate and up (E, C, 2I) in turns, and down (E, I, C), of experts that are stored one linear after the other.
    fn separate_experts(&self, module: &str, num_experts: usize) -> Result<(ExpertMatrices, ExpertMatrices)> {
        let ModelConfig { hidden_size, intermediate_size, .. } = *self.config;
        let (mut gate_ups, mut downs) = (Vec::new(), Vec::new());
        for expert in 0..num_experts {
            let linear = |name: &str, out_features: usize, in_features: usize| {
                let name = format!("{module}.experts.{expert}.{name}.weight");
                self.compact(&name, &[out_features, in_features])
            };
            let gate = linear("gate_proj", intermediate_size, hidden_size)?;
            let up = linear("up_proj", intermediate_size, hidden_size)?;
            // (I, 2, C) -> (2I, C) -> (C, 2I)
            let gate_up = Tensor::stack(&[gate, up], 1)?.reshape((2 * intermediate_size, hidden_size))?;
            gate_ups.push(gate_up.t()?.contiguous()?);
            downs.push(linear("down_proj", hidden_size, intermediate_size)?.t()?.contiguous()?);
        }
        let stack = |matrices: &[Tensor]| Tensor::stack(matrices, 0).map(ExpertMatrices::Dense);
        Ok((stack(&gate_ups)?, stack(&downs)?))
    }

    /// A tensor of exactly this shape, in bf16 where it is stored so.
    fn compact(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match &self.source {
            Source::Stored(Weights::Safetensors(folder)) => of_shape(folder.read_compact(name)?, name, shape),
            _ => self.dense(name, shape),
        }
    }

    /// Matrices (E, C, O) stored in MXFP4: `_blocks` (E, O, C/32, 16) and `_scales` (E, O, C/32); `None` if dense.
    fn packed(
        &self,
        name: &str,
        [num_experts, in_features, out_features]: [usize; 3],
    ) -> Result<Option<Mxfp4>> {
        let (blocks_name, scales_name) = (format!("{name}_blocks"), format!("{name}_scales"));
        let Source::Stored(Weights::Safetensors(folder)) = &self.source else { return Ok(None) };
        if !folder.has(&blocks_name) {
            return Ok(None);
        }
        if !in_features.is_multiple_of(32) {
            return Err(Error::model(format!(
                "MXFP4 takes widths that 32 divides, {name:?} has {in_features}"
            )));
        }
        let shape = [num_experts, out_features, in_features / 32, 16];
        let blocks = folder.read_bytes(&blocks_name, Some(&shape))?;
        let scales = folder.read_bytes(&scales_name, Some(&shape[..3]))?;
        Ok(Some(Mxfp4::new(blocks, scales, in_features)?))
    }
}

/// The tensor, if it has the shape that the config says.
fn of_shape(tensor: Tensor, name: &str, shape: &[usize]) -> Result<Tensor> {
    if tensor.dims() == shape {
        return Ok(tensor);
    }
    Err(Error::model(format!("Tensor {name:?} has shape {:?}, the config says {shape:?}", tensor.dims())))
}
