use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use crate::{cpu, gpu};

/// Which experts each token goes to, and with which weights.
pub struct Routing {
    /// (T,K)
    pub weights: Tensor,
    pub(crate) experts: Chosen,
}

/// Experts (T·K), row by row, where they were chosen.
pub(crate) enum Chosen {
    Host(Arc<Vec<u32>>),
    Gpu(Tensor),
}

impl Routing {
    /// The chosen experts (T·K), row by row; from a GPU it waits for them.
    pub fn experts(&self) -> Result<Vec<u32>> {
        match &self.experts {
            Chosen::Host(experts) => Ok(experts.to_vec()),
            Chosen::Gpu(experts) => experts.to_vec1(),
        }
    }
}

/// What the chosen experts' weights are a softmax over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterSoftmax {
    /// The chosen alone, so that they sum to 1.
    Chosen,
    /// All experts, so that what the others would have is missing.
    All,
}

/// The `k` greatest of each token's logits, and their shares of the softmax.
///
/// Shapes: logits (T,E) -> weights (T,K). F32, on a GPU also logits in bf16. Equal logits: the lower expert first.
/// Gradient: reaches the logits that the softmax is over; the choice itself has none.
/// Errors: more experts asked for than there are.
/// Source: `GptOssTopKRouter` and `Qwen3MoeTopKRouter` (with and without `norm_topk_prob`) in transformers.
pub fn route(logits: &Tensor, k: usize, softmax: RouterSoftmax) -> Result<Routing> {
    if gpu::is_on_gpu(logits) {
        return gpu::routing::route(logits, k, softmax);
    }
    let experts = Arc::new(OnceLock::new());
    let weights = logits.contiguous()?.apply_op1(TopKSoftmax { k, softmax, experts: experts.clone() })?;
    match experts.get() {
        Some(experts) => Ok(Routing { weights, experts: Chosen::Host(Arc::clone(experts)) }),
        None => bail!("a routing op that never ran"),
    }
}

struct TopKSoftmax {
    k: usize,
    softmax: RouterSoftmax,
    /// What the forward chose.
    experts: Arc<OnceLock<Arc<Vec<u32>>>>,
}

impl CustomOp1 for TopKSoftmax {
    fn name(&self) -> &'static str {
        "top-k-softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (num_tokens, num_experts) = layout.shape().dims2()?;
        let k = self.k;
        if k == 0 || k > num_experts {
            bail!("{k} of {num_experts} experts a token");
        }
        let mut experts = Vec::with_capacity(num_tokens * k);
        let mut weights = Vec::with_capacity(num_tokens * k);
        let mut order: Vec<u32> = (0..num_experts as u32).collect();
        for logits in cpu::slice(storage, layout)?.chunks_exact(num_experts) {
            order.sort_unstable_by(|a, b| {
                logits[*b as usize].total_cmp(&logits[*a as usize]).then_with(|| a.cmp(b))
            });
            let chosen = &order[..k];
            let greatest = logits[chosen[0] as usize];
            let exp = |expert: &u32| (logits[*expert as usize] - greatest).exp();
            let sum: f32 = match self.softmax {
                RouterSoftmax::Chosen => chosen.iter().map(exp).sum(),
                RouterSoftmax::All => order.iter().map(exp).sum(),
            };
            weights.extend(chosen.iter().map(|expert| exp(expert) / sum));
            experts.extend_from_slice(chosen);
        }
        self.experts
            .set(Arc::new(experts))
            .map_err(|_| candle_core::Error::Msg("a routing op ran twice".into()))?;
        Ok((CpuStorage::F32(weights), (num_tokens, k).into()))
    }

    /// `dlogit = w · (dw − Σ w·dw)`, where experts that were not chosen have no dw.
    fn bwd(&self, logits: &Tensor, weights: &Tensor, dweights: &Tensor) -> Result<Option<Tensor>> {
        let Some(experts) = self.experts.get() else { bail!("backward of a routing op that never ran") };
        let (num_experts, shape) = (logits.dim(1)?, logits.shape().clone());
        let mut dlogits = vec![0.0; shape.elem_count()];
        let logits: Vec<f32> = logits.flatten_all()?.to_vec1()?;
        cpu::with_slice(weights, |weights| {
            cpu::with_slice(dweights, |dweights| {
                let rows = weights.chunks_exact(self.k).zip(dweights.chunks_exact(self.k));
                let rows = rows.zip(experts.chunks_exact(self.k)).zip(logits.chunks_exact(num_experts));
                for (dlogits, (((w, dw), experts), logits)) in dlogits.chunks_exact_mut(num_experts).zip(rows)
                {
                    let mean: f32 = w.iter().zip(dw).map(|(w, dw)| w * dw).sum();
                    if self.softmax == RouterSoftmax::All {
                        let greatest = logits[experts[0] as usize];
                        for (dlogit, logit) in dlogits.iter_mut().zip(logits) {
                            *dlogit = -mean * w[0] * (logit - greatest).exp();
                        }
                    }
                    for ((w, dw), expert) in w.iter().zip(dw).zip(experts) {
                        dlogits[*expert as usize] = w * (dw - mean);
                    }
                }
                Ok(())
            })
        })?;
        Ok(Some(cpu::tensor(dlogits, &shape)?))
    }
}
