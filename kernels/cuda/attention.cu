// Attention within segments, forward: y = softmax(scale · q kᵀ) v, causal, over the last `window` keys, with a sink a head
// that takes its part of the softmax and adds nothing.
//
// q, y (T, H·D), k, v (S, G·D) in bf16; sinks (H) and log-sums (H, T) in f32. A log-sum is log2 of a query's sum of
// exponentials, its sink included, which the backward makes the weights from again. No scores reach memory.
// FlashAttention-2 (arXiv 2307.08691, algorithm 1): a block has a tile of queries of one head, its warps rows of their
// own, and walks over the keys they see while the next are being copied. Twin: `attention.rs`.
#include "attention.cuh"

namespace attention {

template <unsigned D, unsigned M>
__device__ __forceinline__ void forward(const bf16 *q, const bf16 *k, const bf16 *v, const float *sinks,
                                        const QueryTile *tiles, bf16 *y, float *log_sums, unsigned num_queries,
                                        const Heads heads, unsigned window, float scale) {
    SHARED_MEMORY(shared);
    constexpr unsigned ROWS = 16 * M * WARPS;
    bf16 *const queries = (bf16 *)shared;
    // Two stages of keys, then values.
    bf16 *const walked = queries + ROWS * D;

    const unsigned head = blockIdx.x, own = 16 * M * warp_index(), lane = lane_index();
    const QueryTile tile = tiles[blockIdx.y];
    const int begin = max(0, tile.position + 1 - (int)window), end = tile.position + (int)tile.count;
    const int num_tiles = end > begin ? (end - begin + WALK - 1) / WALK : 0;
    const size_t kv_start = (size_t)tile.key_row * heads.kv_stride() + head / heads.group() * heads.head_dim;
    const auto copy_keys = [&](int i) {
        const int first = begin + i * (int)WALK;
        const size_t start = kv_start + (size_t)first * heads.kv_stride();
        bf16 *const stage = walked + i % 2 * 2 * WALK * D;
        copy_tile<D, WALK>(stage, k + start, heads.kv_stride(), end - first, heads.head_dim);
        copy_tile<D, WALK>(stage + WALK * D, v + start, heads.kv_stride(), end - first, heads.head_dim);
    };

    // 1. Queries and the first keys.
    const size_t start = (size_t)tile.row * heads.stride() + head * heads.head_dim;
    copy_tile<D, ROWS>(queries, q + start, heads.stride(), tile.count, heads.head_dim);
    commit_copies();
    if (num_tiles > 0) copy_keys(0);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();

    // 2. All the keys that are seen.
    const int query = tile.position + (int)own;
    const bool has_rows = own < tile.count;
    Online<D, M> softmax;
    const auto walk = [&](const auto &left) {
        for (int i = 0; i < num_tiles; i++) {
            wait_for_copies<0>();
            // Behind it no warp reads the other stage any more.
            __syncthreads();
            if (i + 1 < num_tiles) {
                copy_keys(i + 1);
                commit_copies();
            }
            const int key = begin + i * (int)WALK;
            const View view(query, 16 * M, key, WALK, window);
            if (!has_rows || !view.is_any) continue;
            const bf16 *const keys = walked + i % 2 * 2 * WALK * D;
            float scores[M][WALK / 8][4];
            multiply_transposed<D, M, WALK>(scores, left, keys);
            if (!view.is_all) hide<RowsAre::QUERIES, M, WALK>(scores, query, key, window);
            softmax.template weigh<WALK>(scores, scale * LOG2_E);
            multiply_add<D, M, WALK>(softmax.output, scores, keys + WALK * D);
        }
    };
    const SharedRows<D> rows{queries, own};
    if constexpr (M * D <= 128) {
        walk(HeldRows<D, M>(rows));
    } else {
        walk(rows);
    }
    wait_for_copies<0>();

    // 3. The division, and the sink.
    if (!has_rows) return;
    const float sink = sinks == nullptr ? MINUS_INFINITY : sinks[head] * LOG2_E;
#pragma unroll
    for (unsigned m = 0; m < M; m++) {
#pragma unroll
        for (unsigned half = 0; half < 2; half++) {
            const float top = fmaxf(softmax.top[m][half], sink);
            const float shift = top == MINUS_INFINITY ? 0.0f : top;
            const float shrink = exp2_fast(softmax.top[m][half] - shift);
            const float sum = row_sum(softmax.sum[m][half]) * shrink + exp2_fast(sink - shift);
            const float factor = shrink * inverse(sum);
#pragma unroll
            for (unsigned n = 0; n < D / 8; n++) {
                softmax.output[m][n][2 * half] *= factor;
                softmax.output[m][n][2 * half + 1] *= factor;
            }
            const unsigned row = own + 16 * m + 8 * half + lane / 4;
            if (row < tile.count && lane % 4 == 0) {
                log_sums[(size_t)head * num_queries + tile.row + row] = shift + log2f(sum);
            }
        }
    }
    store_rows<D, M>(softmax.output, 1.0f, queries, own, y + start + (size_t)own * heads.stride(), heads.stride(),
                     (int)tile.count - (int)own, heads.head_dim);
}

} // namespace attention

// Blocks (H, tiles). A tile has 64 M queries.
#define ATTENTION_FORWARD(D, M)                                                                                         \
    KERNEL(128, attention_forward_##D)                                                                                  \
    (const bf16 *q, const bf16 *k, const bf16 *v, const float *sinks, const attention::QueryTile *tiles, bf16 *y,      \
     float *log_sums, unsigned num_queries, unsigned num_heads, unsigned num_kv_heads, unsigned head_dim,              \
     unsigned window, float scale) {                                                                                    \
        attention::forward<D, M>(q, k, v, sinks, tiles, y, log_sums, num_queries, {num_heads, num_kv_heads, head_dim}, \
                                 window, scale);                                                                        \
    }

ATTENTION_FORWARD(32, 2)
EXPORT_KERNEL(attention_forward_32)
ATTENTION_FORWARD(64, 2)
EXPORT_KERNEL(attention_forward_64)
ATTENTION_FORWARD(96, 2)
EXPORT_KERNEL(attention_forward_96)
ATTENTION_FORWARD(128, 2)
EXPORT_KERNEL(attention_forward_128)
