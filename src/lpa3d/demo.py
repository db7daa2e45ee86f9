"""The demo: what the command line makes of a phantom cell, or of a folder of the user's own files.

1. The files: a phantom is made and written to the output folder, or those of ``--data`` are found.
2. The annotator: only the instance labels of every k-th slice are kept as seeds.
3. The command line runs on the files: ``lpa3d propagate`` and, as a peer, ``lpa3d label``.
4. The other peer, scikit-image's watershed, runs on the same arrays.
5. All are compared with the truth: a table on standard output, a picture in the output folder.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import io, phantom, plot
from .errors import InputError, Lpa3dWarning

if TYPE_CHECKING:
    from ._evaluation import Evaluation, Matches

__all__ = ["add_arguments", "run"]

Array = npt.NDArray[Any]

EVERY = 16
SUFFIXES = (".zarr", ".npy", ".nii", ".nii.gz", ".tif", ".tiff", ".h5", ".hdf5")
LAYOUT = (
    "needed are classes.* (or volume.*), the class map, with instances.* (the truth, from which seeds are made), "
    "seeds.*, or both, and if you like raw.*, the image"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``lpa3d demo`` to its parser."""
    parser.description = (
        "Make a phantom cell with known instances, keep the labels of every 16th slice, let the command line recover "
        "the rest, and compare it with the truth, connected components and scikit-image's watershed. With --data, do "
        "the same on your own files."
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
        help="where files and picture go (default demo, or demo/NAME of --data)",
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
    parser.add_argument("--thumbnail", type=Path, metavar="FILE", help="also save a smaller picture")


def run(args: argparse.Namespace) -> int:
    """Run the demo and return the exit code of the command."""
    for module in ("scipy.ndimage", "skimage.segmentation", "matplotlib.figure"):
        _require(module)
    if args.every < 1:
        raise InputError(f"--every is {args.every}; a whole number of slices, at least 1, is needed")
    output = args.output or (Path("demo") if args.data is None else Path("demo") / args.data.resolve().name)
    case = _phantom_case(args, output) if args.data is None else _folder_case(args.data, output, args.every)
    _describe(case)
    results = _recover(case, output)
    scores: list[Evaluation] = []
    if case.truth is not None:
        scores = _evaluate(case.truth, results)
        print(_table(case, results, scores))
    _picture(case, results, scores, output / "demo.png")
    print(f"\nPicture: {output / 'demo.png'}")
    if args.thumbnail is not None:
        _picture(case, results, scores, args.thumbnail, small=True)
        print(f"Smaller picture: {args.thumbnail}")
    return 0


def _require(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise io.LibraryError(
            f"the demo needs {module.partition('.')[0]}, which cannot be imported ({error}); "
            f"install it: pip install 'lpa3d[demo]'"
        ) from error


# ----------------------------------------------------------------------------------------------------------- the case


@dataclass(frozen=True)
class _Case:
    """What is given: arrays, and the files that the command line reads."""

    name: str
    classes_file: Path
    seeds_file: Path
    classes: Array
    seeds: Array
    truth: Array | None
    raw: Array
    raw_title: str
    spacing: tuple[float, float, float]
    unit: str
    class_names: dict[int, str]

    def annotated(self) -> list[int]:
        """Return the slices that hold seeds."""
        return np.flatnonzero(self.seeds.any(axis=(1, 2))).tolist()

    def class_ranks(self) -> npt.NDArray[np.int64]:
        """Return 1, 2, ... for the classes in rising order, 0 for background."""
        ranks: npt.NDArray[np.int64] = np.searchsorted(sorted(self.class_names), self.classes) + 1
        ranks[self.classes == 0] = 0
        return ranks


def _phantom_case(args: argparse.Namespace, output: Path) -> _Case:
    """Make the phantom and write its files."""
    started = time.perf_counter()
    cell = phantom.cell(tuple(args.shape), args.seed)
    # 16 bits are read by every viewer.
    truth = cell.instances.astype(np.uint16 if cell.instances.max() < 2**16 else np.uint32)
    seeds = _every_kth(truth, args.every)
    output.mkdir(parents=True, exist_ok=True)
    files = {"raw": cell.image, "classes": cell.classes, "instances": truth, "seeds": seeds}
    for name, array in files.items():
        io.write(output / f"{name}.tif", array, spacing=cell.spacing, unit="nm", overwrite=True)
    print(f"Made a phantom cell in {time.perf_counter() - started:.0f} s: {output}/{{{','.join(files)}}}.tif")
    return _Case(
        "phantom cell",
        output / "classes.tif",
        output / "seeds.tif",
        cell.classes,
        seeds,
        truth,
        cell.image,
        "synthetic",
        cell.spacing,
        "nm",
        cell.class_names,
    )


def _folder_case(folder: Path, output: Path, every: int) -> _Case:
    """Find and read the user's files, and make the seeds if only the truth is there."""
    if not folder.is_dir():
        raise InputError(f"--data {folder} is no folder; {LAYOUT}")
    if output.resolve() == folder.resolve():
        raise InputError(f"--output {output} is the folder of --data; choose another, so that no file of yours changes")
    classes_file = _find(folder, "classes", "volume")
    truth_file, seeds_file, raw_file = (_find(folder, name) for name in ("instances", "seeds", "raw"))
    if classes_file is None or (truth_file is None and seeds_file is None):
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        lacking = "class map" if classes_file is None else "instances or seeds"
        raise InputError(f"{folder} has no {lacking}; {LAYOUT}; found: {found}")
    with io.open_volume(classes_file) as volume:
        classes, geometry = volume.read_integers("a class map"), volume.geometry
    if classes.ndim != 3:
        raise InputError(
            f"{classes_file} has shape {classes.shape}; the demo needs a volume of several slices (Z, Y, X)"
        )
    truth = None if truth_file is None else _read(truth_file, "instance ids", classes, classes_file)
    raw = None if raw_file is None else _read(raw_file, "", classes, classes_file)
    output.mkdir(parents=True, exist_ok=True)
    if seeds_file is not None:
        seeds = _read(seeds_file, "seeds", classes, classes_file)
    else:
        assert truth is not None
        seeds = _every_kth(truth, every)
        suffix = next(suffix for suffix in reversed(SUFFIXES) if str(truth_file).lower().endswith(suffix))
        seeds_file = output / f"seeds{suffix}"
        io.write(seeds_file, seeds, like=truth_file, overwrite=True)
    names = {int(kind): f"class {int(kind)}" for kind in np.unique(classes) if kind}
    return _Case(
        folder.resolve().name,
        classes_file,
        seeds_file,
        classes,
        seeds,
        truth,
        _grey(raw, classes),
        "no image given" if raw is None else "",
        geometry.spacing or (1.0, 1.0, 1.0),
        geometry.unit if geometry.spacing else "",
        names if len(names) > 1 else dict.fromkeys(names, "mask"),
    )


def _find(folder: Path, *names: str) -> Path | None:
    """Return the one file of these names with a suffix that is known."""
    found = sorted(
        path
        for path in folder.iterdir()
        if any(path.name.lower() == name + suffix for name in names for suffix in SUFFIXES)
    )
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise InputError(f"{folder} has {listed}, of which only one can be used; move the others away")
    return found[0] if found else None


def _read(file: Path, role: str, classes: Array, classes_file: Path) -> Array:
    """Read labels, or with no role an image, of the class map's shape."""
    with io.open_volume(file) as volume:
        if volume.shape != classes.shape:
            raise InputError(
                f"{file} has shape {volume.shape} but {classes_file} has shape {classes.shape}; they must be the same"
            )
        return volume.read_integers(role) if role else volume.read()


def _every_kth(truth: Array, every: int) -> Array:
    """Return the labels of slices 0, k, 2k, ...; 0 elsewhere."""
    seeds = np.zeros_like(truth)
    seeds[::every] = truth[::every]
    return seeds


def _grey(raw: Array | None, classes: Array) -> npt.NDArray[np.uint8]:
    """Return the image as 8 bits between its 0.5th and 99.5th percentile; without one a mask in two greys."""
    if raw is None:
        return np.where(classes > 0, np.uint8(170), np.uint8(225))
    if raw.dtype == np.uint8:
        return raw
    sample = raw.reshape(-1)[:: max(1, raw.size // 1_000_000)].astype(np.float64)
    low, high = np.nanpercentile(sample, [0.5, 99.5]) if sample.size else (0.0, 1.0)
    scaled = (raw.astype(np.float32) - np.float32(low)) * np.float32(255 / max(high - low, 1e-12))
    grey: npt.NDArray[np.uint8] = np.nan_to_num(scaled).clip(0, 255).astype(np.uint8)
    return grey


def _describe(case: _Case) -> None:
    z, y, x = case.classes.shape
    size = " x ".join(f"{value:g}" for value in case.spacing)
    annotated = case.annotated()
    print(f"{case.name}: {z} x {y} x {x} voxels of {size} {case.unit}".rstrip())
    print(f"Seeds: {np.count_nonzero(np.unique(case.seeds))} instances on {len(annotated)} of {z} slices\n")


# ------------------------------------------------------------------------------------------------------- the methods


class _Result(NamedTuple):
    """What a method made, and how long it took."""

    name: str
    labels: Array
    seconds: float


def _recover(case: _Case, output: Path) -> list[_Result]:
    """Run the command line and the peers."""
    import lpa3d

    started = time.perf_counter()
    ours = _command("propagate", case.classes_file, case.seeds_file, output / "lpa3d.tif")
    commanded = time.perf_counter() - started
    components = _command("label", case.classes_file, output / "components.tif")

    # The same again without files, for times that can be compared. The first slices load what is compiled by now.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Lpa3dWarning)  # the command has said it
        first = slice(0, max(case.annotated()[:2], default=0) + 1)
        lpa3d.propagate(case.classes[first], case.seeds[first], spacing=case.spacing)
        lpa3d.label(case.classes[first])
        again, seconds = _timed(lpa3d.propagate, case.classes, case.seeds, spacing=case.spacing)
    if not np.array_equal(again, ours):
        raise RuntimeError("lpa3d.propagate and the command line gave different labels")
    _, component_seconds = _timed(lpa3d.label, case.classes)
    flooded, flood_seconds = _timed(_watershed, case.classes, case.seeds)
    print(
        f"\nTimes: lpa3d propagate {seconds:.2f} s (the first command, with start, compiling and files, "
        f"{commanded:.1f} s),\nscikit-image's watershed {flood_seconds:.2f} s, lpa3d label {component_seconds:.2f} s."
    )
    return [
        _Result("lpa3d propagate", ours, seconds),
        _Result("scikit-image's watershed", flooded, flood_seconds),
        _Result("connected components", components, component_seconds),
    ]


def _command(verb: str, *files: Path) -> Array:
    """Run ``lpa3d VERB FILES`` as a user would and read its output."""
    words = [verb, *map(str, files), "--overwrite"]
    print(f"$ lpa3d {' '.join(words)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "lpa3d", *words], check=False)
    if done.returncode:
        raise InputError(f"lpa3d {verb} ended with exit code {done.returncode}; what it says above tells why")
    return io.read(files[-1])


def _timed(function: Any, *args: Any, **keywords: Any) -> tuple[Array, float]:
    started = time.perf_counter()
    result = function(*args, **keywords)
    return result, time.perf_counter() - started


def _watershed(classes: Array, seeds: Array) -> Array:
    """Return scikit-image's watershed inside the mask, on a constant image: what most people would use.

    It knows no classes: where two of them touch, each is flooded by itself.
    """
    from skimage.segmentation import watershed

    ids, ranks = np.unique(seeds, return_inverse=True)
    markers = ranks.reshape(seeds.shape).astype(np.int32)
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


def _evaluate(truth: Array, results: Sequence[_Result]) -> list[Evaluation]:
    """Return the measures of each result over all instances."""
    import lpa3d

    return [lpa3d.evaluate(truth, result.labels) for result in results]


def _evaluate_classes(case: _Case, results: Sequence[_Result]) -> list[Mapping[Any, Evaluation]]:
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


def _class_of(labels: Array, case: _Case) -> dict[int, int]:
    """Return the rank of each instance's class, the one of most of its voxels, as a user's truth may cross classes."""
    from ._checks import instance_ids
    from ._overlap import count_overlaps

    overlaps = count_overlaps(instance_ids(labels, "labels"), case.class_ranks())
    rows = overlaps.pairs[np.argsort(overlaps.voxels, kind="stable")].tolist()
    # The largest overlap is the last and stays; -1 is no class of any name.
    return {number: rank or -1 for number, rank in rows if number}


def _table(case: _Case, results: Sequence[_Result], scores: Sequence[Evaluation]) -> str:
    """Return the table: each method over all instances and over those of each class."""
    lines = ["", f"{'':<28}{'recovered':>13}{'PQ':>9}{'ARE':>9}{'cut':>7}{'joined':>8}{'missed':>8}{'time':>9}"]

    def block(title: str, scores: Sequence[Evaluation], timed: bool = False) -> None:
        instances = scores[0]["tp"] + scores[0]["fn"]
        lines.append(f"{title} ({instances})")
        for result, e in zip(results, scores, strict=True):
            line = f"  {result.name:<26}{e['tp']:>6} {100 * e['recall_instance']:>4.0f} %"
            line += f"{e['pq']:>9.3f}{e['arand']:>9.3f}{len(e.splits):>7}{len(e.merges):>8}{len(e.missed):>8}"
            lines.append(line + (f"{result.seconds:>7.2f} s" if timed else ""))

    block("all instances", scores, timed=True)
    if len(case.class_names) > 1:
        per_class = _evaluate_classes(case, results)
        for name in case.class_names.values():
            block(name, [one[name] for one in per_class])
    lines += [
        "",
        "recovered: instances whose overlap with the truth (IoU) is above one half",
        "PQ: panoptic quality, 1 is best; ARE: adapted Rand error, 0 is best, background ignored",
        "cut: instances in several parts; joined: results over several instances; missed: hardly covered by any",
        *_costliest(results[0].name, scores[0]),
    ]
    return "\n".join(lines)


def _costliest(name: str, e: Evaluation) -> list[str]:
    """Return lines that say where to look first."""
    lines = []
    for errors, text in ((e.merges, "instance {} of the result joins {}"), (e.splits, "instance {} is cut into {}")):
        for error in errors[:1]:
            parts = " + ".join([*map(str, error.parts[:4]), *(["..."] if len(error.parts) > 4 else [])])
            box = ", ".join(f"{axis} {side.start}:{side.stop}" for axis, side in zip("zyx", error.box, strict=True))
            lines.append(f"  {text.format(error.id, parts)}, at {box}")
    return ["", f"Where to look first in what {name} made:", *lines] if lines else []


# -------------------------------------------------------------------------------------------------------- the picture


def _picture(
    case: _Case, results: Sequence[_Result], scores: Sequence[Evaluation], path: Path, small: bool = False
) -> None:
    """Draw planes between the annotated slices, and a cut across them."""
    ours, flooded = results[0], results[1]
    reference = case.seeds if case.truth is None else case.truth
    ids = np.unique(reference)
    ids = ids[ids > 0]
    rank = {int(number): i for i, number in enumerate(ids, start=1)}
    colors = plot.distinct_colors(len(ids) + 1 + 64)
    annotated = case.annotated()
    gaps = np.abs(np.arange(len(case.classes))[:, None] - np.array(annotated or [0])[None, :])
    nearest = np.array(annotated or [0])[gaps.argmin(axis=1)]
    kinds = sorted(case.class_names)
    class_colors = plot.class_colors(len(kinds) + 1)

    columns = [
        plot.Column("Image", case.raw_title),
        plot.Column("Classes", "given everywhere", case.class_ranks(), class_colors),
        plot.Column("Seeds", "the nearest annotated slice", _painted(case.seeds, rank), colors, nearest),
        plot.Column("lpa3d", "recovered instances", _painted(ours.labels, rank), colors),
    ]
    if case.truth is not None:
        columns.append(plot.Column("Truth", "never shown to lpa3d", _painted(case.truth, rank), colors))
        for result, e, name in zip((ours, flooded), scores, ("lpa3d", "Watershed"), strict=False):
            count = f"{e['fn']} of {e['tp'] + e['fn']} not recovered"
            columns.append(plot.Column(f"{name}: errors", count, _wrong(case.truth, result.labels, e.pairs)))
    else:
        columns.append(plot.Column("Watershed", "scikit-image", _painted(flooded.labels, rank), colors))

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


def _painted(labels: Array, rank: dict[int, int]) -> npt.NDArray[np.int32]:
    """Return the row of the colour table for each voxel; ids without one take the last 64 rows."""
    ids, place = np.unique(labels, return_inverse=True)
    rows = [0 if not number else rank.get(int(number), len(rank) + 1 + int(number) % 64) for number in ids]
    return np.array(rows, np.int32)[place.reshape(labels.shape)]


def _wrong(truth: Array, labels: Array, pairs: Matches) -> npt.NDArray[np.bool_]:
    """Return where the truth is not covered by the instance that matches it."""
    ids, place = np.unique(labels, return_inverse=True)
    expected = np.full(len(ids), -1)
    expected[np.searchsorted(ids, pairs.prediction.astype(ids.dtype))] = pairs.reference
    wrong: npt.NDArray[np.bool_] = (truth > 0) & (expected[place.reshape(labels.shape)] != truth)
    return wrong


def _rows(case: _Case, nearest: Array) -> list[plot.Row]:
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
        window = _crowded(reference[z], side)
        rows.append(plot.Row(0, z, f"detail of z = {z}\n\n{away[z]} slices from\nan annotated one", window))
    y = max(range(0, height, 4), key=lambda y: len(np.unique(reference[:, y])))
    rows.append(plot.Row(1, y, f"cut y = {y}\n(z runs down)\n\nred marks:\nannotated slices"))
    return rows


def _crowded(labels: Array, side: int) -> tuple[slice, slice]:
    """Return the square window with the most pixels whose neighbour belongs to another instance."""
    touching = np.zeros(labels.shape, np.int64)
    for a, b, where in (
        (labels[1:], labels[:-1], touching[1:]),
        (labels[:, 1:], labels[:, :-1], touching[:, 1:]),
    ):
        where += (a != b) & (a > 0) & (b > 0)
    sums = np.pad(touching.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    counts = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    y, x = np.unravel_index(int(counts.argmax()), counts.shape)
    return slice(int(y), int(y) + side), slice(int(x), int(x) + side)


def _caption(case: _Case, results: Sequence[_Result], scores: Sequence[Evaluation]) -> str:
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
