"""The sections stage: labels between annotated slices, from how each object's section moves, grows and fades.

Stages
------
1. *Pieces*: the 8-connected parts of each label on each annotated slice, with their centre and potential.
2. *Pairs*: pieces of one label on both ends of an interval; their centres' difference is their motion.
3. *Switch*: a class takes part only if neighbouring pieces move alike in it.
4. *Motion* of the others: expected as their own motion in the interval behind them, else as their neighbours';
   refined by what the class map does around them on the slices next to them. The slices before the first and after
   the last annotated slice are intervals with one end.
5. *Drawing*: potentials, displaced and mixed, compete for the voxels of each slice.

All lengths are integers, nothing depends on the order of work, and no rule prefers a direction: where candidates tie,
all of them count. Every stage reads the class map only within `CAP` + `MOST` pixels of a piece.
"""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ._label import find_components
from ._neighbors import UNIT
from ._threads import run_all, split
from .kernels import sections as kernels

__all__ = ["label_sections"]

CAP = 8
"""Pixels at which potentials are capped."""

MOST = 64
"""Pixels that a piece may move over an interval. 32 lost 1 to 2 % of panoptic quality where sections move fast."""

REACH = 60
"""Pixels within which neighbours tell a piece's motion."""

FADING = 614
"""1/4096 pixel that a lone piece loses a slice: 0.15 pixels. From 0.08 to 0.25 the result is the same."""

FLOOR = -2 * 4096
"""Least potential that labels a voxel, in 1/4096 pixel. -1 and -4 pixels give the same."""

DECAY = 0.8
LOOK = 8
"""The class map is matched on this many slices, each `DECAY` times the weight of the one before."""

TRUST_OWN = 820
TRUST_NEIGHBORS = 41
"""What a squared difference of 1 pixel a slice from the expected motion costs, in 1/8192 of the template's voxels.

On the vesicles, own motion needs the class map only a little (4.2 to 3.8 pixels of error over an interval), while
neighbours' motion is a poor guess that it halves (24 to 13 pixels where sections move fast).
"""

RADIUS = 5
COARSE = 8
FINE = 2
"""Motions tried: `RADIUS` steps of `COARSE` / 16 pixel a slice each way, refined to `FINE` / 16."""

EXPLAINED = (17, 20)
"""A class takes part if its neighbours' motion leaves less than this share of the squared motion unexplained.

Vesicles leave .37 to .81; branching trees and mitochondria mostly more than 1, at the least .89.
"""

CHUNK = 8
"""Slices that are drawn as one piece of work."""

Ints = npt.NDArray[np.int64]
Labels = npt.NDArray[np.uint32]

logger = logging.getLogger("lpa3d")


@dataclass(frozen=True)
class _Plane:
    """The pieces of one annotated slice."""

    z: int
    labels: Labels
    kinds: npt.NDArray[Any]
    """The class of each piece."""
    boxes: Ints
    measures: Ints
    starts: Ints
    potentials: npt.NDArray[np.int16]
    image: npt.NDArray[Any]
    """The piece of each voxel, counted from 1."""

    @property
    def centres(self) -> Ints:
        return self.measures[:, 1:]


@dataclass
class _Interval:
    """The slices between two annotated ones, or between one (the other is None) and an end of the volume."""

    before: int | None
    after: int | None
    length: int
    slices: range
    pairs: Ints = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    motions: Ints = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    """The motion of each pair over the interval, in 1/16 voxel."""
    means: tuple[Ints, Ints] = (np.zeros((0, 3), np.int64), np.zeros((0, 3), np.int64))
    """For the pieces of either end: how many pairs they are in, and the mean of those pairs' motions."""


class _Geometry:
    """Lengths in a plane, from the in-plane spacing: a pixel is the smaller of the two."""

    def __init__(self, spacing: tuple[float, float, float], axis: int) -> None:
        sides = [side for i, side in enumerate(spacing) if i != axis]
        pixel = min(sides)
        self.steps = np.array([round(UNIT * side / pixel) for side in sides], dtype=np.int64)
        """1/64 pixels to a voxel."""
        self.margins = -(-CAP * UNIT // self.steps)
        # Thicker slices move further from one to the next.
        self.stretch = max(1, round(spacing[axis] / pixel))
        self.clamp = 16 * MOST * UNIT // self.steps
        rows, columns = (np.arange(margin + 2) * step for margin, step in zip(self.margins, self.steps, strict=True))
        lengths = np.rint(np.sqrt(rows[:, None] ** 2 + columns[None, :] ** 2) / 4)
        self.table = np.minimum(lengths, 16 * CAP).astype(np.int64)
        self.table[-1] = self.table[:, -1] = 16 * CAP

    def length2(self, motions: Ints) -> Ints:
        """Return squared lengths of motions in 1/16 voxel, in (1/1024 pixel)^2."""
        return np.asarray(((motions * self.steps) ** 2).sum(axis=1))


def _divide_even(a: Ints, b: Ints | int) -> Ints:
    """Return a / b rounded to the nearest integer, ties to even."""
    quotient, rest = np.divmod(a, b)
    return np.asarray(quotient + ((2 * rest > b) | ((2 * rest == b) & (quotient & 1 == 1))))


def label_sections(
    volume: npt.NDArray[Any],
    labels: Labels,
    classes: npt.NDArray[Any],
    axis: int,
    annotated: list[int],
    spacing: tuple[float, float, float],
) -> npt.NDArray[np.bool_]:
    """Label, in place, the unlabelled voxels between annotated slices.

    Parameters
    ----------
    volume
        Canonical class map.
    labels
        Ranks of the kept seeds.
    classes
        Class of each label, at index 0 the background.
    axis
        The axis that the annotated slices lie across.
    annotated
        Their positions, ascending, at least two.
    spacing
        Voxel size.

    Returns
    -------
    took_part : ndarray of bool, parallel to `classes`
        Whether the label's class passed the switch. No voxel changes where none did.
    """
    geometry = _Geometry(spacing, axis)
    across = np.moveaxis(volume, axis, 0)
    labels_across = np.moveaxis(labels, axis, 0)
    planes = run_all(lambda z: _measure(z, np.ascontiguousarray(labels_across[z]), classes, geometry), annotated)
    intervals = _intervals(annotated, across.shape[0])
    run_all(lambda interval: _pair(interval, planes, labels_across, geometry), intervals)
    took_part = _switch(intervals, planes, classes, geometry)
    if not took_part.any():
        return took_part

    drawn = run_all(
        lambda i: _items(i, intervals, planes, across, classes, took_part, geometry),
        range(len(intervals)),
    )
    work = [
        (interval, items, interval.slices[lo:hi])
        for interval, items in zip(intervals, drawn, strict=True)
        if len(items)
        for lo, hi in split(len(interval.slices), -(-len(interval.slices) // CHUNK))
    ]
    run_all(lambda task: _draw(*task, planes, across, labels_across, classes, geometry), work)
    return took_part


def _measure(z: int, labels: Labels, classes: npt.NDArray[Any], geometry: _Geometry) -> _Plane:
    """Find the pieces of an annotated slice."""
    components = find_components(labels[np.newaxis], 26)
    image = np.zeros(labels.shape, dtype=components.numbers.dtype)
    components.write_labels(image, clear=False)
    boxes = np.zeros((components.count, 4), dtype=np.int64)
    measures = np.zeros((components.count, 3), dtype=np.int64)
    piece_labels = np.zeros(components.count, dtype=np.uint32)
    kernels.measure_pieces(labels, image, boxes, measures, piece_labels)
    heights = boxes[:, 1] - boxes[:, 0] + 2 * geometry.margins[0]
    widths = boxes[:, 3] - boxes[:, 2] + 2 * geometry.margins[1]
    starts = np.concatenate([[0], np.cumsum(heights * widths)]).astype(np.int64)
    potentials = np.empty(starts[-1], dtype=np.int16)
    kernels.potentials_of_pieces(image, boxes, starts, geometry.table, potentials)
    return _Plane(z, piece_labels, classes[piece_labels], boxes, measures, starts, potentials, image)


def _intervals(annotated: list[int], depth: int) -> list[_Interval]:
    """Return the intervals between annotated slices, then those at the two ends, as long as the ones beside them."""
    gaps = [after - before for before, after in itertools.pairwise(annotated)]
    inner = [_Interval(i, i + 1, gap, range(annotated[i] + 1, annotated[i + 1])) for i, gap in enumerate(gaps)]
    first, last = annotated[0], annotated[-1]
    head = _Interval(None, 0, gaps[0], range(max(0, first - gaps[0]), first))
    tail = _Interval(len(gaps), None, gaps[-1], range(last + 1, min(depth, last + 1 + gaps[-1])))
    return [*inner, head, tail]


def _pair(interval: _Interval, planes: list[_Plane], labels_across: Labels, geometry: _Geometry) -> None:
    """Pair the pieces of one label on both ends of an interval: by overlap, else the nearest, from both sides."""
    if interval.before is None or interval.after is None:
        return
    a, b = planes[interval.before], planes[interval.after]
    plane_a, plane_b = (np.ascontiguousarray(labels_across[plane.z]) for plane in (a, b))
    runs = np.empty((4096, 3), dtype=np.int64)
    count = kernels.list_overlaps(plane_a, plane_b, a.image, b.image, runs)
    if count > len(runs):
        runs = np.empty((count, 3), dtype=np.int64)
        kernels.list_overlaps(plane_a, plane_b, a.image, b.image, runs)
    keys, which = np.unique(runs[:count, 0] * len(b.labels) + runs[:count, 1], return_inverse=True)
    overlaps = np.zeros(len(keys), dtype=np.int64)
    np.add.at(overlaps, which, runs[:count, 2])
    candidates = np.stack([keys // max(1, len(b.labels)), keys % max(1, len(b.labels))], axis=1)
    far2 = geometry.length2(b.centres[candidates[:, 1]] - a.centres[candidates[:, 0]])
    reach = 16 * UNIT * MOST

    chosen = []
    for side, (own, other) in enumerate(((a, b), (b, a))):
        # Largest overlap, then smallest distance; all that tie in both.
        order = np.lexsort((far2, -overlaps, candidates[:, side]))
        piece = candidates[order, side]
        first = np.concatenate([[True], piece[1:] != piece[:-1]])[: len(piece)]
        leader = np.maximum.accumulate(np.where(first, np.arange(len(piece)), 0))
        ties = (overlaps[order] == overlaps[order][leader]) & (far2[order] == far2[order][leader])
        chosen.append(candidates[order][ties])
        alone = np.setdiff1d(np.arange(len(own.labels)), piece)
        others = np.lexsort((other.centres[:, 0], other.labels))
        nearest = kernels.pair_nearest(
            alone, own.labels, own.measures, others, other.labels, other.measures, geometry.steps, reach
        )
        chosen.append(nearest[:, ::-1] if side else nearest)
    pairs = np.unique(np.concatenate(chosen), axis=0)
    motions = b.centres[pairs[:, 1]] - a.centres[pairs[:, 0]]
    near = geometry.length2(motions) <= reach * reach
    interval.pairs, interval.motions = pairs[near], motions[near]
    interval.means = (
        _mean_motions(interval.pairs[:, 0], interval.motions, len(a.labels)),
        _mean_motions(interval.pairs[:, 1], interval.motions, len(b.labels)),
    )


def _mean_motions(pieces: Ints, motions: Ints, count: int) -> Ints:
    """Return for each piece the number of its pairs and their mean motion."""
    means = np.zeros((count, 3), dtype=np.int64)
    np.add.at(means, pieces, np.column_stack([np.ones(len(pieces), dtype=np.int64), motions]))
    paired = means[:, 0] > 0
    means[paired, 1:] = _divide_even(means[paired, 1:], means[paired, :1])
    return means


def _neighbor_motions(
    asking: _Plane, pieces: Ints, own: Ints, interval: _Interval, side: int, planes: list[_Plane], geometry: _Geometry
) -> Ints:
    """Return the mean motion of the pairs of its class around each of `pieces` of `asking`, without pair ``own[i]``.

    Pairs stand where their piece on the interval's one end does. Another class says nothing: labelling classes
    together or one by one gives the same.
    """
    plane = interval.before if side == 0 else interval.after
    means = np.zeros((len(pieces), 2), dtype=np.int64)
    if plane is None or not len(interval.pairs):
        return means
    paired = interval.pairs[:, side]
    centres, kinds = planes[plane].centres[paired], planes[plane].kinds[paired]
    order = np.lexsort((centres[:, 0], kinds))
    rank = np.full(len(order) + 1, -1, dtype=np.int64)
    rank[order] = np.arange(len(order))
    asked = asking.kinds[pieces]
    bounds = np.column_stack([np.searchsorted(kinds[order], asked, edge) for edge in ("left", "right")])
    kernels.average_motions(
        asking.centres[pieces],
        bounds,
        rank[own],
        centres[order],
        interval.motions[order],
        geometry.steps,
        16 * UNIT * REACH,
        means,
    )
    return means


def _switch(
    intervals: list[_Interval], planes: list[_Plane], classes: npt.NDArray[Any], geometry: _Geometry
) -> npt.NDArray[np.bool_]:
    """Return for each label whether its class takes part: whether its neighbours' motion explains its pieces'."""
    values, class_of = np.unique(classes, return_inverse=True)
    left = np.zeros(len(values), dtype=np.int64)
    total = np.zeros(len(values), dtype=np.int64)
    for interval in intervals:
        if interval.before is None or interval.after is None:
            continue
        # Neighbours are looked for on both ends: a flip must not change the decision.
        for side, at in enumerate((interval.before, interval.after)):
            plane, pieces = planes[at], interval.pairs[:, side]
            own = np.arange(len(pieces))
            expected = _neighbor_motions(plane, pieces, own, interval, side, planes, geometry)
            kind = class_of[plane.labels[pieces]]
            np.add.at(left, kind, geometry.length2(interval.motions - expected))
            np.add.at(total, kind, geometry.length2(interval.motions))
    passed = left * EXPLAINED[1] < total * EXPLAINED[0]
    for value, rest, whole in zip(values, left, total, strict=True):
        if whole:
            logger.info("class %s: neighbours leave %.2f of the squared motion unexplained", value, rest / whole)
    return np.asarray(passed[class_of])


def _items(
    index: int,
    intervals: list[_Interval],
    planes: list[_Plane],
    across: npt.NDArray[Any],
    classes: npt.NDArray[Any],
    took_part: npt.NDArray[np.bool_],
    geometry: _Geometry,
) -> Ints:
    """Return what is drawn in one interval: rows ``(piece before, piece after, dy, dx, label)``."""
    interval = intervals[index]
    rows = []
    if len(interval.pairs) and interval.before is not None:
        labels = planes[interval.before].labels[interval.pairs[:, 0]].astype(np.int64)
        rows.append(np.column_stack([interval.pairs, interval.motions, labels]))
    for side, at in enumerate((interval.before, interval.after)):
        if at is None or not len(interval.slices):
            continue
        plane = planes[at]
        paired = interval.means[side]
        lone = np.flatnonzero(took_part[plane.labels] & ((paired[:, 0] == 0) if len(paired) else True))
        if not len(lone):
            continue
        # The interval behind this end: with the piece's own motion, if it goes on there.
        behind = next((other for other in intervals if (other.after, other.before)[side] == at), None)
        one_end = interval.before is None or interval.after is None
        source = behind if one_end and behind is not None else interval
        source_side = 1 - side if source is behind else side
        expected = _neighbor_motions(plane, lone, np.full(len(lone), -1), source, source_side, planes, geometry)
        expected = _divide_even(expected * interval.length, source.length)
        trust = np.full(len(lone), TRUST_NEIGHBORS)
        own = behind.means[1 - side] if behind is not None else np.zeros((0, 3), np.int64)
        if behind is not None and len(own):
            known = own[lone, 0] > 0
            expected[known] = _divide_even(own[lone[known], 1:] * interval.length, behind.length)
            trust[known] = TRUST_OWN
        motions = _match(interval, plane, side, np.column_stack([lone, expected, trust]), across, classes, geometry)
        none = np.full(len(lone), -1)
        ends = (lone, none) if side == 0 else (none, lone)
        rows.append(np.column_stack([*ends, motions, plane.labels[lone].astype(np.int64)]))
    if not rows:
        return np.zeros((0, 5), dtype=np.int64)
    items = np.concatenate(rows)
    kept: Ints = items[took_part[items[:, 4]]]
    return kept


def _match(
    interval: _Interval,
    plane: _Plane,
    side: int,
    items: Ints,
    across: npt.NDArray[Any],
    classes: npt.NDArray[Any],
    geometry: _Geometry,
) -> Ints:
    """Return the motion of each lone piece, over the interval, that the class map follows best."""
    look = min(LOOK, len(interval.slices))
    block = slice(plane.z + 1, plane.z + 1 + look) if side == 0 else slice(plane.z - look, plane.z)
    templates = np.empty(plane.starts[-1], dtype=np.uint8)
    kernels.list_templates(
        np.ascontiguousarray(across[plane.z]),
        classes,
        plane.boxes,
        plane.starts,
        plane.labels,
        plane.potentials,
        geometry.margins,
        templates,
    )
    weights = np.rint(256 * DECAY ** np.arange(look)).astype(np.int64)
    search = (weights, RADIUS, COARSE * geometry.stretch, FINE, geometry.clamp)
    # Motion is counted from the first slice of the interval to the last, whichever end is matched.
    direction = 1 if side == 0 else -1
    motions = np.empty((len(items), 2), dtype=np.int64)
    signed = items * np.array([1, direction, direction, 1])
    signed[:, 3] = np.maximum(1, signed[:, 3] // geometry.stretch**2)
    kernels.match_motions(
        signed,
        np.ascontiguousarray(across[block]),
        -1 if side == 0 else look,
        direction,
        interval.length,
        classes,
        (plane.boxes, plane.starts, plane.labels, templates),
        geometry.margins,
        search,
        geometry.steps,
        motions,
    )
    motions *= direction
    return motions


def _draw(
    interval: _Interval,
    items: Ints,
    slices: range,
    planes: list[_Plane],
    across: npt.NDArray[Any],
    labels_across: Labels,
    classes: npt.NDArray[Any],
    geometry: _Geometry,
) -> None:
    """Label some slices of an interval."""
    ends = []
    for at in (interval.before, interval.after):
        plane = planes[at if at is not None else (interval.after if at is interval.before else interval.before) or 0]
        ends.append((plane.boxes, plane.starts, plane.potentials))
    z0 = planes[interval.before].z if interval.before is not None else interval.slices.stop - interval.length
    here = slice(slices.start, slices.stop)
    labels = np.ascontiguousarray(labels_across[here])
    kernels.draw_planes(
        items,
        interval.length,
        slices.start - z0,
        slices.stop - z0,
        np.ascontiguousarray(across[here]),
        classes,
        ends[0],
        ends[1],
        geometry.margins,
        np.array([16 * CAP, FADING, FLOOR], dtype=np.int64),
        labels,
    )
    if not np.may_share_memory(labels, labels_across):
        labels_across[here] = labels
