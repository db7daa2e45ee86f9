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
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.backend import find_device
from ..arrays.threads import run_all
from .drawing import draw_intervals, join_items
from .motions import Search, decide, list_lone, match_all, weigh_motions
from .pieces import (
    LONE,
    Geometry,
    Pairs,
    PlaneBox,
    behind,
    find_all_pieces,
    list_all_overlaps,
    list_intervals,
    pair_pieces,
)

__all__ = ["label_sections"]
Labels = npt.NDArray[np.uint32]


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
    planes, images = find_all_pieces(annotated, labels_across, classes)
    intervals = list_intervals(annotated, len(across))
    overlaps = list_all_overlaps(planes, images)
    pairs = run_all(lambda i: pair_pieces(planes[i], planes[i + 1], overlaps[i], geometry), range(len(planes) - 1))
    passed = decide(run_all(lambda i: weigh_motions(planes[i], planes[i + 1], pairs[i], geometry), range(len(pairs))))
    took_part = np.isin(classes, passed)
    if not took_part.any():
        return took_part

    def own_pairs(index: int) -> Pairs:
        return pairs[index] if index < len(pairs) else Pairs.none()

    def find_lone(end: tuple[int, int]) -> Search:
        index, side = end
        interval = intervals[index]
        at = interval.ends[side]
        if at is None:
            return Search(interval, side, 0, 0, np.zeros(0, dtype=LONE))
        i = behind(at, side, len(planes))
        back = None if i is None else (pairs[i], intervals[i].length)
        lone = list_lone(interval, side, planes[at], own_pairs(index), back, passed, geometry)
        return Search(interval, side, at, planes[at].z, lone)

    searches = run_all(find_lone, itertools.product(range(len(intervals)), range(2)))
    motions = match_all(searches, across, images, geometry)
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
