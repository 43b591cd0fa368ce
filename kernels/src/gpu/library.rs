use candle_core::{Device, Result, bail};

use super::EMULATOR;

/// A product as `cublasGemmEx` takes it, which counts matrices by columns: C (M,N) = scale · op(A) op(B), added to what is
/// there if `adds`. A and B are bf16, sums f32.
#[derive(Debug, Clone, Copy)]
pub struct GemmEx {
    /// Whether A and B are transposed.
    pub transposes: [bool; 2],
    /// M, N and K.
    pub sizes: [usize; 3],
    /// Of A, B and C, in the memory of where kernels run.
    pub addresses: [u64; 3],
    /// Values from one column of A, B and C to the next.
    pub strides: [usize; 3],
    pub scale: f32,
    pub adds: bool,
    /// Whether C is f32, not bf16.
    pub is_f32: bool,
}

/// Whether there is a library where the device says.
pub(super) fn is_on(device: &Device) -> bool {
    device.is_cuda() || EMULATOR.get().is_some()
}

pub(super) fn multiply(device: &Device, product: &GemmEx) -> Result<()> {
    match (device, EMULATOR.get()) {
        #[cfg(feature = "cuda")]
        (Device::Cuda(device), _) => super::cuda::multiply(device, product),
        (Device::Cpu, Some(emulator)) => {
            (emulator.multiply)(product);
            Ok(())
        }
        _ => bail!("cuBLAS needs a card"),
    }
}
