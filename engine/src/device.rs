//! The device a job computes on, and what its failures mean.

use std::sync::OnceLock;

use candle_core::Device;
use lathe_protocol::{ErrorCode, ErrorInfo};

use crate::{Error, Result};

type Hook = Box<dyn Fn(&ErrorInfo) + Send + Sync>;

static ON_FATAL: OnceLock<Hook> = OnceLock::new();

/// What is done where a card's context is first seen to be beyond use: `end` says so and ends the process, so that nothing
/// touches CUDA any more, not even to free memory. Without it such a fault is an error like any other. Only the first call
/// counts.
pub fn on_fatal(end: impl Fn(&ErrorInfo) + Send + Sync + 'static) {
    ON_FATAL.get_or_init(|| Box::new(end));
}

static ONLY_CARD: OnceLock<String> = OnceLock::new();

/// Names the card, say `cuda:1`, of a process that sees no other: CUDA itself counts it as its first. Only the first call
/// counts.
pub fn name_only_card(name: String) {
    ONLY_CARD.get_or_init(|| name);
}

/// The device of this name: `cpu`, or `cuda:N`, counted among the cards that this process sees, unless its only one has a
/// name.
///
/// Errors: no driver or none of its libraries, no such card, or a build for the CPU only.
pub fn open(device: &str) -> Result<Device> {
    let unknown = || Error::invalid(ErrorCode::Device, format!("Unknown device {device:?}"));
    if device == "cpu" {
        return Ok(Device::Cpu);
    }
    let named = |index: &str| index.parse().ok();
    let index = device.strip_prefix("cuda:").and_then(named).ok_or_else(unknown)?;
    open_card(if ONLY_CARD.get().is_some_and(|only| only == device) { 0 } else { index })
}

#[cfg(not(feature = "cuda"))]
fn open_card(index: usize) -> Result<Device> {
    let message = format!("Device cuda:{index} is not available: this is the CPU build");
    Err(Error::invalid(ErrorCode::Device, message).hint("use --device cpu"))
}

/// Bytes that are free, and all of them; none of the CPU, or if the card does not tell.
#[cfg(not(feature = "cuda"))]
pub fn memory(_: &Device) -> Option<(u64, u64)> {
    None
}

#[cfg(feature = "cuda")]
pub use with_cuda::memory;
#[cfg(feature = "cuda")]
use with_cuda::{memory_here, open_card};

/// cudarc loads each library when it is first called, and panics if it is not there.
#[cfg(feature = "cuda")]
mod with_cuda {
    use candle_core::{Device, cuda_backend::cudarc::driver};
    use lathe_kernels::gpu;
    use lathe_protocol::ErrorCode;

    use crate::{Error, Result, foreign::guarded};

    pub(super) fn open_card(index: usize) -> Result<Device> {
        let device_error = |message: String| Error::invalid(ErrorCode::Device, message);
        let count = guarded(driver::CudaContext::device_count)
            .map_err(|_| {
                device_error("No NVIDIA driver: libcuda cannot be loaded".into())
                    .hint("install NVIDIA's driver, 580 or newer")
            })?
            .map_err(|error| device_error(format!("The NVIDIA driver does not start: {error}")))?;
        if usize::try_from(count).is_ok_and(|count| index >= count) {
            return Err(device_error(format!("There is no card cuda:{index}: this process sees {count}")));
        }
        guarded(|| Device::new_cuda_with_stream(index))
            .map_err(|panic| {
                // `Unable to dynamically load the "cublas" shared library - searched ..`
                let library = panic.split('"').nth(1).unwrap_or(&panic).to_owned();
                device_error(format!("CUDA's library {library} cannot be loaded"))
                    .hint("`lathe doctor` says where it was looked for")
            })?
            .map_err(Error::from)
            .and_then(|device| {
                gpu::prepare(&device)?;
                Ok(device)
            })
    }

    /// Bytes that are free, and all of them; none of the CPU, or if the card does not tell.
    pub fn memory(device: &Device) -> Option<(u64, u64)> {
        let Device::Cuda(device) = device else { return None };
        let (free, total) = device.cuda_stream().context().mem_get_info().ok()?;
        Some((free as u64, total as u64))
    }

    /// Of the card that this thread has computed on.
    pub(super) fn memory_here() -> Option<(u64, u64)> {
        // Without a driver there is nothing to ask, and nothing that could have failed.
        let (free, total) = guarded(driver::result::mem_get_info).ok()?.ok()?;
        Some((free as u64, total as u64))
    }
}

#[cfg(not(feature = "cuda"))]
fn memory_here() -> Option<(u64, u64)> {
    None
}

const OUT_OF_MEMORY: [&str; 3] =
    ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED", "CURAND_STATUS_ALLOCATION_FAILED"];

/// After these every later call fails too, until the process ends.
const FATAL: [&str; 14] = [
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_CONTAINED",
    "CUDA_ERROR_EXTERNAL_DEVICE",
    "CUDA_ERROR_UNKNOWN",
];

/// Of a driver or a card that this build is not made for, each with what to do.
const UNSUITABLE: [(&str, &str, &str); 3] = [
    (
        "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
        "The NVIDIA driver is too old for this build",
        "update the driver",
    ),
    (
        "CUDA_ERROR_NO_BINARY_FOR_GPU",
        "This build has no kernels for this card",
        "build it for this card: cargo xtask cuda",
    ),
    (
        "CUDA_ERROR_INVALID_PTX",
        "This build has no kernels for this card",
        "build it for this card: cargo xtask cuda",
    ),
];

impl From<candle_core::Error> for Error {
    /// Tells a card's own failures from those of a tensor. One that is fatal may not return: see [`on_fatal`].
    fn from(error: candle_core::Error) -> Self {
        let text = crate::error::without_backtrace(&error);
        let Some((failure, is_fatal)) = card_failure(&text, memory_here) else { return Self::Tensor(error) };
        if is_fatal && let Some(end) = ON_FATAL.get() {
            end(&failure);
        }
        failure.into()
    }
}

/// What a card's message means, and whether its context is beyond use; none if it is no card's.
fn card_failure(text: &str, memory: impl Fn() -> Option<(u64, u64)>) -> Option<(ErrorInfo, bool)> {
    let has = |names: &[&str]| names.iter().any(|name| text.contains(name));
    if has(&OUT_OF_MEMORY) {
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        let left = |(free, total)| format!(": {:.1} GiB of {:.1} GiB free", gib(free), gib(total));
        let left = memory().map(left).unwrap_or_default();
        let message = format!("The card's memory gave out{left}");
        return Some((ErrorInfo::new(ErrorCode::OutOfMemory, message), false));
    }
    if let Some((_, what, hint)) = UNSUITABLE.iter().find(|(name, ..)| text.contains(name)) {
        return Some((ErrorInfo::new(ErrorCode::Device, format!("{what}: {text}")).hint(*hint), false));
    }
    if has(&FATAL) {
        let error = ErrorInfo::new(ErrorCode::Device, format!("The card stopped computing: {text}"))
            .hint("try again; if it comes back, see the system's log (dmesg) for NVRM's Xid, and report it");
        return Some((error, true));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As candle wraps what cudarc says.
    fn told(text: &str) -> ErrorInfo {
        let error = candle_core::Error::Cuda(text.to_owned().into()).bt();
        Error::from(error).into()
    }

    #[test]
    fn memory_that_gives_out_on_a_card_is_told_from_a_fault() {
        let check = |text: &str, code: ErrorCode, message: &str| {
            let info = told(text);
            assert_eq!((info.code, info.message.starts_with(message)), (code, true), "{info:?}");
        };
        let memory = "The card's memory gave out";
        check(r#"DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")"#, ErrorCode::OutOfMemory, memory);
        check("CublasError(CUBLAS_STATUS_ALLOC_FAILED)", ErrorCode::OutOfMemory, memory);
        check(
            r#"DriverError(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, "the provided PTX ..") when loading cast"#,
            ErrorCode::Device,
            "The NVIDIA driver is too old for this build: DriverError(",
        );
        check(
            r#"DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered")"#,
            ErrorCode::Device,
            "The card stopped computing: DriverError(CUDA_ERROR_ILLEGAL_ADDRESS",
        );
        check("missing kernel 'cast'", ErrorCode::Internal, "Tensor operation failed: ");
    }

    #[test]
    fn what_is_free_is_told_where_it_is_known() {
        let free = |memory: Option<(u64, u64)>| {
            card_failure("CUDA_ERROR_OUT_OF_MEMORY", || memory)
                .map(|(error, fatal)| (error.to_string(), fatal))
        };
        let expected = "The card's memory gave out: 0.5 GiB of 24.0 GiB free";
        assert_eq!(free(Some((1 << 29, 24 << 30))), Some((expected.into(), false)));
        assert_eq!(free(None), Some(("The card's memory gave out".into(), false)));
        assert!(card_failure("CUDA_ERROR_ASSERT", || None).is_some_and(|(_, fatal)| fatal));
        assert!(card_failure("shape mismatch", || None).is_none());
    }

    #[test]
    fn a_device_is_there_or_named() {
        assert!(matches!(open("cpu"), Ok(Device::Cpu)));
        let refused = |device: &str| ErrorInfo::from(open(device).expect_err(device));
        assert_eq!(refused("tpu").message, "Unknown device \"tpu\"");
        if cfg!(not(feature = "cuda")) {
            let refused = refused("cuda:1");
            assert_eq!(refused.code, ErrorCode::Device);
            assert_eq!(refused.message, "Device cuda:1 is not available: this is the CPU build");
        }
    }
}
