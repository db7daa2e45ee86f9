"""The command ``lpa3d evaluate``: its options, what it prints, and the limits that make it fail."""

from __future__ import annotations

import argparse
import csv
import difflib
import io
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ._conventions import CONVENTIONS
from ._inputs import (
    add_connectivity,
    add_spacing,
    check_same_place,
    check_same_shape,
    find_spacing,
    format_count,
    read_table,
)
from ._job import Job
from .errors import InputError
from .io import Volume

if TYPE_CHECKING:
    from ._differences import Differences
    from ._evaluation import Evaluation

__all__ = ["add_evaluate_arguments", "run_evaluate"]

ERRORS = {"splits": "split", "merges": "merge", "missed": "missed", "spurious": "spurious"}
"""The lists of errors, and what a row of `--errors` calls one of each."""

MATCHING = ("pq", "sq", "rq", "f1", "precision_instance", "recall_instance", "tp", "fp", "fn")
"""Metrics that there are at every IoU threshold."""

RANKING = ("ap50", "ap75", "map")
AGGREGATED = ("aji", "aji_plus")
DISTANCES = ("hausdorff", "hd95", "assd")
STRATIFIED = tuple(f"{name}_{stratum}" for stratum in ("small", "medium", "large") for name in RANKING)

LESS_IS_BETTER = {
    *("pixel_error", "rand_error", "arand", "voi_split", "voi_merge", "voi", "nvi", "cremi", "fp", "fn"),
    *DISTANCES,
    "warping_error",
}


# --------------------------------------------------------------------------------------------------------- arguments


class Limit(NamedTuple):
    """What `--fail-under` and `--fail-over` take: a metric, of one class or of all, and the value it is held to."""

    text: str
    name: str | None
    metric: str
    value: float


def _limit(text: str) -> Limit:
    """Parse ``pq=0.8``, ``pq@0.75=0.8`` or ``mitochondria:pq=0.8``."""
    left, _, right = text.rpartition("=")
    name, colon, metric = left.rpartition(":")
    base, at, threshold = metric.partition("@")
    try:
        value = float(right)
        metric = f"{base}@{float(threshold):g}" if at else base
    except ValueError:
        value = math.nan
    if not base or not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no limit, such as pq=0.8 (the two volumes come first)")
    return Limit(text, name if colon else None, metric, value)


def _threshold(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1 (the two volumes come first)")
    return value


def _class_name(text: str) -> tuple[int, str] | str:
    """Parse ``1=mitochondria``, or return the name of a file."""
    if "=" not in text:
        return text
    match = re.fullmatch(r"(-?\d+)=(.*\S.*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no class with its name, such as 1=mitochondria")
    return int(match[1]), match[2].strip()


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of errors, 0 or more")
    return int(text)


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.add_argument(
        "reference", metavar="REFERENCE", help="what is right: instance ids or classes, 0 is background"
    )
    parser.add_argument("prediction", metavar="PREDICTION", help="what is measured, of the same shape")
    parser.add_argument(
        "--instances",
        choices=("ids", "components", "none"),
        default="ids",
        help="what the values are: instance ids, classes whose connected components are the instances, or classes "
        "without instances (default ids)",
    )
    parser.add_argument(
        "--classes",
        nargs=2,
        metavar=("REFERENCE_CLASSES", "PREDICTION_CLASSES"),
        help="class maps on which the ids of either side lie: metrics of each class and their mean",
    )
    parser.add_argument(
        "--class-names",
        type=_class_name,
        nargs="+",
        action="extend",
        metavar="CLASS=NAME|CSV",
        help="the classes to measure, in this order: 1=mitochondria 2=ER, or a file with columns class,name",
    )
    parser.add_argument(
        "--ignore",
        metavar="FILE|VALUE",
        help="voxels that count nowhere: where this file is not 0, or where the reference has this value",
    )
    parser.add_argument(
        "--iou",
        type=_threshold,
        nargs="+",
        action="extend",
        metavar="T",
        help="IoU from which on instances match; pq, f1 and so on are at the first, f1@0.75 at a further one "
        "(default 0.5)",
    )
    parser.add_argument(
        "--convention",
        choices=tuple(CONVENTIONS),
        default="lpa3d",
        metavar="NAME",
        help=f"whose definition counts where implementations differ: {', '.join(CONVENTIONS)} (default lpa3d)",
    )
    parser.add_argument(
        "--scores", metavar="CSV", help="confidence of predicted ids for ap50, ap75, map, columns id,score; else size"
    )
    parser.add_argument(
        "--size-strata",
        type=float,
        nargs=2,
        metavar=("SMALL", "LARGE"),
        help="limits in voxels between small, medium and large: adds map_small and so on",
    )
    parser.add_argument(
        "--surfaces", action="store_true", help="also how far apart the surfaces of matched pairs are: hd95 and so on"
    )
    parser.add_argument("--warping", choices=("2d", "3d"), help="also the warping error, by z-slices or in the volume")
    add_connectivity(parser)
    add_spacing(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="file for what is printed (default standard output)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    form.add_argument("--csv", action="store_true", help="print CSV: a row for each class and their mean")
    parser.add_argument("--per-class", action="store_true", help="a column for each class in the table")
    parser.add_argument(
        "--show-errors",
        type=_count,
        default=5,
        metavar="N",
        help="below the table, list the N worst of the splits, merges, missed and spurious objects (default 5)",
    )
    parser.add_argument("--errors", metavar="CSV", help="file for the list of all of them, the worst first")
    for option, reach in (("--fail-under", "is below this"), ("--fail-over", "is above this")):
        parser.add_argument(
            option,
            type=_limit,
            nargs="+",
            action="extend",
            default=[],
            metavar="METRIC=VALUE",
            help=f"exit with code 3 if a metric {reach}; CLASS:METRIC=VALUE for one class",
        )


# ------------------------------------------------------------------------------------- checks before any file is read


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    # The default of an option that extends a list would be extended too.
    args.iou = args.iou or [0.5]
    if len({f"{threshold:g}" for threshold in args.iou}) < len(args.iou):
        raise InputError(f"--iou is given {' '.join(f'{value:g}' for value in args.iou)}; each may be given once")
    if args.instances == "none":
        options = {name: getattr(args, name) for name in ("scores", "size_strata", "surfaces", "errors")}
        for name, value in options.items():
            if value:
                raise InputError(
                    f"--{name.replace('_', '-')} is about instances, but --instances is none; pass --instances "
                    f"components (or ids)"
                )
    if args.instances != "ids" and args.classes:
        raise InputError(
            f"--classes holds the classes of ids, but --instances is {args.instances}, which takes the volumes "
            f"themselves for classes; leave one of the two out"
        )
    if args.instances == "ids" and args.class_names and not args.classes:
        raise InputError(
            "--class-names needs classes: pass --classes REFERENCE_CLASSES PREDICTION_CLASSES, or --instances "
            "components"
        )
    if args.size_strata and not 0 <= args.size_strata[0] <= args.size_strata[1] < math.inf:
        raise InputError("--size-strata needs two sizes in voxels, the smaller one first, such as 5000 15000")
    for option in ("--fail-under", "--fail-over"):
        for limit in getattr(args, option[2:].replace("-", "_")):
            _check_limit(limit, option, args)


def _check_limit(limit: Limit, option: str, args: argparse.Namespace) -> None:
    """Refuse a limit on what is not measured, and one on the wrong side."""
    metric = limit.metric.removesuffix(f"@{args.iou[0]:g}")
    known = _list_metrics(args)
    if metric not in known:
        advice = _advise(metric, args)
        if advice:
            raise InputError(f"{option} {limit.text}: {metric} is not measured; pass {advice}")
        close = difflib.get_close_matches(metric, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        raise InputError(f"{option} {limit.text}: {metric} is no metric; {hint}")
    base = metric.partition("@")[0]
    if (base in LESS_IS_BETTER) == (option == "--fail-under"):
        less, other = ("less", "--fail-over") if option == "--fail-under" else ("more", "--fail-under")
        raise InputError(f"{option} {limit.text}: of {base}, {less} is better; pass {other} {limit.text}")


def _list_metrics(args: argparse.Namespace) -> list[str]:
    """Return the metrics that a run with these options has."""
    from ._evaluation import GROUPS

    names = list(GROUPS["semantic"])
    if args.instances != "none":
        names += [*GROUPS["partition"], *MATCHING, *RANKING, *AGGREGATED]
        names += [f"{name}@{threshold:g}" for threshold in args.iou[1:] for name in MATCHING]
        names += STRATIFIED if args.size_strata or CONVENTIONS[args.convention].size_strata else ()
        names += DISTANCES if args.surfaces else ()
    return names + (["warping_error"] if args.warping else [])


def _advise(metric: str, args: argparse.Namespace) -> str | None:
    """Return the option that adds a metric which a run with these lacks; None if there is none."""
    from ._evaluation import GROUPS

    base, _, threshold = metric.partition("@")
    if metric == "warping_error":
        return "--warping 2d or --warping 3d"
    if args.instances == "none":
        about_instances = {*GROUPS["partition"], *MATCHING, *RANKING, *STRATIFIED, *AGGREGATED, *DISTANCES}
        return "--instances components (or ids)" if base in about_instances else None
    if metric in DISTANCES:
        return "--surfaces"
    if metric in STRATIFIED:
        return "--size-strata SMALL LARGE"
    if threshold and base in MATCHING:
        return f"--iou {' '.join(f'{value:g}' for value in args.iou)} {threshold}"
    return None


def _read_class_names(given: Sequence[tuple[int, str] | str]) -> dict[int, str]:
    """Return the names of classes that the command line and files give."""
    names: dict[int, str] = {}
    for one in given:
        rows = (
            read_table(one, {"class": int, "name": _filled}, "a class and its name are needed, such as 1,ER")
            if isinstance(one, str)
            else [one]
        )
        for value, name in rows:
            if value in names:
                raise InputError(f"--class-names has class {value} twice, as {names[value]} and {name}")
            if name in names.values():
                raise InputError(f"--class-names calls two classes {name}; names must differ")
            names[value] = name
    if not names:
        raise InputError(f"--class-names: no class is in {', '.join(map(str, given))}")
    return names


def _filled(text: str) -> str:
    if not text:
        raise ValueError
    return text


# -------------------------------------------------------------------------------------------------------- the command


def run_evaluate(job: Job) -> None:
    """Read, measure, print, and compare with the limits."""
    args = job.args
    _check_options(args)
    reference, prediction = job.open(args.reference), job.open(args.prediction)
    reference.check_integers("a reference")
    prediction.check_integers("a prediction")
    value = int(args.ignore) if args.ignore and re.fullmatch(r"[+-]?\d+", args.ignore) else None
    mask = job.open(args.ignore) if args.ignore and value is None else None
    if mask is not None:
        mask.check_integers("a mask of what is ignored")
    maps = [job.open(name) for name in args.classes or ()]
    for file in maps:
        file.check_integers("a class map")
    others = [file for file in (prediction, mask, *maps) if file is not None]
    for file in others:
        check_same_shape(reference, file)
        check_same_place(job, reference, file)
    spacing, geometry = find_spacing(job, reference)
    tables = [name for name in (*(args.class_names or ()), args.scores) if isinstance(name, str)]
    inputs = [file.path for file in (reference, *others)] + [Path(name) for name in tables]
    output = job.add_text(args.output, inputs) if args.output else None
    errors = job.add_text(args.errors, inputs) if args.errors else None
    names = _read_class_names(args.class_names) if args.class_names else None
    scores = (
        read_table(args.scores, {"id": int, "score": float}, "an id and a score are needed, such as 3,0.9")
        if args.scores
        else None
    )
    volumes = job.read(reference, "a reference"), job.read(prediction, "a prediction")
    ignored = value if mask is None else job.read(mask, "a mask of what is ignored")
    classes = [job.read(file, "a class map") for file in maps]
    from lpa3d import evaluate

    job.terminal.step("evaluating", "evaluated")
    result = evaluate(
        *volumes,
        spacing=spacing,
        ignore=ignored,
        iou_thresholds=args.iou,
        instances=None if args.instances == "none" else args.instances,
        classes=classes or None,
        class_names=names,
        connectivity=args.connectivity,
        convention=args.convention,
        scores=scores,
        size_strata=args.size_strata,
        surfaces=args.surfaces,
        warping=args.warping,
    )
    suffix = Path(args.output or "").suffix.lower()
    if args.json or (suffix == ".json" and not args.csv):
        text = _to_json(result, reference, prediction, geometry.unit)
    elif args.csv or suffix == ".csv":
        text = _to_csv(result, reference, prediction)
    else:
        text = _to_text(result, args)
    if output is None:
        job.results.append(text)
    else:
        job.write_text(output, text)
    if errors is not None:
        job.write_text(errors, _errors_to_csv(result))
    job.misses += _find_misses(result, args)
    job.finish(format_count(len(result.pairs), "matched pair") if "tp" in result else f"dice {result['dice']:.4f}")


# ------------------------------------------------------------------------------------------------------------ results


def _to_text(result: Evaluation, args: argparse.Namespace) -> str:
    """Return the table, and below it the worst errors."""
    parts = [result.to_text(per_class=args.per_class)]
    if args.instances != "none" and args.show_errors:
        parts += [getattr(result, kind).to_text(args.show_errors) for kind in ERRORS]
    return "\n\n".join(parts) + "\n"


def _to_json(result: Evaluation, reference: Volume, prediction: Volume, unit: str) -> str:
    files = {"reference": reference.name, "prediction": prediction.name, "unit": unit or None}
    return json.dumps(files | result.to_dict(), allow_nan=False) + "\n"


def _to_csv(result: Evaluation, reference: Volume, prediction: Volume) -> str:
    """Return a row for each class and one for their mean; what is not finite, or of a class not there, is empty."""
    rows: list[tuple[str, Mapping[str, float]]] = [
        (str(name), one if one.present else {}) for name, one in result.per_class.items()
    ]
    rows.append(("mean" if rows else "all", result))
    return _join_rows(
        ["reference", "prediction", "class", *result],
        (
            [reference.name, prediction.name, name]
            + [str(one[key]) if math.isfinite(one.get(key, math.nan)) else "" for key in result]
            for name, one in rows
        ),
    )


def _errors_to_csv(result: Evaluation) -> str:
    """Return the four lists of errors as one table."""
    rows: list[list[Any]] = []
    header: list[str] = []
    for kind, name in ERRORS.items():
        found: Differences = getattr(result, kind)
        columns = {key: column.tolist() for key, column in found.columns().items()}
        of = {
            one_id: str(class_name)
            for class_name, one in result.per_class.items()
            for one_id in getattr(one, kind).ids.tolist()
        }
        bounds, parts, overlaps = found.offsets.tolist(), found.parts.tolist(), found.overlaps.tolist()
        columns["parts"] = [
            ";".join(f"{part}:{voxels}" for part, voxels in zip(parts[lo:hi], overlaps[lo:hi], strict=True))
            for lo, hi in itertools.pairwise(bounds)
        ]
        table = {"kind": [name] * len(found), "class": [of.get(one_id, "") for one_id in columns["id"]], **columns}
        header = [*table]
        rows += map(list, zip(*table.values(), strict=True))
    return _join_rows(header, rows)


def _join_rows(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def _find_misses(result: Evaluation, args: argparse.Namespace) -> list[str]:
    """Return a line for each limit that is missed; what cannot be compared misses its limit."""
    classes = {str(name): one for name, one in result.per_class.items()}
    misses = []
    for option, limits in (("--fail-under", args.fail_under), ("--fail-over", args.fail_over)):
        for limit in limits:
            name = f"{limit.name}:{limit.metric}" if limit.name is not None else limit.metric
            asked = f"{option} {limit.text}"
            if limit.name is not None and limit.name not in classes:
                there = f"there are {', '.join(classes)}" if classes else "there are no classes"
                misses.append(f"{asked}: there is no class {limit.name}; {there}")
                continue
            one = result if limit.name is None else classes[limit.name]
            if not one.present and limit.name is not None:
                misses.append(f"{asked}: no voxel is of class {limit.name}")
                continue
            value = one[limit.metric.removesuffix(f"@{args.iou[0]:g}")]
            if math.isnan(value):
                misses.append(f"{asked}: {name} is not known, for want of matched pairs")
            elif value < limit.value if option == "--fail-under" else value > limit.value:
                misses.append(f"{asked}: {name} is {value}")
    return misses
