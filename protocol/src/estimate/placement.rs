use super::{BF16, F32, ModelShape};

/// Larger output projections stay in bf16 on the CPU, too.
const MAX_F32_TABLE_BYTES: u64 = 512 << 20;
/// What a CUDA context, cuBLAS and its workspace take of a card.
const CUDA_CONTEXT_BYTES: u64 = 700_000_000;
/// What candle's allocations leave unused between them, as a share of what a step allocates anew: one in so many.
const CUDA_SLACK: u64 = 8;

/// Where a model is trained: decides how wide values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Everything in f32, but for large tables.
    Cpu,
    /// Frozen weights and activations in bf16; what learns, its gradients, its moments and the logits in f32.
    Cuda,
}

impl Placement {
    /// Bytes of a frozen weight that is not quantised.
    pub(super) fn weight(self) -> u64 {
        match self {
            Self::Cpu => F32,
            Self::Cuda => BF16,
        }
    }

    /// Bytes of a value of the output projection while it is frozen: a GGUF's is dequantised.
    pub(super) fn head_value(self, shape: &ModelShape) -> u64 {
        let is_large = F32 * shape.embedding_parameters() > MAX_F32_TABLE_BYTES;
        if is_large && !shape.is_gguf { BF16 } else { self.weight() }
    }

    /// Bytes of a value that the forward leaves for the backward, or that exists inside of either.
    pub(super) fn activation(self) -> u64 {
        self.weight()
    }

    /// What the program itself takes there, when a step allocates so many bytes.
    pub(super) fn program_bytes(self, shape: &ModelShape, step_bytes: u64) -> u64 {
        match self {
            Self::Cpu => shape.process_bytes(),
            Self::Cuda => CUDA_CONTEXT_BYTES + step_bytes / CUDA_SLACK,
        }
    }
}
