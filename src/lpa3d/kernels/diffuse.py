"""Diffusion stage: every voxel near a border keeps its most probable labels and averages them with its neighbours.

Arrays are flat and cut into planes: runs of voxels whose links reach no further than the planes before and behind.
"""

import numpy as np

from ._jit import jit

__all__ = ["SLOTS", "find_border", "grow_hops", "list_plane", "store_plane", "sweep_plane"]

SLOTS = 3
"""Labels that a voxel keeps."""

CERTAIN = 65535
CLAMPED = 255
DEEPEST = 254


@jit
def find_border(labels, links, strides, lo, hi, hops, queue):
    """Mark in `hops` (1) and collect the voxels of ``lo`` to ``hi - 1`` linked to another label; return their number."""
    count = 0
    for v in range(lo, hi):
        mask = np.int64(links[v])
        for k in range(strides.size):
            if (mask >> k) & 1 and labels[v + strides[k]] != labels[v]:
                hops[v] = 1
                queue[count] = v
                count += 1
                break
    return count


@jit
def grow_hops(links, strides, hops_max, count, hops, queue):
    """Write ``1 + links from the border`` into `hops`, up to `hops_max`, from the `count` voxels in `queue`."""
    head = 0
    hop = 1
    while head < count and hop < hops_max:
        tail = count
        hop += 1
        for i in range(head, tail):
            v = np.int64(queue[i])
            mask = np.int64(links[v])
            for k in range(strides.size):
                if (mask >> k) & 1 and hops[v + strides[k]] == 0:
                    hops[v + strides[k]] = min(hop, DEEPEST)
                    queue[count] = v + strides[k]
                    count += 1
        head = tail


@jit
def list_plane(labels, hops, seeds, index, window, slot):
    """List the active voxels of one plane in `window`, each with its label at full probability; return their number.

    `index` receives one more than a voxel's place in the list, 0 for the others.
    """
    place, depth, names, odds = window
    count = 0
    for i in range(labels.size):
        if hops[i] == 0:
            index[i] = 0
            continue
        place[slot, count] = i
        depth[slot, count] = CLAMPED if seeds[i] != 0 else hops[i] - 1
        for side in range(2):
            names[slot, side, count, 0] = labels[i]
            odds[slot, side, count, 0] = CERTAIN
            for m in range(1, SLOTS):
                names[slot, side, count, m] = 0
                odds[slot, side, count, m] = 0
        count += 1
        index[i] = count
    return count


@jit
def sweep_plane(plane, sweep, size, counts, links, labels, strides, conductances, cost, index, window):
    """Average the lists of one plane for the `sweep`-th time, from buffer ``(sweep - 1) % 2`` into the other."""
    place, depth, names, odds = window
    slots = index.shape[0]
    slot = plane % slots
    before = (plane - 1) % slots
    behind = (plane + 1) % slots
    new = sweep % 2
    old = 1 - new
    costly = cost.size > 0
    found = np.empty(strides.size * SLOTS, dtype=np.uint32)
    sums = np.empty(strides.size * SLOTS, dtype=np.int64)
    for a in range(counts[slot]):
        if depth[slot, a] == CLAMPED or depth[slot, a] >= sweep:
            continue
        i = np.int64(place[slot, a])
        v = plane * size + i
        mask = np.int64(links[v])
        total = np.int64(0)
        distinct = 0
        for k in range(strides.size):
            if (mask >> k) & 1 == 0:
                continue
            n = v + strides[k]
            w = conductances[k]
            if costly:
                w = max(1, (w * 32) // (np.int64(cost[v]) + np.int64(cost[n])))
            total += w
            j = i + strides[k]
            other = slot
            if j < 0:
                other = before
                j += size
            elif j >= size:
                other = behind
                j -= size
            b = np.int64(index[other, j]) - 1
            for m in range(SLOTS):
                if b < 0:
                    name = labels[n]
                    p = np.int64(CERTAIN)
                else:
                    name = names[other, old, b, m]
                    p = np.int64(odds[other, old, b, m])
                if name == 0 or (b < 0 and m > 0):
                    break
                c = 0
                while c < distinct and found[c] != name:
                    c += 1
                if c == distinct:
                    found[c] = name
                    sums[c] = 0
                    distinct += 1
                sums[c] += w * p
        kept = 0
        for c in range(distinct):
            p = sums[c] // total
            if p == 0:
                continue
            name = found[c]
            m = kept
            while m > 0 and (sums[m - 1] < p or (sums[m - 1] == p and found[m - 1] > name)):
                m -= 1
            for back in range(min(kept, SLOTS - 1), m, -1):
                sums[back] = sums[back - 1]
                found[back] = found[back - 1]
            if m < SLOTS:
                sums[m] = p
                found[m] = name
                kept = min(kept + 1, SLOTS)
        for m in range(SLOTS):
            if kept == 0:
                names[slot, new, a, m] = names[slot, old, a, m]
                odds[slot, new, a, m] = odds[slot, old, a, m]
            elif m < kept:
                names[slot, new, a, m] = found[m]
                odds[slot, new, a, m] = sums[m]
            else:
                names[slot, new, a, m] = 0
                odds[slot, new, a, m] = 0


@jit
def store_plane(window, slot, count, side, labels, confidence):
    """Write the most probable label of each listed voxel, and its lead where `confidence` is not empty."""
    place, depth, names, odds = window
    for a in range(count):
        i = np.int64(place[slot, a])
        labels[i] = names[slot, side, a, 0]
        if confidence.size > 0 and depth[slot, a] != CLAMPED and names[slot, side, a, 1] != 0:
            confidence[i] = odds[slot, side, a, 0] - odds[slot, side, a, 1]
