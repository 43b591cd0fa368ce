// What the attention kernels share: tiles in shared memory, their products, which query sees which key.
//
// A tile is (rows, D) in bf16, D the template's head dim, row after row without gaps; columns from the model's own head dim
// on are zeros. The chunks of 16 bytes in a row are permuted so that eight rows of one column lie in different banks.
#pragma once
#include "common.cuh"

namespace attention {

constexpr unsigned THREADS = 128;
constexpr unsigned WARPS = THREADS / 32;
// Rows of the tiles that a block walks over.
constexpr unsigned WALK = 64;

// How q, k, v and their gradients lie: rows of all heads, side by side.
struct Heads {
    unsigned num_heads, num_kv_heads, head_dim;

    __device__ __forceinline__ unsigned stride() const { return num_heads * head_dim; }
    __device__ __forceinline__ unsigned kv_stride() const { return num_kv_heads * head_dim; }
    // Query heads that share a key/value head.
    __device__ __forceinline__ unsigned group() const { return num_heads / num_kv_heads; }
};

// `count` queries of one segment from row `row` on; the segment's keys begin at row `key_row`, and the first query is
// level with its key `position`: it sees that one and those before it.
struct QueryTile {
    unsigned row, count, key_row;
    int position;
};

// `count` keys of one segment from row `row` on, whose `num_queries` queries begin at row `query_row`; the first key is
// level with query `level`, negative if all see it.
struct KeyTile {
    unsigned row, count;
    int level;
    unsigned query_row, num_queries;
};

// Whether a query sees a key, both by their position in the segment.
__device__ __forceinline__ bool sees(int query, int key, unsigned window) { return (unsigned)(query - key) < window; }

// What some of the queries first .. first + num_queries see of some of the keys likewise.
struct View {
    bool is_any, is_all;

    __device__ __forceinline__ View(int query, int num_queries, int key, int num_keys, unsigned window) {
        const int last_query = query + num_queries - 1, last_key = key + num_keys - 1;
        is_any = key <= last_query && query - last_key < (int)window;
        is_all = last_key <= query && last_query - key < (int)window;
    }
};

// ---- Tiles ----

// Where 8 values of a row begin in a tile.
template <unsigned D> __device__ __forceinline__ unsigned chunk_at(unsigned row, unsigned chunk) {
    constexpr unsigned CHUNKS = D / 8;
    // Rows until the banks repeat, for eight of which eight chunks are needed.
    constexpr unsigned RUN = CHUNKS % 8 == 0 ? 1 : CHUNKS % 4 == 0 ? 2 : 4;
    return row * D + 8 * (chunk ^ (row / RUN % (8 / RUN)));
}

// Begins to copy a tile of ROWS rows that lie `stride` apart; rows from `count` on become zeros.
template <unsigned D, unsigned ROWS>
__device__ __forceinline__ void copy_tile(bf16 *tile, const bf16 *from, unsigned stride, int count, unsigned head_dim) {
    constexpr unsigned CHUNKS = D / 8;
#pragma unroll
    for (unsigned i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        const unsigned row = i / CHUNKS, chunk = i % CHUNKS;
        const bool is_there = (int)row < count && 8 * chunk < head_dim;
        copy_async(tile + chunk_at<D>(row, chunk), is_there ? from + row * stride + 8 * chunk : from, is_there);
    }
}

// Sums (16 M, D) of a warp, times `factor`, into `count` rows that lie `stride` apart, by way of `own`, rows of a tile which
// no other warp reads or writes.
template <unsigned D, unsigned M>
__device__ __forceinline__ void store_rows(const float (&sums)[M][D / 8][4], float factor, bf16 *tile, unsigned own,
                                           bf16 *to, unsigned stride, int count, unsigned head_dim) {
    const unsigned lane = lane_index();
    __syncwarp();
#pragma unroll
    for (unsigned m = 0; m < M; m++) {
#pragma unroll
        for (unsigned n = 0; n < D / 8; n++) {
#pragma unroll
            for (unsigned half = 0; half < 2; half++) {
                const unsigned at = chunk_at<D>(own + 16 * m + 8 * half + lane / 4, n) + 2 * (lane % 4);
                *(uint32_t *)(tile + at) =
                    pack_bf16(sums[m][n][2 * half] * factor, sums[m][n][2 * half + 1] * factor);
            }
        }
    }
    __syncwarp();
    constexpr unsigned CHUNKS = D / 8;
#pragma unroll 4
    for (unsigned i = lane; i < 16 * M * CHUNKS; i += 32) {
        const unsigned row = i / CHUNKS, chunk = i % CHUNKS;
        if ((int)row < count && 8 * chunk < head_dim) {
            *(uint4 *)(to + (size_t)row * stride + 8 * chunk) = *(const uint4 *)(tile + chunk_at<D>(own + row, chunk));
        }
    }
}

// ---- Products ----

// Rows of a tile in shared memory as the left operand.
template <unsigned D> struct SharedRows {
    const bf16 *tile;
    unsigned first;

    // Rows 16 m and columns 16 k, 16 of each.
    __device__ __forceinline__ void load(uint32_t (&left)[4], unsigned m, unsigned k) const {
        load_matrices(left, tile + chunk_at<D>(first + 16 * m + lane_index() % 16, 2 * k + lane_index() / 16));
    }
};

// Likewise in registers, (16 M, D).
template <unsigned D, unsigned M> struct HeldRows {
    uint32_t fragments[M][D / 16][4];

    __device__ __forceinline__ explicit HeldRows(const SharedRows<D> &rows) {
#pragma unroll
        for (unsigned m = 0; m < M; m++) {
#pragma unroll
            for (unsigned k = 0; k < D / 16; k++) rows.load(fragments[m][k], m, k);
        }
    }

    __device__ __forceinline__ void load(uint32_t (&left)[4], unsigned m, unsigned k) const {
#pragma unroll
        for (unsigned i = 0; i < 4; i++) left[i] = fragments[m][k][i];
    }
};

__device__ __forceinline__ void multiply_pair(float (&first)[4], float (&second)[4], const uint32_t (&left)[4],
                                              const uint32_t (&right)[4]) {
    const uint32_t low[2] = {right[0], right[1]}, high[2] = {right[2], right[3]};
    mma_bf16(first, left, low);
    mma_bf16(second, left, high);
}

// d (16 M, N) = left (16 M, D) · rowsᵀ, with rows (N, D) of a tile from `first` on.
template <unsigned D, unsigned M, unsigned N, typename Left>
__device__ __forceinline__ void multiply_transposed(float (&d)[M][N / 8][4], const Left &left, const bf16 *tile,
                                                    unsigned first = 0) {
#pragma unroll
    for (unsigned m = 0; m < M; m++) {
#pragma unroll
        for (unsigned n = 0; n < N / 8; n++) d[m][n][0] = d[m][n][1] = d[m][n][2] = d[m][n][3] = 0.0f;
    }
    const unsigned lane = lane_index();
    const unsigned row = first + lane % 8 + lane / 16 * 8;
#pragma unroll
    for (unsigned k = 0; k < D / 16; k++) {
        uint32_t fragments[M][4];
#pragma unroll
        for (unsigned m = 0; m < M; m++) left.load(fragments[m], m, k);
#pragma unroll
        for (unsigned n = 0; n < N / 16; n++) {
            uint32_t right[4];
            load_matrices(right, tile + chunk_at<D>(row + 16 * n, 2 * k + lane / 8 % 2));
#pragma unroll
            for (unsigned m = 0; m < M; m++) multiply_pair(d[m][2 * n], d[m][2 * n + 1], fragments[m], right);
        }
    }
}

// d (16 M, D) += weights (16 M, N) · rows, with rows (N, D) of a tile from `first` on.
template <unsigned D, unsigned M, unsigned N>
__device__ __forceinline__ void multiply_add(float (&d)[M][D / 8][4], const float (&weights)[M][N / 8][4],
                                             const bf16 *tile, unsigned first = 0) {
    const unsigned lane = lane_index();
#pragma unroll
    for (unsigned k = 0; k < N / 16; k++) {
        // What a lane holds of a sum is what it needs of a left operand.
        uint32_t left[M][4];
#pragma unroll
        for (unsigned m = 0; m < M; m++) {
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                const float(&values)[4] = weights[m][2 * k + i / 2];
                left[m][i] = pack_bf16(values[i % 2 * 2], values[i % 2 * 2 + 1]);
            }
        }
#pragma unroll
        for (unsigned n = 0; n < D / 16; n++) {
            uint32_t right[4];
            load_transposed_matrices(right, tile + chunk_at<D>(first + 16 * k + lane % 16, 2 * n + lane / 16));
#pragma unroll
            for (unsigned m = 0; m < M; m++) multiply_pair(d[m][2 * n], d[m][2 * n + 1], left[m], right);
        }
    }
}

// ---- Softmax ----

// Over the four lanes that hold a row of a sum.
__device__ __forceinline__ float row_sum(float value) {
    value += __shfl_xor_sync(FULL_WARP, value, 1);
    return value + __shfl_xor_sync(FULL_WARP, value, 2);
}

__device__ __forceinline__ float row_max(float value) {
    value = fmaxf(value, __shfl_xor_sync(FULL_WARP, value, 1));
    return fmaxf(value, __shfl_xor_sync(FULL_WARP, value, 2));
}

// Where nothing was seen there is nothing.
__device__ __forceinline__ float inverse(float sum) { return sum > 0.0f ? 1.0f / sum : 0.0f; }

// A softmax over keys that come a tile at a time, for the 16 M rows of a warp, with the output it weighs (16 M, D). In base
// 2. A lane has M pairs of rows, and of their sums its own columns' part.
template <unsigned D, unsigned M> struct Online {
    float top[M][2], sum[M][2];
    float output[M][D / 8][4];

    __device__ __forceinline__ Online() {
#pragma unroll
        for (unsigned m = 0; m < M; m++) {
            top[m][0] = top[m][1] = MINUS_INFINITY;
            sum[m][0] = sum[m][1] = 0.0f;
#pragma unroll
            for (unsigned n = 0; n < D / 8; n++) {
                output[m][n][0] = output[m][n][1] = output[m][n][2] = output[m][n][3] = 0.0f;
            }
        }
    }

    // Scores become weights under the highest score so far, and what was there before is brought under the same.
    template <unsigned N> __device__ __forceinline__ void weigh(float (&scores)[M][N / 8][4], float scale) {
#pragma unroll
        for (unsigned m = 0; m < M; m++) {
#pragma unroll
            for (unsigned half = 0; half < 2; half++) {
                float highest = MINUS_INFINITY;
#pragma unroll
                for (unsigned n = 0; n < N / 8; n++) {
                    highest = fmaxf(highest, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
                }
                const float now = fmaxf(top[m][half], row_max(highest) * scale);
                const float shift = now == MINUS_INFINITY ? 0.0f : now;
                const float shrink = exp2_fast(top[m][half] - shift);
                float added = 0.0f;
#pragma unroll
                for (unsigned n = 0; n < N / 8; n++) {
#pragma unroll
                    for (unsigned i = 2 * half; i < 2 * half + 2; i++) {
                        scores[m][n][i] = exp2_fast(fmaf(scores[m][n][i], scale, -shift));
                        added += scores[m][n][i];
                    }
                }
                sum[m][half] = sum[m][half] * shrink + added;
                top[m][half] = now;
#pragma unroll
                for (unsigned n = 0; n < D / 8; n++) {
                    output[m][n][2 * half] *= shrink;
                    output[m][n][2 * half + 1] *= shrink;
                }
            }
        }
    }
};

// Which of them a score's row stands for.
enum class RowsAre { QUERIES, KEYS };

// Takes the scores of what is not seen out of a softmax; their rows and columns begin at these positions.
template <RowsAre ROWS_ARE, unsigned M, unsigned N>
__device__ __forceinline__ void hide(float (&scores)[M][N / 8][4], int first_row, int first_column, unsigned window) {
    // A query minus a key: what a lane's first score has of it, and a way to go.
    constexpr int SIGN = ROWS_ARE == RowsAre::QUERIES ? 1 : -1;
    const int distance = SIGN * (first_row + (int)(lane_index() / 4) - first_column - (int)(lane_index() % 4 * 2));
#pragma unroll
    for (unsigned m = 0; m < M; m++) {
#pragma unroll
        for (unsigned n = 0; n < N / 8; n++) {
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                const int further = (int)(16 * m + i / 2 * 8) - (int)(8 * n + i % 2);
                if ((unsigned)(distance + SIGN * further) >= window) scores[m][n][i] = MINUS_INFINITY;
            }
        }
    }
}

} // namespace attention
