use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::{
    Buffer, Grid, ToArg,
    expert_lora::{self, Factors, Rows},
    expert_matrices::{Form, LARGE, Matrices},
    launch, plain, plain_bf16,
    routing::{Sorted, sort},
    traced2, traced3,
};
use crate::{ClampedSwiGlu, ExpertUpdates, Experts, Routing, expert_lora::LowRank};

/// Places up to which each reads its expert's matrices for itself.
const FEW_PLACES: usize = 32;
/// Rows of a matrix that a block of those has, for the first and the second product, and its threads.
const FEW_ROWS: [usize; 2] = [32, 16];
const FEW_THREADS: [u32; 2] = [256, 512];
const MAX_SHARED_BYTES: usize = 48 << 10;

/// The side of the small tiles of a product, a kernel's shared memory and threads; as in `gemm.cuh`.
const SMALL: usize = 64;
const TILE_THREADS: u32 = 128;

fn tile_bytes(side: usize) -> usize {
    3 * 2 * side * 32 * 2
}

const THREADS: u32 = 256;

/// [`Experts::forward`], or with updates [`Experts::forward_adapted`], of x (T,C) in bf16; weights and updates are f32.
pub(crate) fn forward(
    experts: &Arc<Experts>,
    x: &Tensor,
    routing: &Routing,
    updates: Option<&ExpertUpdates>,
) -> Result<Tensor> {
    let (num_tokens, width) = x.dims2()?;
    let (num_rows, k) = routing.weights.dims2()?;
    let chosen = routing.experts.on(x.device())?;
    let fits = width == experts.hidden_size
        && num_rows == num_tokens
        && chosen.elem_count() == num_tokens * k
        && routing.weights.dtype() == DType::F32;
    if !fits {
        bail!(
            "{} experts of width {} for x {:?} and routing {:?}",
            experts.count,
            experts.hidden_size,
            x.dims(),
            routing.weights.dims()
        );
    }
    let call = Call {
        experts: experts.clone(),
        x: plain_bf16(x)?,
        weights: plain(&routing.weights)?,
        chosen,
        k,
        updates: updates.map(ExpertUpdates::detach),
    };
    let y = if call.is_few()? { call.few_places()? } else { call.many_places()? };
    match updates {
        None => traced2(x, &routing.weights, y, move |_, dy| call.backward(dy, None)),
        Some(updates) => {
            let packed = &updates.packed;
            traced3([x, &routing.weights, packed], y, {
                let (device, length) = (packed.device().clone(), packed.elem_count());
                move |_, dy| {
                    let dpacked = Buffer::new(&device, length, DType::F32)?.into_tensor();
                    let [dx, dweights] = call.backward(dy, Some(&dpacked))?;
                    Ok([dx, dweights, dpacked])
                }
            })
        }
    }
}

/// A call of experts: P = T · K places, each a token with one of its experts.
struct Call {
    experts: Arc<Experts>,
    /// (T,C)
    x: Tensor,
    /// (T,K)
    weights: Tensor,
    /// (P)
    chosen: Tensor,
    k: usize,
    updates: Option<ExpertUpdates>,
}

/// The places as rows sorted by expert, and what their products are cut into.
struct Work {
    sorted: Sorted,
    side: usize,
    /// In tiles of another side, for LoRA's narrow products.
    narrow_tiles: Tensor,
    narrow_side: usize,
    gate_up: Option<Factors>,
    down: Option<Factors>,
}

/// A row-wise product with the rows' own matrices.
struct Product<'a> {
    form: Form,
    /// Sorted rows, or with an index the rows that it names.
    a: &'a Tensor,
    index: Option<&'a Tensor>,
    b: &'a Matrices,
    /// (P,Q), and the factor that it is multiplied with, laid out as `b`.
    more: Option<[&'a Tensor; 2]>,
    bias: Option<&'a Tensor>,
    /// Of the result, and of a row of `a`.
    width: usize,
    depth: usize,
}

impl Product<'_> {
    /// (P, width) in bf16.
    fn run(&self, work: &Work) -> Result<Tensor> {
        let num_places = work.sorted.order.elem_count();
        let (side, tiles) = if self.width <= SMALL {
            (work.narrow_side, &work.narrow_tiles)
        } else {
            (work.side, &work.sorted.tiles)
        };
        let device = self.a.device();
        let c = Buffer::new(device, (num_places, self.width), DType::BF16)?;
        let [more_a, more_b] = [self.more.map(|[a, _]| a), self.more.map(|[_, b]| b)];
        let more_depth = more_a.map_or(Ok(0), |a| a.dim(1))?;
        let mut args: Vec<&dyn ToArg> = vec![self.a, &self.index];
        args.extend(self.b.args());
        let rest: [&dyn ToArg; 8] =
            [&more_a, &more_b, &self.bias, &c, tiles, &self.width, &self.depth, &more_depth];
        args.extend(rest);
        let blocks = [self.width.div_ceil(side) as u32, tiles.dim(0)? as u32, 1];
        let grid = Grid { blocks, threads: TILE_THREADS, shared_bytes: tile_bytes(side) as u32 };
        launch(device, self.b.product(self.form, side), grid, &args)?;
        Ok(c.into_tensor())
    }
}

/// What a matrix' product makes of its rows: the result, and LoRA's x Aᵀ or dy B if there is such.
struct Multiplied {
    rows: Tensor,
    low: Option<Tensor>,
}

impl Work {
    /// `a Wᵀ + b`, or `a W`, with W (E · O, C) updated by the factors.
    fn multiply(
        &self,
        form: Form,
        (a, index): (&Tensor, Option<&Tensor>),
        (matrices, factors): (&Matrices, Option<&Factors>),
        bias: Option<&Tensor>,
        [out_features, in_features]: [usize; 2],
    ) -> Result<Multiplied> {
        let (width, depth) = match form {
            Form::Nt => (out_features, in_features),
            Form::Nn => (in_features, out_features),
        };
        let product = Product { form, a, index, b: matrices, more: None, bias, width, depth };
        let Some(Factors { a: lora_a, b: lora_b, rank }) = factors else {
            return Ok(Multiplied { rows: product.run(self)?, low: None });
        };
        let (first, second) = match form {
            Form::Nt => (lora_a, lora_b),
            Form::Nn => (lora_b, lora_a),
        };
        let first = Matrices::Bf16(first.clone());
        let low = Product { b: &first, bias: None, width: *rank, ..product }.run(self)?;
        let rows = Product { more: Some([&low, second]), ..product }.run(self)?;
        Ok(Multiplied { rows, low: Some(low) })
    }
}

impl Call {
    fn device(&self) -> &Device {
        self.x.device()
    }

    fn num_places(&self) -> usize {
        self.chosen.elem_count()
    }

    /// The updates of the two products.
    fn low_rank(&self) -> [&[LowRank]; 2] {
        match &self.updates {
            None => [&[], &[]],
            Some(updates) => [&updates.gate_up, &updates.down],
        }
    }

    // ---- A few places ----

    /// Shared memory of a block of the two products for a few places.
    fn few_bytes(&self) -> Result<[usize; 2]> {
        let (weights, experts) = (self.experts.gpu()?, &self.experts);
        let bytes = |matrices: &Matrices, width: usize| 2 * width.next_multiple_of(matrices.few_rows().1);
        let gate_up = bytes(&weights.gate_up, experts.hidden_size);
        Ok([gate_up, self.k * bytes(&weights.down, experts.intermediate_size)])
    }

    fn is_few(&self) -> Result<bool> {
        Ok(self.num_places() <= FEW_PLACES
            && self.few_bytes()?.into_iter().all(|bytes| bytes <= MAX_SHARED_BYTES))
    }

    /// y (T,C), with each place's rows of its matrices read for itself.
    fn few_places(&self) -> Result<Buffer> {
        let Experts { hidden_size, intermediate_size, activation, .. } = *self.experts;
        let (weights, device) = (self.experts.gpu()?, self.device());
        let (num_places, num_tokens) = (self.num_places(), self.x.dim(0)?);
        let ClampedSwiGlu { alpha, limit, offset } = activation;
        let [gate_up_bytes, down_bytes] = self.few_bytes()?;
        let added = |updates, x: &Tensor, k| match &self.updates {
            None => Ok(None),
            Some(all) => expert_lora::few_rows(updates, &all.packed, x, &self.chosen, k),
        };
        let [gate_up_updates, down_updates] = self.low_rank();
        // 1. Gate, up and activation: (T,C) -> (P,I)
        let inner = Buffer::new(device, (num_places, intermediate_size), DType::BF16)?;
        let num_rows = 2 * intermediate_size;
        let more = added(gate_up_updates, &self.x, self.k)?;
        let mut args: Vec<&dyn ToArg> = vec![&self.x];
        args.extend(weights.gate_up.args());
        let rest: [&dyn ToArg; 10] = [
            &weights.gate_up_bias,
            &more,
            &self.chosen,
            &inner,
            &num_rows,
            &hidden_size,
            &self.k,
            &alpha,
            &limit,
            &offset,
        ];
        args.extend(rest);
        let grid = |rows: usize, i: usize, others: usize| Grid {
            blocks: [rows.div_ceil(FEW_ROWS[i]) as u32, others as u32, 1],
            threads: FEW_THREADS[i],
            shared_bytes: 0,
        };
        let ([name, _], _) = weights.gate_up.few_rows();
        launch(device, name, grid(num_rows, 0, num_places).with_shared(gate_up_bytes), &args)?;
        // 2. Down, and the sum over a token's places: (P,I) -> (T,C)
        let inner = inner.into_tensor();
        let y = Buffer::new(device, (num_tokens, hidden_size), DType::BF16)?;
        let more = added(down_updates, &inner, 1)?;
        let mut args: Vec<&dyn ToArg> = vec![&inner];
        args.extend(weights.down.args());
        let rest: [&dyn ToArg; 8] = [
            &weights.down_bias,
            &more,
            &self.weights,
            &self.chosen,
            &y,
            &hidden_size,
            &intermediate_size,
            &self.k,
        ];
        args.extend(rest);
        let ([_, name], _) = weights.down.few_rows();
        launch(device, name, grid(hidden_size, 1, num_tokens).with_shared(down_bytes), &args)?;
        Ok(y)
    }

    // ---- Any number ----

    fn work(&self) -> Result<Work> {
        let num_experts = self.experts.count;
        // Tiles that most experts would fill less than half of are small.
        let side = if self.num_places() > num_experts * SMALL { LARGE } else { SMALL };
        let sorted = sort(&self.chosen, self.k, num_experts, side)?;
        let factors = |updates| match &self.updates {
            None => Ok(None),
            Some(all) => expert_lora::factors(updates, &all.packed),
        };
        let [gate_up, down] = self.low_rank();
        let (narrow_side, narrow_tiles) = if side == LARGE && self.updates.is_some() {
            (SMALL, sort(&self.chosen, self.k, num_experts, SMALL)?.tiles)
        } else {
            (side, sorted.tiles.clone())
        };
        Ok(Work { side, narrow_side, narrow_tiles, gate_up: factors(gate_up)?, down: factors(down)?, sorted })
    }

    /// Gate and up (P,2I) of the sorted rows.
    fn gate_up(&self, work: &Work) -> Result<Multiplied> {
        let weights = self.experts.gpu()?;
        work.multiply(
            Form::Nt,
            (&self.x, Some(&work.sorted.tokens)),
            (&weights.gate_up, work.gate_up.as_ref()),
            Some(&weights.gate_up_bias),
            [2 * self.experts.intermediate_size, self.experts.hidden_size],
        )
    }

    /// (P,2I) -> (P,I).
    fn activation(&self, gate_up: &Tensor) -> Result<Tensor> {
        let ClampedSwiGlu { alpha, limit, offset } = self.experts.activation;
        let inner = (self.num_places(), self.experts.intermediate_size);
        let num_fours = inner.0 * inner.1 / 4;
        let inner = Buffer::new(self.device(), inner, DType::BF16)?;
        let args: [&dyn ToArg; 6] = [gate_up, &inner, &num_fours, &alpha, &limit, &offset];
        let grid = Grid::line(num_fours.div_ceil(THREADS as usize), THREADS);
        launch(self.device(), "experts_activation", grid, &args)?;
        Ok(inner.into_tensor())
    }

    /// The tokens' sums over their sorted rows (P,C): (T,C).
    fn combine(&self, rows: &Tensor, work: &Work, weights: Option<&Tensor>) -> Result<Buffer> {
        let (num_tokens, width) = self.x.dims2()?;
        let y = Buffer::new(self.device(), (num_tokens, width), DType::BF16)?;
        let args: [&dyn ToArg; 6] = [rows, &work.sorted.rows, &weights, &y, &width, &self.k];
        launch(self.device(), "experts_combine", Grid::line(num_tokens, THREADS), &args)?;
        Ok(y)
    }

    /// y (T,C), by products of all places sorted by expert.
    fn many_places(&self) -> Result<Buffer> {
        let Experts { hidden_size, intermediate_size, .. } = *self.experts;
        let (weights, work) = (self.experts.gpu()?, self.work()?);
        let inner = self.activation(&self.gate_up(&work)?.rows)?;
        let rows = work.multiply(
            Form::Nt,
            (&inner, None),
            (&weights.down, work.down.as_ref()),
            Some(&weights.down_bias),
            [hidden_size, intermediate_size],
        )?;
        self.combine(&rows.rows, &work, Some(&self.weights))
    }

    /// The gradients of x and the routing's weights; that of the packed updates is written to `dpacked`.
    fn backward(&self, dy: &Tensor, dpacked: Option<&Tensor>) -> Result<[Tensor; 2]> {
        let Experts { hidden_size, intermediate_size, activation, .. } = *self.experts;
        let (weights, work, device) = (self.experts.gpu()?, self.work()?, self.device());
        let (sorted, tokens) = (&work.sorted, Some(&work.sorted.tokens));
        let [gate_up_updates, down_updates] = self.low_rank();
        let dy = plain_bf16(dy)?;
        // 1. What the forward had: gate and up
        let Multiplied { rows: gate_up, low } = self.gate_up(&work)?;
        // 2. Through down, without the weight: (P,C) -> (P,I)
        let matrices = (&weights.down, work.down.as_ref());
        let shape = [hidden_size, intermediate_size];
        let dinner = work.multiply(Form::Nn, (&dy, tokens), matrices, None, shape)?;
        if let (Some(Factors { a, rank, .. }), Some(dlow), Some(dpacked)) = (&work.down, &dinner.low, dpacked)
        {
            let inner = self.activation(&gate_up)?;
            let a = Matrices::Bf16(a.clone());
            let low = Product {
                form: Form::Nt,
                a: &inner,
                index: None,
                b: &a,
                more: None,
                bias: None,
                width: *rank,
                depth: intermediate_size,
            };
            let low = low.run(&work)?;
            let weights = Some(&self.weights);
            Rows { low: &low, dlow, x: (&inner, None), dy: (&dy, tokens), weights }.gradients(
                down_updates,
                sorted,
                dpacked,
            )?;
        }
        // 3. The weights' gradients, and that of gate and up in their place
        let dweights = Buffer::new(device, self.weights.dims(), DType::F32)?;
        let ClampedSwiGlu { alpha, limit, offset } = activation;
        let args: [&dyn ToArg; 14] = [
            &gate_up,
            &dinner.rows,
            &dy,
            &weights.down_bias,
            &self.weights,
            &self.chosen,
            &sorted.order,
            &sorted.tokens,
            &dweights,
            &intermediate_size,
            &hidden_size,
            &alpha,
            &limit,
            &offset,
        ];
        launch(device, "experts_activation_backward", Grid::line(self.num_places(), THREADS), &args)?;
        // 4. Through gate and up: (P,2I) -> (P,C) -> (T,C)
        let matrices = (&weights.gate_up, work.gate_up.as_ref());
        let shape = [2 * intermediate_size, hidden_size];
        let dx = work.multiply(Form::Nn, (&gate_up, None), matrices, None, shape)?;
        if let (Some(low), Some(dlow), Some(dpacked)) = (&low, &dx.low, dpacked) {
            Rows { low, dlow, x: (&self.x, tokens), dy: (&gate_up, None), weights: None }.gradients(
                gate_up_updates,
                sorted,
                dpacked,
            )?;
        }
        Ok([self.combine(&dx.rows, &work, None)?.into_tensor(), dweights.into_tensor()])
    }
}
