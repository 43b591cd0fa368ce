//! LoRA, its dropout and DoRA's norms against their twins.

use crate::twins::{Twins, check_near, distance, on_target, random, target};
use candle_core::{DType, Result, Tensor};
use lathe_kernels::{Dropout, FrozenLinear, LoraLinear, Nf4, add_low_rank};

/// (T, O, C, R): ranks that are no multiple of 8, few rows and many.
const SHAPES: [(usize, usize, usize, usize); 7] = [
    (1, 24, 64, 8),
    (3, 136, 96, 4),
    (8, 64, 576, 16),
    (17, 24, 40, 3),
    (130, 136, 128, 16),
    (130, 72, 40, 33),
    (600, 72, 64, 8),
];

const DROPOUT: Dropout = Dropout { probability: 0.25, key: 0x1234_5678_9abc_def0 };

/// The layer that is to be adapted, of a weight (O, C), and its copy on the device; in NF4 if 64 divides it.
fn bases(out_features: usize, in_features: usize) -> Result<[FrozenLinear; 2]> {
    let (weight, bias) = (random(&[out_features, in_features], 1)?, random(&[out_features], 2)?);
    let cpu = if (out_features * in_features).is_multiple_of(64) {
        FrozenLinear::nf4(Nf4::quantize(&weight, true)?, Some(&bias))?
    } else {
        FrozenLinear::new(&weight, Some(&bias))?
    };
    let gpu = cpu.to_device(&target())?;
    Ok([cpu, gpu])
}

fn is_on_gpu(x: &Tensor) -> bool {
    x.dtype() == DType::BF16
}

pub fn an_adapted_layer_is_its_twin() -> Result<()> {
    for (num_rows, out_features, in_features, rank) in SHAPES {
        let [cpu, gpu] = bases(out_features, in_features)?;
        for dropout in [None, Some(DROPOUT)] {
            Twins::new(&[(&[num_rows, in_features], 3)])?
                .with_f32(&[rank, in_features], 4)?
                .with_f32(&[out_features, rank], 5)?
                .check(1.5e-2, |inputs| {
                    let [x, a, b] = inputs else { unreachable!("three inputs") };
                    let base = if is_on_gpu(x) { &gpu } else { &cpu };
                    LoraLinear::forward(base, x, a, b, 0.7, dropout)
                })?;
        }
    }
    Ok(())
}

pub fn an_update_that_is_added_later_is_its_twin() -> Result<()> {
    for (num_rows, out_features, in_features, rank) in SHAPES {
        let (y, x) = (random(&[num_rows, out_features], 1)?, random(&[num_rows, in_features], 2)?);
        let (a, b) = (random(&[rank, in_features], 3)?, random(&[out_features, rank], 4)?);
        let before = on_target(&y.to_dtype(DType::BF16)?)?;
        let (x_there, a_there, b_there) =
            (on_target(&x.to_dtype(DType::BF16)?)?, on_target(&a)?, on_target(&b)?);
        let sum = add_low_rank(&before, &x_there, &a_there, &b_there, 0.7)?;
        check_near(&sum, &add_low_rank(&y, &x, &a, &b, 0.7)?, 1.5e-2)?;
        assert!(distance(&before, &y)? == 0.0, "what it was added to stays");
    }
    Ok(())
}

pub fn dropout_has_its_twins_mask() -> Result<()> {
    for count in [1, 7, 8, 4096, 5003] {
        Twins::new(&[(&[count], 1)])?.check(4e-3, |inputs| DROPOUT.forward(&inputs[0]))?;
    }
    Ok(())
}

pub fn norms_of_adapted_rows_are_their_twins() -> Result<()> {
    for (_, out_features, in_features, rank) in SHAPES {
        let [cpu, gpu] = bases(out_features, in_features)?;
        let (a, b) = (random(&[rank, in_features], 4)?, random(&[out_features, rank], 5)?);
        let found = gpu.adapted_row_norms(&on_target(&a)?, &on_target(&b)?, 0.7)?;
        check_near(&found, &cpu.adapted_row_norms(&a, &b, 0.7)?, 2e-3)?;
    }
    Ok(())
}
