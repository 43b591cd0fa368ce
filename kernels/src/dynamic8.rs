//! bitsandbytes' "dynamic" data types of eight bits, and blocks of values in them.
//!
//! Source: `create_dynamic_map` and `quantize_blockwise` in bitsandbytes; arXiv 1511.04561 and 2110.02861.

use std::sync::LazyLock;

use rayon::prelude::*;

use crate::simd;

/// Values that share a scale.
pub(crate) const BLOCK: usize = 256;
/// Below it a block's largest value is taken as this, so that its inverse is finite.
const SMALLEST_SCALE: f32 = 1e-38;

/// Values as eight-bit codes in blocks of [`BLOCK`], each with its largest absolute value.
#[derive(Debug, Clone, PartialEq)]
pub struct Dynamic8 {
    pub codes: Vec<u8>,
    pub scales: Vec<f32>,
}

impl Dynamic8 {
    pub(crate) fn zeros(length: usize) -> Self {
        Self { codes: vec![0; length], scales: vec![0.0; length.div_ceil(BLOCK)] }
    }

    /// Codes and scales in parts of so many blocks.
    pub(crate) fn par_parts_mut(
        &mut self,
        num_blocks: usize,
    ) -> impl IndexedParallelIterator<Item = (&mut [u8], &mut [f32])> {
        self.codes.par_chunks_mut(num_blocks * BLOCK).zip(self.scales.par_chunks_mut(num_blocks))
    }
}

/// What the 256 codes stand for, in ascending order.
pub(crate) struct DynamicMap {
    values: [f32; 256],
    /// Midway between neighbours: as many of them are below a value as its code says. The last is infinite.
    bounds: [f32; 256],
}

impl DynamicMap {
    /// For values of both signs.
    pub(crate) fn signed() -> &'static Self {
        static MAP: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(&signed_values()));
        &MAP
    }

    /// For values from zero on.
    pub(crate) fn unsigned() -> &'static Self {
        static MAP: LazyLock<DynamicMap> =
            LazyLock::new(|| DynamicMap::new(&values(|exponent| 2 << exponent, &[1.0])));
        &MAP
    }

    fn new(values: &[f32; 256]) -> Self {
        let mut bounds = [f32::INFINITY; 256];
        for (bound, neighbours) in bounds.iter_mut().zip(values.windows(2)) {
            *bound = f32::midpoint(neighbours[0], neighbours[1]);
        }
        Self { values: *values, bounds }
    }

    /// Its values, then the bounds between them.
    pub(crate) fn table(&self) -> [&[f32; 256]; 2] {
        [&self.values, &self.bounds]
    }

    /// Reads a block.
    #[inline(always)]
    pub(crate) fn decode(&self, codes: &[u8], scale: f32, values: &mut [f32]) {
        for (value, code) in values.iter_mut().zip(codes) {
            *value = self.values[usize::from(*code)] * scale;
        }
    }

    /// Writes the nearest codes of a block and returns its scale. Of two equally near the lower.
    #[inline(always)]
    pub(crate) fn encode(&self, values: &[f32], codes: &mut [u8]) -> f32 {
        let scale = simd::max_abs(values);
        let inverse = 1.0 / scale.max(SMALLEST_SCALE);
        // A binary search of all values side by side: how many bounds are below each.
        let mut below = [0u32; BLOCK];
        for half in [128, 64, 32, 16, 8, 4, 2, 1] {
            for (below, value) in below.iter_mut().zip(values) {
                let bound = self.bounds[(*below + half - 1) as usize % 256];
                *below += if bound < value * inverse { half } else { 0 };
            }
        }
        for (code, below) in codes.iter_mut().zip(below) {
            *code = below as u8;
        }
        scale
    }
}

/// The signed type's values: seven decades, each with twice the values of the one below, zero and one.
pub(crate) fn signed_values() -> [f32; 256] {
    values(|exponent| 1 << exponent, &[1.0, -1.0])
}

/// Seven decades with so many values of each sign, zero and one; ascending.
fn values(count: impl Fn(usize) -> usize, signs: &[f32]) -> [f32; 256] {
    let mut map = [0.0; 256];
    let mut places = map.iter_mut();
    for (exponent, decade) in [1e-6f32, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0].into_iter().enumerate() {
        let count = count(exponent);
        // As torch's linspace computes it: from either end to the middle, rounded once.
        let step = (1.0 - 0.1f32) / count as f32;
        let boundary = |i: usize| {
            if i < count.div_ceil(2) {
                step.mul_add(i as f32, 0.1)
            } else {
                (-step).mul_add((count - i) as f32, 1.0)
            }
        };
        for i in 0..count {
            let value = decade * f32::midpoint(boundary(i), boundary(i + 1));
            for (sign, place) in signs.iter().zip(&mut places) {
                *place = sign * value;
            }
        }
    }
    // The place of zero is left as it is.
    if let Some(place) = places.next() {
        *place = 1.0;
    }
    map.sort_by(f32::total_cmp);
    map
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, path::Path};

    use candle_core::{Device, Tensor};

    use super::*;

    fn golden() -> HashMap<String, Tensor> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/adamw8bit.safetensors");
        candle_core::safetensors::load(path, &Device::Cpu).unwrap()
    }

    #[test]
    fn both_maps_are_those_of_bitsandbytes_to_the_bit() {
        let golden = golden();
        for (name, map) in [("signed", DynamicMap::signed()), ("unsigned", DynamicMap::unsigned())] {
            assert_eq!(golden[&format!("{name}.map")].to_vec1::<f32>().unwrap(), map.values, "{name}");
        }
    }

    #[test]
    fn blocks_are_coded_and_read_as_by_bitsandbytes() {
        let golden = golden();
        for (name, map) in [("signed", DynamicMap::signed()), ("unsigned", DynamicMap::unsigned())] {
            let floats = |part: &str| golden[&format!("{name}.{part}")].to_vec1::<f32>().unwrap();
            let values = floats("values");
            let mut coded = Dynamic8::zeros(values.len());
            let mut read = vec![0.0; values.len()];
            for (block, values) in values.chunks(BLOCK).enumerate() {
                let codes = &mut coded.codes[BLOCK * block..][..values.len()];
                coded.scales[block] = map.encode(values, codes);
                map.decode(codes, coded.scales[block], &mut read[BLOCK * block..][..values.len()]);
            }
            assert_eq!(coded.codes, golden[&format!("{name}.codes")].to_vec1::<u8>().unwrap(), "{name}");
            assert_eq!(coded.scales, floats("absmax"), "{name}");
            assert_eq!(read, floats("read"), "{name}");
        }
    }
}
