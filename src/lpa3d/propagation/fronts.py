"""Breadth-first steps over slabs, on all threads: what the geodesic and the diffusion stage share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.neighbors import neighbor_offsets
from ..arrays.rounds import run_rounds
from ..arrays.threads import num_threads, run_all, split
from ..kernels import fronts as kernels

__all__ = ["Fronts", "cut_planes", "flat_dtype", "flat_strides"]

SLABS = 4
"""Slabs per thread: dealt out in turn, which evens out where the voxels are."""

FEW = 4096
"""While fewer voxels wait, one thread goes on alone: a round costs as much as they do."""


def flat_strides(shape: tuple[int, ...], connectivity: int) -> npt.NDArray[np.int64]:
    """Return by how much each neighbour's flat index differs."""
    _, ny, nx = shape
    return neighbor_offsets(connectivity) @ np.array([ny * nx, nx, 1], dtype=np.int64)


def flat_dtype(size: int) -> type[np.uint32] | type[np.int64]:
    """Return the narrower of the two dtypes in which flat indices are queued, if it can hold them."""
    return np.uint32 if size <= 2**32 else np.int64


def cut_planes(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return how many planes a volume has, and their voxels: slices, or the rows of a single slice.

    A link reaches the planes before and behind at most.
    """
    nz, ny, nx = shape
    return (nz, ny * nx) if nz > 1 else (ny, nx)


class Fronts:
    """The frontiers of a breadth-first search, one per slab.

    Parameters
    ----------
    shape
        Shape of the volume, which is not empty.
    connectivity
        6, 18 or 26.
    """

    def __init__(self, shape: tuple[int, ...], connectivity: int) -> None:
        planes, size = cut_planes(shape)
        self.strides = flat_strides(shape, connectivity)
        self.workers = min(num_threads(), planes)
        slabs = split(planes, self.workers * SLABS if self.workers > 1 else 1)
        self.slabs = [(lo * size, hi * size) for lo, hi in slabs]
        # A voxel is queued once, so a slab's part of the queue never overflows; only what is used is ever touched.
        self.queue = np.empty(planes * size, dtype=flat_dtype(planes * size))
        starts = np.array([lo for lo, _ in self.slabs], dtype=np.int64)
        self.heads, self.tails = starts.copy(), starts.copy()
        both = (len(slabs), 2)
        self.ready = np.zeros(both, dtype=np.int64)
        self.sent = np.zeros(both, dtype=np.int64)
        self.state = (
            np.append(starts, planes * size),
            self.heads,
            self.tails,
            self.sent,
            self.ready,
            np.zeros(both, dtype=np.int64),
            np.empty((*both, size if len(slabs) > 1 else 0), dtype=self.queue.dtype),
        )

    def start(self, collect: Callable[[int, int, npt.NDArray[Any]], int]) -> None:
        """Fill every slab's frontier: ``collect(lo, hi, queue)`` writes voxels of the slab and returns how many."""

        def fill(slab: int) -> None:
            lo, hi = self.slabs[slab]
            self.tails[slab] = lo + collect(lo, hi, self.queue[lo:hi])

        run_all(fill, range(len(self.slabs)))

    def step(self, links: npt.NDArray[Any], values: npt.NDArray[Any], last: int, *, by_level: bool) -> bool:
        """Take level after level, up to `last`; return whether that was the end of the way but not of the voxels.

        See `kernels.fronts.step_slabs` for what is written to the flat `values`.
        """
        level = 0

        def take(first: int, stride: int, few: int) -> int:
            return int(
                kernels.step_slabs(
                    first, stride, level, last, few, by_level, self.strides, self.state, links, values, self.queue
                )
            )

        def go_on() -> bool:
            """Take levels alone while they are small; return whether there is one for all threads."""
            nonlocal level
            waiting = kernels.count_waiting(self.state)
            if 0 < waiting <= FEW and level <= last:
                level = take(0, 1, FEW)
                waiting = kernels.count_waiting(self.state)
            return bool(waiting > 0 and level <= last)

        def work(worker: int) -> None:
            take(worker, self.workers, 0)

        def advance() -> bool:
            nonlocal level
            level += 1
            self.ready[...] = self.sent
            return go_on()

        if go_on():
            run_rounds(work, advance, self.workers)
        return bool(kernels.count_waiting(self.state) > 0)
