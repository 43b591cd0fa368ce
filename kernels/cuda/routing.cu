// Which experts a token goes to, and the places (token · K + rank) in the experts' order, all without the host.
//
// logits (T, E) in bf16 or f32 -> weights (T, K) in f32: w_i = exp(l_i − m) / Σ exp(l_j − m) over the chosen or over all,
// m the greatest; experts (T, K), the greatest logit first, of equal ones the lower expert. K <= 32. Gradient:
// dl_i = w_i (dw_i − Σ w dw), dw_i = 0 where not chosen. Twin: `routing.rs`.
#include "common.cuh"

namespace {

// Greater for a greater value (−0 below 0, as `total_cmp` has it), of equal ones for a lower expert; never 0.
__device__ __forceinline__ uint64_t rank_key(float value, unsigned expert) {
    const uint32_t bits = __float_as_uint(value);
    const uint32_t ordered = bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
    return (uint64_t)ordered << 32 | (0xffffffffu - expert);
}

__device__ __forceinline__ uint64_t warp_greatest(uint64_t key) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        const uint64_t other = __shfl_xor_sync(FULL_WARP, key, mask);
        key = other > key ? other : key;
    }
    return key;
}

__device__ __forceinline__ unsigned warp_total(unsigned value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(FULL_WARP, value, mask);
    return value;
}

// A warp a token.
template <typename T>
__device__ void top_k(const T *logits, float *weights, uint32_t *experts, unsigned num_tokens, unsigned num_experts,
                      unsigned k, unsigned is_over_all) {
    const unsigned token = blockIdx.x * (blockDim.x / 32) + warp_index(), lane = lane_index();
    if (token >= num_tokens) return;
    logits += (size_t)token * num_experts;
    // 1. The greatest key below the last, k times; lane i keeps the i-th.
    uint64_t last = ~(uint64_t)0, own = 0;
    for (unsigned i = 0; i < k; i++) {
        uint64_t greatest = 0;
        for (unsigned expert = lane; expert < num_experts; expert += 32) {
            const uint64_t key = rank_key(to_float(logits[expert]), expert);
            if (key < last && key > greatest) greatest = key;
        }
        last = warp_greatest(greatest);
        if (lane == i) own = last;
    }
    // 2. Their shares
    const unsigned chosen = lane < k ? 0xffffffffu - (uint32_t)own : 0;
    const float logit = to_float(logits[chosen]);
    const float greatest = __shfl_sync(FULL_WARP, logit, 0);
    const float share = lane < k ? exp_fast(logit - greatest) : 0.0f;
    float sum = share;
    if (is_over_all) {
        sum = 0.0f;
        for (unsigned expert = lane; expert < num_experts; expert += 32) {
            sum += exp_fast(to_float(logits[expert]) - greatest);
        }
    }
    sum = warp_sum(sum);
    if (lane >= k) return;
    weights[token * k + lane] = share / sum;
    experts[token * k + lane] = chosen;
}

// A warp a token.
template <typename T>
__device__ void top_k_backward(const T *logits, const float *weights, const uint32_t *experts, const float *dweights,
                               T *dlogits, unsigned num_tokens, unsigned num_experts, unsigned k,
                               unsigned is_over_all) {
    const unsigned token = blockIdx.x * (blockDim.x / 32) + warp_index(), lane = lane_index();
    if (token >= num_tokens) return;
    logits += (size_t)token * num_experts;
    dlogits += (size_t)token * num_experts;
    const bool is_place = lane < k;
    const float weight = is_place ? weights[token * k + lane] : 0.0f;
    const float dweight = is_place ? dweights[token * k + lane] : 0.0f;
    const unsigned chosen = is_place ? experts[token * k + lane] : 0;
    const float mean = warp_sum(weight * dweight);
    const float own = weight * (dweight - mean);
    const unsigned first = __shfl_sync(FULL_WARP, chosen, 0);
    const float greatest = to_float(logits[first]), greatest_weight = __shfl_sync(FULL_WARP, weight, 0);
    for (unsigned start = 0; start < num_experts; start += 32) {
        const unsigned expert = start + lane;
        float gradient = 0.0f;
        if (is_over_all && expert < num_experts) {
            gradient = -mean * greatest_weight * exp_fast(to_float(logits[expert]) - greatest);
        }
        for (unsigned i = 0; i < k; i++) {
            const unsigned other = __shfl_sync(FULL_WARP, chosen, i);
            const float value = __shfl_sync(FULL_WARP, own, i);
            if (other == expert) gradient = value;
        }
        if (expert < num_experts) store(&dlogits[expert], gradient);
    }
}

} // namespace

KERNEL(128, route_bf16)
(const bf16 *logits, float *weights, uint32_t *experts, unsigned num_tokens, unsigned num_experts, unsigned k,
 unsigned is_over_all) {
    top_k(logits, weights, experts, num_tokens, num_experts, k, is_over_all);
}
EXPORT_KERNEL(route_bf16)

KERNEL(128, route_f32)
(const float *logits, float *weights, uint32_t *experts, unsigned num_tokens, unsigned num_experts, unsigned k,
 unsigned is_over_all) {
    top_k(logits, weights, experts, num_tokens, num_experts, k, is_over_all);
}
EXPORT_KERNEL(route_f32)

KERNEL(128, route_backward_bf16)
(const bf16 *logits, const float *weights, const uint32_t *experts, const float *dweights, bf16 *dlogits,
 unsigned num_tokens, unsigned num_experts, unsigned k, unsigned is_over_all) {
    top_k_backward(logits, weights, experts, dweights, dlogits, num_tokens, num_experts, k, is_over_all);
}
EXPORT_KERNEL(route_backward_bf16)

KERNEL(128, route_backward_f32)
(const float *logits, const float *weights, const uint32_t *experts, const float *dweights, float *dlogits,
 unsigned num_tokens, unsigned num_experts, unsigned k, unsigned is_over_all) {
    top_k_backward(logits, weights, experts, dweights, dlogits, num_tokens, num_experts, k, is_over_all);
}
EXPORT_KERNEL(route_backward_f32)

// Sorts the P places by expert, those of an expert as they come; a block an expert, each for itself.
//
// order (P): the place of each row, tokens (P): that place's token, rows (P): the row of each place, offsets (E + 1):
// where an expert's rows begin.
// tiles (max_tiles): the work of a grouped product, at most `tile_rows` rows of one expert each, as (expert, first row,
// row behind the last, 0); what is left over has no rows. max_tiles >= P / tile_rows + E. Shared: E numbers.
KERNEL(512, sort_places)
(const uint32_t *experts, uint32_t *order, uint32_t *tokens, uint32_t *rows, uint32_t *offsets, uint4 *tiles,
 unsigned num_places, unsigned k, unsigned tile_rows, unsigned max_tiles) {
    SHARED_MEMORY(shared);
    __shared__ uint32_t warp_counts[16];
    uint32_t *counts = (uint32_t *)shared;
    const unsigned num_experts = gridDim.x, expert = blockIdx.x, lane = lane_index(), warp = warp_index();
    for (unsigned i = threadIdx.x; i < num_experts; i += blockDim.x) counts[i] = 0;
    __syncthreads();
    // 1. How many places each expert has, and how many of this one a warp's part has
    const unsigned warps = blockDim.x / 32, part = (num_places + 32 * warps - 1) / (32 * warps) * 32;
    const unsigned start = warp * part, end = min(start + part, num_places);
    unsigned own = 0;
    for (unsigned place = start + lane; place < end; place += 32) {
        const uint32_t chosen = experts[place];
        if (chosen < num_experts) atomicAdd(&counts[chosen], 1u);
        own += chosen == expert;
    }
    own = warp_total(own);
    if (lane == 0) warp_counts[warp] = own;
    __syncthreads();
    // 2. The rows and tiles before this expert's, and the rows before this warp's
    unsigned first_row = 0, first_tile = 0, row = 0;
    for (unsigned i = lane; i < expert; i += 32) {
        first_row += counts[i];
        first_tile += (counts[i] + tile_rows - 1) / tile_rows;
    }
    for (unsigned i = lane; i < warp; i += 32) row += warp_counts[i];
    first_row = warp_total(first_row);
    first_tile = warp_total(first_tile);
    row = first_row + warp_total(row);
    // 3. Each place to its row
    for (unsigned first = start; first < end; first += 32) {
        const unsigned place = first + lane;
        const bool is_own = place < end && experts[place] == expert;
        const unsigned all = __ballot_sync(FULL_WARP, is_own);
        if (is_own) {
            const unsigned at = row + __popc(all & ((1u << lane) - 1));
            order[at] = place;
            tokens[at] = place / k;
            rows[place] = at;
        }
        row += __popc(all);
    }
    // 4. Tiles, by the last expert also those left over
    const unsigned end_row = first_row + counts[expert], num_tiles = (counts[expert] + tile_rows - 1) / tile_rows;
    for (unsigned i = threadIdx.x; i < num_tiles; i += blockDim.x) {
        const unsigned tile_start = first_row + i * tile_rows;
        tiles[first_tile + i] = make_uint4(expert, tile_start, min(tile_start + tile_rows, end_row), 0);
    }
    if (threadIdx.x == 0) offsets[expert] = first_row;
    if (expert != num_experts - 1) return;
    if (threadIdx.x == 0) offsets[num_experts] = end_row;
    for (unsigned i = first_tile + num_tiles + threadIdx.x; i < max_tiles; i += blockDim.x) {
        tiles[i] = make_uint4(0, 0, 0, 0);
    }
}
EXPORT_KERNEL(sort_places)
