"""Inputs, read box by box: zarr arrays (format 2 or 3, sharded or not), paths and URLs of such, and dask arrays; NumPy
arrays where a verb works tile by tile for another reason than their size in memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...arrays.checks import advise_floats, refuse_mask
from ...errors import InputError, InputTypeError, Keyword
from ...files.axes import Choice, View, choose_view
from ...files.coded import Coding, whole_numbers, zarr_coding
from ...files.geometry import Geometry, zarr_geometry, zarr_view
from ...files.places import locate, split_choice
from .grid import Box, Place
from .origins import Origin, find_origins

__all__ = [
    "Source",
    "as_path",
    "canonical_shape",
    "is_url",
    "open_classes",
    "open_ids",
    "open_source",
    "same_shape",
]

Array = npt.NDArray[Any]

_log = logging.getLogger("lpa3d")


def is_url(place: Any) -> bool:
    """Return whether `place` is a URL such as ``s3://bucket/volume.zarr``; ``file://`` is a path."""
    return isinstance(place, str) and "://" in place and not place.startswith("file://")


def as_path(place: str | os.PathLike[str]) -> str:
    """Return a local path, of a path or a ``file://`` URL."""
    return os.fspath(place).removeprefix("file://")


def canonical_shape(shape: Sequence[int]) -> Place:
    """Return a 2D or 3D shape as ``(Z, Y, X)``."""
    z, y, x = (1,) * (3 - len(shape)) + tuple(int(n) for n in shape)
    return z, y, x


LOST = " has masked chunks, whose mask would be lost; "


@dataclass(frozen=True)
class Source:
    """A stored input. Picklable: a worker in another process opens it anew.

    Attributes
    ----------
    name : str
        What messages call it.
    array
        The zarr, dask or NumPy array.
    view : View
        How it is seen as three or two axes.
    shape : tuple of int
        ``(Z, Y, X)``; a 2D array is one slice.
    ndim : int
        2 or 3, as the caller sees it.
    dtype
        Of what is read, in native byte order.
    chunks : tuple of int
        What is read at once, along the three axes.
    coding : Coding or None
        How stored numbers become values, where they are none.
    """

    name: str
    array: Any
    view: View
    shape: Place
    ndim: int
    dtype: np.dtype[Any]
    chunks: Place
    coding: Coding | None = None

    @property
    def is_dask(self) -> bool:
        """Return whether it is a dask array."""
        return hasattr(self.array, "dask")

    def read(self, box: Box) -> Array:
        """Return the voxels of a box as a new C-ordered array in native byte order."""
        part = self.view.read(self.array, box.slices[3 - self.ndim :])
        if self.is_dask:
            part = self._check(part.compute(scheduler="synchronous"), box)
        if self.coding is not None:
            part = self.coding.decode(part, box.lo[3 - self.ndim :])
        if part.dtype.kind == "f" and self.dtype.kind != "f":
            start = box.lo[3 - self.ndim :]
            return whole_numbers(part, self.dtype, self.name, "classes and ids", start).reshape(box.shape)
        out = np.ascontiguousarray(part, dtype=self.dtype).reshape(box.shape)
        return out if out.flags.writeable else out.copy()

    def _check(self, part: Any, box: Box) -> Any:
        """Return what dask computed, and refuse what is another thing than the dask array says."""
        name = Keyword(self.name)
        if isinstance(part, np.ma.MaskedArray):
            raise InputTypeError(name, LOST, f"pass dask.array.ma.filled({self.name}, 0)")
        if not isinstance(part, np.ndarray):
            raise InputTypeError(
                name,
                f" has chunks of the type {type(part).__module__}.{type(part).__qualname__}; NumPy arrays are needed: "
                f"pass {self.name}.map_blocks(numpy.asarray)",
            )
        if part.shape != box.shape[3 - self.ndim :]:
            raise InputError(
                name, f" has chunks of other shapes than it says: {part.shape}, not {box.shape[3 - self.ndim :]}"
            )
        if not np.can_cast(part.dtype, self.array.dtype, "safe"):
            raise InputTypeError(
                name,
                f" says that its dtype is {self.array.dtype}, but a chunk has {part.dtype.name}, of which values would "
                f"be lost; pass it with the dtype that it has, as map_blocks(..., dtype={part.dtype.name!r}) does",
            )
        return part

    def describe(self) -> dict[str, Any]:
        """Return what must be the same when a run is resumed (JSON): form, and a digest of what is stored.

        What it is read from is told apart by names, sizes and times (`lpa3d.tiled.driver.origins`), a dask array by its
        name besides. ``"unknown"`` names what cannot be told apart.
        """
        about: dict[str, Any] = {"name": self.name, "shape": list(self.shape[3 - self.ndim :]), "dtype": self.dtype.str}
        if isinstance(self.array, np.ndarray):
            return about | {"digest": f"in memory at {self.array.ctypes.data:x}"}
        form = self.array.name if self.is_dask else self.array.metadata.to_dict()
        found, unknown = [], set()
        for origin in self.origins:
            contents = origin.list_contents()
            if contents is None:
                unknown.add(origin.unknown)
            else:
                found.append(hashlib.sha256(b"\n".join(contents)).hexdigest())
        if not self.view.is_plain or self.view.beside:
            form = [form, self.view.index, self.view.order]
        digest = hashlib.sha256(json.dumps([form, sorted(found)], sort_keys=True, default=str).encode())
        return about | {"digest": digest.hexdigest()} | ({"unknown": ", ".join(sorted(unknown))} if unknown else {})

    @cached_property
    def origins(self) -> tuple[Origin, ...]:
        """Return what it is read from."""
        return find_origins(self.array)

    @property
    def geometry(self) -> Geometry:
        """Return what it says of the size of its voxels."""
        return zarr_geometry(self.array, self.view) if hasattr(self.array, "store_path") else Geometry()

    @property
    def decoded(self) -> int:
        """Return how many voxels are decoded of a chunk for one that is seen."""
        return 1 if self.is_dask or isinstance(self.array, np.ndarray) else self.view.count_beside(self.array.chunks)

    @property
    def copied(self) -> int:
        """Return the bytes for each voxel of a box that are held, besides the box itself, while it is read."""
        same = self.view.is_plain and self.coding is None and self.dtype.kind == np.dtype(self.array.dtype).kind
        return 0 if same else np.dtype(self.array.dtype).itemsize

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "origins"}

    @property
    def place(self) -> str:
        """Return where it lies, in whatever words it was named."""
        places = " ".join(sorted({os.sep.join(one.parts) for one in self.origins if one.is_local})) or self.name
        chosen = [at for k, at in enumerate(self.view.index) if self.view.sizes[k] > 1 and at is not None]
        return f"{places} {chosen}" if chosen else places


def open_source(array: Any, role: str) -> Source:
    """Open an input: the path or URL of a zarr array, a zarr array, a dask array, or a NumPy array.

    Raises
    ------
    InputError, InputTypeError
        If there is none, or it has not 2 or 3 dimensions, or a dtype that is not bool, integer or float.
    """
    name = base = role
    chosen: Choice = ()
    if isinstance(array, (str, os.PathLike)):
        name = os.fspath(array)
        base, chosen = split_choice(name)
        try:
            array = _open_url(base) if is_url(name) else _open_path(os.path.expanduser(as_path(name)))
        except (InputError, InputTypeError) as error:
            raise type(error)(Keyword(role), ": ", *error.args) from error
    refuse_mask(array, role)
    # A group of zarr has no shape, and a table of dask no chunks.
    stored = hasattr(array, "shape") and (hasattr(array, "store_path") or hasattr(array, "dask"))
    if not (stored and hasattr(array, "chunks")) and not isinstance(array, np.ndarray):
        raise InputTypeError(
            Keyword(role),
            f" is {'None' if array is None else f'a {type(array).__module__}.{type(array).__qualname__}'}; a zarr or "
            "dask array is needed, or the path or URL of a zarr array",
        )
    if isinstance(getattr(array, "_meta", None), np.ma.MaskedArray):
        raise InputTypeError(Keyword(role), LOST, f"pass dask.array.ma.filled({role}, 0)")
    if any(not math.isfinite(n) for n in array.shape):
        raise InputError(
            Keyword(role), f" is a dask array of unknown shape {array.shape}; pass {role}.compute_chunk_sizes()"
        )
    stored = hasattr(array, "store_path")
    called = Keyword(role) if name == role else base
    view = zarr_view(array, called, chosen) if stored else choose_view(called, None, array.shape)
    coding = zarr_coding(base, array) if stored else None
    dtype = np.dtype(array.dtype if coding is None else coding.dtype)
    if dtype.kind not in "buif":
        raise InputTypeError(Keyword(role), f" has dtype {dtype}; an array of bool or integers is needed")
    if hasattr(array, "dask"):
        chunks = tuple(max(sizes, default=1) for sizes in array.chunks)
    elif isinstance(array, np.ndarray):
        # Any box costs what it holds.
        chunks = (1,) * array.ndim
    else:
        chunks = tuple(array.chunks)
    return Source(
        name,
        array,
        view,
        canonical_shape(view.shape),
        len(view.shape),
        dtype.newbyteorder("="),
        canonical_shape([max(1, int(n)) for n in view.pick(chunks)]),
        coding,
    )


def _open_path(name: str) -> Any:
    """Open a local zarr array, or the only one of a group."""
    import zarr

    from ...files.readers import open_volume

    location = locate(name)
    if location.format != "zarr":
        raise InputTypeError(
            f"{name} is a file of another format, which is read as a whole: pass lpa3d.io.read({name!r}), or "
            f"store it as zarr: lpa3d.io.write('{Path(name).stem}.zarr', lpa3d.io.read({name!r}))"
        )
    with open_volume(name) as volume:
        return zarr.open_array(str(volume.path), mode="r")


def _open_url(name: str) -> Any:
    """Open a zarr array in object storage, or that of a group which the group's name stands for."""
    import zarr

    from ...files.ngff import choose_array

    try:
        node = zarr.open(name, mode="r")
        return node if isinstance(node, zarr.Array) else node[choose_array(name, node)]
    except ImportError as error:
        raise InputError(f"{name} needs a library that is not installed: {error}; pip install fsspec s3fs") from error
    except InputError:
        raise
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise InputError(f"{name} is no zarr array that can be opened: {error}") from error


def open_classes(array: Any, role: str) -> Source:
    """Open a class map; whole numbers that are stored as floats become int32, doubles int64, as they are read."""
    source = open_source(array, role)
    if source.dtype.kind != "f":
        return source
    if isinstance(array, np.ndarray):
        raise InputTypeError(Keyword(role), *advise_floats(source.dtype, f"{role} > 0.5", "them stored as int64"))
    return _take_whole(source, role, np.int32)


def open_ids(array: Any, role: str) -> Source:
    """Open instance ids; whole numbers that are stored as floats become uint32, doubles int64, as they are read."""
    source = open_source(array, role)
    if source.dtype.kind != "f":
        return source
    if isinstance(array, np.ndarray):
        raise InputTypeError(
            Keyword(role), f" has dtype {source.dtype}; ids are integers: store ", Keyword(role), " as int64 first"
        )
    return _take_whole(source, role, np.uint32)


def _take_whole(source: Source, role: str, dtype: npt.DTypeLike) -> Source:
    """Return a source of floats as one of integers: `dtype`, or int64 of those that may be too large for it."""
    taken = replace(source, dtype=np.dtype(dtype if source.dtype.itemsize <= 4 else np.int64))
    _log.info("%s stores whole numbers as %s; they are read as %s", role, source.dtype, taken.dtype)
    return taken


def same_shape(source: Source, role: str, other: Source, other_role: str) -> None:
    """Refuse two inputs of different shapes."""
    if source.shape != other.shape or source.ndim != other.ndim:
        shapes = [one.shape[3 - one.ndim :] for one in (source, other)]
        raise InputError(
            Keyword(role),
            f" has shape {shapes[0]} but ",
            Keyword(other_role),
            f" has shape {shapes[1]}; they must be the same",
        )
