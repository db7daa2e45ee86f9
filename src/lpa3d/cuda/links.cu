// Links: which neighbours of a voxel have its class. One thread per voxel.
//
// CONNECTIVITY, VOLUME and LINKS are defined by the caller, and INDEX, which holds every flat index: 32 bits divide
// faster than 64.

#include "common.cuh"

const int REACH = CONNECTIVITY == 6 ? 1 : CONNECTIVITY == 18 ? 2 : 3;

extern "C" __global__ void link_voxels(
    i64 size, INDEX nz, INDEX ny, INDEX nx, const VOLUME* __restrict__ volume, LINKS* __restrict__ links) {
    i64 v = thread_number();
    if (v >= size) return;
    VOLUME own = volume[v];
    LINKS mask = 0;
    if (own != 0) {
        INDEX row = (INDEX)v / nx, x = (INDEX)v - row * nx;
        INDEX z = row / ny, y = row - z * ny;
        int k = 0;
#pragma unroll
        for (int dz = -1; dz <= 1; dz++) {
            bool inside_z = dz < 0 ? z > 0 : dz == 0 || z + 1 < nz;
#pragma unroll
            for (int dy = -1; dy <= 1; dy++) {
                bool inside_y = dy < 0 ? y > 0 : dy == 0 || y + 1 < ny;
#pragma unroll
                for (int dx = -1; dx <= 1; dx++) {
                    int distance = abs(dz) + abs(dy) + abs(dx);
                    if (distance == 0 || distance > REACH) continue;
                    bool inside = inside_z && inside_y && (dx < 0 ? x > 0 : dx == 0 || x + 1 < nx);
                    if (inside && volume[v + ((i64)dz * ny + dy) * nx + dx] == own) mask |= (LINKS)1 << k;
                    k++;
                }
            }
        }
    }
    links[v] = mask;
}

// Remove every link with an unlabelled voxel at either end.
extern "C" __global__ void cut_links(
    i64 size, const i64* __restrict__ strides, const u32* __restrict__ labels, LINKS* __restrict__ links) {
    i64 v = thread_number();
    if (v >= size || links[v] == 0) return;
    u32 mask = links[v];
    if (labels[v] == 0) mask = 0;
    for (int k = 0; k < CONNECTIVITY; k++)
        if (mask >> k & 1 && labels[v + strides[k]] == 0) mask &= ~(1u << k);
    links[v] = (LINKS)mask;
}
