"""Runs of every verb that are really killed, with SIGKILL, and go on: the same bytes in the end."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest

from lpa3d.errors import InputError
from lpa3d.tiled.driver.journal import Journal
from lpa3d.tiled.driver.scratch import Folder

zarr = pytest.importorskip("zarr")

from tests.stored_cell import VERBS, digest, store_cell  # noqa: E402

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return store_cell(tmp_path_factory.mktemp("inputs"))


class Killer:
    """Counts the writes of a run, and kills the process at one of them, before or after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.at = 0, -1
        for owner, name in ((Folder, "put"), (Journal, "append"), (zarr.storage.LocalStore, "_set")):
            self._wrap(monkeypatch, owner, name)

    def _wrap(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_killed_at_random_points_of_every_stage(
    verb: Any, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killer = Killer(monkeypatch)
    (tmp_path / "whole").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verb(inputs, tmp_path / "whole")
        expected = digest(tmp_path / "whole")
        writes = killer.count
        assert writes > 20
        # A run that is killed again and again, each time some writes further, and then left alone.
        rng = random.Random(5)
        (tmp_path / "killed").mkdir()
        killed = 0
        for _ in range(5):
            killer.count, killer.at = 0, rng.randint(1, max(2, writes // 4))
            child = os.fork()
            if not child:
                try:
                    verb(inputs, tmp_path / "killed")
                finally:
                    os._exit(0)
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
                break
            killed += 1
        assert killed >= 3
        killer.at = -1
        if digest(tmp_path / "killed") != expected:
            # Killed while it deleted its own folder, it has all outputs in place: the call sweeps, then refuses.
            with contextlib.suppress(InputError):
                verb(inputs, tmp_path / "killed")
    assert digest(tmp_path / "killed") == expected
