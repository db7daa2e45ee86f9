"""Which labels touch, tile by tile: the verb `contacts`, and the counts that `merge` builds on.

Stages
------
1. *Count* (every tile): the pairs of touching voxels that lie inside the tile. Its faces are kept.
2. *Seams* (every tile): the pairs of which only the first voxel lies in the tile, from the kept faces, so that no chunk
   of the labels is read twice.
3. *Add* (driver) and *tabulate*, as in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.call import Call
from ..arrays.checks import canonical_connectivity, check_id_values
from ..arrays.classes import list_pairs
from ..arrays.neighbors import neighbor_offsets
from ..linking.contacts import (
    Contacts,
    Counts,
    add_counts,
    canonical_image,
    check_spacing,
    count_box,
    image_scale,
    tabulate,
)
from .driver.grid import Box, Grid
from .driver.run import Run, open_run
from .driver.scratch import Scratch
from .driver.stages import Stage
from .driver.stored import Source, open_ids, open_source, same_shape
from .driver.tables import fold

__all__ = ["contacts", "fold_counts", "map_counts", "tile_key"]

Array = npt.NDArray[Any]

STAGES = (Stage("count", keeps=("counts",)), Stage("seams", reads=("counts",), keeps=("seams",)))
"""Of `map_counts`, where the driver adds up what they count."""


@dataclass(frozen=True)
class _Context:
    grid: Grid
    scratch: Scratch
    connectivity: int
    labels: Source
    image: Source | None
    classes: Source | None


def contacts(call: Call) -> Contacts:
    """Do what `lpa3d.contacts` does for stored arrays."""
    image = call.arrays["image"]
    steps = canonical_connectivity(call.keywords["connectivity"])
    source = open_ids(call.arrays["labels"], "labels")
    sizes = check_spacing(call.keywords["spacing"], source.ndim)
    inputs = {"labels": source}
    if image is not None:
        inputs["image"] = open_source(image, "image")
        same_shape(inputs["image"], "image", source, "labels")
    parameters = {"connectivity": steps}
    with open_run("contacts", inputs, parameters, {}, call.options, keywords=call.keywords, stages=STAGES) as run:
        map_counts(run, source, inputs.get("image"), None, steps)
        counts = fold_counts(run.scratch, run.grid)
    return tabulate(counts, sizes, None if image is None else image_scale(inputs["image"].dtype))


def map_counts(run: Run, labels: Source, image: Source | None, classes: Source | None, connectivity: int) -> None:
    """Count every tile, and the seams; `classes` asks for the pairs of labels and classes of each tile, too."""
    context = _Context(run.grid, run.scratch, connectivity, labels, image, classes)
    run.map("count", _count_tile, context)
    if len(run.grid) > 1:
        run.map("seams", _count_seams, context)


def tile_key(tile: int) -> str:
    """Return where the counts inside a tile are (and ``classes``, the pairs of its labels and their classes)."""
    return f"counts/{tile}"


def _seams_key(tile: int) -> str:
    return f"seams/{tile}"


def fold_counts(scratch: Scratch, grid: Grid) -> Counts:
    """Return the counts of the volume."""

    def tables() -> Iterator[Counts]:
        for tile in range(len(grid)):
            for key in (tile_key(tile), _seams_key(tile))[: 1 + (len(grid) > 1)]:
                yield Counts(**scratch.get(key, "pairs", "values"))

    return fold(tables(), add_counts, lambda table: len(table.pairs))


def _forward(connectivity: int) -> npt.NDArray[np.int64]:
    offsets: npt.NDArray[np.int64] = neighbor_offsets(connectivity)
    return offsets[len(offsets) // 2 :]


def _count_tile(context: _Context, tile: int) -> None:
    """Count the pairs inside a tile and keep its faces."""
    box = context.grid.box(tile)
    labels = context.labels.read(box)
    check_id_values(labels, "labels", box)
    image = None if context.image is None else canonical_image(context.image.read(box))
    whole = np.array([(0, 0, 0), box.shape])
    counts = add_counts([count_box(labels, image, _forward(context.connectivity), whole)])
    kept = {"pairs": counts.pairs, "values": counts.values}
    if context.classes is not None:
        kept["classes"] = list_pairs(labels, context.classes.read(box))
    for axis in range(3):
        for side in range(2 if context.grid.counts[axis] > 1 else 0):
            for name, array in (("labels", labels), ("image", image)):
                if array is not None:
                    kept[f"{name}{axis}{side}"] = np.take(array, [-side], axis)
    context.scratch.put(tile_key(tile), **kept)


def _count_seams(context: _Context, tile: int) -> None:
    """Count the pairs whose first voxel only lies in a tile, each at the first axis that leads out of it."""
    grid = context.grid
    box = grid.box(tile)
    forward = _forward(context.connectivity)
    parts = []
    for axis in range(3):
        for step in (1, -1):
            offsets = forward[forward[:, axis] == step]
            own, other = (box.hi[axis] - 1, box.hi[axis]) if step > 0 else (box.lo[axis], box.lo[axis] - 1)
            if not len(offsets) or not 0 <= other < grid.shape[axis]:
                continue
            # Pairs that leave the tile along an earlier axis, too, are counted there: the kernel meets the end of the
            # array. Along a later axis they are counted here.
            margins = [0 if k <= axis else int(np.abs(offsets[:, k]).max()) for k in range(3)]
            first = _plane(box, axis, own)
            second = _plane(box.grow(margins, grid.shape), axis, other)
            both = Box(_least(first.lo, second.lo), _most(first.hi, second.hi))
            labels = _read_planes(context, "labels", axis, both, (first, second))
            image = None if context.image is None else _read_planes(context, "image", axis, both, (first, second))
            inside = np.array([first.lo, first.hi], np.int64) - np.array(both.lo, np.int64)
            parts.append(count_box(labels, image, offsets, inside))
    counts = add_counts(parts)
    context.scratch.put(_seams_key(tile), pairs=counts.pairs, values=counts.values)


def _least(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, int, int]:
    z, y, x = map(min, a, b)
    return z, y, x


def _most(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, int, int]:
    z, y, x = map(max, a, b)
    return z, y, x


def _plane(box: Box, axis: int, at: int) -> Box:
    """Return the slice of a box, or the one next to it, across an axis."""
    lo, hi = list(box.lo), list(box.hi)
    lo[axis], hi[axis] = at, at + 1
    return Box((lo[0], lo[1], lo[2]), (hi[0], hi[1], hi[2]))


def _read_planes(context: _Context, name: str, axis: int, both: Box, planes: tuple[Box, Box]) -> Array:
    """Return an array of the box `both`, filled on two planes across `axis` with what the tiles kept of their faces."""
    grid = context.grid
    out: Array | None = None
    for plane in planes:
        for tile in grid.tiles_in(plane):
            whole = grid.box(tile)
            part = plane.intersect(whole)
            assert part is not None
            side = int(part.lo[axis] != whole.lo[axis])
            key = f"{name}{axis}{side}"
            face = context.scratch.get(tile_key(tile), key)[key]
            if out is None:
                out = np.zeros(both.shape, face.dtype)
            out[part.within(both)] = face[part.within(_plane(whole, axis, part.lo[axis]))]
    assert out is not None
    return out
