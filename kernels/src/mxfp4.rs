use candle_core::{Result, bail};

use crate::simd;

/// Values that share a scale.
const BLOCK: usize = 32;
const BLOCK_BYTES: usize = BLOCK / 2;

/// Each code's value in halves, 12 more so that none is negative.
pub(crate) const HALVES_PLUS_12: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

/// Matrices in MXFP4, kept packed: 4-bit floats in blocks of 32 with a power of two a block.
///
/// Source: OCP Microscaling Formats 1.0; laid out as gpt-oss' checkpoints have them.
pub struct Mxfp4 {
    /// (rows, C/32, 16), low nibble first.
    blocks: Vec<u8>,
    /// (rows, C/32), exponents with a bias of 127.
    scales: Vec<u8>,
    in_features: usize,
}

impl Mxfp4 {
    /// Errors: a width that is no multiple of 32, or not as many blocks as scales.
    pub fn new(blocks: Vec<u8>, scales: Vec<u8>, in_features: usize) -> Result<Self> {
        let fits = in_features.is_multiple_of(BLOCK)
            && (scales.len() * BLOCK).is_multiple_of(in_features.max(1))
            && blocks.len() == scales.len() * BLOCK_BYTES;
        if !fits {
            bail!(
                "MXFP4 of width {in_features} with {} bytes of blocks and {} scales",
                blocks.len(),
                scales.len()
            );
        }
        Ok(Self { blocks, scales, in_features })
    }

    pub fn num_rows(&self) -> usize {
        self.scales.len() * BLOCK / self.in_features
    }

    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// (rows, C/32, 16), low nibble first.
    pub fn blocks(&self) -> &[u8] {
        &self.blocks
    }

    /// (rows, C/32), exponents with a bias of 127.
    pub fn scales(&self) -> &[u8] {
        &self.scales
    }

    /// Writes a row in f32 into `out` (C). Exact: every value is one of f32.
    pub(crate) fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let first = row * self.in_features / BLOCK;
        let blocks = self.blocks[first * BLOCK_BYTES..].as_chunks::<BLOCK_BYTES>().0;
        simd::dispatch(
            #[inline(always)]
            || {
                for ((out, block), scale) in
                    out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(blocks).zip(&self.scales[first..])
                {
                    let half = half_scale(*scale);
                    for (pair, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(block) {
                        *pair = [value(u32::from(*byte), half), value(u32::from(*byte) >> 4, half)];
                    }
                }
            },
        );
    }
}

/// Half of `2^(scale − 127)`: values are counted in halves.
#[inline(always)]
pub(crate) fn half_scale(scale: u8) -> f32 {
    // Exponent 0 is −127, the first that f32 holds as a subnormal only.
    let bits = if scale == 0 { 1 << 22 } else { u32::from(scale) << 23 };
    f32::from_bits(bits) * 0.5
}

/// Sign, two bits of exponent, one of mantissa: ±{0, ½, 1, 1½, 2, 3, 4, 6}.
#[inline(always)]
fn value(code: u32, half_scale: f32) -> f32 {
    let (exponent, mantissa) = ((code >> 1) & 3, code & 1);
    let normal = u32::from(exponent > 0);
    let halves = (mantissa | normal << 1) << (exponent - normal);
    let sign = (code & 8) << 28;
    f32::from_bits((halves as i32 as f32 * half_scale).to_bits() | sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_value() {
        let expected = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        let blocks: Vec<u8> = (0..16).map(|i| (i | (15 - i) << 4) as u8).collect();
        for (scale, factor) in [(127, 1.0), (130, 8.0), (1, 2f32.powi(-126)), (0, 2f32.powi(-127))] {
            let packed = Mxfp4::new([[0; 16].to_vec(), blocks.clone()].concat(), vec![127, scale], 32);
            let mut values = [0.0; 32];
            packed.unwrap().dequantize_row(1, &mut values);
            for code in 0..16 {
                let magnitude = expected[code % 8] * factor;
                let value = if code < 8 { magnitude } else { -magnitude };
                assert_eq!(values[2 * code].to_bits(), value.to_bits(), "low nibble {code}");
                assert_eq!(values[2 * (15 - code) + 1].to_bits(), value.to_bits(), "high nibble {code}");
            }
        }
        assert!(Mxfp4::new(vec![0; 16], vec![0; 2], 32).is_err());
    }
}
