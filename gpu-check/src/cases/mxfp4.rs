//! MXFP4 in bf16, to the bit.

use candle_core::{DType, Result};
use lathe_kernels::{Mxfp4, gpu::GpuMxfp4};

use crate::twins::target;

pub fn every_code_has_its_value_at_every_scale() -> Result<()> {
    let values = [0.0f32, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    // All codes in either half of a byte, at the scales that f32 holds products of.
    let blocks: Vec<u8> = (0..16).map(|i| (i | (15 - i) << 4) as u8).collect();
    let scales: Vec<u8> = (0..=251).collect();
    let packed = Mxfp4::new(blocks.repeat(scales.len()), scales.clone(), 3 * 32)?;
    let dense = GpuMxfp4::new(&packed, &target())?.dequantize()?;
    assert_eq!(dense.dims(), [scales.len() / 3, 96]);
    let dense: Vec<f32> = dense.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    for (scale, dense) in scales.iter().zip(dense.chunks_exact(32)) {
        let factor = 2f64.powi(i32::from(*scale) - 127);
        for (i, pair) in dense.chunks_exact(2).enumerate() {
            for (value, code) in pair.iter().zip([i, 15 - i]) {
                let magnitude = (f64::from(values[code % 8]) * factor) as f32;
                let expected = if code < 8 { magnitude } else { -magnitude };
                assert_eq!(value.to_bits(), expected.to_bits(), "code {code} at scale {scale}");
            }
        }
    }
    Ok(())
}
