// Products y = scale · (x Wᵀ + x2 W2ᵀ) + bias of a few rows x, where reading W is all the work: decoding.
//
// x (M,K) bf16, W (N,K) bf16 or NF4 (K a multiple of 64), y (M,N) bf16 or f32; the second pair is bf16. Rows of bf16 begin
// at multiples of 8 values. Twin: `FrozenLinear`.
//
// A block has 16 rows of W, which its 8 warps share along K, and 8 rows of x; the blocks of the other rows of x are next to
// it. Tensor cores take the rows of W as their 16 and those of x as their 8. What k means to them is free, as long as both
// sides agree: so a lane gives them side by side what it has read side by side. NF4's values go in as bf16, and a block's
// sum is multiplied with its scale in f32.
#include "gemm.cuh"

using namespace gemm;

namespace {

constexpr unsigned THREADS = 256;
constexpr unsigned WARPS = THREADS / 32;
constexpr unsigned OUTPUTS = 16, ROWS = 8;
// Reads under way at a time.
constexpr unsigned AHEAD = 4;

// The values of every byte of NF4, for each lane its own so that they never meet in a bank; then the warps' sums.
constexpr unsigned TABLE_BYTES = 256 * 32 * sizeof(uint32_t);

// A warp's part of y: outputs lane / 4 and 8 further, rows 2 (lane % 4) and the next, as `mma_bf16` has them.
struct Part {
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    // Two rows of W and the one of x whose values the lane gives; beyond the last the last, which nobody writes.
    unsigned outputs[2], row;

    __device__ __forceinline__ Part(Range all_outputs, Range rows) : row(min(rows.begin + lane_index() / 4, rows.end - 1)) {
        const unsigned first = all_outputs.begin + lane_index() / 4, last = all_outputs.end - 1;
        outputs[0] = min(first, last), outputs[1] = min(first + 8, last);
    }
};

// The rows of W and of x where the block's begin, and where all end.
__device__ __forceinline__ Range block_outputs(unsigned num_outputs, unsigned num_rows) {
    return {blockIdx.x / ((num_rows + ROWS - 1) / ROWS) * OUTPUTS, num_outputs};
}
__device__ __forceinline__ Range block_rows(unsigned num_rows) {
    return {blockIdx.x % ((num_rows + ROWS - 1) / ROWS) * ROWS, num_rows};
}

// The units that this warp has of so many.
__device__ __forceinline__ Range share(unsigned num_units) {
    const unsigned a_warp = (num_units + WARPS - 1) / WARPS, begin = min(warp_index() * a_warp, num_units);
    return {begin, min(begin + a_warp, num_units)};
}

// Keeps the compiler from moving reads to where they are needed: no read passes a barrier, and none is waited for here.
__device__ __forceinline__ void keep_ahead() { __syncwarp(); }

// Adds x Wᵀ for a W of bf16; a unit is 32 values.
__device__ __forceinline__ void add(Part &part, const bf16 *x, const bf16 *w, unsigned depth) {
    const Range units = share((depth + 31) / 32);
    const uint4 zero = make_uint4(0, 0, 0, 0);
    const unsigned width = row_width(depth);
    const bf16 *const rows[3] = {w + (size_t)part.outputs[0] * width, w + (size_t)part.outputs[1] * width,
                                 x + (size_t)part.row * width};
    for (unsigned unit = units.begin; unit < units.end; unit += AHEAD) {
        uint4 values[AHEAD][3];
        bool is_there[AHEAD];
#pragma unroll
        for (unsigned i = 0; i < AHEAD; i++) {
            const unsigned k = 32 * (unit + i) + lane_index() % 4 * 8;
            // Nothing is read under a condition, so that all reads are under way at once.
            is_there[i] = unit + i < units.end && k < depth;
#pragma unroll
            for (unsigned j = 0; j < 3; j++) values[i][j] = *(const uint4 *)(rows[j] + (is_there[i] ? k : 0));
        }
        keep_ahead();
#pragma unroll
        for (unsigned i = 0; i < AHEAD; i++) {
            const uint4 first = values[i][0], second = values[i][1], input = is_there[i] ? values[i][2] : zero;
            mma_bf16(part.sums, {first.x, second.x, first.y, second.y}, {input.x, input.y});
            mma_bf16(part.sums, {first.z, second.z, first.w, second.w}, {input.z, input.w});
        }
    }
}

// The values of all bytes, the first in the lower half.
__device__ __forceinline__ void fill_table(uint32_t *table) {
    const unsigned byte = threadIdx.x;
    const uint32_t own = pack_bf16(nf4_value(byte >> 4), nf4_value(byte & 15));
#pragma unroll
    for (unsigned i = 0; i < 32; i++) {
        table[(warp_index() * 32 + i) * 32 + lane_index()] = __shfl_sync(FULL_WARP, own, i);
    }
    __syncthreads();
}

// The pair of values of byte I of a word. A byte's row of the table is 128 bytes long: the address is a product of bytes.
template <unsigned I> __device__ __forceinline__ uint32_t pair(const uint8_t *table, uint32_t word) {
    return *(const uint32_t *)(table + __dp4a(word, 128u << 8 * I, 4 * lane_index()));
}

// Adds x Wᵀ for a W in NF4; a unit is a block of 64 values.
__device__ __forceinline__ void add(Part &part, const bf16 *x, const Nf4Matrix &w, const uint8_t *table) {
    const unsigned row_units = w.width / 64, quarter = lane_index() % 4;
    const Range units = share(row_units);
    const uint4 zero = make_uint4(0, 0, 0, 0);
    // A lane's 16 values of a unit.
    const uint8_t *codes[2];
    unsigned first_block[2];
#pragma unroll
    for (unsigned half = 0; half < 2; half++) {
        codes[half] = w.codes + (size_t)part.outputs[half] * w.width / 2 + 8 * quarter;
        first_block[half] = part.outputs[half] * row_units;
    }
    const bf16 *const inputs = x + (size_t)part.row * w.width + 16 * quarter;
    static_assert(AHEAD == 4, "a lane reads the scales of one unit for its three neighbours");
    for (unsigned unit = units.begin; unit < units.end; unit += AHEAD) {
        uint2 words[AHEAD][2];
        uint4 input[AHEAD][2];
        Nf4Matrix::Raw raw[2];
#pragma unroll
        for (unsigned half = 0; half < 2; half++) {
            raw[half] = w.scales.fetch(first_block[half] + min(unit + quarter, units.end - 1));
        }
#pragma unroll
        for (unsigned i = 0; i < AHEAD; i++) {
            const unsigned at = min(unit + i, units.end - 1);
#pragma unroll
            for (unsigned half = 0; half < 2; half++) {
                words[i][half] = *(const uint2 *)(codes[half] + 32 * at);
                input[i][half] = *(const uint4 *)(inputs + 64 * at + 8 * half);
            }
        }
        keep_ahead();
        const float scales[2] = {w.scales.scale(raw[0]), w.scales.scale(raw[1])};
#pragma unroll
        for (unsigned i = 0; i < AHEAD; i++) {
            float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
            for (unsigned half = 0; half < 2; half++) {
                const uint32_t first = half ? words[i][0].y : words[i][0].x, second = half ? words[i][1].y : words[i][1].x;
                // Behind the last unit x is zero.
                const uint4 values = unit + i < units.end ? input[i][half] : zero;
                mma_bf16(sums, {pair<0>(table, first), pair<0>(table, second), pair<1>(table, first), pair<1>(table, second)},
                         {values.x, values.y});
                mma_bf16(sums, {pair<2>(table, first), pair<2>(table, second), pair<3>(table, first), pair<3>(table, second)},
                         {values.z, values.w});
            }
            const unsigned lane = lane_index() / 4 * 4 + i;
            const float low = __shfl_sync(FULL_WARP, scales[0], lane), high = __shfl_sync(FULL_WARP, scales[1], lane);
            part.sums[0] += low * sums[0], part.sums[1] += low * sums[1];
            part.sums[2] += high * sums[2], part.sums[3] += high * sums[3];
        }
    }
}

// Adds the warps' parts, in their order, and writes them.
__device__ __forceinline__ void write(const Part &part, float *shared, const Output &output, Range outputs, Range rows) {
    const unsigned group = lane_index() / 4, pair = lane_index() % 4;
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        shared[(warp_index() * ROWS + 2 * pair + i % 2) * OUTPUTS + group + i / 2 * 8] = part.sums[i];
    }
    __syncthreads();
    if (threadIdx.x >= ROWS * OUTPUTS) return;
    const unsigned row = rows.begin + threadIdx.x / OUTPUTS, column = outputs.begin + threadIdx.x % OUTPUTS;
    if (row >= rows.end || column >= outputs.end) return;
    float sum = 0.0f;
    for (unsigned warp = 0; warp < WARPS; warp++) sum += shared[warp * ROWS * OUTPUTS + threadIdx.x];
    output.write_one(sum, row, column);
}

} // namespace

KERNEL(THREADS, few_rows)
(const bf16 *x, const bf16 *w, const bf16 *more_x, const bf16 *more_w, const float *bias, void *y, unsigned num_rows,
 unsigned num_outputs, unsigned depth, unsigned more_depth, float scale, unsigned flags) {
    __shared__ float sums[WARPS * ROWS * OUTPUTS];
    const Range outputs = block_outputs(num_outputs, num_rows), rows = block_rows(num_rows);
    Part part(outputs, rows);
    add(part, x, w, depth);
    add(part, more_x, more_w, more_depth);
    write(part, sums, {y, num_outputs, (flags & IS_F32) != 0, (flags & ADDS) != 0, scale, bias}, outputs, rows);
}
EXPORT_KERNEL(few_rows)

KERNEL(THREADS, few_rows_nf4)
(const bf16 *x, const uint8_t *codes, const float *scales, const uint8_t *scale_codes, const float *scale_map,
 float scale_offset, const bf16 *more_x, const bf16 *more_w, const float *bias, void *y, unsigned num_rows,
 unsigned num_outputs, unsigned depth, unsigned more_depth, float scale, unsigned flags) {
    SHARED_MEMORY(shared);
    fill_table((uint32_t *)shared);
    const Nf4Matrix matrix = {codes, {scales, scale_codes, scale_map, scale_offset}, depth};
    const Range outputs = block_outputs(num_outputs, num_rows), rows = block_rows(num_rows);
    Part part(outputs, rows);
    add(part, x, matrix, shared);
    add(part, more_x, more_w, more_depth);
    write(part, (float *)(shared + TABLE_BYTES), {y, num_outputs, (flags & IS_F32) != 0, (flags & ADDS) != 0, scale, bias},
          outputs, rows);
}
EXPORT_KERNEL(few_rows_nf4)
