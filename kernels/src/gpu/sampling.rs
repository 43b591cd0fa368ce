use candle_core::{DType, Result, Tensor, bail};

use super::{Buffer, Grid, ToArg, launch};
use crate::Sampling;

const THREADS: u32 = 1024;
/// 2,048 bins and 32 sums of eight bytes, and what goes with them.
const SHARED_BYTES: usize = 8 * (2048 + 32) + 16;

/// [`Sampling::sample`], its tokens left on the device. Logits of what is forbidden become −∞.
pub fn sample(sampling: Sampling, logits: &Tensor, forbidden: &[u32], draws: &[f32]) -> Result<Tensor> {
    let (num_rows, vocab_size) = logits.dims2()?;
    if logits.dtype() != DType::F32 {
        bail!("logits to draw from are f32, got {:?}", logits.dtype());
    }
    let device = logits.device();
    let forbidden_on_device = match forbidden {
        [] => None,
        ids => Some(Tensor::new(ids, device)?),
    };
    let draws = Tensor::new(draws, device)?;
    let tokens = Buffer::new(device, num_rows, DType::U32)?;
    let Sampling { temperature, top_k, top_p } = sampling;
    let args: [&dyn ToArg; 9] = [
        logits,
        &forbidden_on_device,
        &forbidden.len(),
        &draws,
        &tokens,
        &vocab_size,
        &temperature,
        &top_k,
        &top_p,
    ];
    launch(device, "sample", Grid::line(num_rows, THREADS).with_shared(SHARED_BYTES), &args)?;
    Ok(tokens.into_tensor())
}
