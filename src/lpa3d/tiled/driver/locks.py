"""One process at a time works on an output."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import InputError

__all__ = ["lock"]

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
