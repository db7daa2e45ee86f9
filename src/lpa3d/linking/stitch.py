"""Sections of single slices, and the objects that they are joined to.

Stages
------
1. *List* the sections (one id on one slice) with area, centre and box (parallel over slabs); number them slice by
   slice, in raster order, and write the numbers in place of the ids.
2. *Count* the voxels that sections share with those of the next slice (parallel over slabs; both tables add up over
   any cut of the volume).
3. *Chain* sections of equal class in the order of the slices' distance, then of decreasing evidence, so that a chain
   has one section to a slice (a union-find). Across a gap a section is looked for where its motion puts it.
4. *Branch*: chains that share slices are united where one of them begins or ends in the other.
5. *Number* the groups by their first voxels and write the numbers (parallel over slabs).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.checks import MAX_ID, as_bits, canonical_slices, check_flag, check_index, seal, stack_axis
from ..arrays.overlap import count_overlaps
from ..arrays.pairs import flag_first, sort_pairs
from ..arrays.text import list_some
from ..arrays.threads import num_threads, run_all, split
from ..arrays.warn import warn
from ..errors import InputError, InputTypeError, Keyword, Part
from ..kernels import stitch as kernels
from ..kernels.unite import find_smallest
from .chains import Chains, Sections, gather_pairs

__all__ = [
    "SLAB_VOXELS",
    "Rules",
    "check_rules",
    "choose_classes",
    "clip_boxes",
    "cut_slabs",
    "find_classes",
    "find_sections",
    "list_sections",
    "make_sections",
    "merge_chosen",
    "name_classes",
    "number_groups",
    "number_sections",
    "refuse_mapping",
]

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

SLAB_VOXELS = 2**18
"""Smallest slab that is worth a thread of its own."""


def clip_boxes(boxes: Ints, shifts: Ints, low: npt.ArrayLike, high: npt.ArrayLike) -> Ints:
    """Return the parts of boxes ``(n, 4)`` in slices that lie between two corners when they are shifted."""
    first = np.maximum(boxes[:, :2], np.asarray(low) - shifts)
    last = np.minimum(boxes[:, 2:], np.asarray(high) - shifts)
    return np.concatenate([first, last], axis=1)


def cut_slabs(shape: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Cut the rows of a volume for the threads."""
    size = shape[0] * shape[1] * shape[2]
    return split(shape[0] * shape[1], min(4 * num_threads(), size // SLAB_VOXELS)) if size else []


def list_sections(ids: npt.NDArray[Any], axis: int, usable: Flags, flat: npt.NDArray[Any]) -> Sections:
    """List the sections of canonical `ids` on the `usable` slices, and write their numbers, from 1, to `flat`."""
    source = seal(as_bits(ids)).reshape(-1)
    slabs = cut_slabs(ids.shape)

    def find(bounds: tuple[int, int]) -> Ints:
        rows: Ints = kernels.list_sections(source, ids.shape, axis, *bounds, usable, flat)
        return rows.copy()

    parts = run_all(find, slabs)
    table, numbers = number_sections(parts)
    stops = np.cumsum([len(part) for part in parts])
    width = ids.shape[2]

    def renumber(part: int) -> None:
        lo, hi = slabs[part]
        own = np.append(0, numbers[stops[part] - len(parts[part]) : stops[part]])
        kernels.replace_numbers(own, flat[lo * width : hi * width])

    run_all(renumber, range(len(slabs)))
    return make_sections(table)


def number_sections(parts: Iterable[Ints]) -> tuple[Ints, Ints]:
    """Return one table of the sections that the tables of several parts of the volume list, and their numbers.

    The table is sorted by slice and first voxel, and sections are numbered from 1 in this order. The numbers are those
    of all rows of `parts`, one after the other.
    """
    rows = np.concatenate([np.empty((0, 10), np.int64), *parts])
    keys = rows[:, [kernels.SLICE, kernels.ID]]
    order = sort_pairs(keys)
    new = flag_first(keys[order])
    first = np.flatnonzero(new)
    table = rows[order[first]]
    for reduce, columns in (
        (np.add, [kernels.AREA, kernels.ROWS, kernels.COLUMNS]),
        (np.minimum, [kernels.ROW_LO, kernels.COLUMN_LO, kernels.FIRST]),
        (np.maximum, [kernels.ROW_HI, kernels.COLUMN_HI]),
    ):
        if len(first):
            table[:, columns] = reduce.reduceat(rows[order][:, columns], first)
    numbering = np.lexsort((table[:, kernels.FIRST], table[:, kernels.SLICE]))
    table = table[numbering]
    place = np.empty(len(table), np.int64)
    place[numbering] = np.arange(1, len(table) + 1)
    numbers = np.empty(len(rows), np.int64)
    numbers[order] = place[np.cumsum(new) - 1]
    return table, numbers


def make_sections(table: Ints) -> Sections:
    """Return the sections of a table of `number_sections`."""
    present, ranks = np.unique(table[:, kernels.SLICE], return_inverse=True)
    centres = np.empty((len(table), 2), np.int64)
    kernels.find_centres(table, centres)
    return Sections(
        slices=table[:, kernels.SLICE].copy(),
        ids=table[:, kernels.ID].copy(),
        areas=table[:, kernels.AREA].copy(),
        firsts=table[:, kernels.FIRST].copy(),
        boxes=table[:, kernels.ROW_LO : kernels.COLUMN_HI + 1].copy(),
        centres=centres,
        present=present,
        ranks=ranks,
        starts=np.searchsorted(ranks, np.arange(len(present) + 1)),
    )


def find_classes(classes: Any, sections: Sections, numbers: npt.NDArray[Any]) -> tuple[Ints, list[Any]]:
    """Return what `name_classes` does; without classes all sections are of one nameless class."""
    if classes is None:
        return np.zeros(len(sections), np.int64), []
    table = count_overlaps(numbers, classes)
    chosen = choose_classes([np.column_stack([table.pairs, table.voxels])])
    return name_classes(chosen, classes.dtype, sections)


@dataclass(frozen=True)
class Chosen:
    """The classes of sections.

    Attributes
    ----------
    owners, codes : (m,) int64
        Sections that have a class, and its bits as a number of a kernel.
    several : (k,) int64
        Those that lie on more than one.
    voxels : int
        The voxels that lie on others than the chosen ones.
    """

    owners: Ints
    codes: Ints
    several: Ints
    voxels: int


def choose_classes(parts: Iterable[Ints]) -> Chosen:
    """Choose each section's class: that, not 0, of most of its voxels; ties: the one whose bits are the smaller number.

    `parts` are rows ``(number of the section from 1, class, voxels)``; equal numbers and classes add up.
    """
    rows = np.concatenate([np.empty((0, 3), np.int64), *parts])
    rows = rows[(rows[:, 0] > 0) & (rows[:, 1] != 0)]
    table = gather_pairs(rows[:, :2], rows[:, 2], np.add)
    owners, codes, voxels = table.sections[:, 0] - 1, table.sections[:, 1], table.shared
    order = np.lexsort((codes, -voxels, owners))
    owners, codes, voxels = owners[order], codes[order], voxels[order]
    first = flag_first(owners)
    return Chosen(owners[first], codes[first], np.unique(owners[~first]), int(voxels[~first].sum()))


def merge_chosen(parts: Iterable[tuple[Ints, Ints, Ints]], bases: Ints) -> Chosen:
    """Return the classes of all sections from those of some, ``(owners and codes, several, voxels)``.

    The sections of each part stand together, from its entry of `bases` on.
    """
    pairs, several, voxels = [np.empty((2, 0), np.int64)], [np.empty(0, np.int64)], 0
    for base, (some, mixed, lost) in zip(bases.tolist(), parts, strict=False):
        pairs.append(some + np.array([[base], [0]]))
        several.append(mixed + base)
        voxels += int(lost[0])
    owners, codes = np.concatenate(pairs, axis=1)
    return Chosen(owners, codes, np.concatenate(several), voxels)


def name_classes(chosen: Chosen, dtype: np.dtype[Any], sections: Sections) -> tuple[Ints, list[Any]]:
    """Return the class of each section as a position in a list of classes, and that list; warn of mixed sections.

    `dtype` is that of the class map.
    """
    groups = np.zeros(len(sections), np.int64)
    values, positions = np.unique(chosen.codes, return_inverse=True)
    groups[chosen.owners] = positions + 1
    # Messages say what the caller wrote; the kernel saw the bits as numbers of another sign.
    bits = np.dtype(f"u{dtype.itemsize}")
    names = [0, *values.astype(bits).view(dtype).tolist()]
    if len(chosen.several):
        warn(
            f"{len(chosen.several)} of {len(sections)} sections lie on more than one class, and have that of most of "
            f"their voxels; {chosen.voxels} voxels lie on others: (slice, id) "
            f"{list_some(chosen.several.tolist(), show=lambda section: str(sections.name(section)))}"
        )
    return groups, names


def find_sections(links: Ints, name: str, sections: Sections, usable: Flags) -> Ints:
    """Return the sections ``(m, 2)`` that the rows ``(slice, id, slice, id)`` name."""
    ends = links.reshape(-1, 2)
    if not len(ends):
        return np.empty((0, 2), np.int64)
    wanted = set(map(tuple, ends.tolist()))
    rows = np.flatnonzero(np.isin(sections.ids, ends[:, 1]))
    found = {(int(sections.slices[k]), int(sections.ids[k])): int(k) for k in rows}
    absent = sorted(wanted - found.keys())
    if absent:
        left_out: tuple[Part, ...] = ()
        if not usable[absent[0][0]]:
            left_out = f" (slice {absent[0][0]} is one of ", Keyword("bad_slices"), ")"
        raise InputError(
            Keyword(name),
            f" names {len(absent)} section(s) (slice, id) that ",
            Keyword("slices"),
            f" does not hold: {list_some(absent)}",
            *left_out,
            "; remove their pairs, or correct them",
        )
    pairs = np.sort(np.array([found[z, i] for z, i in ends.tolist()], np.int64).reshape(-1, 2), axis=1)
    return np.unique(pairs, axis=0)


def number_groups(chains: Chains, max_gap: int, branching: bool) -> Ints:
    """Chain the sections, and unite the chains if `branching`; return the number of each section's group.

    Entry k + 1 is of section k, entry 0 is 0. Groups are numbered in raster order of their first voxels.
    """
    neighbors = chains.chain(max_gap)
    if branching:
        chains.branch(neighbors)
    firsts = chains.sections.firsts
    smallest = np.empty_like(firsts)
    find_smallest(chains.parents, smallest)
    start = np.full(len(firsts), MAX_ID)
    np.minimum.at(start, smallest, firsts)
    roots = np.flatnonzero(smallest == np.arange(len(smallest)))
    numbers = np.zeros(len(firsts) + 1, np.int64)
    rank = np.empty(len(firsts), np.int64)
    rank[roots[np.argsort(start[roots])]] = np.arange(1, len(roots) + 1)
    numbers[1:] = rank[smallest]
    return numbers


@dataclass(frozen=True, eq=False, slots=True)
class Rules:
    """What decides which sections are united, whatever they are.

    Attributes
    ----------
    axis : int
        That of ``(Z, Y, X)`` that slices lie across.
    max_gap : int
    branching : bool
    usable : (slices,) bool
        Which slices are no bad ones.
    must_link, cannot_link : (n, 4) int64
        Rows ``(slice, id, slice, id)``.
    """

    axis: int
    max_gap: int
    branching: bool
    usable: Flags
    must_link: Ints
    cannot_link: Ints


def check_rules(
    shape: tuple[int, int, int],
    ndim: int,
    *,
    axis: Any,
    max_gap: Any,
    branching: Any,
    bad_slices: Any,
    must_link: Any,
    cannot_link: Any,
) -> Rules:
    """Check the arguments of `stitch` that are no volumes, for slices of `shape`, of `ndim` dimensions as given."""
    across = stack_axis(axis, ndim)
    gap = _check_gap(max_gap)
    depth = shape[across]
    usable = _check_bad(bad_slices, depth)
    must, cannot = _check_links(must_link, "must_link", depth), _check_links(cannot_link, "cannot_link", depth)
    return Rules(across, gap, check_flag(branching, "branching"), usable, must, cannot)


def _check_gap(max_gap: Any) -> int:
    """Return the largest distance of slices whose sections are united."""
    parts = (
        Keyword("max_gap"),
        f" is {max_gap!r}; a whole number of slices, at least 1, is needed, e.g. ",
        Keyword("max_gap", 5),
    )
    try:
        value = check_index(max_gap)
    except TypeError:
        raise InputTypeError(*parts) from None
    if value < 1:
        raise InputError(*parts)
    return value


def _check_bad(bad_slices: Any, depth: int) -> Flags:
    """Return which slices are usable."""
    usable = np.ones(depth, np.bool_)
    usable[canonical_slices(bad_slices, "bad_slices", depth, [7, 31])] = False
    return usable


def _check_links(links: Any, name: str, depth: int) -> Ints:
    """Return pairs of sections as rows ``(slice, id, slice, id)``."""
    given = Keyword(name)
    need = "pairs of sections (slice, id) are needed, e.g. ", Keyword(name, [((3, 7), (4, 12))])
    if isinstance(links, np.ndarray) and links.size and links.dtype.kind not in "ui":
        raise InputTypeError(given, f" has dtype {links.dtype}, but slices and ids are integers; ", *need)
    try:
        rows = [tuple(map(operator.index, (z, a, w, b))) for (z, a), (w, b) in links]
    except (TypeError, ValueError):
        raise InputTypeError(given, " cannot be read as pairs of sections; ", *need) from None
    for z, a, w, b in rows:
        if not (0 <= min(z, w) <= max(z, w) < depth and 1 <= min(a, b) <= max(a, b) <= MAX_ID):
            raise InputError(
                given,
                f" holds (({z}, {a}), ({w}, {b})); slices are from 0 to {depth - 1}, ids from 1 to 2**63 - 1",
            )
    return np.array(rows, np.int64).reshape(-1, 4)


def refuse_mapping(classes: Any) -> None:
    """Refuse a mapping in the place of a class map."""
    if isinstance(classes, Mapping):
        raise InputTypeError(
            Keyword("classes"),
            " is a mapping, but an id means something else on each slice; a class map of the shape of ",
            Keyword("slices"),
            " is needed",
        )
