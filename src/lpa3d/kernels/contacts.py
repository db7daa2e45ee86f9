"""Count how labels touch: one integer row per pair of labels, additive over any partition of the volume into boxes."""

import numpy as np

from ._bits import equal_raw_64, inlined, leaf, load_number, lowest_one
from ._jit import jit
from .overlap import id_at
from .pairs import create_pairs, find_pair, grow_pairs

COLUMNS = 7
"""Faces across z, y and x, edges, corners, and the two limbs of the sum of the image (high, low 32 bits)."""

LIMB = 32
"""Bits of the low limb of the image's sum, which then never overflows."""

_LOW = (1 << LIMB) - 1

_NONE = np.uint64(0)
_ONE = np.uint64(1)


@leaf
def list_unequal(labels, start, stop, step, found):
    """Write the positions i from `start` on at which raw ids differ from those at ``i + step``; return how many."""
    n_found = 0
    i = start
    while i + 64 <= stop:
        word = ~equal_raw_64(labels[0], labels[1], i, i + step)
        while word != _NONE:
            found[n_found] = i + lowest_one(word)
            n_found += 1
            word &= word - _ONE
        i += 64
    while i < stop:
        found[n_found] = i
        n_found += id_at(labels, i) != id_at(labels, i + step)
        i += 1
    return n_found


@inlined
def number_at(image, i, scale):
    """Return a voxel of an image in whole numbers."""
    return np.int64(np.rint(load_number(image[0], image[1], i) * scale))


@jit
def count_contacts(labels, image, shape, scale, offsets, box):
    """Count the touching voxel pairs of unequal labels whose first voxel lies in `box`, of a volume of `shape`.

    `labels` are raw ids; an `image` is raw numbers, of size 0 it is none. `offsets` ``(n, 3)`` are forward ones, so
    that every voxel pair has one first voxel; `box` is ``(2, 3)``, start and stop. Background counts as a label at
    faces, where it is a surface, and nowhere else; ``rint(image * scale)`` is summed over both voxels of each pair.

    Returns ``(n, 2 + COLUMNS)``: the two labels, the smaller first, and the counts; the rows are in no special order.
    """
    n_z, n_y, n_x = shape
    n_offsets = offsets.shape[0]
    slots, rows = create_pairs(1024, 2 + COLUMNS)
    used = 0
    # Neighbouring voxels mostly repeat the pair that was last seen in the same direction.
    last = np.full((n_offsets, 3), -1, np.int64)
    found = np.empty(n_x + 1, np.int64)
    for z in range(box[0, 0], box[1, 0]):
        for y in range(box[0, 1], box[1, 1]):
            for d in range(n_offsets):
                dz, dy, dx = offsets[d, 0], offsets[d, 1], offsets[d, 2]
                if z + dz >= n_z or y + dy < 0 or y + dy >= n_y:
                    continue
                steps = abs(dz) + abs(dy) + abs(dx)
                column = steps + 3
                if steps == 1:
                    column = 2 if dz else (3 if dy else 4)
                row = (z * n_y + y) * n_x
                step = (dz * n_y + dy) * n_x + dx
                n_found = list_unequal(labels, row + max(box[0, 2], -dx), row + min(box[1, 2], n_x - dx), step, found)
                if used + n_found > rows.shape[0]:
                    slots, rows = grow_pairs(slots, rows, used, 2 * (used + n_found))
                for k in range(n_found):
                    i = found[k]
                    a, b = id_at(labels, i), id_at(labels, i + step)
                    if a > b:
                        a, b = b, a
                    if a == 0 and steps > 1:
                        continue
                    if a != last[d, 0] or b != last[d, 1]:
                        slot = find_pair(slots, rows, a, b)
                        if slots[slot] < 0:
                            slots[slot] = used
                            rows[used, 0], rows[used, 1] = a, b
                            used += 1
                        last[d, 0], last[d, 1], last[d, 2] = a, b, slots[slot]
                    at = last[d, 2]
                    rows[at, column] += 1
                    if image[0].size and a > 0:
                        total = number_at(image, i, scale) + number_at(image, i + step, scale)
                        low = rows[at, 8] + (total & _LOW)
                        rows[at, 7] += (total >> LIMB) + (low >> LIMB)
                        rows[at, 8] = low & _LOW
    return rows[:used]
