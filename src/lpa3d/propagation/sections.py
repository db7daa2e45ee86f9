"""The sections stage: labels between annotated slices, from how each object's section moves, grows and fades.

Stages
------
1. *Pieces*: the 8-connected parts of each label on each annotated slice, with their centre.
2. *Pairs*: pieces of one label on both ends of an interval; their centres' difference is their motion.
3. *Switch*: a class takes part only if neighbouring pieces move alike in it.
4. *Motion* of the others: expected as their own motion in the interval behind them, else as their neighbours';
   refined by what the class map does around them on the slices next to them. The slices before the first and after
   the last annotated slice are intervals with one end.
5. *Drawing*: potentials, displaced and mixed, compete for the voxels of each slice.

All lengths are integers, nothing depends on the order of work, and no rule prefers a direction: where candidates tie,
all of them count. Every stage reads the class map only within `CAP` + `MOST` pixels of a piece.

Each stage is a function of one annotated slice, one interval or one box, and of no more of the volume than it says, so
that a volume in tiles is drawn by the same functions (`lpa3d.tiled.sections`).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..arrays.backend import find_device
from ..arrays.neighbors import UNIT
from ..arrays.threads import num_threads, run_all, split
from ..kernels import sections as kernels
from ..verbs.label import find_components

if TYPE_CHECKING:
    from ..cuda.device import Device

__all__ = [
    "ITEM",
    "LONE",
    "LOOK",
    "Geometry",
    "Interval",
    "Pairs",
    "Pieces",
    "PlaneBox",
    "add_overlaps",
    "behind",
    "decide",
    "draw_intervals",
    "find_pieces",
    "join_items",
    "label_sections",
    "list_intervals",
    "list_lone",
    "list_overlaps",
    "match_lone",
    "matched_box",
    "pair_pieces",
    "swept_boxes",
    "weigh_motions",
]

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

BATCH = 2**28
"""Voxels of windows that a device holds at once, but for an interval or a piece that alone needs more."""

LONE = np.dtype(
    [
        ("piece", np.int64),
        ("expected", np.int64, 2),
        ("trust", np.int64),
        ("box", np.int64, 4),
        ("centre", np.int64, 2),
        ("label", np.int64),
        ("kind", np.uint64),
    ]
)
"""A piece that takes part and is in no pair of an interval, and the motion that it is expected to have."""

ITEM = np.dtype(
    [
        ("pieces", np.int64, 2),
        ("motion", np.int64, 2),
        ("label", np.int64),
        ("kind", np.uint64),
        ("boxes", np.int64, (2, 4)),
    ]
)
"""What is drawn in an interval: a piece of its first and one of its last end, -1 for none, and the motion."""

Ints = npt.NDArray[np.int64]
Labels = npt.NDArray[np.uint32]
Table = npt.NDArray[np.void]
PlaneBox = tuple[int, int, int, int]
"""``(y0, y1, x0, x1)`` on a plane."""

logger = logging.getLogger("lpa3d")


class Geometry:
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
        self.halo = -(-self.clamp // 16) + self.margins + 2
        """Voxels beside a box within which pieces and their surroundings decide what is drawn in it."""
        rows, columns = (np.arange(margin + 2) * step for margin, step in zip(self.margins, self.steps, strict=True))
        lengths = np.rint(np.sqrt(rows[:, None] ** 2 + columns[None, :] ** 2) / 4)
        table = np.minimum(lengths, 16 * CAP).astype(np.int64)
        table[-1] = table[:, -1] = 16 * CAP
        # The least sum of a row's and a column's key names the nearest voxel: the squared distance above dy and dx.
        # Beyond the cap no distance is nearer than another.
        row_keys, column_keys = (
            (np.minimum((steps * side) ** 2, (CAP * UNIT) ** 2) << 8 | steps << shift).astype(np.int32)
            for steps, side, shift in zip(map(np.arange, self.margins + 2), self.steps, (4, 0), strict=True)
        )
        self.keys = (row_keys, column_keys, table)
        """Those of rows and of columns, and the potential at each distance."""

    def length2(self, motions: Ints) -> Ints:
        """Return squared lengths of motions in 1/16 voxel, in (1/1024 pixel)^2."""
        return np.asarray(((motions * self.steps) ** 2).sum(axis=1))


@dataclass(frozen=True)
class Pieces:
    """The pieces of one annotated slice, at position `z`; all arrays are parallel."""

    z: int
    labels: Labels
    kinds: npt.NDArray[Any]
    """The class of each piece."""
    boxes: Ints
    measures: Ints
    """Area and centre."""

    @property
    def centres(self) -> Ints:
        return self.measures[:, 1:]


@dataclass(frozen=True)
class Interval:
    """The slices between two annotated ones, or between one (the other is None) and an end of the volume."""

    before: int | None
    after: int | None
    length: int
    slices: range
    """Those that the volume holds."""
    origin: int
    """Where slice 0 is: the first end, or where it would be."""

    @property
    def ends(self) -> tuple[int | None, int | None]:
        return self.before, self.after


@dataclass(frozen=True)
class Pairs:
    """Pairs of pieces on the two ends of an interval."""

    pieces: Ints
    motions: Ints
    """The motion of each pair over the interval, in 1/16 voxel."""

    @staticmethod
    def none() -> Pairs:
        return Pairs(np.zeros((0, 2), dtype=np.int64), np.zeros((0, 2), dtype=np.int64))

    def means(self, side: int, count: int) -> Ints:
        """Return for each of the `count` pieces of an end how many pairs it is in, and their mean motion."""
        means = np.zeros((count, 3), dtype=np.int64)
        ones = np.ones(len(self.pieces), dtype=np.int64)
        np.add.at(means, self.pieces[:, side], np.column_stack([ones, self.motions]))
        paired = means[:, 0] > 0
        means[paired, 1:] = _divide_even(means[paired, 1:], means[paired, :1])
        return means


@dataclass(frozen=True)
class _Windows:
    """Potentials of some pieces of a plane, `pieces` ascending; boxes are counted from a box's corner."""

    pieces: Ints
    boxes: Ints
    starts: Ints
    potentials: npt.NDArray[np.int16]


@dataclass(frozen=True)
class _Search:
    """The lone pieces of one end of an interval: on the plane with number `plane`, slice `z` of the class map."""

    interval: Interval
    side: int
    plane: int
    z: int
    lone: Table


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

    Notes
    -----
    On a device: 20 bytes for each voxel of the annotated slices while their pieces are found, then 4, and 2 for each
    voxel of a piece's window (at most 2**28 at once). Volume and labels are copied if `axis` is not the first.
    """
    geometry = Geometry(spacing, axis)
    order = (axis, *(i for i in range(3) if i != axis))
    across, labels_across = volume.transpose(order), labels.transpose(order)
    device = find_device(volume, labels)
    if device is not None:
        across, labels_across = device.bring(across), device.bring(labels_across)
    planes, images = _find_all_pieces(annotated, labels_across, classes)
    intervals = list_intervals(annotated, len(across))
    overlaps = _list_all_overlaps(planes, images)
    pairs = run_all(lambda i: pair_pieces(planes[i], planes[i + 1], overlaps[i], geometry), range(len(planes) - 1))
    passed = decide(run_all(lambda i: weigh_motions(planes[i], planes[i + 1], pairs[i], geometry), range(len(pairs))))
    took_part = np.isin(classes, passed)
    if not took_part.any():
        return took_part

    def own_pairs(index: int) -> Pairs:
        return pairs[index] if index < len(pairs) else Pairs.none()

    def find_lone(end: tuple[int, int]) -> _Search:
        index, side = end
        interval = intervals[index]
        at = interval.ends[side]
        if at is None:
            return _Search(interval, side, 0, 0, np.zeros(0, dtype=LONE))
        i = behind(at, side, len(planes))
        back = None if i is None else (pairs[i], intervals[i].length)
        lone = list_lone(interval, side, planes[at], own_pairs(index), back, passed, geometry)
        return _Search(interval, side, at, planes[at].z, lone)

    searches = run_all(find_lone, itertools.product(range(len(intervals)), range(2)))
    motions = _match_all(searches, across, images, geometry)
    work = []
    for index, interval in enumerate(intervals):
        sides = slice(2 * index, 2 * index + 2)
        ends = [None if at is None else planes[at] for at in interval.ends]
        lone = [search.lone for search in searches[sides]]
        work.append((interval, join_items(ends, own_pairs(index), passed, lone, motions[sides])))

    def read_image(plane: int, box: PlaneBox) -> npt.NDArray[Any]:
        image: npt.NDArray[Any] = images[plane][box[0] : box[1], box[2] : box[3]]
        return image

    height, width = across.shape[1:]
    draw_intervals(work, read_image, (height, width), (0, 0, 0), across, labels_across, geometry)
    if device is not None:
        device.give_back(labels_across, labels.transpose(order))
    return took_part


def find_pieces(z: int, labels: Labels, classes: npt.NDArray[Any]) -> tuple[Pieces, npt.NDArray[Any]]:
    """Find the pieces of an annotated slice; also return the piece of each voxel, counted from 1.

    Needs 8 to 12 bytes for each voxel of the slice.
    """
    device = find_device(labels)
    if device is not None:
        planes, images = _find_on_device(device, [z], device.bring(labels)[np.newaxis], [0], classes)
        return planes[0], device.give(images[0], labels)
    components = find_components(labels[np.newaxis], 26)
    image = np.zeros(labels.shape, dtype=components.numbers.dtype)
    components.write_labels(image, clear=False)
    boxes = np.zeros((components.count, 4), dtype=np.int64)
    measures = np.zeros((components.count, 3), dtype=np.int64)
    piece_labels = np.zeros(components.count, dtype=np.uint32)
    kernels.measure_pieces(labels, image, boxes, measures, piece_labels)
    return Pieces(z, piece_labels, classes[piece_labels], boxes, measures), image


def _find_all_pieces(annotated: list[int], labels: Any, classes: npt.NDArray[Any]) -> tuple[list[Pieces], Any]:
    """Return `find_pieces` of all annotated slices of a volume: the tables, and the images one after the other."""
    device = find_device(labels)
    if device is not None:
        return _find_on_device(device, annotated, labels, annotated, classes)
    found = run_all(lambda z: find_pieces(z, np.ascontiguousarray(labels[z]), classes), annotated)
    return [pieces for pieces, _ in found], [image for _, image in found]


def _find_on_device(
    device: Device, annotated: list[int], labels: Any, at: list[int], classes: npt.NDArray[Any]
) -> tuple[list[Pieces], Any]:
    """Return `find_pieces` of the slices `annotated`, which are ``labels[at]``: the tables, and a stack of the images.

    Needs 20 bytes for each voxel of these slices; 4 bytes of them are kept.
    """
    from ..cuda import sections as cuda

    # Empty slices between them keep those apart that 26 neighbours would link.
    _, height, width = labels.shape
    stack = device.xp.zeros((2 * len(at) - 1, height, width), np.uint32)
    for i, z in enumerate(at):
        stack[2 * i] = labels[z]
    components = find_components(stack, 26)
    count = components.count
    # More than 2**32 pieces are more than memory holds.
    images = components.numbers[::2].astype(np.uint32)
    del components
    stack = device.xp.ascontiguousarray(stack[::2])
    table = cuda.measure_pieces(device, stack, images, count)
    del stack
    firsts = np.searchsorted(table["plane"], np.arange(len(at) + 1))
    before = device.bring(firsts[:-1].astype(np.uint32).reshape(-1, 1, 1))
    images = device.xp.maximum(images, before) - before

    area = table["area"]
    centres = [_divide_even(16 * table[name], area) for name in ("sum_y", "sum_x")]
    measures = np.column_stack([area, *centres])
    boxes = np.column_stack([table[name] for name in ("y0", "y1", "x0", "x1")])
    piece_labels = table["label"].astype(np.uint32)
    kinds = classes[piece_labels]
    planes = []
    for z, lo, hi in zip(annotated, firsts[:-1], firsts[1:], strict=True):
        planes.append(Pieces(z, piece_labels[lo:hi], kinds[lo:hi], boxes[lo:hi], measures[lo:hi]))
    return planes, images


def list_intervals(annotated: Sequence[int], depth: int) -> list[Interval]:
    """Return the intervals between annotated slices, then those at the two ends, as long as the ones beside them."""
    gaps = [after - before for before, after in itertools.pairwise(annotated)]
    first, last = annotated[0], annotated[-1]
    inner = [
        Interval(i, i + 1, gap, range(annotated[i] + 1, annotated[i + 1]), annotated[i]) for i, gap in enumerate(gaps)
    ]
    head = Interval(None, 0, gaps[0], range(max(0, first - gaps[0]), first), first - gaps[0])
    tail = Interval(len(gaps), None, gaps[-1], range(last + 1, min(depth, last + 1 + gaps[-1])), last)
    return [*inner, head, tail]


def behind(plane: int, side: int, planes: int) -> int | None:
    """Return the inner interval on the other side of an interval's first (0) or last (1) end, None if there is none."""
    index = plane - 1 if side == 0 else plane
    return index if 0 <= index < planes - 1 else None


def list_overlaps(a: Pieces, b: Pieces, image_a: npt.NDArray[Any], image_b: npt.NDArray[Any]) -> Ints:
    """Return rows ``(piece, next piece, voxels)`` of overlaps of one label, those of the same two pieces added up.

    The images may be the same rows of both planes; then it is the overlap on these.
    """
    device = find_device(image_a, image_b)
    if device is not None:
        images = device.xp.stack([device.bring(image).astype(np.uint32) for image in (image_a, image_b)])
        return _list_on_device(device, [a, b], images)[0]
    image_a, image_b = np.ascontiguousarray(image_a), np.ascontiguousarray(image_b)
    runs = np.empty((4096, 3), dtype=np.int64)
    count = kernels.list_overlaps(image_a, image_b, a.labels, b.labels, runs)
    if count > len(runs):
        runs = np.empty((count, 3), dtype=np.int64)
        kernels.list_overlaps(image_a, image_b, a.labels, b.labels, runs)
    return add_overlaps(runs[:count])


def _list_all_overlaps(planes: list[Pieces], images: Any) -> list[Ints]:
    """Return `list_overlaps` of each plane and the next."""
    device = find_device(images[0])
    if device is not None:
        return _list_on_device(device, planes, images)
    return run_all(lambda i: list_overlaps(planes[i], planes[i + 1], images[i], images[i + 1]), range(len(planes) - 1))


def _list_on_device(device: Device, planes: list[Pieces], images: Any) -> list[Ints]:
    """Return `list_overlaps` of each plane of a stack and the next."""
    from ..cuda import sections as cuda

    firsts = np.cumsum([0, *(len(plane.labels) for plane in planes[:-1])])
    rows = cuda.list_overlaps(device, images, firsts, np.concatenate([plane.labels for plane in planes]))
    rows = add_overlaps(rows)
    of_interval = np.split(rows, np.searchsorted(rows[:, 0], firsts[1:-1]))
    return [
        part - np.array([first, following, 0])
        for part, (first, following) in zip(of_interval, itertools.pairwise(firsts.tolist()), strict=True)
    ]


def add_overlaps(rows: Ints) -> Ints:
    """Add up the rows of the same two pieces, ascending."""
    if not len(rows):
        return rows
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    first = np.concatenate([[True], (rows[1:, :2] != rows[:-1, :2]).any(axis=1)])
    voxels = np.add.reduceat(rows[:, 2], np.flatnonzero(first))
    return np.column_stack([rows[first, :2], voxels])


def pair_pieces(a: Pieces, b: Pieces, overlaps: Ints, geometry: Geometry) -> Pairs:
    """Pair the pieces of one label on both ends of an interval: by overlap, else the nearest, from both sides."""
    candidates, voxels = overlaps[:, :2], overlaps[:, 2]
    far2 = geometry.length2(b.centres[candidates[:, 1]] - a.centres[candidates[:, 0]])
    reach = 16 * UNIT * MOST

    chosen = []
    for side, (own, other) in enumerate(((a, b), (b, a))):
        # Largest overlap, then smallest distance; all that tie in both.
        order = np.lexsort((far2, -voxels, candidates[:, side]))
        piece = candidates[order, side]
        first = np.concatenate([[True], piece[1:] != piece[:-1]])[: len(piece)]
        leader = np.maximum.accumulate(np.where(first, np.arange(len(piece)), 0))
        ties = (voxels[order] == voxels[order][leader]) & (far2[order] == far2[order][leader])
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
    return Pairs(pairs[near], motions[near])


def _neighbor_motions(plane: Pieces, asking: Ints, own: Ints, pairs: Pairs, side: int, geometry: Geometry) -> Ints:
    """Return the mean motion of the pairs of its class around each of the pieces `asking`, without pair ``own[i]``.

    `plane` is the `side` of the pairs. Another class says nothing: labelling classes together or one by one gives the
    same.
    """
    means = np.zeros((len(asking), 2), dtype=np.int64)
    if not len(pairs.pieces):
        return means
    paired = pairs.pieces[:, side]
    centres, kinds = plane.centres[paired], plane.kinds[paired]
    order = np.lexsort((centres[:, 0], kinds))
    rank = np.full(len(order) + 1, -1, dtype=np.int64)
    rank[order] = np.arange(len(order))
    asked = plane.kinds[asking]
    bounds = np.column_stack([np.searchsorted(kinds[order], asked, edge) for edge in ("left", "right")])
    kernels.average_motions(
        plane.centres[asking],
        bounds,
        rank[own],
        centres[order],
        pairs.motions[order],
        geometry.steps,
        16 * UNIT * REACH,
        means,
    )
    return means


Weights = tuple[npt.NDArray[Any], Ints, Ints]
"""Classes, and for each the squared motion that neighbours leave unexplained, and all of it."""


def weigh_motions(a: Pieces, b: Pieces, pairs: Pairs, geometry: Geometry) -> Weights:
    """Return what an interval says about each of its classes, for `decide`."""
    kinds, kind = np.unique(a.kinds[pairs.pieces[:, 0]], return_inverse=True)
    left = np.zeros(len(kinds), dtype=np.int64)
    total = np.zeros(len(kinds), dtype=np.int64)
    # Neighbours are looked for on both ends: a flip must not change the decision.
    for side, plane in enumerate((a, b)):
        own = np.arange(len(pairs.pieces))
        expected = _neighbor_motions(plane, pairs.pieces[:, side], own, pairs, side, geometry)
        np.add.at(left, kind, geometry.length2(pairs.motions - expected))
        np.add.at(total, kind, geometry.length2(pairs.motions))
    return kinds, left, total


def decide(weights: Iterable[Weights]) -> npt.NDArray[Any]:
    """Return the classes that take part, by what all intervals say: where neighbours' motion explains the pieces'."""
    sums: dict[int, list[int]] = {}
    dtype = np.dtype(np.uint8)
    for kinds, left, total in weights:
        dtype = kinds.dtype
        for kind, rest, whole in zip(kinds.tolist(), left.tolist(), total.tolist(), strict=True):
            entry = sums.setdefault(kind, [0, 0])
            entry[0] += rest
            entry[1] += whole
    for kind, (rest, whole) in sorted(sums.items()):
        if whole:
            logger.info("class %s: neighbours leave %.2f of the squared motion unexplained", kind, rest / whole)
    passed = [kind for kind, (rest, whole) in sums.items() if rest * EXPLAINED[1] < whole * EXPLAINED[0]]
    return np.array(sorted(passed), dtype=dtype)


def list_lone(
    interval: Interval,
    side: int,
    plane: Pieces,
    pairs: Pairs,
    back: tuple[Pairs, int] | None,
    passed: npt.NDArray[Any],
    geometry: Geometry,
) -> Table:
    """Return the pieces of one end that take part in no pair, and the motion they are expected to have (`LONE`).

    `back` are the pairs and the length of the interval behind this end.
    """
    if not len(interval.slices):
        return np.zeros(0, dtype=LONE)
    paired = pairs.means(side, len(plane.labels))[:, 0] > 0
    lone = np.flatnonzero(np.isin(plane.kinds, passed) & ~paired)
    rows = np.zeros(len(lone), dtype=LONE)
    # Before the first and after the last slice only the interval behind tells: with the piece's own motion, if it goes
    # on there.
    if None in interval.ends and back is not None:
        source, source_side, source_length = back[0], 1 - side, back[1]
    else:
        source, source_side, source_length = pairs, side, interval.length
    nobody = np.full(len(lone), -1)
    expected = _neighbor_motions(plane, lone, nobody, source, source_side, geometry)
    expected = _divide_even(expected * interval.length, source_length)
    trust = np.full(len(lone), TRUST_NEIGHBORS)
    if back is not None:
        own = back[0].means(1 - side, len(plane.labels))[lone]
        known = own[:, 0] > 0
        expected[known] = _divide_even(own[known, 1:] * interval.length, back[1])
        trust[known] = TRUST_OWN
    rows["piece"], rows["expected"], rows["trust"] = lone, expected, trust
    rows["box"], rows["centre"] = plane.boxes[lone], plane.centres[lone]
    rows["label"], rows["kind"] = plane.labels[lone], plane.kinds[lone]
    return rows


def _pads(look: int, geometry: Geometry) -> int:
    """Return the voxels around its expected place that a piece is looked for, on the furthest of `look` slices."""
    return ((RADIUS + 1) * COARSE * geometry.stretch * look >> 4) + 2


def matched_box(lone: Table, interval: Interval, side: int, geometry: Geometry) -> Ints:
    """Return rows ``(y0, y1, x0, x1)``: within them, and within the plane, is all that `match_lone` reads for a row."""
    look = min(LOOK, len(interval.slices))
    direction = 1 if side == 0 else -1
    expected = np.clip(direction * lone["expected"], -geometry.clamp, geometry.clamp)
    furthest = _divide_even(look * expected, 16 * interval.length)
    pad = _pads(look, geometry) + geometry.margins
    lo = lone["box"][:, 0::2] + np.minimum(0, furthest) - pad
    hi = lone["box"][:, 1::2] + np.maximum(0, furthest) + pad
    return np.column_stack([lo[:, 0], hi[:, 0], lo[:, 1], hi[:, 1]])


def match_lone(
    lone: Table,
    interval: Interval,
    side: int,
    z: int,
    block: npt.NDArray[Any],
    image: npt.NDArray[Any],
    corner: tuple[int, int, int],
    geometry: Geometry,
) -> Ints:
    """Return the motion of each lone piece, over the interval, that the class map follows best.

    `block` is the class map from `corner` on, `image` the pieces on the annotated slice `z` within the same rows and
    columns. They hold `matched_box` of all rows, as far as the plane goes, and the `LOOK` slices beside `z`.
    """
    motions = np.empty((len(lone), 2), dtype=np.int64)
    if not len(lone):
        return motions
    boxes = lone["box"] - np.array([corner[1], corner[1], corner[2], corner[2]])
    look = min(LOOK, len(interval.slices))
    at = z - corner[0]
    device = find_device(block, image)
    if device is not None:
        lone = lone.copy()
        lone["box"] = boxes
        first = at if side == 0 else at - look
        own = _Search(interval, side, 0, at - first, lone)
        volume, images = device.bring(block[first : first + look + 1]), device.bring(image)[np.newaxis]
        return _match_on_device(device, [own], volume, images, geometry)[0]
    kinds = lone["kind"].astype(block.dtype)
    windows = _find_potentials(lone["piece"], boxes, image, geometry)
    beside = slice(at + 1, at + 1 + look) if side == 0 else slice(at - look, at)
    templates = np.empty(windows.starts[-1], dtype=np.uint8)
    plane = np.ascontiguousarray(block[at])
    kernels.list_templates(
        plane, kinds, boxes, windows.starts, windows.potentials, geometry.margins, 16 * CAP, templates
    )
    weights = _weigh_slices(look)
    search = (weights, RADIUS, COARSE * geometry.stretch, FINE, geometry.clamp)
    # Motion is counted from the first slice of the interval to the last, whichever end is matched.
    direction = 1 if side == 0 else -1
    trust = np.maximum(1, lone["trust"] // geometry.stretch**2)
    kernels.match_motions(
        np.column_stack([direction * lone["expected"], trust]),
        np.ascontiguousarray(block[beside]),
        -1 if side == 0 else look,
        direction,
        interval.length,
        (boxes, windows.starts, kinds, templates),
        geometry.margins,
        search,
        geometry.steps,
        motions,
    )
    motions *= direction
    return motions


def _weigh_slices(look: int) -> Ints:
    weights: Ints = np.rint(256 * DECAY ** np.arange(look)).astype(np.int64)
    return weights


def _match_all(
    searches: list[_Search], volume: npt.NDArray[Any], images: Sequence[npt.NDArray[Any]], geometry: Geometry
) -> list[Ints]:
    """Return `match_lone` of each search in a whole volume."""
    device = find_device(volume)
    if device is not None:
        return _match_on_device(device, searches, volume, images, geometry)

    def match(search: _Search) -> Ints:
        interval, side, image = search.interval, search.side, images[search.plane]
        return match_lone(search.lone, interval, side, search.z, volume, image, (0, 0, 0), geometry)

    return run_all(match, searches)


def _match_on_device(
    device: Device, searches: list[_Search], volume: Any, images: Any, geometry: Geometry
) -> list[Ints]:
    """Return `match_lone` of each search; `images` is a stack of planes as large as those of `volume`."""
    from ..cuda import sections as cuda

    _, height, width = images.shape
    counts = [len(search.lone) for search in searches]
    lone = np.concatenate([search.lone for search in searches])
    ends = [
        (search.plane, search.z, 1 - 2 * search.side, min(LOOK, len(search.interval.slices)), search.interval.length)
        for search in searches
    ]
    of_piece = np.repeat(np.array(ends, dtype=np.int64), counts, axis=0)
    rows = np.zeros(len(lone), dtype=cuda.SEARCH)
    rows["z"], rows["direction"], rows["look"], rows["n"] = of_piece[:, 1:].T
    rows["dy"], rows["dx"] = rows["direction"] * lone["expected"].T
    rows["trust"] = np.maximum(1, lone["trust"] // geometry.stretch**2)
    rows["kind"] = lone["kind"].astype(volume.dtype)
    planes = np.zeros((len(lone), 5), dtype=np.int64)
    planes[:, 0] = of_piece[:, 0] * (height * width)
    planes[:, 3:] = height, width
    flat = images.reshape(-1)
    motions = np.empty((len(lone), 2), dtype=np.int64)
    for batch in _batches(_count_voxels(lone["box"], geometry)):
        windows = cuda.open_windows(
            device, flat, planes[batch], lone["piece"][batch] + 1, lone["box"][batch], geometry.margins, geometry.keys
        )
        motions[batch] = cuda.match_motions(
            device,
            volume,
            windows,
            rows[batch],
            16 * CAP,
            _weigh_slices(LOOK),
            (RADIUS, COARSE * geometry.stretch, FINE),
            geometry.clamp,
            geometry.steps,
        )
    return np.split(motions * rows["direction"][:, np.newaxis], np.cumsum(counts)[:-1])


def _count_voxels(boxes: Ints, geometry: Geometry) -> Ints:
    """Return how many voxels the windows of some pieces have."""
    sides = boxes[..., 1::2] - boxes[..., 0::2] + 2 * geometry.margins
    return np.asarray(sides.prod(axis=-1))


def _batches(sizes: Ints) -> list[slice]:
    """Cut a row of things into parts of some `BATCH` in all."""
    before = np.cumsum(sizes) - sizes
    first = np.flatnonzero(np.diff(before // BATCH, prepend=-1))
    return [slice(lo, hi) for lo, hi in itertools.pairwise([*first.tolist(), len(sizes)])]


def join_items(
    ends: Sequence[Pieces | None],
    pairs: Pairs,
    passed: npt.NDArray[Any],
    lone: Sequence[Table],
    motions: Sequence[Ints],
) -> Table:
    """Return what is drawn in an interval (`ITEM`): its pairs that take part, and the lone pieces of either end."""
    parts = []
    if ends[0] is not None and ends[1] is not None:
        first, last = pairs.pieces.T
        rows = np.zeros(len(first), dtype=ITEM)
        rows["pieces"], rows["motion"] = pairs.pieces, pairs.motions
        rows["label"], rows["kind"] = ends[0].labels[first], ends[0].kinds[first]
        rows["boxes"] = np.stack([ends[0].boxes[first], ends[1].boxes[last]], axis=1)
        parts.append(rows[np.isin(ends[0].kinds[first], passed)])
    for side in range(2):
        rows = np.zeros(len(lone[side]), dtype=ITEM)
        rows["pieces"] = -1
        rows["pieces"][:, side] = lone[side]["piece"]
        rows["motion"] = motions[side]
        rows["label"], rows["kind"] = lone[side]["label"], lone[side]["kind"]
        rows["boxes"][:, side] = lone[side]["box"]
        parts.append(rows)
    return np.concatenate(parts)


def swept_boxes(items: Table, geometry: Geometry) -> Ints:
    """Return rows ``(y0, y1, x0, x1)``: outside them an item draws nothing on any slice of its interval."""
    boxes = np.full((len(items), 4), [2**62, -(2**62), 2**62, -(2**62)])
    for side, turn in ((0, 1), (1, -1)):
        there = items["pieces"][:, side] >= 0
        # A window moves by at most the motion, and its potential is sampled between voxels.
        motions = -(-turn * items["motion"][there] // 16)
        own = items["boxes"][there, side]
        for axis in range(2):
            lo, hi = 2 * axis, 2 * axis + 1
            pad = geometry.margins[axis] + 1
            boxes[there, lo] = np.minimum(boxes[there, lo], own[:, lo] + np.minimum(0, motions[:, axis] - 1) - pad)
            boxes[there, hi] = np.maximum(boxes[there, hi], own[:, hi] + np.maximum(0, motions[:, axis] + 1) + pad)
    return boxes


def _find_potentials(pieces: Ints, boxes: Ints, image: npt.NDArray[Any], geometry: Geometry) -> _Windows:
    """Return the potentials of some pieces of a plane in their windows; `boxes` are counted from the image's corner."""
    heights = boxes[:, 1] - boxes[:, 0] + 2 * geometry.margins[0]
    widths = boxes[:, 3] - boxes[:, 2] + 2 * geometry.margins[1]
    starts = np.concatenate([[0], np.cumsum(heights * widths)]).astype(np.int64)
    potentials = np.empty(starts[-1], dtype=np.int16)
    numbers = np.ascontiguousarray(pieces) + 1
    kernels.potentials_of_pieces(np.ascontiguousarray(image), numbers, boxes, starts, *geometry.keys, potentials)
    return _Windows(pieces, boxes, starts, potentials)


@dataclass(frozen=True)
class _Clipped:
    """The pieces of a plane, ascending, that may be drawn in a box, and their boxes, clipped."""

    pieces: Ints
    boxes: Ints
    part: PlaneBox
    """What is to be read of the plane."""


def _find(known: Ints, pieces: Ints) -> Ints:
    """Return where `pieces` are among those known, which ascend; -1 for -1."""
    return np.where(pieces < 0, -1, np.searchsorted(known, pieces))


def _clip_pieces(
    plane: int,
    work: Sequence[tuple[Interval, Table]],
    shape: tuple[int, int],
    corner: tuple[int, int],
    size: tuple[int, int],
    geometry: Geometry,
) -> _Clipped:
    """Clip the items' pieces of a plane, such that potentials are right wherever the box of `size` at `corner` reads.

    Pieces are clipped to the box and the halo around it, and their windows with them. Why that is exact: A window moves
    by at most `Geometry.clamp`, so what is read of it, at a voxel of the box or the one after (bilinear), lies within
    clamp / 16 + 1 voxels of the box: in the *core*. The potential of a voxel depends on the voxels within the margin
    of it, as beyond that all is capped; around the core these are within the halo, or outside the plane, where nothing
    is of either state in the whole plane, too. So potentials in the core and in the clipped window are those of the
    whole piece. A voxel of the core outside the clipped window reads -cap; within the margin of it is no voxel of the
    piece, or the clipped box and its window would hold it: -cap is what the whole window has there. What lies further
    out, and is wrong, is not read. The kernel looks at no voxel outside both windows' rectangle; a smaller rectangle
    leaves out voxels at which both potentials are -cap, far below the floor.
    """
    pieces, boxes = [], []
    for interval, items in work:
        for side, at in enumerate(interval.ends):
            if at == plane:
                there = items["pieces"][:, side] >= 0
                pieces.append(items["pieces"][there, side])
                boxes.append(items["boxes"][there, side])
    found, first = np.unique(np.concatenate(pieces), return_index=True)
    own = np.concatenate(boxes)[first]
    inside = np.empty(4, dtype=np.int64)
    for axis in range(2):
        lo = max(0, corner[axis] - geometry.halo[axis])
        hi = min(shape[axis], corner[axis] + size[axis] + geometry.halo[axis])
        own[:, 2 * axis : 2 * axis + 2] = np.clip(own[:, 2 * axis : 2 * axis + 2], lo, hi)
        inside[2 * axis] = max(lo, own[:, 2 * axis].min(initial=hi) - geometry.margins[axis])
        inside[2 * axis + 1] = min(hi, own[:, 2 * axis + 1].max(initial=lo) + geometry.margins[axis])
    y0, y1, x0, x1 = (int(side) for side in inside)
    return _Clipped(found, own, (y0, max(y0, y1), x0, max(x0, x1)))


def draw_intervals(
    work: Sequence[tuple[Interval, Table]],
    read_image: Callable[[int, PlaneBox], npt.NDArray[Any]],
    shape: tuple[int, int],
    corner: tuple[int, int, int],
    volume: npt.NDArray[Any],
    labels: Labels,
    geometry: Geometry,
) -> None:
    """Label, in place, the unlabelled voxels of a box between annotated slices.

    Parameters
    ----------
    work
        Intervals and their items (`ITEM`); those whose `swept_boxes` miss the box may be left out.
    read_image
        Called as ``read_image(plane, (y0, y1, x0, x1))``: the piece of each voxel, counted from 1, in a part of an
        annotated slice.
    shape
        Of a whole plane.
    corner
        The box's first voxel; the axis that the slices lie across comes first.
    volume, labels
        Class map and labels of the box, in any memory order.
    """
    top, bottom = corner[0], corner[0] + len(volume)
    work = sorted(
        (
            (interval, items)
            for interval, items in work
            if len(items) and max(top, interval.slices.start) < min(bottom, interval.slices.stop)
        ),
        key=lambda part: part[0].origin,
    )
    if not work:
        return
    device = find_device(volume, labels)
    if device is not None:
        drawn = device.bring(labels)
        _draw_on_device(device, work, read_image, shape, corner, device.bring(volume), drawn, geometry)
        device.give_back(drawn, labels)
        return
    size = volume.shape[1], volume.shape[2]
    batch = 2 * num_threads()
    windows: dict[int, _Windows] = {}
    # Potentials are at hand of a few intervals at a time, those of a plane between two for both.
    for start in range(0, len(work), batch):
        part = work[start : start + batch]
        planes = sorted({at for interval, _ in part for at in interval.ends if at is not None})
        kept = windows

        def open_windows(plane: int, kept: dict[int, _Windows] = kept) -> _Windows:
            if plane in kept:
                return kept[plane]
            clipped = _clip_pieces(plane, work, shape, corner[1:], size, geometry)
            y0, _, x0, _ = clipped.part
            boxes = clipped.boxes - np.array([y0, y0, x0, x0])
            found = _find_potentials(clipped.pieces, boxes, read_image(plane, clipped.part), geometry)
            return replace(found, boxes=clipped.boxes - np.repeat(corner[1:], 2))

        windows = dict(zip(planes, run_all(open_windows, planes), strict=True))
        chunks = []
        for interval, items in part:
            slices = range(max(top, interval.slices.start), min(bottom, interval.slices.stop))
            ends = [None if at is None else windows[at] for at in interval.ends]
            rows = np.empty((len(items), 5), dtype=np.int64)
            for side, end in enumerate(ends):
                rows[:, side] = -1 if end is None else _find(end.pieces, items["pieces"][:, side])
            rows[:, 2:4], rows[:, 4] = items["motion"], items["label"]
            kinds = items["kind"].astype(volume.dtype)
            # An end without pieces is not read; the kernel takes the other's arrays.
            known = [end if end is not None else other for end, other in (ends, ends[::-1])]
            chunks += [
                (interval, rows, kinds, known, slices[lo:hi]) for lo, hi in split(len(slices), -(-len(slices) // CHUNK))
            ]

        def draw(chunk: tuple[Interval, Ints, npt.NDArray[Any], list[Any], range]) -> None:
            interval, rows, kinds, ends, slices = chunk
            here = slice(slices.start - top, slices.stop - top)
            drawn = np.ascontiguousarray(labels[here])
            kernels.draw_planes(
                rows,
                kinds,
                interval.length,
                slices.start - interval.origin,
                slices.stop - interval.origin,
                np.ascontiguousarray(volume[here]),
                *((end.boxes, end.starts, end.potentials) for end in ends),
                geometry.margins,
                np.array([16 * CAP, FADING, FLOOR], dtype=np.int64),
                drawn,
            )
            if not np.may_share_memory(drawn, labels):
                labels[here] = drawn

        run_all(draw, chunks)


def _draw_on_device(
    device: Device,
    work: list[tuple[Interval, Table]],
    read_image: Callable[[int, PlaneBox], npt.NDArray[Any]],
    shape: tuple[int, int],
    corner: tuple[int, int, int],
    volume: Any,
    labels: Any,
    geometry: Geometry,
) -> None:
    """Do what `draw_intervals` does, on device arrays, a few intervals at a time."""
    from ..cuda import sections as cuda

    top, bottom = corner[0], corner[0] + len(volume)
    size = volume.shape[1], volume.shape[2]
    origin = np.array(corner[1:])
    sizes = [_count_voxels(items["boxes"], geometry).sum() for _, items in work]
    for batch in _batches(np.array(sizes, dtype=np.int64)):
        part = work[batch]
        planes = sorted({at for interval, _ in part for at in interval.ends if at is not None})
        clipped = {plane: _clip_pieces(plane, part, shape, corner[1:], size, geometry) for plane in planes}
        images: list[Any] = []
        parts = np.empty((len(planes), 5), dtype=np.int64)
        for row, (plane, found) in zip(parts, clipped.items(), strict=True):
            image = device.bring(read_image(plane, found.part))
            row[0] = sum(image.size for image in images)
            row[1:] = [*(found.part[0::2] - origin), *image.shape]
            images.append(image.astype(np.uint32).reshape(-1))
        counts = np.array([len(found.pieces) for found in clipped.values()])
        firsts = dict(zip(planes, np.cumsum(counts) - counts, strict=True))
        windows = cuda.open_windows(
            device,
            device.xp.concatenate(images),
            np.repeat(parts, counts, axis=0),
            np.concatenate([found.pieces for found in clipped.values()]) + 1,
            np.concatenate([found.boxes for found in clipped.values()]) - np.repeat(origin, 2),
            geometry.margins,
            geometry.keys,
        )
        del images

        tables, spans = [], []
        for interval, items in part:
            slices = range(max(top, interval.slices.start), min(bottom, interval.slices.stop))
            spans.append(cuda.Span(slices.start - top, len(slices), slices.start - interval.origin, interval.length))
            rows = np.empty(len(items), dtype=cuda.ITEM)
            rows["a"] = rows["b"] = -1
            for side, (name, at) in enumerate(zip(("a", "b"), interval.ends, strict=True)):
                if at is not None:
                    place = _find(clipped[at].pieces, items["pieces"][:, side])
                    rows[name] = np.where(place < 0, -1, firsts[at] + place)
            rows["dy"], rows["dx"] = items["motion"].T
            rows["label"], rows["kind"] = items["label"], items["kind"].astype(volume.dtype)
            tables.append(rows)
        every = np.concatenate([items for _, items in part])
        cuda.draw_planes(
            device,
            volume,
            spans,
            np.repeat(np.arange(len(part)), [len(items) for _, items in part]),
            np.concatenate(tables),
            swept_boxes(every, geometry) - np.repeat(origin, 2),
            windows,
            (16 * CAP, FADING, FLOOR),
            labels,
        )
