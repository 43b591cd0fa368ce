// The next token of each row of logits, drawn on the device: of V logits only four bytes come back.
//
// A token's weight is exp((z − max) / temperature), counted in 2^-40, so that sums are exact and their order does not
// matter. Kept are the `top_k` likeliest tokens, of these the smallest set of the likeliest that holds `top_p` of the
// weight; of equal logits the lower id first. Of the kept, in the order of ids, that token is drawn in whose share of the
// weight `draw` (0 to 1) falls. At temperature 0 it is the likeliest. Twin: `sampling.rs`.
#include "common.cuh"

namespace {

constexpr unsigned THREADS = 1024;
constexpr unsigned BINS = 2048;
constexpr float ONE = 1099511627776.0f; // 2^40

typedef unsigned long long Mass;

// In the order of the floats; what is no number is last.
__device__ __forceinline__ unsigned key_of(float value) {
    if (value != value) return 0;
    const unsigned bits = __float_as_uint(value);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// The tokens that are kept: those above `key`, and the first `num_equal` with it.
struct Kept {
    unsigned key, num_equal;
    // Of those above, and of one that is equal.
    Mass above, one;
};

struct Shared {
    Mass histogram[BINS];
    Mass sums[32];
    unsigned digit;
    Mass above;
};

__device__ Mass block_total(Shared *shared, Mass value) {
    for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(FULL_WARP, value, mask);
    __syncthreads();
    if (lane_index() == 0) shared->sums[warp_index()] = value;
    __syncthreads();
    Mass total = 0;
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) total += shared->sums[warp];
    return total;
}

// The sum of the values of all threads before this one.
__device__ Mass sum_before(Shared *shared, Mass value) {
    Mass sum = value;
    for (unsigned by = 1; by < 32; by *= 2) {
        const Mass other = __shfl_up_sync(FULL_WARP, sum, by);
        if (lane_index() >= by) sum += other;
    }
    __syncthreads();
    if (lane_index() == 31) shared->sums[warp_index()] = sum;
    __syncthreads();
    for (unsigned warp = 0; warp < warp_index(); warp++) sum += shared->sums[warp];
    return sum - value;
}

struct Row {
    const float *logits;
    unsigned vocab_size;
    float largest, inverse_temperature;

    __device__ __forceinline__ Mass weight(float logit) const {
        return (Mass)(exp_fast((logit - largest) * inverse_temperature) * ONE);
    }
};

// What a token counts: one for top-k, its weight for top-p, nothing if it was not kept before.
template <bool BY_WEIGHT> struct Measure {
    Row row;
    unsigned least_key;

    __device__ __forceinline__ Mass of(unsigned key, float logit) const {
        if (key < least_key) return 0;
        return BY_WEIGHT ? row.weight(logit) : 1;
    }
};

// The likeliest tokens that hold `wanted` together: a radix search from the highest bits of the keys down.
template <bool BY_WEIGHT> __device__ Kept select(Shared *shared, const Measure<BY_WEIGHT> &measure, Mass wanted) {
    const Row &row = measure.row;
    Mass above = 0;
    unsigned prefix = 0;
    const unsigned widths[3] = {11, 11, 10};
    unsigned shift = 32;
    for (unsigned pass = 0; pass < 3; pass++) {
        const unsigned width = widths[pass], bins = 1u << width;
        shift -= width;
        for (unsigned i = threadIdx.x; i < bins; i += blockDim.x) shared->histogram[i] = 0;
        __syncthreads();
        for (unsigned i = threadIdx.x; i < row.vocab_size; i += blockDim.x) {
            const unsigned key = key_of(row.logits[i]);
            const bool matches = pass == 0 || key >> (shift + width) == prefix;
            const Mass mass = matches ? measure.of(key, row.logits[i]) : 0;
            if (mass != 0) atomicAdd(&shared->histogram[key >> shift & (bins - 1)], mass);
        }
        __syncthreads();
        // Bins from the highest down, two a thread: the one at which what is above reaches what is wanted.
        const unsigned first = bins - 1 - 2 * threadIdx.x;
        const bool has_bins = 2 * threadIdx.x < bins;
        const Mass one = has_bins ? shared->histogram[first] : 0;
        const Mass two = has_bins ? shared->histogram[first - 1] : 0;
        const Mass before = above + sum_before(shared, one + two);
        if (has_bins && before < wanted && before + one >= wanted) {
            shared->digit = first;
            shared->above = before;
        }
        if (has_bins && before + one < wanted && before + one + two >= wanted) {
            shared->digit = first - 1;
            shared->above = before + one;
        }
        __syncthreads();
        prefix = prefix << width | shared->digit;
        above = shared->above;
        __syncthreads();
    }
    // All of one key weigh the same.
    const float logit = __uint_as_float(prefix >> 31 ? prefix & 0x7fffffffu : ~prefix);
    const Mass one = BY_WEIGHT ? row.weight(logit) : 1;
    return Kept{prefix, (unsigned)((wanted - above + one - 1) / one), above, one};
}

} // namespace

// A block a row of logits (B, V); `draws` (B), `tokens` (B). Never drawn are `num_forbidden` ids, a row's own where they lie
// `forbidden_stride` apart, those of all if that is 0; ids beyond V stand for none. A `top_k` of 0 is all.
KERNEL(1024, sample)
(float *logits, const unsigned *forbidden, unsigned num_forbidden, unsigned forbidden_stride, const float *draws,
 unsigned *tokens, unsigned vocab_size, float temperature, unsigned top_k, float top_p) {
    SHARED_MEMORY(memory);
    Shared *const shared = (Shared *)memory;
    float *const z = logits + (size_t)blockIdx.x * vocab_size;
    for (unsigned i = threadIdx.x; i < num_forbidden; i += blockDim.x) {
        const unsigned id = forbidden[blockIdx.x * forbidden_stride + i];
        if (id < vocab_size) z[id] = MINUS_INFINITY;
    }
    __syncthreads();
    float own = MINUS_INFINITY;
    for (unsigned i = threadIdx.x; i < vocab_size; i += blockDim.x) own = fmaxf(own, z[i]);
    const Row row{z, vocab_size, block_max(own), 1.0f / temperature};

    // 1. Which tokens are kept
    Kept kept{key_of(row.largest), 1, 0, 1};
    if (temperature > 0.0f) {
        const Measure<false> counts{row, 1};
        const bool cuts = top_k != 0 && top_k < vocab_size;
        Kept likeliest{1, vocab_size, 0, 1};
        if (cuts) likeliest = select(shared, counts, (Mass)top_k);
        // What these weigh: those above the last key, and some of it.
        Mass weight = 0;
        for (unsigned i = threadIdx.x; i < vocab_size; i += blockDim.x) {
            if (key_of(z[i]) >= likeliest.key + (cuts ? 1 : 0)) weight += row.weight(z[i]);
        }
        Mass total = block_total(shared, weight);
        if (cuts) {
            const unsigned key = likeliest.key;
            const float logit = __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
            likeliest.above = total;
            likeliest.one = row.weight(logit);
            total += likeliest.num_equal * likeliest.one;
        }
        kept = likeliest;
        const Mass wanted = (Mass)(top_p * (double)total);
        if (top_p < 1.0f && wanted < total) {
            const Kept of_weight = select(shared, Measure<true>{row, likeliest.key}, wanted == 0 ? 1 : wanted);
            // A row of equals that top-k cut stays cut.
            kept = of_weight.key == likeliest.key && of_weight.num_equal > likeliest.num_equal ? likeliest : of_weight;
        }
    }

    // 2. The draw: each thread has some ids in a row, the equals are counted before what they weigh.
    const unsigned per_thread = (vocab_size + blockDim.x - 1) / blockDim.x;
    const unsigned start = min(threadIdx.x * per_thread, vocab_size), end = min(start + per_thread, vocab_size);
    Mass equals = 0;
    for (unsigned i = start; i < end; i++) equals += key_of(z[i]) == kept.key;
    const Mass first_equal = sum_before(shared, equals);
    const auto weight_of = [&](unsigned i, Mass &equal) -> Mass {
        const unsigned key = key_of(z[i]);
        if (key < kept.key || key == 0) return 0;
        if (key == kept.key && equal++ >= kept.num_equal) return 0;
        return temperature > 0.0f ? row.weight(z[i]) : 1;
    };
    Mass weight = 0, equal = first_equal;
    for (unsigned i = start; i < end; i++) weight += weight_of(i, equal);
    const Mass total = block_total(shared, weight);
    Mass before = sum_before(shared, weight);
    Mass target = (Mass)(draws[blockIdx.x] * (double)total);
    if (total != 0 && target >= total) target = total - 1;
    if (threadIdx.x == 0) tokens[blockIdx.x] = 0;
    __syncthreads();
    if (before <= target && target < before + weight) {
        equal = first_equal;
        for (unsigned i = start; i < end; i++) {
            const Mass own_weight = weight_of(i, equal);
            if (target < before + own_weight) {
                tokens[blockIdx.x] = i;
                break;
            }
            before += own_weight;
        }
    }
}
EXPORT_KERNEL(sample)
