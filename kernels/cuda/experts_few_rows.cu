// Routed experts for a few places (decoding): each place's rows of its expert's matrices, read once, at the memory's pace.
//
// x (T, C) -> inner (P, I) = activation(x Wᵀ + b), W (E · 2I, C), gate and up in turns, b (E, 2I); then inner -> y (T, C),
// the sum over a token's K places of weight · (inner Dᵀ + c), D (E · C, I), c (E, C). Matrices are bf16, NF4 or MXFP4;
// `added` (P, 2I or C) is LoRA's part, or null. Biases and weights f32, rows bf16, sums f32. Twin: `experts.rs`.
//
// A warp has 16 rows of a matrix as the left operand of tensor cores, of which a quad of lanes reads two side by side, 8 or
// 16 bytes a lane. Which columns a product takes as its K is free, so each lane's are what it has read, and x lies in shared
// memory in that order; all 8 columns of the right operand are x.
#include "common.cuh"

namespace {

// What a lane has read of its two rows at one of a quad's steps, and how that becomes operands. STEP: columns of a step.
// x_words: 8 columns of x, in the order that `operands` has them.

struct Bf16Rows {
    static constexpr unsigned STEP = 32, UNROLL = 4;
    static constexpr float UNIT = 1.0f;
    const bf16 *values;
    unsigned width;

    struct Part {
        uint4 words[2];
    };

    __device__ __forceinline__ void fetch(Part &part, const size_t (&starts)[2], unsigned step, bool is_there) const {
        const unsigned column = step * STEP + lane_index() % 4 * 8;
        is_there = is_there && column < width;
#pragma unroll
        for (unsigned i = 0; i < 2; i++) {
            part.words[i] = is_there ? __ldg((const uint4 *)(values + starts[i] + column)) : make_uint4(0, 0, 0, 0);
        }
    }

    static __device__ __forceinline__ uint4 x_words(uint4 x) { return x; }

    __device__ __forceinline__ void multiply(const Part &part, const uint4 *x, float (&sums)[4]) const {
        const uint4 own = x[lane_index() % 4];
        const auto &[low, high] = part.words;
        mma_bf16(sums, {low.x, high.x, low.y, high.y}, {own.x, own.y});
        mma_bf16(sums, {low.z, high.z, low.w, high.w}, {own.z, own.w});
    }
};

// A lane has a block of 32 of each row. The scale goes onto the codes, as far as bf16 holds both: exact for 2^-63 .. 2^64.
struct Mxfp4Rows {
    static constexpr unsigned STEP = 128, UNROLL = 2;
    // What makes sums of products with `value` whole.
    static constexpr float UNIT = 9223372036854775808.0f;
    const uint8_t *codes;
    const uint8_t *exponents;
    unsigned width;

    struct Part {
        uint4 words[2];
        unsigned exponents[2];
    };

    __device__ __forceinline__ void fetch(Part &part, const size_t (&starts)[2], unsigned step, bool is_there) const {
        const unsigned block = step * 4 + lane_index() % 4;
        is_there = is_there && block < width / 32;
#pragma unroll
        for (unsigned i = 0; i < 2; i++) {
            const size_t at = starts[i] / 32 + block;
            part.words[i] = is_there ? __ldg((const uint4 *)codes + at) : make_uint4(0, 0, 0, 0);
            part.exponents[i] = is_there ? __ldg(exponents + at) : 0;
        }
    }

    // Columns 0, 4, 1, 5, 2, 6, 3, 7.
    static __device__ __forceinline__ uint4 x_words(uint4 x) {
        return make_uint4(choose_bytes(x.x, x.z, 0x5410), choose_bytes(x.x, x.z, 0x7632), choose_bytes(x.y, x.w, 0x5410),
                          choose_bytes(x.y, x.w, 0x7632));
    }

    // Of 8 codes the i-th and the one 4 behind it, times 2^-63: sign, exponent and mantissa taken as bf16's mean 2^-126 times
    // the code's value, also where that has exponent 0, and the scale is 2^(s - 64).
    template <unsigned I> static __device__ __forceinline__ uint32_t values(uint32_t codes, uint32_t scale) {
        const uint32_t signs = codes << (12 - 4 * I) & 0x80008000u;
        const uint32_t shifted = I < 2 ? codes << (I < 2 ? 6 - 4 * I : 0) : codes >> (I < 2 ? 0 : 4 * I - 6);
        return multiply_bf16(signs | (shifted & 0x01c001c0u), scale);
    }

    __device__ __forceinline__ void multiply(const Part &part, const uint4 *x, float (&sums)[4]) const {
        const uint32_t low[4] = {part.words[0].x, part.words[0].y, part.words[0].z, part.words[0].w};
        const uint32_t high[4] = {part.words[1].x, part.words[1].y, part.words[1].z, part.words[1].w};
        const uint32_t low_scale = (min(part.exponents[0] + 63, 254u) << 7) * 0x10001u;
        const uint32_t high_scale = (min(part.exponents[1] + 63, 254u) << 7) * 0x10001u;
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            const uint4 own = x[4 * i + lane_index() % 4];
            mma_bf16(sums,
                     {values<0>(low[i], low_scale), values<0>(high[i], high_scale), values<1>(low[i], low_scale),
                      values<1>(high[i], high_scale)},
                     {own.x, own.y});
            mma_bf16(sums,
                     {values<2>(low[i], low_scale), values<2>(high[i], high_scale), values<3>(low[i], low_scale),
                      values<3>(high[i], high_scale)},
                     {own.z, own.w});
        }
    }
};

// A quad has a block of 64 of each row, so that its scale goes onto the sums.
struct Nf4Rows {
    static constexpr unsigned STEP = 64, UNROLL = 4;
    static constexpr float UNIT = 1.0f;
    const uint8_t *codes;
    const float *scales;
    unsigned width;

    struct Part {
        uint2 words[2];
        float scales[2];
    };

    __device__ __forceinline__ void fetch(Part &part, const size_t (&starts)[2], unsigned step, bool is_there) const {
#pragma unroll
        for (unsigned i = 0; i < 2; i++) {
            const size_t block = starts[i] / 64 + step;
            part.words[i] = is_there ? __ldg((const uint2 *)codes + block * 4 + lane_index() % 4) : make_uint2(0, 0);
            part.scales[i] = is_there ? __ldg(scales + block) : 0.0f;
        }
    }

    // Columns 1, 0, 3, 2, 5, 4, 7, 6.
    static __device__ __forceinline__ uint4 x_words(uint4 x) {
        return make_uint4(choose_bytes(x.x, 0, 0x1032), choose_bytes(x.y, 0, 0x1032), choose_bytes(x.z, 0, 0x1032),
                          choose_bytes(x.w, 0, 0x1032));
    }

    // Codes 4 i .. 4 i + 3 of 8 by their nibbles' order, as shares of the scale in bf16: its upper and its lower bytes are
    // looked up among those of the codes below 8 and of the others.
    template <unsigned I> static __device__ __forceinline__ uint2 values(uint32_t codes) {
        const uint32_t choice = codes >> 16 * I & 0x7777;
        const uint32_t is_upper = choose_bytes(codes << 4, codes, I == 0 ? 0xd9c8 : 0xfbea);
        const auto look_up = [=](uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
            return (choose_bytes(c, d, choice) & is_upper) | (choose_bytes(a, b, choice) & ~is_upper);
        };
        const uint32_t lower_bytes = look_up(0xca063280u, 0x00ba3d92u, 0xad7c25a3u, 0x803910e2u);
        const uint32_t upper_bytes = look_up(0xbebfbfbfu, 0x00bdbebeu, 0x3e3e3e3du, 0x3f3f3f3eu);
        return make_uint2(choose_bytes(lower_bytes, upper_bytes, 0x5140), choose_bytes(lower_bytes, upper_bytes, 0x7362));
    }

    __device__ __forceinline__ void multiply(const Part &part, const uint4 *x, float (&sums)[4]) const {
        const uint32_t low[2] = {part.words[0].x, part.words[0].y}, high[2] = {part.words[1].x, part.words[1].y};
        float own_sums[4] = {};
#pragma unroll
        for (unsigned i = 0; i < 2; i++) {
            const uint4 own = x[4 * i + lane_index() % 4];
            const uint2 low_first = values<0>(low[i]), low_last = values<1>(low[i]);
            const uint2 high_first = values<0>(high[i]), high_last = values<1>(high[i]);
            mma_bf16(own_sums, {low_first.x, high_first.x, low_first.y, high_first.y}, {own.x, own.y});
            mma_bf16(own_sums, {low_last.x, high_last.x, low_last.y, high_last.y}, {own.z, own.w});
        }
        sums[0] += part.scales[0] * own_sums[0];
        sums[2] += part.scales[1] * own_sums[2];
    }
};

// Puts x (width) where `multiply` finds it, zeros behind it to a whole step; the block's threads share in it.
template <class ROWS> __device__ __forceinline__ void place_x(uint4 *placed, const bf16 *x, unsigned width) {
    constexpr unsigned SHARE = ROWS::STEP / 4;
    const unsigned steps = (width + ROWS::STEP - 1) / ROWS::STEP;
    for (unsigned i = threadIdx.x; i < steps * ROWS::STEP / 8; i += blockDim.x) {
        const unsigned column = i * 8, step = column / ROWS::STEP, lane = column % ROWS::STEP / SHARE;
        const unsigned chunk = column % SHARE / 8;
        const uint4 words = column < width ? __ldg((const uint4 *)(x + column)) : make_uint4(0, 0, 0, 0);
        placed[(step * (SHARE / 8) + chunk) * 4 + lane] = ROWS::x_words(words);
    }
}

// The products of 16 rows from `first_row` on (up to `end_row`, behind which the last stands for them) with x, over the steps
// `part`, `part + parts` ..; a warp does it. UNROLL reads are always under way, the first of them before x is there.
template <class ROWS> struct Product {
    const ROWS matrix;
    const unsigned parts, steps;
    unsigned first = 0;
    // Of the lane's rows, in values.
    size_t starts[2] = {};
    typename ROWS::Part read[ROWS::UNROLL];

    __device__ __forceinline__ Product(ROWS matrix, unsigned parts)
        : matrix(matrix), parts(parts), steps((matrix.width + ROWS::STEP - 1) / ROWS::STEP) {}

    __device__ __forceinline__ void begin(size_t first_row, size_t end_row, unsigned part) {
        const size_t row = first_row + lane_index() / 4;
        starts[0] = min(row, end_row - 1) * matrix.width, starts[1] = min(row + 8, end_row - 1) * matrix.width;
        first = part;
#pragma unroll
        for (unsigned i = 0; i < ROWS::UNROLL; i++) fetch(i, first + i * parts);
    }

    __device__ __forceinline__ void fetch(unsigned i, unsigned step) { matrix.fetch(read[i], starts, step, step < steps); }

    // Lanes 4 g write rows g and g + 8 of `sums` (16).
    __device__ __forceinline__ void finish(const uint4 *x, float *sums) {
        float own[4] = {};
        for (unsigned step = first; step < steps; step += ROWS::UNROLL * parts) {
#pragma unroll
            for (unsigned i = 0; i < ROWS::UNROLL; i++) {
                const unsigned now = step + i * parts;
                // The same for all lanes.
                if (now < steps) matrix.multiply(read[i], x + now * (ROWS::STEP / 8), own);
                fetch(i, now + ROWS::UNROLL * parts);
            }
        }
        if (lane_index() % 4 == 0) {
            sums[lane_index() / 4] = own[0] * ROWS::UNIT;
            sums[lane_index() / 4 + 8] = own[2] * ROWS::UNIT;
        }
    }
};

constexpr unsigned ROWS_A_WARP = 16, TILES = 2, PARTS = 4;

// blockIdx: 32 of the 2I rows, a place. 8 warps: two tiles of 16 rows, each in four parts of the columns.
template <class ROWS>
__device__ __forceinline__ void gate_up(const bf16 *x, const ROWS &matrix, const float *bias, const float *added,
                                        const uint32_t *experts, bf16 *inner, unsigned num_rows, unsigned k, float alpha,
                                        float limit, float offset) {
    SHARED_MEMORY(shared);
    __shared__ float sums[PARTS][TILES * ROWS_A_WARP];
    const unsigned place = blockIdx.y, first = blockIdx.x * TILES * ROWS_A_WARP, expert = experts[place];
    const unsigned tile = warp_index() / PARTS, part = warp_index() % PARTS;
    const size_t start = (size_t)expert * num_rows;
    uint4 *const placed = (uint4 *)shared;
    Product<ROWS> product(matrix, PARTS);
    product.begin(start + first + tile * ROWS_A_WARP, start + num_rows, part);
    place_x<ROWS>(placed, x + (size_t)(place / k) * matrix.width, matrix.width);
    __syncthreads();
    product.finish(placed, &sums[part][tile * ROWS_A_WARP]);
    __syncthreads();
    const unsigned row = 2 * threadIdx.x;
    if (row >= TILES * ROWS_A_WARP || first + row >= num_rows) return;
    float values[2];
#pragma unroll
    for (unsigned i = 0; i < 2; i++) {
        values[i] = bias[start + first + row + i];
        if (added) values[i] += added[(size_t)place * num_rows + first + row + i];
#pragma unroll
        for (unsigned p = 0; p < PARTS; p++) values[i] += sums[p][row + i];
    }
    const float gate = fminf(values[0], limit), up = fminf(fmaxf(values[1], -limit), limit);
    inner[((size_t)place * num_rows + first + row) / 2] = to_bf16((up + offset) * gate * sigmoid(alpha * gate));
}

constexpr unsigned WARPS = 16, MAX_PLACES = 32;

// blockIdx: 16 of the C rows, a token. 16 warps, each of the K places in as many parts of the columns as there are warps for.
template <class ROWS>
__device__ __forceinline__ void down(const bf16 *inner, const ROWS &matrix, const float *bias, const float *added,
                                     const float *weights, const uint32_t *experts, bf16 *y, unsigned num_rows,
                                     unsigned k) {
    SHARED_MEMORY(shared);
    __shared__ float sums[MAX_PLACES][ROWS_A_WARP];
    const unsigned token = blockIdx.y, first = blockIdx.x * ROWS_A_WARP;
    const unsigned placed_size = (matrix.width + ROWS::STEP - 1) / ROWS::STEP * ROWS::STEP / 8;
    uint4 *const placed = (uint4 *)shared;
    const unsigned parts = max(WARPS / k, 1u);
    Product<ROWS> product(matrix, parts);
    const auto begin = [&](unsigned task) {
        const size_t start = (size_t)experts[token * k + task / parts] * num_rows;
        product.begin(start + first, start + num_rows, task % parts);
    };
    unsigned task = warp_index();
    if (task < k * parts) begin(task);
    for (unsigned i = 0; i < k; i++) {
        place_x<ROWS>(placed + i * placed_size, inner + (size_t)(token * k + i) * matrix.width, matrix.width);
    }
    __syncthreads();
    while (task < k * parts) {
        product.finish(placed + task / parts * placed_size, sums[task]);
        task += WARPS;
        if (task < k * parts) begin(task);
    }
    __syncthreads();
    const unsigned row = threadIdx.x;
    if (row >= ROWS_A_WARP || first + row >= num_rows) return;
    float total = 0.0f;
    for (unsigned i = 0; i < k; i++) {
        const unsigned place = token * k + i;
        float value = bias[(size_t)experts[place] * num_rows + first + row];
        if (added) value += added[(size_t)place * num_rows + first + row];
        for (unsigned part = 0; part < parts; part++) value += sums[i * parts + part][row];
        total += weights[place] * value;
    }
    y[(size_t)token * num_rows + first + row] = to_bf16(total);
}

} // namespace

// A matrix' parts in brackets: as parameters, and by their names.
#define FEW_ROWS(format, ROWS, PARAMETERS, VALUES)                                                                     \
    KERNEL(256, experts_gate_up_##format)                                                                              \
    (const bf16 *x, LIST PARAMETERS, const float *bias, const float *added, const uint32_t *experts, bf16 *inner,      \
     unsigned num_rows, unsigned width, unsigned k, float alpha, float limit, float offset) {                          \
        gate_up(x, ROWS{LIST VALUES, width}, bias, added, experts, inner, num_rows, k, alpha, limit, offset);          \
    }                                                                                                                  \
    KERNEL(512, experts_down_##format)                                                                                 \
    (const bf16 *inner, LIST PARAMETERS, const float *bias, const float *added, const float *weights,                  \
     const uint32_t *experts, bf16 *y, unsigned num_rows, unsigned width, unsigned k) {                                \
        down(inner, ROWS{LIST VALUES, width}, bias, added, weights, experts, y, num_rows, k);                          \
    }

#define LIST(...) __VA_ARGS__
FEW_ROWS(bf16, Bf16Rows, (const bf16 *values), (values))
FEW_ROWS(mxfp4, Mxfp4Rows, (const uint8_t *codes, const uint8_t *exponents), (codes, exponents))
FEW_ROWS(nf4, Nf4Rows, (const uint8_t *codes, const float *scales), (codes, scales))

EXPORT_KERNEL(experts_gate_up_bf16)
EXPORT_KERNEL(experts_down_bf16)
EXPORT_KERNEL(experts_gate_up_mxfp4)
EXPORT_KERNEL(experts_down_mxfp4)
EXPORT_KERNEL(experts_gate_up_nf4)
EXPORT_KERNEL(experts_down_nf4)
