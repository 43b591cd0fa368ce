// Matrices in NF4, blocks of 64 values with their largest magnitude (QLoRA, arXiv 2305.14314), from and to plain ones.
//
// Codes are 4 bits, the first of a byte in its high half. Twin: `nf4.rs`, to the bit (`dequantize_nf4` rounds to bf16).
#include "gemm.cuh"

using namespace gemm;

namespace {

constexpr unsigned BLOCK = 64;

__device__ __forceinline__ float larger(float a, float b) { return b > a || b != b ? b : a; }

// How many of the bounds between codes, halfway between their values, lie below.
__device__ __forceinline__ unsigned nearest_code(float value) {
    unsigned code = 0;
#pragma unroll
    for (unsigned i = 0; i < 15; i++) {
        const float bound = (float)(((double)nf4_value(i) + (double)nf4_value(i + 1)) / 2.0);
        code += value > bound ? 1 : 0;
    }
    return code;
}

// A warp a block of 64 values, a lane a byte of codes.
template <class VALUE>
__device__ __forceinline__ void quantize(const VALUE *values, uint8_t *codes, float *scales, unsigned num_blocks) {
    const unsigned block = blockIdx.x * (blockDim.x / 32) + warp_index();
    if (block >= num_blocks) return;
    const size_t at = (size_t)block * BLOCK + 2 * lane_index();
    const float first = to_float(values[at]), second = to_float(values[at + 1]);
    // What is not a number stays so.
    float scale = larger(larger(0.0f, fabsf(first)), fabsf(second));
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) scale = larger(scale, __shfl_xor_sync(FULL_WARP, scale, mask));
    const float inverse = 1.0f / fmaxf(scale, 1e-38f);
    codes[at / 2] = nearest_code(first * inverse) << 4 | nearest_code(second * inverse);
    if (lane_index() == 0) scales[block] = scale;
}

} // namespace

KERNEL(256, quantize_nf4)(const bf16 *values, uint8_t *codes, float *scales, unsigned num_blocks) {
    quantize(values, codes, scales, num_blocks);
}
EXPORT_KERNEL(quantize_nf4)

KERNEL(256, quantize_nf4_f32)(const float *values, uint8_t *codes, float *scales, unsigned num_blocks) {
    quantize(values, codes, scales, num_blocks);
}
EXPORT_KERNEL(quantize_nf4_f32)

// 8 values a thread and turn.
KERNEL(256, dequantize_nf4)
(const uint8_t *codes, const float *scales, const uint8_t *scale_codes, const float *scale_map, float scale_offset,
 bf16 *values, uint64_t num_words) {
    const Nf4Scales all = {scales, scale_codes, scale_map, scale_offset};
    const float value = nf4_value(lane_index() % 16);
    const uint64_t threads = (uint64_t)gridDim.x * blockDim.x;
    // Whole warps stay together: a lane beyond the end reads what is there and writes nothing.
    for (uint64_t first = (uint64_t)blockIdx.x * blockDim.x + warp_index() * 32; first < num_words; first += threads) {
        const uint64_t word = min(first + lane_index(), num_words - 1);
        const uint32_t packed = ((const uint32_t *)codes)[word];
        const float scale = all.scale(all.fetch(word * 8 / BLOCK));
        uint32_t pairs[4];
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            const float low = __shfl_sync(FULL_WARP, value, (int)(packed >> Nf4Matrix::shift(2 * i)));
            const float high = __shfl_sync(FULL_WARP, value, (int)(packed >> Nf4Matrix::shift(2 * i + 1)));
            pairs[i] = pack_bf16(low * scale, high * scale);
        }
        if (first + lane_index() < num_words) {
            *(uint4 *)(values + word * 8) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        }
    }
}
EXPORT_KERNEL(dequantize_nf4)
