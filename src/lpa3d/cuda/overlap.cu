// Count which ids of two volumes share voxels, by runs along x in which neither changes.
//
// A block counts a tile of ROWS parts of rows, LENGTH voxels each, in a table in shared memory, then adds that to the
// table of the volume. The rows are the bits of a word, so there are at most 32.

#include "pairs.cuh"

// Reference id, predicted id, voxels, and the box: first z, y, x, one after the last z, y, x.
#define COLUMNS 9

// Pairs of a tile's table; those beyond it go straight to the volume's.
#define SLOTS 1024

// Voxels that a warp reads at once, and how many times that before it looks at them.
#define LANES 32
#define AHEAD 4

#define ALL 0xffffffffu

// Reference id of the voxels that are ignored.
#define VOID (-1ll)

__device__ inline void lower_to(u64* at, u64 value) {
    if (value < *(volatile u64*)at) atomicMin(at, value);
}

__device__ inline void raise_to(u64* at, u64 value) {
    if (value > *(volatile u64*)at) atomicMax(at, value);
}

// Add voxels of a pair, those in some `rows` (bits, from row `first` of the volume on) and from x_lo to x_hi.
__device__ __noinline__ void add_overlap(u64* table, i64 capacity, u64 empty, u32* flags, u64 a, u64 b, u64 voxels, u32 rows,
                            i64 first, i64 height, i64 x_lo, i64 x_hi) {
    i64 found = find_pair(table, COLUMNS, capacity, FAR, empty, a, b);
    if (found < 0) {
        atomicOr(flags, FULL);
        return;
    }
    i64 low = first + __ffs((int)rows) - 1, high = first + 31 - __clz((int)rows);
    i64 z_lo = low / height, z_hi = high / height;
    i64 y_lo = low - z_lo * height, y_hi = high - z_hi * height;
    if (z_lo < z_hi) {
        // The rows go on in the next slice, whose first one may have any y between.
        i64 y = y_lo;
        for (i64 row = low; row <= high; row++, y = y + 1 == height ? 0 : y + 1) {
            if (rows >> (row - first) & 1) {
                y_lo = min(y_lo, y);
                y_hi = max(y_hi, y);
            }
        }
    }
    u64* columns = table + found * COLUMNS;
    atomicAdd(columns + 2, voxels);
    lower_to(columns + 3, z_lo);
    lower_to(columns + 4, y_lo);
    lower_to(columns + 5, x_lo);
    raise_to(columns + 6, z_hi + 1);
    raise_to(columns + 7, y_hi + 1);
    raise_to(columns + 8, x_hi);
}

// Count two flat parts of volumes (Z, height, width): some whole rows, from row `first` of the volume on, counted over
// all slices. `ignored` is 1 where the reference id is VOID instead; it is read if IGNORE is 1.
//
// A multiprocessor is to hold three blocks: with few warps, reading waits for counting.
extern "C" __global__ void __launch_bounds__(256, 3) count_overlaps(
    const REFERENCE* __restrict__ reference, const PREDICTION* __restrict__ prediction, const u8* __restrict__ ignored,
    i64 n_rows, i64 height, i64 width, i64 first, i64 capacity, u64 empty, u64* table, u32* flags) {
    __shared__ u64 ids[SLOTS * 2];
    __shared__ u32 voxels[SLOTS];
    __shared__ u32 rows[SLOTS];
    __shared__ u32 low[SLOTS];
    __shared__ u32 high[SLOTS];
    __shared__ u32 in_vain;

    for (int slot = threadIdx.x; slot < SLOTS; slot += blockDim.x) {
        ids[2 * slot] = ids[2 * slot + 1] = empty;
        voxels[slot] = rows[slot] = high[slot] = 0;
        low[slot] = LENGTH;
    }
    if (threadIdx.x == 0) in_vain = *(volatile u32*)flags;
    __syncthreads();

    i64 tiles = (width + LENGTH - 1) / LENGTH;
    i64 row_lo = blockIdx.x / tiles * ROWS, x_lo = blockIdx.x % tiles * LENGTH;
    int n = (int)min((i64)ROWS, n_rows - row_lo), length = (int)min((i64)LENGTH, width - x_lo);
    int lane = threadIdx.x % LANES, warps = blockDim.x / LANES;
    // Another attempt follows anyway.
    if (in_vain) n = 0;

    for (int row = threadIdx.x / LANES; row < n; row += warps) {
        i64 start = (row_lo + row) * width + x_lo;
        // The run that has not ended, and (on lane 0) the ids of the last voxel that was looked at.
        int begin = 0;
        i64 last_a = 0, last_b = 0;
        // Adds the run from `from` to `to`.
        auto add_run = [&](u64 a, u64 b, int from, int to) {
            if (a == empty || b == empty) {
                atomicOr(flags, MET_EMPTY);
                return;
            }
            i64 slot = find_pair(ids, 2, SLOTS, NEAR, empty, a, b);
            if (slot < 0) {
                add_overlap(table, capacity, empty, flags, a, b, to - from, 1u << row, first + row_lo, height,
                            x_lo + from, x_lo + to);
                return;
            }
            atomicAdd(&voxels[slot], (u32)(to - from));
            if (!(*(volatile u32*)&rows[slot] >> row & 1)) atomicOr(&rows[slot], 1u << row);
            if (from < (int)*(volatile u32*)&low[slot]) atomicMin(&low[slot], (u32)from);
            if (to > (int)*(volatile u32*)&high[slot]) atomicMax(&high[slot], (u32)to);
        };
        for (int x0 = 0; x0 < length; x0 += AHEAD * LANES) {
            REFERENCE read_a[AHEAD];
            PREDICTION read_b[AHEAD];
#if IGNORE
            u8 read_ignored[AHEAD];
#endif
            #pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                // Beyond its end the row goes on as it ended.
                i64 i = start + min(x0 + k * LANES + lane, length - 1);
                read_a[k] = reference[i];
                read_b[k] = prediction[i];
#if IGNORE
                read_ignored[k] = ignored[i];
#endif
            }
            #pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                i64 a = (i64)read_a[k], b = (i64)read_b[k];
#if IGNORE
                if (read_ignored[k]) a = VOID;
#endif
                // The voxel before this one; before lane 0 lies the last voxel of the round before.
                i64 rolled_a = __shfl_sync(ALL, a, (lane + LANES - 1) % LANES);
                i64 rolled_b = __shfl_sync(ALL, b, (lane + LANES - 1) % LANES);
                i64 before_a = lane ? rolled_a : last_a, before_b = lane ? rolled_b : last_b;
                last_a = rolled_a;
                last_b = rolled_b;
                int x = x0 + k * LANES + lane;
                bool begins = x > 0 && (a != before_a || b != before_b);
                u32 begin_word = __ballot_sync(ALL, begins);
                if (begins) {
                    u32 earlier = begin_word & ((1u << lane) - 1);
                    add_run(before_a, before_b, earlier ? x - lane + 31 - __clz((int)earlier) : begin, x);
                }
                if (begin_word) begin = x - lane + 31 - __clz((int)begin_word);
            }
        }
        if (lane == 0) add_run(last_a, last_b, begin, length);
    }
    __syncthreads();

    for (int slot = threadIdx.x; slot < SLOTS; slot += blockDim.x) {
        if (voxels[slot])
            add_overlap(table, capacity, empty, flags, ids[2 * slot], ids[2 * slot + 1], voxels[slot], rows[slot],
                        first + row_lo, height, x_lo + low[slot], x_lo + high[slot]);
    }
}
