// A table keyed by id pairs: open addressing in rows of 64-bit columns, whose first two are the pair.
//
// No id equals `empty`, which both columns of a row hold at first. The two halves of a row are claimed one after the
// other, and an id that was written stays. Nobody waits for a thread that is half way: whoever finds the first id to be
// its own may write the second, and the one who comes too late with another second id goes on to the next row. So all
// threads that look for a pair end in the same row.

#include "common.cuh"

// Bits of the flags that end in another attempt: with a larger table, or with another `empty`.
#define FULL 1u
#define MET_EMPTY 2u

// Rows of the table in global memory that may be passed on the way to a pair, and of one in shared memory.
#define FAR 128
#define NEAR 16

__device__ inline u64 hash_pair(u64 a, u64 b) {
    u64 mixed = a * 0x9E3779B97F4A7C15ull;
    mixed = (mixed ^ (mixed >> 32)) + b * 0xC2B2AE3D27D4EB4Full;
    mixed = (mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B9ull;
    return mixed ^ (mixed >> 32);
}

// Return the row of the pair (a, b), entered if it is new; -1 where none of the first `probes` rows is its own or free.
// The capacity is a power of two.
__device__ inline i64 find_pair(u64* table, int columns, i64 capacity, int probes, u64 empty, u64 a, u64 b) {
    i64 row = (i64)hash_pair(a, b) & (capacity - 1);
    for (int probe = 0; probe < probes; probe++) {
        u64* ids = table + row * columns;
        // Most pairs are there already: a read is cheaper than an exchange.
        u64 first = *(volatile u64*)ids;
        if (first == empty) first = atomicCAS(ids, empty, a);
        if (first == empty || first == a) {
            u64 second = *(volatile u64*)(ids + 1);
            if (second == empty) second = atomicCAS(ids + 1, empty, b);
            if (second == empty || second == b) return row;
        }
        row = (row + 1) & (capacity - 1);
    }
    return -1;
}
