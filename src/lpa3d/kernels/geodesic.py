"""Geodesic stage where links differ in weight: the smallest (path weight, label) of every voxel.

Links never leave the volume, so a neighbour is ``v + strides[k]`` without a bounds check. A voxel's distance is held as
its nearness, `FURTHEST` less the distance. Memory that was never touched thus holds voxels without a key, or sources:
those have a label, and their distance is 0.
"""

import numpy as np

from ._bits import inlined
from ._jit import jit

__all__ = ["FURTHEST", "find_gap", "find_improving", "spread_paths", "spread_steps", "spread_tile", "take_keys"]

FURTHEST = 2**32 - 1

CHUNK = 256


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


@inlined
def read_distance(near, v):
    """Return the distance of a voxel that has a key."""
    value = np.int64(near[v])
    return FURTHEST - value if value != 0 else 0


@inlined
def weigh_link(weight, cost, v, n):
    """Return the weight of the link from `v` to `n`."""
    if cost.size == 0:
        return weight
    return weigh_step(weight, cost[v], cost[n])


@inlined
def weigh_step(weight, cost, other):
    """Return the weight of a link between two costs."""
    return max(1, (weight * (np.int64(cost) + np.int64(other)) + 16) >> 5)


@jit
def spread_steps(count, last, unit, strides, links, near, labels, queue):
    """Spread along links that all weigh `unit`, at most `last` steps; return whether that was not enough.

    The queue begins with `count` sources and has room for every voxel. No voxel has a key but the sources.
    """
    head = 0
    tail = count
    for level in range(1, last + 1):
        stop = tail
        if head == stop:
            return False
        value = near.dtype.type(FURTHEST - level * unit)
        for i in range(head, stop):
            v = np.uint64(queue[np.uint64(i)])
            label = labels[v]
            mask = np.int64(links[v])
            for k in range(strides.size):
                if (mask >> k) & 1 == 0:
                    continue
                there = np.int64(v) + strides[np.uint64(k)]
                n = np.uint64(there)
                if labels[n] == 0:
                    labels[n] = label
                    near[n] = value
                    queue[np.uint64(tail)] = there
                    tail += 1
                elif near[n] == value and label < labels[n]:
                    labels[n] = label
        head = stop
    return head < tail


@jit
def spread_paths(sources, scale, strides, weights, cost, links, near, labels):
    """Relax the keys of a run of voxels from `sources` to their fixpoint; return whether a candidate was out of range.

    `sources` are sorted by bucket. Links that leave the run are left alone. `scale` holds the largest distance, the
    shift from a distance to its bucket, the number of buckets, a power of 2, and whether only sources have a key (1).

    A bucket queue: each bucket lists voxels whose key awaits relaxation, once; entries whose voxel has moved to another
    bucket since are skipped. A bucket is emptied in rounds, so that keys which improve in it again stay few.
    `cost` is empty or one value per voxel.
    """
    limit, shift, buckets, fresh = scale
    beyond = False

    # Each bucket is a chain of chunks of entries, of which the first is partly filled.
    heads = np.empty(buckets, dtype=np.int64)
    fills = np.empty(buckets, dtype=np.int64)
    for slot in range(buckets):
        heads[slot] = -1
        fills[slot] = CHUNK
    pool = np.empty((64, CHUNK), dtype=sources.dtype)
    follow = np.empty(64, dtype=np.int64)
    for c in range(64):
        follow[c] = c - 1
    free = np.int64(63)

    taken = 0  # sources
    live = 0  # entries in chains
    bucket = np.int64(0)
    while taken < sources.size or live > 0:
        if live == 0:
            bucket = max(bucket, read_distance(near, sources[taken]) >> shift)
        slot = bucket & (buckets - 1)
        chain = np.int64(-1)
        fill = np.int64(0)
        while True:
            stop = taken
            while stop < sources.size and read_distance(near, sources[stop]) >> shift <= bucket:
                stop += 1
            if stop > taken:
                batch = sources[taken:stop]
                taken = stop
                emptied = np.int64(-1)
            else:
                if chain < 0:
                    chain = heads[slot]
                    fill = fills[slot]
                    heads[slot] = -1
                    fills[slot] = CHUNK
                    if chain < 0:
                        break
                batch = pool[chain, :fill]
                live -= fill
                emptied = chain
                chain = follow[chain]
                fill = np.int64(CHUNK)
            for i in range(batch.size):
                v = np.uint64(batch[i])
                distance = read_distance(near, v)
                if distance >> shift != bucket:
                    continue
                label = labels[v]
                mask = np.int64(links[v])
                for k in range(strides.size):
                    if (mask >> k) & 1 == 0:
                        continue
                    there = np.int64(v) + strides[np.uint64(k)]
                    if there < 0 or there >= labels.size:
                        continue
                    n = np.uint64(there)
                    candidate = distance + weigh_link(weights[np.uint64(k)], cost, v, n)
                    if candidate > limit:
                        beyond = True
                        continue
                    old = FURTHEST - np.int64(near[n])
                    if candidate > old or (candidate == old and label >= labels[n]):
                        continue
                    if old == FURTHEST and labels[n] != 0:
                        continue  # a source
                    near[n] = FURTHEST - candidate
                    labels[n] = label
                    to = candidate >> shift
                    if fresh == 1 and to == old >> shift and to != bucket and old != FURTHEST:
                        continue  # it waits there already
                    to &= buckets - 1
                    if fills[to] == CHUNK:
                        if free < 0:
                            free = follow.size
                            pool, follow = double_pool(pool, follow)
                            free = 2 * free - 1
                        head = free
                        free = follow[head]
                        follow[head] = heads[to]
                        heads[to] = head
                        fills[to] = 0
                    pool[heads[to], fills[to]] = there
                    fills[to] += 1
                    live += 1
            if emptied >= 0:
                follow[emptied] = free
                free = emptied
        bucket += 1
    return beyond


@jit
def double_pool(pool, follow):
    """Return the pool with twice the chunks; the new ones are chained, the last first."""
    count = follow.size
    more = np.empty((2 * count, CHUNK), dtype=pool.dtype)
    chain = np.empty(2 * count, dtype=np.int64)
    for c in range(count):
        chain[c] = follow[c]
        for i in range(CHUNK):
            more[c, i] = pool[c, i]
    for c in range(count, 2 * count):
        chain[c] = c - 1
    chain[count] = -1
    return more, chain


@jit
def spread_tile(box, scale, offsets, weights, cost, links, near, labels):
    """Spread the labels of a box of voxels as if there were no others; return whether a candidate was out of range.

    The work is done on a copy that fits into the cache. Rows without a link are left out of it.
    """
    z_lo, z_hi, y_lo, y_hi, x_lo, x_hi = box
    depth, height, width = z_hi - z_lo, y_hi - y_lo, x_hi - x_lo
    shape = (depth, height, width)
    own_links = np.empty(shape, dtype=links.dtype)
    own_labels = np.empty(shape, dtype=labels.dtype)
    own_near = np.empty(shape, dtype=near.dtype)
    own_cost = np.empty(shape if cost.size > 0 else (0, 0, 0), dtype=cost.dtype)
    busy = np.empty((depth, height), dtype=np.bool_)
    strides = np.empty(offsets.shape[0], dtype=np.int64)
    not_first = 0
    not_last = 0
    for k in range(strides.size):
        strides[k] = (offsets[k, 0] * height + offsets[k, 1]) * width + offsets[k, 2]
        not_first |= np.int64(offsets[k, 2] >= 0) << k
        not_last |= np.int64(offsets[k, 2] <= 0) << k
    some = False
    for z in range(depth):
        for y in range(height):
            from_links = links[z_lo + z, y_lo + y, x_lo:x_hi]
            linked = links.dtype.type(0)
            for x in range(width):
                linked |= from_links[x]
            busy[z, y] = linked != 0
            if linked == 0:
                continue
            inside = 0
            for k in range(strides.size):
                if 0 <= z + offsets[k, 0] < depth and 0 <= y + offsets[k, 1] < height:
                    inside |= 1 << k
            inside = links.dtype.type(inside)
            from_labels = labels[z_lo + z, y_lo + y, x_lo:x_hi]
            for x in range(width):
                own_links[z, y, x] = from_links[x] & inside
                own_labels[z, y, x] = from_labels[x]
                own_near[z, y, x] = 0
                some |= from_labels[x] != 0
            own_links[z, y, 0] &= links.dtype.type(not_first)
            own_links[z, y, width - 1] &= links.dtype.type(not_last)
            if cost.size > 0:
                for x in range(width):
                    own_cost[z, y, x] = cost[z_lo + z, y_lo + y, x_lo + x]
    if not some:
        return False
    flat_links = own_links.reshape(-1)
    flat_labels = own_labels.reshape(-1)
    flat_near = own_near.reshape(-1)
    sources = np.empty(flat_labels.size, dtype=np.uint32)
    count = 0
    for z in range(depth):
        for y in range(height):
            if not busy[z, y]:
                continue
            start = (z * height + y) * width
            for v in range(start, start + width):
                if flat_labels[v] == 0:
                    continue
                mask = np.int64(flat_links[v])
                for k in range(strides.size):
                    if (mask >> k) & 1 and flat_labels[v + strides[k]] == 0:
                        sources[count] = v
                        count += 1
                        break
    beyond = spread_paths(
        sources[:count], scale, strides, weights, own_cost.reshape(-1), flat_links, flat_near, flat_labels
    )
    for z in range(depth):
        for y in range(height):
            if busy[z, y]:
                for x in range(width):
                    labels[z_lo + z, y_lo + y, x_lo + x] = own_labels[z, y, x]
                    near[z_lo + z, y_lo + y, x_lo + x] = own_near[z, y, x]
    return beyond


@jit
def find_improving(span, tile, strides, weights, cost, links, near, labels, found):
    """Collect the voxels of the slices ``span[0] <= z < span[1]`` that have a better key for a neighbour in the span.

    Only voxels at a face of a tile are looked at; tiles of one voxel are all face. They are counted from the start of
    the span. Returns how many were found.
    """
    _, height, width = labels.shape
    flat_links = links.reshape(-1)
    flat_labels = labels.reshape(-1)
    flat_near = near.reshape(-1)
    flat_cost = cost.reshape(-1)
    lo = span[0] * height * width
    hi = span[1] * height * width
    count = 0
    for z in range(span[0], span[1]):
        for y in range(height):
            whole = z % tile[0] == 0 or (z + 1) % tile[0] == 0 or y % tile[1] == 0 or (y + 1) % tile[1] == 0
            x = 0
            while x < width:
                v = (z * height + y) * width + x
                if whole or (x + 1) % tile[2] != 0:
                    x += 1 if whole else tile[2] - 1 - x % tile[2]
                else:
                    x += 1
                mask = np.int64(flat_links[v])
                if mask == 0 or flat_labels[v] == 0:
                    continue
                distance = read_distance(flat_near, v)
                for k in range(strides.size):
                    n = v + strides[k]
                    if (mask >> k) & 1 == 0 or n < lo or n >= hi:
                        continue
                    candidate = distance + weigh_link(weights[k], flat_cost, v, n)
                    old = FURTHEST - np.int64(flat_near[n])
                    if old == FURTHEST and flat_labels[n] != 0:
                        continue  # a source
                    # Out of range and still unlabelled: relaxing it says so.
                    if candidate < old or (candidate == old and flat_labels[v] < flat_labels[n]) or old == FURTHEST:
                        found[count] = v - lo
                        count += 1
                        break
    return count


@jit
def take_keys(limit, steps, weights, there, here, found):
    """Better the keys of one side of a tile, in place, by those of the touching side of the tile beside it.

    `there` and `here` are classes, cost (or an empty array), nearness and labels of the two sides, of one shape. Voxel
    v of `here` neighbours those of `there` at ``v + steps[k]``, from which the step weighs ``weights[k]``. Collects the
    flat indices of what is better now. Returns how many that are, and whether a candidate was out of range.
    """
    classes, cost, near, labels = here
    classes_there, cost_there, near_there, labels_there = there
    nz, ny, nx = classes.shape
    count = 0
    beyond = False
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                own = classes[z, y, x]
                label = np.int64(labels[z, y, x])
                distance = np.int64(FURTHEST) - np.int64(near[z, y, x])
                if own == 0 or (distance == FURTHEST and label != 0):
                    continue
                if label == 0:
                    distance = limit + 1
                better = False
                for k in range(weights.size):
                    i = z + steps[k, 0]
                    j = y + steps[k, 1]
                    m = x + steps[k, 2]
                    if i < 0 or i >= nz or j < 0 or j >= ny or m < 0 or m >= nx:
                        continue
                    other = np.int64(labels_there[i, j, m])
                    if other == 0 or classes_there[i, j, m] != own:
                        continue
                    nearness = np.int64(near_there[i, j, m])
                    candidate = FURTHEST - nearness if nearness != 0 else 0
                    if cost.size > 0:
                        candidate += weigh_step(weights[k], cost[z, y, x], cost_there[i, j, m])
                    else:
                        candidate += weights[k]
                    if candidate > limit:
                        beyond = True
                    elif candidate < distance or (candidate == distance and other < label):
                        distance = candidate
                        label = other
                        better = True
                if better:
                    near[z, y, x] = FURTHEST - distance
                    labels[z, y, x] = label
                    found[count] = (z * ny + y) * nx + x
                    count += 1
    return count, beyond
