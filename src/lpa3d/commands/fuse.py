"""The command ``lpa3d fuse``: its options, and what it says of conflicts."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays.tables import format_columns
from ..errors import InputError, Keyword
from ..files.volume import Volume
from ..files.writers import plan
from .counts import count_labels
from .inputs import (
    check_same_place,
    check_same_shape,
    check_text_name,
    find_geometry,
    format_count,
    format_csv,
    format_share,
    parse_axis,
    parse_slices,
    read_table,
    suggest,
)
from .job import Job
from .stitch import check_slices
from .tiling import add_storage, add_tiling, find_tiling

if TYPE_CHECKING:
    from ..linking.fused import Conflicts, Fused

__all__ = [
    "KINDS",
    "ROLES",
    "SOURCES",
    "add_fuse_arguments",
    "check_mappings",
    "check_priority",
    "count_fused",
    "describe_conflicts",
    "describe_fused",
    "format_conflicts",
    "read_classes",
    "run_fuse",
]

SOURCES = ("instances", "slices", "classes")
"""In the order of trust where the user gives none."""

ROLES = {"classes": "a class map", "instances": "instances", "slices": "slices"}

KINDS = ("joins", "labels", "class", "background", "unlabelled")

LISTED = 5
"""Conflicts that are listed on standard error."""

_CLASS = re.compile(r"(\d+)=(-?\d+)")


def add_fuse_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    sources = parser.add_argument_group("sources, at least one")
    sources.add_argument("--classes", metavar="FILE", help="class map: bool or integers, 0 is background")
    sources.add_argument("--instances", metavar="FILE", help="ids of 3D objects, 0 is unlabelled: an expert's")
    sources.add_argument("--slices", metavar="FILE", help="ids of 3D objects made of slices, as lpa3d stitch writes")
    trust = parser.add_argument_group("who is right")
    trust.add_argument(
        "--priority",
        nargs="+",
        default=None,
        metavar="SOURCE",
        help=f"the sources, the most trusted first (default {' '.join(SOURCES)})",
    )
    trust.add_argument(
        "--complete-slices",
        type=parse_slices,
        default=(),
        metavar="LIST",
        help="slices on which everything is annotated: what is unlabelled there is background, e.g. 0,16,32-40",
    )
    trust.add_argument(
        "--axis",
        type=parse_axis,
        default=0,
        metavar="{z,y,x}",
        help="axis that slices lie across; 0, 1, 2 are z, y, x (default z)",
    )
    for name in ("instance", "slice"):
        trust.add_argument(
            f"--{name}-classes",
            nargs="+",
            action="extend",
            default=[],
            metavar="ID=CLASS|CSV",
            help=f"the classes of ids of --{name}s, or a file with columns id,class (default: that of most voxels)",
        )
    outputs = parser.add_argument_group("output")
    outputs.add_argument("--volume", required=True, metavar="OUT", help="class map, what lpa3d propagate takes first")
    outputs.add_argument("--seeds", required=True, metavar="OUT", help="ids, what lpa3d propagate takes second")
    outputs.add_argument(
        "--provenance",
        metavar="OUT",
        help="which source decided each voxel: 0 nothing, 1 classes, 2 instances, 3 slices, 4 complete slice",
    )
    outputs.add_argument("--conflicts", metavar="CSV", help="file for the list of all conflicts, the largest first")
    add_storage(parser)
    add_tiling(parser)


def run_fuse(job: Job) -> None:
    """Read, fuse, write, and list the largest conflicts."""
    args = job.args
    names = {name: getattr(args, name) for name in ROLES if getattr(args, name)}
    if not names:
        raise InputError(
            "nothing to fuse; pass at least one of ",
            Keyword("instances"),
            ", ",
            Keyword("slices"),
            " and ",
            Keyword("classes"),
        )
    priority = check_priority(args.priority, names)
    for source in ("instance", "slice"):
        if getattr(args, f"{source}_classes") and f"{source}s" not in names:
            raise InputError(Keyword(f"{source}_classes"), " is about ", Keyword(f"{source}s"), ", which is not given")
    files = {name: job.open(file) for name, file in names.items()}
    first, *others = files.values()
    for name, file in files.items():
        file.check_integers(ROLES[name])
    for file in others:
        check_same_shape(first, file)
        check_same_place(job, first, file)
    check_slices(args.complete_slices, "complete_slices", first.shape, args.axis)
    if args.complete_slices and not {"instances", "slices"} & set(files):
        raise InputError(
            Keyword("complete_slices"),
            " is about labels, but there are none; pass ",
            Keyword("instances"),
            " or ",
            Keyword("slices"),
        )
    tables = [text for name in ("instance", "slice") for text in getattr(args, f"{name}_classes") if "=" not in text]
    inputs = [file.path for file in files.values()] + [Path(name) for name in tables]
    places = {name: getattr(args, name) for name in ("volume", "seeds", "provenance") if getattr(args, name)}
    tiling = find_tiling(job, "fuse", list(files.values()), list(places.values()))
    planned = tiling.outputs if tiling else job.outputs
    targets = {name: plan(planned, place, first.shape, inputs, storage=job.storage) for name, place in places.items()}
    check_text_name(args.conflicts, "conflicts", (".csv", ".txt"))
    listing = job.add_text(args.conflicts, inputs) if args.conflicts else None
    mappings: dict[str, Any] = {
        f"{name}_classes": read_classes(getattr(args, f"{name}_classes"), f"{name}_classes") or None
        for name in ("instance", "slice")
    }
    check_mappings(mappings, files)
    keywords = {"complete_slices": args.complete_slices, "axis": args.axis, "priority": priority} | mappings
    geometry = find_geometry(*files.values())
    if tiling:
        fused = tiling.run("fusing", "fused", geometry=geometry, out=places, **files, **keywords)
        if fused is None:
            return
    else:
        arrays: dict[str, Any] = {name: job.read(file, ROLES[name]) for name, file in files.items()}
        from lpa3d import fuse

        job.terminal.step("fusing", "fused")
        fused = fuse(**arrays, **keywords)
        del arrays
        summary = describe_fused(count_fused(fused))
        for name, target in targets.items():
            job.write(target, getattr(fused, name), geometry)
    if listing is not None:
        job.write_text(listing, format_conflicts(fused.conflicts))
    job.terminal.say(describe_conflicts(fused.conflicts))
    if tiling:
        voxels, conflicts = math.prod(first.shape), len(fused.conflicts)
        tiling.finish(lambda: _describe_fused(*tiling.count_labels(fused.seeds), voxels, conflicts))
    else:
        job.finish(summary)


def check_priority(given: Iterable[str] | None, sources: Iterable[str], place: str = "") -> tuple[Any, ...]:
    """Return the order of trust; it names every one of `sources` once, and may name others.

    Messages say `place` before the name of the parameter.
    """
    if given is None:
        return SOURCES
    name = Keyword("priority")
    order = tuple(one for word in given for one in word.split(",") if one)
    for one in order:
        if one not in SOURCES:
            hint = suggest(one, SOURCES) or f"there are {', '.join(SOURCES)}"
            raise InputError(place, name, f" names {one}, which is no source; {hint}")
    twice = [one for one in SOURCES if order.count(one) > 1]
    if twice:
        raise InputError(place, name, f" names {twice[0]} twice; each source once is needed, the most trusted first")
    missing = [one for one in sources if one not in order]
    if missing:
        raise InputError(
            place, name, f" is {' '.join(order)}, without {missing[0]}; all sources that are given are needed"
        )
    return order


def read_classes(texts: Iterable[str], name: str) -> dict[int, int]:
    """Return the classes of ids that ``ID=CLASS`` and files give."""
    classes: dict[int, int] = {}
    for text in texts:
        match = _CLASS.fullmatch(text)
        if not match and ("=" in text or (":" in text and not Path(text).exists())):
            raise InputError(Keyword(name), f": {text!r} is no id with its class, such as 7=1")
        rows: Iterable[Any] = (
            [(int(match[1]), int(match[2]))]
            if match
            else read_table(text, {"id": int, "class": int}, "an id and its class are needed, such as 7,1")
        )
        for one_id, value in rows:
            if classes.setdefault(one_id, value) != value:
                raise InputError(
                    Keyword(name), f" gives id {one_id} two classes, {classes[one_id]} and {value}; one is needed"
                )
    return classes


def check_mappings(mappings: Mapping[str, Any], files: Mapping[str, Volume]) -> None:
    """Refuse classes that no object can have, before any array is read."""
    classes = files.get("classes")
    # Whole numbers that a file stores as floats are read as some integers.
    dtype = None if classes is None or classes.dtype.kind == "f" else classes.dtype
    if any(mapping for mapping in mappings.values()):
        from ..linking.fuse import check_mapping

        for name, mapping in mappings.items():
            check_mapping(mapping, name, dtype)


def count_fused(fused: Fused) -> dict[str, Any]:
    """Return how many objects there are, which source decided how many voxels, and the conflicts of each kind."""
    from ..linking.fused import Provenance

    objects, voxels = count_labels(fused.seeds)
    decided = np.bincount(fused.provenance.reshape(-1), minlength=len(Provenance))
    conflicts = fused.conflicts
    return {
        "objects": objects,
        "labelled_voxels": voxels,
        "foreground_voxels": int(np.count_nonzero(fused.volume)),
        "voxels": fused.seeds.size,
        "provenance": {one.name.lower(): int(decided[one]) for one in Provenance},
        "conflicts": {
            kind: {
                "number": int(np.count_nonzero(conflicts.kind == kind)),
                "voxels": int(conflicts.voxels[conflicts.kind == kind].sum()),
            }
            for kind in KINDS
        },
    }


def describe_fused(counts: dict[str, Any]) -> str:
    """Return the counts as a phrase."""
    conflicts = sum(one["number"] for one in counts["conflicts"].values())
    return _describe_fused(counts["objects"], counts["labelled_voxels"], counts["voxels"], conflicts)


def _describe_fused(objects: int, labelled: int, voxels: int, conflicts: int) -> str:
    return (
        f"{format_count(objects, 'object')}, {format_share(labelled, voxels)} labelled, "
        f"{format_count(conflicts, 'conflict')}"
    )


def describe_conflicts(conflicts: Conflicts) -> str:
    """Return how many conflicts of each kind there are, and the largest ones, for a person."""
    if not len(conflicts):
        return "no conflicts"
    kinds = []
    for kind in KINDS:
        here = conflicts.kind == kind
        number = int(np.count_nonzero(here))
        voxels = format_count(int(conflicts.voxels[here].sum()), "voxel")
        kinds.append(f"{number:,} {kind}{f' ({voxels})' if number else ''}")
    listed = range(min(len(conflicts), LISTED))
    columns = {
        "kind": [str(conflicts.kind[row]) for row in listed],
        "won": [_name_side(conflicts, "winner", row) for row in listed],
        "lost": [_name_side(conflicts, "loser", row) for row in listed],
        "voxels": [f"{conflicts.voxels[row]:,}" for row in listed],
        "box": [", ".join(f"{side.start}:{side.stop}" for side in conflicts.box(row)) for row in listed],
    }
    lines = format_columns({name: np.array(cells) for name, cells in columns.items()}, len(listed))
    more = [f"... {len(conflicts) - LISTED:,} more"] * (len(conflicts) > LISTED)
    return "\n  ".join([f"conflicts: {', '.join(kinds)}", *lines, *more])


def _name_side(conflicts: Conflicts, side: str, row: int) -> str:
    """Return the source on one side of a conflict, with the id and the class that it had there."""
    source, one_id, value = (getattr(conflicts, f"{side}{part}")[row] for part in ("", "_id", "_class"))
    return " ".join([str(source), *([str(one_id)] if one_id else []), *([f"class {value}"] if value else [])])


def format_conflicts(conflicts: Conflicts) -> str:
    """Return the conflicts as CSV."""
    columns = conflicts.columns()
    return format_csv(list(columns), zip(*(column.tolist() for column in columns.values()), strict=True))
