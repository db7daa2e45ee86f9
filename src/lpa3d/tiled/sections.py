"""The sections stage over tiles: bit for bit what `lpa3d.propagation.sections` draws in the whole volume.

Stages
------
1. *Planes* (map over the tiles that hold annotated slices): the seeds on those slices go to a scratch store of planes.
2. *Pieces* (map over annotated slices): the pieces of a slice, their table, and which piece each voxel is in.
3. *Pairs* (map over intervals): pairs of pieces, and what the interval says about each class.
4. *Switch* (driver): which classes take part. If none does, nothing follows.
5. *Lone* (map over intervals): the pieces in no pair and their expected motion, grouped by tile.
6. *Motions* (map over tiles with annotated slices): the class map refines those motions.
7. *Items* (map over intervals): what is drawn, for each tile beside the interval.
8. *Drawing*: `draw_tile`, on a tile's arrays, in a stage of the caller's own.

A slice across the axis is one plane ``(rows, columns)`` of the two other axes. Only stage 2 holds a whole plane, about
12 bytes for each of its voxels; stage 3 holds one row of tiles of two planes. Tables hold a few hundred bytes for each
piece of two slices. Drawing holds the potentials of the pieces near the tile on three annotated slices.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ..arrays.checks import class_map
from ..arrays.components import WIDE
from ..propagation.drawing import draw_intervals, join_items, swept_boxes
from ..propagation.motions import LOOK, decide, list_lone, match_lone, matched_box, weigh_motions
from ..propagation.pieces import (
    ITEM,
    LONE,
    Geometry,
    Interval,
    Pairs,
    Pieces,
    PlaneBox,
    add_overlaps,
    behind,
    find_pieces,
    list_intervals,
    list_overlaps,
    pair_pieces,
)
from .driver.grid import Box, Grid, Place
from .driver.scratch import Scratch, ScratchVolume
from .driver.stages import Stage

if TYPE_CHECKING:
    from .driver.run import Run

__all__ = ["DRAWING", "Drawing", "Reads", "Sections", "draw_tile", "run_sections", "section_stages"]

MOST_READ = 2**26
"""Bytes of the class map that are read at once to match pieces; a piece that needs more gets them."""

Ints = npt.NDArray[np.int64]


class Reads(Protocol):
    """What gives the voxels of any box: a `Source`, a `ScratchVolume`, or a picklable object of the caller."""

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Return the voxels of `box`."""


@dataclass(frozen=True)
class Drawing:
    """What `draw_tile` needs: a few numbers, and where the rest is in scratch. Picklable."""

    scratch: Scratch
    grid: Grid
    axis: int
    annotated: tuple[int, ...]
    spacing: tuple[float, float, float]

    @cached_property
    def geometry(self) -> Geometry:
        """Return the lengths in a plane."""
        return Geometry(self.spacing, self.axis)

    @cached_property
    def intervals(self) -> list[Interval]:
        """Return all intervals."""
        return list_intervals(self.annotated, self.grid.shape[self.axis])

    @cached_property
    def planes(self) -> Grid:
        """Return the grid of the annotated slices, one after the other, in tiles as the volume's."""
        height, width = self._in_plane(self.grid.shape)
        rows, columns = self._in_plane(self.grid.tile)
        return Grid((len(self.annotated), height, width), (1, rows, columns))

    @property
    def seeds(self) -> ScratchVolume:
        """Return the seeds on the annotated slices, as ranks."""
        return self.scratch.volume("sections/seeds", self.planes, np.uint32)

    def _in_plane(self, place: Sequence[int]) -> tuple[int, int]:
        first, second = (value for axis, value in enumerate(place) if axis != self.axis)
        return first, second

    def stand(self, tile: int) -> tuple[int, int]:
        """Return the row and the column of a tile among those of its layer."""
        return self._in_plane(self.grid.position(tile))

    def tile_at(self, plane: int, row: int, column: int) -> int:
        """Return the tile of the volume that holds a tile of an annotated slice."""
        position = [row, column]
        position.insert(self.axis, self.annotated[plane] // self.grid.tile[self.axis])
        return self.grid.index(position)

    def box(self, z: tuple[int, int], inside: Sequence[int]) -> Box:
        """Return some slices of the part ``(y0, y1, x0, x1)`` of a plane, as voxels of the volume."""
        lo, hi = [int(inside[0]), int(inside[2])], [int(inside[1]), int(inside[3])]
        lo.insert(self.axis, z[0])
        hi.insert(self.axis, z[1])
        return Box((lo[0], lo[1], lo[2]), (hi[0], hi[1], hi[2]))

    def across(self, place: Sequence[int]) -> Place:
        """Return a place with the axis that the slices lie across first."""
        return (place[self.axis], *self._in_plane(place))

    def held(self, tile: int) -> range:
        """Return the annotated slices in a tile."""
        box = self.grid.box(tile)
        return range(*(bisect_left(self.annotated, end[self.axis]) for end in (box.lo, box.hi)))

    def sides(self, plane: int) -> Iterator[tuple[int, int]]:
        """Yield each interval that an annotated slice is an end of, and whether it is its first (0) or last (1)."""
        last = len(self.annotated) - 1
        yield plane if plane < last else last + 1, 0
        yield plane - 1 if plane > 0 else last, 1

    def crossing(self, tile: int) -> list[int]:
        """Return the intervals of which a tile holds slices."""
        box = self.grid.box(tile)
        lo, hi = box.lo[self.axis], box.hi[self.axis]
        inner = len(self.annotated) - 1
        near = range(max(0, bisect_left(self.annotated, lo) - 1), min(inner, bisect_left(self.annotated, hi)))
        return [
            index
            for index in (*near, inner, inner + 1)
            if max(lo, self.intervals[index].slices.start) < min(hi, self.intervals[index].slices.stop)
        ]

    def read_pieces(self, plane: int) -> Pieces:
        """Return the table of an annotated slice."""
        return Pieces(self.annotated[plane], **self.scratch.get(f"sections/pieces/{plane}"))

    def read_pairs(self, interval: int) -> Pairs:
        """Return the pairs of an interval."""
        if interval >= len(self.annotated) - 1:
            return Pairs.none()
        return Pairs(**self.scratch.get(f"sections/pairs/{interval}", "pieces", "motions"))

    def read_image(self, plane: int, inside: PlaneBox) -> npt.NDArray[Any]:
        """Return the piece of each voxel in a part of an annotated slice, counted from 1.

        All tiles of it are there, also empty ones: a task that comes late, when the folder is being deleted, fails
        rather than draw without the pieces.
        """
        y0, y1, x0, x1 = inside
        box = Box((plane, y0, x0), (plane + 1, y1, x1))
        _, height, width = self.planes.shape
        image = np.empty(box.shape[1:], dtype=np.uint32 if height * width < WIDE else np.int64)
        for tile in self.planes.tiles_in(box):
            whole = self.planes.box(tile)
            part = whole.intersect(box)
            if part is not None:
                found = self.scratch.get(f"sections/images/{tile}", "image")["image"]
                image[part.within(box)[1:]] = found[part.within(whole)[1:]]
        return image


@dataclass(frozen=True)
class _Inputs:
    """What the stages before drawing read."""

    drawing: Drawing
    volume: Reads
    seeds: Reads


@dataclass(frozen=True)
class _Passed:
    """The stages after the switch."""

    drawing: Drawing
    volume: Reads
    kinds: npt.NDArray[Any]
    """The classes that take part."""


@dataclass(frozen=True)
class Sections:
    """What the stages before drawing found.

    Attributes
    ----------
    took_part : ndarray of bool, parallel to `classes`
        Whether the label's class passed the switch, as `label_sections` returns it.
    drawing : Drawing or None
        To draw with; None where no class takes part: then no voxel changes.
    """

    took_part: npt.NDArray[np.bool_]
    drawing: Drawing | None


def run_sections(
    run: Run,
    volume: Reads,
    seeds: Reads,
    classes: npt.NDArray[Any],
    axis: int,
    annotated: Sequence[int],
    spacing: tuple[float, float, float],
) -> Sections:
    """Run all stages before drawing: `section_stages` of `run` (tiles of ``run.grid``).

    Parameters
    ----------
    run
        The run; its scratch keeps the tables and planes under ``sections/``.
    volume
        Class map (after ``max_distance``: the reached one), of any integer dtype.
    seeds
        Ranks of the kept seeds, uint32, 0 elsewhere. Read once in every tile that holds annotated slices, from the
        first of these slices to the last.
    classes
        Class of each rank, at index 0 the background; of the canonical (unsigned) dtype of `volume`.
    axis
        The axis that the annotated slices lie across.
    annotated
        Their positions, ascending, at least two.
    spacing
        Voxel size.

    Notes
    -----
    A task of stage 6 reads at most 64 MB of the class map at once, but for a piece that alone needs more.
    """
    drawing = Drawing(run.scratch, run.grid, axis, tuple(int(z) for z in annotated), spacing)
    inputs = _Inputs(drawing, volume, seeds)
    layers = {z // run.grid.tile[axis] for z in drawing.annotated}
    numbers = np.arange(len(run.grid)).reshape(run.grid.counts)
    tiles = np.sort(np.take(numbers, sorted(layers), axis).reshape(-1))
    gaps = len(annotated) - 1
    run.once("sections/classes", _keep_classes, run.scratch, classes)
    run.map("sections/planes", _save_planes, inputs, tiles)
    run.map("sections/pieces", _save_pieces, drawing, len(annotated))
    run.map("sections/pairs", _save_pairs, drawing, gaps)
    kinds = np.array(run.once("sections/switch", _switch, run.scratch, gaps)["kinds"], dtype=classes.dtype)
    took_part = np.isin(classes, kinds)
    if not took_part.any():
        return Sections(took_part, None)
    passed = _Passed(drawing, volume, kinds)
    run.map("sections/lone", _save_lone, passed, gaps + 2)
    run.map("sections/motions", _save_motions, passed, tiles)
    run.map("sections/items", _save_items, passed, gaps + 2)
    return Sections(took_part, drawing)


def section_stages(volume: Sequence[str], seeds: Sequence[str]) -> tuple[Stage, ...]:
    """Return the stages of `run_sections`, given the areas that reading its volume and its seeds reads."""
    return (
        Stage("sections/classes", writes=("sections/classes",)),
        Stage("sections/planes", reads=tuple(seeds), writes=("sections/seeds",)),
        Stage(
            "sections/pieces",
            reads=("sections/seeds", "sections/classes"),
            writes=("sections/images", "sections/pieces"),
        ),
        Stage("sections/pairs", reads=("sections/images", "sections/pieces"), writes=("sections/pairs",)),
        Stage("sections/switch", reads=("sections/pairs",)),
        Stage("sections/lone", reads=("sections/pieces", "sections/pairs"), writes=("sections/lone",)),
        Stage("sections/motions", reads=(*volume, "sections/lone", "sections/images"), writes=("sections/motions",)),
        Stage(
            "sections/items",
            reads=("sections/pieces", "sections/pairs", "sections/lone", "sections/motions"),
            writes=("sections/items",),
        ),
    )


DRAWING = ("sections/items", "sections/images")
"""What `draw_tile` reads."""


def draw_tile(drawing: Drawing, tile: int, volume: npt.NDArray[Any], labels: npt.NDArray[np.uint32]) -> None:
    """Label, in place, the unlabelled voxels of a tile between annotated slices.

    Parameters
    ----------
    drawing
        From `run_sections`.
    tile
        Number of the tile in ``run.grid``.
    volume
        The tile of the class map that `run_sections` was given.
    labels
        The tile's ranks of the kept seeds, uint32.
    """
    row, column = drawing.stand(tile)
    work = []
    for index in drawing.crossing(tile):
        items = drawing.scratch.get(f"sections/items/{index}/{row}", str(column))[str(column)].view(ITEM)[:, 0]
        work.append((drawing.intervals[index], items))
    _, height, width = drawing.planes.shape
    draw_intervals(
        work,
        drawing.read_image,
        (height, width),
        drawing.across(drawing.grid.box(tile).lo),
        np.moveaxis(class_map(volume), drawing.axis, 0),
        np.moveaxis(labels, drawing.axis, 0),
        drawing.geometry,
    )


def _keep_classes(scratch: Scratch, classes: npt.NDArray[Any]) -> None:
    """Write the class of each rank."""
    scratch.put("sections/classes", classes=classes)


def _save_planes(inputs: _Inputs, tile: int) -> None:
    """Write a tile's seeds on annotated slices."""
    drawing = inputs.drawing
    held, box = drawing.held(tile), drawing.grid.box(tile)
    lo, hi = list(box.lo), list(box.hi)
    top = drawing.annotated[held[0]]
    lo[drawing.axis], hi[drawing.axis] = top, drawing.annotated[held[-1]] + 1
    seeds = np.moveaxis(inputs.seeds.read(Box((lo[0], lo[1], lo[2]), (hi[0], hi[1], hi[2]))), drawing.axis, 0)
    for plane in held:
        part = seeds[drawing.annotated[plane] - top]
        drawing.seeds.write(drawing.planes.index((plane, *drawing.stand(tile))), part[np.newaxis])


def _save_pieces(drawing: Drawing, plane: int) -> None:
    """Write the pieces of an annotated slice."""
    _, height, width = drawing.planes.shape
    labels = drawing.seeds.read(Box((plane, 0, 0), (plane + 1, height, width)))[0]
    classes = drawing.scratch.get("sections/classes")["classes"]
    pieces, image = find_pieces(drawing.annotated[plane], labels, classes)
    del labels
    for row in range(drawing.planes.counts[1]):
        for column in range(drawing.planes.counts[2]):
            tile = drawing.planes.index((plane, row, column))
            drawing.scratch.put(f"sections/images/{tile}", image=image[drawing.planes.box(tile).slices[1:]])
    drawing.scratch.put(
        f"sections/pieces/{plane}",
        labels=pieces.labels,
        kinds=pieces.kinds,
        boxes=pieces.boxes,
        measures=pieces.measures,
    )


def _save_pairs(drawing: Drawing, interval: int) -> None:
    """Write the pairs of an interval, and what they say about each class."""
    a, b = drawing.read_pieces(interval), drawing.read_pieces(interval + 1)
    _, height, width = drawing.planes.shape
    overlaps = np.zeros((0, 3), dtype=np.int64)
    step = drawing.planes.tile[1]
    for y in range(0, height, step):
        band = (y, min(y + step, height), 0, width)
        found = list_overlaps(a, b, drawing.read_image(interval, band), drawing.read_image(interval + 1, band))
        overlaps = add_overlaps(np.concatenate([overlaps, found]))
    pairs = pair_pieces(a, b, overlaps, drawing.geometry)
    kinds, left, total = weigh_motions(a, b, pairs, drawing.geometry)
    drawing.scratch.put(
        f"sections/pairs/{interval}", pieces=pairs.pieces, motions=pairs.motions, kinds=kinds, left=left, total=total
    )


def _switch(scratch: Scratch, intervals: int) -> dict[str, Any]:
    """Return the classes that take part."""
    names = ("kinds", "left", "total")
    tables = (scratch.get(f"sections/pairs/{i}", *names) for i in range(intervals))
    return {"kinds": decide((table["kinds"], table["left"], table["total"]) for table in tables).tolist()}


def _save_lone(passed: _Passed, index: int) -> None:
    """Write the lone pieces of an interval, each to the tile of its slice that holds its centre."""
    drawing = passed.drawing
    interval, pairs = drawing.intervals[index], drawing.read_pairs(index)
    _, rows, columns = drawing.planes.counts
    arrays: list[dict[str, Ints]] = [{} for _ in range(rows)]
    for side, at in enumerate(interval.ends):
        if at is None:
            continue
        plane = drawing.read_pieces(at)
        i = behind(at, side, len(drawing.annotated))
        back = None if i is None else (drawing.read_pairs(i), drawing.intervals[i].length)
        lone = list_lone(interval, side, plane, pairs, back, passed.kinds, drawing.geometry)
        # A centre is in 1/16 voxel.
        places = lone["centre"] // (16 * np.array(drawing.planes.tile[1:]))
        tiles = places[:, 0] * columns + places[:, 1]
        lone = lone[np.argsort(tiles, kind="stable")]
        ends = np.searchsorted(np.sort(tiles), np.arange(rows * columns + 1))
        for tile in range(rows * columns):
            row, column = divmod(tile, columns)
            arrays[row][f"{side}.{column}"] = _flatten(lone[ends[tile] : ends[tile + 1]])
    for row, named in enumerate(arrays):
        drawing.scratch.put(f"sections/lone/{index}/{row}", **named)


def _flatten(table: npt.NDArray[np.void]) -> Ints:
    """Return a table of 8-byte fields as integers, which compress well."""
    return np.ascontiguousarray(table).view(np.int64).reshape(len(table), table.dtype.itemsize // 8)


@dataclass(frozen=True)
class _Search:
    """Lone pieces of one end of an interval, by their place in a tile's list, and what matching them reads."""

    index: int
    side: int
    plane: int
    lone: npt.NDArray[np.void]
    boxes: Ints
    """``(z0, z1, y0, y1, x0, x1)`` of each."""


def _save_motions(passed: _Passed, tile: int) -> None:
    """Write the motions of the lone pieces that stand in a tile."""
    drawing = passed.drawing
    row, column = drawing.stand(tile)
    _, height, width = drawing.planes.shape
    searches = []
    for plane in drawing.held(tile):
        z = drawing.annotated[plane]
        for index, side in drawing.sides(plane):
            name = f"{side}.{column}"
            lone = drawing.scratch.get(f"sections/lone/{index}/{row}", name)[name].view(LONE)[:, 0]
            if not len(lone):
                continue
            interval = drawing.intervals[index]
            look = min(LOOK, len(interval.slices))
            boxes = np.empty((len(lone), 6), dtype=np.int64)
            boxes[:, :2] = (z, z + look + 1) if side == 0 else (z - look, z + 1)
            inside = matched_box(lone, interval, side, drawing.geometry)
            boxes[:, 2:] = np.clip(inside, 0, [height, height, width, width])
            searches.append(_Search(index, side, plane, lone, boxes))
    if not searches:
        return
    motions = {f"{search.index}.{search.side}": np.empty((len(search.lone), 2), np.int64) for search in searches}
    ends = np.cumsum([0, *(len(search.lone) for search in searches)])
    groups = [(0, int(ends[-1]))]
    boxes = np.concatenate([search.boxes for search in searches])
    while groups:
        lo, hi = groups.pop()
        z0, z1, y0, y1, x0, x1 = _hull(boxes[lo:hi])
        if (z1 - z0) * (y1 - y0) * (x1 - x0) * passed.kinds.itemsize > MOST_READ and hi - lo > 1:
            groups += [(lo, (lo + hi) // 2), ((lo + hi) // 2, hi)]
            continue
        volume = class_map(passed.volume.read(drawing.box((z0, z1), (y0, y1, x0, x1))))
        across = np.moveaxis(volume, drawing.axis, 0)
        image = np.zeros((0, 0), dtype=np.uint32)
        held = -1
        for search, first in zip(searches, ends[:-1].tolist(), strict=True):
            own = slice(max(lo - first, 0), min(hi - first, len(search.lone)))
            if own.start >= own.stop:
                continue
            if search.plane != held:
                held = search.plane
                image = drawing.read_image(held, (y0, y1, x0, x1))
            motions[f"{search.index}.{search.side}"][own] = match_lone(
                search.lone[own],
                drawing.intervals[search.index],
                search.side,
                drawing.annotated[held],
                across,
                image,
                (z0, y0, x0),
                drawing.geometry,
            )
    drawing.scratch.put(f"sections/motions/{tile}", **motions)


def _hull(boxes: Ints) -> tuple[int, ...]:
    """Return the smallest box that holds all."""
    lo, hi = boxes[:, 0::2].min(axis=0).tolist(), boxes[:, 1::2].max(axis=0).tolist()
    return tuple(end for ends in zip(lo, hi, strict=True) for end in ends)


def _save_items(passed: _Passed, index: int) -> None:
    """Write what is drawn in an interval, for each tile of a layer what may reach it."""
    drawing = passed.drawing
    interval = drawing.intervals[index]
    _, rows, columns = drawing.planes.counts
    lone = [[np.zeros(0, dtype=LONE)], [np.zeros(0, dtype=LONE)]]
    motions = [[np.zeros((0, 2), dtype=np.int64)], [np.zeros((0, 2), dtype=np.int64)]]
    for row in range(rows):
        for name, table in drawing.scratch.get(f"sections/lone/{index}/{row}").items():
            if not len(table):
                continue
            side, column = map(int, name.split("."))
            at = interval.ends[side]
            assert at is not None
            moved = f"{index}.{side}"
            lone[side].append(table.view(LONE)[:, 0])
            tile = drawing.tile_at(at, row, column)
            motions[side].append(drawing.scratch.get(f"sections/motions/{tile}", moved)[moved])
    items = join_items(
        [None if at is None else drawing.read_pieces(at) for at in interval.ends],
        drawing.read_pairs(index),
        passed.kinds,
        [np.concatenate(tables) for tables in lone],
        [np.concatenate(tables) for tables in motions],
    )
    height, width = drawing.planes.tile[1:]
    near = swept_boxes(items, drawing.geometry)
    first, last = near[:, 0::2] // (height, width), (near[:, 1::2] - 1) // (height, width)
    for row in range(rows):
        there = np.flatnonzero((first[:, 0] <= row) & (row <= last[:, 0]))
        arrays = {}
        for column in range(columns):
            inside = there[(first[there, 1] <= column) & (column <= last[there, 1])]
            arrays[str(column)] = _flatten(items[inside])
        drawing.scratch.put(f"sections/items/{index}/{row}", **arrays)
