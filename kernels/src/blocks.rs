use candle_core::{Device, Result, Tensor, bail};
use half::{bf16, f16};

use crate::{AffineBlock, CodeBits, CodeLayout, QuantizedLinear, cpu, mxfp4, simd};

/// Values that are decoded at a time.
const PART: usize = 32;

/// How llama.cpp lays out a tensor's values: floats one by one, or codes in blocks that share scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Mxfp4,
}

/// A frozen matrix (O, C) in llama.cpp's blocks, kept as its file has them; no block spans two rows.
///
/// Values equal ggml's `dequantize_row_*` to the bit.
pub struct Blocks {
    bytes: Vec<u8>,
    block_type: BlockType,
    num_rows: usize,
    in_features: usize,
}

impl BlockType {
    /// By the number that GGUF files have for it (`ggml_type`).
    pub fn from_ggml(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2K,
            11 => Self::Q3K,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::BF16,
            39 => Self::Mxfp4,
            _ => return None,
        })
    }

    /// Whether values are floats of their own.
    pub fn is_dense(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// Values of a block.
    pub fn num_values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Mxfp4 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// How the codes of quantised values are kept in tiles.
    fn code_layout(self) -> Option<CodeLayout> {
        let (bits, scales) = match self {
            Self::F32 | Self::F16 | Self::BF16 => return None,
            Self::Q4_0 | Self::Q4_1 | Self::Q4K => (CodeBits::Four, 1),
            Self::Q2K | Self::Q3K => (CodeBits::Four, 2),
            Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Q5K | Self::Mxfp4 => (CodeBits::Eight, 1),
            Self::Q6K => (CodeBits::Eight, 2),
        };
        Some(CodeLayout { bits, scales })
    }

    /// Bytes of a block.
    pub fn num_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Mxfp4 => 17,
        }
    }
}

impl Blocks {
    /// Errors: a width that is no whole number of blocks, bytes for another number of values.
    pub fn new(bytes: Vec<u8>, block_type: BlockType, num_rows: usize, in_features: usize) -> Result<Self> {
        let fits = in_features > 0
            && in_features.is_multiple_of(block_type.num_values())
            && bytes.len() == num_rows * in_features / block_type.num_values() * block_type.num_bytes();
        if !fits {
            bail!("{} bytes of {block_type:?} for a weight {num_rows} x {in_features}", bytes.len());
        }
        Ok(Self { bytes, block_type, num_rows, in_features })
    }

    pub fn block_type(&self) -> BlockType {
        self.block_type
    }

    /// (O, C).
    pub fn shape(&self) -> (usize, usize) {
        (self.num_rows, self.in_features)
    }

    pub(crate) fn row(&self, row: usize) -> &[u8] {
        let row_bytes = self.bytes.len() / self.num_rows;
        &self.bytes[row * row_bytes..][..row_bytes]
    }

    /// The same rows in another order: row i becomes what row `source(i)` was.
    #[must_use]
    pub fn reordered(&self, source: impl Fn(usize) -> usize) -> Self {
        let bytes = (0..self.num_rows).flat_map(|row| self.row(source(row))).copied().collect();
        Self { bytes, ..*self }
    }

    /// The whole matrix in f32, (O, C).
    pub fn dequantize(&self) -> Result<Tensor> {
        let mut values = vec![0.0; self.num_rows * self.in_features];
        cpu::for_row_chunks(&mut values, self.in_features, |first, chunk| {
            for (i, out) in chunk.chunks_exact_mut(self.in_features).enumerate() {
                self.dequantize_row(first + i, out);
            }
        });
        Tensor::from_vec(values, self.shape(), &Device::Cpu)
    }

    /// Some rows in f32: (N, C). For embeddings. Errors: a row that there is not.
    pub fn rows(&self, rows: &[u32]) -> Result<Tensor> {
        if let Some(row) = rows.iter().find(|row| **row as usize >= self.num_rows) {
            bail!("row {row} of {}", self.num_rows);
        }
        let mut values = vec![0.0; rows.len() * self.in_features];
        for (row, out) in rows.iter().zip(values.chunks_exact_mut(self.in_features)) {
            self.dequantize_row(*row as usize, out);
        }
        Tensor::from_vec(values, (rows.len(), self.in_features), &Device::Cpu)
    }

    /// The same values in tiles, for products with few rows. Errors: floats, which are no codes.
    pub fn tiled(&self) -> Result<QuantizedLinear> {
        let Some(layout) = self.block_type.code_layout() else { bail!("{:?} has no codes", self.block_type) };
        let (parts, num_bytes) = (self.block_type.num_values() / PART, self.block_type.num_bytes());
        let blocks = (0..self.num_rows * self.in_features / PART).map(|i| {
            let block = &self.bytes[i / parts * num_bytes..][..num_bytes];
            self.block_type.affine(block, i % parts)
        });
        QuantizedLinear::new(self.num_rows, self.in_features, layout, blocks)
    }

    /// Writes a row in f32 into `out` (C).
    pub(crate) fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let bytes = self.row(row);
        simd::dispatch(
            #[inline(always)]
            || match self.block_type {
                BlockType::F32 => floats(bytes, out, f32::from_le_bytes),
                BlockType::F16 => floats(bytes, out, |value| f16::from_le_bytes(value).to_f32()),
                BlockType::BF16 => floats(bytes, out, |value| bf16::from_le_bytes(value).to_f32()),
                block_type => {
                    let blocks = bytes.chunks_exact(block_type.num_bytes());
                    for (block, out) in blocks.zip(out.chunks_exact_mut(block_type.num_values())) {
                        for (part, out) in out.as_chunks_mut::<PART>().0.iter_mut().enumerate() {
                            block_type.affine(block, part).write(out);
                        }
                    }
                }
            },
        );
    }
}

#[inline(always)]
fn floats<const BYTES: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; BYTES]) -> f32) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = value(*bytes);
    }
}

impl AffineBlock {
    fn new(d: f32, m: f32, codes: [u8; PART]) -> Self {
        Self { d: [d; 2], m: [m; 2], codes }
    }

    #[inline(always)]
    fn write(&self, out: &mut [f32; PART]) {
        let halves = out.as_chunks_mut::<{ PART / 2 }>().0.iter_mut().zip(self.codes.as_chunks().0);
        for ((out, codes), (d, m)) in halves.zip(self.d.iter().zip(self.m)) {
            *out = codes.map(|code| d * f32::from(code) + m);
        }
    }
}

impl BlockType {
    /// The values 32 · `part` and on of a block of codes.
    #[inline(always)]
    fn affine(self, block: &[u8], part: usize) -> AffineBlock {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        match self {
            Self::F32 | Self::F16 | Self::BF16 => unreachable!("floats are no codes"),
            // f16 d, 16 bytes
            Self::Q4_0 => AffineBlock::new(half(0), -8.0 * half(0), nibbles(&block[2..])),
            // f16 d, f16 m, 16 bytes
            Self::Q4_1 => AffineBlock::new(half(0), half(2), nibbles(&block[4..])),
            // f16 d, 32 high bits, 16 bytes
            Self::Q5_0 => AffineBlock::new(
                half(0),
                -16.0 * half(0),
                with_fifth_bits(nibbles(&block[6..]), &block[2..6]),
            ),
            // f16 d, f16 m, 32 high bits, 16 bytes
            Self::Q5_1 => {
                AffineBlock::new(half(0), half(2), with_fifth_bits(nibbles(&block[8..]), &block[4..8]))
            }
            // f16 d, 32 signed bytes
            Self::Q8_0 => {
                let codes = &block[2..34];
                AffineBlock::new(half(0), -128.0 * half(0), std::array::from_fn(|k| codes[k] ^ 0x80))
            }
            // 16 bytes of scales (low nibbles) and minima, 64 of codes, f16 d, f16 dmin
            Self::Q2K => {
                let scales = [block[2 * part], block[2 * part + 1]];
                let codes = two_bits(&block[16..80], part);
                AffineBlock {
                    d: scales.map(|scale| half(80) * f32::from(scale & 15)),
                    m: scales.map(|scale| -(half(82) * f32::from(scale >> 4))),
                    codes,
                }
            }
            // 32 bytes of high bits, 64 of codes, 12 of scales, f16 d
            Self::Q3K => {
                let scales = &block[96..108];
                let d = [2 * part, 2 * part + 1].map(|group| {
                    let low = (scales[group % 8] >> (group / 8 * 4)) & 15;
                    let high = (scales[8 + group % 4] >> (group / 4 * 2)) & 3;
                    half(108) * (f32::from(low | high << 4) - 32.0)
                });
                let (low, high) = (two_bits(&block[32..96], part), &block[..32]);
                let codes = std::array::from_fn(|k| low[k] | ((high[k] >> part) & 1) << 2);
                AffineBlock { d, m: d.map(|d| -4.0 * d), codes }
            }
            // f16 d, f16 dmin, 12 bytes of scales, 128 of codes
            Self::Q4K => {
                let (scale, min) = scale_and_min(&block[4..16], part);
                AffineBlock::new(half(0) * scale, -(half(2) * min), four_bits(&block[16..144], part))
            }
            // f16 d, f16 dmin, 12 bytes of scales, 32 of high bits, 128 of codes
            Self::Q5K => {
                let (scale, min) = scale_and_min(&block[4..16], part);
                let (low, high) = (four_bits(&block[48..176], part), &block[16..48]);
                let codes = std::array::from_fn(|k| low[k] | ((high[k] >> part) & 1) << 4);
                AffineBlock::new(half(0) * scale, -(half(2) * min), codes)
            }
            // 128 bytes of low nibbles, 64 of high bits, 16 signed scales, f16 d
            Self::Q6K => {
                let d = [2 * part, 2 * part + 1]
                    .map(|group| half(208) * f32::from(block[192 + group].cast_signed()));
                // 128 values at a time: their low nibbles are those of 32 bytes, of 32 more, then the high ones.
                let low = &block[part / 4 * 64 + part % 2 * 32..][..32];
                let (shift, high) = (part % 4 / 2 * 4, two_bits(&block[128..192], part));
                let codes = std::array::from_fn(|k| (low[k] >> shift) & 15 | high[k] << 4);
                AffineBlock { d, m: d.map(|d| -32.0 * d), codes }
            }
            // an exponent, 16 bytes; codes count halves from -12
            Self::Mxfp4 => {
                let half_scale = mxfp4::half_scale(block[0]);
                let codes = nibbles(&block[1..]).map(|code| mxfp4::HALVES_PLUS_12[usize::from(code)]);
                AffineBlock::new(half_scale, -12.0 * half_scale, codes)
            }
        }
    }
}

/// Low nibbles are the first 16 values, high ones the last.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> [u8; PART] {
    let bytes = &bytes[..16];
    std::array::from_fn(|k| if k < 16 { bytes[k] & 15 } else { bytes[k - 16] >> 4 })
}

/// Adds the fifth bit of value k, bit k of `high`.
#[inline(always)]
fn with_fifth_bits(codes: [u8; PART], high: &[u8]) -> [u8; PART] {
    let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    std::array::from_fn(|k| codes[k] | (((high >> k) & 1) as u8) << 4)
}

/// Codes of a part: 32 bytes hold two parts, the first in their low nibbles.
#[inline(always)]
fn four_bits(bytes: &[u8], part: usize) -> [u8; PART] {
    let (bytes, shift) = (&bytes[part / 2 * 32..][..32], part % 2 * 4);
    std::array::from_fn(|k| (bytes[k] >> shift) & 15)
}

/// Codes of a part: 32 bytes hold four parts, the first in their lowest bits.
#[inline(always)]
fn two_bits(bytes: &[u8], part: usize) -> [u8; PART] {
    let (bytes, shift) = (&bytes[part / 4 * 32..][..32], part % 4 * 2);
    std::array::from_fn(|k| (bytes[k] >> shift) & 3)
}

/// Scale and minimum of a part, six bits each; eight of both share 12 bytes.
#[inline(always)]
fn scale_and_min(scales: &[u8], part: usize) -> (f32, f32) {
    let (scale, min) = if part < 4 {
        (scales[part] & 63, scales[part + 4] & 63)
    } else {
        let (low, of_scale, of_min) = (scales[part + 4], scales[part - 4] >> 6, scales[part] >> 6);
        (low & 15 | of_scale << 4, low >> 4 | of_min << 4)
    };
    (f32::from(scale), f32::from(min))
}
