use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

use crate::{cpu, gpu, simd};

/// `x / sqrt(mean(x²) + eps) · w` over the last dimension, with a weight that learns.
///
/// Shapes: x (…,C), w (C) -> (…,C). F32. Gradient: reaches x and w.
/// Source: RMSNorm, arXiv 1910.07467.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if gpu::is_on_gpu(x) {
        return gpu::rms_norm::rms_norm(x, weight, eps as f32);
    }
    x.contiguous()?.apply_op2(weight, RmsNorm { eps: eps as f32 })
}

/// [`rms_norm`] with a frozen weight. Gradient: reaches x only.
pub fn rms_norm_frozen(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if gpu::is_on_gpu(x) {
        return gpu::rms_norm::rms_norm_frozen(x, weight, eps as f32);
    }
    x.contiguous()?.apply_op1(FrozenRmsNorm { weight: weight.clone(), eps: eps as f32 })
}

struct RmsNorm {
    eps: f32,
}

struct FrozenRmsNorm {
    weight: Tensor,
    eps: f32,
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (simd::sum_by(x, |x| x * x) / x.len() as f32 + eps).sqrt()
}

fn forward(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let width = weight.len();
    let mut y = vec![0.0; x.len()];
    cpu::for_row_chunks(&mut y, width, |first_row, rows| {
        let x = &x[first_row * width..];
        simd::dispatch(
            #[inline(always)]
            || {
                for (y, x) in rows.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let inverse = inverse_rms(x, eps);
                    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                        *y = x * inverse * w;
                    }
                }
            },
        );
    });
    y
}

/// `dx = w·dy/rms − x · Σ(dy·w·x) / (C rms³)`.
fn backward_x(x: &[f32], weight: &[f32], dy: &[f32], eps: f32) -> Vec<f32> {
    let width = weight.len();
    let mut dx = vec![0.0; x.len()];
    cpu::for_row_chunks(&mut dx, width, |first_row, rows| {
        let start = first_row * width;
        simd::dispatch(
            #[inline(always)]
            || {
                let inputs = x[start..].chunks_exact(width).zip(dy[start..].chunks_exact(width));
                for (dx, (x, dy)) in rows.chunks_exact_mut(width).zip(inputs) {
                    let inverse = inverse_rms(x, eps);
                    for ((dx, dy), w) in dx.iter_mut().zip(dy).zip(weight) {
                        *dx = dy * w;
                    }
                    let projection = simd::dot(dx, x) * inverse * inverse / width as f32;
                    for (dx, x) in dx.iter_mut().zip(x) {
                        *dx = inverse * (*dx - x * projection);
                    }
                }
            },
        );
    });
    dx
}

fn backward_weight(x: &[f32], dy: &[f32], width: usize, eps: f32) -> Vec<f32> {
    let mut dweight = vec![0.0; width];
    for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact(width)) {
        let inverse = inverse_rms(x, eps);
        for ((dw, x), dy) in dweight.iter_mut().zip(x).zip(dy) {
            *dw += dy * x * inverse;
        }
    }
    dweight
}

fn check(x: &Layout, width: usize) -> Result<()> {
    match x.dims().last() {
        Some(last) if *last == width => Ok(()),
        _ => bail!("rms_norm of {:?} with a weight of {width}", x.dims()),
    }
}

impl CustomOp1 for FrozenRmsNorm {
    fn name(&self) -> &'static str {
        "frozen-rms-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        check(layout, self.weight.elem_count())?;
        let x = cpu::slice(storage, layout)?;
        let y = cpu::with_slice(&self.weight, |weight| Ok(forward(x, weight, self.eps)))?;
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = cpu::with_slice(x, |x| {
            cpu::with_slice(&self.weight, |weight| {
                cpu::with_slice(dy, |dy| Ok(backward_x(x, weight, dy, self.eps)))
            })
        })?;
        Ok(Some(cpu::tensor(dx, x.shape())?))
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let weight = cpu::slice(s2, l2)?;
        check(l1, weight.len())?;
        Ok((CpuStorage::F32(forward(cpu::slice(s1, l1)?, weight, self.eps)), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dweight) = cpu::with_slice(x, |x| {
            cpu::with_slice(dy, |dy| {
                let dx = cpu::with_slice(weight, |weight| Ok(backward_x(x, weight, dy, self.eps)))?;
                Ok((dx, backward_weight(x, dy, weight.elem_count(), self.eps)))
            })
        })?;
        Ok((Some(cpu::tensor(dx, x.shape())?), Some(cpu::tensor(dweight, weight.shape())?)))
    }
}
