"""The census of seeds: which are kept, what their ids and classes are, and which slices an annotator went through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.backend import device_of
from ..arrays.checks import as_bits, as_raw, seal
from ..arrays.pairs import flag_first, sort_pairs
from ..arrays.text import list_some
from ..arrays.threads import num_threads, run_all, split
from ..errors import InputError, Keyword
from ..kernels import census as kernels
from ..kernels.pairs import count_slots
from .fronts import flat_strides

__all__ = [
    "Census",
    "Count",
    "Slices",
    "add_rows",
    "annotated_slices",
    "any_unlabelled",
    "apply_ids",
    "count_mask",
    "count_seeds",
    "list_beyond",
    "rank_labels",
    "rank_table",
    "restrict_seeds",
    "select",
    "settle_census",
    "take_census",
]

PLANAR = (15, 16)
"""Seeds lie on annotated slices if these hold at least this share of them."""

DELIMITING = 4
"""A slice is annotated if the labelled share of its mask is at least a quarter of the usual share: one stray click
must not cut an interval."""

DENSE = 4
"""Less than a quarter of the mask off the annotated slices leaves nothing to draw between them."""

COMPLETE = 16
"""The usual labelled share of an annotated slice is at least a sixteenth: fewer are scattered clicks."""

"""Ids that a message names before it says how many more there are."""

Ints = npt.NDArray[np.int64]
Slices = tuple[Ints, Ints, Ints]
"""A count per slice across each axis."""


@dataclass(frozen=True)
class Census:
    """What the seeds are.

    Attributes
    ----------
    ids, classes
        The kept ids, ascending, and the class of each; classes as the int64 of the same bits.
    seeded
        Seeds off the background per slice across each axis.
    dropped
        Whether seeds on the mask were dropped, too (conflicts that went to the majority).
    notes
        What the caller is warned of.
    """

    ids: Ints
    classes: Ints
    seeded: Slices
    dropped: bool
    notes: list[str]

    def class_of(self, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return the class of each rank, at index 0 the background, as it stands in a canonical class map."""
        return np.concatenate([[0], self.classes]).astype(np.uint64).astype(dtype)


@dataclass(frozen=True)
class Count:
    """The seeds of a volume or of a part of it; counts of parts add up.

    Attributes
    ----------
    rows
        Distinct rows (id, class, voxels), sorted.
    seeded
        Seeds off the background per slice across each axis.
    """

    rows: Ints
    seeded: Slices


def take_census(
    volume: npt.NDArray[Any], seeds: npt.NDArray[Any], seed_conflicts: str, class_dtype: np.dtype[Any]
) -> Census:
    """Count the seeds and decide which are kept.

    Parameters
    ----------
    volume, seeds
        Canonical arrays of one shape.
    seed_conflicts
        ``'raise'``: an id on two classes is an error. ``'majority'``: only its seeds on the class with most are kept.
    class_dtype
        The dtype of the caller's class map: messages show them in it.
    """
    return settle_census(count_seeds(volume, seeds), seed_conflicts, class_dtype)


def count_seeds(volume: npt.NDArray[Any], seeds: npt.NDArray[Any]) -> Count:
    """Count the seeds of a volume, or of a part of one."""
    device = device_of(seeds)
    if device is not None:
        from ..cuda import census as cuda

        rows, slices = cuda.count_seeds(device, volume, seeds)
        return Count(add_rows([rows]), slices)
    raw = as_raw(volume), as_raw(seeds), volume.shape
    slabs = split(volume.shape[0], num_threads())
    seeded = [np.zeros((len(slabs), length), dtype=np.int64) for length in volume.shape]

    def count(number: int) -> Ints:
        table = np.zeros((1024, 3), dtype=np.int64)
        table = kernels.count_seeds(*raw, *slabs[number], table, *(counts[number] for counts in seeded))
        return np.asarray(table[table[:, 2] > 0])

    return Count(add_rows(run_all(count, range(len(slabs)))), _add_slices(seeded))


def add_rows(tables: Sequence[Ints]) -> Ints:
    """Return the distinct (id, class) of all `tables`, sorted, with the sums of their voxels."""
    rows = np.concatenate([np.zeros((0, 3), dtype=np.int64), *tables])
    rows = rows[sort_pairs(rows[:, :2])]
    first = flag_first(rows[:, :2])
    if len(rows):
        sums = np.add.reduceat(rows[:, 2], np.flatnonzero(first))
        rows = rows[first]
        rows[:, 2] = sums
    return rows


def count_mask(volume: npt.NDArray[Any]) -> Slices:
    """Return the voxels of the mask per slice across each axis."""
    device = device_of(volume)
    if device is not None:
        from ..cuda import census as cuda

        return cuda.count_mask(device, volume)
    slabs = split(volume.shape[0], num_threads())
    sealed = seal(volume)
    masked = [np.zeros((len(slabs), length), dtype=np.int64) for length in volume.shape]
    run_all(
        lambda number: kernels.count_foreground(sealed, *slabs[number], *(counts[number] for counts in masked)),
        range(len(slabs)),
    )
    return _add_slices(masked)


def _add_slices(parts: list[Ints]) -> Slices:
    z, y, x = (counts.sum(axis=0) for counts in parts)
    return z, y, x


def settle_census(count: Count, seed_conflicts: str, class_dtype: np.dtype[Any]) -> Census:
    """Decide from all that was counted which seeds are kept, with what the caller should know; see `take_census`."""
    ids, classes, counts = count.rows.T
    inside = classes != 0
    notes = []
    kept_ids, kept_classes, kept_counts = ids[inside], classes[inside], counts[inside]
    conflicting = np.unique(kept_ids[1:][kept_ids[1:] == kept_ids[:-1]])
    if len(conflicting) and seed_conflicts == "raise":

        def show(i: int) -> str:
            bits = kept_classes[kept_ids == i].astype(f"u{class_dtype.itemsize}")
            return f"id {i} on classes {', '.join(map(str, bits.view(class_dtype)))}"

        raise InputError(
            "an instance has one class, but ",
            Keyword("seeds"),
            f" have {list_some(conflicting, show=show, joint='; ')}. Correct them, or pass ",
            Keyword("seed_conflicts", "majority"),
            " to keep each id on the class where it has most voxels",
        )
    if len(conflicting):
        # Most voxels first; a tie goes to the smaller class.
        order = np.lexsort((kept_classes.astype(np.uint64), -kept_counts, kept_ids))
        lead = flag_first(kept_ids[order])
        lost = int(kept_counts[order][~lead].sum())
        kept_ids, kept_classes = kept_ids[order][lead], kept_classes[order][lead]
        notes.append(
            f"{lost} seed voxels of {len(conflicting)} ids ({list_some(conflicting)}) lie on a class where their id "
            "has fewer voxels than on another; they were dropped"
        )
    if not inside.all():
        vanished = np.setdiff1d(ids[~inside], kept_ids)
        gone = (
            f"; {len(vanished)} ids vanish by that: {list_some(vanished)}"
            if len(vanished)
            else "; no id vanishes by that"
        )
        notes.append(f"{int(counts[~inside].sum())} seed voxels lie on the background and were dropped{gone}")
    dropped = len(conflicting) > 0
    return Census(np.ascontiguousarray(kept_ids), np.ascontiguousarray(kept_classes), count.seeded, dropped, notes)


def rank_table(ids: Ints, classes: Ints, ranks: Ints) -> Ints:
    """Return a hash table of kept (id, class) with their ranks, for `rank_labels`."""
    table = np.zeros((count_slots(len(ids)), 3), dtype=np.int64)
    kernels.make_ranks(ids, classes, ranks, table)
    return table


def rank_labels(volume: npt.NDArray[Any], seeds: npt.NDArray[Any], ranks: Ints, labels: npt.NDArray[np.uint32]) -> None:
    """Write the rank of each kept seed's id to `labels`, which is 0; `ranks` is a `rank_table`."""
    device = device_of(labels)
    if device is not None:
        from ..cuda import census as cuda

        cuda.rank_labels(device, volume, seeds, ranks, labels)
        return
    depth, height, width = volume.shape
    raw, flat = (as_raw(volume), as_raw(seeds), width), labels.reshape(-1)
    run_all(lambda part: kernels.rank_seeds(*raw, *part, ranks, flat), split(depth * height, num_threads()))


def restrict_seeds(labels: npt.NDArray[np.uint32], seeds: npt.NDArray[Any]) -> None:
    """Set `seeds` to 0, in place, where there is no label."""
    device = device_of(labels)
    if device is not None:
        from ..cuda import census as cuda

        cuda.restrict_seeds(device, labels, seeds)
        return
    flat, flat_seeds = labels.reshape(-1), as_bits(seeds).reshape(-1)
    run_all(lambda part: kernels.restrict_seeds(flat, *part, flat_seeds), split(flat.size, num_threads()))


def any_unlabelled(volume: npt.NDArray[Any], labels: npt.NDArray[np.uint32]) -> bool:
    """Return whether any voxel of the class map has no label."""
    device = device_of(labels)
    if device is not None:
        from ..cuda import census as cuda

        return cuda.any_unlabelled(device, volume, labels)
    slabs = split(volume.shape[0], num_threads())
    return any(run_all(lambda slab: kernels.count_unlabelled(seal(volume), labels, *slab), slabs))


def select(volume: npt.NDArray[Any], labels: npt.NDArray[np.uint32], *, labelled: bool) -> npt.NDArray[Any]:
    """Return the class map of the voxels that have a label, or have none."""
    device = device_of(labels)
    if device is not None:
        from ..cuda import census as cuda

        selected: npt.NDArray[Any] = cuda.select(device, volume, labels, labelled)
        return selected
    return _map_voxels(kernels.select_voxels, volume, labels.reshape(-1), labelled)


def list_beyond(
    volume: npt.NDArray[Any], reached: npt.NDArray[np.uint32], links: npt.NDArray[Any], connectivity: int
) -> npt.NDArray[Any]:
    """Return the class map of the voxels without a label that are linked to one with a label.

    There components with a seed go on beyond the distance: those are not components without one.
    """
    strides = flat_strides(volume.shape, connectivity)
    # Links are on a device in use also where all else is in memory.
    device = device_of(links)
    if device is not None:
        from ..cuda import census as cuda

        beyond = cuda.list_beyond(device, device.bring(volume), device.bring(reached), links, strides)
        given: npt.NDArray[Any] = device.give(beyond, volume)
        return given
    return _map_voxels(kernels.list_borders, volume, reached.reshape(-1), links.reshape(-1), strides)


def _map_voxels(kernel: Callable[..., None], volume: npt.NDArray[Any], *args: Any) -> npt.NDArray[Any]:
    """Return a class map that `kernel` makes from `volume`, both flat, in parts."""
    out = np.empty_like(volume)
    flat, flat_out = seal(volume.reshape(-1)), out.reshape(-1)
    run_all(lambda part: kernel(flat, *args, *part, flat_out), split(flat.size, num_threads()))
    return out


def apply_ids(labels: npt.NDArray[np.uint32], values: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
    """Write ``values[label]`` to `out` for each label, 0 where there is none; `out` may be `labels` itself."""
    device = device_of(labels)
    if device is not None:
        from ..cuda import census as cuda

        cuda.apply_ids(device, labels, values, out)
        return
    flat, flat_out = labels.reshape(-1), out.reshape(-1)
    run_all(lambda part: kernels.apply_ids(flat, *part, values, flat_out), split(flat.size, num_threads()))


def annotated_slices(seeded: Slices, masked: Slices, axes: tuple[int, ...]) -> tuple[int, list[int]] | None:
    """Return which of `axes` the annotated slices lie across and their positions, or None where seeds are not planar.

    `seeded` and `masked` are the voxels of the mask per slice across each axis: those with a seed, and all. The axis
    with the largest usual share of the mask is taken, and none if two tie.
    """
    found = []
    for candidate in axes:
        with_seeds, mask = seeded[candidate], masked[candidate]
        places = np.flatnonzero(with_seeds)
        if len(places) < 2:
            continue
        share = with_seeds[places] / mask[places]
        order = np.argsort(share, kind="stable")
        weight = np.cumsum(with_seeds[places][order])
        usual = float(share[order][np.searchsorted(weight, -(-int(weight[-1]) // 2))])
        delimiting = places[share >= usual / DELIMITING]
        planar = int(with_seeds[delimiting].sum()) * PLANAR[1] >= int(weight[-1]) * PLANAR[0]
        dense = int(mask[delimiting].sum()) * DENSE > int(mask.sum()) * (DENSE - 1)
        if usual >= 1 / COMPLETE and planar and not dense and len(delimiting) >= 2:
            found.append((usual, candidate, [int(z) for z in delimiting]))
    found.sort(reverse=True)
    if not found or (len(found) > 1 and found[0][0] == found[1][0]):
        return None
    return found[0][1], found[0][2]
