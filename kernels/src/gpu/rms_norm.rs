use candle_core::{DType, Result, Tensor, bail};

use super::{Buffer, Grid, launch, plain, traced1};

const THREADS: u32 = 256;

/// [`crate::rms_norm_frozen`] of x (…,C) in bf16, with w (C) in f32.
pub(crate) fn rms_norm_frozen(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let (x_plain, weight) = (plain(x)?, weight.detach());
    let (rows, width) = rows(&x_plain, &weight)?;
    let y = Buffer::new(x.device(), x.shape(), DType::BF16)?;
    launch(x.device(), "rms_norm", Grid::line(rows, THREADS), &[&x_plain, &weight, &y, &width, &eps])?;
    traced1(x, y, move |_, dy| backward_x(&x_plain, &weight, dy, eps))
}

fn rows(x: &Tensor, weight: &Tensor) -> Result<(usize, usize)> {
    let width = weight.elem_count();
    if x.dims().last() != Some(&width) || weight.dtype() != DType::F32 {
        bail!("rms_norm of {:?} with a weight {:?} in {:?}", x.dims(), weight.dims(), weight.dtype());
    }
    Ok((x.elem_count() / width, width))
}

fn backward_x(x: &Tensor, weight: &Tensor, dy: &Tensor, eps: f32) -> Result<Tensor> {
    let (rows, width) = rows(x, weight)?;
    let dx = Buffer::new(x.device(), x.shape(), DType::BF16)?;
    let args: [&dyn super::ToArg; 6] = [x, weight, dy, &dx, &width, &eps];
    launch(x.device(), "rms_norm_backward", Grid::line(rows, THREADS), &args)?;
    Ok(dx.into_tensor())
}
