// What all kernels share: bf16, warps, tensor cores, asynchronous copies. Every line that is CUDA's alone lies here; the
// kernels themselves also compile as C++ for the emulator.
//
// Matrices are row-major. Activations are bf16, sums f32. A kernel is launched with one-dimensional blocks of whole
// warps, and its whole warps take part in everything that warps do together.
#pragma once

#ifdef LATHE_EMULATOR
#include "emulator.hpp"
// Dynamic shared memory, 16-byte aligned.
#define SHARED_MEMORY(name) uint8_t *const name = emulator::place.shared_memory
// Makes a kernel known by its name.
#define EXPORT_KERNEL(name) static const emulator::Registrar registrar_##name(#name, &name);
#else
#include <cstdint>
#define SHARED_MEMORY(name) extern __shared__ __align__(16) uint8_t name[]
#define EXPORT_KERNEL(name)
#endif

// A kernel that Rust launches: `KERNEL(threads, name)(arguments) { .. } EXPORT_KERNEL(name)`.
#define KERNEL(threads, name) extern "C" __global__ void __launch_bounds__(threads) name

#define FULL_WARP 0xffffffffu
#define NO_NUMBER (__uint_as_float(0x7fffffffu))
#define MINUS_INFINITY (__uint_as_float(0xff800000u))

// The upper half of an f32.
struct alignas(2) bf16 {
    uint16_t bits;
};

__device__ __forceinline__ float to_float(bf16 value) { return __uint_as_float((uint32_t)value.bits << 16); }
__device__ __forceinline__ float to_float(float value) { return value; }

// Two values rounded to the nearest bf16, ties to even; the first in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#ifdef LATHE_EMULATOR
    const auto round = [](float value) -> uint32_t {
        const uint32_t bits = __float_as_uint(value);
        if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
        return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    };
    return round(low) | round(high) << 16;
#else
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#endif
}

__device__ __forceinline__ bf16 to_bf16(float value) { return bf16{(uint16_t)pack_bf16(value, 0.0f)}; }
__device__ __forceinline__ float low_half(uint32_t packed) { return __uint_as_float(packed << 16); }
__device__ __forceinline__ float high_half(uint32_t packed) { return __uint_as_float(packed & 0xffff0000u); }

__device__ __forceinline__ void store(bf16 *at, float value) { *at = to_bf16(value); }
__device__ __forceinline__ void store(float *at, float value) { *at = value; }

// Both values of a pair times those of another, rounded.
__device__ __forceinline__ uint32_t multiply_bf16(uint32_t a, uint32_t b) {
#ifdef LATHE_EMULATOR
    return pack_bf16(low_half(a) * low_half(b), high_half(a) * high_half(b));
#else
    uint32_t product;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));
    return product;
#endif
}

// Four of the eight bytes of `low` and `high`, each chosen by a half-byte of `choice`; with its upper bit set it is all ones
// or zeros, as that byte's upper bit.
__device__ __forceinline__ uint32_t choose_bytes(uint32_t low, uint32_t high, uint32_t choice) {
#ifdef LATHE_EMULATOR
    uint32_t chosen = 0;
    for (unsigned i = 0; i < 4; i++) {
        const unsigned at = choice >> 4 * i & 15;
        uint32_t byte = (uint32_t)(((uint64_t)high << 32 | low) >> 8 * (at % 8)) & 0xff;
        if (at >= 8) byte = byte >> 7 ? 0xff : 0;
        chosen |= byte << 8 * i;
    }
    return chosen;
#else
    uint32_t chosen;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(chosen) : "r"(low), "r"(high), "r"(choice));
    return chosen;
#endif
}

// 2^x, about two units in the last place.
__device__ __forceinline__ float exp2_fast(float x) {
#ifdef LATHE_EMULATOR
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

#define LOG2_E 1.4426950408889634f

__device__ __forceinline__ float exp_fast(float x) { return exp2_fast(x * LOG2_E); }
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + exp_fast(-x)); }

// SplitMix64 (Steele et al., "Fast splittable pseudorandom number generators"): 64 random bits for each seed.
__device__ __forceinline__ uint64_t splitmix64(uint64_t seed) {
    uint64_t z = seed * 0x9e3779b97f4a7c15ull + 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

// ---- Warps and blocks ----

__device__ __forceinline__ unsigned lane_index() { return threadIdx.x % 32; }
__device__ __forceinline__ unsigned warp_index() { return threadIdx.x / 32; }

// Every lane gets it.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(FULL_WARP, value, mask);
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value = fmaxf(value, __shfl_xor_sync(FULL_WARP, value, mask));
    return value;
}

// Every thread of the block gets it. All threads call it, with nothing of the block's shared memory in use by others.
__device__ __forceinline__ float block_sum(float value) {
    __shared__ float parts[32];
    value = warp_sum(value);
    if (lane_index() == 0) parts[warp_index()] = value;
    __syncthreads();
    value = lane_index() < blockDim.x / 32 ? parts[lane_index()] : 0.0f;
    __syncthreads();
    return warp_sum(value);
}

__device__ __forceinline__ float block_max(float value) {
    __shared__ float parts[32];
    value = warp_max(value);
    if (lane_index() == 0) parts[warp_index()] = value;
    __syncthreads();
    value = lane_index() < blockDim.x / 32 ? parts[lane_index()] : MINUS_INFINITY;
    __syncthreads();
    return warp_max(value);
}

// ---- Tensor cores ----

// d += a b for a (16, 16) and b (16, 8) in bf16, d (16, 8) in f32. With g = lane / 4 and t = lane % 4 a lane holds
//   a: rows g, g + 8, g, g + 8 at columns 2t (first two) and 2t + 8 (last two), two neighbours a register;
//   b: rows 2t and 2t + 8 (each with the one below) at column g;
//   d: row g at columns 2t, 2t + 1, then row g + 8 at the same.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef LATHE_EMULATOR
    emulator::mma_bf16(d, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four matrices (8, 8) of bf16 out of shared memory: lanes 8 i .. 8 i + 7 give the rows of matrix i (16 bytes each, 16-byte
// aligned), and every lane gets row lane / 4 at columns 2 (lane % 4) and one further of each.
__device__ __forceinline__ void load_matrices(uint32_t (&fragments)[4], const void *row) {
#ifdef LATHE_EMULATOR
    emulator::load_matrices(fragments, row, false);
#else
    const uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fragments[0]), "=r"(fragments[1]), "=r"(fragments[2]), "=r"(fragments[3])
                 : "r"(address)
                 : "memory");
#endif
}

// Likewise of the matrices' transposes.
__device__ __forceinline__ void load_transposed_matrices(uint32_t (&fragments)[4], const void *row) {
#ifdef LATHE_EMULATOR
    emulator::load_matrices(fragments, row, true);
#else
    const uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fragments[0]), "=r"(fragments[1]), "=r"(fragments[2]), "=r"(fragments[3])
                 : "r"(address)
                 : "memory");
#endif
}

// ---- Asynchronous copies ----

// Copies 16 bytes into shared memory, zeros if not `is_there` (then nothing is read). Both are 16-byte aligned.
__device__ __forceinline__ void copy_async(void *shared, const void *global, bool is_there) {
#ifdef LATHE_EMULATOR
    emulator::copy_later(shared, global, is_there ? 16 : 0, 16);
#else
    const uint32_t address = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(address), "l"(global), "r"(is_there ? 16 : 0)
                 : "memory");
#endif
}

// Ends a group of copies.
__device__ __forceinline__ void commit_copies() {
#ifdef LATHE_EMULATOR
    emulator::commit_copies();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most so many of this thread's last groups are under way. What others copied is there after a barrier.
template <unsigned GROUPS_LEFT> __device__ __forceinline__ void wait_for_copies() {
#ifdef LATHE_EMULATOR
    emulator::wait_for_copies(GROUPS_LEFT);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS_LEFT) : "memory");
#endif
}

// Asks for the line of memory that this is in, for a later read.
__device__ __forceinline__ void prefetch(const void *global) {
#ifdef LATHE_EMULATOR
    (void)global;
#else
    asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
#endif
}

// ---- 4-bit weights ----

// Values of NF4's codes (QLoRA, arXiv 2305.14314, appendix E).
__device__ __forceinline__ float nf4_value(unsigned code) {
    const float values[16] = {-1.0f,
                              -0.6961928009986877f,
                              -0.5250730514526367f,
                              -0.39491748809814453f,
                              -0.28444138169288635f,
                              -0.18477343022823334f,
                              -0.09105003625154495f,
                              0.0f,
                              0.07958029955625534f,
                              0.16093020141124725f,
                              0.24611230194568634f,
                              0.33791524171829224f,
                              0.44070982933044434f,
                              0.5626170039176941f,
                              0.7229568362236023f,
                              1.0f};
    return values[code & 15];
}

// Value of an MXFP4 code: sign, two bits of exponent, one of mantissa: ±{0, ½, 1, 1½, 2, 3, 4, 6}.
__device__ __forceinline__ float mxfp4_value(unsigned code) {
    const unsigned exponent = code >> 1 & 3, mantissa = code & 1;
    // As an f32: exponent 0 is mantissa / 2.
    const uint32_t bits = exponent == 0 ? (mantissa ? 0x3f000000u : 0u) : (126 + exponent) << 23 | mantissa << 22;
    return __uint_as_float(bits | (code & 8) << 28);
}

// 2^(scale − 127), MXFP4's scale of a block of 32; its lowest is the one power of two below f32's normal numbers.
__device__ __forceinline__ float mxfp4_scale(unsigned scale) {
    return __uint_as_float(scale == 0 ? 1u << 22 : scale << 23);
}
