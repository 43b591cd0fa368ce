use candle_core::{DType, Device, Result, Tensor};

use super::{Buffer, Grid, ToArg, launch};
use crate::{Blocks, Mxfp4};

const THREADS: u32 = 256;
/// Values that share a scale; a thread has half as many.
const BLOCK: usize = 32;

/// [`Mxfp4`] in a GPU's memory: matrices (rows, C).
pub struct GpuMxfp4 {
    /// (rows · C/2)
    codes: Tensor,
    /// (rows · C/32)
    exponents: Tensor,
    in_features: usize,
}

impl GpuMxfp4 {
    /// A copy of the matrices. Errors: no memory.
    pub fn new(matrices: &Mxfp4, device: &Device) -> Result<Self> {
        let bytes = |bytes: &[u8]| Tensor::from_slice(bytes, bytes.len(), device);
        let (codes, exponents) = (bytes(matrices.blocks())?, bytes(matrices.scales())?);
        Ok(Self { codes, exponents, in_features: matrices.in_features() })
    }

    /// From llama.cpp's blocks of MXFP4, whose rows take turns. Errors: no memory.
    pub(crate) fn from_blocks(parts: &[Blocks], device: &Device) -> Result<Self> {
        let (num_rows, in_features) = parts[0].shape();
        let num_blocks = parts.len() * num_rows * in_features / BLOCK;
        let (mut codes, mut exponents) =
            (Vec::with_capacity(num_blocks * 16), Vec::with_capacity(num_blocks));
        for row in 0..num_rows {
            for [exponent, bytes @ ..] in parts.iter().flat_map(|part| part.row(row).as_chunks::<17>().0) {
                exponents.push(*exponent);
                // There the upper halves of the bytes are the second half of the block.
                let code = |i: usize| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 };
                codes.extend((0..16).map(|i| code(2 * i) | code(2 * i + 1) << 4));
            }
        }
        Self::new(&Mxfp4::new(codes, exponents, in_features)?, device)
    }

    /// (rows, C) in bf16, which holds every value.
    pub fn dequantize(&self) -> Result<Tensor> {
        let num_blocks = self.exponents.elem_count();
        let num_rows = num_blocks * BLOCK / self.in_features;
        let device = self.codes.device();
        let values = Buffer::new(device, (num_rows, self.in_features), DType::BF16)?;
        let grid = Grid::line((2 * num_blocks).div_ceil(THREADS as usize), THREADS);
        let args: [&dyn ToArg; 4] = [&self.codes, &self.exponents, &values, &num_blocks];
        launch(device, "mxfp4_dequantize", grid, &args)?;
        Ok(values.into_tensor())
    }

    /// Codes and exponents, as kernels take them.
    pub(crate) fn args(&self) -> [&dyn ToArg; 2] {
        [&self.codes, &self.exponents]
    }
}
