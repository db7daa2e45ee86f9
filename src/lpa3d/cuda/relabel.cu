// New ids in the place of old ones. Define: LABEL, the dtype of the labels.

#include "common.cuh"
#include "maps.cuh"

// The slot of `value` in the table of the Numba kernels: the one that holds its position in `ids`, else an empty one.
__device__ inline i64 find_id(const i64* slots, i64 count, const i64* ids, i64 value) {
    i64 slot = (i64)((u64)value * 0x9E3779B97F4A7C15ull >> 32) & (count - 1);
    while (slots[slot] >= 0 && ids[slots[slot]] != value) slot = (slot + 1) & (count - 1);
    return slot;
}

// Write `labels` to `out` with ids[k] replaced by new_ids[k]; other ids and 0 stay as they are.
extern "C" __global__ void replace_ids(
    const LABEL* __restrict__ labels,
    i64 size,
    const i64* __restrict__ slots,
    i64 count,
    const i64* __restrict__ ids,
    const i64* __restrict__ new_ids,
    LABEL* __restrict__ out
) {
    LABEL old[ITEMS];
    load_items(labels, size, old);
#pragma unroll
    for (i32 k = 0; k < ITEMS; k++) {
        const i64 v = first_item() + k * blockDim.x;
        const i64 found = old[k] != 0 ? slots[find_id(slots, count, ids, (i64)old[k])] : -1;
        if (v < size) out[v] = found >= 0 ? (LABEL)new_ids[found] : old[k];
    }
}
