"""Draw a line of background between instances that touch."""

from ._jit import jit


@jit
def separate_slab(labels, ignored, offsets, first, last, out):
    """Write to slices ``first`` to ``last - 1`` of `out` where a voxel is labelled and not on the line.

    Of two neighbours with different labels, the first is on the line, or the one that is `ignored` (of size 0: none)
    if the other is not. `offsets` ``(n, 3)`` are those of the neighbours in lexicographic order.
    """
    n_z, n_y, n_x = labels.shape
    for z in range(first, last):
        for y in range(n_y):
            row, line = labels[z, y], out[z, y]
            for x in range(n_x):
                line[x] = row[x] != 0
            for k in range(offsets.shape[0]):
                forward = 2 * k >= offsets.shape[0]
                z_other, y_other, step = z + offsets[k, 0], y + offsets[k, 1], offsets[k, 2]
                if z_other < 0 or z_other >= n_z or y_other < 0 or y_other >= n_y:
                    continue
                other = labels[z_other, y_other]
                start, stop = max(0, -step), min(n_x, n_x - step)
                if ignored.size:
                    void, other_void = ignored[z, y], ignored[z_other, y_other]
                    for x in range(start, stop):
                        yields = forward if void[x] == other_void[x + step] else void[x]
                        line[x] &= (other[x + step] == row[x]) | (other[x + step] == 0) | (not yields)
                elif forward:
                    for x in range(start, stop):
                        line[x] &= (other[x + step] == row[x]) | (other[x + step] == 0)
