// Products of routed experts: row i of C (P, N) is row i of A times the matrix of its own expert, + bias (+ A2 B2, LoRA's).
//
// Rows are sorted by expert, and `tiles` (see routing.cu) says which rows of which expert a block has, so that nothing
// comes back to the host. `nt`: y = x Wᵀ, W (E · N, K); `nn`: dx = dy W, W (E · K, N). W is bf16, NF4 or MXFP4; A2 (P, K2)
// and B2, laid out as W, are bf16; bias (E, N) is f32. A's rows may be gathered by an index. Sums f32, C bf16. Twin:
// `experts.rs`.
#include "gemm.cuh"

using namespace gemm;

namespace {

struct Group {
    // (P, K), or gathered by `index` (P).
    const bf16 *a;
    const unsigned *index;
    const bf16 *more_a, *more_b;
    const float *bias;
    bf16 *c;
    const uint4 *tiles;
    unsigned n, k, more_k;
};

template <class TILE, K B_K, class MATRIX> __device__ __forceinline__ void product(const Group &group, MATRIX b) {
    SHARED_MEMORY(shared);
    const uint4 work = group.tiles[blockIdx.y];
    const unsigned expert = work.x;
    const Range rows = {work.y, work.z}, columns = {blockIdx.x * TILE::COLUMNS, group.n};
    if (rows.begin == rows.end) return;
    const auto [a, index, more_a, more_b, bias, c, tiles, n, k, more_k] = group;
    const bool is_within = B_K == K::WITHIN_ROWS;
    b.first_row = expert * (is_within ? n : k);
    const Factors<MATRIX> factors = {{a, k, 0, index}, b, k};
    const Factors<Bf16Matrix> more = {
        {more_a, more_k}, {more_b, is_within ? more_k : n, expert * (is_within ? n : more_k)}, more_k};
    Sums<TILE> sums;
    multiply<TILE, K::WITHIN_ROWS, B_K>(sums, shared, factors, more, rows, columns, {0, num_steps(k) + num_steps(more_k)});
    const float *const own_bias = bias ? bias + (size_t)expert * n : nullptr;
    Output{c, n, false, false, 1.0f, own_bias}.write(sums, rows, columns);
}

} // namespace

#define BF16_PRODUCT(name, TILE, B_K)                                                                                  \
    KERNEL(TILE::THREADS, name)                                                                                        \
    (const bf16 *a, const unsigned *index, const bf16 *b, const bf16 *more_a, const bf16 *more_b, const float *bias,   \
     bf16 *c, const uint4 *tiles, unsigned n, unsigned k, unsigned more_k) {                                           \
        const Bf16Matrix matrix = {b, B_K == K::WITHIN_ROWS ? k : n};                                                  \
        product<TILE, B_K>({a, index, more_a, more_b, bias, c, tiles, n, k, more_k}, matrix);                          \
    }

#define NF4_PRODUCT(name, TILE, B_K)                                                                                   \
    KERNEL(TILE::THREADS, name)                                                                                        \
    (const bf16 *a, const unsigned *index, const uint8_t *codes, const float *scales, const bf16 *more_a,              \
     const bf16 *more_b, const float *bias, bf16 *c, const uint4 *tiles, unsigned n, unsigned k, unsigned more_k) {    \
        const Nf4Matrix matrix = {codes, {scales, nullptr, nullptr, 0.0f}, B_K == K::WITHIN_ROWS ? k : n};             \
        product<TILE, B_K>({a, index, more_a, more_b, bias, c, tiles, n, k, more_k}, matrix);                          \
    }

#define MXFP4_PRODUCT(name, TILE, B_K)                                                                                 \
    KERNEL(TILE::THREADS, name)                                                                                        \
    (const bf16 *a, const unsigned *index, const uint8_t *codes, const uint8_t *exponents, const bf16 *more_a,         \
     const bf16 *more_b, const float *bias, bf16 *c, const uint4 *tiles, unsigned n, unsigned k, unsigned more_k) {    \
        const Mxfp4Matrix matrix = {codes, exponents, B_K == K::WITHIN_ROWS ? k : n};                                  \
        product<TILE, B_K>({a, index, more_a, more_b, bias, c, tiles, n, k, more_k}, matrix);                          \
    }

BF16_PRODUCT(experts_nt_bf16_large, LargeTile, K::WITHIN_ROWS)
EXPORT_KERNEL(experts_nt_bf16_large)
BF16_PRODUCT(experts_nt_bf16_small, SmallTile, K::WITHIN_ROWS)
EXPORT_KERNEL(experts_nt_bf16_small)
BF16_PRODUCT(experts_nn_bf16_large, LargeTile, K::ACROSS_ROWS)
EXPORT_KERNEL(experts_nn_bf16_large)
BF16_PRODUCT(experts_nn_bf16_small, SmallTile, K::ACROSS_ROWS)
EXPORT_KERNEL(experts_nn_bf16_small)
NF4_PRODUCT(experts_nt_nf4_large, LargeTile, K::WITHIN_ROWS)
EXPORT_KERNEL(experts_nt_nf4_large)
NF4_PRODUCT(experts_nt_nf4_small, SmallTile, K::WITHIN_ROWS)
EXPORT_KERNEL(experts_nt_nf4_small)
NF4_PRODUCT(experts_nn_nf4_large, LargeTile, K::ACROSS_ROWS)
EXPORT_KERNEL(experts_nn_nf4_large)
NF4_PRODUCT(experts_nn_nf4_small, SmallTile, K::ACROSS_ROWS)
EXPORT_KERNEL(experts_nn_nf4_small)
MXFP4_PRODUCT(experts_nt_mxfp4_large, LargeTile, K::WITHIN_ROWS)
EXPORT_KERNEL(experts_nt_mxfp4_large)
MXFP4_PRODUCT(experts_nt_mxfp4_small, SmallTile, K::WITHIN_ROWS)
EXPORT_KERNEL(experts_nt_mxfp4_small)
MXFP4_PRODUCT(experts_nn_mxfp4_large, LargeTile, K::ACROSS_ROWS)
EXPORT_KERNEL(experts_nn_mxfp4_large)
MXFP4_PRODUCT(experts_nn_mxfp4_small, SmallTile, K::ACROSS_ROWS)
EXPORT_KERNEL(experts_nn_mxfp4_small)
