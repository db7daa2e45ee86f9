"""The command ``lpa3d contacts``."""

from __future__ import annotations

import argparse
from typing import Any

from .inputs import add_connectivity, add_spacing, check_same_place, check_same_shape, find_spacing, format_count
from .job import Job
from .tiling import add_device, add_tiling, find_tiling

__all__ = ["add_contacts_arguments", "run_contacts"]


def add_contacts_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("labels", metavar="IN", help="instance ids, 0 is background")
    parser.add_argument("-o", "--output", metavar="CSV", help="file for the table (default standard output)")
    parser.add_argument("--image", metavar="FILE", help="image of the same shape, whose mean on each boundary is added")
    add_connectivity(parser)
    add_spacing(parser)
    add_device(parser)
    add_tiling(parser)


def run_contacts(job: Job) -> None:
    args = job.args
    source = job.open(args.labels)
    source.check_integers("labels")
    image = job.open(args.image) if args.image else None
    inputs = [source.path]
    if image is not None:
        check_same_shape(source, image)
        check_same_place(job, source, image)
        inputs.append(image.path)
    spacing, _ = find_spacing(job, source)
    output = job.add_text(args.output, inputs) if args.output else None
    tiling = find_tiling(job, "contacts", [file for file in (source, image) if file is not None])
    words = "finding contacts", "found contacts"
    keywords: dict[str, Any] = {"spacing": spacing, "connectivity": args.connectivity, "device": args.device}
    if tiling:
        table = tiling.run(*words, source, image=image, **keywords)
        if table is None:
            return
    else:
        labels = job.read(source, "labels")
        values = None if image is None else job.read(image, "an image", floats=True)
        from lpa3d import contacts

        job.terminal.step(*words)
        table = contacts(labels, image=values, **keywords)
    columns = table.columns()
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    text = "".join(f"{','.join(map(str, row))}\n" for row in (columns, *rows))
    if output is None:
        job.results.append(text)
    else:
        job.write_text(output, text)
    job.finish(f"{format_count(len(table), 'touching pair')}")
