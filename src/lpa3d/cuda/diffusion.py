"""The diffusion stage on a device.

1. Hops: levels of a breadth-first search from the borders between labels. Within n sweeps only voxels less than n hops
   away can change, and one at h hops first does so in sweep h + 1.
2. These voxels are listed, in the order of the volume. A bit for each voxel, and a count for each 32, tell the place of
   a voxel in the list.
3. Each sweep reads the labels and probabilities of the list from one side and writes the other. It passes over voxels
   that it cannot change yet; on vesicles three in four threads have work. In order of hops all would, but neighbours
   would lie apart in memory.

Memory above the arguments, in bytes: 1.4 per voxel, 0.25 once the voxels are listed, and 29 per listed voxel; of
volumes of 2**32 voxels or more 1.6, 0.4 and 33.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .device import BLOCK, Device, Kernel, ceil_div

__all__ = ["diffuse"]

NARROW = 2**32
"""Volumes of fewer voxels have flat indices of 32 bits."""

WORD = 8
"""Voxels whose hops one thread looks at."""

BITS = 32
"""Voxels of a word of bits."""


def diffuse(
    device: Device,
    labels: Any,
    links: Any,
    seeds: Any,
    strides: npt.NDArray[np.int64],
    conductances: npt.NDArray[np.int64],
    groups: Iterable[tuple[int, npt.NDArray[np.bool_]]],
    *,
    cost: Any = None,
    return_confidence: bool = False,
) -> Any:
    """Do what `lpa3d.propagation.diffusion.diffuse` does.

    `strides` are the differences of the flat index to the neighbours. Each of the `groups` is a number of sweeps, and a
    table of the labels that it is for; all if it is empty.
    """
    xp = device.xp
    size = labels.size
    here, links, seeds = (device.bring(array) for array in (labels, links, seeds))
    costs = xp.empty(0, np.uint16) if cost is None else device.bring(cost)
    steps, weights = device.bring(strides), device.bring(conductances.astype(np.uint32))
    index = np.dtype(np.uint32 if size < NARROW else np.int64)
    kernel = partial(
        device.kernel, "diffusion",
        CONNECTIVITY=len(strides), LINKS=links.dtype, SEED=seeds.dtype, INDEX=index, COST=cost is not None,
    )  # fmt: skip
    confidence = xp.full(labels.shape, 65535, dtype=np.uint16) if return_confidence else None
    for turns, chosen in groups:
        hops = _count_hops(device, kernel, here, links, steps, chosen, turns)
        words = hops.size // BITS
        bits = xp.empty(words, np.uint32)
        counts = xp.empty(words, index)
        kernel("count_listed")(ceil_div(hops.size, BLOCK), BLOCK, hops, words, bits, counts)
        ends = xp.cumsum(counts, dtype=index)
        del counts
        count = int(ends[-1])

        voxels = xp.empty(count, index)
        depths = xp.empty(count, np.uint8)
        names = xp.empty((2, count), np.uint64)
        odds = xp.empty((2, count), np.uint32)
        kernel("list_voxels")(
            ceil_div(size, BLOCK), BLOCK, here, seeds, hops, bits, ends, size, count, voxels, depths, names, odds
        )
        del hops
        grid = ceil_div(count, BLOCK)
        average = kernel("average_list")
        for sweep in range(1, turns + 1):
            new = sweep % 2
            average(
                grid, BLOCK, count, sweep, voxels, depths, bits, ends, here, links, costs, steps, weights,
                names[1 - new], odds[1 - new], names[new], odds[new],
            )  # fmt: skip
        last = turns % 2
        kernel("store_labels")(grid, BLOCK, count, voxels, names[last], odds[last], here)
        if confidence is not None:
            kernel("store_leads")(grid, BLOCK, count, voxels, odds[last], confidence)
        del bits, ends, voxels, depths, names, odds
    device.give_back(here, labels)
    return None if confidence is None else device.give(confidence, labels)


def _count_hops(
    device: Device,
    kernel: Callable[[str], Kernel],
    labels: Any,
    links: Any,
    strides: Any,
    chosen: npt.NDArray[np.bool_],
    sweeps: int,
) -> Any:
    """Return 1 + the links between a voxel and the nearest border (at most 255), 0 from `sweeps` links on.

    The flat result has as many zeros at its end as fill the last word of bits.
    """
    xp = device.xp
    hops = xp.zeros(ceil_div(labels.size, BITS) * BITS, np.uint8)
    table = device.bring(chosen.view(np.uint8))
    kernel("find_border")(
        ceil_div(labels.size, BLOCK), BLOCK, labels, links, strides, table, table.size, labels.size, hops
    )
    words = hops.size // WORD
    reached = xp.zeros(1, np.int64)
    step = kernel("step_level")
    for level in range(1, sweeps):
        step(ceil_div(words, BLOCK), BLOCK, links, strides, words, level, hops.view(np.uint64), reached)
        if int(reached[0]) != level:
            break
    return hops
