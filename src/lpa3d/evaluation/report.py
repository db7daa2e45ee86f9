"""From counted tables, and the voxels where no table holds what is asked for, to an `Evaluation`.

Metrics are pure functions of a table of overlaps (`semantic`, `partition`, `instances`); surface distances (`surfaces`)
and the warping error (`warping`) go back to the voxels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.checks import as_bits, seal
from ..arrays.neighbors import neighbor_offsets
from ..arrays.overlap import Overlaps, add_overlaps, find_boxes
from ..arrays.relabel import relabel
from ..arrays.text import list_some
from ..arrays.threads import num_threads, run_all, split
from ..arrays.warn import warn
from ..errors import InputError, Keyword
from ..kernels.overlap import VOID
from ..kernels.touching import separate_slab
from .classified import Classified, Sides
from .conventions import Convention
from .instances import list_matches, match, score_aggregated, score_matching, score_ranking, tabulate_instances
from .metrics import DISTANCES, RANKING, SUMMED
from .partition import score_partition
from .request import Request
from .result import Evaluation, Matches
from .semantic import score_semantic

__all__ = ["Foreground", "report", "separate_masks"]

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]
Scores = tuple[Ids, npt.NDArray[np.float64]]

ALL = None
"""Name of the one part where there are no classes."""

Measure = Callable[[Ids, Ids], npt.NDArray[np.float64]]
"""Returns the surface distances ``(n, 3)`` of pairs of ids ``(n, 2)``, given a box for each id, ``(n, 2, 2, 3)``."""


@dataclass(frozen=True, eq=False, slots=True)
class Foreground:
    """What the warping error looks at: one class, or all.

    Attributes
    ----------
    value : int or None
        The class in class maps; None where there is none such.
    others : tuple of ndarray, or None
        The ids of other classes on both sides, of instance ids; None in class maps.
    """

    value: int | None
    others: tuple[Ids, Ids] | None


Unwarp = Callable[[Sequence[Foreground]], Sequence[tuple[int, int]]]
"""Returns what `count_unwarped` does for each foreground."""


def report(
    request: Request,
    table: Classified,
    shape: tuple[int, ...],
    ignores: bool,
    measure: Measure,
    unwarp: Unwarp,
) -> Evaluation:
    """Return the evaluation that a table of overlaps gives; `measure` and `unwarp` go back to the voxels if asked to.

    `shape` is the volumes', as they were given; `ignores` says whether there are voxels to ignore.
    """
    _check_scored(request.scores, table.overlaps)
    numbers = _choose_classes(table, request.names)
    tables = {name: table.select(number) for name, number in numbers.items()} if numbers else {ALL: table.overlaps}
    values, columns = {}, {}
    for name, overlaps in tables.items():
        values[name], columns[name] = _score(overlaps, request)
    if request.surfaces:
        for name, distances in _measure_surfaces(measure, columns, tables).items():
            columns[name] |= distances
            values[name] |= {key: _mean(column.tolist()) for key, column in distances.items()}
    if request.warping is not None:
        wanted: list[int | None] = list(numbers.values()) if numbers else [None]
        foregrounds = [_find_foreground(table, request.mode, number) for number in wanted]
        for name, (wrong, counted) in zip(tables, unwarp(foregrounds), strict=True):
            values[name]["warping_error"] = wrong / counted if counted else 0.0

    void = table.overlaps.voxels[table.overlaps.pairs[:, 0] == VOID]
    parameters = request.describe() | {"shape": list(shape), "ignored": int(void.sum()) if ignores else None}

    def tell(name: Any, present: bool) -> Evaluation:
        """Return the evaluation of one class, or of all without classes."""
        return Evaluation(
            values[name],
            parameters=parameters,
            pairs=_seal_columns(columns[name]),
            overlaps=tables[name] if request.mode is not None else add_overlaps([]),
            ndim=len(shape),
            present=present,
            per_class={},
        )

    if not numbers:
        pairs = table.overlaps.pairs
        return tell(ALL, bool((pairs[pairs[:, 0] != VOID] > 0).any()))
    per_class = {name: tell(name, table.holds(number)) for name, number in numbers.items()}
    present = [name for name, one in per_class.items() if one.present]
    if not present:
        warn(
            f"none of the classes {list_some(request.names or ())} is in ",
            Keyword("reference"),
            " or ",
            Keyword("prediction"),
            f", so there is nothing to average; they have {list_some(table.classes) or 'none at all'}",
        )
    return Evaluation(
        _average([values[name] for name in present], list(values[next(iter(numbers))]), request.convention),
        parameters=parameters,
        pairs=_seal_columns(_join_columns(list(columns.values()))),
        overlaps=table.separate(numbers.values()) if request.mode is not None else add_overlaps([]),
        ndim=len(shape),
        present=bool(present),
        per_class=per_class,
    )


def _score(overlaps: Overlaps, request: Request) -> tuple[dict[str, float], dict[str, Array]]:
    """Return every metric of one table of overlaps, and the columns of the pairs that match at the first threshold."""
    convention = request.convention
    values = score_semantic(overlaps)
    if request.mode is None:
        nobody = tabulate_instances(add_overlaps([]))
        return values, list_matches(nobody, match(nobody, 1.0, convention))
    values |= score_partition(overlaps, convention)
    instances = tabulate_instances(overlaps)
    matches = [match(instances, threshold, convention) for threshold in request.thresholds]
    values |= score_matching(instances, matches[0], convention)
    for threshold, matched in zip(request.thresholds[1:], matches[1:], strict=True):
        at = score_matching(instances, matched, convention)
        values |= {f"{key}@{threshold:g}": value for key, value in at.items()}
    scores = None
    if request.scores is not None:
        ids, confidences = request.scores
        scores = confidences[np.searchsorted(ids, instances.predicted)]
    values |= score_ranking(instances, scores, convention, request.strata)
    values |= score_aggregated(instances, convention)
    return values, list_matches(instances, matches[0])


def _measure_surfaces(
    measure: Measure, columns: Mapping[Any, dict[str, Array]], tables: Mapping[Any, Overlaps]
) -> dict[Any, dict[str, Array]]:
    """Return the columns of surface distances of the matched pairs of each table, all measured at once."""
    pairs, boxes, counts = [], [], []
    for name, overlaps in tables.items():
        matched = columns[name]["reference"], columns[name]["prediction"]
        pairs.append(np.stack(matched, axis=1))
        boxes.append(np.stack([find_boxes(overlaps, side, ids) for side, ids in enumerate(matched)], axis=1))
        counts.append(len(pairs[-1]))
    distances = measure(np.concatenate(pairs), np.concatenate(boxes))
    parts = np.split(distances, np.cumsum(counts)[:-1])
    return {
        name: dict(zip(DISTANCES, np.ascontiguousarray(part.T), strict=True))
        for name, part in zip(tables, parts, strict=True)
    }


def _find_foreground(table: Classified, mode: str | None, number: int | None) -> Foreground:
    """Return the foreground of a class number (one that no class has included), or of all ids for None."""
    if mode != "ids":
        return Foreground(table.classes[number] if number is not None and number >= 0 else None, None)
    first, second = (
        np.unique(table.overlaps.pairs[(numbers != number) & (numbers >= 0), side])
        for side, numbers in enumerate((table.reference, table.prediction))
    )
    return Foreground(None, (first, second))


def separate_masks(
    sides: Sides, foreground: Foreground, *, connectivity: int, per_slice: bool
) -> list[npt.NDArray[np.bool_]]:
    """Return the foreground of both sides, in which instances do not touch."""
    masks = []
    for side, volume in enumerate((sides.reference, sides.prediction)):
        if foreground.others is None:
            # Components of one class never touch.
            masks.append(volume < 0 if foreground.value is None else volume == foreground.value)
            continue
        others = foreground.others[side]
        labels = relabel(volume, others, np.zeros_like(others), volume.dtype, None) if len(others) else volume
        masks.append(_separate_touching(labels, sides.ignore, connectivity, per_slice))
    return masks


def _separate_touching(
    labels: Array, ignore: npt.NDArray[np.bool_] | None, connectivity: int, per_slice: bool
) -> npt.NDArray[np.bool_]:
    """Return where labels are, but for a line one voxel wide between those that touch, of ignored voxels if it can."""
    offsets = neighbor_offsets(connectivity)
    if per_slice:
        offsets = offsets[offsets[:, 0] == 0]
    out = np.empty(labels.shape, np.bool_)
    source, ignored = seal(as_bits(labels)), seal(np.empty((0, 0, 0), np.bool_) if ignore is None else ignore)
    run_all(lambda bounds: separate_slab(source, ignored, offsets, *bounds, out), split(len(labels), 2 * num_threads()))
    return out


def _mean(values: list[float]) -> float:
    """Return the mean of what is not NaN; NaN of nothing."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _average(classes: list[dict[str, float]], keys: list[str], convention: Convention) -> dict[str, float]:
    """Return the sums of the counts, and the means of all else (NaN of nothing), over classes."""
    means: dict[str, float] = {}
    for key in keys:
        values = [one[key] for one in classes]
        if key.partition("@")[0] in SUMMED:
            means[key] = sum(values)
            continue
        # COCO's mark of a class without references is no precision.
        absent = convention.ap_absent if key.startswith(RANKING) else None
        known = [value for value in values if value != absent]
        means[key] = _mean(known or values)
    return means


def _join_columns(parts: list[dict[str, Array]]) -> dict[str, Array]:
    """Return the columns of matched pairs of several classes, sorted by reference id."""
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    order = np.argsort(joined["reference"], kind="stable")
    return {key: column[order] for key, column in joined.items()}


def _seal_columns(columns: dict[str, Array]) -> Matches:
    return Matches(**{key: seal(column) for key, column in columns.items()})


def _choose_classes(table: Classified, names: Mapping[Any, Any] | None) -> dict[Any, int]:
    """Return name and number of each class to evaluate; a class that nothing has gets a number that nothing has."""
    known = {value: number for number, value in enumerate(table.classes)}
    if names is None:
        return known
    return {name: known.get(value, -2 - k) for k, (value, name) in enumerate(names.items())}


def _check_scored(scores: Scores | None, overlaps: Overlaps) -> None:
    """Refuse scores that lack one of a predicted id."""
    if scores is None:
        return
    ids = np.unique(overlaps.pairs[:, 1])
    missing = np.setdiff1d(ids[ids > 0], scores[0], assume_unique=True)
    if missing.size:
        raise InputError(
            Keyword("scores"),
            f" has none for {len(missing)} id(s) of ",
            Keyword("prediction"),
            f": {list_some(missing)}; add them",
        )
