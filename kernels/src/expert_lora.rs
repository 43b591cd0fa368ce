use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use crate::cpu::{self, Matrix, Store};

/// A low-rank update of one matrix (O, C) an expert: `scale · B A` with an expert's own A and B.
pub struct ExpertLora {
    /// (E, R, C)
    pub a: Tensor,
    /// (E, O, R)
    pub b: Tensor,
    pub scale: f64,
}

/// The updates of both of the experts' products, laid out in one tensor: a candle op takes three operands.
#[derive(Clone)]
pub struct ExpertUpdates {
    pub(crate) packed: Tensor,
    pub(crate) gate_up: Arc<[LowRank]>,
    pub(crate) down: Arc<[LowRank]>,
}

impl ExpertUpdates {
    /// Outside autograd, for updates that are final.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self { packed: self.packed.detach(), ..self.clone() }
    }
}

/// An [`ExpertLora`] in the tensor that holds them all.
pub(crate) struct LowRank {
    pub(crate) rank: usize,
    pub(crate) out_features: usize,
    pub(crate) in_features: usize,
    pub(crate) scale: f32,
    /// Where A begins; B follows it.
    start: usize,
    pub(crate) num_experts: usize,
}

/// Appends the A and B of updates of matrices (E, O, C) to `parts`, as vectors.
///
/// Errors: an update of other matrices than those.
pub(crate) fn pack(
    updates: &[ExpertLora],
    [num_experts, out_features, in_features]: [usize; 3],
    parts: &mut Vec<Tensor>,
) -> Result<Arc<[LowRank]>> {
    updates
        .iter()
        .map(|ExpertLora { a, b, scale }| {
            let rank = a.dim(1)?;
            if a.dims() != [num_experts, rank, in_features] || b.dims() != [num_experts, out_features, rank] {
                bail!(
                    "A {:?} and B {:?} for {num_experts} experts {out_features} x {in_features}",
                    a.dims(),
                    b.dims()
                );
            }
            let start = parts.iter().map(Tensor::elem_count).sum();
            parts.extend([a.flatten_all()?, b.flatten_all()?]);
            Ok(LowRank { rank, out_features, in_features, scale: *scale as f32, start, num_experts })
        })
        .collect()
}

impl LowRank {
    /// Where an expert's A (R, C) and B (O, R) begin.
    pub(crate) fn starts(&self, expert: usize) -> (usize, usize) {
        let a_len = self.rank * self.in_features;
        let b_start = self.start + self.num_experts * a_len;
        (self.start + expert * a_len, b_start + expert * self.out_features * self.rank)
    }

    fn matrices<'a>(&self, expert: usize, lora: &'a [f32]) -> (Matrix<'a>, Matrix<'a>) {
        let (a, b) = self.starts(expert);
        (
            Matrix::new(&lora[a..], self.rank, self.in_features),
            Matrix::new(&lora[b..], self.out_features, self.rank),
        )
    }

    /// `scale · rows factor`: (n, C or O) -> (n, R).
    fn low(&self, rows: Matrix<'_>, num_rows: usize, factor: Matrix<'_>, scale: f32) -> Vec<f32> {
        let mut low = vec![0.0; num_rows * self.rank];
        cpu::matmul(&mut low, Store::Overwrite, scale, rows, factor);
        low
    }

    /// Adds `scale · (x Aᵀ) Bᵀ` (n, O), of x (n, C).
    pub(crate) fn forward(&self, expert: usize, lora: &[f32], x: &[f32], y: &mut [f32]) {
        let (a, b) = self.matrices(expert, lora);
        let num_rows = x.len() / self.in_features;
        let low = self.low(Matrix::new(x, num_rows, self.in_features), num_rows, a.t(), self.scale);
        cpu::matmul(y, Store::Add, 1.0, Matrix::new(&low, num_rows, self.rank), b.t());
    }

    /// Adds `scale · (dy B) A` (n, C), of dy (n, O).
    pub(crate) fn backward_x(&self, expert: usize, lora: &[f32], dy: &[f32], dx: &mut [f32]) {
        let (a, b) = self.matrices(expert, lora);
        let num_rows = dy.len() / self.out_features;
        let low = self.low(Matrix::new(dy, num_rows, self.out_features), num_rows, b, self.scale);
        cpu::matmul(dx, Store::Add, 1.0, Matrix::new(&low, num_rows, self.rank), a);
    }

    /// Writes dA = scale · (dy B)ᵀ x and dB = scale · dyᵀ (x Aᵀ) to the expert's places in `dlora`.
    pub(crate) fn backward(&self, expert: usize, lora: &[f32], x: &[f32], dy: &[f32], dlora: &mut [f32]) {
        let Self { rank, out_features, in_features, scale, .. } = *self;
        let (a, b) = self.matrices(expert, lora);
        let num_rows = x.len() / in_features;
        let (x, dy) = (Matrix::new(x, num_rows, in_features), Matrix::new(dy, num_rows, out_features));
        let (low, dlow) = (self.low(x, num_rows, a.t(), scale), self.low(dy, num_rows, b, scale));
        let (a_start, b_start) = self.starts(expert);
        let da = &mut dlora[a_start..][..rank * in_features];
        cpu::matmul(da, Store::Overwrite, 1.0, Matrix::new(&dlow, num_rows, rank).t(), x);
        let db = &mut dlora[b_start..][..out_features * rank];
        cpu::matmul(db, Store::Overwrite, 1.0, dy.t(), Matrix::new(&low, num_rows, rank));
    }
}
