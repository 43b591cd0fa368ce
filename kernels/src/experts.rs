use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Tensor, bail};

use crate::{
    ExpertMatrices, Routing, cpu,
    expert_lora::{ExpertLora, ExpertUpdates, LowRank, pack},
    gpu, simd,
};

/// `activation(x Wᵀ + b) Dᵀ + c` with an expert's own W, b, D and c: the frozen experts of a block.
///
/// The first product's outputs are gate and up in turns.
/// Shapes: x (T,C), routing (T,K) -> (T,C), the experts' outputs summed by their weights. F32, on a GPU x in bf16.
/// Gradient: reaches x and the routing's weights. The first product is done again in the backward.
/// Source: `GptOssExperts` in transformers.
pub struct Experts {
    weights: Weights,
    pub(crate) count: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) activation: ClampedSwiGlu,
}

enum Weights {
    Host(HostWeights),
    Gpu(gpu::expert_matrices::Weights),
}

pub(crate) struct HostWeights {
    pub(crate) gate_up: ExpertMatrices,
    /// (E, 2I)
    pub(crate) gate_up_bias: Vec<f32>,
    pub(crate) down: ExpertMatrices,
    /// (E, C)
    pub(crate) down_bias: Vec<f32>,
}

/// `(up + offset) · gate · sigmoid(alpha · gate)`, gate at most `limit`, up within ±`limit`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClampedSwiGlu {
    pub alpha: f32,
    pub limit: f32,
    pub offset: f32,
}

impl ClampedSwiGlu {
    /// `up · silu(gate)`, as most models have it.
    pub const PLAIN: Self = Self { alpha: 1.0, limit: f32::INFINITY, offset: 0.0 };

    /// Gate and up as clamped, and the gate's sigmoid.
    #[inline(always)]
    fn parts(self, gate: f32, up: f32) -> (f32, f32, f32) {
        let gate = gate.min(self.limit);
        (gate, up.clamp(-self.limit, self.limit), 1.0 / (1.0 + simd::exp(-self.alpha * gate)))
    }

    /// (n, 2I) -> (n, I).
    fn forward(self, gate_up: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; gate_up.len() / 2];
        cpu::for_row_chunks(&mut y, 1, |start, y| {
            simd::dispatch(
                #[inline(always)]
                || {
                    for (y, [gate, up]) in y.iter_mut().zip(&gate_up.as_chunks::<2>().0[start..]) {
                        let (gate, up, sigmoid) = self.parts(*gate, *up);
                        *y = (up + self.offset) * gate * sigmoid;
                    }
                },
            );
        });
        y
    }

    /// Replaces gate and up (n, 2I) by their gradients, from that of the output (n, I). A clamped value has none.
    fn backward(self, gate_up: &mut [f32], dy: &[f32]) {
        cpu::for_row_chunks(gate_up, 2, |start, gate_up| {
            simd::dispatch(
                #[inline(always)]
                || {
                    for (pair, dy) in gate_up.as_chunks_mut::<2>().0.iter_mut().zip(&dy[start..]) {
                        let [raw_gate, raw_up] = *pair;
                        let (gate, up, sigmoid) = self.parts(raw_gate, raw_up);
                        let slope = sigmoid * (1.0 + self.alpha * gate * (1.0 - sigmoid));
                        let dgate = dy * (up + self.offset) * slope;
                        let dup = dy * gate * sigmoid;
                        *pair = [
                            if raw_gate <= self.limit { dgate } else { 0.0 },
                            if raw_up.abs() <= self.limit { dup } else { 0.0 },
                        ];
                    }
                },
            );
        });
    }
}

impl Experts {
    /// Biases are (E, 2I) and (E, C). Errors: sizes that contradict each other.
    pub fn new(
        (gate_up, gate_up_bias): (ExpertMatrices, &Tensor),
        (down, down_bias): (ExpertMatrices, &Tensor),
        activation: ClampedSwiGlu,
    ) -> Result<Self> {
        let (num_experts, hidden_size) = down_bias.dims2()?;
        let intermediate_size = gate_up_bias.dim(1)? / 2;
        if gate_up_bias.dims() != [num_experts, 2 * intermediate_size]
            || !gate_up.fits(num_experts, (2 * intermediate_size, hidden_size))
            || !down.fits(num_experts, (hidden_size, intermediate_size))
        {
            bail!(
                "the weights of experts do not fit biases {:?} and {:?}",
                gate_up_bias.dims(),
                down_bias.dims()
            );
        }
        let gate_up_bias = gate_up_bias.flatten_all()?.to_vec1()?;
        let down_bias = down_bias.flatten_all()?.to_vec1()?;
        let weights = Weights::Host(HostWeights { gate_up, gate_up_bias, down, down_bias });
        Ok(Self { weights, count: num_experts, hidden_size, intermediate_size, activation })
    }

    /// A copy whose weights lie in a GPU's memory: MXFP4 and NF4 as they are, others in bf16.
    ///
    /// Errors: widths that its kernels do not take; no memory; weights on a GPU already.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let shape = [self.count, self.hidden_size, self.intermediate_size];
        let weights = Weights::Gpu(gpu::expert_matrices::Weights::new(self.host()?, shape, device)?);
        Ok(Self { weights, ..*self })
    }

    fn host(&self) -> Result<&HostWeights> {
        match &self.weights {
            Weights::Host(weights) => Ok(weights),
            Weights::Gpu(_) => bail!("experts whose weights lie on a GPU, for values on the host"),
        }
    }

    pub(crate) fn gpu(&self) -> Result<&gpu::expert_matrices::Weights> {
        match &self.weights {
            Weights::Gpu(weights) => Ok(weights),
            Weights::Host(_) => bail!("experts whose weights lie on the host, for values on a GPU"),
        }
    }

    /// Weights, without the biases.
    pub fn num_parameters(&self) -> usize {
        3 * self.count * self.hidden_size * self.intermediate_size
    }

    /// (T,C) -> (T,C).
    pub fn forward(self: &Arc<Self>, x: &Tensor, routing: &Routing) -> Result<Tensor> {
        if gpu::is_on_gpu(x) {
            return gpu::experts::forward(self, x, routing, None);
        }
        let op = ExpertsOp::new(self, routing, Arc::default(), Arc::default())?;
        x.contiguous()?.apply_op2(&routing.weights, op)
    }

    /// Lays out low-rank updates of the two products: C -> 2I, gate and up in turns, and I -> C.
    ///
    /// Errors: an update of another shape than the matrices'.
    pub fn updates(&self, gate_up: &[ExpertLora], down: &[ExpertLora]) -> Result<ExpertUpdates> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let mut parts = Vec::new();
        let gate_up = pack(gate_up, [self.count, 2 * inner, hidden], &mut parts)?;
        let down = pack(down, [self.count, hidden, inner], &mut parts)?;
        Ok(ExpertUpdates { packed: Tensor::cat(&parts, 0)?, gate_up, down })
    }

    /// [`Self::forward`] with updates of the two products.
    ///
    /// Gradient: reaches the updates too. An update is multiplied with the rows of its own expert only; an expert
    /// nobody chose has gradient zero.
    pub fn forward_adapted(
        self: &Arc<Self>,
        x: &Tensor,
        routing: &Routing,
        updates: &ExpertUpdates,
    ) -> Result<Tensor> {
        if gpu::is_on_gpu(x) {
            return gpu::experts::forward(self, x, routing, Some(updates));
        }
        let ExpertUpdates { packed, gate_up, down } = updates;
        let op = ExpertsOp::new(self, routing, gate_up.clone(), down.clone())?;
        x.contiguous()?.apply_op3(&routing.weights, packed, op)
    }

    fn down_bias(&self, expert: usize) -> Result<&[f32]> {
        Ok(&self.host()?.down_bias[expert * self.hidden_size..][..self.hidden_size])
    }
}

struct ExpertsOp {
    experts: Arc<Experts>,
    /// (T·K)
    chosen: Vec<u32>,
    gate_up: Arc<[LowRank]>,
    down: Arc<[LowRank]>,
}

impl ExpertsOp {
    fn new(
        experts: &Arc<Experts>,
        routing: &Routing,
        gate_up: Arc<[LowRank]>,
        down: Arc<[LowRank]>,
    ) -> Result<Self> {
        Ok(Self { experts: experts.clone(), chosen: routing.experts()?, gate_up, down })
    }

    /// Gate and up of an expert's rows: (n, C) -> (n, 2I).
    fn gate_up(&self, expert: usize, x: &[f32], lora: &[f32]) -> Result<Vec<f32>> {
        let Experts { hidden_size, intermediate_size, .. } = &*self.experts;
        let HostWeights { gate_up, gate_up_bias, .. } = self.experts.host()?;
        let bias = &gate_up_bias[expert * 2 * intermediate_size..][..2 * intermediate_size];
        let mut y = gate_up.forward(expert, x, *hidden_size, bias)?;
        for update in self.gate_up.iter() {
            update.forward(expert, lora, x, &mut y);
        }
        Ok(y)
    }

    /// The places (token · K + rank) that go to each expert that is chosen at all.
    fn places(&self) -> Vec<(usize, Vec<usize>)> {
        let mut places = vec![Vec::new(); self.experts.count];
        for (place, expert) in self.chosen.iter().enumerate() {
            places[*expert as usize].push(place);
        }
        places.into_iter().enumerate().filter(|(_, places)| !places.is_empty()).collect()
    }

    /// The rows of `x` (T, C) that the places belong to: (n, C).
    fn gather(&self, x: &[f32], places: &[usize], k: usize) -> Vec<f32> {
        let width = self.experts.hidden_size;
        places.iter().flat_map(|place| &x[place / k * width..][..width]).copied().collect()
    }

    /// Adds `scale(place) ·` the rows (n, C) onto those of `y` (T, C) that the places belong to.
    fn scatter(&self, y: &mut [f32], rows: &[f32], places: &[usize], k: usize, scale: impl Fn(usize) -> f32) {
        let width = self.experts.hidden_size;
        for (place, row) in places.iter().zip(rows.chunks_exact(width)) {
            let y = &mut y[place / k * width..][..width];
            simd::add_scaled(y, scale(*place), row);
        }
    }
    /// x (T,C), routing weights (T,K) and the packed updates -> (T,C).
    fn run(
        &self,
        (x, x_layout): (&[f32], &Layout),
        weights: (&[f32], &Layout),
        lora: &[f32],
    ) -> Result<Vec<f32>> {
        let Experts { hidden_size, intermediate_size, .. } = *self.experts;
        let HostWeights { down, .. } = self.experts.host()?;
        let num_experts = self.experts.count;
        let (num_tokens, width) = x_layout.shape().dims2()?;
        let (num_rows, k) = weights.1.shape().dims2()?;
        let fits = width == hidden_size
            && num_rows == num_tokens
            && self.chosen.len() == num_tokens * k
            && self.chosen.iter().all(|expert| (*expert as usize) < num_experts);
        if !fits {
            bail!(
                "{num_experts} experts of width {hidden_size} for x {:?} and routing {:?}",
                x_layout.dims(),
                weights.1.dims()
            );
        }
        let mut y = vec![0.0; x.len()];
        for (expert, places) in self.places() {
            // 1. Its tokens, gate and up, activation: (n, C) -> (n, 2I) -> (n, I)
            let gate_up = self.gate_up(expert, &self.gather(x, &places, k), lora)?;
            let inner = self.experts.activation.forward(&gate_up);
            // 2. Down and back to the tokens: (n, I) -> (n, C) -> (T, C)
            let bias = self.experts.down_bias(expert)?;
            let mut rows = down.forward(expert, &inner, intermediate_size, bias)?;
            for update in self.down.iter() {
                update.forward(expert, lora, &inner, &mut rows);
            }
            self.scatter(&mut y, &rows, &places, k, |place| weights.0[place]);
        }
        Ok(y)
    }

    /// The gradients of x, the routing's weights and the packed updates.
    fn run_backward(
        &self,
        x: &[f32],
        weights: &[f32],
        k: usize,
        lora: &[f32],
        dy: &[f32],
    ) -> Result<[Vec<f32>; 3]> {
        let Experts { hidden_size, intermediate_size, activation, .. } = *self.experts;
        let HostWeights { gate_up: gate_up_matrices, down, .. } = self.experts.host()?;
        let mut dx = vec![0.0; x.len()];
        let mut dweights = vec![0.0; weights.len()];
        let mut dlora = vec![0.0; lora.len()];
        for (expert, places) in self.places() {
            // 1. What the forward had: gate and up, and the activation
            let x = self.gather(x, &places, k);
            let mut gate_up = self.gate_up(expert, &x, lora)?;
            let inner = activation.forward(&gate_up);
            // 2. Through down, without the weight: (n, C) -> (n, I)
            let mut dy = self.gather(dy, &places, k);
            let mut dinner = down.backward(expert, &dy, hidden_size, intermediate_size)?;
            for update in self.down.iter() {
                update.backward_x(expert, lora, &dy, &mut dinner);
            }
            // 3. dweight = dy · (D inner + c) = (dy D) · inner + dy · c; then the weight
            let bias = self.experts.down_bias(expert)?;
            let rows = dinner.chunks_exact_mut(intermediate_size);
            let rows = rows.zip(inner.chunks_exact(intermediate_size));
            let rows = rows.zip(dy.chunks_exact_mut(hidden_size)).zip(&places);
            for (((dinner, inner), dy), place) in rows {
                dweights[*place] = simd::dot(&*dinner, inner) + simd::dot(&*dy, bias);
                for value in dinner.iter_mut().chain(dy) {
                    *value *= weights[*place];
                }
            }
            for update in self.down.iter() {
                update.backward(expert, lora, &inner, &dy, &mut dlora);
            }
            // 4. Through the activation, gate and up: (n, I) -> (n, 2I) -> (n, C) -> (T, C)
            activation.backward(&mut gate_up, &dinner);
            let width = 2 * intermediate_size;
            let mut rows = gate_up_matrices.backward(expert, &gate_up, width, hidden_size)?;
            for update in self.gate_up.iter() {
                update.backward_x(expert, lora, &gate_up, &mut rows);
                update.backward(expert, lora, &x, &gate_up, &mut dlora);
            }
            self.scatter(&mut dx, &rows, &places, k, |_| 1.0);
        }
        Ok([dx, dweights, dlora])
    }
}

impl CustomOp2 for ExpertsOp {
    fn name(&self) -> &'static str {
        "experts"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = self.run((cpu::slice(s1, l1)?, l1), (cpu::slice(s2, l2)?, l2), &[])?;
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weights: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let k = weights.dim(1)?;
        let [dx, dweights, _] = cpu::with_slice(x, |x| {
            cpu::with_slice(weights, |weights| {
                cpu::with_slice(dy, |dy| self.run_backward(x, weights, k, &[], dy))
            })
        })?;
        Ok((Some(cpu::tensor(dx, x.shape())?), Some(cpu::tensor(dweights, weights.shape())?)))
    }
}

impl CustomOp3 for ExpertsOp {
    fn name(&self) -> &'static str {
        "experts-lora"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = self.run((cpu::slice(s1, l1)?, l1), (cpu::slice(s2, l2)?, l2), cpu::slice(s3, l3)?)?;
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weights: &Tensor,
        lora: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let k = weights.dim(1)?;
        let [dx, dweights, dlora] = cpu::with_slice(x, |x| {
            cpu::with_slice(weights, |weights| {
                cpu::with_slice(lora, |lora| {
                    cpu::with_slice(dy, |dy| self.run_backward(x, weights, k, lora, dy))
                })
            })
        })?;
        Ok((
            Some(cpu::tensor(dx, x.shape())?),
            Some(cpu::tensor(dweights, weights.shape())?),
            Some(cpu::tensor(dlora, lora.shape())?),
        ))
    }
}
