"""Connected components of equal class, by runs along x (the stages are named in `lpa3d._label`).

Two bitmaps of shape ``(Z, Y, W)``, 64 voxels of a row to a word, describe every run: bit x of `changes` says that voxel
x differs from voxel x - 1 (voxel 0 always does), bit x of `inside` that voxel x is not 0. A foreground run starts where
both are set and ends at the next change. Runs are numbered in raster order.

Rows are compared 64 voxels at a time. A link is *spent* on a union only where the links before it do not imply it
already; with 26 neighbours that leaves about as many unions as with 6.
"""

import numpy as np

from ._bits import count_ones, equal_64, lowest_one, nonzero_64
from ._jit import jit
from .unionfind import rank_sets, unite_sets

ONE = np.uint64(1)
NONE = np.uint64(0)
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
TOP = np.uint64(63)


@jit
def equal_word(volume, i, j):
    """Return the bits ``volume[i + k] == volume[j + k]`` for k < 64, 0 where either lies outside the array."""
    size = volume.size
    if j >= 0 and max(i, j) + 64 <= size:
        return equal_64(volume, i, j)
    word = NONE
    for k in range(64):
        if j + k >= 0 and max(i, j) + k < size and volume[i + k] == volume[j + k]:
            word |= ONE << np.uint64(k)
    return word


@jit
def nonzero_word(volume, i):
    """Return the bits ``volume[i + k] != 0`` for k < 64, 0 outside the array."""
    if i + 64 <= volume.size:
        return nonzero_64(volume, i)
    word = NONE
    for k in range(volume.size - i):
        if volume[i + k] != 0:
            word |= ONE << np.uint64(k)
    return word


@jit
def unite_word(parents, links, x, dx, here, there, starts, before):
    """Unite the runs that each set bit of `links` joins: voxel x + bit of row `here`, x + bit + dx of row `there`."""
    word = here + (x >> 6)
    start, first = starts[word], before[word] - 1
    while links != NONE:
        bit = lowest_one(links)
        links &= links - ONE
        up_to = ALL >> (TOP - np.uint64(bit))
        run = first + count_ones(start & up_to)
        other = x + bit + dx
        word = there + (other >> 6)
        up_to = ALL >> (TOP - np.uint64(other & 63))
        unite_sets(parents, run, before[word] - 1 + count_ones(starts[word] & up_to))


@jit
def scan_runs(volume, width, connectivity, z_lo, z_hi, changes, inside, parents):
    """Find the runs of the slices ``z_lo <= z <= z_hi`` and unite those that are linked.

    Fills the bitmaps of the slices before `z_hi`. The slice `z_hi` is left out where there is none; it is the first of
    the next slab, scanned twice so that the slabs can be joined by its runs.

    Returns
    -------
    runs : array
        Component of each run, numbered from 0 in raster order; made from `parents`, which sets the dtype.
    own, total, components : int
        Runs before `z_hi`, runs in all, components in all.
    """
    depth, height, words = changes.shape
    z_stop = min(z_hi + 1, depth)
    plane = height * words
    # Of this slice and the one before: run starts, where each row's voxels change, and the runs before each word.
    starts = np.zeros(2 * plane, np.uint64)
    before = np.zeros(2 * plane, np.int64)
    change = np.zeros(words + 1, np.uint64)
    foreground = np.zeros(words, np.uint64)
    above = np.zeros(words, np.uint64)  # voxels of the row y - 1 that equal those of (z - 1, y - 1)
    tail = ALL >> np.uint64(words * 64 - width)
    not_last = tail >> ONE
    count = 0
    own = 0
    for z in range(z_lo, z_stop):
        if z == z_hi:
            own = count
        has_z = z > z_lo
        above[:] = NONE
        for y in range(height):
            row = (z * height + y) * width
            here = (z & 1) * plane + y * words
            there = plane - (z & 1) * plane + y * words

            row_start = count
            for w in range(words):
                x = 64 * w
                differ = ~equal_word(volume, row + x, row + x - 1)
                if w == 0:
                    differ |= ONE
                solid = nonzero_word(volume, row + x)
                if w == words - 1:
                    differ &= tail
                    solid &= tail
                change[w] = differ
                foreground[w] = solid
                if z < z_hi:
                    changes[z, y, w] = differ
                    inside[z, y, w] = solid
                starts[here + w] = differ & solid
                before[here + w] = count
                count += count_ones(differ & solid)
            if count > parents.size:
                # Extrapolate from the rows done so far, so that noise grows it once or twice.
                rows = (z - z_lo) * height + y + 1
                expected = count * ((z_stop - z_lo) * height) // rows
                grown = np.empty(max(count + count // 2, expected + expected // 16) + width, parents.dtype)
                grown[:row_start] = parents[:row_start]
                parents = grown
            for run in range(row_start, count):
                parents[run] = run

            carry_y = NONE
            carry_z = NONE
            carry_up = NONE
            carry_down = NONE
            for w in range(words):
                solid = foreground[w]
                if solid == NONE:
                    above[w] = NONE
                    carry_y = NONE
                    carry_z = NONE
                    carry_up = NONE
                    carry_down = NONE
                    continue
                x = 64 * w
                i = row + x
                differ = change[w]
                # Links at the same x: one per pair of runs, at the first voxel that they share.
                equal_y = NONE
                if y > 0:
                    equal_y = equal_word(volume, i, i - width) & solid
                    links = equal_y & (differ | ~(equal_y << ONE | carry_y))
                    carry_y = equal_y >> TOP
                    if links != NONE:
                        unite_word(parents, links, x, 0, here, here - words, starts, before)
                equal_z = NONE
                if has_z:
                    equal_z = equal_word(volume, i, i - height * width) & solid
                    # Implied where the four voxels of the square in y and z are equal.
                    links = equal_z & (differ | ~(equal_z << ONE | carry_z)) & ~(equal_y & above[w])
                    carry_z = equal_z >> TOP
                    above[w] = equal_z
                    if links != NONE:
                        unite_word(parents, links, x, 0, here, there, starts, before)
                if connectivity == 6:
                    continue
                # Diagonal links: implied where a voxel beside both ends is equal to them.
                next_differ = differ >> ONE | change[w + 1] << TOP
                left = solid & differ
                right = solid & next_differ
                if w == words - 1:
                    right &= not_last
                if w == 0:
                    left &= ~ONE
                equal_y_left = NONE
                equal_y_right = NONE
                if y > 0:
                    links = left & ~equal_y
                    if links != NONE:
                        equal_y_left = links & equal_word(volume, i, i - width - 1)
                        if equal_y_left != NONE:
                            unite_word(parents, equal_y_left, x, -1, here, here - words, starts, before)
                    links = right & ~equal_y
                    if links != NONE:
                        equal_y_right = links & equal_word(volume, i, i - width + 1)
                        if equal_y_right != NONE:
                            unite_word(parents, equal_y_right, x, 1, here, here - words, starts, before)
                if not has_z:
                    continue
                behind = i - height * width
                equal_z_left = NONE
                equal_z_right = NONE
                links = left & ~equal_z
                if links != NONE:
                    equal_z_left = links & equal_word(volume, i, behind - 1)
                    if equal_z_left != NONE:
                        unite_word(parents, equal_z_left, x, -1, here, there, starts, before)
                links = right & ~equal_z
                if links != NONE:
                    equal_z_right = links & equal_word(volume, i, behind + 1)
                    if equal_z_right != NONE:
                        unite_word(parents, equal_z_right, x, 1, here, there, starts, before)
                equal_up = NONE
                if y > 0:
                    equal_up = equal_word(volume, i, behind - width) & solid
                    links = equal_up & (differ | ~(equal_up << ONE | carry_up)) & ~(equal_y | equal_z)
                    carry_up = equal_up >> TOP
                    if links != NONE:
                        unite_word(parents, links, x, 0, here, there - words, starts, before)
                equal_down = NONE
                if y < height - 1:
                    equal_down = equal_word(volume, i, behind + width) & solid
                    links = equal_down & (differ | ~(equal_down << ONE | carry_down)) & ~equal_z
                    carry_down = equal_down >> TOP
                    if links != NONE:
                        unite_word(parents, links, x, 0, here, there + words, starts, before)
                if connectivity == 18:
                    continue
                if y > 0:
                    blocked = equal_y | equal_z | equal_up
                    links = left & ~(blocked | equal_y_left | equal_z_left)
                    if links != NONE:
                        links &= equal_word(volume, i, behind - width - 1)
                        if links != NONE:
                            unite_word(parents, links, x, -1, here, there - words, starts, before)
                    links = right & ~(blocked | equal_y_right | equal_z_right)
                    if links != NONE:
                        links &= equal_word(volume, i, behind - width + 1)
                        if links != NONE:
                            unite_word(parents, links, x, 1, here, there - words, starts, before)
                if y < height - 1:
                    blocked = equal_z | equal_down
                    links = left & ~(blocked | equal_z_left)
                    if links != NONE:
                        links &= equal_word(volume, i, behind + width - 1)
                        if links != NONE:
                            unite_word(parents, links, x, -1, here, there + words, starts, before)
                    links = right & ~(blocked | equal_z_right)
                    if links != NONE:
                        links &= equal_word(volume, i, behind + width + 1)
                        if links != NONE:
                            unite_word(parents, links, x, 1, here, there + words, starts, before)
    if z_stop == z_hi:
        own = count
    return parents[:count], own, rank_sets(parents, count, 0)


@jit
def join_slabs(runs, next_runs, first, next_first, parents):
    """Unite the components of two slabs that hold the same run: `runs` is how the first slab numbers the slice that
    `next_runs` starts with.
    """
    for run in range(runs.size):
        unite_sets(parents, first + np.int64(runs[run]), next_first + np.int64(next_runs[run]))


@jit
def fill_runs(changes, inside, runs, values, clear, out):
    """Write ``values[runs[i]]`` over the i-th run of a slab of `out`; with `clear` also 0 over the background."""
    depth, height, words = changes.shape
    width = out.shape[2]
    background = out.dtype.type(0)
    run = 0
    for z in range(depth):
        for y in range(height):
            row = out[z, y]
            value = background
            start = 0
            for w in range(words):
                differ = changes[z, y, w]
                solid = inside[z, y, w]
                while differ != NONE:
                    bit = lowest_one(differ)
                    differ &= differ - ONE
                    stop = 64 * w + bit
                    if clear or value != background:
                        row[start:stop] = value
                    start = stop
                    value = background
                    if solid >> np.uint64(bit) & ONE != NONE:
                        value = out.dtype.type(values[runs[run]])
                        run += 1
            if clear or value != background:
                row[start:width] = value


@jit
def flag_runs(changes, inside, runs, labels, seeds, flags):
    """Set ``flags[runs[i]]`` where the i-th run of a slab holds a voxel whose seed is the run's label."""
    depth, height, words = changes.shape
    width = labels.shape[2]
    run = 0
    for z in range(depth):
        for y in range(height):
            for w in range(words):
                begin = changes[z, y, w] & inside[z, y, w]
                while begin != NONE:
                    bit = lowest_one(begin)
                    begin &= begin - ONE
                    component = runs[run]
                    run += 1
                    if flags[component]:
                        continue
                    x = 64 * w + bit
                    value = labels[z, y, x]
                    while x < width and labels[z, y, x] == value:
                        if seeds[z, y, x] == value:
                            flags[component] = True
                            break
                        x += 1


@jit
def clear_runs(changes, inside, runs, keep, labels):
    """Write 0 over the i-th run of a slab of `labels` unless ``keep[runs[i]]``."""
    depth, height, words = changes.shape
    width = labels.shape[2]
    run = 0
    for z in range(depth):
        for y in range(height):
            for w in range(words):
                begin = changes[z, y, w] & inside[z, y, w]
                while begin != NONE:
                    bit = lowest_one(begin)
                    begin &= begin - ONE
                    component = runs[run]
                    run += 1
                    if keep[component]:
                        continue
                    x = 64 * w + bit
                    value = labels[z, y, x]
                    while x < width and labels[z, y, x] == value:
                        labels[z, y, x] = 0
                        x += 1
