use std::{ops::Range, sync::Arc};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout, Result, Shape, Tensor, bail};

use crate::{
    Nf4,
    cpu::{self, Matrix, Store, TILE_ROWS},
    gpu::{self, GpuNf4, Operand},
    simd,
};

/// A projection whose weight is frozen: `y = x Wᵀ + b`.
///
/// Shapes: x (T,C), W (O,C), b (O) -> (T,O). F32; the weight may be bf16 or NF4, of which a tile of rows exists in f32
/// at a time. On a GPU ([`FrozenLinear::to_device`]) bf16 or NF4, x in bf16 and the bias in f32.
/// Gradient: reaches x only; the weight never enters autograd.
#[derive(Clone)]
pub struct FrozenLinear {
    weight: Weight,
    bias: Option<Tensor>,
}

#[derive(Clone)]
enum Weight {
    Dense(Tensor),
    Nf4(Arc<Nf4>),
    GpuNf4(Arc<GpuNf4>),
}

impl FrozenLinear {
    /// Errors: a weight that is no matrix, a bias of another length.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        Self::with_weight(Weight::Dense(weight.contiguous()?.detach()), weight.dims2()?, bias)
    }

    /// Errors: a bias of another length.
    pub fn nf4(weight: Nf4, bias: Option<&Tensor>) -> Result<Self> {
        let shape = weight.shape();
        Self::with_weight(Weight::Nf4(Arc::new(weight)), shape, bias)
    }

    /// Likewise, of a weight in a GPU's memory.
    pub fn gpu_nf4(weight: GpuNf4, bias: Option<&Tensor>) -> Result<Self> {
        let shape = weight.shape();
        let bias = bias.map(|bias| bias.to_dtype(DType::F32)).transpose()?;
        Self::with_weight(Weight::GpuNf4(Arc::new(weight)), shape, bias.as_ref())
    }

    /// A copy in a GPU's memory: NF4 stays so, any other weight is bf16 there.
    ///
    /// Errors: no memory, a width that no kernel takes.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let weight = match &self.weight {
            Weight::Dense(weight) => Weight::Dense(weight.to_dtype(DType::BF16)?.to_device(device)?),
            Weight::Nf4(packed) => Weight::GpuNf4(Arc::new(GpuNf4::new(packed, device)?)),
            Weight::GpuNf4(packed) => Weight::GpuNf4(packed.clone()),
        };
        let bias = self.bias.as_ref().map(|bias| bias.to_dtype(DType::F32)?.to_device(device)).transpose()?;
        Ok(Self { weight, bias })
    }

    /// The weight as a GPU's kernels take it. Errors: one that is not there.
    pub(crate) fn operand(&self) -> Result<Operand<'_>> {
        match &self.weight {
            Weight::Dense(weight) if gpu::is_on_gpu(weight) => Ok(Operand::Bf16(weight)),
            Weight::GpuNf4(packed) => Ok(Operand::Nf4(packed)),
            Weight::Dense(_) | Weight::Nf4(_) => bail!("a weight {:?} is not on the GPU", self.shape()),
        }
    }

    fn with_weight(weight: Weight, shape: (usize, usize), bias: Option<&Tensor>) -> Result<Self> {
        if let Some(bias) = bias
            && bias.dims() != [shape.0]
        {
            bail!("bias {:?} does not fit weight {shape:?}", bias.dims());
        }
        Ok(Self { weight, bias: bias.map(Tensor::detach) })
    }

    /// The same weight, shared, without its bias.
    #[must_use]
    pub fn without_bias(&self) -> Self {
        Self { weight: self.weight.clone(), bias: None }
    }

    /// (O)
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// The norms of the rows of `W + scale · B A`, outside autograd.
    ///
    /// Shapes: A (R,C), B (O,R) -> (O). F32.
    /// Source: DoRA, arXiv 2402.09353, section 4.3.
    pub fn adapted_row_norms(&self, lora_a: &Tensor, lora_b: &Tensor, scale: f64) -> Result<Tensor> {
        let (out_features, in_features) = self.shape();
        let rank = lora_a.dim(0)?;
        if lora_a.dims() != [rank, in_features] || lora_b.dims() != [out_features, rank] {
            bail!(
                "A {:?} and B {:?} do not fit the base {out_features} x {in_features}",
                lora_a.dims(),
                lora_b.dims()
            );
        }
        if let Ok(weight) = self.operand() {
            return gpu::linear::adapted_row_norms(weight, lora_a, lora_b, scale as f32);
        }
        let mut norms = Vec::with_capacity(out_features);
        cpu::with_slice(lora_a, |a| {
            cpu::with_slice(lora_b, |b| {
                let a = Matrix::new(a, rank, in_features);
                self.for_tiles(|outputs, weight| {
                    for first in outputs.clone().step_by(TILE_ROWS) {
                        let count = TILE_ROWS.min(outputs.end - first);
                        let mut rows = weight.rows(first - outputs.start, count).to_vec();
                        let b = Matrix::new(&b[first * rank..], count, rank);
                        cpu::matmul(&mut rows, Store::Add, scale as f32, b, a);
                        norms.extend(rows.chunks_exact(in_features).map(|row| simd::dot(row, row).sqrt()));
                    }
                })
            })
        })?;
        cpu::tensor(norms, &out_features.into())
    }

    /// (O, C). Errors: a weight held in NF4.
    pub fn weight(&self) -> Result<&Tensor> {
        match &self.weight {
            Weight::Dense(weight) => Ok(weight),
            Weight::Nf4(_) | Weight::GpuNf4(_) => bail!("a weight held in NF4 is no tensor"),
        }
    }

    /// (O, C).
    pub fn shape(&self) -> (usize, usize) {
        match &self.weight {
            Weight::Dense(weight) => (weight.dims()[0], weight.dims()[1]),
            Weight::Nf4(packed) => packed.shape(),
            Weight::GpuNf4(packed) => packed.shape(),
        }
    }

    /// Calls `f(outputs, rows)` with the weight in parts: the rows `outputs` of it, (outputs, C).
    pub(crate) fn for_tiles(&self, mut f: impl FnMut(Range<usize>, Matrix<'_>)) -> Result<()> {
        match &self.weight {
            Weight::Dense(weight) if weight.dtype() == DType::BF16 => {
                cpu::with_bf16_rows(weight, |row| cpu::for_tiles(self.shape(), row, f))
            }
            Weight::Dense(weight) => cpu::with_slice(weight, |values| {
                let (out_features, in_features) = self.shape();
                f(0..out_features, Matrix::new(values, out_features, in_features));
                Ok(())
            }),
            Weight::Nf4(packed) => {
                packed.for_tiles(f);
                Ok(())
            }
            Weight::GpuNf4(_) => bail!("a weight on the GPU, for an input that is not"),
        }
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if gpu::is_on_gpu(x) {
            return gpu::linear::frozen(self, x);
        }
        x.contiguous()?.apply_op1(self.clone())
    }

    /// `x Wᵀ + b` for `num_rows` rows.
    pub(crate) fn forward_slice(&self, x: &[f32], num_rows: usize) -> Result<Vec<f32>> {
        let (out_features, in_features) = self.shape();
        let mut y = vec![0.0; num_rows * out_features];
        match &self.weight {
            Weight::Dense(weight) if weight.dtype() == DType::BF16 => {
                cpu::with_bf16_rows(weight, |row| cpu::add_packed_product(&mut y, x, self.shape(), row))?;
            }
            Weight::Dense(weight) => cpu::with_slice(weight, |weight| {
                let x = Matrix::new(x, num_rows, in_features);
                let weight = Matrix::new(weight, out_features, in_features);
                cpu::matmul(&mut y, Store::Overwrite, 1.0, x, weight.t());
                Ok(())
            })?,
            Weight::Nf4(packed) => {
                cpu::add_packed_product(&mut y, x, self.shape(), |row, out| packed.dequantize_row(row, out));
            }
            Weight::GpuNf4(_) => bail!("a weight on the GPU, for an input that is not"),
        }
        if let Some(bias) = &self.bias {
            cpu::with_slice(bias, |bias| {
                cpu::for_row_chunks(&mut y, out_features, |_, rows| {
                    for row in rows.chunks_exact_mut(out_features) {
                        row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
                    }
                });
                Ok(())
            })?;
        }
        Ok(y)
    }

    /// `dy W` for `num_rows` rows.
    pub(crate) fn backward_slice(&self, dy: &[f32], num_rows: usize) -> Result<Vec<f32>> {
        let (out_features, in_features) = self.shape();
        let mut dx = vec![0.0; num_rows * in_features];
        self.for_tiles(|outputs, rows| {
            let store = if outputs.start == 0 { Store::Overwrite } else { Store::Add };
            let dy = Matrix::strided(&dy[outputs.start..], num_rows, outputs.len(), out_features);
            cpu::matmul(&mut dx, store, 1.0, dy, rows);
        })?;
        Ok(dx)
    }
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (num_rows, in_features) = layout.shape().dims2()?;
        let (out_features, expected) = self.shape();
        if in_features != expected {
            bail!("input of width {in_features} for a weight {out_features} x {expected}");
        }
        let y = self.forward_slice(cpu::slice(storage, layout)?, num_rows)?;
        Ok((CpuStorage::F32(y), (num_rows, out_features).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = cpu::with_slice(dy, |dy_values| self.backward_slice(dy_values, x.dim(0)?))?;
        Ok(Some(cpu::tensor(dx, x.shape())?))
    }
}

/// A projection whose weight learns: `y = x Wᵀ`. Gradient: reaches x and W.
///
/// Shapes: x (T,C), W (O,C) -> (T,O). F32; on a GPU x in bf16.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if gpu::is_on_gpu(x) {
        return gpu::linear::trainable(x, weight);
    }
    x.contiguous()?.apply_op2(&weight.contiguous()?, TrainableLinear)
}

struct TrainableLinear;

impl CustomOp2 for TrainableLinear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (num_rows, in_features) = l1.shape().dims2()?;
        let (out_features, expected) = l2.shape().dims2()?;
        if in_features != expected {
            bail!("input of width {in_features} for a weight {out_features} x {expected}");
        }
        let mut y = vec![0.0; num_rows * out_features];
        cpu::matmul(
            &mut y,
            Store::Overwrite,
            1.0,
            Matrix::new(cpu::slice(s1, l1)?, num_rows, in_features),
            Matrix::new(cpu::slice(s2, l2)?, out_features, in_features).t(),
        );
        Ok((CpuStorage::F32(y), (num_rows, out_features).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (out_features, in_features) = weight.dims2()?;
        let num_rows = x.dim(0)?;
        let mut dx = vec![0.0; num_rows * in_features];
        let mut dweight = vec![0.0; out_features * in_features];
        cpu::with_slice(dy, |dy| {
            let dy = Matrix::new(dy, num_rows, out_features);
            cpu::with_slice(weight, |weight| {
                cpu::matmul(
                    &mut dx,
                    Store::Overwrite,
                    1.0,
                    dy,
                    Matrix::new(weight, out_features, in_features),
                );
                Ok(())
            })?;
            cpu::with_slice(x, |x| {
                cpu::matmul(
                    &mut dweight,
                    Store::Overwrite,
                    1.0,
                    dy.t(),
                    Matrix::new(x, num_rows, in_features),
                );
                Ok(())
            })
        })?;
        Ok((Some(cpu::tensor(dx, x.shape())?), Some(cpu::tensor(dweight, weight.shape())?)))
    }
}
