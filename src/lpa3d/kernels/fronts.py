"""Breadth-first steps from a frontier, all at once in every slab.

A slab is a run of voxels whose links reach no further than the slabs before and behind. Each has its own part of the
queue, writes its own voxels only, and leaves the voxels from which a level goes on into a neighbour in a box that the
neighbour empties when it takes the next level. `fronts` holds, per slab:

- `bounds`: where the slabs begin and end;
- `heads`, `tails`: the part of the queue that is to be expanded;
- `boxes`: for the slab before (0) and behind (1), the voxels left for it: `sent` in all, `ready` after the last level;
- `seen`: how many of the boxes that the slabs before (0) and behind (1) left here were emptied.
"""

import numpy as np

from ._bits import inlined, lowest_one, nonzero_64
from ._jit import jit

__all__ = ["clear_marks", "count_waiting", "find_frontier", "step_slabs"]

ONE = np.uint64(1)
NONE = np.uint64(0)
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
MARK = 6
"""Bits of a mask of 6 links; the level is marked in the two above."""


@jit
def find_frontier(labels, links, strides, lo, hi, queue):
    """Collect the labelled voxels from `lo` to `hi` that have an unlabelled linked neighbour; return their number."""
    count = 0
    reach = 64
    for k in range(strides.size):
        reach = max(reach, 64 + abs(strides[k]))
    for start in range(lo, hi, 64):
        word = ALL
        if start >= reach and start + reach <= labels.size:
            word = nonzero_64(labels, start)
            if word == NONE:
                continue
            near = NONE
            for k in range(strides.size):
                n = start + strides[k]
                near |= nonzero_64(links, n) & ~nonzero_64(labels, n)
            word &= near
        if start + 64 > hi:
            word &= ALL >> np.uint64(start + 64 - hi)
        while word != NONE:
            v = start + lowest_one(word)
            word &= word - ONE
            if labels[v] == 0:
                continue
            mask = np.int64(links[v])
            for k in range(strides.size):
                if (mask >> k) & 1 and labels[v + strides[k]] == 0:
                    queue[count] = v
                    count += 1
                    break
    return count


@inlined
def meet_voxel(n, value, mark, links, values, queue, tail):
    """Let `value` come to voxel `n`, which is queued if it is the first to come; return the queue's new tail.

    Of values that come at the same level the smallest stays.
    """
    at = np.uint64(n)
    if mark == 0:
        if values[at] != 0:
            return tail
        values[at] = value
        queue[np.uint64(tail)] = n
        return tail + 1
    state = links[at] >> MARK
    if state == 0:
        if values[at] == 0:
            links[at] |= links.dtype.type(mark << MARK)
            values[at] = value
            queue[np.uint64(tail)] = n
            return tail + 1
    elif state == mark and value < values[at]:
        values[at] = value
    return tail


@inlined
def step_slab(slab, level, last, by_level, strides, fronts, links, values, queue):
    """Take one slab from `level` to the next; at level `last` only what comes from its neighbours is taken."""
    bounds, heads, tails, sent, ready, seen, boxes = fronts
    lo = bounds[slab]
    hi = bounds[slab + 1]
    tail = tails[slab]
    # A neighbour's level differs by 1 at most, so that the level modulo 3 tells the next level from the others.
    mark = 0 if by_level else level % 3 + 1
    value = values.dtype.type(min(level + 1, 255))
    for side in range(2):
        other = slab - 1 + 2 * side
        if other < 0 or other == heads.size:
            continue
        for i in range(seen[slab, side], ready[other, 1 - side]):
            v = np.int64(boxes[other, 1 - side, i])
            mask = np.int64(links[v])
            if not by_level:
                value = values[v]
            for k in range(strides.size):
                n = v + strides[k]
                if (mask >> k) & 1 and lo <= n and n < hi:
                    tail = meet_voxel(n, value, mark, links, values, queue, tail)
        seen[slab, side] = ready[other, 1 - side]
    head = heads[slab]
    stop = tail
    if level < last:
        mark = 0 if by_level else (level + 1) % 3 + 1
        value = values.dtype.type(min(level + 2, 255))
        for i in range(head, stop):
            v = np.int64(queue[np.uint64(i)])
            mask = np.int64(links[np.uint64(v)])
            if not by_level:
                value = values[np.uint64(v)]
            before = False
            behind = False
            for k in range(strides.size):
                if (mask >> k) & 1 == 0:
                    continue
                n = v + strides[np.uint64(k)]
                if n < lo:
                    before = True
                elif n >= hi:
                    behind = True
                else:
                    tail = meet_voxel(n, value, mark, links, values, queue, tail)
            if before:
                boxes[slab, 0, sent[slab, 0]] = v
                sent[slab, 0] += 1
            if behind:
                boxes[slab, 1, sent[slab, 1]] = v
                sent[slab, 1] += 1
        heads[slab] = stop
    tails[slab] = tail


@inlined
def count_all(fronts):
    """Return how many voxels wait in queues and boxes."""
    bounds, heads, tails, sent, ready, seen, boxes = fronts
    count = 0
    for slab in range(heads.size):
        count += tails[slab] - heads[slab]
        if slab > 0:
            count += sent[slab, 0] - seen[slab - 1, 1]
        if slab + 1 < heads.size:
            count += sent[slab, 1] - seen[slab + 1, 0]
    return count


@jit
def count_waiting(fronts):
    """Return how many voxels wait in queues and boxes."""
    return count_all(fronts)


@jit
def step_slabs(first, stride, level, last, few, by_level, strides, fronts, links, values, queue):
    """Take the slabs `first`, `first + stride` ... from `level` to the next.

    `values` of voxels reached are that of the voxel that they are reached from, the smallest of several, or with
    `by_level` the level plus 1 (at most 255). If `few` is more than 0, go on alone while no more than `few` voxels
    wait. Returns the next level.
    """
    bounds, heads, tails, sent, ready, seen, boxes = fronts
    while True:
        for slab in range(first, heads.size, stride):
            step_slab(slab, level, last, by_level, strides, fronts, links, values, queue)
        level += 1
        if few == 0:
            return level
        for slab in range(heads.size):
            ready[slab, 0] = sent[slab, 0]
            ready[slab, 1] = sent[slab, 1]
        waiting = count_all(fronts)
        if waiting == 0 or waiting > few or level > last:
            return level


@jit
def clear_marks(lo, hi, links):
    """Clear the level of the masks from `lo` to `hi`."""
    part = links[lo:hi]
    for i in range(part.size):
        part[i] &= np.uint8(63)
