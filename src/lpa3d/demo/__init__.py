"""The demo: what the command line makes of a phantom cell, or of a folder of the user's own files.

The first act starts from instances on a few slices:

1. The files: a phantom is made and written to the output folder, or those of ``--data`` are found.
2. The annotator: only the instance labels of every k-th slice are kept as seeds.
3. The command line runs on the files: ``lpa3d propagate`` and, as a peer, ``lpa3d label``.
4. The other peer, scikit-image's watershed, runs on the same arrays.
5. All are compared with the truth: a table on standard output, a picture in the output folder.

The second act, in `_demo_slices`, starts from 2D labels of nearly all slices.
"""

from __future__ import annotations

import argparse
import importlib
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import io, plot
from ..errors import InputError, Lpa3dWarning
from . import slices as _demo_slices
from .case import Case, describe, find_case, make_case
from .parts import (
    HEADING,
    LEGEND,
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

__all__ = ["add_arguments", "run"]

Array = npt.NDArray[Any]

EVERY = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``lpa3d demo`` to its parser."""
    parser.description = (
        "Make a phantom cell with known instances, keep the labels of every 16th slice, let the command line recover "
        "the rest, and compare it with the truth, connected components and scikit-image's watershed. Then start again "
        "from 2D labels of nine slices in ten. With --data, do the same on your own files."
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="use these files: classes.* or volume.*, instances.* (truth) or seeds.*, and optionally raw.*",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where files and pictures go (default demo, or demo/NAME of --data)",
    )
    parser.add_argument(
        "--every", type=int, default=EVERY, metavar="K", help=f"keep each K-th slice of instances (default {EVERY})"
    )
    parser.add_argument(
        "--shape",
        type=int,
        nargs=3,
        default=(192, 320, 320),
        metavar=("Z", "Y", "X"),
        help="shape of the phantom (default 192 320 320)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another phantom (default 0)")
    parser.add_argument(
        "--thumbnail", type=Path, metavar="FILE", help="also save smaller pictures, of act 2 as FILE_slices"
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo and return the exit code of the command."""
    for module in ("scipy.ndimage", "skimage.segmentation", "matplotlib.figure"):
        _require(module)
    if args.every < 1:
        raise InputError(f"--every is {args.every}; a whole number of slices, at least 1, is needed")
    output = args.output or (Path("demo") if args.data is None else Path("demo") / args.data.resolve().name)
    case = make_case(args, output) if args.data is None else find_case(args.data, output, args.every)
    describe(case)
    instances, annotated = np.count_nonzero(find_ids(case.seeds)[0]), len(case.annotated())
    print(f"\nAct 1: from {instances} instances on {annotated} of {len(case.seeds)} slices\n")
    results = _recover(case, output)
    scores: list[Evaluation] = []
    if case.truth is not None:
        scores = evaluate_all(case.truth, results)
        print(_table(case, results, scores))
    _picture(case, results, scores, output / "demo.png")
    print(f"\nPicture: {output / 'demo.png'}")
    if args.thumbnail is not None:
        _picture(case, results, scores, args.thumbnail, small=True)
        print(f"Smaller picture: {args.thumbnail}")
    _demo_slices.play(case, output, args.seed, args.thumbnail)
    return 0


def _require(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise io.LibraryError(
            f"the demo needs {module.partition('.')[0]}, which cannot be imported ({error}); "
            f"install it: pip install 'lpa3d[demo]'"
        ) from error


# ------------------------------------------------------------------------------------------------------- the methods


def _recover(case: Case, output: Path) -> list[Result]:
    """Run the command line and the peers."""
    import lpa3d

    started = time.perf_counter()
    run_command("propagate", case.classes_file, case.seeds_file, output / "lpa3d.tif")
    commanded = time.perf_counter() - started
    run_command("label", case.classes_file, output / "components.tif")
    ours, components = io.read(output / "lpa3d.tif"), io.read(output / "components.tif")

    # The same again without files, for times that can be compared. The first slices load what is compiled by now.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Lpa3dWarning)  # the command has said it
        first = slice(0, max(case.annotated()[:2], default=0) + 1)
        lpa3d.propagate(case.classes[first], case.seeds[first], spacing=case.spacing)
        lpa3d.label(case.classes[first])
        again, seconds = time_call(lpa3d.propagate, case.classes, case.seeds, spacing=case.spacing)
    if not np.array_equal(again, ours):
        raise RuntimeError("lpa3d.propagate and the command line gave different labels")
    _, component_seconds = time_call(lpa3d.label, case.classes)
    flooded, flood_seconds = time_call(_watershed, case.classes, case.seeds)
    print(
        f"\nTimes: lpa3d propagate {seconds:.2f} s (the first command, with start, compiling and files, "
        f"{commanded:.1f} s),\nscikit-image's watershed {flood_seconds:.2f} s, lpa3d label {component_seconds:.2f} s."
    )
    return [
        Result("lpa3d propagate", ours, seconds),
        Result("scikit-image's watershed", flooded, flood_seconds),
        Result("connected components", components, component_seconds),
    ]


def _watershed(classes: Array, seeds: Array) -> Array:
    """Return scikit-image's watershed inside the mask, on a constant image: what most people would use.

    It knows no classes: where two of them touch, each is flooded by itself.
    """
    from skimage.segmentation import watershed

    ids, ranks = find_ids(seeds)
    markers = ranks.astype(np.int32)
    if ids.size and ids[0]:
        markers += 1
        ids = np.concatenate(([0], ids))
    flat = np.zeros(classes.shape, np.uint8)
    kinds = np.unique(classes[classes > 0]) if _classes_touch(classes) else [None]
    flooded = np.zeros(classes.shape, np.int32)
    for kind in kinds:
        mask = classes > 0 if kind is None else classes == kind
        flooded += watershed(flat, markers * mask, mask=mask, connectivity=1)
    return ids[flooded].astype(seeds.dtype)


def _classes_touch(classes: Array) -> bool:
    """Return whether two voxels of different classes share a face."""
    for axis in range(classes.ndim):
        here = classes.take(range(1, classes.shape[axis]), axis)
        there = classes.take(range(classes.shape[axis] - 1), axis)
        if ((here != there) & (here > 0) & (there > 0)).any():
            return True
    return False


# -------------------------------------------------------------------------------------------------------- the measures


def _evaluate_classes(case: Case, results: Sequence[Result]) -> list[Mapping[Any, Evaluation]]:
    """Return the measures of each result by the name of the class."""
    import lpa3d

    assert case.truth is not None
    names = {rank: name for rank, (_, name) in enumerate(sorted(case.class_names.items()), start=1)}
    known = _class_of(case.truth, case)
    return [
        lpa3d.evaluate(
            case.truth, result.labels, classes=(known, _class_of(result.labels, case)), class_names=names
        ).per_class
        for result in results
    ]


def _class_of(labels: Array, case: Case) -> dict[int, int]:
    """Return the rank of each instance's class, the one of most of its voxels, as a user's truth may cross classes."""
    from ..arrays.checks import instance_ids
    from ..arrays.overlap import count_overlaps

    overlaps = count_overlaps(instance_ids(labels, "labels"), case.class_ranks)
    rows = overlaps.pairs[np.argsort(overlaps.voxels, kind="stable")].tolist()
    # The largest overlap is the last and stays; -1 is no class of any name.
    return {number: rank or -1 for number, rank in rows if number}


def _table(case: Case, results: Sequence[Result], scores: Sequence[Evaluation]) -> str:
    """Return the table: each method over all instances and over those of each class."""
    lines = ["", HEADING, *list_scores("all instances", results, scores, timed=True)]
    if len(case.class_names) > 1:
        per_class = _evaluate_classes(case, results)
        for name in case.class_names.values():
            lines += list_scores(name, results, [one[name] for one in per_class])
    return "\n".join([*lines, "", *LEGEND, *list_costliest(results[0].name, scores[0])])


# -------------------------------------------------------------------------------------------------------- the picture


def _picture(
    case: Case, results: Sequence[Result], scores: Sequence[Evaluation], path: Path, small: bool = False
) -> None:
    """Draw planes between the annotated slices, and a cut across them."""
    ours, flooded = results[0], results[1]
    reference = case.seeds if case.truth is None else case.truth
    ids, _ = find_ids(reference)
    ids = ids[ids > 0]
    rank = {int(number): i for i, number in enumerate(ids, start=1)}
    colors = plot.distinct_colors(len(ids) + 1 + SPARE_COLORS)
    annotated = case.annotated()
    gaps = np.abs(np.arange(len(case.classes))[:, None] - np.array(annotated or [0])[None, :])
    nearest = np.array(annotated or [0])[gaps.argmin(axis=1)]
    kinds = sorted(case.class_names)
    class_colors = plot.class_colors(len(kinds) + 1)

    columns = [
        plot.Column("Image", case.raw_title),
        plot.Column("Classes", "given everywhere", case.class_ranks, class_colors),
        plot.Column("Seeds", "the nearest annotated slice", paint(case.seeds, rank, len(ids) + 1), colors, nearest),
        plot.Column("lpa3d", "recovered instances", paint(ours.labels, rank, len(ids) + 1), colors),
    ]
    if case.truth is not None:
        columns.append(plot.Column("Truth", "never shown to lpa3d", paint(case.truth, rank, len(ids) + 1), colors))
        for result, e, name in zip((ours, flooded), scores, ("lpa3d", "Watershed"), strict=False):
            count = f"{e['fn']} of {e['tp'] + e['fn']} not recovered"
            columns.append(plot.Column(f"{name}: errors", count, find_wrong(case.truth, result.labels, e.pairs)))
    else:
        columns.append(plot.Column("Watershed", "scikit-image", paint(flooded.labels, rank, len(ids) + 1), colors))

    rows = _rows(case, nearest)
    if small:
        columns = [column for column in columns if column.title != "Truth"]
        rows = rows[1:]
    plot.overview(
        path,
        case.raw,
        columns,
        rows,
        spacing=case.spacing,
        unit=case.unit,
        annotated=annotated,
        legend=[(case.class_names[kind], class_colors[i].tolist()) for i, kind in enumerate(kinds, start=1)],
        caption=_caption(case, results, scores),
        width=1500 if small else 2700,
        palette=256 if small else None,
    )


def _rows(case: Case, nearest: Array) -> list[plot.Row]:
    """Choose what is shown by the reference alone: a crowded slice, a detail of it, a cut along z.

    The slice is one of those farthest from the annotated slices around it, the one with the most instances; the detail
    is where most of them touch.
    """
    reference = case.seeds if case.truth is None else case.truth
    depth, height, width = reference.shape
    away = np.abs(np.arange(depth) - nearest)
    annotated = case.annotated() or [0]
    between = np.zeros(depth, np.bool_)
    between[annotated[0] : annotated[-1] + 1] = True
    farthest = np.flatnonzero(between & (away >= away[between].max() - 1))
    z = max(farthest.tolist(), key=lambda z: (len(np.unique(reference[z])), -z))
    row = plot.Row(0, z, f"slice z = {z}\n\n{away[z]} slices from\nan annotated one")
    rows = [row]
    side = min(height, width, max(16, round(0.4 * min(height, width))))
    if side < min(height, width):
        window = find_crowd(reference[z], side)
        rows.append(plot.Row(0, z, f"detail of z = {z}\n\n{away[z]} slices from\nan annotated one", window))
    y = max(range(0, height, 4), key=lambda y: len(np.unique(reference[:, y])))
    rows.append(plot.Row(1, y, f"cut y = {y}\n(z runs down)\n\nred marks:\nannotated slices"))
    return rows


def _caption(case: Case, results: Sequence[Result], scores: Sequence[Evaluation]) -> str:
    """Return what was given and what came out, in two or three lines."""
    annotated = case.annotated()
    lines = [
        f"Given: the classes everywhere, and the instances on {len(annotated)} of {len(case.classes)} slices. The same "
        f"colour is the same instance in seeds, result and truth."
    ]
    if scores:
        for result, e in zip(results, scores, strict=True):
            lines.append(
                f"{result.name}: {e['tp']} of {e['tp'] + e['fn']} instances recovered, panoptic quality "
                f"{e['pq']:.2f}, {result.seconds:.2f} s"
            )
    return "\n".join(lines)
