"""The journal of a run: which items of which stage are done, so that a run that was killed loses none of them.

A stage's log holds rows of int64, appended when an item is done: in a local folder as bytes at the end of one file,
which survive the process at once; in a zarr store, which cannot append, as segments of about a second each. A torn row
at the end, of a disk that was full, is cut off.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .scratch import Blobs, Folder

__all__ = ["Journal"]

EVERY = 1.0
"""Seconds between two segments in a store."""

Rows = npt.NDArray[np.int64]


def _flat(stage: str) -> str:
    """Return a stage's name as one part of a key: the keys below one stage hold no other's."""
    return stage.replace("/", ".")


class Journal:
    """The journal below ``journal/`` and ``done/`` of the blobs of a run; for one process.

    `close` it at the end: a store's last segment is written then.
    """

    def __init__(self, blobs: Blobs) -> None:
        self.blobs = blobs
        self._files: dict[str, int] = {}
        self._waiting: dict[str, list[tuple[int, ...]]] = {}
        self._since = time.monotonic()
        self._lock = threading.Lock()

    def append(self, stage: str, *row: int) -> None:
        """Note that something is done; all rows of a stage have one length."""
        with self._lock:
            if isinstance(self.blobs, Folder):
                file, data = self._open(stage, len(row)), np.array(row, np.int64).tobytes()
                if os.write(file, data) != len(data):
                    # What follows must not stand behind a torn row.
                    os.close(self._files.pop(stage))
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.blobs.root))
                return
            self._waiting.setdefault(stage, []).append(row)
            if time.monotonic() - self._since > EVERY:
                self._flush()

    def rows(self, stage: str, columns: int = 1) -> Iterator[Rows]:
        """Yield what was noted of a stage in its order, ``(n, columns)`` at a time."""
        self.flush()
        for key in sorted(self.blobs.keys(f"journal/{_flat(stage)}")):
            at = 0
            while True:
                data = self.blobs.get(key, at, 2**20 // (8 * columns) * 8 * columns)
                whole = len(data) // (8 * columns) * 8 * columns
                if not whole:
                    break
                yield np.frombuffer(data[:whole], np.int64).reshape(-1, columns)
                at += whole

    def finish(self, stage: str, **values: Any) -> None:
        """Note that a whole stage is done, with what it found (JSON); its rows are not needed any more."""
        self.flush()
        self.blobs.put(f"done/{_flat(stage)}", [json.dumps(values).encode()])
        with self._lock:
            if stage in self._files:
                os.close(self._files.pop(stage))
        self.blobs.clear(f"journal/{_flat(stage)}")

    def finished(self, stage: str) -> bool:
        """Return whether a whole stage is done."""
        return self.blobs.has(f"done/{_flat(stage)}")

    def values(self, stage: str) -> dict[str, Any]:
        """Return what `finish` was given."""
        found: dict[str, Any] = json.loads(self.blobs.get(f"done/{_flat(stage)}", 0, 2**24))
        return found

    def list_stages(self) -> tuple[list[str], list[str]]:
        """Return the stages that are done, and those that are begun, with dots where their names have slashes."""
        done, begun = ({key.split("/")[1] for key in self.blobs.keys(area)} for area in ("done", "journal"))
        return sorted(done), sorted(begun - done)

    def flush(self) -> None:
        """Write what waits."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        self._since = time.monotonic()
        waiting, self._waiting = self._waiting, {}
        for stage, rows in waiting.items():
            self.blobs.put(f"journal/{_flat(stage)}/{time.time_ns():020d}", [np.array(rows, np.int64).tobytes()])

    def close(self) -> None:
        """Write what waits and close all files."""
        while self._files:
            os.close(self._files.popitem()[1])
        self.flush()

    def _open(self, stage: str, columns: int) -> int:
        """Return the open file of a stage in a folder."""
        assert isinstance(self.blobs, Folder)
        if stage not in self._files:
            path = self.blobs.root / "journal" / _flat(stage) / "rows"
            path.parent.mkdir(parents=True, exist_ok=True)
            binary = getattr(os, "O_BINARY", 0)  # or Windows writes two bytes for one of some
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | binary, 0o666)
            os.ftruncate(file, os.fstat(file).st_size // (8 * columns) * 8 * columns)
            self._files[stage] = file
        return self._files[stage]
