"""The census of seeds, and maps of class maps and labels, on a device. All arrays but small tables are device arrays.

Each is one pass over its arrays and takes no memory but its result, unless its docstring says so.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .device import BLOCK, Device, Kernel, ceil_div
from .pairs import collect_pairs

__all__ = [
    "any_unlabelled",
    "apply_ids",
    "count_mask",
    "count_seeds",
    "list_beyond",
    "rank_labels",
    "restrict_seeds",
    "select",
]

# What census.cu says of a warp's brick, and maps.cuh of a thread's voxels.
LANES = 32
BRICK = (8, 32, 32)
ITEMS = 4

Ints = npt.NDArray[np.int64]
Slices = tuple[Ints, Ints, Ints]


def _kernel(device: Device, name: str, volume: Any = np.uint8, ids: Any = np.uint8, links: Any = np.uint8) -> Kernel:
    return device.kernel("census", name, VOLUME=volume, ID=ids, LINKS=links)


def _bits(ids: Any) -> Any:
    """Return a view of ids, which are not negative, as unsigned integers of their width."""
    return ids.view(f"u{ids.dtype.itemsize}")


def _grid(size: int) -> int:
    """Return the blocks of a map."""
    return ceil_div(size, BLOCK * ITEMS)


def _brick_grid(shape: tuple[int, ...]) -> int:
    """Return the blocks that count in bricks."""
    bricks = math.prod(ceil_div(length, side) for length, side in zip(shape, BRICK, strict=True))
    return ceil_div(bricks * LANES, BLOCK)


class _Tally:
    """Counts of 0 for each slice across each axis."""

    def __init__(self, device: Device, shape: tuple[int, ...]) -> None:
        self.all = device.xp.zeros(sum(shape), np.uint64)
        self.ends = np.cumsum(shape[:2]).tolist()
        z, y = self.ends
        self.slices = self.all[:z], self.all[z:y], self.all[y:]

    def fetch(self, device: Device) -> Slices:
        z, y, x = np.split(device.fetch(self.all).view(np.int64), self.ends)
        return z, y, x


def count_seeds(device: Device, volume: Any, seeds: Any, capacity: int | None = None) -> tuple[Ints, Slices]:
    """Return distinct rows (id, class, voxels), not sorted, and the seeds off the background per slice.

    The table of the pairs takes 24 bytes for each of 2**20 rows, or, in another pass each time that it was too small,
    of 4 times as many; `capacity` is the number of rows to begin with.
    """
    tally = _Tally(device, volume.shape)
    bits = _bits(seeds)
    kernel = _kernel(device, "count_seeds", volume.dtype, bits.dtype)

    def launch(*table: Any) -> None:
        tally.all.fill(0)
        kernel(_brick_grid(volume.shape), BLOCK, volume, bits, *volume.shape, *table, *tally.slices)

    rows = collect_pairs(device, launch, (0,), seeds.size, capacity)
    return rows, tally.fetch(device)


def count_mask(device: Device, volume: Any) -> Slices:
    """Do what `lpa3d.propagation.census.count_mask` does."""
    tally = _Tally(device, volume.shape)
    grid = _brick_grid(volume.shape)
    _kernel(device, "count_foreground", volume.dtype)(grid, BLOCK, volume, *volume.shape, *tally.slices)
    return tally.fetch(device)


def rank_labels(device: Device, volume: Any, seeds: Any, ranks: Ints, labels: Any) -> None:
    """Do what `lpa3d.propagation.census.rank_labels` does."""
    bits = _bits(seeds)
    _kernel(device, "rank_seeds", volume.dtype, bits.dtype)(
        _grid(seeds.size), BLOCK, volume, bits, seeds.size, device.bring(ranks), len(ranks), labels
    )


def restrict_seeds(device: Device, labels: Any, seeds: Any) -> None:
    """Do what `lpa3d.propagation.census.restrict_seeds` does."""
    bits = _bits(seeds)
    _kernel(device, "restrict_seeds", ids=bits.dtype)(_grid(seeds.size), BLOCK, labels, seeds.size, bits)


def any_unlabelled(device: Device, volume: Any, labels: Any) -> bool:
    """Do what `lpa3d.propagation.census.any_unlabelled` does."""
    found = device.xp.zeros(1, np.uint8)
    _kernel(device, "find_unlabelled", volume.dtype)(_grid(volume.size), BLOCK, volume, labels, volume.size, found)
    return bool(found[0])


def select(device: Device, volume: Any, labels: Any, labelled: bool) -> Any:
    """Do what `lpa3d.propagation.census.select` does."""
    out = device.xp.empty(volume.shape, volume.dtype)
    _kernel(device, "select_voxels", volume.dtype)(
        _grid(volume.size), BLOCK, volume, labels, labelled, volume.size, out
    )
    return out


def list_beyond(device: Device, volume: Any, reached: Any, links: Any, strides: Ints) -> Any:
    """Do what `propagation.census.list_beyond` does; `strides` lead from a flat index to the neighbours'."""
    out = device.xp.empty(volume.shape, volume.dtype)
    _kernel(device, "list_borders", volume.dtype, links=links.dtype)(
        _grid(volume.size), BLOCK, volume, reached, links, device.bring(strides), volume.size, out
    )
    return out


def apply_ids(device: Device, labels: Any, values: npt.NDArray[Any], out: Any) -> None:
    """Do what `lpa3d.propagation.census.apply_ids` does."""
    bits = _bits(out)
    _kernel(device, "apply_ids", ids=bits.dtype)(
        _grid(labels.size), BLOCK, labels, labels.size, device.bring(values.view(bits.dtype)), bits
    )
