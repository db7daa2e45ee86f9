"""Pieces: the 8-connected parts of each label on each annotated slice, the intervals between these slices, and which
pieces of one label lie opposite each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..arrays.backend import find_device
from ..arrays.components import find_components
from ..arrays.neighbors import UNIT
from ..arrays.threads import run_all
from ..kernels import sections as kernels

if TYPE_CHECKING:
    from ..cuda.device import Device

__all__ = [
    "CAP",
    "ITEM",
    "LONE",
    "Geometry",
    "Interval",
    "Pairs",
    "Pieces",
    "PlaneBox",
    "Table",
    "Windows",
    "add_overlaps",
    "batches",
    "behind",
    "count_voxels",
    "divide_even",
    "find_all_pieces",
    "find_pieces",
    "find_potentials",
    "list_all_overlaps",
    "list_intervals",
    "list_overlaps",
    "pair_pieces",
]

Ints = npt.NDArray[np.int64]
Labels = npt.NDArray[np.uint32]

CAP = 8
"""Pixels at which potentials are capped."""

MOST = 64
"""Pixels that a piece may move over an interval. 32 lost 1 to 2 % of panoptic quality where sections move fast."""

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
Table = npt.NDArray[np.void]
PlaneBox = tuple[int, int, int, int]
"""``(y0, y1, x0, x1)`` on a plane."""


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
        means[paired, 1:] = divide_even(means[paired, 1:], means[paired, :1])
        return means


@dataclass(frozen=True)
class Windows:
    """Potentials of some pieces of a plane, `pieces` ascending; boxes are counted from a box's corner."""

    pieces: Ints
    boxes: Ints
    starts: Ints
    potentials: npt.NDArray[np.int16]


def divide_even(a: Ints, b: Ints | int) -> Ints:
    """Return a / b rounded to the nearest integer, ties to even."""
    quotient, rest = np.divmod(a, b)
    return np.asarray(quotient + ((2 * rest > b) | ((2 * rest == b) & (quotient & 1 == 1))))


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


def find_all_pieces(annotated: list[int], labels: Any, classes: npt.NDArray[Any]) -> tuple[list[Pieces], Any]:
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
    centres = [divide_even(16 * table[name], area) for name in ("sum_y", "sum_x")]
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


def list_all_overlaps(planes: list[Pieces], images: Any) -> list[Ints]:
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


def count_voxels(boxes: Ints, geometry: Geometry) -> Ints:
    """Return how many voxels the windows of some pieces have."""
    sides = boxes[..., 1::2] - boxes[..., 0::2] + 2 * geometry.margins
    return np.asarray(sides.prod(axis=-1))


def batches(sizes: Ints) -> list[slice]:
    """Cut a row of things into parts of some `BATCH` in all."""
    before = np.cumsum(sizes) - sizes
    first = np.flatnonzero(np.diff(before // BATCH, prepend=-1))
    return [slice(lo, hi) for lo, hi in itertools.pairwise([*first.tolist(), len(sizes)])]


def find_potentials(pieces: Ints, boxes: Ints, image: npt.NDArray[Any], geometry: Geometry) -> Windows:
    """Return the potentials of some pieces of a plane in their windows; `boxes` are counted from the image's corner."""
    heights = boxes[:, 1] - boxes[:, 0] + 2 * geometry.margins[0]
    widths = boxes[:, 3] - boxes[:, 2] + 2 * geometry.margins[1]
    starts = np.concatenate([[0], np.cumsum(heights * widths)]).astype(np.int64)
    potentials = np.empty(starts[-1], dtype=np.int16)
    numbers = np.ascontiguousarray(pieces) + 1
    kernels.potentials_of_pieces(np.ascontiguousarray(image), numbers, boxes, starts, *geometry.keys, potentials)
    return Windows(pieces, boxes, starts, potentials)
