"""Sections of objects on slices: list them, count what they share with sections of other slices, chain them to groups.

A section is one id on one slice. Slices lie across any axis of a flat volume in C order; a place in a slice is
``(row, column)``, the two other axes in their order. `sections` holds the number of each voxel's section, from 1 slice by
slice, 0 elsewhere; tables hold it from 0.
"""

import numpy as np

from ._bits import leaf
from ._jit import jit
from .pairs import create_pairs, find_pair, grow_pairs
from .sections import SUBPIXEL, divide_even
from .unite import find_root

SLICE, ID, AREA, ROWS, COLUMNS, ROW_LO, COLUMN_LO, ROW_HI, COLUMN_HI, FIRST = range(10)
"""Columns of the table of sections: slice, id, voxels, sums of rows and columns, box, flat index of the first voxel."""

PARENT, BEFORE, AFTER, HEAD, TAIL, APART_HEAD, APART_TAIL, APART_COUNT = range(8)
"""Rows of the table of groups. Of each section: its parent in the union-find, and the sections of its group on the slices
before and after it (-1: none). Of each root: its group's first and last section, and its list of entries of `apart`."""


@leaf
def find_run(ids, start, stop, across):
    """Return where the run of equal ids from `start` on ends: at the next voxel if slices lie across the rows."""
    end = start + 1
    if not across:
        while end < stop and ids[end] == ids[start]:
            end += 1
    return end


@jit
def list_sections(ids, shape, axis, first, last, usable, out):
    """List the sections in the rows ``first <= row < last`` of the volume `ids`, and write their numbers, from 1, to `out`.

    Rows run along the last axis and are counted over the whole volume. Voxels of slices that are not `usable`, and those
    of id 0, get 0. Returns the table, in the order in which sections are met.
    """
    _, height, width = shape
    slots, rows = create_pairs(1024, 10)
    used = 0
    latest = np.full(shape[axis], -1, np.int64)
    for number in range(first, last):
        z = number // height
        y = number - z * height
        start = number * width
        stop = start + width
        begin = start
        while begin < stop:
            end = find_run(ids, begin, stop, axis == 2)
            value = np.int64(ids[begin])
            x = begin - start
            at = z if axis == 0 else y if axis == 1 else x
            if value == 0 or not usable[at]:
                for i in range(begin, end):
                    out[i] = 0
                begin = end
                continue
            k = latest[at]
            if k < 0 or rows[k, ID] != value:
                if used == rows.shape[0]:
                    slots, rows = grow_pairs(slots, rows, used, 2 * used)
                slot = find_pair(slots, rows, at, value)
                k = slots[slot]
                if k < 0:
                    k = used
                    slots[slot] = k
                    used += 1
                    rows[k, SLICE], rows[k, ID], rows[k, FIRST] = at, value, begin
                    rows[k, ROW_LO], rows[k, COLUMN_LO] = max(shape), max(shape)
                latest[at] = k
            row = y if axis == 0 else z
            column = y if axis == 2 else x
            n = end - begin
            rows[k, AREA] += n
            rows[k, ROWS] += n * row
            rows[k, COLUMNS] += n * column + n * (n - 1) // 2
            rows[k, ROW_LO] = min(rows[k, ROW_LO], row)
            rows[k, ROW_HI] = max(rows[k, ROW_HI], row + 1)
            rows[k, COLUMN_LO] = min(rows[k, COLUMN_LO], column)
            rows[k, COLUMN_HI] = max(rows[k, COLUMN_HI], column + n)
            for i in range(begin, end):
                out[i] = k + 1
            begin = end
    return rows[:used]


@jit
def find_centres(table, out):
    """Write the centre of each section of the `table`, in 1/16 voxel."""
    for k in range(table.shape[0]):
        out[k, 0] = divide_even(SUBPIXEL * table[k, ROWS], table[k, AREA])
        out[k, 1] = divide_even(SUBPIXEL * table[k, COLUMNS], table[k, AREA])


@jit
def replace_numbers(numbers, out):
    """Replace each element of the flat `out` by ``numbers[element]``."""
    for i in range(out.size):
        if out[i]:
            out[i] = numbers[out[i]]


@leaf
def add_voxels(slots, rows, used, a, b, n):
    """Add `n` voxels to the pair ``(a, b)``, for which there must be room; return how many pairs there are."""
    slot = find_pair(slots, rows, a, b)
    if slots[slot] < 0:
        slots[slot] = used
        rows[used, 0], rows[used, 1] = a, b
        used += 1
    rows[slots[slot], 2] += n
    return used


@jit
def count_neighbors(sections, shape, axis, first, last, steps):
    """Count the voxels that each section of some rows shares with sections of the slice that follows its own.

    ``steps[slice]`` is how many flat indices further that slice is, 0 for none. Returns rows ``(section, following
    section, voxels)``.
    """
    _, height, width = shape
    slots, rows = create_pairs(1024, 3)
    used = 0
    for number in range(first, last):
        z = number // height
        start = number * width
        stop = start + width
        if axis < 2 and steps[z if axis == 0 else number - z * height] == 0:
            continue
        if used + width > rows.shape[0]:
            slots, rows = grow_pairs(slots, rows, used, 2 * (used + width))
        begin = start
        while begin < stop:
            a = np.int64(sections[begin])
            step = steps[z if axis == 0 else number - z * height if axis == 1 else begin - start]
            if a == 0 or step == 0:
                begin += 1
                continue
            b = np.int64(sections[begin + step])
            end = begin + 1
            if axis < 2:
                while end < stop and sections[end] == a and sections[end + step] == b:
                    end += 1
            if b:
                used = add_voxels(slots, rows, used, a - 1, b - 1, end - begin)
            begin = end
    return rows[:used]


@jit
def count_shifted(sections, plane, some, boxes, shifts, wanted, partners):
    """Count the voxels that sections of a slice, shifted, share with sections of another.

    `plane` is the flat index at which the slice and the other one begin, the steps of rows and columns, and their numbers.
    Of the sections ``some[0] <= k < some[1]``, which lie on the slice, those that are `wanted` are shifted by
    ``shifts[k]`` (rows, columns), and only `partners` count. Returns rows ``(section, section of the other, voxels)``.
    """
    start, other, row_step, column_step, height, width = plane
    slots, rows = create_pairs(64, 3)
    used = 0
    for k in range(some[0], some[1]):
        if not wanted[k]:
            continue
        dr, dc = shifts[k, 0], shifts[k, 1]
        for row in range(max(boxes[k, 0], -dr), min(boxes[k, 2], height - dr)):
            lo, hi = max(boxes[k, 1], -dc), min(boxes[k, 3], width - dc)
            if used + max(0, hi - lo) > rows.shape[0]:
                slots, rows = grow_pairs(slots, rows, used, 2 * (used + hi - lo))
            last = np.int64(0)
            count = 0
            for column in range(lo, hi):
                b = np.int64(0)
                if sections[start + row * row_step + column * column_step] == k + 1:
                    b = np.int64(sections[other + (row + dr) * row_step + (column + dc) * column_step])
                if b != last:
                    if last and partners[last - 1]:
                        used = add_voxels(slots, rows, used, k, last - 1, count)
                    last = b
                    count = 0
                count += 1
            if last and partners[last - 1]:
                used = add_voxels(slots, rows, used, k, last - 1, count)
    return rows[:used]


@jit
def start_groups(ranks, apart, chain, groups):
    """Fill the table of `groups` but for its parents, which are given; sections are sorted by `ranks`.

    Entry ``2 k + side`` of a root's list belongs to that side of the k-th pair of `apart`; `chain` holds the next one.
    """
    for row in range(1, 8):
        for k in range(groups.shape[1]):
            groups[row, k] = 0 if row == APART_COUNT else -1
    for k in range(ranks.size):
        root = find_root(groups[PARENT], k)
        last = groups[TAIL, root]
        groups[BEFORE, k] = last
        if last < 0:
            groups[HEAD, root] = k
        else:
            groups[AFTER, last] = k
        groups[TAIL, root] = k
    for entry in range(chain.size):
        root = find_root(groups[PARENT], apart[entry >> 1, entry & 1])
        chain[entry] = groups[APART_HEAD, root]
        groups[APART_HEAD, root] = entry
        if groups[APART_TAIL, root] < 0:
            groups[APART_TAIL, root] = entry
        groups[APART_COUNT, root] += 1


@leaf
def find_beside(pointers, ranks, k):
    """Return the section that `pointers` lead to from `k`, on the next slice that has one (-1: none)."""
    beside = pointers[k]
    while beside >= 0 and ranks[beside] == ranks[k]:
        beside = pointers[beside]
    return beside


@jit
def find_motions(pointers, ranks, slices, centres, limits, motions):
    """Write each section's motion over `limits[0]` slices, along each axis in 1/16 voxel; return whether it is known.

    It is that from the section of its group that `pointers` lead to over at most `limits[1]` consecutive slices.
    """
    known = np.zeros(ranks.size, np.bool_)
    for k in range(ranks.size):
        far = k
        for steps in range(limits[1]):
            beside = find_beside(pointers, ranks, far)
            if beside < 0 or abs(ranks[beside] - ranks[k]) != steps + 1:
                break
            far = beside
        if far == k:
            continue
        known[k] = True
        lo, hi = min(k, far), max(k, far)
        for side in range(2):
            moved = centres[hi, side] - centres[lo, side]
            motions[k, side] = divide_even(limits[0] * moved, slices[hi] - slices[lo])
    return known


@jit
def find_open(ranks, distance, groups, ends, begins):
    """Write whether each section's group has no section on the next `distance` slices, and none on those before."""
    for k in range(ranks.size):
        after = find_beside(groups[AFTER], ranks, k)
        ends[k] = after < 0 or ranks[after] - ranks[k] > distance
        before = find_beside(groups[BEFORE], ranks, k)
        begins[k] = before < 0 or ranks[k] - ranks[before] > distance


@jit
def _share_slice(ranks, groups, a, b):
    """Return whether the groups of the roots `a` and `b` have sections on one slice."""
    i, j = groups[HEAD, a], groups[HEAD, b]
    while i >= 0 and j >= 0:
        if ranks[i] == ranks[j]:
            return True
        if ranks[i] < ranks[j]:
            i = groups[AFTER, i]
        else:
            j = groups[AFTER, j]
    return False


@jit
def _stand_apart(apart, chain, groups, a, b):
    """Return whether a pair of `apart` stands between the groups of the roots `a` and `b`."""
    if groups[APART_COUNT, a] > groups[APART_COUNT, b]:
        a, b = b, a
    entry = groups[APART_HEAD, a]
    while entry >= 0:
        if find_root(groups[PARENT], apart[entry >> 1, 1 - (entry & 1)]) == b:
            return True
        entry = chain[entry]
    return False


@jit
def _join(ranks, chain, groups, a, b):
    """Hang the group of the root `b` onto that of the root `a`; they share no slice, and `b` does not end before `a`."""
    i, j = groups[HEAD, a], groups[HEAD, b]
    if ranks[groups[TAIL, a]] < ranks[j]:
        groups[AFTER, groups[TAIL, a]] = j
        groups[BEFORE, j] = groups[TAIL, a]
        groups[TAIL, a] = groups[TAIL, b]
    else:
        last = np.int64(-1)
        while i >= 0 or j >= 0:
            if j < 0 or (i >= 0 and ranks[i] < ranks[j]):
                k = i
                i = groups[AFTER, i]
            else:
                k = j
                j = groups[AFTER, j]
            groups[BEFORE, k] = last
            if last < 0:
                groups[HEAD, a] = k
            else:
                groups[AFTER, last] = k
            last = k
        groups[AFTER, last] = -1
        groups[TAIL, a] = last
    groups[PARENT, b] = a
    if groups[APART_COUNT, b] == 0:
        return
    chain[groups[APART_TAIL, b]] = groups[APART_HEAD, a]
    groups[APART_HEAD, a] = groups[APART_HEAD, b]
    if groups[APART_COUNT, a] == 0:
        groups[APART_TAIL, a] = groups[APART_TAIL, b]
    groups[APART_COUNT, a] += groups[APART_COUNT, b]


@jit
def chain_sections(pairs, order, ranks, apart, chain, groups):
    """Unite the rows ``(earlier, later)`` of `pairs`, in the given order, where that leaves one section to a slice.

    Neither group may have a section on the slices between the two, the groups no slice in common, and no pair of `apart`
    between them.
    """
    for number in order:
        a, b = pairs[number, 0], pairs[number, 1]
        root_a, root_b = find_root(groups[PARENT], a), find_root(groups[PARENT], b)
        if root_a == root_b:
            continue
        after = find_beside(groups[AFTER], ranks, a)
        before = find_beside(groups[BEFORE], ranks, b)
        if (after >= 0 and ranks[after] <= ranks[b]) or (before >= 0 and ranks[before] >= ranks[a]):
            continue
        if ranks[groups[TAIL, root_a]] >= ranks[groups[HEAD, root_b]] and _share_slice(ranks, groups, root_a, root_b):
            continue
        if _stand_apart(apart, chain, groups, root_a, root_b):
            continue
        _join(ranks, chain, groups, root_a, root_b)
