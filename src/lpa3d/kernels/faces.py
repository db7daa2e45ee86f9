"""Components over tiles: what of a tile's components its sides show, and the join of all tiles.

A tile's components come as slabs of runs (`arrays.components.Slab`): the bitmaps `changes` and `inside`, the component
of each run within the slab, and the number 1, 2, ... in the tile of each of the slab's components. Numbers are in
raster order of first voxels, so a run is its component's first if its number is larger than all before. Flat indices of
voxels are those in the tile; `width` is the length of a row.

In the join, `sets` holds for each border component of one tile the rank of its set among all sets, and `ends` for each
set the least flat index in the volume of its voxels, or -1 - its number as soon as that is known.
"""

import numpy as np

from ._bits import count_ones, leaf, lowest_one
from ._jit import jit
from .label import find_spans
from .unionfind import unite_sets

__all__ = [
    "count_roots",
    "count_starts",
    "count_voxels",
    "fill_planes",
    "find_firsts",
    "link_planes",
    "lower_ends",
    "number_locals",
    "number_roots",
    "unite_pairs",
]

NONE = np.uint64(0)
ONE = np.uint64(1)


@jit
def find_firsts(changes, inside, runs, numbers, width, start, known, firsts):
    """Write the flat index of the first voxel of each component with a number above `known`; return the largest.

    `start` is the flat index of the slab's first voxel.
    """
    words = changes.shape[2]
    changes = changes.reshape(-1)
    inside = inside.reshape(-1)
    run = 0
    for row in range(changes.size // words):
        for w in range(words):
            starts = changes[row * words + w] & inside[row * words + w]
            while starts != NONE:
                if numbers[runs[run]] > known:
                    firsts[known] = start + row * width + 64 * w + lowest_one(starts)
                    known += 1
                starts &= starts - ONE
                run += 1
    return known


@jit
def fill_planes(changes, inside, runs, numbers, width, planes):
    """Write the components' numbers on the sides of a slab, whose background is 0 already.

    `planes` are the sides low and high along the slab's axes, in the shapes of slices through it; one of size 0 is not
    wanted.
    """
    z_low, z_high, y_low, y_high, x_low, x_high = planes
    depth, height, words = changes.shape
    starts = np.empty(width, np.int64)
    stops = np.empty(width, np.int64)
    last = width - 1
    run = 0
    for z in range(depth):
        for y in range(height):
            count = 0
            for w in range(words):
                count += count_ones(changes[z, y, w] & inside[z, y, w])
            if count == 0:
                continue
            if x_low.size and inside[z, y, 0] & ONE != NONE:
                x_low[z, y] = numbers[runs[run]]
            if x_high.size and inside[z, y, last >> 6] >> np.uint64(last & 63) & ONE != NONE:
                x_high[z, y] = numbers[runs[run + count - 1]]
            z_first = z == 0 and z_low.size > 0
            z_last = z == depth - 1 and z_high.size > 0
            y_first = y == 0 and y_low.size > 0
            y_last = y == height - 1 and y_high.size > 0
            if z_first or z_last or y_first or y_last:
                find_spans(changes[z, y], inside[z, y], width, starts, stops)
                for k in range(count):
                    value = numbers[runs[run + k]]
                    for x in range(starts[k], stops[k]):
                        if z_first:
                            z_low[y, x] = value
                        if z_last:
                            z_high[y, x] = value
                        if y_first:
                            y_low[z, x] = value
                        if y_last:
                            y_high[z, x] = value
            run += count


@jit
def count_starts(firsts, own, width, places, rows, before):
    """Count the components that start in each row of a tile, but for those whose `own` is 0.

    `places` are the indices of the border components, whose `own` is 0; `before` gets how many that count start before
    each of them in its row.
    """
    border = 0
    for k in range(firsts.size):
        row = firsts[k] // width
        if border < places.size and places[border] == k:
            before[border] = rows[row]
            border += 1
        if own[k]:
            rows[row] += 1


@jit
def count_voxels(changes, inside, runs, numbers, width, voxels):
    """Add the length of each run to ``voxels[number - 1]``."""
    depth, height, _ = changes.shape
    starts = np.empty(width, np.int64)
    stops = np.empty(width, np.int64)
    run = 0
    for z in range(depth):
        for y in range(height):
            for k in range(find_spans(changes[z, y], inside[z, y], width, starts, stops)):
                voxels[np.int64(numbers[runs[run]]) - 1] += stops[k] - starts[k]
                run += 1


@leaf
def find_root(parents, node):
    """Return the root of a node's set."""
    while parents[node] != node:
        node = np.int64(parents[node])
    return node


@jit
def link_planes(plane, classes, other, other_classes, reach, parents, pairs):
    """Write pairs of border components that link two sides which face each other; return how many.

    Voxels are linked that are at most `reach` steps apart within the plane and of the same class; `classes` has the
    class of border components 1, 2, ... . Pairs that others imply are left out: `parents`, ``arange`` at first, has a
    node for each border component of the one tile, then of the other.
    """
    height, width = plane.shape
    offset = classes.size
    found = 0
    for dy in range(-1, 2):
        for dx in range(-1, 2):
            if abs(dy) + abs(dx) > reach:
                continue
            for y in range(max(0, -dy), min(height, height - dy)):
                last, last_there = 0, 0
                for x in range(max(0, -dx), min(width, width - dx)):
                    here, there = np.int64(plane[y, x]), np.int64(other[y + dy, x + dx])
                    if here == 0 or there == 0 or (here == last and there == last_there):
                        continue
                    last, last_there = here, there
                    if classes[here - 1] != other_classes[there - 1]:
                        continue
                    here, there = here - 1, there - 1
                    if find_root(parents, here) != find_root(parents, offset + there):
                        unite_sets(parents, here, offset + there)
                        pairs[found, 0] = here
                        pairs[found, 1] = there
                        found += 1
    return found


@jit
def unite_pairs(pairs, offset, other_offset, parents):
    """Unite the border components of two tiles, of which the first are `offset` and `other_offset`."""
    for k in range(pairs.shape[0]):
        unite_sets(parents, offset + np.int64(pairs[k, 0]), other_offset + np.int64(pairs[k, 1]))


@leaf
def flat_in_volume(index, box):
    """Return the flat index in the volume of one in a tile; `box`: the tile's origin and shape, the volume's shape."""
    row = index // box[5]
    z = row // box[4]
    return ((z + box[0]) * box[7] + row - z * box[4] + box[1]) * box[8] + index - row * box[5] + box[2]


@jit
def lower_ends(firsts, flags, sets, box, ends, set_flags):
    """Lower the ends of the sets of a tile's border components to their first voxels, and pass on their flags."""
    for k in range(firsts.size):
        own = np.int64(sets[k])
        first = flat_in_volume(np.int64(firsts[k]), box)
        if first < ends[own]:
            ends[own] = first
        if flags[k]:
            set_flags[own] = True


@jit
def count_roots(firsts, sets, box, ends, set_flags, rows):
    """Add to the counts of rows the border components with the first voxel of a set without a flag."""
    for k in range(firsts.size):
        own = np.int64(sets[k])
        if not set_flags[own] and ends[own] == flat_in_volume(np.int64(firsts[k]), box):
            rows[np.int64(firsts[k]) // box[5]] += 1


@jit
def number_roots(firsts, before, sets, box, bases, set_flags, ends):
    """Number the sets without a flag whose first voxel a border component has; a row's first number is in `bases`."""
    last, roots = -1, 0
    for k in range(firsts.size):
        row = np.int64(firsts[k]) // box[5]
        if row != last:
            last, roots = row, 0
        own = np.int64(sets[k])
        if not set_flags[own] and ends[own] == flat_in_volume(np.int64(firsts[k]), box):
            ends[own] = -1 - (np.int64(bases[row]) + np.int64(before[k]) + roots)
            roots += 1


@jit
def number_locals(firsts, own, places, set_numbers, width, bases, after, out):
    """Write `after` + the number of each component of a tile, 0 for what has none.

    Border components, at `places`, have those of their sets, `set_numbers`; of the others, those whose `own` is not 0
    count on from the first number of their row, `bases`, and so do the border components that start a set there: the
    next number is theirs.
    """
    border, last = 0, -1
    number = np.int64(0)
    for k in range(firsts.size):
        row = np.int64(firsts[k]) // width
        if row != last:
            last, number = row, np.int64(bases[row])
        if border < places.size and places[border] == k:
            held = np.int64(set_numbers[border])
            border += 1
            out[k] = after + held if held else 0
            if held == number:
                number += 1
        elif own[k]:
            out[k] = after + number
            number += 1
        else:
            out[k] = 0
