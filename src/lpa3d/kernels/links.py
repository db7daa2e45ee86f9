"""Links: which neighbours of a voxel have its class.

Bit ``k`` of a voxel's mask is set when its neighbour at offset ``k`` lies in the volume and has the same non-zero
class. Everything after this works on the masks, so it needs neither classes nor bounds checks.
"""

import numpy as np

from ._jit import jit

__all__ = ["cut_slab", "link_slab"]


@jit
def link_slab(volume, offsets, first, last, links):
    """Write the masks of slices ``first`` to ``last - 1`` of a (Z, Y, X) class map; `links` comes zeroed."""
    nz, ny, nx = volume.shape
    none = links.dtype.type(0)
    for z in range(first, last):
        for y in range(ny):
            row = volume[z, y]
            masks = links[z, y]
            empty = True
            for x in range(nx):
                empty &= row[x] == 0
            if empty:
                continue  # a page of masks that holds background alone stays untouched
            # One pass per offset over a row in cache: each vectorises, and the same code serves 6, 18 and 26.
            for k in range(offsets.shape[0]):
                z_other = z + offsets[k, 0]
                y_other = y + offsets[k, 1]
                step = offsets[k, 2]
                if z_other < 0 or z_other >= nz or y_other < 0 or y_other >= ny:
                    continue
                lo = max(0, -step)
                hi = min(nx, nx - step)
                here = row[lo:hi]
                there = volume[z_other, y_other, lo + step : hi + step]
                out = masks[lo:hi]
                bit = links.dtype.type(1 << k)
                for x in range(hi - lo):
                    out[x] |= bit if here[x] == there[x] else none
            for x in range(nx):
                masks[x] = masks[x] if row[x] != 0 else none


@jit
def cut_slab(labels, strides, lo, hi, links):
    """Remove from the flat masks ``lo`` to ``hi - 1`` every link that has an unlabelled voxel at either end."""
    for v in range(lo, hi):
        mask = np.int64(links[v])
        if mask == 0:
            continue
        if labels[v] == 0:
            mask = 0
        for k in range(strides.size):
            if (mask >> k) & 1 and labels[v + strides[k]] == 0:
                mask &= ~(1 << k)
        links[v] = mask
