"""`label` on stored arrays: the components of each tile, joined over its sides and numbered over the volume.

Stages
------
1. *Scan* (map): the components of each tile, kept as runs, so that the input is read once.
2. *Pairs* (map), 3. *join* (once): see `lpa3d.tiled.components`.
4. *Write* (map): the number of each component, run by run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.call import Call
from ..arrays.checks import canonical_connectivity
from ..arrays.components import number_dtype
from .components import (
    component_areas,
    cut_slices,
    join_stages,
    local_numbers,
    open_sides,
    recall_components,
    run_join,
    scan_tile,
    write_numbers,
)
from .driver.grid import Box, Grid
from .driver.outputs import Sink, Wanted
from .driver.run import open_run
from .driver.scratch import Scratch
from .driver.stages import Stage
from .driver.stored import Source, open_classes

__all__ = ["label"]

NAME = "label"

STAGES = (
    Stage(f"{NAME} scan", writes=(f"{NAME}/scan",)),
    *join_stages(NAME),
    Stage(f"{NAME} write", reads=component_areas(NAME)),
)


@dataclass(frozen=True, slots=True)
class _Scan:
    """What a tile's scan needs."""

    volume: Source
    grid: Grid
    scratch: Scratch
    connectivity: int


@dataclass(frozen=True, slots=True)
class _Write:
    """What the writing of a tile needs."""

    grid: Grid
    scratch: Scratch
    out: Sink
    dtype: np.dtype[Any]


def _scan(context: _Scan, tile: int) -> None:
    classes = context.volume.read(context.grid.box(tile))
    classes = classes.view(f"u{classes.dtype.itemsize}")
    sides = open_sides(context.grid, tile)
    context.scratch.put(f"{NAME}/scan/{tile}", **scan_tile(classes, context.connectivity, sides, keep=True))


def _write(context: _Write, tile: int) -> None:
    box = context.grid.box(tile)
    components = recall_components(context.scratch, NAME, tile)
    numbers = local_numbers(context.scratch, context.grid, NAME, tile, components, context.dtype)
    # As many slices at a time as a chunk has: zarr copies what it is given before it compresses that.
    sliced = components.shape == box.shape
    step = context.out.rows if sliced else components.shape[0]
    for first, part in cut_slices(components, step):
        labels = np.empty(part.shape, context.dtype)
        write_numbers(part, numbers, labels)
        z_lo = box.lo[0] + first
        slices = Box((z_lo, *box.lo[1:]), (z_lo + len(labels), *box.hi[1:]))
        context.out.write(slices if sliced else box, labels)


def label(call: Call) -> Any:
    """Do what `lpa3d.label` does for a zarr or dask array; return a zarr array (dask in, dask out)."""
    steps = canonical_connectivity(call.keywords["connectivity"])
    source = open_classes(call.arrays["volume"], "volume")
    dtype = number_dtype(math.prod(source.shape))
    with open_run(
        "label",
        {"volume": source},
        {"connectivity": steps},
        {"out": Wanted(call.place, source.shape, source.ndim, dtype)},
        call.options,
        keywords=call.keywords,
        stages=STAGES,
    ) as run:
        run.map(f"{NAME} scan", _scan, _Scan(source, run.grid, run.scratch, steps))
        run_join(run, NAME, steps)
        run.map(f"{NAME} write", _write, _Write(run.grid, run.scratch, run.outputs["out"], dtype))
    return run.result("out")
