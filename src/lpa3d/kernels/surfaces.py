"""Surface voxels of one object, and which of them two objects share."""

from ._jit import jit


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
