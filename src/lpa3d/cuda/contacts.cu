// Count how labels touch: one row of integers per pair of labels, additive over any partition of the volume into boxes.
//
// A block counts a tile of TILE_Z x TILE_Y x TILE_X voxels, one thread for each y and x, in a table in shared memory, then
// adds that to the table of the volume.

#include "pairs.cuh"

// The two labels, faces across z, y and x, edges, corners, and the two limbs of the sum of the image (high, low).
#define COLUMNS 9
#define COUNTS 5
#define LIMB 32

// Pairs of a tile's table; those beyond it go straight to the volume's.
#define SLOTS 512

// Add to the row of a pair. The low limb carries where 64 bits overflow.
__device__ inline void add_sum(u64* limbs, u64 high, u64 low) {
    u64 before = atomicAdd(limbs + 1, low);
    if (before + low < before) high += 1ull << (64 - LIMB);
    if (high) atomicAdd(limbs, high);
}

// Count the touching voxel pairs of unequal labels whose first voxel lies in `box` (first z, y, x, one after the last).
//
// The `offsets` (n, 3) are forward ones. Background counts as a label at faces and nowhere else. If IMAGED is 1,
// rint(image * scale) is summed over both voxels of each pair of labels above 0.
extern "C" __global__ void count_contacts(const LABEL* __restrict__ labels, const IMAGE* __restrict__ image,
                                          double scale, i64 n_z, i64 n_y, i64 n_x, const i64* __restrict__ offsets,
                                          int n_offsets, const i64* __restrict__ box, i64 capacity, u64 empty,
                                          u64* table, u32* flags) {
    __shared__ u64 ids[SLOTS * 2];
    __shared__ u32 counts[SLOTS * COUNTS];
#if IMAGED
    __shared__ u64 sums[SLOTS * 2];
#endif
    __shared__ u32 in_vain;

    for (int i = threadIdx.x; i < SLOTS * 2; i += blockDim.x) {
        ids[i] = empty;
#if IMAGED
        sums[i] = 0;
#endif
    }
    for (int i = threadIdx.x; i < SLOTS * COUNTS; i += blockDim.x) counts[i] = 0;
    if (threadIdx.x == 0) in_vain = *(volatile u32*)flags;
    __syncthreads();

    i64 tiles_y = (box[4] - box[1] + TILE_Y - 1) / TILE_Y, tiles_x = (box[5] - box[2] + TILE_X - 1) / TILE_X;
    i64 x = box[2] + blockIdx.x % tiles_x * TILE_X + threadIdx.x % TILE_X;
    i64 y = box[1] + blockIdx.x / tiles_x % tiles_y * TILE_Y + threadIdx.x / TILE_X;
    i64 z_lo = box[0] + blockIdx.x / tiles_x / tiles_y * TILE_Z, z_hi = min(z_lo + TILE_Z, box[3]);
    // Another attempt follows anyway.
    if (in_vain || y >= box[4] || x >= box[5]) z_hi = z_lo;

    for (i64 z = z_lo; z < z_hi; z++) {
        i64 i = (z * n_y + y) * n_x + x;
        i64 here = (i64)labels[i];
        for (int d = 0; d < n_offsets; d++) {
            i64 dz = offsets[3 * d], dy = offsets[3 * d + 1], dx = offsets[3 * d + 2];
            if (z + dz >= n_z || y + dy < 0 || y + dy >= n_y || x + dx < 0 || x + dx >= n_x) continue;
            i64 j = i + (dz * n_y + dy) * n_x + dx;
            i64 there = (i64)labels[j];
            if (here == there) continue;
            i64 a = min(here, there), b = max(here, there);
            int steps = (int)(abs(dz) + abs(dy) + abs(dx));
            if (a == 0 && steps > 1) continue;
            int column = steps > 1 ? steps + 1 : (dz ? 0 : (dy ? 1 : 2));
#if IMAGED
            i64 total = (i64)rint((double)image[i] * scale) + (i64)rint((double)image[j] * scale);
            u64 high = (u64)(total >> LIMB), low = (u64)total & ((1ull << LIMB) - 1);
#endif
            i64 slot = find_pair(ids, 2, SLOTS, NEAR, empty, a, b);
            if (slot >= 0) {
                atomicAdd(&counts[slot * COUNTS + column], 1u);
#if IMAGED
                if (a > 0) add_sum(&sums[2 * slot], high, low);
#endif
                continue;
            }
            i64 row = find_pair(table, COLUMNS, capacity, FAR, empty, a, b);
            if (row < 0) {
                atomicOr(flags, FULL);
                continue;
            }
            atomicAdd(table + row * COLUMNS + 2 + column, 1ull);
#if IMAGED
            if (a > 0) add_sum(table + row * COLUMNS + 2 + COUNTS, high, low);
#endif
        }
    }
    __syncthreads();

    for (int slot = threadIdx.x; slot < SLOTS; slot += blockDim.x) {
        if (ids[2 * slot] == empty) continue;
        i64 row = find_pair(table, COLUMNS, capacity, FAR, empty, ids[2 * slot], ids[2 * slot + 1]);
        if (row < 0) {
            atomicOr(flags, FULL);
            continue;
        }
        for (int column = 0; column < COUNTS; column++) {
            if (counts[slot * COUNTS + column])
                atomicAdd(table + row * COLUMNS + 2 + column, (u64)counts[slot * COUNTS + column]);
        }
#if IMAGED
        add_sum(table + row * COLUMNS + 2 + COUNTS, sums[2 * slot], sums[2 * slot + 1]);
#endif
    }
}
