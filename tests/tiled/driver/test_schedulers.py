"""Schedulers: a cluster without workers is told of, not waited for in silence."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from lpa3d.errors import Lpa3dWarning
from lpa3d.tiled.driver import schedulers
from lpa3d.tiled.driver.schedulers import Cluster


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Client:
    """A client of a cluster of some workers."""

    threads: dict[str, int] = {}  # noqa: RUF012

    def nthreads(self) -> dict[str, int]:
        return self.threads


def test_a_cluster_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, client = Clock(), Client()
    monkeypatch.setattr(schedulers, "time", clock)
    cluster = Cluster(client)

    def wait(seconds: int) -> list[str]:
        """Return what is said in some seconds."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")  # what was said with the same words would not be shown again
            for _ in range(seconds):
                clock.now += 1
                assert cluster.wait(0) is None
        assert all(one.category is Lpa3dWarning for one in caught)
        return [str(one.message) for one in caught]

    assert cluster.slots == 1
    assert wait(9) == []
    (text,) = wait(10)
    assert "has had no workers for 11 s" in text
    assert "cluster.scale" in text
    assert len(wait(130)) == 2
    client.threads = {"one": 2}
    assert wait(200) == []
    assert cluster.slots == 2
    client.threads = {}
    assert wait(5) == []
    assert len(wait(20)) == 1


@pytest.mark.parametrize("threads", [{"a": 1}, {"a": 2, "b": 3}])
def test_slots_are_the_threads_of_all_workers(threads: Any) -> None:
    client = Client()
    client.threads = threads
    assert Cluster(client).slots == sum(threads.values())
