// SwiGLU: y = silu(gate) · up (arXiv 2002.05202), eight values a thread.
//
// All (n) bf16, n a multiple of 8. Twin: `swiglu.rs`.
#include "common.cuh"

namespace {

struct Eight {
    uint4 packed;

    __device__ __forceinline__ float get(unsigned i) const {
        const uint32_t word = i < 2 ? packed.x : i < 4 ? packed.y : i < 6 ? packed.z : packed.w;
        return i % 2 == 0 ? low_half(word) : high_half(word);
    }
};

__device__ __forceinline__ uint4 packed(const float (&v)[8]) {
    return make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}

} // namespace

KERNEL(256, swiglu)(const uint4 *gate, const uint4 *up, uint4 *y, uint64_t num_eights) {
    const uint64_t at = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= num_eights) return;
    const Eight g{gate[at]}, u{up[at]};
    float out[8];
#pragma unroll
    for (unsigned i = 0; i < 8; i++) out[i] = g.get(i) * sigmoid(g.get(i)) * u.get(i);
    y[at] = packed(out);
}
EXPORT_KERNEL(swiglu)

// dup = dy · silu(gate); dgate = dy · up · s (1 + gate (1 − s)) with s the gate's sigmoid.
KERNEL(256, swiglu_backward)
(const uint4 *gate, const uint4 *up, const uint4 *dy, uint4 *dgate, uint4 *dup, uint64_t num_eights) {
    const uint64_t at = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= num_eights) return;
    const Eight g{gate[at]}, u{up[at]}, d{dy[at]};
    float of_gate[8], of_up[8];
#pragma unroll
    for (unsigned i = 0; i < 8; i++) {
        const float value = g.get(i), s = sigmoid(value);
        of_up[i] = d.get(i) * value * s;
        of_gate[i] = d.get(i) * u.get(i) * s * (1.0f + value * (1.0f - s));
    }
    dgate[at] = packed(of_gate);
    dup[at] = packed(of_up);
}
EXPORT_KERNEL(swiglu_backward)
