use candle_core::{DType, Device, Tensor, Var};
use lathe_kernels::{Experts, FrozenLinear};

use crate::{Result, device};

/// Where a model computes, and the type of its activations: f32 on the CPU, bf16 on a GPU.
#[derive(Debug, Clone)]
pub struct Compute {
    pub device: Device,
    pub dtype: DType,
}

impl Compute {
    pub fn cpu() -> Self {
        Self { device: Device::Cpu, dtype: DType::F32 }
    }

    pub fn on(device: Device) -> Self {
        let dtype = if device.is_cpu() { DType::F32 } else { DType::BF16 };
        Self { device, dtype }
    }

    /// By the device's name, as jobs have it. Errors: no such device.
    pub fn open(device: &str) -> Result<Self> {
        Ok(Self::on(device::open(device)?))
    }

    /// As on a GPU, on the CPU: for tests with `lathe-emulator`.
    pub fn emulated_gpu() -> Self {
        Self { device: Device::Cpu, dtype: DType::BF16 }
    }

    /// Whether weights are held as a GPU's kernels want them.
    pub fn is_gpu(&self) -> bool {
        self.dtype == DType::BF16
    }

    /// The tensor there, in its own type.
    pub(super) fn place(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.to_device(&self.device)?)
    }

    /// A variable there, in f32.
    pub(crate) fn var(&self, tensor: &Tensor) -> Result<Var> {
        Ok(Var::from_tensor(&tensor.to_dtype(DType::F32)?.to_device(&self.device)?)?)
    }

    /// A frozen linear, held as it is computed with.
    pub(super) fn linear(&self, linear: FrozenLinear) -> Result<FrozenLinear> {
        if self.is_gpu() { Ok(linear.to_device(&self.device)?) } else { Ok(linear) }
    }

    /// Experts, held as they are computed with.
    pub(super) fn experts(&self, experts: Experts) -> Result<Experts> {
        if self.is_gpu() { Ok(experts.to_device(&self.device)?) } else { Ok(experts) }
    }

    /// A table that tokens are looked up in, and that a tied head multiplies with.
    pub(super) fn table(&self, table: &Tensor) -> Result<Tensor> {
        if self.is_gpu() { self.place(&table.to_dtype(self.dtype)?) } else { Ok(table.clone()) }
    }
}
