"""A call that cannot be right leaves nothing that would refuse the corrected one; refusals show values."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lpa3d
from lpa3d.errors import InputError, Lpa3dError, RangeError
from lpa3d.tiled import geodesic
from lpa3d.tiled.driver import run as driver
from lpa3d.tiled.driver.scratch import Folder
from lpa3d.tiled.driver.tables import Digest, digest

zarr = pytest.importorskip("zarr")


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    volume = np.zeros((8, 8, 8), np.uint8)
    volume[1:7, 1:7, 1:7] = 1
    volume[4:7] *= 2
    arrays = {
        "volume": volume,
        "seeds": (volume > 0).astype(np.int32),
        "labels": lpa3d.label(volume).astype(np.int32),
    }
    for name, array in arrays.items():
        zarr.create_array(str(tmp_path / f"{name}.zarr"), shape=(8, 8, 8), dtype=array.dtype, chunks=(4, 4, 4))[:] = (
            array
        )
    return {name: tmp_path / f"{name}.zarr" for name in arrays}


def merge(inputs: Any, out: Any, **how: Any) -> Any:
    return lpa3d.merge(inputs["labels"], out=out, tile=4, **how)


def propagate(inputs: Any, out: Any, **how: Any) -> Any:
    return lpa3d.propagate(inputs["volume"], inputs["seeds"], out=out, tile=4, **how)


def stitch(inputs: Any, out: Any, **how: Any) -> Any:
    return lpa3d.stitch(inputs["labels"], out=out, tile=4, **how)


CASES = [
    (merge, {"must_link": [(1, 22)]}, {"must_link": [(1, 2)]}),
    (propagate, {}, {"seed_conflicts": "majority"}),
    (stitch, {"must_link": [((1, 1), (2, 77))]}, {}),
]


@pytest.mark.parametrize("kind", ["folder", "memory", "scratch"])
@pytest.mark.parametrize(("verb", "wrong", "right"), CASES)
def test_the_corrected_call_begins_anew(
    verb: Any, wrong: Any, right: Any, kind: str, inputs: Any, tmp_path: Path
) -> None:
    out = zarr.storage.MemoryStore() if kind == "memory" else tmp_path / "out.zarr"
    how = {"scratch": tmp_path / "scratch"} if kind == "scratch" else {}
    before = sorted(path.name for path in tmp_path.iterdir())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError):
            verb(inputs, out, **wrong, **how)
        assert sorted(path.name for path in tmp_path.iterdir() if path.name != "scratch") == before
        assert not (tmp_path / "scratch").exists() or not list((tmp_path / "scratch").iterdir())
        if kind == "memory":
            assert not out._store_dict
        verb(inputs, out, **right, **how)


@pytest.mark.filterwarnings("ignore")
def test_a_range_that_is_left(inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(*_: Any) -> Any:
        raise RangeError("too far")

    with monkeypatch.context() as patch:
        patch.setattr(geodesic, "_solve", leave)
        with pytest.raises(RangeError):
            propagate(inputs, tmp_path / "out.zarr", seed_conflicts="majority")
    assert not (tmp_path / "out.zarr.lpa3d").exists()


def test_a_refused_call_does_not_delete_the_run(inputs: Any, tmp_path: Path) -> None:
    def stop(stage: str, done: float) -> None:
        if stage == "decide":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(inputs, tmp_path / "out.zarr", must_link=[(1, 2)], progress=stop)
    shown = r": must_link was \(1, 2\) and is \(2, 1\), \(1, 2\)|: must_link was \(1, 2\) and is none"
    for how in ({}, {"must_link": []}):
        with pytest.raises(InputError, match=shown):
            merge(inputs, tmp_path / "out.zarr", **how)
    with pytest.raises(InputError, match=r"connectivity was 6 and is 26; .*must_link was"):
        merge(inputs, tmp_path / "out.zarr", connectivity=26)
    assert (tmp_path / "out.zarr.lpa3d" / "run.json").exists()
    # What says the same in other words is the same.
    merge(inputs, tmp_path / "out.zarr", must_link=np.array([(1, 2)]), spacing=(1.0, 1.0, 1.0))


def test_pairs_that_differ_where_they_are_not_shown(inputs: Any, tmp_path: Path) -> None:
    many = [(1, 2)] + [(2, 1)] * 9

    def stop(stage: str, done: float) -> None:
        if stage == "decide":
            raise KeyboardInterrupt

    scores = {(1, 2): 0.5}
    with pytest.raises(KeyboardInterrupt):
        merge(inputs, tmp_path / "out.zarr", scores=scores, must_link=many, progress=stop)
    with pytest.raises(InputError, match=r"scores was \(1, 2\): 0\.5 and is \(1, 2\): 0\.25"):
        merge(inputs, tmp_path / "out.zarr", scores={(1, 2): 0.25}, must_link=many)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), SystemExit])
@pytest.mark.parametrize("at", [2, 3])
def test_what_ends_before_any_tile_is_done(
    error: Any, at: int, inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, count = Folder.put, [0]

    def fail(*args: Any, **how: Any) -> None:
        count[0] += 1
        if count[0] >= at:
            raise error
        put(*args, **how)

    monkeypatch.setattr(driver, "PAUSE", 0)
    before = sorted(path.name for path in tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "put", fail)
        with pytest.raises((KeyboardInterrupt, OSError, SystemExit, Lpa3dError)):
            lpa3d.label(inputs["volume"], out=tmp_path / "out.zarr", tile=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_digests_show_the_first_values() -> None:
    assert digest(None) is None
    pairs = np.arange(16).reshape(8, 2)
    for value, text in (
        (pairs, "(0, 1), (2, 3), (4, 5), (6, 7), (8, 9) and 3 more"),
        ((pairs[:2], np.array([0.5, 1.0])), "(0, 1): 0.5, (2, 3): 1.0"),
        ({5: 1, 3: 2}, "5: 1, 3: 2"),
        (pairs[:0], "none"),
    ):
        found = digest(value)
        assert isinstance(found, Digest)
        assert found.shown == text
        assert len(found) == 16
