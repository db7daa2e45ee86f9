// CUDA on the CPU, for the tests: what a kernel's source needs to be built by g++; cuda_shim.cpp runs its threads.

#include <string.h>

#define __global__
#define __device__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
// All of a block's shared memory lies in one section, which is swapped when a thread of another block runs.
#define __shared__ static __attribute__((section("shim_shared"), used, aligned(16)))
// In the mode "preempt" g++ adds a call before each access to memory, but not in these functions.
#define SHIM_FUNCTION static inline __attribute__((no_sanitize("thread")))

struct uint3 {
    unsigned x, y, z;
};
typedef uint3 dim3;
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
static const int warpSize = 32;

namespace shim {

typedef unsigned long long u64;

enum Operation { SYNC, OR, AND, COUNT };
enum Shuffle { LANE, UP, DOWN, XOR };

// Wait until all threads of the block are here; how many have a predicate that holds decides what comes back.
int sync_block(int line, Operation operation, int predicate);

// Wait until all 32 threads of the warp are here; what each brings comes back.
const u64 *sync_warp(int line, unsigned mask, u64 value);

// Other threads may run before this one goes on to an atomic operation.
void before_atomic(const volatile void *at, unsigned size);

SHIM_FUNCTION unsigned lane() {
    return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32;
}

SHIM_FUNCTION unsigned ballot(int line, unsigned mask, int predicate) {
    const u64 *values = sync_warp(line, mask, predicate != 0);
    unsigned bits = 0;
    for (unsigned i = 0; i < 32; i++) bits |= (unsigned)values[i] << i;
    return bits;
}

template <class T>
SHIM_FUNCTION T shuffle(int line, Shuffle kind, unsigned mask, T value, unsigned operand, int width = 32) {
    static_assert(sizeof(T) <= 8);
    u64 bits = 0;
    memcpy(&bits, &value, sizeof(T));
    const u64 *values = sync_warp(line, mask, bits);
    unsigned first = lane() / width * width, last = first + width - 1, source = lane();
    if (kind == LANE) source = first + operand % width;
    if (kind == UP && source >= first + operand) source -= operand;
    if (kind == DOWN && source + operand <= last) source += operand;
    if (kind == XOR && (source ^ operand) <= last) source ^= operand;
    memcpy(&value, &values[source], sizeof(T));
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

SHIM_FUNCTION void __threadfence() {}
SHIM_FUNCTION void __threadfence_block() {}

SHIM_FUNCTION int __popc(unsigned x) { return __builtin_popcount(x); }
SHIM_FUNCTION int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
SHIM_FUNCTION int __ffs(int x) { return __builtin_ffs(x); }
SHIM_FUNCTION int __ffsll(long long x) { return __builtin_ffsll(x); }
SHIM_FUNCTION int __clz(int x) { return x ? __builtin_clz(x) : 32; }
SHIM_FUNCTION int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
SHIM_FUNCTION unsigned __umulhi(unsigned a, unsigned b) { return (unsigned long long)a * b >> 32; }
SHIM_FUNCTION unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned __int128)a * b >> 64;
}
template <class T> SHIM_FUNCTION T __ldg(const T *at) { return *at; }

#ifndef SHIM_RUNTIME
// <math.h> and <stdlib.h> of C++ take longer to read than most kernels take to build.
SHIM_FUNCTION float rint(float x) { return __builtin_rintf(x); }
SHIM_FUNCTION double rint(double x) { return __builtin_rint(x); }
SHIM_FUNCTION int abs(int x) { return x < 0 ? -x : x; }
SHIM_FUNCTION long long abs(long long x) { return x < 0 ? -x : x; }
SHIM_FUNCTION float abs(float x) { return __builtin_fabsf(x); }
SHIM_FUNCTION double abs(double x) { return __builtin_fabs(x); }
#endif

// The overloads that CUDA has, so that a call that is ambiguous there is so here.
#define SHIM_LESS(R, A, B) \
    SHIM_FUNCTION R min(A a, B b) { return (R)a < (R)b ? (R)a : (R)b; } \
    SHIM_FUNCTION R max(A a, B b) { return (R)a > (R)b ? (R)a : (R)b; }
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
    SHIM_FUNCTION T name(T *at, T value) { \
        shim::before_atomic(at, sizeof(T)); \
        T old = *at; \
        *at = expression; \
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
    SHIM_FUNCTION T atomicCAS(T *at, T expected, T value) { \
        shim::before_atomic(at, sizeof(T)); \
        T old = *at; \
        if (old == expected) *at = value; \
        return old; \
    }
SHIM_CAS(int)
SHIM_CAS(unsigned)
SHIM_CAS(unsigned long long)
