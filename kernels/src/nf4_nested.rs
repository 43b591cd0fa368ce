//! NF4's scales quantised once more, as bitsandbytes does it (`bnb_4bit_use_double_quant`).

use crate::{
    dynamic8::signed_values,
    nf4::{NESTED_BLOCK, Nf4Scales},
};

impl Nf4Scales {
    /// Codes of eight bits for what the scales are beside their mean, with a scale for 256 of them.
    ///
    /// Equal to `quantize_4bit(.., compress_statistics=True)` to the bit, where torch sums on one CPU thread.
    pub(crate) fn nested(scales: &[f32]) -> Self {
        let map = signed_values().to_vec();
        let offset = mean(scales);
        let mut codes = Vec::with_capacity(scales.len());
        let mut nested = Vec::with_capacity(scales.len().div_ceil(NESTED_BLOCK));
        for scales in scales.chunks(NESTED_BLOCK) {
            let largest = scales.iter().fold(0f32, |largest, scale| largest.max((scale - offset).abs()));
            let inverse = 1.0 / largest;
            codes.extend(scales.iter().map(|scale| nearest(&map, (scale - offset) * inverse)));
            nested.push(largest);
        }
        Self::Nested { codes, scales: nested, map, offset }
    }
}

/// The code of the nearest value to that of the 65536 steps from -1 to 1 which is nearest to this one: bitsandbytes
/// looks codes up in a table of so many. Of two equally near the lower.
fn nearest(map: &[f32], value: f32) -> u8 {
    let step = ((value + 1.0) * 32_767.5 + 0.5).floor();
    let value = f64::from(step) / 32_767.5 - 1.0;
    let right = map.partition_point(|code| f64::from(*code) <= value).clamp(1, map.len() - 1);
    let is_right = f64::from(map[right]) - value < value - f64::from(map[right - 1]);
    (right - usize::from(!is_right)) as u8
}

/// Lanes of a register, and registers that torch adds to in turns.
const LANES: usize = 8;
const REGISTERS: usize = 4;
const LEVELS: usize = 4;

type Sums = [f32; LANES * REGISTERS];

/// The mean in f32 with torch's order of additions (`cascade_sum` on AVX2), which decides its last bits.
fn mean(values: &[f32]) -> f32 {
    let add = |sums: &mut Sums, more: &Sums| sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    let (rows, rest) = values.as_chunks::<{ LANES * REGISTERS }>();
    // 1. Rows of four registers: each level gathers so many sums of the one below.
    let log2 = rows.len().next_power_of_two().trailing_zeros() as usize;
    let power = (log2 / LEVELS).max(4);
    let mut levels = [[0.0; LANES * REGISTERS]; LEVELS];
    for (i, row) in rows.iter().enumerate() {
        add(&mut levels[0], row);
        let done = i + 1;
        for level in 1..LEVELS {
            if !done.is_multiple_of(1 << (power * level)) {
                break;
            }
            let below = std::mem::replace(&mut levels[level - 1], [0.0; LANES * REGISTERS]);
            add(&mut levels[level], &below);
        }
    }
    let [mut sums, higher @ ..] = levels;
    for level in &higher {
        add(&mut sums, level);
    }
    // 2. The registers that filled no row, then registers, lanes and what filled no register
    let (registers, tail) = rest.as_chunks::<LANES>();
    let (first, others) = sums.split_at_mut(LANES);
    for register in registers.iter().map(<[f32; LANES]>::as_slice).chain(others.chunks_exact(LANES)) {
        first.iter_mut().zip(register).for_each(|(sum, value)| *sum += value);
    }
    let sum = tail.iter().chain(&*first).fold(0.0, |sum, value| sum + value);
    sum / values.len() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_equal_those_of_torch_to_the_bit() {
        // torch.arange(n) * 7919 % 1009 / 10000 in f32, .mean() on one thread
        let means: [(u32, u32); 7] = [
            (1, 0),
            (7, 0x3d26_3d35),
            (40, 0x3d4b_cbe6),
            (600, 0x3d4e_bd4d),
            (5_000, 0x3d4e_7b8f),
            (30_000, 0x3d4e_6dba),
            (300_000, 0x3d4e_705a),
        ];
        for (count, expected) in means {
            let values: Vec<f32> = (0..count).map(|i| (i * 7919 % 1009) as f32 / 10_000.0).collect();
            assert_eq!(mean(&values).to_bits(), expected, "{count} values");
        }
    }
}
