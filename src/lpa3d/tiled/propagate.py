"""`propagate` on stored arrays: the stages of `propagation.whole`, tile by tile, with the same result bit for bit.

Stages
------
1. *Census* (map, once): tables of the seeds of each tile, added up; ids become ranks. *Seeds* (map): the rank of each
   kept seed goes to a scratch volume.
2. With `max_distance`, the *reached set*: a worklist from the seeds, settled to the class map that replaces the volume.
3. *Sections*, if seeds lie on annotated slices: see `lpa3d.tiled.sections`. *Drawing* (map), with a scan of the
   components of each label; those without a seed are cleared wherever the drawn volume is read.
4. *Geodesic*: a worklist, settled to a scratch volume; with a scan of what stays without a label.
5. *Diffusion* (map, with a halo of as many voxels as there are sweeps): after s sweeps a voxel depends on voxels within
   s links only. With a scan of the components of each label.
6. *Reattachment*: components that hold no seed are cleared; a second worklist, of the tiles that hold any, fills them.
7. *Fresh ids* (map, in tiles with components that hold no seed) and *writing* (map over the tiles of the output).

`_list_stages` says what each of them reads and writes in scratch. Missing slices are skipped by the readers of
the inputs, so that all stages but the first and the last work on the volume without them.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..arrays.call import Call
from ..arrays.checks import instance_ids, result_dtype
from ..arrays.components import Components, find_components
from ..arrays.threads import run_all
from ..arrays.warn import warn
from ..errors import InputError, Keyword
from ..kernels.census import join_seeds, split_seeds
from ..propagation.census import (
    Count,
    Slices,
    add_rows,
    annotated_slices,
    apply_ids,
    count_mask,
    count_seeds,
    list_beyond,
    rank_labels,
    rank_table,
    select,
    settle_census,
)
from ..propagation.diffusion import conductances, diffuse
from ..propagation.geodesic import link_voxels
from ..propagation.rules import (
    Rules,
    check_cost,
    check_rules,
    fresh_ids,
    lone_note,
    missing_note,
    steps_of_cost,
    sweeps_of_labels,
)
from .components import (
    Totals,
    component_areas,
    join_stages,
    local_flags,
    local_numbers,
    open_sides,
    recall_components,
    run_join,
    scan_tile,
    write_numbers,
)
from .driver.grid import Box, Grid, Place
from .driver.outputs import Sink, Wanted
from .driver.run import Run, open_run
from .driver.scratch import Scratch, ScratchVolume
from .driver.stages import Stage
from .driver.stored import Source, open_classes, open_ids, open_source, same_shape
from .geodesic import Spread, settle, spread_stage, spread_tiles
from .sections import DRAWING, Drawing, draw_tile, run_sections, section_stages

__all__ = ["propagate"]

SEED = np.uint32(2**31)
"""The bit of a voxel that is a kept seed; the others are its rank."""
RANK = np.uint32(2**31 - 1)

BATCH = 64
"""Tables of tiles that are added up at once."""

REST = "without seed"
DRAWN = "drawn"
SMOOTH = "smoothed"

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Ranks = npt.NDArray[np.uint32]

logger = logging.getLogger("lpa3d")


# ------------------------------------------------------------------------------------------------------------ readers


class Reads(Protocol):
    """What gives the voxels of any box."""

    def read(self, box: Box) -> Array:
        """Return the voxels of `box`, a new C-ordered array."""


@dataclass(frozen=True)
class _Present:
    """An input without its missing slices."""

    source: Source
    missing: tuple[int, ...]

    def read(self, box: Box) -> Array:
        """Return the voxels of a box of the volume that is left."""
        if not self.missing:
            return self.source.read(box)
        places = _places(self.source.shape[0], self.missing)[box.lo[0] : box.hi[0]]
        out = np.empty(box.shape, self.source.dtype)
        for run in np.split(np.arange(len(places)), np.flatnonzero(np.diff(places) > 1) + 1):
            if len(run):
                lo, hi = int(places[run[0]]), int(places[run[-1]]) + 1
                out[run] = self.source.read(Box((lo, *box.lo[1:]), (hi, *box.hi[1:])))
        return out


def _places(depth: int, missing: Iterable[int]) -> Ints:
    """Return the slices that are not missing."""
    return np.setdiff1d(np.arange(depth), np.array(list(missing), dtype=np.int64))


@dataclass(frozen=True)
class _Classes:
    """The canonical class map."""

    volume: _Present

    def read(self, box: Box) -> Array:
        """Return the classes of a box."""
        return _as_classes(self.volume.read(box))


@dataclass(frozen=True)
class _Ids:
    """The canonical seeds."""

    seeds: _Present

    def read(self, box: Box) -> Array:
        """Return the ids of a box."""
        return _as_ids(self.seeds.read(box))


@dataclass(frozen=True)
class _Cost:
    """The cost in fixed point."""

    cost: _Present

    def read(self, box: Box) -> npt.NDArray[np.uint16]:
        """Return the cost of a box, 16 for 1."""
        steps = np.empty(box.shape, np.uint16)
        check_cost([steps_of_cost(self.cost.read(box), steps)])
        return steps


@dataclass(frozen=True)
class _Labels:
    """The ranks of a scratch volume; of the tiles that `over` has, those."""

    under: ScratchVolume
    over: ScratchVolume | None = None

    def read(self, box: Box) -> Ranks:
        """Return the ranks of a box."""
        labels = _read_over(self.under, self.over, box)
        labels &= RANK
        return labels


def _read_over(under: ScratchVolume, over: ScratchVolume | None, box: Box) -> Array:
    """Return the voxels of a box, from `over` in the tiles that it has."""
    values = under.read(box)
    if over is not None:
        for tile in over.grid.tiles_in(box):
            part = over.grid.box(tile).intersect(box)
            if part is not None and over.has(tile):
                values[part.within(box)] = over.read(part)
    return values


def _canonical(source: Source) -> np.dtype[Any]:
    """Return the dtype in which classes, or ids that are bool, are worked on."""
    return np.dtype(f"u{source.dtype.itemsize}")


def _as_classes(classes: Array) -> Array:
    return classes.view(f"u{classes.dtype.itemsize}")


def _as_ids(ids: Array) -> Array:
    return ids.view(np.uint8) if ids.dtype.kind == "b" else ids


# ------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class _Tables:
    """Ids and classes by rank, at index 0 none: loaded once for all tasks of a context, as they may be large.

    They are kept as long as the context is, and do not travel with it.
    """

    scratch: Scratch
    _loaded: dict[str, Array] = field(default_factory=dict, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Tables, (self.scratch,)

    def get(self, name: str) -> Array:
        """Return a table."""
        with _lock:
            if name not in self._loaded:
                self._loaded[name] = self.scratch.get(f"tables/{name}")[name]
            return self._loaded[name]

    def put(self, **tables: Array) -> None:
        """Keep tables."""
        for name, table in tables.items():
            self.scratch.put(f"tables/{name}", **{name: table})


_lock = threading.Lock()


# ------------------------------------------------------------------------------------------------------------- census


@dataclass(frozen=True)
class _Census:
    """What the census of a tile needs; its grid is that of the inputs."""

    grid: Grid
    scratch: Scratch
    volume: Source
    seeds: Source
    cost: Source | None
    missing: tuple[int, ...]


def _count(context: _Census, tile: int) -> None:
    box = context.grid.box(tile)
    ids = _as_ids(context.seeds.read(box))
    classes = _as_classes(context.volume.read(box))
    costs = np.ones(2)
    if context.cost is not None:
        costs[:] = steps_of_cost(context.cost.read(box), np.empty(box.shape, np.uint16))
    left_out = np.isin(np.arange(box.lo[0], box.hi[0]), context.missing)
    lost = 0
    if left_out.any():
        span = np.array([ids.min(), ids.max()])
        lost = int(np.count_nonzero(ids[left_out]))
        ids[left_out] = 0
        classes[left_out] = 0
    count = count_seeds(classes, ids)
    if not left_out.any():
        # Of the table: faster than of the tile.
        span = np.append(count.rows[:, 0], 0).astype(ids.dtype)
        span = np.array([span.min(), span.max()])
    context.scratch.put(
        f"census/{tile}", span=span, costs=costs, lost=np.array([lost]), rows=count.rows,
        **_pack("seeded", count.seeded), **_pack("masked", count_mask(classes)),
    )  # fmt: skip


def _pack(name: str, counts: Slices) -> dict[str, Ints]:
    return {f"{name}{axis}": part for axis, part in enumerate(counts)}


def _unpack(name: str, found: dict[str, Array]) -> Slices:
    return found[f"{name}0"], found[f"{name}1"], found[f"{name}2"]


def _add_slices(grid: Grid, tile: int, found: dict[str, Array], name: str, sums: Slices) -> None:
    """Add a tile's counts per slice to those of the volume."""
    box = grid.box(tile)
    for axis, (lo, hi) in enumerate(zip(box.lo, box.hi, strict=True)):
        sums[axis][lo:hi] += found[f"{name}{axis}"]


def _no_counts(shape: Place) -> Slices:
    z, y, x = (np.zeros(length, np.int64) for length in shape)
    return z, y, x


def _take_census(context: _Census, rules: Rules, tables: _Tables) -> dict[str, Any]:
    """Add up the tables of all tiles, refuse what cannot be used, and keep what is left by rank."""
    seeded, masked = _no_counts(context.grid.shape), _no_counts(context.grid.shape)
    low, high, lost = 0, 0, 0
    costs = np.ones(2)
    rows = np.zeros((0, 3), np.int64)
    batch: list[Ints] = []
    for tile in range(len(context.grid)):
        found = context.scratch.get(f"census/{tile}")
        low, high = min(low, int(found["span"][0])), max(high, int(found["span"][1]))
        costs = np.array([np.minimum(costs[0], found["costs"][0]), np.maximum(costs[1], found["costs"][1])])
        lost += int(found["lost"][0])
        _add_slices(context.grid, tile, found, "seeded", seeded)
        _add_slices(context.grid, tile, found, "masked", masked)
        batch.append(found["rows"])
        if len(batch) == BATCH:
            rows, batch = add_rows([rows, *batch]), []
    instance_ids(np.array([[low, high]], context.seeds.dtype), "seeds")
    check_cost([(float(costs[0]), float(costs[1]))])
    census = settle_census(Count(add_rows([rows, *batch]), seeded), rules.seed_conflicts, context.volume.dtype)
    if len(census.ids) > RANK:
        raise InputError(
            Keyword("seeds"), f" hold {len(census.ids)} ids; at most 2**31 - 1 are possible for stored arrays"
        )
    places = _places(context.grid.shape[0], context.missing)
    tables.put(ids=np.concatenate([[0], census.ids]), classes=census.class_of(_canonical(context.volume)))
    context.scratch.put(
        "slices",
        **_pack("seeded", (seeded[0][places], *seeded[1:])),
        **_pack("masked", (masked[0][places], *masked[1:])),
    )
    return {
        "lost": lost,
        "notes": census.notes,
        "dropped": census.dropped,
        "most": high,
    }


# ---------------------------------------------------------------------------------------------------- tasks of a tile


@dataclass(frozen=True)
class _Volume:
    """What all tasks on the volume without missing slices share."""

    grid: Grid
    scratch: Scratch
    tables: _Tables
    connectivity: int
    classes: Reads
    cost: Reads | None


@dataclass(frozen=True)
class _Rank:
    """Ranks of the kept seeds."""

    volume: _Volume
    ids: Reads
    out: ScratchVolume


def _rank(context: _Rank, tile: int) -> None:
    box = context.volume.grid.box(tile)
    classes, ids = context.volume.classes.read(box), context.ids.read(box)
    rows = count_seeds(classes, ids).rows
    all_ids, all_classes = (context.volume.tables.get(name) for name in ("ids", "classes"))
    at = np.minimum(np.searchsorted(all_ids, rows[:, 0]), len(all_ids) - 1)
    kept = (all_ids[at] == rows[:, 0]) & (all_classes[at].astype(np.int64) == rows[:, 1]) & (rows[:, 1] != 0)
    labels = np.zeros(box.shape, np.uint32)
    rank_labels(classes, ids, rank_table(rows[kept, 0], rows[kept, 1], at[kept] | int(SEED)), labels)
    context.out.write(tile, labels)


@dataclass(frozen=True)
class _Field:
    """What a worklist spreads; in the components of `cleared` without a seed labels count as none."""

    volume: _Volume
    classes: Reads
    labels: Reads
    cleared: str | None

    def load(self, tile: int) -> tuple[Array, Ranks, npt.NDArray[np.uint16] | None]:
        """Return classes, labels and cost of a tile."""
        box = self.volume.grid.box(tile)
        cost = None if self.volume.cost is None else self.volume.cost.read(box)
        return self.classes.read(box), self.start(tile), cost

    def start(self, tile: int) -> Ranks:
        """Return the labels of a tile."""
        labels: Ranks = self.labels.read(self.volume.grid.box(tile))
        self.clear(tile, labels)
        return labels

    def clear(self, tile: int, labels: Ranks) -> None:
        """Clear, in place, the components of a tile's labels that hold no seed."""
        if self.cleared is not None:
            components = find_components(labels, self.volume.connectivity)
            components.clear(labels, local_flags(self.volume.scratch, self.cleared, tile, components))

    def load_border(self, box: Box) -> tuple[Ranks, npt.NDArray[np.uint16] | None]:
        """Return labels and cost on the border of a tile in which nothing is cleared."""
        return self.labels.read(box), None if self.volume.cost is None else self.volume.cost.read(box)


@dataclass(frozen=True)
class _Loaded:
    """What `settle` solves of one tile, where that is loaded already."""

    field: _Field
    tile: tuple[Array, Ranks, npt.NDArray[np.uint16] | None]

    def load(self, tile: int) -> tuple[Array, Ranks, npt.NDArray[np.uint16] | None]:
        """Return classes, labels and cost of the tile."""
        return self.tile

    def load_border(self, box: Box) -> tuple[Ranks, npt.NDArray[np.uint16] | None]:
        """Return labels and cost on the border of another tile."""
        return self.field.load_border(box)


@dataclass(frozen=True)
class _Reach:
    """The class map of what the seeds reach; `ids` is there if seeds are to be counted again."""

    volume: _Volume
    spread: Spread
    ids: Reads | None
    out: ScratchVolume


def _reach(context: _Reach, tile: int) -> None:
    box = context.volume.grid.box(tile)
    classes = select(context.volume.classes.read(box), settle(context.spread, tile), labelled=True)
    context.out.write(tile, classes)
    counts = _pack("masked", count_mask(classes))
    if context.ids is not None:
        counts |= _pack("seeded", count_seeds(classes, context.ids.read(box)).seeded)
    context.volume.scratch.put(f"reached/{tile}", **counts)


def _add_reached(volume: _Volume, recounted: bool) -> None:
    """Count the slices of what the seeds reach."""
    found = volume.scratch.get("slices")
    masked, seeded = _no_counts(volume.grid.shape), _no_counts(volume.grid.shape)
    for tile in range(len(volume.grid)):
        part = volume.scratch.get(f"reached/{tile}")
        _add_slices(volume.grid, tile, part, "masked", masked)
        if recounted:
            _add_slices(volume.grid, tile, part, "seeded", seeded)
    volume.scratch.put(
        "reached slices",
        **_pack("seeded", seeded if recounted else _unpack("seeded", found)),
        **_pack("masked", masked),
    )


@dataclass(frozen=True)
class _Draw:
    """Sections, drawn over the kept seeds."""

    volume: _Volume
    classes: Reads
    seeds: ScratchVolume
    drawing: Drawing
    out: ScratchVolume


def _draw(context: _Draw, tile: int) -> None:
    volume = context.volume
    box = volume.grid.box(tile)
    labels = context.seeds.read(box)
    seeds, _ = _split(labels)
    draw_tile(context.drawing, tile, context.classes.read(box), labels)
    _scan_labels(volume, DRAWN, tile, labels, seeds)
    join_seeds(labels.reshape(-1), 0, labels.size, seeds.reshape(-1))
    context.out.write(tile, labels)


def _split(labels: Ranks, class_of: Array | None = None) -> tuple[npt.NDArray[np.uint8], Array]:
    """Leave the ranks, in place; return where the seeds were, and the class map of the labels if asked for."""
    seeds = np.empty(labels.shape, np.uint8)
    if class_of is None:
        class_of = np.zeros(0, np.uint8)
    classes = np.empty(labels.shape if len(class_of) else (0,), class_of.dtype)
    split_seeds(labels.reshape(-1), class_of, 0, labels.size, seeds.reshape(-1), classes.reshape(-1))
    return seeds, classes


def _scan_labels(volume: _Volume, name: str, tile: int, labels: Ranks, seeds: npt.NDArray[np.uint8]) -> None:
    """Scan the components of equal label, and which of them hold a seed."""

    def flag(components: Components) -> npt.NDArray[np.bool_]:
        return components.flag_seeds(seeds)

    found = scan_tile(labels, volume.connectivity, open_sides(volume.grid, tile), flag)
    volume.scratch.put(f"{name}/scan/{tile}", **found)


@dataclass(frozen=True)
class _Settle:
    """Labels of the geodesic stage, with the bits of the seeds in `start`; and what stays without."""

    volume: _Volume
    field: _Field
    spread: Spread
    start: ScratchVolume
    reached: ScratchVolume | None
    out: ScratchVolume


def _settle(context: _Settle, tile: int) -> None:
    volume, field = context.volume, context.field
    box = volume.grid.box(tile)
    start = context.start.read(box)
    seeds, _ = _split(start)
    field.clear(tile, start)
    classes = field.classes.read(box)
    loaded = _Loaded(field, (classes, start, None if volume.cost is None else volume.cost.read(box)))
    labels = settle(replace(context.spread, field=loaded), tile)
    rest = select(classes if context.reached is None else volume.classes.read(box), labels, labelled=False)

    def flag(components: Components) -> npt.NDArray[np.bool_]:
        if context.reached is None:
            return np.zeros(components.count, np.bool_)
        return components.hold_seed(rest, _mark_beyond(volume, context.reached, box))

    found = scan_tile(rest, volume.connectivity, open_sides(volume.grid, tile), flag, keep=True)
    volume.scratch.put(f"{REST}/scan/{tile}", **found)
    join_seeds(labels.reshape(-1), 0, labels.size, seeds.reshape(-1))
    context.out.write(tile, labels)


def _mark_beyond(volume: _Volume, reached: ScratchVolume, box: Box) -> Array:
    """Return the class map of the voxels beyond the distance that are linked to one within it."""
    outer = box.grow(1, volume.grid.shape)
    classes = volume.classes.read(outer)
    links = link_voxels(classes, volume.connectivity)
    within = (reached.read(outer) != 0).astype(np.uint32)
    marks = list_beyond(classes, within, links, volume.connectivity)
    return np.ascontiguousarray(marks[box.within(outer)])


@dataclass(frozen=True)
class _Diffuse:
    """Diffusion of a tile and a halo of as many voxels as there are sweeps."""

    volume: _Volume
    labels: ScratchVolume
    conductances: tuple[int, ...]
    sweeps: int
    """The most of any label."""
    mixed: bool
    """Whether a table says how many each label has."""
    out: ScratchVolume
    confidence: ScratchVolume | None


def _diffuse(context: _Diffuse, tile: int) -> None:
    volume = context.volume
    box = volume.grid.box(tile)
    outer = box.grow(context.sweeps, volume.grid.shape)
    labels = context.labels.read(outer)
    seeds, classes = _split(labels, volume.tables.get("classes"))
    links = link_voxels(classes, volume.connectivity)
    del classes
    lead = diffuse(
        labels, links, seeds, np.array(context.conductances), volume.connectivity,
        volume.tables.get("sweeps") if context.mixed else context.sweeps,
        cost=None if volume.cost is None else volume.cost.read(outer),
        return_confidence=context.confidence is not None,
    )  # fmt: skip
    del links
    core = box.within(outer)
    labels, seeds = np.ascontiguousarray(labels[core]), np.ascontiguousarray(seeds[core])
    context.out.write(tile, labels)
    if context.confidence is not None and lead is not None:
        context.confidence.write(tile, np.ascontiguousarray(lead[core]))
    _scan_labels(volume, SMOOTH, tile, labels, seeds)


@dataclass(frozen=True)
class _Refill:
    """Labels, and their confidence, of the tiles in which something was cleared."""

    field: _Field
    spread: Spread
    out: ScratchVolume
    before: ScratchVolume | None
    confidence: ScratchVolume | None


def _refill(context: _Refill, tile: int) -> None:
    context.out.write(tile, settle(context.spread, tile))
    if context.confidence is not None and context.before is not None:
        lead = context.before.read(context.field.volume.grid.box(tile))
        lead[context.field.start(tile) == 0] = 0
        context.confidence.write(tile, lead)


@dataclass(frozen=True)
class _Fresh:
    """Ids of components without a seed."""

    volume: _Volume
    most: int
    out: ScratchVolume


def _fresh(context: _Fresh, tile: int) -> None:
    volume, out = context.volume, context.out
    components = recall_components(volume.scratch, REST, tile)
    numbers = local_numbers(volume.scratch, volume.grid, REST, tile, components, out.dtype, context.most)
    ids = np.empty(volume.grid.box(tile).shape, out.dtype)
    write_numbers(components, numbers, ids)
    out.write(tile, ids)


@dataclass(frozen=True)
class _Write:
    """Ids and confidence of a tile of the outputs, which have all slices."""

    grid: Grid
    missing: tuple[int, ...]
    tables: _Tables
    labels: _Labels
    lead: tuple[ScratchVolume, ScratchVolume | None] | None
    fresh: ScratchVolume | None
    out: Sink
    out_lead: Sink | None


def _write(context: _Write, tile: int) -> None:
    box = context.grid.box(tile)
    places = _places(context.grid.shape[0], context.missing)
    first, last = (int(z) for z in np.searchsorted(places, (box.lo[0], box.hi[0])))
    inner = Box((first, *box.lo[1:]), (last, *box.hi[1:]))
    labels = context.labels.read(inner)
    ids = np.empty(inner.shape, context.out.array.dtype)
    apply_ids(labels, context.tables.get("ids"), ids)
    fresh = None if context.fresh is None else context.fresh.read(inner)
    if fresh is not None:
        ids += fresh.astype(ids.dtype)
    slices = places[first:last] - box.lo[0]
    _write_slices(context.out, box, slices, ids)
    if context.lead is not None and context.out_lead is not None:
        lead = _read_over(*context.lead, inner)
        lead[labels == 0] = 0
        if fresh is not None:
            lead[fresh != 0] = 65535
        _write_slices(context.out_lead, box, slices, lead)


def _write_slices(out: Sink, box: Box, slices: Ints, values: Array) -> None:
    """Write some slices of a box, and 0 to the others."""
    if len(slices) < box.shape[0]:
        whole = np.zeros(box.shape, values.dtype)
        whole[slices] = values
        values = whole
    out.write(box, values)


# ----------------------------------------------------------------------------------------------------------- the verb


def _largest_id(seeds: Source) -> int:
    """Return the largest id, where the result's dtype depends on it: that of fewer than 2**32 voxels."""
    z, y, x = (max(c, min(n, 256 // c * c)) for n, c in zip(seeds.shape, seeds.chunks, strict=True))
    grid = Grid(seeds.shape, (z, y, x))
    return max([0, *run_all(lambda tile: int(seeds.read(grid.box(tile)).max()), range(len(grid)))])


def _choose_dtype(seeds: Source, rules: Rules) -> np.dtype[Any]:
    """Return the result's dtype."""
    dtype = _canonical(seeds) if seeds.dtype.kind == "b" else seeds.dtype
    if not rules.fresh_ids:
        return dtype
    size = math.prod(seeds.shape)
    least, widest = result_dtype(dtype, size), result_dtype(dtype, int(np.iinfo(dtype).max) + size)
    return least if least == widest else result_dtype(dtype, _largest_id(seeds) + size)


def propagate(call: Call) -> Any:
    """Do what `lpa3d.propagate` does, for stored arrays.

    `out` is where the result goes: a path, a URL or a zarr store; with `return_confidence` a pair of them, for labels
    and confidence.
    """
    cost, out = call.arrays["cost"], call.place
    classes, ids = open_classes(call.arrays["volume"], "volume"), open_ids(call.arrays["seeds"], "seeds")
    same_shape(ids, "seeds", classes, "volume")
    shape = classes.shape[3 - classes.ndim :]
    rules = check_rules(shape, **call.keywords)
    inputs = {"volume": classes, "seeds": ids}
    costs = None
    if cost is not None:
        costs = inputs["cost"] = open_source(cost, "cost")
        same_shape(costs, "cost", classes, "volume")
    places = {"labels": out}
    if rules.return_confidence:
        if not (isinstance(out, (tuple, list)) and len(out) == 2):
            raise InputError(
                Keyword("return_confidence"),
                " needs two places: ",
                Keyword("out", ("labels.zarr", "confidence.zarr")),
            )
        places = {"labels": out[0], "confidence": out[1]}
    dtypes = {"labels": _choose_dtype(ids, rules), "confidence": np.dtype(np.uint16)}
    wanted = {
        name: Wanted(place, classes.shape, classes.ndim, dtypes[name], image=name == "confidence")
        for name, place in places.items()
    }
    parameters = {name: value for name, value in asdict(rules).items() if name != "weights"}
    with open_run(
        "propagate", inputs, parameters, wanted, call.options, keywords=call.keywords, stages=_list_stages(rules)
    ) as run:
        _run(run, rules, classes, ids, costs)
    labels = run.result("labels")
    return (labels, run.result("confidence")) if rules.return_confidence else labels


def _list_stages(rules: Rules, *, drawn: bool | None = None, smoothed: bool | None = None) -> list[Stage]:
    """Return all stages that there may be; what is read is less once it is known whether two of them do anything."""
    reached = () if rules.limit is None else ("volumes/reached",)
    start = {None: ("volumes/seeds", "volumes/drawn"), True: ("volumes/drawn",), False: ("volumes/seeds",)}[drawn]
    field = (*start, *component_areas(DRAWN, numbers=False), *reached)
    final = ("volumes/smoothed", *component_areas(SMOOTH, numbers=False), *reached)
    lead, refilled_lead = (("volumes/lead",), ("volumes/refilled lead",)) if rules.return_confidence else ((), ())
    stages = [
        Stage("census", writes=("census",)),
        Stage("ranks", reads=("census",), keeps=("tables", "slices")),
        Stage("seeds", reads=("tables",), writes=("volumes/seeds",)),
    ]
    if rules.limit is not None:
        stages += [
            spread_stage("reached set", ["volumes/seeds"]),
            Stage("reached", reads=("reached set", "volumes/seeds"), writes=("reached", "volumes/reached")),
            Stage("reached slices", reads=("reached", "slices"), keeps=("reached slices",)),
        ]
    if rules.axes:
        stages += [
            *section_stages(reached, ["volumes/seeds"]),
            Stage("drawing", (*DRAWING, "volumes/seeds", *reached), ("volumes/drawn", f"{DRAWN}/scan")),
            *join_stages(DRAWN, numbers=False),
        ]
    stages += [
        spread_stage("geodesic", field),
        Stage("settling", reads=("geodesic", *field), writes=("volumes/filled", f"{REST}/scan")),
        *join_stages(REST, numbers=rules.fresh_ids),
    ]
    if rules.fresh_ids:
        stages.append(Stage("fresh ids", reads=component_areas(REST), writes=("volumes/fresh",)))
    stages += [
        Stage("sweeps", keeps=("tables",)),
        Stage("diffusion", ("tables", "volumes/filled"), ("volumes/smoothed", *lead, f"{SMOOTH}/scan")),
        *join_stages(SMOOTH, numbers=False),
        spread_stage("reattachment", final),
        Stage("refilling", ("reattachment", *final, *lead), ("volumes/refilled", *refilled_lead)),
    ]
    # Without diffusion no label leads over others: that is read as 0 everywhere.
    labels = {
        None: ("volumes/filled", "volumes/smoothed", "volumes/refilled"),
        True: ("volumes/smoothed", "volumes/refilled"),
        False: ("volumes/filled",),
    }[smoothed]
    return [*stages, Stage("writing", reads=("tables", "volumes/fresh", *labels, *lead, *refilled_lead))]


def _run(run: Run, rules: Rules, classes: Source, seeds: Source, cost: Source | None) -> None:
    """Do all stages that are not done."""
    whole, missing = run.grid, tuple(rules.missing)
    census = _Census(whole, run.scratch, classes, seeds, cost, missing)
    run.map("census", _count, census)
    tables = _Tables(run.scratch)
    found = run.once("ranks", _take_census, census, rules, tables)
    if found["lost"]:
        warn(*missing_note(found["lost"]))
    for note in found["notes"]:
        warn(note)

    # From here on the volume is without its missing slices.
    depth, height, width = whole.shape
    run.grid = Grid((depth - len(missing), height, width), whole.tile)
    volume = _Volume(
        run.grid,
        run.scratch,
        tables,
        rules.connectivity,
        _Classes(_Present(classes, missing)),
        None if cost is None else _Cost(_Present(cost, missing)),
    )
    stages = _Stages(run, rules, volume)
    fresh = stages.propagate(_Ids(_Present(seeds, missing)), found["dropped"], found["most"])
    labels, lead = stages.labels, stages.lead
    context = _Write(whole, missing, tables, labels, lead, fresh, run.outputs["labels"], run.outputs.get("confidence"))
    run.map("writing", _write, context, len(whole))


class _Stages:
    """The stages on the volume without missing slices."""

    def __init__(self, run: Run, rules: Rules, volume: _Volume) -> None:
        self.run, self.rules, self.volume = run, rules, volume
        self.class_of = volume.tables.get("classes")
        self.reached: ScratchVolume | None = None
        """The class map of what the seeds reach within `max_distance`."""

    def propagate(self, ids: Reads, dropped: bool, most: int) -> ScratchVolume | None:
        """Find `labels` and `lead`; return the fresh ids, if there are any."""
        run, rules, volume = self.run, self.rules, self.volume
        start = self._create("seeds", np.uint32)
        run.map("seeds", _rank, _Rank(volume, ids, start))
        slices = "slices"
        if rules.limit is not None:
            slices = "reached slices"
            self.reached = self._create("reached", self.class_of.dtype, cut=1)
            spread = self._spread("reached set", _Field(volume, volume.classes, _Labels(start), None), rules.limit)
            run.map("reached", _reach, _Reach(volume, spread, ids if dropped else None, self.reached))
            run.once(slices, _add_reached, volume, dropped)

        start, drawn = self._draw(start, run.scratch.get(slices))
        sweeps = sweeps_of_labels(drawn, rules)
        most_sweeps = int(sweeps[1:].max(initial=0))
        run.plan.declare(_list_stages(rules, drawn=bool(drawn.any()), smoothed=most_sweeps > 0))
        filled, rest = self._fill(start, bool(drawn.any()), most_sweeps)
        lone = rest.components[0]
        fresh = None
        if lone and not rules.fresh_ids:
            warn(*lone_note(lone, rest.voxels[0]))
        elif lone:
            stop = fresh_ids(lone, most).stop
            fresh = self._create("fresh", np.uint32 if stop <= 2**32 else np.int64, tiles=rest.mixed)
            run.map("fresh ids", _fresh, _Fresh(volume, most, fresh), rest.mixed)
        self._smooth(filled, sweeps)
        return fresh

    @property
    def classes(self) -> Reads:
        """Return the class map of what can get a label."""
        return self.volume.classes if self.reached is None else self.reached

    def _create(self, name: str, dtype: npt.DTypeLike, cut: int = 0, tiles: Ints | None = None) -> ScratchVolume:
        return self.run.scratch.volume(f"volumes/{name}", self.run.grid, dtype, cut, tiles)

    def _spread(self, name: str, field: _Field, limit: int | None = None, active: Ints | None = None) -> Spread:
        rules = self.rules
        return spread_tiles(
            self.run, name, field, self.class_of, rules.weights, rules.connectivity, limit=limit, active=active
        )

    def _draw(self, seeds: ScratchVolume, slices: dict[str, Array]) -> tuple[ScratchVolume, npt.NDArray[np.bool_]]:
        """Return the seeds with what was drawn between them, and for which labels that was done."""
        run, rules = self.run, self.rules
        planar = None
        if rules.axes:
            planar = annotated_slices(_unpack("seeded", slices), _unpack("masked", slices), rules.axes)
        if planar is None:
            return seeds, np.zeros(len(self.class_of), np.bool_)
        axis, annotated = planar
        logger.info("%d annotated slices across axis %d", len(annotated), axis)
        sections = run_sections(run, self.classes, _Labels(seeds), self.class_of, axis, annotated, rules.spacing)
        if sections.drawing is None:
            return seeds, sections.took_part
        out = self._create("drawn", np.uint32)
        run.map("drawing", _draw, _Draw(self.volume, self.classes, seeds, sections.drawing, out))
        run_join(run, DRAWN, rules.connectivity, numbers=False)
        return out, sections.took_part

    def _fill(self, start: ScratchVolume, drawn: bool, halo: int) -> tuple[ScratchVolume, Totals]:
        """Return the nearest labels, to be read with a halo, and what is known of the components that have none."""
        run, rules = self.run, self.rules
        field = _Field(self.volume, self.classes, _Labels(start), DRAWN if drawn else None)
        spread = self._spread("geodesic", field)
        out = self._create("filled", np.uint32, cut=halo)
        run.map("settling", _settle, _Settle(self.volume, field, spread, start, self.reached, out))
        return out, run_join(run, REST, rules.connectivity, numbers=rules.fresh_ids)

    def _smooth(self, filled: ScratchVolume, sweeps: Ints) -> None:
        """Find the final labels and their lead over others."""
        run, rules, volume = self.run, self.rules, self.volume
        most, least = (int(sweeps[1:].max()), int(sweeps[1:].min())) if len(sweeps) > 1 else (0, 0)
        # Without diffusion no label leads over others.
        led = None if most else np.empty(0, np.int64)
        lead = self._create("lead", np.uint16, tiles=led) if rules.return_confidence else None
        self.labels = _Labels(filled)
        self.lead: tuple[ScratchVolume, ScratchVolume | None] | None = None if lead is None else (lead, None)
        if most == 0:
            return
        out = self._create("smoothed", np.uint32, cut=1)
        run.once("sweeps", lambda: volume.tables.put(sweeps=sweeps.astype(np.uint16)))
        weights = tuple(conductances(rules.weights).tolist())
        run.map("diffusion", _diffuse, _Diffuse(volume, filled, weights, most, least < most, out, lead))
        self.labels = _Labels(out)
        cleared = run_join(run, SMOOTH, rules.connectivity, numbers=False)
        if cleared.components[0]:
            field = _Field(volume, self.classes, self.labels, SMOOTH)
            spread = self._spread("reattachment", field, active=cleared.mixed)
            over = self._create("refilled", np.uint32, tiles=cleared.mixed)
            over_lead = self._create("refilled lead", np.uint16, tiles=cleared.mixed) if lead is not None else None
            run.map("refilling", _refill, _Refill(field, spread, over, lead, over_lead), cleared.mixed)
            self.labels = _Labels(out, over)
            self.lead = None if lead is None else (lead, over_lead)
