// The norms of the rows of W + U, for DoRA: W (O,C) and U (O,C) bf16, norms (O) f32; a block a row.
// Twin: `FrozenLinear::adapted_row_norms`.
#include "common.cuh"

KERNEL(256, row_norms)(const bf16 *weight, const bf16 *update, float *norms, unsigned width) {
    const size_t start = (size_t)blockIdx.x * width;
    float squares = 0.0f;
    for (unsigned i = 2 * threadIdx.x; i < width; i += 2 * blockDim.x) {
        const uint32_t w = *(const uint32_t *)(weight + start + i), u = *(const uint32_t *)(update + start + i);
        const float low = low_half(w) + low_half(u), high = high_half(w) + high_half(u);
        squares += low * low + high * high;
    }
    squares = block_sum(squares);
    if (threadIdx.x == 0) norms[blockIdx.x] = sqrtf(squares);
}
EXPORT_KERNEL(row_norms)
