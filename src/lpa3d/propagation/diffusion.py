"""The diffusion stage on a whole volume.

1. Hops: how many links each voxel is from a border between two labels. Within n sweeps only voxels less than n hops
   away can change, and one at h hops first does so in sweep h + 1.
2. A wave of planes: sweep s of plane t - 2s runs when plane t is listed, so that only about two planes per sweep are
   held at a time, whatever the size of the volume.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.backend import find_device
from ..arrays.checks import as_raw
from ..arrays.neighbors import UNIT, neighbor_offsets
from ..arrays.rounds import run_rounds
from ..arrays.threads import num_threads, run_all, split
from ..kernels import diffusion as kernels
from .fronts import Fronts, cut_planes, flat_strides
from .geodesic import NO_COST, Labels, Links

__all__ = ["conductances", "diffuse"]

SMALL = 2000
"""Below so many listed voxels times sweeps per plane one thread is faster than several."""


def conductances(weights: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the conductance of each step, which falls with the square of its length as that of a lattice does."""
    return np.maximum(1, np.rint(65536 * (UNIT / weights) ** 2)).astype(np.int64)


def diffuse(
    labels: Labels,
    links: Links,
    seeds: npt.NDArray[Any],
    conductances: npt.NDArray[np.int64],
    connectivity: int,
    sweeps: int | npt.NDArray[np.int64],
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
        Integer per offset, from 1 to 2**30. With `cost` a link conducts ``max(1, 32 * w // (cost[a] + cost[b]))``.
    sweeps
        How many averages are taken; an array gives a number for each label (that of a class, since labels of linked
        voxels have the same).
    cost
        Fixed-point cost, 16 for 1.
    return_confidence
        Whether to return the lead of each voxel's label over its rival, uint16; 65535 for seeds and without a rival.
    """
    groups = _group(sweeps) if labels.size else []
    device = find_device(labels)
    if device is not None:
        from ..cuda import diffusion as cuda

        confidence: npt.NDArray[np.uint16] | None = cuda.diffuse(
            device, labels, links, seeds, flat_strides(labels.shape, connectivity), conductances, groups,
            cost=cost, return_confidence=return_confidence,
        )  # fmt: skip
        return confidence
    flat_confidence = np.full(labels.size if return_confidence else 0, 65535, dtype=np.uint16)
    for turns, chosen in groups:
        hops = _count_hops(labels, links, connectivity, chosen, turns)
        _Wave(labels, links, seeds, conductances, connectivity, turns, cost, hops, flat_confidence).run()
    return flat_confidence.reshape(labels.shape) if return_confidence else None


def _group(sweeps: int | npt.NDArray[np.int64]) -> list[tuple[int, npt.NDArray[np.bool_]]]:
    """Return each number of sweeps above 0 with a table of the labels that it is for, which is empty if all are."""
    by_label = np.asarray(sweeps)
    if by_label.ndim == 0:
        return [(int(sweeps), np.empty(0, dtype=bool))] if sweeps > 0 else []
    # Few values of many labels: counted faster than sorted.
    numbers = np.flatnonzero(np.bincount(by_label[1:])).tolist()
    return [(turns, by_label == turns) for turns in numbers if turns > 0]


def _count_hops(
    labels: Labels, links: Links, connectivity: int, chosen: npt.NDArray[np.bool_], sweeps: int
) -> npt.NDArray[np.uint8]:
    """Return 1 + the links between a voxel and the nearest border (at most 255), 0 beyond `sweeps` links.

    Voxels that many links away do not change any more, but are read.
    """
    flat, flat_links = labels.reshape(-1), links.reshape(-1)
    hops = np.zeros(labels.size, dtype=np.uint8)
    fronts = Fronts(labels.shape, connectivity)
    fronts.start(
        lambda lo, hi, queue: kernels.find_border(flat, flat_links, fronts.strides, chosen, lo, hi, hops, queue)
    )
    # A byte cannot tell how deep the voxels beyond are, so that they are averaged too early, which changes nothing if
    # all that they are linked to is listed.
    fronts.step(flat_links, hops, sweeps if sweeps < kernels.FIXED else labels.size, by_level=True)
    return hops


class _Wave:
    """All sweeps in one pass over the planes: in round r sweep s is taken of plane r - 2 s.

    That plane and its neighbours have all had sweep s - 1 by then, so the sweeps of a round do not touch each other's
    planes, and the threads share each plane between them. Every so many rounds as there are threads, each thread lists
    one of the planes to come and writes back one that is done.
    """

    def __init__(
        self,
        labels: Labels,
        links: Links,
        seeds: npt.NDArray[Any],
        conductances: npt.NDArray[np.int64],
        connectivity: int,
        sweeps: int,
        cost: npt.NDArray[np.uint16] | None,
        hops: npt.NDArray[np.uint8],
        confidence: npt.NDArray[np.uint16],
    ) -> None:
        self.planes, self.size = cut_planes(labels.shape)
        shape = (self.planes, self.size)
        self.sweeps = sweeps
        self.labels = labels.reshape(shape)
        self.seeds = as_raw(seeds)
        self.hops = hops.reshape(shape)
        self.confidence = confidence.reshape(shape) if confidence.size else confidence.reshape(self.planes, 0)
        self.links = links.reshape(-1)
        self.cost = (NO_COST if cost is None else cost).reshape(-1)
        axis = 0 if labels.shape[0] > 1 else 1
        ahead = np.ascontiguousarray(neighbor_offsets(connectivity)[:, axis])
        self.steps = (flat_strides(labels.shape, connectivity), ahead, conductances)

        listed = np.empty(self.planes, dtype=np.int64)
        run_all(
            lambda part: kernels.count_listed(self.hops[slice(*part)], listed[slice(*part)]),
            split(self.planes, num_threads()),
        )
        busy = listed.sum() * min(sweeps, self.planes) > SMALL * self.planes
        self.workers = num_threads() if busy else 1
        # A slot is listed anew when what it held is written back and read by no sweep.
        self.slots = slots = min(2 * (sweeps + self.workers), self.planes)
        capacity = int(listed.max())
        self.counts = np.zeros(slots, dtype=np.int64)
        narrow = np.int32 if slots * capacity < 2**31 else np.int64
        self.window = (
            np.empty((slots, self.size), dtype=narrow),
            np.empty((slots, capacity), dtype=np.int32),
            np.empty((slots, capacity), dtype=np.uint8),
            np.empty((2, slots * capacity), dtype=np.uint64),
            np.empty((2, slots * capacity), dtype=np.uint32),
        )
        self.round = 0

    def run(self) -> None:
        """Take all rounds."""
        run_rounds(self._work, self._advance, self.workers)

    def _work(self, worker: int) -> None:
        """Do one thread's part of the round."""
        if self.round % self.workers == 0:
            done = self.round - 2 * self.sweeps - 1 - worker
            if 0 <= done < self.planes:
                slot = done % self.slots
                kernels.store_plane(
                    slot,
                    self.counts[slot],
                    self.sweeps % 2,
                    self.window,
                    self.labels[done],
                    self.confidence[done],
                )
            new = self.round + worker
            if new < self.planes:
                slot = new % self.slots
                self.counts[slot] = kernels.list_plane(
                    self.labels[new], self.hops[new], self.seeds, new * self.size, slot, self.window
                )
        kernels.sweep_planes(
            self.round,
            self.sweeps,
            self.planes,
            worker,
            self.workers,
            self.counts,
            self.links,
            self.cost,
            self.steps,
            self.window,
        )

    def _advance(self) -> bool:
        """Go to the next round; return whether there is one."""
        self.round += 1
        # The last planes are written in the first round of this kind after their last sweep.
        return self.round - 2 * self.sweeps - self.workers < self.planes
