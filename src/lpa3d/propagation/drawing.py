"""Drawing: displaced and mixed potentials of pieces compete for the voxels of the slices between annotated ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..arrays.backend import find_device
from ..arrays.threads import num_threads, run_all, split
from ..kernels import sections as kernels
from .pieces import (
    CAP,
    ITEM,
    Geometry,
    Interval,
    Pairs,
    Pieces,
    PlaneBox,
    Table,
    Windows,
    batches,
    count_voxels,
    find_potentials,
)

if TYPE_CHECKING:
    from ..cuda.device import Device

__all__ = ["draw_intervals", "join_items", "swept_boxes"]

Ints = npt.NDArray[np.int64]
Labels = npt.NDArray[np.uint32]

FADING = 614
"""1/4096 pixel that a lone piece loses a slice: 0.15 pixels. From 0.08 to 0.25 the result is the same."""

FLOOR = -2 * 4096
"""Least potential that labels a voxel, in 1/4096 pixel. -1 and -4 pixels give the same."""

CHUNK = 8
"""Slices that are drawn as one piece of work."""


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
    windows: dict[int, Windows] = {}
    # Potentials are at hand of a few intervals at a time, those of a plane between two for both.
    for start in range(0, len(work), batch):
        part = work[start : start + batch]
        planes = sorted({at for interval, _ in part for at in interval.ends if at is not None})
        kept = windows

        def open_windows(plane: int, kept: dict[int, Windows] = kept) -> Windows:
            if plane in kept:
                return kept[plane]
            clipped = _clip_pieces(plane, work, shape, corner[1:], size, geometry)
            y0, _, x0, _ = clipped.part
            boxes = clipped.boxes - np.array([y0, y0, x0, x0])
            found = find_potentials(clipped.pieces, boxes, read_image(plane, clipped.part), geometry)
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
    sizes = [count_voxels(items["boxes"], geometry).sum() for _, items in work]
    for batch in batches(np.array(sizes, dtype=np.int64)):
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
