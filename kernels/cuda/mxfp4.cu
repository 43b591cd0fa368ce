// MXFP4 (OCP Microscaling Formats 1.0) in bf16, which holds each of its values: 4-bit floats, the first of a byte in its low
// half, in blocks of 32 with a power of two each.
//
// codes (N, 16), exponents (N) with a bias of 127 -> values (N, 32). Twin: `mxfp4.rs`.
#include "common.cuh"

// A thread half a block.
KERNEL(256, mxfp4_dequantize)(const uint2 *codes, const uint8_t *exponents, uint4 *values, unsigned num_blocks) {
    const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at / 2 >= num_blocks) return;
    const float scale = mxfp4_scale(exponents[at / 2]);
    const uint2 both = codes[at];
    const uint32_t words[2] = {both.x, both.y};
#pragma unroll
    for (unsigned word = 0; word < 2; word++) {
        uint32_t pairs[4];
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            const unsigned byte = words[word] >> 8 * i;
            pairs[i] = pack_bf16(mxfp4_value(byte & 15) * scale, mxfp4_value(byte >> 4 & 15) * scale);
        }
        values[2 * (size_t)at + word] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
}
EXPORT_KERNEL(mxfp4_dequantize)
