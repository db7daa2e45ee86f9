"""What decides `propagate`, whatever the volume: its arguments, checked, and its constants."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.backend import array_module
from ..arrays.checks import (
    MAX_ID,
    canonical_axis,
    canonical_connectivity,
    canonical_slices,
    canonical_spacing,
    check_flag,
)
from ..arrays.neighbors import UNIT, step_weights
from ..errors import InputError, Keyword, Part

__all__ = [
    "Rules",
    "check_cost",
    "check_rules",
    "fresh_ids",
    "lone_note",
    "missing_note",
    "steps_of_cost",
    "sweeps_of_labels",
]

SWEEPS_SECTIONS = 8
SWEEPS = 32
"""Sweeps of a class that the sections stage drew, and of one that it did not. Drawn borders are smooth: on vesicles
4, 8 and 16 sweeps give an adapted Rand error of .046, .044 and .044, on trees more is better."""

MOST_COST = 4095
MOST_SWEEPS = 10_000
COST_UNIT = 16
MOST_Q = 65535


def steps_of_cost(values: npt.NDArray[Any], steps: npt.NDArray[np.uint16]) -> tuple[float, float]:
    """Write a cost in fixed point, 16 for 1; return its smallest and largest value for `check_cost`."""
    if not values.size:
        return 1.0, 1.0
    xp = array_module(values)
    values = values.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if math.isfinite(low) and math.isfinite(high):
        steps[...] = xp.clip(xp.rint(values * COST_UNIT), 1, MOST_Q)
    return low, high


def check_cost(ranges: Iterable[tuple[float, float]]) -> None:
    """Refuse a cost whose parts have the smallest and largest values `ranges`."""
    low, high = 0.0, 0.0
    for smallest, largest in ranges:
        if not (math.isfinite(smallest) and math.isfinite(largest)):
            raise InputError(Keyword("cost"), " holds NaN or infinite values; pass numpy.nan_to_num(cost) or mend them")
        low, high = min(low, smallest), max(high, largest)
    if low < 0 or high > MOST_COST:
        raise InputError(
            Keyword("cost"),
            f" holds values from {low:g} to {high:g}; 0 to {MOST_COST} are possible, and 1 leaves a step at its length",
        )


def _axes(slice_axis: Any, ndim: int) -> tuple[int, ...]:
    """Check `slice_axis` and return the axes of (Z, Y, X) that annotated slices may lie across."""
    if slice_axis is None:
        return ()
    if isinstance(slice_axis, str) and slice_axis == "auto":
        return (0, 1, 2)
    axis = canonical_axis(slice_axis, "slice_axis", ndim, f"'auto', None or an axis from 0 to {ndim - 1}")
    return (axis + 3 - ndim,)


def _missing(missing_slices: Any, depth: int, ndim: int) -> list[int]:
    """Check `missing_slices` and return the slices, ascending."""
    slices = canonical_slices(missing_slices, "missing_slices", depth, [7, 31])
    if slices and ndim == 2:
        raise InputError(Keyword("missing_slices"), " needs a volume (Z, Y, X); this array is one slice")
    return slices


def _choice(value: Any, name: str, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise InputError(Keyword(name), f" is {value!r}; one of {', '.join(map(repr, choices))} is needed")


@dataclass(frozen=True)
class Rules:
    """What a call asks for, checked: all its options but those that are arrays."""

    connectivity: int
    spacing: tuple[float, float, float]
    weights: npt.NDArray[np.int64]
    """The weight of each step to a neighbour."""
    axes: tuple[int, ...]
    """Those that annotated slices may lie across."""
    missing: list[int]
    """Missing slices, ascending."""
    sweeps: int | None
    limit: int | None
    """The largest path weight of `max_distance`."""
    fresh_ids: bool
    seed_conflicts: str
    return_confidence: bool


def check_rules(
    shape: tuple[int, ...],
    *,
    connectivity: Any,
    spacing: Any,
    max_distance: Any,
    sweeps: Any,
    slice_axis: Any,
    missing_slices: Any,
    unseeded: Any,
    seed_conflicts: Any,
    return_confidence: Any,
) -> Rules:
    """Check the options of `propagate` for a volume of `shape`, two or three sides."""
    neighbors = canonical_connectivity(connectivity)
    sides = canonical_spacing(spacing, len(shape))
    weights = step_weights(neighbors, sides)
    axes = _axes(slice_axis, len(shape))
    missing = _missing(missing_slices, shape[0], len(shape))
    _choice(unseeded, "unseeded", ("drop", "label"))
    _choice(seed_conflicts, "seed_conflicts", ("raise", "majority"))
    if sweeps is not None and not (_is_index(sweeps) and 0 <= sweeps <= MOST_SWEEPS):
        raise InputError(Keyword("sweeps"), f" is {sweeps!r}; a whole number from 0 to {MOST_SWEEPS} is needed")
    confidence = check_flag(return_confidence, "return_confidence")
    if confidence and sweeps == 0:
        raise InputError(
            "confidence comes from diffusion, but ",
            Keyword("sweeps"),
            " is 0; leave ",
            Keyword("sweeps"),
            " out, or ",
            Keyword("return_confidence"),
        )
    limit = None
    if max_distance is not None:
        number = isinstance(max_distance, int | float | np.number) and not isinstance(max_distance, bool)
        if not (number and max_distance >= 0):
            raise InputError(
                Keyword("max_distance"),
                f" is {max_distance!r}; a length >= 0 in the unit of ",
                Keyword("spacing"),
                " is needed",
            )
        reach = float(max_distance) / min(sides) * UNIT
        limit = None if math.isinf(reach) else int(reach)
    return Rules(
        neighbors, sides, weights, axes, missing, None if sweeps is None else int(sweeps), limit, unseeded == "label",
        seed_conflicts, confidence,
    )  # fmt: skip


def missing_note(lost: int) -> tuple[Part, ...]:
    """Return what the caller is told of seeds on missing slices."""
    return f"{lost} seed voxels lie on ", Keyword("missing_slices"), " and were dropped"


def _is_index(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def sweeps_of_labels(drawn: npt.NDArray[np.bool_], rules: Rules) -> npt.NDArray[np.int64]:
    """Return the sweeps of diffusion for each label, given whether the sections of its class were drawn."""
    if rules.sweeps is not None:
        return np.full(len(drawn), rules.sweeps, dtype=np.int64)
    return np.where(drawn, SWEEPS_SECTIONS, SWEEPS).astype(np.int64)


def lone_note(count: int, voxels: int) -> tuple[Part, ...]:
    """Return what the caller is told of components without a seed."""
    return (
        f"{count} components ({voxels} voxels) hold no seed and stay 0; pass ",
        Keyword("unseeded", "label"),
        " to give them ids of their own",
    )


def fresh_ids(count: int, most: int) -> range:
    """Return the ids of `count` components without a seed, after the largest id, `most`."""
    if count > MAX_ID - most:
        raise InputError(f"{count} fresh ids after the largest id, {most}, do not fit below 2**63")
    return range(most + 1, most + 1 + count)
