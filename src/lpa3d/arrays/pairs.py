"""Rows of two integers: how they are sorted, and where a new one begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .checks import MAX_ID

__all__ = ["flag_first", "sort_pairs"]


def sort_pairs(pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the order that sorts the rows of `pairs` by their first, then their second value (stable)."""
    if not len(pairs):
        return np.empty(0, np.int64)
    (low, lower), (high, higher) = (getattr(pairs, end)(axis=0).tolist() for end in ("min", "max"))
    width = higher - lower + 1
    if (high - low + 1) * width > MAX_ID:
        return np.lexsort((pairs[:, 1], pairs[:, 0]))
    # One key is sorted in half of the time of two.
    return np.argsort((pairs[:, 0] - low) * width + (pairs[:, 1] - lower), kind="stable")


def flag_first(rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return whether each of the sorted `rows`, of one value or several, differs from the row before it."""
    first = np.ones(len(rows), np.bool_)
    differ = rows[1:] != rows[:-1]
    first[1:] = differ if rows.ndim == 1 else differ.any(axis=1)
    return first
