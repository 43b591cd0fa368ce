// Rotary embedding by halves: in each head of D values, value i pairs with i + D/2 and is turned by its token's angle
// (arXiv 2104.09864). Backward is the turn the other way.
//
// x, y (T, H·D) bf16; cos, sin (positions, D/2) f32; positions (T). Twin: `rope.rs`.
#include "common.cuh"

// A block a token; `direction` is 1, or −1 to turn back.
KERNEL(256, rope)
(const bf16 *x, const float *cos, const float *sin, const unsigned *positions, bf16 *y, unsigned width, unsigned half_dim,
 float direction) {
    const size_t row = (size_t)blockIdx.x * width;
    const size_t angle = (size_t)positions[blockIdx.x] * half_dim;
    for (unsigned i = threadIdx.x; i < width / 2; i += blockDim.x) {
        const unsigned at = i % half_dim;
        const size_t low = row + 2 * (i - at) + at, high = low + half_dim;
        const float c = cos[angle + at], s = sin[angle + at] * direction;
        const float a = to_float(x[low]), b = to_float(x[high]);
        y[low] = to_bf16(a * c - b * s);
        y[high] = to_bf16(b * c + a * s);
    }
}
EXPORT_KERNEL(rope)
