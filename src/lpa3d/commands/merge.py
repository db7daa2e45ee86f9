"""The command ``lpa3d merge``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

from ..files.writers import plan
from .counts import summarize
from .inputs import (
    add_connectivity,
    add_spacing,
    check_same_place,
    check_same_shape,
    find_spacing,
    format_count,
    read_table,
)
from .job import Job
from .tiling import add_device, add_storage, add_tiling, find_tiling

__all__ = ["add_merge_arguments", "run_merge"]


# ------------------------------------------------------------------------------------------------ merge and contacts


def add_merge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("labels", metavar="IN", help="instance ids, 0 is background")
    parser.add_argument("out", metavar="OUT", help="labels with fragments united, of the same dtype")
    parser.add_argument("--classes", metavar="FILE", help="class map of the same shape; different classes never join")
    add_connectivity(parser)
    add_spacing(parser)
    parser.add_argument(
        "--scores", metavar="CSV", help="evidence for pairs, columns id_a,id_b,score; else the contact's"
    )
    parser.add_argument(
        "--min-contact",
        type=_share_or_none,
        default=0.5,
        metavar="S|none",
        help="least share of the smaller surface, or score, that unites a pair (default 0.5); none: --must-link alone",
    )
    for name, what in (("must", "unites"), ("cannot", "keeps apart, even through a third label")):
        parser.add_argument(
            f"--{name}-link",
            action="append",
            default=[],
            metavar="A:B|CSV",
            help=f"a pair of ids, or a file with columns id_a,id_b, that this {what}; may be given again",
        )
    add_device(parser)
    add_storage(parser)
    add_tiling(parser)


def _share_or_none(text: str) -> float | None:
    try:
        return None if text.strip().lower() == "none" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; a number such as 0.5, or none, is needed") from None


def run_merge(job: Job) -> None:
    args = job.args
    source = job.open(args.labels)
    source.check_integers("labels")
    classes = job.open(args.classes) if args.classes else None
    if classes is not None:
        classes.check_integers("a class map")
        check_same_shape(source, classes)
        check_same_place(job, source, classes)
    links = {name: getattr(args, f"{name}_link") for name in ("must", "cannot")}
    tables = [text for texts in links.values() for text in texts if not _PAIR.fullmatch(text)]
    tables += [args.scores] if args.scores else []
    inputs = [file.path for file in (source, classes) if file is not None] + [Path(name) for name in tables]
    spacing, geometry = find_spacing(job, source)
    tiling = find_tiling(job, "merge", [file for file in (source, classes) if file is not None], [args.out])
    target = plan(tiling.outputs if tiling else job.outputs, args.out, source.shape, inputs, storage=job.storage)
    must, cannot = (read_links(texts) for texts in links.values())
    scores = (
        read_table(args.scores, _LINK | {"score": float}, "two ids and a score are needed, such as 3,7,0.9")
        if args.scores
        else None
    )
    keywords = {
        "scores": scores,
        "spacing": spacing,
        "connectivity": args.connectivity,
        "min_contact": args.min_contact,
        "must_link": must,
        "cannot_link": cannot,
        "device": args.device,
    }
    if tiling:
        result = tiling.run("merging", "merged", source, geometry=geometry, classes=classes, out=args.out, **keywords)
        if result is not None:
            tiling.finish(
                lambda: f"{format_count(tiling.count_labels(source)[0], 'instance')} became {tiling.summarize(result)}"
            )
        return
    labels = job.read(source, "labels")
    class_map = None if classes is None else job.read(classes, "a class map")
    before = summarize(labels)
    from lpa3d import merge

    job.terminal.step("merging", "merged")
    merged = merge(labels, classes=class_map, **keywords)
    job.write(target, merged, geometry)
    job.finish(f"{before.partition(',')[0]} became {summarize(merged)}")


_PAIR = re.compile(r"(\d+):(\d+)")
_LINK = {"id_a": int, "id_b": int}


def read_links(texts: Iterable[str]) -> list[tuple[int, int]]:
    """Return the pairs of ids that ``A:B`` and files name."""
    pairs: list[tuple[int, int]] = []
    for text in texts:
        match = _PAIR.fullmatch(text)
        if match:
            pairs.append((int(match[1]), int(match[2])))
        else:
            pairs += [(a, b) for a, b in read_table(text, _LINK, "two ids are needed, such as 3,7")]
    return pairs
