use candle_core::{DType, Result, Tensor, bail};

use super::{Buffer, Grid, ToArg, launch, plain, traced1, traced2};

const THREADS: u32 = 256;
/// Rows' sums that a weight's gradient is made of.
const PARTS: usize = 64;

/// [`crate::rms_norm`] of x (…,C) in bf16, with w (C) in f32, whose gradient is f32.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let (x_plain, weight_plain) = (plain(x)?, plain(weight)?);
    let y = forward(&x_plain, &weight_plain, eps)?;
    traced2(x, weight, y, move |_, dy| {
        let dx = backward_x(&x_plain, &weight_plain, dy, eps)?;
        Ok([dx, backward_weight(&x_plain, &weight_plain, dy, eps)?])
    })
}

/// [`crate::rms_norm_frozen`] of x (…,C) in bf16, with w (C) in f32.
pub(crate) fn rms_norm_frozen(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let (x_plain, weight) = (plain(x)?, weight.detach());
    let y = forward(&x_plain, &weight, eps)?;
    traced1(x, y, move |_, dy| backward_x(&x_plain, &weight, dy, eps))
}

fn forward(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Buffer> {
    let (rows, width) = rows(x, weight)?;
    let y = Buffer::new(x.device(), x.shape(), DType::BF16)?;
    launch(x.device(), "rms_norm", Grid::line(rows, THREADS), &[x, weight, &y, &width, &eps])?;
    Ok(y)
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
    let args: [&dyn ToArg; 6] = [x, weight, dy, &dx, &width, &eps];
    launch(x.device(), "rms_norm_backward", Grid::line(rows, THREADS), &args)?;
    Ok(dx.into_tensor())
}

/// (C) in f32.
fn backward_weight(x: &Tensor, weight: &Tensor, dy: &Tensor, eps: f32) -> Result<Tensor> {
    let (rows, width) = rows(x, weight)?;
    let inverses = Buffer::new(x.device(), rows, DType::F32)?;
    launch(x.device(), "rms_norm_inverses", Grid::line(rows, THREADS), &[x, &inverses, &width, &eps])?;
    let num_parts = PARTS.min(rows);
    let parts = Buffer::new(x.device(), (num_parts, width), DType::F32)?;
    let columns = width.div_ceil(THREADS as usize) as u32;
    let grid = Grid { blocks: [num_parts as u32, columns, 1], threads: THREADS, shared_bytes: 0 };
    let args: [&dyn ToArg; 6] = [x, &inverses, dy, &parts, &rows, &width];
    launch(x.device(), "rms_norm_backward_weight", grid, &args)?;
    parts.into_tensor().sum(0)?.reshape(weight.shape())
}
