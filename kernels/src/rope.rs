use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};

use crate::{
    cpu,
    gpu::{self, Mirrored},
    simd,
};

/// The position of each token in its own example, (T). Those that only a GPU knows are not checked.
pub type Positions = Mirrored<u32>;

/// Cosines and sines of every position and frequency of a model.
#[derive(Debug)]
pub struct RopeTable {
    /// (positions, D/2), row-major.
    cos: Mirrored<f32>,
    sin: Mirrored<f32>,
    half_dim: usize,
}

impl RopeTable {
    /// A table for `num_positions` positions with the given inverse frequencies (D/2 of them); `scale` multiplies what
    /// is rotated (YaRN's attention factor).
    ///
    /// Source: RoPE, arXiv 2104.09864. Angles in f32, as transformers computes them.
    pub fn new(inverse_frequencies: &[f32], scale: f32, num_positions: usize) -> Self {
        let half_dim = inverse_frequencies.len();
        let angles = || {
            (0..num_positions).flat_map(|position| {
                inverse_frequencies.iter().map(move |frequency| position as f32 * frequency)
            })
        };
        let scaled = |f: fn(f32) -> f32| angles().map(|angle| f(angle) * scale).collect::<Vec<_>>().into();
        Self { cos: scaled(f32::cos), sin: scaled(f32::sin), half_dim }
    }

    /// Cosines and sines there, (positions, D/2) each.
    pub(crate) fn on_device(&self, device: &Device) -> Result<[&Tensor; 2]> {
        Ok([self.cos.on_device(device)?, self.sin.on_device(device)?])
    }

    pub(crate) fn half_dim(&self) -> usize {
        self.half_dim
    }

    pub fn num_positions(&self) -> usize {
        self.cos.len() / self.half_dim.max(1)
    }
}

/// Rotates (and scales, as the table says) each head of `x` by its token's position (half-rotation: dimension i pairs with i + D/2).
///
/// Shapes: x (T, H·D), positions (T) -> (T, H·D). F32. Gradient: reaches x.
/// Errors: a position beyond the table.
pub fn rope(x: &Tensor, table: &Arc<RopeTable>, positions: &Arc<Positions>) -> Result<Tensor> {
    check(x, table, positions)?;
    if gpu::is_on_gpu(x) {
        return gpu::rope::rope(x, table, positions);
    }
    x.contiguous()?.apply_op1(Rope { table: table.clone(), positions: positions.clone() })
}

fn check(x: &Tensor, table: &RopeTable, positions: &Positions) -> Result<()> {
    let (num_tokens, width) = x.dims2()?;
    if num_tokens != positions.count() || !width.is_multiple_of(2 * table.half_dim) {
        let (count, head_dim) = (positions.count(), 2 * table.half_dim);
        bail!("rope of {:?} with {count} positions and head dim {head_dim}", x.dims());
    }
    let num_positions = table.num_positions();
    if let Some(position) = positions.iter().find(|position| **position as usize >= num_positions) {
        bail!("position {position} lies beyond the {num_positions} the model can take");
    }
    Ok(())
}

struct Rope {
    table: Arc<RopeTable>,
    positions: Arc<Positions>,
}

impl Rope {
    /// `direction` is 1 for the rotation, −1 for its transpose.
    fn rotate(&self, x: &[f32], width: usize, direction: f32) -> Vec<f32> {
        let RopeTable { cos, sin, half_dim } = &*self.table;
        let half_dim = *half_dim;
        let mut y = vec![0.0; x.len()];
        cpu::for_row_chunks(&mut y, width, |first_row, rows| {
            let x = &x[first_row * width..];
            let positions = &self.positions[first_row..];
            simd::dispatch(
                #[inline(always)]
                || {
                    for ((y, x), position) in
                        rows.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(positions)
                    {
                        let start = *position as usize * half_dim;
                        let cos = &cos[start..start + half_dim];
                        let sin = &sin[start..start + half_dim];
                        for (y, x) in y.chunks_exact_mut(2 * half_dim).zip(x.chunks_exact(2 * half_dim)) {
                            let (y_low, y_high) = y.split_at_mut(half_dim);
                            let (x_low, x_high) = x.split_at(half_dim);
                            for i in 0..half_dim {
                                let s = sin[i] * direction;
                                y_low[i] = x_low[i] * cos[i] - x_high[i] * s;
                                y_high[i] = x_high[i] * cos[i] + x_low[i] * s;
                            }
                        }
                    }
                },
            );
        });
        y
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = layout.shape().dims2()?.1;
        Ok((CpuStorage::F32(self.rotate(cpu::slice(storage, layout)?, width, 1.0)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let width = x.dim(1)?;
        let dx = cpu::with_slice(dy, |dy| Ok(self.rotate(dy, width, -1.0)))?;
        Ok(Some(cpu::tensor(dx, x.shape())?))
    }
}
