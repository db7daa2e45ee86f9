"""Geodesic stage: every voxel takes the label of the smallest (path weight, label) over all sources and paths.

Arrays are flat. Links never leave the volume, so a neighbour is ``v + strides[k]`` without a bounds check.
"""

import numpy as np

from ._jit import jit

__all__ = ["clear_state", "find_frontier", "find_gap", "flood_labels", "mark_sources", "spread_levels", "spread_paths"]

FURTHEST = 2**32 - 1
"""Nearness is this less the distance: 0 is a voxel without a key, and pages without a key need not be touched."""

CHUNK = 256


@jit
def find_frontier(labels, links, strides, lo, hi, queue):
    """Collect the labelled voxels of ``lo`` to ``hi - 1`` with an unlabelled linked neighbour; return their number."""
    count = 0
    for v in range(lo, hi):
        if labels[v] == 0:
            continue
        mask = np.int64(links[v])
        for k in range(strides.size):
            if (mask >> k) & 1 and labels[v + strides[k]] == 0:
                queue[count] = v
                count += 1
                break
    return count


@jit
def find_gap(labels, links, strides):
    """Return the first unlabelled voxel with a labelled linked neighbour, -1 where there is none."""
    for v in range(labels.size):
        mask = np.int64(links[v])
        if mask == 0 or labels[v] != 0:
            continue
        for k in range(strides.size):
            if (mask >> k) & 1 and labels[v + strides[k]] != 0:
                return v
    return -1


@jit
def spread_levels(strides, levels, count, links, labels, queue):
    """Label everything within `levels` steps of the first `count` voxels of `queue`, all steps being equal.

    The two high bits of a mask hold the level (modulo 3, plus 1) at which its voxel was reached, 0 before that and for
    sources: a neighbour's level differs by at most 1, so that is enough to tell the next level from the others.
    Returns whether an unreached neighbour was left.
    """
    head = 0
    level = 0
    while head < count:
        if level == levels:
            return True
        tail = count
        mark = np.int64((level + 1) % 3 + 1)
        for i in range(head, tail):
            v = np.int64(queue[i])
            mask = np.int64(links[v]) & 63
            label = labels[v]
            for k in range(6):
                if (mask >> k) & 1 == 0:
                    continue
                n = v + strides[k]
                state = np.int64(links[n]) >> 6
                if state == 0:
                    if labels[n] == 0:
                        links[n] |= mark << 6
                        labels[n] = label
                        queue[count] = n
                        count += 1
                elif state == mark:
                    labels[n] = min(labels[n], label)
        head = tail
        level += 1
    return False


@jit
def clear_state(lo, hi, links):
    """Clear the two high bits of the masks ``lo`` to ``hi - 1``."""
    for v in range(lo, hi):
        links[v] &= 63


@jit
def mark_sources(labels, lo, hi, near):
    """Give every labelled voxel of ``lo`` to ``hi - 1`` distance 0."""
    for v in range(lo, hi):
        if labels[v] != 0:
            near[v] = FURTHEST


@jit
def spread_paths(links, strides, weights, cost, limit, shift, sources, near, labels):
    """Relax keys from `sources`, which are sorted by distance, to their fixpoint; distances end at `limit`.

    A bucket queue: bucket ``distance >> shift`` holds voxels whose key awaits relaxation, once per bucket; entries
    whose voxel has moved to another bucket since are skipped. A bucket is emptied in rounds, first in, first out.
    `near` holds ``FURTHEST - distance``. `cost` is empty or one value per voxel. Returns whether a candidate was
    discarded.
    """
    discarded = False
    costly = cost.size > 0
    top = np.int64(0)
    for k in range(weights.size):
        top = max(top, weights[k])
    if costly:
        most = np.int64(0)
        for v in range(cost.size):
            most = max(most, np.int64(cost[v]))
        top = max(1, (top * 2 * most + 16) >> 5)
    width = 2
    while width < (min(top, limit) >> shift) + 2:
        width *= 2

    # Chunks of entries: each bucket is a chain of chunks whose first one is partly filled.
    heads = np.full(width, -1, dtype=np.int64)
    fills = np.zeros(width, dtype=np.int64)
    chunks = 64
    pool = np.empty((chunks, CHUNK), dtype=sources.dtype)
    follow = np.empty(chunks, dtype=np.int64)
    for c in range(chunks):
        follow[c] = c - 1
    free = np.int64(chunks - 1)
    spare = chunks

    pending = 0
    live = 0
    bucket = np.int64(0)
    while pending < sources.size or live > 0:
        if live == 0:
            bucket = max(bucket, (FURTHEST - np.int64(near[sources[pending]])) >> shift)
        slot = bucket & (width - 1)
        while pending < sources.size:
            v = np.int64(sources[pending])
            if (FURTHEST - np.int64(near[v])) >> shift > bucket:
                break
            pending += 1
            if heads[slot] < 0 or fills[slot] == CHUNK:
                if spare == 0:
                    pool, follow = _grow(pool, follow)
                    free = follow.size - 1
                    spare = follow.size // 2
                c = free
                free = follow[c]
                spare -= 1
                follow[c] = heads[slot]
                heads[slot] = c
                fills[slot] = 0
            pool[heads[slot], fills[slot]] = v
            fills[slot] += 1
            live += 1
        while heads[slot] >= 0:
            chain = heads[slot]
            fill = fills[slot]
            heads[slot] = -1
            while chain >= 0:
                for i in range(fill):
                    v = np.int64(pool[chain, i])
                    d = FURTHEST - np.int64(near[v])
                    if d >> shift != bucket:
                        continue
                    label = labels[v]
                    mask = np.int64(links[v])
                    for k in range(strides.size):
                        if (mask >> k) & 1 == 0:
                            continue
                        n = v + strides[k]
                        step = weights[k]
                        if costly:
                            step = max(1, (step * (np.int64(cost[v]) + np.int64(cost[n])) + 16) >> 5)
                        candidate = d + step
                        old = FURTHEST - np.int64(near[n])
                        if candidate > old or (candidate == old and label >= labels[n]):
                            continue
                        if candidate > limit:
                            discarded = True
                            continue
                        near[n] = FURTHEST - candidate
                        labels[n] = label
                        to = candidate >> shift
                        if to == old >> shift and to != bucket:
                            continue  # it waits there already
                        to &= width - 1
                        if heads[to] < 0 or fills[to] == CHUNK:
                            if spare == 0:
                                pool, follow = _grow(pool, follow)
                                free = follow.size - 1
                                spare = follow.size // 2
                            c = free
                            free = follow[c]
                            spare -= 1
                            follow[c] = heads[to]
                            heads[to] = c
                            fills[to] = 0
                        pool[heads[to], fills[to]] = n
                        fills[to] += 1
                        live += 1
                live -= fill
                c = chain
                chain = follow[c]
                fill = CHUNK
                follow[c] = free
                free = c
                spare += 1
        bucket += 1
    return discarded


@jit
def _grow(pool, follow):
    """Double the pool of chunks; the new half is the free list, the highest first."""
    n = follow.size
    more_pool = np.empty((2 * n, pool.shape[1]), dtype=pool.dtype)
    more_follow = np.empty(2 * n, dtype=np.int64)
    more_pool[:n] = pool
    more_follow[:n] = follow
    for c in range(n, 2 * n):
        more_follow[c] = c - 1
    more_follow[n] = -1
    return more_pool, more_follow


@jit
def flood_labels(seeds, labels, strides, links, kept, queue):
    """Mark in `kept` what is linked to a seed through voxels of its label; return how many labelled voxels are not."""
    count = 0
    labelled = 0
    for v in range(labels.size):
        if labels[v] != 0:
            labelled += 1
            if seeds[v] != 0:
                kept[v] = 1
                queue[count] = v
                count += 1
    head = 0
    while head < count:
        v = np.int64(queue[head])
        head += 1
        mask = np.int64(links[v])
        for k in range(strides.size):
            n = v + strides[k]
            if (mask >> k) & 1 and kept[n] == 0 and labels[n] == labels[v]:
                kept[n] = 1
                queue[count] = n
                count += 1
    if count < labelled:
        for v in range(labels.size):
            if kept[v] == 0:
                labels[v] = 0
    return labelled - count
