use std::sync::Arc;

use candle_core::{DType, Result, Tensor, bail};

use super::{Buffer, Grid, ToArg, launch, plain, traced1};
use crate::{Positions, RopeTable};

const THREADS: u32 = 256;

/// [`crate::rope`] of x (T, H·D) in bf16.
pub(crate) fn rope(x: &Tensor, table: &Arc<RopeTable>, positions: &Arc<Positions>) -> Result<Tensor> {
    let rotate = {
        let (table, positions) = (table.clone(), positions.clone());
        move |x: &Tensor, direction: f32| -> Result<Buffer> {
            let (num_tokens, width) = x.dims2()?;
            let [cos, sin] = table.on_device(x.device())?;
            let y = Buffer::new(x.device(), x.shape(), DType::BF16)?;
            let half_dim = table.half_dim();
            let positions = positions.on_device(x.device())?;
            let args: [&dyn ToArg; 8] = [x, cos, sin, positions, &y, &width, &half_dim, &direction];
            launch(x.device(), "rope", Grid::line(num_tokens, THREADS), &args)?;
            Ok(y)
        }
    };
    let x_plain = plain(x)?;
    if x_plain.dtype() != DType::BF16 {
        bail!("rope of {:?} on a GPU", x_plain.dtype());
    }
    let y = rotate(&x_plain, 1.0)?;
    traced1(x, y, move |_, dy| Ok(rotate(dy, -1.0)?.into_tensor()))
}
