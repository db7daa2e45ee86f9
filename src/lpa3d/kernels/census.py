"""Census of seeds: which ids there are, on which classes, on which slices; and ids as dense ranks.

A table of distinct (id, class) pairs is an open-addressing hash table: columns id, class, count; count 0 is free. Its
rows stand in the slots themselves, not in a list as those of `kernels.pairs`: by way of such a list a seed's rank is
found a quarter slower, and seeds are counted at half the speed.
"""

import numpy as np

from ._bits import load_id
from ._jit import jit
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


@jit
def count_seeds(volume, seeds, shape, z_lo, z_hi, table, on_z, on_y, on_x):
    """Count seeds per (id, class) and, off the background, per slice across each axis; return the table.

    The volume and the seeds, of `shape`, are raw. Classes are stored as the int64 of the same bits.
    """
    used = 0
    for row in range(table.shape[0]):
        used += table[row, 2] != 0
    for z in range(z_lo, z_hi):
        for y in range(shape[1]):
            start = (z * shape[1] + y) * shape[2]
            slot = np.int64(-1)
            last = np.int64(0)
            kind = np.int64(0)
            for x in range(shape[2]):
                a = load_id(seeds[0], seeds[1], start + x)
                if a == 0:
                    continue
                b = load_id(volume[0], volume[1], start + x)
                if slot < 0 or a != last or b != kind:
                    last = a
                    kind = b
                    slot = find_slot(table, a, b)
                    if table[slot, 2] == 0:
                        if 2 * used >= table.shape[0]:
                            table = grow_table(table)
                            slot = find_slot(table, a, b)
                        used += 1
                        table[slot, 0] = a
                        table[slot, 1] = b
                table[slot, 2] += 1
                if b != 0:
                    on_z[z] += 1
                    on_y[y] += 1
                    on_x[x] += 1
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
def rank_seeds(volume, seeds, lo, hi, ranks, labels):
    """Write the rank of each kept seed from `lo` to `hi`; the volume and the seeds are raw, the labels flat.

    ``ranks`` is a table of (id, class, rank); pairs that it lacks are dropped.
    """
    last = np.int64(0)
    kind = np.int64(0)
    rank = np.uint32(0)
    for v in range(lo, hi):
        a = load_id(seeds[0], seeds[1], v)
        if a == 0:
            continue
        b = load_id(volume[0], volume[1], v)
        if a != last or b != kind:
            last = a
            kind = b
            rank = np.uint32(ranks[find_slot(ranks, a, b), 2])
        if rank != 0:
            labels[v] = rank


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
