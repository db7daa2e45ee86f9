"""What a run keeps between its stages: named arrays under a key (blobs), and volumes of tiles made of them.

A blob is written at once and appears whole or not at all. It starts with an index, so that one of its arrays can be
read without the others: a reader of a face does not decode the tile. Checksums of the index, in which the key takes
part, and of each compressed frame are compared before anything is decoded: what was damaged, truncated or exchanged is
an error, and so is what is missing. Records of the run itself are JSON with a checksum (`pack_record`).

A scratch is a local folder, or a zarr store for a run whose workers share nothing else.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import secrets
import shutil
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...errors import Example, Keyword, Lpa3dError
from ...files.outputs import flush_folders
from .grid import Box, Grid, Place

__all__ = [
    "Blobs",
    "Folder",
    "Scratch",
    "ScratchError",
    "ScratchVolume",
    "StoreFolder",
    "pack_record",
    "read_record",
    "refuse_damaged",
]

FRAME = 2**30
"""Bytes that are compressed at once; Blosc takes less than 2**31."""

HEAD = 4096
"""Bytes that are read first of a blob: nearly always its whole index."""

PREFIX = struct.Struct("<QII")
"""What a blob starts with: the length of its index, the checksum of key and length, and that of the index."""

Array = npt.NDArray[Any]


class Blobs(Protocol):
    """Bytes under keys; `put` is atomic and replaces."""

    def put(self, key: str, parts: list[bytes], *, durable: bool = False) -> None:
        """Store the parts, one after the other; with `durable` they are on the disk when it returns."""

    def name(self, key: str) -> str:
        """Return where a blob is, for messages."""

    def get(self, key: str, start: int, length: int) -> bytes:
        """Return some bytes, fewer where the blob ends; a missing key is a `KeyError`."""

    def has(self, key: str) -> bool:
        """Return whether there is a blob."""

    def delete(self, key: str) -> None:
        """Delete a blob, if there is one."""

    def clear(self, prefix: str) -> None:
        """Delete all blobs below `prefix`."""

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys below `prefix`."""


@dataclass(frozen=True)
class Folder:
    """Blobs as files of a local, or shared, folder.

    Attributes
    ----------
    root : Path
    made : bool
        Whether the driver made the folder: where it is not there it is not made, as who looks is on a machine that
        does not see it, or late for a run that is over.
    """

    root: Path
    made: bool = False

    def put(self, key: str, parts: list[bytes], *, durable: bool = False) -> None:
        """Store the parts, one after the other; with `durable` they are on the disk when it returns."""
        path = self.root / key
        # Names of attempts differ, so that two of them never write one file.
        temp = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        for attempt in range(2):
            try:
                with open(temp, "xb", buffering=0) as file:
                    for part in parts:
                        view = memoryview(part)
                        while len(view):
                            view = view[file.write(view) :]
                    if durable:
                        os.fsync(file.fileno())
                os.replace(temp, path)
                if durable:
                    # Folders that were there before are on the disk, or were flushed with what was put into them first.
                    flush_folders(path.parent, self.root if attempt else path)
                return
            except FileNotFoundError:
                if attempt:
                    raise
                if self.made and not self.root.is_dir():
                    raise ScratchError(
                        f"{self.root}, the scratch of this run, is not there: the run is over, or "
                        f"{platform.node()} does not see the folder; pass ",
                        Keyword("scratch", Example("FOLDER")),
                        ", one that all workers share",
                    ) from None
                path.parent.mkdir(parents=True, exist_ok=True)
            except BaseException:
                temp.unlink(missing_ok=True)
                raise

    def name(self, key: str) -> str:
        """Return where a blob is, for messages."""
        return str(self.root / key)

    def get(self, key: str, start: int, length: int) -> bytes:
        """Return some bytes, fewer where the blob ends; a missing key is a `KeyError`."""
        try:
            with open(self.root / key, "rb", buffering=0) as file:
                if start:
                    file.seek(start)
                chunks = []
                while length > 0 and (chunk := file.read(length)):
                    chunks.append(chunk)
                    length -= len(chunk)
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        except FileNotFoundError:
            raise KeyError(key) from None

    def has(self, key: str) -> bool:
        """Return whether there is a blob."""
        return (self.root / key).is_file()

    def delete(self, key: str) -> None:
        """Delete a blob, if there is one."""
        (self.root / key).unlink(missing_ok=True)

    def clear(self, prefix: str) -> None:
        """Delete all blobs below `prefix`."""
        shutil.rmtree(self.root / prefix, ignore_errors=True)

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys below `prefix`."""
        top = self.root / prefix
        for folder, _, files in os.walk(top):
            for name in files:
                if not name.startswith("."):
                    yield (Path(folder) / name).relative_to(self.root).as_posix()


@dataclass(frozen=True)
class StoreFolder:
    """Blobs in a zarr store: object storage, or whatever else zarr can write to."""

    store: Any
    prefix: str

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def name(self, key: str) -> str:
        """Return where a blob is, for messages."""
        return f"{self._key(key)} in the store"

    def put(self, key: str, parts: list[bytes], *, durable: bool = False) -> None:
        """Store the parts, one after the other; a store keeps what it was given."""
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        buffer = default_buffer_prototype().buffer.from_bytes(b"".join(parts))
        sync(self.store.set(self._key(key), buffer))

    def get(self, key: str, start: int, length: int) -> bytes:
        """Return some bytes, fewer where the blob ends; a missing key is a `KeyError`."""
        from zarr.abc.store import RangeByteRequest
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        name = self._key(key)
        try:
            size = sync(self.store.getsize(name)) if sync(self.store.exists(name)) else -1
        except FileNotFoundError:  # deleted between the two
            size = -1
        if size < 0:
            raise KeyError(key)
        stop = min(start + length, size)
        if stop <= start:
            return b""
        found = sync(self.store.get(name, default_buffer_prototype(), RangeByteRequest(start, stop)))
        if found is None:
            raise KeyError(key)
        return bytes(found.to_bytes())

    def has(self, key: str) -> bool:
        """Return whether there is a blob."""
        from zarr.core.sync import sync

        return bool(sync(self.store.exists(self._key(key))))

    def delete(self, key: str) -> None:
        """Delete a blob, if there is one."""
        from zarr.core.sync import sync

        sync(self.store.delete(self._key(key)))

    def clear(self, prefix: str) -> None:
        """Delete all blobs below `prefix`."""
        from zarr.core.sync import sync

        sync(self.store.delete_dir(self._key(prefix).rstrip("/")))

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys below `prefix`."""
        from zarr.core.sync import sync

        async def collect() -> list[str]:
            top = self._key(prefix).rstrip("/")
            return [key async for key in self.store.list_prefix(f"{top}/" if top else "")]

        skip = len(self.prefix) + 1 if self.prefix else 0
        for key in sync(collect()):
            yield key[skip:]


def _encode(array: Array) -> list[bytes]:
    """Return the compressed frames of an array.

    Labels of 256 cubed: 10 ms to 1/38 of their size, 6 ms back; with bytes shuffled 15 ms to 1/45, 8 ms back; zstd
    38 ms to 1/99, 34 ms back.
    """
    from numcodecs.blosc import NOSHUFFLE, compress

    flat = np.ascontiguousarray(array).reshape(-1)
    step = max(1, FRAME // max(1, array.dtype.itemsize))
    return [
        compress(flat[at : at + step], b"lz4", 1, NOSHUFFLE, 0, array.dtype.itemsize)
        for at in range(0, flat.size, step)
    ]


def _decode(frames: list[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Return the array that `_encode` was given."""
    from numcodecs.blosc import decompress

    array = np.empty(shape, dtype)
    flat = array.reshape(-1)
    step = max(1, FRAME // max(1, dtype.itemsize))
    for k, frame in enumerate(frames):
        decompress(frame, flat[k * step : (k + 1) * step])
    return array


class ScratchError(Lpa3dError, RuntimeError):
    """What a run kept is damaged or missing."""


def refuse_damaged(what: str, key: str, where: str, why: str) -> ScratchError:
    """Return the error for something that a run kept, which is damaged or missing."""
    return ScratchError(
        f"the {what} of this run is damaged ({key}, in {where}: {why}); pass ",
        Keyword("resume", False),
        " to delete what the run did and start anew",
    )


def pack_record(key: str, values: dict[str, Any]) -> bytes:
    """Return JSON with a checksum, in which the key takes part."""
    return json.dumps(values | {"checksum": _sum_record(key, values)}).encode()


def read_record(key: str, data: bytes) -> dict[str, Any]:
    """Return what `pack_record` was given; what is damaged is a `ValueError`."""
    values = json.loads(data)
    if not isinstance(values, dict):
        raise ValueError("it is no record")
    if values.pop("checksum", None) != _sum_record(key, values):
        raise ValueError("its checksum is another one")
    return values


def _sum_record(key: str, values: dict[str, Any]) -> int:
    return zlib.crc32(f"{key}\n{json.dumps(values)}".encode())


@dataclass(frozen=True)
class Scratch:
    """Named arrays under keys such as ``"label/scan/17"``."""

    blobs: Blobs

    def put(self, key: str, **arrays: Array) -> None:
        """Store arrays of any dtype and shape under `key`, in the place of what was there."""
        index: dict[str, Any] = {}
        body: list[bytes] = []
        at = 0
        for name, array in arrays.items():
            array = np.asarray(array)
            frames = _encode(array) if array.size else []
            sums = [(len(frame), zlib.crc32(frame)) for frame in frames]
            index[name] = [array.dtype.str, array.shape, at, sums]
            at += sum(map(len, frames))
            body += frames
        head = json.dumps(index).encode()
        self.blobs.put(key, [PREFIX.pack(len(head), _sum_length(key, len(head)), zlib.crc32(head)), head, *body])

    def get(self, key: str, *names: str) -> dict[str, Array]:
        """Return the arrays under `key`, only those that are named if any are; a `KeyError` if one is not among them.

        Raises
        ------
        ScratchError
            If there is nothing under the key, or if what is there is damaged.
        """
        try:
            start = self._read(key, 0, HEAD)
            if len(start) < PREFIX.size:
                raise ValueError("it is too short")
            size, length_sum, head_sum = PREFIX.unpack_from(start)
            if length_sum != _sum_length(key, size):
                raise ValueError("its checksum is another one")
            if len(start) < PREFIX.size + size:
                start += self._read(key, len(start), PREFIX.size + size - len(start))
            head = start[PREFIX.size : PREFIX.size + size]
            if zlib.crc32(head) != head_sum:
                raise ValueError("the checksum of its index is another one")
            index = json.loads(head)
            wanted = {name: index[name] for name in names or index}
            found = {}
            for name, (dtype, shape, at, sums) in wanted.items():
                frames = []
                at += PREFIX.size + size
                for length, frame_sum in sums:
                    frame = start[at : at + length]
                    if len(frame) < length:
                        frame = self._read(key, at, length)
                    if zlib.crc32(frame) != frame_sum:
                        raise ValueError(f"the checksum of {name!r} is another one")
                    frames.append(frame)
                    at += length
                found[name] = _decode(frames, np.dtype(dtype), tuple(shape))
        except ValueError as error:
            raise refuse_damaged("scratch", key, self.blobs.name(key), str(error)) from error
        return found

    def _read(self, key: str, start: int, length: int) -> bytes:
        try:
            return self.blobs.get(key, start, length)
        except KeyError:
            raise ValueError("it is missing") from None

    def has(self, key: str) -> bool:
        """Return whether there is something under `key`."""
        return self.blobs.has(key)

    def delete(self, key: str) -> None:
        """Delete what is under `key`, if there is anything."""
        self.blobs.delete(key)

    def clear(self, area: str) -> None:
        """Delete a key, or all keys below it."""
        if self.has(area):
            self.delete(area)
        self.blobs.clear(area)

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys below `prefix`."""
        return self.blobs.keys(prefix)

    def volume(
        self,
        name: str,
        grid: Grid,
        dtype: npt.DTypeLike,
        cut: int = 0,
        tiles: npt.NDArray[np.integer[Any]] | None = None,
    ) -> ScratchVolume:
        """Return a volume of tiles under `name`, of which only `tiles` are written, if that is given."""
        written = None
        if tiles is not None:
            flags = np.zeros(len(grid), np.bool_)
            flags[tiles] = True
            written = np.packbits(flags)
        return ScratchVolume(self, name, grid, np.dtype(dtype), cut, written)


def _sum_length(key: str, length: int) -> int:
    """Return the checksum of a blob's key and the length of its index."""
    return zlib.crc32(f"{key}\n{length}".encode())


@dataclass(frozen=True)
class ScratchVolume:
    """A volume of which each tile is a blob. One that is missing is an error.

    Attributes
    ----------
    grid
        Its tiles.
    cut : int
        A tile is kept in up to 27 bricks, cut as many voxels from each of its faces, so that a neighbour that reads a
        halo of `cut` voxels decodes just these.
    written : ndarray of uint8 or None
        A bit for each tile, whether it is written; the others are 0. None if all are.
    """

    scratch: Scratch
    name: str
    grid: Grid
    dtype: np.dtype[Any]
    cut: int = 0
    written: npt.NDArray[np.uint8] | None = None

    @property
    def shape(self) -> Place:
        """Return the volume's shape."""
        return self.grid.shape

    def _key(self, tile: int) -> str:
        return f"{self.name}/{tile}"

    def _bricks(self, box: Box) -> Iterator[tuple[str, Box]]:
        """Yield the name and voxels of each brick of the tile `box`."""
        spans = []
        for lo, hi in zip(box.lo, box.hi, strict=True):
            ends = sorted({lo, min(lo + self.cut, hi), max(hi - self.cut, lo), hi})
            spans.append(list(itertools.pairwise(ends)))
        for z, y, x in itertools.product(*(range(len(span)) for span in spans)):
            (z0, z1), (y0, y1), (x0, x1) = spans[0][z], spans[1][y], spans[2][x]
            yield f"{z}{y}{x}", Box((z0, y0, x0), (z1, y1, x1))

    def write(self, tile: int, array: Array) -> None:
        """Write a tile."""
        box = self.grid.box(tile)
        if array.shape != box.shape or array.dtype != self.dtype:
            raise ValueError(f"tile {tile} is {box.shape} {self.dtype}, not {array.shape} {array.dtype}")
        self.scratch.put(self._key(tile), **{name: array[brick.within(box)] for name, brick in self._bricks(box)})

    def has(self, tile: int) -> bool:
        """Return whether a tile is one of those that are written."""
        return self.written is None or bool(self.written[tile // 8] >> (7 - tile % 8) & 1)

    def read(self, box: Box) -> Array:
        """Return the voxels of any box inside the volume."""
        out: Array | None = None
        for tile in self.grid.tiles_in(box):
            if not self.has(tile):
                continue
            whole = self.grid.box(tile)
            parts = {name: (brick, brick.intersect(box)) for name, brick in self._bricks(whole)}
            wanted = [name for name, (_, part) in parts.items() if part is not None]
            found = self.scratch.get(self._key(tile), *wanted)
            if len(wanted) == 1 and parts[wanted[0]][0] == box:
                return found[wanted[0]]  # it need not be copied
            if out is None:
                out = np.zeros(box.shape, self.dtype)
            for name in wanted:
                brick, part = parts[name]
                if part is not None:
                    out[part.within(box)] = found.pop(name)[part.within(brick)]
        return np.zeros(box.shape, self.dtype) if out is None else out
