// Low-rank updates of routed experts: scale · B A with an expert's own A (E, R, C) and B (E, O, R), f32.
//
// Rows are sorted by expert, `offsets` (E + 1) says where an expert's begin. The products with A and scale · B are those of
// experts_products.cu, on copies in bf16: all updates of a matrix side by side, each one's rank filled up with zeros to a
// multiple of 16; Q is their sum. Twin: `expert_lora.rs`.
#include "common.cuh"

// A (E, R, C) and B (E, O, R) -> their part of A (E, Q, C) and scale · B (E, O, Q) in bf16: the ranks from `first` on, R of
// them filled up to `padded_rank`. A thread a value of the part.
KERNEL(256, expert_factors)
(const float *a, const float *b, bf16 *all_a, bf16 *all_b, unsigned num_experts, unsigned rank, unsigned padded_rank,
 unsigned first, unsigned total_rank, unsigned in_features, unsigned out_features, float scale) {
    const size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    const size_t a_size = (size_t)num_experts * padded_rank * in_features;
    const size_t b_size = (size_t)num_experts * out_features * padded_rank;
    if (at < a_size) {
        const size_t row = at / in_features, column = at % in_features, expert = row / padded_rank, r = row % padded_rank;
        const float value = r < rank ? a[(expert * rank + r) * in_features + column] : 0.0f;
        all_a[(expert * total_rank + first + r) * in_features + column] = to_bf16(value);
    } else if (at < a_size + b_size) {
        const size_t row = (at - a_size) / padded_rank, r = (at - a_size) % padded_rank;
        all_b[row * total_rank + first + r] = to_bf16(r < rank ? scale * b[row * rank + r] : 0.0f);
    }
}
EXPORT_KERNEL(expert_factors)

// For a few places, the two halves of an update without sorting: low (P, R) = x Aᵀ, of x (P / k, C), a block a value ..
KERNEL(128, expert_rows_low)
(const bf16 *x, const float *a, const uint32_t *experts, float *low, unsigned width, unsigned k) {
    const unsigned rank = gridDim.x, r = blockIdx.x, place = blockIdx.y;
    const uint4 *const row = (const uint4 *)(x + (size_t)(place / k) * width);
    const float4 *const factor = (const float4 *)(a + ((size_t)experts[place] * rank + r) * width);
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < width / 8; i += blockDim.x) {
        const uint4 values = row[i];
        const float4 lower = factor[2 * i], upper = factor[2 * i + 1];
        sum += low_half(values.x) * lower.x + high_half(values.x) * lower.y + low_half(values.y) * lower.z +
               high_half(values.y) * lower.w + low_half(values.z) * upper.x + high_half(values.z) * upper.y +
               low_half(values.w) * upper.z + high_half(values.w) * upper.w;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) low[place * rank + r] = sum;
}
EXPORT_KERNEL(expert_rows_low)

// .. and sums (P, O), or what is there, + scale · low Bᵀ, a thread a value.
KERNEL(256, expert_rows_high)
(const float *low, const float *b, const uint32_t *experts, float *sums, unsigned rank, unsigned width, float scale,
 unsigned adds) {
    const unsigned column = blockIdx.x * blockDim.x + threadIdx.x, place = blockIdx.y;
    if (column >= width) return;
    const float *const factor = b + ((size_t)experts[place] * width + column) * rank;
    float sum = 0.0f;
    for (unsigned r = 0; r < rank; r++) sum += low[place * rank + r] * factor[r];
    float *const to = sums + (size_t)place * width + column;
    *to = (adds ? *to : 0.0f) + scale * sum;
}
EXPORT_KERNEL(expert_rows_high)

namespace {

constexpr unsigned STEP = 32, COLUMNS = 64, MAX_RANK = 64, PAD = 8;

} // namespace

// The gradient of A or B: sum over an expert's rows of scale · weight · low ⊗ wide, with low (P, Q), of which it has the
// columns from `first` on, and wide (P, N), of which row i is the `index[i]`-th if there is an index; the weights are by
// place, or none. A (E, R, N), or as B (E, N, R). An expert without rows gets zeros. blockIdx: 64 columns of N, an expert,
// 64 of the rank. A warp has 16 columns.
KERNEL(128, expert_factor_gradient)
(const bf16 *low, const bf16 *wide, const uint32_t *index, const float *weights, const uint32_t *order,
 const uint32_t *offsets, float *gradient, unsigned rank, unsigned padded_rank, unsigned first, unsigned total_rank,
 unsigned width, float scale, unsigned is_b) {
    alignas(16) __shared__ bf16 lows[STEP * (MAX_RANK + PAD)];
    alignas(16) __shared__ bf16 wides[2][STEP * (COLUMNS + PAD)];
    const unsigned expert = blockIdx.y, first_column = blockIdx.x * COLUMNS, first_rank = blockIdx.z * MAX_RANK;
    const unsigned begin = offsets[expert], end = offsets[expert + 1];
    const unsigned ranks = min(padded_rank - first_rank, MAX_RANK);
    float sums[MAX_RANK / 16][2][4] = {};

    const auto fill = [&](unsigned start, unsigned stage) {
        for (unsigned i = threadIdx.x; i < STEP * COLUMNS / 8; i += 128) {
            const unsigned row = start + i / (COLUMNS / 8), column = first_column + i % (COLUMNS / 8) * 8;
            const bool is_there = row < end && column < width;
            const size_t source = is_there ? (size_t)(index ? index[row] : row) * width + column : 0;
            copy_async(&wides[stage][i / (COLUMNS / 8) * (COLUMNS + PAD) + i % (COLUMNS / 8) * 8], wide + source, is_there);
        }
        commit_copies();
    };

    fill(begin, 0);
    unsigned stage = 0;
    for (unsigned start = begin; start < end; start += STEP, stage ^= 1) {
        // 1. The next rows of wide on their way, these rows of low
        fill(start + STEP, stage ^ 1);
        for (unsigned i = threadIdx.x; i < STEP * ranks / 2; i += 128) {
            const unsigned row = start + i / (ranks / 2), r = i % (ranks / 2) * 2;
            uint32_t pair = 0;
            if (row < end) {
                const float weight = weights ? weights[order[row]] : 1.0f;
                pair = *(const uint32_t *)(low + (size_t)row * total_rank + first + first_rank + r);
                if (weights) pair = pack_bf16(weight * low_half(pair), weight * high_half(pair));
            }
            *(uint32_t *)(lows + i / (ranks / 2) * (MAX_RANK + PAD) + r) = pair;
        }
        wait_for_copies<1>();
        __syncthreads();
        // 2. Both matrices have the rows along the products' sums, so both are read as transposes.
        const unsigned matrix = lane_index() / 8, row = lane_index() % 8, column = warp_index() * 16;
#pragma unroll
        for (unsigned k = 0; k < STEP; k += 16) {
            uint32_t right[4];
            load_transposed_matrices(
                right, wides[stage] + (k + matrix % 2 * 8 + row) * (COLUMNS + PAD) + column + matrix / 2 * 8);
            const uint32_t halves[2][2] = {{right[0], right[1]}, {right[2], right[3]}};
#pragma unroll
            for (unsigned i = 0; i < MAX_RANK / 16; i++) {
                if (16 * i >= ranks) break;
                uint32_t left[4];
                const unsigned r = 16 * i + matrix % 2 * 8;
                load_transposed_matrices(left, lows + (k + matrix / 2 * 8 + row) * (MAX_RANK + PAD) + r);
                mma_bf16(sums[i][0], left, halves[0]);
                mma_bf16(sums[i][1], left, halves[1]);
            }
        }
        __syncthreads();
    }
    wait_for_copies<0>();

    // 3. A lane's sums: rows g and g + 8 at two columns each
#pragma unroll
    for (unsigned i = 0; i < MAX_RANK / 16; i++) {
#pragma unroll
        for (unsigned part = 0; part < 8; part++) {
            const unsigned r = first_rank + 16 * i + lane_index() / 4 + part % 4 / 2 * 8;
            const unsigned column = first_column + warp_index() * 16 + part / 4 * 8 + lane_index() % 4 * 2 + part % 2;
            if (r >= rank || column >= width) continue;
            const size_t a_at = ((size_t)expert * rank + r) * width + column;
            const size_t at = is_b ? ((size_t)expert * width + column) * rank + r : a_at;
            gradient[at] = scale * sums[i][part / 4][part % 4];
        }
    }
}
EXPORT_KERNEL(expert_factor_gradient)
