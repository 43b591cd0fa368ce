use candle_core::{Tensor, Var};
use lathe_kernels::{Dropout, FrozenLinear, LoraLinear, QuantizedLinear, linear};

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
                    Some(bias) => y.broadcast_add(bias)?,
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
            (BaseLinear::Dense(base), [lora]) => {
                let LoraWeights { a, b, scale, dropout } = lora;
                let dropout = dropout_key.filter(|_| *dropout > 0.0).map(|key| Dropout {
                    probability: *dropout as f32,
                    key: key ^ self.index.wrapping_mul(0xd6e8_feb8_6659_fd93),
                });
                Ok(LoraLinear::forward(base, x, a, b, *scale, dropout)?)
            }
            (base, adapters) => adapters.iter().try_fold(base.forward(x)?, |y, lora| {
                let low = x.matmul(&lora.a.t()?)?;
                Ok((y + (low.matmul(&lora.b.t()?)? * lora.scale)?)?)
            }),
        }
    }
}
