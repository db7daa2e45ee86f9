"""The geodesic stage on a whole volume: links, the spread of labels along them, and what holds no seed.

Arrays are canonical: ``(Z, Y, X)``, C order. Labels are uint32 ranks, 0 for none, and are changed in place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ._neighbors import UNIT, neighbor_offsets
from ._threads import num_threads, run_all, split
from .errors import RangeError
from .kernels import geodesic as kernels
from .kernels.links import cut_slab, link_slab

__all__ = ["LIMIT", "clear_unseeded", "cut_links", "flat_strides", "link_voxels", "spread"]

LIMIT = 2**32 - 2
"""The largest distance that a key can hold, in units of 1/64 of the smallest voxel side."""

BUCKETS = 4096

NO_COST = np.empty(0, dtype=np.uint16)

Links = npt.NDArray[np.uint8] | npt.NDArray[np.uint32]
Labels = npt.NDArray[np.uint32]


def flat_strides(shape: tuple[int, ...], connectivity: int) -> npt.NDArray[np.int64]:
    """Return by how much each neighbour's flat index differs."""
    _, ny, nx = shape
    return neighbor_offsets(connectivity) @ np.array([ny * nx, nx, 1], dtype=np.int64)


def flat_dtype(size: int) -> type[np.uint32] | type[np.int64]:
    """Return the narrowest of the two dtypes in which flat indices are queued."""
    return np.uint32 if size <= 2**32 else np.int64


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
) -> None:
    """Give each voxel, in place, the label of the smallest (path weight, label) over all labelled voxels and paths.

    Labelled voxels are at distance 0. A path's weight is the sum over its links of ``weights[k]``, with `cost` of
    ``max(1, (weights[k] * (cost[a] + cost[b]) + 16) >> 5)``. Voxels further than `limit`, in the same unit, stay
    unlabelled.

    Raises
    ------
    RangeError
        Without `limit`, if a voxel can be reached only by paths that weigh more than `LIMIT`.
    """
    strides = flat_strides(labels.shape, connectivity)
    flat = labels.reshape(-1)
    flat_links = links.reshape(-1)
    end = LIMIT if limit is None else min(limit, LIMIT)
    index = flat_dtype(flat.size)
    queue = np.empty(flat.size, dtype=index)
    count = kernels.find_frontier(flat, flat_links, strides, 0, flat.size, queue)
    if count == 0:
        return
    if connectivity == 6 and cost is None and bool((weights == UNIT).all()):
        beyond = kernels.spread_levels(strides, end // UNIT, count, flat_links, flat, queue)
        kernels.clear_state(0, flat.size, flat_links)
    else:
        most = int(weights.max())
        if cost is not None:
            most = max(1, (most * 2 * int(cost.max()) + 16) >> 5)
        shift = max(UNIT, -(-min(most, end) // BUCKETS) - 1).bit_length() - 1
        near = np.zeros(flat.size, dtype=np.uint32)
        kernels.mark_sources(flat, 0, flat.size, near)
        flat_cost = NO_COST if cost is None else cost.reshape(-1)
        beyond = kernels.spread_paths(
            flat_links, strides, weights, flat_cost, end, shift, queue[:count].copy(), near, flat
        )
    if beyond and limit is None:
        gap = kernels.find_gap(flat, flat_links, strides)
        if gap >= 0:
            z, y, x = (int(i) for i in np.unravel_index(gap, labels.shape))
            raise RangeError(
                f"voxel ({z}, {y}, {x}) can be reached only by paths longer than 2**32 - 2 units (the smallest voxel "
                f"side is {UNIT}): lower the cost, or pass max_distance"
            )


def clear_unseeded(labels: Labels, links: Links, seeds: npt.NDArray[Any], connectivity: int) -> int:
    """Clear, in place, every component of linked voxels of equal label that holds no seed voxel; return its voxels.

    A voxel is a seed where `seeds` is not 0 (and its label, then, is the seed's).
    """
    strides = flat_strides(labels.shape, connectivity)
    kept = np.zeros(labels.size, dtype=np.uint8)
    queue = np.empty(labels.size, dtype=flat_dtype(labels.size))
    return int(kernels.flood_labels(seeds.reshape(-1), labels.reshape(-1), strides, links.reshape(-1), kept, queue))
