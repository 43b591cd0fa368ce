use std::{borrow::Cow, sync::OnceLock};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::{
    Dropout, FrozenLinear,
    cpu::{self, Matrix, Store},
    gpu,
};

/// Adds the low-rank update `scale · (dropout(x) Aᵀ) Bᵀ` to the frozen projection of `x`.
///
/// Shapes: x (T,C), A (R,C), B (O,R) -> (T,O). F32; on a GPU x in bf16.
/// Gradient: reaches x, A and B, never the base weight.
/// Source: LoRA, arXiv 2106.09685, eq. 3.
pub struct LoraLinear {
    base: FrozenLinear,
    scale: f32,
    dropout: Option<Dropout>,
    /// `dropout(x) Aᵀ` (T,R), kept from the forward for B's gradient.
    low: OnceLock<Vec<f32>>,
}

impl LoraLinear {
    pub fn forward(
        base: &FrozenLinear,
        x: &Tensor,
        lora_a: &Tensor,
        lora_b: &Tensor,
        scale: f64,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        if gpu::is_on_gpu(x) {
            return gpu::lora::lora(base, x, [lora_a, lora_b], scale as f32, dropout);
        }
        let op = Self { base: base.clone(), scale: scale as f32, dropout, low: OnceLock::new() };
        x.contiguous()?.apply_op3(lora_a, lora_b, op)
    }

    fn dropped<'a>(&self, x: &'a [f32]) -> Cow<'a, [f32]> {
        match &self.dropout {
            None => Cow::Borrowed(x),
            Some(dropout) => {
                let mut x = x.to_vec();
                dropout.apply(&mut x);
                Cow::Owned(x)
            }
        }
    }
}

/// Adds the low-rank update `scale · (x Aᵀ) Bᵀ` to `y`, for inference: no gradient.
///
/// Shapes: y (T,O), x (T,C), A (R,C), B (O,R) -> (T,O). F32; on a GPU y and x in bf16.
pub fn add_low_rank(y: &Tensor, x: &Tensor, lora_a: &Tensor, lora_b: &Tensor, scale: f64) -> Result<Tensor> {
    let (rank, in_features) = lora_a.dims2()?;
    let (num_rows, out_features) = y.dims2()?;
    if x.dims() != [num_rows, in_features] || lora_b.dims() != [out_features, rank] {
        bail!(
            "x {:?}, A {rank} x {in_features} and B {:?} do not fit y {:?}",
            x.dims(),
            lora_b.dims(),
            y.dims()
        );
    }
    if gpu::is_on_gpu(x) {
        return gpu::lora::add_low_rank(y, x, lora_a, lora_b, scale as f32);
    }
    let mut sum = cpu::with_slice(y, |y| Ok(y.to_vec()))?;
    let mut low = vec![0.0; num_rows * rank];
    cpu::with_slice(lora_a, |a| {
        cpu::with_slice(x, |x| {
            let x = Matrix::new(x, num_rows, in_features);
            cpu::matmul(&mut low, Store::Overwrite, 1.0, x, Matrix::new(a, rank, in_features).t());
            Ok(())
        })
    })?;
    cpu::with_slice(lora_b, |b| {
        let low = Matrix::new(&low, num_rows, rank);
        cpu::matmul(&mut sum, Store::Add, scale as f32, low, Matrix::new(b, out_features, rank).t());
        Ok(())
    })?;
    cpu::tensor(sum, y.shape())
}

impl CustomOp3 for LoraLinear {
    fn name(&self) -> &'static str {
        "lora-linear"
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
        let (num_rows, in_features) = l1.shape().dims2()?;
        let (rank, a_in) = l2.shape().dims2()?;
        let (b_out, b_rank) = l3.shape().dims2()?;
        let (out_features, base_in) = self.base.shape();
        if in_features != base_in || a_in != base_in || b_out != out_features || b_rank != rank {
            bail!(
                "x {:?}, A {rank} x {a_in} and B {b_out} x {b_rank} do not fit the base {out_features} x {base_in}",
                l1.shape().dims()
            );
        }
        let x = cpu::slice(s1, l1)?;
        // 1. Base: (T,C) -> (T,O)
        let mut y = self.base.forward_slice(x, num_rows)?;
        // 2. Down: (T,C) -> (T,R)
        let x = self.dropped(x);
        let mut low = vec![0.0; num_rows * rank];
        let a = Matrix::new(cpu::slice(s2, l2)?, rank, in_features);
        cpu::matmul(&mut low, Store::Overwrite, 1.0, Matrix::new(&x, num_rows, in_features), a.t());
        // 3. Up, onto the base: (T,R) -> (T,O)
        let b = Matrix::new(cpu::slice(s3, l3)?, out_features, rank);
        cpu::matmul(&mut y, Store::Add, self.scale, Matrix::new(&low, num_rows, rank), b.t());
        self.low.set(low).map_err(|_| candle_core::Error::Msg("a LoRA op ran twice".into()))?;
        Ok((CpuStorage::F32(y), (num_rows, out_features).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        lora_a: &Tensor,
        lora_b: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(low) = self.low.get() else { bail!("backward of a LoRA op that never ran") };
        let (num_rows, in_features) = x.dims2()?;
        let (out_features, rank) = lora_b.dims2()?;
        let mut da = vec![0.0; rank * in_features];
        let mut db = vec![0.0; out_features * rank];
        let dx = cpu::with_slice(dy, |dy_values| {
            let dy = Matrix::new(dy_values, num_rows, out_features);
            // dB = scale · dyᵀ (x Aᵀ)
            cpu::matmul(&mut db, Store::Overwrite, self.scale, dy.t(), Matrix::new(low, num_rows, rank));
            // dlow = scale · dy B: (T,R)
            let mut dlow = vec![0.0; num_rows * rank];
            cpu::with_slice(lora_b, |b| {
                cpu::matmul(&mut dlow, Store::Overwrite, self.scale, dy, Matrix::new(b, out_features, rank));
                Ok(())
            })?;
            let dlow = Matrix::new(&dlow, num_rows, rank);
            // dA = dlowᵀ dropout(x)
            cpu::with_slice(x, |x| {
                let x = self.dropped(x);
                cpu::matmul(&mut da, Store::Overwrite, 1.0, dlow.t(), Matrix::new(&x, num_rows, in_features));
                Ok(())
            })?;
            // dx = dy W + dropout(dlow A)
            let mut dx = self.base.backward_slice(dy_values, num_rows)?;
            cpu::with_slice(lora_a, |a| {
                let a = Matrix::new(a, rank, in_features);
                match &self.dropout {
                    None => cpu::matmul(&mut dx, Store::Add, 1.0, dlow, a),
                    Some(dropout) => {
                        let mut dx_low = vec![0.0; num_rows * in_features];
                        cpu::matmul(&mut dx_low, Store::Overwrite, 1.0, dlow, a);
                        dropout.apply(&mut dx_low);
                        dx.iter_mut().zip(&dx_low).for_each(|(dx, low)| *dx += low);
                    }
                }
                Ok(())
            })?;
            Ok(dx)
        })?;
        Ok((
            Some(cpu::tensor(dx, x.shape())?),
            Some(cpu::tensor(da, lora_a.shape())?),
            Some(cpu::tensor(db, lora_b.shape())?),
        ))
    }
}
