"""Union-find over the positions ``0..n-1`` of sorted ids, with pairs that must stay apart.

A component that has to stay apart from others keeps a list of them, and the set of all such pairs of roots answers in
one look-up whether two components may join. When they do, the entries of the one with the shorter list are written
again under the root that stays, so that no entry is written more than log2(n) times.
"""

import numpy as np

from ._jit import jit
from .pairs import create_pairs, find_pair, grow_pairs
from .unionfind import unite_sets


@jit
def find_root(parents, i):
    """Return the root of `i`, halving its path."""
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


@jit
def unite_all(links, parents):
    """Unite the two ends of every row of the ``(n, 2)`` `links`."""
    for k in range(links.shape[0]):
        unite_sets(parents, links[k, 0], links[k, 1])


@jit
def _add_pair(slots, pairs, used, a, b):
    """Add the unordered pair to the set and return how many it has; it must have room."""
    low, high = min(a, b), max(a, b)
    slot = find_pair(slots, pairs, low, high)
    if slots[slot] < 0:
        slots[slot] = used
        pairs[used, 0], pairs[used, 1] = low, high
        used += 1
    return used


@jit
def unite_allowed(links, order, groups, apart, parents):
    """Unite the rows of `links`, in the given order, whose components may join.

    Components of different `groups` ``(n,)`` never join, nor do those of the two ends of a row of `apart` ``(m, 2)``,
    whose ends must be in different components at the start.
    """
    n_apart = apart.shape[0]
    slots, pairs = create_pairs(2 * n_apart + 1, 2)
    used = 0
    head = np.empty(parents.size, np.int64)
    tail = np.empty(parents.size, np.int64)
    length = np.zeros(parents.size, np.int64)
    for i in range(parents.size):
        head[i] = -1
        tail[i] = -1
    following = np.empty(2 * n_apart, np.int64)
    for k in range(n_apart):
        roots = find_root(parents, apart[k, 0]), find_root(parents, apart[k, 1])
        used = _add_pair(slots, pairs, used, roots[0], roots[1])
        # Entry 2 k + side belongs to that side's component and names the other side.
        for side in range(2):
            root, entry = roots[side], 2 * k + side
            following[entry] = head[root]
            head[root] = entry
            if tail[root] < 0:
                tail[root] = entry
            length[root] += 1
    for i in range(order.size):
        a, b = find_root(parents, links[order[i], 0]), find_root(parents, links[order[i], 1])
        if a == b or groups[a] != groups[b]:
            continue
        if length[a] and length[b] and slots[find_pair(slots, pairs, min(a, b), max(a, b))] >= 0:
            continue
        if length[a] < length[b]:
            a, b = b, a
        parents[b] = a
        if length[b] == 0:
            continue
        if used + length[b] > pairs.shape[0]:
            slots, pairs = grow_pairs(slots, pairs, used, 2 * (used + length[b]))
        entry = head[b]
        while entry >= 0:
            other = find_root(parents, apart[entry >> 1, 1 - (entry & 1)])
            used = _add_pair(slots, pairs, used, a, other)
            entry = following[entry]
        following[tail[b]] = head[a]
        head[a] = head[b]
        length[a] += length[b]


@jit
def find_smallest(parents, out):
    """Write the smallest position of each position's component to `out`."""
    smallest = np.empty(parents.size, np.int64)
    for i in range(parents.size):
        smallest[i] = -1
    for i in range(parents.size):
        root = find_root(parents, i)
        if smallest[root] < 0:
            smallest[root] = i
        out[i] = smallest[root]
