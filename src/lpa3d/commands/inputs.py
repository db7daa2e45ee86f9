"""What commands share: arguments, checks of input files against each other, tables to read, phrases to print."""

from __future__ import annotations

import argparse
import csv
import difflib
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays.checks import MOST_SLICES, canonical_spacing
from ..errors import InputError, Keyword
from ..files.geometry import Geometry, in_nanometres, nanometres
from ..files.volume import Volume
from .job import Job

__all__ = [
    "add_connectivity",
    "add_spacing",
    "check_same_place",
    "check_same_shape",
    "check_text_name",
    "find_geometry",
    "find_spacing",
    "format_count",
    "format_csv",
    "format_share",
    "format_sizes",
    "parse_axis",
    "parse_slice_axis",
    "parse_slices",
    "read_table",
    "suggest",
]


def add_connectivity(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--connectivity",
        type=int,
        default=6,
        choices=(6, 18, 26, 1, 2, 3),
        metavar="{6,18,26}",
        help="voxels that are neighbours: by faces, edges too, corners too (default 6)",
    )


def add_spacing(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        metavar=("Z", "Y", "X"),
        help="voxel size in any unit (default: what the file says, else 1 1 1)",
    )


def parse_slices(text: str) -> tuple[int, ...]:
    """Parse ``3,7,10-12``."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise argparse.ArgumentTypeError(f"{text!r} is no list of slices, such as 3,7,10-12")
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first >= MOST_SLICES:
            raise argparse.ArgumentTypeError(f"{text!r} lists {last - first + 1:,} slices, more than any volume has")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


AXES: Mapping[str, Any] = {"z": 0, "y": 1, "x": 2, "0": 0, "1": 1, "2": 2}


def parse_axis(text: str, known: Mapping[str, Any] = AXES) -> Any:
    """Parse the axis that slices lie across: a letter or a number."""
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(known)}")
    return known[text.lower()]


def parse_slice_axis(text: str) -> Any:
    """Parse an axis, ``auto``, or ``none``, which is None."""
    return parse_axis(text, {"auto": "auto", "none": None, **AXES})


def check_same_shape(volume: Volume, other: Volume) -> None:
    if volume.shape != other.shape:
        turned = ": are the axes in reverse order (x, y, z)?" if volume.shape == other.shape[::-1] else ""
        raise InputError(
            f"{volume.name} has shape {volume.shape} but {other.name} has shape {other.shape}; they must be the same"
            f"{turned}"
        )


def check_same_place(job: Job, volume: Volume, other: Volume) -> None:
    """Warn where two files say that their voxels are not of the same size or place; voxels are matched by index.

    Refuse files whose axes run in other directions: no voxel is matched with its own.
    """
    a, b = volume.geometry, other.geometry
    if a.nifti is not None and b.nifti is not None:
        turned = _find_turned(a.nifti.get_best_affine(), b.nifti.get_best_affine())
        if turned:
            raise InputError(
                f"{other.name} has {turned} than {volume.name}, as their affines say; turn one of them, e.g. with "
                "nibabel.as_closest_canonical, or mend the affine"
            )
        if not np.allclose(a.nifti.get_best_affine(), b.nifti.get_best_affine(), rtol=1e-4, atol=1e-4):
            job.terminal.message(
                f"warning: {volume.name} and {other.name} have different affines; voxels are matched by index"
            )
        return
    if bool(nanometres(a.unit)) != bool(nanometres(b.unit)):
        return  # numbers of which nobody can say whether they agree
    (size, place), (other_size, other_place) = in_nanometres(a), in_nanometres(b)
    units = ("", "") if a.unit == b.unit else (a.unit, b.unit)
    if size and other_size and not np.allclose(size, other_size, rtol=1e-4):
        job.terminal.message(
            f"warning: {volume.name} has spacing {_say_sizes(a.spacing, units[0])} but {other.name} "
            f"{_say_sizes(b.spacing, units[1])}; voxels are matched by index"
        )
    if place and other_place and not np.allclose(place, other_place, rtol=1e-4, atol=1e-4):
        job.terminal.message(
            f"warning: {volume.name} begins at {_say_sizes(a.offset, units[0])} but {other.name} at "
            f"{_say_sizes(b.offset, units[1])}; voxels are matched by index"
        )


def _find_turned(affine: Any, other: Any) -> str:
    """Return in which way the axes of two affines differ, empty if they do not."""
    steps = [one[:3, :3] / np.maximum(np.sqrt((one[:3, :3] ** 2).sum(axis=0)), 1e-12) for one in (affine, other)]
    cosines = steps[0].T @ steps[1]
    main = np.abs(cosines).argmax(axis=0)
    if (main != np.arange(3)).any():
        moved = [axis for axis, k in zip("xyz", main != np.arange(3), strict=True) if k]
        return f"its axes {' and '.join(moved)} in another order"
    mirrored = [axis for axis, cosine in zip("xyz", np.diag(cosines), strict=True) if cosine < 0]
    return f"{' and '.join(mirrored)} in the opposite direction" if mirrored else ""


def _say_sizes(sizes: Iterable[float] | None, unit: str) -> str:
    return f"{format_sizes(sizes or ())} {unit}".strip()


def format_sizes(spacing: Iterable[float]) -> str:
    return " ".join(f"{size:g}" for size in spacing)


def find_spacing(
    job: Job, volume: Volume, *others: Volume, used: bool = True
) -> tuple[tuple[float, float, float], Geometry]:
    """Return the voxel size to work with and the geometry to write: the user's, else the file's, else 1.

    Files besides the first are asked if it has none; a geometry without a voxel size says that none has. Where the
    command uses it, a note says that 1 is taken.
    """
    given = job.args.spacing
    first = volume
    volume = next((file for file in (volume, *others) if file.geometry.spacing), volume)
    if given is not None:
        spacing = canonical_spacing(given, 3)
        return spacing, Geometry(spacing, "", volume.geometry.nifti)
    if volume.geometry.spacing is None:
        if used:
            what = "no file says" if others else f"{first.name} does not say"
            job.terminal.note(f"{what} how large voxels are; {job.word(Keyword('spacing'))} 1 1 1 is used")
        return (1.0, 1.0, 1.0), volume.geometry
    if volume.geometry.spacing != (1.0, 1.0, 1.0):
        unit = f" {volume.geometry.unit}" if volume.geometry.unit else ""
        lack = "" if volume is first else f"; {first.name} has none"
        job.terminal.say(f"spacing {format_sizes(volume.geometry.spacing)}{unit} (z y x), from {volume.name}{lack}")
    return volume.geometry.spacing, volume.geometry


def find_geometry(volume: Volume, *others: Volume) -> Geometry:
    """Return the geometry of the first file that has a voxel size, for the outputs; else that of the first."""
    return next((file.geometry for file in (volume, *others) if file.geometry.spacing), volume.geometry)


def check_text_name(name: str | None, key: str, suffixes: Sequence[str] = ("", ".txt", ".csv")) -> None:
    """Refuse to write text to a file whose name is that of a volume."""
    if name and Path(name).suffix.lower() not in suffixes:
        known = ", ".join(suffix for suffix in suffixes if suffix)
        raise InputError(f"cannot write {name}: what ", Keyword(key), f" writes is text; its name may end in {known}")


def format_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def read_table(name: str, columns: Mapping[str, Callable[[str], Any]], need: str) -> list[tuple[Any, ...]]:
    """Read some columns of a CSV file.

    With a header the columns are found by name, so that a table of ``contacts`` with one more column will do; without
    one they are the only columns.

    Parameters
    ----------
    name : str
        The file.
    columns : mapping of name to function
        The columns in their order; the function makes a value of a cell, or raises ValueError. Cells of the first
        column are numbers.
    need : str
        What a line must hold, with an example: the end of the message on one that does not.
    """
    rows: list[tuple[Any, ...]] = []
    places = list(range(len(columns)))
    number = 1
    try:
        with open(name, newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.reader(file), 1):
                cells = [cell.strip() for cell in row]
                if not any(cells):
                    continue
                if number == 1 and not cells[0].isdecimal():
                    if not set(columns) <= set(cells):
                        raise InputError(f"{name} has columns {', '.join(cells)}; needed are {', '.join(columns)}")
                    places = [cells.index(column) for column in columns]
                    continue
                rows.append(tuple(make(cells[k]) for k, make in zip(places, columns.values(), strict=True)))
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from error
    except (ValueError, IndexError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}, line {number}: {need}") from error
    return rows


def format_count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_share(voxels: int, total: int) -> str:
    return f"{voxels:,} of {total:,} voxels ({100 * voxels / max(total, 1):.1f} %)"


def suggest(word: str, known: Iterable[str]) -> str:
    """Return a question with the known word that `word` is most like, whatever its case; nothing if none is."""
    words = {one.casefold(): one for one in known}
    close = difflib.get_close_matches(word.casefold(), words, 1)
    return f"did you mean {words[close[0]]}?" if close else ""
