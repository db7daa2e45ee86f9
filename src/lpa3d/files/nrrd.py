"""NRRD files, as 3D Slicer, Fiji and teem write them: with the voxels behind the header, or in a file of their own."""

from __future__ import annotations

import bz2
import gzip
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .geometry import Geometry, directed_geometry, state_place
from .places import LIBRARIES, Location, load_library, refuse_short
from .volume import Volume, choose_rows, cut_slabs

__all__ = ["open_nrrd", "write_nrrd"]

Array = npt.NDArray[Any]

TYPES = {
    "i1": ("int8", "signed char", "int8_t"),
    "u1": ("uint8", "uchar", "unsigned char", "uint8_t"),
    "i2": ("int16", "short", "short int", "signed short", "signed short int", "int16_t"),
    "u2": ("uint16", "ushort", "unsigned short", "unsigned short int", "uint16_t"),
    "i4": ("int32", "int", "signed int", "int32_t"),
    "u4": ("uint32", "uint", "unsigned int", "uint32_t"),
    "i8": ("int64", "longlong", "long long", "long long int", "signed long long", "signed long long int", "int64_t"),
    "u8": ("uint64", "ulonglong", "unsigned long long", "unsigned long long int", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
"""What the format calls each dtype; the first name is written."""

PACKED = ("gzip", "gz", "bzip2", "bz2")
TEXT = ("ascii", "text", "txt")

SPACES = {
    "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1),
}  # fmt: skip
"""What turns the axes of a space that has a name to right, front and up."""

BESIDE = {"time": "t", "list": "c", "vector": "c", "scalar": "c", "stub": "c", "complex": "c", "point": "c"}
"""Kinds of axes that are none of space; all that are not known are channels."""


def open_nrrd(location: Location) -> Volume:
    """Open a NRRD file; voxels that are not compressed are mapped into memory."""
    nrrd = load_library(*LIBRARIES["nrrd"])
    path = location.path
    with open(path, "rb") as file:
        header = nrrd.read_header(file)
        start = file.tell()
    dtype = _find_dtype(path, header)
    sizes = tuple(int(size) for size in header["sizes"])
    if len(sizes) != int(header["dimension"]):
        raise InputError(f"{path} says that it has {header['dimension']} axes, but gives {len(sizes)} sizes; mend it")
    encoding = str(header["encoding"]).lower()
    if encoding not in ("raw", *PACKED, *TEXT):
        raise InputError(f"{path} has the encoding {encoding}, which is not read; save it as raw or gzip (unu save)")
    beside = header.get("datafile", header.get("data file"))
    data = path
    if beside is not None:
        if str(beside).split()[:1] == ["LIST"] or "%" in str(beside):
            raise InputError(f"{path} has its voxels in several files, which is not read; join them (unu save -f nrrd)")
        data, start = path.parent / str(beside), 0
        if not data.is_file():
            raise InputError(f"{path} has its voxels in {data}, which does not exist; put it back, beside the header")
    names, geometry = _name_axes(header, len(sizes))
    view = location.choose(names[::-1], sizes[::-1])
    skipped = int(header.get("byteskip", header.get("byte skip", 0)) or 0)
    lines = int(header.get("lineskip", header.get("line skip", 0)) or 0)
    count = math.prod(sizes)
    if min(lines, 0) or skipped < -1:
        raise InputError(f"{path} skips {lines} lines and {skipped} bytes, which cannot be; mend its header")
    mapped = encoding == "raw" and not lines
    if mapped:
        size = data.stat().st_size
        start = size - count * dtype.itemsize if skipped == -1 else start + skipped
        refuse_short(data, size, max(start, 0) + count * dtype.itemsize)

    def load() -> Array:
        if mapped:
            whole = np.memmap(data, dtype, "r", start, sizes[::-1]) if count else np.empty(sizes[::-1], dtype)
            return np.asarray(whole)
        with open(data, "rb") as file:
            file.seek(start)
            for _ in range(lines):
                file.readline()
            if encoding in TEXT:
                words = file.read().split()
                refuse_short(data, len(words), count, "numbers")
                return _parse_text(data, words[:count], dtype).reshape(sizes[::-1])
            # Of what is compressed bytes are skipped behind that.
            stream = gzip.GzipFile(fileobj=file) if encoding in ("gzip", "gz") else bz2.BZ2File(file)
            found = (file if encoding == "raw" else stream).read()
        needed = count * dtype.itemsize
        at = len(found) - needed if skipped == -1 else skipped
        refuse_short(data, len(found), max(at, 0) + needed)
        return np.frombuffer(found, dtype, count, at).reshape(sizes[::-1])

    return Volume(
        location.name,
        path,
        "nrrd",
        view.shape,
        dtype,
        lambda lo, hi: np.asarray(view.read(load(), view.cut_rows(lo, hi))),
        geometry,
        compression="" if encoding == "raw" else encoding,
        rows=choose_rows(view.shape, dtype) if mapped else 0,
        view=view,
        at_once=True,
    )


def _parse_text(path: Path, words: list[bytes], dtype: np.dtype[Any]) -> Array:
    """Return numbers that are written as text; integers may have an exponent, as pynrrd writes large ones."""
    try:
        return np.array(words, bytes).astype(dtype)
    except ValueError:
        found = np.array(words, bytes).astype(np.float64)
        if dtype.kind != "f" and (np.abs(found) > 2**53).any():
            raise InputError(f"{path} writes integers with an exponent, so that their last digits are lost") from None
        return found.astype(dtype)


def _find_dtype(path: Path, header: Mapping[str, Any]) -> np.dtype[Any]:
    """Return the dtype of the voxels, with their byte order."""
    said = str(header["type"]).lower()
    kind = next((kind for kind, names in TYPES.items() if said in names), None)
    if kind is None:
        raise InputError(f"{path} holds {said}, which is not read; integers or floats are needed")
    dtype = np.dtype(kind)
    endian = str(header.get("endian", "")).lower()
    if dtype.itemsize > 1 and endian not in ("little", "big") and str(header["encoding"]).lower() not in TEXT:
        raise InputError(f"{path} does not say which byte of a number comes first (endian: little or big); mend it")
    return dtype.newbyteorder(">" if endian == "big" else "<") if dtype.itemsize > 1 else dtype


def _name_axes(header: Mapping[str, Any], ndim: int) -> tuple[list[str], Geometry]:
    """Return the names of the axes, the fastest first, and the geometry.

    An axis of space is named by its label, else by where it points to, else by its place.
    """
    kinds = [str(kind).lower() for kind in header.get("kinds", ())] or [""] * ndim
    vectors = _list_vectors(header, ndim)
    spacings = header.get("spacings")
    known = {"", "none", "???", "domain", "space"}
    space = [
        k
        for k in range(ndim)
        if (vectors[k] is not None if any(vector is not None for vector in vectors) else kinds[k] in known)
    ]
    names = [f"{BESIDE.get(kinds[k], 'c')}^" for k in range(ndim)]
    plain = ["x", "y", "z"] if len(space) <= 3 else [str(k) for k in space]
    labels = [str(label).strip().lower() for label in header.get("labels", ())]
    said = [labels[k] if len(labels) == ndim else "" for k in space]
    of = plain[: len(space)]
    if len(set(said)) == len(space) and set(said) <= set("xyz"):
        of = said
    signs = SPACES.get(str(header.get("space", "")).lower())
    units = header.get("space units")
    if any(vector is not None for vector in vectors):
        turn = np.array(signs or (1, 1, 1), float)
        steps = [np.asarray(vectors[k], float) for k in space]
        steps = [np.pad(step, (0, max(3 - len(step), 0)))[:3] * turn for step in steps]
        origin = header.get("space origin")
        place = None if origin is None or len(origin) != 3 else (np.asarray(origin, float) * turn).tolist()
        listed: Any = [str(unit) for unit in units] if units is not None and len(units) == 3 else ""
        along, geometry = directed_geometry(
            of, [step.tolist() for step in steps], listed, place, "RAS" if signs else ""
        )
        of = of if of == said else along
    elif spacings is not None and len(space) in (2, 3):
        each, mins = header.get("units"), header.get("axis mins", header.get("axismins"))
        sizes = dict(zip(of, (float(spacings[k]) for k in space), strict=True))
        at = dict(zip(of, space, strict=True))
        known_axes = set(of) <= set("xyz")
        listed = [str(each[at[axis]]) if axis in at else "" for axis in "xyz"] if each is not None else ""
        place = [float(mins[at[axis]]) if axis in at else 0.0 for axis in "xyz"] if mins is not None else None
        if place is not None and not np.isfinite(place).all():
            place = None
        along_axes = [[sizes[axis] if axis == way else 0.0 for way in "xyz"] for axis in of]
        geometry = directed_geometry(of, along_axes, listed, place, "")[1] if known_axes else Geometry()
    else:
        geometry = Geometry()
    for k, axis in zip(space, of, strict=True):
        names[k] = axis
    return names, geometry


def _list_vectors(header: Mapping[str, Any], ndim: int) -> list[Any]:
    """Return for each axis the step from one voxel to the next; None for those that are none of space."""
    said = header.get("space directions")
    if said is None or len(said) != ndim:
        return [None] * ndim
    return [None if vector is None or not np.isfinite(np.asarray(vector, float)).all() else vector for vector in said]


def write_nrrd(
    path: Path, array: Any, geometry: Geometry, progress: Callable[[float], None], names: Mapping[int, str]
) -> None:
    """Write a NRRD file, compressed by gzip; its header is simple enough to need no library.

    Names of classes are noted as 3D Slicer notes those of segments.
    """
    geometry, dtype = state_place(geometry), np.dtype(array.dtype)
    if dtype.str[1:] not in TYPES:
        raise InputError(f"a NRRD file cannot hold {dtype}; write it as float32 or as integers")
    lines = [
        "NRRD0004",
        f"type: {TYPES[dtype.str[1:]][0]}",
        f"dimension: {array.ndim}",
        f"sizes: {' '.join(str(size) for size in array.shape[::-1])}",
        "encoding: gzip",
        "endian: little",
    ]
    if array.ndim == 3 and geometry.spacing is not None:
        named = geometry.frame == "RAS"
        directions = geometry.directions or ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
        # The vectors of x, y and z are the columns of the axes; each is as long as a voxel.
        steps = [[part * size for part in way] for way, size in zip(directions, geometry.spacing[::-1], strict=True)]
        lines += [
            "space: right-anterior-superior" if named else "space dimension: 3",
            f"space directions: {' '.join(_show(step) for step in steps)}",
            "kinds: domain domain domain",
            *([f"space origin: {_show(geometry.offset[::-1])}"] if geometry.offset is not None else []),
            *([f"space units: {' '.join([chr(34) + geometry.unit + chr(34)] * 3)}"] if geometry.unit else []),
        ]
    elif geometry.spacing is not None:
        lines += [f"spacings: {geometry.spacing[2]!r} {geometry.spacing[1]!r}"]
        lines += [f'units: "{geometry.unit}" "{geometry.unit}"'] if geometry.unit else []
    for k, (number, name) in enumerate(names.items()):
        lines += [f"Segment{k}_Name:={name}", f"Segment{k}_LabelValue:={number}", f"Segment{k}_ID:=Segment_{number}"]
    with open(path, "xb") as file:
        file.write(("\n".join(lines) + "\n\n").encode())
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=5, filename="", mtime=0) as packed:
            for _, _, part in cut_slabs(array, progress):
                packed.write(np.ascontiguousarray(part, dtype.newbyteorder("<")).data)


def _show(numbers: Any) -> str:
    return f"({','.join(repr(float(number)) for number in numbers)})"
