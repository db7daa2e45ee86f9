// What all kernels share. No system header is included: NVRTC has none.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

// The number of this thread in a one-dimensional grid: volumes have more than 2**31 voxels.
__device__ inline i64 thread_number() {
    return (i64)blockIdx.x * blockDim.x + threadIdx.x;
}
