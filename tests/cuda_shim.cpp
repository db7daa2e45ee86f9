// CUDA on the CPU, for the tests: runs the threads of a kernel's blocks.
//
// Each CUDA thread is a fiber, so that barriers work: it runs until it waits or ends, then another one is chosen. In
// the mode PREEMPT several blocks are resident at once, and the built kernels call __tsan_* before each access to
// memory: there the thread may be stopped, and accesses of two threads that nothing orders are found.

#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define SHIM_RUNTIME
#include "cuda_shim.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace shim {

enum Mode { SERIAL, SHUFFLED, PREEMPT };
enum Outcome { DONE, WRONG, FAULT };

const unsigned STACK = 1 << 16;
const unsigned RESIDENT = 3;    // blocks at once, in the mode PREEMPT
const unsigned THREADS = 1024;  // of a block at most

// Where and when memory was accessed last; a clock of 0: never. `code` is where in the library.
struct Access {
    unsigned clock, warp_clock, block, thread, code;
    bool marked;  // atomic or volatile
};

struct Cell {
    Access write, read;
};

struct Block;

struct Thread {
    jmp_buf here;
    Block *block;
    char *stack;  // none before it has started
    unsigned number;
    u64 value;  // what it brings to a rendezvous
};

struct Stack {
    jmp_buf idle;
    bool entered;
};

struct Warp {
    unsigned arrived, done, clock;
    int line;
    u64 values[32];  // of the rendezvous that all have reached
};

struct Block {
    bool live;
    u64 number;
    unsigned arrived, done, count, result, clock;
    int line;
    Thread *ready[THREADS];
    unsigned ready_count;
    Thread threads[THREADS];
    Warp warps[THREADS / 32];
    char *shared;
    Cell *cells;  // of each byte of it
};

// So that the section exists.
static __attribute__((section("shim_shared"), used, aligned(16))) char anchor[16];
extern "C" char __start_shim_shared[] __attribute__((visibility("hidden")));
extern "C" char __stop_shim_shared[] __attribute__((visibility("hidden")));

static Mode mode;
static u64 random_state;
static void (*kernel)(void **);
static void **arguments;
static unsigned block_size;
static u64 *order, grid_size, next_block;
static Block *blocks[RESIDENT], *loaded;
static unsigned resident;
static Thread *current;
static char *stacks;
static Stack stack_states[RESIDENT * THREADS];
static char *free_stacks[RESIDENT * THREADS];
static unsigned free_count;
static jmp_buf launcher;
static Outcome outcome;
static char *message;
static size_t message_size;
static void *fault_address;
static char *arrays, *arrays_end, **bounds, *library;
static unsigned bound_count;
static Cell *array_cells;
static unsigned clock_now;  // each wait that ends has its own time

static inline u64 draw() {
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545F4914F6CDD1Dull >> 16;
}

static inline size_t shared_size() {
    return __stop_shim_shared - __start_shim_shared;
}

[[noreturn]] static void stop(Outcome why, const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(message, message_size, format, values);
    va_end(values);
    outcome = why;
    _longjmp(launcher, 1);
}

static void start_block(Block *block) {
    block->live = next_block < grid_size;
    if (!block->live) return;
    block->clock = ++clock_now;
    block->number = order[next_block++];
    block->arrived = block->done = 0;
    memset(block->warps, 0, sizeof block->warps);
    block->ready_count = block_size;
    for (unsigned i = 0; i < block_size; i++) {
        block->threads[i].block = block;
        block->threads[i].number = i;
        block->threads[i].stack = nullptr;
        block->ready[block_size - 1 - i] = &block->threads[i];
    }
    // Shared memory holds anything.
    char *shared = resident > 1 ? block->shared : __start_shim_shared;
    for (size_t i = 0; i + 8 <= shared_size(); i += 8) *(u64 *)(shared + i) = draw() * 0x9E3779B97F4A7C15ull;
    if (loaded == block) loaded = nullptr;
}

// Take the thread that runs next from those that can; none: all have ended.
static Thread *choose() {
    Block *block = blocks[0];
    if (resident > 1) {
        // Mostly the same block, since swapping takes time.
        block = current ? current->block : nullptr;
        if (!block || !block->ready_count || draw() % 8 == 0) {
            unsigned first = draw() % resident;
            for (unsigned i = 0; i < resident; i++) {
                block = blocks[(first + i) % resident];
                if (block->ready_count) break;
            }
        }
    }
    if (!block->ready_count) {
        for (unsigned i = 0; i < resident; i++) {
            if (blocks[i]->live)
                stop(WRONG, "deadlock: of %u threads of block %llu, %u wait at __syncthreads, %u have returned, the "
                     "others wait for their warp", block_size, blocks[i]->number, blocks[i]->arrived, blocks[i]->done);
        }
        return nullptr;
    }
    unsigned at = --block->ready_count;
    if (mode != SERIAL) {
        unsigned other = draw() % (at + 1);
        Thread *thread = block->ready[other];
        block->ready[other] = block->ready[at];
        block->ready[at] = thread;
    }
    return block->ready[at];
}

static void become(Thread *thread) {
    current = thread;
    unsigned i = thread->number;
    threadIdx.x = i % blockDim.x;
    threadIdx.y = i / blockDim.x % blockDim.y;
    threadIdx.z = i / blockDim.x / blockDim.y;
    u64 b = thread->block->number;
    blockIdx.x = b % gridDim.x;
    blockIdx.y = b / gridDim.x % gridDim.y;
    blockIdx.z = b / gridDim.x / gridDim.y;
    if (resident > 1 && loaded != thread->block) {
        if (loaded) memcpy(loaded->shared, __start_shim_shared, shared_size());
        loaded = thread->block;
        memcpy(__start_shim_shared, loaded->shared, shared_size());
    }
}

static Stack *state_of(char *stack) {
    return &stack_states[(stack - stacks) / STACK];
}

// The current thread has returned from the kernel.
static void end_thread() {
    Block *block = current->block;
    Warp *warp = &block->warps[current->number / 32];
    block->done++;
    warp->done++;
    if (block->arrived)
        stop(WRONG, "thread %u of block %llu has returned while others wait at __syncthreads in line %d",
             current->number, block->number, block->line);
    if (warp->arrived)
        stop(WRONG, "thread %u of block %llu has returned while others of its warp wait for it in line %d",
             current->number, block->number, warp->line);
    if (block->done == block_size) start_block(block);
}

// A fiber: runs the current thread, then one that has not started, until one that waits is to go on.
static void run_threads() {
    for (;;) {
        kernel(arguments);
        char *stack = current->stack;
        end_thread();
        Thread *next = choose();
        if (!next) _longjmp(launcher, 1);
        become(next);
        if (!next->stack) {
            next->stack = stack;
            continue;
        }
        free_stacks[free_count++] = stack;
        if (!_setjmp(state_of(stack)->idle)) _longjmp(next->here, 1);
    }
}

static __attribute__((noinline)) void resume(Thread *thread) {
    become(thread);
    if (thread->stack) _longjmp(thread->here, 1);
    thread->stack = free_stacks[--free_count];
    Stack *state = state_of(thread->stack);
    if (state->entered) _longjmp(state->idle, 1);
    state->entered = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = thread->stack;
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, run_threads, 0);
    setcontext(&context);
}

static __attribute__((noinline)) void wait() {
    if (!_setjmp(current->here)) resume(choose());
}

static inline void make_ready(Thread *thread) {
    thread->block->ready[thread->block->ready_count++] = thread;
}

int sync_block(int line, Operation operation, int predicate) {
    Block *block = current->block;
    if (block->done)
        stop(WRONG, "thread %u of block %llu is at __syncthreads in line %d, but %u threads have returned",
             current->number, block->number, line, block->done);
    if (!block->arrived) {
        block->line = line;
        block->count = 0;
    }
    if (block->line != line)
        stop(WRONG, "threads of block %llu wait at different barriers, in the lines %d and %d", block->number,
             block->line, line);
    block->count += predicate != 0;
    if (++block->arrived == block_size) {
        block->arrived = 0;
        block->clock = ++clock_now;
        block->result = block->count;
        for (unsigned i = block_size; i-- > 0;) make_ready(&block->threads[i]);
    }
    wait();
    if (operation == OR) return block->result != 0;
    if (operation == AND) return block->result == block_size;
    return block->result;
}

const u64 *sync_warp(int line, unsigned mask, u64 value) {
    Block *block = current->block;
    unsigned first = current->number / 32 * 32;
    Warp *warp = &block->warps[first / 32];
    if (mask != 0xffffffffu || block_size % 32)
        stop(WRONG, "line %d: all 32 threads of a warp must take part (mask %#x, blocks of %u)", line, mask,
             block_size);
    if (warp->done)
        stop(WRONG, "thread %u of block %llu waits for its warp in line %d, but %u threads have returned",
             current->number, block->number, line, warp->done);
    if (!warp->arrived) warp->line = line;
    if (warp->line != line)
        stop(WRONG, "threads of a warp of block %llu wait for each other in different lines, %d and %d", block->number,
             warp->line, line);
    current->value = value;
    if (++warp->arrived == 32) {
        warp->arrived = 0;
        warp->clock = ++clock_now;
        for (unsigned i = 32; i-- > 0;) {
            warp->values[i] = block->threads[first + i].value;
            make_ready(&block->threads[first + i]);
        }
    }
    wait();
    return warp->values;
}

static bool conflict(const Access &before, const Access &now, bool is_shared) {
    if (!before.clock || (before.block == now.block && before.thread == now.thread)) return false;
    if (before.marked && now.marked) return false;
    if (before.block != now.block) return !is_shared;
    return before.clock == now.clock && (before.thread / 32 != now.thread / 32 || before.warp_clock == now.warp_clock);
}

[[noreturn]] static void stop_race(const Access &before, bool wrote, const Access &now, bool writes) {
    stop(WRONG, "a race: thread %u of block %u %s in code %#x, thread %u of block %u %s in code %#x, and nothing "
         "orders them", before.thread, before.block, wrote ? "writes" : "reads", before.code, now.thread, now.block,
         writes ? "writes" : "reads", now.code);
}

// The current thread is about to access memory: others may run first, then it is noted.
static void watch(const volatile void *address, unsigned size, bool writes, bool marked, void *code) {
    char *at = (char *)address;
    bool is_shared = at >= __start_shim_shared && at < __stop_shim_shared;
    if (!is_shared && (at < arrays || at >= arrays_end)) return;
    unsigned where = (char *)code - library - 1;
    if (!is_shared) {
        unsigned i = 0;
        while (i < bound_count && (at < bounds[i] || at + size > bounds[i + 1])) i += 2;
        if (i >= bound_count) {
            fault_address = at;
            stop(FAULT, "in code %#x", where);
        }
    }
    if ((uintptr_t)at % size)
        stop(WRONG, "an access to %u bytes that is not aligned, in code %#x", size, where);
    if (draw() % (marked ? 4 : 16) == 0) {
        make_ready(current);
        wait();
    }
    Block *block = current->block;
    Access now = {block->clock, block->warps[current->number / 32].clock, (unsigned)block->number, current->number,
                  where, marked};
    Cell *cells = is_shared ? block->cells + (at - __start_shim_shared) : array_cells + (at - arrays);
    for (Cell *cell = cells; cell < cells + size; cell++) {
        if (conflict(cell->write, now, is_shared)) stop_race(cell->write, true, now, writes);
        if (writes) {
            if (conflict(cell->read, now, is_shared)) stop_race(cell->read, false, now, true);
            cell->write = now;
        } else if (!marked || cell->read.marked || cell->read.clock != now.clock) {
            cell->read = now;
        }
    }
}

void before_atomic(const volatile void *at, unsigned size) {
    if (mode == PREEMPT) watch(at, size, true, true, __builtin_return_address(0));
}

static void on_signal(int number, siginfo_t *info, void *context) {
    fault_address = info->si_addr;
#if defined(__x86_64__)
    char *code = (char *)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
#else
    char *code = (char *)((ucontext_t *)context)->uc_mcontext.pc;
#endif
    const char *what = "it takes too long, in";
    if (number == SIGFPE) what = "a division by zero in";
    if (number == SIGSEGV || number == SIGBUS) what = "in";
    outcome = number == SIGSEGV || number == SIGBUS ? FAULT : WRONG;
    snprintf(message, message_size, "%s code %#x", what, (unsigned)(code - library));
    _longjmp(launcher, 1);
}

static const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGUSR2};

static void reset_stacks() {
    free_count = 0;
    for (unsigned i = RESIDENT * THREADS; i-- > 0;) {
        stack_states[i].entered = false;
        free_stacks[free_count++] = stacks + (size_t)i * STACK;
    }
}

// Run a kernel on `values`. Its arrays lie between `begin` and `end`, each between two `limits`; in the mode PREEMPT
// they are aligned as on a device. Return the outcome, with a text and an address.
extern "C" int shim_launch(void (*function)(void **), void **values, const unsigned *grid, const unsigned *block,
                           char *begin, char *end, char **limits, unsigned limit_count, int how, u64 seed,
                           int seconds, char *text, size_t text_size, void **address) {
    static char signal_stack[1 << 16];
    kernel = function;
    arguments = values;
    mode = (Mode)how;
    random_state = seed | 1;
    for (int i = 0; i < 8; i++) draw();
    message = text;
    message_size = text_size;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    grid_size = (u64)gridDim.x * gridDim.y * gridDim.z;
    block_size = blockDim.x * blockDim.y * blockDim.z;
    if (!block_size || block_size > THREADS) {
        snprintf(text, text_size, "a block of %u threads", block_size);
        return WRONG;
    }
    if (!stacks) {
        stacks = (char *)mmap(nullptr, (size_t)RESIDENT * THREADS * STACK, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        reset_stacks();
        for (unsigned i = 0; i < RESIDENT; i++) {
            blocks[i] = (Block *)malloc(sizeof(Block));
            blocks[i]->shared = (char *)malloc(shared_size());
            blocks[i]->cells = (Cell *)calloc(shared_size(), sizeof(Cell));
        }
        Dl_info info;
        dladdr((void *)shim_launch, &info);
        library = (char *)info.dli_fbase;
    }
    arrays = begin;
    arrays_end = end;
    bounds = limits;
    bound_count = limit_count;
    size_t cells_size = mode == PREEMPT ? (end - begin) * sizeof(Cell) : 0;
    if (cells_size)
        array_cells = (Cell *)mmap(nullptr, cells_size, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    order = (u64 *)malloc(grid_size * sizeof(u64));
    for (u64 i = 0; i < grid_size; i++) {
        u64 other = mode == SERIAL ? i : draw() % (i + 1);
        order[i] = order[other];
        order[other] = i;
    }
    next_block = 0;
    resident = mode == PREEMPT && grid_size > 1 ? (grid_size < RESIDENT ? grid_size : RESIDENT) : 1;
    loaded = nullptr;
    current = nullptr;
    for (unsigned i = 0; i < resident; i++) start_block(blocks[i]);

    stack_t own = {}, before_stack;
    own.ss_sp = signal_stack;
    own.ss_size = sizeof signal_stack;
    sigaltstack(&own, &before_stack);
    struct sigaction action = {}, before[4];
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &action, &before[i]);
    sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGUSR2;
    event._sigev_un._tid = syscall(SYS_gettid);
    timer_t timer;
    timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer);
    itimerspec after = {};
    after.it_value.tv_sec = seconds;
    timer_settime(timer, 0, &after, nullptr);

    outcome = DONE;
    if (!_setjmp(launcher)) resume(choose());

    timer_delete(timer);
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &before[i], nullptr);
    sigaltstack(&before_stack, nullptr);
    free(order);
    if (cells_size) munmap(array_cells, cells_size);
    if (outcome == DONE) {
        // The fiber that came last to its end starts anew.
        state_of(current->stack)->entered = false;
        free_stacks[free_count++] = current->stack;
    } else {
        reset_stacks();
    }
    *address = fault_address;
    return outcome;
}

}  // namespace shim

// What g++ calls before each access to memory.
#define WATCH(size) \
    extern "C" void __tsan_read##size(void *at) { shim::watch(at, size, false, false, __builtin_return_address(0)); } \
    extern "C" void __tsan_write##size(void *at) { shim::watch(at, size, true, false, __builtin_return_address(0)); } \
    extern "C" void __tsan_volatile_read##size(void *at) { \
        shim::watch(at, size, false, true, __builtin_return_address(0)); \
    } \
    extern "C" void __tsan_volatile_write##size(void *at) { \
        shim::watch(at, size, true, true, __builtin_return_address(0)); \
    }
WATCH(1)
WATCH(2)
WATCH(4)
WATCH(8)
WATCH(16)
extern "C" void __tsan_read_range(void *at, size_t size) {
    for (size_t i = 0; i < size; i++) shim::watch((char *)at + i, 1, false, false, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void *at, size_t size) {
    for (size_t i = 0; i < size; i++) shim::watch((char *)at + i, 1, true, false, __builtin_return_address(0));
}
extern "C" void __tsan_init() {}
