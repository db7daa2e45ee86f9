"""The geodesic stage on a whole volume: links, and the spread of labels along them.

Arrays are canonical: ``(Z, Y, X)``, C order. Labels are uint32 ranks, 0 for none, and are changed in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..arrays.backend import find_device
from ..arrays.checks import seal
from ..arrays.neighbors import UNIT, neighbor_offsets
from ..arrays.threads import num_threads, run_all, split
from ..errors import Keyword, RangeError
from ..kernels import geodesic as kernels
from ..kernels.fronts import clear_marks, find_frontier
from ..kernels.links import cut_slab, link_slab
from .fronts import Fronts, flat_dtype, flat_strides

if TYPE_CHECKING:
    from ..cuda.geodesic import Keys as DeviceKeys

__all__ = [
    "LIMIT",
    "NO_COST",
    "Keys",
    "Labels",
    "Links",
    "cut_links",
    "has_unit_steps",
    "link_voxels",
    "make_keys",
    "range_error",
    "spread",
]

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

    uint8 for 6 neighbours, whose two high bits stay 0, else uint32; 0 on background. Where a device is in use they are
    on it, wherever `volume` is.
    """
    device = find_device(volume)
    if device is not None:
        from ..cuda import links as cuda

        made: Links = cuda.link_voxels(device, volume, connectivity)
        return made
    links: Links = np.zeros(volume.shape, dtype=np.uint8 if connectivity == 6 else np.uint32)
    offsets = neighbor_offsets(connectivity)
    sealed = seal(volume)
    run_all(lambda part: link_slab(sealed, offsets, *part, links), split(volume.shape[0], num_threads()))
    return links


def cut_links(links: Links, labels: Labels, connectivity: int) -> None:
    """Remove, in place, every link with an unlabelled voxel at either end."""
    strides = flat_strides(links.shape, connectivity)
    device = find_device(links, labels)
    if device is not None:
        from ..cuda import links as cuda

        return cuda.cut_links(device, links, labels, strides)
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
    strides = flat_strides(labels.shape, connectivity)
    device = find_device(labels, links)
    if device is not None:
        from ..cuda import geodesic as cuda

        gap = cuda.spread(device, labels, links, strides, weights, cost, end)
    else:
        if has_unit_steps(weights, connectivity, cost):
            beyond = _spread_levels(labels, links, end // UNIT)
        else:
            keys = Keys(labels, links, weights, connectivity, cost, end)
            keys.spread(refill)
            beyond = keys.beyond
        gap = kernels.find_gap(labels.reshape(-1), links.reshape(-1), strides) if beyond and limit is None else -1
    if gap >= 0 and limit is None:
        raise range_error(np.unravel_index(gap, labels.shape))


def make_keys(
    labels: Labels,
    links: Links,
    weights: npt.NDArray[np.int64],
    connectivity: int,
    cost: npt.NDArray[np.uint16] | None,
    end: int,
) -> Keys | DeviceKeys:
    """Return the `Keys` of a tile in memory; they are on a device if one is in use."""
    device = find_device(labels, links)
    if device is None:
        return Keys(labels, links, weights, connectivity, cost, end)
    from ..cuda import geodesic as cuda

    return cuda.Keys(device, labels, links, flat_strides(labels.shape, connectivity), weights, cost, end)


def has_unit_steps(weights: npt.NDArray[np.int64], connectivity: int, cost: npt.NDArray[np.uint16] | None) -> bool:
    """Return whether all links weigh `UNIT`, so that distances are numbers of steps."""
    return connectivity == 6 and cost is None and bool((weights == UNIT).all())


def range_error(voxel: Sequence[Any]) -> RangeError:
    """Return the error for a voxel whose distance is more than `LIMIT`."""
    z, y, x = (int(i) for i in voxel)
    return RangeError(
        f"voxel ({z}, {y}, {x}) can be reached only by paths longer than 2**32 - 2 units (the smallest voxel "
        f"side is {UNIT}): lower the cost, or pass ",
        Keyword("max_distance"),
    )


def _spread_levels(labels: Labels, links: Links, levels: int) -> bool:
    """Spread along links of equal weight, step by step; return whether the last level may go on."""
    flat, flat_links = labels.reshape(-1), links.reshape(-1)
    fronts = Fronts(labels.shape, 6)
    fronts.start(lambda lo, hi, queue: find_frontier(flat, flat_links, fronts.strides, lo, hi, queue))
    beyond = fronts.step(flat_links, flat, levels, by_level=False)
    run_all(lambda part: clear_marks(*part, flat_links), split(flat.size, num_threads()))
    return beyond


class Keys:
    """The keys (distance, label) of a volume, or of a tile, which only ever improve.

    Parameters
    ----------
    labels, links, weights, connectivity, cost
        As for `spread`; `labels` is not empty.
    end
        The largest distance that a key may have.

    Attributes
    ----------
    near : ndarray of uint32
        `kernels.FURTHEST` less the distance; 0 where there is no label, and for sources.
    beyond : bool
        Whether there was a path longer than `end`.
    """

    def __init__(
        self,
        labels: Labels,
        links: Links,
        weights: npt.NDArray[np.int64],
        connectivity: int,
        cost: npt.NDArray[np.uint16] | None,
        end: int,
    ) -> None:
        self.labels, self.links, self.weights = labels, links, weights
        self.offsets, self.strides = neighbor_offsets(connectivity), flat_strides(labels.shape, connectivity)
        most = int(weights.max())
        if cost is not None:
            most = max(1, (most * 2 * int(cost.max()) + 16) >> 5)
        self.cost = NO_COST if cost is None else cost
        most = min(most, end)
        self.shift = max(UNIT, -(-most // BUCKETS)).bit_length() - 1
        self.scale = (end, self.shift, 2 ** ((most >> self.shift) + 1).bit_length())
        self.near = np.zeros(labels.shape, dtype=np.uint32)
        self.beyond = False

    def spread(self, refill: bool) -> None:
        """Bring all keys to their fixpoint, on all threads. `refill` says that little is unlabelled.

        1. Tiles that fit into a cache, each as if alone, in parallel.
        2. Slabs, in parallel: the voxels at the tiles' faces that better a neighbour's key are relaxed again.
        3. The volume: the same where slabs meet.

        The last stage leaves no key that can improve: the result is the one of a single stage.
        """
        nz, ny, nx = self.labels.shape
        if refill or self.labels.size <= TILE[0] * TILE[1] * TILE[2]:
            self._relax((0, nz), self._find_frontier(), fresh=True)
            return
        boxes = [
            (z, min(z + TILE[0], nz), y, min(y + TILE[1], ny), x, min(x + TILE[2], nx))
            for z in range(0, nz, TILE[0])
            for y in range(0, ny, TILE[1])
            for x in range(0, nx, TILE[2])
        ]
        arrays = self.cost, self.links, self.near, self.labels
        scale = (*self.scale, 1)
        found = run_all(lambda box: kernels.spread_tile(box, scale, self.offsets, self.weights, *arrays), boxes)
        self.beyond |= any(found)
        slabs = [(lo * TILE[0], min(hi * TILE[0], nz)) for lo, hi in split(-(-nz // TILE[0]), num_threads())]
        run_all(lambda slab: self._relax(slab, self._find_improving(slab, TILE)), slabs)
        seams = [
            self._find_improving((lo - 1, lo + 1), (1, 1, 1)) + flat_dtype(self.labels.size)((lo - 1) * ny * nx)
            for lo, _ in slabs[1:]
        ]
        if seams:
            self.improve(np.concatenate(seams))

    def spread_steps(self) -> None:
        """Bring all keys to their fixpoint where `has_unit_steps`, on this thread."""
        flat, links, near = self.labels.reshape(-1), self.links.reshape(-1), self.near.reshape(-1)
        queue = np.empty(flat.size, dtype=flat_dtype(flat.size))
        count = find_frontier(flat, links, self.strides, 0, flat.size, queue)
        self.beyond |= kernels.spread_steps(count, self.scale[0] // UNIT, UNIT, self.strides, links, near, flat, queue)

    def improve(self, voxels: npt.NDArray[Any]) -> None:
        """Bring all keys to their fixpoint, on this thread, where those of `voxels` (flat) alone may better others."""
        self._relax((0, len(self.labels)), voxels.astype(flat_dtype(self.labels.size), copy=False))

    def find_gap(self) -> int:
        """Return the first unlabelled voxel (flat) with a labelled linked neighbour, -1 where there is none."""
        return int(kernels.find_gap(self.labels.reshape(-1), self.links.reshape(-1), self.strides))

    def _relax(self, span: tuple[int, int], voxels: npt.NDArray[Any], fresh: bool = False) -> None:
        if voxels.size == 0:
            return
        cost, links, near, labels = (
            array[slice(*span)].reshape(-1) for array in (self.cost, self.links, self.near, self.labels)
        )
        if not fresh:
            nearness = near[voxels].astype(np.int64)
            bucket = np.where(nearness == 0, 0, kernels.FURTHEST - nearness) >> self.shift
            # numpy sorts 16 bits by counting.
            narrow = np.uint16 if bucket.max() < 2**16 else np.uint32
            voxels = voxels[np.argsort(bucket.astype(narrow), kind="stable")]
        scale = (*self.scale, int(fresh))
        if kernels.spread_paths(voxels, scale, self.strides, self.weights, cost, links, near, labels):
            self.beyond = True

    def _find_frontier(self) -> npt.NDArray[Any]:
        labels, links = self.labels.reshape(-1), self.links.reshape(-1)
        queue = np.empty(labels.size, dtype=flat_dtype(labels.size))
        return queue[: find_frontier(labels, links, self.strides, 0, labels.size, queue)]

    def _find_improving(self, span: tuple[int, int], tile: tuple[int, int, int]) -> npt.NDArray[Any]:
        _, ny, nx = self.labels.shape
        found = np.empty((span[1] - span[0]) * ny * nx, dtype=flat_dtype(self.labels.size))
        arrays = self.cost, self.links, self.near, self.labels
        count = kernels.find_improving(span, tile, self.strides, self.weights, *arrays, found)
        return found[:count].copy()
