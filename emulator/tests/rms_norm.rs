//! The kernels against their twins: same inputs, rounded to bf16 first; the f32 operation is the truth.

mod common;

use candle_core::Result;
use common::{Twins, random};
use lathe_kernels::rms_norm_frozen;

#[test]
fn rms_norm_is_its_twin() -> Result<()> {
    for (rows, width) in [(1, 64), (7, 96), (3, 2880)] {
        let weight = random(&[width], 1)?;
        Twins::new(&[(&[rows, width], 2)])?
            .check(1e-2, |inputs| rms_norm_frozen(&inputs[0], &weight, 1e-5))?;
    }
    Ok(())
}
