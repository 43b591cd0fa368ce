// Several sequences that are continued a token at a time, where only the device knows which tokens and how far each is: no
// launch of a step depends on the step, so that it can be captured once and replayed.
//
// Sequence b of B has `lengths[b]` tokens in its part of each layer's cache, rows b · capacity and on of keys and values
// (B · capacity, G·D) in bf16. Twins: `Model::embed` and `Model::decode` of the engine, `gpu/decode.rs` for draws.
#include "common.cuh"

// A block a sequence: its new key and value (B, G·D) become its cache's next row, unless it is full, or not continued.
// Widths are multiples of 8.
KERNEL(128, cache_append)
(const bf16 *k, const bf16 *v, bf16 *keys, bf16 *values, const unsigned *lengths, const unsigned *strides,
 unsigned capacity, unsigned width) {
    const unsigned sequence = blockIdx.x, position = lengths[sequence];
    if (position >= capacity || strides[sequence] == 0) return;
    const size_t from = (size_t)sequence * width, to = ((size_t)sequence * capacity + position) * width;
    for (unsigned i = 8 * threadIdx.x; i < width; i += 8 * blockDim.x) {
        *(uint4 *)(keys + to + i) = *(const uint4 *)(k + from + i);
        *(uint4 *)(values + to + i) = *(const uint4 *)(v + from + i);
    }
}
EXPORT_KERNEL(cache_append)

// A thread a sequence: it has `strides[b]` more tokens, and its next draw, 0 to 1, is made of its key and its length.
KERNEL(128, cache_advance)
(unsigned *lengths, const unsigned *strides, const uint2 *keys, float *draws, unsigned batch) {
    const unsigned sequence = blockIdx.x * blockDim.x + threadIdx.x;
    if (sequence >= batch) return;
    const unsigned length = lengths[sequence] + strides[sequence];
    const uint2 key = keys[sequence];
    lengths[sequence] = length;
    draws[sequence] = (float)(splitmix64(((uint64_t)key.y << 32 | key.x) ^ length) >> 40) * 0x1p-24f;
}
EXPORT_KERNEL(cache_advance)

namespace {

// y (B, C) in bf16: each token's row of the table (V, C), or of an adapter's own rows (K, C) if it is one of `own_ids`.
template <typename Table>
__device__ __forceinline__ void embed(const Table *table, const float *own_rows, const unsigned *own_ids, unsigned num_own,
                                      const unsigned *tokens, bf16 *y, unsigned width) {
    const unsigned token = tokens[blockIdx.x];
    unsigned place = 0;
    while (place < num_own && own_ids[place] != token) place++;
    bf16 *const to = y + (size_t)blockIdx.x * width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const float value =
            place < num_own ? own_rows[(size_t)place * width + i] : to_float(table[(size_t)token * width + i]);
        to[i] = to_bf16(value);
    }
}

} // namespace

// A block a token.
KERNEL(256, embed_bf16)
(const bf16 *table, const float *own_rows, const unsigned *own_ids, unsigned num_own, const unsigned *tokens, bf16 *y,
 unsigned width) {
    embed(table, own_rows, own_ids, num_own, tokens, y, width);
}
EXPORT_KERNEL(embed_bf16)

KERNEL(256, embed_f32)
(const float *table, const float *own_rows, const unsigned *own_ids, unsigned num_own, const unsigned *tokens, bf16 *y,
 unsigned width) {
    embed(table, own_rows, own_ids, num_own, tokens, y, width);
}
EXPORT_KERNEL(embed_f32)
