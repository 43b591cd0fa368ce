// What routed experts do between their products: activation, and a token's sum over its K places.
//
// P = T · K rows of bf16, sorted by expert: `rows` (P) gives a place's row, `order` (P) a row's place. Gate and up are in
// turns, (P, 2I): y = (up + offset) · gate · sigmoid(alpha · gate), gate at most `limit`, up within ± `limit`, where a
// clamped value has no gradient. Widths are multiples of 8. Twin: `experts.rs`.
#include "common.cuh"

namespace {

struct Activation {
    float alpha, limit, offset;

    struct Parts {
        float gate, up, sigmoid;
    };

    __device__ __forceinline__ Parts parts(uint32_t pair) const {
        const float gate = fminf(low_half(pair), limit);
        return {gate, fminf(fmaxf(high_half(pair), -limit), limit), sigmoid(alpha * gate)};
    }

    __device__ __forceinline__ float value(const Parts &parts) const {
        return (parts.up + offset) * parts.gate * parts.sigmoid;
    }

    // The gradient of gate and up from that of the value.
    __device__ __forceinline__ uint32_t gradient(uint32_t pair, const Parts &parts, float dvalue) const {
        const float slope = parts.sigmoid * (1.0f + alpha * parts.gate * (1.0f - parts.sigmoid));
        const float dgate = low_half(pair) <= limit ? dvalue * (parts.up + offset) * slope : 0.0f;
        const float dup = fabsf(high_half(pair)) <= limit ? dvalue * parts.gate * parts.sigmoid : 0.0f;
        return pack_bf16(dgate, dup);
    }
};

} // namespace

// gate_up (P, 2I) -> inner (P, I), four values a thread.
KERNEL(256, experts_activation)
(const uint4 *gate_up, uint2 *inner, unsigned num_fours, float alpha, float limit, float offset) {
    const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= num_fours) return;
    const Activation activation = {alpha, limit, offset};
    const uint4 pairs = gate_up[at];
    const float first = activation.value(activation.parts(pairs.x)), second = activation.value(activation.parts(pairs.y));
    const float third = activation.value(activation.parts(pairs.z)), last = activation.value(activation.parts(pairs.w));
    inner[at] = make_uint2(pack_bf16(first, second), pack_bf16(third, last));
}
EXPORT_KERNEL(experts_activation)

// Of the rows' dinner = dy D (P, I), without the routing's weights: dweights (P, by place) = dinner · inner + dy · c, and in
// place of gate_up its gradient, with the weight. dy (T, C), down's bias c (E, C) in f32. A block a row.
KERNEL(256, experts_activation_backward)
(uint4 *gate_up, const uint2 *dinner, const uint4 *dy, const float *down_bias, const float *weights,
 const uint32_t *experts, const uint32_t *order, const uint32_t *tokens, float *dweights, unsigned inner_width,
 unsigned width, float alpha, float limit, float offset) {
    const Activation activation = {alpha, limit, offset};
    const unsigned row = blockIdx.x, place = order[row];
    const float weight = weights[place];
    gate_up += (size_t)row * (inner_width / 4);
    dinner += (size_t)row * (inner_width / 4);
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < inner_width / 4; i += blockDim.x) {
        const uint4 pairs = gate_up[i];
        const uint2 gradients = dinner[i];
        uint32_t all[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
        const float own[4] = {low_half(gradients.x), high_half(gradients.x), low_half(gradients.y), high_half(gradients.y)};
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            const Activation::Parts parts = activation.parts(all[j]);
            sum += own[j] * activation.value(parts);
            all[j] = activation.gradient(all[j], parts, own[j] * weight);
        }
        gate_up[i] = make_uint4(all[0], all[1], all[2], all[3]);
    }
    dy += (size_t)tokens[row] * (width / 8);
    const float4 *const bias = (const float4 *)(down_bias + (size_t)experts[place] * width);
    for (unsigned i = threadIdx.x; i < width / 8; i += blockDim.x) {
        const uint4 values = dy[i];
        const float4 low = bias[2 * i], high = bias[2 * i + 1];
        sum += low_half(values.x) * low.x + high_half(values.x) * low.y + low_half(values.y) * low.z +
               high_half(values.y) * low.w + low_half(values.z) * high.x + high_half(values.z) * high.y +
               low_half(values.w) * high.z + high_half(values.w) * high.w;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) dweights[place] = sum;
}
EXPORT_KERNEL(experts_activation_backward)

// y (T, C) = each token's K rows of `values` (P, C), times their weights (T, K) if there are any. A block a token.
KERNEL(256, experts_combine)
(const uint4 *values, const uint32_t *rows, const float *weights, uint4 *y, unsigned width, unsigned k) {
    const unsigned token = blockIdx.x;
    for (unsigned i = threadIdx.x; i < width / 8; i += blockDim.x) {
        float sums[8] = {};
        for (unsigned place = token * k; place < (token + 1) * k; place++) {
            const float weight = weights ? weights[place] : 1.0f;
            const uint4 part = values[(size_t)rows[place] * (width / 8) + i];
            const uint32_t pairs[4] = {part.x, part.y, part.z, part.w};
#pragma unroll
            for (unsigned j = 0; j < 4; j++) {
                sums[2 * j] += weight * low_half(pairs[j]);
                sums[2 * j + 1] += weight * high_half(pairs[j]);
            }
        }
        y[(size_t)token * (width / 8) + i] = make_uint4(pack_bf16(sums[0], sums[1]), pack_bf16(sums[2], sums[3]),
                                                        pack_bf16(sums[4], sums[5]), pack_bf16(sums[6], sums[7]));
    }
}
EXPORT_KERNEL(experts_combine)
