// Geodesic stage: the smallest (path weight, label) of every voxel, in rounds over tiles.
//
// A key is distance << 32 | label, so the smaller number is the better key. A block brings the keys of a tile to their
// fixpoint in shared memory, where those of a halo of one voxel stay as they are, and queues the tiles beside it for the
// next round in which a voxel would get a better key from here. Each block writes keys of its own tile only, and keys
// are read and written whole, so what another block reads is the key of a real path, old or new. If it is old, the
// comparison with the halo was made against a key that is no better than the newest one: the tile is queued.
//
// Links lead both ways and never leave the volume. Keys of voxels without a link are not used.
//
// CONNECTIVITY, LINKS, COST (whether there is a cost) and SIDE, of a tile in voxels, are defined by the caller.

#include "common.cuh"

const int REACH = CONNECTIVITY == 6 ? 1 : CONNECTIVITY == 18 ? 2 : 3;
// Offsets that lead one slice back, and those in the slice that lead one row back.
const int OFFSETS_Z = CONNECTIVITY == 6 ? 1 : CONNECTIVITY == 18 ? 5 : 9;
const int OFFSETS_Y = CONNECTIVITY == 6 ? 1 : 3;

const int ROW = SIDE + 2;  // of a tile with its halo
const int SLICE = ROW * ROW;
const int BATCH = 8;  // voxels that a thread asks for before it uses the first
// How far sweeps are unrolled. By name, as nvcc replaces no macros in a pragma.
const int UNROLLED = CONNECTIVITY == 6 ? SIDE : 1;
const u64 NO_KEY = 0xffffffffffffffffull;
const u32 FURTHEST = 0xffffffffu;

// What a block has of a tile in shared memory: keys and costs with the halo, links without.
struct Tile {
    u64* keys;
    LINKS* links;
    u16* cost;
    const i64* weights;
    u64 end;
};

// The queue of tiles: two lists for the rounds that are even and odd, the number of tiles in the lists of this round, the
// next and the one after (round modulo 3), and the last round that each tile was queued for.
struct Queue {
    u32* queued;
    u32* lists;
    u32* counts;
    u32 tiles;
};

__device__ inline u32 tiles_along(i64 side) {
    return (u32)((side + SIDE - 1) / SIDE);
}

__device__ inline Queue open_queue(const i64* shape, u32* queued, u32* lists, u32* counts) {
    return {queued, lists, counts, tiles_along(shape[0]) * tiles_along(shape[1]) * tiles_along(shape[2])};
}

__device__ inline void queue_tile(const Queue& queue, u32 tile, u32 round) {
    // Most find it queued: reading costs less than exchanging.
    if (((volatile u32*)queue.queued)[tile] == round || atomicExch(&queue.queued[tile], round) == round) return;
    u32 place = atomicAdd(&queue.counts[round % 3], 1u);
    queue.lists[(i64)(round % 2) * queue.tiles + place] = tile;
}

__device__ inline u32 tile_of(i64 v, const i64* shape) {
    i64 row = v / shape[2], z = row / shape[1], y = row - z * shape[1], x = v - row * shape[2];
    return ((u32)(z / SIDE) * tiles_along(shape[1]) + (u32)(y / SIDE)) * tiles_along(shape[2]) + (u32)(x / SIDE);
}

__device__ inline u64 weigh_link(i64 weight, const u16* cost, i64 a, i64 b) {
#if COST
    return max((weight * ((i64)cost[a] + cost[b]) + 16) >> 5, 1ll);
#else
    return weight;
#endif
}

// The key that comes along a link; none if it is out of range.
__device__ inline u64 extend_key(u64 key, u64 weight, u64 end) {
    u64 distance = (key >> 32) + weight;
    return distance <= end ? distance << 32 | (u32)key : NO_KEY;
}

// Let every labelled voxel be a source; queue the tiles in which a label can spread.
extern "C" __global__ void start_keys(
    u32 round, i64 size, const i64* __restrict__ shape, const i64* __restrict__ strides,
    const LINKS* __restrict__ links, const u32* __restrict__ labels, u64* keys, u32* queued, u32* lists, u32* counts) {
    i64 v = thread_number();
    if (v >= size) return;
    u32 mask = links[v];
    u32 label = mask != 0 ? labels[v] : 0;
    // Without links, too: tiles are read as a whole.
    keys[v] = label != 0 ? label : NO_KEY;
    if (mask == 0 || label != 0) return;
    for (int k = 0; k < CONNECTIVITY; k++)
        if (mask >> k & 1 && labels[v + strides[k]] != 0) {
            queue_tile(open_queue(shape, queued, lists, counts), tile_of(v, shape), round);
            return;
        }
}

// Set the keys of some voxels; queue the tiles in which they better another one.
extern "C" __global__ void set_keys(
    u32 round, i64 count, i64 end, const i64* __restrict__ shape, const i64* __restrict__ strides,
    const i64* __restrict__ weights, const LINKS* __restrict__ links, const u16* __restrict__ cost,
    const i64* __restrict__ voxels, const u32* __restrict__ near, const u32* __restrict__ labels, volatile u64* keys,
    u32* queued, u32* lists, u32* counts) {
    i64 i = thread_number();
    if (i >= count) return;
    i64 v = voxels[i];
    u64 key = (near[i] != 0 ? (u64)(FURTHEST - near[i]) << 32 : 0) | labels[i];
    keys[v] = key;
    u32 mask = links[v];
    for (int k = 0; k < CONNECTIVITY; k++) {
        if ((mask >> k & 1) == 0) continue;
        i64 n = v + strides[k];
        // If another thread sets the key of n, the old one is read at worst, and a tile queued for nothing.
        if (extend_key(key, weigh_link(weights[k], cost, v, n), end) < keys[n])
            queue_tile(open_queue(shape, queued, lists, counts), tile_of(n, shape), round);
    }
}

// Better the key at `at` by those of its neighbours one step back along `axis` that lie in the same place, or one beside
// it, along the axes that follow: they have the offsets from `first` on. Returns whether it became better.
__device__ __forceinline__ bool pull_keys(const Tile& tile, int axis, int first, int back, int own, int at) {
    u32 mask = tile.links[own];
    u64 before = tile.keys[at], key = before;
    int k = first;
#pragma unroll
    for (int dy = axis == 0 ? -1 : 0; dy <= (axis == 0 ? 1 : 0); dy++) {
#pragma unroll
        for (int dx = axis <= 1 ? -1 : 0; dx <= (axis <= 1 ? 1 : 0); dx++) {
            if (1 + abs(dy) + abs(dx) > REACH) continue;
            if (mask >> k & 1) {
                int there = at + back + dy * ROW + dx;
                u64 weight = weigh_link(tile.weights[CONNECTIVITY - 1 - k], tile.cost, there, at);
                key = min(key, extend_key(tile.keys[there], weight, tile.end));
            }
            k++;
        }
    }
    if (key == before) return false;
    tile.keys[at] = key;
    return true;
}

// Let keys travel through a tile along an axis, forwards or backwards: each plane takes them from the one before. After
// that the same again changes nothing. Every offset belongs to one axis, the first that it leads along.
__device__ __forceinline__ bool sweep_tile(const Tile& tile, int axis, bool forwards) {
    int before = axis == 0 ? 0 : axis == 1 ? OFFSETS_Z : OFFSETS_Z + OFFSETS_Y;
    int own = axis == 0 ? OFFSETS_Z : axis == 1 ? OFFSETS_Y : 1;
    int first = forwards ? before : CONNECTIVITY - before - own;
    int stride = axis == 0 ? SLICE : axis == 1 ? ROW : 1;
    int a = threadIdx.x / SIDE, b = threadIdx.x % SIDE;
    bool better = false;
#pragma unroll UNROLLED
    for (int i = 0; i < SIDE; i++) {
        int plane = forwards ? i : SIDE - 1 - i;
        int z = axis == 0 ? plane : a, y = axis == 1 ? plane : axis == 0 ? a : b, x = axis == 2 ? plane : b;
        int at = ((z + 1) * ROW + y + 1) * ROW + x + 1;
        better |= pull_keys(tile, axis, first, forwards ? -stride : stride, (z * SIDE + y) * SIDE + x, at);
        // With a single offset each thread goes along a line of its own.
        if (own > 1) __syncthreads();
    }
    return better;
}

// Return, as bits 9 * (dz + 1) + 3 * (dy + 1) + dx + 1, in which tiles beside this one a voxel betters a neighbour.
__device__ inline u32 find_sides(const Tile& tile, u32 mask, int z, int y, int x) {
    int at = ((z + 1) * ROW + y + 1) * ROW + x + 1;
    u32 sides = 0;
    int k = 0;
#pragma unroll
    for (int dz = -1; dz <= 1; dz++) {
#pragma unroll
        for (int dy = -1; dy <= 1; dy++) {
#pragma unroll
            for (int dx = -1; dx <= 1; dx++) {
                int distance = abs(dz) + abs(dy) + abs(dx);
                if (distance == 0 || distance > REACH) continue;
                int side_z = z + dz < 0 ? 0 : z + dz < SIDE ? 1 : 2;
                int side_y = y + dy < 0 ? 0 : y + dy < SIDE ? 1 : 2;
                int side_x = x + dx < 0 ? 0 : x + dx < SIDE ? 1 : 2;
                int side = (side_z * 3 + side_y) * 3 + side_x;
                if (mask >> k & 1 && side != 13) {
                    int there = at + (dz * ROW + dy) * ROW + dx;
                    u64 weight = weigh_link(tile.weights[k], tile.cost, at, there);
                    if (extend_key(tile.keys[at], weight, tile.end) < tile.keys[there]) sides |= 1u << side;
                }
                k++;
            }
        }
    }
    return sides;
}

// Bring the keys of the tiles that are queued for a round to their fixpoints, each as if the others stood still.
//
// A single block goes on with the next round, up to `last`, while no more than `few` tiles are queued: starting a round
// from the host takes longer than a few tiles. counts[3] is the next round in the end.
extern "C" __global__ void __launch_bounds__(SIDE * SIDE) relax_tiles(
    u32 round, u32 last, u32 few, i64 end, const i64* __restrict__ shape, const i64* __restrict__ weights,
    const LINKS* __restrict__ links, const u16* __restrict__ cost, volatile u64* keys, u32* queued, u32* lists,
    u32* counts) {
    __shared__ u64 shared_keys[ROW * SLICE];
    __shared__ u16 shared_cost[COST ? ROW * SLICE : 1];
    __shared__ LINKS shared_links[SIDE * SIDE * SIDE];
    __shared__ u32 sides;
    Tile tile = {shared_keys, shared_links, shared_cost, weights, (u64)end};
    Queue queue = open_queue(shape, queued, lists, counts);
    i64 nz = shape[0], ny = shape[1], nx = shape[2];
    i64 tiles_y = tiles_along(ny), tiles_x = tiles_along(nx);
    int y = threadIdx.x / SIDE, x = threadIdx.x % SIDE;

    bool alone = gridDim.x == 1;
    do {
        u32 count = ((volatile u32*)counts)[round % 3];
        for (u32 i = blockIdx.x; i < count; i += gridDim.x) {
            u32 number = ((volatile u32*)lists)[(i64)(round % 2) * queue.tiles + i];
            i64 row = number / tiles_x, z_lo = row / tiles_y * SIDE;
            i64 y_lo = row % tiles_y * SIDE, x_lo = number % tiles_x * SIDE;

            // Beyond the volume stands what lies at its face: nothing leads there.
            const auto find = [&](int p) -> i64 {
                i64 pz = min(max(z_lo + p / SLICE - 1, 0ll), nz - 1);
                i64 py = min(max(y_lo + p % SLICE / ROW - 1, 0ll), ny - 1);
                i64 px = min(max(x_lo + p % ROW - 1, 0ll), nx - 1);
                return (pz * ny + py) * nx + px;
            };
            for (int p = threadIdx.x; p < ROW * SLICE; p += BATCH * SIDE * SIDE) {
                u64 batch[BATCH];
#pragma unroll
                for (int k = 0; k < BATCH; k++) batch[k] = keys[find(min(p + k * SIDE * SIDE, ROW * SLICE - 1))];
#pragma unroll
                for (int k = 0; k < BATCH; k++)
                    if (p + k * SIDE * SIDE < ROW * SLICE) shared_keys[p + k * SIDE * SIDE] = batch[k];
            }
#if COST
            for (int p = threadIdx.x; p < ROW * SLICE; p += SIDE * SIDE) shared_cost[p] = cost[find(p)];
#endif
            if (threadIdx.x == 0) sides = 0;
            i64 first = (z_lo * ny + y_lo + y) * nx + x_lo + x;
            bool inside = y_lo + y < ny && x_lo + x < nx;
            LINKS own[SIDE];
#pragma unroll
            for (int z = 0; z < SIDE; z++) own[z] = inside && z_lo + z < nz ? links[first + z * ny * nx] : 0;
#pragma unroll
            for (int z = 0; z < SIDE; z++) shared_links[(z * SIDE + y) * SIDE + x] = own[z];
            __syncthreads();

            u64 before[SIDE];
#pragma unroll
            for (int z = 0; z < SIDE; z++) before[z] = shared_keys[((z + 1) * ROW + y + 1) * ROW + x + 1];

            // At the fixpoint none of the six sweeps changes anything. In the first one each thread writes the keys that
            // it has just read, so no barrier is needed before it.
            int sweep = 0, quiet = 0;
            while (quiet < 6) {
                bool better = false;
                switch (sweep) {
                    case 0: better = sweep_tile(tile, 0, true); break;
                    case 1: better = sweep_tile(tile, 0, false); break;
                    case 2: better = sweep_tile(tile, 1, true); break;
                    case 3: better = sweep_tile(tile, 1, false); break;
                    case 4: better = sweep_tile(tile, 2, true); break;
                    default: better = sweep_tile(tile, 2, false);
                }
                quiet = __syncthreads_or(better) ? 1 : quiet + 1;
                sweep = sweep == 5 ? 0 : sweep + 1;
            }

            u32 found = 0;
#pragma unroll
            for (int z = 0; z < SIDE; z++) {
                u64 key = shared_keys[((z + 1) * ROW + y + 1) * ROW + x + 1];
                u32 mask = shared_links[(z * SIDE + y) * SIDE + x];
                if (mask == 0 || key == before[z]) continue;
                keys[first + z * ny * nx] = key;
                if (z == 0 || z == SIDE - 1 || y == 0 || y == SIDE - 1 || x == 0 || x == SIDE - 1)
                    found |= find_sides(tile, mask, z, y, x);
            }
            if (found != 0) atomicOr(&sides, found);
            __syncthreads();
            if (threadIdx.x < 27 && sides >> threadIdx.x & 1) {
                i64 dz = threadIdx.x / 9 - 1, dy = threadIdx.x / 3 % 3 - 1, dx = threadIdx.x % 3 - 1;
                queue_tile(queue, (u32)(number + (dz * tiles_y + dy) * tiles_x + dx), round + 1);
            }
            __syncthreads();  // before shared memory is used again
        }
        if (blockIdx.x == 0 && threadIdx.x == 0) {
            counts[(round + 2) % 3] = 0;
            counts[3] = round + 1;
        }
        __syncthreads();
        round++;
        u32 next = ((volatile u32*)counts)[round % 3];
        alone = alone && next > 0 && next <= few && round <= last;
    } while (alone);
}

// Write the label of each key, and find the first voxel without one that has a linked neighbour with one.
extern "C" __global__ void take_labels(
    i64 size, const i64* __restrict__ strides, const LINKS* __restrict__ links, const u64* __restrict__ keys,
    u32* __restrict__ labels, i64* gap) {
    i64 v = thread_number();
    if (v >= size) return;
    u32 mask = links[v];
    if (mask == 0) return;
    u64 key = keys[v];
    labels[v] = key == NO_KEY ? 0 : (u32)key;
    if (key != NO_KEY) return;
    for (int k = 0; k < CONNECTIVITY; k++)
        if (mask >> k & 1 && keys[v + strides[k]] != NO_KEY) {
            // Blocks start in order, mostly: few come before the first.
            if (v < *(volatile i64*)gap) atomicMin(gap, v);
            return;
        }
}

// Write the nearness of each key: `FURTHEST` less its distance, 0 for sources and where there is no key.
extern "C" __global__ void take_nearness(
    i64 size, const LINKS* __restrict__ links, const u64* __restrict__ keys, u32* __restrict__ near) {
    i64 v = thread_number();
    if (v >= size || links[v] == 0) return;
    u32 distance = (u32)(keys[v] >> 32);
    near[v] = distance != 0 ? FURTHEST - distance : 0;
}
