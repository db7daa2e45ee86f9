"""The geodesic stage on a whole volume: links, and the spread of labels along them.

Arrays are canonical: ``(Z, Y, X)``, C order. Labels are uint32 ranks, 0 for none, and are changed in place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ._levels import Fronts, flat_dtype, flat_strides
from ._neighbors import UNIT, neighbor_offsets
from ._threads import num_threads, run_all, split
from .errors import RangeError
from .kernels import geodesic as kernels
from .kernels.levels import clear_marks, find_frontier
from .kernels.links import cut_slab, link_slab

__all__ = ["LIMIT", "cut_links", "link_voxels", "spread"]

LIMIT = 2**32 - 2
"""The largest distance that a key can hold, in units of 1/64 of the smallest voxel side."""

BUCKETS = 4096
"""Buckets of the queue are as wide as the smallest step, or wider, so that there are about so many at most."""

TILE = (64, 64, 128)
"""Voxels of a tile: its keys, labels and links fit into the cache that cores share."""

NO_COST = np.empty((0, 0, 0), dtype=np.uint16)

Links = npt.NDArray[np.uint8] | npt.NDArray[np.uint32]
Labels = npt.NDArray[np.uint32]


def link_voxels(volume: npt.NDArray[Any], connectivity: int) -> Links:
    """Return for each voxel the bit mask of its linked neighbours: bit k for offset k of `neighbor_offsets`.

    uint8 for 6 neighbours, whose two high bits stay 0, else uint32; 0 on background.
    """
    links: Links = np.zeros(volume.shape, dtype=np.uint8 if connectivity == 6 else np.uint32)
    offsets = neighbor_offsets(connectivity)
    run_all(lambda part: link_slab(volume, offsets, *part, links), split(volume.shape[0], num_threads()))
    return links


def cut_links(links: Links, labels: Labels, connectivity: int) -> None:
    """Remove, in place, every link with an unlabelled voxel at either end."""
    strides = flat_strides(links.shape, connectivity)
    run_all(
        lambda part: cut_slab(labels.reshape(-1), strides, *part, links.reshape(-1)), split(links.size, num_threads())
    )


def spread(
    labels: Labels,
    links: Links,
    weights: npt.NDArray[np.int64],
    connectivity: int,
    *,
    cost: npt.NDArray[np.uint16] | None = None,
    limit: int | None = None,
    refill: bool = False,
) -> None:
    """Give each voxel, in place, the label of the smallest (path weight, label) over all labelled voxels and paths.

    Labelled voxels are at distance 0. A path's weight is the sum over its links of ``weights[k]``, with `cost` of
    ``max(1, (weights[k] * (cost[a] + cost[b]) + 16) >> 5)``. Voxels further than `limit`, in the same unit, stay
    unlabelled. `refill` says that little is unlabelled: the result is the same.

    Raises
    ------
    RangeError
        Without `limit`, if a voxel can be reached only by paths that weigh more than `LIMIT`.
    """
    if labels.size == 0:
        return
    end = LIMIT if limit is None else min(limit, LIMIT)
    if connectivity == 6 and cost is None and bool((weights == UNIT).all()):
        beyond = _spread_levels(labels, links, end // UNIT)
    else:
        beyond = _spread_paths(labels, links, weights, connectivity, cost, end, refill)
    if beyond and limit is None:
        gap = kernels.find_gap(labels.reshape(-1), links.reshape(-1), flat_strides(labels.shape, connectivity))
        if gap >= 0:
            z, y, x = (int(i) for i in np.unravel_index(gap, labels.shape))
            raise RangeError(
                f"voxel ({z}, {y}, {x}) can be reached only by paths longer than 2**32 - 2 units (the smallest voxel "
                f"side is {UNIT}): lower the cost, or pass max_distance"
            )


def _spread_levels(labels: Labels, links: Links, levels: int) -> bool:
    """Spread along links of equal weight, step by step; return whether the last level may go on."""
    flat, flat_links = labels.reshape(-1), links.reshape(-1)
    fronts = Fronts(labels.shape, 6)
    fronts.start(lambda lo, hi, queue: find_frontier(flat, flat_links, fronts.strides, lo, hi, queue))
    beyond = fronts.step(flat_links, flat, levels, by_level=False)
    run_all(lambda part: clear_marks(*part, flat_links), split(flat.size, num_threads()))
    return beyond


def _spread_paths(
    labels: Labels,
    links: Links,
    weights: npt.NDArray[np.int64],
    connectivity: int,
    cost: npt.NDArray[np.uint16] | None,
    end: int,
    refill: bool,
) -> bool:
    """Spread along weighted links; return whether there was a path longer than `end`.

    1. Tiles that fit into a cache, each as if alone, in parallel.
    2. Slabs, in parallel: the voxels at the tiles' faces that better a neighbour's key are relaxed again.
    3. The volume: the same where slabs meet.

    A key only ever improves, and the last stage leaves none that can: the result is the one of a single stage.
    """
    offsets, strides = neighbor_offsets(connectivity), flat_strides(labels.shape, connectivity)
    most = int(weights.max())
    if cost is None:
        cost = NO_COST
    else:
        most = max(1, (most * 2 * int(cost.max()) + 16) >> 5)
    most = min(most, end)
    shift = max(UNIT, -(-most // BUCKETS)).bit_length() - 1
    buckets = 2 ** ((most >> shift) + 1).bit_length()
    fresh, again = (end, shift, buckets, 1), (end, shift, buckets, 0)
    near = np.zeros(labels.shape, dtype=np.uint32)
    nz, ny, nx = labels.shape
    beyond: list[bool] = []

    def relax(span: tuple[int, int], sources: npt.NDArray[Any], scale: tuple[int, ...]) -> None:
        if sources.size:
            arrays = [array[slice(*span)].reshape(-1) for array in (cost, links, near, labels)]
            beyond.append(kernels.spread_paths(sources, scale, strides, weights, *arrays))

    def improve(span: tuple[int, int], tile: tuple[int, int, int]) -> npt.NDArray[Any]:
        found = np.empty((span[1] - span[0]) * ny * nx, dtype=flat_dtype(labels.size))
        count = kernels.find_improving(span, tile, strides, weights, cost, links, near, labels, found)
        return found[:count].copy()

    def sort(span: tuple[int, int], voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        nearness = near[slice(*span)].reshape(-1)[voxels].astype(np.int64)
        bucket = np.where(nearness == 0, 0, kernels.FURTHEST - nearness) >> shift
        # numpy sorts 16 bits by counting.
        narrow = np.uint16 if voxels.size == 0 or bucket.max() < 2**16 else np.uint32
        return voxels[np.argsort(bucket.astype(narrow), kind="stable")]

    if refill or labels.size <= TILE[0] * TILE[1] * TILE[2]:
        queue = np.empty(labels.size, dtype=flat_dtype(labels.size))
        count = find_frontier(labels.reshape(-1), links.reshape(-1), strides, 0, labels.size, queue)
        relax((0, nz), queue[:count], fresh)
        return any(beyond)

    boxes = [
        (z, min(z + TILE[0], nz), y, min(y + TILE[1], ny), x, min(x + TILE[2], nx))
        for z in range(0, nz, TILE[0])
        for y in range(0, ny, TILE[1])
        for x in range(0, nx, TILE[2])
    ]
    beyond += run_all(lambda box: kernels.spread_tile(box, fresh, offsets, weights, cost, links, near, labels), boxes)
    slabs = [(lo * TILE[0], min(hi * TILE[0], nz)) for lo, hi in split(-(-nz // TILE[0]), num_threads())]
    run_all(lambda slab: relax(slab, sort(slab, improve(slab, TILE)), again), slabs)
    plane = ny * nx
    seams = [improve((lo - 1, lo + 1), (1, 1, 1)) + flat_dtype(labels.size)((lo - 1) * plane) for lo, _ in slabs[1:]]
    if seams:
        relax((0, nz), sort((0, nz), np.concatenate(seams)), again)
    return any(beyond)
