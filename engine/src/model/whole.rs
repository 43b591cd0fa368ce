use candle_core::{Tensor, Var};
use lathe_kernels::FrozenLinear;

use super::{BaseLinear, Block, Compute, Embedding, Model, Norm, OutputHead};
use crate::{Error, Result};

const EMBEDDING: &str = "model.embed_tokens";
const HEAD: &str = "lm_head";

/// A tensor that learns.
pub struct Trainable {
    /// PEFT's name of an adapter's tensor, Hugging Face's of a weight.
    pub name: String,
    pub var: Var,
    /// Whether weight decay applies (all but norms and biases).
    pub decays: bool,
}

impl Block {
    /// Its norms by the last parts of their modules' names.
    fn norms(&self) -> impl Iterator<Item = (&'static str, &Norm)> {
        let Self { input_norm, post_attention_norm, q_norm, k_norm, .. } = self;
        [
            ("input_layernorm", Some(input_norm)),
            ("post_attention_layernorm", Some(post_attention_norm)),
            ("self_attn.q_norm", q_norm.as_ref()),
            ("self_attn.k_norm", k_norm.as_ref()),
        ]
        .into_iter()
        .filter_map(|(name, norm)| Some((name, norm?)))
    }

    fn norm_mut(&mut self, name: &str) -> Option<&mut Norm> {
        let Self { input_norm, post_attention_norm, q_norm, k_norm, .. } = self;
        match name {
            "input_layernorm" => Some(input_norm),
            "post_attention_layernorm" => Some(post_attention_norm),
            "self_attn.q_norm" => q_norm.as_mut(),
            "self_attn.k_norm" => k_norm.as_mut(),
            _ => None,
        }
    }
}

impl Norm {
    fn make_trainable(&mut self, stored: Option<Tensor>, compute: &Compute) -> Result<()> {
        if let Self::Frozen(weight) = self {
            *self = Self::Trainable(compute.var(&stored.unwrap_or(weight.clone()))?);
        }
        Ok(())
    }
}

impl Model {
    /// Every weight that learns whole, in a fixed order.
    pub fn whole_weights(&self) -> Vec<Trainable> {
        let mut found = Vec::new();
        let mut push =
            |name: String, var: &Var, decays: bool| found.push(Trainable { name, var: var.clone(), decays });
        if let Embedding::Trainable(table) = &self.embedding {
            push(format!("{EMBEDDING}.weight"), table, true);
        }
        for (layer, block) in self.blocks.iter().enumerate() {
            for (name, norm) in block.norms() {
                if let Norm::Trainable(weight) = norm {
                    push(format!("model.layers.{layer}.{name}.weight"), weight, false);
                }
            }
        }
        for projection in self.projections() {
            if let BaseLinear::Trainable { weight, bias } = &projection.base {
                push(format!("{}.weight", projection.name), weight, true);
                if let Some(bias) = bias {
                    push(format!("{}.bias", projection.name), bias, false);
                }
            }
        }
        if let Norm::Trainable(weight) = &self.final_norm {
            push("model.norm.weight".into(), weight, false);
        }
        if let OutputHead::Own(BaseLinear::Trainable { weight, .. }) = &self.head {
            push(format!("{HEAD}.weight"), weight, true);
        }
        found
    }

    /// The modules that may learn whole beside an adapter, by name.
    pub fn modules_to_save(&self) -> Vec<String> {
        let norms = self.blocks.iter().enumerate().flat_map(|(layer, block)| {
            block.norms().map(move |(name, _)| format!("model.layers.{layer}.{name}"))
        });
        let ends = ["model.norm".to_owned(), HEAD.to_owned()];
        [EMBEDDING.to_owned()].into_iter().chain(norms).chain(ends).collect()
    }

    /// Lets one of [`Self::modules_to_save`] learn, from `stored` or from what it is.
    ///
    /// Where embedding and output projection are one table, they are two from here on, as with PEFT: the other one
    /// keeps the frozen table.
    /// Errors: a module that learns already; a `stored` weight of another shape.
    pub fn make_trainable(&mut self, module: &str, stored: Option<Tensor>) -> Result<()> {
        let name = format!("{module}.weight");
        if self.whole_weights().iter().any(|weight| weight.name == name) {
            return Err(Error::model(format!("Two adapters replace {module:?}")).hint("wear one of them"));
        }
        let table_shape = [self.config.vocab_size, self.config.hidden_size];
        let shape = match module {
            EMBEDDING | HEAD => table_shape.to_vec(),
            _ if module.ends_with("self_attn.q_norm") || module.ends_with("self_attn.k_norm") => {
                vec![self.config.head_dim]
            }
            _ => vec![self.config.hidden_size],
        };
        if let Some(stored) = &stored
            && stored.dims() != shape
        {
            let found = stored.dims();
            return Err(Error::model(format!("{name:?} has shape {found:?}, the model wants {shape:?}")));
        }
        let compute = self.compute.clone();
        match module {
            EMBEDDING => {
                let table = stored.map_or_else(|| self.embedding.dense(), Ok)?;
                let learned = Embedding::Trainable(compute.var(&table)?);
                let frozen = std::mem::replace(&mut self.embedding, learned);
                if matches!(self.head, OutputHead::Tied) {
                    self.head = OutputHead::Own(match frozen {
                        Embedding::Quantized(weight) => BaseLinear::Gguf { weight, bias: None },
                        Embedding::Frozen(table) => BaseLinear::Dense(FrozenLinear::new(&table, None)?),
                        Embedding::Trainable(table) => BaseLinear::Trainable { weight: table, bias: None },
                    });
                }
            }
            HEAD => {
                let own = |base: &BaseLinear| match base {
                    BaseLinear::Dense(frozen) => Ok(frozen.weight()?.clone()),
                    BaseLinear::Trainable { weight, .. } => Ok(weight.as_tensor().clone()),
                    BaseLinear::Gguf { weight, .. } => weight.dequantize(),
                };
                let weight = match (stored, &self.head) {
                    (Some(stored), _) => stored,
                    (None, OutputHead::Own(base)) => own(base)?,
                    (None, OutputHead::Tied) => self.embedding.dense()?,
                };
                let weight = compute.var(&weight)?;
                self.head = OutputHead::Own(BaseLinear::Trainable { weight, bias: None });
            }
            "model.norm" => self.final_norm.make_trainable(stored, &compute)?,
            _ => {
                let parts = module.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
                let norm = parts.and_then(|(layer, name)| {
                    self.blocks.get_mut(layer.parse::<usize>().ok()?)?.norm_mut(name)
                });
                let norm =
                    norm.ok_or_else(|| Error::model(format!("No module {module:?} can learn whole")))?;
                norm.make_trainable(stored, &compute)?;
            }
        }
        Ok(())
    }
}
