use std::{ops::Range, sync::Arc};

use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use crate::{
    Blocks, Mxfp4, Nf4, Routing,
    cpu::{self, Matrix, Store},
    expert_lora::{ExpertLora, ExpertUpdates, LowRank, pack},
    simd,
};

/// One matrix (O, C) an expert, frozen.
pub enum ExpertMatrices {
    /// (E, C, O) in any float type, the transpose, as transformers saves them; in f32 one expert at a time.
    Dense(Tensor),
    /// (E · O, C)
    Mxfp4(Mxfp4),
    /// Each (E · O/n, C): the outputs of an expert are those of the n matrices in turns.
    Blocks(Vec<Blocks>),
    /// Likewise, an expert's own n matrices, (O/n, C) each.
    Nf4(Vec<Vec<Nf4>>),
}

/// `activation(x Wᵀ + b) Dᵀ + c` with an expert's own W, b, D and c: the frozen experts of a block.
///
/// The first product's outputs are gate and up in turns.
/// Shapes: x (T,C), routing (T,K) -> (T,C), the experts' outputs summed by their weights. F32.
/// Gradient: reaches x and the routing's weights. The first product is done again in the backward.
/// Source: `GptOssExperts` in transformers.
pub struct Experts {
    gate_up: ExpertMatrices,
    /// (E, 2I)
    gate_up_bias: Vec<f32>,
    down: ExpertMatrices,
    /// (E, C)
    down_bias: Vec<f32>,
    hidden_size: usize,
    intermediate_size: usize,
    activation: ClampedSwiGlu,
}

/// `(up + offset) · gate · sigmoid(alpha · gate)`, gate at most `limit`, up within ±`limit`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClampedSwiGlu {
    pub alpha: f32,
    pub limit: f32,
    pub offset: f32,
}

impl ExpertMatrices {
    /// Whether these are matrices (O, C) for so many experts.
    fn fits(&self, num_experts: usize, (out_features, in_features): (usize, usize)) -> bool {
        let is_part = |shape: (usize, usize), outputs: usize, parts: usize| {
            shape == (outputs / parts, in_features) && out_features.is_multiple_of(parts)
        };
        match self {
            Self::Dense(tensor) => tensor.dims() == [num_experts, in_features, out_features],
            Self::Mxfp4(packed) => {
                (packed.num_rows(), packed.in_features()) == (num_experts * out_features, in_features)
            }
            Self::Blocks(parts) => {
                parts.iter().all(|part| is_part(part.shape(), num_experts * out_features, parts.len()))
            }
            Self::Nf4(experts) => {
                experts.len() == num_experts
                    && experts.iter().all(|parts| {
                        parts.iter().all(|part| is_part(part.shape(), out_features, parts.len()))
                    })
            }
        }
    }

    /// Calls `f(outputs, rows)` with the matrix of `expert` in parts: the rows `outputs` of it, (outputs, C).
    fn for_tiles(
        &self,
        expert: usize,
        shape @ (out_features, in_features): (usize, usize),
        mut f: impl FnMut(Range<usize>, Matrix<'_>),
    ) -> Result<()> {
        match self {
            Self::Dense(tensor) => cpu::with_slice(&tensor.get(expert)?.to_dtype(DType::F32)?, |values| {
                f(0..out_features, Matrix::new(values, in_features, out_features).t());
                Ok(())
            }),
            packed => {
                let row = |row: usize, out: &mut [f32]| packed.dequantize_row(expert, out_features, row, out);
                cpu::for_tiles(shape, row, f);
                Ok(())
            }
        }
    }

    /// Writes row `row` of the packed matrix of `expert` in f32 into `out` (C).
    fn dequantize_row(&self, expert: usize, out_features: usize, row: usize, out: &mut [f32]) {
        match self {
            Self::Dense(_) => unreachable!("dense matrices are used as they are"),
            Self::Mxfp4(packed) => packed.dequantize_row(expert * out_features + row, out),
            Self::Blocks(parts) => {
                let row = expert * out_features + row;
                parts[row % parts.len()].dequantize_row(row / parts.len(), out);
            }
            Self::Nf4(experts) => {
                let parts = &experts[expert];
                parts[row % parts.len()].dequantize_row(row / parts.len(), out);
            }
        }
    }

    /// `x Wᵀ + b`: (n, C) -> (n, O).
    fn forward(&self, expert: usize, x: &[f32], in_features: usize, bias: &[f32]) -> Result<Vec<f32>> {
        let (out_features, num_rows) = (bias.len(), x.len() / in_features);
        let mut y = bias.repeat(num_rows);
        if let Self::Dense(tensor) = self {
            cpu::with_slice(&tensor.get(expert)?.to_dtype(DType::F32)?, |weight| {
                let x = Matrix::new(x, num_rows, in_features);
                cpu::matmul(&mut y, Store::Add, 1.0, x, Matrix::new(weight, in_features, out_features));
                Ok(())
            })?;
        } else {
            cpu::add_packed_product(&mut y, x, (out_features, in_features), |row, out| {
                self.dequantize_row(expert, out_features, row, out);
            });
        }
        Ok(y)
    }

    /// `dy W`: (n, O) -> (n, C).
    fn backward(
        &self,
        expert: usize,
        dy: &[f32],
        out_features: usize,
        in_features: usize,
    ) -> Result<Vec<f32>> {
        let num_rows = dy.len() / out_features;
        let mut dx = vec![0.0; num_rows * in_features];
        self.for_tiles(expert, (out_features, in_features), |outputs, rows| {
            let dy = Matrix::strided(&dy[outputs.start..], num_rows, outputs.len(), out_features);
            cpu::matmul(&mut dx, Store::Add, 1.0, dy, rows);
        })?;
        Ok(dx)
    }
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
        Ok(Self { gate_up, gate_up_bias, down, down_bias, hidden_size, intermediate_size, activation })
    }

    fn count(&self) -> usize {
        self.down_bias.len() / self.hidden_size
    }

    /// Weights, without the biases.
    pub fn num_parameters(&self) -> usize {
        3 * self.count() * self.hidden_size * self.intermediate_size
    }

    /// (T,C) -> (T,C).
    pub fn forward(self: &Arc<Self>, x: &Tensor, routing: &Routing) -> Result<Tensor> {
        let op = ExpertsOp::new(self, routing, Arc::default(), Arc::default())?;
        x.contiguous()?.apply_op2(&routing.weights, op)
    }

    /// Lays out low-rank updates of the two products: C -> 2I, gate and up in turns, and I -> C.
    ///
    /// Errors: an update of another shape than the matrices'.
    pub fn updates(&self, gate_up: &[ExpertLora], down: &[ExpertLora]) -> Result<ExpertUpdates> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let mut parts = Vec::new();
        let gate_up = pack(gate_up, [self.count(), 2 * inner, hidden], &mut parts)?;
        let down = pack(down, [self.count(), hidden, inner], &mut parts)?;
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
        let ExpertUpdates { packed, gate_up, down } = updates;
        let op = ExpertsOp::new(self, routing, gate_up.clone(), down.clone())?;
        x.contiguous()?.apply_op3(&routing.weights, packed, op)
    }

    fn down_bias(&self, expert: usize) -> &[f32] {
        &self.down_bias[expert * self.hidden_size..][..self.hidden_size]
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
        let Experts { gate_up, gate_up_bias, hidden_size, intermediate_size, .. } = &*self.experts;
        let bias = &gate_up_bias[expert * 2 * intermediate_size..][..2 * intermediate_size];
        let mut y = gate_up.forward(expert, x, *hidden_size, bias)?;
        for update in self.gate_up.iter() {
            update.forward(expert, lora, x, &mut y);
        }
        Ok(y)
    }

    /// The places (token · K + rank) that go to each expert that is chosen at all.
    fn places(&self) -> Vec<(usize, Vec<usize>)> {
        let mut places = vec![Vec::new(); self.experts.count()];
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
        let num_experts = self.experts.count();
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
            let bias = self.experts.down_bias(expert);
            let mut rows = self.experts.down.forward(expert, &inner, intermediate_size, bias)?;
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
            let mut dinner = self.experts.down.backward(expert, &dy, hidden_size, intermediate_size)?;
            for update in self.down.iter() {
                update.backward_x(expert, lora, &dy, &mut dinner);
            }
            // 3. dweight = dy · (D inner + c) = (dy D) · inner + dy · c; then the weight
            let rows = dinner.chunks_exact_mut(intermediate_size);
            let rows = rows.zip(inner.chunks_exact(intermediate_size));
            let rows = rows.zip(dy.chunks_exact_mut(hidden_size)).zip(&places);
            for (((dinner, inner), dy), place) in rows {
                dweights[*place] =
                    simd::dot(&*dinner, inner) + simd::dot(&*dy, self.experts.down_bias(expert));
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
            let mut rows = self.experts.gate_up.backward(expert, &gate_up, width, hidden_size)?;
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
