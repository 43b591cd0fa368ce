//! Runs the CUDA kernels of `lathe-kernels` on this CPU, from the same source, so that they are tested where no GPU is.
//!
//! While it is installed, a CPU tensor in bf16 stands for one on a GPU: an operation on it launches the very kernels,
//! with the very arguments, that it would launch there.
#![expect(unsafe_code, reason = "the kernels are C++")]

use std::ffi::{CString, c_char, c_int, c_uint, c_void};

use lathe_kernels::gpu::{self, Arg, Grid};

unsafe extern "C" {
    fn lathe_emulate(
        name: *const c_char,
        grid: *const c_uint,
        num_threads: c_uint,
        shared_bytes: c_uint,
        arguments: *mut *mut c_void,
        sizes: *const usize,
        num_arguments: usize,
    ) -> c_int;
}

/// From here on this process computes on bf16 tensors of the CPU as it would on a GPU.
pub fn install() {
    gpu::install_emulator(launch);
}

fn launch(name: &str, grid: Grid, args: &[Arg]) -> Result<(), String> {
    let c_name = CString::new(name).map_err(|error| error.to_string())?;
    let mut values: Vec<[u8; 8]> = args.iter().map(Arg::bytes).collect();
    let sizes: Vec<usize> = args.iter().map(Arg::size).collect();
    let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|value| value.as_mut_ptr().cast()).collect();
    // SAFETY: the emulator checks the arguments' number and sizes against the kernel; what they point to is alive for
    // the call, as it would have to be for a GPU.
    let code = unsafe {
        lathe_emulate(
            c_name.as_ptr(),
            grid.blocks.as_ptr(),
            grid.threads,
            grid.shared_bytes,
            pointers.as_mut_ptr(),
            sizes.as_ptr(),
            args.len(),
        )
    };
    match code {
        0 => Ok(()),
        1 => Err(format!("no kernel {name}")),
        2 => Err(format!("kernel {name} takes other arguments than {args:?}")),
        _ => Err(format!("no GPU would launch {name} with {grid:?}")),
    }
}
