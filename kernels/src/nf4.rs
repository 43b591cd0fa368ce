use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::{
    cpu::{self, Matrix},
    simd,
};

/// Values that share a scale.
pub(crate) const BLOCK: usize = 64;
const BLOCK_BYTES: usize = BLOCK / 2;
/// Scales that share a scale of their own.
pub(crate) const NESTED_BLOCK: usize = 256;

/// What a code means as a share of its block's scale: quantiles of the normal distribution, with an exact zero.
#[expect(clippy::excessive_precision, clippy::unreadable_literal, reason = "as bitsandbytes writes them")]
const TABLE: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

/// The two values of each byte.
static PAIRS: [[f32; 2]; 256] = {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [TABLE[byte >> 4], TABLE[byte & 15]];
        byte += 1;
    }
    pairs
};

/// A frozen matrix (O, C) in NF4, kept packed: 4-bit codes in blocks of 64 values, in the matrix's order.
///
/// Source: `QLoRA`, arXiv 2305.14314; codes and scales equal those of bitsandbytes to the bit.
pub struct Nf4 {
    /// Two values a byte, the first in the high nibble.
    codes: Vec<u8>,
    scales: Nf4Scales,
    out_features: usize,
    in_features: usize,
}

/// The largest magnitude of each block.
pub enum Nf4Scales {
    Plain(Vec<f32>),
    /// Double quantisation: `map[code] · scale + offset`, a scale for 256 codes.
    Nested {
        codes: Vec<u8>,
        scales: Vec<f32>,
        map: Vec<f32>,
        offset: f32,
    },
}

impl Nf4Scales {
    fn is_for(&self, num_blocks: usize) -> bool {
        match self {
            Self::Plain(scales) => scales.len() == num_blocks,
            Self::Nested { codes, scales, map, .. } => {
                codes.len() == num_blocks
                    && scales.len() == num_blocks.div_ceil(NESTED_BLOCK)
                    && map.len() == 256
            }
        }
    }

    #[inline(always)]
    pub(crate) fn get(&self, block: usize) -> f32 {
        match self {
            Self::Plain(scales) => scales[block],
            Self::Nested { codes, scales, map, offset } => {
                map[usize::from(codes[block])] * scales[block / NESTED_BLOCK] + offset
            }
        }
    }
}

impl Nf4 {
    /// From its parts as bitsandbytes stores them, of shape (O, C).
    ///
    /// Errors: an odd width, a number of values that 64 does not divide, codes or scales for another number of values.
    pub fn new(
        codes: Vec<u8>,
        scales: Nf4Scales,
        (out_features, in_features): (usize, usize),
    ) -> Result<Self> {
        let num_values = out_features * in_features;
        if !in_features.is_multiple_of(2) || !num_values.is_multiple_of(BLOCK) {
            bail!("NF4 takes blocks of {BLOCK} values, which a weight {out_features} x {in_features} is not");
        }
        if codes.len() != num_values / 2 || !scales.is_for(num_values / BLOCK) {
            bail!(
                "{} bytes of NF4 and their scales do not fit a weight {out_features} x {in_features}",
                codes.len()
            );
        }
        Ok(Self { codes, scales, out_features, in_features })
    }

    /// Quantises a weight (O, C), and with `double_quant` its scales too. Errors: as for [`new`](Self::new).
    pub fn quantize(weight: &Tensor, double_quant: bool) -> Result<Self> {
        let shape = weight.dims2()?;
        let num_values = shape.0 * shape.1;
        let mut codes = vec![0; num_values / 2];
        let mut scales = vec![0.0; num_values / BLOCK];
        let bounds: [f32; 15] = std::array::from_fn(|i| f32::midpoint(TABLE[i], TABLE[i + 1]));
        cpu::with_slice(weight, |values| {
            codes
                .par_chunks_exact_mut(BLOCK_BYTES)
                .zip(&mut scales)
                .zip(values.as_chunks::<BLOCK>().0)
                .with_min_len(256)
                .for_each(|((codes, scale), values)| {
                    // What is not a number stays so, for the loss to tell.
                    let larger = |max, value: &f32| {
                        if value.abs() > max || value.is_nan() { value.abs() } else { max }
                    };
                    *scale = values.iter().fold(0.0, larger);
                    quantize_block(values, 1.0 / scale.max(1e-38), &bounds, codes);
                });
            Ok(())
        })?;
        let scales = if double_quant { Nf4Scales::nested(&scales) } else { Nf4Scales::Plain(scales) };
        Self::new(codes, scales, shape)
    }

    /// Two values a byte, the first in the high nibble.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    pub fn scales(&self) -> &Nf4Scales {
        &self.scales
    }

    /// (O, C).
    pub fn shape(&self) -> (usize, usize) {
        (self.out_features, self.in_features)
    }

    /// Calls `f(outputs, rows)` with the matrix in parts: the rows `outputs` of it, (outputs, C) in f32.
    pub(crate) fn for_tiles(&self, f: impl FnMut(Range<usize>, Matrix<'_>)) {
        cpu::for_tiles(self.shape(), |row, out| self.dequantize_row(row, out), f);
    }

    /// Writes a row in f32 into `out` (C).
    pub(crate) fn dequantize_row(&self, row: usize, mut out: &mut [f32]) {
        // A row may begin inside a block: 64 need not divide the width.
        let mut at = row * self.in_features / 2;
        while !out.is_empty() {
            let block = at / BLOCK_BYTES;
            let end = ((block + 1) * BLOCK_BYTES).min(at + out.len() / 2);
            let scale = self.scales.get(block);
            let (now, later) = out.split_at_mut(2 * (end - at));
            for (pair, byte) in now.as_chunks_mut::<2>().0.iter_mut().zip(&self.codes[at..end]) {
                *pair = PAIRS[usize::from(*byte)].map(|value| value * scale);
            }
            (out, at) = (later, end);
        }
    }
}

/// The nearest code of each value times `inverse_scale`: how many of the bounds between codes lie below it.
fn quantize_block(values: &[f32; BLOCK], inverse_scale: f32, bounds: &[f32; 15], packed: &mut [u8]) {
    let mut codes = [0u8; BLOCK];
    simd::dispatch(
        #[inline(always)]
        || {
            for bound in bounds {
                for (code, value) in codes.iter_mut().zip(values) {
                    *code += u8::from((value * inverse_scale).clamp(-1.0, 1.0) > *bound);
                }
            }
        },
    );
    for (byte, [first, second]) in packed.iter_mut().zip(codes.as_chunks::<2>().0) {
        *byte = first << 4 | second;
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, path::Path};

    use candle_core::{DType, Device};

    use super::*;

    /// What tests/golden/nf4.py dumped.
    fn golden() -> HashMap<String, Tensor> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/nf4.safetensors");
        candle_core::safetensors::load(path, &Device::Cpu).unwrap()
    }

    fn f32s(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
    }

    fn bytes(tensor: &Tensor) -> Vec<u8> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    fn dense(packed: &Nf4) -> Vec<f32> {
        let mut out = vec![0.0; packed.out_features * packed.in_features];
        for (row, out) in out.chunks_exact_mut(packed.in_features).enumerate() {
            packed.dequantize_row(row, out);
        }
        out
    }

    #[test]
    fn codes_scales_and_values_equal_bitsandbytes_to_the_bit() {
        let golden = golden();
        for name in ["normal", "narrow", "outliers", "bf16"] {
            let get = |part: &str| &golden[&format!("{name}.{part}")];
            let weight = get("weight").to_dtype(DType::F32).unwrap();
            let shape = weight.dims2().unwrap();
            let packed = Nf4::quantize(&weight, false).unwrap();
            assert_eq!(packed.codes, bytes(get("codes")), "{name}");
            let Nf4Scales::Plain(scales) = &packed.scales else { panic!("nested") };
            assert_eq!(bits(scales), bits(&f32s(get("absmax"))), "{name}");
            assert_eq!(bits(&dense(&packed)), bits(&f32s(get("values"))), "{name}");

            let nested = Nf4Scales::Nested {
                codes: bytes(get("nested_codes")),
                scales: f32s(get("nested_absmax")),
                map: f32s(&golden["nested_quant_map"]),
                offset: f32s(get("nested_offset"))[0],
            };
            let nested = Nf4::new(bytes(get("codes")), nested, shape).unwrap();
            assert_eq!(bits(&dense(&nested)), bits(&f32s(get("nested_values"))), "{name}, nested");
            let twice = Nf4::quantize(&weight, true).unwrap();
            assert_same_scales(&twice.scales, &nested.scales, name);
            assert_eq!(bits(&dense(&twice)), bits(&dense(&nested)), "{name}, quantised twice");
        }
    }

    #[test]
    fn nested_scales_equal_bitsandbytes_to_the_bit() {
        let golden = golden();
        let get = |part: &str| &golden[&format!("scales.{part}")];
        let nested = Nf4Scales::Nested {
            codes: bytes(get("codes")),
            scales: f32s(get("absmax")),
            map: f32s(&golden["nested_quant_map"]),
            offset: f32s(get("offset"))[0],
        };
        assert!(nested.is_for(600));
        let values: Vec<f32> = (0..600).map(|block| nested.get(block)).collect();
        assert_eq!(bits(&values), bits(&f32s(get("values"))));
    }

    fn assert_same_scales(ours: &Nf4Scales, theirs: &Nf4Scales, name: &str) {
        let parts = |scales: &Nf4Scales| match scales {
            Nf4Scales::Nested { codes, scales, map, offset } => {
                (codes.clone(), bits(scales), bits(map), offset.to_bits())
            }
            Nf4Scales::Plain(_) => panic!("not nested"),
        };
        assert_eq!(parts(ours), parts(theirs), "{name}");
    }

    #[test]
    fn a_block_with_a_value_that_is_no_number_has_none_that_is() {
        let mut values = vec![0.5f32; 2 * BLOCK];
        values[3] = f32::NAN;
        let packed =
            Nf4::quantize(&Tensor::from_vec(values, (2, BLOCK), &Device::Cpu).unwrap(), false).unwrap();
        let values = dense(&packed);
        assert!(values[..BLOCK].iter().all(|value| value.is_nan()));
        assert_eq!(values[BLOCK..], [0.5; BLOCK]);
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let plain = |blocks| Nf4Scales::Plain(vec![1.0; blocks]);
        assert!(Nf4::new(vec![0; 64], plain(2), (2, 64)).is_ok());
        assert!(Nf4::new(vec![0; 64], plain(1), (2, 64)).is_err());
        assert!(Nf4::new(vec![0; 63], plain(2), (2, 64)).is_err());
        assert!(Nf4::quantize(&Tensor::ones((3, 20), DType::F32, &Device::Cpu).unwrap(), false).is_err());
    }
}
