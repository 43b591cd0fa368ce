// Cross-entropy of logits, and its gradient: loss = log Σ exp(z) − z[target]; dz = weight · (softmax(z) − onehot).
//
// A block a row: logits (N, V) f32 are read twice, dlogits (N, V) bf16 written once if wanted. Of a row's loss and whether
// its target is the likeliest come two floats. Twin: `cross_entropy.rs`.
#include "common.cuh"

KERNEL(512, cross_entropy)
(const float *logits, const unsigned *targets, const float *weights, float scale, bf16 *dlogits, float *losses,
 unsigned vocab_size) {
    const unsigned row = blockIdx.x;
    const float *const z = logits + (size_t)row * vocab_size;
    const float target_logit = z[targets[row]];
    // 1. Largest logit and sum of exponentials, online: each thread its own, then together
    float largest = MINUS_INFINITY, sum = 0.0f;
    bool is_number = true;
    for (unsigned i = threadIdx.x; i < vocab_size; i += blockDim.x) {
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
    // 2. The gradient
    bf16 *const dz = dlogits + (size_t)row * vocab_size;
    const float weight = scale * (weights == nullptr ? 1.0f : weights[row]);
    const float factor = weight / total;
    for (unsigned i = threadIdx.x; i < vocab_size; i += blockDim.x) {
        const float share = exp_fast(z[i] - all_largest) * factor;
        dz[i] = to_bf16(i == targets[row] ? share - weight : share);
    }
}
EXPORT_KERNEL(cross_entropy)
