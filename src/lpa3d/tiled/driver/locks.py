"""One run at a time works on an output: a lock of the system in a folder, claims in a store.

A store has no locks, and not all can put a key only where there is none. So whoever wants to work puts a *claim* of its
own and then lists all claims: of two at least one sees the other, and whoever sees another one that may be alive takes
its own back. While it works it looks now and then whether its claim is still there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import random
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import InputError, Lpa3dError
from .scratch import StoreFolder

__all__ = ["Claim", "LockError", "claim", "lock"]

WAIT = 0.2
"""Seconds after which somebody else has the lock: who lets go of it, or died, takes less."""

UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK}
"""What file systems without locks say, such as some that are shared over a network."""


@contextmanager
def lock(home: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is made if it is not there (any more).

    The system lets go of the lock when the process ends, however it does. Where the file system has no such locks, a
    file says which process of which machine is at work; that of a process which ended on this machine does not count.

    Raises
    ------
    InputError
        If another process is at work there, or one of another machine may be.
    """
    import filelock

    own = filelock.FileLock(home / "lock", thread_local=False, fallback_to_soft=False)
    said = filelock.SoftFileLock(home / "lock.owner", thread_local=False)
    held: filelock.BaseFileLock = own
    while not held.is_locked:
        # Who had the lock before may have deleted it with the folder.
        with contextlib.suppress(FileNotFoundError):
            home.mkdir(parents=True, exist_ok=True)
            try:
                held.acquire(timeout=WAIT)
            except filelock.Timeout:
                advice = "wait for it, or end it"
                if held is said:
                    advice += (
                        f"; if it ended on another machine, which cannot be seen from here, delete {said.lock_file}"
                    )
                raise InputError(f"another process is at work on this output ({home}); {advice}") from None
            except (NotImplementedError, OSError) as error:
                if held is said or (isinstance(error, OSError) and error.errno not in UNSUPPORTED):
                    raise
                held = said
    try:
        yield
    finally:
        # While it is held, as whoever waits for it looks whether it is still there. (Windows deletes it with the last
        # handle.)
        with contextlib.suppress(OSError):
            (home / "lock").unlink()
        held.release()


class LockError(Lpa3dError, RuntimeError):
    """Somebody took away what kept others out."""


CLAIMS = ".lpa3d-lock"
"""Where claims are in a store."""

TRIES = 6
"""Of claims that met another one: two runs that begin at one moment are not both refused."""

_held: set[str] = set()
"""The claims of this process."""


class Claim:
    """The claim of a run on a store."""

    def __init__(self, blobs: StoreFolder, key: str) -> None:
        self.blobs, self.key = blobs, key

    def check(self) -> None:
        """Raise `LockError` if the claim is not there any more."""
        if not self.blobs.has(self.key):
            raise LockError(
                f"{self.blobs.name(self.key)}, which kept other processes out, was deleted while this run was at work: "
                "another process may be at work on this output, so this one stops"
            )


@contextlib.contextmanager
def claim(store: Any) -> Iterator[Claim]:
    """Keep other runs out of a store.

    Claims of processes that ended on this machine do not count, and are deleted.

    Raises
    ------
    InputError
        If another process is at work there, or one of another machine may be.
    """
    blobs = StoreFolder(store, CLAIMS)
    own = Claim(blobs, secrets.token_hex(8))
    about = {"place": _place(), "process": os.getpid(), "started": _started(os.getpid())}
    _held.add(own.key)
    try:
        for attempt in range(TRIES):
            blobs.put(own.key, [json.dumps(about).encode()])
            other = next((key for key in blobs.keys("") if key != own.key and not _is_over(blobs, key)), None)
            if other is None:
                break
            blobs.delete(own.key)
            if attempt == TRIES - 1:
                raise InputError(
                    f"another process is at work on this output ({_describe(blobs, other)}); wait for it, or end it; "
                    f"if it ended on another machine, which cannot be seen from here, delete {blobs.name(other)}"
                )
            time.sleep(WAIT * random.random() * (attempt + 1) / TRIES)
        yield own
    finally:
        _held.discard(own.key)
        blobs.delete(own.key)


def _place() -> str:
    """Return what differs between machines, their starts, and containers in which processes are numbered anew."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(process: int) -> float | None:
    """Return when a process of this machine was started; None if there is none."""
    import psutil

    try:
        return float(psutil.Process(process).create_time())
    except psutil.Error:
        return None


def _read(blobs: StoreFolder, key: str) -> dict[str, Any]:
    try:
        found = json.loads(blobs.get(key, 0, 2**16))
    except (KeyError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _describe(blobs: StoreFolder, key: str) -> str:
    about = _read(blobs, key)
    return f"process {about.get('process', '?')} of {str(about.get('place', '?')).partition(' ')[0]}"


def _is_over(blobs: StoreFolder, key: str) -> bool:
    """Return whether a claim is one of a process that is known to have ended, or is gone; delete it then."""
    about = _read(blobs, key)
    if not about:
        return not blobs.has(key)
    if about.get("place") != _place():
        return False
    own = about.get("process") == os.getpid()
    if key in _held if own else _started(int(about["process"])) == about.get("started"):
        return False
    blobs.delete(key)
    return True
