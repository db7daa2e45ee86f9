"""Outputs that are never half-written: checked before the work, written beside, flushed, put into place by a rename.

What every output goes through, of whatever kind it is (`Part`):

1. It is written beside its place, where nobody looks for it.
2. `Part.flush` writes it from the system's cache to the disk. All outputs of a run are flushed before the first is
   published.
3. `publish` puts all of them into place, or none: what one replaces is moved aside until all are there, so that an
   error brings the former outputs back.

`Beside` is a file or a folder of the local disk. Outputs of the tiled driver, in stores too, are in
`lpa3d.tiled.driver.outputs`.

`Outputs` are the files of one call. After ``kill -9`` a ``.lpa3d-tmp-*`` (or ``.lpa3d-old-*``, the former output) is
left beside the target.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from ..errors import InputError, Keyword, Lpa3dError

__all__ = [
    "ASIDE",
    "TEMPORARY",
    "Appeared",
    "Beside",
    "Cancelled",
    "Outputs",
    "Part",
    "flush",
    "flush_folders",
    "overlaps",
    "publish",
    "remove",
]

TEMPORARY = ".lpa3d-tmp-"
ASIDE = ".lpa3d-old-"


class Cancelled(Lpa3dError):
    """The outputs were discarded while somebody still worked on them."""


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


def remove(path: Path) -> None:
    """Delete the file or folder `path`; a folder may still be growing while it is deleted."""
    for _ in range(20):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        if not os.path.lexists(path):
            return
        time.sleep(0.05)


FLUSHERS = 8
"""Files of a folder that are flushed at once: a file system writes many of them in one go."""


def flush(path: Path) -> None:
    """Write `path`, with all that it holds, from the system's cache to the disk."""
    if path.is_dir():
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(FLUSHERS) as threads:
            for folder, _, files in os.walk(path, topdown=False):
                for _ in threads.map(_flush_one, [Path(folder, name) for name in files]):
                    pass
                _flush_one(Path(folder))
    else:
        _flush_one(path)


def flush_folders(folder: Path, top: Path) -> None:
    """Write to the disk what is called how in `folder` and in those above it, up to the one that holds `top`."""
    for path in (folder, *folder.parents):
        _flush_one(path)
        if path == top.parent:
            break


def _flush_one(path: Path) -> None:
    """Flush a file; a folder alone, where the system can do that."""
    if os.name != "posix" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Part(Protocol):
    """An output that was written beside its place, or where nobody takes it for complete."""

    def flush(self) -> None:
        """Write it from the system's cache to the disk."""

    def publish(self) -> None:
        """Put it into its place; after an error everything is as before."""

    def take_back(self) -> None:
        """Undo `publish`: what it replaced is in its place again, and what was made waits beside."""

    def settle(self) -> None:
        """Delete what it replaced, which now nothing brings back any more."""


def publish(parts: Sequence[Part]) -> None:
    """Put outputs, all flushed, into their places: all of them, or after an error none."""
    published: list[Part] = []
    try:
        for part in parts:
            part.publish()
            published.append(part)
    except BaseException:
        for part in reversed(published):
            with contextlib.suppress(OSError):  # of one that cannot be taken back; the first error is raised
                part.take_back()
        raise
    for part in parts:
        part.settle()


class Appeared(Lpa3dError):
    """Somebody else made an output while the work ran."""


@dataclass(frozen=True)
class Beside:
    """A file, or a folder, that is written to `temp` and becomes `target`, on the same file system.

    Attributes
    ----------
    name : str
        What messages call it.
    aside : Path
        Where what it replaces waits.
    overwrite : bool
        Whether it may replace anything.
    advice : tuple of str and Keyword
        What to do where it may not; for the message.
    """

    name: str
    target: Path
    temp: Path
    aside: Path
    overwrite: bool
    advice: tuple[str | Keyword, ...] = ()

    def flush(self) -> None:
        """Flush what was made."""
        flush(self.temp)

    def publish(self) -> None:
        """Move what is there aside and `temp` to its place; what is no longer beside is in its place already."""
        if not os.path.lexists(self.temp):
            return
        if os.path.lexists(self.target) and not self.overwrite:
            # Hours of work are not thrown away for that.
            raise Appeared(f"{self.name} appeared while the work ran; the result was kept as {self.temp}", *self.advice)
        try:
            if self.target.is_dir():
                self.target.rename(self.aside)
            elif os.path.lexists(self.target):
                self._link()
            self.temp.replace(self.target)
            _flush_one(self.target.parent)
        except BaseException:
            self.take_back()
            raise

    def _link(self) -> None:
        """Keep the file that is there under a second name, so that at no moment there is none in its place."""
        try:
            os.link(self.target, self.aside)
        except OSError:  # a file system without links
            self.target.rename(self.aside)

    def take_back(self) -> None:
        """Move what was made beside again, and bring back what it replaced."""
        if not os.path.lexists(self.temp):
            self.target.rename(self.temp)
        if os.path.lexists(self.aside):
            if not os.path.lexists(self.target):
                self.aside.rename(self.target)
            elif self.aside.samefile(self.target):
                self.aside.unlink()  # a second name of what is still there

    def settle(self) -> None:
        """Delete what was replaced, also by an earlier call that was killed before it did."""
        remove(self.aside)


class Outputs:
    """The outputs of one run; what was not committed is removed on leaving the ``with`` block.

    Of a run over tiles, which writes its outputs itself, only their places are checked; they may be in `stores`, too.
    """

    def __init__(self, *, overwrite: bool = False, stores: bool = False) -> None:
        self.overwrite = overwrite
        self.stores = stores
        self.writing = False
        self._outputs: list[Beside] = []
        self._lock = threading.Lock()
        self._cancelled = False

    def __enter__(self) -> Outputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def add(
        self,
        name: str,
        target: Path,
        suffix: str,
        inputs: Sequence[Path],
        *,
        folder: Path | None = None,
        make: Callable[..., Beside] = Beside,
    ) -> Beside:
        """Check that `target` can be written without harm and return the output.

        Parameters
        ----------
        name : str
            What the user typed, for messages.
        target : Path
            What will appear: a file, or a folder. Links are followed.
        suffix : str
            Suffix of the temporary name.
        inputs : sequence of Path
            Files and folders that are read and so must not be written.
        folder : Path, optional
            Of an output that is a folder: what must be there. What else lies around it and is missing it makes itself.
        make : callable
            Makes the output.

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
        _access(folder or target.parent, name)
        parent = next(above for above in target.parents if above.is_dir())
        if parent != folder:
            _access(parent, name)
        if target.exists() and not (target.is_dir() if folder else target.is_file()):
            raise InputError(f"{name} exists and is no {'folder' if folder else 'file'}; choose another output")
        if target.exists() and not self.overwrite:
            raise InputError(f"{name} exists; pass ", Keyword("overwrite", True), " to replace it")
        temp = parent / f"{TEMPORARY}{secrets.token_hex(4)}{suffix}"
        aside = target.with_name(f"{ASIDE}{secrets.token_hex(4)}{suffix}")
        output = make(name, target, temp, aside, self.overwrite)
        self._outputs.append(output)
        return output

    def check(self) -> None:
        """Raise `Cancelled` if the outputs were discarded: long writes ask now and then."""
        if self._cancelled:
            raise Cancelled("the run was interrupted")

    def commit(self) -> None:
        """Flush every output and put it into place."""
        for output in self._outputs:
            self.check()
            output.flush()
        with self._lock:
            self.check()
            try:
                publish(self._outputs)
            except Appeared as error:
                others = [output.temp for output in self._outputs if str(output.temp) not in str(error)]
                self._outputs.clear()
                raise Appeared("; and ".join([str(error), *map(str, others)])) from None
            self._outputs.clear()

    def cancel(self) -> None:
        """Make the next `check`, in whatever thread, raise `Cancelled`."""
        self._cancelled = True

    def discard(self) -> None:
        """Remove everything that was written but not committed; may be called from another thread."""
        self.cancel()
        with self._lock:
            for output in self._outputs:
                remove(output.temp)
            self._outputs.clear()
