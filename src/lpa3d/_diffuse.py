"""The diffusion stage on a whole volume, and the reattachment of what it cut off.

1. Hops: how many links each voxel is from a border between two labels. Within n sweeps only voxels less than n hops
   away can change, and one at h hops first does so in sweep h + 1.
2. A wave of planes: sweep s of plane t - 2s runs when plane t is listed, so that only about two planes per sweep are
   held at a time, whatever the size of the volume.
3. Reattachment: components without a seed are cleared, and one geodesic pass fills them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ._geodesic import NO_COST, Labels, Links, clear_unseeded, flat_dtype, flat_strides, spread
from .kernels import diffuse as kernels

__all__ = ["diffuse", "reattach"]

NO_CONFIDENCE = np.empty(0, dtype=np.uint16)

PLANE = 2**16
"""Voxels of a plane where there is one slice only."""


def diffuse(
    labels: Labels,
    links: Links,
    seeds: npt.NDArray[Any],
    conductances: npt.NDArray[np.int64],
    connectivity: int,
    sweeps: int,
    *,
    cost: npt.NDArray[np.uint16] | None = None,
    return_confidence: bool = False,
) -> npt.NDArray[np.uint16] | None:
    """Average the labels' probabilities over links for `sweeps` sweeps and write the most probable labels, in place.

    Parameters
    ----------
    labels
        Labels; 0 only where no link leads (see `cut_links`).
    links
        Masks of linked neighbours.
    seeds
        Voxels where it is not 0 keep their label.
    conductances
        Positive integer per offset. With `cost` a link conducts ``max(1, 32 * w // (cost[a] + cost[b]))``.
    sweeps
        How many averages are taken.
    cost
        Fixed-point cost, 16 for 1.
    return_confidence
        Whether to return the lead of each voxel's label over its rival, uint16; 65535 for seeds and without a rival.
    """
    strides = flat_strides(labels.shape, connectivity)
    nz, ny, nx = labels.shape
    flat = labels.reshape(-1)
    flat_links = links.reshape(-1)
    flat_seeds = seeds.reshape(-1)
    flat_cost = NO_COST if cost is None else cost.reshape(-1)
    confidence = np.full(flat.size if return_confidence else 0, 65535, dtype=np.uint16)
    if sweeps > 0 and flat.size:
        hops = np.zeros(flat.size, dtype=np.uint8)
        queue = np.empty(flat.size, dtype=flat_dtype(flat.size))
        count = kernels.find_border(flat, flat_links, strides, 0, flat.size, hops, queue)
        kernels.grow_hops(flat_links, strides, sweeps, count, hops, queue)
        del queue

        size = ny * nx if nz > 1 else max(1, PLANE // nx) * nx
        edges = [*range(0, flat.size, size), flat.size]
        planes = len(edges) - 1
        capacity = max(int(np.count_nonzero(hops[lo:hi])) for lo, hi in zip(edges, edges[1:], strict=False))
        slots = min(2 * sweeps + 4, planes)
        index = np.empty((slots, size), dtype=np.int32)
        counts = np.zeros(slots, dtype=np.int64)
        window = (
            np.empty((slots, capacity), dtype=np.int32),
            np.empty((slots, capacity), dtype=np.uint8),
            np.empty((slots, 2, capacity, kernels.SLOTS), dtype=np.uint32),
            np.empty((slots, 2, capacity, kernels.SLOTS), dtype=np.uint16),
        )
        for front in range(planes + 2 * sweeps + 2):
            if front < planes:
                here = slice(edges[front], edges[front + 1])
                counts[front % slots] = kernels.list_plane(
                    flat[here], hops[here], flat_seeds[here], index[front % slots], window, front % slots
                )
            for sweep in range(1, sweeps + 1):
                plane = front - 2 * sweep
                if 0 <= plane < planes:
                    kernels.sweep_plane(
                        plane, sweep, size, counts, flat_links, flat, strides, conductances, flat_cost, index, window
                    )
            plane = front - 2 * sweeps - 2
            if plane >= 0:
                here = slice(edges[plane], edges[plane + 1])
                kernels.store_plane(
                    window, plane % slots, counts[plane % slots], sweeps % 2, flat[here], confidence[here]
                )
    return confidence.reshape(labels.shape) if return_confidence else None


def reattach(
    labels: Labels,
    links: Links,
    seeds: npt.NDArray[Any],
    weights: npt.NDArray[np.int64],
    connectivity: int,
    *,
    cost: npt.NDArray[np.uint16] | None = None,
    confidence: npt.NDArray[np.uint16] | None = None,
) -> int:
    """Clear components of equal label that hold no seed and fill them from the others; return how many voxels.

    `links` lead to labelled voxels only (see `cut_links`). Refilled voxels get confidence 0.
    """
    before = labels != 0 if confidence is not None else None
    cleared = clear_unseeded(labels, links, seeds, connectivity)
    if cleared:
        if confidence is not None and before is not None:
            confidence[before & (labels == 0)] = 0
        spread(labels, links, weights, connectivity, cost=cost)
    return cleared
