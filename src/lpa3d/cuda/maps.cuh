// Maps over a volume: each thread has ITEMS voxels, a block apart, and loads them all before it uses any.

#define ITEMS 4

// The first voxel of this thread.
__device__ inline i64 first_item() {
    return ITEMS * (i64)blockIdx.x * blockDim.x + threadIdx.x;
}

// Load this thread's voxels; 0 beyond the end.
template <class T> __device__ inline void load_items(const T* values, i64 size, T (&items)[ITEMS]) {
#pragma unroll
    for (i32 k = 0; k < ITEMS; k++) {
        const i64 v = first_item() + k * blockDim.x;
        items[k] = v < size ? values[v] : 0;
    }
}
