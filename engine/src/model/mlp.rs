use std::sync::Arc;

use candle_core::Tensor;
use lathe_kernels::{ExpertLora, ExpertUpdates, Experts, RouterSoftmax, route, swiglu};

use super::{LoraWeights, Projection};
use crate::Result;

/// What follows attention in a block.
pub enum Mlp {
    Dense { gate: Projection, up: Projection, down: Projection },
    Experts(MixtureOfExperts),
}

/// A router and the experts it chooses from, all frozen but for the adapters.
pub struct MixtureOfExperts {
    /// (T,C) -> (T,E).
    pub router: Projection,
    pub experts: Arc<Experts>,
    pub experts_per_token: usize,
    pub router_softmax: RouterSoftmax,
    /// C -> 2I.
    pub gate_up: ExpertParameter,
    /// I -> C.
    pub down: ExpertParameter,
    /// What their adapters do, once these are final.
    pub fixed_updates: Option<ExpertUpdates>,
}

/// A matrix (O, C) of every expert, as PEFT adapts it, with the adapters on it.
pub struct ExpertParameter {
    /// Path of the stack of matrices, e.g. `model.layers.0.mlp.experts.down_proj`.
    pub name: String,
    pub num_experts: usize,
    pub out_features: usize,
    pub in_features: usize,
    /// Whether its outputs are all gates, then all ups, where ours are in turns.
    pub in_halves: bool,
    /// A is (R·E, C), an expert's rows together; B (O, R·E), an expert's columns E apart.
    pub lora: Vec<LoraWeights>,
    /// Its place among the model's projections.
    pub index: u64,
}

impl MixtureOfExperts {
    /// The adapters on the experts, if there are any.
    pub fn updates(&self) -> Result<Option<ExpertUpdates>> {
        let Self { gate_up, down, fixed_updates, .. } = self;
        if fixed_updates.is_some() || (gate_up.lora.is_empty() && down.lora.is_empty()) {
            return Ok(fixed_updates.clone());
        }
        Ok(Some(self.experts.updates(&gate_up.updates()?, &down.updates()?)?))
    }

    /// (T,C) -> (T,C).
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let routing = route(&self.router.forward(x, None)?, self.experts_per_token, self.router_softmax)?;
        Ok(match self.updates()? {
            None => self.experts.forward(x, &routing)?,
            Some(updates) => self.experts.forward_adapted(x, &routing, &updates)?,
        })
    }

    /// What PEFT adapts as parameters, by name, with the adapters on it: the router is no linear to it.
    pub fn parameters(&self) -> [(String, &[LoraWeights]); 3] {
        let Self { router, gate_up, down, .. } = self;
        [
            (format!("{}.weight", router.name), &router.lora),
            (gate_up.name.clone(), &gate_up.lora),
            (down.name.clone(), &down.lora),
        ]
    }
}

impl ExpertParameter {
    /// The adapters as the kernel takes them: A (E,R,C) and B (E,O,R), outputs in our order.
    fn updates(&self) -> Result<Vec<ExpertLora>> {
        let Self { num_experts, out_features, in_features, .. } = *self;
        self.lora
            .iter()
            .map(|LoraWeights { a, b, scale, .. }| {
                let rank = a.dim(0)? / num_experts;
                let mut b = b.reshape((out_features, rank, num_experts))?;
                if self.in_halves {
                    let halves = b.reshape((2, out_features / 2, rank * num_experts))?;
                    b = halves.transpose(0, 1)?.contiguous()?.reshape((out_features, rank, num_experts))?;
                }
                let a = a.reshape((num_experts, rank, in_features))?;
                Ok(ExpertLora { a, b: b.permute((2, 0, 1))?.contiguous()?, scale: *scale })
            })
            .collect()
    }
}

impl Mlp {
    /// (T,C) -> (T,C).
    pub(super) fn forward(&self, x: &Tensor, dropout_key: Option<u64>) -> Result<Tensor> {
        match self {
            Self::Dense { gate, up, down } => {
                let inner = swiglu(&gate.forward(x, dropout_key)?, &up.forward(x, dropout_key)?)?;
                down.forward(&inner, dropout_key)
            }
            Self::Experts(experts) => experts.forward(x),
        }
    }

    /// Its linears; experts are none.
    pub(super) fn projections(&self) -> Vec<&Projection> {
        match self {
            Self::Dense { gate, up, down } => vec![gate, up, down],
            Self::Experts(_) => Vec::new(),
        }
    }

    pub(super) fn projections_mut(&mut self) -> Vec<&mut Projection> {
        match self {
            Self::Dense { gate, up, down } => vec![gate, up, down],
            Self::Experts(_) => Vec::new(),
        }
    }

    /// Weights outside its linears.
    pub(super) fn num_expert_parameters(&self) -> usize {
        match self {
            Self::Dense { .. } => 0,
            Self::Experts(MixtureOfExperts { gate_up, experts, .. }) => {
                gate_up.num_experts * gate_up.in_features + experts.num_parameters()
            }
        }
    }
}
