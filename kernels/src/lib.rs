//! candle `CustomOp`s with forward **and** backward, for training on frozen weights.
//!
//! candle-nn's fast ops and `QMatMul` return no gradient and no error, and candle's own matmul computes the gradient
//! of frozen weights too; these do neither. Every op here has a CPU implementation on contiguous F32, which is the
//! twin that the CUDA kernels in `kernels/cuda` are checked against; `gpu` launches those.
//!
//! Tensor letters: T tokens, C hidden, O output features, H heads, G key/value heads, D head dim, R rank, V vocabulary,
//! E experts, K experts a token, I an MLP's inner width.
#![expect(
    clippy::inline_always,
    reason = "what `simd::dispatch` compiles for several CPUs must be inlined into it"
)]
#![expect(unsafe_code, reason = "gemm takes raw pointers, and strided heads are views into one buffer")]

mod adamw;
mod attention;
mod blocks;
mod cpu;
mod cross_entropy;
mod dropout;
mod dynamic8;
mod expert_lora;
mod expert_matrices;
mod experts;
pub mod gpu;
mod linear;
mod lora;
mod mxfp4;
mod nf4;
mod nf4_nested;
mod quantized;
mod rms_norm;
mod rope;
mod routing;
mod sampling;
mod seeded;
mod segments;
mod simd;
mod swiglu;

pub use adamw::{AdamW, AdamWParams, MomentType, Moments};
pub use attention::Attention;
pub use blocks::{BlockType, Blocks};
pub use cross_entropy::{
    CrossEntropyStats, Targets, TokenLoss, TokenLosses, linear_cross_entropy, linear_cross_entropy_trainable,
    linear_cross_entropy_with_rows,
};
pub use dropout::Dropout;
pub use dynamic8::Dynamic8;
pub use expert_lora::{ExpertLora, ExpertUpdates};
pub use expert_matrices::ExpertMatrices;
pub use experts::{ClampedSwiGlu, Experts};
pub use linear::{FrozenLinear, linear};
pub use lora::{LoraLinear, add_low_rank};
pub use mxfp4::Mxfp4;
pub use nf4::{Nf4, Nf4Scales};
pub use quantized::QuantizedLinear;
pub(crate) use quantized::{AffineBlock, CodeBits, CodeLayout};
pub use rms_norm::{rms_norm, rms_norm_frozen};
pub use rope::{Positions, RopeTable, rope};
pub use routing::{RouterSoftmax, Routing, route};
pub use sampling::Sampling;
pub use seeded::seeded;
pub use segments::{Segment, Segments};
pub use swiglu::swiglu;
