// Products C = scale · (A B + A2 B2) + bias: see gemm.cuh. The names say where K lies: `nt` y = x Wᵀ, of A (M,K) and
// B (N,K); `nn` dx = dy W, of (M,K) and (K,N); `tn` dW = dyᵀ x, of (K,M) and (K,N). C is (M,N), in bf16 or f32.
//
// A block has a tile of C and of K so many steps of 32; blockIdx.y says which. Where K is split, or N odd, C is an f32
// matrix a part with an even width, and `sum_parts` adds them, always in the same order. Twin: `cpu::matmul`, in f32.
#include "gemm.cuh"

using namespace gemm;

namespace {

struct Sizes {
    unsigned m, n, k, more_k;
};

template <class TILE, K A_K, K B_K, class MATRIX>
__device__ __forceinline__ void product(const bf16 *a, const MATRIX &b, const bf16 *more_a, const bf16 *more_b,
                                        const float *bias, void *c, Sizes sizes, unsigned steps_a_block, float scale,
                                        unsigned flags) {
    SHARED_MEMORY(shared);
    const auto [m, n, k, more_k] = sizes;
    const Place<TILE> place(blockIdx.x, m, n);
    const Factors<MATRIX> factors = {{a, row_width(A_K == K::WITHIN_ROWS ? k : m)}, b, k};
    const Factors<Bf16Matrix> more = {
        {more_a, row_width(A_K == K::WITHIN_ROWS ? more_k : m)},
        {more_b, row_width(B_K == K::WITHIN_ROWS ? more_k : n)},
        more_k};
    const unsigned first_step = blockIdx.y * steps_a_block;
    const Range steps = {first_step, min(first_step + steps_a_block, num_steps(k) + num_steps(more_k))};
    Sums<TILE> sums;
    multiply<TILE, A_K, B_K>(sums, shared, factors, more, place.rows, place.columns, steps);
    const bool is_f32 = (flags & IS_F32) != 0;
    const unsigned width = n + n % 2;
    uint8_t *const part = (uint8_t *)c + (size_t)blockIdx.y * m * width * (is_f32 ? sizeof(float) : sizeof(bf16));
    const Range columns = {place.columns.begin, width};
    Output{part, width, is_f32, (flags & ADDS) != 0, scale, bias}.write(sums, place.rows, columns);
}

} // namespace

#define BF16_PRODUCT(name, TILE, A_K, B_K)                                                                             \
    KERNEL(TILE::THREADS, name)                                                                                        \
    (const bf16 *a, const bf16 *b, const bf16 *more_a, const bf16 *more_b, const float *bias, void *c, unsigned m,     \
     unsigned n, unsigned k, unsigned more_k, unsigned steps_a_block, float scale, unsigned flags) {                   \
        const Bf16Matrix matrix = {b, row_width(B_K == K::WITHIN_ROWS ? k : n)};                                       \
        product<TILE, A_K, B_K>(a, matrix, more_a, more_b, bias, c, {m, n, k, more_k}, steps_a_block, scale, flags);   \
    }

#define NF4_PRODUCT(name, TILE, B_K)                                                                                   \
    KERNEL(TILE::THREADS, name)                                                                                        \
    (const bf16 *a, const uint8_t *codes, const float *scales, const uint8_t *scale_codes, const float *scale_map,     \
     float scale_offset, const bf16 *more_a, const bf16 *more_b, const float *bias, void *c, unsigned m, unsigned n,   \
     unsigned k, unsigned more_k, unsigned steps_a_block, float scale, unsigned flags) {                               \
        const Nf4Scales all = {scales, scale_codes, scale_map, scale_offset};                                          \
        const Nf4Matrix matrix = {codes, all, B_K == K::WITHIN_ROWS ? k : n};                                          \
        product<TILE, K::WITHIN_ROWS, B_K>(a, matrix, more_a, more_b, bias, c, {m, n, k, more_k}, steps_a_block,       \
                                           scale, flags);                                                              \
    }

BF16_PRODUCT(product_nt_large, LargeTile, K::WITHIN_ROWS, K::WITHIN_ROWS)
EXPORT_KERNEL(product_nt_large)
BF16_PRODUCT(product_nt_small, SmallTile, K::WITHIN_ROWS, K::WITHIN_ROWS)
EXPORT_KERNEL(product_nt_small)
BF16_PRODUCT(product_nn_large, LargeTile, K::WITHIN_ROWS, K::ACROSS_ROWS)
EXPORT_KERNEL(product_nn_large)
BF16_PRODUCT(product_nn_small, SmallTile, K::WITHIN_ROWS, K::ACROSS_ROWS)
EXPORT_KERNEL(product_nn_small)
BF16_PRODUCT(product_tn_large, LargeTile, K::ACROSS_ROWS, K::ACROSS_ROWS)
EXPORT_KERNEL(product_tn_large)
BF16_PRODUCT(product_tn_small, SmallTile, K::ACROSS_ROWS, K::ACROSS_ROWS)
EXPORT_KERNEL(product_tn_small)
NF4_PRODUCT(product_nt_nf4_large, LargeTile, K::WITHIN_ROWS)
EXPORT_KERNEL(product_nt_nf4_large)
NF4_PRODUCT(product_nt_nf4_small, SmallTile, K::WITHIN_ROWS)
EXPORT_KERNEL(product_nt_nf4_small)
NF4_PRODUCT(product_nn_nf4_large, LargeTile, K::ACROSS_ROWS)
EXPORT_KERNEL(product_nn_nf4_large)
NF4_PRODUCT(product_nn_nf4_small, SmallTile, K::ACROSS_ROWS)
EXPORT_KERNEL(product_nn_nf4_small)

// C (M,N) from the parts (P,M,N or N + 1) of its sums, a thread a value.
KERNEL(256, sum_parts)
(const float *parts, unsigned num_parts, const float *bias, void *c, unsigned m, unsigned n, float scale, unsigned flags) {
    const size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (size_t)m * n) return;
    const unsigned row = at / n, column = at % n, width = n + n % 2;
    float sum = 0.0f;
    for (unsigned part = 0; part < num_parts; part++) sum += parts[((size_t)part * m + row) * width + column];
    Output{c, n, (flags & IS_F32) != 0, (flags & ADDS) != 0, scale, bias}.write_one(sum, row, column);
}
EXPORT_KERNEL(sum_parts)
