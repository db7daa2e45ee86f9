"""Put new ids in the place of old ones."""

import numpy as np

from ._jit import jit
from .pairs import count_slots

_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(32)


@jit
def find_id(slots, ids, value):
    """Return the slot of `value`: the one that holds its position in `ids`, else the empty one where it belongs."""
    # For one number a multiplication is hash enough: that of pairs makes the loop over voxels some 6 % slower.
    mask = slots.size - 1
    slot = np.int64((np.uint64(value) * _MIX) >> _SHIFT) & mask
    while slots[slot] >= 0 and ids[slots[slot]] != value:
        slot = (slot + 1) & mask
    return slot


@jit
def index_ids(ids):
    """Return a hash table (open addressing, -1 where empty) of the positions of the distinct int64 `ids`."""
    slots = np.full(count_slots(ids.size), -1, np.int64)
    for k in range(ids.size):
        slots[find_id(slots, ids, ids[k])] = k
    return slots


@jit
def replace_ids(labels, slots, ids, new_ids, out):
    """Write `labels` to `out` (both flat) with ``ids[k]`` replaced by ``new_ids[k]``; other ids stay as they are."""
    last = np.int64(0)
    new = np.int64(0)
    for i in range(labels.size):
        value = np.int64(labels[i])
        if value != last:
            last = value
            k = slots[find_id(slots, ids, value)]
            new = new_ids[k] if k >= 0 else value
        out[i] = new
