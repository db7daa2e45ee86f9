"""What a run will take: said beforehand, and refused where it cannot fit."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lpa3d
from lpa3d import io
from lpa3d.arrays.text import format_bytes
from lpa3d.errors import InputError, InputTypeError, Lpa3dError
from lpa3d.propagation.rules import SWEEPS
from lpa3d.tiled.driver import budget, outputs, run
from lpa3d.tiled.driver.budget import COSTS, VERBS, check_room
from lpa3d.tiled.driver.grid import Grid
from lpa3d.verbs.estimate import format_seconds

zarr = pytest.importorskip("zarr")
dask_array = pytest.importorskip("dask.array")

SIDE = 1000


def volume(dtype: str = "uint8", shape: tuple[int, ...] = (SIDE,) * 3) -> Any:
    """A volume that takes no room."""
    return dask_array.zeros(shape, dtype=dtype, chunks=128)


ARGUMENTS: dict[str, dict[str, Any]] = {
    "label": {"volume": volume()},
    "propagate": {"volume": volume(), "seeds": volume("uint32"), "return_confidence": True},
    "merge": {"labels": volume("uint32"), "classes": {1: 2}},
    "contacts": {"labels": volume("uint64"), "image": volume("float32")},
    "stitch": {"slices": volume("uint16"), "classes": volume()},
    "fuse": {"classes": volume(), "slices": volume("uint32")},
    "evaluate": {
        "reference": volume("uint32"),
        "prediction": volume("uint32"),
        "classes": (volume(), volume()),
        "ignore": 3,
    },
}

OUTPUTS = {"label": 4, "propagate": 6, "merge": 4, "contacts": 0, "stitch": 4, "fuse": 6, "evaluate": 0}
"""Bytes of the results for each voxel."""


def test_every_verb_has_its_costs() -> None:
    assert budget.SWEEPS == SWEEPS
    assert set(VERBS) == set(COSTS) == set(ARGUMENTS)


@pytest.mark.parametrize("verb", ARGUMENTS)
def test_estimate(verb: str) -> None:
    e = lpa3d.estimate(verb, **ARGUMENTS[verb], memory="4GB")
    voxels = SIDE**3
    assert e.shape == (SIDE,) * 3
    assert e.tiles == len(Grid(e.shape, e.tile))
    assert 1 <= e.workers <= e.tiles
    assert budget.FIXED < e.memory <= 4 * 10**9
    assert 0 < e.scratch < e.scratch_worst
    # Levels of 500 and 250 cubed come to it.
    assert e.output_worst == OUTPUTS[verb] * (voxels + voxels // 8 + voxels // 64)
    assert e.output == int(budget.COMPRESSED * e.output_worst)
    assert e.core_seconds > 1
    assert e.seconds == pytest.approx(e.core_seconds / e.workers)
    text = str(e)
    assert f"verb:    {verb}\n" in text
    assert "1000 x 1000 x 1000, 1,000,000,000 voxels" in text
    assert ("output:" in text) == bool(OUTPUTS[verb])


def test_less_memory_makes_smaller_tiles() -> None:
    sizes = [math.prod(lpa3d.estimate("label", volume(), memory=memory).tile) for memory in ("300MB", "500MB", "8GB")]
    assert sizes[0] < sizes[1] <= sizes[2]
    chosen = lpa3d.estimate("label", volume(), memory="8GB", tile=(100, 200, 300))
    assert chosen.tile == (100, 200, 300)
    assert chosen.tiles == 10 * 5 * 4


def test_wide_ids_from_2_to_the_32_voxels_on() -> None:
    small, large = volume(shape=(1, 2**16, 2**16 - 1)), volume(shape=(1, 2**16, 2**16))
    one = {"memory": "4GB", "storage": {"levels": 1}}
    assert lpa3d.estimate("label", small, **one).output_worst == 4 * (2**32 - 2**16)
    assert lpa3d.estimate("label", large, **one).output_worst == 8 * 2**32


def test_paths_and_flat_images(tmp_path: Path) -> None:
    io.write(tmp_path / "a.zarr", np.ones((30, 40), "uint8"))
    e = lpa3d.estimate("label", tmp_path / "a.zarr", tile=(20, 20), memory="4GB")
    assert (e.shape, e.tile, e.tiles) == ((1, 30, 40), (1, 20, 20), 4)
    assert lpa3d.estimate("label", str(tmp_path / "a.zarr"), tile=(20, 20), memory="4GB") == e


@pytest.mark.parametrize(
    ("verb", "keywords", "error", "message"),
    [
        ("lable", {"volume": volume()}, InputError, "verb is 'lable'; one of label, propagate"),
        ("label", {"volume": np.ones((3, 3), int)}, InputTypeError, "volume is in memory"),
        ("label", {"volume": volume(), "memory": "1MB"}, InputError, "memory='1MB' is too little"),
        ("label", {"volume": "nowhere.zarr"}, InputError, "nowhere.zarr does not exist"),
        ("label", {"volumes": volume()}, TypeError, "label.. missing a required argument: 'volume'"),
        ("label", {"volume": volume(), "sweeps": 3}, TypeError, "label.. got an unexpected keyword argument 'sweeps'"),
        ("fuse", {}, InputError, "there is no array to fuse"),
        ("label", {"volume": SimpleNamespace(__cuda_array_interface__={})}, InputTypeError, "volume is in memory"),
        ("label", {"volume": volume(), "device": "gpu"}, InputError, "device is 'gpu'; 'cuda' is needed"),
        ("stitch", {"slices": volume(), "device": "cuda"}, InputError, "stitch cannot work on a CUDA device"),
    ],
)
def test_refused(verb: str, keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lpa3d.estimate(verb, **keywords)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2.5e9, "2.5 GB"), (7e18, "7000.0 PB")]
)
def test_bytes_for_a_person(size: float, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.01, "1 s"), (100, "100 s"), (130, "2 min"), (3 * 3600, "3 h"), (10 * 86400, "10 days")]
)
def test_seconds_for_a_person(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


# -------------------------------------------------------------------------------------------------------------- disks


def test_room_is_counted_for_each_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    here = 1000 / budget.SAFETY / 2
    check_room("label", [(tmp_path, "scratch", here), (tmp_path, "the result", here)])
    with pytest.raises(InputError, match=r"label needs about 500 B for scratch and 502 B for the result .* 1.0 kB are"):
        check_room("label", [(tmp_path, "scratch", here), (tmp_path, "the result", here + 1)])
    ids = iter((1, 2))
    monkeypatch.setattr(budget.os, "stat", lambda folder: SimpleNamespace(st_dev=next(ids)))
    check_room("label", [(tmp_path, "scratch", 2 * here), (tmp_path, "the result", 2 * here)])


def test_a_run_that_cannot_fit_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io.write(tmp_path / "a.zarr", np.ones((30, 40), "uint8"))
    monkeypatch.setattr(budget.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(InputError, match=r"where 10 B are free; make room, or .* scratch=FOLDER"):
        lpa3d.label(tmp_path / "a.zarr", out=tmp_path / "b.zarr")
    assert os.listdir(tmp_path) == ["a.zarr"]


def other_disk() -> Path | None:
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and os.access(memory, os.W_OK) else None


@pytest.mark.parametrize("exists", [False, True])
def test_scratch_on_another_disk_than_the_result(tmp_path: Path, exists: bool) -> None:
    shared = other_disk()
    if shared is None or os.stat(shared).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("there is one disk only")
    classes = np.random.default_rng(0).integers(0, 3, (20, 30, 40), "uint8")
    io.write(tmp_path / "a.zarr", classes)
    out = tmp_path / "deep" / "b.zarr"
    if exists:
        out.parent.mkdir()
        io.write(out, classes)
    scratch = shared / f"lpa3d-test-{os.getpid()}"
    try:
        lpa3d.label(tmp_path / "a.zarr", out=out, scratch=scratch, tile=16, overwrite=exists)
        assert os.listdir(scratch) == []
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    np.testing.assert_array_equal(io.read(out), lpa3d.label(classes))
    assert os.listdir(out.parent) == ["b.zarr"]


# ------------------------------------------------------------------------------------------------- outputs that move


def test_an_output_that_appears_meanwhile_is_not_lost(tmp_path: Path) -> None:
    classes = np.random.default_rng(0).integers(0, 3, (20, 30, 40), "uint8")
    io.write(tmp_path / "a.zarr", classes)
    place = tmp_path / "b.zarr"

    def label(**keywords: Any) -> None:
        lpa3d.label(tmp_path / "a.zarr", out=place, tile=16, **keywords)

    def write(stage: str, fraction: float) -> None:
        if not place.exists():
            io.write(place, classes)

    with pytest.raises(Lpa3dError, match="appeared while the work ran"):
        label(progress=write)
    np.testing.assert_array_equal(io.read(place), classes)
    label(overwrite=True)
    np.testing.assert_array_equal(io.read(place), lpa3d.label(classes))
    assert sorted(os.listdir(tmp_path)) == ["a.zarr", "b.zarr"]


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("moment", ["publish", "replace", "rmtree"])
def test_killed_while_outputs_are_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    shape = (20, 30, 40)
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, shape, "uint8")
    seeds = classes * rng.integers(0, 9, shape, "uint8")
    io.write(tmp_path / "c.zarr", classes)
    io.write(tmp_path / "s.zarr", seeds)
    places = {name: tmp_path / f"{name}.zarr" for name in ("volume", "seeds")}

    def fuse() -> Any:
        return lpa3d.fuse(classes=str(tmp_path / "c.zarr"), instances=str(tmp_path / "s.zarr"), out=places, tile=16)

    def die(*args: Any, **keywords: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        # Who is killed takes nothing back.
        patch.setattr(outputs.Output, "take_back", lambda _: None)
        if moment == "publish":
            patch.setattr(outputs.Output, "publish", die)
        elif moment == "rmtree":
            patch.setattr(run, "shutil", SimpleNamespace(rmtree=die))
        else:
            moved = []

            def once(old: Path, new: Path, replace: Any = Path.replace) -> None:
                if moved:
                    raise Killed
                moved.append(replace(old, new))

            patch.setattr(Path, "replace", once)
        with pytest.raises(Killed):
            fuse()
    expected = lpa3d.fuse(classes=classes, instances=seeds)
    if moment == "rmtree":
        # All is in its place, and what is left says nothing of a run to go on with.
        with pytest.raises(InputError, match="exists"):
            fuse()
    else:
        fuse()
        assert sorted(os.listdir(tmp_path)) == ["c.zarr", "s.zarr", "seeds.zarr", "volume.zarr"]
    for name, place in places.items():
        np.testing.assert_array_equal(io.read(place), getattr(expected, name))
