// Attention of few queries to many keys, as in decoding: the keys of a segment are split among blocks, which all heads of a
// key/value head share, and a second kernel joins what the splits found.
//
// q, y (T, H·D), k, v (S, G·D) in bf16; sinks (H) and log-sums (base 2, H × T) in f32. A block has 16 rows, each a query of
// a head of the group, query by query. Of a split come partial outputs (tiles, G, 16, D) and their log-sums (tiles, G, 16)
// in f32; where one split is all, its result. Split keys as in Flash-Decoding (pytorch.org/blog/flash-decoding), the maths
// as in `attention.cu`. Twin: `attention.rs`.
#include "attention.cuh"

namespace attention {

constexpr unsigned DECODE_ROWS = 16;

// Tiles of keys below which a block's start costs more than splitting brings.
constexpr unsigned MIN_SPLIT_TILES = 2;

// Rows first_row .. first_row + 16 of the `count` queries from `row` on, times the heads of a group; of the segment, whose
// keys begin at row `key_row`, they look at the keys begin .. end. The first query is level with key `position`. A tile of
// no queries is nothing to do.
struct DecodeTile {
    unsigned row, count, first_row, key_row;
    int position, begin, end;
};

// A query, whose segment's tiles begin with `first_tile`, the `num_splits` of each 16 rows side by side; the rows of its
// heads begin with `first_row`.
struct SplitQuery {
    unsigned first_tile, num_splits, first_row;
};

template <unsigned D>
__device__ __forceinline__ void decode(const bf16 *q, const bf16 *k, const bf16 *v, const float *sinks,
                                       const DecodeTile *tiles, bf16 *y, float *log_sums, float *partial_outputs,
                                       float *partial_log_sums, unsigned num_queries, const Heads heads, unsigned window,
                                       float scale) {
    SHARED_MEMORY(shared);
    bf16 *const queries = (bf16 *)shared;
    // Two stages of keys, then values; in the end the warps' outputs.
    bf16 *const walked = queries + DECODE_ROWS * D;
    float *const outputs = (float *)walked;
    // The warps' highest scores, then sums.
    float *const tops = (float *)(walked + 4 * WALK * D), *const sums = tops + WARPS * DECODE_ROWS;

    const unsigned kv_head = blockIdx.x, warp = warp_index(), lane = lane_index();
    const DecodeTile tile = tiles[blockIdx.y];
    if (tile.count == 0) return;
    const unsigned group = heads.group(), num_rows = min(tile.count * group - tile.first_row, DECODE_ROWS);
    const int num_tiles = (tile.end - tile.begin + (int)WALK - 1) / (int)WALK;
    const size_t kv_start = (size_t)tile.key_row * heads.kv_stride() + kv_head * heads.head_dim;
    const auto copy_keys = [&](int i) {
        const int first = tile.begin + i * (int)WALK;
        const size_t start = kv_start + (size_t)first * heads.kv_stride();
        bf16 *const stage = walked + i % 2 * 2 * WALK * D;
        copy_tile<D, WALK>(stage, k + start, heads.kv_stride(), tile.end - first, heads.head_dim);
        copy_tile<D, WALK>(stage + WALK * D, v + start, heads.kv_stride(), tile.end - first, heads.head_dim);
    };
    // Where a row's values are in q and y, and its log-sum.
    const auto query_of = [&](unsigned row) { return tile.row + (tile.first_row + row) / group; };
    const auto head_of = [&](unsigned row) { return kv_head * group + (tile.first_row + row) % group; };
    const auto start_of = [&](unsigned row) {
        return (size_t)query_of(row) * heads.stride() + head_of(row) * heads.head_dim;
    };

    // 1. The rows, and the first two tiles of keys: what a block waits for here is memory.
    if (num_tiles > 0) copy_keys(0);
    for (unsigned i = threadIdx.x; i < DECODE_ROWS * D / 8; i += THREADS) {
        const unsigned row = i / (D / 8), chunk = i % (D / 8);
        const bool is_there = row < num_rows && 8 * chunk < heads.head_dim;
        copy_async(queries + chunk_at<D>(row, chunk), is_there ? q + start_of(row) + 8 * chunk : q, is_there);
    }
    commit_copies();
    if (num_tiles > 1) copy_keys(1);
    commit_copies();

    // 2. A quarter of each tile's keys a warp. A split ends with a tile, or with the last key that is seen.
    Online<D, 1> softmax;
    const unsigned own = 16 * warp;
    const int query[2] = {tile.position + (int)((tile.first_row + lane / 4) / group),
                          tile.position + (int)((tile.first_row + lane / 4 + 8) / group)};
    for (int i = 0; i < num_tiles; i++) {
        wait_for_copies<1>();
        __syncthreads();
        const bf16 *const keys = walked + i % 2 * 2 * WALK * D;
        float scores[1][2][4];
        multiply_transposed<D, 1, 16>(scores, SharedRows<D>{queries, 0}, keys, own);
#pragma unroll
        for (unsigned n = 0; n < 2; n++) {
#pragma unroll
            for (unsigned j = 0; j < 4; j++) {
                const int key = tile.begin + i * (int)WALK + (int)(own + 8 * n + lane % 4 * 2 + j % 2);
                if (!sees(query[j / 2], key, window)) scores[0][n][j] = MINUS_INFINITY;
            }
        }
        softmax.template weigh<16>(scores, scale * LOG2_E);
        multiply_add<D, 1, 16>(softmax.output, scores, keys + WALK * D, own);
        __syncthreads();
        if (i + 2 < num_tiles) copy_keys(i + 2);
        commit_copies();
    }
    wait_for_copies<0>();
    __syncthreads();

    // 3. What the warps have goes to where the keys were.
#pragma unroll
    for (unsigned half = 0; half < 2; half++) {
        const unsigned row = lane / 4 + 8 * half;
        const float sum = row_sum(softmax.sum[0][half]);
        if (lane % 4 == 0) {
            tops[DECODE_ROWS * warp + row] = softmax.top[0][half];
            sums[DECODE_ROWS * warp + row] = sum;
        }
#pragma unroll
        for (unsigned n = 0; n < D / 8; n++) {
            *(float2 *)(outputs + (DECODE_ROWS * warp + row) * D + 8 * n + lane % 4 * 2) =
                make_float2(softmax.output[0][n][2 * half], softmax.output[0][n][2 * half + 1]);
        }
    }
    __syncthreads();

    // 4. A pair of columns a thread.
    const bool is_all = partial_outputs == nullptr;
    const size_t partial = ((size_t)blockIdx.y * heads.num_kv_heads + kv_head) * DECODE_ROWS;
    const unsigned pairs = heads.head_dim / 2;
    for (unsigned i = threadIdx.x; i < num_rows * pairs; i += THREADS) {
        const unsigned row = i / pairs, column = i % pairs * 2;
        float top = is_all && sinks != nullptr ? sinks[head_of(row)] * LOG2_E : MINUS_INFINITY;
        const float sink = top;
#pragma unroll
        for (unsigned j = 0; j < WARPS; j++) top = fmaxf(top, tops[DECODE_ROWS * j + row]);
        const float shift = top == MINUS_INFINITY ? 0.0f : top;
        float sum = exp2_fast(sink - shift);
        float2 output = make_float2(0.0f, 0.0f);
#pragma unroll
        for (unsigned j = 0; j < WARPS; j++) {
            const float shrink = exp2_fast(tops[DECODE_ROWS * j + row] - shift);
            const float2 part = *(const float2 *)(outputs + (DECODE_ROWS * j + row) * D + column);
            sum += sums[DECODE_ROWS * j + row] * shrink;
            output = make_float2(output.x + part.x * shrink, output.y + part.y * shrink);
        }
        const float factor = inverse(sum), log_sum = shift + log2f(sum);
        if (is_all) {
            *(uint32_t *)(y + start_of(row) + column) = pack_bf16(output.x * factor, output.y * factor);
            if (column == 0) log_sums[(size_t)head_of(row) * num_queries + query_of(row)] = log_sum;
        } else {
            *(float2 *)(partial_outputs + (partial + row) * heads.head_dim + column) =
                make_float2(output.x * factor, output.y * factor);
            if (column == 0) partial_log_sums[partial + row] = log_sum;
        }
    }
}

} // namespace attention

// Blocks (G, tiles). Without memory for partial results, a tile's is written to y.
#define ATTENTION_DECODE(D)                                                                                             \
    KERNEL(128, attention_decode_##D)                                                                                   \
    (const bf16 *q, const bf16 *k, const bf16 *v, const float *sinks, const attention::DecodeTile *tiles, bf16 *y,     \
     float *log_sums, float *partial_outputs, float *partial_log_sums, unsigned num_queries, unsigned num_heads,       \
     unsigned num_kv_heads, unsigned head_dim, unsigned window, float scale) {                                          \
        attention::decode<D>(q, k, v, sinks, tiles, y, log_sums, partial_outputs, partial_log_sums, num_queries,       \
                             {num_heads, num_kv_heads, head_dim}, window, scale);                                       \
    }

ATTENTION_DECODE(32)
EXPORT_KERNEL(attention_decode_32)
ATTENTION_DECODE(64)
EXPORT_KERNEL(attention_decode_64)
ATTENTION_DECODE(96)
EXPORT_KERNEL(attention_decode_96)
ATTENTION_DECODE(128)
EXPORT_KERNEL(attention_decode_128)

// Blocks (H, T), a thread a column (the last have none).
KERNEL(128, attention_join)
(const float *partial_outputs, const float *partial_log_sums, const float *sinks, const attention::SplitQuery *queries,
 bf16 *y, float *log_sums, unsigned num_heads, unsigned num_kv_heads, unsigned head_dim) {
    const unsigned head = blockIdx.x, group = num_heads / num_kv_heads;
    const attention::SplitQuery query = queries[blockIdx.y];
    const auto part_of = [&](unsigned split) {
        const unsigned row = query.first_row + head % group;
        const size_t tile = query.first_tile + row / attention::DECODE_ROWS * query.num_splits + split;
        return (tile * num_kv_heads + head / group) * attention::DECODE_ROWS + row % attention::DECODE_ROWS;
    };
    const float sink = sinks == nullptr ? MINUS_INFINITY : sinks[head] * LOG2_E;
    float top = sink;
    for (unsigned i = 0; i < query.num_splits; i++) top = fmaxf(top, partial_log_sums[part_of(i)]);
    const float shift = top == MINUS_INFINITY ? 0.0f : top;
    float sum = exp2_fast(sink - shift), output = 0.0f;
    const unsigned column = min(threadIdx.x, head_dim - 1);
#pragma unroll 4
    for (unsigned i = 0; i < query.num_splits; i++) {
        const float weight = exp2_fast(partial_log_sums[part_of(i)] - shift);
        sum += weight;
        output = fmaf(weight, partial_outputs[part_of(i) * head_dim + column], output);
    }
    if (threadIdx.x < head_dim) {
        y[((size_t)blockIdx.y * num_heads + head) * head_dim + column] = to_bf16(output * attention::inverse(sum));
    }
    if (threadIdx.x == 0) log_sums[(size_t)head * gridDim.y + blockIdx.y] = shift + log2f(sum);
}
EXPORT_KERNEL(attention_join)

// A block a sequence: the tiles of one query each, where only the device knows how many keys there are. Sequence b's keys
// are the rows b · capacity .. b · capacity + lengths[b] + 1, the last of them the query's own. It has `num_row_tiles` times
// `max_splits` tiles; those that its keys do not need are of no queries.
KERNEL(128, attention_decode_tiles)
(const unsigned *lengths, attention::DecodeTile *tiles, attention::SplitQuery *queries, unsigned capacity,
 unsigned num_row_tiles, unsigned max_splits, unsigned window) {
    const unsigned sequence = blockIdx.x, first_tile = sequence * num_row_tiles * max_splits;
    const unsigned num_keys = min(lengths[sequence] + 1, capacity);
    const unsigned first_key = window < num_keys ? num_keys - window : 0;
    const unsigned num_key_tiles = (num_keys - first_key + attention::WALK - 1) / attention::WALK;
    const unsigned split_tiles = max((num_key_tiles + max_splits - 1) / max_splits, attention::MIN_SPLIT_TILES);
    const unsigned num_splits = (num_key_tiles + split_tiles - 1) / split_tiles;
    const unsigned split_keys = split_tiles * attention::WALK;
    for (unsigned i = threadIdx.x; i < num_row_tiles * max_splits; i += blockDim.x) {
        const unsigned begin = first_key + i % num_splits * split_keys;
        const bool is_needed = i < num_row_tiles * num_splits;
        tiles[first_tile + i] = attention::DecodeTile{sequence,
                                                      is_needed ? 1u : 0u,
                                                      i / num_splits * attention::DECODE_ROWS,
                                                      sequence * capacity,
                                                      (int)num_keys - 1,
                                                      (int)begin,
                                                      (int)min(begin + split_keys, num_keys)};
    }
    if (threadIdx.x == 0) queries[sequence] = attention::SplitQuery{first_tile, num_splits, 0};
}
EXPORT_KERNEL(attention_decode_tiles)
