"""Census of seeds: which ids there are, on which classes, on which slices; and ids as dense ranks.

A table of distinct (id, class) pairs is an open-addressing hash table: columns id, class, count; count 0 is free. Its
rows stand in the slots themselves, not in a list as those of `kernels.pairs`: by way of such a list a seed's rank is
found a quarter slower, and seeds are counted at half the speed.
"""

import numpy as np

from ._bits import leaf, nonzero_64
from ._jit import jit
from .overlap import id_at, list_ends
from .pairs import hash_pair

__all__ = [
    "apply_ids",
    "count_foreground",
    "count_seeds",
    "count_unlabelled",
    "join_seeds",
    "list_borders",
    "make_ranks",
    "rank_seeds",
    "restrict_seeds",
    "select_voxels",
    "split_seeds",
]

NONE = np.uint64(0)


@jit
def find_slot(table, a, b):
    """Return where (a, b) stands in `table`, or the free row where it belongs."""
    mask = table.shape[0] - 1
    slot = hash_pair(a, b) & mask
    while table[slot, 2] != 0 and (table[slot, 0] != a or table[slot, 1] != b):
        slot = (slot + 1) & mask
    return slot


@jit
def grow_table(table):
    """Return a table of twice the size with the same content."""
    more = np.zeros((2 * table.shape[0], 3), dtype=np.int64)
    for row in range(table.shape[0]):
        if table[row, 2] != 0:
            slot = find_slot(more, table[row, 0], table[row, 1])
            for column in range(3):
                more[slot, column] = table[row, column]
    return more


@leaf
def is_zero(array, start, stop):
    """Return whether a raw array is 0 from `start` to `stop`."""
    data, size = array
    i, end = start * size, stop * size
    while i + 64 <= end:
        if nonzero_64(data, i) != NONE:
            return False
        i += 64
    while i < end:
        if data[np.uint64(i)] != 0:
            return False
        i += 1
    return True


@jit
def count_seeds(volume, seeds, shape, z_lo, z_hi, table, on_z, on_y, on_x):
    """Count seeds per (id, class) and, off the background, per slice across each axis; return the table.

    The volume and the seeds, of `shape`, are raw. Classes are stored as the int64 of the same bits.
    """
    used = 0
    for row in range(table.shape[0]):
        used += table[row, 2] != 0
    width = shape[2]
    none = (seeds[0][:0], 1)
    ends = np.empty(width + 1, np.int64)
    steps = np.zeros(width + 1, np.int64)
    for z in range(z_lo, z_hi):
        for y in range(shape[1]):
            start = (z * shape[1] + y) * width
            if is_zero(seeds, start, start + width):
                continue
            begin = start
            # Runs of one id on one class.
            for k in range(list_ends(seeds, volume, none, start, start + width, ends)):
                a, b = id_at(seeds, begin), id_at(volume, begin)
                count = ends[k] - begin
                if a != 0:
                    slot = find_slot(table, a, b)
                    if table[slot, 2] == 0:
                        if 2 * used >= table.shape[0]:
                            table = grow_table(table)
                            slot = find_slot(table, a, b)
                        used += 1
                        table[slot, 0] = a
                        table[slot, 1] = b
                    table[slot, 2] += count
                    if b != 0:
                        on_z[z] += count
                        on_y[y] += count
                        steps[begin - start] += 1
                        steps[ends[k] - start] -= 1
                begin = ends[k]
    count = 0
    for x in range(width):
        count += steps[x]
        on_x[x] += count
    return table


@jit
def count_foreground(volume, z_lo, z_hi, on_z, on_y, on_x):
    """Count voxels that are not 0 per slice across each axis."""
    nx = volume.shape[2]
    columns = np.zeros(nx, dtype=np.uint32)
    for z in range(z_lo, z_hi):
        for x in range(nx):
            columns[x] = 0
        for y in range(volume.shape[1]):
            line = volume[z, y]
            count = np.uint32(0)
            for x in range(nx):
                one = np.uint32(line[x] != 0)
                columns[x] += one
                count += one
            on_y[y] += np.int64(count)
            on_z[z] += np.int64(count)
        for x in range(nx):
            on_x[x] += np.int64(columns[x])


@jit
def rank_seeds(volume, seeds, width, lo, hi, ranks, labels):
    """Write the rank of each kept seed in the rows from `lo` to `hi`; volume and seeds are raw, labels flat.

    ``ranks`` is a table of (id, class, rank); pairs that it lacks are dropped.
    """
    none = (seeds[0][:0], 1)
    ends = np.empty(width + 1, np.int64)
    for row in range(lo, hi):
        begin = row * width
        if is_zero(seeds, begin, begin + width):
            continue
        for k in range(list_ends(seeds, volume, none, begin, begin + width, ends)):
            a = id_at(seeds, begin)
            if a != 0:
                rank = np.uint32(ranks[find_slot(ranks, a, id_at(volume, begin)), 2])
                if rank != 0:
                    for v in range(begin, ends[k]):
                        labels[v] = rank
            begin = ends[k]


@jit
def make_ranks(ids, classes, values, ranks):
    """Fill a table of (id, class, rank) with ranks, which are not 0."""
    for i in range(ids.size):
        slot = find_slot(ranks, ids[i], classes[i])
        ranks[slot, 0] = ids[i]
        ranks[slot, 1] = classes[i]
        ranks[slot, 2] = values[i]


@jit
def count_unlabelled(volume, labels, z_lo, z_hi):
    """Return how many voxels of the class map have no label."""
    count = 0
    for z in range(z_lo, z_hi):
        for y in range(volume.shape[1]):
            line = volume[z, y]
            row = labels[z, y]
            here = np.uint32(0)
            for x in range(line.size):
                here += np.uint32((line[x] != 0) & (row[x] == 0))
            count += np.int64(here)
    return count


@jit
def restrict_seeds(labels, lo, hi, seeds):
    """Set `seeds` to 0, in place, where there is no label."""
    for v in range(lo, hi):
        if labels[v] == 0:
            seeds[v] = 0


@jit
def apply_ids(labels, lo, hi, ids, out):
    """Write the id of each label; `out` may be `labels` itself."""
    for v in range(lo, hi):
        if labels[v] != 0:
            out[v] = ids[labels[v]]
        else:
            out[v] = 0


@jit
def select_voxels(volume, labels, labelled, lo, hi, out):
    """Write the class of each voxel that has a label, or has none, as `labelled` says; 0 for the others."""
    for v in range(lo, hi):
        # Not in one expression with 0, which would make a float64 of 64-bit classes.
        if (labels[v] != 0) == labelled:
            out[v] = volume[v]
        else:
            out[v] = 0


@jit
def list_borders(volume, labels, links, strides, lo, hi, out):
    """Write the class of each unlabelled voxel that is linked to a labelled one, 0 for the others."""
    for v in range(lo, hi):
        out[v] = 0
        mask = np.int64(links[v])
        if mask == 0 or labels[v] != 0:
            continue
        for k in range(strides.size):
            if (mask >> k) & 1 and labels[v + strides[k]] != 0:
                out[v] = volume[v]
                break


@jit
def split_seeds(labels, classes, lo, hi, seeds, out):
    """Take the highest bit from each label, in place, and write it to `seeds`; write the class of each label to `out`.

    Without `classes` (empty), `out` is left alone.
    """
    if classes.size == 0:
        for v in range(lo, hi):
            seeds[v] = labels[v] >> np.uint32(31)
            labels[v] &= np.uint32(0x7FFFFFFF)
        return
    for v in range(lo, hi):
        seeds[v] = labels[v] >> np.uint32(31)
        labels[v] &= np.uint32(0x7FFFFFFF)
        out[v] = classes[labels[v]]


@jit
def join_seeds(labels, lo, hi, seeds):
    """Set the highest bit of each label, in place, that is a seed."""
    for v in range(lo, hi):
        labels[v] |= np.uint32(seeds[v] != 0) << np.uint32(31)
