// Attention within segments, backward: with the weights p = softmax(scale · q kᵀ) made again from the log-sums,
//   dv = pᵀ dy, ds = p ∘ (dy vᵀ − delta), dq = scale · ds k, dk = scale · dsᵀ q, where delta = rowsum(dy ∘ y).
// A sink is in the log-sums, and its weight multiplies no value, so it has no further part; sinks are frozen.
//
// q, y, dy, dq (T, H·D), k, v, dk, dv (S, G·D) in bf16; log-sums (base 2) and deltas (H, T) in f32. FlashAttention-2
// (arXiv 2307.08691, algorithm 2), in two kernels instead of one with atomic sums, so that equal inputs give equal
// gradients: first dq and the deltas, then dk and dv. Twin: `attention.rs`.
#include "attention.cuh"

namespace attention {

// Of two pairs of values, summed.
__device__ __forceinline__ float product(uint32_t left, uint32_t right) {
    return fmaf(low_half(left), low_half(right), high_half(left) * high_half(right));
}

// A block has a tile of 64 M queries of one head and walks over the keys they see, N at a time.
template <unsigned D, unsigned M, unsigned N>
__device__ __forceinline__ void backward_queries(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *y,
                                                 const bf16 *dy, const float *log_sums, const QueryTile *tiles, bf16 *dq,
                                                 float *deltas, unsigned num_queries, const Heads heads,
                                                 unsigned window, float scale) {
    SHARED_MEMORY(shared);
    constexpr unsigned ROWS = 16 * M * WARPS;
    bf16 *const queries = (bf16 *)shared;
    bf16 *const dys = queries + ROWS * D;
    bf16 *const walked = dys + ROWS * D;
    float *const row_deltas = (float *)(walked + 4 * N * D);

    const unsigned head = blockIdx.x, own = 16 * M * warp_index(), lane = lane_index();
    const QueryTile tile = tiles[blockIdx.y];
    const int begin = max(0, tile.position + 1 - (int)window), end = tile.position + (int)tile.count;
    const int num_tiles = end > begin ? (end - begin + N - 1) / N : 0;
    const size_t kv_start = (size_t)tile.key_row * heads.kv_stride() + head / heads.group() * heads.head_dim;
    const auto copy_keys = [&](int i) {
        const int first = begin + i * (int)N;
        const size_t start = kv_start + (size_t)first * heads.kv_stride();
        bf16 *const stage = walked + i % 2 * 2 * N * D;
        copy_tile<D, N>(stage, k + start, heads.kv_stride(), end - first, heads.head_dim);
        copy_tile<D, N>(stage + N * D, v + start, heads.kv_stride(), end - first, heads.head_dim);
    };

    // 1. Queries, their gradients, and the first keys.
    const size_t start = (size_t)tile.row * heads.stride() + head * heads.head_dim;
    copy_tile<D, ROWS>(queries, q + start, heads.stride(), tile.count, heads.head_dim);
    copy_tile<D, ROWS>(dys, dy + start, heads.stride(), tile.count, heads.head_dim);
    commit_copies();
    if (num_tiles > 0) copy_keys(0);
    commit_copies();

    // 2. Deltas, by a few neighbouring lanes a row; y is on its way while dy is.
    constexpr unsigned LANES = D % 64 == 0 ? 8 : 4, PASSES = ROWS * LANES / THREADS, PARTS = D / 8 / LANES;
    const unsigned first_row = threadIdx.x / LANES, first_chunk = threadIdx.x % LANES;
    uint4 outputs[PASSES][PARTS];
#pragma unroll
    for (unsigned pass = 0; pass < PASSES; pass++) {
#pragma unroll
        for (unsigned part = 0; part < PARTS; part++) {
            const unsigned row = first_row + THREADS / LANES * pass, chunk = first_chunk + LANES * part;
            const bool is_there = row < tile.count && 8 * chunk < heads.head_dim;
            const bf16 *const from = y + start + (size_t)row * heads.stride() + 8 * chunk;
            outputs[pass][part] = is_there ? *(const uint4 *)from : make_uint4(0, 0, 0, 0);
        }
    }
    wait_for_copies<1>();
    __syncthreads();
#pragma unroll
    for (unsigned pass = 0; pass < PASSES; pass++) {
        const unsigned row = first_row + THREADS / LANES * pass;
        float delta = 0.0f;
#pragma unroll
        for (unsigned part = 0; part < PARTS; part++) {
            const uint4 left = outputs[pass][part];
            const uint4 right = *(const uint4 *)(dys + chunk_at<D>(row, first_chunk + LANES * part));
            delta += product(left.x, right.x) + product(left.y, right.y);
            delta += product(left.z, right.z) + product(left.w, right.w);
        }
#pragma unroll
        for (unsigned mask = LANES / 2; mask > 0; mask /= 2) delta += __shfl_xor_sync(FULL_WARP, delta, mask);
        if (first_chunk == 0) {
            row_deltas[row] = delta;
            if (row < tile.count) deltas[(size_t)head * num_queries + tile.row + row] = delta;
        }
    }
    __syncthreads();

    // 3. All the keys that are seen.
    float own_log_sums[M][2], own_deltas[M][2];
    float sums[M][D / 8][4];
#pragma unroll
    for (unsigned m = 0; m < M; m++) {
#pragma unroll
        for (unsigned half = 0; half < 2; half++) {
            const unsigned at = own + 16 * m + 8 * half + lane / 4;
            // Of a row that is not there the weights are 0.
            own_log_sums[m][half] =
                at < tile.count ? log_sums[(size_t)head * num_queries + tile.row + at] : -MINUS_INFINITY;
            own_deltas[m][half] = row_deltas[at];
        }
#pragma unroll
        for (unsigned n = 0; n < D / 8; n++) sums[m][n][0] = sums[m][n][1] = sums[m][n][2] = sums[m][n][3] = 0.0f;
    }
    const int query = tile.position + (int)own;
    const bool has_rows = own < tile.count;
    for (int i = 0; i < num_tiles; i++) {
        wait_for_copies<0>();
        // Behind it no warp reads the other stage any more.
        __syncthreads();
        if (i + 1 < num_tiles) {
            copy_keys(i + 1);
            commit_copies();
        }
        const int key = begin + i * (int)N;
        const View view(query, 16 * M, key, N, window);
        if (!has_rows || !view.is_any) continue;
        const bf16 *const keys = walked + i % 2 * 2 * N * D;
        float scores[M][N / 8][4], dscores[M][N / 8][4];
        multiply_transposed<D, M, N>(scores, SharedRows<D>{queries, own}, keys);
        if (!view.is_all) hide<RowsAre::QUERIES, M, N>(scores, query, key, window);
        multiply_transposed<D, M, N>(dscores, SharedRows<D>{dys, own}, keys + N * D);
#pragma unroll
        for (unsigned m = 0; m < M; m++) {
#pragma unroll
            for (unsigned n = 0; n < N / 8; n++) {
#pragma unroll
                for (unsigned j = 0; j < 4; j++) {
                    const float weight =
                        exp2_fast(fmaf(scores[m][n][j], scale * LOG2_E, -own_log_sums[m][j / 2]));
                    scores[m][n][j] = weight * (dscores[m][n][j] - own_deltas[m][j / 2]);
                }
            }
        }
        multiply_add<D, M, N>(sums, scores, keys);
    }
    wait_for_copies<0>();
    if (!has_rows) return;
    store_rows<D, M>(sums, scale, queries, own, dq + start + (size_t)own * heads.stride(), heads.stride(),
                     (int)tile.count - (int)own, heads.head_dim);
}

// A block has a tile of 64 keys of one key/value head and walks over the queries of all its heads which see them. Scores
// are transposed here, (keys, queries), so that what a warp has of them is a left operand for its own keys.
template <unsigned D>
__device__ __forceinline__ void backward_keys(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *dy,
                                              const float *log_sums, const float *deltas, const KeyTile *tiles, bf16 *dk,
                                              bf16 *dv, unsigned num_queries, const Heads heads, unsigned window,
                                              float scale) {
    SHARED_MEMORY(shared);
    bf16 *const keys = (bf16 *)shared;
    bf16 *const values = keys + WALK * D;
    // Two stages of queries, then dy.
    bf16 *const walked = values + WALK * D;
    // Two stages of log-sums, then deltas.
    float *const numbers = (float *)(walked + 4 * WALK * D);

    const unsigned kv_head = blockIdx.x, own = 16 * warp_index(), lane = lane_index();
    const KeyTile tile = tiles[blockIdx.y];
    const int begin = max(0, tile.level);
    const int end = min((int)tile.num_queries, tile.level + (int)tile.count - 1 + (int)window);
    const int tiles_a_head = end > begin ? (end - begin + WALK - 1) / WALK : 0;
    const int num_tiles = tiles_a_head * (int)heads.group();
    const auto head_of = [&](int i) { return kv_head * heads.group() + (unsigned)(i / tiles_a_head); };
    const auto first_of = [&](int i) { return begin + i % tiles_a_head * (int)WALK; };
    const auto copy_queries = [&](int i) {
        const int first = first_of(i);
        const size_t start = (size_t)(tile.query_row + first) * heads.stride() + head_of(i) * heads.head_dim;
        bf16 *const stage = walked + i % 2 * 2 * WALK * D;
        copy_tile<D, WALK>(stage, q + start, heads.stride(), end - first, heads.head_dim);
        copy_tile<D, WALK>(stage + WALK * D, dy + start, heads.stride(), end - first, heads.head_dim);
    };
    // A thread's log-sum, or its delta; of a row that is not there the weights are 0.
    const auto load_number = [&](int i) {
        const bool is_delta = threadIdx.x >= WALK;
        const int query = first_of(i) + (int)(threadIdx.x % WALK);
        if (query >= end) return is_delta ? 0.0f : -MINUS_INFINITY;
        return (is_delta ? deltas : log_sums)[(size_t)head_of(i) * num_queries + tile.query_row + (unsigned)query];
    };

    // 1. Keys, values, and the first queries.
    const size_t start = (size_t)tile.row * heads.kv_stride() + kv_head * heads.head_dim;
    copy_tile<D, WALK>(keys, k + start, heads.kv_stride(), tile.count, heads.head_dim);
    copy_tile<D, WALK>(values, v + start, heads.kv_stride(), tile.count, heads.head_dim);
    if (num_tiles > 0) {
        copy_queries(0);
        numbers[threadIdx.x] = load_number(0);
    }
    commit_copies();

    // 2. All the queries that see them.
    float key_sums[1][D / 8][4], value_sums[1][D / 8][4];
#pragma unroll
    for (unsigned n = 0; n < D / 8; n++) {
        key_sums[0][n][0] = key_sums[0][n][1] = key_sums[0][n][2] = key_sums[0][n][3] = 0.0f;
        value_sums[0][n][0] = value_sums[0][n][1] = value_sums[0][n][2] = value_sums[0][n][3] = 0.0f;
    }
    const int level = tile.level + (int)own;
    const bool has_rows = own < tile.count;
    for (int i = 0; i < num_tiles; i++) {
        wait_for_copies<0>();
        // Behind it no warp reads the other stage any more.
        __syncthreads();
        float next_number = 0.0f;
        if (i + 1 < num_tiles) {
            copy_queries(i + 1);
            commit_copies();
            next_number = load_number(i + 1);
        }
        const int query = first_of(i);
        const View view(query, WALK, level, 16, window);
        if (has_rows && view.is_any) {
            const bf16 *const queries = walked + i % 2 * 2 * WALK * D, *const dys = queries + WALK * D;
            const float *const at = numbers + i % 2 * 2 * WALK + lane % 4 * 2;
            float scores[1][WALK / 8][4], dscores[1][WALK / 8][4];
            multiply_transposed<D, 1, WALK>(scores, SharedRows<D>{keys, own}, queries);
            if (!view.is_all) hide<RowsAre::KEYS, 1, WALK>(scores, level, query, window);
#pragma unroll
            for (unsigned n = 0; n < WALK / 8; n++) {
                const float2 sums = *(const float2 *)(at + 8 * n);
#pragma unroll
                for (unsigned j = 0; j < 4; j++) {
                    const float log_sum = j % 2 == 0 ? sums.x : sums.y;
                    scores[0][n][j] = exp2_fast(fmaf(scores[0][n][j], scale * LOG2_E, -log_sum));
                }
            }
            multiply_add<D, 1, WALK>(value_sums, scores, dys);
            multiply_transposed<D, 1, WALK>(dscores, SharedRows<D>{values, own}, dys);
#pragma unroll
            for (unsigned n = 0; n < WALK / 8; n++) {
                const float2 delta = *(const float2 *)(at + WALK + 8 * n);
#pragma unroll
                for (unsigned j = 0; j < 4; j++) scores[0][n][j] *= dscores[0][n][j] - (j % 2 == 0 ? delta.x : delta.y);
            }
            multiply_add<D, 1, WALK>(key_sums, scores, queries);
        }
        if (i + 1 < num_tiles) numbers[(i + 1) % 2 * 2 * WALK + threadIdx.x] = next_number;
    }
    wait_for_copies<0>();
    // Where nobody looked, copies came and nobody met.
    __syncthreads();
    if (!has_rows) return;
    const size_t to = start + (size_t)own * heads.kv_stride();
    const int count = (int)tile.count - (int)own;
    store_rows<D, 1>(key_sums, scale, keys, own, dk + to, heads.kv_stride(), count, heads.head_dim);
    store_rows<D, 1>(value_sums, 1.0f, values, own, dv + to, heads.kv_stride(), count, heads.head_dim);
}

} // namespace attention

// Blocks (H, tiles).
#define ATTENTION_BACKWARD_QUERIES(D, M, N)                                                                              \
    KERNEL(128, attention_backward_queries_##D)                                                                         \
    (const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *y, const bf16 *dy, const float *log_sums,                \
     const attention::QueryTile *tiles, bf16 *dq, float *deltas, unsigned num_queries, unsigned num_heads,             \
     unsigned num_kv_heads, unsigned head_dim, unsigned window, float scale) {                                          \
        attention::backward_queries<D, M, N>(q, k, v, y, dy, log_sums, tiles, dq, deltas, num_queries,                    \
                                          {num_heads, num_kv_heads, head_dim}, window, scale);                          \
    }

ATTENTION_BACKWARD_QUERIES(32, 2, 64)
EXPORT_KERNEL(attention_backward_queries_32)
ATTENTION_BACKWARD_QUERIES(64, 2, 64)
EXPORT_KERNEL(attention_backward_queries_64)
ATTENTION_BACKWARD_QUERIES(96, 2, 32)
EXPORT_KERNEL(attention_backward_queries_96)
ATTENTION_BACKWARD_QUERIES(128, 2, 32)
EXPORT_KERNEL(attention_backward_queries_128)

// Blocks (G, tiles). A tile has 64 keys. So many blocks share a multiprocessor's registers.
#define ATTENTION_BACKWARD_KEYS(D, BLOCKS)                                                                              \
    extern "C" __global__ void __launch_bounds__(128, BLOCKS) attention_backward_keys_##D                              \
    (const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *dy, const float *log_sums, const float *deltas,          \
     const attention::KeyTile *tiles, bf16 *dk, bf16 *dv, unsigned num_queries, unsigned num_heads,                    \
     unsigned num_kv_heads, unsigned head_dim, unsigned window, float scale) {                                          \
        attention::backward_keys<D>(q, k, v, dy, log_sums, deltas, tiles, dk, dv, num_queries,                         \
                                    {num_heads, num_kv_heads, head_dim}, window, scale);                                \
    }

ATTENTION_BACKWARD_KEYS(32, 3)
EXPORT_KERNEL(attention_backward_keys_32)
ATTENTION_BACKWARD_KEYS(64, 3)
EXPORT_KERNEL(attention_backward_keys_64)
ATTENTION_BACKWARD_KEYS(96, 2)
EXPORT_KERNEL(attention_backward_keys_96)
ATTENTION_BACKWARD_KEYS(128, 2)
EXPORT_KERNEL(attention_backward_keys_128)
