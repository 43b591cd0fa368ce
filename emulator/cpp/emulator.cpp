#include "emulator.hpp"

#include <csetjmp>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <sys/mman.h>
#include <ucontext.h>

namespace emulator {

thread_local Place place;

namespace {

constexpr size_t STACK_BYTES = 128 << 10;
constexpr unsigned LANES = 32;
constexpr size_t SLOT = 64;

struct Copy {
    uint8_t *to;
    const uint8_t *from;
    size_t size, room;
};

struct Warp {
    unsigned arrived = 0, generation = 0;
    // Two, so that a lane may come to the next exchange before all have read this one.
    uint8_t slots[2][LANES * SLOT];
};

struct Fiber {
    ucontext_t start;
    jmp_buf context;
    uint8_t *stack = nullptr;
    bool is_started = false, is_done = false;
    // What it waits for: that this is no longer that.
    const unsigned *waits_on = nullptr;
    unsigned waits_while = 0;
    std::deque<std::vector<Copy>> groups;
    std::vector<Copy> open_group;

    ~Fiber() {
        if (stack != nullptr) munmap(stack, STACK_BYTES);
    }
};

// Those of all launches so far of this OS thread: between two they wait for the next block.
thread_local std::vector<std::unique_ptr<Fiber>> fibers;

struct Block {
    std::vector<Warp> warps;
    std::vector<uint8_t> shared_memory;
    unsigned live = 0, arrived = 0, generation = 0;
    const Kernel *kernel = nullptr;
    void **arguments = nullptr;
    const char *name = "";
};

thread_local Block *block;
thread_local Fiber *running;
thread_local jmp_buf scheduler;

[[noreturn]] void fail(const char *what) {
    std::fprintf(stderr, "emulator: %s in kernel %s, block (%u, %u, %u), thread %u\n", what, block->name,
                 place.block_index.x, place.block_index.y, place.block_index.z, place.thread_index.x);
    std::abort();
}

// Not inlined, so that no caller's variables live across a jump.
__attribute__((noinline)) void leave() {
    Fiber *self = running;
    if (_setjmp(self->context) == 0) _longjmp(scheduler, 1);
}

void wait_while(const unsigned *generation, unsigned value) {
    running->waits_on = generation;
    running->waits_while = value;
    leave();
    running->waits_on = nullptr;
}

void release_if_all_arrived() {
    if (block->arrived != 0 && block->arrived == block->live) {
        block->arrived = 0;
        block->generation++;
    }
}

// A fiber's life: the kernel for one block, then it waits for the next.
void live() {
    for (;;) {
        block->kernel->run(block->arguments);
        if (!running->groups.empty() || !running->open_group.empty()) fail("copies nobody waited for");
        running->is_done = true;
        block->live--;
        release_if_all_arrived();
        leave();
    }
}

__attribute__((noinline)) void enter(Fiber &fiber) {
    running = &fiber;
    if (_setjmp(scheduler) != 0) return;
    if (fiber.is_started) _longjmp(fiber.context, 1);
    fiber.is_started = true;
    setcontext(&fiber.start);
}

// Not inlined either: getcontext returns twice.
__attribute__((noinline)) std::unique_ptr<Fiber> new_fiber() {
    auto fiber = std::make_unique<Fiber>();
    void *stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) fail("no memory for a stack");
    fiber->stack = static_cast<uint8_t *>(stack);
    getcontext(&fiber->start);
    fiber->start.uc_stack.ss_sp = fiber->stack;
    fiber->start.uc_stack.ss_size = STACK_BYTES;
    fiber->start.uc_link = nullptr;
    makecontext(&fiber->start, live, 0);
    return fiber;
}

bool can_run(const Fiber &fiber) {
    return !fiber.is_done && (fiber.waits_on == nullptr || *fiber.waits_on != fiber.waits_while);
}

void run_block(unsigned num_threads) {
    block->live = num_threads;
    block->arrived = 0;
    std::fill(block->shared_memory.begin(), block->shared_memory.end(), 0xff);
    for (unsigned thread = 0; thread < num_threads; thread++) fibers[thread]->is_done = false;
    for (unsigned round = 0; block->live != 0; round++) {
        bool has_progress = false;
        const bool is_backwards = (round * 2654435761u) >> 31 != 0;
        const unsigned first = round * 7919u;
        for (unsigned i = 0; i < num_threads; i++) {
            const unsigned at = (first + i) % num_threads;
            const unsigned thread = is_backwards ? num_threads - 1 - at : at;
            Fiber &fiber = *fibers[thread];
            if (!can_run(fiber)) continue;
            place.thread_index = {thread, 0, 0};
            enter(fiber);
            has_progress = true;
        }
        if (!has_progress) fail("threads wait for others that never come");
    }
}

std::map<std::string, Kernel> &kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

} // namespace

void add_kernel(const char *name, Kernel kernel) { kernels()[name] = std::move(kernel); }

void barrier() {
    const unsigned generation = block->generation;
    block->arrived++;
    release_if_all_arrived();
    if (block->generation == generation) wait_while(&block->generation, generation);
}

const uint8_t *exchange(const void *value, size_t size) {
    if (size > SLOT) fail("an exchange of more than 64 bytes");
    Warp &warp = block->warps[place.thread_index.x / LANES];
    const unsigned generation = warp.generation;
    uint8_t *slots = warp.slots[generation % 2];
    std::memcpy(slots + SLOT * (place.thread_index.x % LANES), value, size);
    if (++warp.arrived == LANES) {
        warp.arrived = 0;
        warp.generation++;
    } else {
        wait_while(&warp.generation, generation);
    }
    return slots;
}

void copy_later(void *to, const void *from, size_t size, size_t room) {
    running->open_group.push_back({static_cast<uint8_t *>(to), static_cast<const uint8_t *>(from), size, room});
}

void commit_copies() {
    running->groups.push_back(std::move(running->open_group));
    running->open_group.clear();
}

void wait_for_copies(unsigned groups_left) {
    while (running->groups.size() > groups_left) {
        for (const Copy &copy : running->groups.front()) {
            std::memcpy(copy.to, copy.from, copy.size);
            std::memset(copy.to + copy.size, 0, copy.room - copy.size);
        }
        running->groups.pop_front();
    }
}

} // namespace emulator

// Runs a kernel to its end. 0, or 1 for a kernel there is not, 2 for arguments that are not its own, 3 for a launch that
// no GPU would take.
extern "C" int lathe_emulate(const char *name, const unsigned *grid, unsigned num_threads, unsigned shared_bytes,
                             void **arguments, const size_t *sizes, size_t num_arguments) {
    using namespace emulator;
    const auto found = kernels().find(name);
    if (found == kernels().end()) return 1;
    if (found->second.argument_sizes != std::vector<size_t>(sizes, sizes + num_arguments)) return 2;
    const bool is_possible = num_threads % LANES == 0 && num_threads != 0 && num_threads <= 1024 &&
                             shared_bytes <= (99u << 10) && grid[0] != 0 && grid[1] != 0 && grid[2] != 0 &&
                             grid[1] < 65536 && grid[2] < 65536;
    if (!is_possible) return 3;

    Block own;
    own.kernel = &found->second;
    own.name = found->first.c_str();
    own.arguments = arguments;
    own.warps.resize(num_threads / LANES);
    // 16 bytes more: the kernel's part is aligned to them.
    own.shared_memory.resize(shared_bytes + 16);
    block = &own;
    const uintptr_t unaligned = reinterpret_cast<uintptr_t>(own.shared_memory.data());
    place.shared_memory = reinterpret_cast<uint8_t *>((unaligned + 15) / 16 * 16);
    place.block_dim = {num_threads, 1, 1};
    place.grid_dim = {grid[0], grid[1], grid[2]};
    while (fibers.size() < num_threads) fibers.push_back(new_fiber());
    for (unsigned z = 0; z < grid[2]; z++) {
        for (unsigned y = 0; y < grid[1]; y++) {
            for (unsigned x = 0; x < grid[0]; x++) {
                place.block_index = {x, y, z};
                run_block(num_threads);
            }
        }
    }
    block = nullptr;
    return 0;
}
