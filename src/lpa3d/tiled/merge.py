"""Unite the fragments of one object, tile by tile: the verb `merge`.

Stages
------
1. *Count* the contacts of all labels (`tiled.contacts`), and list the classes that each lies on.
2. *Decide* (driver): which ids change, as in memory. Kept in pieces by id, of which a tile reads those that it needs.
3. *Relabel* (every tile).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.call import Call
from ..arrays.classes import ClassPairs
from ..arrays.relabel import relabel
from ..linking.contacts import Counts, list_ids
from ..linking.merge import Rules, check_rules, decide
from .contacts import fold_counts, map_counts, tile_key
from .driver.grid import Box, Grid
from .driver.outputs import Sink, Wanted
from .driver.run import open_run
from .driver.scratch import Scratch
from .driver.stages import Stage
from .driver.stored import Source, open_classes, open_ids, same_shape
from .driver.tables import digest, fold, unite_rows

__all__ = ["merge"]

PIECE = 2**16
"""Ids of a piece of the table of what changes."""

STAGES = (
    Stage("count", writes=("counts",)),
    Stage("seams", reads=("counts",), writes=("seams",)),
    Stage("decide", reads=("counts", "seams"), writes=("changes",)),
    Stage("relabel", reads=("counts", "changes")),
)

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Context:
    grid: Grid
    scratch: Scratch
    labels: Source
    out: Sink


def merge(call: Call) -> Any:
    """Do what `lpa3d.merge` does for stored arrays."""
    classes = call.arrays["classes"]
    source = open_ids(call.arrays["labels"], "labels")
    rules = check_rules(source.ndim, **call.keywords)
    inputs = {"labels": source}
    if classes is not None and not isinstance(classes, Mapping):
        inputs["classes"] = open_classes(classes, "classes")
        same_shape(inputs["classes"], "classes", source, "labels")
    parameters = {
        "connectivity": rules.connectivity,
        "spacing": list(rules.spacing),
        "min_contact": rules.threshold,
        "scores": digest(rules.scores),
        "must_link": digest(rules.must_link),
        "cannot_link": digest(rules.cannot_link),
        "classes": digest(classes) if isinstance(classes, Mapping) else None,
    }
    outputs = {"out": Wanted(call.place, source.shape, source.ndim, source.dtype)}
    with open_run("merge", inputs, parameters, outputs, call.options, keywords=call.keywords, stages=STAGES) as run:
        map_counts(run, source, None, inputs.get("classes"), rules.connectivity)
        given = inputs["classes"].dtype if "classes" in inputs else classes
        run.once("decide", _decide, run.scratch, run.grid, rules, source, given)
        context = _Context(run.grid, run.scratch, source, run.outputs["out"])
        run.map("relabel", _relabel_tile, context)
    return run.result("out")


def _decide(scratch: Scratch, grid: Grid, rules: Rules, labels: Source, classes: Any) -> None:
    """Decide which ids change and keep the table; `classes` is a mapping, the dtype of a class map, or None."""
    counts = fold_counts(scratch, grid)
    corner = labels.read(Box((0, 0, 0), (1, 1, 1))) if len(grid) else np.empty(0, np.int64)
    ids = list_ids(counts, corner.reshape(-1))
    if isinstance(classes, np.dtype):
        parts = (scratch.get(tile_key(tile), "classes")["classes"] for tile in range(len(grid)))
        classes = ClassPairs(fold(parts, unite_rows, len), classes)
    changed, new_ids = decide(rules, counts, ids, classes)
    pieces = {}
    for k, at in enumerate(range(0, len(changed), PIECE)):
        pieces[f"ids{k}"], pieces[f"new{k}"] = changed[at : at + PIECE], new_ids[at : at + PIECE]
    scratch.put("changes", starts=changed[::PIECE], **pieces)


def _read_changes(scratch: Scratch, ids: Ids) -> tuple[Ids, Ids]:
    """Return those of the sorted `ids` that change, and what they become."""
    starts = scratch.get("changes", "starts")["starts"]
    pieces = np.unique(np.searchsorted(starts, ids, "right") - 1)
    pieces = pieces[pieces >= 0].tolist()
    if not pieces:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    found = scratch.get("changes", *(f"{name}{k}" for k in pieces for name in ("ids", "new")))
    changed, new_ids = (np.concatenate([found[f"{name}{k}"] for k in pieces]) for name in ("ids", "new"))
    wanted = np.isin(changed, ids, assume_unique=True)
    return changed[wanted], new_ids[wanted]


def _relabel_tile(context: _Context, tile: int) -> None:
    """Write a tile of the result."""
    box = context.grid.box(tile)
    labels = context.labels.read(box)
    inside = Counts(**context.scratch.get(tile_key(tile), "pairs", "values"))
    changed, new_ids = _read_changes(context.scratch, list_ids(inside, labels.reshape(-1)[:1]))
    if len(changed):
        labels = relabel(labels, changed, new_ids, labels.dtype, None)
    context.out.write(box, labels)
