"""Reattachment on a whole volume: what holds no seed is cleared and filled from what does.

One round is enough, since what is left holds every seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.backend import is_on_device
from ..arrays.components import find_components
from ..arrays.threads import num_threads, run_all, split
from ..kernels.reattachment import clear_confidence
from .geodesic import Labels, Links, spread

__all__ = ["clear_unseeded", "reattach"]


def clear_unseeded(labels: Labels, seeds: npt.NDArray[Any], connectivity: int) -> int:
    """Clear, in place, every component of equal label that holds no seed; return how many components that were.

    A labelled voxel is a seed where `seeds` is not 0; its label is the seed's. A label is on one class only, so
    neighbours of equal label are linked.
    """
    components = find_components(labels, connectivity)
    keep = components.flag_seeds(seeds)
    cleared: int = components.count - int(keep.sum())
    if cleared:
        components.clear(labels, keep)
    return cleared


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
    """Clear, in place, every component of equal label that holds no seed, and fill it from the rest.

    `links` lead to labelled voxels only (see `cut_links`). What is filled gets confidence 0. Returns how many
    components were filled.
    """
    cleared = clear_unseeded(labels, seeds, connectivity)
    if cleared:
        if confidence is not None and is_on_device(labels):
            confidence[(labels == 0) & (links != 0)] = 0
        elif confidence is not None:
            flat, flat_links, flat_confidence = labels.reshape(-1), links.reshape(-1), confidence.reshape(-1)
            run_all(
                lambda part: clear_confidence(flat, flat_links, *part, flat_confidence),
                split(flat.size, num_threads()),
            )
        spread(labels, links, weights, connectivity, cost=cost, refill=True)
    return cleared
