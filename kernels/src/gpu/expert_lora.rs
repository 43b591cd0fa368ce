use candle_core::{DType, Device, Result, Tensor};

use super::{Buffer, Grid, ToArg, launch, routing::Sorted};
use crate::expert_lora::LowRank;

/// What the kernels fill a rank up to, and how much of it a block of the gradients has.
const RANK: usize = 16;
const RANK_A_BLOCK: usize = 64;
const COLUMNS_A_BLOCK: usize = 64;
const THREADS: u32 = 256;
const GRADIENT_THREADS: u32 = 128;
const LOW_THREADS: u32 = 128;

/// All updates of one of the experts' products as a single one, in bf16: A (E · Q, C) and B (E · O, Q), which has the scales.
pub(super) struct Factors {
    pub(super) a: Tensor,
    pub(super) b: Tensor,
    /// Q
    pub(super) rank: usize,
}

fn padded(update: &LowRank) -> usize {
    update.rank.next_multiple_of(RANK)
}

impl LowRank {
    /// A (E,R,C) and B (E,O,R) of all experts, within the packed updates.
    fn parts(&self, packed: &Tensor) -> Result<[Tensor; 2]> {
        let (a, b) = self.starts(0);
        let b_length = self.num_experts * self.out_features * self.rank;
        Ok([packed.narrow(0, a, b - a)?, packed.narrow(0, b, b_length)?])
    }
}

/// None of no updates.
pub(super) fn factors(updates: &[LowRank], packed: &Tensor) -> Result<Option<Factors>> {
    let Some(LowRank { num_experts, in_features, out_features, .. }) = updates.first() else {
        return Ok(None);
    };
    let (device, rank) = (packed.device(), updates.iter().map(padded).sum());
    let all_a = Buffer::new(device, (num_experts * rank, *in_features), DType::BF16)?;
    let all_b = Buffer::new(device, (num_experts * out_features, rank), DType::BF16)?;
    let mut first = 0;
    for update in updates {
        let ([a, b], part) = (update.parts(packed)?, padded(update));
        let length = num_experts * part * (in_features + out_features);
        let args: [&dyn ToArg; 12] = [
            &a,
            &b,
            &all_a,
            &all_b,
            num_experts,
            &update.rank,
            &part,
            &first,
            &rank,
            in_features,
            out_features,
            &update.scale,
        ];
        let grid = Grid::line(length.div_ceil(THREADS as usize), THREADS);
        launch(device, "expert_factors", grid, &args)?;
        first += part;
    }
    Ok(Some(Factors { a: all_a.into_tensor(), b: all_b.into_tensor(), rank }))
}

/// The sorted rows that gradients of factors are sums over.
pub(super) struct Rows<'a> {
    /// x Aᵀ and scale · dy B: (P,Q).
    pub(super) low: &'a Tensor,
    pub(super) dlow: &'a Tensor,
    /// x (P,C) and dy (P,O), or those of the tokens.
    pub(super) x: (&'a Tensor, Option<&'a Tensor>),
    pub(super) dy: (&'a Tensor, Option<&'a Tensor>),
    /// What dy is still to be multiplied with, by place.
    pub(super) weights: Option<&'a Tensor>,
}

impl Rows<'_> {
    /// Writes dA and dB of the updates to their places in the packed gradient.
    pub(super) fn gradients(&self, updates: &[LowRank], sorted: &Sorted, dpacked: &Tensor) -> Result<()> {
        let mut first = 0;
        for update in updates {
            let [da, db] = update.parts(dpacked)?;
            let LowRank { in_features, out_features, scale, .. } = *update;
            self.factor(update, first, sorted, (self.dlow, self.x), (&da, in_features), (1.0, false))?;
            self.factor(update, first, sorted, (self.low, self.dy), (&db, out_features), (scale, true))?;
            first += padded(update);
        }
        Ok(())
    }

    fn factor(
        &self,
        update: &LowRank,
        first: usize,
        sorted: &Sorted,
        (low, (wide, index)): (&Tensor, (&Tensor, Option<&Tensor>)),
        (gradient, width): (&Tensor, usize),
        (scale, is_b): (f32, bool),
    ) -> Result<()> {
        let (part, total_rank, is_b) = (padded(update), low.dim(1)?, u32::from(is_b));
        let args: [&dyn ToArg; 14] = [
            low,
            wide,
            &index,
            &self.weights,
            &sorted.order,
            &sorted.offsets,
            gradient,
            &update.rank,
            &part,
            &first,
            &total_rank,
            &width,
            &scale,
            &is_b,
        ];
        let blocks = [width.div_ceil(COLUMNS_A_BLOCK), update.num_experts, part.div_ceil(RANK_A_BLOCK)];
        let grid = Grid { blocks: blocks.map(|n| n as u32), threads: GRADIENT_THREADS, shared_bytes: 0 };
        launch(low.device(), "expert_factor_gradient", grid, &args)
    }
}

/// What updates add for a few places: (P,O) in f32, of x (P / k, C). None of no updates.
pub(super) fn few_rows(
    updates: &[LowRank],
    packed: &Tensor,
    x: &Tensor,
    chosen: &Tensor,
    k: usize,
) -> Result<Option<Buffer>> {
    let Some(LowRank { in_features, out_features, .. }) = updates.first() else { return Ok(None) };
    let (device, num_places): (&Device, usize) = (packed.device(), chosen.elem_count());
    let sums = Buffer::new(device, (num_places, *out_features), DType::F32)?;
    for (i, update) in updates.iter().enumerate() {
        let ([a, b], LowRank { rank, scale, .. }) = (update.parts(packed)?, update);
        let low = Buffer::new(device, (num_places, *rank), DType::F32)?;
        let grid = |blocks: usize, threads| Grid {
            blocks: [blocks as u32, num_places as u32, 1],
            threads,
            shared_bytes: 0,
        };
        let args: [&dyn ToArg; 6] = [x, &a, chosen, &low, in_features, &k];
        launch(device, "expert_rows_low", grid(*rank, LOW_THREADS), &args)?;
        let adds = u32::from(i != 0);
        let args: [&dyn ToArg; 8] = [&low, &b, chosen, &sums, rank, out_features, scale, &adds];
        launch(device, "expert_rows_high", grid(out_features.div_ceil(THREADS as usize), THREADS), &args)?;
    }
    Ok(Some(sums))
}
