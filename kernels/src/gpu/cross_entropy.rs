//! Cross-entropy of hidden states on the device: a chunk of logits at a time, its gradient in the same pass.

use std::sync::Mutex;

use candle_core::{DType, Result, Tensor, bail};

use super::{Buffer, Form, Grid, Operand, Product, ToArg, launch, plain, plain_bf16, traced1, traced2};
use crate::{FrozenLinear, Targets};

const THREADS: u32 = 512;
const SCALE_THREADS: u32 = 256;
/// Logits that exist at a time; 256 MiB of them.
const CHUNK_LOGITS: usize = 1 << 26;
/// Rows of a chunk are a multiple of this.
const TILE: usize = 64;
/// What the products' rows are multiples of.
const STEP: usize = 8;
/// An id of no token.
const NO_ROW: u32 = u32::MAX;

/// The losses of rows as the kernel left them: (N, 2), the loss and whether the target is the likeliest.
pub(crate) type Losses = Tensor;

/// What the hidden states are multiplied with.
enum Table<'a> {
    Frozen(&'a FrozenLinear),
    /// (V,C) in bf16, zeros below where a frozen one's V is no multiple of 8.
    Dense(Tensor),
}

impl<'a> Table<'a> {
    fn frozen(projection: &'a FrozenLinear) -> Result<Self> {
        match projection.shape().0 % STEP {
            0 => Ok(Self::Frozen(projection)),
            _ => Self::padded(projection.weight()?),
        }
    }

    fn padded(weight: &Tensor) -> Result<Self> {
        let vocab_size = weight.dim(0)?;
        let missing = vocab_size.next_multiple_of(STEP) - vocab_size;
        Ok(Self::Dense(plain_bf16(&plain_bf16(weight)?.pad_with_zeros(0, 0, missing)?)?))
    }

    /// V with the zeros below.
    fn num_rows(&self) -> Result<usize> {
        match self {
            Self::Frozen(frozen) => Ok(frozen.shape().0),
            Self::Dense(weight) => weight.dim(0),
        }
    }

    fn operand(&self) -> Result<Operand<'_>> {
        match self {
            Self::Frozen(frozen) => frozen.operand(),
            Self::Dense(weight) => Ok(Operand::Bf16(weight)),
        }
    }
}

/// Rows that learn beside a frozen table, filled up with zeros to a multiple of 8.
struct Own {
    /// (K)
    ids: Tensor,
    count: usize,
    /// (K,C) in bf16.
    rows: Tensor,
}

impl Own {
    fn new(ids: &[u32], rows: &Tensor) -> Result<Self> {
        let num_own = ids.len().next_multiple_of(STEP);
        let mut ids = ids.to_vec();
        ids.resize(num_own, NO_ROW);
        let rows = plain_bf16(rows)?.pad_with_zeros(0, 0, num_own - rows.dim(0)?)?;
        Ok(Self { ids: Tensor::new(ids, rows.device())?, count: num_own, rows: rows.contiguous()? })
    }
}

/// What a pass over all chunks leaves.
struct Passed {
    losses: Losses,
    /// (N,C) in bf16.
    dh: Option<Tensor>,
    /// Of the table, or of the rows that learn; f32.
    dweight: Option<Tensor>,
}

/// [`crate::linear_cross_entropy`] of h (N,C) in bf16.
pub(crate) fn frozen(
    h: &Tensor,
    projection: &FrozenLinear,
    targets: Targets<'_>,
) -> Result<(Tensor, Losses)> {
    let table = Table::frozen(projection)?;
    let passed = pass(&plain(h)?, &table, projection.shape(), None, None, targets, h.track_op())?;
    let loss = loss(&passed.losses, targets)?;
    let dh = Mutex::new(passed.dh);
    Ok((traced1(h, loss, move |_, seed| scaled(&take(&dh)?, seed))?, passed.losses))
}

/// [`crate::linear_cross_entropy_trainable`] of h (N,C) in bf16 and W (V,C) in f32.
pub(crate) fn trainable(h: &Tensor, weight: &Tensor, targets: Targets<'_>) -> Result<(Tensor, Losses)> {
    let shape = weight.dims2()?;
    let table = Table::padded(weight)?;
    let learned = Some((table.num_rows()?, shape.1));
    let mut passed = pass(&plain(h)?, &table, shape, None, learned, targets, true)?;
    passed.dweight = passed.dweight.map(|dweight| dweight.narrow(0, 0, shape.0)).transpose()?;
    traced_with_weight([h, weight], passed, targets)
}

/// [`crate::linear_cross_entropy_with_rows`] of h (N,C) in bf16 and rows (K,C) in f32.
pub(crate) fn with_rows(
    h: &Tensor,
    projection: &FrozenLinear,
    (ids, rows): (&[u32], &Tensor),
    targets: Targets<'_>,
) -> Result<(Tensor, Losses)> {
    let own = Own::new(ids, rows)?;
    let shape @ (own_size, width) = projection.shape();
    let vocab_size = own_size as u32;
    let end = ids.iter().map(|id| id + 1).fold(vocab_size, u32::max);
    if rows.dims() != [ids.len(), width] || (vocab_size..end).any(|id| !ids.contains(&id)) {
        bail!("rows {:?} of width {width} for {ids:?} beside {vocab_size}", rows.dims());
    }
    let place =
        |id: &u32| ids.iter().position(|own| own == id).map_or(*id, |place| vocab_size + place as u32);
    let places: Vec<u32> = targets.ids.iter().map(place).collect();
    let targets = Targets { ids: &places, ..targets };
    let (table, learned) = (Table::frozen(projection)?, Some((own.count, width)));
    let mut passed = pass(&plain(h)?, &table, shape, Some(&own), learned, targets, true)?;
    passed.dweight = passed.dweight.map(|dweight| dweight.narrow(0, 0, ids.len())).transpose()?;
    traced_with_weight([h, rows], passed, targets)
}

fn traced_with_weight(
    [h, weight]: [&Tensor; 2],
    passed: Passed,
    targets: Targets<'_>,
) -> Result<(Tensor, Losses)> {
    let Passed { losses, dh, dweight } = passed;
    let loss = loss(&losses, targets)?;
    let gradients = [Mutex::new(dh), Mutex::new(dweight)];
    let loss = traced2(h, weight, loss, move |_, seed| {
        let [dh, dweight] = [take(&gradients[0])?, take(&gradients[1])?];
        Ok([scaled(&dh, seed)?, dweight.broadcast_mul(seed)?])
    })?;
    Ok((loss, losses))
}

/// Out of its place, for gradients are large.
fn take(gradient: &Mutex<Option<Tensor>>) -> Result<Tensor> {
    match gradient.lock().ok().and_then(|mut gradient| gradient.take()) {
        Some(gradient) => Ok(gradient),
        None => bail!("backward of a cross-entropy that has no gradient to give"),
    }
}

fn scaled(dh: &Tensor, seed: &Tensor) -> Result<Tensor> {
    let length = dh.elem_count();
    let scaled = Buffer::new(dh.device(), dh.shape(), DType::BF16)?;
    let grid = Grid::line(length.div_ceil(SCALE_THREADS as usize), SCALE_THREADS);
    launch(dh.device(), "scale", grid, &[dh, seed, &scaled, &(length as u64)])?;
    Ok(scaled.into_tensor())
}

/// The weighted sum of the losses.
fn loss(losses: &Losses, targets: Targets<'_>) -> Result<Buffer> {
    let losses = losses.narrow(1, 0, 1)?.flatten_all()?;
    let weighted = match targets.weights {
        None => losses,
        Some(weights) => (&losses * Tensor::new(weights, losses.device())?)?,
    };
    Buffer::copy_of(&weighted.sum_all()?)
}

/// `learned` is the shape of the gradient beside dh.
fn pass(
    h: &Tensor,
    table: &Table<'_>,
    (vocab_size, width): (usize, usize),
    own: Option<&Own>,
    learned: Option<(usize, usize)>,
    targets: Targets<'_>,
    needs_gradient: bool,
) -> Result<Passed> {
    let device = h.device();
    let num_rows = targets.ids.len();
    let stride = table.num_rows()?;
    if h.dims() != [num_rows, width] || targets.weights.is_some_and(|weights| weights.len() != num_rows) {
        bail!("cross-entropy of h {:?} with {num_rows} targets and width {width}", h.dims());
    }
    let num_own = own.map_or(0, |own| own.count);
    if let Some(target) = targets.ids.iter().find(|target| **target as usize >= vocab_size + num_own) {
        bail!("target {target} lies beyond the vocabulary of {vocab_size}");
    }
    let ids = Tensor::new(targets.ids, device)?;
    let weights = targets.weights.map(|weights| Tensor::new(weights, device)).transpose()?;
    let losses = Buffer::new(device, (num_rows, 2), DType::F32)?.into_tensor();
    let mut dh = Vec::new();
    let zeros = |shape| Tensor::zeros(shape, DType::F32, device);
    let dweight = learned.filter(|_| needs_gradient).map(zeros).transpose()?;
    let chunk_rows = (CHUNK_LOGITS / vocab_size).max(TILE) / TILE * TILE;
    for first in (0..num_rows).step_by(chunk_rows) {
        let count = chunk_rows.min(num_rows - first);
        let part = |tensor: &Tensor| tensor.narrow(0, first, count);
        // 1. Logits: (n, C) x (C, V), and (n, C) x (C, K) of the rows that learn
        let h = part(h)?;
        let logits = Product::new(Form::Nt, &h, table.operand()?).run(DType::F32)?;
        let own_logits = own
            .map(|own| Product::new(Form::Nt, &h, Operand::Bf16(&own.rows)).run(DType::F32))
            .transpose()?;
        // 2. Losses, and the logits' gradients
        let buffer = |width: usize| Buffer::new(device, (count, width), DType::BF16);
        let dlogits = needs_gradient.then(|| buffer(stride)).transpose()?;
        let down = own.filter(|_| needs_gradient).map(|own| buffer(own.count)).transpose()?;
        let own_ids = own.map(|own| &own.ids);
        let weights = weights.as_ref().map(part).transpose()?;
        let args: [&dyn ToArg; 11] = [
            &logits,
            &own_logits,
            &own_ids,
            &num_own,
            &part(&ids)?,
            &weights,
            &dlogits,
            &down,
            &part(&losses)?,
            &vocab_size,
            &stride,
        ];
        launch(device, "cross_entropy", Grid::line(count, THREADS), &args)?;
        drop(logits);
        // 3. dh = dlogits W + down rows; dW += dlogitsᵀ h, or drows += downᵀ h
        let Some(dlogits) = dlogits.map(Buffer::into_tensor) else { continue };
        let down = down.map(Buffer::into_tensor);
        let more = down.as_ref().zip(own).map(|(down, own)| [down, &own.rows]);
        let product = Product { more, ..Product::new(Form::Nn, &dlogits, table.operand()?) };
        dh.push(product.run(DType::BF16)?.into_tensor());
        if let Some(dweight) = &dweight {
            let of = down.as_ref().unwrap_or(&dlogits);
            Product::new(Form::Tn, of, Operand::Bf16(&h)).add_to(dweight)?;
        }
    }
    let dh = match dh.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        parts => Some(Tensor::cat(parts, 0)?),
    };
    Ok(Passed { losses, dh, dweight })
}
