// RMSNorm over rows: y = x · r · w with r = 1 / sqrt(mean(x²) + eps) (arXiv 1910.07467).
//
// x, y, dy, dx (N, C) in bf16, w (C) in f32, sums in f32. Twin: `rms_norm.rs`.
#include "common.cuh"

namespace {

__device__ __forceinline__ float inverse_rms(const bf16 *x, unsigned width, float eps) {
    float squares = 0.0f;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const float value = to_float(x[i]);
        squares += value * value;
    }
    return rsqrtf(block_sum(squares) / width + eps);
}

} // namespace

// A block a row.
KERNEL(256, rms_norm)(const bf16 *x, const float *w, bf16 *y, unsigned width, float eps) {
    const size_t start = (size_t)blockIdx.x * width;
    const float inverse = inverse_rms(x + start, width, eps);
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        y[start + i] = to_bf16(to_float(x[start + i]) * inverse * w[i]);
    }
}
EXPORT_KERNEL(rms_norm)

// dx = r (w dy − x r² · mean(w dy x)), a block a row.
KERNEL(256, rms_norm_backward)
(const bf16 *x, const float *w, const bf16 *dy, bf16 *dx, unsigned width, float eps) {
    const size_t start = (size_t)blockIdx.x * width;
    const float inverse = inverse_rms(x + start, width, eps);
    float products = 0.0f;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        products += to_float(dy[start + i]) * w[i] * to_float(x[start + i]);
    }
    const float projection = block_sum(products) * inverse * inverse / width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const float value = to_float(x[start + i]);
        dx[start + i] = to_bf16(inverse * (to_float(dy[start + i]) * w[i] - value * projection));
    }
}
EXPORT_KERNEL(rms_norm_backward)

// Part of dw = Σ dy · x · r over the rows, for a weight that learns: block (i, j) adds up rows i, i + grid of 256 columns
// and writes them to part i (parts, C). A row's r is given.
KERNEL(256, rms_norm_backward_weight)
(const bf16 *x, const float *inverses, const bf16 *dy, float *parts, unsigned num_rows, unsigned width) {
    const unsigned column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= width) return;
    float sum = 0.0f;
    for (unsigned row = blockIdx.x; row < num_rows; row += gridDim.x) {
        const size_t at = (size_t)row * width + column;
        sum += to_float(dy[at]) * to_float(x[at]) * inverses[row];
    }
    parts[(size_t)blockIdx.x * width + column] = sum;
}
EXPORT_KERNEL(rms_norm_backward_weight)

// r of each row (N), a block a row.
KERNEL(256, rms_norm_inverses)(const bf16 *x, float *inverses, unsigned width, float eps) {
    const float inverse = inverse_rms(x + (size_t)blockIdx.x * width, width, eps);
    if (threadIdx.x == 0) inverses[blockIdx.x] = inverse;
}
EXPORT_KERNEL(rms_norm_inverses)
