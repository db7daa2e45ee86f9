"""The command ``lpa3d evaluate``: its options, what it prints, and the limits that make it fail."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import Example, InputError, Keyword, Part
from ..evaluation.conventions import CONVENTIONS
from ..evaluation.metrics import (
    AGGREGATED,
    DISTANCES,
    LESS_IS_BETTER,
    MATCHING,
    PARTITION,
    RANKING,
    SEMANTIC,
    STRATIFIED,
    WARPING,
    find_range,
)
from ..files.geometry import Geometry
from ..files.volume import Volume
from .inputs import (
    add_connectivity,
    add_spacing,
    check_same_place,
    check_same_shape,
    check_text_name,
    find_spacing,
    format_count,
    format_csv,
    format_share,
    read_table,
    suggest,
)
from .job import Job
from .tiling import add_device, add_tiling, find_tiling
from .wording import Word

if TYPE_CHECKING:
    from ..evaluation.differences import Differences
    from ..evaluation.result import Evaluation

__all__ = [
    "add_evaluate_arguments",
    "check_limited_classes",
    "check_options",
    "errors_to_csv",
    "find_misses",
    "pairs_to_csv",
    "parse_limit",
    "read_class_names",
    "run_evaluate",
    "to_text",
]

ERRORS = {"splits": "split", "merges": "merge", "missed": "missed", "spurious": "spurious"}
"""The lists of errors, and what a row of `--errors` calls one of each."""

SUFFIXES = ("", ".txt", ".json", ".csv")
"""Of files for what is printed; tables are never JSON."""


# --------------------------------------------------------------------------------------------------------- arguments


class Limit(NamedTuple):
    """What `--fail-under` and `--fail-over` take: a metric, of one class or of all, and the value it is held to."""

    text: str
    name: str | None
    metric: str
    value: float


def parse_limit(text: str) -> Limit:
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
    """Add the arguments of the command to its parser, and below its examples the names of the metrics."""
    parser.add_argument(
        "reference", metavar="REFERENCE", help="what is right: instance ids or classes, 0 is background"
    )
    parser.add_argument("prediction", metavar="PREDICTION", help="what is measured, of the same shape")
    _add_inputs(parser.add_argument_group("what is compared"))
    _add_metrics(parser.add_argument_group("which metrics"))
    _add_outputs(parser.add_argument_group("output"))
    _add_limits(parser.add_argument_group("limits"))
    add_device(parser)
    add_tiling(parser)
    names = {
        "of foreground": SEMANTIC,
        "of the partition": PARTITION,
        "of instances": (*MATCHING, *RANKING, *AGGREGATED),
        "on request": (*DISTANCES, *WARPING, *STRATIFIED),
    }
    lines = [
        textwrap.fill(f"  {group + ':':<18}{' '.join(metrics)}", 79, subsequent_indent=" " * 20)
        for group, metrics in names.items()
    ]
    parser.epilog = "\n".join([f"{parser.epilog}\n\nmetrics (docs/metrics.md defines them):", *lines])


def _add_inputs(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--instances",
        choices=("ids", "components", "none"),
        default="ids",
        help="what the values are: instance ids, classes whose connected components are the instances, or classes "
        "without instances (default ids)",
    )
    group.add_argument(
        "--classes",
        nargs=2,
        metavar=("REFERENCE_CLASSES", "PREDICTION_CLASSES"),
        help="class maps on which the ids of either side lie: metrics of each class and their mean",
    )
    group.add_argument(
        "--class-names",
        type=_class_name,
        nargs="+",
        action="extend",
        metavar="CLASS=NAME|CSV",
        help="the classes to measure, in this order: 1=mitochondria 2=ER, or a file with columns class,name",
    )
    group.add_argument(
        "--ignore",
        metavar="FILE|VALUE",
        help="voxels that count nowhere: where this file is not 0, or where the reference has this value",
    )
    add_connectivity(group)
    add_spacing(group)


def _add_metrics(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--iou",
        dest="iou_thresholds",
        type=_threshold,
        nargs="+",
        action="extend",
        metavar="T",
        help="IoU from which on instances match; pq, f1 and so on are at the first, f1@0.75 at a further one "
        "(default 0.5)",
    )
    group.add_argument(
        "--convention",
        choices=tuple(CONVENTIONS),
        default="lpa3d",
        metavar="NAME",
        help=f"whose definition counts where implementations differ: {', '.join(CONVENTIONS)} (default lpa3d)",
    )
    group.add_argument(
        "--scores", metavar="CSV", help="confidence of predicted ids for ap50, ap75, map, columns id,score; else size"
    )
    group.add_argument(
        "--size-strata",
        type=float,
        nargs=2,
        metavar=("SMALL", "LARGE"),
        help="limits in voxels between small, medium and large: adds map_small and so on",
    )
    group.add_argument(
        "--surfaces", action="store_true", help="also how far apart the surfaces of matched pairs are: hd95 and so on"
    )
    group.add_argument("--warping", choices=("2d", "3d"), help="also the warping error, by z-slices or in the volume")


def _add_outputs(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "-o", "--output", metavar="FILE", help="file for what is printed: .txt, .json or .csv (default standard output)"
    )
    form = group.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    form.add_argument("--csv", action="store_true", help="print CSV: a row for each class and their mean")
    group.add_argument("--per-class", action="store_true", help="a column for each class in the table")
    group.add_argument(
        "--show-errors",
        type=_count,
        default=5,
        metavar="N",
        help="below the table, list the N worst of the splits, merges, missed and spurious objects (default 5)",
    )
    group.add_argument("--errors", metavar="CSV", help="file for the list of all of them, the worst first")
    group.add_argument("--pairs", metavar="CSV", help="file for the list of matched pairs, with IoU and distances")


def _add_limits(group: argparse._ActionsContainer) -> None:
    for option, reach in (("--fail-under", "is below this"), ("--fail-over", "is above this")):
        group.add_argument(
            option,
            type=parse_limit,
            nargs="+",
            action="extend",
            default=[],
            metavar="METRIC=VALUE",
            help=f"exit with code 3 if a metric {reach}; CLASS:METRIC=VALUE for one class",
        )


# ------------------------------------------------------------------------------------- checks before any file is read


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    # The default of an option that extends a list would be extended too.
    args.iou_thresholds = args.iou_thresholds or [0.5]
    shown = [f"{threshold:g}" for threshold in args.iou_thresholds]
    if len(set(shown)) < len(shown):
        raise InputError(Keyword("iou_thresholds"), f" is given {' '.join(shown)}; each may be given once")
    if args.instances == "none":
        options = {name: getattr(args, name) for name in ("scores", "size_strata", "surfaces", "errors", "pairs")}
        for name, value in options.items():
            if value:
                raise InputError(
                    Keyword(name),
                    " is about instances, but ",
                    Keyword("instances"),
                    " is none; pass ",
                    *INSTANCES_NEEDED,
                )
    if args.instances != "ids" and args.classes:
        raise InputError(
            Keyword("classes"),
            " holds the classes of ids, but ",
            Keyword("instances"),
            f" is {args.instances}, which takes the volumes themselves for classes; leave one of the two out",
        )
    if not _has_classes(args):
        for name, value in (("class_names", args.class_names), ("per_class", args.per_class)):
            if value:
                raise InputError(Keyword(name), " needs classes: pass ", *CLASSES_NEEDED)
    if args.size_strata and not 0 <= args.size_strata[0] <= args.size_strata[1] < math.inf:
        raise InputError(
            Keyword("size_strata"), " needs two sizes in voxels, the smaller one first, such as 5000 15000"
        )
    for side, limits in _list_limits(args):
        for limit in limits:
            _check_limit(limit, side, args)
    check_text_name(args.output, "output", SUFFIXES)
    check_text_name(args.errors, "errors")
    check_text_name(args.pairs, "pairs")


CLASSES_NEEDED: tuple[Part, ...] = (
    Keyword("classes", (Example("REFERENCE_CLASSES"), Example("PREDICTION_CLASSES"))),
    ", or ",
    Keyword("instances", "components"),
    " if the volumes hold classes, not ids",
)
INSTANCES_NEEDED: tuple[Part, ...] = Keyword("instances", "components"), " (or ids)"
"""What messages say is to be passed."""


def _has_classes(args: argparse.Namespace) -> bool:
    return args.instances != "ids" or bool(args.classes)


def _list_limits(args: argparse.Namespace) -> list[tuple[str, list[Limit]]]:
    return [("fail_under", args.fail_under), ("fail_over", args.fail_over)]


def _check_limit(limit: Limit, side: str, args: argparse.Namespace) -> None:
    """Refuse a limit on what is not measured, one on the wrong side, and one that no value can reach."""
    asked: tuple[Part, ...] = Keyword(side), f" {limit.text}: "
    metric = limit.metric.removesuffix(f"@{args.iou_thresholds[0]:g}")
    base, at, threshold = metric.partition("@")
    known = _list_metrics(args)
    if metric not in known:
        advice = _advise(metric, args)
        if advice:
            raise InputError(*asked, f"{metric} is not measured; pass ", *advice)
        every = (*SEMANTIC, *PARTITION, *MATCHING, *RANKING, *AGGREGATED, *STRATIFIED, *DISTANCES, *WARPING)
        raise InputError(*asked, f"{metric} is no metric; {_hint(base, every)}")
    if (base in LESS_IS_BETTER) == (side == "fail_under"):
        less, other = ("less", "fail_over") if side == "fail_under" else ("more", "fail_under")
        raise InputError(*asked, f"of {base}, {less} is better; pass ", Keyword(other), f" {limit.text}")
    least, most = find_range(base)
    if not least <= limit.value <= most:
        bound = f"at least {least:g}" if limit.value < least else f"at most {most:g}"
        percent = f"; did you mean {base}{at}{threshold}={limit.value / 100:g}?" if 1 < limit.value <= 100 else ""
        raise InputError(*asked, f"{base} is always {bound}{percent}")
    if limit.name is not None and not _has_classes(args):
        raise InputError(*asked, "there are no classes; pass ", *CLASSES_NEEDED)


def check_limited_classes(names: Iterable[str], args: argparse.Namespace) -> None:
    """Refuse a limit on a class that is not measured."""
    for side, limits in _list_limits(args):
        for limit in limits:
            if limit.name is not None and limit.name not in names:
                raise InputError(Keyword(side), f" {limit.text}: {_deny_class(limit.name, names)}")


def _deny_class(name: str, names: Iterable[str]) -> str:
    return f"there is no class {name}; {_hint(name, names)}"


def _hint(word: str, known: Iterable[str]) -> str:
    return suggest(word, known) or f"there are {', '.join(known)}"


def _list_metrics(args: argparse.Namespace) -> list[str]:
    """Return the metrics that a run with these options has."""
    names = list(SEMANTIC)
    if args.instances != "none":
        names += [*PARTITION, *MATCHING, *RANKING, *AGGREGATED]
        names += [f"{name}@{threshold:g}" for threshold in args.iou_thresholds[1:] for name in MATCHING]
        names += STRATIFIED if args.size_strata or CONVENTIONS[args.convention].size_strata else ()
        names += DISTANCES if args.surfaces else ()
    return names + (list(WARPING) if args.warping else [])


def _advise(metric: str, args: argparse.Namespace) -> tuple[Part, ...]:
    """Return the option that adds a metric which a run with these lacks; nothing if there is none."""
    base, _, threshold = metric.partition("@")
    if metric in WARPING:
        return Keyword("warping", "2d"), " or ", Keyword("warping", "3d")
    if args.instances == "none":
        about_instances = {*PARTITION, *MATCHING, *RANKING, *STRATIFIED, *AGGREGATED, *DISTANCES}
        return INSTANCES_NEEDED if base in about_instances else ()
    if metric in DISTANCES:
        return (Keyword("surfaces"),)
    if metric in STRATIFIED:
        return (Keyword("size_strata", (Example("SMALL"), Example("LARGE"))),)
    if threshold and base in MATCHING:
        return (Keyword("iou_thresholds", (*args.iou_thresholds, Example(threshold))),)
    return ()


def read_class_names(given: Sequence[tuple[int, str] | str]) -> dict[int, str]:
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
                raise InputError(Keyword("class_names"), f" has class {value} twice, as {names[value]} and {name}")
            if name in names.values():
                raise InputError(Keyword("class_names"), f" calls two classes {name}; names must differ")
            names[value] = name
    if not names:
        raise InputError(Keyword("class_names"), f": no class is in {', '.join(map(str, given))}")
    return names


def _filled(text: str) -> str:
    if not text:
        raise ValueError
    return text


# -------------------------------------------------------------------------------------------------------- the command


def run_evaluate(job: Job) -> None:
    """Read, measure, print, and compare with the limits."""
    args = job.args
    check_options(args)
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
    spacing, geometry = find_spacing(job, reference, prediction, used=False)
    if args.surfaces and geometry.spacing is None:
        job.terminal.say("no voxel size found; distances are in voxels")
    tables = [name for name in (*(args.class_names or ()), args.scores) if isinstance(name, str)]
    inputs = [file.path for file in (reference, *others)] + [Path(name) for name in tables]
    output, errors, pairs = (
        job.add_text(name, inputs) if name else None for name in (args.output, args.errors, args.pairs)
    )
    names = read_class_names(args.class_names) if args.class_names else None
    if names:
        check_limited_classes(names.values(), args)
    scores = (
        read_table(args.scores, {"id": int, "score": float}, "an id and a score are needed, such as 3,0.9")
        if args.scores
        else None
    )
    whole = "--warping 3d" if args.warping == "3d" else ""
    tiling = find_tiling(job, "evaluate", [reference, *others], whole=whole)
    keywords = {
        "spacing": spacing,
        "iou_thresholds": args.iou_thresholds,
        "instances": None if args.instances == "none" else args.instances,
        "class_names": names,
        "connectivity": args.connectivity,
        "convention": args.convention,
        "scores": scores,
        "size_strata": args.size_strata,
        "surfaces": args.surfaces,
        "warping": args.warping,
        "device": args.device,
    }
    if tiling:
        ignored: Any = value if mask is None else mask
        result = tiling.run(
            "evaluating", "evaluated", reference, prediction, ignore=ignored, classes=maps or None, **keywords
        )
        if result is None:
            return
    else:
        volumes = job.read(reference, "a reference"), job.read(prediction, "a prediction")
        ignored = value if mask is None else job.read(mask, "a mask of what is ignored")
        classes = [job.read(file, "a class map") for file in maps]
        from lpa3d import evaluate

        job.terminal.step("evaluating", "evaluated")
        result = evaluate(*volumes, ignore=ignored, classes=classes or None, **keywords)
    if args.ignore is not None:
        job.terminal.say(f"ignored {format_share(result.parameters['ignored'], math.prod(reference.shape))}")
    suffix = Path(args.output or "").suffix.lower()
    if args.json or (suffix == ".json" and not args.csv):
        text = _to_json(result, reference, prediction, geometry.unit, indented=bool(output) or sys.stdout.isatty())
    elif args.csv or suffix == ".csv":
        text = _to_csv(result, reference, prediction)
    else:
        text = to_text(result, args, geometry)
    if output is None:
        job.results.append(text)
    else:
        job.write_text(output, text)
    if errors is not None:
        job.write_text(errors, errors_to_csv(result))
    if pairs is not None:
        job.write_text(pairs, pairs_to_csv(result))
    job.misses += find_misses(result, args, job.word)
    summary = format_count(len(result.pairs), "matched pair") if "tp" in result else f"dice {result['dice']:.4f}"
    files = [file.name for file in (output, errors, pairs) if file is not None]
    job.finish("; ".join([summary, *([f"wrote {', '.join(files)}"] if files else [])]))


# ------------------------------------------------------------------------------------------------------------ results


def to_text(result: Evaluation, args: argparse.Namespace, geometry: Geometry) -> str:
    """Return the table, and below it the worst errors."""
    table = result.to_text(per_class=args.per_class)
    if args.surfaces and (geometry.unit or geometry.spacing is None):
        table += f"\n  ({', '.join(DISTANCES)} in {geometry.unit or 'voxels'})"
    parts = [table]
    if args.instances != "none" and args.show_errors:
        lists = [(kind, getattr(result, kind)) for kind in ERRORS]
        parts += [_list_worst(result, kind, found, args.show_errors) for kind, found in lists]
        if not any(found for _, found in lists):
            parts[1:] = ["No splits, no merges, nothing missed, nothing spurious"]
    return "\n\n".join(parts) + "\n"


def _list_worst(result: Evaluation, kind: str, found: Differences, limit: int) -> str:
    """Return the worst errors of one kind as text, with a column of classes where there are some."""
    title, *lines = found.to_text(limit).splitlines()
    if result.per_class:
        classes = _find_classes(result, kind, "ids")
        cells = ["class", *(classes[one_id] for one_id in found.ids[:limit].tolist())]
        width = max(map(len, cells))
        lines[: len(cells)] = [f"{cell:<{width}}  {line}" for cell, line in zip(cells, lines, strict=False)]
    return "\n".join([title, *lines])


def _find_classes(result: Evaluation, table: str, column: str) -> dict[int, str]:
    """Return the class of each id in a column of one of the tables."""
    return {
        one_id: str(name)
        for name, one in result.per_class.items()
        for one_id in getattr(getattr(one, table), column).tolist()
    }


def _to_json(result: Evaluation, reference: Volume, prediction: Volume, unit: str, *, indented: bool) -> str:
    files = {"reference": reference.name, "prediction": prediction.name, "unit": unit or None}
    return json.dumps(files | result.to_dict(), allow_nan=False, indent=2 if indented else None) + "\n"


def _to_csv(result: Evaluation, reference: Volume, prediction: Volume) -> str:
    """Return a row for each class and one for their mean; what is not finite, or of a class not there, is empty."""
    rows: list[tuple[str, Mapping[str, float]]] = [
        (str(name), one if one.present else {}) for name, one in result.per_class.items()
    ]
    rows.append(("mean" if rows else "all", result))
    return format_csv(
        ["reference", "prediction", "class", *result],
        (
            [reference.name, prediction.name, name]
            + [str(one[key]) if math.isfinite(one.get(key, math.nan)) else "" for key in result]
            for name, one in rows
        ),
    )


def errors_to_csv(result: Evaluation) -> str:
    """Return the four lists of errors as one table."""
    rows: list[list[Any]] = []
    header: list[str] = []
    for kind, name in ERRORS.items():
        found: Differences = getattr(result, kind)
        columns = {key: column.tolist() for key, column in found.columns().items()}
        classes = _find_classes(result, kind, "ids")
        bounds, parts, overlaps = found.offsets.tolist(), found.parts.tolist(), found.overlaps.tolist()
        columns["parts"] = [
            ";".join(f"{part}:{voxels}" for part, voxels in zip(parts[lo:hi], overlaps[lo:hi], strict=True))
            for lo, hi in itertools.pairwise(bounds)
        ]
        table = {"kind": [name] * len(found), "class": [classes.get(one_id, "") for one_id in columns["id"]], **columns}
        header = [*table]
        rows += map(list, zip(*table.values(), strict=True))
    return format_csv(header, rows)


def pairs_to_csv(result: Evaluation) -> str:
    """Return the matched pairs; distances that are not defined are empty."""
    columns = {key: column.tolist() for key, column in result.pairs.columns().items()}
    classes = _find_classes(result, "pairs", "reference")
    table = {"class": [classes.get(one_id, "") for one_id in columns["reference"]], **columns}
    rows = (
        ["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row]
        for row in zip(*table.values(), strict=True)
    )
    return format_csv([*table], rows)


def find_misses(result: Evaluation, args: argparse.Namespace, word: Word) -> list[str]:
    """Return a line for each limit that is missed; what cannot be compared misses its limit."""
    classes = {str(name): one for name, one in result.per_class.items()}
    misses = []
    for side, limits in _list_limits(args):
        sign = 1 if side == "fail_under" else -1
        for limit in limits:
            name = f"{limit.name}:{limit.metric}" if limit.name is not None else limit.metric
            asked = f"{word(Keyword(side))} {limit.text}"
            if limit.name is not None and limit.name not in classes:
                misses.append(f"{asked}: {_deny_class(limit.name, classes)}")
                continue
            one = result if limit.name is None else classes[limit.name]
            if not one.present and limit.name is not None:
                misses.append(f"{asked}: no voxel is of class {limit.name}")
                continue
            value = one[limit.metric.removesuffix(f"@{args.iou_thresholds[0]:g}")]
            if math.isnan(value):
                want = "matched pairs" if one.present or not classes else "a voxel of any class"
                misses.append(f"{asked}: {name} is not known, for want of {want}")
            elif sign * value < sign * limit.value:
                short = f"{value:.6g}"
                # Rounded, it may be what was asked for.
                misses.append(f"{asked}: {name} is {short if sign * float(short) < sign * limit.value else value}")
    return misses
