//! Runs the CUDA kernels of `lathe-kernels` on this CPU, from the same source, so that they are tested where no GPU is.
//!
//! While it is installed, a CPU tensor in bf16 stands for one on a GPU: an operation on it launches the very kernels,
//! with the very arguments, that it would launch there.
#![expect(unsafe_code, reason = "the kernels are C++")]

#[cfg(test)]
mod tests;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ffi::{CString, c_char, c_int, c_uint, c_void},
    slice,
};

use half::bf16;
use lathe_kernels::gpu::{self, Arg, Emulator, GemmEx, Grid};

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
    fn lathe_allocated(begin: *const u8, size: usize);
    fn lathe_freed(begin: *const u8, size: usize);
}

/// What tells the emulator where memory is that kernels may use.
struct Watched;

/// Behind each allocation, nobody's.
const GAP_BYTES: usize = 256;

fn with_gap(layout: Layout) -> Layout {
    Layout::from_size_align(layout.size() + GAP_BYTES, layout.align()).unwrap_or(layout)
}

// SAFETY: the system's allocator does it, with somewhat more.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout, somewhat larger; the emulator notes numbers only.
        unsafe {
            let begin = System.alloc(with_gap(layout));
            lathe_allocated(begin, layout.size());
            begin
        }
    }

    unsafe fn dealloc(&self, begin: *mut u8, layout: Layout) {
        // SAFETY: it was allocated as above.
        unsafe {
            lathe_freed(begin, layout.size());
            System.dealloc(begin, with_gap(layout));
        }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// From here on this process computes on bf16 tensors of the CPU as it would on a GPU.
pub fn install() {
    gpu::install_emulator(Emulator { launch, multiply });
}

/// What `cublasGemmEx` does.
fn multiply(product: &GemmEx) {
    let GemmEx { transposes, sizes: [m, n, k], addresses, strides, scale, adds, is_f32 } = *product;
    let [a, b] = [(transposes[0], [m, k], 0), (transposes[1], [k, n], 1)].map(|(is_transposed, size, i)| {
        let [rows, columns] = if is_transposed { [size[1], size[0]] } else { size };
        assert!(strides[i] >= rows, "columns that overlap: {product:?}");
        let length = (columns - 1) * strides[i] + rows;
        // SAFETY: the matrix has these columns, as it would have to for a GPU.
        let values = unsafe { slice::from_raw_parts(addresses[i] as *const bf16, length) };
        let stride = strides[i];
        let mut plain = vec![0.0; size[0] * size[1]];
        for (at, value) in plain.iter_mut().enumerate() {
            // Side by side for the sums: rows of A, columns of B.
            let (outer, inner) = (at / k, at % k);
            let [row, column] = if i == 0 { [outer, inner] } else { [inner, outer] };
            let [row, column] = if is_transposed { [column, row] } else { [row, column] };
            *value = values[column * stride + row].to_f32();
        }
        plain
    });
    assert!(strides[2] >= m, "columns that overlap: {product:?}");
    for (column, b) in b.chunks_exact(k).enumerate() {
        for (row, a) in a.chunks_exact(k).enumerate() {
            let sum = scale * a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            let at = column * strides[2] + row;
            // SAFETY: likewise.
            unsafe {
                if is_f32 {
                    let c = (addresses[2] as *mut f32).add(at);
                    *c = if adds { *c + sum } else { sum };
                } else {
                    let c = (addresses[2] as *mut bf16).add(at);
                    *c = bf16::from_f32(if adds { (*c).to_f32() + sum } else { sum });
                }
            }
        }
    }
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
