"""Reattachment: which runs hold a seed, and the confidence of what was cut off."""

import numpy as np

from ._bits import load_id
from ._jit import jit
from .label import find_spans

__all__ = ["clear_confidence", "flag_seeded"]


@jit
def flag_seeded(changes, inside, runs, width, seeds, first, flags):
    """Set ``flags[runs[i]]`` where a seed, anything but 0, lies in the i-th run of a slab (`arrays.components`).

    The seeds are raw; voxel `first` is the slab's.
    """
    depth, height, _ = changes.shape
    starts = np.empty(width, dtype=np.int64)
    stops = np.empty(width, dtype=np.int64)
    run = 0
    for z in range(depth):
        for y in range(height):
            row = first + (z * height + y) * width
            for k in range(find_spans(changes[z, y], inside[z, y], width, starts, stops)):
                component = runs[run]
                run += 1
                if not flags[component]:
                    for x in range(starts[k], stops[k]):
                        if load_id(seeds[0], seeds[1], row + x) != 0:
                            flags[component] = True
                            break


@jit
def clear_confidence(labels, links, lo, hi, confidence):
    """Set the confidence of linked voxels without a label to 0, from `lo` to `hi`."""
    for v in range(lo, hi):
        if labels[v] == 0 and links[v] != 0:
            confidence[v] = 0
