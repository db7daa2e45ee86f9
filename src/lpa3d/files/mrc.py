"""MRC files (also called CCP4 maps), as IMOD, Amira and cryo-EM programs write them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .geometry import Geometry, convert_unit
from .places import LIBRARIES, Location, load_library, refuse_short
from .volume import Volume, choose_rows, cut_slabs, find_bounds

__all__ = ["open_mrc", "write_mrc"]

Array = npt.NDArray[Any]

HEADER = 1024
MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
"""Numbers that are read, by the mode in the header."""

IMOD = 1146047817
"""IMOD's stamp, and the flag beside it which says that its bytes have a sign."""
SIGNED = 1

STACKS = range(401, 631)
"""Space groups of a stack of volumes."""


def open_mrc(location: Location) -> Volume:
    """Open an MRC file; what is not compressed is mapped into memory."""
    mrcfile = load_library(*LIBRARIES["mrc"])
    path = location.path
    with warnings.catch_warnings():
        # Of files that are larger than they need be.
        warnings.simplefilter("ignore", RuntimeWarning)
        with mrcfile.open(path, header_only=True) as file:
            header, order = file.header.copy(), file.header.mode.dtype.byteorder
            packed = type(file).__name__ != "MrcFile"
    mode = int(header.mode)
    if mode not in MODES:
        kinds = {3: "complex numbers", 4: "complex numbers", 16: "colours", 101: "4-bit numbers"}
        what = kinds.get(mode, "other numbers")
        raise InputError(
            f"{path} holds {what} (mode {mode}), which are not read; store it with the mode 0, 1, 2 or 6 (newstack "
            "-mode 1)"
        )
    dtype = np.dtype(MODES[mode]).newbyteorder(order)
    sections, rows, columns = (int(header[name]) for name in ("nz", "ny", "nx"))
    axes = _name_axes(location, header)
    sizes: tuple[int, ...] = (sections, rows, columns)
    if sections == 1 and int(header.ispg) == 0:
        axes, sizes = axes[1:], (rows, columns)  # an image, as mrcfile has it
    if int(header.ispg) in STACKS and 0 < int(header.mz) < sections and sections % int(header.mz) == 0:
        axes, sizes = ["volume", *axes], (sections // int(header.mz), int(header.mz), rows, columns)
    if min(sizes) < 0:
        raise InputError(f"{path} says that its shape is {sizes}; its header is damaged, export it again")
    start = HEADER + int(header.nsymbt)
    if not packed:
        refuse_short(path, path.stat().st_size, start + math.prod(sizes) * dtype.itemsize)
    view = location.choose(axes, sizes)
    kind = _find_bytes(header) if mode == 0 else ""
    seen = np.dtype("u1") if kind == "unsigned" else dtype

    def load() -> Array:
        if packed:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                with mrcfile.open(path) as file:
                    return np.asarray(file.data).reshape(sizes)
        if not math.prod(sizes):
            return np.empty(sizes, dtype)
        return np.asarray(np.memmap(path, dtype, "r", start, sizes))

    def fetch(lo: int, hi: int) -> Array:
        part = np.asarray(view.read(load(), view.cut_rows(lo, hi)))
        if kind == "unclear" and part.size and int(part.min()) < 0:
            raise InputError(
                f"{path} holds bytes of which its header does not say whether they have a sign: {int(part.min())} may "
                f"be {int(part.min()) + 256}; store it with the mode 1 or 6 (newstack -mode 6)"
            )
        return part.view(seen) if kind == "unsigned" else part

    return Volume(
        location.name,
        path,
        "mrc",
        view.shape,
        seen,
        fetch,
        _read_geometry(header),
        compression="packed" if packed else "",
        rows=0 if packed else choose_rows(view.shape, dtype),
        view=view,
        at_once=True,
    )


def _name_axes(location: Location, header: Any) -> list[str]:
    """Return which axes of space sections, rows and columns lie along."""
    said = [int(header[name]) for name in ("maps", "mapr", "mapc")]
    if said == [0, 0, 0]:
        said = [3, 2, 1]  # never filled in
    if sorted(said) != [1, 2, 3]:
        raise InputError(
            f"{location.path} says that its columns, rows and sections lie along the axes {said[::-1]} (MAPC, MAPR, "
            "MAPS), which are not 1, 2 and 3 in some order; mend its header (alterheader)"
        )
    return ["xyz"[axis - 1] for axis in said]


def _find_bytes(header: Any) -> str:
    """Return whether the bytes of mode 0 have a sign, which they do since 2014, but in IMOD's files, which say it."""
    stamp, flags = (int(word) for word in np.frombuffer(header.tobytes(), header.mode.dtype, 2, 152))
    if stamp == IMOD:
        return "" if flags & SIGNED else "unsigned"
    return "" if int(header.nversion) >= 20140 else "unclear"


def _read_geometry(header: Any) -> Geometry:
    """Read the size of the voxels in ångström, and the place of the first one: its origin, else where it starts."""
    cell, samples = header.cella, [int(header[f"m{axis}"]) for axis in "zyx"]
    if not all(samples):
        return Geometry()
    z, y, x = (float(cell[axis]) / count for axis, count in zip("zyx", samples, strict=True))
    offset = tuple(float(header.origin[axis]) for axis in "zyx")
    if not any(offset):
        along = {int(header[f"map{of}"]): int(header[f"n{axis}start"]) for of, axis in zip("crs", "xyz", strict=True)}
        starts = [along.get(axis, 0) for axis in (3, 2, 1)]
        offset = tuple(float(start * size) for start, size in zip(starts, (z, y, x), strict=True))
    return Geometry((z, y, x), "angstrom", offset=(offset[0], offset[1], offset[2]) if any(offset) else None)


def write_mrc(path: Path, array: Any, geometry: Geometry, progress: Callable[[float], None]) -> None:
    """Write an MRC file, in the dtype of `_choose_dtype`."""
    mrcfile = load_library(*LIBRARIES["mrc"])
    low, high = find_bounds(array)
    dtype = _choose_dtype(array.dtype, low, high)
    size, offset = convert_unit(geometry, "angstrom", "an MRC file")
    mode = next(mode for mode, name in MODES.items() if np.dtype(name) == dtype)
    with mrcfile.new_mmap(path, array.shape, mode) as file:
        if array.ndim == 3:
            file.set_volume()
        if size is not None:
            file.voxel_size = size[::-1]
        if offset is not None:
            file.header.origin = offset[::-1]
        # Mean and deviation are marked as not known, as the format has it.
        file.header.dmin, file.header.dmax, file.header.dmean, file.header.rms = low, high, low - 1, -1
        for lo, hi, part in cut_slabs(array, progress):
            file.data[lo:hi] = part


def _choose_dtype(dtype: np.dtype[Any], low: float, high: float) -> np.dtype[Any]:
    """Return the smallest dtype of the format that holds all values exactly: of larger integers floats to 2**24.

    Raises
    ------
    InputError
        If there is none.
    """
    kinds = {"f2": ("f2", "f4"), "f4": ("f4",)}.get(dtype.str[1:], ("i1", "i2", "u2"))
    for kind in kinds:
        if np.can_cast(dtype, kind, "safe"):
            return np.dtype(kind)
    if dtype.kind in "ui":
        for kind in ("i2", "u2"):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return np.dtype(kind)
        if max(-low, high) <= 2**24:
            return np.dtype("f4")
    raise InputError(
        f"an MRC file holds integers of 16 bits, or floats that are exact to 16,777,216, and these are {dtype} from "
        f"{low} to {high}; write a .zarr, .nrrd or .tif"
    )
