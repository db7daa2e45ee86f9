"""What a name of a volume means: its format, the file or folder, and the array inside; and errors of files."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, LibraryError, Lpa3dError
from .axes import Choice, View, choose_view

__all__ = [
    "LIBRARIES",
    "FileError",
    "Location",
    "load_library",
    "locate",
    "reading",
    "split_choice",
    "writing",
    "zarr_kind",
]


class FileError(Lpa3dError, OSError):
    """A file could not be written."""


# ---------------------------------------------------------------------------------------------------------- places


@dataclass(frozen=True)
class Location:
    """A name taken apart: the format, the file or folder, and what is meant inside of it.

    `inner` is the dataset in an HDF5 file, or a pattern for the images in a folder; `numbers` are the first and the
    last slice of such a folder, where the user gave them. `chosen` are an index for each of some axes that are none of
    space, and `base` is the name without them.
    """

    name: str
    format: str
    path: Path
    inner: str = ""
    numbers: tuple[int, int] | None = None
    chosen: Choice = ()

    @property
    def base(self) -> str:
        """Return the name without what is chosen of its axes."""
        return self.name.rpartition(":")[0] if self.chosen else self.name

    def refuse_choice(self) -> None:
        """Refuse an output of which something is chosen."""
        if self.chosen:
            raise InputError(
                f"cannot write {self.name}: outputs are written whole; leave {self.name.removeprefix(self.base)} out"
            )

    def choose(self, axes: Sequence[str | None] | None, shape: Sequence[int]) -> View:
        """Return how an array of this name is seen, by what its file calls its axes and what is chosen of them."""
        return choose_view(self.base, axes, shape, self.chosen)


SUFFIXES = {".npy": "npy", ".nii": "nifti", ".nii.gz": "nifti", ".tif": "tiff", ".tiff": "tiff"}
KNOWN = (
    ".zarr, .npy, .nii, .nii.gz, .tif, .tiff, .h5 (file.h5:/dataset) and .hdf5; a folder with a PNG or TIFF image for "
    "each slice can be read"
)


CHOICE = re.compile(r"(.+):([^:/\\=,]+=[-+\w]*(?:,[^:/\\=,]+=[-+\w]*)*)", re.DOTALL)
"""A name with what is chosen of its axes behind it."""


def split_choice(name: str) -> tuple[str, Choice]:
    """Return a name of a volume without what is chosen of its axes, and that: ``c=2`` of ``cell.zarr:c=2``.

    Raises
    ------
    InputError
        If it is no choice of an index for each of some axes.
    """
    match = CHOICE.fullmatch(name)
    if not match or os.path.lexists(name):
        return name, ()
    chosen: dict[str, int] = {}
    for part in match[2].split(","):
        axis, _, at = part.partition("=")
        axis = axis.strip()
        if not at.isdecimal() or axis.casefold() in map(str.casefold, chosen):
            raise InputError(
                f"{name!r}: {match[2]} is no choice along axes, such as c=2 or c=2,t=0: for each axis that is none of "
                "space one number, from 0 on"
            )
        chosen[axis] = int(at)
    return match[1], tuple(chosen.items())


def locate(name: str) -> Location:
    """Take a file name apart.

    Raises
    ------
    InputError
        If its suffix is not known.
    """
    name = os.fspath(name)
    base, chosen = split_choice(name)
    found = _locate(base)
    if chosen and found.format == "images":
        raise InputError(f"{name!r}: a folder of images has the axes z, y, x; leave {name[len(base) :]} out")
    return replace(found, name=name, chosen=chosen)


def _locate(name: str) -> Location:
    if "://" in name:
        raise InputError(f"{name} is a URL; copy it to a local file first")
    hdf5 = re.fullmatch(r"(.*\.(?:h5|hdf5|hdf))(?::(.*))?", name, re.IGNORECASE | re.DOTALL)
    if hdf5:
        return Location(name, "hdf5", Path(hdf5[1]), (hdf5[2] or "").strip("/"))
    path = Path(name)
    lower = name.lower()
    for suffix, kind in SUFFIXES.items():
        if lower.endswith(suffix) and not _is_pattern(path):
            return Location(name, kind, path)
    if any(part.lower().endswith(".zarr") for part in path.parts) or zarr_kind(path) or _is_in_group(path):
        return Location(name, "zarr", path)
    # A folder may itself have a name that looks like a range of slices.
    ranged = None if path.is_dir() else re.fullmatch(r"(.+):([0-9]+)-([0-9]+)", name, re.DOTALL)
    folder = ranged[1] if ranged else name
    numbers = (int(ranged[2]), int(ranged[3])) if ranged else None
    path = Path(folder)
    if _is_pattern(path):
        return Location(name, "images", path.parent, path.name, numbers)
    if path.is_dir() or folder.endswith(("/", os.sep)):
        return Location(name, "images", path, "", numbers)
    what = "has no suffix" if path.suffix else "is no folder and has no suffix"
    raise InputError(f"{name!r} {what} that is known; known are {KNOWN}")


def _is_in_group(path: Path) -> bool:
    """Return whether a name that nothing has yet is one in a zarr group."""
    return not path.exists() and any(zarr_kind(parent).startswith("group") for parent in path.parents)


def _is_pattern(path: Path) -> bool:
    """Return whether a name stands for several files; brackets alone are common in the names of single ones."""
    return any(sign in path.name for sign in "*?") and not path.exists()


def load_library(module: str, extra: str) -> Any:
    """Import the file library `module`, or say which extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise LibraryError(
            f"{module} is needed for this kind of file and cannot be imported ({error}); "
            f"install it: pip install 'lpa3d[{extra}]'"
        ) from error


LIBRARIES = {
    "zarr": ("zarr", "zarr"),
    "nifti": ("nibabel", "nifti"),
    "tiff": ("tifffile", "tiff"),
    "hdf5": ("h5py", "hdf5"),
    "png": ("PIL.PngImagePlugin", "png"),
}


def _reason(error: BaseException) -> str:
    """Return one line of what went wrong, for a person."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    if "imagecodecs" in text:
        text += "; install it: pip install imagecodecs"
    return text


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what a file library raises into an error that names the file."""
    try:
        yield
    except (Lpa3dError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"cannot read {name}: {_reason(error)}") from error


@contextlib.contextmanager
def writing(name: str) -> Iterator[None]:
    """Turn what a file library raises into an error that names the output."""
    try:
        yield
    except (Lpa3dError, MemoryError):
        raise
    except Exception as error:
        raise FileError(f"cannot write {name}: {_reason(error)}") from error


def zarr_kind(path: Path) -> str:
    """Return ``"array3"``, ``"array2"``, ``"group3"`` or ``"group2"``, or empty for any other file or folder."""
    if (path / "zarr.json").is_file():
        try:
            node = json.loads((path / "zarr.json").read_bytes()).get("node_type")
        except (ValueError, AttributeError):
            return ""
        return f"{node}3" if node in ("array", "group") else ""
    if (path / ".zarray").is_file():
        return "array2"
    return "group2" if (path / ".zgroup").is_file() else ""
