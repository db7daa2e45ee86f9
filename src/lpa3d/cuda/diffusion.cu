// Diffusion stage: voxels near a border keep their two most probable labels and average them with their neighbours.
//
// The voxels that may change are listed in the order of the volume, so that neighbours lie close together in memory. Of
// 32 voxels `bits` tells which are listed and `ends` how many are up to there: a voxel's place takes 2 bits of memory
// where a table of places would take 32. A listed voxel is two words, twice: each sweep reads one side and writes the
// other.
//
// - `names`: its two labels, the smaller in the low half; 0 in the high half while it has met one label only;
// - `odds`: their probabilities, of 65535. A label at 0 counts as dropped; it stays as a hint, since neighbours that
//   name the same two labels in the same order are added without a look at either.
//
// Defines: CONNECTIVITY; LINKS and SEED, dtypes of arrays; INDEX, a dtype that holds the flat index of any voxel; COST,
// whether links conduct less where the cost is high.

#include "common.cuh"

#define CERTAIN 65535
#define FIXED 255  // depth of a voxel that never changes

// The place of a listed voxel in the list, -1 for the others.
__device__ inline i64 find_place(const u32* bits, const INDEX* ends, i64 v) {
    u32 rest = bits[v >> 5] >> (v & 31);
    return rest & 1 ? (i64)ends[v >> 5] - __popc(rest) : -1;
}

// Write 1 to `hops` at the voxels linked to another label. Only labels that are `chosen` count, all if there are no
// `choices`.
extern "C" __global__ void find_border(
    const u32* __restrict__ labels,
    const LINKS* __restrict__ links,
    const i64* __restrict__ strides,
    const u8* __restrict__ chosen,
    i64 choices,
    i64 size,
    u8* __restrict__ hops
) {
    i64 v = thread_number();
    if (v >= size) return;
    u32 mask = links[v];
    if (mask == 0) return;
    u32 label = labels[v];
    if (choices != 0 && !chosen[label]) return;
    for (int k = 0; k < CONNECTIVITY; ++k) {
        if ((mask >> k & 1) && labels[v + strides[k]] != label) {
            hops[v] = 1;
            return;
        }
    }
}

// Write level + 1, at most 255, to all voxels without hops that are linked to one at `level`, and `level` to `reached`
// if there are any. Of `hops`, 8 voxels are a word.
extern "C" __global__ void step_level(
    const LINKS* __restrict__ links,
    const i64* __restrict__ strides,
    i64 words,
    i64 level,
    volatile u64* hops,
    i64* reached
) {
    // Threads race for a voxel, but all write the same to it.
    volatile u8* bytes = (volatile u8*)hops;
    i64 word = thread_number();
    u8 here = (u8)min(level, (i64)255);
    u8 next = (u8)min(level + 1, (i64)255);
    int any = 0;
    if (word < words) {
        u64 others = hops[word] ^ here * 0x0101010101010101ull;
        bool found = ((others - 0x0101010101010101ull) & ~others & 0x8080808080808080ull) != 0;  // a byte is 0
        for (i64 v = 8 * word; found && v < 8 * word + 8; ++v) {
            if (bytes[v] != here) continue;
            for (u32 mask = links[v]; mask != 0; mask &= mask - 1) {
                i64 n = v + strides[__ffs(mask) - 1];
                if (bytes[n] == 0) {
                    bytes[n] = next;
                    any = 1;
                }
            }
        }
    }
    any = __syncthreads_or(any);
    if (any && threadIdx.x == 0) *(volatile i64*)reached = level;
}

// Write which of each 32 voxels have hops, and how many.
extern "C" __global__ void count_listed(
    const u8* __restrict__ hops, i64 words, u32* __restrict__ bits, INDEX* __restrict__ counts
) {
    i64 v = thread_number();
    bool inside = v < 32 * words;
    u32 found = __ballot_sync(0xffffffffu, inside && hops[v] != 0);
    if (inside && (v & 31) == 0) {
        bits[v >> 5] = found;
        counts[v >> 5] = __popc(found);
    }
}

// List the voxels that have hops, each with its label at full probability on both sides.
extern "C" __global__ void list_voxels(
    const u32* __restrict__ labels,
    const SEED* __restrict__ seeds,
    const u8* __restrict__ hops,
    const u32* __restrict__ bits,
    const INDEX* __restrict__ ends,
    i64 size,
    i64 count,
    INDEX* __restrict__ voxels,
    u8* __restrict__ depths,
    u64* __restrict__ names,
    u32* __restrict__ odds
) {
    i64 v = thread_number();
    if (v >= size || hops[v] == 0) return;
    i64 a = find_place(bits, ends, v);
    voxels[a] = v;
    depths[a] = seeds[v] != 0 ? FIXED : hops[v] - 1;
    for (int side = 0; side < 2; ++side) {
        names[side * count + a] = labels[v];
        odds[side * count + a] = CERTAIN;
    }
}

// Average the listed voxels that sweep number `sweep` can change over their links. A linked voxel that is not listed
// has its label still.
extern "C" __global__ void average_list(
    i64 count,
    i64 sweep,
    const INDEX* __restrict__ voxels,
    const u8* __restrict__ depths,
    const u32* __restrict__ bits,
    const INDEX* __restrict__ ends,
    const u32* __restrict__ labels,
    const LINKS* __restrict__ links,
    const u16* __restrict__ cost,
    const i64* __restrict__ strides,
    const u32* __restrict__ conductances,
    const u64* __restrict__ old_names,
    const u32* __restrict__ old_odds,
    u64* __restrict__ new_names,
    u32* __restrict__ new_odds
) {
    i64 a = thread_number();
    if (a >= count || depths[a] >= min(sweep, (i64)FIXED)) return;
    i64 v = voxels[a];
    u64 own = old_names[a];
    u32 low = (u32)own;
    u32 high = (u32)(own >> 32);
    u64 total = 0;
    u64 low_sum = 0;
    u64 high_sum = 0;
    u32 other_names[2 * CONNECTIVITY];
    u64 other_sums[2 * CONNECTIVITY];
    int others = 0;
    for (u32 mask = links[v]; mask != 0; mask &= mask - 1) {
        int k = __ffs(mask) - 1;
        i64 n = v + strides[k];
        u64 w = conductances[k];
#if COST
        w = max((u64)1, 32 * w / ((u64)cost[v] + cost[n]));
#endif
        total += w;
        i64 b = find_place(bits, ends, n);
        u64 pair = b < 0 ? labels[n] : old_names[b];
        u32 p = b < 0 ? CERTAIN : old_odds[b];
        if (pair == own) {
            low_sum += w * (p & 65535);
            high_sum += w * (p >> 16);
            continue;
        }
        for (int half = 0; half < 2; ++half) {
            u32 name = (u32)(pair >> 32 * half);
            u64 part = w * (p >> 16 * half & 65535);
            if (part == 0) continue;
            if (name == low) {
                low_sum += part;
            } else if (name == high) {
                high_sum += part;
            } else {
                int c = 0;
                while (c < others && other_names[c] != name) ++c;
                if (c == others) {
                    other_names[c] = name;
                    other_sums[c] = 0;
                    ++others;
                }
                other_sums[c] += part;
            }
        }
    }
    // Exact: the sums and totals are below 2**52, where a rounded quotient never reaches the next integer. Faster than
    // to divide integers.
    u32 low_p = (u32)((double)low_sum / (double)total);
    u32 high_p = (u32)((double)high_sum / (double)total);
    for (int c = 0; c < others; ++c) {
        u32 name = other_names[c];
        u32 p = (u32)((double)other_sums[c] / (double)total);
        // In this loop `low` is the better of the two, not the smaller.
        if (high != 0 && (high_p > low_p || (high_p == low_p && high < low))) {
            u32 label = low, label_p = low_p;
            low = high, low_p = high_p;
            high = label, high_p = label_p;
        }
        if (high == 0 || p > high_p || (p == high_p && name < high)) {
            high = name;
            high_p = p;
        }
    }
    if (high != 0 && high < low) {
        u32 label = low, label_p = low_p;
        low = high, low_p = high_p;
        high = label, high_p = label_p;
    }
    bool empty = low_p == 0 && high_p == 0;
    new_names[a] = empty ? own : (u64)high << 32 | low;
    new_odds[a] = empty ? old_odds[a] : high_p << 16 | low_p;
}

// Write the most probable label of each listed voxel; a tie goes to the smaller.
extern "C" __global__ void store_labels(
    i64 count,
    const INDEX* __restrict__ voxels,
    const u64* __restrict__ names,
    const u32* __restrict__ odds,
    u32* __restrict__ labels
) {
    i64 a = thread_number();
    if (a < count) labels[voxels[a]] = (u32)(odds[a] >> 16 > (odds[a] & 65535) ? names[a] >> 32 : names[a]);
}

// Write the lead of each listed voxel's label over its rival, if it has one.
extern "C" __global__ void store_leads(
    i64 count, const INDEX* __restrict__ voxels, const u32* __restrict__ odds, u16* __restrict__ confidence
) {
    i64 a = thread_number();
    if (a >= count) return;
    int low_p = odds[a] & 65535;
    int high_p = odds[a] >> 16;
    if (low_p > 0 && high_p > 0) confidence[voxels[a]] = (u16)abs(high_p - low_p);
}
