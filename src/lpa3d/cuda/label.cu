// Connected components of equal class (the stages are named in label.py).
//
// A tile has TILE_Z x TILE_Y rows of 32 voxels, one for each lane of a warp. Rows of tiles follow each other as voxels do,
// so the smallest node of a set is its first voxel within a tile, too. Outside the volume all is background.
//
// `labels` holds 0 on the background. Elsewhere it first holds parents: v + 1 is the node of voxel v. A *local root* is
// the root of a set of its tile; `roots` has a bit for each voxel, 32 of a row to a word, that tells them.

#include "common.cuh"
#include "unionfind.cuh"

#define WARP 32
#define BLOCK 256
#define ALL_LANES 0xffffffffu
#define TILE_ROWS (TILE_Z * TILE_Y)
#define TILE_SIZE (TILE_ROWS * WARP)
#define X 1
#define Y 2
#define Z 4

// A class in a register: 32 bits, or 64.
typedef decltype((VOLUME)0 + 0u) Class;

struct Tile {
    i64 z, y, x;  // its first voxel

    __device__ Tile(i64 height, i64 width) {
        i64 rows = (height + TILE_Y - 1) / TILE_Y, columns = (width + WARP - 1) / WARP;
        x = blockIdx.x % columns * WARP;
        y = blockIdx.x / columns % rows * TILE_Y;
        z = blockIdx.x / columns / rows * TILE_Z;
    }
};

__device__ inline bool is_linked(Class a, Class b) {
    return a == b && a != 0;
}

// Unite what is linked in a cube of 2 x 2 x 2 voxels, if a voxel of its last corner takes part: those pairs are in no
// other cube. Bits X, Y, Z of an index of the cube are set where the voxel is not before the last one along that axis.
//
// `cut` has the axes along which a border of tiles cuts the cube. Pairs across borders are united if `across`, else the
// others. A pair is left out where other links imply it:
// - Parallel links of faces in a square of one class imply each other. So that they never do so in a circle, links
//   within tiles come first (those along x are runs, united before), then links across borders along x, y and z; then
//   those at lower places.
// - A diagonal is implied by any other voxel of its class in its square or cube: that is nearer to both ends.
template <class Unite>
__device__ inline void unite_cube(const Class (&cube)[8], int cut, bool across, Unite unite) {
#pragma unroll
    for (int step = X; step <= Z; step *= 2) {
        const int a = 7, b = 7 ^ step;
        if (across ? !(cut & step) : (cut & step) || step == X) continue;
        if (!is_linked(cube[a], cube[b])) continue;
        bool needed = true;
#pragma unroll
        for (int side = X; side <= Z; side *= 2) {
            if (side == step) continue;
            if (side < step || (across && !(cut & side)))
                needed &= cube[a] != cube[a ^ side] || cube[a] != cube[b ^ side];
        }
        if (needed) unite(a, b);
    }
    if (CONNECTIVITY == 6) return;

    // Most cubes have no diagonal that is needed: their two halves along x are of one class each.
    bool plain = true;
#pragma unroll
    for (int at = 0; at < 6; at++) plain &= cube[at] == cube[6 | (at & X)];
    if (plain) return;
#pragma unroll
    for (int step = X | Y; step <= 7; step++) {
        if (step == Z || (step == 7 && CONNECTIVITY == 18)) continue;
        if (((cut & step) != 0) != across) continue;
#pragma unroll
        for (int part = 0; part < 8; part++) {
            const int a = (7 ^ step) | part, b = (7 ^ step) | (step ^ part);
            if ((part & ~step) || a > b || !is_linked(cube[a], cube[b])) continue;
            bool needed = true;
#pragma unroll
            for (int other = 0; other < 8; other++) {
                if (other != a && other != b && (other | step) == 7) needed &= cube[other] != cube[a];
            }
            if (needed) unite(a, b);
        }
    }
}

// 1. Label each tile by itself. `solid` tells which tiles have voxels that are not background.
extern "C" __global__ void label_tiles(
    const VOLUME* __restrict__ volume, i64 depth, i64 height, i64 width, LABEL* labels, u32* roots, u8* solid
) {
    __shared__ u32 parents[TILE_SIZE];
    const Tile tile(height, width);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const i64 x = tile.x + lane, words = (width + WARP - 1) / WARP;
    const auto load = [&](int row) -> Class {
        i64 z = tile.z + row / TILE_Y, y = tile.y + row % TILE_Y;
        return z < depth && y < height && x < width ? volume[(z * height + y) * width + x] : 0;
    };

    // Each voxel's parent is the first of its run.
    Class any = 0;
    for (int row = warp; row < TILE_ROWS; row += BLOCK / WARP) {
        Class a = load(row);
        Class left = __shfl_up_sync(ALL_LANES, a, 1);
        u32 starts = __ballot_sync(ALL_LANES, lane == 0 || a != left);
        int start = WARP - 1 - __clz(starts & (ALL_LANES >> (WARP - 1 - lane)));
        parents[row * WARP + lane] = row * WARP + start + 1;
        any |= a;
    }
    const bool some = __syncthreads_or(any != 0);

    for (int y = warp; some && y < TILE_Y; y += BLOCK / WARP) {
        Class cube[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        for (int z = 0; z < TILE_Z; z++) {
            const int row = z * TILE_Y + y;
#pragma unroll
            for (int at = 0; at < Z; at++) cube[at] = cube[at | Z];
            cube[Z | Y | X] = load(row);
            cube[Z | X] = y > 0 ? load(row - 1) : 0;
#pragma unroll
            for (int at = Z | X; at < 8; at += Y) {
                Class left = __shfl_up_sync(ALL_LANES, cube[at], 1);
                cube[at ^ X] = lane > 0 ? left : 0;
            }
            const int cut = (z == 0 ? Z : 0) | (y == 0 ? Y : 0) | (lane == 0 ? X : 0);
            unite_cube(cube, cut, false, [&](int a, int b) {
                const auto node = [&](int at) -> u32 {
                    int before = (at & Z ? 0 : TILE_Y) + (at & Y ? 0 : 1);
                    return (row - before) * WARP + lane - (at & X ? 0 : 1) + 1;
                };
                unite_sets<u32>(parents, node(a), node(b));
            });
        }
    }
    __syncthreads();

    for (int row = warp; row < TILE_ROWS; row += BLOCK / WARP) {
        const i64 z = tile.z + row / TILE_Y, y = tile.y + row % TILE_Y;
        const Class a = some ? load(row) : 0;
        const u32 node = row * WARP + lane + 1;
        const u32 root = a != 0 ? find_root<u32>(parents, node) : 0;
        const u32 own = __ballot_sync(ALL_LANES, root == node);
        if (z >= depth || y >= height) continue;
        if (lane == 0) roots[(z * height + y) * words + tile.x / WARP] = own;
        if (x >= width) continue;
        const i64 at = root - 1, root_row = at / WARP;
        const i64 first = (tile.z + root_row / TILE_Y) * height + tile.y + root_row % TILE_Y;
        labels[(z * height + y) * width + x] = a != 0 ? first * width + tile.x + at % WARP + 1 : 0;
    }
    if (threadIdx.x == 0) solid[blockIdx.x] = some;
}

// 2. Unite the sets of neighbouring tiles: what is linked across the lower borders of each tile.
extern "C" __global__ void unite_tiles(
    const VOLUME* __restrict__ volume, i64 depth, i64 height, i64 width, const u8* __restrict__ solid, LABEL* labels
) {
    const Tile tile(height, width);
    const i64 rows = (height + TILE_Y - 1) / TILE_Y, columns = (width + WARP - 1) / WARP;
    int filled = 0;
    for (int at = 0; at < 8; at++) {
        bool there = (at & X || tile.x > 0) && (at & Y || tile.y > 0) && (at & Z || tile.z > 0);
        i64 before = (at & X ? 0 : 1) + (at & Y ? 0 : columns) + (at & Z ? 0 : rows * columns);
        filled += there && solid[blockIdx.x - before];
    }
    if (filled < 2) return;

    // Rows on the borders along y and z have a cube at each voxel, the others only one at their first.
    const int border_rows = TILE_Y + TILE_Z - 1, inner_rows = (TILE_Y - 1) * (TILE_Z - 1);
    for (int i = threadIdx.x; i < border_rows * WARP + inner_rows; i += BLOCK) {
        const int row = i / WARP, inner = i - border_rows * WARP;
        int dz = max(row - TILE_Y + 1, 0), dy = row < TILE_Y ? row : 0, dx = i % WARP;
        if (inner >= 0) {
            dz = 1 + inner / max(TILE_Y - 1, 1);
            dy = 1 + inner % max(TILE_Y - 1, 1);
            dx = 0;
        }
        const i64 z = tile.z + dz, y = tile.y + dy, x = tile.x + dx;
        if (z >= depth || y >= height || x >= width) continue;
        Class cube[8];
#pragma unroll
        for (int at = 0; at < 8; at++) {
            bool there = (at & X || x > 0) && (at & Y || y > 0) && (at & Z || z > 0);
            i64 v = ((z - (at & Z ? 0 : 1)) * height + y - (at & Y ? 0 : 1)) * width + x - (at & X ? 0 : 1);
            cube[at] = there ? volume[v] : 0;
        }
        const int cut = (dz == 0 ? Z : 0) | (dy == 0 ? Y : 0) | (dx == 0 ? X : 0);
        const i64 here = (z * height + y) * width + x + 1;
        unite_cube(cube, cut, true, [&](int a, int b) {
            const auto node = [&](int at) -> LABEL {
                return here - (at & Z ? 0 : height * width) - (at & Y ? 0 : width) - (at & X ? 0 : 1);
            };
            unite_sets<LABEL>(labels, node(a), node(b));
        });
    }
}

// 3. Let each local root's parent be its root; of `roots`, list and count those that are roots still.
extern "C" __global__ void flatten_roots(
    const u32* __restrict__ roots, i64 rows, i64 width, LABEL* labels, u32* tops, LABEL* counts
) {
    const i64 words = (width + WARP - 1) / WARP, word = thread_number();
    if (word >= rows * words) return;
    const i64 first = word / words * width + word % words * WARP + 1;
    u32 top = 0;
    for (u32 rest = roots[word]; rest; rest &= rest - 1) {
        const u32 bit = rest & -rest;
        const LABEL node = first + __ffs(rest) - 1, root = find_root<LABEL>(labels, node);
        if (root == node) top |= bit;
        else ((volatile LABEL*)labels)[node - 1] = root;
    }
    tops[word] = top;
    counts[word] = __popc(top);
}

// 4. Replace each local root's parent by its component's number; `ends` has the sums of the counts up to each word.
extern "C" __global__ void rank_roots(
    const u32* __restrict__ roots, const u32* __restrict__ tops, const LABEL* __restrict__ ends, i64 rows, i64 width,
    LABEL* labels
) {
    const i64 words = (width + WARP - 1) / WARP, word = thread_number();
    if (word >= rows * words) return;
    const i64 first = word / words * width + word % words * WARP;
    for (u32 rest = roots[word]; rest; rest &= rest - 1) {
        const i64 v = first + __ffs(rest) - 1, root = labels[v] - 1;
        const i64 x = root % width, place = root / width * words + x / WARP;
        labels[v] = ends[place] - __popc(tops[place] >> x % WARP) + 1;
    }
}

// 5. Give every voxel the number that its local root has.
extern "C" __global__ void write_numbers(
    const u32* __restrict__ roots, const u8* __restrict__ solid, i64 depth, i64 height, i64 width, LABEL* labels
) {
    if (!solid[blockIdx.x]) return;
    const Tile tile(height, width);
    const int lane = threadIdx.x % WARP;
    const i64 x = tile.x + lane, words = (width + WARP - 1) / WARP;
    for (int row = threadIdx.x / WARP; row < TILE_ROWS; row += BLOCK / WARP) {
        const i64 z = tile.z + row / TILE_Y, y = tile.y + row % TILE_Y;
        if (z >= depth || y >= height || x >= width) continue;
        const i64 v = (z * height + y) * width + x;
        const LABEL root = labels[v];
        if (root != 0 && !(roots[(z * height + y) * words + tile.x / WARP] >> lane & 1)) labels[v] = labels[root - 1];
    }
}

// Describe the runs of equal class along x as `lpa3d._label.Slab` does, and count how many start in each word of 64
// voxels. A warp does a word.
extern "C" __global__ void find_runs(
    const VOLUME* __restrict__ volume, i64 rows, i64 width, u64* changes, u64* inside, LABEL* counts
) {
    const i64 words = (width + 63) / 64, word = thread_number() / WARP;
    if (word >= rows * words) return;
    const int lane = threadIdx.x % WARP;
    const i64 start = word / words * width;
    u64 change = 0, solid = 0;
    for (int half = 0; half < 2; half++) {
        const i64 x = word % words * 64 + half * WARP + lane;
        const Class a = x < width ? volume[start + x] : 0;
        const bool differs = x < width && (x == 0 || a != volume[start + x - 1]);
        change |= (u64)__ballot_sync(ALL_LANES, differs) << (half * WARP);
        solid |= (u64)__ballot_sync(ALL_LANES, a != 0) << (half * WARP);
    }
    if (lane == 0) {
        changes[word] = change;
        inside[word] = solid;
        counts[word] = __popcll(change & solid);
    }
}

// List the components of these runs, counted from 0; `ends` has the sums of the counts up to each word.
extern "C" __global__ void list_runs(
    const LABEL* __restrict__ labels, const u64* __restrict__ changes, const u64* __restrict__ inside,
    const LABEL* __restrict__ ends, i64 rows, i64 width, LABEL* runs
) {
    const i64 words = (width + 63) / 64, word = thread_number();
    if (word >= rows * words) return;
    const i64 start = word / words * width + word % words * 64;
    u64 starts = changes[word] & inside[word];
    for (i64 run = ends[word] - __popcll(starts); starts; starts &= starts - 1, run++)
        runs[run] = labels[start + __ffsll(starts) - 1] - 1;
}
