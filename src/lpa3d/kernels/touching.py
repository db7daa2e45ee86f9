"""Draw a line of background between instances that touch."""

from ._jit import jit


@jit
def separate_slab(labels, offsets, first, last, out):
    """Write to slices ``first`` to ``last - 1`` of `out` where a voxel is labelled and touches no other label.

    Only the neighbours at `offsets` ``(n, 3)`` are looked at: forward ones leave a line one voxel wide.
    """
    n_z, n_y, n_x = labels.shape
    for z in range(first, last):
        for y in range(n_y):
            row, line = labels[z, y], out[z, y]
            for x in range(n_x):
                line[x] = row[x] != 0
            for k in range(offsets.shape[0]):
                z_other, y_other, step = z + offsets[k, 0], y + offsets[k, 1], offsets[k, 2]
                if z_other < 0 or z_other >= n_z or y_other < 0 or y_other >= n_y:
                    continue
                other = labels[z_other, y_other]
                for x in range(max(0, -step), min(n_x, n_x - step)):
                    line[x] &= (other[x + step] == row[x]) | (other[x + step] == 0)
