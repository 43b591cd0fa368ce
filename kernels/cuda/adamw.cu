// AdamW over all tensors that learn in one launch (arXiv 1711.05101, in PyTorch's order of operations), with moments in f32
// or in eight bits (arXiv 2110.02861; bitsandbytes' dynamic maps, a scale for 256 values).
//
//   m = β1 m + (1 − β1) g;  v = β2 v + (1 − β2) g²;  w = w (1 − lr · decay) − lr / c1 · m / (sqrt(v / c2) + eps)
//
// Tensors are cut into parts, a block each; all in f32 but for the codes. Twins: `adamw.rs`, `dynamic8.rs`.
#include "common.cuh"

namespace {

// As `gpu/adamw.rs` lays it out. Scales are null where the moments are f32.
struct Part {
    float *w, *g;
    void *m, *v;
    float *m_scales, *v_scales;
    unsigned length;
    float weight_decay;
};

struct Rates {
    float gradient_scale, learning_rate, step_size, inverse_root_correction2, beta1, beta2, share1, share2, eps;
};

__device__ __forceinline__ void update(const Rates &rates, float decay, float &w, float g, float &m, float &v) {
    g *= rates.gradient_scale;
    m = rates.beta1 * m + rates.share1 * g;
    v = rates.beta2 * v + rates.share2 * g * g;
    const float denominator = sqrtf(v) * rates.inverse_root_correction2 + rates.eps;
    w = w * decay - rates.step_size * m / denominator;
}

// The nearest code: how many bounds are below. Of two equally near the lower.
__device__ __forceinline__ unsigned nearest(const float *bounds, float value) {
    unsigned below = 0;
#pragma unroll
    for (unsigned half = 128; half > 0; half /= 2) {
        if (bounds[below + half - 1] < value) below += half;
    }
    return below;
}

} // namespace

// `maps`: values and bounds of the signed map, then of the unsigned, 256 each.
KERNEL(256, adamw)
(const Part *parts, const float *maps, float gradient_scale, float learning_rate, float step_size,
 float inverse_root_correction2, float beta1, float beta2, float share1, float share2, float eps) {
    const Rates rates{gradient_scale, learning_rate, step_size, inverse_root_correction2, beta1, beta2, share1,
                      share2,         eps};
    const Part part = parts[blockIdx.x];
    const float decay = 1.0f - learning_rate * part.weight_decay;
    if (part.m_scales == nullptr) {
        float *const m = (float *)part.m, *const v = (float *)part.v;
        for (unsigned i = threadIdx.x; i < part.length; i += blockDim.x) {
            update(rates, decay, part.w[i], part.g[i], m[i], v[i]);
        }
        return;
    }
    SHARED_MEMORY(shared);
    float *const table = (float *)shared;
    for (unsigned i = threadIdx.x; i < 1024; i += blockDim.x) table[i] = maps[i];
    __syncthreads();
    uint8_t *const m_codes = (uint8_t *)part.m, *const v_codes = (uint8_t *)part.v;
    for (unsigned block = 0; block * 256 < part.length; block++) {
        const unsigned i = block * 256 + threadIdx.x;
        const bool is_there = i < part.length;
        float m = 0.0f, v = 0.0f;
        if (is_there) {
            m = table[m_codes[i]] * part.m_scales[block];
            v = table[512 + v_codes[i]] * part.v_scales[block];
            update(rates, decay, part.w[i], part.g[i], m, v);
        }
        // The barriers inside are between the last reads of the scales and their new values.
        const float m_scale = block_max(fabsf(m)), v_scale = block_max(fabsf(v));
        if (is_there) {
            m_codes[i] = (uint8_t)nearest(table + 256, m * (1.0f / fmaxf(m_scale, 1e-38f)));
            v_codes[i] = (uint8_t)nearest(table + 768, v * (1.0f / fmaxf(v_scale, 1e-38f)));
        }
        if (threadIdx.x == 0) {
            part.m_scales[block] = m_scale;
            part.v_scales[block] = v_scale;
        }
    }
}
EXPORT_KERNEL(adamw)

// The sum of the squares of each part's gradient.
KERNEL(256, gradient_squares)(const Part *parts, float *sums) {
    const Part part = parts[blockIdx.x];
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < part.length; i += blockDim.x) sum += part.g[i] * part.g[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
EXPORT_KERNEL(gradient_squares)

KERNEL(256, clear_gradients)(const Part *parts) {
    const Part part = parts[blockIdx.x];
    for (unsigned i = threadIdx.x; i < part.length; i += blockDim.x) part.g[i] = 0.0f;
}
EXPORT_KERNEL(clear_gradients)

// sum += x.
KERNEL(256, add_gradient)(float *sum, const float *x, uint64_t length) {
    const uint64_t at = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < length) sum[at] += x[at];
}
EXPORT_KERNEL(add_gradient)
