"""Connected components on a device.

Stages
------
1. *Tiles*: a block labels a tile in shared memory. Ballots tell which voxels are linked to the one before them along
   x, y and z: bits, 32 voxels of a row to a word. From these a thread finds what has to be united in a row. Each voxel
   gets the flat index of its local root, the first voxel of its component within the tile.
2. *Borders*: the bits tell which local roots of neighbouring tiles are to be united, too. A root is its component's
   first voxel, so the order of unions does not matter.
3. *Rank*: a bit for each voxel tells the local roots, another the roots among them. The roots before a word of bits are
   counted, which makes a root's number; each local root gets its root's.
4. *Numbers*: each voxel gets its local root's.

As in `lpa3d.kernels.label`, the bits also tell which links others imply. The class map is read once (and again from
caches), the labels are written twice and read once.

Memory above the class map and the labels (4 bytes per voxel, or 8): 0.625 bytes per voxel, or 0.875, for rows that are
multiples of 32 voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .device import BLOCK, Device, Kernel, ceil_div

__all__ = ["Components", "find_components", "find_runs", "label"]

TILE_Z, TILE_Y = 8, 16
"""Rows of 32 voxels in a tile: 18 KiB of shared memory, of which a recent multiprocessor has 228."""

TILE_THREADS = 128
"""Threads that label a tile: one for each row."""

WARP = 32


def _scanned_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the shape with a width of one moved out of the way: a row then has many voxels."""
    depth, height, width = shape
    return (depth, 1, height) if width == 1 else (depth, height, width)


def _kernels(device: Device, volume: Any, labels: Any, connectivity: int) -> Callable[[str], Kernel]:
    return partial(
        device.kernel, "label", VOLUME=volume.dtype, LABEL=labels.dtype, CONNECTIVITY=connectivity,
        TILE_Z=TILE_Z, TILE_Y=TILE_Y, TILE_THREADS=TILE_THREADS,
    )  # fmt: skip


def _number_components(device: Device, volume: Any, connectivity: int, labels: Any) -> int:
    """Write the number of each voxel's component, 0 on the background, to `labels`; return how many there are."""
    if labels.size == 0:
        return 0
    xp, kernel = device.xp, _kernels(device, volume, labels, connectivity)
    shape = depth, height, width = _scanned_shape(volume.shape)
    rows = depth * height
    words = rows * ceil_div(width, WARP)
    tiles = ceil_div(depth, TILE_Z) * ceil_div(height, TILE_Y) * ceil_div(width, WARP)
    solid, roots = xp.empty(words, np.uint32), xp.empty(words, np.uint32)
    links = xp.empty((3, words), np.uint32)
    kernel("label_tiles")(tiles, TILE_THREADS, volume, *shape, labels, solid, links, roots)
    kernel("unite_tiles")(ceil_div(words, BLOCK), BLOCK, volume, solid, links, *shape, labels)
    del links

    tops = xp.empty(words, np.uint32)
    counts = xp.empty(words, labels.dtype)
    kernel("flatten_roots")(ceil_div(words, BLOCK), BLOCK, roots, rows, width, labels, tops, counts)
    ends = xp.cumsum(counts, dtype=labels.dtype)
    del counts
    kernel("rank_roots")(ceil_div(words, BLOCK), BLOCK, roots, tops, ends, rows, width, labels)
    del tops
    kernel("write_numbers")(tiles, BLOCK, solid, roots, *shape, labels)
    return int(ends[-1])


def label(device: Device, volume: Any, connectivity: int, dtype: npt.DTypeLike, out: Any = None) -> Any:
    """Return the labels of the components of a canonical class map, uint32 or uint64; `out` if that is given."""
    here = device.bring(volume)
    labels = out if device.holds(out) else device.xp.empty(here.shape, dtype)
    _number_components(device, here, connectivity, labels)
    if out is None:
        return device.give(labels, volume)
    device.give_back(labels, out)
    return out


class Components:
    """The components of a class map as the number of each voxel: 4 bytes per voxel, or 8.

    The methods are those of `lpa3d.arrays.components.Components`; arrays and flags are on the device.

    Attributes
    ----------
    numbers : device array of uint32 or uint64, the volume's shape
        0 on the background, else the component's number, 1..count.
    count : int
        Number of components.
    """

    def __init__(self, device: Device, numbers: Any, count: int) -> None:
        self.device, self.numbers, self.count = device, numbers, count

    def write_labels(self, out: Any, *, clear: bool, values: Any = None) -> None:
        """Write each voxel's component number to `out`, or ``values[number - 1]``; the background only if `clear`, as
        0."""
        table = self.device.xp.empty(0, out.dtype) if values is None else values.astype(out.dtype, copy=False)
        self._run("fill_numbers", table, out.size, values is not None, clear, out, VALUE=out.dtype)

    def hold_seed(self, labels: Any, seeds: Any) -> Any:
        """Return, at index ``number - 1``, whether a component has a voxel whose seed equals its label."""
        return self._flag("flag_equal", labels, seeds, VALUE=labels.dtype, SEED=seeds.dtype)

    def flag_seeds(self, seeds: Any) -> Any:
        """Return, at index ``number - 1``, whether a component holds a seed: a voxel where `seeds` is not 0."""
        return self._flag("flag_seeded", seeds, SEED=seeds.dtype)

    def clear(self, labels: Any, keep: Any) -> None:
        """Set `labels` to 0, in place, in every component whose ``keep[number - 1]`` is False."""
        self._run("clear_components", keep.view(np.uint8), labels.size, labels, VALUE=labels.dtype)

    def _flag(self, name: str, *arrays: Any, **types: Any) -> Any:
        flags = self.device.xp.zeros(self.count, np.uint8)
        self._run(name, *arrays, self.numbers.size, flags, **types)
        return flags.view(np.bool_)

    def _run(self, name: str, *args: Any, **types: Any) -> None:
        defines = {"LABEL": self.numbers.dtype, "VALUE": np.uint8, "SEED": np.uint8, **types}
        kernel = self.device.kernel("components", name, **defines)
        kernel(ceil_div(self.numbers.size, BLOCK), BLOCK, self.numbers, *args)


def find_components(device: Device, volume: Any, connectivity: int, dtype: npt.DTypeLike) -> Components:
    """Find the components of a canonical class map on the device; `dtype` is that of `label`."""
    numbers = device.xp.empty(volume.shape, dtype)
    return Components(device, numbers, _number_components(device, volume, connectivity, numbers))


def find_runs(
    device: Device, volume: Any, connectivity: int, dtype: npt.DTypeLike
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[Any], int]:
    """Find the components of a canonical class map as runs, on the host.

    Returns the bitmaps of `arrays.components.Slab` for all rows, (rows, W), the component of each run, counted from 0
    in raster order, of `dtype`, and the number of components. A width of one moves out of the way.
    """
    xp, here = device.xp, device.bring(volume)
    labels = xp.empty(here.shape, dtype)
    count = _number_components(device, here, connectivity, labels)
    depth, height, width = _scanned_shape(here.shape)
    rows = depth * height
    shape = rows, ceil_div(width, 64)
    words = rows * shape[1]
    changes, inside = xp.empty(shape, np.uint64), xp.empty(shape, np.uint64)
    counts = xp.empty(words, dtype)
    kernel = _kernels(device, here, labels, connectivity)
    kernel("find_runs")(ceil_div(words * WARP, BLOCK), BLOCK, here, rows, width, changes, inside, counts)
    ends = xp.cumsum(counts, dtype=dtype)
    del here, counts
    runs = xp.empty(int(ends[-1]) if words else 0, dtype)
    kernel("list_runs")(ceil_div(words, BLOCK), BLOCK, labels, changes, inside, ends, rows, width, runs)
    return device.fetch(changes), device.fetch(inside), device.fetch(runs), count
