use candle_core::{DType, Device, Result, Tensor, bail};
use half::{bf16, slice::HalfFloatSliceExt as _};
use rayon::prelude::*;

use super::{GpuMxfp4, ToArg};
use crate::{BlockType, ExpertMatrices, Nf4, experts::HostWeights};

/// Values that share a scale in NF4.
const NF4_BLOCK: usize = 64;
/// What a row of any matrix is a multiple of.
const ROW: usize = 8;

/// The side of the large tiles of a product; as in `gemm.cuh`.
pub(super) const LARGE: usize = 128;

/// The experts' matrices and biases in a GPU's memory.
pub(crate) struct Weights {
    /// (E · 2I, C)
    pub(super) gate_up: Matrices,
    /// (E, 2I) in f32
    pub(super) gate_up_bias: Tensor,
    /// (E · C, I)
    pub(super) down: Matrices,
    /// (E, C) in f32
    pub(super) down_bias: Tensor,
}

/// Matrices (E · O, C), an expert's rows together.
pub(super) enum Matrices {
    Bf16(Tensor),
    Mxfp4(GpuMxfp4),
    /// A scale for 64 values of a row.
    Nf4 {
        codes: Tensor,
        scales: Tensor,
    },
}

/// Which of its dimensions a product with matrices (E · O, C) is along.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// C: `y = x Wᵀ`.
    Nt,
    /// O: `dx = dy W`.
    Nn,
}

impl Matrices {
    fn new(
        matrices: &ExpertMatrices,
        [num_experts, out_features, in_features]: [usize; 3],
        device: &Device,
    ) -> Result<Self> {
        if !in_features.is_multiple_of(ROW) || !out_features.is_multiple_of(ROW) {
            bail!("experts {out_features} x {in_features}, of which a GPU's kernels take multiples of {ROW}");
        }
        match matrices {
            ExpertMatrices::Dense(tensor) => {
                let tensor = tensor.detach().to_device(device)?.to_dtype(DType::BF16)?;
                let rows = tensor.transpose(1, 2)?.contiguous()?;
                Ok(Self::Bf16(rows.reshape((num_experts * out_features, in_features))?))
            }
            ExpertMatrices::Mxfp4(packed) => Ok(Self::Mxfp4(GpuMxfp4::new(packed, device)?)),
            ExpertMatrices::Nf4(experts) if in_features.is_multiple_of(NF4_BLOCK) => {
                Self::nf4(experts, [num_experts, out_features, in_features], device)
            }
            ExpertMatrices::Blocks(parts)
                if parts.iter().all(|part| part.block_type() == BlockType::Mxfp4) =>
            {
                Ok(Self::Mxfp4(GpuMxfp4::from_blocks(parts, device)?))
            }
            other => Self::dequantized(other, [num_experts, out_features, in_features], device),
        }
    }

    /// In bf16, for formats that kernels do not read.
    fn dequantized(
        matrices: &ExpertMatrices,
        [num_experts, out_features, in_features]: [usize; 3],
        device: &Device,
    ) -> Result<Self> {
        let num_rows = num_experts * out_features;
        let mut values = vec![bf16::ZERO; num_rows * in_features];
        values.par_chunks_exact_mut(in_features).enumerate().for_each_init(
            || vec![0f32; in_features],
            |row_values, (row, values)| {
                matrices.dequantize_row(row / out_features, out_features, row % out_features, row_values);
                values.convert_from_f32_slice(row_values);
            },
        );
        Ok(Self::Bf16(Tensor::from_vec(values, (num_rows, in_features), device)?))
    }

    /// Lays out the experts' rows one after the other; scales of scales are multiplied out.
    fn nf4(
        experts: &[Vec<Nf4>],
        [num_experts, out_features, in_features]: [usize; 3],
        device: &Device,
    ) -> Result<Self> {
        let (row_bytes, row_blocks) = (in_features / 2, in_features / NF4_BLOCK);
        let num_rows = num_experts * out_features;
        let mut codes = Vec::with_capacity(num_rows * row_bytes);
        let mut scales = Vec::with_capacity(num_rows * row_blocks);
        for parts in experts {
            for row in 0..out_features {
                let (part, row) = (&parts[row % parts.len()], row / parts.len());
                codes.extend_from_slice(&part.codes()[row * row_bytes..][..row_bytes]);
                scales.extend((row * row_blocks..).take(row_blocks).map(|block| part.scales().get(block)));
            }
        }
        let (num_bytes, num_scales) = (codes.len(), scales.len());
        Ok(Self::Nf4 {
            codes: Tensor::from_vec(codes, num_bytes, device)?,
            scales: Tensor::from_vec(scales, num_scales, device)?,
        })
    }

    /// Its arguments of a kernel.
    pub(super) fn args(&self) -> Vec<&dyn ToArg> {
        match self {
            Self::Bf16(values) => vec![values],
            Self::Mxfp4(packed) => packed.args().to_vec(),
            Self::Nf4 { codes, scales } => vec![codes, scales],
        }
    }

    /// The kernel of a grouped product, in tiles of this side.
    pub(super) fn product(&self, form: Form, side: usize) -> &'static str {
        let both = match (self, form) {
            (Self::Bf16(_), Form::Nt) => ["experts_nt_bf16_small", "experts_nt_bf16_large"],
            (Self::Bf16(_), Form::Nn) => ["experts_nn_bf16_small", "experts_nn_bf16_large"],
            (Self::Mxfp4(_), Form::Nt) => ["experts_nt_mxfp4_small", "experts_nt_mxfp4_large"],
            (Self::Mxfp4(_), Form::Nn) => ["experts_nn_mxfp4_small", "experts_nn_mxfp4_large"],
            (Self::Nf4 { .. }, Form::Nt) => ["experts_nt_nf4_small", "experts_nt_nf4_large"],
            (Self::Nf4 { .. }, Form::Nn) => ["experts_nn_nf4_small", "experts_nn_nf4_large"],
        };
        both[usize::from(side == LARGE)]
    }

    /// The kernels of the two products for a few places, and how many columns a quad of their lanes reads at once.
    pub(super) fn few_rows(&self) -> ([&'static str; 2], usize) {
        match self {
            Self::Bf16(_) => (["experts_gate_up_bf16", "experts_down_bf16"], 32),
            Self::Mxfp4(_) => (["experts_gate_up_mxfp4", "experts_down_mxfp4"], 128),
            Self::Nf4 { .. } => (["experts_gate_up_nf4", "experts_down_nf4"], 64),
        }
    }
}

impl Weights {
    /// Packed matrices stay so if they are MXFP4, or NF4 whose blocks end with the rows; all others are bf16.
    ///
    /// Errors: widths that the kernels do not take, no memory.
    pub(crate) fn new(
        host: &HostWeights,
        [num_experts, hidden, inner]: [usize; 3],
        device: &Device,
    ) -> Result<Self> {
        let bias = |values: &[f32]| Tensor::from_slice(values, values.len(), device);
        Ok(Self {
            gate_up: Matrices::new(&host.gate_up, [num_experts, 2 * inner, hidden], device)?,
            gate_up_bias: bias(&host.gate_up_bias)?,
            down: Matrices::new(&host.down, [num_experts, hidden, inner], device)?,
            down_bias: bias(&host.down_bias)?,
        })
    }
}
