"""Unite a class map, partial instances and labels made slice by slice, tile by tile: the verb `fuse`.

Stages
------
1. *Mark* (every tile, only where there are two label sources): the slices with labels of each.
2. *Count* (every tile): the combinations in it; the tile is kept with their numbers in it, so that this is the last
   that is read of the sources.
3. *Decide* (driver): the tables are added up and decided on as in memory; each tile learns what becomes of its
   combinations.
4. *Write* (every tile).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.call import Call
from ..arrays.checks import MAX_ID, check_id_values, class_map, instance_ids, seal
from ..arrays.threads import run_all
from ..errors import InputError, InputTypeError, Keyword
from ..kernels.fuse import find_keys, index_combinations
from ..linking.fuse import (
    Rows,
    Rules,
    add_rows,
    check_rules,
    class_dtype,
    count_rows,
    flag_slices,
    make_inputs,
    mark_slices,
    seed_dtype,
    settle,
    write_tables,
)
from ..linking.fused import CLASSES, INSTANCES, SLICES, Conflicts, Fused
from .driver.grid import Box, Grid
from .driver.outputs import Sink, Wanted
from .driver.run import open_run
from .driver.scratch import Scratch
from .driver.stages import Stage
from .driver.stored import Source, is_url, open_ids, same_shape
from .driver.tables import digest, fold

__all__ = ["fuse"]

RESULTS = ("volume", "seeds", "provenance")

BATCH = 64
"""Tiles whose tables are read side by side."""

STAGES = (
    Stage("mark", keeps=("marks",)),
    Stage("count", writes=("numbers", "rows")),
    Stage("decide", reads=("rows",), writes=("found",), keeps=("conflicts",)),
    Stage("write", reads=("numbers", "found")),
)

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class _Context:
    grid: Grid
    scratch: Scratch
    rules: Rules
    sources: dict[str, Source]
    flags: Flags

    def read(self, name: str, box: Box) -> Array:
        """Return a canonical part of a source."""
        part = self.sources[name].read(box)
        if name == CLASSES:
            return class_map(part, name)
        check_id_values(part, name, box)
        return instance_ids(part, name)


@dataclass(frozen=True, eq=False)
class _Writing:
    grid: Grid
    scratch: Scratch
    outputs: dict[str, Sink]


def fuse(call: Call) -> Fused:
    """Do what `lpa3d.fuse` does for stored arrays.

    The driver holds the table of all combinations of two ids and a class that share a voxel, some 500 bytes for each; a
    worker a tile and its own combinations.
    """
    # Classes too: the resulting class map has their dtype, that of floats as in memory.
    sources = {name: open_ids(array, name) for name, array in call.arrays.items() if array is not None}
    first = next(iter(sources))
    for name, source in sources.items():
        same_shape(source, name, sources[first], first)
    shape, ndim = sources[first].shape, sources[first].ndim
    rules = check_rules(
        {name: source.dtype for name, source in sources.items()},
        shape[3 - ndim :],
        **call.keywords,
    )
    # The seeds' dtype depends on their largest ids: until these are known it is the widest one.
    tops = [int(np.iinfo(dtype).max) if (dtype := sources[n].dtype).kind != "b" else 1 for n in rules.labels]
    dtypes = class_dtype(rules), seed_dtype(rules, [min(top, MAX_ID) for top in tops]), np.dtype(np.uint8)
    outputs = {
        name: Wanted(place, shape, ndim, dtype)
        for (name, place), dtype in zip(_find_places(call.place).items(), dtypes, strict=False)
    }
    parameters = {
        "axis": rules.axis,
        "priority": rules.order,
        "complete_slices": rules.complete.tolist(),
        "instance_classes": digest(rules.maps[INSTANCES]),
        "slice_classes": digest(rules.maps[SLICES]),
    }
    with open_run("fuse", sources, parameters, outputs, call.options, keywords=call.keywords, stages=STAGES) as run:
        depth = shape[rules.axis]
        # Mappings may be long, and tiles have no use for them.
        context = _Context(run.grid, run.scratch, replace(rules, maps={}), sources, np.zeros(depth, np.uint8))
        labelled: list[Flags] = []
        if len(rules.labels) == 2:
            run.map("mark", _mark_tile, context)
            labelled = [np.zeros(depth, np.uint8), np.zeros(depth, np.uint8)]
            for tile in range(len(run.grid)):
                box = run.grid.box(tile)
                found = run.scratch.get(f"marks/{tile}")
                for name, flags in zip(rules.labels, labelled, strict=True):
                    flags[box.lo[rules.axis] : box.hi[rules.axis]] |= found[name]
        context = replace(context, flags=flag_slices(rules, depth, labelled))
        run.map("count", _count_tile, context)
        dtype = run.once("decide", _decide, run.scratch, run.grid, rules)["seeds"]
        run.retype("seeds", np.dtype(dtype))
        run.map("write", _write_tile, _Writing(run.grid, run.scratch, dict(run.outputs)))
        kept = run.scratch.get("conflicts")
        conflicts = Conflicts(*(seal(kept[one.name]) if one.name in kept else None for one in fields(Conflicts)))  # type: ignore[arg-type]
    provenance: Any = run.result("provenance") if "provenance" in outputs else None
    return Fused(run.result("volume"), run.result("seeds"), provenance, conflicts)


def _find_places(out: Any) -> dict[str, Any]:
    """Return where each result will be."""
    given, example = Keyword("out"), Keyword("out", {name: f"{name}.zarr" for name in RESULTS})
    need = "a folder for the results, or the place of each is needed: ", example
    if out is None:
        raise InputError("stored arrays need a place for the result: ", *need)
    if isinstance(out, Mapping):
        if not {"volume", "seeds"} <= set(out) <= set(RESULTS):
            names = ", ".join(map(repr, out)) or "nothing"
            raise InputError(given, f" names {names}; ", *need, " (provenance may be left out)")
        return {name: out[name] for name in RESULTS if name in out}
    if not isinstance(out, (str, os.PathLike)):
        raise InputTypeError(given, f" is a {type(out).__module__}.{type(out).__qualname__}; ", *need)
    folder = os.fspath(out)
    if folder.rstrip("/\\").lower().endswith(".zarr"):
        raise InputError(given, f" is {folder!r}, one array, but there are three results; ", *need)
    join = "/".join if is_url(folder) else lambda parts: os.path.join(*parts)
    return {name: join([folder.rstrip("/") if is_url(folder) else folder, f"{name}.zarr"]) for name in RESULTS}


def _mark_tile(context: _Context, tile: int) -> None:
    """Keep which slices of a tile have labels."""
    box = context.grid.box(tile)
    marks = {name: mark_slices(context.read(name, box), context.rules.axis) for name in context.rules.labels}
    context.scratch.put(f"marks/{tile}", **marks)


def _count_tile(context: _Context, tile: int) -> None:
    """Count the combinations of a tile, and keep their numbers, voxel by voxel."""
    box = context.grid.box(tile)
    axis = context.rules.axis
    arrays = {name: context.read(name, box) for name in context.sources}
    inputs = make_inputs(context.rules, arrays, box.shape, context.flags[box.lo[axis] : box.hi[axis]])
    rows = count_rows(inputs)
    (numbers,) = write_tables(inputs, rows.keys, [np.arange(len(rows.keys), dtype=np.uint32)])
    z, y, x = (place + lo for place, lo in zip(np.unravel_index(rows.first, box.shape), box.lo, strict=True))
    _, height, width = context.grid.shape
    context.scratch.volume("numbers", context.grid, np.uint32).write(tile, numbers)
    context.scratch.put(
        f"rows/{tile}",
        keys=rows.keys,
        voxels=rows.voxels,
        first=(z * height + y) * width + x,
        boxes=rows.boxes + np.array(box.lo),
    )


def _decide(scratch: Scratch, grid: Grid, rules: Rules) -> dict[str, Any]:
    """Decide what becomes of each combination, keep it for each tile, and the conflicts; return the seeds' dtype."""

    def read(tile: int) -> Rows:
        return Rows(**scratch.get(f"rows/{tile}"))

    def tables() -> Iterator[Rows]:
        for start in range(0, len(grid), BATCH):
            yield from run_all(read, range(start, min(start + BATCH, len(grid))))

    rows = fold(tables(), add_rows, lambda table: len(table.keys))
    found, conflicts = settle(rules, rows)
    index = index_combinations(rows.keys)
    del rows

    def keep(tile: int) -> None:
        keys = scratch.get(f"rows/{tile}", "keys")["keys"]
        at = np.empty(len(keys), np.int64)
        find_keys(keys, index, at)
        scratch.put(f"found/{tile}", **{name: table[at] for name, table in zip(RESULTS, found, strict=True)})

    for start in range(0, len(grid), BATCH):
        run_all(keep, range(start, min(start + BATCH, len(grid))))
    scratch.put("conflicts", **conflicts.columns())
    return {"seeds": found[1].dtype.str}


def _write_tile(context: _Writing, tile: int) -> None:
    """Write a tile of all results."""
    box = context.grid.box(tile)
    numbers = context.scratch.volume("numbers", context.grid, np.uint32).read(box)
    found = context.scratch.get(f"found/{tile}")
    for name, sink in context.outputs.items():
        # Any mode but "raise" takes without a check; all numbers are in range.
        sink.write(box, np.take(found[name], numbers, mode="clip"))
