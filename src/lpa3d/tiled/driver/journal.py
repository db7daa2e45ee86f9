"""The journal of a run: which items of which stage are done, so that a run that was killed loses none of them.

A stage's log holds rows of int64, appended when an item is done: in a local folder as bytes at the end of one file,
which survive the process at once; in a zarr store, which cannot append, as segments of about a second each.

Each row has a checksum, in which its stage and its place take part. Where a disk was full or the power was cut, the
last row may be torn, and nothing but zeros follows it: it is cut off. Any other damage is an error. The end of a stage
is on the disk before what it replaces is deleted; rows get there when the system, or `Journal.flush`, writes them.
"""

from __future__ import annotations

import errno
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ...files.outputs import flush_folders
from .scratch import Blobs, Folder, ScratchError, pack_record, read_record, refuse_damaged

__all__ = ["Journal"]

FIRST = "written"
"""The stage whose rows are put into a store before those of others, which refer to them."""

EVERY = 1.0
"""Seconds between two segments in a store."""

START = 16
"""Bytes that a log in a folder starts with: a name of the format, and the checksum of stage and columns."""

Rows = npt.NDArray[np.int64]


def _flat(stage: str) -> str:
    """Return a stage's name as one part of a key: the keys below one stage hold no other's."""
    return stage.replace("/", ".")


def _start(stage: str, columns: int) -> bytes:
    return b"lpa3dlog" + zlib.crc32(f"{stage}\n{columns}".encode()).to_bytes(8, "little")


def _seal(stage: str, place: int, row: bytes) -> bytes:
    """Return a row with its checksum."""
    return row + zlib.crc32(row, zlib.crc32(f"{stage}\n{place}".encode())).to_bytes(8, "little")


def _count_whole(stage: str, place: int, data: bytes, width: int) -> int:
    """Return how many of the rows, `width` bytes each, are whole, up to the first that is not."""
    for at in range(0, len(data) - width + 1, width):
        if _seal(stage, place, data[at : at + width - 8]) != data[at : at + width]:
            return at // width
        place += 1
    return len(data) // width


class Journal:
    """The journal below ``journal/`` and ``done/`` of the blobs of a run; for one process.

    `close` it at the end: a store's last segment is written then.
    """

    def __init__(self, blobs: Blobs, check: Callable[[], None] = lambda: None) -> None:
        self.blobs = blobs
        self._check = check
        """Called before anything is noted in a store."""
        self.noted = False
        """Whether any item was noted since it was opened."""
        self._files: dict[str, tuple[int, int]] = {}
        """The file of each stage, and its rows."""
        self._named: set[str] = set()
        """Stages whose files have their names on the disk."""
        self._segments: dict[str, int] = {}
        self._waiting: dict[str, list[tuple[int, ...]]] = {}
        self._since = time.monotonic()
        self._lock = threading.Lock()

    def append(self, stage: str, *row: int) -> None:
        """Note that something is done; all rows of a stage have one length."""
        self.noted = True
        with self._lock:
            if isinstance(self.blobs, Folder):
                file, place = self._open(stage, len(row))
                data = _seal(stage, place, np.array(row, np.int64).tobytes())
                whole = False
                try:
                    whole = os.write(file, data) == len(data)
                finally:
                    if not whole:
                        # What follows must not stand behind a torn row: who opens the file anew cuts that off.
                        os.close(self._files.pop(stage)[0])
                if not whole:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.blobs.root))
                self._files[stage] = file, place + 1
                return
            self._waiting.setdefault(stage, []).append(row)
            if time.monotonic() - self._since > EVERY:
                self._flush()

    def rows(self, stage: str, columns: int = 1) -> Iterator[Rows]:
        """Yield what was noted of a stage in its order, ``(n, columns)`` at a time.

        Raises
        ------
        ScratchError
            If what was noted is damaged.
        """
        self._write()
        found = self._read_file if isinstance(self.blobs, Folder) else self._read_segments
        for data in found(stage, columns):
            if data:
                yield np.frombuffer(data, np.int64).reshape(-1, columns + 1)[:, :columns]

    def _key(self, stage: str) -> str:
        return f"journal/{_flat(stage)}/rows"

    def _refuse(self, key: str, stage: str, why: str) -> ScratchError:
        return refuse_damaged("journal", stage, self.blobs.name(key), why)

    def _read_file(self, stage: str, columns: int) -> Iterator[bytes]:
        """Yield the whole rows of a log in a folder, with their checksums."""
        key, width, place = self._key(stage), 8 * columns + 8, 0
        try:
            start = self.blobs.get(key, 0, START)
        except KeyError:
            return
        if start != _start(stage, columns):
            if self.blobs.get(key, START, 1):
                raise self._refuse(key, stage, "its start is not that of such a log")
            return  # it had only begun
        while True:
            at = START + place * width
            data = self.blobs.get(key, at, 2**20 // width * width)
            count = _count_whole(stage, place, data, width)
            yield data[: count * width]
            place += count
            if (count + 1) * width <= len(data):
                self._check_torn(key, stage, START + (place + 1) * width, place)
                return
            if len(data) < 2**20 // width * width:
                return

    def _check_torn(self, key: str, stage: str, at: int, place: int) -> None:
        """Refuse a damaged row, the one at `place`, that anything but zeros follows."""
        while rest := self.blobs.get(key, at, 2**20):
            if rest.count(0) < len(rest):
                raise self._refuse(key, stage, f"the checksum of row {place} is another one")
            at += len(rest)

    def _read_segments(self, stage: str, columns: int) -> Iterator[bytes]:
        """Yield the rows of a log in a store, with their checksums."""
        width = 8 * columns + 8
        for number, key in enumerate(self._list_segments(stage)):
            data = b""
            while part := self.blobs.get(key, len(data), 2**24):
                data += part
            if key != self._segment(stage, number):
                raise self._refuse(self._segment(stage, number), stage, "it is missing")
            # Segments appear whole, or not at all.
            if not data or len(data) % width or _count_whole(key, 0, data, width) * width < len(data):
                raise self._refuse(key, stage, "its checksum is another one")
            yield data

    def _segment(self, stage: str, number: int) -> str:
        return f"{self._key(stage)}/{number:020d}"

    def _list_segments(self, stage: str) -> list[str]:
        return sorted(self.blobs.keys(self._key(stage)))

    def finish(self, stage: str, **values: Any) -> None:
        """Note that a whole stage is done, with what it found (JSON); its rows are not needed any more."""
        self._write()
        self._check()
        key = f"done/{_flat(stage)}"
        self.blobs.put(key, [pack_record(key, values)], durable=True)
        with self._lock:
            if stage in self._files:
                os.close(self._files.pop(stage)[0])
            self._segments.pop(stage, None)
        self.blobs.clear(f"journal/{_flat(stage)}")

    def finished(self, stage: str) -> bool:
        """Return whether a whole stage is done."""
        return self._read_end(stage) is not None

    def values(self, stage: str) -> dict[str, Any]:
        """Return what `finish` was given."""
        found = self._read_end(stage)
        assert found is not None
        return found

    def list_stages(self) -> tuple[list[str], list[str]]:
        """Return the stages that are done, and those in progress, with dots where their names have slashes."""
        done, begun = ({key.split("/")[1] for key in self.blobs.keys(area)} for area in ("done", "journal"))
        return sorted(done), sorted(begun - done - {FIRST})

    def _read_end(self, stage: str) -> dict[str, Any] | None:
        """Return what is noted of the end of a stage, None if it is not done."""
        key = f"done/{_flat(stage)}"
        try:
            return read_record(key, self.blobs.get(key, 0, 2**26))
        except KeyError:
            return None
        except ValueError as error:
            raise self._refuse(key, stage, str(error)) from error

    def flush(self) -> None:
        """Write what waits, and all that was noted to the disk."""
        with self._lock:
            self._flush()
            for stage, (file, _) in self._files.items():
                os.fsync(file)
                if stage not in self._named and isinstance(self.blobs, Folder):
                    flush_folders((self.blobs.root / self._key(stage)).parent, self.blobs.root)
                    self._named.add(stage)

    def _write(self) -> None:
        """Write what waits."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        self._since = time.monotonic()
        waiting, self._waiting = self._waiting, {}
        if waiting:
            self._check()
        # What was written before that it is done, as `append` was called.
        for stage, rows in sorted(waiting.items(), key=lambda entry: entry[0] != FIRST):
            number = self._segments.get(stage, -1)
            if number < 0:
                number = len(self._list_segments(stage))
            key = self._segment(stage, number)
            sealed = [_seal(key, place, np.array(row, np.int64).tobytes()) for place, row in enumerate(rows)]
            self.blobs.put(key, [b"".join(sealed)])
            self._segments[stage] = number + 1

    def close(self) -> None:
        """Write what waits and close all files."""
        while self._files:
            os.close(self._files.popitem()[1][0])
        self._write()

    def _open(self, stage: str, columns: int) -> tuple[int, int]:
        """Return the open file of a stage in a folder, and how many rows it has."""
        assert isinstance(self.blobs, Folder)
        if stage not in self._files:
            path = self.blobs.root / self._key(stage)
            path.parent.mkdir(parents=True, exist_ok=True)
            width = 8 * columns + 8
            count = sum(len(data) for data in self._read_file(stage, columns)) // width
            binary = getattr(os, "O_BINARY", 0)  # or Windows writes two bytes for one of some
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | binary, 0o666)
            try:
                if count:
                    os.ftruncate(file, START + count * width)
                else:
                    self._begin(file, _start(stage, columns))
            except BaseException:
                os.close(file)
                raise
            self._files[stage] = file, count
        return self._files[stage]

    def _begin(self, file: int, start: bytes) -> None:
        """Write the start of a log."""
        assert isinstance(self.blobs, Folder)
        os.ftruncate(file, 0)
        if os.write(file, start) != len(start):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.blobs.root))
