"""Class maps, instances and slices made one: which source decides a voxel, by a table of their combinations.

Stages
------
1. *Mark* the slices on which both label sources have labels, and those that the caller calls complete.
2. *Count* (parallel over slabs): one row per combination of two ids, a class and a kind of slice, with its voxels and
   its box. Any partition of the volume gives the same table; all that follows is decided on its rows.
3. *Link* objects of the less trusted label source to those of the more trusted one, and find each object's class.
4. *Decide* every row by the order of trust, and list whom that overrules.
5. *Write* (parallel over slabs): each voxel looks its row up.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..arrays.checks import MAX_ID, as_raw, canonical_slices, seal, stack_axis
from ..arrays.text import list_some
from ..arrays.threads import num_threads, run_all, split
from ..errors import InputError, InputTypeError, Keyword
from ..kernels import fuse as kernels
from .fused import (
    CLASSES,
    COMPLETE,
    INSTANCES,
    KINDS,
    LABELS,
    OPEN,
    SHARED,
    SLICES,
    UNKNOWN,
    Conflicts,
    Provenance,
    Source,
)

__all__ = [
    "Rows",
    "Rules",
    "add_rows",
    "check_mapping",
    "check_rules",
    "class_dtype",
    "count_rows",
    "flag_slices",
    "make_inputs",
    "mark_slices",
    "seed_dtype",
    "settle",
    "write_tables",
]

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

SLAB_VOXELS = 2**20
"""Voxels of a slab: smaller ones leave more rows to add up, larger ones take more memory for each thread."""

_CODES = {CLASSES: 1, INSTANCES: 2, SLICES: 3}


@dataclass(frozen=True)
class Rules:
    """What `fuse` is asked for.

    Attributes
    ----------
    order, labels : list of str
        The sources, and the label sources, that are given, the most trusted first.
    axis : int
    complete : ndarray of int64
        Complete slices.
    maps
        The classes of ids, of both label sources.
    dtypes
        Of each source, in native byte order.
    size, ndim : int
        Of the volume.
    """

    order: list[str]
    labels: list[str]
    axis: int
    complete: Ints
    maps: dict[str, dict[int, int]]
    dtypes: dict[str, np.dtype[Any]]
    size: int
    ndim: int


class Inputs(NamedTuple):
    """Canonical arrays; the label sources in the order of trust, None where there is none."""

    shape: tuple[int, ...]
    lead: Array | None
    other: Array | None
    classes: Array | None
    axis: int
    flags: npt.NDArray[np.uint8]


class Rows(NamedTuple):
    """Combinations with their voxels; `first` is a flat index, `boxes` ``(n, 2, 3)``."""

    keys: Ints
    """Columns: id of the lead, of the other, bits of the class, flags of the slice."""
    voxels: Ints
    first: Ints
    boxes: Ints


class _Objects(NamedTuple):
    """Objects of the result, numbered from 1; row 0 is none. Those of the lead come first.

    An object of the other source that joins several of the lead is an object here too, with the id 0.
    """

    ids: Ints
    classes: Ints
    """Positions of classes, or `UNKNOWN`."""
    lead: Ints
    """The object on each row of the table, of the lead and of the other source; 0 is none."""
    other: Ints
    agreed: Flags
    """Whether the objects on each row agree; two of a row may do so and yet join others."""
    asserted: Ints
    """The class that a mapping gives the other source's own object on each row, or `UNKNOWN`."""


def check_rules(
    dtypes: Mapping[str, np.dtype[Any]],
    shape: Sequence[int],
    *,
    complete_slices: Iterable[int],
    axis: int,
    priority: Sequence[Source],
    instance_classes: Mapping[int, int] | None,
    slice_classes: Mapping[int, int] | None,
) -> Rules:
    """Check the options of `fuse` for sources of some dtypes and a shape of 2 or 3 sides."""
    order = _check_priority(priority, dtypes)
    labels = [name for name in order if name in LABELS]
    side = stack_axis(axis, len(shape))
    complete = _check_slices(complete_slices, (1, *shape)[-3:][side], labels)
    native = {name: dtype.newbyteorder("=") for name, dtype in dtypes.items()}
    maps = {}
    for source, mapping in ((INSTANCES, instance_classes), (SLICES, slice_classes)):
        name = f"{source[:-1]}_classes"
        maps[source] = check_mapping(mapping, name, dtypes.get(CLASSES))
        if mapping is not None and source not in dtypes:
            raise InputError(
                Keyword(name),
                " gives classes to the ids of ",
                Keyword(source),
                ", which are not given; pass ",
                Keyword(source),
                " too",
            )
    return Rules(order, labels, side, complete, maps, native, math.prod(shape), len(shape))


def flag_slices(rules: Rules, depth: int, labelled: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Return the flags of all slices; `labelled` are those with labels of both sources (1), if there are two."""
    flags = np.zeros(depth, np.uint8)
    flags[rules.complete] = COMPLETE
    if len(labelled) == 2:
        flags += SHARED * (labelled[0] & labelled[1])
    return flags


def make_inputs(
    rules: Rules, arrays: Mapping[str, Array], shape: tuple[int, ...], flags: npt.NDArray[np.uint8]
) -> Inputs:
    """Return canonical `arrays` of a volume, or of a part of one, in the order of trust."""
    sources = [arrays[name] for name in rules.labels] + [None, None]
    return Inputs(shape, sources[0], sources[1], arrays.get(CLASSES), rules.axis, flags)


def settle(rules: Rules, rows: Rows) -> tuple[tuple[Array, Array, Array], Conflicts]:
    """Decide what each row becomes: class, seed and provenance; and what was overruled."""
    values, ranks, maps = _rank_classes(rows, rules)
    objects = _link(rows, ranks, values, [maps[name] for name in rules.labels])
    decided = _decide(rows, ranks, objects, rules.order, rules.labels)
    _refuse_unknown(decided, objects, rows, values, rules.labels)
    conflicts = _tabulate(decided.lost, rows, values, rules.ndim)
    tops = [int(rows.keys[:, column].max(initial=0)) for column in (0, 1)]
    tables = (
        values.astype(class_dtype(rules))[decided.classes],
        objects.ids[decided.seeds].astype(seed_dtype(rules, tops)),
        decided.provenance,
    )
    return tables, conflicts


def _check_priority(priority: Any, given: Mapping[str, Any]) -> list[str]:
    """Return the given sources, the most trusted first."""
    given_as = Keyword("priority")
    need = "; the sources in the order of trust are needed, e.g. ", Keyword("priority", (INSTANCES, SLICES, CLASSES))
    # A set has no order: it would change from run to run.
    names = None if isinstance(priority, (str, Set)) or not isinstance(priority, Iterable) else list(priority)
    if names is None or not all(isinstance(name, str) for name in names):
        raise InputTypeError(given_as, f" is {priority!r}", *need)
    unknown = [name for name in names if name not in (CLASSES, *LABELS)]
    if unknown or len(set(names)) < len(names):
        wrong = f"is unknown: {unknown[0]!r}" if unknown else "stands twice"
        raise InputError(given_as, f" is {priority!r}, in which a name {wrong}", *need)
    absent = [name for name in given if name not in names]
    if absent:
        raise InputError(given_as, f" is {priority!r}, without {absent[0]!r}, which is given", *need)
    return [name for name in names if name in given]


def _check_slices(complete: Any, depth: int, labels: Sequence[str]) -> Ints:
    """Return the positions of complete slices."""
    slices = canonical_slices(complete, "complete_slices", depth, range(0, depth, 16))
    if slices and not labels:
        raise InputError(
            Keyword("complete_slices"),
            " says where labels are complete, but there are none; pass ",
            Keyword(INSTANCES),
            " or ",
            Keyword(SLICES),
        )
    return np.array(slices, np.int64)


def check_mapping(mapping: Any, name: str, dtype: np.dtype[Any] | None) -> dict[int, int]:
    """Return the classes of ids as Python integers; empty without a mapping.

    `dtype` is that of the class map, where there is one.
    """
    if mapping is None:
        return {}
    given, example = Keyword(name), Keyword(name, {7: 1})
    if not isinstance(mapping, Mapping):
        raise InputTypeError(
            given, f" is a {type(mapping).__qualname__}; a mapping of id to class is needed, e.g. ", example
        )
    try:
        pairs = {operator.index(key): operator.index(value) for key, value in mapping.items()}
    except TypeError:
        raise InputTypeError(
            given, " holds an id or a class that is no integer; e.g. ", example, " is needed"
        ) from None
    held = np.dtype(np.uint64) if dtype is None else dtype
    low, high = (0, 1) if held.kind == "b" else (int(np.iinfo(held).min), int(np.iinfo(held).max))
    for key, value in pairs.items():
        if not 1 <= key <= MAX_ID:
            raise InputError(given, f" gives a class to id {key}; ids are from 1 to 2**63 - 1")
        if value == 0:
            raise InputError(
                given, f" gives id {key} the class 0, which is background; to drop it, set its voxels to 0"
            )
        if not low <= value <= high:
            fitting = np.result_type(held, np.min_scalar_type(value))
            wider = f": make it wider, e.g. by classes.astype({fitting.name!r})" if fitting.kind in "iu" else ""
            raise InputError(
                given,
                f" gives id {key} the class {value}; classes from {low} to {high} are possible",
                *((f" in the dtype {dtype.name} of ", Keyword(CLASSES), wider) if dtype is not None else ()),
            )
    return pairs


def class_dtype(rules: Rules) -> np.dtype[Any]:
    """Return the dtype of the resulting class map."""
    if CLASSES in rules.dtypes:
        return rules.dtypes[CLASSES]
    return np.min_scalar_type(max((value for pairs in rules.maps.values() for value in pairs.values()), default=1))


def seed_dtype(rules: Rules, tops: Sequence[int]) -> np.dtype[Any]:
    """Return the dtype of the lead, or a wider one where fresh ids may need it; `tops` are the two largest ids."""
    if not rules.labels:
        return np.dtype(np.uint8)
    lead = rules.dtypes[rules.labels[0]]
    lead = np.dtype(np.uint8) if lead.kind == "b" else lead
    most = tops[0] + min(tops[1], rules.size) if len(rules.labels) == 2 else 0
    for size in (1, 2, 4):
        wider = np.dtype(f"{lead.kind}{size}")
        if size >= lead.itemsize and np.iinfo(wider).max >= most:
            return wider
    return np.dtype(f"{lead.kind}8")


def cut_slabs(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Cut the rows of a volume for the threads."""
    if not np.prod(shape, dtype=np.int64):
        return []
    return split(shape[0] * shape[1], -(-int(np.prod(shape, dtype=np.int64)) // SLAB_VOXELS))


def mark_slices(labels: Array, axis: int) -> npt.NDArray[np.uint8]:
    """Return 1 for the slices across `axis` that have labels, 0 for the others."""
    height, width = labels.shape[1:]
    flat = labels.reshape(-1)

    def mark(bounds: tuple[int, int]) -> npt.NDArray[np.uint8]:
        marked = np.zeros(labels.shape[axis], np.uint8)
        part = as_raw(flat[bounds[0] * width : bounds[1] * width])
        kernels.mark_slices(*part, axis, height, width, bounds[0], marked)
        return marked

    slabs = split(labels.shape[0] * height, 2 * num_threads()) if labels.size else []
    marks = [np.zeros(labels.shape[axis], np.uint8), *run_all(mark, slabs)]
    return np.asarray(np.bitwise_or.reduce(marks))


class _Parts:
    """Slabs of the sources as kernels take them; of size 0 what is not given."""

    def __init__(self, inputs: Inputs) -> None:
        arrays = [inputs.lead, inputs.other, inputs.classes]
        nothing = np.empty(0, np.uint8)
        self.flat = [nothing if array is None else array.reshape(-1) for array in arrays]
        self.axis, self.height, self.width = inputs.axis, *inputs.shape[1:]
        self.slabs = cut_slabs(inputs.shape)
        cuts = np.array([0, self.width])
        if inputs.axis == 2:
            cuts = np.concatenate([[0], np.flatnonzero(np.diff(inputs.flags)) + 1, [self.width]])
        self.flags = seal(inputs.flags), seal(cuts.astype(np.int64))

    def __getitem__(self, bounds: tuple[int, int]) -> list[Any]:
        """Return the rows from one to before the other of all three, and the flags of slices."""
        start, stop = bounds[0] * self.width, bounds[1] * self.width
        return [*(as_raw(flat[start:stop]) for flat in self.flat), *self.flags]

    def place(self, bounds: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return where in the volume these rows lie, as kernels take it."""
        return self.axis, self.height, *bounds


def count_rows(inputs: Inputs) -> Rows:
    """Count the voxels of all combinations; the rows are sorted by their keys."""
    parts = _Parts(inputs)

    def count(bounds: tuple[int, int]) -> Rows:
        pairs, rows = kernels.count_combinations(*parts[bounds], *parts.place(bounds))
        keys = np.column_stack([pairs[rows[:, 0] >> 2], rows[:, 1], rows[:, 0] & 3])
        return Rows(keys, rows[:, 2].copy(), rows[:, 3].copy(), rows[:, 4:].reshape(-1, 2, 3).copy())

    return add_rows(run_all(count, parts.slabs))


def add_rows(parts: Iterable[Rows]) -> Rows:
    """Return the sum of tables of parts of a volume, sorted by keys."""
    parts = list(parts)
    keys = np.concatenate([np.empty((0, 4), np.int64), *(part.keys for part in parts)])
    voxels, first = (
        np.concatenate([np.empty(0, np.int64), *columns])
        for columns in ([part.voxels for part in parts], [part.first for part in parts])
    )
    boxes = np.concatenate([np.empty((0, 2, 3), np.int64), *(part.boxes for part in parts)])
    order, starts = _group(keys)
    boxes = boxes[order]
    low, high = np.minimum.reduceat(boxes[:, 0], starts), np.maximum.reduceat(boxes[:, 1], starts)
    return Rows(
        keys[order[starts]],
        np.add.reduceat(voxels[order], starts),
        np.minimum.reduceat(first[order], starts),
        np.stack([low, high], axis=1),
    )


def _group(keys: Ints) -> tuple[Ints, Ints]:
    """Return the order that sorts rows by their columns, and where in it each distinct row begins."""
    order = np.lexsort(keys.T[::-1])
    first = np.ones(len(keys), np.bool_)
    first[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    return order, np.flatnonzero(first)


def _rank_classes(rows: Rows, rules: Rules) -> tuple[Array, Ints, dict[str, dict[int, int]]]:
    """Return the classes that there are, 0 and then the others ascending, and the position of each row's class.

    Also the mappings, with positions of classes for the classes.
    """
    dtype = class_dtype(rules)
    wide = np.uint64 if dtype == np.uint64 else np.int64
    found = np.zeros(len(rows.keys), wide)
    if CLASSES in rules.dtypes:
        found = rows.keys[:, 2].astype(f"u{dtype.itemsize}").view(dtype).astype(wide)
    mapped = np.array([value for pairs in rules.maps.values() for value in pairs.values()], wide)
    others = np.unique(np.concatenate([found[found != 0], mapped]))
    if not others.size:
        others = np.ones(1, wide)
    maps = {
        name: {key: 1 + int(np.searchsorted(others, wide(value))) for key, value in pairs.items()}
        for name, pairs in rules.maps.items()
    }
    return (
        np.concatenate([np.zeros(1, wide), others]),
        np.where(found == 0, 0, 1 + np.searchsorted(others, found)),
        maps,
    )


def _link(rows: Rows, ranks: Ints, values: Array, maps: Sequence[dict[int, int]]) -> _Objects:
    """Link the objects of both label sources, and find the class of each."""
    (lead_ids, lead), (other_ids, other) = (_positions(rows.keys[:, column]) for column in (0, 1))
    both = (lead > 0) & (other > 0)
    pairs, place = np.unique(lead[both] * (len(other_ids) + 1) + other[both], return_inverse=True)
    ends = np.divmod(pairs, len(other_ids) + 1)
    shared = (rows.keys[:, 3] & SHARED) > 0
    sizes = [_sum(end[shared], rows.voxels[shared], len(ids)) for end, ids in ((lead, lead_ids), (other, other_ids))]
    common = _sum(place, rows.voxels[both], len(pairs) - 1)
    agree = 2 * common >= np.minimum(sizes[0][ends[0]], sizes[1][ends[1]])
    # One that is labelled by many and agrees with none is no new object.
    covered = _sum(ends[1], common, len(other_ids))
    spread = (covered > 0) & (2 * covered >= sizes[1]) & (np.bincount(ends[1][agree], minlength=len(covered)) == 0)
    agree |= spread[ends[1]]
    agreed = np.zeros(len(rows.keys), np.bool_)
    agreed[both] = agree[place]

    # Numbers of the other source's objects: that of a partner, else the next ones; those that join several come last.
    partners = np.bincount(ends[1][agree], minlength=len(other_ids) + 1)
    alone, joining = (np.flatnonzero(which[1:]) + 1 for which in (partners == 0, partners > 1))
    first = np.full(len(other_ids) + 1, MAX_ID)
    np.minimum.at(first, other, rows.first)
    alone = alone[np.argsort(first[alone])]
    number = np.zeros(len(other_ids) + 1, np.int64)
    number[ends[1][agree]] = ends[0][agree]
    number[alone] = len(lead_ids) + 1 + np.arange(len(alone))
    number[joining] = len(lead_ids) + len(alone) + 1 + np.arange(len(joining))
    top = int(lead_ids[-1]) if len(lead_ids) else 0
    if top + len(alone) > MAX_ID:
        raise InputError(
            f"{len(alone)} objects need fresh ids after the largest, {top}, but ids end at 2**63 - 1; renumber "
            f"the more trusted labels first, e.g. by numpy.unique(labels, return_inverse=True)"
        )
    fresh = top + 1 + np.arange(len(alone)) if len(alone) else alone
    ids_of_objects = np.concatenate([[0], lead_ids, fresh, np.zeros(len(joining), np.int64)])

    # Classes: what mappings say, the class map, the only one.
    own = [np.full(len(ids) + 1, UNKNOWN) for ids in (lead_ids, other_ids)]
    for known, ids, mapping in zip(own, (lead_ids, other_ids), maps, strict=False):
        known[1:] = [mapping.get(i, UNKNOWN) for i in ids.tolist()]
    found = np.full(len(ids_of_objects), UNKNOWN)
    found[: len(lead_ids) + 1] = own[0]
    mapped = own[1][other] >= 0
    _choose(found, number[other[mapped]], own[1][other[mapped]], rows.voxels[mapped])
    complete = (rows.keys[:, 3] & COMPLETE) > 0
    owner = np.where(lead > 0, lead, np.where(complete, 0, number[other]))
    inside = (owner > 0) & (ranks > 0)
    _choose(found, owner[inside], ranks[inside], rows.voxels[inside])
    if len(values) == 2:
        found[found < 0] = 1
    found[0] = 0
    return _Objects(ids_of_objects, found, lead, number[other], agreed, own[1][other])


def _positions(column: Ints) -> tuple[Ints, Ints]:
    """Return the sorted ids of a column, without 0, and each row's position in them, from 1; 0 for 0."""
    ids, places = np.unique(np.concatenate([[0], column]), return_inverse=True)
    return ids[1:], places[1:]


def _sum(places: Ints, voxels: Ints, last: int) -> Ints:
    """Return the voxels of each place from 0 to `last`; sums are exact in float64 up to 2**53."""
    return np.bincount(places, voxels, last + 1).astype(np.int64)


def _choose(found: Ints, objects: Ints, classes: Ints, voxels: Ints) -> None:
    """Set the class of objects whose class is not known to the one with most voxels; ties: the smaller."""
    pairs = np.column_stack([objects, classes])
    order, starts = _group(pairs)
    objects, classes = pairs[order[starts]].T
    order = np.lexsort((classes, -np.add.reduceat(voxels[order], starts), objects))
    _, starts = _group(objects[order, np.newaxis])
    best = order[starts]
    best = best[found[objects[best]] < 0]
    found[objects[best]] = classes[best]


class _Decided(NamedTuple):
    """What each row becomes."""

    classes: Ints
    seeds: Ints
    """Numbers of objects, 0 for none."""
    provenance: npt.NDArray[np.uint8]
    lost: list[tuple[Ints, Ints]]
    """Positions of rows, and the first seven columns of the table of conflicts, as codes and positions."""


def _decide(rows: Rows, ranks: Ints, objects: _Objects, order: Sequence[str], labels: Sequence[str]) -> _Decided:
    """Let the sources speak on every row in the order of trust."""
    n = len(rows.keys)
    number = dict(zip(labels, (objects.lead, objects.other), strict=False))
    classes, seeds = np.full(n, OPEN), np.zeros(n, np.int64)
    class_by, seed_by = np.zeros(n, np.uint8), np.zeros(n, np.uint8)
    ids = dict(zip(labels, rows.keys[:, :2].T, strict=False))
    lost: list[tuple[Ints, Ints]] = []

    def lose(flags: Flags, kind: str, loser: str, loser_classes: Ints, winner: str, labelled: bool = True) -> None:
        """List the rows on which a source is overruled, by an object if `labelled`."""
        at = np.flatnonzero(flags)
        keys = np.zeros((len(at), 7), np.int64)
        keys[:, 0], keys[:, 1], keys[:, 4] = KINDS.index(kind), _CODES[winner], _CODES[loser]
        if labelled:
            keys[:, 2] = ids[winner][at]
        if loser in ids:
            keys[:, 5] = ids[loser][at]
        keys[:, 3], keys[:, 6] = classes[at], np.maximum(loser_classes[at], 0)
        lost.append((at, keys))

    # What a complete slice leaves unlabelled.
    gone = ((rows.keys[:, 3] & COMPLETE) > 0) & (objects.lead == 0)
    classes[gone] = 0
    emptied = np.zeros(n, np.bool_)
    for source in order:
        if source == CLASSES:
            has, said = ranks > 0, ranks
        else:
            has, said = number[source] > 0, objects.classes[number[source]]
        if labels:
            lose(gone & has, "unlabelled", source, said, labels[0], labelled=False)
        emptied |= gone & has
    something = (ranks > 0) | (objects.lead > 0) | (objects.other > 0)

    for source in order:
        code = _CODES[source]
        if source == CLASSES:
            for winner in labels:
                other = (class_by == _CODES[winner]) & (classes != ranks) & ~gone
                lose(other & (ranks == 0), "background", source, ranks, winner)
                lose(other & (ranks > 0), "class", source, ranks, winner)
            still = classes == OPEN
            classes[still], class_by[still] = ranks[still], code
            continue
        mine = number[source]
        here, said = (mine > 0) & ~gone, objects.classes[mine]
        nameless = objects.ids[mine] == 0
        # Beside a label that is more trusted.
        rival = here & (seeds > 0) & (seeds != mine)
        lose(rival & nameless & objects.agreed, "joins", source, said, labels[0])
        lose(rival & ~(nameless & objects.agreed), "labels", source, said, labels[0])
        # Beside a class map that is more trusted.
        free = here & (seeds == 0)
        barred = free & (classes != OPEN) & (classes != said)
        lose(barred & (classes == 0), "background", source, said, CLASSES, labelled=False)
        lose(barred & (classes != 0), "class", source, said, CLASSES, labelled=False)
        free &= ~barred
        still = free & (classes == OPEN)
        classes[still], class_by[still] = said[still], code
        lose(free & nameless, "joins", source, said, labels[0], labelled=False)
        free &= ~nameless
        seeds[free], seed_by[free] = mine[free], code
        if source != labels[0]:
            # It took the id of an object to which the lead gives another class than the mapping of this one.
            own = objects.asserted
            lose((seeds == mine) & here & (own >= 0) & (own != said), "class", source, own, labels[0])
    classes[classes == OPEN] = 0
    provenance = np.where(seeds > 0, seed_by, np.where(something & ~gone, class_by, 0))
    provenance[emptied] = Provenance.COMPLETE
    return _Decided(classes, seeds, provenance.astype(np.uint8), lost)


def _refuse_unknown(decided: _Decided, objects: _Objects, rows: Rows, values: Array, labels: Sequence[str]) -> None:
    """Refuse objects that decide a voxel without having a class."""
    at = decided.classes == UNKNOWN
    for column, (source, numbers) in enumerate(zip(labels, (objects.lead, objects.other), strict=False)):
        here = at & (objects.classes[numbers] == UNKNOWN) & (numbers > 0)
        ids = np.unique(rows.keys[here, column])
        if ids.size:
            raise InputError(
                f"{len(ids)} object(s) of ",
                Keyword(source),
                f" have no class: {list_some(ids)}. No mapping names them, they lie on no class of a class map, and "
                f"there are several classes: {list_some(values[1:].tolist())}. Pass ",
                Keyword(f"{source[:-1]}_classes", {int(ids[0]): values[1].item()}),
                f" and so on; or, to leave objects on background out, name 'classes' before {source!r} in ",
                Keyword("priority"),
            )


def _tabulate(lost: Sequence[tuple[Ints, Ints]], rows: Rows, values: Array, ndim: int) -> Conflicts:
    """Return the table of conflicts: rows of equal winner and loser made one."""
    at = np.concatenate([np.empty(0, np.int64), *(part[0] for part in lost)])
    keys = np.concatenate([np.empty((0, 7), np.int64), *(part[1] for part in lost)])
    order, starts = _group(keys)
    keys, at = keys[order[starts]], at[order]
    voxels = np.add.reduceat(rows.voxels[at], starts)
    boxes = [np.minimum.reduceat(rows.boxes[at, 0], starts), np.maximum.reduceat(rows.boxes[at, 1], starts)]
    order = np.lexsort((*keys.T[[6, 5, 3, 2, 4, 1, 0]], -voxels))
    kind, winner, winner_id, winner_class, loser, loser_id, loser_class = keys[order].T
    names = np.array(["", *_CODES])
    sides = [boxes[end][order, axis] for axis in range(3) for end in range(2)]
    columns: list[Any] = [
        np.array(KINDS)[kind],
        names[winner],
        winner_id,
        values[winner_class],
        names[loser],
        loser_id,
        values[loser_class],
        voxels[order],
        *sides,
    ]
    columns = [seal(np.ascontiguousarray(column)) for column in columns]
    if ndim == 2:
        columns[8:10] = None, None
    return Conflicts(*columns)


def write_tables(inputs: Inputs, keys: Ints, tables: Sequence[Array]) -> list[Array]:
    """Return volumes of what `tables` say of each voxel's combination, one of the rows of `keys`."""
    parts = _Parts(inputs)
    results = [np.empty(inputs.shape, table.dtype) for table in tables]
    flat = [result.reshape(-1) for result in results]
    index = kernels.index_combinations(keys)

    def write(bounds: tuple[int, int]) -> None:
        at = slice(bounds[0] * parts.width, bounds[1] * parts.width)
        found = np.empty(at.stop - at.start, np.intp)
        kernels.find_combinations(*parts[bounds], parts.place(bounds), index, found)
        for table, result in zip(tables, flat, strict=True):
            # Any mode but "raise" writes without a buffer; all numbers are in range.
            np.take(table, found, out=result[at], mode="clip")

    run_all(write, parts.slabs)
    return results
