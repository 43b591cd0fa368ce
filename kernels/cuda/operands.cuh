// The matrices of a product, in bf16, NF4 or MXFP4, and their way into shared memory, a tile at a time.
//
// There a tile lies as rows of 16-byte chunks, the chunks of a row in an order that its number gives, so that neither 8
// chunks of a row nor 8 rows at a chunk meet in a bank. bf16 is copied (`cp.async`); packed weights come by way of
// registers, where they become bf16: the product of value and scale, rounded once.
#pragma once
#include "common.cuh"

namespace gemm {

// How much of K a stage holds.
constexpr unsigned DEPTH = 32;
constexpr unsigned CHUNK = 8;
// How many stages before they are read packed weights are asked for: a stage's products take less time than memory does.
constexpr unsigned AHEAD = 4;

// Whether K lies within the rows of a matrix, (M,K) or (N,K), or across them, (K,M) or (K,N).
enum class K { WITHIN_ROWS, ACROSS_ROWS };

// Values from one row of bf16 to the next.
__device__ __forceinline__ unsigned row_width(unsigned width) { return (width + CHUNK - 1) / CHUNK * CHUNK; }

struct Range {
    unsigned begin, end;
};

// A matrix of bf16; row i is the `index[i]`-th if there is an index.
struct Bf16Matrix {
    static constexpr bool IS_PACKED = false;
    const bf16 *values;
    // Values from one row to the next, a multiple of 8.
    unsigned width;
    unsigned first_row = 0;
    const unsigned *index = nullptr;

    __device__ __forceinline__ const bf16 *row(unsigned i) const {
        return values + (size_t)(first_row + (index ? index[i] : i)) * width;
    }
};

// The largest magnitudes of NF4's blocks of 64 values: `plain[i]`, or `map[codes[i]] · plain[i / 256] + offset`. Without
// codes the offset is 0.
struct Nf4Scales {
    const float *plain;
    const uint8_t *codes;
    const float *map;
    float offset;

    // What is read ahead of the time when the scale is needed.
    struct Raw {
        float plain;
        unsigned code;
    };

    __device__ __forceinline__ Raw fetch(unsigned block) const {
        return {plain[codes ? block / 256 : block], codes ? codes[block] : 0u};
    }

    __device__ __forceinline__ float scale(Raw raw) const {
        const float share = codes ? map[raw.code] : 1.0f;
        return __fadd_rn(__fmul_rn(share, raw.plain), offset);
    }
};

// NF4: codes of 4 bits along the rows, the first of a byte in its high half. Blocks run through the rows' ends.
struct Nf4Matrix {
    static constexpr bool IS_PACKED = true;
    const uint8_t *codes;
    Nf4Scales scales;
    // A multiple of 8.
    unsigned width;
    unsigned first_row = 0;

    using Raw = Nf4Scales::Raw;
    static __device__ __forceinline__ float value(unsigned code) { return nf4_value(code); }
    // Where in 8 codes the i-th begins.
    static __device__ __forceinline__ constexpr unsigned shift(unsigned i) { return 8 * (i / 2) + (i % 2 ? 0 : 4); }
    __device__ __forceinline__ Raw fetch_scale(size_t at) const { return scales.fetch((unsigned)(at / 64)); }
    __device__ __forceinline__ float scale(Raw raw) const { return scales.scale(raw); }
};

// MXFP4: codes along the rows, the first of a byte in its low half, an exponent a block of 32.
struct Mxfp4Matrix {
    static constexpr bool IS_PACKED = true;
    const uint8_t *codes;
    const uint8_t *exponents;
    // A multiple of 32.
    unsigned width;
    unsigned first_row = 0;

    using Raw = unsigned;
    static __device__ __forceinline__ float value(unsigned code) { return mxfp4_value(code); }
    static __device__ __forceinline__ constexpr unsigned shift(unsigned i) { return 4 * i; }
    __device__ __forceinline__ Raw fetch_scale(size_t at) const { return exponents[at / 32]; }
    __device__ __forceinline__ float scale(Raw raw) const { return mxfp4_scale(raw); }
};

// ---- Stages ----

// Where a chunk of a row of WIDTH values lies, in values.
template <unsigned WIDTH> __device__ __forceinline__ unsigned place(unsigned row, unsigned chunk) {
    static_assert(WIDTH == 32 || WIDTH % 64 == 0, "the order is made for these");
    return row * WIDTH + (chunk ^ (WIDTH == 32 ? row / 2 % 4 : row % 8)) * CHUNK;
}

// A thread's share of copying a bf16 matrix, stage after stage along K. Rows and columns beyond the edge of C are copies of
// others, as nobody writes what becomes of them; beyond K are zeros.
template <unsigned ROWS, unsigned WIDTH, unsigned THREADS, K SIDE> struct Copier {
    static constexpr unsigned CHUNKS = WIDTH / CHUNK;
    // Rows from one of a thread's chunks to the next: whole turns of the chunks' order.
    static constexpr unsigned ROW_STEP = THREADS / CHUNKS;
    static constexpr unsigned COPIES = ROWS / ROW_STEP;
    static_assert(ROW_STEP % 8 == 0 && ROWS % ROW_STEP == 0, "every thread copies as much, with one order of chunks");

    Bf16Matrix from;
    // Of each chunk; along the rows without `k`.
    const bf16 *at[COPIES];
    // Where the first chunk begins along K, and where K ends.
    unsigned k, depth;
    unsigned column;

    // `edge` is what C's rows or columns have of the matrix, `first` where K begins.
    __device__ __forceinline__ void start(const Bf16Matrix &matrix, Range edge, unsigned first, unsigned end) {
        from = matrix;
        depth = end;
        const unsigned row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS * CHUNK;
        if (SIDE == K::WITHIN_ROWS) {
            k = first + chunk;
#pragma unroll
            for (unsigned i = 0; i < COPIES; i++) at[i] = from.row(min(edge.begin + row + i * ROW_STEP, edge.end - 1));
        } else {
            k = first + row;
            column = edge.begin + chunk < edge.end ? edge.begin + chunk : 0;
#pragma unroll
            for (unsigned i = 0; i < COPIES; i++) {
                at[i] = from.values + (size_t)(from.first_row + k + i * ROW_STEP) * from.width + column;
            }
        }
    }

    __device__ __forceinline__ void copy(bf16 *tile) {
        bf16 *const to = tile + place<WIDTH>(threadIdx.x / CHUNKS, threadIdx.x % CHUNKS);
#pragma unroll
        for (unsigned i = 0; i < COPIES; i++) {
            bf16 *const chunk = to + i * ROW_STEP * WIDTH;
            if (SIDE == K::WITHIN_ROWS) {
                copy_async(chunk, at[i] + k, k < depth);
                continue;
            }
            const unsigned row = k + i * ROW_STEP;
            if (from.index != nullptr) copy_async(chunk, from.row(min(row, depth - 1)) + column, row < depth);
            else copy_async(chunk, at[i], row < depth);
            at[i] += (size_t)DEPTH * from.width;
        }
        k += DEPTH;
    }
};

// A thread's share of a packed matrix, in registers between the reading and the writing of a stage. At the edges as above.
template <class MATRIX, unsigned ROWS, unsigned WIDTH, unsigned THREADS, K SIDE> struct Packed {
    // Words of 8 codes, side by side.
    static constexpr unsigned WORDS = ROWS * WIDTH / THREADS / 8;
    static_assert(WORDS == 2 || WORDS == 4, "a share is read at once");
    uint32_t codes[WORDS];
    typename MATRIX::Raw scales[WORDS];
    // That of the code which is the lane's number.
    const float value = MATRIX::value(lane_index() % 16);
    // The share's first value in the matrix, where it is along K and where K ends.
    size_t at;
    unsigned k, depth;
    // How much of the share is within the matrix, if K runs across the rows.
    unsigned width;
    // Shares begin at whole words of the widest kind and have one scale.
    bool is_aligned;

    // A warp has 32 rows at the same columns: so its writes meet in no bank.
    static __device__ __forceinline__ unsigned row() { return threadIdx.x % ROWS; }
    static __device__ __forceinline__ unsigned first_chunk() { return threadIdx.x / ROWS * WORDS; }

    __device__ __forceinline__ void start(const MATRIX &from, Range edge, unsigned first, unsigned end) {
        const unsigned chunk = first_chunk() * CHUNK;
        depth = end;
        unsigned column;
        size_t first_row = from.first_row;
        if (SIDE == K::WITHIN_ROWS) {
            first_row += min(edge.begin + row(), edge.end - 1);
            column = k = first + chunk;
        } else {
            k = first + row();
            first_row += k;
            column = edge.begin + chunk < edge.end ? edge.begin + chunk : 0;
            width = edge.end - column;
        }
        at = first_row * from.width + column;
        is_aligned = from.width % 32 == 0;
    }

    // Reads the next stage's.
    __device__ __forceinline__ void fetch(const MATRIX &from) {
        const unsigned left = k >= depth ? 0 : SIDE == K::WITHIN_ROWS ? depth - k : width;
        if (is_aligned && left >= 8 * WORDS) {
            if (WORDS == 4) {
                const uint4 words = *(const uint4 *)(from.codes + at / 2);
                codes[0] = words.x, codes[1] = words.y, codes[WORDS - 2] = words.z, codes[WORDS - 1] = words.w;
            } else {
                const uint2 words = *(const uint2 *)(from.codes + at / 2);
                codes[0] = words.x, codes[1] = words.y;
            }
            const typename MATRIX::Raw scale = from.fetch_scale(at);
#pragma unroll
            for (unsigned i = 0; i < WORDS; i++) scales[i] = scale;
            if (k + AHEAD * DEPTH < depth) prefetch(from.codes + (at + AHEAD * stride(from)) / 2);
        } else {
#pragma unroll
            for (unsigned i = 0; i < WORDS; i++) {
                // What these mean is finite, and either A is zero there or C has no such place.
                codes[i] = 0, scales[i] = typename MATRIX::Raw{};
                if (i * CHUNK >= left) continue;
                codes[i] = *(const uint32_t *)(from.codes + (at + i * CHUNK) / 2);
                scales[i] = from.fetch_scale(at + i * CHUNK);
            }
        }
        k += DEPTH;
        at += stride(from);
    }

    // Values from a stage's to the next one's.
    static __device__ __forceinline__ size_t stride(const MATRIX &from) {
        return SIDE == K::WITHIN_ROWS ? DEPTH : (size_t)DEPTH * from.width;
    }

    // The whole warp takes part: its lanes hold the values of the codes.
    __device__ __forceinline__ void write(bf16 *tile, const MATRIX &from) const {
#pragma unroll
        for (unsigned word = 0; word < WORDS; word++) {
            const float scale = from.scale(scales[word]);
            uint32_t pairs[4];
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                // Of a lane's number only the last 5 bits count, and the values are there twice.
                const float low = __shfl_sync(FULL_WARP, value, (int)(codes[word] >> MATRIX::shift(2 * i)));
                const float high = __shfl_sync(FULL_WARP, value, (int)(codes[word] >> MATRIX::shift(2 * i + 1)));
                pairs[i] = pack_bf16(low * scale, high * scale);
            }
            *(uint4 *)(tile + place<WIDTH>(row(), first_chunk() + word)) =
                make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        }
    }
};

// Nothing, for matrices that are copied as they are.
template <unsigned ROWS, unsigned WIDTH, unsigned THREADS, K SIDE>
struct Packed<Bf16Matrix, ROWS, WIDTH, THREADS, SIDE> {};

} // namespace gemm
