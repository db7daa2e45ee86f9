"""Make one 3D segmentation of instances found slice by slice: the verb `stitch`.

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
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ._checks import MAX_ID, as_bits, canonical_out, instance_ids, seal
from ._classes import check_classes
from ._dispatch import accepts_stored
from ._neighbors import UNIT
from ._overlap import count_overlaps
from ._pairs import flag_first, sort_pairs
from ._threads import num_threads, run_all, split
from ._unite import list_some, unite_musts
from .errors import InputError, InputTypeError, Lpa3dWarning
from .kernels import stitch as kernels
from .kernels.sections import average_motions
from .kernels.unite import find_smallest, unite_allowed

__all__ = ["stitch"]

SLAB_VOXELS = 2**18
"""Smallest slab that is worth a thread of its own."""

WIDE = 2**32
"""Volumes of as many voxels get 64-bit numbers."""

COVERED = (3, 10)
"""Sections are evidence only if they share more than this part of the smaller one, or of the one that ends there."""

SINGLE = (3, 20)
"""Groups are united only if their largest junction, squared, is more than this part of (all that they share) times
(the largest section of the smaller group). Branches and fragments have .2 to 1, touching neighbours hardly .15."""

SINGLE_BLUNT = (1, 20)
BLUNT = (3, 5)
"""Or more than this smaller part, if the chain that ends there ends bluntly: its last section has more than `BLUNT` of
the area of the one before it. Branches do, and the ends of neighbours are round."""

WHOLE = 3
"""Sections of a chain that is no fragment. A fragment joins one group, and must not tie two of them together."""

SKIPPED = 1
"""Slices that have sections, but none of a chain, and that it may leap. With 2 and more, chains take what belongs to
others; with 0, one section that is missing or fused with another breaks a chain."""

STEPS = 2
"""Slices over which a section's own motion is measured; 1 is worse, 3 and 4 are not better."""

MOST = 16
"""Voxels that a section may move from slice to slice; 8 did the same where voxels are cubes."""

REACH = 60
"""Voxels within which neighbours tell a section's motion."""

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Sections:
    """The sections, numbered slice by slice.

    Attributes
    ----------
    slices, ids, areas, firsts : (n,) int64
        Slice, id, voxels, and flat index of the first voxel.
    boxes : (n, 4) int64
        First row and column, and one after the last.
    centres : (n, 2) int64
        In 1/16 voxel.
    present : (p,) int64
        The slices that have sections.
    ranks : (n,) int64
        The position of each section's slice among them.
    starts : (p + 1,) int64
        The first section of each of them.
    """

    slices: Ints
    ids: Ints
    areas: Ints
    firsts: Ints
    boxes: Ints
    centres: Ints
    present: Ints
    ranks: Ints
    starts: Ints

    def __len__(self) -> int:
        return len(self.slices)

    def name(self, k: int) -> str:
        """Return what messages call a section."""
        return f"({self.slices[k]}, {self.ids[k]})"


@dataclass(frozen=True)
class _Pairs:
    """Pairs of an earlier and a later section, sorted, each once, and twice the voxels that they share."""

    sections: Ints
    shared: Ints


@accepts_stored("stitch", "slices", "classes")
def stitch(
    slices: Any,
    *,
    classes: Any = None,
    axis: int = 0,
    max_gap: int = 5,
    branching: bool = True,
    bad_slices: Iterable[int] = (),
    must_link: Iterable[Any] = (),
    cannot_link: Iterable[Any] = (),
    out: npt.NDArray[Any] | None = None,
) -> npt.NDArray[Any]:
    """Unite instances that were found slice by slice to 3D instances.

    A *section* is one id on one slice. Sections of neighbouring slices are chained in the order of how well they cover
    each other, one to a slice; chains are then united where one of them branches off another.

    Parameters
    ----------
    slices : ndarray of bool or any integer dtype, shape (Z, Y, X) or (Y, X)
        Instance ids slice by slice, 0 = background, at most 2**63 - 1. An id has no meaning from slice to slice; on
        one slice it is one section, connected or not. Slices without any id count as missing. Any memory order and
        byte order. Not modified.
    classes : ndarray of bool or any integer dtype, shape as `slices`, optional
        Class map: sections of different classes never join. A section has the class of most of its voxels (ties: the
        smaller one), and a warning counts those that lie on several; class 0 is none, and sections that lie on it
        alone join only each other.
    axis : {0, 1, 2}, default 0
        The axis that slices lie across; -1 is the last. 0 for a 2D array, which is one slice.
    max_gap : int, default 5
        Sections are united directly only if their slices are at most so far apart: 5 bridges four missing slices.
    branching : bool, default True
        Whether objects may have several sections on one slice. Without it each has at most one, but for `must_link`.
    bad_slices : iterable of int, optional
        Positions across `axis`, from 0, of slices whose ids are not used; they come out as 0.
    must_link, cannot_link : iterable of pairs of sections, or integer ndarray of shape (n, 2, 2)
        A section is ``(slice, id)``, a pair ``((3, 7), (4, 12))``. Pairs that are always united, and pairs that never
        are, not even through a third section.
    out : ndarray, optional
        Array for the result: its dtype and the shape of `slices`, C-contiguous, not sharing memory with an input.

    Returns
    -------
    ndarray of uint32, or uint64 from 2**32 voxels on, shape of `slices`
        Instances 1..n in raster order of their first voxels, 0 = background. It is `out` where that is given.

    Raises
    ------
    InputError
        If constraints contradict each other (the message names the chain of `must_link` pairs) or name a section that
        there is not, or if another argument has an unusable value.
    InputTypeError
        If an argument has an unusable type or dtype.

    See Also
    --------
    propagate : fills the gaps between slices inside a class map.
    merge : unites fragments of one object by the area of their contacts.
    label : connected components.

    Notes
    -----
    *Chains.* Pairs of sections of equal class are taken from neighbouring slices first (missing slices do not count),
    then from those that one slice parts; inside that from small to large distances up to `max_gap`, and by decreasing
    intersection over union (ties: the sections that come first in raster order). A pair is chained if it shares more
    than 3/10 of the smaller section, if neither chain has a section between the two, and if the two chains meet on no
    slice. The last rule keeps a big section that lies over two objects from joining them: it goes to one of them, and
    the other goes on behind it.

    *Gaps.* Where slices are missing, or a section was, both sections are first moved to where they are expected on the
    other slice: as their chain moved over the two slices before, else as the nearest chains around them.

    *Branches.* Two chains are united where the last (or first) section of one of them lies on a section of the other,
    which goes on beyond. Let m be what the two sections share, S all that the two chains share on neighbouring slices,
    and A the largest section of the smaller chain. Asked are either m^2 > 3 S A / 20 and that m is more than 3/10 of
    the smaller chain's section; or m^2 > S A / 20, m more than 3/10 of the section that ends, and that one larger than
    3/5 of the next of its chain: branches end bluntly, neighbours are round. Neighbours that touch share little on
    many slices, branches much on one. This unites chains of three sections or more; then each of the groups and
    fragments that are left joins the one that it fits best, and is rated again, so that no speck ties two objects
    together. Two objects that a big section covers on one slice stay two.

    All evidence is integer counts, or one float64 expression of them. The result depends neither on the number of
    threads nor on what the ids are, and flips only flip it, but for ties and the order of numbers. docs/mixed_labels.md
    has every rule and the figures that it rests on: on the sections of UroCell's vesicles and mitochondria [1]_ the
    panoptic quality is .98 to 1 along every axis, with a tenth of the slices missing as well.

    A union-find [2]_ does the uniting. Memory above the input: the result and some 500 bytes for each section and each
    pair of sections that overlap. A volume of 256 cubed takes about 0.1 s.

    References
    ----------
    .. [1] M. Zerovnik Mekuc et al., "Automatic segmentation of mitochondria and endolysosomes in volumetric electron
       microscopy data", Computers in Biology and Medicine 119, 2020. doi:10.1016/j.compbiomed.2020.103693
    .. [2] R. E. Tarjan, "Efficiency of a Good But Not Linear Set Union Algorithm", Journal of the ACM 22(2), 1975.
       doi:10.1145/321879.321884

    Examples
    --------
    Three slices of two objects, whose ids are whatever the tool gave:

    >>> import numpy as np
    >>> import lpa3d
    >>> slices = np.array([[[1, 1, 0, 2, 2]], [[2, 2, 0, 1, 1]], [[9, 9, 0, 0, 4]]])
    >>> lpa3d.stitch(slices)[:, 0]
    array([[1, 1, 0, 2, 2],
           [1, 1, 0, 2, 2],
           [1, 1, 0, 0, 2]], dtype=uint32)
    >>> lpa3d.stitch(slices, bad_slices=[1], cannot_link=[((0, 1), (2, 9))])[:, 0]
    array([[1, 1, 0, 2, 2],
           [0, 0, 0, 0, 0],
           [3, 3, 0, 0, 2]], dtype=uint32)
    """
    ids = instance_ids(slices, "slices")
    shape: tuple[int, int, int] = ids.shape
    across = _check_axis(axis, slices.ndim)
    gap = _check_gap(max_gap)
    if not isinstance(branching, (bool, np.bool_)):
        raise InputTypeError(f"branching is {branching!r}; True or False is needed")
    usable = _check_bad(bad_slices, shape[across])
    must = _check_links(must_link, "must_link", shape[across])
    cannot = _check_links(cannot_link, "cannot_link", shape[across])
    class_of = _check_class_map(classes, slices)
    dtype = np.dtype(np.uint32 if ids.size < WIDE else np.uint64)
    target = canonical_out(out, slices.shape, dtype, (slices, classes))

    result = np.empty(shape, dtype) if target is None else target
    flat = as_bits(result).reshape(-1)
    sections = _list_sections(ids, across, usable, flat)
    groups, names = _find_classes(class_of, sections, result)
    must_pairs = _find_sections(must, "must_link", sections, usable)
    apart = _find_sections(cannot, "cannot_link", sections, usable)
    parents = unite_musts(must_pairs, apart, groups, names, sections.name)
    chains = _Chains(sections, groups, flat, shape, across, must_pairs, parents, apart)
    neighbors = chains.chain(min(gap, shape[across]))
    if branching:
        chains.branch(neighbors)
    smallest = np.empty_like(parents)
    find_smallest(chains.parents, smallest)
    _write_numbers(smallest, sections.firsts, flat)
    return result.reshape(slices.shape) if out is None else out


class _Chains:
    """The groups of sections while they are united."""

    def __init__(
        self,
        sections: _Sections,
        classes: Ints,
        flat: npt.NDArray[Any],
        shape: tuple[int, int, int],
        axis: int,
        must: Ints,
        parents: Ints,
        apart: Ints,
    ) -> None:
        self.sections, self.classes = sections, classes
        self.volume, self.shape, self.axis = seal(flat), shape, axis
        strides = shape[1] * shape[2], shape[2], 1
        self.stride = strides[axis]
        inside = [side for side in range(3) if side != axis]
        self.plane = *(strides[side] for side in inside), *(shape[side] for side in inside)
        self.apart, self.following = apart, np.empty(2 * len(apart), np.int64)
        self.groups = np.empty((9, len(sections)), np.int64)
        self.groups[kernels.PARENT] = parents
        kernels.start_groups(self.apart, self.following, self.groups)
        beside = must[sections.ranks[must[:, 1]] - sections.ranks[must[:, 0]] == 1]
        self._chain_pairs(beside, np.arange(len(beside)))
        # Neighbours are looked for in a slice and class, from top to bottom.
        self.order = np.lexsort((sections.centres[:, 0], classes, sections.ranks))

    @property
    def parents(self) -> Ints:
        """The parents of the union-find of groups; kernels write to them."""
        parents: Ints = self.groups[kernels.PARENT]
        return parents

    def chain(self, max_gap: int) -> _Pairs:
        """Unite sections to groups with one section to a slice; return what neighbouring slices share."""
        present, slices = self.sections.present, self.sections.slices
        unmoved = self._count_neighbors(max_gap)
        gaps = slices[unmoved.sections[:, 1]] - slices[unmoved.sections[:, 0]]
        neighbors = [_Pairs(unmoved.sections, unmoved.shared)]
        for distance in range(1, min(SKIPPED + 1, len(present) - 1) + 1):
            apart = present[distance:] - present[:-distance]
            for gap in np.unique(apart[apart <= max_gap]).tolist():
                if gap == 1:
                    links = _Pairs(unmoved.sections[gaps == 1], unmoved.shared[gaps == 1])
                else:
                    links = self._count_moved(np.flatnonzero(apart == gap), distance, gap)
                    if distance == 1:
                        neighbors.append(links)
                self._unite(links)
        largest = np.concatenate([pairs.shared for pairs in neighbors])
        return _gather(np.concatenate([pairs.sections for pairs in neighbors]), largest, np.maximum)

    def _unite(self, links: _Pairs) -> None:
        """Unite what shares enough, in the order of decreasing intersection over union."""
        areas = self.sections.areas[links.sections]
        alike = self.classes[links.sections[:, 0]] == self.classes[links.sections[:, 1]]
        strong = np.flatnonzero(
            alike & (links.shared * COVERED[1] > 2 * COVERED[0] * areas.min(axis=1, initial=MAX_ID))
        )
        evidence = links.shared[strong] / (2 * areas[strong].sum(axis=1) - links.shared[strong])
        # Pairs come sorted, so a stable sort leaves ties in that order.
        order = strong[np.argsort(-evidence, kind="stable")]
        self._chain_pairs(links.sections, order)

    def _chain_pairs(self, pairs: Ints, order: Ints) -> None:
        """Chain the pairs of an earlier and a later section, in the given order, where that is possible."""
        kernels.chain_sections(pairs, order, self.sections.ranks, self.apart, self.following, self.groups)

    def _count_neighbors(self, max_gap: int) -> _Pairs:
        """Return what the sections of each slice share with those of the next one that has any, up to `max_gap`."""
        present = self.sections.present
        steps = np.zeros(self.shape[self.axis], np.int64)
        gaps = np.diff(present)
        steps[present[:-1]] = np.where(gaps <= max_gap, gaps, 0) * self.stride

        def count(bounds: tuple[int, int]) -> Ints:
            rows: Ints = kernels.count_neighbors(self.volume, self.shape, self.axis, *bounds, steps)
            return rows.copy()

        rows = np.concatenate([np.empty((0, 3), np.int64), *run_all(count, _slabs(self.shape))])
        return _gather(rows[:, :2], 2 * rows[:, 2], np.add)

    def _count_moved(self, firsts: Ints, distance: int, gap: int) -> _Pairs:
        """Return what the sections on both sides of gaps share where their motion puts them.

        Parameters
        ----------
        firsts
            Ranks of the slices before the gaps.
        distance, gap
            From there to the slices after the gaps, in ranks and in slices.
        """
        sections = self.sections
        ranks = sections.ranks
        before, after = self.groups[kernels.BEFORE], self.groups[kernels.AFTER]
        # The group has no section on the slices between, nor on the other one.
        opened = np.stack(
            [(after < 0) | (ranks[after] - ranks > distance), (before < 0) | (ranks - ranks[before] > distance)]
        )
        # Slices that have nothing to unite need no motion.
        counts = np.array([np.append(0, np.cumsum(side)) for side in opened])
        starts = sections.starts
        ends = counts[0, starts[firsts + 1]] > counts[0, starts[firsts]]
        begins = counts[1, starts[firsts + distance + 1]] > counts[1, starts[firsts + distance]]
        firsts = firsts[ends & begins]
        shifts = []
        for side, some in enumerate((firsts, firsts + distance)):
            asked = np.zeros(len(sections.present), np.bool_)
            asked[some] = True
            opened[side] &= asked[ranks]
            shifts.append(self._find_shifts(side, opened[side], gap))
        shifts[1] = -shifts[1]

        def count(first: int) -> Ints:
            rows = []
            for side in range(2):
                here, there = (first, first + distance)[:: -1 if side else 1]
                plane = *(int(sections.present[rank]) * self.stride for rank in (here, there)), *self.plane
                some = int(starts[here]), int(starts[here + 1])
                found = kernels.count_shifted(
                    self.volume, plane, some, sections.boxes, shifts[side], opened[side], opened[1 - side]
                )
                rows.append(found[:, [1, 0, 2]] if side else found)
            return np.concatenate(rows)

        rows = np.concatenate([np.empty((0, 3), np.int64), *run_all(count, firsts.tolist())])
        # Forward and backward: twice the mean.
        return _gather(rows[:, :2], rows[:, 2], np.add)

    def _find_shifts(self, side: int, asked: Flags, gap: int) -> Ints:
        """Return how many voxels sections move over a gap that they stand before (side 0) or after.

        They go on as their chain did, else move as their neighbours.
        """
        sections = self.sections
        motions = np.zeros((len(sections), 2), np.int64)
        pointers = self.groups[kernels.AFTER if side else kernels.BEFORE]
        limits = gap, STEPS
        known = kernels.find_motions(pointers, sections.ranks, sections.slices, sections.centres, limits, motions)
        lone = np.flatnonzero(asked & ~known)
        pool = self.order[known[self.order]]
        if len(lone) and len(pool):
            kinds = int(self.classes.max()) + 1
            keys = sections.ranks * kinds + self.classes
            bounds = np.stack([np.searchsorted(keys[pool], keys[lone], edge) for edge in ("left", "right")], axis=1)
            found = np.empty((len(lone), 2), np.int64)
            average_motions(
                sections.centres[lone],
                bounds,
                np.full(len(lone), -1),
                sections.centres[pool],
                motions[pool],
                np.array([UNIT, UNIT]),
                16 * UNIT * REACH,
                found,
            )
            motions[lone] = found
        most = 16 * MOST * gap
        return np.asarray(np.rint(np.clip(motions, -most, most) / 16).astype(np.int64))

    def branch(self, neighbors: _Pairs) -> None:
        """Unite groups that share slices where the one begins or ends in the other.

        `neighbors` is what sections of neighbouring slices share.
        """
        pairs, shared = neighbors.sections, neighbors.shared
        areas = self.sections.areas
        roots = np.empty_like(self.parents)
        find_smallest(self.groups[kernels.CHAIN], roots)
        lengths = np.bincount(roots, minlength=len(roots))[roots]
        junction = np.zeros(len(pairs), np.bool_)
        blunt = np.zeros(len(pairs), np.bool_)
        beside = self.groups[[kernels.BEFORE, kernels.AFTER]]
        for side in range(2):
            # The group of the tip ends there, the other goes on; `back` is the tip's own neighbour.
            tip, other = pairs[:, side], pairs[:, 1 - side]
            backward, onward = beside[:: -1 if side else 1]
            ends = (onward[tip] < 0) & ((onward[other] >= 0) | (lengths[tip] < WHOLE))
            back = backward[tip]
            alike = (back >= 0) & (areas[tip] * BLUNT[1] > BLUNT[0] * areas[back])
            junction |= ends
            blunt |= ends & alike & (shared * COVERED[1] > 2 * COVERED[0] * areas[tip])
        whole = (lengths[pairs] >= WHOLE).all(axis=1)
        alike = self.classes[pairs[:, 0]] == self.classes[pairs[:, 1]]

        find_smallest(self.parents, roots)
        self._accept(*self._rate(neighbors, alike & whole, junction, blunt, roots))
        while True:
            find_smallest(self.parents, roots)
            links, evidence = self._rate(neighbors, alike, junction, blunt, roots)
            links, evidence = self._drop_apart(links, evidence, roots)
            if not len(links):
                return
            # Each group joins the one that it belongs to most, and what then is left is rated again.
            order = np.lexsort((links[:, 1], -evidence, links[:, 0]))
            best = order[flag_first(links[order, 0])]
            self._accept(links[best], evidence[best])

    def _rate(
        self, neighbors: _Pairs, rows: Flags, junction: Flags, blunt: Flags, roots: Ints
    ) -> tuple[Ints, npt.NDArray[np.float64]]:
        """Return pairs of groups, the smaller first, that are to be united, and the evidence, of all more than 1."""
        ends = roots[neighbors.sections]
        chosen = np.flatnonzero(rows & (ends[:, 0] != ends[:, 1]))
        ends, shared = ends[chosen], neighbors.shared[chosen]
        areas = self.sections.areas
        largest = np.zeros_like(areas)
        np.maximum.at(largest, roots, areas)
        sizes = largest[ends]
        turned = (sizes[:, 1] < sizes[:, 0]) | ((sizes[:, 1] == sizes[:, 0]) & (ends[:, 1] < ends[:, 0]))
        own = areas[np.where(turned, neighbors.sections[chosen, 1], neighbors.sections[chosen, 0])]
        ends[turned] = ends[turned, ::-1]
        covered = junction[chosen] & (shared * COVERED[1] > 2 * COVERED[0] * own)
        order = sort_pairs(ends)
        first = np.flatnonzero(flag_first(ends[order]))
        links = ends[order[first]]
        if not len(links):
            return links, np.empty(0)
        total = np.add.reduceat(shared[order], first)
        evidence = np.zeros(len(links))
        for flags, least in ((covered, SINGLE), (blunt[chosen], SINGLE_BLUNT)):
            most = np.maximum.reduceat(np.where(flags, shared, 0)[order], first)
            rated = (most / total) * (most / (2 * largest[links[:, 0]]))
            evidence = np.maximum(evidence, rated * least[1] / least[0])
        strong = evidence > 1
        return links[strong], evidence[strong]

    def _drop_apart(
        self, links: Ints, evidence: npt.NDArray[np.float64], roots: Ints
    ) -> tuple[Ints, npt.NDArray[np.float64]]:
        """Leave out the pairs of groups that must stay apart."""
        if not len(self.apart):
            return links, evidence
        n = len(roots)
        kept = np.sort(roots[self.apart], axis=1)
        wanted = np.sort(links, axis=1)
        free = ~np.isin(wanted[:, 0] * n + wanted[:, 1], kept[:, 0] * n + kept[:, 1])
        return links[free], evidence[free]

    def _accept(self, links: Ints, evidence: npt.NDArray[np.float64]) -> None:
        """Unite pairs of groups in the order of decreasing evidence, but for those that must stay apart."""
        links = np.sort(links, axis=1)
        order = np.lexsort((links[:, 1], links[:, 0], -evidence))
        unite_allowed(links, order, self.classes, self.apart, self.parents)


def _gather(pairs: Ints, shared: Ints, how: np.ufunc) -> _Pairs:
    """Return the pairs sorted and each once, with `shared` of equal pairs reduced by `how`."""
    order = sort_pairs(pairs)
    pairs, shared = pairs[order], shared[order]
    first = np.flatnonzero(flag_first(pairs))
    return _Pairs(pairs[first], how.reduceat(shared, first) if len(first) else shared)


def _slabs(shape: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Cut the rows of a volume for the threads."""
    size = shape[0] * shape[1] * shape[2]
    return split(shape[0] * shape[1], min(4 * num_threads(), size // SLAB_VOXELS)) if size else []


def _list_sections(ids: npt.NDArray[Any], axis: int, usable: Flags, flat: npt.NDArray[Any]) -> _Sections:
    """List the sections of canonical `ids` on the `usable` slices, and write their numbers, from 1, to `flat`."""
    source = seal(as_bits(ids)).reshape(-1)
    slabs = _slabs(ids.shape)

    def find(bounds: tuple[int, int]) -> Ints:
        rows: Ints = kernels.list_sections(source, ids.shape, axis, *bounds, usable, flat)
        return rows.copy()

    parts = run_all(find, slabs)
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
    stops = np.cumsum([len(part) for part in parts])
    width = ids.shape[2]

    def renumber(part: int) -> None:
        lo, hi = slabs[part]
        own = np.append(0, numbers[stops[part] - len(parts[part]) : stops[part]])
        kernels.replace_numbers(own, flat[lo * width : hi * width])

    run_all(renumber, range(len(slabs)))
    present, ranks = np.unique(table[:, kernels.SLICE], return_inverse=True)
    centres = np.empty((len(table), 2), np.int64)
    kernels.find_centres(table, centres)
    return _Sections(
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


def _find_classes(classes: Any, sections: _Sections, numbers: npt.NDArray[Any]) -> tuple[Ints, list[Any]]:
    """Return the class of each section as a position in a list of classes, and that list.

    It is the class, not 0, of most of the section's voxels; ties: the one whose bits are the smaller number.
    """
    groups = np.zeros(len(sections), np.int64)
    if classes is None:
        return groups, []
    table = count_overlaps(numbers, classes)
    rows = np.flatnonzero((table.pairs[:, 0] > 0) & (table.pairs[:, 1] != 0))
    owners, codes, voxels = table.pairs[rows, 0] - 1, table.pairs[rows, 1], table.voxels[rows]
    order = np.lexsort((codes, -voxels, owners))
    owners, codes, voxels = owners[order], codes[order], voxels[order]
    first = flag_first(owners)
    values, positions = np.unique(codes[first], return_inverse=True)
    groups[owners[first]] = positions + 1
    # Messages say what the caller wrote; the kernel saw the bits as numbers of another sign.
    bits = np.dtype(f"u{classes.dtype.itemsize}")
    names = [0, *values.astype(bits).view(classes.dtype).tolist()]
    several = np.unique(owners[~first])
    if len(several):
        warnings.warn(
            f"{len(several)} of {len(sections)} sections lie on more than one class, and have that of most of their "
            f"voxels; {int(voxels[~first].sum())} voxels lie on others: (slice, id) "
            f"{list_some([sections.name(section) for section in several[:6].tolist()])}",
            Lpa3dWarning,
            stacklevel=3,
        )
    return groups, names


def _find_sections(links: Ints, name: str, sections: _Sections, usable: Flags) -> Ints:
    """Return the sections ``(m, 2)`` that the rows ``(slice, id, slice, id)`` name."""
    ends = links.reshape(-1, 2)
    if not len(ends):
        return np.empty((0, 2), np.int64)
    wanted = set(map(tuple, ends.tolist()))
    rows = np.flatnonzero(np.isin(sections.ids, ends[:, 1]))
    found = {(int(sections.slices[k]), int(sections.ids[k])): int(k) for k in rows}
    absent = sorted(wanted - found.keys())
    if absent:
        shown = list_some(absent)
        if not usable[absent[0][0]]:
            shown += f" (slice {absent[0][0]} is one of bad_slices)"
        raise InputError(
            f"{name} names {len(absent)} section(s) (slice, id) that slices does not hold: {shown}; remove their "
            f"pairs, or correct them"
        )
    pairs = np.sort(np.array([found[z, i] for z, i in ends.tolist()], np.int64).reshape(-1, 2), axis=1)
    return np.unique(pairs, axis=0)


def _write_numbers(smallest: Ints, firsts: Ints, flat: npt.NDArray[Any]) -> None:
    """Replace the number of each section by that of its group, in raster order of the groups' first voxels."""
    start = np.full(len(firsts), MAX_ID)
    np.minimum.at(start, smallest, firsts)
    roots = np.flatnonzero(smallest == np.arange(len(smallest)))
    numbers = np.zeros(len(firsts) + 1, np.int64)
    rank = np.empty(len(firsts), np.int64)
    rank[roots[np.argsort(start[roots])]] = np.arange(1, len(roots) + 1)
    numbers[1:] = rank[smallest]
    bounds = split(flat.size, min(2 * num_threads(), flat.size // SLAB_VOXELS))
    run_all(lambda part: kernels.replace_numbers(numbers, flat[slice(*part)]), bounds)


def _check_index(value: Any) -> int:
    """Return a whole number; True and False are none here."""
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def _check_axis(axis: Any, ndim: int) -> int:
    """Return the axis of ``(Z, Y, X)`` that slices lie across."""
    try:
        value = _check_index(axis)
    except TypeError:
        raise InputTypeError(f"axis is {axis!r}; 0, 1 or 2 is needed") from None
    if ndim == 2 and value != 0:
        raise InputError(f"axis is {axis!r}; a 2D array is one slice, across axis=0")
    if not -3 <= value <= 2:
        raise InputError(f"axis is {axis!r}; 0, 1 or 2 is needed")
    return value % 3


def _check_gap(max_gap: Any) -> int:
    """Return the largest distance of slices whose sections are united."""
    need = "a whole number of slices, at least 1, is needed, e.g. max_gap=5"
    try:
        value = _check_index(max_gap)
    except TypeError:
        raise InputTypeError(f"max_gap is {max_gap!r}; {need}") from None
    if value < 1:
        raise InputError(f"max_gap is {max_gap!r}; {need}")
    return value


def _check_bad(bad_slices: Any, depth: int) -> Flags:
    """Return which slices are usable."""
    need = f"positions from 0 to {depth - 1} across the axis are needed, e.g. bad_slices=[7, 31]"
    try:
        given = list(bad_slices)
        bad = sorted({operator.index(z) for z in given})
    except TypeError:
        raise InputTypeError(f"bad_slices is {bad_slices!r}; {need}") from None
    if any(isinstance(z, bool) for z in given):
        raise InputTypeError(f"bad_slices holds True or False; {need} (numpy.flatnonzero makes them of a mask)")
    if bad and not 0 <= bad[0] <= bad[-1] < depth:
        raise InputError(f"bad_slices holds {bad[0]} to {bad[-1]}; {need}")
    usable = np.ones(depth, np.bool_)
    usable[bad] = False
    return usable


def _check_links(links: Any, name: str, depth: int) -> Ints:
    """Return pairs of sections as rows ``(slice, id, slice, id)``."""
    need = f"pairs of sections (slice, id) are needed, e.g. {name}=[((3, 7), (4, 12))]"
    if isinstance(links, np.ndarray) and links.size and links.dtype.kind not in "ui":
        raise InputTypeError(f"{name} has dtype {links.dtype}, but slices and ids are integers; {need}")
    try:
        rows = [tuple(map(operator.index, (z, a, w, b))) for (z, a), (w, b) in links]
    except (TypeError, ValueError):
        raise InputTypeError(f"{name} cannot be read as pairs of sections; {need}") from None
    for z, a, w, b in rows:
        if not (0 <= min(z, w) <= max(z, w) < depth and 1 <= min(a, b) <= max(a, b) <= MAX_ID):
            raise InputError(
                f"{name} holds (({z}, {a}), ({w}, {b})); slices are from 0 to {depth - 1}, ids from 1 to 2**63 - 1"
            )
    return np.array(rows, np.int64).reshape(-1, 4)


def _check_class_map(classes: Any, slices: npt.NDArray[Any]) -> Any:
    """Return None or a canonical class map in its own dtype."""
    if isinstance(classes, Mapping):
        raise InputTypeError(
            "classes is a mapping, but an id means something else on each slice; a class map of the shape of slices "
            "is needed"
        )
    return check_classes(classes, "classes", slices, "slices")
