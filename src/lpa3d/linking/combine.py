"""Files of one class each as one class map and one volume of instances, box by box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Survey", "combine_instances", "find_winners"]

Array = npt.NDArray[Any]


@dataclass
class Survey:
    """What files hold, and where they overlap; boxes are added one by one.

    Attributes
    ----------
    low, high : list of int or None
        The smallest and the largest value besides 0 of each file, None of one that holds nothing.
    voxels : list of int
        How many voxels of each are not 0.
    overlaps : ndarray of int, shape (n, n)
        Voxels that the file of the row keeps and the file of the column loses.
    ids, kept : list of ndarray
        The values of each file, and those of which a voxel is left.
    """

    order: Sequence[int]
    low: list[int | None] = field(default_factory=list)
    high: list[int | None] = field(default_factory=list)
    voxels: list[int] = field(default_factory=list)
    overlaps: Array = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    ids: list[Array] = field(default_factory=list)
    kept: list[Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = len(self.order)
        self.low, self.high, self.voxels = [None] * n, [None] * n, [0] * n
        self.overlaps = np.zeros((n, n), np.int64)
        self.ids, self.kept = ([np.empty(0, np.int64)] * n for _ in range(2))

    def add(self, boxes: Sequence[Array]) -> None:
        """Take in the same box of all files."""
        winners = find_winners(boxes, self.order)
        for k, box in enumerate(boxes):
            inside = box != 0
            values = np.unique(box[inside])
            if not values.size:
                continue
            low, high = int(values[0]), int(values[-1])
            self.low[k] = low if self.low[k] is None else min(low, self.low[k] or 0)
            self.high[k] = high if self.high[k] is None else max(high, self.high[k] or 0)
            self.voxels[k] += int(np.count_nonzero(inside))
            self.overlaps[:, k] += np.bincount(winners[inside], minlength=len(boxes) + 1)[1:]
            self.ids[k] = _union(self.ids[k], values)
            self.kept[k] = _union(self.kept[k], np.unique(box[winners == k + 1]))
        np.fill_diagonal(self.overlaps, 0)

    def is_mask(self, k: int) -> bool:
        """Return whether a file has one value besides 0: what it holds is not told apart."""
        return self.low[k] is not None and self.low[k] == self.high[k]

    def offsets(self) -> list[int]:
        """Return what is added to the ids of each file, so that no two share one; the last number is the largest id."""
        found = [0]
        for k in range(len(self.order)):
            found.append(found[-1] + (1 if self.is_mask(k) else self.high[k] or 0))
        return found


def _union(a: Array, b: Array) -> Array:
    return np.union1d(a, b) if a.size else b


def find_winners(boxes: Sequence[Array], order: Sequence[int]) -> npt.NDArray[np.uint8 | np.uint16]:
    """Return which of several files each voxel belongs to, numbered from 1: the first in `order` that is not 0."""
    winners = np.zeros(boxes[0].shape, np.uint8 if len(boxes) < 2**8 else np.uint16)
    for k in reversed(order):
        winners[boxes[k] != 0] = k + 1
    return winners


def combine_instances(boxes: Sequence[Array], survey: Survey, dtype: np.dtype[Any]) -> Array:
    """Return the instances of a box: the ids of each file, behind those of the files before it."""
    winners, offsets = find_winners(boxes, survey.order), survey.offsets()
    out = np.zeros(boxes[0].shape, dtype)
    for k, box in enumerate(boxes):
        mine = winners == k + 1
        out[mine] = offsets[k] + 1 if survey.is_mask(k) else box[mine].astype(dtype) + dtype.type(offsets[k])
    return out
