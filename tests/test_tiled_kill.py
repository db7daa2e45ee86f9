"""Runs of every verb that are really killed, with SIGKILL, and go on: the same bytes in the end."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lpa3d
from lpa3d.tiled.journal import Journal
from lpa3d.tiled.scratch import Folder

zarr = pytest.importorskip("zarr")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

TILE = 16


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Store a small cell: class map, sparse instance labels, instances slice by slice."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(4)
    coarse = rng.random((6, 8, 8)).repeat(6, 0).repeat(5, 1).repeat(5, 2)
    volume = (coarse > 0.35).astype(np.uint8) + (coarse > 0.8).astype(np.uint8)
    labels = lpa3d.label(volume, connectivity=6)
    blocks = np.add.outer(np.add.outer(np.arange(36) // 12 * 100, np.arange(40) // 20 * 10), np.arange(40) // 20)
    instances = np.where(labels > 0, labels.astype(np.int64) * 1000 + blocks, 0)
    seeds = np.zeros_like(instances)
    seeds[4::8] = instances[4::8]
    slices = np.zeros_like(instances)
    for z in range(36):
        ids = np.unique(instances[z])
        slices[z] = np.concatenate([[0], 1 + rng.permutation(len(ids) - 1)])[np.searchsorted(ids, instances[z])]
    found = {}
    for name, array in {"volume": volume, "seeds": seeds, "instances": instances, "slices": slices}.items():
        found[name] = folder / f"{name}.zarr"
        zarr.create_array(str(found[name]), shape=array.shape, dtype=array.dtype, chunks=(9, 16, 11))[:] = array
    return found


def label(inputs: dict[str, Path], out: Path) -> Any:
    lpa3d.label(inputs["volume"], connectivity=26, out=out / "labels.zarr", tile=TILE)


def propagate(inputs: dict[str, Path], out: Path) -> Any:
    lpa3d.propagate(inputs["volume"], inputs["seeds"], sweeps=3, out=out / "labels.zarr", tile=TILE)


def merge(inputs: dict[str, Path], out: Path) -> Any:
    lpa3d.merge(inputs["instances"], min_contact=0.2, out=out / "labels.zarr", tile=TILE)


def stitch(inputs: dict[str, Path], out: Path) -> Any:
    lpa3d.stitch(inputs["slices"], classes=inputs["volume"], out=out / "labels.zarr", tile=TILE)


def fuse(inputs: dict[str, Path], out: Path) -> Any:
    names = {name: out / f"{name}.zarr" for name in ("volume", "seeds", "provenance")}
    lpa3d.fuse(classes=inputs["volume"], instances=inputs["seeds"], slices=inputs["instances"], out=names, tile=TILE)


def evaluate(inputs: dict[str, Path], out: Path) -> Any:
    e = lpa3d.evaluate(inputs["instances"], inputs["seeds"], scratch=out / "run", tile=TILE)
    zarr.create_array(str(out / "f1.zarr"), shape=(1,), dtype="f8")[:] = e["f1"]


VERBS: list[Callable[[dict[str, Path], Path], Any]] = [label, propagate, merge, stitch, fuse, evaluate]


def digest(folder: Path) -> dict[str, str]:
    """Return what a folder holds, file by file."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


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
        for _ in range(12):
            killer.count, killer.at = 0, rng.randint(1, max(2, writes // 5))
            child = os.fork()
            if not child:
                try:
                    verb(inputs, tmp_path / "killed")
                finally:
                    os._exit(0)
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
                break
            killed += 1
        assert killed >= 4
        killer.at = -1
        if digest(tmp_path / "killed") != expected:
            verb(inputs, tmp_path / "killed")
    assert digest(tmp_path / "killed") == expected
