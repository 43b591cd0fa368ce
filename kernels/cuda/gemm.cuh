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
        at += SIDE == K::WITHIN_ROWS ? DEPTH : (size_t)DEPTH * from.width;
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
