use candle_core::{Device, Result, Tensor, bail};

use super::{Buffer, EMULATOR, memory};

/// How many blocks of how many threads a kernel runs as.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    /// The last two at most 65,535.
    pub blocks: [u32; 3],
    /// Of a block; a multiple of 32.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

impl Grid {
    /// Blocks in one dimension.
    pub(crate) fn line(blocks: usize, threads: u32) -> Self {
        Self { blocks: [blocks as u32, 1, 1], threads, shared_bytes: 0 }
    }

    pub(crate) fn with_shared(self, shared_bytes: usize) -> Self {
        Self { shared_bytes: shared_bytes as u32, ..self }
    }
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// An address in the memory of where kernels run.
    Pointer(u64),
    U32(u32),
    U64(u64),
    F32(f32),
}

impl Arg {
    /// As the kernel finds it, with zeros behind.
    pub fn bytes(&self) -> [u8; 8] {
        match *self {
            Self::Pointer(value) | Self::U64(value) => value.to_ne_bytes(),
            Self::U32(value) => half(value.to_ne_bytes()),
            Self::F32(value) => half(value.to_ne_bytes()),
        }
    }

    /// In bytes.
    pub fn size(&self) -> usize {
        match self {
            Self::Pointer(_) | Self::U64(_) => 8,
            Self::U32(_) | Self::F32(_) => 4,
        }
    }
}

fn half([a, b, c, d]: [u8; 4]) -> [u8; 8] {
    [a, b, c, d, 0, 0, 0, 0]
}

/// What can be an argument. A missing tensor is a null pointer.
pub(crate) trait ToArg {
    fn to_arg(&self) -> Result<Arg>;
}

impl ToArg for Tensor {
    /// Errors: elements that do not lie side by side.
    fn to_arg(&self) -> Result<Arg> {
        Ok(Arg::Pointer(memory::address(self)?))
    }
}

impl ToArg for Buffer {
    fn to_arg(&self) -> Result<Arg> {
        Ok(Arg::Pointer(self.address()?))
    }
}

impl<T: ToArg> ToArg for Option<T> {
    fn to_arg(&self) -> Result<Arg> {
        self.as_ref().map_or(Ok(Arg::Pointer(0)), ToArg::to_arg)
    }
}

impl<T: ToArg> ToArg for &T {
    fn to_arg(&self) -> Result<Arg> {
        (*self).to_arg()
    }
}

macro_rules! scalar_args {
    ($($type:ty => $arg:ident as $width:ty),*) => {
        $(impl ToArg for $type {
            fn to_arg(&self) -> Result<Arg> {
                Ok(Arg::$arg(*self as $width))
            }
        })*
    };
}

scalar_args!(usize => U32 as u32, u32 => U32 as u32, u64 => U64 as u64, f32 => F32 as f32);

/// Launches the kernel `name` where `device` says. It may still run when this returns, but what is launched later sees
/// what it wrote. A `usize` becomes an `unsigned`; no argument owns its memory, which is given back in the same order.
///
/// Errors: a launch that the driver refuses; no GPU.
pub(crate) fn launch(device: &Device, name: &'static str, grid: Grid, args: &[&dyn ToArg]) -> Result<()> {
    if grid.blocks.contains(&0) {
        return Ok(());
    }
    let args: Vec<Arg> = args.iter().map(|arg| arg.to_arg()).collect::<Result<_>>()?;
    match (device, EMULATOR.get()) {
        #[cfg(feature = "cuda")]
        (Device::Cuda(device), _) => super::cuda::launch(device, name, grid, &args),
        (Device::Cpu, Some(emulator)) => {
            (emulator.launch)(name, grid, &args).map_err(candle_core::Error::msg)
        }
        _ => bail!("kernel {name} needs a GPU"),
    }
}
