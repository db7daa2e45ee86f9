"""Connectivity: neighbour offsets, and the integer weight of each step.

Offsets stand in lexicographic order, so offset ``k`` and offset ``n - 1 - k`` are opposite, and the first half have
negative flat strides.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import InputError, Keyword

__all__ = ["UNIT", "neighbor_offsets", "step_weights"]

UNIT = 64
"""Weight of the smallest step."""

MAX_RATIO = 2**16
"""Largest ratio of two voxel sizes: beyond it the integer weights would lose the smaller one."""


def neighbor_offsets(connectivity: int) -> npt.NDArray[np.int64]:
    """Return the ``(n, 3)`` offsets ``(dz, dy, dx)`` of a canonical `connectivity` (6, 18 or 26)."""
    steps = [
        (dz, dy, dx)
        for dz in (-1, 0, 1)
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
        if 0 < abs(dz) + abs(dy) + abs(dx) <= {6: 1, 18: 2, 26: 3}[connectivity]
    ]
    return np.array(steps, dtype=np.int64)


def step_weights(connectivity: int, spacing: tuple[float, float, float]) -> npt.NDArray[np.int64]:
    """Return the weight of each step: its length, scaled so that the smallest voxel side is `UNIT`, rounded once.

    Raises
    ------
    InputError
        If two voxel sizes differ by more than a factor of 2**16.
    """
    smallest, largest = min(spacing), max(spacing)
    if largest > smallest * MAX_RATIO:
        raise InputError(
            Keyword("spacing"),
            f" {spacing} has a ratio of {largest / smallest:.3g} between its largest and smallest value; at most "
            f"{MAX_RATIO} is possible",
        )
    # Scale before squaring: tiny or huge units must not under- or overflow.
    lengths = neighbor_offsets(connectivity) * (np.asarray(spacing, dtype=np.float64) / smallest)
    weights = np.rint(UNIT * np.sqrt((lengths * lengths).sum(axis=1)))
    return np.asarray(weights, dtype=np.int64)
