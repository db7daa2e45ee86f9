"""How far apart the surfaces of matched objects are, tile by tile.

Stages
------
1. *List* (every tile): the voxels of all matched objects that are on their surfaces, as far as the tile can tell, and
   those that may be, next to another tile. They are kept by *bucket*: some pairs that are close together, or a large
   one, so that every voxel is read and listed once, whatever the boxes of the objects.
2. *Measure* (every bucket): an open voxel is on the surface unless its neighbours in other tiles are listed, too.
   Then, as in memory, the distances of each pair. A large pair is worked out alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.checks import as_bits, seal
from ..arrays.overlap import Overlaps
from ..arrays.threads import num_threads
from ..evaluation.classified import Sides
from ..evaluation.surfaces import measure_lists
from ..kernels.overlap import VOID
from ..kernels.relabel import index_ids
from ..kernels.surfaces import list_surfaces
from .driver.grid import Box, Grid
from .driver.run import Run
from .driver.scratch import Scratch
from .driver.stages import Stage

__all__ = ["measure_surfaces", "surface_stages"]

BUCKET = 2**22
"""Voxels of the objects of a bucket; a pair of more has one of its own."""

LARGE = 2**24
"""Voxels of both objects from which on a pair is worked out by the driver, so that only one is in memory at a time."""

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Context:
    grid: Grid
    scratch: Scratch
    read: Callable[[int], Sides]
    spacing: tuple[float, float, float]
    pooled: bool


def surface_stages(instances: Sequence[str]) -> tuple[Stage, ...]:
    """Return the stages of `measure_surfaces`, given the areas that reading instances reads."""
    listed = ("surfaces/buckets", "surfaces/tiles")
    return (
        Stage("surfaces: pairs", writes=("surfaces/ids", "surfaces/buckets")),
        Stage("surfaces: list", reads=(*instances, "surfaces/ids"), writes=("surfaces/tiles",)),
        Stage("surfaces: measure", reads=listed, keeps=("surfaces/found",)),
        Stage("surfaces: large", reads=listed, keeps=("surfaces/found",), many=True),
    )


def measure_surfaces(
    run: Run,
    read: Callable[[int], Sides],
    overlaps: Overlaps,
    pairs: Ids,
    boxes: Ids,
    spacing: tuple[float, float, float],
    *,
    pooled: bool,
) -> Floats:
    """Return what `lpa3d.evaluation.surfaces.surface_distances` does.

    Parameters
    ----------
    run : Run
    read : callable
        Returns the instances of a tile; picklable.
    overlaps : Overlaps
        Tells how large objects are.
    pairs : (n, 2) int64
        No id twice on one side.
    boxes : (n, 2, 2, 3) int64
        A box ``(start, stop)`` for each id.
    spacing : tuple of float
    pooled : bool
    """
    if not len(pairs):
        return np.empty((0, 3))
    order, starts, large = _fill_buckets(run.grid, overlaps, pairs, boxes)
    run.once("surfaces: pairs", _keep_pairs, run.scratch, run.grid, pairs[order], boxes[order], starts)
    context = _Context(run.grid, run.scratch, read, spacing, pooled)
    run.map("surfaces: list", _list_tile, context)
    if not large.all():
        run.map("surfaces: measure", _measure_bucket, context, np.flatnonzero(~large))
    for bucket in np.flatnonzero(large).tolist():
        run.once(f"surfaces: large {bucket}", _measure_large, context, bucket)
    found = [run.scratch.get(f"surfaces/found/{bucket}", "found")["found"] for bucket in range(len(large))]
    result = np.empty((len(pairs), 3))
    result[order] = np.concatenate(found)
    return result


def _fill_buckets(grid: Grid, overlaps: Overlaps, pairs: Ids, boxes: Ids) -> tuple[Ids, Ids, npt.NDArray[np.bool_]]:
    """Return an order of the pairs, where each bucket starts in it (and the end), and whether its pair is large."""
    voxels = _count_voxels(overlaps, 0, pairs[:, 0]) + _count_voxels(overlaps, 1, pairs[:, 1])
    first = boxes[:, :, 0].min(axis=1) // np.array(grid.tile)
    order = np.lexsort((pairs[:, 0], *first.T[::-1]))
    starts, filled, last = [0], 0, -1
    for k, row in enumerate(order.tolist()):
        tile = grid.index(first[row].tolist())
        size = int(voxels[row])
        if k > starts[-1] and (filled + size > BUCKET or (tile != last and filled > BUCKET // 16)):
            starts.append(k)
            filled = 0
        filled += size
        last = tile
    sizes = np.add.reduceat(voxels[order], starts)
    return order, np.array([*starts, len(order)]), (sizes >= LARGE) & (np.diff([*starts, len(order)]) == 1)


def _count_voxels(overlaps: Overlaps, side: int, ids: Ids) -> Ids:
    """Return the voxels that count of some ids of a side."""
    rows = (overlaps.pairs[:, 0] != VOID) & (overlaps.pairs[:, side] > 0)
    known, places = np.unique(overlaps.pairs[rows, side], return_inverse=True)
    counts = np.bincount(places, overlaps.voxels[rows], len(known)).astype(np.int64)
    return counts[np.searchsorted(known, ids)]


def _keep_pairs(scratch: Scratch, grid: Grid, pairs: Ids, boxes: Ids, starts: Ids) -> None:
    """Keep which pairs there are, bucket by bucket, and the tiles that each bucket meets."""
    bucket = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    for side in range(2):
        order = np.argsort(pairs[:, side])
        local = order - starts[bucket[order]]
        scratch.put(f"surfaces/ids/{side}", ids=pairs[order, side], bucket=bucket[order], local=local)
    for k in range(len(starts) - 1):
        tiles: set[int] = set()
        for low, high in boxes[starts[k] : starts[k + 1]].reshape(-1, 2, 3).tolist():
            tiles.update(grid.tiles_in(Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))))
        count = np.array([starts[k + 1] - starts[k]])
        scratch.put(f"surfaces/buckets/{k}", tiles=np.array(sorted(tiles)), count=count)


def _list_tile(context: _Context, tile: int) -> None:
    """List the voxels of a tile that may be on the surface of a matched object, by bucket."""
    grid, scratch = context.grid, context.scratch
    sides = context.read(tile)
    ignored = seal(np.empty((0, 0, 0), np.bool_) if sides.ignore is None else sides.ignore)
    beyond = np.empty(6, np.int64)
    for axis in range(3):
        for end in range(2):
            step = [0, 0, 0]
            step[axis] = 2 * end - 1
            image = 2 if axis == 0 and grid.shape[0] == 1 else 0
            beyond[2 * axis + end] = 1 if grid.neighbor(tile, step) >= 0 else image
    kept: dict[str, npt.NDArray[Any]] = {}
    for side, array in enumerate((sides.reference, sides.prediction)):
        known = scratch.get(f"surfaces/ids/{side}")
        labels = seal(as_bits(array))
        flat, of, certain = _list(labels, ignored, known["ids"], beyond)
        buckets = known["bucket"][of]
        order = np.lexsort((of, buckets))
        buckets, flat, of, certain = buckets[order], flat[order], of[order], certain[order]
        rows = np.stack([flat, 2 * known["local"][of] + certain])
        present, starts = np.unique(buckets, return_index=True)
        for bucket, part in zip(present.tolist(), np.split(rows, starts[1:], axis=1), strict=False):
            kept[f"{side} {bucket}"] = part
    scratch.put(f"surfaces/tiles/{tile}", **kept)


def _list(
    labels: npt.NDArray[Any], ignored: npt.NDArray[np.bool_], ids: Ids, beyond: Ids
) -> tuple[Ids, Ids, npt.NDArray[np.bool_]]:
    """Return what the kernel lists, with as much room as it needs."""
    slots = index_ids(ids)
    room = labels.size // 8
    while True:
        flat, of, certain = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.bool_)
        found = int(list_surfaces(labels, ignored, slots, ids, beyond, flat, of, certain))
        if found <= room:
            return flat[:found], of[:found], certain[:found]
        room = found


def _measure_bucket(context: _Context, bucket: int) -> None:
    """Measure the pairs of a bucket."""
    _measure(context, bucket, 1)


def _measure_large(context: _Context, bucket: int) -> None:
    """Measure a large pair with all threads."""
    _measure(context, bucket, num_threads())


def _measure(context: _Context, bucket: int, workers: int) -> None:
    scratch = context.scratch
    about = scratch.get(f"surfaces/buckets/{bucket}")
    found = np.empty((int(about["count"][0]), 3))
    steps = np.array(context.spacing, np.float64)
    lists = [_gather(context, bucket, side, about["tiles"].tolist(), len(found)) for side in range(2)]
    for k in range(len(found)):
        found[k] = measure_lists(lists[0][k], lists[1][k], steps, workers, context.pooled)
    scratch.put(f"surfaces/found/{bucket}", found=found)


def _gather(context: _Context, bucket: int, side: int, tiles: list[int], count: int) -> list[Ids]:
    """Return the surface voxels ``(n, 3)`` of each pair's object of one side, in raster order."""
    grid = context.grid
    _, height, width = grid.shape
    places, owners = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    name = f"{side} {bucket}"
    for tile in tiles:
        try:
            flat, owner = context.scratch.get(f"surfaces/tiles/{tile}", name)[name]
        except KeyError:
            # The box of an object meets tiles that the object does not; a tile that is missing is no KeyError.
            continue
        box = grid.box(tile)
        z, y, x = (at + lo for at, lo in zip(np.unravel_index(flat, box.shape), box.lo, strict=True))
        places.append((z * height + y) * width + x)
        owners.append(owner)
    place, owner = np.concatenate(places), np.concatenate(owners)
    order = np.lexsort((place, owner >> 1))
    place, owner = place[order], owner[order]
    starts = np.searchsorted(owner >> 1, np.arange(count + 1))
    result = []
    for start, stop in itertools.pairwise(starts.tolist()):
        listed, certain = place[start:stop], (owner[start:stop] & 1).astype(np.bool_)
        listed = listed[certain | _is_exposed(grid, listed, certain)]
        result.append(np.stack(np.unravel_index(listed, grid.shape), axis=1).astype(np.int64, copy=False))
    return result


def _is_exposed(grid: Grid, listed: Ids, certain: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return which voxels of one object, listed in raster order and not certain, have a neighbour outside it."""
    exposed = np.zeros(len(listed), np.bool_)
    unknown = np.flatnonzero(~certain)
    if not len(unknown):
        return exposed
    places = np.unravel_index(listed[unknown], grid.shape)
    strides = (grid.shape[1] * grid.shape[2], grid.shape[2], 1)
    for at, side, length, stride in zip(places, grid.tile, grid.shape, strides, strict=True):
        for step in (-1, 1):
            # Neighbours in the same tile belong to the object, and what lies beyond the volume was known.
            other = at + step
            leaves = (at // side != other // side) & (other >= 0) & (other < length)
            rows = unknown[leaves]
            wanted = listed[rows] + step * stride
            found = np.minimum(np.searchsorted(listed, wanted), len(listed) - 1)
            exposed[rows[listed[found] != wanted]] = True
    return exposed
