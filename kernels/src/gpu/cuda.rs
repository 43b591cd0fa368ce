//! The CUDA side of launches and memory.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments")]

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock},
};

use candle_core::{
    CudaDevice, CudaStorage, DType, Device, Result, Shape, Storage, Tensor, bail,
    cuda::{
        CudaStorageSlice, WrapErr as _,
        cudarc::{
            cublas::{
                self,
                sys::{cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType_t},
            },
            driver::{
                self, CudaFunction, CudaModule, CudaStream, DevicePtr as _, LaunchConfig, PinnedHostSlice,
                PushKernelArg as _,
                sys::{CUfunction_attribute, CUmemPool_attribute, CUmemoryPool},
            },
            nvrtc::Ptx,
        },
    },
    op::BackpropOp,
};

use super::{Arg, GemmEx, Grid};

/// The kernels of each source, and their machine code for several cards.
static MODULES: &[(&[&str], &[u8])] = include!(concat!(env!("OUT_DIR"), "/modules.rs"));

/// Dynamic shared memory that a block has without asking.
const FREE_SHARED_BYTES: u32 = 48 << 10;

/// What was loaded so far, by the card's ordinal: modules, and the functions that were looked up in them.
#[derive(Default)]
struct Loaded {
    modules: HashMap<(usize, usize), Arc<CudaModule>>,
    functions: HashMap<(usize, &'static str), CudaFunction>,
}

fn function(device: &CudaDevice, name: &'static str) -> Result<CudaFunction> {
    static LOADED: OnceLock<Mutex<Loaded>> = OnceLock::new();
    let stream = device.cuda_stream();
    let context = stream.context();
    let ordinal = context.ordinal();
    let mut loaded =
        LOADED.get_or_init(Mutex::default).lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(function) = loaded.functions.get(&(ordinal, name)) {
        return Ok(function.clone());
    }
    let Some(place) = MODULES.iter().position(|(names, _)| names.contains(&name)) else {
        bail!("no kernel {name}")
    };
    let module = if let Some(module) = loaded.modules.get(&(ordinal, place)) {
        module.clone()
    } else {
        let module = context.load_module(Ptx::from_binary(MODULES[place].1.to_vec())).w()?;
        loaded.modules.insert((ordinal, place), module.clone());
        module
    };
    let function = module.load_function(name).w()?;
    loaded.functions.insert((ordinal, name), function.clone());
    Ok(function)
}

pub(super) fn launch(device: &CudaDevice, name: &'static str, grid: Grid, args: &[Arg]) -> Result<()> {
    let function = function(device, name)?;
    if grid.shared_bytes > FREE_SHARED_BYTES {
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, grid.shared_bytes as i32).w()?;
    }
    let stream = device.cuda_stream();
    let mut builder = stream.launch_builder(&function);
    for arg in args {
        match arg {
            Arg::Pointer(value) | Arg::U64(value) => builder.arg(value),
            Arg::U32(value) => builder.arg(value),
            Arg::F32(value) => builder.arg(value),
        };
    }
    let [x, y, z] = grid.blocks;
    let config = LaunchConfig {
        grid_dim: (x, y, z),
        block_dim: (grid.threads, 1, 1),
        shared_mem_bytes: grid.shared_bytes,
    };
    // SAFETY: the emulator's tests check number and size of every kernel's arguments; what they point to is freed in the
    // stream's order, behind this launch.
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}

/// Memory of whatever was there before.
pub(super) fn allocate(device: &CudaDevice, length: usize, dtype: DType) -> Result<CudaStorage> {
    // SAFETY: a kernel writes all of it before anything reads it.
    let slice = unsafe {
        match dtype {
            DType::BF16 => CudaStorageSlice::BF16(device.alloc(length)?),
            DType::F32 => CudaStorageSlice::F32(device.alloc(length)?),
            DType::U32 => CudaStorageSlice::U32(device.alloc(length)?),
            DType::U8 => CudaStorageSlice::U8(device.alloc(length)?),
            _ => bail!("kernels write no {dtype:?}"),
        }
    };
    Ok(CudaStorage { slice, device: device.clone() })
}

/// The address `start(size of an element)` bytes into the storage.
pub(super) fn address(storage: &CudaStorage, start: impl Fn(usize) -> u64) -> Result<u64> {
    let stream = storage.device.cuda_stream();
    // The guards would record events for other streams; there is one stream only.
    Ok(match &storage.slice {
        CudaStorageSlice::BF16(slice) => slice.device_ptr(&stream).0 + start(2),
        CudaStorageSlice::F32(slice) => slice.device_ptr(&stream).0 + start(4),
        CudaStorageSlice::U32(slice) => slice.device_ptr(&stream).0 + start(4),
        CudaStorageSlice::U8(slice) => slice.device_ptr(&stream).0 + start(1),
        _ => bail!("kernels read bf16, f32, u32 and u8 only"),
    })
}

/// By cuBLAS.
pub(super) fn multiply(device: &CudaDevice, product: &GemmEx) -> Result<()> {
    let GemmEx { transposes, sizes, addresses, strides, scale, adds, is_f32 } = *product;
    let of = transposes.map(|is_transposed| {
        if is_transposed { cublasOperation_t::CUBLAS_OP_T } else { cublasOperation_t::CUBLAS_OP_N }
    });
    let [m, n, k] = sizes.map(|size| size as i32);
    let [a_stride, b_stride, c_stride] = strides.map(|stride| stride as i32);
    let [a, b, c] = addresses;
    let beta = if adds { 1.0f32 } else { 0.0 };
    let (bf16, f32) = (cudaDataType_t::CUDA_R_16BF, cudaDataType_t::CUDA_R_32F);
    let blas = device.cublas_handle();
    // SAFETY: the callers' matrices have these sizes, and are freed in the stream's order, behind this product.
    unsafe {
        cublas::result::gemm_ex(
            *blas.handle(),
            of[0],
            of[1],
            m,
            n,
            k,
            (&raw const scale).cast(),
            a as *const _,
            bf16,
            a_stride,
            b as *const _,
            bf16,
            b_stride,
            (&raw const beta).cast(),
            c as *mut _,
            if is_f32 { f32 } else { bf16 },
            c_stride,
            cublasComputeType_t::CUBLAS_COMPUTE_32F,
            cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .w()
}

/// Host memory that a card copies to and from by itself.
pub(super) type Pinned = PinnedHostSlice<half::bf16>;

/// A stream for copies beside that of the computation.
pub(super) struct Lane {
    device: CudaDevice,
    copies: Arc<CudaStream>,
}

impl Lane {
    /// None for the emulated GPU.
    pub(super) fn new(device: &Device) -> Result<Option<Self>> {
        let Device::Cuda(device) = device else { return Ok(None) };
        let copies = device.cuda_stream().context().new_stream().w()?;
        Ok(Some(Self { device: device.clone(), copies }))
    }

    /// Copies a tensor (its elements side by side) to the host, beside what is computed from here on. It has to stay until
    /// the next call of this or of [`Self::wait`].
    pub(super) fn send(&self, tensor: &Tensor, to: &mut Option<(Pinned, Shape)>) -> Result<()> {
        let computing = self.device.cuda_stream();
        computing.join(&self.copies).w()?;
        self.copies.join(&computing).w()?;
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cuda(CudaStorage { slice: CudaStorageSlice::BF16(slice), .. }), Some((start, end))) =
            (&*storage, layout.contiguous_offsets())
        else {
            bail!("only bf16 on a card is parked, got {tensor:?}")
        };
        let mut pinned = match to.take() {
            Some((pinned, _)) if pinned.len() == end - start => pinned,
            // SAFETY: the copy below fills it before anything reads it.
            _ => unsafe { computing.context().alloc_pinned(end - start) }.w()?,
        };
        self.copies.memcpy_dtoh(&slice.slice(start..end), &mut pinned).w()?;
        *to = Some((pinned, layout.shape().clone()));
        Ok(())
    }

    /// Copies it back, beside what is computed from here on; it is there after [`Self::wait`].
    pub(super) fn fetch(&self, from: &Pinned, shape: &Shape) -> Result<Tensor> {
        let mut storage = allocate(&self.device, shape.elem_count(), DType::BF16)?;
        self.copies.join(&self.device.cuda_stream()).w()?;
        if let CudaStorageSlice::BF16(slice) = &mut storage.slice {
            self.copies.memcpy_htod(from, slice).w()?;
        }
        Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
    }

    /// What is computed from here on sees what was copied.
    pub(super) fn wait(&self) -> Result<()> {
        self.device.cuda_stream().join(&self.copies).w()
    }
}

/// Makes a card ready for one stream of work: memory that is freed stays the process's, for the next step takes it again,
/// and no events are kept for other streams.
pub(super) fn prepare(device: &CudaDevice) -> Result<()> {
    // SAFETY: the one other stream, for copies, waits and is waited for by `Lane`.
    unsafe { device.disable_event_tracking() };
    let mut all = u64::MAX;
    // SAFETY: the attribute is a u64.
    unsafe {
        let release = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        driver::result::mem_pool::set_attribute(pool(device)?, release, (&raw mut all).cast()).w()
    }
}

fn pool(device: &CudaDevice) -> Result<CUmemoryPool> {
    // SAFETY: the device is a context's.
    unsafe { driver::result::device::get_default_mem_pool(device.cuda_stream().context().cu_device()) }.w()
}

/// Bytes of tensors, now and at most.
pub(super) fn memory_in_use(device: &CudaDevice) -> Result<[u64; 2]> {
    let pool = pool(device)?;
    let read = |attribute: CUmemPool_attribute| -> Result<u64> {
        let mut bytes = 0u64;
        // SAFETY: both attributes are u64s.
        unsafe { driver::result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()) }.w()?;
        Ok(bytes)
    };
    let now = read(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
    Ok([now, read(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?])
}
