// The census of seeds, and maps of class maps and labels.
//
// Counts per slice: a warp takes a brick of voxels, a row at a time, and each of its lanes keeps the count of one slice
// across each axis, so that there is one atomic addition for each slice that a brick meets.
//
// Defines: VOLUME, ID, LINKS, the dtypes of class maps, ids and links.

#include "common.cuh"
#include "maps.cuh"
#include "pairs.cuh"

#define ALL 0xffffffffu
#define SIDE 32   // a brick's rows and columns: the lanes of a warp
#define DEPTH 8   // a brick's slices
#define BATCH 8   // rows of a brick that are loaded at once

// The voxels that a warp counts: from (z, y, x) on, some slices and rows; none for a warp beyond the last brick.
struct Brick {
    i64 ny, nx, z, y, x;
    i32 slices, rows;

    __device__ Brick(i64 nz, i64 height, i64 width) : ny(height), nx(width) {
        i64 number = thread_number() / SIDE;
        const i64 across = (nx + SIDE - 1) / SIDE, down = (ny + SIDE - 1) / SIDE;
        x = number % across * SIDE;
        number /= across;
        y = number % down * SIDE;
        z = number / down * DEPTH;
        slices = (i32)min((i64)DEPTH, nz - z);
        rows = (i32)min((i64)SIDE, ny - y);
    }

    // The flat index of this lane's voxel in a row of a slice, -1 beyond the volume.
    __device__ i64 find(i32 k, i32 j) const {
        const i64 column = x + threadIdx.x % SIDE;
        return j < rows && column < nx ? ((z + k) * ny + y + j) * nx + column : -1;
    }
};

// What a lane has counted: voxels of the brick's slices z + lane, y + lane and x + lane.
struct Tally {
    u32 z = 0, y = 0, x = 0;

    // Count, with all lanes of the warp, those of a row's voxels for which `counts`.
    __device__ void add(bool counts, i32 k, i32 j) {
        const i32 lane = threadIdx.x % SIDE;
        const u32 found = __popc(__ballot_sync(ALL, counts));
        z += lane == k ? found : 0;
        y += lane == j ? found : 0;
        x += counts;
    }

    __device__ void store(const Brick& brick, u64* on_z, u64* on_y, u64* on_x) const {
        const i32 lane = threadIdx.x % SIDE;
        if (z != 0) atomicAdd(&on_z[brick.z + lane], (u64)z);
        if (y != 0) atomicAdd(&on_y[brick.y + lane], (u64)y);
        if (x != 0) atomicAdd(&on_x[brick.x + lane], (u64)x);
    }
};

// Count voxels that are not 0 per slice across each axis.
extern "C" __global__ void count_foreground(
    const VOLUME* __restrict__ volume, i64 nz, i64 ny, i64 nx, u64* on_z, u64* on_y, u64* on_x
) {
    const Brick brick(nz, ny, nx);
    Tally tally;
    for (i32 k = 0; k < brick.slices; k++) {
        for (i32 first = 0; first < brick.rows; first += BATCH) {
            bool found[BATCH];
#pragma unroll
            for (i32 j = 0; j < BATCH; j++) {
                const i64 v = brick.find(k, first + j);
                found[j] = v >= 0 && volume[v] != 0;
            }
#pragma unroll
            for (i32 j = 0; j < BATCH; j++) tally.add(found[j], k, first + j);
        }
    }
    tally.store(brick, on_z, on_y, on_x);
}

// Count seeds per (id, class) and, off the background, per slice across each axis.
extern "C" __global__ void count_seeds(
    const VOLUME* __restrict__ volume,
    const ID* __restrict__ seeds,
    i64 nz,
    i64 ny,
    i64 nx,
    i64 capacity,
    u64 empty,
    u64* table,
    u32* flags,
    u64* on_z,
    u64* on_y,
    u64* on_x
) {
    // Another attempt follows anyway.
    if (__any_sync(ALL, *(volatile u32*)flags != 0)) return;
    const Brick brick(nz, ny, nx);
    Tally tally;
    // The pair that this lane met last, and its voxels since it did: objects go on from row to row.
    ID id = 0;
    VOLUME kind = 0;
    u32 voxels = 0;
    auto add_pair = [&]() {
        if (voxels == 0) return;
        if (kind == empty) {
            atomicOr(flags, MET_EMPTY);
            return;
        }
        const i64 row = find_pair(table, 3, capacity, FAR, empty, id, kind);
        if (row < 0) {
            atomicOr(flags, FULL);
        } else {
            atomicAdd(&table[3 * row + 2], (u64)voxels);
        }
    };
    for (i32 k = 0; k < brick.slices; k++) {
        for (i32 first = 0; first < brick.rows; first += BATCH) {
            ID ids[BATCH];
            bool any = false;
#pragma unroll
            for (i32 j = 0; j < BATCH; j++) {
                const i64 v = brick.find(k, first + j);
                ids[j] = v >= 0 ? seeds[v] : 0;
                any |= ids[j] != 0;
            }
            if (!__any_sync(ALL, any)) continue;
#pragma unroll
            for (i32 j = 0; j < BATCH; j++) {
                VOLUME here = 0;
                if (ids[j] != 0) {
                    here = volume[brick.find(k, first + j)];
                    if (ids[j] != id || here != kind) {
                        add_pair();
                        id = ids[j];
                        kind = here;
                        voxels = 0;
                    }
                    voxels++;
                }
                tally.add(here != 0, k, first + j);
            }
        }
    }
    add_pair();
    tally.store(brick, on_z, on_y, on_x);
}

// The hash of the Numba kernels, whose table of ranks is looked up.
__device__ inline i64 hash_row(i64 a, i64 b) {
    u64 h = (u64)a * 0x9E3779B97F4A7C15ull ^ (u64)b * 0xC2B2AE3D27D4EB4Full;
    h ^= h >> 29;
    h *= 0xBF58476D1CE4E5B9ull;
    h ^= h >> 32;
    return (i64)(h >> 1);
}

// Write the rank of each kept seed: `ranks` is a table of (id, class, rank); pairs that it lacks are dropped.
extern "C" __global__ void rank_seeds(
    const VOLUME* __restrict__ volume,
    const ID* __restrict__ seeds,
    i64 size,
    const i64* __restrict__ ranks,
    i64 rows,
    u32* __restrict__ labels
) {
    ID ids[ITEMS];
    load_items(seeds, size, ids);
#pragma unroll
    for (i32 k = 0; k < ITEMS; k++) {
        if (ids[k] == 0) continue;
        const i64 v = first_item() + k * blockDim.x;
        const i64 a = (i64)ids[k], b = (i64)volume[v];
        i64 slot = hash_row(a, b) & (rows - 1);
        while (ranks[3 * slot + 2] != 0 && (ranks[3 * slot] != a || ranks[3 * slot + 1] != b)) {
            slot = (slot + 1) & (rows - 1);
        }
        const u32 rank = (u32)ranks[3 * slot + 2];
        if (rank != 0) labels[v] = rank;
    }
}

// Set `seeds` to 0 where there is no label.
extern "C" __global__ void restrict_seeds(const u32* __restrict__ labels, i64 size, ID* __restrict__ seeds) {
    ID ids[ITEMS];
    load_items(seeds, size, ids);
#pragma unroll
    for (i32 k = 0; k < ITEMS; k++) {
        const i64 v = first_item() + k * blockDim.x;
        if (ids[k] != 0 && labels[v] == 0) seeds[v] = 0;
    }
}

// Write 1 to `found` if a voxel of the class map has no label.
extern "C" __global__ void find_unlabelled(
    const VOLUME* __restrict__ volume, const u32* __restrict__ labels, i64 size, u8* found
) {
    VOLUME kinds[ITEMS];
    load_items(volume, size, kinds);
    bool any = false;
#pragma unroll
    for (i32 k = 0; k < ITEMS; k++) any |= kinds[k] != 0 && labels[first_item() + k * blockDim.x] == 0;
    // Blocks race, but all write the same.
    if (__syncthreads_or(any) && threadIdx.x == 0) *(volatile u8*)found = 1;
}

// Write the id of each label; `out` may be `labels` itself.
extern "C" __global__ void apply_ids(const u32* labels, i64 size, const ID* __restrict__ ids, ID* out) {
    u32 ranks[ITEMS];
    load_items(labels, size, ranks);
#pragma unroll
    for (i32 k = 0; k < ITEMS; k++) {
        const i64 v = first_item() + k * blockDim.x;
        if (v < size) out[v] = ranks[k] != 0 ? ids[ranks[k]] : 0;
    }
}

// Write the class of each voxel that has a label, or has none, as `labelled` says; 0 for the others.
extern "C" __global__ void select_voxels(
    const VOLUME* __restrict__ volume, const u32* __restrict__ labels, int labelled, i64 size, VOLUME* __restrict__ out
) {
    VOLUME kinds[ITEMS];
    u32 ranks[ITEMS];
    load_items(volume, size, kinds);
    load_items(labels, size, ranks);
#pragma unroll
    for (i32 k = 0; k < ITEMS; k++) {
        const i64 v = first_item() + k * blockDim.x;
        if (v < size) out[v] = (ranks[k] != 0) == (labelled != 0) ? kinds[k] : 0;
    }
}

// Write the class of each unlabelled voxel that is linked to a labelled one, 0 for the others.
extern "C" __global__ void list_borders(
    const VOLUME* __restrict__ volume,
    const u32* __restrict__ labels,
    const LINKS* __restrict__ links,
    const i64* __restrict__ strides,
    i64 size,
    VOLUME* __restrict__ out
) {
    LINKS masks[ITEMS];
    u32 ranks[ITEMS];
    load_items(links, size, masks);
    load_items(labels, size, ranks);
#pragma unroll
    for (i32 k = 0; k < ITEMS; k++) {
        const i64 v = first_item() + k * blockDim.x;
        bool border = false;
        for (u32 mask = ranks[k] == 0 ? masks[k] : 0; mask != 0 && !border; mask &= mask - 1) {
            border = labels[v + strides[__ffs(mask) - 1]] != 0;
        }
        if (v < size) out[v] = border ? volume[v] : 0;
    }
}
