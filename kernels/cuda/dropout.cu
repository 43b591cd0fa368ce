// Dropout: y = addend + x / (1 − p), or only the addend where the element is dropped.
//
// x, addend (or null) and y bf16. An element is dropped if the upper half of SplitMix64 (key ^ its index) lies below the
// threshold, p · 2^32: the same mask as that of its twin, `dropout.rs`.
#include "common.cuh"

namespace {

constexpr unsigned VALUES = 8;

__device__ __forceinline__ bool is_dropped(uint64_t key, uint64_t index, unsigned threshold) {
    return (unsigned)(splitmix64(key ^ index) >> 32) < threshold;
}

} // namespace

// 8 values a thread.
KERNEL(256, dropout)
(const bf16 *x, const bf16 *addend, bf16 *y, uint64_t count, uint64_t key, unsigned threshold, float keep_scale) {
    const uint64_t first = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * VALUES;
    const auto value = [&](uint64_t at, float value) {
        return is_dropped(key, at, threshold) ? 0.0f : value * keep_scale;
    };
    if (first + VALUES > count) {
        for (uint64_t at = first; at < count; at++) {
            y[at] = to_bf16(value(at, to_float(x[at])) + (addend ? to_float(addend[at]) : 0.0f));
        }
        return;
    }
    const uint4 values = *(const uint4 *)(x + first);
    const uint4 others = addend ? *(const uint4 *)(addend + first) : make_uint4(0, 0, 0, 0);
    const uint32_t in[4] = {values.x, values.y, values.z, values.w}, add[4] = {others.x, others.y, others.z, others.w};
    uint32_t out[4];
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        const uint64_t at = first + 2 * i;
        out[i] = pack_bf16(value(at, low_half(in[i])) + low_half(add[i]), value(at + 1, high_half(in[i])) + high_half(add[i]));
    }
    *(uint4 *)(y + first) = make_uint4(out[0], out[1], out[2], out[3]);
}
EXPORT_KERNEL(dropout)
