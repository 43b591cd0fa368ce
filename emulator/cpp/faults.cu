// Kernels with a fault each, which the watch has to find; `sound` has none.
#include "common.cuh"

KERNEL(64, sound)(float *x, unsigned *count) {
    SHARED_MEMORY(memory);
    float *const shared = (float *)memory;
    __shared__ float own[64];
    copy_async(memory + 16 * threadIdx.x, x + 4 * threadIdx.x, threadIdx.x < 16 && blockIdx.x == 0);
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();
    own[threadIdx.x] = shared[63 - threadIdx.x];
    __syncwarp();
    const float neighbour = own[threadIdx.x ^ 1];
    __syncthreads();
    shared[threadIdx.x] = neighbour;
    atomicAdd(count, 1u);
    if (blockIdx.x == 0) x[threadIdx.x] = shared[threadIdx.x];
}
EXPORT_KERNEL(sound)

KERNEL(64, no_barrier)(float *x, unsigned *) {
    __shared__ float own[64];
    own[threadIdx.x] = x[threadIdx.x];
    x[threadIdx.x] = own[(threadIdx.x + 32) % 64];
}
EXPORT_KERNEL(no_barrier)

KERNEL(64, no_warp_barrier)(float *x, unsigned *) {
    __shared__ float own[64];
    own[threadIdx.x] = warp_sum(x[threadIdx.x]);
    x[threadIdx.x] = warp_sum(own[threadIdx.x ^ 1]);
}
EXPORT_KERNEL(no_warp_barrier)

KERNEL(64, no_barrier_before_writing)(float *x, unsigned *) {
    __shared__ float own[64];
    own[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    const float other = own[63 - threadIdx.x];
    own[threadIdx.x] = other;
}
EXPORT_KERNEL(no_barrier_before_writing)

KERNEL(64, no_wait)(float *x, unsigned *) {
    SHARED_MEMORY(memory);
    copy_async(memory + 16 * threadIdx.x, x, false);
    commit_copies();
    x[threadIdx.x] = ((float *)memory)[4 * threadIdx.x];
    wait_for_copies<0>();
}
EXPORT_KERNEL(no_wait)

KERNEL(64, no_barrier_behind_copies)(float *x, unsigned *) {
    SHARED_MEMORY(memory);
    copy_async(memory + 16 * threadIdx.x, x, false);
    commit_copies();
    wait_for_copies<0>();
    x[threadIdx.x] = ((float *)memory)[4 * (63 - threadIdx.x)];
}
EXPORT_KERNEL(no_barrier_behind_copies)

KERNEL(64, blocks_at_one_place)(float *x, unsigned *) { x[threadIdx.x] = (float)blockIdx.x; }
EXPORT_KERNEL(blocks_at_one_place)

KERNEL(64, a_block_writes_what_another_reads)(float *x, unsigned *) {
    const float own = x[threadIdx.x];
    if (blockIdx.x == 1) x[threadIdx.x] = own + 1.0f;
}
EXPORT_KERNEL(a_block_writes_what_another_reads)

KERNEL(64, beyond_a_tensor)(float *x, unsigned *) {
    float sum = 0.0f;
    for (unsigned i = 0; i <= 64; i++) sum += x[i];
    if (sum == 0.0f) x[0] = 1.0f;
}
EXPORT_KERNEL(beyond_a_tensor)

KERNEL(64, beyond_shared_memory)(float *, unsigned *) {
    SHARED_MEMORY(memory);
    ((float *)memory)[4 * threadIdx.x + 4] = 0.0f;
}
EXPORT_KERNEL(beyond_shared_memory)

KERNEL(64, beyond_an_array)(float *x, unsigned *) {
    __shared__ float own[64];
    own[threadIdx.x + 1] = x[threadIdx.x];
    x[threadIdx.x] = own[threadIdx.x + 1];
}
EXPORT_KERNEL(beyond_an_array)

KERNEL(64, not_aligned)(float *x, unsigned *) {
    if (threadIdx.x == 0) *(float4 *)(x + 1) = float4{0.0f, 0.0f, 0.0f, 0.0f};
}
EXPORT_KERNEL(not_aligned)
