"""The census of seeds: which are kept, what their ids and classes are, and which slices an annotator went through."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ._threads import num_threads, run_all, split
from .errors import InputError, Lpa3dWarning
from .kernels import census as kernels

__all__ = ["Census", "annotated_slices", "rank_labels", "take_census"]

PLANAR = (15, 16)
"""Seeds lie on annotated slices if these hold at least this share of them."""

DELIMITING = 4
"""A slice is annotated if the labelled share of its mask is at least a quarter of the usual share: one stray click
must not cut an interval."""

DENSE = 4
"""Less than a quarter of the mask off the annotated slices leaves nothing to draw between them."""

COMPLETE = 16
"""The usual labelled share of an annotated slice is at least a sixteenth: fewer are scattered clicks."""

SHOWN = 10
"""Ids that a message names before it says how many more there are."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Census:
    """What the seeds are.

    Attributes
    ----------
    ids, classes
        The kept ids, ascending, and the class of each; classes as the int64 of the same bits.
    seeded
        Kept seeds per slice across each axis.
    dropped
        Whether seeds on the mask were dropped, too (conflicts that went to the majority).
    """

    ids: Ints
    classes: Ints
    seeded: tuple[Ints, Ints, Ints]
    dropped: bool


def _name(ids: Ints) -> str:
    shown = ", ".join(str(i) for i in ids[:SHOWN])
    return shown if len(ids) <= SHOWN else f"{shown} and {len(ids) - SHOWN} more"


def take_census(
    volume: npt.NDArray[Any], seeds: npt.NDArray[Any], seed_conflicts: str, class_dtype: np.dtype[Any]
) -> Census:
    """Count the seeds, refuse or settle ids on two classes, and warn of seeds on the background.

    `class_dtype` is the dtype that the caller's classes had: messages show them in it.
    """
    slabs = split(volume.shape[0], num_threads())
    seeded = [np.zeros((len(slabs), length), dtype=np.int64) for length in volume.shape]

    def count(number: int) -> Ints:
        table = np.zeros((1024, 3), dtype=np.int64)
        table = kernels.count_seeds(volume, seeds, *slabs[number], table, *(counts[number] for counts in seeded))
        return np.asarray(table[table[:, 2] > 0])

    rows = np.concatenate([np.zeros((0, 3), dtype=np.int64), *run_all(count, range(len(slabs)))])
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    first = np.ones(len(rows), dtype=bool)
    first[1:] = (rows[1:, :2] != rows[:-1, :2]).any(axis=1)
    counts = np.add.reduceat(rows[:, 2], np.flatnonzero(first)) if len(rows) else rows[:, 2]
    ids, classes = rows[first, 0], rows[first, 1]

    inside = classes != 0
    dropped = False
    kept_ids, kept_classes, kept_counts = ids[inside], classes[inside], counts[inside]
    conflicting = np.unique(kept_ids[1:][kept_ids[1:] == kept_ids[:-1]])
    if len(conflicting) and seed_conflicts == "raise":
        shown = "; ".join(
            f"id {i} on classes "
            + ", ".join(
                str(c) for c in kept_classes[kept_ids == i].astype(f"u{class_dtype.itemsize}").view(class_dtype)
            )
            for i in conflicting[:SHOWN]
        )
        more = f"; and {len(conflicting) - SHOWN} more ids" if len(conflicting) > SHOWN else ""
        raise InputError(
            f"an instance has one class, but seeds have {shown}{more}. Correct them, or pass "
            "seed_conflicts='majority' to keep each id on the class where it has most voxels"
        )
    if len(conflicting):
        # Most voxels first; a tie goes to the smaller class.
        order = np.lexsort((kept_classes, -kept_counts, kept_ids))
        lead = np.concatenate([[True], kept_ids[order][1:] != kept_ids[order][:-1]])
        lost = int(kept_counts[order][~lead].sum())
        kept_ids, kept_classes = kept_ids[order][lead], kept_classes[order][lead]
        dropped = True
        warnings.warn(
            f"{lost} seed voxels of {len(conflicting)} ids ({_name(conflicting)}) lie on a class where their id has "
            "fewer voxels than on another; they were dropped",
            Lpa3dWarning,
            stacklevel=4,
        )
    if not inside.all():
        vanished = np.setdiff1d(ids[~inside], kept_ids)
        gone = (
            f"; {len(vanished)} ids vanish by that: {_name(vanished)}" if len(vanished) else "; no id vanishes by that"
        )
        warnings.warn(
            f"{int(counts[~inside].sum())} seed voxels lie on the background and were dropped{gone}",
            Lpa3dWarning,
            stacklevel=4,
        )
    return Census(kept_ids, kept_classes, tuple(counts.sum(axis=0) for counts in seeded), dropped)


def rank_labels(
    volume: npt.NDArray[Any], seeds: npt.NDArray[Any], census: Census, labels: npt.NDArray[np.uint32]
) -> None:
    """Write the rank 1..n of each kept seed's id to `labels`, which is 0."""
    size = 1024
    while size < 2 * len(census.ids):
        size *= 2
    ranks = np.zeros((size, 3), dtype=np.int64)
    kernels.make_ranks(census.ids, census.classes, ranks)
    run_all(lambda part: kernels.rank_seeds(volume, seeds, *part, ranks, labels), split(volume.shape[0], num_threads()))


def annotated_slices(volume: npt.NDArray[Any], census: Census, axes: tuple[int, ...]) -> tuple[int, list[int]] | None:
    """Return which of `axes` the annotated slices lie across and their positions, or None where seeds are not planar.

    The axis with the largest usual share of labelled mask is taken, and none if two tie.
    """
    slabs = split(volume.shape[0], num_threads())
    masked = [np.zeros((len(slabs), length), dtype=np.int64) for length in volume.shape]
    run_all(
        lambda number: kernels.count_foreground(volume, *slabs[number], *(counts[number] for counts in masked)),
        range(len(slabs)),
    )
    found = []
    for candidate in axes:
        seeded, mask = census.seeded[candidate], masked[candidate].sum(axis=0)
        places = np.flatnonzero(seeded)
        if len(places) < 2:
            continue
        share = seeded[places] / mask[places]
        order = np.argsort(share, kind="stable")
        weight = np.cumsum(seeded[places][order])
        usual = float(share[order][np.searchsorted(weight, -(-int(weight[-1]) // 2))])
        delimiting = places[share >= usual / DELIMITING]
        planar = int(seeded[delimiting].sum()) * PLANAR[1] >= int(weight[-1]) * PLANAR[0]
        dense = int(mask[delimiting].sum()) * DENSE > int(mask.sum()) * (DENSE - 1)
        if usual >= 1 / COMPLETE and planar and not dense and len(delimiting) >= 2:
            found.append((usual, candidate, [int(z) for z in delimiting]))
    found.sort(reverse=True)
    if not found or (len(found) > 1 and found[0][0] == found[1][0]):
        return None
    return found[0][1], found[0][2]
