"""How often values occur in label arrays, and what the command line says of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .inputs import format_count, format_share

__all__ = ["count_labels", "count_sections", "count_values", "summarize"]

Array = npt.NDArray[Any]


def count_values(slabs: Iterable[tuple[int, int, Array]], more: tuple[Array, int] | None = None) -> tuple[Array, Array]:
    """Return the distinct values of an array that comes in slabs, and how often each occurs.

    Label arrays are made of runs of equal voxels, so only the first voxel of each run is sorted. `more` is an array of
    one value, or of none, that occurs so often besides.
    """
    found: list[tuple[Array, Array]] = []
    if more is not None and more[0].size:
        found.append((more[0], np.array([more[1]])))
    pending = 0
    for _, _, slab in slabs:
        for flat in _pieces(slab):
            starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
            found.append(_total(flat[starts], np.diff(starts, append=flat.size)))
            pending += len(found[-1][0])
            if pending > 2**22:
                found = [_total(*map(np.concatenate, zip(*found, strict=True)))]
                pending = 0
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return _total(*map(np.concatenate, zip(*found, strict=True)))


def _total(values: Array, counts: Array) -> tuple[Array, Array]:
    """Return the distinct `values` in order, and the sum of the `counts` of each."""
    order = np.argsort(values, kind="stable")
    values, counts = values[order], counts[order]
    first = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))
    return values[first], np.add.reduceat(counts, first)


def _pieces(slab: Array, size: int = 2**22) -> Iterator[Array]:
    """Yield `slab` as flat pieces of at most about `size` voxels."""
    if slab.flags.c_contiguous:  # a plane may be larger than the memory, where it is mapped from a file
        flat = slab.reshape(-1)
        yield from (flat[lo : lo + size] for lo in range(0, flat.size, size))
        return
    rows = max(size // max(math.prod(slab.shape[1:]), 1), 1)
    for lo in range(0, len(slab), rows):
        piece = np.ascontiguousarray(slab[lo : lo + rows]).reshape(-1)
        if piece.size:
            yield piece


def count_sections(slices: Array, axis: int) -> list[int]:
    """Return how many different ids besides 0 each slice across `axis` holds; a 2D array is one slice."""
    volume = np.moveaxis(slices if slices.ndim == 3 else slices[np.newaxis], axis, 0)
    return [int(np.count_nonzero(count_values([(z, z + 1, one[np.newaxis])])[0])) for z, one in enumerate(volume)]


def count_labels(labels: Array) -> tuple[int, int]:
    """Return how many ids besides 0 there are, and how many voxels they have."""
    values, counts = count_values([(0, len(labels), labels)])
    return int(np.count_nonzero(values)), int(counts[values != 0].sum())


def summarize(labels: Array) -> str:
    """Return how many instances and labelled voxels there are."""
    instances, voxels = count_labels(labels)
    return f"{format_count(instances, 'instance')}, {format_share(voxels, labels.size)} labelled"
