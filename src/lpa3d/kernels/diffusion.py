"""Diffusion stage: voxels near a border keep their two most probable labels and average them with their neighbours.

Arrays are flat and cut into planes of equal size: no link reaches further than the planes before and behind. The planes
in work lie in a ring. Of each, the voxels that may change and their neighbours are listed, twice: sweep s reads side
``(s - 1) % 2`` and writes side ``s % 2``. A listed voxel is two words:

- `names`: its two labels, the smaller in the low half; 0 in the high half while it has met one label only;
- `odds`: their probabilities, of 65535. A label at 0 counts as dropped; it stays as a hint, since neighbours that name
  the same two labels in the same order are added without a look at either.
"""

import numpy as np

from ._bits import equal_64, load_id, lowest_one, nonzero_64
from ._jit import jit

__all__ = ["count_listed", "find_border", "list_plane", "store_plane", "sweep_planes"]

CERTAIN = 65535
FIXED = 255
"""Depth of a voxel that never changes."""

ONE = np.uint64(1)
NONE = np.uint64(0)
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


@jit
def find_border(labels, links, strides, chosen, lo, hi, hops, queue):
    """Mark in `hops` (1) and collect the voxels from `lo` to `hi` linked to another label; return their number.

    Only labels that are `chosen` count, all if that is empty.
    """
    count = 0
    reach = 64
    for k in range(strides.size):
        reach = max(reach, 64 + abs(strides[k]))
    for start in range(lo, hi, 64):
        word = ALL
        if start >= reach and start + reach <= labels.size:
            word = nonzero_64(links, start)
            if word == NONE:
                continue
            same = ALL
            for k in range(strides.size):
                same &= equal_64(labels, start, start + strides[k])
            word &= ~same
        if start + 64 > hi:
            word &= ALL >> np.uint64(start + 64 - hi)
        while word != NONE:
            v = start + lowest_one(word)
            word &= word - ONE
            mask = np.int64(links[v])
            for k in range(strides.size):
                if (mask >> k) & 1 and labels[v + strides[k]] != labels[v]:
                    if chosen.size == 0 or chosen[labels[v]]:
                        hops[v] = 1
                        queue[count] = v
                        count += 1
                    break
    return count


@jit
def count_listed(hops, counts):
    """Write how many voxels of each plane are listed."""
    for plane in range(counts.size):
        row = hops[plane]
        count = 0
        for i in range(row.size):
            count += row[i] != 0
        counts[plane] = count


@jit
def list_plane(labels, hops, seeds, first, slot, window):
    """List one plane's voxels in the ring, each with its label at full probability; return their number.

    The seeds are raw; voxel `first` is the plane's.
    """
    index, place, depth, names, odds = window
    count = 0
    for i in range(labels.size):
        if hops[i] == 0:
            continue
        at = slot * place.shape[1] + count
        index[slot, i] = at
        place[slot, count] = i
        depth[slot, count] = FIXED if load_id(seeds[0], seeds[1], first + i) != 0 else hops[i] - 1
        for side in range(2):
            names[side, at] = labels[i]
            odds[side, at] = CERTAIN
        count += 1
    return count


@jit
def sweep_planes(front, sweeps, planes, share, shares, counts, links, cost, steps, window):
    """Take sweep s of plane ``front - 2 s`` for every s: the `share`-th of `shares` parts of each plane's list."""
    index = window[0]
    slots = index.shape[0]
    for sweep in range(1, sweeps + 1):
        plane = front - 2 * sweep
        if 0 <= plane < planes:
            count = counts[plane % slots]
            first = count * share // shares
            last = count * (share + 1) // shares
            average_lists(plane, sweep, first, last, links, cost, steps, window)


@jit
def average_lists(plane, sweep, first, last, links, cost, steps, window):
    """Average the listed voxels `first` to `last` of one plane over their links.

    `steps` holds for each neighbour the difference of the flat index, -1, 0 or 1 for its plane, and the conductance.
    """
    strides, ahead, conductances = steps
    index, place, depth, names, odds = window
    slots, size = index.shape
    slot = plane % slots
    new = sweep % 2
    old_names = names[1 - new]
    old_odds = odds[1 - new]
    new_names = names[new]
    new_odds = odds[new]
    ring = index.reshape(-1)
    reach = np.empty(strides.size, dtype=np.int64)
    for k in range(strides.size):
        reach[k] = ((plane + ahead[k]) % slots - slot - ahead[k]) * size + strides[k]
    other_names = np.empty(2 * strides.size, dtype=np.uint32)
    other_sums = np.empty(2 * strides.size, dtype=np.int64)
    costly = cost.size > 0
    ripe = min(sweep, FIXED)
    for a in range(first, last):
        if depth[slot, a] >= ripe:
            continue
        i = np.int64(place[slot, a])
        v = plane * size + i
        at = slot * place.shape[1] + a
        here = slot * size + i
        own = old_names[at]
        low = np.uint32(own & LOW)
        high = np.uint32(own >> HALF)
        mask = np.int64(links[v])
        total = np.int64(0)
        low_sum = np.int64(0)
        high_sum = np.int64(0)
        others = 0
        for k in range(strides.size):
            if (mask >> k) & 1 == 0:
                continue
            w = conductances[np.uint64(k)]
            if costly:
                w = max(1, (w * 32) // (np.int64(cost[v]) + np.int64(cost[v + strides[k]])))
            total += w
            b = np.uint64(ring[np.uint64(here + reach[np.uint64(k)])])
            pair = old_names[b]
            p = np.int64(old_odds[b])
            p_low = w * (p & 65535)
            p_high = w * (p >> 16)
            if pair == own:
                low_sum += p_low
                high_sum += p_high
                continue
            name = np.uint32(pair & LOW)
            for _ in range(2):
                if p_low == 0:
                    pass
                elif name == low:
                    low_sum += p_low
                elif name == high:
                    high_sum += p_low
                else:
                    c = 0
                    while c < others and other_names[c] != name:
                        c += 1
                    if c == others:
                        other_names[c] = name
                        other_sums[c] = 0
                        others += 1
                    other_sums[c] += p_low
                name = np.uint32(pair >> HALF)
                p_low = p_high
        # Exact: the sums and totals are below 2**52, where a rounded quotient never reaches the next integer.
        low_p = np.int64(np.float64(low_sum) / np.float64(total))
        high_p = np.int64(np.float64(high_sum) / np.float64(total))
        for c in range(others):
            name = other_names[c]
            p = np.int64(np.float64(other_sums[c]) / np.float64(total))
            # In this loop `low` is the better of the two, not the smaller.
            if high != 0 and (high_p > low_p or (high_p == low_p and high < low)):
                low, high = high, low
                low_p, high_p = high_p, low_p
            if high == 0 or p > high_p or (p == high_p and name < high):
                high = name
                high_p = p
        if high != 0 and high < low:
            low, high = high, low
            low_p, high_p = high_p, low_p
        if low_p == 0 and high_p == 0:
            new_names[at] = own
            new_odds[at] = old_odds[at]
        else:
            new_names[at] = np.uint64(low) | np.uint64(high) << HALF
            new_odds[at] = low_p | high_p << 16


@jit
def store_plane(slot, count, side, window, labels, confidence):
    """Write the most probable label of each listed voxel, and its lead where `confidence` is not empty."""
    index, place, depth, names, odds = window
    for a in range(count):
        i = np.int64(place[slot, a])
        at = slot * place.shape[1] + a
        pair = names[side, at]
        low_p = np.int64(odds[side, at]) & 65535
        high_p = np.int64(odds[side, at]) >> 16
        labels[i] = pair >> HALF if high_p > low_p else pair & LOW
        if confidence.size > 0 and low_p > 0 and high_p > 0:
            confidence[i] = abs(high_p - low_p)
