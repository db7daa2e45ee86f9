"""MetaImage files (.mha, and .mhd with the voxels in a file of their own), as ITK programs write them.

The format is a few lines of text and the voxels, so it needs no library: ITK's is large, reads volumes whole only, and
drops what the file says of its unit.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .coded import code_line
from .geometry import Geometry, directed_geometry, state_place
from .places import INTERRUPTED, Location, refuse_short
from .volume import Volume, choose_rows, cut_slabs

__all__ = ["open_metaimage", "write_metaimage"]

Array = npt.NDArray[Any]

TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
"""``MET_LONG``, which has 4 bytes or 8 by the machine, is none of them."""

LONGEST = 2**16
"""Bytes of the longest header."""

# ITK's frame points to the left, to the back and up.
TO_RAS = (-1.0, -1.0, 1.0)


def open_metaimage(location: Location) -> Volume:
    """Open a MetaImage file; voxels that are not compressed are mapped into memory."""
    path = location.path
    fields, start = _read_header(path)

    def get(*names: str) -> str | None:
        return next((fields[name] for name in names if name in fields), None)

    def numbers(*names: str) -> list[float] | None:
        text = get(*names)
        return None if text is None else [float(word) for word in text.split()]

    def flag(*names: str) -> bool:
        return str(get(*names)).lower() in ("true", "1", "yes", "t")

    kind = str(get("elementtype")).upper()
    if kind not in TYPES:
        raise InputError(
            f"{path} holds elements of the type {kind}, which is not read; save it with one of {', '.join(TYPES)}"
        )
    dtype = np.dtype(TYPES[kind])
    big = flag("binarydatabyteordermsb", "elementbyteordermsb")
    dtype = dtype.newbyteorder(">" if big else "<") if dtype.itemsize > 1 else dtype
    ndim, sizes = int(get("ndims") or 0), tuple(int(size) for size in numbers("dimsize") or ())
    if len(sizes) != ndim or not ndim:
        raise InputError(f"{path} says that it has {ndim} axes, but gives {len(sizes)} sizes; mend its header")
    slope, shift = numbers("elementtointensityfunctionslope"), numbers("elementtointensityfunctionoffset")
    coding = code_line(location.base, dtype, (slope or [1.0])[0], (shift or [0.0])[0])
    binary, packed = get("binarydata") is None or flag("binarydata"), flag("compresseddata")
    names, geometry = _name_axes(get, numbers, ndim)
    channels = int(get("elementnumberofchannels") or 1)
    if channels > 1:
        names, sizes = ["c^", *names], (channels, *sizes)
    view = location.choose(names[::-1], sizes[::-1])
    files = _find_files(path, fields, sizes, ndim)
    count = math.prod(sizes) // len(files)
    skip = int(get("headersize") or 0)
    starts = []
    for file in files:
        size = file.stat().st_size
        at = start if file == path else 0
        if not packed and binary:
            at = size - count * dtype.itemsize if skip == -1 else at + max(skip, 0)
            refuse_short(file, size, max(at, 0) + count * dtype.itemsize)
        starts.append(at)

    def load() -> Array:
        parts = [
            _load(file, at, count, dtype, packed=packed, binary=binary) for file, at in zip(files, starts, strict=True)
        ]
        return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(sizes[::-1])

    mapped = binary and not packed and len(files) == 1
    return Volume(
        location.name,
        path,
        "metaimage",
        view.shape,
        dtype,
        lambda lo, hi: np.asarray(view.read(load(), view.cut_rows(lo, hi))),
        geometry,
        compression="zlib" if packed else "",
        rows=choose_rows(view.shape, dtype) if mapped else 0,
        view=view,
        coding=coding,
        at_once=True,
    )


def _read_header(path: Path) -> tuple[dict[str, str], int]:
    """Return the fields of the header, by their names in lower case, and where it ends."""
    fields: dict[str, str] = {}
    with open(path, "rb") as file:
        while file.tell() < LONGEST:
            line = file.readline(LONGEST)
            name, equals, value = line.decode("utf-8", "replace").partition("=")
            if not equals:
                break
            fields[name.strip().lower()] = value.strip()
            if name.strip().lower() == "elementdatafile":
                return fields, file.tell()
    raise InputError(f"{path} is no MetaImage file, or its header was cut off: no line names its ElementDataFile")


def _name_axes(get: Callable[..., str | None], numbers: Callable[..., Any], ndim: int) -> tuple[list[str], Geometry]:
    """Return the names of the axes, the fastest first, and the geometry."""
    names = ["x", "y", "z", "t", "u", "v"][:ndim]
    sizes = numbers("elementspacing") or numbers("elementsize")
    if sizes is None or len(sizes) != ndim or ndim < 2:
        return names, Geometry()
    matrix = numbers("transformmatrix", "rotation", "orientation")
    turned = np.array(matrix).reshape(ndim, ndim) if matrix is not None and len(matrix) == ndim**2 else np.eye(ndim)
    place = numbers("offset", "position", "origin")
    space = min(ndim, 3)
    # Each row says where an axis points to.
    steps = np.zeros((space, 3))
    steps[:, :space] = turned[:space, :space] * np.array(sizes[:space])[:, None]
    origin = np.array([*place[:space], 0.0][:3]) * TO_RAS if place is not None and len(place) == ndim else None
    along, geometry = directed_geometry(
        names[:space],
        (steps * TO_RAS).tolist(),
        get("distanceunits") or "",
        None if origin is None else origin.tolist(),
        "RAS",
    )
    return [*along, *names[space:]], geometry


def _find_files(path: Path, fields: Mapping[str, str], sizes: tuple[int, ...], ndim: int) -> list[Path]:
    """Return the files that hold the voxels, in their order."""
    said = fields["elementdatafile"]
    if said.upper() == "LOCAL":
        return [path]
    words = said.split()
    if words[0].upper() == "LIST":
        with open(path, "rb") as file:
            lines = file.read().decode("utf-8", "replace").splitlines()
        at = next(k for k, line in enumerate(lines) if line.lower().replace(" ", "").startswith("elementdatafile="))
        names = [line.strip() for line in lines[at + 1 :] if line.strip()]
    elif "%" in said and len(words) == 4:
        first, last, step = (int(word) for word in words[1:])
        names = [words[0] % k for k in range(first, last + 1, step)]
    else:
        names = [said]
    if not names or sizes[-1] % len(names):
        raise InputError(f"{path} has {len(names)} files for its {sizes[-1]} slices; mend its header")
    files = [path.parent / name for name in names]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise InputError(f"{path} has its voxels in {missing}, which does not exist; put it back, beside the header")
    return files


def _load(path: Path, start: int, count: int, dtype: np.dtype[Any], *, packed: bool, binary: bool) -> Array:
    """Return the voxels in a file, one after the other."""
    if packed:
        needed, found = count * dtype.itemsize, bytearray()
        for part in _unpack(path, start):
            found += part
        refuse_short(path, len(found), needed)
        return np.frombuffer(bytes(found[:needed]), dtype)
    if not binary:
        with open(path, "rb") as file:
            file.seek(start)
            words = file.read().split()
        refuse_short(path, len(words), count, "numbers")
        return np.array(words[:count]).astype(dtype)
    return np.memmap(path, dtype, "r", start, (count,)) if count else np.empty(0, dtype)


def _unpack(path: Path, start: int) -> Iterator[bytes]:
    """Yield what is compressed in a file, by zlib or gzip."""
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
    with open(path, "rb") as file:
        file.seek(start)
        while part := file.read(2**20):
            yield unpacker.decompress(part)
    yield unpacker.flush()
    if not unpacker.eof:
        raise InputError(f"{path} is incomplete: what is compressed in it does not end{INTERRUPTED}")


def write_metaimage(path: Path, array: Any, geometry: Geometry, progress: Callable[[float], None]) -> None:
    """Write a MetaImage file with its voxels inside, compressed by zlib."""
    geometry, dtype = state_place(geometry), np.dtype(array.dtype)
    kind = next((name for name, code in TYPES.items() if code == dtype.str[1:]), None)
    if kind is None:
        raise InputError(f"a MetaImage file cannot hold {dtype}; write it as float32 or as integers")
    n = array.ndim
    lines = [
        "ObjectType = Image",
        f"NDims = {n}",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
    ]
    fields = [f"DimSize = {' '.join(str(size) for size in array.shape[::-1])}"]
    if geometry.spacing is not None:
        directions = np.array(geometry.directions or np.eye(3))
        turn = np.array(TO_RAS) if geometry.frame == "RAS" else np.ones(3)
        if n == 3:
            fields += [f"TransformMatrix = {_show((directions * turn).ravel())}"]
            fields += [f"Offset = {_show(np.array((geometry.offset or (0, 0, 0))[::-1]) * turn)}"]
        fields += [f"ElementSpacing = {_show(geometry.spacing[::-1][:n])}"]
        fields += [f"DistanceUnits = {geometry.unit}"] if geometry.unit else []
    fields += [f"ElementType = {kind}", "ElementDataFile = LOCAL"]
    with open(path, "xb") as file:
        file.write(("\n".join([*lines, ""])).encode())
        place = file.tell()
        # Its size is known at the end.
        file.write((f"CompressedDataSize = {'':20}\n" + "\n".join([*fields, ""])).encode())
        start = file.tell()
        packer = zlib.compressobj(5)
        for _, _, part in cut_slabs(array, progress):
            file.write(packer.compress(np.ascontiguousarray(part, dtype.newbyteorder("<")).data))
        file.write(packer.flush())
        size = file.tell() - start
        file.seek(place)
        file.write(f"CompressedDataSize = {size:<20}".encode())


def _show(numbers: Any) -> str:
    return " ".join(repr(float(number)) for number in numbers)
