"""Which labels touch, counted on a device in one pass.

A block counts its voxels in a table in shared memory, and adds that to a table in global memory, of 72 bytes per row:
75 MB, or 4 times as much each time that it was too small. Nothing else is allocated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .device import Device, ceil_div
from .pairs import collect_pairs

__all__ = ["TILE", "count_contacts"]

TILE = {"TILE_Z": 16, "TILE_Y": 8, "TILE_X": 32}
"""Voxels of a block."""

COUNTS, SUMS = 5, 2
"""Columns of a table after the pair: counts, and the limbs of a sum."""

LIMB = 32


def count_contacts(
    device: Device,
    labels: Any,
    image: Any,
    scale: float,
    offsets: npt.NDArray[np.int64],
    box: npt.NDArray[np.int64],
    capacity: int | None = None,
) -> npt.NDArray[np.int64]:
    """Do what `lpa3d.kernels.contacts.count_contacts` does.

    The first table has room for `capacity` pairs, a power of two.
    """
    volume, values = device.bring(labels), device.bring(image)
    kernel = device.kernel(
        "contacts", "count_contacts", LABEL=volume.dtype, IMAGE=values.dtype, IMAGED=values.size > 0, **TILE
    )
    steps, bounds = device.bring(offsets), device.bring(box)
    sides = np.maximum(box[1] - box[0], 0).tolist()
    grid = 1
    for side, part in zip(sides, TILE.values(), strict=True):
        grid *= ceil_div(side, part)

    def launch(*table: Any) -> None:
        block = TILE["TILE_Y"] * TILE["TILE_X"]
        kernel(grid, block, volume, values, scale, *volume.shape, steps, len(offsets), bounds, *table)

    most = int(np.prod(sides)) * len(offsets)
    rows = collect_pairs(device, launch, (0,) * (COUNTS + SUMS), most, capacity)
    high, low = rows[:, -2], rows[:, -1].view(np.uint64)
    high += (low >> np.uint64(LIMB)).astype(np.int64)
    low &= np.uint64((1 << LIMB) - 1)
    return rows
