"""The command ``lpa3d``: files in, files out.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 the work failed, 2 the command
line or an input cannot be used (nothing was written), 3 a result misses a limit that was asked for, 130 Ctrl-C, 143
terminated.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ._version import __version__
from .commands.counts import count_values, summarize
from .commands.evaluate import add_evaluate_arguments, run_evaluate
from .commands.fuse import add_fuse_arguments, run_fuse
from .commands.inputs import (
    add_connectivity,
    add_spacing,
    check_same_place,
    check_same_shape,
    find_spacing,
    format_count,
    format_share,
    format_sizes,
    parse_slices,
    read_table,
    suggest,
)
from .commands.job import BROKEN_PIPE, FAILED, INTERRUPTED, UNUSABLE, Job, attend, report
from .commands.pipeline import add_pipeline_arguments, run_pipeline
from .commands.stitch import add_stitch_arguments, run_stitch
from .commands.terminal import Terminal
from .commands.tiling import Tiling, add_device, add_tiling, find_tiling
from .io import Volume, plan

__all__ = ["main"]

Array = npt.NDArray[Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; those of the process by default.
    """
    try:
        try:
            return _main(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        Terminal().message("interrupted")
        return INTERRUPTED
    except OSError as error:
        # What is left in the buffer must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return BROKEN_PIPE  # the reader has enough, as head does
        Terminal().message(f"error: cannot write to standard output: {error.strerror}")
        return FAILED


def _main(argv: list[str]) -> int:
    argv = _split_commas(argv)
    parser = _parser(argv)
    if not argv:
        parser.print_help(sys.stderr)
        return UNUSABLE
    args = parser.parse_args(argv)
    if args.command == "demo":
        from . import demo

        try:
            return int(demo.run(args))
        except BrokenPipeError:
            raise
        except Exception as error:
            return report(error, Terminal())
    return attend(args.run, args, keywords=args.command == "pipeline")


# --------------------------------------------------------------------------------------------------------- arguments


class _Formatter(argparse.HelpFormatter):
    """Wraps descriptions, and leaves examples, which have several lines, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors look like all others."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '(.*?)'( \(choose from .*\))", message)
        hint = suggest(choice[1], re.findall(r"[\w-]+", choice[2].partition(" from ")[2])) if choice else ""
        if choice and hint:
            message = f"{message[: choice.start(2)]}; {hint}{choice[2]}"
        self.exit(UNUSABLE, f"lpa3d: error: {message}\nTry '{self.prog} --help'.\n")


SEVERAL_NUMBERS = ("--spacing", "--iou", "--size-strata")


def _split_commas(argv: Sequence[str]) -> list[str]:
    """Take ``--spacing 40,8,8`` apart, and the same of other options with several numbers."""
    words: list[str] = []
    before = ""
    for word in argv:
        option, _, value = word.partition("=")
        if "," in word and before in SEVERAL_NUMBERS:
            words += word.split(",")
        elif "," in value and option in SEVERAL_NUMBERS:
            words += [option, *value.split(",")]
        else:
            words.append(word)
        before = word
    return words


def _axis(text: str) -> int | str | None:
    """Parse a slice axis: auto, none, a number or a letter."""
    axes: dict[str, int | str | None] = {"auto": "auto", "none": None, "z": 0, "y": 1, "x": 2, "0": 0, "1": 1, "2": 2}
    if text.lower() not in axes:
        raise argparse.ArgumentTypeError(f"{text!r} is none of auto, none, z, y, x, 0, 1, 2")
    return axes[text.lower()]


def _parser(argv: Sequence[str]) -> _Parser:
    """Build the parser; the options of a command that lives elsewhere only where it is asked for."""
    parser = _Parser(
        prog="lpa3d",
        description="Turn class maps and partial labels of electron microscopy volumes into 3D instances.",
        epilog="'lpa3d COMMAND --help' has the options of a command and examples.\n\n"
        "Files by suffix: .zarr (also name.zarr/inner/array), .npy, .nii, .nii.gz, .tif, .tiff, .h5 (name.h5:/dataset)",
    )
    version = {"action": "version", "version": f"lpa3d {__version__}"}
    parser.add_argument("--version", **version)  # type: ignore[arg-type]
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name,
            help=command.help,
            description=command.description,
            epilog="examples:\n" + "\n".join(f"  {line}" for line in command.examples),
        )
        command.add_arguments(sub)
        if command.writes:
            sub.add_argument("--overwrite", action="store_true", help="replace an existing output, at the very end")
        sub.add_argument(
            "-q", "--quiet", action="store_true", help="no progress and no summary; errors and warnings stay"
        )
        sub.add_argument("--version", **version)  # type: ignore[arg-type]
        sub.set_defaults(run=command.run)
    demo = commands.add_parser("demo", help="make a phantom cell, run everything on it, and show what was recovered")
    if "demo" in argv:
        from .demo import add_arguments

        add_arguments(demo)
    return parser


@dataclass(frozen=True)
class Command:
    """A subcommand: how it is described, its arguments, and what it does."""

    name: str
    help: str
    description: str
    examples: tuple[str, ...]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Job], None]
    writes: bool = True


# ------------------------------------------------------------------------------------------------------------- label


def _label_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", help="class map: bool or integers, 0 is background")
    parser.add_argument("output", metavar="OUT", help="labels: uint32, or uint64 from 2**32 voxels on")
    add_connectivity(parser)
    add_device(parser)
    add_tiling(parser)


def _label(job: Job) -> None:
    source = job.open(job.args.input)
    source.check_integers("a class map")
    keywords = {"connectivity": job.args.connectivity, "device": job.args.device}
    tiling = find_tiling(job, "label", [source], [job.args.output])
    outputs = tiling.outputs if tiling else job.outputs
    target = plan(outputs, job.args.output, source.shape, [source.path])
    if tiling:
        _label_tiles(job, tiling, source, keywords)
        return
    volume = job.read(source, "a class map")
    from lpa3d import label

    job.terminal.step("labelling", "labelled")
    labels = label(volume, **keywords)
    job.write(target, labels, source.geometry)
    count = int(labels.max()) if labels.size else 0
    voxels = int(np.count_nonzero(labels))
    job.finish(f"{format_count(count, 'component')}, {format_share(voxels, labels.size)} labelled")


def _label_tiles(job: Job, tiling: Tiling, source: Volume, keywords: dict[str, Any]) -> None:
    labels = tiling.run("labelling", "labelled", source, geometry=source.geometry, out=job.args.output, **keywords)

    def describe() -> str:
        count, voxels = tiling.count_numbered(labels)
        return f"{format_count(count, 'component')}, {format_share(voxels, math.prod(source.shape))} labelled"

    if labels is not None:
        tiling.finish(describe)


# ---------------------------------------------------------------------------------------------------------- propagate


def _propagate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("volume", metavar="VOLUME", help="class map: bool or integers, 0 is background")
    parser.add_argument("seeds", metavar="SEEDS", help="instance ids of the same shape, 0 is unlabelled")
    parser.add_argument("output", metavar="OUT", help="labels, of the seeds' dtype")
    add_connectivity(parser)
    add_spacing(parser)
    parser.add_argument(
        "--cost", metavar="FILE", help="image >= 0 that makes distances longer, e.g. membrane probability"
    )
    parser.add_argument("--max-distance", type=float, metavar="D", help="farthest from a seed, in units of the spacing")
    parser.add_argument("--sweeps", type=int, metavar="N", help="rounds of diffusion that smooth borders; 0 for none")
    parser.add_argument(
        "--slice-axis",
        type=_axis,
        default="auto",
        metavar="{auto,none,z,y,x}",
        help="axis across which slices were annotated; 0, 1, 2 are z, y, x (default auto: found from the seeds)",
    )
    parser.add_argument(
        "--missing-slices",
        type=parse_slices,
        default=(),
        metavar="LIST",
        help="slices that are empty in the class map and are bridged, e.g. 3,7,10-12",
    )
    parser.add_argument(
        "--unseeded",
        choices=("drop", "label"),
        default="drop",
        help="components without a seed: leave them 0, or give each a new id (default drop)",
    )
    parser.add_argument(
        "--seed-conflicts",
        choices=("raise", "majority"),
        default="raise",
        help="an id on two classes: stop, or keep its larger class (default raise)",
    )
    parser.add_argument("--confidence", metavar="FILE", help="also write how sure each label is, uint16")
    add_device(parser)
    add_tiling(parser)


def _propagate(job: Job) -> None:
    args = job.args
    volume, seeds = job.open(args.volume), job.open(args.seeds)
    cost = job.open(args.cost) if args.cost else None
    volume.check_integers("a class map")
    seeds.check_integers("seeds")
    inputs = [file for file in (volume, seeds, cost) if file is not None]
    for file in inputs[1:]:
        check_same_shape(volume, file)
        check_same_place(job, volume, file)
    spacing, geometry = find_spacing(job, volume)
    paths = [file.path for file in inputs]
    tiling = find_tiling(job, "propagate", inputs, [args.output, args.confidence])
    outputs = tiling.outputs if tiling else job.outputs
    target = plan(outputs, args.output, volume.shape, paths)
    sureness = plan(outputs, args.confidence, volume.shape, paths) if args.confidence else None
    keywords = {
        "connectivity": args.connectivity,
        "spacing": spacing,
        "max_distance": args.max_distance,
        "sweeps": args.sweeps,
        "slice_axis": args.slice_axis,
        "missing_slices": args.missing_slices,
        "unseeded": args.unseeded,
        "seed_conflicts": args.seed_conflicts,
        "return_confidence": sureness is not None,
        "device": args.device,
    }
    if tiling:
        places = (args.output, args.confidence) if sureness else args.output
        result = tiling.run(
            "propagating", "propagated", volume, seeds, geometry=geometry, cost=cost, out=places, **keywords
        )
        if result is not None:
            tiling.finish(lambda: tiling.summarize(result[0] if sureness else result))
        return
    from lpa3d import propagate

    classes = job.read(volume, "a class map")
    ids = job.read(seeds, "seeds")
    costs = None if cost is None else job.read(cost, "a cost", floats=True)
    job.terminal.step("propagating", "propagated")
    result = propagate(classes, ids, cost=costs, progress=job.stage, **keywords)
    labels = result[0] if sureness else result
    job.write(target, labels, geometry)
    if sureness:
        job.write(sureness, result[1], geometry)
    job.finish(summarize(labels))


# ------------------------------------------------------------------------------------------------ merge and contacts


def _merge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", help="instance ids, 0 is background")
    parser.add_argument("output", metavar="OUT", help="labels with fragments united, of the same dtype")
    parser.add_argument("--classes", metavar="FILE", help="class map of the same shape; different classes never join")
    add_connectivity(parser)
    add_spacing(parser)
    parser.add_argument(
        "--scores", metavar="CSV", help="evidence for pairs, columns id_a,id_b,score; else the contact's"
    )
    parser.add_argument(
        "--min-contact",
        type=float,
        metavar="S",
        help="least share of the smaller surface, or score, that unites a pair (default 0.5)",
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
    add_tiling(parser)


def _merge(job: Job) -> None:
    args = job.args
    source = job.open(args.input)
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
    tiling = find_tiling(job, "merge", [file for file in (source, classes) if file is not None], [args.output])
    target = plan(tiling.outputs if tiling else job.outputs, args.output, source.shape, inputs)
    must, cannot = (_read_links(texts) for texts in links.values())
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
        result = tiling.run(
            "merging", "merged", source, geometry=geometry, classes=classes, out=args.output, **keywords
        )
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


def _read_links(texts: Iterable[str]) -> list[tuple[int, int]]:
    """Return the pairs of ids that ``A:B`` and files name."""
    pairs: list[tuple[int, int]] = []
    for text in texts:
        match = _PAIR.fullmatch(text)
        if match:
            pairs.append((int(match[1]), int(match[2])))
        else:
            pairs += [(a, b) for a, b in read_table(text, _LINK, "two ids are needed, such as 3,7")]
    return pairs


def _contacts_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", help="instance ids, 0 is background")
    parser.add_argument("-o", "--output", metavar="CSV", help="file for the table (default standard output)")
    parser.add_argument("--image", metavar="FILE", help="image of the same shape, whose mean on each boundary is added")
    add_connectivity(parser)
    add_spacing(parser)
    add_device(parser)
    add_tiling(parser)


def _contacts(job: Job) -> None:
    args = job.args
    source = job.open(args.input)
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


# -------------------------------------------------------------------------------------------------------------- info


def _info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="FILE", help="any file or zarr folder that lpa3d reads")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _info(job: Job) -> None:
    source = job.open(job.args.input)
    job.terminal.step(f"reading {source.name}", "read")
    spacing = source.geometry.spacing
    facts: dict[str, Any] = {
        "file": source.name,
        "format": source.format,
        "shape": list(source.shape),
        "dtype": str(source.dtype),
        "spacing": list(spacing) if spacing else None,
        "unit": source.geometry.unit or None,
        "chunks": list(source.chunks) if source.chunks else None,
        "compression": source.compression or None,
        "bytes": math.prod(source.shape) * source.dtype.itemsize,
    }
    facts |= _info_values(job, source)
    job.results.append((json.dumps(facts) if job.args.json else _info_text(facts)) + "\n")


LISTED = 16
"""Most values of a class map that `info` lists one by one."""


def _info_values(job: Job, source: Volume) -> dict[str, Any]:
    """Return what the voxels hold: extremes of an image, ids of labels."""

    def slabs() -> Iterator[tuple[int, int, Array]]:
        for lo, hi, slab in source.slabs():
            yield lo, hi, slab
            job.progress(hi / source.shape[0])

    if source.dtype.kind not in "buif" or not math.prod(source.shape):
        return {}
    if source.dtype.kind == "f":
        low, high, foreground, whole = math.inf, -math.inf, 0, True
        for _, _, slab in slabs():
            low, high = min(low, float(np.nanmin(slab))), max(high, float(np.nanmax(slab)))
            foreground += int(np.count_nonzero(slab))
            whole = whole and bool(np.array_equal(np.rint(slab), slab))
        return {"smallest": low, "largest": high, "foreground_voxels": foreground, "whole_numbers": whole}
    values, counts = count_values(slabs())
    inside = values != 0
    facts: dict[str, Any] = {
        "smallest": int(values[0]),
        "largest": int(values[-1]),
        "foreground_voxels": int(counts[inside].sum()),
        "labels": int(np.count_nonzero(inside)),
    }
    if len(values) <= LISTED:
        facts["voxels"] = {str(int(value)): int(count) for value, count in zip(values, counts, strict=True)}
    return facts


def _info_text(facts: dict[str, Any]) -> str:
    """Return the facts as lines for a person."""
    total = math.prod(facts["shape"])
    size = f"{total:,} voxels, {_bytes(facts['bytes'])} in memory"
    lines = {
        "file": facts["file"],
        "format": ", ".join(text for text in (facts["format"], facts["compression"]) if text),
        "shape": f"{' '.join(map(str, facts['shape']))} ({'z y x'[-2 * len(facts['shape']) + 1 :]}), {size}",
        "dtype": facts["dtype"] + (", whole numbers only" if facts.get("whole_numbers") else ""),
        "spacing": " ".join([format_sizes(facts["spacing"]), facts["unit"] or ""])
        if facts["spacing"]
        else "not in the file",
        "chunks": " ".join(map(str, facts["chunks"])) if facts["chunks"] else "none",
    }
    if "smallest" in facts:
        lines["values"] = f"{facts['smallest']:,} to {facts['largest']:,}"
        lines["not 0"] = format_share(facts["foreground_voxels"], total)
    if "labels" in facts:
        lines["labels"] = f"{format_count(facts['labels'], 'different id')} besides 0"
    for value, count in facts.get("voxels", {}).items():
        lines[f"  {value}"] = format_share(count, total)
    return "\n".join(f"{key + ':':<12} {text}".rstrip() for key, text in lines.items())


def _bytes(number: int) -> str:
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    power = min(max(number.bit_length() - 1, 0) // 10, len(units) - 1)
    return f"{number / 1024**power:.{1 if power else 0}f} {units[power]}"


COMMANDS = (
    Command(
        "label",
        "number the connected components of a class map",
        "Number the connected components of a class map, all classes in one pass, in raster order.",
        ("lpa3d label mask.nii.gz components.nii.gz", "lpa3d label cell.h5:/classes labels.zarr --connectivity 26"),
        _label_arguments,
        _label,
    ),
    Command(
        "stitch",
        "join instances that were found slice by slice to 3D instances",
        "Join 2D instances of every slice, whose ids mean nothing from slice to slice, to 3D instances.",
        (
            "lpa3d stitch slices/ labels.zarr",
            "lpa3d stitch sections.tif labels.tif --classes classes.tif --max-gap 5",
            "lpa3d stitch slices/:0-255 labels.zarr --bad-slices 17,203-205 --cannot-link 12:7,13:9",
        ),
        add_stitch_arguments,
        run_stitch,
    ),
    Command(
        "fuse",
        "unite a class map, an expert's instances and stitched slices into seeds",
        "Unite a class map, partial instances and stitched slices into one class map with seeds, which propagate "
        "finishes. Where they contradict each other the most trusted one wins, and the conflict is listed.",
        (
            "lpa3d fuse --classes classes.zarr --slices stitched.zarr --volume volume.zarr --seeds seeds.zarr",
            "lpa3d fuse --instances expert.tif --complete-slices 0,16,32 --volume volume.tif --seeds seeds.tif",
            "lpa3d fuse --classes c.zarr --slices s.zarr --priority classes slices --volume v.zarr --seeds o.zarr",
        ),
        add_fuse_arguments,
        run_fuse,
    ),
    Command(
        "propagate",
        "extend the instances of some slices or clicks to the whole class map",
        "Extend instance labels that cover only part of a volume (a few annotated slices, clicks) to all of its mask.",
        (
            "lpa3d propagate classes.zarr every16th.zarr instances.zarr",
            "lpa3d propagate mask.tif seeds.tif out.tif --spacing 40 8 8 --cost membrane.tif",
            "lpa3d propagate mask.nii.gz seeds.nii.gz out.nii.gz --unseeded label --confidence sure.nii.gz",
            "lpa3d propagate mask.zarr seeds.zarr out.zarr --missing-slices 17,203-205",
        ),
        _propagate_arguments,
        _propagate,
    ),
    Command(
        "merge",
        "unite fragments of one object by their contacts or by scores",
        "Unite touching fragments, in decreasing order of evidence: the share of the smaller one's surface that they "
        "have in common, or scores. The smallest id of an object stays.",
        (
            "lpa3d merge fragments.zarr objects.zarr --min-contact 0.3",
            "lpa3d merge fragments.tif objects.tif --scores scores.csv --must-link 3:7 --cannot-link apart.csv",
        ),
        _merge_arguments,
        _merge,
    ),
    Command(
        "contacts",
        "list the pairs of labels that touch, as CSV",
        "List the pairs of labels that touch: shared faces, area, share of the smaller surface, mean of an image.",
        (
            "lpa3d contacts labels.zarr > contacts.csv",
            "lpa3d contacts labels.nii.gz --image membrane.nii.gz --spacing 40 8 8 -o contacts.csv",
        ),
        _contacts_arguments,
        _contacts,
    ),
    Command(
        "evaluate",
        "measure a segmentation against a reference",
        "Measure a segmentation against a reference: semantic, partition and instance metrics from one pass, the worst "
        "errors, and limits for pipelines.",
        (
            "lpa3d evaluate truth.zarr instances.zarr",
            "lpa3d evaluate truth.nii.gz predicted.nii.gz --instances components --class-names 1=mitochondria 2=ER "
            "--per-class",
            "lpa3d evaluate truth.zarr instances.zarr --json -q | jq .metrics.pq",
            "lpa3d evaluate truth.zarr instances.zarr --errors errors.csv --fail-under pq=0.8 --fail-over voi=1.5",
        ),
        add_evaluate_arguments,
        run_evaluate,
    ),
    Command(
        "pipeline",
        "run stitch, fuse, propagate, merge and evaluate as a file says",
        "Run stitch, fuse, propagate, merge and evaluate one after another, without files in between, as a TOML file "
        "says. A step runs if the file has its section.",
        (
            "lpa3d pipeline --example > cell.toml",
            "lpa3d pipeline cell.toml --dry-run",
            "lpa3d pipeline cell.toml --overwrite",
        ),
        add_pipeline_arguments,
        run_pipeline,
    ),
    Command(
        "info",
        "show the shape, dtype, voxel size and contents of a file",
        "Show what a file holds: shape, dtype, voxel size, chunks, and how many labels and labelled voxels.",
        ("lpa3d info labels.zarr", "lpa3d info segmentation.h5:/volumes/labels --json"),
        _info_arguments,
        _info,
        writes=False,
    ),
)
