// What a CUDA source needs to be compiled as C++ and run on this CPU, a block's threads as fibers of one OS thread.
//
// It exists for tests where no GPU is: the same source, launched with the same arguments. Threads change only where CUDA
// lets them meet, in an order that changes from round to round, so that a missing barrier shows. Shared memory starts as
// NaNs, and asynchronous copies arrive when they are waited for, not before.
#pragma once

#include "watch.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

namespace emulator {

struct Index {
    unsigned x, y, z;
};

// Where the running thread is; one an OS thread, set before a fiber goes on.
struct Place {
    Index thread_index, block_index, block_dim, grid_dim;
    uint8_t *shared_memory;
};
extern thread_local Place place;

void barrier();
void warp_barrier();
// Of the `size` (at most 64) bytes that each lane of the warp gives, those of lane `lane`.
void exchange(const void *value, size_t size, unsigned lane, void *other);
unsigned ballot(bool is_set);
// What tensor cores do, and what brings matrices to them: see `mma_bf16` and `load_matrices` in common.cuh.
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void load_matrices(uint32_t (&fragments)[4], const void *row, bool is_transposed);
// Copies that arrive when `wait_for_copies` comes to their group.
void copy_later(void *to, const void *from, size_t size, size_t room);
void commit_copies();
void wait_for_copies(unsigned groups_left);

struct Kernel {
    std::function<void(void **)> run;
    std::vector<size_t> argument_sizes;
};
void add_kernel(const char *name, Kernel kernel);

struct Registrar {
    template <typename... Arguments> Registrar(const char *name, void (*function)(Arguments...)) {
        add_kernel(name, Kernel{bind(function, std::index_sequence_for<Arguments...>{}), {sizeof(Arguments)...}});
    }

    template <typename... Arguments, size_t... I>
    static std::function<void(void **)> bind(void (*function)(Arguments...), std::index_sequence<I...>) {
        return [function](void **arguments) { function(*static_cast<Arguments *>(arguments[I])...); };
    }
};

template <typename T> T lane_value(T value, unsigned lane) {
    T other;
    exchange(&value, sizeof(T), lane % 32, &other);
    return other;
}

} // namespace emulator

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static thread_local

#define threadIdx (emulator::place.thread_index)
#define blockIdx (emulator::place.block_index)
#define blockDim (emulator::place.block_dim)
#define gridDim (emulator::place.grid_dim)

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline void __syncthreads() { emulator::barrier(); }
inline void __syncwarp(unsigned = 0xffffffff) { emulator::warp_barrier(); }

template <typename T> T __shfl_sync(unsigned, T value, int lane) { return emulator::lane_value(value, lane); }
template <typename T> T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulator::lane_value(value, (threadIdx.x % 32) ^ mask);
}
template <typename T> T __shfl_down_sync(unsigned, T value, unsigned by) {
    const unsigned lane = threadIdx.x % 32;
    return emulator::lane_value(value, lane + by < 32 ? lane + by : lane);
}
template <typename T> T __shfl_up_sync(unsigned, T value, unsigned by) {
    const unsigned lane = threadIdx.x % 32;
    return emulator::lane_value(value, lane >= by ? lane - by : lane);
}
inline unsigned __ballot_sync(unsigned, int is_set) { return emulator::ballot(is_set != 0); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}

template <typename T> __attribute__((noinline, no_sanitize("thread"))) T atomicAdd(T *at, T value) {
    emulator::watch(at, sizeof(T), emulator::Access::ATOMIC);
    const T before = *at;
    *at = before + value;
    return before;
}

template <typename T> T __ldg(const T *at) { return *at; }
template <typename T> T min(T a, T b) { return b < a ? b : a; }
template <typename T> T max(T a, T b) { return a < b ? b : a; }
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
    for (unsigned shift = 0; shift < 32; shift += 8) sum += (a >> shift & 255) * (b >> shift & 255);
    return sum;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }
