// Cross-entropy of logits, and its gradient: loss = log Σ exp(z) − z[target]; dz = weight · (softmax(z) − onehot).
//
// A block a row. Its logits are V of a table and K of rows that learn, which stand in for the table's rows `own_ids` or
// follow its last; `targets` count both, the table's first. Logits f32 are read twice, their gradients bf16 written once if
// they are wanted; a row of the table's is `stride` long, filled up with zeros. Of a row come two floats: its loss, and whether its target is the likeliest. Twin: `cross_entropy.rs`.
#include "common.cuh"

namespace {

constexpr unsigned NO_ROW = 0xffffffffu;

struct Logits {
    const float *table, *own;
    unsigned vocab_size;

    __device__ __forceinline__ float operator[](unsigned i) const {
        return i < vocab_size ? table[i] : own[i - vocab_size];
    }
};

} // namespace

// `own_ids` (K) are 2³² − 1 where a row is only there to make K a multiple of 8: it is no token's.
KERNEL(512, cross_entropy)
(float *logits, float *own_logits, const unsigned *own_ids, unsigned num_own, const unsigned *targets,
 const float *weights, bf16 *dlogits, bf16 *down, float *losses, unsigned vocab_size, unsigned stride) {
    const unsigned row = blockIdx.x;
    const Logits z{logits + (size_t)row * stride, own_logits + (size_t)row * num_own, vocab_size};
    // 1. What is replaced, or no token's, takes no part.
    for (unsigned i = threadIdx.x; i < num_own; i += blockDim.x) {
        if (own_ids[i] == NO_ROW) own_logits[(size_t)row * num_own + i] = MINUS_INFINITY;
        if (own_ids[i] < vocab_size) logits[(size_t)row * stride + own_ids[i]] = MINUS_INFINITY;
    }
    __syncthreads();
    const unsigned target = targets[row], count = vocab_size + num_own;
    const float target_logit = z[target];
    // 2. Largest logit and sum of exponentials, online: each thread its own, then together
    float largest = MINUS_INFINITY, sum = 0.0f;
    bool is_number = true;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
        const float value = z[i];
        is_number = is_number && value == value;
        if (value > largest) {
            sum *= exp_fast(largest - value);
            largest = value;
        }
        if (largest > MINUS_INFINITY) sum += exp_fast(value - largest);
    }
    const float all_largest = block_max(largest);
    // A thread that saw nothing has a sum of 0, whatever the factor.
    sum = largest > MINUS_INFINITY ? sum * exp_fast(largest - all_largest) : 0.0f;
    const float total = block_sum(is_number ? sum : NO_NUMBER);
    if (threadIdx.x == 0) {
        losses[2 * row] = logf(total) + all_largest - target_logit;
        losses[2 * row + 1] = target_logit >= all_largest ? 1.0f : 0.0f;
    }
    if (dlogits == nullptr) return;
    // 3. The gradient
    const float weight = weights == nullptr ? 1.0f : weights[row];
    const float factor = weight / total;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
        const float share = exp_fast(z[i] - all_largest) * factor;
        const bf16 gradient = to_bf16(i == target ? share - weight : share);
        if (i < vocab_size) {
            dlogits[(size_t)row * stride + i] = gradient;
        } else {
            down[(size_t)row * num_own + i - vocab_size] = gradient;
        }
    }
    for (unsigned i = vocab_size + threadIdx.x; i < stride; i += blockDim.x) {
        dlogits[(size_t)row * stride + i] = to_bf16(0.0f);
    }
}
EXPORT_KERNEL(cross_entropy)

// y = x · factor, the factor read on the device.
KERNEL(256, scale)(const bf16 *x, const float *factor, bf16 *y, uint64_t length) {
    const uint64_t at = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < length) y[at] = to_bf16(to_float(x[at]) * *factor);
}
EXPORT_KERNEL(scale)
