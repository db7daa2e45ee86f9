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
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels import overlap as kernels
from ..kernels.overlap import VOID
from .backend import array_module, find_device
from .checks import as_bits, as_raw
from .pairs import sort_pairs
from .threads import num_threads, run_all, split

__all__ = ["Overlaps", "add_overlaps", "count_overlaps", "count_rows", "find_boxes", "shift_overlaps"]

SLAB_VOXELS = 2**21
"""Most voxels of a slab: its table stays in the caches, and 10**6 blocks against 10**6 are counted in a quarter of the
time that four slabs per thread take."""

LEAST_VOXELS = 2**18
"""Smallest slab that is worth a thread of its own."""

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
    boxes : (n, 2, 3) int32, or int64 where a side has 2**31 voxels
        First voxel ``(z, y, x)`` of the smallest box that holds them, and one after its last.
    """

    pairs: Ints
    voxels: Ints
    boxes: npt.NDArray[Any]


def add_overlaps(tables: Iterable[Overlaps]) -> Overlaps:
    """Return the sum of `tables`: what one count over all their parts gives."""
    parts = list(tables)
    pairs = np.concatenate([np.empty((0, 2), np.int64), *(part.pairs for part in parts)])
    voxels = np.concatenate([np.empty(0, np.int64), *(part.voxels for part in parts)])
    boxes = np.concatenate([np.empty((0, 2, 3), np.int32), *(part.boxes for part in parts)])
    total = Overlaps(np.empty_like(pairs), np.empty_like(voxels), np.empty_like(boxes))
    n = kernels.add_rows(sort_pairs(pairs), pairs, voxels, boxes, total.pairs, total.voxels, total.boxes)
    return Overlaps(total.pairs[:n], total.voxels[:n], total.boxes[:n])


def count_overlaps(
    reference: npt.NDArray[Any], prediction: npt.NDArray[Any], ignore: npt.NDArray[np.bool_] | None = None
) -> Overlaps:
    """Count the overlaps of two canonical ``(Z, Y, X)`` volumes of ids (`VOID` where `ignore` is True)."""
    rows, width = reference.shape[0] * reference.shape[1], reference.shape[2]
    flat = [array.reshape(-1) for array in (reference, prediction)]
    mask = None if ignore is None else ignore.reshape(-1)

    def count(bounds: tuple[int, int]) -> Overlaps:
        at = slice(bounds[0] * width, bounds[1] * width)
        part = None if mask is None else mask[at]
        return count_rows(flat[0][at], flat[1][at], part, reference.shape, bounds[0])

    if find_device(reference) is not None:
        return add_overlaps([count((0, rows))])
    # A few slabs for each thread, as some are harder.
    parts = max(min(4 * num_threads(), reference.size // LEAST_VOXELS), -(-reference.size // SLAB_VOXELS))
    return add_overlaps(run_all(count, split(rows, parts) if reference.size else []))


def count_rows(
    reference: npt.NDArray[Any],
    prediction: npt.NDArray[Any],
    ignore: npt.NDArray[np.bool_] | None,
    shape: tuple[int, ...],
    first: int,
) -> Overlaps:
    """Count the overlaps of flat parts, some whole rows from row `first` on, of volumes of `shape`; rows not sorted."""
    mask = array_module(reference).empty(0, np.uint8) if ignore is None else ignore.view(np.uint8)
    device = find_device(reference)
    rows: Ints
    if device is not None:
        from ..cuda import overlap as cuda

        rows = cuda.count_overlaps(device, as_bits(reference), as_bits(prediction), mask, shape, first)
    else:
        rows = kernels.count_overlaps(as_raw(reference), as_raw(prediction), as_raw(mask), shape[1], shape[2], first)
    # Copies, so that the table that had room for more is freed.
    return Overlaps(rows[:, :2].copy(), rows[:, 2].copy(), rows[:, 3:].astype(_places(shape)).reshape(-1, 2, 3))


def _places(shape: tuple[int, ...]) -> type[np.int32] | type[np.int64]:
    """Return the dtype of boxes in a volume."""
    return np.int32 if max(shape) < 2**31 else np.int64


def shift_overlaps(overlaps: Overlaps, start: tuple[int, ...], shape: tuple[int, ...]) -> Overlaps:
    """Return the table of a part of a volume of `shape` that begins at `start`, with boxes in the volume."""
    boxes = overlaps.boxes.astype(_places(shape)) + np.array(start, _places(shape))
    return Overlaps(overlaps.pairs, overlaps.voxels, boxes)


def find_boxes(overlaps: Overlaps, side: int, ids: Ints) -> Ints:
    """Return the boxes ``(n, 2, 3)`` of some ids above 0 of one side (0: reference, 1: prediction), void left out."""
    rows = np.flatnonzero((overlaps.pairs[:, side] > 0) & (overlaps.pairs[:, 0] != VOID))
    rows = rows[np.argsort(overlaps.pairs[rows, side], kind="stable")]
    known, starts = np.unique(overlaps.pairs[rows, side], return_index=True)
    places = np.searchsorted(known, ids)
    if not len(ids):
        return np.empty((0, 2, 3), np.int64)
    low = np.minimum.reduceat(overlaps.boxes[rows, 0], starts)[places]
    high = np.maximum.reduceat(overlaps.boxes[rows, 1], starts)[places]
    return np.stack([low, high], axis=1).astype(np.int64)
