use candle_core::{Tensor, Var};
use lathe_kernels::{Dropout, FrozenLinear, LoraLinear, QuantizedLinear, add_low_rank, linear};

use crate::Result;

/// A projection without its adapters.
pub enum BaseLinear {
    Dense(FrozenLinear),
    Trainable {
        weight: Var,
        bias: Option<Var>,
    },
    /// For inference: no gradient.
    Gguf {
        weight: QuantizedLinear,
        bias: Option<Tensor>,
    },
}

/// One adapter of one projection.
#[derive(Clone)]
pub struct LoraWeights {
    /// (R, C)
    pub a: Var,
    /// (O, R)
    pub b: Var,
    /// `alpha / r`, or `alpha / sqrt(r)`.
    pub scale: f64,
    pub dropout: f64,
    pub dora: Option<Dora>,
}

/// What DoRA adds to an adapter: the length of each row of the adapted weight, learned apart from its direction.
#[derive(Clone)]
pub struct Dora {
    /// (O)
    pub magnitude: Var,
    /// The rows' norms (O), once A and B are final.
    pub norms: Option<Tensor>,
}

/// A linear of a block, with the adapters on it.
pub struct Projection {
    /// Module path, e.g. `model.layers.0.self_attn.q_proj`.
    pub name: String,
    pub base: BaseLinear,
    pub lora: Vec<LoraWeights>,
    /// Its place among the model's projections; tells their dropout masks apart.
    pub index: u64,
}

impl BaseLinear {
    /// (T,C) -> (T,O).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(frozen) => Ok(frozen.forward(x)?),
            Self::Trainable { weight, bias } => {
                let y = linear(x, weight)?;
                Ok(match bias {
                    Some(bias) => y.broadcast_add(&bias.to_dtype(y.dtype())?)?,
                    None => y,
                })
            }
            Self::Gguf { weight, bias } => {
                let y = weight.forward(x)?;
                Ok(match bias {
                    Some(bias) => y.broadcast_add(bias)?,
                    None => y,
                })
            }
        }
    }

    /// The norms (O) of the rows of `W + scale · B A`, outside autograd.
    pub fn adapted_row_norms(&self, lora: &LoraWeights) -> Result<Tensor> {
        let LoraWeights { a, b, scale, .. } = lora;
        Ok(match self {
            Self::Dense(frozen) => frozen.adapted_row_norms(a, b, *scale)?,
            Self::Trainable { weight, .. } => {
                FrozenLinear::new(weight, None)?.adapted_row_norms(a, b, *scale)?
            }
            Self::Gguf { weight, .. } => {
                FrozenLinear::new(&weight.dequantize()?, None)?.adapted_row_norms(a, b, *scale)?
            }
        })
    }

    /// (O, C).
    pub fn shape(&self) -> Result<(usize, usize)> {
        Ok(match self {
            Self::Dense(frozen) => frozen.shape(),
            Self::Trainable { weight, .. } => weight.dims2()?,
            Self::Gguf { weight, .. } => weight.shape(),
        })
    }
}

impl Projection {
    /// (T,C) -> (T,O), adapters included.
    pub fn forward(&self, x: &Tensor, dropout_key: Option<u64>) -> Result<Tensor> {
        match (&self.base, self.lora.as_slice()) {
            (base, [lora @ LoraWeights { dora: Some(dora), .. }]) => {
                lora.with_magnitudes(dora, base, x, self.dropout(lora, dropout_key))
            }
            (BaseLinear::Dense(base), [lora]) => {
                let LoraWeights { a, b, scale, .. } = lora;
                Ok(LoraLinear::forward(base, x, a, b, *scale, self.dropout(lora, dropout_key))?)
            }
            (base @ BaseLinear::Gguf { .. }, adapters) => {
                let add = |y: Tensor, LoraWeights { a, b, scale, .. }: &LoraWeights| {
                    Ok(add_low_rank(&y, x, a, b, *scale)?)
                };
                adapters.iter().try_fold(base.forward(x)?, add)
            }
            (base, adapters) => {
                adapters.iter().try_fold(base.forward(x)?, |y, lora| Ok((y + lora.update(x)?)?))
            }
        }
    }

    fn dropout(&self, lora: &LoraWeights, key: Option<u64>) -> Option<Dropout> {
        key.filter(|_| lora.dropout > 0.0).map(|key| Dropout {
            probability: lora.dropout as f32,
            key: key ^ self.index.wrapping_mul(0xd6e8_feb8_6659_fd93),
        })
    }
}

impl LoraWeights {
    /// `scale · (x Aᵀ) Bᵀ`: (T,C) -> (T,O).
    fn update(&self, x: &Tensor) -> Result<Tensor> {
        let [a, b] = [&self.a, &self.b].map(|weight| weight.to_dtype(x.dtype()));
        Ok((x.matmul(&a?.t()?)?.matmul(&b?.t()?)? * self.scale)?)
    }

    /// `m/‖V‖ · V x + b` with V = W + scale · B A; with dropout `m/‖V‖ · V d + W (x − d) + b`, d the rest of x.
    ///
    /// Gradient: reaches x, A, B and m; the norms are constants to it.
    /// Source: DoRA, arXiv 2402.09353, as PEFT's `DoraLinearLayer` has it.
    fn with_magnitudes(
        &self,
        dora: &Dora,
        base: &BaseLinear,
        x: &Tensor,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        let norms = match &dora.norms {
            Some(norms) => norms.clone(),
            None => base.adapted_row_norms(self)?,
        };
        let factors = (dora.magnitude.as_tensor() / norms)?.to_dtype(x.dtype())?;
        let dropped = dropout.map(|dropout| dropout.forward(x)).transpose()?;
        let input = dropped.as_ref().unwrap_or(x);
        let (product, bias) = match base {
            BaseLinear::Dense(frozen) => {
                let plain = frozen.without_bias();
                let product = LoraLinear::forward(&plain, input, &self.a, &self.b, self.scale, None)?;
                (product, frozen.bias())
            }
            BaseLinear::Trainable { weight, bias } => {
                ((linear(input, weight)? + self.update(input)?)?, bias.as_ref().map(Var::as_tensor))
            }
            BaseLinear::Gguf { weight, bias } => {
                ((weight.forward(input)? + self.update(input)?)?, bias.as_ref())
            }
        };
        let y = product.broadcast_mul(&factors)?;
        Ok(match (&dropped, bias) {
            (Some(dropped), _) => (y + base.forward(&(x - dropped)?)?)?,
            (None, Some(bias)) => y.broadcast_add(&bias.to_dtype(y.dtype())?)?,
            (None, None) => y,
        })
    }
}
