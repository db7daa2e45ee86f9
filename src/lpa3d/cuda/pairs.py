"""Tables keyed by id pairs: the host's side of ``pairs.cuh``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .device import Device

__all__ = ["CAPACITY", "collect_pairs"]

CAPACITY = 2**20
"""Rows of the first table, a power of two; far more than most volumes have pairs, and the passes repeat if not."""

GROWTH = 4

EMPTY = 2**63
"""What stands for no id, as bits: among int64 ids the smallest."""

FULL, MET_EMPTY = 1, 2
"""The flags of ``pairs.cuh``."""

Launch = Callable[[int, int, Any, Any], None]
"""Fills a table, given its capacity, the id that is none, the table ``(capacity, columns)`` and the flags."""


def collect_pairs(
    device: Device, launch: Launch, start: Sequence[int], most: int, capacity: int | None = None
) -> npt.NDArray[np.int64]:
    """Return the rows ``(n, 2 + len(start))`` of a table that kernels fill, on the host, in no special order.

    `start` is what the columns after the pair hold at first. There are at most `most` pairs; `capacity` is the number
    of rows to begin with.
    """
    xp = device.xp
    if capacity is None:
        capacity = min(CAPACITY, 1 << most.bit_length() + 1)
    empty = EMPTY
    while True:
        table = xp.empty((capacity, 2 + len(start)), np.uint64)
        for column, value in enumerate((empty, empty, *start)):
            table[:, column] = np.uint64(value)
        flags = xp.zeros(1, np.uint32)
        launch(capacity, empty, table, flags)
        met = int(flags[0])
        if not met:
            rows: npt.NDArray[np.uint64] = device.fetch(table[xp.flatnonzero(table[:, 0] != np.uint64(empty))])
            return rows.view(np.int64)
        del table
        if met & FULL:
            capacity *= GROWTH
        if met & MET_EMPTY:
            empty += 1
