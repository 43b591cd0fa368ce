use candle_core::{DType, Device, Result, Tensor, bail};

use super::{Buffer, Grid, ToArg, launch, plain, traced1};
use crate::{RouterSoftmax, Routing, routing::Chosen};

const THREADS: u32 = 128;
/// A warp a token.
const TOKENS_A_BLOCK: usize = THREADS as usize / 32;
/// A lane keeps one of a token's experts.
const MAX_EXPERTS_A_TOKEN: usize = 32;

/// [`crate::route`] of logits (T,E) in bf16 or f32; weights are f32. The choice stays on the GPU.
pub fn route(logits: &Tensor, k: usize, softmax: RouterSoftmax) -> Result<Routing> {
    let (num_tokens, num_experts) = logits.dims2()?;
    if k == 0 || k > num_experts.min(MAX_EXPERTS_A_TOKEN) {
        bail!("{k} of {num_experts} experts a token");
    }
    let (name, backward_name) = match logits.dtype() {
        DType::BF16 => ("route_bf16", "route_backward_bf16"),
        DType::F32 => ("route_f32", "route_backward_f32"),
        other => bail!("router logits in {other:?}"),
    };
    let (device, plain_logits) = (logits.device(), plain(logits)?);
    let weights = Buffer::new(device, (num_tokens, k), DType::F32)?;
    let experts = Buffer::new(device, num_tokens * k, DType::U32)?;
    let is_over_all = u32::from(softmax == RouterSoftmax::All);
    let grid = Grid::line(num_tokens.div_ceil(TOKENS_A_BLOCK), THREADS);
    let args: [&dyn ToArg; 7] =
        [&plain_logits, &weights, &experts, &num_tokens, &num_experts, &k, &is_over_all];
    launch(device, name, grid, &args)?;

    let experts = experts.into_tensor();
    let chosen = experts.clone();
    let weights = traced1(logits, weights, move |weights, dweights| {
        let device = weights.device();
        let dlogits = Buffer::new(device, plain_logits.shape(), plain_logits.dtype())?;
        let args: [&dyn ToArg; 9] = [
            &plain_logits,
            weights,
            &chosen,
            dweights,
            &dlogits,
            &num_tokens,
            &num_experts,
            &k,
            &is_over_all,
        ];
        launch(device, backward_name, grid, &args)?;
        Ok(dlogits.into_tensor())
    })?;
    Ok(Routing { weights, experts: Chosen::Gpu(experts) })
}

/// The places (token · K + rank) in the experts' order: what grouped products go by.
pub struct Sorted {
    /// (P): the place of each row.
    pub order: Tensor,
    /// (P): that place's token.
    pub tokens: Tensor,
    /// (P): the row of each place.
    pub rows: Tensor,
    /// (E + 1): where each expert's rows begin.
    pub offsets: Tensor,
    /// (max_tiles, 4): expert, first row, row behind the last, 0; no rows where nothing is left to do.
    pub tiles: Tensor,
}

const SORT_THREADS: u32 = 512;

/// Sorts places (P), `k` a token, by expert; a tile has at most `tile_rows` rows.
pub fn sort(experts: &Tensor, k: usize, num_experts: usize, tile_rows: usize) -> Result<Sorted> {
    let (device, num_places) = (experts.device(), experts.elem_count());
    let max_tiles = num_places / tile_rows + num_experts.min(num_places);
    let u32s = |shape: &[usize]| Buffer::new(device, shape, DType::U32);
    let [order, tokens, rows] = [u32s(&[num_places])?, u32s(&[num_places])?, u32s(&[num_places])?];
    let (offsets, tiles) = (u32s(&[num_experts + 1])?, u32s(&[max_tiles, 4])?);
    let grid = Grid::line(num_experts, SORT_THREADS).with_shared(num_experts * 4);
    let args: [&dyn ToArg; 10] =
        [experts, &order, &tokens, &rows, &offsets, &tiles, &num_places, &k, &tile_rows, &max_tiles];
    launch(device, "sort_places", grid, &args)?;
    Ok(Sorted {
        order: order.into_tensor(),
        tokens: tokens.into_tensor(),
        rows: rows.into_tensor(),
        offsets: offsets.into_tensor(),
        tiles: tiles.into_tensor(),
    })
}

impl Chosen {
    /// (T·K), where `device` is.
    pub(crate) fn on(&self, device: &Device) -> Result<Tensor> {
        match self {
            Self::Host(experts) => Tensor::new(experts.as_slice(), device),
            Self::Gpu(experts) => Ok(experts.clone()),
        }
    }
}
