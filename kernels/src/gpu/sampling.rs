use candle_core::{DType, Result, Tensor, bail};

use super::{Buffer, Grid, ToArg, launch};
use crate::Sampling;

const THREADS: u32 = 1024;
/// 2,048 bins and 32 sums of eight bytes, and what goes with them.
const SHARED_BYTES: usize = 8 * (2048 + 32) + 16;

/// [`Sampling::sample`], its tokens left on the device. Logits of what is forbidden become −∞.
pub fn sample(sampling: Sampling, logits: &Tensor, forbidden: &[u32], draws: &[f32]) -> Result<Tensor> {
    let device = logits.device();
    let forbidden = match forbidden {
        [] => None,
        ids => Some(Tensor::new(ids, device)?),
    };
    let tokens = Buffer::new(device, draws.len(), DType::U32)?.into_tensor();
    sample_into(sampling, logits, forbidden.as_ref(), &Tensor::new(draws, device)?, &tokens)?;
    Ok(tokens)
}

/// Draws into `tokens` (B) from logits (B,V) by `draws` (B). Ids `forbidden` (F) are of all rows, those (B,F) of one each.
pub(super) fn sample_into(
    sampling: Sampling,
    logits: &Tensor,
    forbidden: Option<&Tensor>,
    draws: &Tensor,
    tokens: &Tensor,
) -> Result<()> {
    let (num_rows, vocab_size) = logits.dims2()?;
    if logits.dtype() != DType::F32 {
        bail!("logits to draw from are f32, got {:?}", logits.dtype());
    }
    if draws.dims() != [num_rows] || tokens.dims() != [num_rows] {
        bail!("draws {:?} and tokens {:?} of {num_rows} rows of logits", draws.dims(), tokens.dims());
    }
    let (num_forbidden, forbidden_stride) = match forbidden.map(Tensor::dims) {
        None => (0, 0),
        Some([count]) => (*count, 0),
        Some([rows, count]) if *rows == num_rows => (*count, *count),
        Some(dims) => bail!("forbidden tokens {dims:?} of {num_rows} rows of logits"),
    };
    let Sampling { temperature, top_k, top_p } = sampling;
    let args: [&dyn ToArg; 10] = [
        logits,
        &forbidden,
        &num_forbidden,
        &forbidden_stride,
        draws,
        tokens,
        &vocab_size,
        &temperature,
        &top_k,
        &top_p,
    ];
    launch(logits.device(), "sample", Grid::line(num_rows, THREADS).with_shared(SHARED_BYTES), &args)
}
