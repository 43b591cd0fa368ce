//! What the CPU implementations share: slices of tensors, matrix products, splitting rows over threads.

use std::ops::Range;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};
use rayon::prelude::*;

use crate::simd;

/// The elements of a contiguous F32 operand.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else {
        bail!("the CPU kernels compute in f32, got {:?}", storage_dtype(storage))
    };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("the CPU kernels need contiguous operands"),
    }
}

fn storage_dtype(storage: &CpuStorage) -> candle_core::DType {
    use candle_core::backend::BackendStorage as _;
    storage.dtype()
}

/// Runs `f` on the elements of a contiguous F32 CPU tensor.
pub(crate) fn with_slice<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(slice(storage, layout)?),
        _ => bail!("this kernel has no implementation for {:?} yet", tensor.device()),
    }
}

/// Calls `f` with what writes a row of a contiguous bf16 matrix in f32: `widen_row(row, out)`.
pub(crate) fn with_bf16_rows<R>(
    tensor: &Tensor,
    f: impl FnOnce(&(dyn Fn(usize, &mut [f32]) + Sync)) -> R,
) -> Result<R> {
    let width = tensor.dims2()?.1;
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cpu(CpuStorage::BF16(values)), Some((start, end))) =
        (&*storage, layout.contiguous_offsets())
    else {
        bail!("expected a contiguous bf16 matrix on the CPU, got {tensor:?}")
    };
    let values = &values[start..end];
    Ok(f(&|row, out| {
        simd::dispatch(
            #[inline(always)]
            || {
                for (out, value) in out.iter_mut().zip(&values[row * width..]) {
                    *out = f32::from_bits(u32::from(value.to_bits()) << 16);
                }
            },
        );
    }))
}

/// A matrix inside a slice: element (row, column) lies at `row * row_stride + column * column_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major, rows `row_stride` apart.
    pub(crate) fn strided(values: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(rows == 0 || (rows - 1) * row_stride + columns <= values.len(), "matrix exceeds its slice");
        Self { values, rows, columns, row_stride, column_stride: 1 }
    }

    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(values, rows, columns, columns)
    }

    /// The elements of some rows of a row-major, dense matrix.
    pub(crate) fn rows(&self, first: usize, count: usize) -> &'a [f32] {
        assert!(self.row_stride == self.columns && self.column_stride == 1, "the rows are not dense");
        &self.values[first * self.columns..][..count * self.columns]
    }

    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// Whether a product overwrites its destination or adds to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    Overwrite,
    Add,
}

/// How many threads a product may use.
pub(crate) fn all_threads() -> gemm::Parallelism {
    gemm::Parallelism::Rayon(rayon::current_num_threads())
}

/// `dst (+)= scale · lhs rhs`, with `dst` row-major and its rows `dst_stride` apart.
pub(crate) fn matmul_strided(
    dst: &mut [f32],
    dst_stride: usize,
    store: Store,
    scale: f32,
    lhs: Matrix<'_>,
    rhs: Matrix<'_>,
    parallelism: gemm::Parallelism,
) {
    assert_eq!(lhs.columns, rhs.rows, "inner dimensions differ");
    if lhs.rows == 0 || rhs.columns == 0 {
        return;
    }
    assert!((lhs.rows - 1) * dst_stride + rhs.columns <= dst.len(), "destination too small");
    // SAFETY: `Matrix` was checked against its slice when it was made and `dst` just above, and `dst` is borrowed
    // mutably, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            lhs.rows,
            rhs.columns,
            lhs.columns,
            dst.as_mut_ptr(),
            1,
            dst_stride as isize,
            store == Store::Add,
            lhs.values.as_ptr(),
            lhs.column_stride as isize,
            lhs.row_stride as isize,
            rhs.values.as_ptr(),
            rhs.column_stride as isize,
            rhs.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `dst (+)= scale · lhs rhs` on all threads, with `dst` row-major and dense.
pub(crate) fn matmul(dst: &mut [f32], store: Store, scale: f32, lhs: Matrix<'_>, rhs: Matrix<'_>) {
    matmul_strided(dst, rhs.columns, store, scale, lhs, rhs, all_threads());
}

/// Elements below which a second thread costs more than it brings.
const MIN_PARALLEL_ELEMENTS: usize = 1 << 14;

/// Calls `f(first_row, rows)` on disjoint chunks of whole rows, in parallel where that pays.
pub(crate) fn for_row_chunks(dst: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = dst.len() / width.max(1);
    let threads = rayon::current_num_threads();
    if dst.len() < MIN_PARALLEL_ELEMENTS || threads == 1 {
        f(0, dst);
        return;
    }
    let rows_per_chunk = rows.div_ceil(threads * 4).max(1);
    dst.par_chunks_mut(rows_per_chunk * width)
        .enumerate()
        .for_each(|(chunk, values)| f(chunk * rows_per_chunk, values));
}

/// Rows of a packed or narrow matrix that exist in f32 at a time.
pub(crate) const TILE_ROWS: usize = 256;

/// Calls `f(outputs, rows)` with a matrix (O, C), whose rows `dequantize_row(row, out)` writes, in parts: the rows
/// `outputs` of it, (outputs, C).
pub(crate) fn for_tiles(
    (out_features, in_features): (usize, usize),
    dequantize_row: impl Fn(usize, &mut [f32]) + Sync,
    mut f: impl FnMut(Range<usize>, Matrix<'_>),
) {
    let mut tile = vec![0.0; TILE_ROWS.min(out_features) * in_features];
    for first in (0..out_features).step_by(TILE_ROWS) {
        let outputs = first..(first + TILE_ROWS).min(out_features);
        let tile = &mut tile[..outputs.len() * in_features];
        for_row_chunks(tile, in_features, |row, chunk| {
            for (i, out) in chunk.chunks_exact_mut(in_features).enumerate() {
                dequantize_row(first + row + i, out);
            }
        });
        f(outputs.clone(), Matrix::new(tile, outputs.len(), in_features));
    }
}

/// Rows of input up to which a packed matrix is not written out in tiles, which gemm would pack once more.
const FEW_ROWS: usize = 16;

/// Adds `x Wᵀ` to `y` (T,O), for x (T,C) and a matrix (O, C) whose rows `dequantize_row(row, out)` writes.
pub(crate) fn add_packed_product(
    y: &mut [f32],
    x: &[f32],
    shape @ (out_features, in_features): (usize, usize),
    dequantize_row: impl Fn(usize, &mut [f32]) + Sync,
) {
    let num_rows = x.len() / in_features;
    if num_rows > FEW_ROWS {
        let x = Matrix::new(x, num_rows, in_features);
        for_tiles(shape, dequantize_row, |outputs, rows| {
            let y = &mut y[outputs.start..];
            matmul_strided(y, out_features, Store::Add, 1.0, x, rows.t(), all_threads());
        });
        return;
    }
    // (O,T): each row of W is dequantised once, in cache, for all rows of x.
    let mut sums = vec![0.0; out_features * num_rows];
    let outputs_per_chunk = out_features.div_ceil(rayon::current_num_threads() * 4);
    sums.par_chunks_mut((outputs_per_chunk * num_rows).max(1)).enumerate().for_each(|(chunk, sums)| {
        let mut row = vec![0.0; in_features];
        for (i, sums) in sums.chunks_exact_mut(num_rows).enumerate() {
            dequantize_row(chunk * outputs_per_chunk + i, &mut row);
            simd::dispatch(
                #[inline(always)]
                || {
                    for (sum, x) in sums.iter_mut().zip(x.chunks_exact(in_features)) {
                        *sum = simd::dot(&row, x);
                    }
                },
            );
        }
    });
    for (row, y) in y.chunks_exact_mut(out_features).enumerate() {
        for (y, sums) in y.iter_mut().zip(sums.chunks_exact(num_rows)) {
            *y += sums[row];
        }
    }
}

/// A tensor of `values` with the given shape, on the CPU.
pub(crate) fn tensor(values: Vec<f32>, shape: &candle_core::Shape) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &candle_core::Device::Cpu)
}

/// [`for_row_chunks`] over two destinations at once, element by element: `f(start, a, b)`.
pub(crate) fn for_pair_chunks(
    a: &mut [f32],
    b: &mut [f32],
    f: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let chunk = a.len().div_ceil(rayon::current_num_threads() * 4).max(MIN_PARALLEL_ELEMENTS);
    a.par_chunks_mut(chunk)
        .zip(b.par_chunks_mut(chunk))
        .enumerate()
        .for_each(|(i, (a, b))| f(i * chunk, a, b));
}
