// Products of matrices on tensor cores, a tile of C a block: C = scale · (A B + A2 B2) + bias.
//
// A is bf16, (M,K) or its transpose (K,M); B is (N,K) or its transpose (K,N), in bf16, NF4 or MXFP4; the second pair, which
// goes on along K with the same sums (LoRA's), is bf16 and laid out as the first. Sums are f32. Where K lies within a row it
// is a multiple of 8, and so is N or M where that does; every other size is free. What lies beyond an edge counts as zero.
//
// A kernel says what its block multiplies: `multiply` leaves the sums in registers, `Output::write` stores them. For groups
// of rows with matrices of their own (experts): the rows of A may be gathered by an index, `rows` bounds a group, and
// `first_row` says where B's part for it begins.
//
// On its way to the tensor cores a tile of A or B lies in shared memory as rows of 16-byte chunks, the chunks of a row in
// an order that its number gives, so that neither 8 chunks of a row nor 8 rows at a chunk meet in a bank. Three such stages:
// two are under way (`cp.async`; packed weights by way of registers) while one is multiplied.
#pragma once
#include "common.cuh"

namespace gemm {

// How much of K a stage holds.
constexpr unsigned DEPTH = 32;
constexpr unsigned STAGES = 3;
constexpr unsigned CHUNK = 8;

// The part of C that a block computes, and that of a warp within it.
template <unsigned ROWS_, unsigned COLUMNS_, unsigned WARP_ROWS_, unsigned WARP_COLUMNS_> struct Tile {
    static constexpr unsigned ROWS = ROWS_, COLUMNS = COLUMNS_;
    static constexpr unsigned WARP_ROWS = WARP_ROWS_, WARP_COLUMNS = WARP_COLUMNS_;
    static constexpr unsigned WARPS_ABREAST = COLUMNS / WARP_COLUMNS;
    static constexpr unsigned THREADS = 32 * (ROWS / WARP_ROWS) * WARPS_ABREAST;
    static constexpr unsigned STAGE_VALUES = (ROWS + COLUMNS) * DEPTH;
    // Dynamic shared memory of a block.
    static constexpr unsigned SHARED_BYTES = STAGES * STAGE_VALUES * sizeof(bf16);
};

// Both 128 threads; 48 KiB and 24 KiB.
using LargeTile = Tile<128, 128, 64, 64>;
using SmallTile = Tile<64, 64, 32, 32>;

// Whether K lies within the rows of a matrix, (M,K) or (N,K), or across them, (K,M) or (K,N).
enum class K { WITHIN_ROWS, ACROSS_ROWS };

struct Range {
    unsigned begin, end;
};

// ---- Operands ----

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

// The largest magnitudes of NF4's blocks of 64 values: `plain[i]`, or `map[codes[i]] · plain[i / 256] + offset`.
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

    __device__ __forceinline__ Raw fetch(size_t block) const {
        return codes ? Raw{plain[block / 256], codes[block]} : Raw{plain[block], 0};
    }

    __device__ __forceinline__ float scale(Raw raw) const {
        return codes ? __fadd_rn(__fmul_rn(map[raw.code], raw.plain), offset) : raw.plain;
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
    __device__ __forceinline__ Raw fetch_scale(size_t at) const { return scales.fetch(at / 64); }
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

// Copies the part of a bf16 matrix where `rows` and `columns` begin, as much as a tile of (ROWS, WIDTH) holds.
template <unsigned ROWS, unsigned WIDTH, unsigned THREADS>
__device__ __forceinline__ void copy(bf16 *tile, const Bf16Matrix &from, Range rows, Range columns) {
    constexpr unsigned CHUNKS = WIDTH / CHUNK;
    static_assert(ROWS * CHUNKS % THREADS == 0, "every thread copies as much");
#pragma unroll
    for (unsigned i = 0; i < ROWS * CHUNKS / THREADS; i++) {
        const unsigned at = threadIdx.x + i * THREADS;
        const unsigned row = rows.begin + at / CHUNKS, column = columns.begin + at % CHUNKS * CHUNK;
        const bool is_there = row < rows.end && column < columns.end;
        const bf16 *source = is_there ? from.row(row) + column : from.values;
        copy_async(tile + place<WIDTH>(at / CHUNKS, at % CHUNKS), source, is_there);
    }
}

// A thread's share of a tile of a packed matrix, in registers between the reading and the writing of it.
template <class MATRIX, unsigned ROWS, unsigned WIDTH, unsigned THREADS> struct Packed {
    // Words of 8 codes, side by side.
    static constexpr unsigned WORDS = ROWS * WIDTH / THREADS / 8;
    static_assert(WORDS == 2 || WORDS == 4, "a share is read at once");
    uint32_t codes[WORDS];
    typename MATRIX::Raw scales[WORDS];
    // That of the code which is the lane's number.
    const float value = MATRIX::value(lane_index() % 16);

    // A warp has 32 rows at the same columns: so its writes meet in no bank.
    static __device__ __forceinline__ unsigned row() { return threadIdx.x % ROWS; }
    static __device__ __forceinline__ unsigned first_chunk() { return threadIdx.x / ROWS * WORDS; }

    __device__ __forceinline__ void fetch(const MATRIX &from, Range rows, Range columns) {
        const unsigned column = columns.begin + first_chunk() * CHUNK;
        const bool has_row = rows.begin + row() < rows.end;
        const size_t at = (size_t)(from.first_row + rows.begin + row()) * from.width + column;
        if (from.width % 32 == 0 && columns.end % 32 == 0) {
            if (!has_row || column >= columns.end) return clear();
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
        } else {
            clear();
#pragma unroll
            for (unsigned i = 0; i < WORDS; i++) {
                if (!has_row || column + i * CHUNK >= columns.end) continue;
                codes[i] = *(const uint32_t *)(from.codes + (at + i * CHUNK) / 2);
                scales[i] = from.fetch_scale(at + i * CHUNK);
            }
        }
    }

    // What these mean is finite, and either A is zero there or C has no such place.
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (unsigned i = 0; i < WORDS; i++) codes[i] = 0, scales[i] = typename MATRIX::Raw{};
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
template <unsigned ROWS, unsigned WIDTH, unsigned THREADS> struct Packed<Bf16Matrix, ROWS, WIDTH, THREADS> {};

// ---- The product ----

// A warp's part of C: `at[i][j]` is the (16, 8) at rows 16 i and columns 8 j, as `mma_bf16` has it.
template <class TILE> struct Sums {
    float at[TILE::WARP_ROWS / 16][TILE::WARP_COLUMNS / 8][4];

    static __device__ __forceinline__ unsigned first_row() {
        return warp_index() / TILE::WARPS_ABREAST * TILE::WARP_ROWS;
    }
    static __device__ __forceinline__ unsigned first_column() {
        return warp_index() % TILE::WARPS_ABREAST * TILE::WARP_COLUMNS;
    }
};

// How many stages a K is.
__device__ __forceinline__ unsigned num_steps(unsigned depth) { return (depth + DEPTH - 1) / DEPTH; }

// One product along K; a second may follow.
template <class MATRIX> struct Factors {
    Bf16Matrix a;
    MATRIX b;
    // K, of this pair; 0 for none.
    unsigned depth;
};

template <class TILE, K A_K, K B_K> struct Multiplier {
    static constexpr unsigned THREADS = TILE::THREADS;
    static constexpr unsigned A_ROWS = A_K == K::WITHIN_ROWS ? TILE::ROWS : DEPTH;
    static constexpr unsigned A_WIDTH = A_K == K::WITHIN_ROWS ? DEPTH : TILE::ROWS;
    static constexpr unsigned B_ROWS = B_K == K::WITHIN_ROWS ? TILE::COLUMNS : DEPTH;
    static constexpr unsigned B_WIDTH = B_K == K::WITHIN_ROWS ? DEPTH : TILE::COLUMNS;

    static __device__ __forceinline__ bf16 *a_tile(uint8_t *shared, unsigned step) {
        return (bf16 *)shared + step % STAGES * TILE::STAGE_VALUES;
    }
    static __device__ __forceinline__ bf16 *b_tile(uint8_t *shared, unsigned step) {
        return a_tile(shared, step) + TILE::ROWS * DEPTH;
    }

    static __device__ __forceinline__ void copy_a(bf16 *tile, const Bf16Matrix &a, Range rows, Range depth) {
        if (A_K == K::WITHIN_ROWS) copy<A_ROWS, A_WIDTH, THREADS>(tile, a, rows, depth);
        else copy<A_ROWS, A_WIDTH, THREADS>(tile, a, depth, rows);
    }
    static __device__ __forceinline__ void copy_b(bf16 *tile, const Bf16Matrix &b, Range columns, Range depth) {
        if (B_K == K::WITHIN_ROWS) copy<B_ROWS, B_WIDTH, THREADS>(tile, b, columns, depth);
        else copy<B_ROWS, B_WIDTH, THREADS>(tile, b, depth, columns);
    }

    // Adds the product of a stage.
    static __device__ __forceinline__ void add(Sums<TILE> &sums, const bf16 *a, const bf16 *b) {
        const unsigned matrix = lane_index() / 8, row = lane_index() % 8;
        const unsigned first_row = sums.first_row(), first_column = sums.first_column();
#pragma unroll
        for (unsigned k = 0; k < DEPTH; k += 16) {
            uint32_t left[TILE::WARP_ROWS / 16][4];
#pragma unroll
            for (unsigned i = 0; i < TILE::WARP_ROWS / 16; i++) {
                const unsigned m = first_row + 16 * i + matrix % 2 * 8, depth = k + matrix / 2 * 8;
                if (A_K == K::WITHIN_ROWS) load_matrices(left[i], a + place<A_WIDTH>(m + row, depth / CHUNK));
                else load_transposed_matrices(left[i], a + place<A_WIDTH>(depth + row, m / CHUNK));
            }
#pragma unroll
            for (unsigned j = 0; j < TILE::WARP_COLUMNS / 16; j++) {
                const unsigned n = first_column + 16 * j + matrix / 2 * 8, depth = k + matrix % 2 * 8;
                uint32_t right[4];
                if (B_K == K::WITHIN_ROWS) load_matrices(right, b + place<B_WIDTH>(n + row, depth / CHUNK));
                else load_transposed_matrices(right, b + place<B_WIDTH>(depth + row, n / CHUNK));
                const uint32_t halves[2][2] = {{right[0], right[1]}, {right[2], right[3]}};
#pragma unroll
                for (unsigned i = 0; i < TILE::WARP_ROWS / 16; i++) {
                    mma_bf16(sums.at[i][2 * j], left[i], halves[0]);
                    mma_bf16(sums.at[i][2 * j + 1], left[i], halves[1]);
                }
            }
        }
    }
};

// The sums of the tile that begins where `rows` and `columns` do and ends there at the latest, over the steps `steps` of
// both pairs. All threads of the block call it, with `TILE::SHARED_BYTES` of shared memory that nobody uses; used again only
// after a barrier.
template <class TILE, K A_K, K B_K, class MATRIX>
__device__ __forceinline__ void multiply(Sums<TILE> &sums, uint8_t *shared, const Factors<MATRIX> &factors,
                                         const Factors<Bf16Matrix> &more, Range rows, Range columns, Range steps) {
    using Part = Multiplier<TILE, A_K, B_K>;
    const unsigned first_steps = num_steps(factors.depth);
    Packed<MATRIX, Part::B_ROWS, Part::B_WIDTH, Part::THREADS> packed;
#pragma unroll
    for (auto &row : sums.at) {
#pragma unroll
        for (auto &part : row) part[0] = part[1] = part[2] = part[3] = 0.0f;
    }

    // Reads a step's packed weights into registers.
    const auto fetch = [&](unsigned step) {
        if constexpr (MATRIX::IS_PACKED) {
            if (step >= steps.end || step >= first_steps) return;
            const Range depth = {step * DEPTH, factors.depth};
            if (B_K == K::WITHIN_ROWS) packed.fetch(factors.b, columns, depth);
            else packed.fetch(factors.b, depth, columns);
        }
    };
    // Begins to fill a step's stage; packed weights were fetched.
    const auto fill = [&](unsigned step) {
        if (step < steps.end) {
            bf16 *const a = Part::a_tile(shared, step), *const b = Part::b_tile(shared, step);
            if (step < first_steps) {
                const Range depth = {step * DEPTH, factors.depth};
                Part::copy_a(a, factors.a, rows, depth);
                if constexpr (MATRIX::IS_PACKED) packed.write(b, factors.b);
                else Part::copy_b(b, factors.b, columns, depth);
            } else {
                const Range depth = {(step - first_steps) * DEPTH, more.depth};
                Part::copy_a(a, more.a, rows, depth);
                Part::copy_b(b, more.b, columns, depth);
            }
        }
        commit_copies();
    };

#pragma unroll
    for (unsigned i = 0; i < STAGES - 1; i++) {
        fetch(steps.begin + i);
        fill(steps.begin + i);
    }
    fetch(steps.begin + STAGES - 1);
    for (unsigned step = steps.begin; step < steps.end; step++) {
        wait_for_copies<STAGES - 2>();
        // The step's stage is there for all, and all are done with the one before, which is filled anew.
        __syncthreads();
        fill(step + STAGES - 1);
        fetch(step + STAGES);
        Part::add(sums, Part::a_tile(shared, step), Part::b_tile(shared, step));
    }
    wait_for_copies<0>();
}

// ---- The result ----

// Where sums go: `scale · sum + bias`, in bf16 or f32.
struct Output {
    void *values;
    // Values from one row to the next.
    unsigned width;
    bool is_f32;
    // To what is there.
    bool adds;
    float scale;
    // (N) or null
    const float *bias;

    __device__ __forceinline__ float finish(float sum, unsigned column) const {
        return sum * scale + (bias ? bias[column] : 0.0f);
    }

    __device__ __forceinline__ void write_one(float sum, unsigned row, unsigned column) const {
        const size_t at = (size_t)row * width + column;
        const float value = finish(sum, column);
        if (is_f32) {
            float *const to = (float *)values + at;
            *to = adds ? *to + value : value;
        } else {
            bf16 *const to = (bf16 *)values + at;
            *to = to_bf16(adds ? to_float(*to) + value : value);
        }
    }

    // Two columns; `end` is where columns end.
    __device__ __forceinline__ void write_pair(float low, float high, unsigned row, unsigned column, unsigned end) const {
        if (column >= end) return;
        if (column + 1 == end || width % 2 != 0) {
            write_one(low, row, column);
            if (column + 1 < end) write_one(high, row, column + 1);
            return;
        }
        const size_t at = (size_t)row * width + column;
        low = finish(low, column), high = finish(high, column + 1);
        if (is_f32) {
            float2 *const to = (float2 *)((float *)values + at);
            *to = adds ? make_float2(to->x + low, to->y + high) : make_float2(low, high);
        } else {
            uint32_t *const to = (uint32_t *)((bf16 *)values + at);
            *to = adds ? pack_bf16(low_half(*to) + low, high_half(*to) + high) : pack_bf16(low, high);
        }
    }

    // The tile where `rows` and `columns` begin, as far as they reach; row i of C is row i of A.
    template <class TILE> __device__ __forceinline__ void write(const Sums<TILE> &sums, Range rows, Range columns) const {
        const unsigned first_row = rows.begin + sums.first_row() + lane_index() / 4;
        const unsigned first_column = columns.begin + sums.first_column() + lane_index() % 4 * 2;
#pragma unroll
        for (unsigned i = 0; i < TILE::WARP_ROWS / 16; i++) {
#pragma unroll
            for (unsigned j = 0; j < TILE::WARP_COLUMNS / 8; j++) {
                const float(&part)[4] = sums.at[i][j];
                const unsigned row = first_row + 16 * i, column = first_column + 8 * j;
                if (row < rows.end) write_pair(part[0], part[1], row, column, columns.end);
                if (row + 8 < rows.end) write_pair(part[2], part[3], row + 8, column, columns.end);
            }
        }
    }
};

// The tile a block has among those of (M,N): 8 tiles of rows in turns before the next of columns, so that blocks that run
// at the same time share what they read.
template <class TILE> struct Place {
    Range rows, columns;

    __device__ __forceinline__ Place(unsigned block, unsigned num_rows, unsigned num_columns) {
        const unsigned down = (num_rows + TILE::ROWS - 1) / TILE::ROWS;
        const unsigned across = (num_columns + TILE::COLUMNS - 1) / TILE::COLUMNS;
        const unsigned band = block / (8 * across), in_band = block % (8 * across);
        const unsigned height = min(down - 8 * band, 8u);
        rows = {(8 * band + in_band % height) * TILE::ROWS, num_rows};
        columns = {in_band / height * TILE::COLUMNS, num_columns};
    }
};

} // namespace gemm
