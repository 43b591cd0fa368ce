//! Losses and their gradients against their twins.

use candle_core::{DType, Device, Result, Tensor, bail};
use lathe_kernels::{
    FrozenLinear, Targets, TokenLosses, linear_cross_entropy, linear_cross_entropy_trainable,
    linear_cross_entropy_with_rows,
};

use crate::twins::{Twins, note, on_target, random, target};

/// Rows, width and vocabulary.
const SHAPES: [(usize, usize, usize); 3] = [(1, 64, 40), (70, 96, 321), (5, 40, 1000)];
/// Of a row's loss.
const LOSS_TOLERANCE: f64 = 2e-2;

fn targets(num_rows: usize, vocab_size: usize) -> Vec<u32> {
    (0..num_rows).map(|row| ((row * 37 + 11) % vocab_size) as u32).collect()
}

fn weights(num_rows: usize) -> Vec<f32> {
    (0..num_rows).map(|row| 0.5 + (row % 3) as f32).collect()
}

fn check_losses(found: TokenLosses, expected: TokenLosses) -> Result<()> {
    let (found, expected) = (found.read()?, expected.read()?);
    for (row, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let off = (found.loss - expected.loss).abs();
        note((off / LOSS_TOLERANCE) as f32);
        if off.is_nan() || off > LOSS_TOLERANCE {
            bail!("the loss of row {row} is {}, its twin's {}", found.loss, expected.loss);
        }
    }
    Ok(())
}

/// The projection on either side.
fn bases(vocab_size: usize, width: usize) -> Result<[FrozenLinear; 2]> {
    let weight = (random(&[vocab_size, width], 1)? * 0.2)?;
    let cpu = FrozenLinear::new(&weight, None)?;
    let gpu = cpu.to_device(&target())?;
    Ok([cpu, gpu])
}

fn is_on_gpu(h: &Tensor) -> bool {
    h.dtype() == DType::BF16
}

pub fn a_frozen_projection_is_its_twin() -> Result<()> {
    for (num_rows, width, vocab_size) in SHAPES {
        let [cpu, gpu] = bases(vocab_size, width)?;
        let ids = targets(num_rows, vocab_size);
        let weights = weights(num_rows);
        for weights in [None, Some(weights.as_slice())] {
            let targets = Targets { ids: &ids, weights };
            Twins::new(&[(&[num_rows, width], 2)])?.check(2e-2, |inputs| {
                let base = if is_on_gpu(&inputs[0]) { &gpu } else { &cpu };
                // A factor as training has it: the loss is a mean.
                linear_cross_entropy(&inputs[0], base, targets)?.0 * (1.0 / 7.0)
            })?;
        }
        let h = random(&[num_rows, width], 2)?;
        let there = on_target(&h.to_dtype(DType::BF16)?)?;
        let even = Targets::even(&ids);
        check_losses(linear_cross_entropy(&there, &gpu, even)?.1, linear_cross_entropy(&h, &cpu, even)?.1)?;
    }
    Ok(())
}

pub fn a_projection_that_learns_is_its_twin() -> Result<()> {
    for (num_rows, width, vocab_size) in SHAPES {
        let ids = targets(num_rows, vocab_size);
        Twins::new(&[(&[num_rows, width], 2)])?.with_f32(&[vocab_size, width], 3)?.check(4e-2, |inputs| {
            let h = (&inputs[0] * 0.2)?;
            Ok(linear_cross_entropy_trainable(&h, &inputs[1], Targets::even(&ids))?.0)
        })?;
    }
    Ok(())
}

pub fn rows_that_learn_are_their_twins() -> Result<()> {
    for (num_rows, width, vocab_size) in SHAPES {
        let [cpu, gpu] = bases(vocab_size, width)?;
        // Two in the table, two behind it.
        let own = [3, vocab_size as u32 + 1, 20, vocab_size as u32];
        let mut ids = targets(num_rows, vocab_size);
        for (target, own) in ids.iter_mut().step_by(3).zip(own) {
            *target = own;
        }
        Twins::new(&[(&[num_rows, width], 2)])?.with_f32(&[own.len(), width], 3)?.check(2e-2, |inputs| {
            let base = if is_on_gpu(&inputs[0]) { &gpu } else { &cpu };
            let rows = (&inputs[1] * 0.2)?;
            Ok(linear_cross_entropy_with_rows(&inputs[0], base, (&own, &rows), Targets::even(&ids))?.0)
        })?;
    }
    Ok(())
}

pub fn a_target_beyond_the_vocabulary_is_refused() -> Result<()> {
    let [_, gpu] = bases(40, 64)?;
    let h = on_target(&random(&[1, 64], 1)?.to_dtype(DType::BF16)?)?;
    assert!(linear_cross_entropy(&h, &gpu, Targets::even(&[40])).is_err());
    let rows = on_target(&Tensor::zeros((1, 64), DType::F32, &Device::Cpu)?)?;
    assert!(linear_cross_entropy_with_rows(&h, &gpu, (&[42], &rows), Targets::even(&[1])).is_err());
    Ok(())
}
