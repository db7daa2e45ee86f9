"""The table of overlaps, from which nearly every metric is computed, and which adds up over any cut of a volume.

Stages
------
1. *Count* (parallel over slabs of slices): one row per pair of a reference id and a predicted id that share voxels,
   with their number and the box that holds them.
2. *Add*: rows of the same pair are summed, their boxes united. Any partition of the volume gives the same table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["VOID", "Overlaps", "add_overlaps"]

VOID = -1
"""Reference id of the voxels that are ignored."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class Overlaps:
    """Voxels of each pair of a reference id and a predicted id; tables of disjoint parts add up (`add_overlaps`).

    Attributes
    ----------
    pairs : (n, 2) int64
        Reference id (`VOID` where voxels are ignored, 0 background) and predicted id (0 background), sorted by the
        first, then the second, each pair once.
    voxels : (n,) int64
        Number of voxels, at least 1.
    boxes : (n, 2, 3) int64
        First voxel ``(z, y, x)`` of the smallest box that holds them, and one after its last.
    """

    pairs: Ints
    voxels: Ints
    boxes: Ints


def add_overlaps(tables: Iterable[Overlaps]) -> Overlaps:
    """Return the sum of `tables`: what one count over all their parts gives."""
    parts = list(tables)
    pairs = np.concatenate([np.empty((0, 2), np.int64), *(part.pairs for part in parts)])
    voxels = np.concatenate([np.empty(0, np.int64), *(part.voxels for part in parts)])
    boxes = np.concatenate([np.empty((0, 2, 3), np.int64), *(part.boxes for part in parts)])
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    pairs, voxels, boxes = pairs[order], voxels[order], boxes[order]
    first = np.ones(len(pairs), np.bool_)
    first[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    starts = np.flatnonzero(first)
    if starts.size < len(pairs):
        voxels = np.add.reduceat(voxels, starts)
        low = np.minimum.reduceat(boxes[:, 0], starts)
        high = np.maximum.reduceat(boxes[:, 1], starts)
        boxes = np.stack([low, high], axis=1)
        pairs = pairs[starts]
    return Overlaps(pairs, voxels, boxes)
