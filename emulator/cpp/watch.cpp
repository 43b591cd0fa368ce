#include "watch.hpp"

#include <algorithm>
#include <link.h>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace emulator {

namespace {

// ---- What there is ----

// What Rust has allocated, by its end. Never destroyed: memory is freed until the process has ended.
struct Allocations {
    std::mutex mutex;
    std::map<uintptr_t, uintptr_t> begins;
};

Allocations &allocations() {
    static auto &all = *new Allocations;
    return all;
}

struct Program {
    Range image, threads_own;
};

// Where the program lies with its constants, and the variables of it that each OS thread has: static shared memory.
Program this_program() {
    Program program{{UINTPTR_MAX, 0}, {0, 0}};
    const auto look = [](dl_phdr_info *info, size_t, void *to) {
        auto &program = *static_cast<Program *>(to);
        for (unsigned i = 0; i < info->dlpi_phnum; i++) {
            const auto &header = info->dlpi_phdr[i];
            if (header.p_type == PT_LOAD) {
                const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
                program.image.begin = std::min(program.image.begin, begin);
                program.image.end = std::max(program.image.end, begin + header.p_memsz);
            } else if (header.p_type == PT_TLS) {
                const auto begin = reinterpret_cast<uintptr_t>(info->dlpi_tls_data);
                program.threads_own = {begin, begin + header.p_memsz};
            }
        }
        // The first is the program itself.
        return 1;
    };
    dl_iterate_phdr(look, &program);
    return program;
}

// ---- Who was there ----

// A moment as a number that is not 0: 24 bits of the block, 14 of its barriers, 14 of the warp's, 10 of the thread, and two
// flags.
constexpr uint64_t IS_COPY = 1ull << 63, IS_ATOMIC = 1ull << 62, FLAGS = IS_COPY | IS_ATOMIC;

uint64_t pack(const Moment &moment) {
    if (moment.block + 1 >= 1 << 24 || moment.barriers >= 1 << 14 || moment.warp_barriers >= 1 << 14) {
        fail("more blocks or barriers than can be watched");
    }
    return (moment.block + 1) << 38 | (uint64_t)moment.barriers << 24 | moment.warp_barriers << 10 | moment.thread;
}

uint64_t block_of(uint64_t moment) { return (moment & ~FLAGS) >> 38; }
unsigned barriers_of(uint64_t moment) { return moment >> 24 & 0x3fff; }
unsigned warp_barriers_of(uint64_t moment) { return moment >> 10 & 0x3fff; }
unsigned thread_of(uint64_t moment) { return moment & 0x3ff; }

// Whether what happened then is over now.
bool is_ordered(uint64_t then, uint64_t now) {
    if (then == 0) return true;
    if (block_of(then) != block_of(now)) return false;
    if (thread_of(then) == thread_of(now) || barriers_of(then) < barriers_of(now)) return true;
    return thread_of(then) / 32 == thread_of(now) / 32 && warp_barriers_of(then) < warp_barriers_of(now);
}

// Who was last at some bytes. Of the readers since they were written two are kept, which lets a race through only where
// neither of them is in it.
struct Cell {
    uint64_t write, reads[2];
};

// What is known of a stretch of memory: a cell for 2^shift bytes, as few as the smallest access so far has.
struct Shadow {
    uint64_t launch = 0;
    unsigned shift = 0;
    std::vector<Cell> cells;

    void begin(uint64_t of_launch, size_t size) {
        launch = of_launch;
        shift = 2;
        cells.assign((size + 3) / 4, Cell{});
    }

    template <class VISIT> void visit(size_t at, size_t size, const VISIT &visit_cell) {
        while ((at | size) % (1u << shift) != 0) {
            std::vector<Cell> finer;
            finer.reserve(2 * cells.size());
            for (const Cell &cell : cells) finer.insert(finer.end(), 2, cell);
            cells.swap(finer);
            shift--;
        }
        for (size_t i = at >> shift; i < (at + size) >> shift; i++) visit_cell(cells[i]);
    }
};

constexpr uintptr_t PAGE_BYTES = 4096;
// What is kept of other launches' memory, lest its place is made anew each time.
constexpr size_t MAX_PAGES = 4096;

// What is known of a launch on this OS thread.
struct Watch {
    const Program program = this_program();
    Surroundings around;
    uint64_t launch = 0;
    // Of dynamic and static shared memory, and of all else by page.
    Shadow shared, threads_own;
    std::unordered_map<uintptr_t, Shadow> pages;
    // Found lately.
    uintptr_t last_page_at = UINTPTR_MAX;
    Shadow *last_page = nullptr;
    Range known[8] = {};
    unsigned next_known = 0;

    bool is_allocated(uintptr_t at, size_t size) {
        for (const Range &range : known) {
            if (range.has(at, size)) return true;
        }
        auto &[mutex, begins] = allocations();
        const std::lock_guard guard(mutex);
        const auto found = begins.upper_bound(at);
        if (found == begins.end() || found->second > at || at + size > found->first) return false;
        known[next_known++ % std::size(known)] = {found->second, found->first};
        return true;
    }

    Shadow &page(uintptr_t number) {
        if (number != last_page_at) {
            last_page_at = number;
            last_page = &pages[number];
            if (last_page->launch != launch) last_page->begin(launch, PAGE_BYTES);
        }
        return *last_page;
    }
};

thread_local std::unique_ptr<Watch> current;
// The thread that runs. Outside kernels all memory is its own: there sources make themselves known when the program starts.
constexpr Range ALL = {0, UINTPTR_MAX};
thread_local uint64_t now;
thread_local Range own_stack = ALL;

[[noreturn]] void race(const char *what, uintptr_t at, size_t size, bool is_shared, uint64_t other) {
    fail("%s %zu bytes of %s memory at %#zx, not ordered with what thread %u of block %zu did", what, size,
         is_shared ? "shared" : "global", at, thread_of(other), (size_t)block_of(other) - 1);
}

void visit(Cell &cell, Access access, uintptr_t at, size_t size, bool is_shared) {
    // A block's shared memory is new.
    if (is_shared) {
        for (uint64_t *moment : {&cell.write, &cell.reads[0], &cell.reads[1]}) {
            if (block_of(*moment) != block_of(now)) *moment = 0;
        }
    }
    if ((cell.write & IS_COPY) != 0 && access != Access::COPY_ENDS) {
        race("an access during a copy to", at, size, is_shared, cell.write);
    }
    const bool is_atomic = access == Access::ATOMIC;
    if (!(is_atomic && (cell.write & IS_ATOMIC) != 0) && !is_ordered(cell.write, now)) {
        race(access == Access::READ ? "a read of" : "a second write to", at, size, is_shared, cell.write);
    }
    if (access == Access::READ) {
        if (cell.reads[0] == now) return;
        cell.reads[is_ordered(cell.reads[0], now) ? 0 : 1] = now;
        return;
    }
    for (uint64_t &read : cell.reads) {
        if (!is_ordered(read, now)) race("a write to", at, size, is_shared, read);
        read = 0;
    }
    cell.write = now | (is_atomic ? IS_ATOMIC : 0) | (access == Access::COPY_BEGINS ? IS_COPY : 0);
}

} // namespace

void begin_watch(const Surroundings &surroundings) {
    if (!current) current = std::make_unique<Watch>();
    Watch &watch = *current;
    watch.around = surroundings;
    watch.launch++;
    watch.shared.begin(watch.launch, surroundings.shared.size());
    watch.threads_own.begin(watch.launch, watch.program.threads_own.size());
    if (watch.pages.size() > MAX_PAGES) watch.pages.clear();
    watch.last_page_at = UINTPTR_MAX;
    std::fill(std::begin(watch.known), std::end(watch.known), Range{});
}

void watch_thread(const Moment &moment, const Range &stack) {
    now = pack(moment);
    own_stack = stack;
}

void end_watch() { own_stack = ALL; }

void watch(const void *address, size_t size, Access access) {
    const auto at = reinterpret_cast<uintptr_t>(address);
    if (own_stack.has(at, size)) return;
    Watch &watch = *current;
    const Surroundings &around = watch.around;
    const bool is_read = access == Access::READ;
    if (is_read && (around.place.has(at, size) || around.kernel.has(at, size) || watch.program.image.has(at, size))) return;
    if (around.shared.has(at, size) || watch.program.threads_own.has(at, size)) {
        const bool is_dynamic = around.shared.has(at, size);
        Shadow &shadow = is_dynamic ? watch.shared : watch.threads_own;
        const uintptr_t begin = is_dynamic ? around.shared.begin : watch.program.threads_own.begin;
        shadow.visit(at - begin, size, [&](Cell &cell) { visit(cell, access, at, size, true); });
    } else if (watch.is_allocated(at, size)) {
        for (uintptr_t first = at; first < at + size;) {
            const uintptr_t end = std::min(at + size, (first / PAGE_BYTES + 1) * PAGE_BYTES);
            const auto look = [&](Cell &cell) { visit(cell, access, at, size, false); };
            watch.page(first / PAGE_BYTES).visit(first % PAGE_BYTES, end - first, look);
            first = end;
        }
    } else {
        fail("%s %zu bytes at %#zx, which are nobody's", is_read ? "a read of" : "a write to", size, at);
    }
}

} // namespace emulator

// ---- What Rust and the compiler call ----

extern "C" {

void lathe_allocated(uintptr_t begin, size_t size) {
    auto &[mutex, begins] = emulator::allocations();
    const std::lock_guard guard(mutex);
    begins[begin + size] = begin;
}

void lathe_freed(uintptr_t begin, size_t size) {
    auto &[mutex, begins] = emulator::allocations();
    const std::lock_guard guard(mutex);
    begins.erase(begin + size);
}

#define WATCHED(bytes)                                                                                                 \
    void __tsan_read##bytes(void *at) { emulator::watch(at, bytes, emulator::Access::READ); }                          \
    void __tsan_write##bytes(void *at) { emulator::watch(at, bytes, emulator::Access::WRITE); }                        \
    void __tsan_unaligned_read##bytes(void *at) { emulator::watch(at, bytes, emulator::Access::READ); }                \
    void __tsan_unaligned_write##bytes(void *at) { emulator::watch(at, bytes, emulator::Access::WRITE); }
WATCHED(1)
WATCHED(2)
WATCHED(4)
WATCHED(8)
WATCHED(16)
void __tsan_read_range(void *at, size_t size) { emulator::watch(at, size, emulator::Access::READ); }
void __tsan_write_range(void *at, size_t size) { emulator::watch(at, size, emulator::Access::WRITE); }
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_init() {}

// Likewise of `-fsanitize=alignment,bounds,shift`, whose reports begin with a place in the source.
struct Report {
    const char *file;
    uint32_t line, column;
};
void __ubsan_handle_type_mismatch_v1_abort(const Report *report, void *at) {
    emulator::fail("%s:%u: not aligned: %p", report->file, report->line, at);
}
void __ubsan_handle_out_of_bounds_abort(const Report *report, void *index) {
    emulator::fail("%s:%u: an array has no element %zu", report->file, report->line, (size_t)index);
}
void __ubsan_handle_shift_out_of_bounds_abort(const Report *report, void *, void *by) {
    emulator::fail("%s:%u: a shift by %zu", report->file, report->line, (size_t)by);
}
}
