// Sections stage: what an object's section looks like between two annotated slices. The twins of the kernels in
// kernels/sections.py, each for the pieces of many planes at once.
//
// CLASS is the type of the class map. Tables come as rows of i64 that are the structs here; their columns are those of
// the dtypes of the same names in sections.py.

#include "common.cuh"
#include "pairs.cuh"

#define SIDE 32  // voxels of a tile's side: a warp works on a row of it
#define HALO 16  // columns beside a tile of a window; margins and distances are less, as a key has 4 bits for each
#define WORD 64
#define SUBPIXEL 16

struct Piece {
    i64 y0, y1, x0, x1;
    i64 area, sum_y, sum_x;
    i64 label, plane;
};

// Where a piece's potentials stand: its box and a margin. Places are counted from any one corner.
struct Window {
    i64 image;  // where the known part of its plane begins in the image
    i64 top, left, rows, columns;  // that part
    i64 number;  // of the piece, in its plane
    i64 y, x, height, width;
    i64 start;  // of its potentials
    i64 tile;   // its first tile, counted over all windows
};

// A lone piece and how its motion is searched for. Its window has the same place in the windows' table.
struct Search {
    i64 z;          // the annotated slice
    i64 direction;  // to the slices beside it
    i64 look;       // how many of them are matched
    i64 n;          // slices over which motion is counted; at least `look`
    i64 dy, dx, trust;
    i64 kind;  // its class
    i64 word;  // its template's first word, counted over all searches
    i64 tile;  // its template's first tile: one word wide, SIDE rows high
};

// What is drawn in an interval: windows of its first and of its last end, -1 for none.
struct Item {
    i64 a, b;
    i64 dy, dx;
    i64 label, kind;
};

// A tile of all slices of an interval, and the items that reach it.
struct Cell {
    i64 block;   // its first block: one for each slice
    i64 z;       // its first slice
    i64 number;  // that slice's number in the interval
    i64 n;
    i64 y, x;
    i64 entry, entries;  // its part of the list of items
};

// Return the last of the rows of a table whose `column` is not above `value`; the first row's never is.
__device__ inline i64 find_row(const i64* table, i64 count, i64 columns, i64 column, i64 value) {
    i64 lo = 0;
    i64 hi = count;
    while (hi - lo > 1) {
        const i64 mid = (lo + hi) / 2;
        if (table[mid * columns + column] <= value)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

#define FIND_ROW(table, type, field, count, value) \
    find_row(table, count, sizeof(type) / 8, __builtin_offsetof(type, field) / 8, value)

// Return a / b rounded to the nearest integer, ties to even, for b > 0.
__device__ inline i64 divide_even(i64 a, i64 b) {
    i64 q = a / b;
    q -= q * b > a;
    const i64 twice = 2 * (a - q * b);
    return q + (twice > b || (twice == b && (q & 1)));
}

__device__ inline i64 clip(i64 value, i64 most) { return min(max(value, -most), most); }

// Where the next lane at which `first` is set begins, after this one: the end of the run that begins here.
__device__ inline int run_end(bool first, int lane) {
    const u32 firsts = __ballot_sync(0xffffffffu, first);
    const u32 later = lane == 31 ? 0 : firsts >> (lane + 1);
    return later ? lane + __ffs(later) : 32;
}

// Add up the box, area, sums of positions, label and plane of each piece of a stack of planes; `image` numbers the
// pieces over all of them, and the boxes begin as empty as can be.
extern "C" __global__ void measure_pieces(
    const u32* __restrict__ labels, const u32* __restrict__ image, i64 size, i64 height, i64 width, i64* pieces
) {
    const i64 at = thread_number();
    const int lane = threadIdx.x & 31;
    const i64 number = at < size ? image[at] : 0;
    const i64 x = at % width;
    const i64 before = __shfl_up_sync(0xffffffffu, number, 1);
    const bool first = lane == 0 || x == 0 || number != before;
    const i64 count = run_end(first, lane) - lane;
    if (!first || number == 0)
        return;
    const i64 y = at / width % height;
    Piece* piece = (Piece*)pieces + (number - 1);
    atomicMin(&piece->y0, y);
    atomicMax(&piece->y1, y + 1);
    atomicMin(&piece->x0, x);
    atomicMax(&piece->x1, x + count);
    atomicAdd((u64*)&piece->area, (u64)count);
    atomicAdd((u64*)&piece->sum_y, (u64)(count * y));
    atomicAdd((u64*)&piece->sum_x, (u64)(count * x + count * (count - 1) / 2));
    // All runs of a piece write the same.
    *(volatile i64*)&piece->label = labels[at];
    *(volatile i64*)&piece->plane = at / width / height;
}

#define OVERLAP_COLUMNS 3

// Count the voxels of each two pieces of one label on a plane and the next, in a table of pairs.
//
// In `image` pieces are numbered in their planes, in the table over all planes, both from 1; `firsts` is how many the
// planes before have, `labels` has those of all.
extern "C" __global__ void list_overlaps(
    const u32* __restrict__ image, i64 size, i64 plane, const i64* __restrict__ firsts,
    const u32* __restrict__ labels, i64 capacity, u64 empty, u64* table, u32* flags
) {
    const i64 at = thread_number();
    const int lane = threadIdx.x & 31;
    i64 a = 0;
    i64 b = 0;
    if (at < size && image[at] != 0 && image[at + plane] != 0) {
        const i64 z = at / plane;
        a = firsts[z] + image[at];
        b = firsts[z + 1] + image[at + plane];
        if (labels[a - 1] != labels[b - 1])
            a = b = 0;
    }
    const i64 a_before = __shfl_up_sync(0xffffffffu, a, 1);
    const i64 b_before = __shfl_up_sync(0xffffffffu, b, 1);
    const bool first = lane == 0 || a != a_before || b != b_before;
    const int count = run_end(first, lane) - lane;
    if (!first || a == 0)
        return;
    const i64 row = find_pair(table, OVERLAP_COLUMNS, capacity, FAR, empty, (u64)a, (u64)b);
    if (row < 0)
        atomicOr(flags, FULL);
    else
        atomicAdd(table + row * OVERLAP_COLUMNS + 2, (u64)count);
}

// Write potentials in windows: the distance to the nearest voxel of the other state, + inside; a block for each tile.
//
// ``row_keys[dy] + column_keys[dx]`` is the squared distance and, in the 8 bits below it, dy and dx: the least key
// names the nearest voxel. ``table[dy, dx]`` is the potential there. What lies outside the plane's part is of neither
// state.
extern "C" __global__ void potentials_of_pieces(
    const u32* __restrict__ image, const i64* __restrict__ windows, i64 count, const i32* __restrict__ row_keys,
    const i32* __restrict__ column_keys, const i64* __restrict__ table, i32 margin_y, i32 margin_x, short* potentials
) {
    __shared__ u64 inside[SIDE + 2 * HALO];
    __shared__ u64 outside[SIDE + 2 * HALO];
    const Window window = ((const Window*)windows)[FIND_ROW(windows, Window, tile, count, blockIdx.x)];
    const i64 across = (window.width + SIDE - 1) / SIDE;
    const i64 tile = blockIdx.x - window.tile;
    const i64 top = tile / across * SIDE;
    const i64 left = tile % across * SIDE;
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;
    const int warps = blockDim.x >> 5;

    // Rows of the tile and the margin around it, as bits: column x is bit x + HALO.
    for (int row = warp; row < SIDE + 2 * margin_y; row += warps) {
        const i64 y = top + row - margin_y;
        const i64 image_y = window.y + y - window.top;
        const bool in_rows = 0 <= y && y < window.height && 0 <= image_y && image_y < window.rows;
        u64 bits_in = 0;
        u64 bits_out = 0;
        for (int half = 0; half < 2; half++) {
            const i64 x = left + lane + 32 * half - HALO;
            const i64 image_x = window.x + x - window.left;
            const bool there = in_rows && 0 <= x && x < window.width && 0 <= image_x && image_x < window.columns;
            const bool own = there && image[window.image + image_y * window.columns + image_x] == window.number;
            bits_in |= (u64)__ballot_sync(0xffffffffu, own) << (32 * half);
            bits_out |= (u64)__ballot_sync(0xffffffffu, there && !own) << (32 * half);
        }
        if (lane == 0) {
            inside[row] = bits_in;
            outside[row] = bits_out;
        }
    }
    __syncthreads();

    const int bit = lane + HALO;
    for (int row = warp; row < SIDE; row += warps) {
        const i64 y = top + row;
        const i64 x = left + lane;
        if (y >= window.height || x >= window.width)
            continue;
        const bool own = inside[row + margin_y] >> bit & 1;
        i32 best = row_keys[margin_y + 1];
        for (int dy = -margin_y; dy <= margin_y; dy++) {
            const u64 bits = own ? outside[row + margin_y + dy] : inside[row + margin_y + dy];
            const u64 right = bits >> bit;
            int dx = __clzll((i64)(bits << (63 - bit)));
            if (right)
                dx = min(dx, __ffsll((i64)right) - 1);
            if (dx <= margin_x)
                best = min(best, row_keys[abs(dy)] + column_keys[dx]);
        }
        const short value = (short)table[(best >> 4 & 15) * (margin_x + 2) + (best & 15)];
        potentials[window.start + y * window.width + x] = own ? value : -value;
    }
}

// Write templates as bits: for each word of a window's rows which voxels have the piece's class, then which another.
//
// In neither is what lies outside the plane or as far from the piece's outline as the potential's `cap`: it tells
// nothing about motion. `counted` adds up each template's voxels. A warp writes a word.
extern "C" __global__ void list_templates(
    const CLASS* __restrict__ volume, i64 height, i64 width, const i64* __restrict__ windows,
    const i64* __restrict__ searches, i64 count, const short* __restrict__ potentials, i32 cap, i64 words,
    u64* templates, u64* counted
) {
    const i64 word = thread_number() >> 5;
    if (word >= words)
        return;
    const int lane = threadIdx.x & 31;
    const i64 i = FIND_ROW(searches, Search, word, count, word);
    const Search search = ((const Search*)searches)[i];
    const Window window = ((const Window*)windows)[i];
    const i64 across = (window.width + WORD - 1) / WORD;
    const i64 row = (word - search.word) / across;
    const i64 column = (word - search.word) % across * WORD;
    const i64 y = window.y + row;
    u64 same = 0;
    u64 other = 0;
    for (int half = 0; half < 2; half++) {
        const i64 x = column + 32 * half + lane;
        bool known = x < window.width && 0 <= y && y < height && 0 <= window.x + x && window.x + x < width;
        bool equal = false;
        if (known) {
            known = abs((int)potentials[window.start + row * window.width + x]) < cap;
            equal = (u64)volume[(search.z * height + y) * width + window.x + x] == (u64)search.kind;
        }
        same |= (u64)__ballot_sync(0xffffffffu, known && equal) << (32 * half);
        other |= (u64)__ballot_sync(0xffffffffu, known && !equal) << (32 * half);
    }
    if (lane == 0) {
        templates[2 * word] = same;
        templates[2 * word + 1] = other;
        atomicAdd(counted + i, (u64)__popcll(same | other));
    }
}

// A motion to be tried: `k` steps from the best one so far, along one axis.
__device__ inline i64 try_motion(i64 best, i64 k, i64 step, i64 n, i64 clamp) {
    return clip(best + k * step * n, clamp);
}

// Return by how many voxels a motion over n slices displaces a template on the slice that is `beside` slices away.
__device__ inline i64 shift_on(i64 beside, i64 motion, i64 n) { return divide_even(beside * motion, SUBPIXEL * n); }

// Return 64 bits of a packed row from `bit` on; the row has one word more than is asked for.
__device__ inline u64 read_word(const u64* row, i64 bit) {
    const i64 word = bit >> 6;
    const int shift = (int)(bit & 63);
    return shift == 0 ? row[word] : row[word] >> shift | row[word + 1] << (WORD - shift);
}

// Voxels: no motion is longer, and no slice that is matched lies further away than the motion goes.
#define MOST_SHIFT 64
#define REGION_WORDS ((WORD + 2 * MOST_SHIFT) / WORD + 1)

// Add up how well the class map follows each motion that is tried: `reach` steps each way from the best one so far.
//
// The score of a tile of a template: over the slices, their weight times twice the voxels that agree and once those
// outside the plane. A block works on a tile; a thread on some rows, for one motion.
extern "C" __global__ void rate_motions(
    const CLASS* __restrict__ volume, i64 height, i64 width, const i64* __restrict__ windows,
    const i64* __restrict__ searches, i64 count, const u64* __restrict__ templates, const i64* __restrict__ weights,
    const i64* __restrict__ motions, i64 clamp_y, i64 clamp_x, i32 reach, i64 step, u64* scores
) {
    __shared__ u64 region[(SIDE + 2 * MOST_SHIFT) * REGION_WORDS];
    __shared__ u64 pattern[2 * SIDE];
    const i64 i = FIND_ROW(searches, Search, tile, count, blockIdx.x);
    const Search search = ((const Search*)searches)[i];
    const Window window = ((const Window*)windows)[i];
    const i64 across = (window.width + WORD - 1) / WORD;
    const i64 tile = blockIdx.x - search.tile;
    const i64 top = tile / across * SIDE;
    const i64 column = tile % across;
    const int rows = (int)min((i64)SIDE, window.height - top);
    for (int k = threadIdx.x; k < 2 * rows; k += blockDim.x)
        pattern[k] = templates[2 * (search.word + (top + (k >> 1)) * across + column) + (k & 1)];

    const int lane = threadIdx.x & 31;
    const int tried = 2 * reach + 1;
    const int parts = blockDim.x / (tried * tried);
    const int mine = threadIdx.x % (tried * tried);
    const int part = threadIdx.x / (tried * tried);
    const i64 best_y = motions[2 * i];
    const i64 best_x = motions[2 * i + 1];
    const i64 n = search.n;
    const i64 dy = try_motion(best_y, mine / tried - reach, step, n, clamp_y);
    const i64 dx = try_motion(best_x, mine % tried - reach, step, n, clamp_x);
    const i64 first_y = try_motion(best_y, -reach, step, n, clamp_y);
    const i64 first_x = try_motion(best_x, -reach, step, n, clamp_x);
    const i64 last_y = try_motion(best_y, reach, step, n, clamp_y);
    const i64 last_x = try_motion(best_x, reach, step, n, clamp_x);
    i64 score = 0;
    for (i64 beside = 1; beside <= search.look; beside++) {
        // As far as any motion leads, the slice is packed: which voxels have the class.
        const i64 least_y = shift_on(beside, first_y, n);
        const i64 least_x = shift_on(beside, first_x, n);
        const i64 y0 = window.y + top + least_y;
        const i64 x0 = window.x + column * WORD + least_x;
        const int region_rows = (int)(rows + shift_on(beside, last_y, n) - least_y);
        const int region_words = (int)((shift_on(beside, last_x, n) - least_x) / WORD + 2);
        const CLASS* plane = volume + (search.z + search.direction * beside) * height * width;
        for (int k = threadIdx.x >> 5; k < region_rows * region_words; k += blockDim.x >> 5) {
            const i64 y = y0 + k / region_words;
            u64 bits = 0;
            for (int half = 0; half < 2; half++) {
                const i64 x = x0 + k % region_words * WORD + 32 * half + lane;
                const bool there = 0 <= y && y < height && 0 <= x && x < width;
                const bool same = there && (u64)plane[y * width + x] == (u64)search.kind;
                bits |= (u64)__ballot_sync(0xffffffffu, same) << (32 * half);
            }
            if (lane == 0)
                region[k] = bits;
        }
        __syncthreads();
        if (part < parts) {
            const i64 shift_y = shift_on(beside, dy, n);
            const i64 shift_x = shift_on(beside, dx, n);
            // Which columns lie in the plane: a word's bits from `begin` to before `end`.
            const i64 x = window.x + column * WORD + shift_x;
            const i64 begin = min(max((i64)0, -x), (i64)WORD);
            const i64 end = min(max((i64)0, width - x), (i64)WORD);
            const u64 columns = begin < end ? ~0ull >> (WORD - (end - begin)) << begin : 0;
            i64 agreement = 0;
            for (int row = part; row < rows; row += parts) {
                const i64 y = window.y + top + row + shift_y;
                const u64 inside = 0 <= y && y < height ? columns : 0;
                const u64 same = read_word(region + (row + shift_y - least_y) * region_words, shift_x - least_x);
                const u64 has_class = pattern[2 * row];
                const u64 has_other = pattern[2 * row + 1];
                agreement += 2 * __popcll((has_class & same) | (has_other & inside & ~same));
                agreement += __popcll((has_class | has_other) & ~inside);
            }
            score += weights[beside - 1] * agreement;
        }
        __syncthreads();
    }
    if (part < parts)
        atomicAdd(scores + i * tried * tried + mine, (u64)score);
}

// Replace each best motion by the best of those that were tried: the one with the largest score less what its distance
// from the expected motion costs, of these the nearest; where several tie, their mean.
extern "C" __global__ void choose_motions(
    const i64* __restrict__ searches, i64 count, const u64* __restrict__ counted, const i64* __restrict__ weights,
    const u64* __restrict__ scores, i64 step_y, i64 step_x, i64 clamp_y, i64 clamp_x, i32 reach, i64 step, i64* motions
) {
    const i64 i = thread_number();
    if (i >= count)
        return;
    const Search search = ((const Search*)searches)[i];
    const int tried = 2 * reach + 1;
    i64 weight = 0;
    for (i64 k = 0; k < search.look; k++)
        weight += weights[k];
    i64 best = -(1ll << 62);
    i64 best_r2 = 0;
    i64 sum_y = 0;
    i64 sum_x = 0;
    i64 ties = 0;
    for (int k = 0; k < tried * tried; k++) {
        const i64 dy = try_motion(motions[2 * i], k / tried - reach, step, search.n, clamp_y);
        const i64 dx = try_motion(motions[2 * i + 1], k % tried - reach, step, search.n, clamp_x);
        const i64 ry = abs(dy - search.dy) * step_y / search.n;
        const i64 rx = abs(dx - search.dx) * step_x / search.n;
        const i64 r2 = (ry * ry + rx * rx) >> 12;
        const i64 penalty = ((i64)counted[i] * search.trust * r2) >> 20;
        const i64 score = (i64)scores[i * tried * tried + k] - weight * penalty;
        if (score > best || (score == best && r2 < best_r2)) {
            best = score;
            best_r2 = r2;
            sum_y = dy;
            sum_x = dx;
            ties = 1;
        } else if (score == best && r2 == best_r2) {
            sum_y += dy;
            sum_x += dx;
            ties++;
        }
    }
    motions[2 * i] = divide_even(sum_y, ties);
    motions[2 * i + 1] = divide_even(sum_x, ties);
}

// A window where it lies on a slice when its piece is displaced. Places are counted from the tile's corner.
struct Place {
    i64 start;
    i64 share;  // in the mixture; 0 where there is no piece
    i32 y, x, height, width;
    i32 weights[4];  // of the voxels (y, x) to (y + 1, x + 1)
};

// An item on a slice.
struct Drawn {
    Place places[2];
    i64 lost;
    i64 label, kind;
    i32 y_lo, y_hi, x_lo, x_hi;  // outside nothing of it is read
};

__device__ inline Place place_window(const Window& window, i64 shift_y, i64 shift_x, i64 y, i64 x, i64 share) {
    const i32 fraction_y = (i32)(-shift_y & (SUBPIXEL - 1));
    const i32 fraction_x = (i32)(-shift_x & (SUBPIXEL - 1));
    Place place;
    place.start = window.start;
    place.share = share;
    place.y = (i32)(window.y - (-shift_y >> 4) - y);
    place.x = (i32)(window.x - (-shift_x >> 4) - x);
    place.height = (i32)window.height;
    place.width = (i32)window.width;
    place.weights[0] = (SUBPIXEL - fraction_y) * (SUBPIXEL - fraction_x);
    place.weights[1] = (SUBPIXEL - fraction_y) * fraction_x;
    place.weights[2] = fraction_y * (SUBPIXEL - fraction_x);
    place.weights[3] = fraction_y * fraction_x;
    return place;
}

// Return 256 times the bilinear value at a voxel of the tile, `-cap` around the window.
__device__ inline i32 sample(const short* __restrict__ potentials, const Place& place, i32 y, i32 x, i32 cap) {
    i32 value = 0;
    for (int k = 0; k < 4; k++) {
        const i32 yy = y - place.y + (k >> 1);
        const i32 xx = x - place.x + (k & 1);
        const bool inside = 0 <= yy && yy < place.height && 0 <= xx && xx < place.width;
        value += place.weights[k] * (inside ? (i32)potentials[place.start + (i64)yy * place.width + xx] : -cap);
    }
    return value;
}

#define DRAWN 32  // items that a block holds at once
#define ROWS 4    // of a tile, for a thread

// Label the slices between annotated planes: a block for each slice of each cell, SIDE * SIDE / ROWS threads.
//
// Slice `number` of an interval of n reads an item's first piece displaced by number / n of its motion and its second
// by what is left of it, mixed n - number : number; one that stands alone loses `fading` a slice. Where the class
// fits, the greatest potential of at least `floor` wins, ties the smaller label; labelled voxels stay.
extern "C" __global__ void draw_planes(
    const CLASS* __restrict__ volume, i64 height, i64 width, const i64* __restrict__ cells, i64 count,
    const i64* __restrict__ entries, const i64* __restrict__ items, const i64* __restrict__ windows,
    const short* __restrict__ potentials, i32 cap, i64 fading, i64 floor, u32* labels
) {
    __shared__ u64 room[DRAWN * sizeof(Drawn) / 8];
    Drawn* drawn = (Drawn*)room;
    const Cell cell = ((const Cell*)cells)[FIND_ROW(cells, Cell, block, count, blockIdx.x)];
    const i64 slice = blockIdx.x - cell.block;
    const i64 number = cell.number + slice;
    const i64 n = cell.n;
    const int x = threadIdx.x & 31;
    const int first_row = threadIdx.x >> 5;
    const i64 corner = ((cell.z + slice) * height + cell.y) * width + cell.x;

    i64 best[ROWS];
    u32 winner[ROWS];
    u64 value[ROWS];
    bool open[ROWS];
    bool any = false;
    for (int k = 0; k < ROWS; k++) {
        const int y = first_row + k * (SIDE / ROWS);
        const i64 at = corner + y * width + x;
        open[k] = cell.y + y < height && cell.x + x < width && labels[at] == 0;
        value[k] = open[k] ? (u64)volume[at] : 0;
        // A piece never has class 0.
        open[k] = open[k] && value[k] != 0;
        any = any || open[k];
        best[k] = n * floor;
        winner[k] = 0;
    }
    // With nothing to draw all threads leave here.
    const bool busy = __syncthreads_or(any);
    for (i64 done = 0; busy && done < cell.entries; done += DRAWN) {
        const int held = (int)min((i64)DRAWN, cell.entries - done);
        for (int k = threadIdx.x; k < held; k += blockDim.x) {
            const Item item = ((const Item*)items)[entries[cell.entry + done + k]];
            const bool lone = item.a < 0 || item.b < 0;
            Drawn d;
            d.lost = !lone ? 0 : n * fading * (item.b < 0 ? number : n - number);
            d.label = item.label;
            d.kind = item.kind;
            d.y_lo = d.x_lo = 1 << 30;
            d.y_hi = d.x_hi = -(1 << 30);
            for (int side = 0; side < 2; side++) {
                const i64 at = side == 0 ? item.a : item.b;
                if (at < 0) {
                    d.places[side].share = 0;
                    continue;
                }
                const i64 part = side == 0 ? number : number - n;
                const i64 share = lone ? n : side == 0 ? n - number : number;
                const Place place = place_window(
                    ((const Window*)windows)[at], divide_even(part * item.dy, n), divide_even(part * item.dx, n),
                    cell.y, cell.x, share
                );
                d.y_lo = min(d.y_lo, place.y);
                d.x_lo = min(d.x_lo, place.x);
                d.y_hi = max(d.y_hi, place.y + place.height);
                d.x_hi = max(d.x_hi, place.x + place.width);
                d.places[side] = place;
            }
            drawn[k] = d;
        }
        __syncthreads();
        for (int i = 0; i < held; i++) {
            const Drawn& d = drawn[i];
            if (x < d.x_lo || x >= d.x_hi)
                continue;
            for (int k = 0; k < ROWS; k++) {
                const int y = first_row + k * (SIDE / ROWS);
                if (!open[k] || value[k] != (u64)d.kind || y < d.y_lo || y >= d.y_hi)
                    continue;
                i64 score = -d.lost;
                for (int side = 0; side < 2; side++)
                    if (d.places[side].share != 0)
                        score += d.places[side].share * sample(potentials, d.places[side], y, x, cap);
                if (score > best[k] || (score == best[k] && (winner[k] == 0 || (u32)d.label < winner[k]))) {
                    best[k] = score;
                    winner[k] = (u32)d.label;
                }
            }
        }
        __syncthreads();
    }
    for (int k = 0; k < ROWS; k++)
        if (winner[k] != 0)
            labels[corner + (first_row + k * (SIDE / ROWS)) * width + x] = winner[k];
}
