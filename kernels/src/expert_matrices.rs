use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use crate::{
    Blocks, Mxfp4, Nf4,
    cpu::{self, Matrix, Store},
};

/// One matrix (O, C) an expert, frozen.
pub enum ExpertMatrices {
    /// (E, C, O) in any float type, the transpose, as transformers saves them; in f32 one expert at a time.
    Dense(Tensor),
    /// (E · O, C)
    Mxfp4(Mxfp4),
    /// Each (E · O/n, C): the outputs of an expert are those of the n matrices in turns.
    Blocks(Vec<Blocks>),
    /// Likewise, an expert's own n matrices, (O/n, C) each.
    Nf4(Vec<Vec<Nf4>>),
}

impl ExpertMatrices {
    /// Whether these are matrices (O, C) for so many experts.
    pub(crate) fn fits(&self, num_experts: usize, (out_features, in_features): (usize, usize)) -> bool {
        let is_part = |shape: (usize, usize), outputs: usize, parts: usize| {
            shape == (outputs / parts, in_features) && out_features.is_multiple_of(parts)
        };
        match self {
            Self::Dense(tensor) => tensor.dims() == [num_experts, in_features, out_features],
            Self::Mxfp4(packed) => {
                (packed.num_rows(), packed.in_features()) == (num_experts * out_features, in_features)
            }
            Self::Blocks(parts) => {
                parts.iter().all(|part| is_part(part.shape(), num_experts * out_features, parts.len()))
            }
            Self::Nf4(experts) => {
                experts.len() == num_experts
                    && experts.iter().all(|parts| {
                        parts.iter().all(|part| is_part(part.shape(), out_features, parts.len()))
                    })
            }
        }
    }

    /// Calls `f(outputs, rows)` with the matrix of `expert` in parts: the rows `outputs` of it, (outputs, C).
    fn for_tiles(
        &self,
        expert: usize,
        shape @ (out_features, in_features): (usize, usize),
        mut f: impl FnMut(Range<usize>, Matrix<'_>),
    ) -> Result<()> {
        match self {
            Self::Dense(tensor) => cpu::with_slice(&tensor.get(expert)?.to_dtype(DType::F32)?, |values| {
                f(0..out_features, Matrix::new(values, in_features, out_features).t());
                Ok(())
            }),
            packed => {
                let row = |row: usize, out: &mut [f32]| packed.dequantize_row(expert, out_features, row, out);
                cpu::for_tiles(shape, row, f);
                Ok(())
            }
        }
    }

    /// Writes row `row` of the packed matrix of `expert` in f32 into `out` (C).
    pub(crate) fn dequantize_row(&self, expert: usize, out_features: usize, row: usize, out: &mut [f32]) {
        match self {
            Self::Dense(_) => unreachable!("dense matrices are used as they are"),
            Self::Mxfp4(packed) => packed.dequantize_row(expert * out_features + row, out),
            Self::Blocks(parts) => {
                let row = expert * out_features + row;
                parts[row % parts.len()].dequantize_row(row / parts.len(), out);
            }
            Self::Nf4(experts) => {
                let parts = &experts[expert];
                parts[row % parts.len()].dequantize_row(row / parts.len(), out);
            }
        }
    }

    /// `x Wᵀ + b`: (n, C) -> (n, O).
    pub(crate) fn forward(
        &self,
        expert: usize,
        x: &[f32],
        in_features: usize,
        bias: &[f32],
    ) -> Result<Vec<f32>> {
        let (out_features, num_rows) = (bias.len(), x.len() / in_features);
        let mut y = bias.repeat(num_rows);
        if let Self::Dense(tensor) = self {
            cpu::with_slice(&tensor.get(expert)?.to_dtype(DType::F32)?, |weight| {
                let x = Matrix::new(x, num_rows, in_features);
                cpu::matmul(&mut y, Store::Add, 1.0, x, Matrix::new(weight, in_features, out_features));
                Ok(())
            })?;
        } else {
            cpu::add_packed_product(&mut y, x, (out_features, in_features), |row, out| {
                self.dequantize_row(expert, out_features, row, out);
            });
        }
        Ok(y)
    }

    /// `dy W`: (n, O) -> (n, C).
    pub(crate) fn backward(
        &self,
        expert: usize,
        dy: &[f32],
        out_features: usize,
        in_features: usize,
    ) -> Result<Vec<f32>> {
        let num_rows = dy.len() / out_features;
        let mut dx = vec![0.0; num_rows * in_features];
        self.for_tiles(expert, (out_features, in_features), |outputs, rows| {
            let dy = Matrix::strided(&dy[outputs.start..], num_rows, outputs.len(), out_features);
            cpu::matmul(&mut dx, Store::Add, 1.0, dy, rows);
        })?;
        Ok(dx)
    }
}
