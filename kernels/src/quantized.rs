//! Block-quantised projections for inference on the CPU.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::{FrozenLinear, cpu, simd};

/// Values of a block: they share one scale, or each half has its own.
const BLOCK: usize = 32;
/// Rows of a tile: one AVX-512 register of 32-bit sums.
const TILE: usize = 16;
/// Products of fewer weights than this run on one thread: waking another costs more.
const MIN_PARALLEL_WEIGHTS: usize = 1 << 22;
/// Tokens from which it is cheaper to dequantise once and multiply in f32.
const DEQUANTIZE_FROM_TOKENS: usize = 24;

/// Bits of one code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeBits {
    Four,
    Eight,
}

impl CodeBits {
    /// Bytes of a block's codes for the 16 rows of a tile.
    const fn tile_block_bytes(self) -> usize {
        match self {
            Self::Four => TILE * BLOCK / 2,
            Self::Eight => TILE * BLOCK,
        }
    }
}

/// One block of one row before tiling: `value = d · code + m`, with the d and m of its half.
#[derive(Debug, Clone, Copy)]
pub struct AffineBlock {
    pub d: [f32; 2],
    pub m: [f32; 2],
    pub codes: [u8; BLOCK],
}

/// What a [`QuantizedLinear`]'s codes are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodeLayout {
    pub bits: CodeBits,
    /// Scales of a block: 1, or 2 where its halves differ.
    pub scales: usize,
}

/// A frozen projection `y = x Wᵀ` whose weights are unsigned codes with a scale and a minimum per 32 or 16 values.
///
/// Holds llama.cpp's block types exactly (`Q4_0` as m = −8d, `Q8_0` as m = −128d, ..). Weights are tiled by 16 rows so
/// that one instruction multiplies four values of 16 rows: for each block of a tile the codes of values 4g..4g+4 of
/// the 16 rows lie together; with four bits, groups g and g + 4 share bytes as low and high nibble.
///
/// Inputs become two 8-bit codes a value, coarse and fine, with one scale per 32 values: 16 bits of precision, where
/// llama.cpp's products of the same formats keep 8. Memory bounds a product with one token, so it costs little, and the
/// logits equal those of the dequantised weights. No gradient.
pub struct QuantizedLinear {
    out_features: usize,
    in_features: usize,
    layout: CodeLayout,
    codes: Vec<u8>,
    /// Per tile, block and scale: 16 d, then 16 m.
    scales: Vec<f32>,
}

/// A row of the input: `value = scale · (coarse + fine / FINE)`.
struct QuantizedRow {
    /// Per block: 32 coarse codes, then 32 fine ones.
    codes: Vec<i8>,
    /// Per block: the scale, and the sum of each half's values as rounded.
    scales: Vec<(f32, [f32; 2])>,
}

/// Steps of the fine code in one of the coarse.
const FINE: f32 = 254.0;

impl QuantizedLinear {
    /// Tiles blocks given row by row.
    ///
    /// Errors: a width that is no multiple of 32, another number of blocks than the shape needs.
    pub fn new(
        out_features: usize,
        in_features: usize,
        layout: CodeLayout,
        blocks: impl ExactSizeIterator<Item = AffineBlock>,
    ) -> Result<Self> {
        let blocks_per_row = in_features / BLOCK;
        if !in_features.is_multiple_of(BLOCK) || blocks.len() != out_features * blocks_per_row {
            bail!("{} blocks for a weight {out_features} x {in_features}", blocks.len());
        }
        let num_tile_blocks = out_features.div_ceil(TILE) * blocks_per_row;
        let CodeLayout { bits, scales: scales_per_block } = layout;
        let mut codes = vec![0; num_tile_blocks * bits.tile_block_bytes()];
        let mut scales = vec![0.0; num_tile_blocks * scales_per_block * 2 * TILE];
        for (index, block) in blocks.enumerate() {
            let (row, block_in_row) = (index / blocks_per_row, index % blocks_per_row);
            let (tile, row_in_tile) = (row / TILE, row % TILE);
            let tile_block = tile * blocks_per_row + block_in_row;
            for (i, (d, m)) in block.d.iter().zip(block.m).take(scales_per_block).enumerate() {
                let at = (tile_block * scales_per_block + i) * 2 * TILE + row_in_tile;
                (scales[at], scales[at + TILE]) = (*d, m);
            }
            let start = tile_block * bits.tile_block_bytes();
            let codes = &mut codes[start..start + bits.tile_block_bytes()];
            for (k, code) in block.codes.iter().enumerate() {
                let (group, j) = (k / 4, k % 4);
                match bits {
                    CodeBits::Eight => codes[(group * TILE + row_in_tile) * 4 + j] = *code,
                    CodeBits::Four => {
                        codes[((group % 4) * TILE + row_in_tile) * 4 + j] |= (code & 15) << (group / 4 * 4);
                    }
                }
            }
        }
        Ok(Self { out_features, in_features, layout, codes, scales })
    }

    /// (O, C).
    pub fn shape(&self) -> (usize, usize) {
        (self.out_features, self.in_features)
    }

    /// (T,C) -> (T,O).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        if x.dim(0)? >= DEQUANTIZE_FROM_TOKENS {
            return FrozenLinear::new(&self.dequantize()?, None)?.forward(&x);
        }
        x.apply_op1_no_bwd(&Op(self))
    }

    /// The weight in f32, (O, C).
    pub fn dequantize(&self) -> Result<Tensor> {
        let rows: Vec<u32> = (0..self.out_features as u32).collect();
        self.rows(&rows)
    }

    /// Some rows of the weight in f32: (N, C). For embeddings.
    pub fn rows(&self, rows: &[u32]) -> Result<Tensor> {
        if let Some(row) = rows.iter().find(|row| **row as usize >= self.out_features) {
            bail!("row {row} of {}", self.out_features);
        }
        let width = self.in_features;
        let mut values = vec![0.0; rows.len() * width];
        cpu::for_row_chunks(&mut values, width, |first, chunk| {
            for (values, row) in chunk.chunks_exact_mut(width).zip(&rows[first..]) {
                self.dequantize_row(*row as usize, values);
            }
        });
        Tensor::from_vec(values, (rows.len(), width), &candle_core::Device::Cpu)
    }

    fn dequantize_row(&self, row: usize, values: &mut [f32]) {
        let blocks_per_row = self.in_features / BLOCK;
        let (tile, row_in_tile) = (row / TILE, row % TILE);
        let CodeLayout { bits, scales } = self.layout;
        for (block_in_row, values) in values.chunks_exact_mut(BLOCK).enumerate() {
            let tile_block = tile * blocks_per_row + block_in_row;
            let codes = &self.codes[tile_block * bits.tile_block_bytes()..];
            for (group, values) in values.chunks_exact_mut(4).enumerate() {
                let at = (tile_block * scales + group * scales / 8) * 2 * TILE + row_in_tile;
                let (d, m) = (self.scales[at], self.scales[at + TILE]);
                let (place, shift, mask) = match bits {
                    CodeBits::Eight => (group, 0, 255),
                    CodeBits::Four => (group % 4, group / 4 * 4, 15),
                };
                let codes = &codes[(place * TILE + row_in_tile) * 4..][..4];
                for (value, code) in values.iter_mut().zip(codes) {
                    *value = d * f32::from((code >> shift) & mask) + m;
                }
            }
        }
    }

    /// Multiplies the tiles `first_tile..` with one input row; `y` has 16 places a tile.
    fn multiply(&self, first_tile: usize, x: &QuantizedRow, y: &mut [f32]) {
        let blocks_per_row = self.in_features / BLOCK;
        let CodeLayout { bits, scales } = self.layout;
        let tile_bytes = blocks_per_row * bits.tile_block_bytes();
        let tile_scales = blocks_per_row * scales * 2 * TILE;
        let multiply_tile = match (bits, scales) {
            (CodeBits::Four, 1) => multiply_tile::<{ CodeBits::Four.tile_block_bytes() }, 1>,
            (CodeBits::Four, _) => multiply_tile::<{ CodeBits::Four.tile_block_bytes() }, 2>,
            (CodeBits::Eight, 1) => multiply_tile::<{ CodeBits::Eight.tile_block_bytes() }, 1>,
            (CodeBits::Eight, _) => multiply_tile::<{ CodeBits::Eight.tile_block_bytes() }, 2>,
        };
        for (i, y) in y.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
            let tile = first_tile + i;
            let codes = &self.codes[tile * tile_bytes..(tile + 1) * tile_bytes];
            let scales = &self.scales[tile * tile_scales..(tile + 1) * tile_scales];
            *y = multiply_tile(codes, scales, x);
        }
    }
}

/// One tile times one row: 16 sums. `BYTES` a block tells four-bit codes from eight-bit ones.
fn multiply_tile<const BYTES: usize, const SCALES: usize>(
    codes: &[u8],
    scales: &[f32],
    x: &QuantizedRow,
) -> [f32; TILE] {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vnni") {
        // SAFETY: the CPU has the instructions.
        return unsafe { avx512::multiply_tile::<BYTES, SCALES>(codes, scales, x) };
    }
    simd::dispatch(
        #[inline(always)]
        || multiply_tile_portable::<BYTES, SCALES>(codes, scales, x),
    )
}

#[inline(always)]
fn multiply_tile_portable<const BYTES: usize, const SCALES: usize>(
    codes: &[u8],
    scales: &[f32],
    x: &QuantizedRow,
) -> [f32; TILE] {
    let mut y = [0.0; TILE];
    let scales = scales.as_chunks::<TILE>().0.as_chunks::<2>().0.as_chunks::<SCALES>().0;
    let blocks = codes.chunks_exact(BYTES).zip(scales);
    for ((codes, scales), (x_codes, (x_scale, x_sums))) in
        blocks.zip(x.codes.chunks_exact(2 * BLOCK).zip(&x.scales))
    {
        let mut coarse = [[0i32; TILE]; SCALES];
        let mut fine = [[0i32; TILE]; SCALES];
        for group in 0..BLOCK / 4 {
            let (place, shift, mask) = if BYTES == CodeBits::Eight.tile_block_bytes() {
                (group, 0, 255)
            } else {
                (group % 4, group / 4 * 4, 15)
            };
            let codes = &codes[place * TILE * 4..][..TILE * 4];
            for (row, codes) in codes.as_chunks::<4>().0.iter().enumerate() {
                for j in 0..4 {
                    let code = i32::from((codes[j] >> shift) & mask);
                    let half = group * SCALES / 8;
                    coarse[half][row] += code * i32::from(x_codes[group * 4 + j]);
                    fine[half][row] += code * i32::from(x_codes[BLOCK + group * 4 + j]);
                }
            }
        }
        for (half, [d, m]) in scales.iter().enumerate() {
            let x_sum = sum_of_half::<SCALES>(*x_sums, half);
            for row in 0..TILE {
                let sum = coarse[half][row] as f32 + fine[half][row] as f32 * (1.0 / FINE);
                y[row] += sum * (d[row] * x_scale) + m[row] * x_sum;
            }
        }
    }
    y
}

/// Of the values that the block's scale number `half` is for.
#[inline(always)]
fn sum_of_half<const SCALES: usize>(x_sums: [f32; 2], half: usize) -> f32 {
    if SCALES == 1 { x_sums[0] + x_sums[1] } else { x_sums[half] }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        _mm512_add_ps, _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps,
        _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps, _mm512_set1_epi8, _mm512_set1_epi32,
        _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_srli_epi16, _mm512_storeu_ps,
    };

    use super::{BLOCK, CodeBits, FINE, QuantizedRow, TILE, sum_of_half};

    /// Where a block's fine codes begin, in groups of four.
    const FINE_GROUP: usize = BLOCK / 4;

    /// [`super::multiply_tile_portable`] with one `vpdpbusd` per four values of 16 rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) fn multiply_tile<const BYTES: usize, const SCALES: usize>(
        codes: &[u8],
        scales: &[f32],
        x: &QuantizedRow,
    ) -> [f32; TILE] {
        let num_blocks = x.scales.len();
        assert!(
            codes.len() == num_blocks * BYTES
                && scales.len() == num_blocks * SCALES * 2 * TILE
                && x.codes.len() == num_blocks * 2 * BLOCK
        );
        let low_nibbles = _mm512_set1_epi8(15);
        let mut y = _mm512_setzero_ps();
        for (block, (x_scale, x_sums)) in x.scales.iter().enumerate() {
            // SAFETY: the lengths were checked above; every load stays within block `block` of its slice.
            unsafe {
                let codes = codes.as_ptr().add(block * BYTES);
                let x_codes = x.codes[block * 2 * BLOCK..][..2 * BLOCK].as_chunks::<4>().0;
                let x_group = |group: usize| {
                    _mm512_set1_epi32(i32::from_ne_bytes(x_codes[group].map(i8::cast_unsigned)))
                };
                let mut coarse = [_mm512_setzero_si512(); SCALES];
                let mut fine = [_mm512_setzero_si512(); SCALES];
                if BYTES == CodeBits::Four.tile_block_bytes() {
                    for group in 0..4 {
                        let both = _mm512_loadu_si512(codes.add(group * 64).cast());
                        let low = _mm512_and_si512(both, low_nibbles);
                        let high = _mm512_and_si512(_mm512_srli_epi16::<4>(both), low_nibbles);
                        coarse[0] = _mm512_dpbusd_epi32(coarse[0], low, x_group(group));
                        fine[0] = _mm512_dpbusd_epi32(fine[0], low, x_group(FINE_GROUP + group));
                        let last = SCALES - 1;
                        coarse[last] = _mm512_dpbusd_epi32(coarse[last], high, x_group(group + 4));
                        fine[last] = _mm512_dpbusd_epi32(fine[last], high, x_group(FINE_GROUP + group + 4));
                    }
                } else {
                    for group in 0..8 {
                        let weights = _mm512_loadu_si512(codes.add(group * 64).cast());
                        let half = group * SCALES / 8;
                        coarse[half] = _mm512_dpbusd_epi32(coarse[half], weights, x_group(group));
                        fine[half] = _mm512_dpbusd_epi32(fine[half], weights, x_group(FINE_GROUP + group));
                    }
                }
                for half in 0..SCALES {
                    let fine = _mm512_mul_ps(_mm512_cvtepi32_ps(fine[half]), _mm512_set1_ps(1.0 / FINE));
                    let sums = _mm512_add_ps(_mm512_cvtepi32_ps(coarse[half]), fine);
                    let scales = scales.as_ptr().add((block * SCALES + half) * 2 * TILE);
                    let (d, m) = (_mm512_loadu_ps(scales), _mm512_loadu_ps(scales.add(TILE)));
                    let x_sum = sum_of_half::<SCALES>(*x_sums, half);
                    y = _mm512_fmadd_ps(sums, _mm512_mul_ps(d, _mm512_set1_ps(*x_scale)), y);
                    y = _mm512_fmadd_ps(m, _mm512_set1_ps(x_sum), y);
                }
            }
        }
        let mut out = [0.0; TILE];
        // SAFETY: `out` holds 16 floats.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), y) };
        out
    }
}

impl QuantizedRow {
    fn new(x: &[f32]) -> Self {
        let mut codes = vec![0i8; 2 * x.len()];
        let mut scales = Vec::with_capacity(x.len() / BLOCK);
        simd::dispatch(
            #[inline(always)]
            || {
                for (codes, x) in codes.chunks_exact_mut(2 * BLOCK).zip(x.chunks_exact(BLOCK)) {
                    let (coarse, fine) = codes.split_at_mut(BLOCK);
                    let largest = x.iter().fold(0f32, |largest, value| largest.max(value.abs()));
                    let scale = largest / 127.0;
                    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                    for ((coarse, fine), value) in coarse.iter_mut().zip(&mut *fine).zip(x) {
                        let steps = value * inverse;
                        *coarse = steps.round() as i8;
                        *fine = ((steps - f32::from(*coarse)) * FINE).round() as i8;
                    }
                    // Of the codes and not of the values, so that what rounding adds is multiplied by d · code + m.
                    let sum = |half: usize| {
                        let of = |codes: &[i8]| {
                            let codes = &codes[half * BLOCK / 2..][..BLOCK / 2];
                            codes.iter().map(|code| i32::from(*code)).sum::<i32>() as f32
                        };
                        scale * (of(coarse) + of(fine) / FINE)
                    };
                    scales.push((scale, [sum(0), sum(1)]));
                }
            },
        );
        Self { codes, scales }
    }
}

struct Op<'a>(&'a QuantizedLinear);

impl CustomOp1 for Op<'_> {
    fn name(&self) -> &'static str {
        "quantized-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let QuantizedLinear { out_features, in_features, .. } = *self.0;
        let (num_rows, width) = layout.shape().dims2()?;
        if width != in_features {
            bail!("input of width {width} for a weight {out_features} x {in_features}");
        }
        let x: Vec<QuantizedRow> =
            cpu::slice(storage, layout)?.chunks_exact(width).map(QuantizedRow::new).collect();
        let padded = out_features.next_multiple_of(TILE);
        let num_tiles = padded / TILE;
        let threads = rayon::current_num_threads();
        let tiles_per_chunk = if out_features * in_features < MIN_PARALLEL_WEIGHTS || threads == 1 {
            num_tiles
        } else {
            num_tiles.div_ceil(threads)
        };
        let mut y = vec![0.0; num_rows * out_features];
        if num_rows == 1 && padded == out_features {
            y.par_chunks_mut(tiles_per_chunk * TILE)
                .enumerate()
                .for_each(|(chunk, y)| self.0.multiply(chunk * tiles_per_chunk, &x[0], y));
        } else {
            // (O padded / chunk) x rows, each chunk's tiles staying in cache while every row passes over them.
            let chunks: Vec<Vec<f32>> = (0..num_tiles.div_ceil(tiles_per_chunk))
                .into_par_iter()
                .map(|chunk| {
                    let first = chunk * tiles_per_chunk;
                    let count = tiles_per_chunk.min(num_tiles - first) * TILE;
                    let mut part = vec![0.0; num_rows * count];
                    for (x, part) in x.iter().zip(part.chunks_exact_mut(count)) {
                        self.0.multiply(first, x, part);
                    }
                    part
                })
                .collect();
            for (chunk, part) in chunks.iter().enumerate() {
                let first = chunk * tiles_per_chunk * TILE;
                let count = part.len() / num_rows;
                let kept = count.min(out_features - first);
                for (y, part) in y.chunks_exact_mut(out_features).zip(part.chunks_exact(count)) {
                    y[first..first + kept].copy_from_slice(&part[..kept]);
                }
            }
        }
        Ok((CpuStorage::F32(y), (num_rows, out_features).into()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn blocks(count: usize, largest_code: u32) -> Vec<AffineBlock> {
        (0..count)
            .map(|i| AffineBlock {
                d: [0.01 + (i % 7) as f32 * 0.003, 0.012 - (i % 3) as f32 * 0.004],
                m: [-0.1 + (i % 5) as f32 * 0.02, (i % 4) as f32 * 0.03],
                codes: std::array::from_fn(|k| ((i * 31 + k * 17) as u32 % (largest_code + 1)) as u8),
            })
            .collect()
    }

    fn check(out_features: usize, in_features: usize, layout: CodeLayout, num_rows: usize) {
        let largest_code = if layout.bits == CodeBits::Four { 15 } else { 255 };
        let blocks = blocks(out_features * in_features / BLOCK, largest_code);
        let mut dense = Vec::new();
        for AffineBlock { d, m, codes } in &blocks {
            for (k, code) in codes.iter().enumerate() {
                let half = k * layout.scales / BLOCK;
                dense.push(d[half] * f32::from(*code) + m[half]);
            }
        }
        let linear = QuantizedLinear::new(out_features, in_features, layout, blocks.into_iter()).unwrap();
        let dense = Tensor::from_vec(dense, (out_features, in_features), &Device::Cpu).unwrap();
        let same: Vec<f32> =
            (linear.dequantize().unwrap() - &dense).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert!(same.iter().all(|difference| *difference == 0.0));
        let x: Vec<f32> =
            (0..num_rows * in_features).map(|i| ((i * 37 % 1009) as f32 - 504.0) / 500.0).collect();
        let x = Tensor::from_vec(x, (num_rows, in_features), &Device::Cpu).unwrap();
        let expected = x.matmul(&dense.t().unwrap()).unwrap();
        let max =
            |t: &Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        let error = max(&(linear.forward(&x).unwrap() - &expected).unwrap()) / max(&expected);
        assert!(error < 1e-4, "{layout:?} {out_features} x {in_features}, {num_rows} rows: {error}");
    }

    #[test]
    fn products_equal_the_dense_ones() {
        for (bits, scales) in
            [(CodeBits::Four, 1), (CodeBits::Four, 2), (CodeBits::Eight, 1), (CodeBits::Eight, 2)]
        {
            let layout = CodeLayout { bits, scales };
            for num_rows in [1, 3, 30] {
                check(48, 64, layout, num_rows);
                check(37, 96, layout, num_rows);
                check(1536, 576, layout, num_rows);
            }
        }
    }

    #[test]
    fn every_cpu_computes_the_same_sums() {
        const BYTES: usize = CodeBits::Four.tile_block_bytes();
        let layout = CodeLayout { bits: CodeBits::Four, scales: 2 };
        let linear = QuantizedLinear::new(16, 64, layout, blocks(32, 15).into_iter()).unwrap();
        let x = QuantizedRow::new(&(0..64).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<_>>());
        let portable = multiply_tile_portable::<BYTES, 2>(&linear.codes, &linear.scales, &x);
        let best = multiply_tile::<BYTES, 2>(&linear.codes, &linear.scales, &x);
        for (a, b) in portable.iter().zip(best) {
            assert!((a - b).abs() <= 1e-4 * a.abs().max(1.0), "{a} {b}");
        }
    }
}
