"""The second act of the demo: from 2D labels of nine slices in ten to 3D instances.

1. The network: every slice of the truth is cut into its 2D components, whose ids are shuffled, with the errors that 2D
   networks make; a tenth of the slices is missing.
2. The command line runs on the files: ``lpa3d stitch``, ``lpa3d fuse`` with the class map, ``lpa3d propagate``.
3. Instead of `stitch`, what is done today links sections: greedily by intersection over union.
4. All are compared with the truth on all slices: a table on standard output, a picture in the output folder.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import io, plot
from ..commands.counts import count_sections
from ..errors import Lpa3dWarning
from .case import Case, write_like
from .parts import (
    HEADING,
    SPARE_COLORS,
    Result,
    evaluate_all,
    find_crowd,
    find_ids,
    find_wrong,
    list_costliest,
    list_scores,
    paint,
    run_command,
    time_call,
)

if TYPE_CHECKING:
    from ..evaluation.result import Evaluation
    from ..linking.fused import Source

__all__ = ["link_greedily", "play", "predict_slices", "why_not"]

Array = npt.NDArray[Any]

MISSING = 0.1
"""Share of the slices without labels."""

BORDER = 1.5
"""Pixels by which borders are off, at most, along each axis."""

SMALLEST = 20
"""Pixels of the smallest section that is found."""

LOST, JOINED = 0.02, 0.01
"""Share of the other sections that is not found, and of the touching ones that are drawn as one."""

LEAST_IOU = 0.1
"""Greedy linking takes pairs above it; with 0.25, as common, it is a little worse here."""

TRUST: tuple[Source, ...] = ("classes", "slices")
"""Fusing: a network segments everything, so what is background or of another class is no object of a section."""


def play(case: Case, output: Path, seed: int, thumbnail: Path | None) -> None:
    """Run the act, unless the truth is not there on every slice."""
    reason = why_not(case)
    if reason:
        print(f"\nAct 2, from 2D labels of every slice, is left out: {reason}")
        return
    assert case.truth is not None
    assert case.truth_file is not None
    slices = predict_slices(case.truth, case.classes, seed)
    slices_file = write_like(case.truth_file, slices, output, "slices")
    given = slices.any(axis=(1, 2))
    missing = np.flatnonzero(case.truth.any(axis=(1, 2)) & ~given).tolist()
    sections = sum(count_sections(slices, 0))
    print(f"\nAct 2: from {sections:,} sections on {np.count_nonzero(given)} of {len(slices)} slices\n")
    stitched, results = _recover(case, slices, slices_file, output)
    scores = evaluate_all(case.truth, results)
    print(_table(results, scores))
    drawn = case, (slices, stitched), results, scores, missing
    _picture(*drawn, output / "demo_slices.png")
    print(f"\nPicture: {output / 'demo_slices.png'}")
    if thumbnail is not None:
        smaller = thumbnail.with_stem(f"{thumbnail.stem}_slices")
        _picture(*drawn, smaller, small=True)
        print(f"Smaller picture: {smaller}")


def why_not(case: Case) -> str:
    """Return what is missing for the act, which needs all objects of nearly every slice."""
    if case.truth is None:
        return "it needs instances.*, the truth on every slice"
    inside = case.classes != 0
    given, labelled = (np.count_nonzero(mask, axis=(1, 2)) for mask in (inside, inside & (case.truth != 0)))
    bare = int(np.count_nonzero(2 * labelled < given))
    if 10 * bare > len(given):
        return f"{case.truth_file} labels less than half of the class map on {bare} of {len(given)} slices"
    return "" if labelled.any() else f"{case.truth_file} has no labels inside the class map"


# ------------------------------------------------------------------------------------------------------ the 2D labels


def predict_slices(truth: Array, classes: Array, seed: int = 0) -> Array:
    """Return sections as a 2D network finds them: ids that mean nothing from slice to slice, wrong in places.

    Each has the class of most of its pixels and leaves out those of other classes, as both are of one network.
    """
    import lpa3d

    rng = np.random.default_rng(seed)
    missing = rng.choice(len(truth), round(MISSING * len(truth)), replace=False)
    slices = np.zeros(truth.shape, np.uint32)
    for z in sorted({*range(len(truth))} - {*missing.tolist()}):
        sections = lpa3d.label(_displace(truth[z], rng), connectivity=26)
        touching = _find_touching(sections)
        for kept, other in touching[rng.random(len(touching)) < JOINED]:
            sections[sections == other] = kept
        _cut_to_class(sections, classes[z])
        areas = np.bincount(sections.ravel())
        ids = 1 + rng.permutation(len(areas))
        ids[(areas < SMALLEST) | (rng.random(len(areas)) < LOST)] = 0
        ids[0] = 0
        slices[z] = ids[sections]
    # 16 bits are read by every viewer.
    return slices.astype(np.uint16) if slices.max(initial=0) < 2**16 else slices


def _displace(plane: Array, rng: np.random.Generator) -> Array:
    """Return a slice whose borders are off by smooth waves."""
    axes = [np.arange(size) for size in plane.shape]
    places = []
    for across, axis in enumerate(axes):
        waves = [np.sin(at / rng.uniform(5, 10) + rng.uniform(0, 2 * np.pi)) for at in axes]
        moved = np.rint(np.expand_dims(axis, 1 - across) + BORDER * np.outer(*waves))
        places.append(moved.astype(np.intp).clip(0, len(axis) - 1))
    displaced: Array = plane[tuple(places)]
    return displaced


def _find_touching(sections: Array) -> Array:
    """Return the pairs of ids of pixels side by side, sorted, each once."""
    sides = [(sections[1:], sections[:-1]), (sections[:, 1:], sections[:, :-1])]
    pairs = np.concatenate(
        [np.stack(side, axis=-1)[(side[0] != side[1]) & (side[0] > 0) & (side[1] > 0)] for side in sides]
    )
    return np.unique(np.sort(pairs, axis=1), axis=0)


def _cut_to_class(sections: Array, classes: Array) -> None:
    """Clear, in place, the pixels of each section that lie on another class than most of it; background is none."""
    kinds, ranks = find_ids(classes)
    counts = np.zeros((int(sections.max(initial=0)) + 1, len(kinds)), np.int64)
    np.add.at(counts, (sections, ranks), kinds[ranks] != 0)
    sections[(kinds[ranks] != 0) & (ranks != counts.argmax(axis=1)[sections])] = 0


# -------------------------------------------------------------------------------------------------------- the methods


def _recover(case: Case, slices: Array, slices_file: Path, output: Path) -> tuple[Array, list[Result]]:
    """Return what `stitch` made, and the instances that come of it and of greedy links."""
    import lpa3d

    stitched_file, ours_file = output / "stitched.tif", output / "lpa3d_slices.tif"
    volume, seeds = output / "fused_classes.tif", output / "fused_seeds.tif"
    run_command("stitch", slices_file, stitched_file, "--classes", case.classes_file)
    sources = ("--classes", case.classes_file, "--slices", stitched_file, "--priority", *TRUST)
    run_command("fuse", *sources, "--volume", volume, "--seeds", seeds)
    run_command("propagate", volume, seeds, ours_file)
    stitched, ours = io.read(stitched_file), io.read(ours_file)

    present = slices.any(axis=(1, 2))
    lpa3d.stitch(slices[:2], classes=case.classes[:2])  # loads what is compiled by now
    again, seconds = time_call(lpa3d.stitch, slices, classes=case.classes)
    if not np.array_equal(again, stitched):
        raise RuntimeError("lpa3d.stitch and the command line gave different labels")
    next_slice, next_seconds = time_call(link_greedily, slices)
    over_gaps = np.zeros_like(next_slice)
    over_gaps[present], gap_seconds = time_call(link_greedily, slices[present])

    def finish(linked: Array) -> Array:
        fused = lpa3d.fuse(classes=case.classes, slices=linked, priority=TRUST)
        labels: Array = lpa3d.propagate(fused.volume, fused.seeds, spacing=case.spacing)
        return labels

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Lpa3dWarning)  # the command has said it
        return stitched, [
            Result("lpa3d stitch", ours, seconds),
            Result("greedy IoU, next slice", finish(next_slice), next_seconds),
            Result("greedy IoU, over gaps", finish(over_gaps), gap_seconds),
        ]


def link_greedily(slices: Array) -> Array:
    """Return 3D ids as today's tools make them: the pairs of neighbouring slices by falling intersection over union."""
    from ..arrays.overlap import count_overlaps

    linked = np.zeros(slices.shape, np.uint32)
    objects = 0
    for z in range(len(slices)):
        # Before the first slice there is nothing.
        table = count_overlaps(slices[z : z + 1], linked[z - 1 : z] if z else linked[:1])
        (sections, here), (_, there) = (np.unique(side, return_inverse=True) for side in table.pairs.T)
        areas = [np.bincount(side, table.voxels) for side in (here, there)]
        iou = table.voxels / (areas[0][here] + areas[1][there] - table.voxels)
        found = {0: 0}
        for row in np.argsort(-iou, kind="stable"):
            section, known = table.pairs[row].tolist()
            if section and known and iou[row] > LEAST_IOU and section not in found and known not in found.values():
                found[section] = known
        for section in sections.tolist():
            if section not in found:
                objects += 1
                found[section] = objects
        linked[z] = np.array([found.get(section, 0) for section in range(int(sections[-1]) + 1)])[slices[z]]
    return linked


def _table(results: Sequence[Result], scores: Sequence[Evaluation]) -> str:
    """Return the table."""
    return "\n".join(
        [
            "",
            HEADING,
            *list_scores("all instances, all slices", results, scores, timed=True),
            "",
            "time: of the linking alone; after it, lpa3d fuse and lpa3d propagate finish all three",
            *list_costliest(results[0].name, scores[0]),
        ]
    )


# -------------------------------------------------------------------------------------------------------- the picture


def _picture(
    case: Case,
    given: tuple[Array, Array],
    results: Sequence[Result],
    scores: Sequence[Evaluation],
    missing: Sequence[int],
    path: Path,
    small: bool = False,
) -> None:
    """Draw a missing slice between its neighbours, and a cut across all."""
    assert case.truth is not None
    slices, stitched = given
    ids, _ = find_ids(case.truth)
    rank = {int(number): i for i, number in enumerate(ids[ids > 0], start=1)}
    spare = len(rank) + 1
    colors = plot.distinct_colors(spare + SPARE_COLORS)
    pairs = scores[0].pairs
    matched = {int(ours): rank[int(theirs)] for ours, theirs in zip(pairs.prediction, pairs.reference, strict=True)}
    columns = [
        plot.Column("Image", case.raw_title),
        plot.Column("2D labels", "ids change on every slice", paint(slices, {}, spare), colors),
        plot.Column("Stitched", "ids in 3D, gaps are open", paint(stitched, matched, spare), colors),
        plot.Column("lpa3d", "fused, propagated", paint(results[0].labels, matched, spare), colors),
        plot.Column("Truth", "on every slice", paint(case.truth, rank, spare), colors),
    ]
    for k, name in ((0, "lpa3d"), (2, "Greedy IoU")):
        count = f"{scores[k]['fn']} of {scores[k]['tp'] + scores[k]['fn']} not recovered"
        columns.append(
            plot.Column(f"{name}: errors", count, find_wrong(case.truth, results[k].labels, scores[k].pairs))
        )
    rows = _rows(case.truth, missing)
    if small:
        columns = [column for column in columns if column.title != "Truth"]
    plot.overview(
        path,
        case.raw,
        columns,
        rows,
        spacing=case.spacing,
        unit=case.unit,
        annotated=missing,
        legend=[],
        caption=_caption(results, scores, len(slices), len(missing)),
        width=1500 if small else 2700,
        palette=256 if small else None,
    )


def _rows(truth: Array, missing: Sequence[int]) -> list[plot.Row]:
    """Choose what is shown by the truth alone: a crowded detail of a missing slice between its neighbours, a cut."""
    depth, height, width = truth.shape
    side = min(height, width, max(16, round(0.4 * min(height, width))))
    inner = [z for z in missing if z - 1 not in missing and z + 1 not in missing and 0 < z < depth - 1]
    z = max(inner or missing or [depth // 2], key=lambda z: (len(np.unique(truth[z])), -z))
    window = find_crowd(truth[z], side) if side < min(height, width) else None
    rows = [
        plot.Row(0, k, f"z = {k}{f'{chr(10)}{chr(10)}missing' if k in missing else ''}", window)
        for k in range(max(z - 1, 0), min(z + 2, depth))
    ]
    y = max(range(0, height, 4), key=lambda y: len(np.unique(truth[:, y])))
    return [*rows, plot.Row(1, y, f"cut y = {y}\n(z runs down)\n\nred marks:\nmissing slices")]


def _caption(results: Sequence[Result], scores: Sequence[Evaluation], depth: int, missing: int) -> str:
    """Return what was given and what came out."""
    lines = [
        f"Given: the classes everywhere, and the labels of a 2D network, with its errors, on {depth - missing} of "
        f"{depth} slices. From Stitched on, the same colour is the same instance."
    ]
    for result, e in zip(results, scores, strict=True):
        lines.append(
            f"{result.name}: {e['tp']} of {e['tp'] + e['fn']} instances recovered, {e['fp']:,} objects too many, "
            f"panoptic quality {e['pq']:.2f}"
        )
    return "\n".join(lines)
