"""Make coarser levels of a volume of labels."""

import numpy as np

from ._jit import jit


@jit
def find_mode(values, count):
    """Return which of the first values is there most often; of several not 0, and then the smallest."""
    best, most = values[0], 0
    for i in range(count):
        value = values[i]
        equal = 0
        for j in range(count):
            if values[j] == value:
                equal += 1
        wins = value != best and value != 0 and (best == 0 or value < best)
        if equal > most or (equal == most and wins):
            best, most = value, equal
    return best


@jit
def reduce_labels(fine, depth, height, width, out):
    """Write to each voxel of `out` the value that most of the voxels of its block of `fine` have.

    A block has the sides `depth`, `height` and `width`, of 1 or 2, less where `fine` ends. Of values that are equally
    many 0 loses, then the smallest wins.
    """
    values = np.empty(8, fine.dtype)
    for z in range(out.shape[0]):
        z_lo, z_hi = z * depth, min((z + 1) * depth, fine.shape[0])
        for y in range(out.shape[1]):
            y_lo, y_hi = y * height, min((y + 1) * height, fine.shape[1])
            # The rows of a block; where it has fewer some are the same one.
            a, b, c, d = fine[z_lo, y_lo], fine[z_lo, y_hi - 1], fine[z_hi - 1, y_lo], fine[z_hi - 1, y_hi - 1]
            for x in range(out.shape[2]):
                x_lo = x * width
                x_hi = min(x_lo + width, fine.shape[2])
                first, last = a[x_lo], x_hi - 1
                other = (first ^ a[last]) | (first ^ b[x_lo]) | (first ^ b[last]) | (first ^ c[x_lo])
                if other | (first ^ c[last]) | (first ^ d[x_lo]) | (first ^ d[last]) == 0:
                    # Most blocks lie within one object.
                    out[z, y, x] = first
                    continue
                count = 0
                for k in range(z_lo, z_hi):
                    for j in range(y_lo, y_hi):
                        for i in range(x_lo, x_hi):
                            values[count] = fine[k, j, i]
                            count += 1
                out[z, y, x] = find_mode(values, count)
