//! Products against their twins: every form, size of tile, edge and split of K that the kernels have.

use crate::twins::{Twins, random, target};
use candle_core::{DType, Result, Tensor};
use lathe_kernels::{FrozenLinear, Nf4, linear};

/// (T, O, C): few rows and many, odd edges, K in parts; at the end large tiles in each form.
const SHAPES: [(usize, usize, usize); 17] = [
    (1, 24, 40),
    (3, 136, 96),
    (8, 8, 2880),
    (9, 24, 40),
    (17, 136, 96),
    (17, 24, 2880),
    (64, 72, 64),
    (130, 136, 40),
    (130, 24, 128),
    (70, 264, 72),
    (5, 640, 512),
    (300, 200, 1088),
    (1100, 1000, 40),
    (1100, 40, 1000),
    (40, 1000, 1100),
    (130, 4304, 64),
    (130, 64, 4304),
];

/// One of two layers, by where the input lies.
fn on<'a>(x: &Tensor, [cpu, gpu]: [&'a FrozenLinear; 2]) -> &'a FrozenLinear {
    if x.dtype() == DType::BF16 { gpu } else { cpu }
}

/// Checks a layer and its copy on the device on T rows.
fn check(num_rows: usize, cpu: &FrozenLinear) -> Result<()> {
    let gpu = cpu.to_device(&target())?;
    let in_features = cpu.shape().1;
    Twins::new(&[(&[num_rows, in_features], 2)])?
        .check(1e-2, |inputs| on(&inputs[0], [cpu, &gpu]).forward(&inputs[0]))
}

pub fn a_frozen_weight_in_bf16_is_its_twin() -> Result<()> {
    for (num_rows, out_features, in_features) in SHAPES {
        let weight = random(&[out_features, in_features], 1)?;
        let bias = random(&[out_features], 3)?;
        check(num_rows, &FrozenLinear::new(&weight, Some(&bias))?)?;
    }
    Ok(())
}

pub fn a_weight_in_nf4_is_its_twin() -> Result<()> {
    for (num_rows, out_features, in_features) in SHAPES {
        let weight = random(&[out_features, in_features], 1)?;
        let bias = random(&[out_features], 3)?;
        // 64 need not divide a row, only the whole.
        if out_features * in_features % 64 == 0 {
            let packed = Nf4::quantize(&weight, num_rows % 2 == 0)?;
            check(num_rows, &FrozenLinear::nf4(packed, Some(&bias))?)?;
        }
    }
    Ok(())
}

pub fn a_weight_that_learns_is_its_twin() -> Result<()> {
    for (num_rows, out_features, in_features) in SHAPES {
        Twins::new(&[(&[num_rows, in_features], 1)])?
            .with_f32(&[out_features, in_features], 2)?
            .check(1e-2, |inputs| linear(&inputs[0], &inputs[1]))?;
    }
    Ok(())
}
