use std::path::Path;

use candle_core::{Tensor, Var};
use lathe_kernels::{Attention, FrozenLinear};

use super::{BaseLinear, Block, Embedding, Model, ModelConfig, Norm, OutputHead, Projection};
use crate::{Error, Result, gguf::QuantizedWeight, weights::Weights};

/// What a model is loaded for; decides how its weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadFor {
    /// Chat and logits: a GGUF stays quantised.
    Inference,
    /// Adapters on a frozen base: dense f32 outside autograd.
    Lora,
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
        let loader = Loader { weights: &weights, config: &config, load_for };
        let embedding = loader.embedding()?;
        let blocks = (0..config.num_layers).map(|layer| loader.block(layer)).collect::<Result<Vec<_>>>()?;
        let final_norm = loader.norm("model.norm.weight", config.hidden_size)?;
        let head = if config.tie_word_embeddings {
            OutputHead::Tied
        } else {
            OutputHead::Own(loader.linear("lm_head", config.vocab_size, config.hidden_size)?)
        };
        let attention = Attention {
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            scale: 1.0 / (config.head_dim as f32).sqrt(),
        };
        let inverse_frequencies = config.inverse_frequencies(factors.as_deref());
        Ok(Self { config, embedding, blocks, final_norm, head, attention, inverse_frequencies })
    }

    /// A model of the given shape with fresh weights: normal(0, 0.02) matrices, ones in norms, no biases. Trainable.
    pub fn fresh(config: ModelConfig, mut normal: impl FnMut(usize) -> Vec<f32>) -> Result<Self> {
        let ModelConfig {
            hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim, ..
        } = config;
        let mut matrix = |rows: usize, columns: usize| -> Result<Var> {
            let values = normal(rows * columns).into_iter().map(|value| value * 0.02).collect::<Vec<_>>();
            Ok(Var::from_vec(values, (rows, columns), &candle_core::Device::Cpu)?)
        };
        let ones = |width: usize| -> Result<Norm> {
            Ok(Norm::Trainable(Var::ones(width, candle_core::DType::F32, &candle_core::Device::Cpu)?))
        };
        let embedding = Embedding::Trainable(matrix(config.vocab_size, hidden_size)?);
        let mut index = 0;
        let mut blocks = Vec::with_capacity(num_layers);
        for layer in 0..num_layers {
            let mut projection = |module: &str, rows, columns| -> Result<Projection> {
                index += 1;
                Ok(Projection {
                    name: format!("model.layers.{layer}.{module}"),
                    base: BaseLinear::Trainable { weight: matrix(rows, columns)?, bias: None },
                    lora: Vec::new(),
                    index,
                })
            };
            let head_norm = || -> Result<Option<Norm>> {
                (config.family == super::ModelFamily::Qwen3).then(|| ones(head_dim)).transpose()
            };
            blocks.push(Block {
                q: projection("self_attn.q_proj", num_heads * head_dim, hidden_size)?,
                k: projection("self_attn.k_proj", num_kv_heads * head_dim, hidden_size)?,
                v: projection("self_attn.v_proj", num_kv_heads * head_dim, hidden_size)?,
                o: projection("self_attn.o_proj", hidden_size, num_heads * head_dim)?,
                gate: projection("mlp.gate_proj", intermediate_size, hidden_size)?,
                up: projection("mlp.up_proj", intermediate_size, hidden_size)?,
                down: projection("mlp.down_proj", hidden_size, intermediate_size)?,
                input_norm: ones(hidden_size)?,
                post_attention_norm: ones(hidden_size)?,
                q_norm: head_norm()?,
                k_norm: head_norm()?,
            });
        }
        let head = if config.tie_word_embeddings {
            OutputHead::Tied
        } else {
            let weight = matrix(config.vocab_size, hidden_size)?;
            OutputHead::Own(BaseLinear::Trainable { weight, bias: None })
        };
        let attention =
            Attention { num_heads, num_kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt() };
        let inverse_frequencies = config.inverse_frequencies(None);
        Ok(Self {
            embedding,
            blocks,
            final_norm: ones(hidden_size)?,
            head,
            attention,
            inverse_frequencies,
            config,
        })
    }
}

struct Loader<'a> {
    weights: &'a Weights,
    config: &'a ModelConfig,
    load_for: LoadFor,
}

impl Loader<'_> {
    /// A dense tensor of exactly this shape.
    fn dense(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.weights.dense(name, self.config)?;
        if tensor.dims() != shape {
            return Err(Error::model(format!(
                "Tensor {name:?} has shape {:?}, the config says {shape:?}",
                tensor.dims()
            )));
        }
        Ok(tensor)
    }

    fn norm(&self, name: &str, width: usize) -> Result<Norm> {
        let weight = self.dense(name, &[width])?;
        Ok(match self.load_for {
            LoadFor::Full => Norm::Trainable(Var::from_tensor(&weight)?),
            LoadFor::Inference | LoadFor::Lora => Norm::Frozen(weight),
        })
    }

    fn embedding(&self) -> Result<Embedding> {
        let name = "model.embed_tokens.weight";
        if self.load_for == LoadFor::Inference
            && let Some(table) = self.weights.quantized(name, self.config)?
        {
            return Ok(Embedding::Quantized(QuantizedWeight::new(table)?));
        }
        let table = self.dense(name, &[self.config.vocab_size, self.config.hidden_size])?;
        Ok(match self.load_for {
            LoadFor::Full => Embedding::Trainable(Var::from_tensor(&table)?),
            LoadFor::Inference | LoadFor::Lora => Embedding::Frozen(table),
        })
    }

    fn linear(&self, module: &str, out_features: usize, in_features: usize) -> Result<BaseLinear> {
        let bias_name = format!("{module}.bias");
        let has_bias = self.weights.has(&bias_name);
        let bias = has_bias.then(|| self.dense(&bias_name, &[out_features])).transpose()?;
        let name = format!("{module}.weight");
        if self.load_for == LoadFor::Inference
            && let Some(weight) = self.weights.quantized(&name, self.config)?
        {
            if weight.shape().dims() != [out_features, in_features] {
                let found = weight.shape().dims();
                return Err(Error::model(format!(
                    "Tensor {name:?} has shape {found:?}, the config says [{out_features}, {in_features}]"
                )));
            }
            return Ok(BaseLinear::Gguf { weight: QuantizedWeight::new(weight)?, bias });
        }
        let weight = self.dense(&name, &[out_features, in_features])?;
        Ok(match self.load_for {
            LoadFor::Full => BaseLinear::Trainable {
                weight: Var::from_tensor(&weight)?,
                bias: bias.map(|bias| Var::from_tensor(&bias)).transpose()?,
            },
            LoadFor::Inference | LoadFor::Lora => {
                BaseLinear::Dense(FrozenLinear::new(&weight, bias.as_ref())?)
            }
        })
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
            self.weights.has(&name).then(|| self.norm(&name, head_dim)).transpose()
        };
        Ok(Block {
            q: projection("self_attn.q_proj", num_heads * head_dim, hidden_size)?,
            k: projection("self_attn.k_proj", num_kv_heads * head_dim, hidden_size)?,
            v: projection("self_attn.v_proj", num_kv_heads * head_dim, hidden_size)?,
            o: projection("self_attn.o_proj", hidden_size, num_heads * head_dim)?,
            gate: projection("mlp.gate_proj", intermediate_size, hidden_size)?,
            up: projection("mlp.up_proj", intermediate_size, hidden_size)?,
            down: projection("mlp.down_proj", hidden_size, intermediate_size)?,
            input_norm: self.norm(&format!("{prefix}.input_layernorm.weight"), hidden_size)?,
            post_attention_norm: self
                .norm(&format!("{prefix}.post_attention_layernorm.weight"), hidden_size)?,
            q_norm: head_norm("q_norm")?,
            k_norm: head_norm("k_norm")?,
        })
    }
}
