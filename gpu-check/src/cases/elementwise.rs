//! Norms, rotations and activations against their twins.

use std::sync::Arc;

use crate::twins::{Twins, random};
use candle_core::Result;
use lathe_kernels::{Positions, RopeTable, rms_norm, rms_norm_frozen, rope, swiglu};

pub fn rms_norm_is_its_twin() -> Result<()> {
    for (rows, width) in [(1, 64), (7, 96), (3, 2880)] {
        let weight = random(&[width], 1)?;
        let norm = |inputs: &[candle_core::Tensor]| rms_norm_frozen(&inputs[0], &weight, 1e-5);
        Twins::new(&[(&[rows, width], 2)])?.check(1e-2, norm)?;
    }
    Ok(())
}

pub fn rms_norm_with_a_weight_that_learns_is_its_twin() -> Result<()> {
    for (rows, width) in [(1, 64), (130, 288)] {
        Twins::new(&[(&[rows, width], 2)])?
            .with_f32(&[width], 3)?
            .check(1e-2, |inputs| rms_norm(&inputs[0], &inputs[1], 1e-5))?;
    }
    Ok(())
}

pub fn rope_is_its_twin() -> Result<()> {
    let table = Arc::new(RopeTable::new(&[1.0, 0.3, 0.1, 0.02], 1.2, 50));
    let positions: Arc<Positions> = Arc::new(vec![0, 3, 20, 49, 1].into());
    for heads in [1, 3, 40] {
        Twins::new(&[(&[5, heads * 8], 4)])?.check(1e-2, |inputs| rope(&inputs[0], &table, &positions))?;
    }
    Ok(())
}

pub fn swiglu_is_its_twin() -> Result<()> {
    for shape in [[1, 8], [3, 72], [5, 1000]] {
        Twins::new(&[(&shape, 5), (&shape, 6)])?.check(2e-2, |inputs| swiglu(&inputs[0], &inputs[1]))?;
    }
    Ok(())
}
