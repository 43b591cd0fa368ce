mod tiles;

use std::sync::Arc;

use candle_core::{DType, Result, Tensor, bail};

use super::{Buffer, Grid, ToArg, launch, plain, traced3};
use crate::{Attention, Segments};

use tiles::{DECODE_ROWS, KEY_ROWS, QUERY_ROWS};
pub(crate) use tiles::{Division, Tiles};

const THREADS: u32 = 128;
/// Rows of the tiles that a block walks over.
const WALK: usize = 64;
/// Queries of a segment up to which its keys are split among blocks.
const MAX_DECODE_QUERIES: usize = 16;
/// Larger than any position: a window that hides nothing.
const NO_WINDOW: usize = 1 << 30;

/// The kernels of a head dim, which also serve narrower heads.
struct Kernels {
    width: usize,
    /// Keys that the backward of queries walks over at a time.
    backward_walk: usize,
    forward: &'static str,
    backward_queries: &'static str,
    backward_keys: &'static str,
    decode: &'static str,
}

macro_rules! kernels {
    ($width:literal, $backward_walk:literal) => {
        Kernels {
            width: $width,
            backward_walk: $backward_walk,
            forward: concat!("attention_forward_", $width),
            backward_queries: concat!("attention_backward_queries_", $width),
            backward_keys: concat!("attention_backward_keys_", $width),
            decode: concat!("attention_decode_", $width),
        }
    };
}

static KERNELS: [Kernels; 4] = [kernels!(32, 64), kernels!(64, 64), kernels!(96, 32), kernels!(128, 32)];

impl Kernels {
    /// For blocks (heads, tiles) with so many rows of bf16 and so many f32 in shared memory: what a block owns, and two
    /// stages of the two that it walks over.
    fn grid(&self, num_heads: usize, num_tiles: usize, num_rows: usize, num_floats: usize) -> Grid {
        Grid {
            blocks: [num_heads as u32, num_tiles as u32, 1],
            threads: THREADS,
            shared_bytes: (2 * num_rows * self.width + 4 * num_floats) as u32,
        }
    }
}

/// [`Attention::forward`] in bf16, with sinks on the same device. The backward gives equal gradients for equal inputs.
///
/// Errors: a head dim that is no multiple of 16 or above 128; segments whose queries overlap, in the backward those whose
/// keys do.
/// Source: FlashAttention-2, arXiv 2307.08691.
pub(crate) fn forward(
    attention: &Attention,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    segments: &Arc<Segments>,
) -> Result<Tensor> {
    let run = Run {
        kernels: kernels(attention, [q, k, v])?,
        attention: attention.clone(),
        q: plain(q)?,
        k: plain(k)?,
        v: plain(v)?,
        segments: segments.clone(),
    };
    let y = Buffer::new(q.device(), q.shape(), DType::BF16)?;
    let log_sums = Buffer::new(q.device(), (attention.num_heads, q.dim(0)?), DType::F32)?;
    if segments.iter().all(|segment| segment.queries.len() <= MAX_DECODE_QUERIES) {
        let Attention { num_heads, num_kv_heads, window, .. } = *attention;
        let group = num_heads / num_kv_heads;
        let division = Division::Splits { num_rows: q.dim(0)?, num_kv_heads, group, window };
        run.decode(&run.tiles(division)?, &y, &log_sums)?;
    } else {
        run.forward(&y, &log_sums)?;
    }
    let log_sums = log_sums.into_tensor();
    traced3([q, k, v], y, move |y, dy| run.backward(y, dy, &log_sums))
}

/// The blocks' work for one query a sequence, where sequence b sees the first `lengths[b]` + 1 of the `capacity` rows from
/// b · capacity on of k and v. `lengths` (B) is read on the device.
pub(crate) fn sequence_tiles(attention: &Attention, lengths: &Tensor, capacity: usize) -> Result<Tiles> {
    let Attention { num_heads, num_kv_heads, window, .. } = *attention;
    let (device, batch) = (lengths.device(), lengths.dims1()?);
    let num_row_tiles = (num_heads / num_kv_heads).div_ceil(DECODE_ROWS);
    let max_keys = window.map_or(capacity, |window| window.min(capacity));
    let max_splits = tiles::max_splits(batch * num_row_tiles * num_kv_heads, max_keys);
    let count = batch * num_row_tiles * max_splits;
    let records = Buffer::new(device, (count, 7), DType::U32)?;
    let joins = Buffer::new(device, (batch, 3), DType::U32)?;
    let window = window.map_or(NO_WINDOW, |window| window.min(NO_WINDOW));
    let args: [&dyn ToArg; 7] = [lengths, &records, &joins, &capacity, &num_row_tiles, &max_splits, &window];
    launch(device, "attention_decode_tiles", Grid::line(batch, THREADS), &args)?;
    let joins = (max_splits > 1).then(|| joins.into_tensor());
    Ok(Tiles { records: records.into_tensor(), count, joins })
}

/// One query a sequence, q (B, H·D), outside autograd, over the tiles of such attention; k and v (B · capacity, G·D).
pub(crate) fn decode_sequences(
    attention: &Attention,
    tiles: &Tiles,
    [q, k, v]: [&Tensor; 3],
) -> Result<Tensor> {
    let run = Run {
        kernels: kernels(attention, [q, k, v])?,
        attention: attention.clone(),
        q: q.clone(),
        k: k.clone(),
        v: v.clone(),
        segments: Arc::default(),
    };
    let y = Buffer::new(q.device(), q.shape(), DType::BF16)?;
    let log_sums = Buffer::new(q.device(), (attention.num_heads, q.dim(0)?), DType::F32)?;
    run.decode(tiles, &y, &log_sums)?;
    Ok(y.into_tensor())
}

/// The narrowest that are wide enough.
fn kernels(attention: &Attention, inputs: [&Tensor; 3]) -> Result<&'static Kernels> {
    if let Some(input) = inputs.iter().find(|input| input.dtype() != DType::BF16) {
        bail!("attention on a GPU takes bf16, got {:?}", input.dtype());
    }
    if let Some(sinks) = &attention.sinks
        && (!sinks.device().same_device(inputs[0].device()) || sinks.dtype() != DType::F32)
    {
        bail!("attention's sinks lie as {:?} on {:?}", sinks.dtype(), sinks.device().location());
    }
    let head_dim = attention.head_dim;
    match KERNELS.iter().find(|kernels| kernels.width >= head_dim) {
        Some(kernels) if head_dim.is_multiple_of(16) => Ok(kernels),
        _ => bail!("attention on a GPU takes head dims that are multiples of 16 up to 128, got {head_dim}"),
    }
}

/// One call, as its backward needs it too.
struct Run {
    kernels: &'static Kernels,
    attention: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Arc<Segments>,
}

impl Run {
    /// Launches `grid` with `args` and what follows them in every kernel: rows of q, heads, window, scale.
    fn launch(&self, name: &'static str, grid: Grid, args: &[&dyn ToArg]) -> Result<()> {
        let Attention { num_heads, num_kv_heads, head_dim, scale, window, .. } = self.attention;
        let num_queries = self.q.dim(0)?;
        let window = window.map_or(NO_WINDOW, |window| window.min(NO_WINDOW));
        let shape: [&dyn ToArg; 6] = [&num_queries, &num_heads, &num_kv_heads, &head_dim, &window, &scale];
        launch(self.q.device(), name, grid, &[args, &shape].concat())
    }

    fn tiles(&self, division: Division) -> Result<Tiles> {
        self.segments.tiles(self.q.device(), division)
    }

    fn forward(&self, y: &Buffer, log_sums: &Buffer) -> Result<()> {
        let Self { kernels, attention, q, k, v, .. } = self;
        let tiles = self.tiles(Division::Queries { num_rows: q.dim(0)? })?;
        let grid = kernels.grid(attention.num_heads, tiles.count, QUERY_ROWS + 4 * WALK, 0);
        self.launch(kernels.forward, grid, &[q, k, v, &attention.sinks, &tiles.records, y, log_sums])
    }

    /// Likewise with the keys split among blocks.
    fn decode(&self, tiles: &Tiles, y: &Buffer, log_sums: &Buffer) -> Result<()> {
        let Self { kernels, attention, q, k, v, .. } = self;
        let Attention { num_heads, num_kv_heads, head_dim, sinks, .. } = attention;
        let num_rows = q.dim(0)?;
        // Partial results: outputs (tiles, G, 16, D) and log-sums (tiles, G, 16)
        let rows = tiles.count * num_kv_heads * DECODE_ROWS;
        let partial = |width: usize| {
            let is_split = tiles.joins.is_some();
            is_split.then(|| Buffer::new(q.device(), rows * width, DType::F32)).transpose()
        };
        let (outputs, partial_log_sums) = (partial(*head_dim)?, partial(1)?);
        // A number a row and warp, twice.
        let floats = 2 * 4 * DECODE_ROWS;
        let grid = kernels.grid(*num_kv_heads, tiles.count, DECODE_ROWS + 4 * WALK, floats);
        let args: [&dyn ToArg; 9] =
            [q, k, v, sinks, &tiles.records, y, log_sums, &outputs, &partial_log_sums];
        self.launch(kernels.decode, grid, &args)?;
        let Some(joins) = &tiles.joins else { return Ok(()) };
        let args: [&dyn ToArg; 9] =
            [&outputs, &partial_log_sums, sinks, joins, y, log_sums, num_heads, num_kv_heads, head_dim];
        let grid =
            Grid { blocks: [*num_heads as u32, num_rows as u32, 1], threads: THREADS, shared_bytes: 0 };
        launch(q.device(), "attention_join", grid, &args)
    }

    fn backward(&self, y: &Tensor, dy: &Tensor, log_sums: &Tensor) -> Result<[Tensor; 3]> {
        let Self { kernels, attention, q, k, v, .. } = self;
        let buffer = |like: &Tensor| Buffer::new(q.device(), like.shape(), DType::BF16);
        let (dq, dk, dv) = (buffer(q)?, buffer(k)?, buffer(v)?);
        let deltas = Buffer::new(q.device(), log_sums.shape(), DType::F32)?;
        // 1. dq, and the deltas for the rest
        let tiles = self.tiles(Division::Queries { num_rows: q.dim(0)? })?;
        let rows = 2 * QUERY_ROWS + 4 * kernels.backward_walk;
        let grid = kernels.grid(attention.num_heads, tiles.count, rows, QUERY_ROWS);
        let args: [&dyn ToArg; 9] = [q, k, v, y, dy, log_sums, &tiles.records, &dq, &deltas];
        self.launch(kernels.backward_queries, grid, &args)?;
        // 2. dk and dv
        let tiles = self.tiles(Division::Keys { num_rows: k.dim(0)? })?;
        let grid = kernels.grid(attention.num_kv_heads, tiles.count, 2 * KEY_ROWS + 4 * WALK, 4 * WALK);
        let args: [&dyn ToArg; 9] = [q, k, v, dy, log_sums, &deltas, &tiles.records, &dk, &dv];
        self.launch(kernels.backward_keys, grid, &args)?;
        Ok([dq.into_tensor(), dk.into_tensor(), dv.into_tensor()])
    }
}
