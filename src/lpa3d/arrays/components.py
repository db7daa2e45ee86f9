"""Connected components as runs: what the verb `label` writes, and other verbs build on.

Stages
------
1. *Scan* (parallel over slabs of slices): two bitmaps describe the runs of equal class along x; runs of neighbouring
   rows are united in a union-find of the slab's own. Each slab also scans the first slice of the next one.
2. *Join* (serial): the slice that two slabs share has the same runs in both; the components that hold them are
   united. A component's root is its first voxel's, so the order of unions does not matter.
3. *Rank* (serial): roots in raster order are the numbers 1..n.
4. *Write* (parallel over slabs): each run is filled with its component's number.

No stage touches another slab's memory, and the number of slabs changes nothing in the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..kernels.label import clear_runs, count_runs, fill_runs, flag_runs, join_slabs, scan_runs
from ..kernels.reattachment import flag_seeded
from ..kernels.unionfind import rank_sets
from .backend import find_device
from .checks import as_raw, seal
from .threads import num_threads, run_all, split

if TYPE_CHECKING:
    from ..cuda.device import Device

__all__ = ["WIDE", "Components", "Slab", "find_components", "number_dtype"]

SLAB_VOXELS = 2**18
"""Smallest slab that is worth a thread of its own."""

WIDE = 2**32
"""Volumes of as many voxels get 64-bit numbers."""


@dataclass(frozen=True, slots=True)
class Slab:
    """The runs of the slices ``z_lo <= z < z_hi``.

    Attributes
    ----------
    changes, inside : ndarray of uint64, shape (z_hi - z_lo, Y, W)
        Bit x of `changes` (word ``x // 64``, bit ``x % 64``): voxel x differs from voxel x - 1, or x = 0. Bit x of
        `inside`: voxel x is not 0. A run starts where both are set and ends at the next change.
    runs : ndarray of uint32 or int64
        Component of each run in raster order, counted from 0 within the slab.
    first, components : int
        The slab's part of `Components.numbers`.
    """

    z_lo: int
    z_hi: int
    changes: npt.NDArray[np.uint64]
    inside: npt.NDArray[np.uint64]
    runs: npt.NDArray[Any]
    first: int
    components: int

    def of(self, per_component: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the slab's part of an array that is parallel to `Components.numbers`."""
        return per_component[self.first : self.first + self.components]


@dataclass(frozen=True, slots=True)
class Components:
    """The components of a class map as runs: a quarter byte per voxel and 4 bytes per run, no label volume.

    The methods take C-ordered arrays of the volume's shape.

    Attributes
    ----------
    shape : tuple of int
        The shape that was scanned: the volume's, but for axes of size one (see `find_components`).
    slabs : list of Slab
        Disjoint and in order; they cover the volume.
    numbers : ndarray of uint32 or int64
        Number 1..count of each slab's components: run i of a slab belongs to ``numbers[slab.first + slab.runs[i]]``.
    count : int
        Number of components.
    """

    shape: tuple[int, int, int]
    slabs: list[Slab]
    numbers: npt.NDArray[Any]
    count: int

    def write_labels(self, out: npt.NDArray[Any], *, clear: bool, values: npt.NDArray[Any] | None = None) -> None:
        """Write each voxel's component number to `out`, or ``values[number - 1]``; the background only if `clear`, as
        0."""
        volume = out.reshape(self.shape)
        named = self if values is None else replace(self, numbers=values[self.numbers - 1])
        run_all(lambda slab: named.write_slab(slab, volume[slab.z_lo : slab.z_hi], clear=clear), self.slabs)

    def write_slab(self, slab: Slab, out: npt.NDArray[Any], *, clear: bool) -> None:
        """Do what `write_labels` does for one slab; `out` has its shape."""
        fill_runs(slab.changes, slab.inside, slab.runs, slab.of(self.numbers), clear, out)

    def hold_seed(self, labels: npt.NDArray[Any], seeds: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Return, at index ``number - 1``, whether a component has a voxel whose seed equals its label.

        `labels` is constant along every run (as the array is from which the components were made).
        """
        labels, seeds = seal(labels.reshape(self.shape)), seal(seeds.reshape(self.shape))

        def flag(slab: Slab, flags: npt.NDArray[np.bool_]) -> None:
            at = slice(slab.z_lo, slab.z_hi)
            flag_runs(slab.changes, slab.inside, slab.runs, labels[at], seeds[at], flags)

        return self._flag(flag)

    def flag_seeds(self, seeds: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Return, at index ``number - 1``, whether a component holds a seed: a voxel where `seeds` is not 0."""
        raw = as_raw(seeds)
        height, width = self.shape[1:]

        def flag(slab: Slab, flags: npt.NDArray[np.bool_]) -> None:
            flag_seeded(slab.changes, slab.inside, slab.runs, width, raw, slab.z_lo * height * width, flags)

        return self._flag(flag)

    def _flag(self, flag: Callable[[Slab, npt.NDArray[np.bool_]], None]) -> npt.NDArray[np.bool_]:
        """Return the flags by number that `flag` sets for each slab's components."""
        flags = np.zeros(len(self.numbers), np.bool_)
        run_all(lambda slab: flag(slab, slab.of(flags)), self.slabs)
        flagged = np.zeros(self.count, np.bool_)
        flagged[self.numbers[flags] - 1] = True
        return flagged

    def clear(self, labels: npt.NDArray[Any], keep: npt.NDArray[np.bool_]) -> None:
        """Set `labels` to 0, in place, in every component whose ``keep[number - 1]`` is False."""
        volume = labels.reshape(self.shape)
        kept = keep[self.numbers - 1]

        def clear(slab: Slab) -> None:
            part = volume[slab.z_lo : slab.z_hi]
            clear_runs(slab.changes, slab.inside, slab.runs, slab.of(kept), part)

        run_all(clear, self.slabs)


def find_components(volume: npt.NDArray[Any], connectivity: int) -> Any:
    """Find the components of voxels that are linked: neighbours with the same value that is not 0.

    Parameters
    ----------
    volume : ndarray of uint8, uint16, uint32 or uint64, shape (Z, Y, X)
        Class map, or labels as classes; C-ordered. A device that is in use (`arrays.backend.on_device`) does the work.
    connectivity : {6, 18, 26}

    Returns
    -------
    Components
        For an array on a device `lpa3d.cuda.label.Components`, which has the same methods.

    Notes
    -----
    An axis of size one moves out of the way, so that runs are long and a single slice still makes slabs: (1, Y, X)
    is scanned as (Y, 1, X), (Z, Y, 1) as (Z, 1, Y). Neither changes the raster order or the neighbours.
    """
    depth, height, width = volume.shape
    if width == 1:
        height, width = 1, height
    if depth == 1:
        depth, height = height, 1
    device = find_device(volume)
    if device is not None:
        from ..cuda import label as cuda

        if device.holds(volume):
            return cuda.find_components(device, volume, connectivity, number_dtype(volume.size))
        return _find_on_device(device, volume, connectivity, (depth, height, width))
    flat = seal(volume.reshape(-1))
    dtype = np.uint32 if flat.size < WIDE else np.int64

    # A few slabs for each thread, as some are harder, and at least four slices in each, as one more is scanned.
    parts = min(4 * num_threads(), flat.size // SLAB_VOXELS, depth // 4)
    bounds = split(depth, parts) if flat.size else []
    # One allocation for all slabs, each with a slice more than its own: the system then uses large pages.
    bitmaps = np.empty((2, depth + len(bounds), height, -(-width // 64)), np.uint64)
    room = np.empty(flat.size // 16, dtype)

    def scan(part: int) -> tuple[Slab, npt.NDArray[Any]]:
        z_lo, z_hi = bounds[part]
        changes, inside = bitmaps[:, z_lo + part : min(z_hi + 1, depth) + part]
        own_room = room[z_lo * len(room) // depth : z_hi * len(room) // depth]
        runs, components = scan_runs(flat, width, connectivity, z_lo, changes, inside, own_room)
        own = z_hi - z_lo
        own_runs = len(runs) - count_runs(changes[own:], inside[own:])
        slab = Slab(z_lo, z_hi, changes[:own], inside[:own], runs[:own_runs], 0, components)
        return slab, runs[own_runs:]

    slabs: list[Slab] = []
    shared = []
    first = 0
    for slab, shared_runs in run_all(scan, range(len(bounds))):
        slabs.append(replace(slab, first=first))
        shared.append(shared_runs)
        first += slab.components
    numbers = np.arange(first, dtype=dtype)
    for shared_runs, (slab, after) in zip(shared, pairwise(slabs), strict=False):
        join_slabs(shared_runs, after.runs, slab.first, after.first, numbers)
    count = int(rank_sets(numbers, first, 1))
    return Components((depth, height, width), slabs, numbers, count)


def number_dtype(size: int) -> np.dtype[Any]:
    """Return the dtype of the labels of as many voxels."""
    return np.dtype(np.uint32 if size < WIDE else np.uint64)


def _find_on_device(
    device: Device, volume: npt.NDArray[Any], connectivity: int, shape: tuple[int, int, int]
) -> Components:
    """Do what `find_components` does for an array in memory, as one slab, on a device."""
    from ..cuda import label as cuda

    changes, inside, runs, count = cuda.find_runs(device, volume, connectivity, number_dtype(volume.size))
    words = (*shape[:2], -(-shape[2] // 64))
    if runs.dtype == np.uint64:
        runs = runs.view(np.int64)
    slab = Slab(0, shape[0], changes.reshape(words), inside.reshape(words), runs, 0, count)
    return Components(shape, [slab] if volume.size else [], np.arange(1, count + 1, dtype=runs.dtype), count)
