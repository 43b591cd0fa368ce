// Products y = scale · (x Wᵀ + x2 W2ᵀ) + bias of at most 8 rows x, where reading W is all the work: decoding.
//
// x (M,K) bf16, W (N,K) bf16 or NF4 (K a multiple of 64), y (M,N) bf16 or f32; the second pair is bf16, K a multiple of 8.
// A block has 16 rows of W, which its 8 warps share along K. Tensor cores take the rows of W as their 16 and those of x as
// their 8. What k means to them is free, as long as both sides agree: so a lane gives them side by side what it has read
// side by side. NF4's values go in as bf16, and a block's sum is multiplied with its scale in f32. Twin: `FrozenLinear`.
#include "gemm.cuh"

using namespace gemm;

namespace {

constexpr unsigned THREADS = 256;
constexpr unsigned WARPS = THREADS / 32;
constexpr unsigned OUTPUTS = 16, MAX_ROWS = 8;
// Reads under way at a time.
constexpr unsigned AHEAD = 4;

constexpr unsigned IS_F32 = 1, ADDS = 2;

// The values of every byte of NF4, for each lane its own so that they never meet in a bank; then the warps' sums.
constexpr unsigned TABLE_BYTES = 256 * 32 * sizeof(uint32_t);

// A warp's part of y: outputs lane / 4 and 8 further, rows 2 (lane % 4) and the next, as `mma_bf16` has them.
struct Part {
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    // Two rows of W and the one of x whose values the lane gives; beyond the last the last, which nobody writes.
    unsigned outputs[2], row;

    __device__ __forceinline__ Part(unsigned num_outputs, unsigned num_rows) : row(min(lane_index() / 4, num_rows - 1)) {
        const unsigned first = blockIdx.x * OUTPUTS + lane_index() / 4;
        outputs[0] = min(first, num_outputs - 1), outputs[1] = min(first + 8, num_outputs - 1);
    }
};

// The units that this warp has of so many.
__device__ __forceinline__ Range share(unsigned num_units) {
    const unsigned a_warp = (num_units + WARPS - 1) / WARPS, begin = min(warp_index() * a_warp, num_units);
    return {begin, min(begin + a_warp, num_units)};
}

// Adds x Wᵀ for a W of bf16; a unit is 32 values.
__device__ __forceinline__ void add(Part &part, const bf16 *x, const bf16 *w, unsigned depth) {
    const Range units = share((depth + 31) / 32);
    const uint4 zero = make_uint4(0, 0, 0, 0);
    for (unsigned unit = units.begin; unit < units.end; unit += AHEAD) {
        uint4 first[AHEAD], second[AHEAD], input[AHEAD];
#pragma unroll
        for (unsigned i = 0; i < AHEAD; i++) {
            unsigned k = 32 * (unit + i) + lane_index() % 4 * 8;
            // Nothing is read under a condition, so that all reads are under way at once.
            const bool is_there = unit + i < units.end && k < depth;
            k = is_there ? k : 0;
            first[i] = *(const uint4 *)(w + (size_t)part.outputs[0] * depth + k);
            second[i] = *(const uint4 *)(w + (size_t)part.outputs[1] * depth + k);
            const uint4 values = *(const uint4 *)(x + (size_t)part.row * depth + k);
            input[i] = is_there ? values : zero;
        }
#pragma unroll
        for (unsigned i = 0; i < AHEAD; i++) {
            mma_bf16(part.sums, {first[i].x, second[i].x, first[i].y, second[i].y}, {input[i].x, input[i].y});
            mma_bf16(part.sums, {first[i].z, second[i].z, first[i].w, second[i].w}, {input[i].z, input[i].w});
        }
    }
}

// The lane's column of the table of bytes' values, the first value in the lower half.
__device__ __forceinline__ const uint32_t *fill_table(uint32_t *table) {
    const unsigned byte = threadIdx.x;
    const uint32_t own = pack_bf16(nf4_value(byte >> 4), nf4_value(byte & 15));
#pragma unroll
    for (unsigned i = 0; i < 32; i++) {
        table[(warp_index() * 32 + i) * 32 + lane_index()] = __shfl_sync(FULL_WARP, own, i);
    }
    __syncthreads();
    return table + lane_index();
}

// The pair of values of byte i of a word.
__device__ __forceinline__ uint32_t pair(const uint32_t *table, uint32_t word, unsigned i) {
    return table[(word >> 8 * i & 255) * 32];
}

// Adds x Wᵀ for a W in NF4; a unit is a block of 64 values.
__device__ __forceinline__ void add(Part &part, const bf16 *x, const Nf4Matrix &w, const uint32_t *table) {
    const Range units = share(w.width / 64);
    const uint4 zero = make_uint4(0, 0, 0, 0);
    for (unsigned unit = units.begin; unit < units.end; unit += AHEAD) {
        uint2 codes[AHEAD][2];
        Nf4Matrix::Raw scales[AHEAD][2];
        uint4 input[AHEAD][2];
#pragma unroll
        for (unsigned i = 0; i < AHEAD; i++) {
            const bool is_there = unit + i < units.end;
            const unsigned block = is_there ? unit + i : unit, k = 64 * block + lane_index() % 4 * 16;
#pragma unroll
            for (unsigned half = 0; half < 2; half++) {
                const size_t start = (size_t)part.outputs[half] * w.width;
                codes[i][half] = *(const uint2 *)(w.codes + (start + k) / 2);
                scales[i][half] = w.scales.fetch(start / 64 + block);
                const uint4 values = *(const uint4 *)(x + (size_t)part.row * w.width + k + 8 * half);
                input[i][half] = is_there ? values : zero;
            }
        }
#pragma unroll
        for (unsigned i = 0; i < AHEAD; i++) {
            float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
            for (unsigned half = 0; half < 2; half++) {
                const uint32_t first = half ? codes[i][0].y : codes[i][0].x, second = half ? codes[i][1].y : codes[i][1].x;
                const uint4 values = input[i][half];
                mma_bf16(sums, {pair(table, first, 0), pair(table, second, 0), pair(table, first, 1), pair(table, second, 1)},
                         {values.x, values.y});
                mma_bf16(sums, {pair(table, first, 2), pair(table, second, 2), pair(table, first, 3), pair(table, second, 3)},
                         {values.z, values.w});
            }
            const float scale[2] = {w.scales.scale(scales[i][0]), w.scales.scale(scales[i][1])};
            part.sums[0] += scale[0] * sums[0], part.sums[1] += scale[0] * sums[1];
            part.sums[2] += scale[1] * sums[2], part.sums[3] += scale[1] * sums[3];
        }
    }
}

// Adds the warps' parts, in their order, and writes them.
__device__ __forceinline__ void write(const Part &part, float *shared, const Output &output, unsigned num_rows) {
    const unsigned group = lane_index() / 4, pair = lane_index() % 4;
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        shared[(warp_index() * MAX_ROWS + 2 * pair + i % 2) * OUTPUTS + group + i / 2 * 8] = part.sums[i];
    }
    __syncthreads();
    const unsigned row = threadIdx.x / OUTPUTS, column = blockIdx.x * OUTPUTS + threadIdx.x % OUTPUTS;
    if (row >= num_rows || column >= output.width) return;
    float sum = 0.0f;
    for (unsigned warp = 0; warp < WARPS; warp++) sum += shared[warp * MAX_ROWS * OUTPUTS + threadIdx.x];
    output.write_one(sum, row, column);
}

} // namespace

KERNEL(THREADS, few_rows)
(const bf16 *x, const bf16 *w, const bf16 *more_x, const bf16 *more_w, const float *bias, void *y, unsigned num_rows,
 unsigned num_outputs, unsigned depth, unsigned more_depth, float scale, unsigned flags) {
    __shared__ float sums[WARPS * MAX_ROWS * OUTPUTS];
    Part part(num_outputs, num_rows);
    add(part, x, w, depth);
    add(part, more_x, more_w, more_depth);
    write(part, sums, {y, num_outputs, (flags & IS_F32) != 0, (flags & ADDS) != 0, scale, bias}, num_rows);
}
EXPORT_KERNEL(few_rows)

KERNEL(THREADS, few_rows_nf4)
(const bf16 *x, const uint8_t *codes, const float *scales, const uint8_t *scale_codes, const float *scale_map,
 float scale_offset, const bf16 *more_x, const bf16 *more_w, const float *bias, void *y, unsigned num_rows,
 unsigned num_outputs, unsigned depth, unsigned more_depth, float scale, unsigned flags) {
    SHARED_MEMORY(shared);
    const uint32_t *table = fill_table((uint32_t *)shared);
    const Nf4Matrix matrix = {codes, {scales, scale_codes, scale_map, scale_offset}, depth};
    Part part(num_outputs, num_rows);
    add(part, x, matrix, table);
    add(part, more_x, more_w, more_depth);
    write(part, (float *)(shared + TABLE_BYTES), {y, num_outputs, (flags & IS_F32) != 0, (flags & ADDS) != 0, scale, bias},
          num_rows);
}
EXPORT_KERNEL(few_rows_nf4)
