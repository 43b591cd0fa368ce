use std::sync::Arc;

use candle_core::Tensor;
use lathe_kernels::{Experts, FrozenLinear, RouterSoftmax, route, swiglu};

use super::Projection;
use crate::Result;

/// What follows attention in a block.
#[expect(clippy::large_enum_variant, reason = "there is one a layer, and most are dense")]
pub enum Mlp {
    Dense { gate: Projection, up: Projection, down: Projection },
    Experts(MixtureOfExperts),
}

/// A router and the experts it chooses from, all frozen.
pub struct MixtureOfExperts {
    /// (T,C) -> (T,E).
    pub router: FrozenLinear,
    pub experts: Arc<Experts>,
    pub experts_per_token: usize,
    pub router_softmax: RouterSoftmax,
}

impl Mlp {
    /// (T,C) -> (T,C).
    pub(super) fn forward(&self, x: &Tensor, dropout_key: Option<u64>) -> Result<Tensor> {
        match self {
            Self::Dense { gate, up, down } => {
                let inner = swiglu(&gate.forward(x, dropout_key)?, &up.forward(x, dropout_key)?)?;
                down.forward(&inner, dropout_key)
            }
            Self::Experts(MixtureOfExperts { router, experts, experts_per_token, router_softmax }) => {
                let routing = route(&router.forward(x)?, *experts_per_token, *router_softmax)?;
                Ok(experts.forward(x, &routing)?)
            }
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
            Self::Experts(MixtureOfExperts { router, experts, .. }) => {
                let (num_experts, hidden_size) = router.shape();
                num_experts * hidden_size + experts.num_parameters()
            }
        }
    }
}
