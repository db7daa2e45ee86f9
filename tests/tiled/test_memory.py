"""What a run held in memory is given back when the call returns."""

from __future__ import annotations

import pickle
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lpa3d.tiled.driver import schedulers
from lpa3d.tiled.driver.scratch import Folder, Scratch
from lpa3d.tiled.propagate import _Tables

zarr = pytest.importorskip("zarr")

from tests.stored_cell import VERBS, store_cell  # noqa: E402


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return store_cell(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_nothing_stays(verb: Any, inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get, seen = Scratch.get, []

    def watched(self: Scratch, key: str, *names: str) -> dict[str, Any]:
        found = get(self, key, *names)
        seen.extend((key, weakref.ref(array)) for array in found.values())
        return found

    monkeypatch.setattr(Scratch, "get", watched)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verb(inputs, tmp_path)
    assert len(seen) > 20
    assert {key for key, array in seen if array() is not None} == set()


def test_tables_do_not_travel(tmp_path: Path) -> None:
    tables = _Tables(Scratch(Folder(tmp_path)))
    tables.put(ids=np.arange(10**5))
    assert tables.get("ids") is tables.get("ids")
    data = pickle.dumps(tables)
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data).get("ids"), np.arange(10**5))


def test_workers_forget_what_they_loaded() -> None:
    class Client:
        def run(self, function: Any, wait: bool) -> None:
            function()

    payload = pickle.dumps((divmod, 7))
    schedulers._call_payload(payload, [(2,)])
    assert schedulers._load.cache_info().currsize > 0
    schedulers.Cluster(Client()).close()
    assert schedulers._load.cache_info().currsize == 0
