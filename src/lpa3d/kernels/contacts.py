"""Count how labels touch: one integer row per pair of labels, additive over any partition of the volume into boxes."""

import numpy as np

from ._jit import jit
from .pairs import create_pairs, find_pair, grow_pairs

COLUMNS = 7
"""Faces across z, y and x, edges, corners, and the two limbs of the sum of the image (high, low 32 bits)."""

LIMB = 32
"""Bits of the low limb of the image's sum, which then never overflows."""

_LOW = (1 << LIMB) - 1


@jit
def count_contacts(labels, image, scale, offsets, box):
    """Count the touching voxel pairs of unequal labels whose first voxel lies in `box`.

    `offsets` ``(n, 3)`` are forward ones, so that every voxel pair has one first voxel; `box` is ``(2, 3)``, start and
    stop. Background counts as a label at faces, where it is a surface, and nowhere else. An `image` of size 0 is none;
    ``rint(image * scale)`` is summed over both voxels of each pair.

    Returns ``(n, 2 + COLUMNS)``: the two labels, the smaller first, and the counts; the rows are in no special order.
    """
    n_z, n_y, n_x = labels.shape
    n_offsets = offsets.shape[0]
    slots, rows = create_pairs(1024, 2 + COLUMNS)
    used = 0
    # Neighbouring voxels mostly repeat the pair that was last seen in the same direction.
    last = np.full((n_offsets, 2), -1, np.int64)
    last_k = np.zeros(n_offsets, np.int64)
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
                start = max(box[0, 2], -dx)
                stop = min(box[1, 2], n_x - dx)
                here = labels[z, y]
                there = labels[z + dz, y + dy]
                # Collecting the borders first keeps the loop over all voxels free of branches.
                n_found = 0
                for x in range(start, stop):
                    found[n_found] = x
                    n_found += here[x] != there[x + dx]
                if used + n_found > rows.shape[0]:
                    slots, rows = grow_pairs(slots, rows, used, 2 * (used + n_found))
                for i in range(n_found):
                    x = found[i]
                    a, b = np.int64(here[x]), np.int64(there[x + dx])
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
                        last[d, 0], last[d, 1] = a, b
                        last_k[d] = slots[slot]
                    k = last_k[d]
                    rows[k, column] += 1
                    if image.size and a > 0:
                        total = np.int64(np.rint(np.float64(image[z, y, x]) * scale))
                        total += np.int64(np.rint(np.float64(image[z + dz, y + dy, x + dx]) * scale))
                        low = rows[k, 8] + (total & _LOW)
                        rows[k, 7] += (total >> LIMB) + (low >> LIMB)
                        rows[k, 8] = low & _LOW
    return rows[:used]
