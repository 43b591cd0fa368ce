use candle_core::{DType, Result, Tensor};

use super::{Buffer, Grid, launch, plain, plain_bf16, traced1};
use crate::Dropout;

const THREADS: u32 = 256;
const VALUES: usize = 8;

/// [`Dropout::forward`] of x in bf16, with the same mask.
pub(crate) fn dropout(dropout: Dropout, x: &Tensor) -> Result<Tensor> {
    let y = apply(dropout, &plain(x)?, None)?;
    traced1(x, y, move |_, dy| Ok(apply(dropout, &plain_bf16(dy)?, None)?.into_tensor()))
}

/// `addend + dropout(x)`, in bf16.
pub(super) fn apply(dropout: Dropout, x: &Tensor, addend: Option<&Tensor>) -> Result<Buffer> {
    let y = Buffer::new(x.device(), x.shape(), DType::BF16)?;
    let count = x.elem_count();
    let grid = Grid::line(count.div_ceil(THREADS as usize * VALUES), THREADS);
    let (threshold, keep_scale) = (dropout.threshold(), dropout.keep_scale());
    launch(
        x.device(),
        "dropout",
        grid,
        &[x, &addend, &y, &(count as u64), &dropout.key, &threshold, &keep_scale],
    )?;
    Ok(y)
}
