"""Motions: which classes take part, and where pieces without a partner move, by their neighbours and the class map."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..arrays.backend import find_device
from ..arrays.neighbors import UNIT
from ..arrays.threads import run_all
from ..kernels import sections as kernels
from .pieces import (
    CAP,
    LONE,
    Geometry,
    Interval,
    Pairs,
    Pieces,
    Table,
    batches,
    count_voxels,
    divide_even,
    find_potentials,
)

if TYPE_CHECKING:
    from ..cuda.device import Device

__all__ = ["LOOK", "Search", "decide", "list_lone", "match_all", "match_lone", "matched_box", "weigh_motions"]

Ints = npt.NDArray[np.int64]

logger = logging.getLogger("lpa3d")

REACH = 60
"""Pixels within which neighbours tell a piece's motion."""

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


@dataclass(frozen=True)
class Search:
    """The lone pieces of one end of an interval: on the plane with number `plane`, slice `z` of the class map."""

    interval: Interval
    side: int
    plane: int
    z: int
    lone: Table


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
    expected = divide_even(expected * interval.length, source_length)
    trust = np.full(len(lone), TRUST_NEIGHBORS)
    if back is not None:
        own = back[0].means(1 - side, len(plane.labels))[lone]
        known = own[:, 0] > 0
        expected[known] = divide_even(own[known, 1:] * interval.length, back[1])
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
    furthest = divide_even(look * expected, 16 * interval.length)
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
        own = Search(interval, side, 0, at - first, lone)
        volume, images = device.bring(block[first : first + look + 1]), device.bring(image)[np.newaxis]
        return _match_on_device(device, [own], volume, images, geometry)[0]
    kinds = lone["kind"].astype(block.dtype)
    windows = find_potentials(lone["piece"], boxes, image, geometry)
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


def match_all(
    searches: list[Search], volume: npt.NDArray[Any], images: Sequence[npt.NDArray[Any]], geometry: Geometry
) -> list[Ints]:
    """Return `match_lone` of each search in a whole volume."""
    device = find_device(volume)
    if device is not None:
        return _match_on_device(device, searches, volume, images, geometry)

    def match(search: Search) -> Ints:
        interval, side, image = search.interval, search.side, images[search.plane]
        return match_lone(search.lone, interval, side, search.z, volume, image, (0, 0, 0), geometry)

    return run_all(match, searches)


def _match_on_device(
    device: Device, searches: list[Search], volume: Any, images: Any, geometry: Geometry
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
    for batch in batches(count_voxels(lone["box"], geometry)):
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
