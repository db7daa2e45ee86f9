"""Unite sections of neighbouring slices to chains, and chains to groups: the core of `stitch`, on tables alone.

What sections share is counted by an object that holds their voxels, or knows who does (`Counts`); all else is decided
here, so that it makes no difference where the voxels are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..arrays.checks import MAX_ID
from ..arrays.neighbors import UNIT
from ..arrays.pairs import flag_first, sort_pairs
from ..kernels import stitch as kernels
from ..kernels.sections import average_motions
from ..kernels.unite import find_smallest, unite_allowed

__all__ = ["Chains", "Counts", "Moves", "Pairs", "Sections", "gather_pairs"]

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
class Sections:
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
class Pairs:
    """Pairs of an earlier and a later section, sorted, each once, and twice the voxels that they share."""

    sections: Ints
    shared: Ints


@dataclass(frozen=True)
class Moves:
    """Sections that are looked for across gaps where their motion puts them.

    Attributes
    ----------
    firsts : (m,) int64
        Ranks of the slices before the gaps.
    distance, gap : int
        From there to the slices after the gaps, in ranks and in slices.
    opened : (2, n) bool
        The sections that count, on the slices before (0) and after the gaps (1).
    shifts : two arrays (n, 2) of int64
        How many rows and columns they are shifted, forward (0) and back (1).
    """

    firsts: Ints
    distance: int
    gap: int
    opened: Flags
    shifts: tuple[Ints, Ints]


class Counts(Protocol):
    """Counts voxels that sections share: rows ``(earlier section, later section, voxels)``, in any order and parts."""

    def count_neighbors(self, gaps: Ints) -> Ints:
        """Count for each present slice and the next one, ``gaps[rank]`` slices further; not where that is 0."""

    def count_moved(self, moves: Moves) -> Ints:
        """Count what shifted sections share with those of the slice behind the gap, forward and back."""


class Chains:
    """The groups of sections while they are united."""

    def __init__(
        self, sections: Sections, classes: Ints, counts: Counts, must: Ints, parents: Ints, apart: Ints
    ) -> None:
        self.sections, self.classes, self.counts = sections, classes, counts
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

    def chain(self, max_gap: int) -> Pairs:
        """Unite sections to groups with one section to a slice; return what neighbouring slices share."""
        present, slices = self.sections.present, self.sections.slices
        unmoved = self._count_neighbors(max_gap)
        gaps = slices[unmoved.sections[:, 1]] - slices[unmoved.sections[:, 0]]
        neighbors = [Pairs(unmoved.sections, unmoved.shared)]
        for distance in range(1, min(SKIPPED + 1, len(present) - 1) + 1):
            apart = present[distance:] - present[:-distance]
            for gap in np.unique(apart[apart <= max_gap]).tolist():
                if gap == 1:
                    links = Pairs(unmoved.sections[gaps == 1], unmoved.shared[gaps == 1])
                else:
                    links = self._count_moved(np.flatnonzero(apart == gap), distance, gap)
                    if distance == 1:
                        neighbors.append(links)
                self._unite(links)
        largest = np.concatenate([pairs.shared for pairs in neighbors])
        return gather_pairs(np.concatenate([pairs.sections for pairs in neighbors]), largest, np.maximum)

    def _unite(self, links: Pairs) -> None:
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

    def _count_neighbors(self, max_gap: int) -> Pairs:
        """Return what the sections of each slice share with those of the next one that has any, up to `max_gap`."""
        gaps = np.diff(self.sections.present, append=self.sections.present[-1:])
        rows = self.counts.count_neighbors(np.where(gaps <= max_gap, gaps, 0))
        return gather_pairs(rows[:, :2], 2 * rows[:, 2], np.add)

    def _count_moved(self, firsts: Ints, distance: int, gap: int) -> Pairs:
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
        rows = self.counts.count_moved(Moves(firsts, distance, gap, opened, (shifts[0], -shifts[1])))
        # Forward and backward: twice the mean.
        return gather_pairs(rows[:, :2], rows[:, 2], np.add)

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

    def branch(self, neighbors: Pairs) -> None:
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
        self, neighbors: Pairs, rows: Flags, junction: Flags, blunt: Flags, roots: Ints
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


def gather_pairs(pairs: Ints, shared: Ints, how: np.ufunc) -> Pairs:
    """Return the pairs sorted and each once, with `shared` of equal pairs reduced by `how`."""
    order = sort_pairs(pairs)
    pairs, shared = pairs[order], shared[order]
    first = np.flatnonzero(flag_first(pairs))
    return Pairs(pairs[first], how.reduceat(shared, first) if len(first) else shared)
