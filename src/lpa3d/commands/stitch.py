"""The command ``lpa3d stitch``: its options, and what it says of slices, sections and links."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError, Keyword
from ..files.geometry import Geometry
from ..files.volume import Volume
from ..files.writers import plan
from .counts import count_sections
from .inputs import (
    check_same_place,
    check_same_shape,
    find_geometry,
    format_count,
    parse_axis,
    parse_slices,
    read_table,
)
from .job import Job
from .tiling import Tiling, add_storage, add_tiling, find_tiling

__all__ = ["add_stitch_arguments", "check_slices", "count_stitched", "describe_stitched", "read_links", "run_stitch"]

Array = npt.NDArray[Any]
Section = tuple[int, int]

_LINK = re.compile(r"(\d+):(\d+),(\d+):(\d+)")
_COLUMNS = {"slice_a": int, "id_a": int, "slice_b": int, "id_b": int}


def add_stitch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.add_argument(
        "slices", metavar="SLICES", help="2D instance ids slice by slice: a volume, or a folder of PNG or TIFF images"
    )
    parser.add_argument("out", metavar="OUT", help="3D ids 1..n: uint32, or uint64 from 2**32 voxels on")
    parser.add_argument("--classes", metavar="FILE", help="class map of the same shape; different classes never join")
    parser.add_argument(
        "--axis",
        type=parse_axis,
        default=0,
        metavar="{z,y,x}",
        help="axis that slices lie across; 0, 1, 2 are z, y, x (default z)",
    )
    parser.add_argument(
        "--max-gap",
        type=int,
        default=5,
        metavar="N",
        help="farthest apart, in slices, that two sections are linked (default 5)",
    )
    parser.add_argument(
        "--no-branching",
        dest="branching",
        action="store_false",
        help="never join two sections of one slice, so that objects do not branch",
    )
    parser.add_argument(
        "--bad-slices",
        type=parse_slices,
        default=(),
        metavar="LIST",
        help="slices whose labels are wrong and are left out, e.g. 17,203-205",
    )
    for name, what in (("must", "are linked"), ("cannot", "stay apart, even through a third one")):
        parser.add_argument(
            f"--{name}-link",
            action="append",
            default=[],
            metavar="Z:ID,Z:ID|CSV",
            help=f"two sections, each a slice and an id, that {what}, or a file with columns "
            f"slice_a,id_a,slice_b,id_b; may be given again",
        )
    add_storage(parser)
    add_tiling(parser)


def run_stitch(job: Job) -> None:
    """Read, stitch, write."""
    args = job.args
    if args.max_gap < 1:
        raise InputError(Keyword("max_gap"), f" is {args.max_gap}; a whole number of slices, at least 1, is needed")
    source = job.open(args.slices)
    source.check_integers("slices")
    classes = job.open(args.classes) if args.classes else None
    if classes is not None:
        classes.check_integers("a class map")
        check_same_shape(source, classes)
        check_same_place(job, source, classes)
    given = {name: getattr(args, f"{name}_link") for name in ("must", "cannot")}
    tables = [text for texts in given.values() for text in texts if not _LINK.fullmatch(text)]
    inputs = [file.path for file in (source, classes) if file is not None] + [Path(name) for name in tables]
    geometry = find_geometry(*(file for file in (source, classes) if file is not None))
    tiling = find_tiling(job, "stitch", [file for file in (source, classes) if file is not None], [args.out])
    target = plan(tiling.outputs if tiling else job.outputs, args.out, source.shape, inputs, storage=job.storage)
    check_slices(args.bad_slices, "bad_slices", source.shape, args.axis)
    must, cannot = (read_links(texts, f"{name}_link") for name, texts in given.items())
    keywords = {
        "axis": args.axis,
        "max_gap": args.max_gap,
        "branching": args.branching,
        "bad_slices": args.bad_slices,
        "must_link": must,
        "cannot_link": cannot,
    }
    if tiling:
        _stitch_tiles(tiling, source, geometry, classes=classes, out=args.out, **keywords)
        return
    slices = job.read(source, "slices")
    class_map = None if classes is None else job.read(classes, "a class map")
    from lpa3d import stitch

    job.terminal.step("stitching", "stitched")
    labels = stitch(slices, classes=class_map, **keywords)
    counts = count_stitched(slices, labels, args.axis, args.bad_slices)
    job.write(target, labels, geometry)
    job.finish(describe_stitched(counts))


def _stitch_tiles(tiling: Tiling, source: Volume, geometry: Geometry, **keywords: Any) -> None:
    labels = tiling.run("stitching", "stitched", source, geometry=geometry, **keywords)

    def describe() -> str:
        sections = tiling.count_sections(source, keywords["axis"])
        return describe_stitched(_count_stitched(sections, *tiling.count_numbered(labels), keywords["bad_slices"]))

    if labels is not None:
        tiling.finish(describe)


def check_slices(slices: Sequence[int], name: str, shape: Sequence[int], axis: int) -> None:
    """Refuse slices that a volume of `shape` does not have across `axis`."""
    if len(shape) == 2 and axis:
        raise InputError("a single image (Y, X) is one slice; slices across y or x need a volume")
    length = shape[axis] if len(shape) == 3 else 1
    beyond = [z for z in slices if not 0 <= z < length]
    if beyond:
        raise InputError(Keyword(name), f" holds {beyond[0]}; slices across {'zyx'[axis]} are 0 to {length - 1}")


def read_links(texts: Iterable[str], name: str) -> list[tuple[Section, Section]]:
    """Return the pairs of sections that ``Z:ID,Z:ID`` and files name."""
    pairs: list[tuple[Section, Section]] = []
    for text in texts:
        match = _LINK.fullmatch(text)
        if not match and ":" in text and not Path(text).exists():
            raise InputError(Keyword(name), f": {text!r} is no pair of sections, such as 3:17,4:9, and no file")
        rows: Iterable[Sequence[int]] = (
            [tuple(map(int, match.groups()))]
            if match
            else read_table(text, _COLUMNS, "two slices with an id each are needed, such as 3,17,4,9")
        )
        pairs += [((row[0], row[1]), (row[2], row[3])) for row in rows]
    return pairs


def count_stitched(slices: Array, labels: Array, axis: int, bad_slices: Collection[int]) -> dict[str, int]:
    """Return how many slices and sections there were, and how many objects and links they became."""
    objects = int(labels.max()) if labels.size else 0
    return _count_stitched(count_sections(slices, axis), objects, int(np.count_nonzero(labels)), bad_slices)


def _count_stitched(sections: Sequence[int], objects: int, voxels: int, bad_slices: Collection[int]) -> dict[str, int]:
    bad = {z for z in bad_slices if sections[z]}
    used = sum(count for z, count in enumerate(sections) if z not in bad)
    return {
        "slices": len(sections),
        "slices_present": sum(count > 0 for count in sections) - len(bad),
        "slices_empty": sum(count == 0 for count in sections),
        "slices_bad": len(bad),
        "sections": used,
        "sections_on_bad_slices": sum(sections) - used,
        "objects": objects,
        # Each link that is accepted makes one group of two.
        "links": used - objects,
        "labelled_voxels": voxels,
    }


def describe_stitched(counts: dict[str, int]) -> str:
    """Return the counts as a phrase."""
    parts = [f"{counts['slices_empty']:,} empty"] if counts["slices_empty"] else []
    parts += [f"{counts['slices_bad']:,} bad"] if counts["slices_bad"] else []
    rest = f" ({', '.join(parts)})" if parts else ""
    return (
        f"{format_count(counts['sections'], 'section')} on {counts['slices_present']:,} of "
        f"{format_count(counts['slices'], 'slice')}{rest} became {format_count(counts['objects'], 'object')} by "
        f"{format_count(counts['links'], 'link')}"
    )
