"""Measure a segmentation against a reference, tile by tile: the verb `evaluate`.

Stages
------
1. *Scan* and *join* (only ``instances="components"``): the components of both sides, over tiles (`tiled.components`).
2. *Count* (every tile): the table of overlaps, and which ids lie on which classes.
3. *Add* (driver), *select* and *score*, as in memory.
4. *Surfaces* (`tiled.surfaces`).
5. *Slice* (every tile): what the tile holds of each slab of slices; a slab is as large as a tile. *Warp* (every slab):
   the warping error of images. So chunks are read once, however few slices a slab has.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.call import Call
from ..arrays.checks import check_id_values
from ..arrays.classes import ClassPairs, list_pairs
from ..arrays.components import number_dtype
from ..arrays.overlap import Overlaps, add_overlaps, count_overlaps, shift_overlaps
from ..arrays.threads import split
from ..errors import InputError, Keyword
from ..evaluation.classified import Classified, Sides, classify_classes, classify_components, classify_ids
from ..evaluation.report import Foreground, report, separate_masks
from ..evaluation.request import Request, check_ignore, check_mode, check_request, mark_value, pair_classes
from ..evaluation.result import Evaluation
from ..evaluation.warping import count_unwarped
from .components import (
    component_areas,
    join_stages,
    local_numbers,
    open_sides,
    recall_components,
    run_join,
    scan_tile,
    write_numbers,
)
from .driver.grid import Box, Grid
from .driver.run import Run, open_run
from .driver.scratch import Scratch
from .driver.stages import Stage
from .driver.stored import Source, open_classes, open_ids, same_shape
from .driver.tables import digest, fold, unite_rows
from .surfaces import measure_surfaces, surface_stages

__all__ = ["evaluate"]

SIDES = ("reference", "prediction")

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Volumes:
    """The two volumes that are compared, and how to read parts of them. Picklable.

    Attributes
    ----------
    mode : str or None
        What the values are, as in `evaluate`.
    reference, prediction : Source
    ignore : Source, int or None
        Where not 0, or the value of the reference, that is left out.
    """

    grid: Grid
    scratch: Scratch
    mode: str | None
    reference: Source
    prediction: Source
    ignore: Source | int | None

    def read(self, box: Box) -> Sides:
        """Return a box of both as they are, checked and canonical."""
        reference, prediction = self.reference.read(box), self.prediction.read(box)
        mask = None
        if isinstance(self.ignore, Source):
            mask = self.ignore.read(box) != 0
        elif self.ignore is not None:
            reference, mask = mark_value(reference, self.ignore)
        for array, name in zip((reference, prediction), SIDES, strict=True):
            check_id_values(array, name, box, spare="ignore" if name == "reference" else "")
        return Sides(_plain(reference), _plain(prediction), mask)

    def read_tile(self, tile: int) -> Sides:
        """Return the instances of a tile: ids, or the numbers of components."""
        return self.number(tile, self.read(self.grid.box(tile)))

    def number(self, tile: int, sides: Sides) -> Sides:
        """Return the instances of a tile, given the values there."""
        if self.mode != "components":
            return sides
        first, second = (self._number(name, tile, sides.reference.shape) for name in SIDES)
        return replace(sides, reference=first, prediction=second)

    def _number(self, name: str, tile: int, shape: tuple[int, ...]) -> Array:
        dtype = number_dtype(math.prod(self.grid.shape))
        components = recall_components(self.scratch, name, tile)
        numbers = np.empty(shape, dtype)
        write_numbers(components, local_numbers(self.scratch, self.grid, name, tile, components, dtype), numbers)
        return numbers


@dataclass(frozen=True)
class _Scan:
    volumes: Volumes
    connectivity: int


@dataclass(frozen=True)
class _Count:
    volumes: Volumes
    classes: tuple[Source | None, Source | None]


@dataclass(frozen=True)
class _Warp:
    volumes: Volumes
    slabs: list[tuple[int, int]]
    values: list[int | None]
    connectivity: int


def _plain(array: Array) -> Array:
    """Return booleans as integers."""
    return array.view(np.uint8) if array.dtype.kind == "b" else array


def evaluate(call: Call) -> Evaluation:
    """Do what `lpa3d.evaluate` does for stored arrays."""
    ignore, classes = call.arrays["ignore"], call.arrays["classes"]
    mode = check_mode(call.keywords["instances"])
    inputs = {name: (open_ids if mode == "ids" else open_classes)(call.arrays[name], name) for name in SIDES}
    first, second = inputs["reference"], inputs["prediction"]
    same_shape(second, "prediction", first, "reference")
    shape = first.shape[3 - first.ndim :]
    if isinstance(ignore, (str, os.PathLike, np.ndarray)) or hasattr(ignore, "chunks"):
        inputs["ignore"] = ignore = open_classes(ignore, "ignore")
        same_shape(ignore, "ignore", first, "reference")
    elif ignore is not None:
        ignore = check_ignore(ignore, shape)
    request = check_request(first.ndim, classes=classes, **call.keywords)
    if request.warping == "3d":
        raise InputError(
            Keyword("warping", "3d"),
            " deforms the volume as one, which cannot be done tile by tile; pass ",
            Keyword("warping", "2d"),
            ", or read both into memory first: lpa3d.evaluate(lpa3d.io.read(REFERENCE), lpa3d.io.read(PREDICTION), "
            "warping='3d')",
        )
    sources = _open_classes(classes, mode, inputs)
    parameters = request.describe() | {
        "ignore": ignore if isinstance(ignore, int) else None,
        "surfaces": request.surfaces,
        "class_names": digest(request.names),
        "classes": [digest(one) if isinstance(one, Mapping) else None for one in sources],
    }

    with open_run(
        "evaluate", inputs, parameters, {}, call.options, keywords=call.keywords, stages=_list_stages(mode)
    ) as run:
        volumes = Volumes(run.grid, run.scratch, mode, first, second, ignore)
        table = _count(run, volumes, request, sources)

        def measure(pairs: Ids, boxes: Ids) -> npt.NDArray[np.float64]:
            pooled = request.convention.assd == "pooled"
            return measure_surfaces(
                run, volumes.read_tile, table.overlaps, pairs, boxes, request.spacing, pooled=pooled
            )

        def unwarp(foregrounds: Sequence[Foreground]) -> list[tuple[int, int]]:
            return _unwarp(run, volumes, foregrounds, request.connectivity)

        return report(request, table, shape, ignore is not None, measure, unwarp)


def _list_stages(mode: str | None) -> list[Stage]:
    """Return all stages that there may be."""
    stages: list[Stage] = []
    instances: list[str] = []
    if mode == "components":
        stages.append(Stage("scan", writes=tuple(f"{name}/scan" for name in SIDES)))
        for name in SIDES:
            stages += join_stages(name)
            instances += component_areas(name)
    return [
        *stages,
        Stage("count", reads=tuple(instances), keeps=("count",)),
        *surface_stages(instances),
        Stage("foregrounds", writes=("foregrounds",)),
        Stage("slice", writes=("slices",)),
        Stage("warp", reads=("foregrounds", "slices"), keeps=("warp",)),
    ]


def _open_classes(classes: Any, mode: str | None, inputs: dict[str, Source]) -> tuple[Any, Any]:
    """Return for both sides None, a mapping, or a source, which is added to the inputs."""
    found = []
    for which, given in enumerate(pair_classes(classes, mode) or (None, None)):
        if given is not None and not isinstance(given, Mapping):
            name = f"classes[{which}]"
            given = inputs[name] = open_classes(given, name)
            same_shape(given, name, inputs[SIDES[which]], SIDES[which])
        found.append(given)
    return found[0], found[1]


def _count(run: Run, volumes: Volumes, request: Request, classes: tuple[Any, Any]) -> Classified:
    """Return the table of the volume."""
    if request.mode == "components":
        run.map("scan", _scan_tile, _Scan(volumes, request.connectivity))
        for name in SIDES:
            run_join(run, name, request.connectivity)
    first, second = (one if isinstance(one, Source) else None for one in classes)
    run.map("count", _count_tile, _Count(volumes, (first, second)))

    tiles = range(len(run.grid))

    def tables() -> Iterator[Overlaps]:
        for tile in tiles:
            yield Overlaps(**run.scratch.get(f"count/{tile}", "pairs", "voxels", "boxes"))

    overlaps = fold(tables(), add_overlaps, lambda table: len(table.pairs))
    if request.mode is None:
        return classify_classes(overlaps)

    def unite(name: str) -> Ids:
        return fold((run.scratch.get(f"count/{tile}", name)[name] for tile in tiles), unite_rows, len)

    if request.mode == "components":
        return classify_components(overlaps, (_index(unite("classes0")), _index(unite("classes1"))))
    if classes[0] is None:
        return classify_ids(overlaps, None)
    given = [
        ClassPairs(unite(f"classes{which}"), one.dtype) if isinstance(one, Source) else one
        for which, one in enumerate(classes)
    ]
    return classify_ids(overlaps, (given[0], given[1]))


def _index(pairs: Ids) -> Ids:
    """Return the class of each number from 0 on, given the pairs of both."""
    of = np.zeros(int(pairs[-1, 0]) + 1 if len(pairs) else 1, np.int64)
    of[pairs[:, 0]] = pairs[:, 1]
    return of


def _scan_tile(context: _Scan, tile: int) -> None:
    """Find the components of both sides of a tile."""
    volumes = context.volumes
    sides = volumes.read(volumes.grid.box(tile))
    for name, array in zip(SIDES, (sides.reference, sides.prediction), strict=True):
        bits = array.view(np.dtype(f"u{array.dtype.itemsize}"))
        found = scan_tile(bits, context.connectivity, open_sides(volumes.grid, tile), keep=True)
        volumes.scratch.put(f"{name}/scan/{tile}", **found)


def _count_tile(context: _Count, tile: int) -> None:
    """Count the overlaps in a tile, and which ids lie on which classes."""
    volumes = context.volumes
    box = volumes.grid.box(tile)
    values = volumes.read(box)
    sides = volumes.number(tile, values)
    table = shift_overlaps(count_overlaps(sides.reference, sides.prediction, sides.ignore), box.lo, volumes.grid.shape)
    kept = {"pairs": table.pairs, "voxels": table.voxels, "boxes": table.boxes}
    maps: tuple[Array | None, ...] = tuple(None if one is None else one.read(box) for one in context.classes)
    if volumes.mode == "components":
        maps = values.reference, values.prediction
    for which, (ids, of) in enumerate(zip((sides.reference, sides.prediction), maps, strict=True)):
        if of is not None:
            kept[f"classes{which}"] = list_pairs(ids, of)
    volumes.scratch.put(f"count/{tile}", **kept)


def _unwarp(run: Run, volumes: Volumes, foregrounds: Sequence[Foreground], connectivity: int) -> list[tuple[int, int]]:
    """Return the voxels that warping leaves wrong, and those that count, of each foreground."""
    depth, height, width = run.grid.shape
    if not depth * height * width:
        return [(0, 0)] * len(foregrounds)
    run.once("foregrounds", _keep_foregrounds, run.scratch, foregrounds)
    layer = min(run.grid.tile[0], depth)
    slices = max(1, math.prod(map(min, run.grid.tile, run.grid.shape)) // (height * width))
    parts = split(layer, -(-layer // slices))
    slabs = [(z + lo, min(z + hi, depth)) for z in range(0, depth, layer) for lo, hi in parts if z + lo < depth]
    context = _Warp(volumes, slabs, [one.value for one in foregrounds], connectivity)
    run.map("slice", _slice_tile, context)
    run.map("warp", _warp_slab, context, len(slabs))
    found = np.zeros((len(foregrounds), 2), np.int64)
    for slab in range(len(slabs)):
        found += run.scratch.get(f"warp/{slab}", "found")["found"]
    return [(wrong, counted) for wrong, counted in found.tolist()]


def _keep_foregrounds(scratch: Scratch, foregrounds: Sequence[Foreground]) -> None:
    """Keep the ids that are no foreground, which may be many."""
    for k, one in enumerate(foregrounds):
        if one.others is not None:
            scratch.put(f"foregrounds/{k}", first=one.others[0], second=one.others[1])


def _slice_tile(context: _Warp, tile: int) -> None:
    """Keep what a tile holds of each slab."""
    volumes = context.volumes
    box = volumes.grid.box(tile)
    sides = volumes.read(box)
    kept = {}
    for lo, hi in context.slabs:
        if box.lo[0] <= lo < box.hi[0]:
            for name in _named(volumes):
                kept[f"{name} {lo}"] = getattr(sides, name)[lo - box.lo[0] : hi - box.lo[0]]
    volumes.scratch.put(f"slices/{tile}", **kept)


def _named(volumes: Volumes) -> tuple[str, ...]:
    """Return the attributes of `Sides` that are arrays."""
    return SIDES if volumes.ignore is None else (*SIDES, "ignore")


def _read_slab(volumes: Volumes, lo: int, hi: int) -> Sides:
    """Return whole slices, from what the tiles kept of them."""
    grid = volumes.grid
    slab = Box((lo, 0, 0), (hi, *grid.shape[1:]))
    arrays: dict[str, Array] = {}
    for tile in grid.tiles_in(slab):
        found = volumes.scratch.get(f"slices/{tile}", *(f"{name} {lo}" for name in _named(volumes)))
        part = slab.intersect(grid.box(tile))
        assert part is not None
        for name in _named(volumes):
            array = found[f"{name} {lo}"]
            arrays.setdefault(name, np.empty(slab.shape, array.dtype))[part.within(slab)] = array
    return Sides(arrays["reference"], arrays["prediction"], arrays.get("ignore"))


def _warp_slab(context: _Warp, slab: int) -> None:
    """Warp some slices."""
    volumes = context.volumes
    sides = _read_slab(volumes, *context.slabs[slab])
    found = []
    for k, value in enumerate(context.values):
        others = None
        if volumes.mode == "ids":
            kept = volumes.scratch.get(f"foregrounds/{k}")
            others = kept["first"], kept["second"]
        how: dict[str, Any] = {"connectivity": context.connectivity, "per_slice": True}
        masks = separate_masks(sides, Foreground(value, others), **how)
        found.append(count_unwarped(masks[0], masks[1], sides.ignore, **how))
    volumes.scratch.put(f"warp/{slab}", found=np.array(found, np.int64))
