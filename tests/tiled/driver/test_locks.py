"""Locks of runs: of the system, and files where a file system has none."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lpa3d.errors import InputError
from lpa3d.tiled.driver import locks
from lpa3d.tiled.driver.locks import LockError, claim, lock

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


# -------------------------------------------------------------------------------------------------------------- stores


def stores(tmp_path: Path) -> list[Any]:
    """Return a store of each kind."""
    zarr = pytest.importorskip("zarr")
    found = [zarr.storage.MemoryStore(), zarr.storage.LocalStore(tmp_path / "local")]
    try:
        import fsspec  # noqa: F401
        import obstore
    except ImportError:
        return found
    return [
        *found,
        zarr.storage.FsspecStore.from_url(f"memory://claims/{tmp_path.name}"),
        zarr.storage.ObjectStore(obstore.store.MemoryStore()),
        zarr.storage.ObjectStore(obstore.store.LocalStore(str(tmp_path / "objects"), mkdir=True)),
    ]


@pytest.fixture(params=range(5))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    found = stores(tmp_path)
    return found[request.param] if request.param < len(found) else pytest.skip("needs fsspec and obstore")


def list_claims(store: Any) -> list[str]:
    return list(locks.StoreFolder(store, locks.CLAIMS).keys(""))


def test_a_store_is_claimed_once(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WAIT", 0)
    with claim(store) as one:
        one.check()
        with pytest.raises(InputError, match=r"another process is at work on.*delete \.lpa3d-lock/"), claim(store):
            pass
        one.check()
    with claim(store):
        pass
    assert list_claims(store) == []


def test_many_that_claim_a_store_at_once(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work, most, done, refused = [0], [0], [0], [0]
    start, guard = threading.Barrier(4), threading.Lock()

    def work() -> None:
        start.wait()
        try:
            with claim(store) as one:
                with guard:
                    at_work[0] += 1
                    most[0] = max(most[0], at_work[0])
                time.sleep(0.01)
                one.check()
                with guard:
                    at_work[0] -= 1
                    done[0] += 1
        except InputError:
            refused[0] += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    assert done[0] + refused[0] == 4
    assert list_claims(store) == []


@pytest.mark.parametrize(
    "about",
    [
        {"place": locks._place(), "process": 2**22 + 1, "started": 1.0},  # it is not there
        {"place": locks._place(), "process": os.getppid(), "started": 1.0},  # another one of its number
        {"place": locks._place(), "process": os.getpid(), "started": 1.0},  # this one, which has let go of it
    ],
)
def test_a_claim_of_a_process_that_ended(store: Any, about: Any) -> None:
    locks.StoreFolder(store, locks.CLAIMS).put("old", [json.dumps(about).encode()])
    with claim(store):
        assert "old" not in list_claims(store)


@pytest.mark.parametrize("text", [b'{"place": "elsewhere", "process": 7, "started": 1.0}', b"", b"[]"])
def test_a_claim_of_another_machine(store: Any, text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WAIT", 0)
    blobs = locks.StoreFolder(store, locks.CLAIMS)
    blobs.put("old", [text])
    with pytest.raises(InputError, match=r"another machine.* delete \.lpa3d-lock/old"), claim(store):
        pass
    blobs.delete("old")
    with claim(store):
        pass


def test_a_claim_that_was_deleted(store: Any) -> None:
    with claim(store) as one:
        one.blobs.delete(one.key)
        with pytest.raises(LockError, match="was deleted while this run was at work"):
            one.check()


def test_a_run_that_begins_while_another_one_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the one that ends removes its empty folder, the one that begins has a folder, or is refused."""
    zarr = pytest.importorskip("zarr")
    import lpa3d

    zarr.create_array(str(tmp_path / "in.zarr"), shape=(4, 4, 4), dtype="u1", chunks=(2, 2, 2))[:] = 1
    home = tmp_path / "out.zarr.lpa3d"
    steps = [(Path, "mkdir"), (Path, "is_dir"), (os, "access"), (os, "open"), (os, "stat"), (os, "listdir")]

    def stop(stage: str, done: float) -> None:
        raise KeyboardInterrupt

    def call(at: int) -> int:
        """Remove the folder after one of the steps, unless it is in use; return how many there were."""
        count = [0]
        with monkeypatch.context() as patch:
            for owner, name in steps:
                inner = getattr(owner, name)

                def counted(*args: Any, inner: Any = inner, **how: Any) -> Any:
                    result = inner(*args, **how)
                    if count[0] >= 0 and str(args[0]).startswith(str(home)):
                        count[0] += 1
                        if count[0] == at:
                            count[0] = -1
                            with contextlib.suppress(OSError):
                                home.rmdir()
                            count[0] = at
                    return result

                patch.setattr(owner, name, counted)
            with pytest.raises(KeyboardInterrupt):  # not earlier
                lpa3d.label(tmp_path / "in.zarr", out=tmp_path / "out.zarr", tile=4, progress=stop)
        assert not home.exists()
        return count[0]

    total = call(-1)
    assert total > 5
    for at in range(1, min(total, 10)):
        call(at)
