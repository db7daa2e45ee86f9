"""What both acts of the demo need: commands as a user would type them, a table of scores, labels in colours."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import InputError

if TYPE_CHECKING:
    from ..evaluation.result import Evaluation, Matches

__all__ = [
    "HEADING",
    "LEGEND",
    "SPARE_COLORS",
    "Result",
    "evaluate_all",
    "find_crowd",
    "find_ids",
    "find_wrong",
    "list_costliest",
    "list_scores",
    "paint",
    "run_command",
    "time_call",
]

Array = npt.NDArray[Any]

HEADING = f"{'':<28}{'recovered':>13}{'PQ':>9}{'ARE':>9}{'cut':>7}{'joined':>8}{'missed':>8}{'time':>9}"

LEGEND = (
    "recovered: instances whose overlap with the truth (IoU) is above one half",
    "PQ: panoptic quality, 1 is best; ARE: adapted Rand error, 0 is best, background ignored",
    "cut: instances in several parts; joined: results over several instances; missed: hardly covered by any",
)

LARGEST_TABLE = 2**24
"""Ids below it are looked up in a table."""

SPARE_COLORS = 64
"""Colours, after those of the truth, for what matches none of its instances."""


class Result(NamedTuple):
    """What a method made, and how long it took."""

    name: str
    labels: Array
    seconds: float


def run_command(*words: str | Path) -> None:
    """Run ``lpa3d WORDS --overwrite`` as a user would."""
    typed = [*map(str, words), "--overwrite"]
    print(f"$ lpa3d {' '.join(typed)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "lpa3d", *typed], check=False)
    if done.returncode:
        raise InputError(f"lpa3d {words[0]} ended with exit code {done.returncode}; what it says above tells why")


def time_call(function: Any, *args: Any, **keywords: Any) -> tuple[Array, float]:
    """Return what a function makes, and how many seconds it takes."""
    started = time.perf_counter()
    result = function(*args, **keywords)
    return result, time.perf_counter() - started


def evaluate_all(truth: Array, results: Sequence[Result]) -> list[Evaluation]:
    """Return the measures of each result over all instances."""
    import lpa3d

    return [lpa3d.evaluate(truth, result.labels) for result in results]


def list_scores(title: str, results: Sequence[Result], scores: Sequence[Evaluation], timed: bool = False) -> list[str]:
    """Return the lines of a table on one set of instances, one for each method."""
    lines = [f"{title} ({scores[0]['tp'] + scores[0]['fn']})"]
    for result, e in zip(results, scores, strict=True):
        line = f"  {result.name:<26}{e['tp']:>6} {100 * e['recall_instance']:>4.0f} %"
        line += f"{e['pq']:>9.3f}{e['arand']:>9.3f}{len(e.splits):>7}{len(e.merges):>8}{len(e.missed):>8}"
        lines.append(line + (f"{result.seconds:>7.2f} s" if timed else ""))
    return lines


def list_costliest(name: str, e: Evaluation) -> list[str]:
    """Return lines that say where to look first."""
    lines = []
    for errors, text in ((e.merges, "instance {} of the result joins {}"), (e.splits, "instance {} is cut into {}")):
        for error in errors[:1]:
            parts = " + ".join([*map(str, error.parts[:4]), *(["..."] if len(error.parts) > 4 else [])])
            box = ", ".join(f"{axis} {side.start}:{side.stop}" for axis, side in zip("zyx", error.box, strict=True))
            lines.append(f"  {text.format(error.id, parts)}, at {box}")
    return ["", f"Where to look first in what {name} made:", *lines] if lines else []


def find_ids(labels: Array) -> tuple[Array, npt.NDArray[np.intp]]:
    """Return the sorted ids and each voxel's position in them, as `numpy.unique` does, which is slow on volumes."""
    if labels.dtype == np.bool_ or not labels.size or labels.min() < 0 or labels.max() >= LARGEST_TABLE:
        ids, places = np.unique(labels, return_inverse=True)
        return ids, places.reshape(labels.shape)
    known = np.zeros(int(labels.max()) + 1, np.bool_)
    known[labels] = True
    return np.flatnonzero(known).astype(labels.dtype), (np.cumsum(known) - 1)[labels]


def paint(labels: Array, rows: Mapping[int, int], spare: int) -> npt.NDArray[np.int32]:
    """Return the row of the colour table for each voxel; ids without one take rows from `spare` on."""
    ids, places = find_ids(labels)
    table = [0 if not number else rows.get(int(number), spare + int(number) % SPARE_COLORS) for number in ids]
    return np.array(table, np.int32)[places]


def find_wrong(truth: Array, labels: Array, pairs: Matches) -> npt.NDArray[np.bool_]:
    """Return where the truth is not covered by the instance that matches it."""
    ids, places = find_ids(labels)
    expected = np.full(len(ids), -1)
    expected[np.searchsorted(ids, pairs.prediction.astype(ids.dtype))] = pairs.reference
    wrong: npt.NDArray[np.bool_] = (truth > 0) & (expected[places] != truth)
    return wrong


def find_crowd(labels: Array, side: int) -> tuple[slice, slice]:
    """Return the square window with the most pixels whose neighbour belongs to another instance."""
    touching = np.zeros(labels.shape, np.int64)
    for a, b, where in (
        (labels[1:], labels[:-1], touching[1:]),
        (labels[:, 1:], labels[:, :-1], touching[:, 1:]),
    ):
        where += (a != b) & (a > 0) & (b > 0)
    sums = np.pad(touching.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    counts = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    y, x = np.unravel_index(int(counts.argmax()), counts.shape)
    return slice(int(y), int(y) + side), slice(int(x), int(x) + side)
