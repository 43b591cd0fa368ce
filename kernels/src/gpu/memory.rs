use candle_core::{
    CpuStorage, DType, Device, Result, Shape, Storage, Tensor, backend::BackendStorage as _, bail,
    op::BackpropOp,
};

/// Memory that kernels write, on its way to become a tensor.
pub(crate) struct Buffer {
    storage: Storage,
    shape: Shape,
}

impl Buffer {
    /// Of whatever was there before; kernels fill it.
    pub(crate) fn new(device: &Device, shape: impl Into<Shape>, dtype: DType) -> Result<Self> {
        let shape = shape.into();
        let length = shape.elem_count();
        let storage = match device {
            Device::Cpu => Storage::Cpu(match dtype {
                DType::BF16 => CpuStorage::BF16(vec![half::bf16::NAN; length]),
                DType::F32 => CpuStorage::F32(vec![f32::NAN; length]),
                DType::U32 => CpuStorage::U32(vec![u32::MAX; length]),
                DType::U8 => CpuStorage::U8(vec![u8::MAX; length]),
                _ => bail!("kernels write no {dtype:?}"),
            }),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Storage::Cuda(super::cuda::allocate(device, length, dtype)?),
            _ => bail!("kernels need a GPU"),
        };
        Ok(Self { storage, shape })
    }

    /// What a tensor holds, beginning with its first element.
    pub(crate) fn copy_of(tensor: &Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let storage = match &*storage {
            Storage::Cpu(storage) => Storage::Cpu(storage.try_clone(layout)?),
            Storage::Cuda(storage) => Storage::Cuda(storage.try_clone(layout)?),
            Storage::Metal(_) => bail!("kernels need a GPU"),
        };
        Ok(Self { storage, shape: layout.shape().clone() })
    }

    /// The address of the first element.
    pub(crate) fn address(&self) -> Result<u64> {
        address_in(&self.storage, 0)
    }

    pub(crate) fn into_parts(self) -> (Storage, Shape) {
        (self.storage, self.shape)
    }

    /// The tensor, outside autograd.
    pub(crate) fn into_tensor(self) -> Tensor {
        Tensor::from_storage(self.storage, self.shape, BackpropOp::none(), false)
    }
}

/// The address of a tensor's first element.
///
/// Errors: elements that do not lie side by side, a type that no kernel reads.
pub(crate) fn address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, _)) = layout.contiguous_offsets() else {
        bail!("kernels need elements side by side, got strides {:?} of {:?}", layout.stride(), layout.dims())
    };
    address_in(&storage, start)
}

fn address_in(storage: &Storage, start: usize) -> Result<u64> {
    let start = |size: usize| (start * size) as u64;
    match storage {
        Storage::Cpu(storage) => Ok(match storage {
            CpuStorage::BF16(values) => values.as_ptr() as u64 + start(2),
            CpuStorage::F32(values) => values.as_ptr() as u64 + start(4),
            CpuStorage::U32(values) => values.as_ptr() as u64 + start(4),
            CpuStorage::U8(values) => values.as_ptr() as u64 + start(1),
            _ => bail!("kernels read bf16, f32, u32 and u8 only"),
        }),
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => super::cuda::address(storage, start),
        _ => bail!("kernels need a GPU"),
    }
}
