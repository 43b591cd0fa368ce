use candle_core::{DType, Device, Result, Tensor, bail};

use super::{Buffer, Grid, ToArg, launch, plain};
use crate::{
    Nf4, Nf4Scales,
    nf4::{BLOCK, NESTED_BLOCK},
};

/// [`Nf4`] in a GPU's memory: a matrix (O, C) of 4-bit codes in blocks of 64 values.
pub struct GpuNf4 {
    /// (O · C / 2) in U8, the first value of a byte in the high nibble.
    codes: Tensor,
    scales: Scales,
    shape: (usize, usize),
}

/// The largest magnitude of each block, as [`Nf4Scales`] has them.
enum Scales {
    Plain(Tensor),
    Nested { codes: Tensor, scales: Tensor, map: Tensor, offset: f32 },
}

const THREADS: u32 = 256;
/// Blocks that read and write as fast as a large card can.
const MAX_BLOCKS: usize = 132 * 8;

impl Scales {
    fn new(scales: &Nf4Scales, device: &Device) -> Result<Self> {
        let vector = |values: &[f32]| Tensor::from_slice(values, values.len(), device);
        Ok(match scales {
            Nf4Scales::Plain(scales) => Self::Plain(vector(scales)?),
            Nf4Scales::Nested { codes, scales, map, offset } => Self::Nested {
                codes: Tensor::from_slice(codes, codes.len(), device)?,
                scales: vector(scales)?,
                map: vector(map)?,
                offset: *offset,
            },
        })
    }
}

impl GpuNf4 {
    /// A copy of the matrix. Errors: a width that is no multiple of 8, no memory.
    pub fn new(matrix: &Nf4, device: &Device) -> Result<Self> {
        let codes = Tensor::from_slice(matrix.codes(), matrix.codes().len(), device)?;
        Self::from_parts(codes, Scales::new(matrix.scales(), device)?, matrix.shape())
    }

    fn from_parts(codes: Tensor, scales: Scales, shape: (usize, usize)) -> Result<Self> {
        if !shape.1.is_multiple_of(8) {
            bail!("rows of {} values in NF4, of which a GPU's kernels take multiples of 8", shape.1);
        }
        Ok(Self { codes, scales, shape })
    }

    /// [`Nf4::quantize`] of a weight (O, C) in bf16 or f32 that lies there already, and to the bit the same.
    ///
    /// Errors: as for [`Nf4::new`] and [`Self::new`].
    pub fn quantize(weight: &Tensor, double_quant: bool) -> Result<Self> {
        let weight = plain(weight)?;
        let (out_features, in_features) = weight.dims2()?;
        let num_values = out_features * in_features;
        if !num_values.is_multiple_of(BLOCK) {
            bail!("NF4 takes blocks of {BLOCK} values, which a weight {out_features} x {in_features} is not");
        }
        let kernel = match weight.dtype() {
            DType::BF16 => "quantize_nf4",
            DType::F32 => "quantize_nf4_f32",
            dtype => bail!("NF4 of a weight in {dtype:?}"),
        };
        let num_blocks = num_values / BLOCK;
        let device = weight.device();
        let codes = Buffer::new(device, num_values / 2, DType::U8)?;
        let scales = Buffer::new(device, num_blocks, DType::F32)?;
        // A warp a block
        let grid = Grid::line(num_blocks.div_ceil(THREADS as usize / 32), THREADS);
        launch(device, kernel, grid, &[&weight, &codes, &scales, &num_blocks])?;
        let mut scales = Scales::Plain(scales.into_tensor());
        if let (true, Scales::Plain(plain)) = (double_quant, &scales) {
            scales = Scales::new(&Nf4Scales::nested(&plain.to_vec1::<f32>()?), device)?;
        }
        Self::from_parts(codes.into_tensor(), scales, (out_features, in_features))
    }

    /// (O, C).
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// The whole matrix (O, C) in bf16.
    pub fn dequantize(&self) -> Result<Tensor> {
        Ok(self.dequantize_into_buffer()?.into_tensor())
    }

    pub(crate) fn dequantize_into_buffer(&self) -> Result<Buffer> {
        let device = self.codes.device();
        let values = Buffer::new(device, self.shape, DType::BF16)?;
        let num_words = self.shape.0 * self.shape.1 / 8;
        let grid = Grid::line(num_words.div_ceil(THREADS as usize).min(MAX_BLOCKS), THREADS);
        let mut args: Vec<&dyn ToArg> = Vec::new();
        self.add_args(&mut args);
        let num_words = num_words as u64;
        args.extend([&values as &dyn ToArg, &num_words]);
        launch(device, "dequantize_nf4", grid, &args)?;
        Ok(values)
    }

    /// The matrix on the host again.
    pub fn to_host(&self) -> Result<Nf4> {
        let scales = match &self.scales {
            Scales::Plain(scales) => Nf4Scales::Plain(scales.to_vec1()?),
            Scales::Nested { codes, scales, map, offset } => Nf4Scales::Nested {
                codes: codes.to_vec1()?,
                scales: scales.to_vec1()?,
                map: map.to_vec1()?,
                offset: *offset,
            },
        };
        Nf4::new(self.codes.to_vec1()?, scales, self.shape)
    }

    /// Its arguments of a kernel: codes, scales, and of nested ones codes, map and offset.
    pub(crate) fn add_args<'a>(&'a self, args: &mut Vec<&'a dyn ToArg>) {
        args.push(&self.codes);
        match &self.scales {
            Scales::Plain(scales) => args.extend([scales as &dyn ToArg, &NO_TENSOR, &NO_TENSOR, &0f32]),
            Scales::Nested { codes, scales, map, offset } => {
                args.extend([scales as &dyn ToArg, codes, map, offset]);
            }
        }
    }
}

const NO_TENSOR: Option<Tensor> = None;
const _: () = assert!(NESTED_BLOCK == 256 && BLOCK == 64, "as gemm.cuh has them");
