"""Surface voxels of one object, those of many in a part of a volume, and which of them two objects share."""

import numpy as np

from ._jit import jit
from .relabel import find_id


@jit
def belongs(labels, ignored, wanted, z, y, x):
    """Return whether a voxel of the volume is of the object `wanted` and not ignored."""
    return labels[z, y, x] == wanted and not (ignored.size and ignored[z, y, x])


@jit
def list_surface(labels, ignored, wanted, box, out):
    """List the voxels of the object `wanted` with a face neighbour outside it, in raster order; return their number.

    `box` ``(2, 3)``, start and stop, holds the whole object. Beyond the volume, and where `ignored` (of size 0: none)
    is True, nothing belongs to it; a volume one slice thick is an image, without neighbours along z. Rows of `out`
    ``(n, 3)`` are filled as far as they reach, so that too short an `out` tells how long it must be.
    """
    n_z, n_y, n_x = labels.shape
    start, stop = box[0, 2], box[1, 2]
    found = 0
    for z in range(box[0, 0], box[1, 0]):
        for y in range(box[0, 1], box[1, 1]):
            # Most rows of the box of a thin object miss it, which a loop without branches tells fast.
            held = 0
            for value in labels[z, y, start:stop]:
                held += value == wanted
            if held == 0:
                continue
            for x in range(start, stop):
                if not belongs(labels, ignored, wanted, z, y, x):
                    continue
                if (
                    0 < x < n_x - 1
                    and belongs(labels, ignored, wanted, z, y, x - 1)
                    and belongs(labels, ignored, wanted, z, y, x + 1)
                    and 0 < y < n_y - 1
                    and belongs(labels, ignored, wanted, z, y - 1, x)
                    and belongs(labels, ignored, wanted, z, y + 1, x)
                ):
                    if n_z == 1:
                        continue
                    if (
                        0 < z < n_z - 1
                        and belongs(labels, ignored, wanted, z - 1, y, x)
                        and belongs(labels, ignored, wanted, z + 1, y, x)
                    ):
                        continue
                if found < out.shape[0]:
                    out[found, 0] = z
                    out[found, 1] = y
                    out[found, 2] = x
                found += 1
    return found


@jit
def list_surfaces(labels, ignored, slots, ids, sides, flat, of, certain):
    """List the voxels of some objects that may lie on their surfaces, in raster order; return their number.

    `slots` is `index_ids` of the objects' `ids`. ``sides[2 * axis]`` and ``sides[2 * axis + 1]`` say what lies beyond
    the first and the last slice of the part: 0 nothing, so that a voxel there is on the surface; 1 more of the volume;
    2 nothing in a volume one slice thick, an image, which has no surface there. Listed is every voxel that is on a
    surface for certain, by a neighbour in the part or the end of the volume, and every other one with more of the
    volume beside it. `flat`, `of` and `certain` get place in the part, position of the object in `ids`, and whether it
    is the former, as far as they reach.
    """
    n_z, n_y, n_x = labels.shape
    found = 0
    last = np.int64(0)
    k = np.int64(-1)
    for z in range(n_z):
        for y in range(n_y):
            inner = 0 < z < n_z - 1 and 0 < y < n_y - 1
            row = labels[z, y]
            for x in range(n_x):
                here = row[x]
                if here == 0:
                    continue
                value = np.int64(here)
                if value != last:
                    last = value
                    k = slots[find_id(slots, ids, value)]
                if k < 0 or (ignored.size and ignored[z, y, x]):
                    continue
                is_open = False
                if inner and 0 < x < n_x - 1:
                    # Without branches, six comparisons take little more than one.
                    is_surface = (
                        (row[x - 1] != here)
                        | (row[x + 1] != here)
                        | (labels[z, y - 1, x] != here)
                        | (labels[z, y + 1, x] != here)
                        | (labels[z - 1, y, x] != here)
                        | (labels[z + 1, y, x] != here)
                    )
                    if ignored.size:
                        is_surface |= ignored[z, y, x - 1] | ignored[z, y, x + 1]
                        is_surface |= ignored[z, y - 1, x] | ignored[z, y + 1, x]
                        is_surface |= ignored[z - 1, y, x] | ignored[z + 1, y, x]
                else:
                    is_surface, is_open = look_around(labels, ignored, sides, z, y, x)
                if is_surface or is_open:
                    if found < flat.size:
                        flat[found] = (z * n_y + y) * n_x + x
                        of[found] = k
                        certain[found] = is_surface
                    found += 1
    return found


@jit
def look_around(labels, ignored, sides, z, y, x):
    """Return whether a neighbour for certain does not belong to the object of a voxel, and whether one is unknown."""
    n_z, n_y, n_x = labels.shape
    here = labels[z, y, x]
    is_surface = False
    is_open = False
    for axis in range(3):
        for end in range(2):
            step = 2 * end - 1
            z_to = z + step if axis == 0 else z
            y_to = y + step if axis == 1 else y
            x_to = x + step if axis == 2 else x
            if 0 <= z_to < n_z and 0 <= y_to < n_y and 0 <= x_to < n_x:
                is_surface |= not belongs(labels, ignored, here, z_to, y_to, x_to)
            else:
                is_surface |= sides[2 * axis + end] == 0
                is_open |= sides[2 * axis + end] == 1
    return is_surface, is_open


@jit
def mark_shared(first, second, in_first, in_second):
    """Mark the voxels that both lists ``(n, 3)``, each in raster order, hold."""
    in_first[:] = False
    in_second[:] = False
    i = j = 0
    while i < first.shape[0] and j < second.shape[0]:
        order = first[i, 0] - second[j, 0]
        if order == 0:
            order = first[i, 1] - second[j, 1]
        if order == 0:
            order = first[i, 2] - second[j, 2]
        if order == 0:
            in_first[i] = True
            in_second[j] = True
        i += order <= 0
        j += order >= 0
