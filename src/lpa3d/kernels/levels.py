"""Make coarser levels of a volume of labels."""

import numpy as np

from ._jit import jit


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
            for x in range(out.shape[2]):
                x_lo, x_hi = x * width, min((x + 1) * width, fine.shape[2])
                first = fine[z_lo, y_lo, x_lo]
                count = 0
                same = True
                for k in range(z_lo, z_hi):
                    for j in range(y_lo, y_hi):
                        for i in range(x_lo, x_hi):
                            values[count] = fine[k, j, i]
                            same = same and values[count] == first
                            count += 1
                best = first
                if not same:
                    most = 0
                    for i in range(count):
                        value = values[i]
                        equal = 0
                        for j in range(count):
                            if values[j] == value:
                                equal += 1
                        wins = value != best and value != 0 and (best == 0 or value < best)
                        if equal > most or (equal == most and wins):
                            best, most = value, equal
                out[z, y, x] = best
