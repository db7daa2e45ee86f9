"""Count which ids of two volumes share voxels, by runs along x in which neither changes.

Rows are compared 64 voxels at a time; a run costs one look-up, however long it is.
"""

import numpy as np

from ._bits import equal_raw_64, inlined, leaf, load_id, lowest_one
from ._jit import jit
from .pairs import create_pairs, find_pair, grow_pairs

COLUMNS = 9
"""Reference id, predicted id, voxels, and the box: first z, y, x, one after the last z, y, x."""

VOID = -1
"""Reference id of the voxels that are ignored."""

_NONE = np.uint64(0)
_ONE = np.uint64(1)


@inlined
def unequal_word(array, i):
    """Return the bits ``array[i + k] != array[i + k - 1]`` for k < 64 of a raw array; none of one of size 0."""
    return ~equal_raw_64(array[0], array[1], i, i - 1) if array[0].size else _NONE


@inlined
def id_at(array, i):
    """Return ``array[i]`` of a raw array; 0 of one of size 0."""
    return load_id(array[0], array[1], i) if array[0].size else 0


@leaf
def list_ends(first, second, third, start, stop, ends):
    """Write where the runs of a row ``start <= i < stop`` end to `ends` (after the last voxel); return how many.

    In a run none of the three raw arrays changes; one of size 0 is none.
    """
    n_ends = 0
    i = start + 1
    while i + 64 <= stop:
        word = unequal_word(first, i) | unequal_word(second, i) | unequal_word(third, i)
        while word != _NONE:
            ends[n_ends] = i + lowest_one(word)
            n_ends += 1
            word &= word - _ONE
        i += 64
    a, b, c = id_at(first, i - 1), id_at(second, i - 1), id_at(third, i - 1)
    while i < stop:
        ends[n_ends] = i
        next_a, next_b, next_c = id_at(first, i), id_at(second, i), id_at(third, i)
        n_ends += a != next_a or b != next_b or c != next_c
        a, b, c = next_a, next_b, next_c
        i += 1
    ends[n_ends] = stop
    return n_ends + 1


@jit
def count_overlaps(reference, prediction, ignore, height, width, first):
    """Count the voxels of each pair of ids in two raw parts of volumes ``(Z, height, width)`` of at least one row.

    The parts begin with row `first` of the volume, counted over all slices. Where `ignore`, raw too, is not 0 the
    reference id is `VOID` instead; of size 0 it is none. Returns ``(n, COLUMNS)``, in the order in which pairs are met.
    """
    slots, rows = create_pairs(1024, COLUMNS)
    used = 0
    ends = np.empty(width + 1, np.int64)
    for start in range(0, reference[0].size // reference[1], width):
        row = first + start // width
        z = row // height
        y = row - z * height
        begin = start
        n_ends = list_ends(reference, prediction, ignore, start, start + width, ends)
        if used + n_ends > rows.shape[0]:
            slots, rows = grow_pairs(slots, rows, used, 2 * (used + n_ends))
        for i in range(n_ends):
            a, b = id_at(reference, begin), id_at(prediction, begin)
            if id_at(ignore, begin) != 0:
                a = np.int64(VOID)
            x_lo, x_hi = begin - start, ends[i] - start
            slot = find_pair(slots, rows, a, b)
            k = slots[slot]
            if k < 0:
                k = used
                slots[slot] = k
                used += 1
                rows[k, 0], rows[k, 1] = a, b
                rows[k, 3], rows[k, 4], rows[k, 5] = z, y, x_lo
            rows[k, 2] += x_hi - x_lo
            rows[k, 4] = min(rows[k, 4], y)
            rows[k, 5] = min(rows[k, 5], x_lo)
            rows[k, 6] = z + 1
            rows[k, 7] = max(rows[k, 7], y + 1)
            rows[k, 8] = max(rows[k, 8], x_hi)
            begin = ends[i]
    return rows[:used]


@jit
def add_rows(order, pairs, voxels, boxes, out_pairs, out_voxels, out_boxes):
    """Write the rows of a table in an `order` that sorts their pairs, with those of one pair made one; return how many.

    Voxels are summed; boxes ``(n, 2, 3)`` grow to hold all.
    """
    used = 0
    for k in order:
        last = used - 1
        if used and pairs[k, 0] == out_pairs[last, 0] and pairs[k, 1] == out_pairs[last, 1]:
            out_voxels[last] += voxels[k]
            for axis in range(3):
                out_boxes[last, 0, axis] = min(out_boxes[last, 0, axis], boxes[k, 0, axis])
                out_boxes[last, 1, axis] = max(out_boxes[last, 1, axis], boxes[k, 1, axis])
            continue
        out_pairs[used, 0], out_pairs[used, 1] = pairs[k, 0], pairs[k, 1]
        out_voxels[used] = voxels[k]
        for axis in range(3):
            out_boxes[used, 0, axis] = boxes[k, 0, axis]
            out_boxes[used, 1, axis] = boxes[k, 1, axis]
        used += 1
    return used
