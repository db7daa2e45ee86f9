"""A growing table keyed by id pairs: open addressing over a dense list, so that positions in the list never change.

A table is two arrays: ``pairs``, the ``(capacity, columns)`` int64 list in order of insertion, whose first two columns
are the pair and whose others are the caller's (0 at first), and ``slots``, a power of two of at least twice the
capacity, that holds positions in the list, -1 where empty. The number of pairs is the caller's, who grows the table
before it is full.
"""

import numpy as np

from ._jit import jit


@jit
def count_slots(entries):
    """Return the size of a hash table for so many entries: a power of two, of which they take half at the most."""
    size = 64
    while size < 2 * entries:
        size *= 2
    return size


@jit
def hash_pair(a, b):
    """Return a well mixed non-negative hash of two integers."""
    h = np.uint64(a) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(b) * np.uint64(0xC2B2AE3D27D4EB4F)
    h ^= h >> np.uint64(29)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(32)
    return np.int64(h >> np.uint64(1))


@jit
def create_pairs(capacity, columns):
    """Return empty ``slots, pairs`` with room for `capacity` pairs."""
    return np.full(count_slots(capacity), -1, np.int64), np.zeros((capacity, columns), np.int64)


@jit
def find_pair(slots, pairs, a, b):
    """Return the slot of the pair ``(a, b)``: the one that holds it, else the empty one where it belongs."""
    mask = slots.size - 1
    slot = hash_pair(a, b) & mask
    while slots[slot] >= 0 and (pairs[slots[slot], 0] != a or pairs[slots[slot], 1] != b):
        slot = (slot + 1) & mask
    return slot


@jit
def grow_pairs(slots, pairs, used, capacity):
    """Return ``slots, pairs`` with room for `capacity` pairs that hold the first `used` of `pairs`."""
    grown_slots, grown = create_pairs(capacity, pairs.shape[1])
    for k in range(used):
        for column in range(pairs.shape[1]):
            grown[k, column] = pairs[k, column]
        grown_slots[find_pair(grown_slots, grown, grown[k, 0], grown[k, 1])] = k
    return grown_slots, grown
