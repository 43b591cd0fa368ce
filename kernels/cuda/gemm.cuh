// Products of matrices on tensor cores, a tile of C a block: C = scale · (A B + A2 B2) + bias.
//
// A is bf16, (M,K) or its transpose (K,M); B is (N,K) or its transpose (K,N), in bf16, NF4 or MXFP4; the second pair, which
// goes on along K with the same sums (LoRA's), is bf16 and laid out as the first. Sums are f32. Sizes are free, but rows
// begin at multiples of 8 values, with zeros between. What lies beyond an edge counts as zero.
//
// A kernel says what its block multiplies: `multiply` leaves the sums in registers, `Output::write` stores them. For groups
// of rows with matrices of their own (experts): the rows of A may be gathered by an index, `rows` bounds a group, and
// `first_row` says where B's part for it begins.
//
// Of three stages in shared memory, each a tile of A and one of B, two are under way while one is multiplied.
#pragma once
#include "operands.cuh"

namespace gemm {

constexpr unsigned STAGES = 3;

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

// How a tile of A or B lies in shared memory, and the thread's way to its fragments there: of 16 rows or columns of C a
// `load`, k from its beginning.
template <unsigned SIZE, unsigned WARP_SIZE, K SIDE> struct Operand {
    static constexpr unsigned ROWS = SIDE == K::WITHIN_ROWS ? SIZE : DEPTH;
    static constexpr unsigned WIDTH = SIDE == K::WITHIN_ROWS ? DEPTH : SIZE;
    static constexpr unsigned PARTS = WARP_SIZE / 16;
    // In values: the order of chunks changes with k if that lies within the rows, else with the part.
    unsigned at[SIDE == K::WITHIN_ROWS ? DEPTH / 16 : PARTS];

    // The fragment's matrices of 8 come by rows and columns of C first (A), or by k first (B).
    __device__ __forceinline__ Operand(unsigned first, bool is_by_size_first) {
        const unsigned matrix = lane_index() / 8, row = lane_index() % 8;
        const unsigned size = first + (is_by_size_first ? matrix % 2 : matrix / 2) * 8;
        const unsigned depth = (is_by_size_first ? matrix / 2 : matrix % 2) * 8;
        if (SIDE == K::WITHIN_ROWS) {
#pragma unroll
            for (unsigned i = 0; i < DEPTH / 16; i++) at[i] = place<WIDTH>(size + row, (depth + 16 * i) / CHUNK);
        } else {
#pragma unroll
            for (unsigned i = 0; i < PARTS; i++) at[i] = place<WIDTH>(depth + row, (size + 16 * i) / CHUNK);
        }
    }

    __device__ __forceinline__ void load(uint32_t (&fragments)[4], const bf16 *tile, unsigned part, unsigned k) const {
        if (SIDE == K::WITHIN_ROWS) load_matrices(fragments, tile + at[k / 16] + 16 * part * WIDTH);
        else load_transposed_matrices(fragments, tile + at[part] + k * WIDTH);
    }
};

// The sums of the tile that begins where `rows` and `columns` do and ends there at the latest, over the steps `steps` of
// both pairs. All threads of the block call it, with `TILE::SHARED_BYTES` of shared memory that nobody uses; used again only
// after a barrier.
template <class TILE, K A_K, K B_K, class MATRIX>
__device__ __forceinline__ void multiply(Sums<TILE> &sums, uint8_t *shared, const Factors<MATRIX> &factors,
                                         const Factors<Bf16Matrix> &more, Range rows, Range columns, Range steps) {
    using Left = Operand<TILE::ROWS, TILE::WARP_ROWS, A_K>;
    using Right = Operand<TILE::COLUMNS, TILE::WARP_COLUMNS, B_K>;
    const Left left(sums.first_row(), true);
    const Right right(sums.first_column(), false);
    const unsigned first_steps = num_steps(factors.depth);
    Copier<Left::ROWS, Left::WIDTH, TILE::THREADS, A_K> copier_a;
    Copier<Right::ROWS, Right::WIDTH, TILE::THREADS, B_K> copier_b;
    Packed<MATRIX, Right::ROWS, Right::WIDTH, TILE::THREADS, B_K> packed;
    bf16 *const stages = (bf16 *)shared;
#pragma unroll
    for (auto &row : sums.at) {
#pragma unroll
        for (auto &part : row) part[0] = part[1] = part[2] = part[3] = 0.0f;
    }

    const auto start_more = [&](unsigned step) {
        const unsigned first = (step - first_steps) * DEPTH;
        copier_a.start(more.a, rows, first, more.depth);
        copier_b.start(more.b, columns, first, more.depth);
    };
    // Reads a step's packed weights into registers.
    const auto fetch = [&](unsigned step) {
        if constexpr (MATRIX::IS_PACKED) {
            if (step < min(steps.end, first_steps)) packed.fetch(factors.b);
        }
    };
    // Begins to fill a step's stage; packed weights were fetched.
    const auto fill = [&](unsigned step, unsigned stage) {
        if (step < steps.end) {
            bf16 *const a = stages + stage * TILE::STAGE_VALUES, *const b = a + TILE::ROWS * DEPTH;
            if (step == first_steps) start_more(step);
            copier_a.copy(a);
            if constexpr (MATRIX::IS_PACKED) {
                if (step < first_steps) packed.write(b, factors.b);
                else copier_b.copy(b);
            } else {
                copier_b.copy(b);
            }
        }
        commit_copies();
    };

    if (steps.begin < first_steps) {
        const unsigned first = steps.begin * DEPTH;
        copier_a.start(factors.a, rows, first, factors.depth);
        if constexpr (MATRIX::IS_PACKED) packed.start(factors.b, columns, first, factors.depth);
        else copier_b.start(factors.b, columns, first, factors.depth);
    } else if (steps.begin < steps.end) {
        start_more(steps.begin);
    }
#pragma unroll
    for (unsigned i = 0; i < STAGES - 1; i++) {
        fetch(steps.begin + i);
        fill(steps.begin + i, i);
    }
    fetch(steps.begin + STAGES - 1);
    // The stages that are multiplied and filled now.
    unsigned current = 0, next = STAGES - 1;
    for (unsigned step = steps.begin; step < steps.end; step++) {
        wait_for_copies<STAGES - 2>();
        // The step's stage is there for all, and all are done with the one before, which is filled anew.
        __syncthreads();
        fill(step + STAGES - 1, next);
        fetch(step + STAGES);
        const bf16 *const a = stages + current * TILE::STAGE_VALUES, *const b = a + TILE::ROWS * DEPTH;
#pragma unroll
        for (unsigned k = 0; k < DEPTH; k += 16) {
            uint32_t parts[Left::PARTS][4];
#pragma unroll
            for (unsigned i = 0; i < Left::PARTS; i++) left.load(parts[i], a, i, k);
#pragma unroll
            for (unsigned j = 0; j < Right::PARTS; j++) {
                uint32_t part[4];
                right.load(part, b, j, k);
#pragma unroll
                for (unsigned i = 0; i < Left::PARTS; i++) {
                    mma_bf16(sums.at[i][2 * j], parts[i], {part[0], part[1]});
                    mma_bf16(sums.at[i][2 * j + 1], parts[i], {part[2], part[3]});
                }
            }
        }
        current = current + 1 == STAGES ? 0 : current + 1;
        next = next + 1 == STAGES ? 0 : next + 1;
    }
    wait_for_copies<0>();
}

// ---- The result ----

// What a kernel is told of its output, as bits.
constexpr unsigned IS_F32 = 1, ADDS = 2;

// Two neighbours in memory.
template <class VALUE> struct Pairs;
template <> struct Pairs<float> {
    using Type = float2;
    static __device__ __forceinline__ float2 pack(float low, float high) { return make_float2(low, high); }
    static __device__ __forceinline__ float2 unpack(float2 pair) { return pair; }
};
template <> struct Pairs<bf16> {
    using Type = uint32_t;
    static __device__ __forceinline__ uint32_t pack(float low, float high) { return pack_bf16(low, high); }
    static __device__ __forceinline__ float2 unpack(uint32_t pair) { return make_float2(low_half(pair), high_half(pair)); }
};

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

    __device__ __forceinline__ void write_one(float sum, unsigned row, unsigned column) const {
        const size_t at = (size_t)row * width + column;
        const float value = sum * scale + (bias ? bias[column] : 0.0f);
        if (is_f32) {
            float *const to = (float *)values + at;
            *to = adds ? *to + value : value;
        } else {
            bf16 *const to = (bf16 *)values + at;
            *to = to_bf16(adds ? to_float(*to) + value : value);
        }
    }

    // The tile where `rows` and `columns` begin, as far as they reach; row i of C is row i of A. The width and the end of the
    // columns are even.
    template <class TILE> __device__ __forceinline__ void write(Sums<TILE> &sums, Range rows, Range columns) const {
        const unsigned first_column = columns.begin + sums.first_column() + lane_index() % 4 * 2;
#pragma unroll
        for (unsigned j = 0; j < TILE::WARP_COLUMNS / 8; j++) {
            const unsigned column = first_column + 8 * j;
            const bool has_bias = bias != nullptr && column < columns.end;
            const float low = has_bias ? bias[column] : 0.0f, high = has_bias ? bias[column + 1] : 0.0f;
#pragma unroll
            for (auto &row : sums.at) {
                float(&part)[4] = row[j];
                part[0] = part[0] * scale + low, part[1] = part[1] * scale + high;
                part[2] = part[2] * scale + low, part[3] = part[3] * scale + high;
            }
        }
        if (is_f32) adds ? write_as<float, true>(sums, rows, columns) : write_as<float, false>(sums, rows, columns);
        else adds ? write_as<bf16, true>(sums, rows, columns) : write_as<bf16, false>(sums, rows, columns);
    }

    template <class VALUE, bool ADDS, class TILE>
    __device__ __forceinline__ void write_as(const Sums<TILE> &sums, Range rows, Range columns) const {
        using Pair = typename Pairs<VALUE>::Type;
        const unsigned first_row = rows.begin + sums.first_row() + lane_index() / 4;
        const unsigned first_column = columns.begin + sums.first_column() + lane_index() % 4 * 2;
#pragma unroll
        for (unsigned i = 0; i < TILE::WARP_ROWS / 8; i++) {
            const unsigned row = first_row + 8 * i;
            if (row >= rows.end) return;
            VALUE *const at = (VALUE *)values + (size_t)row * width + first_column;
#pragma unroll
            for (unsigned j = 0; j < TILE::WARP_COLUMNS / 8; j++) {
                if (first_column + 8 * j >= columns.end) break;
                const float *const part = sums.at[i / 2][j] + i % 2 * 2;
                Pair *const to = (Pair *)(at + 8 * j);
                const float2 before = ADDS ? Pairs<VALUE>::unpack(*to) : make_float2(0.0f, 0.0f);
                *to = Pairs<VALUE>::pack(before.x + part[0], before.y + part[1]);
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
