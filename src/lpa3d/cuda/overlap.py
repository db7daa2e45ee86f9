"""Which ids of two volumes share voxels, counted on a device in one pass.

A block counts its runs along x in a table in shared memory, and adds that to a table in global memory, of 72 bytes per
row: 75 MB, or 4 times as much each time that it was too small. Nothing else is allocated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .device import BLOCK, Device, ceil_div
from .pairs import collect_pairs

__all__ = ["TILE", "count_overlaps"]

TILE = {"ROWS": 32, "LENGTH": 1024}
"""Rows of a block, and voxels of each."""

LARGEST = 2**64 - 1


def count_overlaps(
    device: Device,
    reference: Any,
    prediction: Any,
    ignore: Any,
    shape: tuple[int, ...],
    first: int,
    capacity: int | None = None,
) -> npt.NDArray[np.int64]:
    """Do what `lpa3d.kernels.overlap.count_overlaps` does, for parts of volumes of `shape`; the rows are not sorted.

    `ignore` of size 0 is none. The first table has room for `capacity` pairs, a power of two.
    """
    parts = [device.bring(part) for part in (reference, prediction, ignore)]
    _, height, width = shape
    rows = reference.size // width if width else 0
    kernel = device.kernel(
        "overlap", "count_overlaps",
        REFERENCE=parts[0].dtype, PREDICTION=parts[1].dtype, IGNORE=parts[2].size > 0, **TILE,
    )  # fmt: skip
    grid = ceil_div(rows, TILE["ROWS"]) * ceil_div(width, TILE["LENGTH"])

    def launch(*table: Any) -> None:
        kernel(grid, BLOCK, *parts, rows, height, width, first, *table)

    start = (0, LARGEST, LARGEST, LARGEST, 0, 0, 0)
    return collect_pairs(device, launch, start, reference.size, capacity)
