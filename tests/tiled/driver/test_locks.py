"""Locks of runs: of the system, and files where a file system has none."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lpa3d.errors import InputError
from lpa3d.tiled.driver.locks import lock

fcntl = pytest.importorskip("fcntl")

HOLD = """
import sys, time
from pathlib import Path
from lpa3d.tiled.driver.locks import lock
{before}
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

WITHOUT = """
import fcntl
def flock(*_): raise OSError({number}, "no locks here")
fcntl.flock = flock
"""


@contextmanager
def held(home: Path, before: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD.format(before=before), str(home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def lose(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with held(home) as process:
        with pytest.raises(InputError, match="another process is at work on this output"), lock(home):
            pass
        process.kill()
        process.wait()
        with lock(home):
            assert os.listdir(home) == ["lock"]
    assert os.listdir(home) == []


def test_two_threads_exclude_each_other(tmp_path: Path) -> None:
    with lock(tmp_path), pytest.raises(InputError, match="another process"), lock(tmp_path):
        pass
    with lock(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    lose(monkeypatch, number)
    with held(tmp_path, WITHOUT.format(number=number)) as process:
        with pytest.raises(InputError, match=r"another process.*delete .*lock\.owner"), lock(tmp_path):
            pass
        process.kill()
        process.wait()
        # A process of this machine that ended is known to have ended.
        with lock(tmp_path):
            assert "lock.owner" in os.listdir(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_process_of_another_machine_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lose(monkeypatch, errno.EOPNOTSUPP)
    (tmp_path / "lock.owner").write_text("7\nelsewhere\n")
    with pytest.raises(InputError, match=r"delete .*lock\.owner"), lock(tmp_path):
        pass
    (tmp_path / "lock.owner").unlink()
    with lock(tmp_path):
        pass


def test_other_errors_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lose(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="no locks here"), lock(tmp_path):
        pass
