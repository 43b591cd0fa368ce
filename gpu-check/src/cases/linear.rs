//! Products against their twins: every form, size of tile, edge and split of K that there are.

use crate::twins::{Twins, check_near, on_target, random, target};
use candle_core::{DType, Result, Tensor};
use lathe_kernels::{FrozenLinear, Nf4, linear};

/// (T, O, C): few rows and many, odd edges, K in parts.
const SHAPES: [(usize, usize, usize); 14] = [
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
    (3, 6, 64),
    (19, 7, 20),
    (33, 10, 5),
];

/// What comes to large tiles in y, in dx, in dW.
const LARGE: [(usize, usize, usize); 3] = [(200, 4400, 40), (200, 40, 4400), (40, 200, 4400)];
/// Likewise to the library, also where rows are filled up.
const LIBRARY: [(usize, usize, usize); 6] =
    [(600, 304, 40), (600, 40, 304), (40, 304, 600), (300, 258, 44), (300, 44, 258), (44, 300, 258)];
/// Likewise to large tiles in y and dx, of so few rows that NF4 is not written out.
const LARGE_NF4: [(usize, usize, usize); 2] = [(130, 4304, 64), (130, 64, 4304)];

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
    for (num_rows, out_features, in_features) in SHAPES.iter().chain(&LARGE[..2]).chain(&LIBRARY).copied() {
        let weight = random(&[out_features, in_features], 1)?;
        let bias = random(&[out_features], 3)?;
        check(num_rows, &FrozenLinear::new(&weight, Some(&bias))?)?;
    }
    Ok(())
}

pub fn a_weight_in_nf4_is_its_twin() -> Result<()> {
    for (num_rows, out_features, in_features) in SHAPES.iter().chain(&LARGE_NF4).chain(&LIBRARY).copied() {
        let weight = random(&[out_features, in_features], 1)?;
        let bias = random(&[out_features], 3)?;
        // 64 need not divide a row, only the whole.
        if (out_features * in_features).is_multiple_of(64) && in_features.is_multiple_of(8) {
            let packed = Nf4::quantize(&weight, num_rows % 2 == 0)?;
            check(num_rows, &FrozenLinear::nf4(packed, Some(&bias))?)?;
        }
    }
    Ok(())
}

pub fn a_weight_that_learns_is_its_twin() -> Result<()> {
    for (num_rows, out_features, in_features) in SHAPES.iter().chain(&LARGE[2..]).chain(&LIBRARY).copied() {
        Twins::new(&[(&[num_rows, in_features], 1)])?
            .with_f32(&[out_features, in_features], 2)?
            .check(1e-2, |inputs| linear(&inputs[0], &inputs[1]))?;
    }
    Ok(())
}

pub fn an_odd_number_of_outputs_is_its_twin() -> Result<()> {
    for (num_rows, out_features, in_features) in [(3, 25, 64), (9, 257, 64), (70, 67, 640)] {
        let (weight, bias) = (random(&[out_features, in_features], 1)?, random(&[out_features], 3)?);
        let cpu = FrozenLinear::new(&weight, Some(&bias))?;
        let x = random(&[num_rows, in_features], 2)?;
        let y = cpu.to_device(&target())?.forward(&on_target(&x.to_dtype(DType::BF16)?)?)?;
        check_near(&y, &cpu.forward(&x)?, 1e-2)?;
    }
    Ok(())
}

pub fn sizes_that_do_not_fit_are_refused() -> Result<()> {
    let layer = |out_features, in_features| -> Result<FrozenLinear> {
        FrozenLinear::new(&random(&[out_features, in_features], 1)?, None)?.to_device(&target())
    };
    let x = |width| on_target(&random(&[2, width], 2)?.to_dtype(DType::BF16)?);
    assert!(layer(8, 16)?.forward(&x(8)?).is_err(), "another width");
    let not_there = FrozenLinear::new(&random(&[8, 16], 1)?, None)?;
    assert!(not_there.forward(&x(16)?).is_err(), "a weight on the host");
    Ok(())
}
