// Looks at every access that a kernel makes to memory, as compute-sanitizer's memcheck and racecheck do on a card.
//
// The kernels are compiled with `-fsanitize=thread`, whose calls at each access end here instead of in its library. Wrong is
// an access outside of the block's shared memory and of all that Rust has allocated, one to what an asynchronous copy still
// writes, and one that another thread's may come before or after: of two, one of them writing, in different blocks of a
// launch, or of one block with neither `__syncthreads` between them nor, within a warp, `__syncwarp`. Exchanges between lanes
// order nothing, as on a card.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator {

enum class Access { READ, WRITE, ATOMIC, COPY_BEGINS, COPY_ENDS };

// By the running thread, of `size` bytes.
void watch(const void *at, size_t size, Access access);

struct Range {
    uintptr_t begin, end;

    size_t size() const { return end - begin; }
    bool has(uintptr_t at, size_t size) const { return at >= begin && at + size <= end; }
};

// Where a block's dynamic shared memory lies, and what else of this OS thread's kernels may read.
struct Surroundings {
    Range shared, kernel, place;
};
void begin_watch(const Surroundings &surroundings);

// When a thread makes its accesses: how many barriers its block, and its warp, have behind them.
struct Moment {
    uint64_t block;
    unsigned thread, barriers, warp_barriers;
};
// A thread runs, from here on at this moment; its stack is nobody else's.
void watch_thread(const Moment &moment, const Range &stack);
void end_watch();

[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

} // namespace emulator
