use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::{
    Segment, Segments,
    cpu::{self, Matrix, Store, matmul_strided},
    gpu, simd,
};

/// Rows of queries whose scores exist at a time.
const BLOCK_ROWS: usize = 64;
/// Multiply-adds below which a second thread costs more than it brings.
const MIN_PARALLEL_WORK: usize = 1 << 22;

/// Causal attention within segments: `softmax(scale · q kᵀ) v`, with grouped key/value heads.
///
/// Shapes: q (T, H·D), k and v (S, G·D) -> (T, H·D). F32, on a GPU bf16.
/// Gradient: reaches q, k and v; the scores are recomputed in blocks, never held whole. Sinks are frozen.
/// Source: FlashAttention-2, arXiv 2307.08691, section 3 (without its tiling over keys); sinks as gpt-oss has them.
#[derive(Debug, Clone)]
pub struct Attention {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
    /// How many keys a query sees, its own included; `None` is all of them.
    pub window: Option<usize>,
    /// A logit a head (H) that takes its part of the softmax and adds nothing to the output. F32, where q is.
    pub sinks: Option<Tensor>,
}

impl Attention {
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor, segments: &Arc<Segments>) -> Result<Tensor> {
        self.check([q, k, v], segments)?;
        if gpu::is_on_gpu(q) {
            return gpu::attention::forward(self, q, k, v, segments);
        }
        let op = AttentionOp {
            shape: self.clone(),
            sinks: self.sinks.as_ref().map(Tensor::to_vec1).transpose()?,
            segments: segments.clone(),
            log_sums: OnceLock::new(),
        };
        q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)
    }

    fn check(&self, [q, k, v]: [&Tensor; 3], segments: &Segments) -> Result<()> {
        let Self { num_heads, num_kv_heads, head_dim, .. } = *self;
        let (num_queries, q_width) = q.dims2()?;
        let (num_keys, kv_width) = k.dims2()?;
        let fits = q_width == num_heads * head_dim
            && kv_width == num_kv_heads * head_dim
            && k.dims() == v.dims()
            && num_heads.is_multiple_of(num_kv_heads)
            && self.window != Some(0)
            && self.sinks.as_ref().is_none_or(|sinks| sinks.dims() == [num_heads])
            && segments.iter().all(|segment| {
                segment.queries.end <= num_queries
                    && segment.keys.end <= num_keys
                    && segment.queries.len() <= segment.keys.len()
            });
        if !fits {
            bail!(
                "attention of q {:?}, k {:?}, v {:?} with {num_heads} heads, {num_kv_heads} key/value heads of {head_dim}",
                q.dims(),
                k.dims(),
                v.dims()
            );
        }
        Ok(())
    }
}

struct AttentionOp {
    shape: Attention,
    sinks: Option<Vec<f32>>,
    segments: Arc<Segments>,
    /// Per task, the log of each query's sum of exponentials, kept for the backward.
    log_sums: OnceLock<Vec<Vec<f32>>>,
}

/// One head of one segment.
struct Task<'a> {
    segment: &'a Segment,
    head: usize,
}

/// A head's view of the operands of one segment.
struct Heads<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    q_stride: usize,
    kv_stride: usize,
}

impl<'a> Heads<'a> {
    /// The rows `keys` of k and of v, (keys, D) each.
    fn keys_and_values(&self, keys: &Range<usize>, head_dim: usize) -> [Matrix<'a>; 2] {
        [self.k, self.v].map(|values| {
            Matrix::strided(&values[keys.start * self.kv_stride..], keys.len(), head_dim, self.kv_stride)
        })
    }
}

impl AttentionOp {
    fn tasks(&self) -> Vec<Task<'_>> {
        let heads = 0..self.shape.num_heads;
        self.segments
            .iter()
            .flat_map(|segment| heads.clone().map(move |head| Task { segment, head }))
            .collect()
    }

    /// Runs `f` on every task, on all threads where the work is worth it. Results keep the tasks' order.
    fn map_tasks<R: Send>(&self, f: impl Fn(usize, &Task<'_>) -> R + Sync) -> Vec<R> {
        let tasks = self.tasks();
        let work: usize = tasks.iter().map(|t| t.segment.queries.len() * t.segment.keys.len()).sum();
        if work * self.shape.head_dim < MIN_PARALLEL_WORK {
            return tasks.iter().enumerate().map(|(i, task)| f(i, task)).collect();
        }
        tasks.par_iter().enumerate().map(|(i, task)| f(i, task)).collect()
    }

    fn heads<'a>(&self, task: &Task<'_>, q: &'a [f32], k: &'a [f32], v: &'a [f32]) -> Heads<'a> {
        let Attention { num_heads, num_kv_heads, head_dim, .. } = self.shape;
        let (q_stride, kv_stride) = (num_heads * head_dim, num_kv_heads * head_dim);
        let q_start = task.segment.queries.start * q_stride + task.head * head_dim;
        let kv_head = task.head / (num_heads / num_kv_heads);
        let kv_start = task.segment.keys.start * kv_stride + kv_head * head_dim;
        Heads { q: &q[q_start..], k: &k[kv_start..], v: &v[kv_start..], q_stride, kv_stride }
    }

    /// Which keys the queries `rows` of the task see between them.
    fn columns(&self, task: &Task<'_>, rows: &Range<usize>) -> Range<usize> {
        let visible = |row| task.segment.visible(row, self.shape.window);
        visible(rows.start).start..visible(rows.end - 1).end
    }

    /// The head's logit beside its scores.
    fn sink(&self, head: usize) -> f32 {
        self.sinks.as_ref().map_or(f32::NEG_INFINITY, |sinks| sinks[head])
    }

    /// The head's output (t, D), dense, and each query's log-sum.
    fn forward_task(&self, task: &Task<'_>, heads: &Heads<'_>) -> (Vec<f32>, Vec<f32>) {
        let head_dim = self.shape.head_dim;
        let (num_queries, num_keys) = (task.segment.queries.len(), task.segment.keys.len());
        let mut output = vec![0.0; num_queries * head_dim];
        let mut log_sums = vec![0.0; num_queries];
        let sink = self.sink(task.head);
        if num_queries == 1 {
            log_sums[0] = self.forward_one(heads, self.columns(task, &(0..1)), sink, &mut output);
            return (output, log_sums);
        }
        let mut scores = vec![0.0; BLOCK_ROWS * num_keys];
        for first in (0..num_queries).step_by(BLOCK_ROWS) {
            let rows = first..(first + BLOCK_ROWS).min(num_queries);
            let keys = self.columns(task, &rows);
            let (num_rows, columns) = (rows.len(), keys.len());
            // 1. Scores of the block: (b, D) x (D, columns)
            let q = Matrix::strided(&heads.q[first * heads.q_stride..], num_rows, head_dim, heads.q_stride);
            let [k, v] = heads.keys_and_values(&keys, head_dim);
            matmul_strided(&mut scores, columns, Store::Overwrite, 1.0, q, k.t(), gemm::Parallelism::None);
            // 2. Softmax without its division
            let mut inverse_sums = [0.0; BLOCK_ROWS];
            simd::dispatch(
                #[inline(always)]
                || {
                    for row in rows.clone() {
                        let scores = &mut scores[(row - first) * columns..][..columns];
                        let visible = only(scores, &task.segment.visible(row, self.shape.window), keys.start);
                        let shift = (simd::max(visible) * self.shape.scale).max(sink);
                        let sum =
                            simd::exp_in_place(visible, self.shape.scale, shift) + sink_part(sink, shift);
                        inverse_sums[row - first] = 1.0 / sum;
                        log_sums[row] = shift + sum.ln();
                    }
                },
            );
            // 3. Weighted values: (b, columns) x (columns, D), then the division
            let block = &mut output[first * head_dim..rows.end * head_dim];
            let weights = Matrix::new(&scores, num_rows, columns);
            matmul_strided(block, head_dim, Store::Overwrite, 1.0, weights, v, gemm::Parallelism::None);
            for (row, inverse) in block.chunks_exact_mut(head_dim).zip(inverse_sums) {
                for value in row {
                    *value *= inverse;
                }
            }
        }
        (output, log_sums)
    }

    /// One query, as in decoding: two passes over the keys, no matrix product.
    fn forward_one(&self, heads: &Heads<'_>, keys: Range<usize>, sink: f32, output: &mut [f32]) -> f32 {
        let head_dim = self.shape.head_dim;
        let mut scores = vec![0.0; keys.len()];
        let start = keys.start * heads.kv_stride;
        simd::dispatch(
            #[inline(always)]
            || {
                for (score, k) in scores.iter_mut().zip(heads.k[start..].chunks(heads.kv_stride)) {
                    *score = simd::dot(&heads.q[..head_dim], &k[..head_dim]);
                }
                let shift = (simd::max(&scores) * self.shape.scale).max(sink);
                let sum = simd::exp_in_place(&mut scores, self.shape.scale, shift) + sink_part(sink, shift);
                for (score, v) in scores.iter().zip(heads.v[start..].chunks(heads.kv_stride)) {
                    simd::add_scaled(output, *score / sum, &v[..head_dim]);
                }
                shift + sum.ln()
            },
        )
    }

    /// The head's dq (t, D), dk (s, D) and dv (s, D), dense. `o` and `dy` are laid out like q.
    fn backward_task(
        &self,
        task: &Task<'_>,
        heads: &Heads<'_>,
        log_sums: &[f32],
        o: &[f32],
        dy: &[f32],
    ) -> HeadGradients {
        let head_dim = self.shape.head_dim;
        let (num_queries, num_keys) = (task.segment.queries.len(), task.segment.keys.len());
        let mut gradients = HeadGradients {
            dq: vec![0.0; num_queries * head_dim],
            dk: vec![0.0; num_keys * head_dim],
            dv: vec![0.0; num_keys * head_dim],
        };
        let mut weights = vec![0.0; BLOCK_ROWS * num_keys];
        let mut dscores = vec![0.0; BLOCK_ROWS * num_keys];
        for first in (0..num_queries).step_by(BLOCK_ROWS) {
            let rows = first..(first + BLOCK_ROWS).min(num_queries);
            let keys = self.columns(task, &rows);
            let (num_rows, columns) = (rows.len(), keys.len());
            let block_start = first * heads.q_stride;
            let q = Matrix::strided(&heads.q[block_start..], num_rows, head_dim, heads.q_stride);
            let dy_block = Matrix::strided(&dy[block_start..], num_rows, head_dim, heads.q_stride);
            let [k, v] = heads.keys_and_values(&keys, head_dim);
            let serial = gemm::Parallelism::None;
            // 1. The weights again, and their gradient: (b, columns) each. A sink is in the log-sums, and its weight
            //    multiplies no value, so it has no further part.
            matmul_strided(&mut weights, columns, Store::Overwrite, 1.0, q, k.t(), serial);
            matmul_strided(&mut dscores, columns, Store::Overwrite, 1.0, dy_block, v.t(), serial);
            simd::dispatch(
                #[inline(always)]
                || {
                    for row in rows.clone() {
                        let weights = &mut weights[(row - first) * columns..][..columns];
                        let dscores = &mut dscores[(row - first) * columns..][..columns];
                        let visible = task.segment.visible(row, self.shape.window);
                        let visible = only(weights, &visible, keys.start);
                        simd::exp_in_place(visible, self.shape.scale, log_sums[row]);
                        let start = row * heads.q_stride;
                        let delta = simd::dot(&o[start..start + head_dim], &dy[start..start + head_dim]);
                        for (ds, p) in dscores.iter_mut().zip(&*weights) {
                            *ds = p * (*ds - delta) * self.shape.scale;
                        }
                    }
                },
            );
            let weights = Matrix::new(&weights, num_rows, columns);
            let dscores = Matrix::new(&dscores, num_rows, columns);
            // 2. dq = dS k, dk += dSᵀ q, dv += Pᵀ dy
            let dq = &mut gradients.dq[first * head_dim..rows.end * head_dim];
            matmul_strided(dq, head_dim, Store::Overwrite, 1.0, dscores, k, serial);
            let dk = &mut gradients.dk[keys.start * head_dim..];
            matmul_strided(dk, head_dim, Store::Add, 1.0, dscores.t(), q, serial);
            let dv = &mut gradients.dv[keys.start * head_dim..];
            matmul_strided(dv, head_dim, Store::Add, 1.0, weights.t(), dy_block, serial);
        }
        gradients
    }
}

/// The visible part of a row of scores that begins with key `first`; the rest becomes 0.
#[inline(always)]
fn only<'a>(scores: &'a mut [f32], visible: &Range<usize>, first: usize) -> &'a mut [f32] {
    let (start, end) = (visible.start - first, visible.end - first);
    scores[..start].fill(0.0);
    scores[end..].fill(0.0);
    &mut scores[start..end]
}

/// What a sink adds to a sum of exponentials; 0 where there is none (−∞).
#[inline(always)]
fn sink_part(sink: f32, shift: f32) -> f32 {
    (sink - shift).exp()
}

struct HeadGradients {
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// Adds dense rows (n, D) onto rows that lie `stride` apart.
fn add_rows(dst: &mut [f32], stride: usize, rows: &[f32], head_dim: usize) {
    for (dst, row) in dst.chunks_mut(stride).zip(rows.chunks_exact(head_dim)) {
        dst[..head_dim].iter_mut().zip(row).for_each(|(dst, value)| *dst += value);
    }
}

impl CustomOp3 for AttentionOp {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (cpu::slice(s1, l1)?, cpu::slice(s2, l2)?, cpu::slice(s3, l3)?);
        let results = self.map_tasks(|_, task| self.forward_task(task, &self.heads(task, q, k, v)));
        let (head_dim, stride) = (self.shape.head_dim, self.shape.num_heads * self.shape.head_dim);
        let mut y = vec![0.0; q.len()];
        let mut log_sums = Vec::with_capacity(results.len());
        for (task, (output, task_log_sums)) in self.tasks().iter().zip(results) {
            let start = task.segment.queries.start * stride + task.head * head_dim;
            add_rows(&mut y[start..], stride, &output, head_dim);
            log_sums.push(task_log_sums);
        }
        self.log_sums
            .set(log_sums)
            .map_err(|_| candle_core::Error::Msg("an attention op ran twice".into()))?;
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(log_sums) = self.log_sums.get() else { bail!("backward of an attention op that never ran") };
        let dy = dy.contiguous()?;
        let gradients = cpu::with_slice(q, |q| {
            cpu::with_slice(k, |k| {
                cpu::with_slice(v, |v| {
                    cpu::with_slice(y, |y| {
                        cpu::with_slice(&dy, |dy| {
                            Ok(self.map_tasks(|i, task| {
                                let heads = self.heads(task, q, k, v);
                                let start = task.segment.queries.start * heads.q_stride
                                    + task.head * self.shape.head_dim;
                                self.backward_task(task, &heads, &log_sums[i], &y[start..], &dy[start..])
                            }))
                        })
                    })
                })
            })
        })?;
        let Attention { num_heads, num_kv_heads, head_dim, .. } = self.shape;
        let (q_stride, kv_stride) = (num_heads * head_dim, num_kv_heads * head_dim);
        let mut dq = vec![0.0; q.elem_count()];
        let mut dk = vec![0.0; k.elem_count()];
        let mut dv = vec![0.0; v.elem_count()];
        for (task, head) in self.tasks().iter().zip(gradients) {
            let q_start = task.segment.queries.start * q_stride + task.head * head_dim;
            let kv_head = task.head / (num_heads / num_kv_heads);
            let kv_start = task.segment.keys.start * kv_stride + kv_head * head_dim;
            add_rows(&mut dq[q_start..], q_stride, &head.dq, head_dim);
            add_rows(&mut dk[kv_start..], kv_stride, &head.dk, head_dim);
            add_rows(&mut dv[kv_start..], kv_stride, &head.dv, head_dim);
        }
        Ok((
            Some(cpu::tensor(dq, q.shape())?),
            Some(cpu::tensor(dk, k.shape())?),
            Some(cpu::tensor(dv, v.shape())?),
        ))
    }
}
