"""Count the combinations of what several sources say of a voxel, and find them again, by runs along x.

A combination is an id of a first source, one of a second, a class and a flag of the slice. It is looked up in two
tables of pairs: the pair of ids has a position, and (4 * position + flag, class) has another, the combination's number.
"""

import numpy as np

from ._jit import jit
from .overlap import id_at, list_ends
from .pairs import create_pairs, find_pair, grow_pairs

COLUMNS = 10
"""4 * position of the ids + flag, class, voxels, first flat index, and the box: first z, y, x, one after the last."""


@jit
def mark_slices(labels, size, axis, height, width, row, out):
    """Set ``out[i]`` to 1 for each slice i across `axis` with a label, in the rows of a flat part from `row` on.

    `labels` are the bytes of the labels, `size` of each.
    """
    for start in range(0, labels.size, width * size):
        z = row // height
        at = z if axis == 0 else row - z * height
        row += 1
        if axis == 2:
            for i in range(width * size):
                out[i // size] |= labels[start + i] != 0
        elif not out[at]:
            # Without a way out the loop takes many bytes at a time.
            found = np.uint8(0)
            for i in range(start, start + width * size):
                found |= labels[i]
            out[at] = found != 0


@jit
def count_combinations(first, second, classes, flags, cuts, axis, height, row, last):
    """Count the voxels of each combination in raw parts of three volumes, from `row` to before `last`.

    A part of size 0 is one of zeros.

    `flags` (0 to 3) belong to the slices across `axis`; a row of voxels is cut at the positions `cuts`, the first 0 and
    the last its width, so that its pieces have one flag each. Returns the pairs of ids ``(m, 2)`` and the combinations
    ``(n, COLUMNS)``, in the order in which they are met.
    """
    width = cuts[-1]
    pair_slots, pairs = create_pairs(1024, 2)
    slots, rows = create_pairs(1024, COLUMNS)
    n_pairs, used = 0, 0
    ends = np.empty(width + 1, np.int64)
    for start in range(0, (last - row) * width, width):
        z = row // height
        y = row - z * height
        n_ends = list_ends(first, second, classes, start, start + width, ends)
        most = n_ends + cuts.size
        if n_pairs + most > pairs.shape[0]:
            pair_slots, pairs = grow_pairs(pair_slots, pairs, n_pairs, 2 * (n_pairs + most))
        if used + most > rows.shape[0]:
            slots, rows = grow_pairs(slots, rows, used, 2 * (used + most))
        begin, piece, i = start, 0, 0
        while i < n_ends:
            stop = min(ends[i], start + cuts[piece + 1])
            flag = np.int64(flags[z if axis == 0 else (y if axis == 1 else cuts[piece])])
            a, b, c = id_at(first, begin), id_at(second, begin), id_at(classes, begin)
            slot = find_pair(pair_slots, pairs, a, b)
            pair = pair_slots[slot]
            if pair < 0:
                pair = n_pairs
                pair_slots[slot] = pair
                n_pairs += 1
                pairs[pair, 0], pairs[pair, 1] = a, b
            x_lo, x_hi = begin - start, stop - start
            slot = find_pair(slots, rows, 4 * pair + flag, c)
            k = slots[slot]
            if k < 0:
                k = used
                slots[slot] = k
                used += 1
                rows[k, 0], rows[k, 1], rows[k, 3] = 4 * pair + flag, c, row * width + x_lo
                rows[k, 4], rows[k, 5], rows[k, 6] = z, y, x_lo
            rows[k, 2] += x_hi - x_lo
            rows[k, 5] = min(rows[k, 5], y)
            rows[k, 6] = min(rows[k, 6], x_lo)
            rows[k, 7] = z + 1
            rows[k, 8] = max(rows[k, 8], y + 1)
            rows[k, 9] = max(rows[k, 9], x_hi)
            piece += stop == start + cuts[piece + 1]
            i += stop == ends[i]
            begin = stop
        row += 1
    return pairs[:n_pairs], rows[:used]


@jit
def index_combinations(keys):
    """Return the two tables of pairs in which `find_combinations` finds the number k of ``keys[k]``, all distinct.

    A key is (first id, second id, class, flag).
    """
    n = keys.shape[0]
    pair_slots, pairs = create_pairs(n, 2)
    slots, rows = create_pairs(n, 2)
    n_pairs = 0
    for k in range(n):
        slot = find_pair(pair_slots, pairs, keys[k, 0], keys[k, 1])
        if pair_slots[slot] < 0:
            pair_slots[slot] = n_pairs
            pairs[n_pairs, 0], pairs[n_pairs, 1] = keys[k, 0], keys[k, 1]
            n_pairs += 1
        rows[k, 0], rows[k, 1] = 4 * pair_slots[slot] + keys[k, 3], keys[k, 2]
        slots[find_pair(slots, rows, rows[k, 0], rows[k, 1])] = k
    return pair_slots, pairs, slots, rows


@jit
def find_combinations(first, second, classes, flags, cuts, place, index, out):
    """Write the number of each voxel's combination to the flat `out`; `place` is (axis, height, row, last).

    The volumes are as in `count_combinations`.
    """
    axis, height, row, last = place
    pair_slots, pairs, slots, rows = index
    width = cuts[-1]
    ends = np.empty(width + 1, np.int64)
    for start in range(0, (last - row) * width, width):
        z = row // height
        y = row - z * height
        row += 1
        n_ends = list_ends(first, second, classes, start, start + width, ends)
        begin, piece, i = start, 0, 0
        while i < n_ends:
            stop = min(ends[i], start + cuts[piece + 1])
            flag = np.int64(flags[z if axis == 0 else (y if axis == 1 else cuts[piece])])
            a, b, c = id_at(first, begin), id_at(second, begin), id_at(classes, begin)
            pair = pair_slots[find_pair(pair_slots, pairs, a, b)]
            k = slots[find_pair(slots, rows, 4 * pair + flag, c)]
            for v in range(begin, stop):
                out[v] = k
            piece += stop == start + cuts[piece + 1]
            i += stop == ends[i]
            begin = stop


@jit
def find_keys(keys, index, out):
    """Write to `out` which number each of the `keys` has in an `index` that holds them all."""
    pair_slots, pairs, slots, rows = index
    for k in range(keys.shape[0]):
        pair = pair_slots[find_pair(pair_slots, pairs, keys[k, 0], keys[k, 1])]
        out[k] = slots[find_pair(slots, rows, 4 * pair + keys[k, 3], keys[k, 2])]
