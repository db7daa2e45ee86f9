// CUDA on the CPU, for the tests: what a kernel's source needs to be built by g++ and run, thread by thread.
//
// Each CUDA thread is a fiber, so that barriers work: it runs until it waits or ends, then another one is chosen. Several
// blocks can be resident at once. The order is random but for the mode SERIAL; it follows from the seed.

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define __global__
#define __device__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
// All of a block's shared memory lies in one section, which is swapped when a thread of another block runs.
#define __shared__ static __attribute__((section("lpa_shared"), used, aligned(16)))

struct uint3 {
    unsigned x, y, z;
};
typedef uint3 dim3;
static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
static const int warpSize = 32;

namespace shim {

typedef unsigned long long u64;

enum Mode { SERIAL, SHUFFLED, PREEMPT };
enum Outcome { DONE, WRONG, FAULT, ENDLESS };
enum Operation { SYNC, OR, AND, COUNT };

const unsigned STACK = 1 << 16;
const unsigned RESIDENT = 3;         // blocks at once, in the mode PREEMPT
const unsigned THREADS = 1024;       // of a block at most
const int SECONDS = 120;             // CPU time of a launch; a kernel that takes longer does not end

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
    unsigned arrived, done;
    int line;
    u64 values[32];  // of the rendezvous that all have reached
};

struct Block {
    bool live;
    u64 number;
    unsigned arrived, done, count, result;
    int line;
    Thread *ready[THREADS];
    unsigned ready_count;
    Thread threads[THREADS];
    Warp warps[THREADS / 32];
    char *shared;
};

// So that the section exists.
static __attribute__((section("lpa_shared"), used, aligned(16))) char anchor[16];
extern "C" char __start_lpa_shared[] __attribute__((visibility("hidden")));
extern "C" char __stop_lpa_shared[] __attribute__((visibility("hidden")));

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

static inline u64 draw() {
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545F4914F6CDD1Dull >> 16;
}

static inline size_t shared_size() {
    return __stop_lpa_shared - __start_lpa_shared;
}

[[noreturn]] static void stop(Outcome why, const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(message, message_size, format, values);
    va_end(values);
    outcome = why;
    _longjmp(launcher, 1);
}

static bool start_block(Block *block) {
    block->live = next_block < grid_size;
    if (!block->live) return false;
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
    char *shared = resident > 1 ? block->shared : __start_lpa_shared;
    for (size_t i = 0; i + 8 <= shared_size(); i += 8) *(u64 *)(shared + i) = draw() * 0x9E3779B97F4A7C15ull;
    if (loaded == block) loaded = nullptr;
    return true;
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
        if (loaded) memcpy(loaded->shared, __start_lpa_shared, shared_size());
        loaded = thread->block;
        memcpy(__start_lpa_shared, loaded->shared, shared_size());
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

// Other threads may run here.
static inline void maybe_switch() {
    if (mode == PREEMPT && draw() % 4 == 0) {
        make_ready(current);
        wait();
    }
}

static __attribute__((noinline)) int sync_block(int line, Operation operation, int predicate) {
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
        block->result = block->count;
        for (unsigned i = block_size; i-- > 0;) make_ready(&block->threads[i]);
    }
    wait();
    if (operation == OR) return block->result != 0;
    if (operation == AND) return block->result == block_size;
    return block->result;
}

static __attribute__((noinline)) Warp *sync_warp(int line, unsigned mask, u64 value) {
    Block *block = current->block;
    unsigned first = current->number / 32 * 32;
    Warp *warp = &block->warps[first / 32];
    if (mask != 0xffffffffu || block_size % 32)
        stop(WRONG, "line %d: all 32 threads of a warp must take part (mask %#x, blocks of %u)", line, mask, block_size);
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
        for (unsigned i = 32; i-- > 0;) {
            warp->values[i] = block->threads[first + i].value;
            make_ready(&block->threads[first + i]);
        }
    }
    wait();
    return warp;
}

static inline unsigned ballot(int line, unsigned mask, int predicate) {
    Warp *warp = sync_warp(line, mask, predicate != 0);
    unsigned bits = 0;
    for (unsigned i = 0; i < 32; i++) bits |= (unsigned)warp->values[i] << i;
    return bits;
}

enum Shuffle { LANE, UP, DOWN, XOR };

template <class T> T shuffle(int line, Shuffle kind, unsigned mask, T value, unsigned operand, int width = 32) {
    static_assert(sizeof(T) <= 8);
    u64 bits = 0;
    memcpy(&bits, &value, sizeof(T));
    Warp *warp = sync_warp(line, mask, bits);
    unsigned lane = current->number % 32, first = lane / width * width, last = first + width - 1, source = lane;
    if (kind == LANE) source = first + operand % width;
    if (kind == UP && lane >= first + operand) source = lane - operand;
    if (kind == DOWN && lane + operand <= last) source = lane + operand;
    if (kind == XOR && (lane ^ operand) <= last) source = lane ^ operand;
    memcpy(&value, &warp->values[source], sizeof(T));
    return value;
}

template <class T> struct Plain { typedef T type; };
template <class T> struct Plain<const T> { typedef T type; };

template <int... I> struct Numbers {};

template <class... P, int... I> void call(void (*function)(P...), void **values, Numbers<I...>) {
    function(*(typename Plain<P>::type *)values[I]...);
}

template <class... P> void call(void (*function)(P...), void **values) {
    call(function, values, Numbers<__integer_pack(sizeof...(P))...>());
}

static void on_signal(int number, siginfo_t *info, void *) {
    fault_address = info->si_addr;
    bool memory = number == SIGSEGV || number == SIGBUS;
    outcome = memory ? FAULT : number == SIGFPE ? WRONG : ENDLESS;
    if (number == SIGFPE) snprintf(message, message_size, "a division by zero");
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

extern "C" int shim_launch(void (*function)(void **), void **values, const unsigned *grid, const unsigned *block,
                           int how, u64 seed, char *text, size_t text_size, void **address) {
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
        }
    }
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
    after.it_value.tv_sec = SECONDS;
    timer_settime(timer, 0, &after, nullptr);

    outcome = DONE;
    if (!_setjmp(launcher)) resume(choose());

    timer_delete(timer);
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &before[i], nullptr);
    sigaltstack(&before_stack, nullptr);
    free(order);
    // The stack that came last to its end was not put back; after an error none was.
    if (outcome != DONE) reset_stacks();
    else free_stacks[free_count++] = current->stack, state_of(current->stack)->entered = false;
    if (outcome == ENDLESS) snprintf(text, text_size, "not done after %d s of CPU time", SECONDS);
    *address = fault_address;
    return outcome;
}

}  // namespace shim

#define __syncthreads() ((void)shim::sync_block(__LINE__, shim::SYNC, 0))
#define __syncthreads_or(x) shim::sync_block(__LINE__, shim::OR, (x))
#define __syncthreads_and(x) shim::sync_block(__LINE__, shim::AND, (x))
#define __syncthreads_count(x) shim::sync_block(__LINE__, shim::COUNT, (x))
#define SHIM_MASK(mask, ...) (mask)
#define __syncwarp(...) ((void)shim::sync_warp(__LINE__, SHIM_MASK(__VA_ARGS__ __VA_OPT__(,) 0xffffffffu), 0))
#define __ballot_sync(mask, x) shim::ballot(__LINE__, mask, (x))
#define __any_sync(mask, x) ((int)(shim::ballot(__LINE__, mask, (x)) != 0))
#define __all_sync(mask, x) ((int)(shim::ballot(__LINE__, mask, (x)) == 0xffffffffu))
#define __shfl_sync(...) shim::shuffle(__LINE__, shim::LANE, __VA_ARGS__)
#define __shfl_up_sync(...) shim::shuffle(__LINE__, shim::UP, __VA_ARGS__)
#define __shfl_down_sync(...) shim::shuffle(__LINE__, shim::DOWN, __VA_ARGS__)
#define __shfl_xor_sync(...) shim::shuffle(__LINE__, shim::XOR, __VA_ARGS__)

static inline void __threadfence() {}
static inline void __threadfence_block() {}

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned long long)a * b >> 32; }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned __int128)a * b >> 64;
}
template <class T> static inline T __ldg(const T *at) { return *at; }

// The overloads that CUDA has, so that a call that is ambiguous there is so here.
#define SHIM_LESS(R, A, B) \
    static inline R min(A a, B b) { return (R)a < (R)b ? (R)a : (R)b; } \
    static inline R max(A a, B b) { return (R)a > (R)b ? (R)a : (R)b; }
SHIM_LESS(int, int, int)
SHIM_LESS(unsigned, unsigned, unsigned)
SHIM_LESS(unsigned, int, unsigned)
SHIM_LESS(unsigned, unsigned, int)
SHIM_LESS(long long, long long, long long)
SHIM_LESS(unsigned long long, unsigned long long, unsigned long long)
SHIM_LESS(unsigned long long, long long, unsigned long long)
SHIM_LESS(unsigned long long, unsigned long long, long long)
SHIM_LESS(float, float, float)
SHIM_LESS(double, double, double)

#define SHIM_ATOMIC(name, T, expression) \
    static inline T name(T *at, T value) { \
        shim::maybe_switch(); \
        T old = *(volatile T *)at; \
        *(volatile T *)at = expression; \
        shim::maybe_switch(); \
        return old; \
    }
#define SHIM_ATOMIC_4(name, expression) \
    SHIM_ATOMIC(name, int, expression) \
    SHIM_ATOMIC(name, unsigned, expression) \
    SHIM_ATOMIC(name, unsigned long long, expression)
SHIM_ATOMIC_4(atomicAdd, old + value)
SHIM_ATOMIC(atomicAdd, float, old + value)
SHIM_ATOMIC(atomicAdd, double, old + value)
SHIM_ATOMIC(atomicSub, int, old - value)
SHIM_ATOMIC(atomicSub, unsigned, old - value)
SHIM_ATOMIC_4(atomicMin, old < value ? old : value)
SHIM_ATOMIC(atomicMin, long long, old < value ? old : value)
SHIM_ATOMIC_4(atomicMax, old > value ? old : value)
SHIM_ATOMIC(atomicMax, long long, old > value ? old : value)
SHIM_ATOMIC_4(atomicOr, old | value)
SHIM_ATOMIC_4(atomicAnd, old & value)
SHIM_ATOMIC_4(atomicXor, old ^ value)
SHIM_ATOMIC_4(atomicExch, value)

#define SHIM_CAS(T) \
    static inline T atomicCAS(T *at, T expected, T value) { \
        shim::maybe_switch(); \
        T old = *(volatile T *)at; \
        if (old == expected) *(volatile T *)at = value; \
        shim::maybe_switch(); \
        return old; \
    }
SHIM_CAS(int)
SHIM_CAS(unsigned)
SHIM_CAS(unsigned long long)
