// Connected components of equal class (the stages are named in label.py).
//
// A tile has TILE_Z x TILE_Y rows of 32 voxels. Rows of tiles follow each other as voxels do, so the smallest node of a
// set is its first voxel within a tile, too. Bits describe a row of a tile, a word of 32 for each: `solid` is set where
// a voxel is not background, `links` where it is linked to the one before it along x, y and z (three arrays of words).
//
// `labels` holds 0 on the background. Elsewhere it first holds parents: v + 1 is the node of voxel v. A *local root* is
// the root of a set of its tile; the bits of `roots` tell them.

#include "common.cuh"
#include "unionfind.cuh"

#define WARP 32
#define ALL 0xffffffffu
#define TILE_ROWS (TILE_Z * TILE_Y)
#define X 1
#define Y 2
#define Z 4

// A class in a register: 32 bits, or 64.
typedef decltype((VOLUME)0 + 0u) Class;

struct Tile {
    i64 z, y, x;  // its first voxel

    __device__ Tile(i64 height, i64 width) {
        const i64 rows = (height + TILE_Y - 1) / TILE_Y, columns = (width + WARP - 1) / WARP;
        x = blockIdx.x % columns * WARP;
        y = blockIdx.x / columns % rows * TILE_Y;
        z = blockIdx.x / columns / rows * TILE_Z;
    }
};

// The bits of 32 voxels of a row: which are not background, and which are linked to the one before along x, y and z.
// And those of the voxels before them along x: bit i is of voxel i - 1.
struct Row {
    u32 solid, x, y, z, left_solid, left_y, left_z;
};

// Call `unite(bits, p, q)` for the pairs of neighbours that are to be united, 32 cubes of 2 x 2 x 2 voxels at a time.
// The rows are those of the cubes' last voxels (a), before that along y (b), along z (c) and along both (d). p and q
// are places in a cube: X, Y, Z are set where the voxel is not before the last one along that axis. Diagonals (p and q
// differ in more than one of them) may still be of two classes.
//
// `cut` has the axes along which these cubes lie across a border of tiles; along x it is the first cube that does.
// Pairs across borders are united if `across`. Else the rows know nothing beyond the borders, and runs are united
// already.
//
// A pair is left out where other links imply it:
// - Parallel links of faces in a square of one class imply each other. So that they never do so in a circle, links
//   within tiles come first, then those across borders along x, y and z, in this order; then those at lower places.
// - A diagonal is implied by another voxel of its class in its square, or cube: that is linked to both ends. So two
//   neighbours of equal class rule a diagonal out: if their class is another one, the ends are of two classes.
template <class Unite>
__device__ inline void unite_rows(
    const Row& a, const Row& b, const Row& c, const Row& d, int cut, bool across, Unite unite
) {
    const u32 cut_y = cut & Y ? ALL : 0, cut_z = cut & Z ? ALL : 0;
    if (across) unite(a.x & 1 & (cut_y | ~(a.y & b.x)) & (cut_z | ~(a.z & c.x)), X | Y | Z, Y | Z);
    const u32 links_y = across ? cut_y & (cut_z | ~(a.z & c.y)) : ALL, links_z = across ? cut_z : ALL;
    unite(links_y & a.y & ~(a.x & b.x), X | Y | Z, X | Z);
    unite(links_z & a.z & ~(a.x & c.x) & ~(a.y & b.z), X | Y | Z, X | Y);
    if (CONNECTIVITY == 6) return;

    const u32 xy = (across ? cut_y | 1 : ALL) & ~(a.x | a.y | b.x | a.left_y);
    unite(xy & a.solid & b.left_solid, X | Y | Z, Z);
    unite(xy & a.left_solid & b.solid, Y | Z, X | Z);
    const u32 xz = (across ? cut_z | 1 : ALL) & ~(a.x | a.z | c.x | a.left_z);
    unite(xz & a.solid & c.left_solid, X | Y | Z, Y);
    unite(xz & a.left_solid & c.solid, Y | Z, X | Y);
    const u32 yz = (across ? cut_y | cut_z : ALL) & ~(a.y | a.z | b.z | c.y);
    unite(yz & a.solid & d.solid, X | Y | Z, X);
    unite(yz & b.solid & c.solid, X | Z, X | Y);
    if (CONNECTIVITY == 18) return;

    const u32 xyz = across ? cut_y | cut_z | 1 : ALL;
    unite(xyz & a.solid & d.left_solid & ~(a.x | a.y | a.z | d.x | c.left_y | b.left_z), X | Y | Z, 0);
    unite(xyz & a.left_solid & d.solid & ~(a.x | a.left_y | a.left_z | d.x | c.y | b.z), Y | Z, X);
    unite(xyz & b.solid & c.left_solid & ~(b.x | a.y | b.z | c.x | c.left_y | a.left_z), X | Z, Y);
    unite(xyz & b.left_solid & c.solid & ~(b.x | a.left_y | b.left_z | c.x | c.y | a.z), Z, X | Y);
}

__device__ inline bool is_diagonal(int p, int q) {
    return __popc(p ^ q) > 1;
}

// Return where the run begins that holds a voxel of a row, given where runs begin.
__device__ inline int run_start(u32 starts, int x) {
    return WARP - 1 - __clz(starts & (ALL >> (WARP - 1 - x)));
}

// 1. Label each tile by itself.
extern "C" __global__ void __launch_bounds__(TILE_THREADS, 8) label_tiles(
    const VOLUME* __restrict__ volume, i64 depth, i64 height, i64 width, LABEL* labels, u32* solid, u32* links,
    u32* roots
) {
    __shared__ u32 parents[TILE_ROWS * WARP];
    __shared__ u32 bits[4 * TILE_ROWS];  // `solid` and `links`, without those across borders
    const Tile tile(height, width);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const i64 words = (width + WARP - 1) / WARP;
    const i64 slice = height * width, first = (tile.z * height + tile.y) * width + tile.x;
    const int slices = min(depth - tile.z, (i64)TILE_Z);

    for (int y = warp; y < TILE_Y; y += warps) {
        // All of them are asked for before the first is needed.
        const VOLUME* here = volume + first + y * width + lane;
        const bool there = tile.y + y < height && tile.x + lane < width;
        Class column[TILE_Z + 1];
        column[0] = there && tile.z > 0 ? here[-slice] : 0;
#pragma unroll
        for (int z = 0; z < TILE_Z; z++) column[z + 1] = there && z < slices ? here[z * slice] : 0;
#pragma unroll
        for (int z = 0; z < TILE_Z; z++) {
            const int row = z * TILE_Y + y;
            const Class a = column[z + 1], above = a != 0 && tile.y + y > 0 ? here[z * slice - width] : 0;
            Class left = __shfl_up_sync(ALL, a, 1);
            if (lane == 0) left = a != 0 && tile.x > 0 ? here[z * slice - 1] : 0;
            const u32 inside = __ballot_sync(ALL, a != 0);
            const u32 link_x = __ballot_sync(ALL, a != 0 && a == left);
            const u32 link_y = __ballot_sync(ALL, a != 0 && a == above);
            const u32 link_z = __ballot_sync(ALL, a != 0 && a == column[z]);
            parents[row * WARP + lane] = row * WARP + lane + 1;
            // Lane 0 writes `solid`, lanes 1 to 3 the links along one axis each.
            if (lane < 4) {
                const u32 word = lane == 0 ? inside : lane == 1 ? link_x : lane == 2 ? link_y : link_z;
                const u32 kept = lane == 0 ? ALL : lane == 1 ? ALL - 1 : (lane == 2 ? y : z) > 0 ? ALL : 0;
                bits[lane * TILE_ROWS + row] = word & kept;
                if (z < slices && tile.y + y < height) {
                    const i64 at = ((tile.z + z) * height + tile.y + y) * words + tile.x / WARP;
                    (lane == 0 ? solid : links + (lane - 1) * depth * height * words)[at] = word;
                }
            }
        }
    }
    __syncthreads();

    for (int row = threadIdx.x; row < TILE_ROWS; row += blockDim.x) {
        const auto get = [&](int at) -> Row {
            const bool there = (at & Y || row % TILE_Y > 0) && (at & Z || row >= TILE_Y);
            const int other = there ? row - (at & Y ? 0 : 1) - (at & Z ? 0 : TILE_Y) : row;
            const u32 keep = there ? ALL : 0, inside = bits[other] & keep, x = bits[TILE_ROWS + other] & keep,
                      y = bits[2 * TILE_ROWS + other] & keep, z = bits[3 * TILE_ROWS + other] & keep;
            return {inside, x, y, z, inside << 1, y << 1, z << 1};
        };
        unite_rows(get(Y | Z), get(Z), get(Y), get(0), 0, false, [&](u32 pairs, int p, int q) {
            for (; pairs; pairs &= pairs - 1) {
                const int x = __ffs(pairs) - 1;
                const auto find = [&](int at, Class& value) -> u32 {
                    const int other = row - (at & Y ? 0 : 1) - (at & Z ? 0 : TILE_Y), place = x - (at & X ? 0 : 1);
                    const i64 v = first + other / TILE_Y * slice + other % TILE_Y * width + place;
                    if (is_diagonal(p, q)) value = volume[v];
                    return other * WARP + run_start(bits[other] & ~bits[TILE_ROWS + other], place) + 1;
                };
                Class value = 0, other_value = 0;
                const u32 node = find(p, value), other = find(q, other_value);
                if (value == other_value) unite_sets<u32>(parents, node, other);
            }
        });
    }
    __syncthreads();

    for (int row = warp; row < TILE_ROWS; row += warps) {
        const int z = row / TILE_Y, y = row % TILE_Y;
        const u32 inside = bits[row], node = row * WARP + lane + 1;
        u32 root = 0;
        if (inside >> lane & 1) {
            const int start = run_start(inside & ~bits[TILE_ROWS + row], lane);
            root = find_root<u32>(parents, row * WARP + start + 1);
        }
        const u32 own = __ballot_sync(ALL, root == node);
        if (z >= slices || tile.y + y >= height) continue;
        if (lane == 0) roots[((tile.z + z) * height + tile.y + y) * words + tile.x / WARP] = own;
        LABEL label = 0;
        if (root != 0) {
            const u32 at = root - 1, root_row = at / WARP;
            label = root_row / TILE_Y * (LABEL)slice + root_row % TILE_Y * (LABEL)width + at % WARP + (LABEL)first + 1;
        }
        if (tile.x + lane < width) labels[first + z * slice + y * width + lane] = label;
    }
}

// 2. Unite the sets of neighbouring tiles: what is linked across their lower borders. A thread does a word of bits.
extern "C" __global__ void unite_tiles(
    const VOLUME* __restrict__ volume, const u32* __restrict__ solid, const u32* __restrict__ links, i64 depth,
    i64 height, i64 width, LABEL* labels
) {
    const i64 words = (width + WARP - 1) / WARP, size = depth * height * words, word = thread_number();
    if (word >= size) return;
    const i64 x = word % words * WARP, row = word / words, y = row % height, z = row / height;
    const auto get = [&](int at) -> Row {
        Row found = {0, 0, 0, 0, 0, 0, 0};
        if ((at & Y || y > 0) && (at & Z || z > 0)) {
            const i64 i = word - (at & Y ? 0 : words) - (at & Z ? 0 : height * words);
            const u32* link = links + i;
            found = {solid[i],      link[0],         link[size],         link[2 * size],
                     solid[i] << 1, link[size] << 1, link[2 * size] << 1};
            if (x > 0) {
                found.left_solid |= solid[i - 1] >> (WARP - 1);
                found.left_y |= link[size - 1] >> (WARP - 1);
                found.left_z |= link[2 * size - 1] >> (WARP - 1);
            }
        }
        return found;
    };
    const int cut = (y % TILE_Y == 0 ? Y : 0) | (z % TILE_Z == 0 ? Z : 0);
    unite_rows(get(Y | Z), get(Z), get(Y), get(0), cut, true, [&](u32 pairs, int p, int q) {
        for (; pairs; pairs &= pairs - 1) {
            const auto find = [&](int at) -> i64 {
                return (row - (at & Y ? 0 : 1) - (at & Z ? 0 : height)) * width + x + __ffs(pairs) - (at & X ? 0 : 1);
            };
            const i64 node = find(p), other = find(q);
            if (!is_diagonal(p, q) || volume[node - 1] == volume[other - 1]) unite_sets<LABEL>(labels, node, other);
        }
    });
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
    const u32* __restrict__ solid, const u32* __restrict__ roots, i64 depth, i64 height, i64 width, LABEL* labels
) {
    const Tile tile(height, width);
    const int lane = threadIdx.x % WARP;
    const i64 words = (width + WARP - 1) / WARP;
    for (int row = threadIdx.x / WARP; row < TILE_ROWS; row += blockDim.x / WARP) {
        const i64 z = tile.z + row / TILE_Y, y = tile.y + row % TILE_Y;
        if (z >= depth || y >= height) continue;
        const i64 word = (z * height + y) * words + tile.x / WARP, v = (z * height + y) * width + tile.x + lane;
        if ((solid[word] & ~roots[word]) >> lane & 1) labels[v] = labels[labels[v] - 1];
    }
}

// Describe the runs of equal class along x as `lpa3d.arrays.components.Slab` does, and count how many start in each word of 64
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
        change |= (u64)__ballot_sync(ALL, differs) << (half * WARP);
        solid |= (u64)__ballot_sync(ALL, a != 0) << (half * WARP);
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
