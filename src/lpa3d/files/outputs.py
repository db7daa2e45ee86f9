"""Outputs that are never half-written: checked before the work, written beside, renamed into place.

Stages of one output:

1. `Outputs.add` checks, before any work, that the place exists, may be written and holds nothing that would be lost.
2. The caller writes to `Output.temp`, in the folder of the target, so that the rename stays inside one file system.
3. `Outputs.commit` flushes every output to the disk and renames it; an old folder is moved aside first and deleted
   last, so that at any moment a complete old or new one exists on the disk.

`Outputs.discard` removes what was written so far. After ``kill -9`` a ``.lpa3d-tmp-*`` (or ``.lpa3d-old-*``, the
former output) is left beside the target.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ..errors import InputError, Keyword, Lpa3dError

__all__ = ["ASIDE", "TEMPORARY", "Cancelled", "Output", "Outputs", "overlaps"]

TEMPORARY = ".lpa3d-tmp-"
ASIDE = ".lpa3d-old-"


class Cancelled(Lpa3dError):
    """The outputs were discarded while somebody still worked on them."""


@dataclass(frozen=True)
class Output:
    """One output in the making: write to `temp`; it becomes `target`."""

    name: str
    target: Path
    temp: Path


def _access(folder: Path, name: str) -> None:
    """Refuse a `folder` that does not exist or may not be written."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"cannot write {name}: {folder} {what}; make it with: mkdir -p '{folder}'")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {name}: the folder {folder} is not writable; choose another one")


def overlaps(target: Path, other: Path) -> bool:
    """Return whether writing `target` would touch `other`, links of both kinds included."""
    other = Path(os.path.realpath(other))
    if target == other or target in other.parents or other in target.parents:
        return True
    return target.exists() and other.exists() and target.samefile(other)


def _remove(path: Path) -> None:
    """Delete the file or folder `path`; a folder may still be growing while it is deleted."""
    for _ in range(20):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        if not os.path.lexists(path):
            return
        time.sleep(0.05)


def _flush(path: Path) -> None:
    """Write `path`, with all that it holds, from the system's cache to the disk."""
    if path.is_dir():
        for entry in path.iterdir():
            _flush(entry)
        if os.name != "posix":
            return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Outputs:
    """The outputs of one run; what was not committed is removed on leaving the ``with`` block."""

    def __init__(self, *, overwrite: bool = False) -> None:
        self.overwrite = overwrite
        self.writing = False
        self._outputs: list[Output] = []
        self._lock = threading.Lock()
        self._cancelled = False

    def __enter__(self) -> Outputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def add(self, name: str, target: Path, suffix: str, inputs: Sequence[Path], *, folder: bool = False) -> Output:
        """Check that `target` can be written without harm and return the output.

        Parameters
        ----------
        name : str
            What the user typed, for messages.
        target : Path
            What will appear: a file, or the first folder that does not exist yet. Links are followed.
        suffix : str
            Suffix of the temporary name.
        inputs : sequence of Path
            Files and folders that are read and so must not be written.
        folder : bool
            Whether the output is a folder rather than a file.

        Raises
        ------
        InputError
            If the folder is missing or not writable, if `target` exists and may not be overwritten or is of another
            kind, or if it is one of `inputs` or another output.
        """
        target = Path(os.path.realpath(target))
        for other in inputs:
            if overlaps(target, other):
                raise InputError(f"{name} is also an input ({other}), which would be lost; choose another output")
        for output in self._outputs:
            if overlaps(target, output.target):
                raise InputError(f"{name} and {output.name} would be one new file or store; give each its own")
        _access(target.parent, name)
        if target.exists() and not (target.is_dir() if folder else target.is_file()):
            raise InputError(f"{name} exists and is no {'folder' if folder else 'file'}; choose another output")
        if target.exists() and not self.overwrite:
            raise InputError(f"{name} exists; pass ", Keyword("overwrite", True), " to replace it")
        output = Output(name, target, target.with_name(f"{TEMPORARY}{secrets.token_hex(4)}{suffix}"))
        self._outputs.append(output)
        return output

    def check(self) -> None:
        """Raise `Cancelled` if the outputs were discarded: long writes ask now and then."""
        if self._cancelled:
            raise Cancelled("the run was interrupted")

    def commit(self) -> None:
        """Flush every output and rename it into place."""
        for output in self._outputs:
            self.check()
            _flush(output.temp)
        with self._lock:
            self.check()
            while self._outputs:
                self._rename(self._outputs[0])
                del self._outputs[0]

    def _rename(self, output: Output) -> None:
        """Put one complete output into its place."""
        target, temp = output.target, output.temp
        if target.exists() and not self.overwrite:
            # Somebody else made it since the check. Hours of work are not thrown away for that.
            self._outputs.remove(output)
            raise Lpa3dError(f"{output.name} appeared while the work ran; the result was kept as {temp}")
        if target.is_dir():
            aside = target.with_name(temp.name.replace(TEMPORARY, ASIDE))
            target.rename(aside)
            try:
                temp.rename(target)
            except BaseException:
                aside.rename(target)
                raise
            _remove(aside)
        else:
            temp.replace(target)
        if os.name == "posix":
            handle = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def cancel(self) -> None:
        """Make the next `check`, in whatever thread, raise `Cancelled`."""
        self._cancelled = True

    def discard(self) -> None:
        """Remove everything that was written but not committed; may be called from another thread."""
        self.cancel()
        with self._lock:
            for output in self._outputs:
                _remove(output.temp)
            self._outputs.clear()
