// What is done with components once their numbers, from 1 on and 0 on the background, are known for each voxel.

#include "common.cuh"

// Write each voxel's number, or with `renumber` what `values` has for it; the background only if `clear`, as 0.
extern "C" __global__ void fill_numbers(
    const LABEL* __restrict__ numbers, const VALUE* __restrict__ values, i64 size, u8 renumber, u8 clear, VALUE* out
) {
    const i64 v = thread_number();
    if (v >= size) return;
    const LABEL number = numbers[v];
    if (number != 0) out[v] = renumber ? values[number - 1] : (VALUE)number;
    else if (clear) out[v] = 0;
}

// Set the flag of each component that holds a voxel whose seed equals its label.
extern "C" __global__ void flag_equal(
    const LABEL* __restrict__ numbers, const VALUE* __restrict__ labels, const SEED* __restrict__ seeds, i64 size,
    volatile u8* flags
) {
    const i64 v = thread_number();
    if (v >= size) return;
    const LABEL number = numbers[v];
    if (number != 0 && seeds[v] == labels[v] && !flags[number - 1]) flags[number - 1] = 1;
}

// Set the flag of each component that holds a seed: anything but 0.
extern "C" __global__ void flag_seeded(
    const LABEL* __restrict__ numbers, const SEED* __restrict__ seeds, i64 size, volatile u8* flags
) {
    const i64 v = thread_number();
    if (v >= size) return;
    if (seeds[v] == 0) return;
    const LABEL number = numbers[v];
    if (number != 0 && !flags[number - 1]) flags[number - 1] = 1;
}

// Write 0 over each component that is not to be kept.
extern "C" __global__ void clear_components(
    const LABEL* __restrict__ numbers, const u8* __restrict__ keep, i64 size, VALUE* labels
) {
    const i64 v = thread_number();
    if (v >= size) return;
    const LABEL number = numbers[v];
    if (number != 0 && !keep[number - 1]) labels[v] = 0;
}
