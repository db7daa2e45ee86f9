"""The command ``lpa3d combine``: files of one class each to one class map and one volume of instances."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError, Keyword
from ..files.coded import whole_numbers
from ..files.volume import Box, Lazy, Volume, choose_rows
from ..files.writers import plan
from ..linking.combine import Survey, combine_instances, find_winners
from .inputs import check_same_place, check_same_shape, find_geometry, format_count, format_share, suggest
from .job import Job
from .tiling import add_storage

__all__ = ["add_combine_arguments", "run_combine"]

Array = npt.NDArray[Any]

MOST_CLASSES = 2**16 - 1


def add_combine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.add_argument(
        "parts",
        nargs="+",
        metavar="NAME=FILE",
        help="a class and the file of its mask, or of its labels; classes are 1, 2 ... in this order",
    )
    parser.add_argument("--out-classes", metavar="FILE", help="class map to write: uint8, 1 for the first file")
    parser.add_argument(
        "--out-instances",
        metavar="FILE",
        help="instances to write: ids of each class behind those of the one before; uint32, or uint64 where needed",
    )
    parser.add_argument(
        "--priority",
        nargs="+",
        metavar="NAME",
        help="whose voxels those are that several files claim, the first before the next (default: the order of files)",
    )
    add_storage(parser)


def run_combine(job: Job) -> None:
    """Survey all files once, then write the outputs, slab by slab."""
    args = job.args
    parts = [_split(text) for text in args.parts]
    names = [name for name, _ in parts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{twice} is given twice; each class has one file (give others another name)")
    if len(names) > MOST_CLASSES:
        raise InputError(f"{len(names):,} classes are more than a class map of 16 bits has")
    if not (args.out_classes or args.out_instances):
        raise InputError(Keyword("out_classes"), " or ", Keyword("out_instances"), " is needed: where the result goes")
    order = _choose_order(args.priority, names)
    files = [job.open(file) for _, file in parts]
    for file in files:
        file.check_integers("a mask or labels")
    for file in files[1:]:
        check_same_shape(files[0], file)
        check_same_place(job, files[0], file)
    geometry = find_geometry(*files)
    numbered = dict(enumerate(names, 1))
    inputs, shape = [file.path for file in files], files[0].shape
    classes = instances = None
    if args.out_classes:
        classes = plan(job.outputs, args.out_classes, shape, inputs, names=numbered, storage=job.storage)
    if args.out_instances:
        instances = plan(job.outputs, args.out_instances, shape, inputs, storage=job.storage)

    job.terminal.step("looking at the files", "looked")
    survey = Survey(order)
    rows = min((file.rows or shape[0] for file in files), default=1)
    rows = max(1, min(rows, choose_rows(shape, np.dtype(np.uint64))))
    for lo in range(0, shape[0], rows):
        box = (slice(lo, min(lo + rows, shape[0])), *(slice(0, side) for side in shape[1:]))
        survey.add(_read(files, box))
        job.progress(box[0].stop / shape[0])
    _check_values(job, files, names, survey)
    offsets = survey.offsets()
    if instances is not None and offsets[-1] >= 2**64:
        largest = max(range(len(files)), key=lambda k: survey.high[k] or 0)
        raise InputError(
            f"the ids of all files behind each other reach to {offsets[-1]}, and 64 bits to {2**64 - 1}; "
            f"{files[largest].name} has ids to {survey.high[largest]}: if that marks voxels that do not count, set "
            "them to 0, else number its ids anew"
        )
    if classes is not None:
        dtype = np.dtype(np.uint8 if len(names) < 2**8 else np.uint16)
        job.write(classes, Lazy(shape, dtype, lambda box: find_winners(_read(files, box), order)), geometry)
    if instances is not None:
        wide = np.dtype(np.uint32 if offsets[-1] < 2**32 else np.uint64)
        job.write(
            instances, Lazy(shape, wide, lambda box: combine_instances(_read(files, box), survey, wide)), geometry
        )
    total = int(np.prod(shape, dtype=np.int64))
    job.results.append(_describe(names, survey, offsets, total))
    job.finish(f"{len(names)} class{'es' if len(names) > 1 else ''} of {format_count(total, 'voxel')}")


def _split(text: str) -> tuple[str, str]:
    """Take ``NAME=FILE`` apart; a file alone is named by its name."""
    name, equals, file = text.partition("=")
    if equals and not re.search(r"[/\\:.]", name):
        if not (name.strip() and file):
            raise InputError(f"{text!r} is no class with its file, such as mito=mito.nii.gz")
        return name.strip(), file
    return re.sub(r"(\.nii)?\.\w+(:.*)?$", "", Path(text).name) or text, text


def _choose_order(priority: Sequence[str] | None, names: Sequence[str]) -> list[int]:
    """Return the files, the one first whose voxels count most."""
    said = list(priority or ())
    for name in said:
        if name not in names:
            raise InputError(Keyword("priority"), f" has {name}, which is none of the classes; {suggest(name, names)}")
    if len(set(said)) < len(said):
        raise InputError(Keyword("priority"), " names a class twice")
    return [names.index(name) for name in (*said, *(name for name in names if name not in said))]


def _read(files: Sequence[Volume], box: Box) -> list[Array]:
    """Return the same box of all files, as integers."""
    parts = []
    for file in files:
        part = file.read_box(box)
        if part.dtype.kind == "f":
            part = whole_numbers(part, np.int64, file.name, "labels", [side.start for side in box])
        parts.append(part.view(np.uint8) if part.dtype.kind == "b" else part)
    return parts


def _check_values(job: Job, files: Sequence[Volume], names: Sequence[str], survey: Survey) -> None:
    """Refuse negative values, and tell of values that often mark no data."""
    for k, file in enumerate(files):
        low, high = survey.low[k], survey.high[k]
        if low is not None and low < 0:
            raise InputError(
                f"{file.name} holds {low}; ids are positive: if it marks voxels that do not count, set them to 0"
            )
        if high is None:
            job.terminal.message(f"warning: {file.name} holds nothing, so that there is no {names[k]}")
        elif (
            file.dtype.kind in "ui"
            and file.dtype.itemsize > 1
            and high == np.iinfo(file.dtype).max
            and not survey.is_mask(k)
        ):
            job.terminal.message(
                f"warning: {high} is an id of {file.name} like others; if it marks voxels that do not count, set them "
                "to 0"
            )
        lost = len(survey.ids[k]) - len(survey.kept[k])
        if lost:
            job.terminal.message(
                f"warning: {format_count(lost, 'id')} of {file.name} lie wholly in other classes and are not in the "
                "result"
            )


def _describe(names: Sequence[str], survey: Survey, offsets: Sequence[int], total: int) -> str:
    """Return what became of each file, and who lost voxels to whom."""
    lines = ["class  name  ids  voxels"]
    for k, name in enumerate(names):
        if survey.high[k] is None:
            ids = "none"
        elif survey.is_mask(k):
            ids = f"{offsets[k] + 1} (a mask: one object; lpa3d label makes one of each component)"
        else:
            ids = f"{offsets[k] + (survey.low[k] or 0)} to {offsets[k + 1]}"
        left = survey.voxels[k] - int(survey.overlaps[:, k].sum())
        lines.append(f"{k + 1}  {name}  {ids}  {format_share(left, total)}")
    for winner in survey.order:
        for loser in survey.order:
            if survey.overlaps[winner, loser]:
                lines.append(
                    f"{format_count(int(survey.overlaps[winner, loser]), 'voxel')} of {names[loser]} are also "
                    f"{names[winner]}, and stay that"
                )
    return "\n".join(lines) + "\n"
