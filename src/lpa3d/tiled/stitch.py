"""Unite instances that were found slice by slice, tile by tile: the verb `stitch`.

Tiles at one place along the axis are a *layer*. Sections of different layers are different ones, so tables are reduced
layer by layer, side by side.

Stages
------
1. *List* (every tile): the sections in it, and the classes of their voxels. The tile is kept with their numbers in it,
   here called *local*, so that inputs are read once.
2. *Fold* (every layer): the tables become one, its sections get numbers, and each tile learns those of its own.
3. *Neighbors* (every tile): what sections share with those of the next slice. The first and the last slice with
   sections of each layer are kept as planes, as the next one of the last may lie in any later layer.
4. *Cross* (tiles): the same from one layer to another, from planes alone. *Pairs* (every layer): the sums.
5. *Chain*, *branch* (driver): as in memory. *Moved* (tiles with sections to be looked for, for each distance and gap):
   what they share with those behind the gap, where their motion puts them.
6. *Write* (every tile).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.call import Call
from ..arrays.checks import as_bits, check_id_values, class_map, seal
from ..arrays.components import number_dtype
from ..arrays.overlap import count_overlaps
from ..arrays.unite import unite_musts
from ..kernels import stitch as kernels
from ..linking.chains import Chains, Moves, Sections, gather_pairs
from ..linking.stitch import (
    check_rules,
    choose_classes,
    clip_boxes,
    find_sections,
    make_sections,
    merge_chosen,
    name_classes,
    number_groups,
    number_sections,
    refuse_mapping,
)
from .driver.grid import Box, Grid
from .driver.outputs import Sink, Wanted
from .driver.run import Run, open_run
from .driver.scratch import Scratch
from .driver.stages import Stage
from .driver.stored import Source, open_classes, open_ids, same_shape
from .driver.tables import digest

__all__ = ["stitch"]

CUT = 32
"""Voxels of the borders that are kept apart, as sections seldom move farther from one tile into the next."""

PIECE = 2**14
"""Sections whose groups a tile reads at once."""

STAGES = (
    Stage("list", writes=("local", "list")),
    Stage("fold", reads=("list",), writes=("numbers",), keeps=("sections",)),
    Stage("neighbors", reads=("local", "numbers"), writes=("neighbors",)),
    Stage("cross", reads=("numbers", "neighbors"), writes=("cross",)),
    Stage("pairs", reads=("neighbors", "cross"), keeps=("pairs",)),
    # For each distance and gap: what is asked for, then what is found.
    Stage("moved", reads=("local", "numbers"), writes=("asked",), keeps=("moved",), many=True),
    Stage("groups", writes=("groups",)),
    Stage("write", reads=("local", "numbers", "groups")),
)

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Volume:
    """The local numbers of sections, kept as tiles; and which numbers these are in the volume."""

    grid: Grid
    scratch: Scratch
    axis: int

    @property
    def inside(self) -> tuple[int, int]:
        """Return the two axes of a slice."""
        first, second = (side for side in range(3) if side != self.axis)
        return first, second

    @property
    def layers(self) -> int:
        """Return the number of layers."""
        return self.grid.counts[self.axis]

    def layer(self, tile: int) -> int:
        """Return the layer that a tile is in."""
        return self.grid.position(tile)[self.axis]

    def tiles(self, layer: int) -> Iterator[int]:
        """Yield the tiles of a layer."""
        spans: list[Iterable[int]] = [range(n) for n in self.grid.counts]
        spans[self.axis] = (layer,)
        return map(self.grid.index, itertools.product(*spans))

    def write(self, tile: int, local: Array) -> None:
        """Keep a tile's local numbers."""
        self.scratch.volume("local", self.grid, np.uint32, CUT).write(tile, local)

    def read(self, box: Box) -> Array:
        """Return local numbers of a box inside one tile."""
        return self.scratch.volume("local", self.grid, np.uint32, CUT).read(box)

    def find_tiles(self, layers: Ints, boxes: Ints) -> list[int]:
        """Return the tiles that boxes ``(n, 4)`` in slices lie in, each in its layer."""
        tile = np.array([self.grid.tile[side] for side in self.inside])
        spans = np.column_stack([layers, boxes[:, :2] // tile, (boxes[:, 2:] - 1) // tile])
        tiles = set()
        for layer, row, column, last_row, last_column in np.unique(spans, axis=0).tolist():
            for place in itertools.product(range(row, last_row + 1), range(column, last_column + 1)):
                at = [layer] * 3
                at[self.inside[0]], at[self.inside[1]] = place
                tiles.add(self.grid.index(at))
        return sorted(tiles)

    def corner(self, place: Sequence[int]) -> Ints:
        """Return the two sides of a place that lie in a slice."""
        return np.array([place[side] for side in self.inside])

    def steps(self, box: Box) -> tuple[int, int, int]:
        """Return what one slice, row and column further is in the flat array of a box."""
        strides = box.shape[1] * box.shape[2], box.shape[2], 1
        return strides[self.axis], strides[self.inside[0]], strides[self.inside[1]]


@dataclass(frozen=True, eq=False)
class _Numbers:
    """The numbers of sections in the volume, from 1.

    Attributes
    ----------
    volume
        Where they are.
    bases : (layers + 1,) int64
        Sections before each layer.
    present, starts : int64
        As in `Sections`.
    gaps : int64
        For each present slice how far the next one is, 0 where that does not count.
    """

    volume: _Volume
    bases: Ints
    present: Ints
    starts: Ints
    gaps: Ints

    def of(self, tile: int) -> Ints | None:
        """Return the number of each of a tile's local ones, from 0 on (which is 0); None if the tile has none."""
        numbers = self.volume.scratch.get(f"numbers/{tile}")["numbers"]
        if len(numbers) == 1:
            return None
        numbers[1:] += self.bases[self.volume.layer(tile)]
        return numbers

    def leaving(self) -> list[int]:
        """Return the layers whose last present slice has its next one in another layer."""
        layers = self.present // self.volume.grid.tile[self.volume.axis]
        found: list[int] = layers[:-1][(layers[1:] != layers[:-1]) & (self.gaps[:-1] > 0)].tolist()
        return found

    def ranks(self, start: int, stop: int) -> range:
        """Return the ranks of the present slices from `start` to before `stop`."""
        first, last = np.searchsorted(self.present, (start, stop)).tolist()
        return range(first, last)


@dataclass(frozen=True, eq=False)
class _Listing:
    volume: _Volume
    slices: Source
    classes: Source | None
    usable: Flags


@dataclass(frozen=True, eq=False)
class _Moving:
    numbers: _Numbers
    step: str
    gap: int


@dataclass(frozen=True, eq=False)
class _Writing:
    numbers: _Numbers
    dtype: np.dtype[Any]
    out: Sink


def stitch(call: Call) -> Any:
    """Do what `lpa3d.stitch` does for stored arrays.

    No plane of the volume is held, only tiles. The driver holds all sections and pairs of sections that overlap, some
    500 bytes for each; a worker the table of the sections of one layer of tiles, some 100 bytes for each.
    """
    classes = call.arrays["classes"]
    source = open_ids(call.arrays["slices"], "slices")
    rules = check_rules(source.shape, source.ndim, **call.keywords)
    usable = rules.usable
    refuse_mapping(classes)
    inputs = {"slices": source}
    if classes is not None:
        inputs["classes"] = open_classes(classes, "classes")
        same_shape(inputs["classes"], "classes", source, "slices")
    dtype = number_dtype(math.prod(source.shape))
    parameters = {
        "axis": rules.axis,
        "max_gap": rules.max_gap,
        "branching": rules.branching,
        "bad_slices": np.flatnonzero(~usable).tolist(),
        "must_link": digest(rules.must_link),
        "cannot_link": digest(rules.cannot_link),
    }
    outputs = {"out": Wanted(call.place, source.shape, source.ndim, dtype)}
    with open_run("stitch", inputs, parameters, outputs, call.options, keywords=call.keywords, stages=STAGES) as run:
        volume = _Volume(run.grid, run.scratch, rules.axis)
        run.map("list", _list_tile, _Listing(volume, source, inputs.get("classes"), usable))
        run.map("fold", _fold_layer, volume, volume.layers)
        layers = [run.scratch.get(f"sections/{layer}") for layer in range(volume.layers)]
        sections = make_sections(np.concatenate([np.empty((0, 10), np.int64), *(one["table"] for one in layers)]))
        bases = np.cumsum([0, *(len(one["table"]) for one in layers)])
        groups: Ints = np.zeros(len(sections), np.int64)
        names: list[Any] = []
        if classes is not None:
            chosen = merge_chosen([(one["classes"], one["several"], one["voxels"]) for one in layers], bases)
            groups, names = name_classes(chosen, inputs["classes"].dtype, sections)
        del layers
        must_pairs = find_sections(rules.must_link, "must_link", sections, usable)
        apart = find_sections(rules.cannot_link, "cannot_link", sections, usable)
        parents = unite_musts(must_pairs, apart, groups, names, sections.name)
        counts = _Tiles(run, volume, bases, sections)
        chains = Chains(sections, groups, counts, must_pairs, parents, apart)
        found = number_groups(chains, min(rules.max_gap, source.shape[rules.axis]), rules.branching)
        run.once("groups", _keep_groups, run.scratch, found[1:], bases)
        run.map("write", _write_tile, _Writing(counts.numbers, dtype, run.outputs["out"]))
    return run.result("out")


# ------------------------------------------------------------------------------------------------------------- sections


def _list_tile(context: _Listing, tile: int) -> None:
    """List the sections of a tile; of one without any the voxels are not kept."""
    volume = context.volume
    box = volume.grid.box(tile)
    ids = context.slices.read(box)
    check_id_values(ids, "slices", box)
    usable = context.usable[box.lo[volume.axis] : box.hi[volume.axis]]
    local = np.empty(box.shape, np.uint32)
    flat = local.reshape(-1)
    rows = kernels.list_sections(
        seal(as_bits(ids)).reshape(-1), box.shape, volume.axis, 0, box.shape[0] * box.shape[1], usable, flat
    )
    classes = np.empty((0, 3), np.int64)
    if context.classes is not None and len(rows):
        table = count_overlaps(local, class_map(context.classes.read(box), "classes"))
        classes = np.column_stack([table.pairs, table.voxels])
        classes = classes[(classes[:, :2] != 0).all(axis=1)]
    if len(rows):
        volume.write(tile, local)
    volume.scratch.put(f"list/{tile}", rows=_place_rows(rows, volume, box), classes=classes)


def _place_rows(rows: Ints, volume: _Volume, box: Box) -> Ints:
    """Return rows of the table of sections of a box with the places that they have in the volume."""
    shape = volume.grid.shape
    row, column = volume.corner(box.lo).tolist()
    rows = rows.copy()
    rows[:, kernels.SLICE] += box.lo[volume.axis]
    for first, total, low, high in (
        (row, kernels.ROWS, kernels.ROW_LO, kernels.ROW_HI),
        (column, kernels.COLUMNS, kernels.COLUMN_LO, kernels.COLUMN_HI),
    ):
        rows[:, total] += first * rows[:, kernels.AREA]
        rows[:, [low, high]] += first
    places = np.unravel_index(rows[:, kernels.FIRST], box.shape)
    z, y, x = (place + lo for place, lo in zip(places, box.lo, strict=True))
    rows[:, kernels.FIRST] = (z * shape[1] + y) * shape[2] + x
    return rows


def _fold_layer(volume: _Volume, layer: int) -> None:
    """Number the sections of a layer from 1, and choose their classes."""
    tiles, parts, classes = [], [], []
    for tile in volume.tiles(layer):
        found = volume.scratch.get(f"list/{tile}")
        if len(found["rows"]):
            tiles.append(tile)
            parts.append(found["rows"])
            classes.append(found["classes"])
        else:
            volume.scratch.put(f"numbers/{tile}", numbers=np.zeros(1, np.int64))
    table, numbers = number_sections(parts)
    own = np.split(numbers, np.cumsum([len(part) for part in parts[:-1]]))
    for tile, some, rows in zip(tiles, own, classes, strict=False):
        some = np.append(0, some)
        rows[:, 0] = some[rows[:, 0]]
        volume.scratch.put(f"numbers/{tile}", numbers=some)
    chosen = choose_classes(classes)
    volume.scratch.put(
        f"sections/{layer}",
        table=table,
        classes=np.stack([chosen.owners, chosen.codes]),
        several=chosen.several,
        voxels=np.array([chosen.voxels]),
    )


# ---------------------------------------------------------------------------------------------------------- neighbours


def _count_tile(numbers: _Numbers, tile: int) -> None:
    """Count what sections of a tile share with those of the next slice, and keep its first and last slice."""
    volume, own = numbers.volume, numbers.of(tile)
    if own is None:
        volume.scratch.put(f"neighbors/{tile}", rows=np.empty((0, 3), np.int64))
        return
    box = volume.grid.box(tile)
    start, stop = box.lo[volume.axis], box.hi[volume.axis]
    ranks = numbers.ranks(start, stop)
    local = volume.read(box)
    steps = np.zeros(stop - start, np.int64)
    inner = slice(ranks.start, ranks.stop - 1)
    steps[numbers.present[inner] - start] = numbers.gaps[inner] * volume.steps(box)[0]
    rows = kernels.count_neighbors(
        seal(local.reshape(-1)), box.shape, volume.axis, 0, box.shape[0] * box.shape[1], steps
    )
    volume.scratch.put(
        f"neighbors/{tile}",
        rows=_name_rows(rows, own, own),
        first=local.take(numbers.present[ranks[0]] - start, volume.axis),
        last=local.take(numbers.present[ranks[-1]] - start, volume.axis),
    )


def _name_rows(rows: Ints, first: Ints, second: Ints) -> Ints:
    """Return rows of pairs of local sections, both from 0, with those of the volume."""
    return np.column_stack([first[rows[:, 0] + 1] - 1, second[rows[:, 1] + 1] - 1, rows[:, 2]])


def _cross_tile(numbers: _Numbers, tile: int) -> None:
    """Count what the last slice of a tile shares with the first of the next layer that has sections."""
    volume = numbers.volume
    box = volume.grid.box(tile)
    rank = numbers.ranks(box.lo[volume.axis], box.hi[volume.axis])[-1]
    place = list(volume.grid.position(tile))
    place[volume.axis] = int(numbers.present[rank + 1]) // volume.grid.tile[volume.axis]
    after = volume.grid.index(place)
    own, others = numbers.of(tile), numbers.of(after)
    if own is None or others is None:
        volume.scratch.put(f"cross/{tile}", rows=np.empty((0, 3), np.int64))
        return
    planes = np.stack(
        [
            volume.scratch.get(f"neighbors/{tile}", "last")["last"],
            volume.scratch.get(f"neighbors/{after}", "first")["first"],
        ]
    )
    steps = np.array([planes[0].size, 0])
    rows = kernels.count_neighbors(seal(planes.reshape(-1)), planes.shape, 0, 0, planes.shape[1], steps)
    volume.scratch.put(f"cross/{tile}", rows=_name_rows(rows, own, others))


def _add_pairs(numbers: _Numbers, layer: int) -> None:
    """Add up the pairs whose earlier section is in a layer."""
    scratch = numbers.volume.scratch
    parts = [np.empty((0, 3), np.int64)]
    areas = ("neighbors", "cross") if layer in numbers.leaving() else ("neighbors",)
    for tile in numbers.volume.tiles(layer):
        parts += [scratch.get(f"{area}/{tile}", "rows")["rows"] for area in areas]
    rows = np.concatenate(parts)
    pairs = gather_pairs(rows[:, :2], rows[:, 2], np.add)
    scratch.put(f"pairs/{layer}", rows=np.column_stack([pairs.sections, pairs.shared]))


class _Tiles:
    """What `Chains` has counted: stages of a run."""

    def __init__(self, run: Run, volume: _Volume, bases: Ints, sections: Sections) -> None:
        self.run, self.volume, self.sections = run, volume, sections
        self.numbers = _Numbers(volume, bases, sections.present, sections.starts, np.zeros_like(sections.present))

    def count_neighbors(self, gaps: Ints) -> Ints:
        """Count as `Counts` says."""
        run, volume, present = self.run, self.volume, self.sections.present
        self.numbers = numbers = _Numbers(volume, self.numbers.bases, present, self.sections.starts, gaps)
        run.map("neighbors", _count_tile, numbers)
        tiles = [tile for layer in numbers.leaving() for tile in volume.tiles(layer)]
        if tiles:
            run.map("cross", _cross_tile, numbers, tiles)
        run.map("pairs", _add_pairs, numbers, volume.layers)
        parts = (run.scratch.get(f"pairs/{layer}")["rows"] for layer in range(volume.layers))
        return np.concatenate([np.empty((0, 3), np.int64), *parts])

    def count_moved(self, moves: Moves) -> Ints:
        """Count as `Counts` says."""
        run = self.run
        step = f"{moves.distance} {moves.gap}"
        run.once(f"moved {step} asked", self._ask, moves, step)
        tiles = run.scratch.get(f"moved/{step}/tiles")["tiles"]
        run.map(f"moved {step}", _count_moved, _Moving(self.numbers, step, moves.gap), tiles)
        parts = [np.empty((0, 3), np.int64)]
        parts += [run.scratch.get(f"moved/{step}/{tile}")["rows"] for tile in tiles.tolist()]
        return np.concatenate(parts)

    def _ask(self, moves: Moves, step: str) -> None:
        """Keep which sections are looked for, by layer, and the tiles that they are in."""
        sections, volume = self.sections, self.volume
        tiles: set[int] = set()
        plane = volume.corner(volume.grid.shape)
        for side, (opened, shifts) in enumerate(zip(moves.opened, moves.shifts, strict=True)):
            some = np.flatnonzero(opened)
            boxes = clip_boxes(sections.boxes[some], shifts[some], (0, 0), plane)
            layers = sections.slices[some] // volume.grid.tile[volume.axis]
            inside = (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
            tiles.update(volume.find_tiles(layers[inside], boxes[inside]))
            # Sections are numbered slice by slice, so those of a layer stand together.
            ends = np.searchsorted(layers, np.arange(volume.layers + 1)).tolist()
            for layer, at in enumerate(itertools.starmap(slice, itertools.pairwise(ends))):
                own = some[at]
                volume.scratch.put(
                    f"asked/{step}/{side}/{layer}",
                    some=own,
                    slices=sections.slices[own],
                    boxes=boxes[at],
                    shifts=shifts[own],
                )
        volume.scratch.put(f"moved/{step}/tiles", tiles=np.array(sorted(tiles), np.int64))


# --------------------------------------------------------------------------------------------------------- across gaps


def _count_moved(context: _Moving, tile: int) -> None:
    """Count what shifted sections share with others, for their voxels in a tile: tile after tile that these are in."""
    numbers, volume = context.numbers, context.numbers.volume
    whole = volume.grid.box(tile)
    own = numbers.of(tile)
    found = [np.empty((0, 3), np.int64)]
    local = np.empty(0, np.uint32)
    for side, gap in enumerate((context.gap, -context.gap)):
        if own is None:
            continue
        asked = volume.scratch.get(f"asked/{context.step}/{side}/{volume.layer(tile)}")
        wanted = _Wanted(**asked).inside(volume, whole, own)
        if len(wanted.some) and not local.size:
            local = volume.read(whole)
        layers = (wanted.slices + gap) // volume.grid.tile[volume.axis]
        for other in volume.find_tiles(layers, wanted.boxes + np.tile(wanted.shifts, 2)):
            names = numbers.of(other)
            if names is None:
                continue
            partners = volume.scratch.get(f"asked/{context.step}/{1 - side}/{volume.layer(other)}", "some")["some"]
            flags = np.isin(names[1:] - 1, partners)
            if flags.any():
                rows = _name_rows(_count_pair(volume, wanted, gap, (tile, other), local, flags), own, names)
                found.append(rows[:, [1, 0, 2]] if side else rows)
    rows = np.concatenate(found)
    pairs = gather_pairs(rows[:, :2], rows[:, 2], np.add)
    volume.scratch.put(f"moved/{context.step}/{tile}", rows=np.column_stack([pairs.sections, pairs.shared]))


@dataclass(frozen=True, eq=False)
class _Wanted:
    """Sections on their slices; the boxes in which they are looked for, and how far they are shifted."""

    some: Ints
    slices: Ints
    boxes: Ints
    shifts: Ints

    def take(self, at: Any) -> _Wanted:
        """Return some of them."""
        return _Wanted(self.some[at], self.slices[at], self.boxes[at], self.shifts[at])

    def inside(self, volume: _Volume, box: Box, numbers: Ints) -> _Wanted:
        """Return those that may have voxels in the box of a tile, with its local numbers (from 0)."""
        boxes = clip_boxes(self.boxes, np.zeros_like(self.shifts), volume.corner(box.lo), volume.corner(box.hi))
        order = np.argsort(numbers)
        places = np.searchsorted(numbers, self.some + 1, sorter=order)
        places = order[np.minimum(places, len(order) - 1)]
        at = (numbers[places] == self.some + 1) & (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
        return _Wanted(places[at] - 1, self.slices[at], boxes[at], self.shifts[at])


def _count_pair(
    volume: _Volume, wanted: _Wanted, gap: int, tiles: tuple[int, int], local: Array, partners: Flags
) -> Ints:
    """Count for the sections of one tile what they share with those of another: rows of local sections, from 0."""
    here, there = map(volume.grid.box, tiles)
    boxes = clip_boxes(wanted.boxes, wanted.shifts, volume.corner(there.lo), volume.corner(there.hi))
    places = wanted.slices + gap
    reached = (places >= there.lo[volume.axis]) & (places < there.hi[volume.axis])
    at = np.flatnonzero(reached & (boxes[:, :2] < boxes[:, 2:]).all(axis=1))
    if not len(at):
        return np.empty((0, 3), np.int64)
    wanted, boxes, places = wanted.take(at), boxes[at], places[at]
    others = local
    if tiles[0] != tiles[1]:
        # Mostly a thin part of it.
        moved = boxes + np.tile(wanted.shifts, 2)
        lo, hi = [int(places.min())] * 3, [int(places.max()) + 1] * 3
        for column, side in enumerate(volume.inside):
            lo[side], hi[side] = int(moved[:, column].min()), int(moved[:, 2 + column].max())
        there = Box((lo[0], lo[1], lo[2]), (hi[0], hi[1], hi[2]))
        others = volume.read(there)
    starts = np.empty((len(at), 2), np.int64)
    steps: list[int] = []
    for column, (box, slices) in enumerate(((here, wanted.slices), (there, places))):
        stride, *inside = volume.steps(box)
        starts[:, column] = (slices - box.lo[volume.axis]) * stride - int(volume.corner(box.lo) @ np.array(inside))
        steps += inside
    rows: Ints = kernels.count_shifted(
        seal(local.reshape(-1)),
        seal(others.reshape(-1)),
        (steps[0], steps[1], steps[2], steps[3]),
        starts,
        wanted.some,
        boxes,
        wanted.shifts,
        partners,
    )
    return rows


# ------------------------------------------------------------------------------------------------------------- writing


def _keep_groups(scratch: Scratch, groups: Ints, bases: Ints) -> None:
    """Keep the groups of the sections of each layer, in pieces."""
    for layer, (start, stop) in enumerate(itertools.pairwise(bases.tolist())):
        places = range(start, stop, PIECE)
        scratch.put(f"groups/{layer}", **{f"{k}": groups[at : min(at + PIECE, stop)] for k, at in enumerate(places)})


def _write_tile(context: _Writing, tile: int) -> None:
    """Write the groups of a tile."""
    numbers, volume = context.numbers, context.numbers.volume
    box = volume.grid.box(tile)
    own = numbers.of(tile)
    result = np.zeros(box.shape, context.dtype)
    if own is not None:
        layer = volume.layer(tile)
        places = own[1:] - 1 - numbers.bases[layer]
        pieces = np.unique(places // PIECE)
        found = volume.scratch.get(f"groups/{layer}", *map(str, pieces.tolist()))
        groups = np.concatenate([found[str(piece)] for piece in pieces.tolist()])
        lengths = np.append(0, np.cumsum([len(found[str(piece)]) for piece in pieces.tolist()]))
        at = lengths[np.searchsorted(pieces, places // PIECE)] + places % PIECE
        result[...] = volume.read(box)
        kernels.replace_numbers(np.append(0, groups[at]), as_bits(result).reshape(-1))
    context.out.write(box, result)
