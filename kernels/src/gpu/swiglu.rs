use candle_core::{DType, Result, Tensor, bail};

use super::{Buffer, Grid, launch, plain, traced2};

const THREADS: u32 = 256;
/// Values that a thread takes.
const AT_ONCE: usize = 8;

/// [`crate::swiglu`] of gate and up in bf16. Errors: a number of values that is no multiple of 8.
pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let (gate_plain, up_plain) = (plain(gate)?, plain(up)?);
    let count = gate.elem_count();
    let are_bf16 = gate.dtype() == DType::BF16 && up.dtype() == DType::BF16;
    if gate.dims() != up.dims() || !count.is_multiple_of(AT_ONCE) || !are_bf16 {
        bail!("swiglu of {gate:?} and {up:?} on a GPU");
    }
    let eights = (count / AT_ONCE) as u64;
    let grid = Grid::line((count / AT_ONCE).div_ceil(THREADS as usize), THREADS);
    let device = gate.device().clone();
    let y = Buffer::new(&device, gate.shape(), DType::BF16)?;
    launch(&device, "swiglu", grid, &[&gate_plain, &up_plain, &y, &eights])?;
    traced2(gate, up, y, move |_, dy| {
        let dgate = Buffer::new(&device, dy.shape(), DType::BF16)?;
        let dup = Buffer::new(&device, dy.shape(), DType::BF16)?;
        launch(&device, "swiglu_backward", grid, &[&gate_plain, &up_plain, dy, &dgate, &dup, &eights])?;
        Ok([dgate.into_tensor(), dup.into_tensor()])
    })
}
