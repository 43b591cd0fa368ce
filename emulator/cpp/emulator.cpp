#include "emulator.hpp"

#include <csetjmp>
#include <cstdarg>
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
    // Of its generations those that were barriers.
    unsigned barriers = 0;
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
    unsigned live = 0, arrived = 0, generation = 0, first_generation = 0;
    const Kernel *kernel = nullptr;
    void **arguments = nullptr;
    const char *name = "";
};

thread_local Block *block;
thread_local Fiber *running;
thread_local jmp_buf scheduler;

// Not inlined, so that no caller's variables live across a jump.
__attribute__((noinline)) void leave() {
    Fiber *self = running;
    if (_setjmp(self->context) == 0) _longjmp(scheduler, 1);
}

// The running thread goes on behind what it waited for.
void go_on() {
    const unsigned thread = place.thread_index.x;
    const Index &index = place.block_index, &grid = place.grid_dim;
    const uint64_t number = ((uint64_t)index.z * grid.y + index.y) * grid.x + index.x;
    const auto stack = reinterpret_cast<uintptr_t>(running->stack);
    watch_thread({number, thread, block->generation - block->first_generation, block->warps[thread / LANES].barriers},
                 {stack, stack + STACK_BYTES});
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
    go_on();
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
    block->first_generation = block->generation;
    for (Warp &warp : block->warps) warp.barriers = 0;
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

void fail(const char *format, ...) {
    std::fprintf(stderr, "emulator: kernel %s, block (%u, %u, %u), thread %u: ", block->name, place.block_index.x,
                 place.block_index.y, place.block_index.z, place.thread_index.x);
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    va_end(arguments);
    std::fputc('\n', stderr);
    std::abort();
}

void add_kernel(const char *name, Kernel kernel) { kernels()[name] = std::move(kernel); }

void barrier() {
    const unsigned generation = block->generation;
    block->arrived++;
    release_if_all_arrived();
    if (block->generation == generation) wait_while(&block->generation, generation);
    go_on();
}

namespace {

// What every lane of the warp gives, `size` bytes each: lane i's are at the result + SLOT i, until this lane's next meeting
// but one.
const uint8_t *meet(const void *value, size_t size, bool is_barrier) {
    if (size > SLOT) fail("an exchange of more than 64 bytes");
    Warp &warp = block->warps[place.thread_index.x / LANES];
    const unsigned generation = warp.generation;
    uint8_t *slots = warp.slots[generation % 2];
    if (size != 0) std::memcpy(slots + SLOT * (place.thread_index.x % LANES), value, size);
    if (++warp.arrived == LANES) {
        warp.arrived = 0;
        warp.generation++;
        if (is_barrier) warp.barriers++;
    } else {
        wait_while(&warp.generation, generation);
    }
    go_on();
    return slots;
}

template <typename T> T given(const uint8_t *slots, unsigned lane, unsigned i = 0) {
    T value;
    std::memcpy(&value, slots + SLOT * lane + sizeof(T) * i, sizeof(T));
    return value;
}

float half_of(uint32_t pair, bool is_high) {
    const uint32_t bits = is_high ? pair & 0xffff0000u : pair << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

} // namespace

void warp_barrier() { meet(nullptr, 0, true); }

void exchange(const void *value, size_t size, unsigned lane, void *other) {
    std::memcpy(other, meet(value, size, false) + SLOT * lane, size);
}

unsigned ballot(bool is_set) {
    const uint8_t *all = meet(&is_set, sizeof(is_set), false);
    unsigned bits = 0;
    for (unsigned lane = 0; lane < LANES; lane++) bits |= (given<bool>(all, lane) ? 1u : 0u) << lane;
    return bits;
}

void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const uint32_t own[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const uint8_t *all = meet(own, sizeof(own), false);
    const unsigned lane = place.thread_index.x % LANES, group = lane / 4, thread = lane % 4;
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row_half = i / 2, column = 2 * thread + i % 2;
        float sum = 0.0f;
        for (unsigned k = 0; k < 16; k++) {
            const unsigned k_half = k / 8, pair = k % 8 / 2;
            const auto left = given<uint32_t>(all, 4 * group + pair, row_half + 2 * k_half);
            const auto right = given<uint32_t>(all, 4 * column + pair, 4 + k_half);
            sum += half_of(left, k % 2 != 0) * half_of(right, k % 2 != 0);
        }
        d[i] += sum;
    }
}

void load_matrices(uint32_t (&fragments)[4], const void *row, bool is_transposed) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("a row of a matrix that is not aligned");
    watch(row, 16, Access::READ);
    const uint8_t *all = meet(&row, sizeof(row), false);
    const unsigned lane = place.thread_index.x % LANES, group = lane / 4, thread = lane % 4;
    for (unsigned matrix = 0; matrix < 4; matrix++) {
        const auto value = [&](unsigned r, unsigned column) -> uint32_t {
            return given<const uint16_t *>(all, 8 * matrix + r)[column];
        };
        fragments[matrix] = is_transposed ? value(2 * thread, group) | value(2 * thread + 1, group) << 16
                                          : value(group, 2 * thread) | value(group, 2 * thread + 1) << 16;
    }
}

void copy_later(void *to, const void *from, size_t size, size_t room) {
    const auto is_aligned = [=](const void *at) { return reinterpret_cast<uintptr_t>(at) % room == 0; };
    if (!is_aligned(to) || (size != 0 && !is_aligned(from))) fail("a copy of %zu bytes that is not aligned", room);
    if (size != 0) watch(from, size, Access::READ);
    watch(to, room, Access::COPY_BEGINS);
    running->open_group.push_back({static_cast<uint8_t *>(to), static_cast<const uint8_t *>(from), size, room});
}

void commit_copies() {
    running->groups.push_back(std::move(running->open_group));
    running->open_group.clear();
}

void wait_for_copies(unsigned groups_left) {
    while (running->groups.size() > groups_left) {
        for (const Copy &copy : running->groups.front()) {
            watch(copy.to, copy.room, Access::COPY_ENDS);
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
    const auto range = [](const void *begin, size_t size) {
        const auto at = reinterpret_cast<uintptr_t>(begin);
        return Range{at, at + size};
    };
    begin_watch({range(place.shared_memory, shared_bytes), range(own.kernel, sizeof(Kernel)), range(&place, sizeof(place))});
    while (fibers.size() < num_threads) fibers.push_back(new_fiber());
    for (unsigned z = 0; z < grid[2]; z++) {
        for (unsigned y = 0; y < grid[1]; y++) {
            for (unsigned x = 0; x < grid[0]; x++) {
                place.block_index = {x, y, z};
                run_block(num_threads);
            }
        }
    }
    end_watch();
    block = nullptr;
    return 0;
}
