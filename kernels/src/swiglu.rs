use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use crate::{cpu, gpu, simd};

/// `silu(gate) · up`.
///
/// Shapes: gate and up alike. F32. Gradient: reaches both.
/// Source: GLU variants, arXiv 2002.05202.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gpu::is_on_gpu(gate) {
        return gpu::swiglu::swiglu(gate, up);
    }
    gate.contiguous()?.apply_op2(&up.contiguous()?, SwiGlu)
}

struct SwiGlu;

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + simd::exp(-x))
}

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if l1.dims() != l2.dims() {
            bail!("swiglu of gate {:?} and up {:?}", l1.dims(), l2.dims());
        }
        let (gate, up) = (cpu::slice(s1, l1)?, cpu::slice(s2, l2)?);
        let mut y = vec![0.0; gate.len()];
        cpu::for_row_chunks(&mut y, 1, |start, y| {
            simd::dispatch(
                #[inline(always)]
                || {
                    for ((y, gate), up) in y.iter_mut().zip(&gate[start..]).zip(&up[start..]) {
                        *y = gate * sigmoid(*gate) * up;
                    }
                },
            );
        });
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let num_elements = gate.elem_count();
        let mut dgate = vec![0.0; num_elements];
        let mut dup = vec![0.0; num_elements];
        cpu::with_slice(gate, |gate| {
            cpu::with_slice(up, |up| {
                cpu::with_slice(dy, |dy| {
                    cpu::for_pair_chunks(&mut dgate, &mut dup, |start, dgate, dup| {
                        simd::dispatch(
                            #[inline(always)]
                            || {
                                let (gate, up, dy) = (&gate[start..], &up[start..], &dy[start..]);
                                for i in
                                    0..dgate.len().min(dup.len()).min(gate.len()).min(up.len()).min(dy.len())
                                {
                                    let s = sigmoid(gate[i]);
                                    dup[i] = dy[i] * gate[i] * s;
                                    dgate[i] = dy[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s));
                                }
                            },
                        );
                    });
                    Ok(())
                })
            })
        })?;
        Ok((Some(cpu::tensor(dgate, gate.shape())?), Some(cpu::tensor(dup, up.shape())?)))
    }
}
