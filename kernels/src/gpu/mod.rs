//! Operations on a GPU: launches of the kernels in `kernels/cuda`, with what autograd needs around them.
//!
//! Activations are bf16, sums and everything that learns f32. The same launches also run on the CPU, by `lathe-emulator`,
//! on bf16 tensors that lie there: so they are tested where no GPU is. Each operation's twin is the f32 one of the same
//! name outside this module.

pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod cross_entropy;
#[cfg(feature = "cuda")]
mod cuda;
pub mod decode;
pub(crate) mod dropout;
pub(crate) mod expert_lora;
pub(crate) mod expert_matrices;
pub(crate) mod experts;
mod gemm;
mod launch;
mod library;
pub(crate) mod linear;
pub(crate) mod lora;
mod memory;
mod mirrored;
mod mxfp4;
mod nf4;
mod offload;
pub mod replay;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub mod routing;
pub mod sampling;
pub(crate) mod swiglu;
mod trace;

use std::sync::OnceLock;

use candle_core::{DType, Device, Result, Tensor};

pub(crate) use gemm::{Form, Operand, Product};
pub use launch::{Arg, Grid};
pub(crate) use launch::{ToArg, launch};
pub use library::GemmEx;
pub(crate) use memory::Buffer;
pub use mirrored::Mirrored;
pub use mxfp4::GpuMxfp4;
pub use nf4::GpuNf4;
pub use offload::Offload;
pub(crate) use trace::{traced1, traced2, traced3};

/// What stands for a GPU where there is none.
pub struct Emulator {
    /// Runs a kernel by its name; the error is a sentence.
    pub launch: fn(&str, Grid, &[Arg]) -> std::result::Result<(), String>,
    /// In place of cuBLAS.
    pub multiply: fn(&GemmEx),
}

static EMULATOR: OnceLock<Emulator> = OnceLock::new();

/// Makes bf16 tensors of the CPU stand for a GPU's in this process; what `lathe-emulator` calls.
pub fn install_emulator(emulator: Emulator) {
    EMULATOR.get_or_init(|| emulator);
}

/// Whether operations on the tensor are launches of kernels.
pub fn is_on_gpu(tensor: &Tensor) -> bool {
    match tensor.device() {
        Device::Cuda(_) => true,
        Device::Cpu => tensor.dtype() == DType::BF16 && EMULATOR.get().is_some(),
        Device::Metal(_) => false,
    }
}

/// Makes a card ready, before anything is put there. Nothing is to be done for the CPU.
pub fn prepare(device: &Device) -> Result<()> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::prepare(device),
        _ => Ok(()),
    }
}

/// Bytes of tensors on a card, now and at most since the process began; none of the CPU.
pub fn memory_in_use(device: &Device) -> Option<[u64; 2]> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::memory_in_use(device).ok(),
        _ => None,
    }
}

/// A tensor without its history whose elements lie side by side, as kernels read them.
pub(crate) fn plain(tensor: &Tensor) -> Result<Tensor> {
    tensor.detach().contiguous()
}

/// Likewise, in bf16.
pub(crate) fn plain_bf16(tensor: &Tensor) -> Result<Tensor> {
    tensor.detach().to_dtype(DType::BF16)?.contiguous()
}
