"""Sections of objects on slices: list them, count what they share with sections of other slices, chain them to groups.

A section is one id on one slice. Slices lie across any axis of a flat volume in C order; a place in a slice is
``(row, column)``, the two other axes in their order. `sections` holds the number of each voxel's section, counted from
1 slice by slice, 0 elsewhere; tables hold it from 0.
"""

import numpy as np

from ._bits import leaf
from ._jit import jit
from .pairs import create_pairs, find_pair, grow_pairs
from .sections import SUBPIXEL, divide_even
from .unite import find_root

SLICE, ID, AREA, ROWS, COLUMNS, ROW_LO, COLUMN_LO, ROW_HI, COLUMN_HI, FIRST = range(10)
"""Columns of the table of sections: slice, id, voxels, sums of rows and columns, box, flat index of the first voxel."""

PARENT, CHAIN, BEFORE, AFTER, HEAD, TAIL, APART_HEAD, APART_TAIL, APART_COUNT = range(9)
"""Rows of the table of groups. A group is made of chains, which have one section to a slice. Of each section: its
parents in the union-finds of groups and of chains, and the sections of its chain before and after it (-1: none). Of a
chain's root: its first and last section. Of a group's root: its list of entries of `apart`."""


@leaf
def find_run(ids, start, stop, across):
    """Return where the run of equal ids from `start` on ends: of ids that are not 0, only inside a slice."""
    end = start + 1
    if ids[start] == 0 or not across:
        while end < stop and ids[end] == ids[start]:
            end += 1
    return end


@jit
def list_sections(ids, shape, axis, first, last, usable, out):
    """List the sections in the rows ``first <= row < last`` of `ids`, and write their numbers, from 1, to `out`.

    Rows run along the last axis and are counted over the whole volume. Voxels of slices that are not `usable` get 0,
    and so do those of id 0. Returns the table, in the order in which sections are met.
    """
    _, height, width = shape
    slots, rows = create_pairs(1024, 10)
    used = 0
    # A neighbour's section is most likely this one, and saves looking it up.
    above = height * width if axis == 1 else width
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
                # Runs of id 0 may cross slices.
                for i in range(begin, end):
                    out[i] = 0
                begin = end
                continue
            k = np.int64(out[begin - above]) - 1 if begin - above >= first * width else np.int64(-1)
            if k < 0 or rows[k, ID] != value or rows[k, SLICE] != at:
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
def count_shifted(sections, others, steps, starts, some, boxes, shifts, partners):
    """Count the voxels that sections, shifted, share with sections of other slices.

    `sections` and `others` are flat. Of ``some[i]`` the voxels inside ``boxes[i]`` are looked for, and each is shifted
    by ``shifts[i]`` (rows, columns), which must be in the slice of `others`. On the slices of ``some[i]`` the place
    ``(row, column)`` has the index ``starts[i, 0] + steps[0] * row + steps[1] * column`` in `sections`, and
    ``starts[i, 1] + steps[2] * row + steps[3] * column`` in `others`. `partners` tells of which sections voxels count.
    Returns rows ``(section, other section, voxels)``.
    """
    slots, rows = create_pairs(64, 3)
    used = 0
    for i in range(some.size):
        k = some[i]
        lo, hi = boxes[i, 1], boxes[i, 3]
        for row in range(boxes[i, 0], boxes[i, 2]):
            if used + max(0, hi - lo) > rows.shape[0]:
                slots, rows = grow_pairs(slots, rows, used, 2 * (used + hi - lo))
            start = starts[i, 0] + row * steps[0]
            other = starts[i, 1] + (row + shifts[i, 0]) * steps[2] + shifts[i, 1] * steps[3]
            last = np.int64(0)
            count = 0
            for column in range(lo, hi):
                b = np.int64(0)
                if sections[start + column * steps[1]] == k + 1:
                    b = np.int64(others[other + column * steps[3]])
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
def start_groups(apart, following, groups):
    """Fill the table of `groups`, whose parents are given, with a chain for each section.

    Entry ``2 k + side`` of a root's list belongs to that side of the k-th pair of `apart`; `following` holds the next.
    """
    for k in range(groups.shape[1]):
        groups[CHAIN, k], groups[HEAD, k], groups[TAIL, k] = k, k, k
        groups[BEFORE, k], groups[AFTER, k] = -1, -1
        groups[APART_HEAD, k], groups[APART_TAIL, k], groups[APART_COUNT, k] = -1, -1, 0
    for entry in range(following.size):
        root = find_root(groups[PARENT], apart[entry >> 1, entry & 1])
        following[entry] = groups[APART_HEAD, root]
        groups[APART_HEAD, root] = entry
        if groups[APART_TAIL, root] < 0:
            groups[APART_TAIL, root] = entry
        groups[APART_COUNT, root] += 1


@jit
def find_motions(pointers, ranks, slices, centres, limits, motions):
    """Write each section's motion over `limits[0]` slices, along each axis in 1/16 voxel; return whether it is known.

    It is that from the section of its chain that `pointers` lead to over at most `limits[1]` consecutive slices.
    """
    known = np.zeros(ranks.size, np.bool_)
    for k in range(ranks.size):
        far = k
        for steps in range(limits[1]):
            beside = pointers[far]
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
def _share_slice(ranks, groups, a, b):
    """Return whether the chains of the roots `a` and `b` have sections on one slice."""
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
def _join_chains(ranks, groups, a, b):
    """Hang the chain of the root `b` onto that of the root `a`; they share no slice, `b` does not end before `a`."""
    groups[CHAIN, b] = a
    i, j = groups[HEAD, a], groups[HEAD, b]
    if ranks[groups[TAIL, a]] < ranks[j]:
        groups[AFTER, groups[TAIL, a]] = j
        groups[BEFORE, j] = groups[TAIL, a]
        groups[TAIL, a] = groups[TAIL, b]
        return
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


@jit
def _stand_apart(apart, following, groups, a, b):
    """Return whether a pair of `apart` stands between the groups of the roots `a` and `b`."""
    if groups[APART_COUNT, a] > groups[APART_COUNT, b]:
        a, b = b, a
    entry = groups[APART_HEAD, a]
    while entry >= 0:
        if find_root(groups[PARENT], apart[entry >> 1, 1 - (entry & 1)]) == b:
            return True
        entry = following[entry]
    return False


@jit
def _join_groups(following, groups, a, b):
    """Hang the group of the root `b` onto that of the root `a`."""
    groups[PARENT, b] = a
    if groups[APART_COUNT, b] == 0:
        return
    following[groups[APART_TAIL, b]] = groups[APART_HEAD, a]
    groups[APART_HEAD, a] = groups[APART_HEAD, b]
    if groups[APART_COUNT, a] == 0:
        groups[APART_TAIL, a] = groups[APART_TAIL, b]
    groups[APART_COUNT, a] += groups[APART_COUNT, b]


@jit
def chain_sections(pairs, order, ranks, apart, following, groups):
    """Unite the rows ``(earlier, later)`` of `pairs`, in the given order, where that leaves one section to a slice.

    Neither chain may have a section on the slices between the two, the chains no slice in common, and no pair of
    `apart` may stand between their groups.
    """
    for number in order:
        a, b = pairs[number, 0], pairs[number, 1]
        chain_a, chain_b = find_root(groups[CHAIN], a), find_root(groups[CHAIN], b)
        after, before = groups[AFTER, a], groups[BEFORE, b]
        # Also where they are in one chain already.
        if (after >= 0 and ranks[after] <= ranks[b]) or (before >= 0 and ranks[before] >= ranks[a]):
            continue
        meet = ranks[groups[TAIL, chain_a]] >= ranks[groups[HEAD, chain_b]]
        if meet and _share_slice(ranks, groups, chain_a, chain_b):
            continue
        root_a, root_b = find_root(groups[PARENT], a), find_root(groups[PARENT], b)
        if root_a != root_b:
            if _stand_apart(apart, following, groups, root_a, root_b):
                continue
            _join_groups(following, groups, root_a, root_b)
        _join_chains(ranks, groups, chain_a, chain_b)
