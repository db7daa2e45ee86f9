"""The command ``lpa3d``: files in, files out.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 the work failed, 2 the command
line or an input cannot be used (nothing was written), 3 a result misses a limit that was asked for, 130 Ctrl-C, 143
terminated, 129 the terminal was closed.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ._version import __version__
from .commands.contacts import add_contacts_arguments, run_contacts
from .commands.evaluate import add_evaluate_arguments, run_evaluate
from .commands.fuse import add_fuse_arguments, run_fuse
from .commands.info import add_info_arguments, run_info
from .commands.inputs import suggest
from .commands.job import BROKEN_PIPE, FAILED, INTERRUPTED, UNUSABLE, Job, attend, report
from .commands.label import add_label_arguments, run_label
from .commands.merge import add_merge_arguments, run_merge
from .commands.pipeline import add_pipeline_arguments, run_pipeline
from .commands.propagate import add_propagate_arguments, run_propagate
from .commands.runs import add_runs_arguments, run_runs
from .commands.stitch import add_stitch_arguments, run_stitch
from .commands.terminal import PROGRESS, Terminal, open_streams
from .commands.wording import word_options

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; those of the process by default.
    """
    open_streams()
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
            return report(error, Terminal(), args.word)
    return attend(args.run, args, args.word)


# --------------------------------------------------------------------------------------------------------- arguments


class _Formatter(argparse.HelpFormatter):
    """Wraps descriptions, and leaves examples, which have several lines, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors look like all others."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **kwargs)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # By its truth it would be taken for an argument that was not given.
        if not isinstance(action, argparse._SubParsersAction) and any(not text.strip() for text in arg_strings):
            raise argparse.ArgumentError(action, "it is empty; give it a value, or leave it out")
        return super()._get_values(action, arg_strings)

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
        sub.add_argument(
            "--progress",
            choices=PROGRESS,
            default="auto",
            help="a line that is drawn anew (bar), a line a minute with the time of day (plain), JSON (json), or none; "
            "by default bar on a terminal, else plain",
        )
        sub.add_argument("--version", **version)  # type: ignore[arg-type]
        sub.set_defaults(run=command.run, word=word_options(sub, keys=command.name == "pipeline"))
    demo = commands.add_parser("demo", help="make a phantom cell, run everything on it, and show what was recovered")
    if "demo" in argv:
        from .demo import add_arguments

        add_arguments(demo)
    demo.set_defaults(word=word_options(demo))
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


COMMANDS = (
    Command(
        "label",
        "number the connected components of a class map",
        "Number the connected components of a class map, all classes in one pass, in raster order.",
        ("lpa3d label mask.nii.gz components.nii.gz", "lpa3d label cell.h5:/classes labels.zarr --connectivity 26"),
        add_label_arguments,
        run_label,
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
        add_propagate_arguments,
        run_propagate,
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
        add_merge_arguments,
        run_merge,
    ),
    Command(
        "contacts",
        "list the pairs of labels that touch, as CSV",
        "List the pairs of labels that touch: shared faces, area, share of the smaller surface, mean of an image.",
        (
            "lpa3d contacts labels.zarr > contacts.csv",
            "lpa3d contacts labels.nii.gz --image membrane.nii.gz --spacing 40 8 8 -o contacts.csv",
        ),
        add_contacts_arguments,
        run_contacts,
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
        add_info_arguments,
        run_info,
        writes=False,
    ),
    Command(
        "runs",
        "list unfinished runs, and delete one",
        "List the runs over tiles that are unfinished, how far they are, and how to go on with them or delete them.",
        ("lpa3d runs", "lpa3d runs /data/cell3 --json", "lpa3d runs --delete /data/cell3/labels.zarr.lpa3d"),
        add_runs_arguments,
        run_runs,
        writes=False,
    ),
)
