mod experts;

use std::{cell::RefCell, path::Path};

use candle_core::{DType, Device, Tensor};
use lathe_kernels::{Attention, FrozenLinear, Nf4, QuantizedLinear, gpu::GpuNf4};

use super::{
    BaseLinear, Block, Compute, Embedding, Mlp, Model, ModelConfig, Norm, OutputHead, Projection, nf4,
};
use crate::{Error, Result, weights::Weights};

/// Larger tables of tokens stay in bf16, if their file has them so: half the memory, for some work at every product.
const MAX_F32_TABLE_BYTES: usize = 512 << 20;

/// What a model is loaded for; decides how its weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadFor {
    /// Chat and logits: a GGUF stays quantised.
    Inference,
    /// Adapters on a frozen base: dense f32 outside autograd.
    Lora,
    /// Like `Lora`, the blocks' linears and experts in NF4, with `double_quant` its scales quantised too.
    Qlora { double_quant: bool },
    /// Every weight a variable.
    Full,
}

impl Model {
    /// Loads a model folder or a `.gguf` file.
    ///
    /// Errors: unsupported architecture, a missing tensor, a tensor whose shape contradicts the config.
    pub fn load(path: &Path, load_for: LoadFor) -> Result<Self> {
        Self::load_on(path, load_for, Compute::cpu())
    }

    /// [`Self::load`] for computing elsewhere than on the CPU; a GGUF's blocks become bf16 there.
    pub fn load_on(path: &Path, load_for: LoadFor, compute: Compute) -> Result<Self> {
        let weights = Weights::open(path)?;
        let config = weights.config(path)?;
        let factors = weights.rope_factors()?;
        let inverse_frequencies = config.inverse_frequencies(factors.as_deref());
        build(config, inverse_frequencies, Source::Stored(&weights), load_for, compute)
    }

    /// A trainable model of the given shape with fresh weights: normal(0, 0.02) matrices, ones in norms, no biases.
    ///
    /// `normal` draws so many standard normal numbers.
    pub fn fresh(config: ModelConfig, mut normal: impl FnMut(usize) -> Vec<f32>) -> Result<Self> {
        let inverse_frequencies = config.inverse_frequencies(None);
        let source = Source::Fresh(RefCell::new(&mut normal));
        build(config, inverse_frequencies, source, LoadFor::Full, Compute::cpu())
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
    compute: Compute,
) -> Result<Model> {
    if load_for == LoadFor::Full && config.family.has_experts() {
        let name = config.family.name();
        return Err(Error::model(format!("Experts stay frozen: {name} cannot be trained whole"))
            .hint("use method = \"lora\""));
    }
    if let (Source::Stored(weights), LoadFor::Qlora { .. }) = (&source, load_for) {
        nf4::check_can_quantize(weights)?;
    }
    let loader = Loader { source, config: &config, load_for, compute: compute.clone() };
    let embedding = loader.embedding()?;
    let blocks = (0..config.num_layers).map(|layer| loader.block(layer)).collect::<Result<Vec<_>>>()?;
    let final_norm = loader.norm("model.norm.weight", config.hidden_size)?;
    let head = if config.tie_word_embeddings {
        OutputHead::Tied
    } else {
        OutputHead::Own(loader.linear("lm_head", config.vocab_size, config.hidden_size)?)
    };
    Ok(Model { config, embedding, token_rows: None, blocks, final_norm, head, compute, inverse_frequencies })
}

struct Loader<'a, 'c> {
    source: Source<'a>,
    config: &'c ModelConfig,
    load_for: LoadFor,
    compute: Compute,
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

    /// A weight (O, C) that is held in the blocks it is stored in: for inference.
    fn quantized(&self, name: &str, shape: (usize, usize)) -> Result<Option<QuantizedLinear>> {
        let are_kept = self.load_for == LoadFor::Inference && !self.compute.is_gpu();
        if are_kept { self.stored_blocks(name, shape) } else { Ok(None) }
    }

    /// A weight (O, C) that is stored in blocks.
    fn stored_blocks(&self, name: &str, shape: (usize, usize)) -> Result<Option<QuantizedLinear>> {
        let Source::Stored(weights) = &self.source else { return Ok(None) };
        let Some(blocks) = weights.quantized(name, self.config)? else { return Ok(None) };
        check_shape(name, &<[usize; 2]>::from(blocks.shape()), &<[usize; 2]>::from(shape))?;
        Ok(Some(blocks.tiled()?))
    }

    fn norm(&self, name: &str, width: usize) -> Result<Norm> {
        let weight = self.dense(name, &[width])?;
        Ok(match self.load_for {
            LoadFor::Full => Norm::Trainable(self.compute.var(&weight)?),
            LoadFor::Inference | LoadFor::Lora | LoadFor::Qlora { .. } => {
                Norm::Frozen(self.compute.place(&weight)?)
            }
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
        let shape = (self.config.vocab_size, self.config.hidden_size);
        // A frozen table that no logits are made with is only looked up: as it is stored it does as well.
        let is_looked_up = !self.config.tie_word_embeddings && self.load_for != LoadFor::Full;
        let keeps_blocks = is_looked_up && !self.compute.is_gpu();
        let in_blocks =
            if keeps_blocks { self.stored_blocks(name, shape) } else { self.quantized(name, shape) };
        if let Some(table) = in_blocks? {
            return Ok(Embedding::Quantized(table));
        }
        let table =
            if is_looked_up { self.compact(name, &<[usize; 2]>::from(shape))? } else { self.table(name)? };
        Ok(match self.load_for {
            LoadFor::Full => Embedding::Trainable(self.compute.var(&table)?),
            LoadFor::Inference | LoadFor::Lora | LoadFor::Qlora { .. } => {
                Embedding::Frozen(self.compute.table(&table)?)
            }
        })
    }

    fn linear(&self, module: &str, out_features: usize, in_features: usize) -> Result<BaseLinear> {
        let bias_name = format!("{module}.bias");
        let has_bias = self.has(&bias_name);
        let bias = has_bias.then(|| self.dense(&bias_name, &[out_features])).transpose()?;
        let name = format!("{module}.weight");
        if let Some(weight) = self.quantized(&name, (out_features, in_features))? {
            return Ok(BaseLinear::Gguf { weight, bias });
        }
        if let Some(weight) = self.nf4(&name, (out_features, in_features))? {
            return Ok(BaseLinear::Dense(self.compute.linear(FrozenLinear::nf4(weight, bias.as_ref())?)?));
        }
        if let Some(weight) = self.quantized_on_gpu(&name, (out_features, in_features))? {
            let bias = bias.map(|bias| self.compute.place(&bias)).transpose()?;
            return Ok(BaseLinear::Dense(FrozenLinear::gpu_nf4(weight, bias.as_ref())?));
        }
        let weight = if name == "lm_head.weight" {
            self.table(&name)?
        } else if self.compute.is_gpu() && self.load_for != LoadFor::Full {
            self.compact(&name, &[out_features, in_features])?
        } else {
            self.dense(&name, &[out_features, in_features])?
        };
        Ok(match self.load_for {
            LoadFor::Full => BaseLinear::Trainable {
                weight: self.compute.var(&weight)?,
                bias: bias.map(|bias| self.compute.var(&bias)).transpose()?,
            },
            LoadFor::Inference | LoadFor::Lora | LoadFor::Qlora { .. } => {
                BaseLinear::Dense(self.compute.linear(FrozenLinear::new(&weight, bias.as_ref())?)?)
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
        let LoadFor::Qlora { double_quant } = self.load_for else { return Ok(stored) };
        if stored.is_some() || name == "lm_head.weight" || self.compute.is_gpu() {
            return Ok(stored);
        }
        Ok(Some(Nf4::quantize(&self.dense(name, &[shape.0, shape.1])?, double_quant)?))
    }

    /// A block's linear that is to be in NF4 and is not stored so, quantised where it will lie.
    fn quantized_on_gpu(&self, name: &str, (rows, columns): (usize, usize)) -> Result<Option<GpuNf4>> {
        let LoadFor::Qlora { double_quant } = self.load_for else { return Ok(None) };
        if !self.compute.is_gpu() || name == "lm_head.weight" {
            return Ok(None);
        }
        let weight = self.compute.place(&self.compact(name, &[rows, columns])?)?;
        Ok(Some(GpuNf4::quantize(&weight, double_quant)?))
    }

    fn block(&self, layer: usize) -> Result<Block> {
        let ModelConfig { hidden_size, num_heads, num_kv_heads, head_dim, .. } = *self.config;
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
        let sinks = sinks.map(|sinks| self.compute.place(&sinks)).transpose()?;
        Ok(Block {
            attention: Attention {
                num_heads,
                num_kv_heads,
                head_dim,
                scale: 1.0 / (head_dim as f32).sqrt(),
                window: self.config.windows[layer],
                sinks,
            },
            q: projection("self_attn.q_proj", num_heads * head_dim, hidden_size)?,
            k: projection("self_attn.k_proj", num_kv_heads * head_dim, hidden_size)?,
            v: projection("self_attn.v_proj", num_kv_heads * head_dim, hidden_size)?,
            o: projection("self_attn.o_proj", hidden_size, num_heads * head_dim)?,
            mlp: match &self.config.experts {
                Some(experts) if !experts.dense_layers.contains(&layer) => {
                    Mlp::Experts(self.experts(layer, &format!("{prefix}.mlp"), experts)?)
                }
                experts => {
                    let width = experts
                        .as_ref()
                        .map_or(self.config.intermediate_size, |experts| experts.dense_intermediate_size);
                    Mlp::Dense {
                        gate: projection("mlp.gate_proj", width, hidden_size)?,
                        up: projection("mlp.up_proj", width, hidden_size)?,
                        down: projection("mlp.down_proj", hidden_size, width)?,
                    }
                }
            },
            input_norm: self.norm(&format!("{prefix}.input_layernorm.weight"), hidden_size)?,
            post_attention_norm: self
                .norm(&format!("{prefix}.post_attention_layernorm.weight"), hidden_size)?,
            q_norm: head_norm("q_norm")?,
            k_norm: head_norm("k_norm")?,
        })
    }
}

/// The tensor, if it has the shape that the config says.
fn of_shape(tensor: Tensor, name: &str, shape: &[usize]) -> Result<Tensor> {
    check_shape(name, tensor.dims(), shape)?;
    Ok(tensor)
}

fn check_shape(name: &str, found: &[usize], shape: &[usize]) -> Result<()> {
    if found == shape {
        return Ok(());
    }
    Err(Error::model(format!("Tensor {name:?} has shape {found:?}, the config says {shape:?}")))
}
