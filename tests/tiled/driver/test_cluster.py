"""Every verb on workers in other processes, which share the stores and nothing else; and workers that die."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lpa3d

zarr = pytest.importorskip("zarr")
distributed = pytest.importorskip("distributed")

from tests.stored_cell import digest, evaluate, fuse, label, propagate, store_cell  # noqa: E402

VERBS = [label, propagate, fuse, evaluate]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return store_cell(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def expected(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Run every verb on threads."""
    found = {}
    for verb in VERBS:
        folder = tmp_path_factory.mktemp(verb.__name__)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            verb(inputs, folder)
        found[verb.__name__] = digest(folder)
    return found


@pytest.fixture(scope="module")
def cluster(expected: Any) -> Iterator[Any]:
    """Two worker processes; made after the threads' runs, or those would find the client, and compile the kernels."""
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster),
    ):
        yield cluster


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_the_same_bytes(verb: Any, inputs: Any, expected: Any, cluster: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verb(inputs, tmp_path)
    assert digest(tmp_path) == expected[verb.__name__]


@pytest.mark.long  # the model check has workers that die, too
def test_a_worker_is_killed(inputs: Any, expected: Any, cluster: Any, tmp_path: Path) -> None:
    killed = []

    def kill(stage: str, done: float) -> None:
        if done > 0.3 and not killed:
            killed.append(next(iter(cluster.workers.values())).pid)
            os.kill(killed[0], signal.SIGKILL)

    lpa3d.label(inputs["volume"], connectivity=26, out=tmp_path / "labels.zarr", tile=16, progress=kill)
    assert killed
    assert digest(tmp_path) == expected["label"]
