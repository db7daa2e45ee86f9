"""The driver of tiled runs: geometry, scratch, journal, maps, resuming, outputs and their places."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpa3d.arrays.call import Options
from lpa3d.arrays.text import parse_memory
from lpa3d.errors import InputError, InputTypeError, Lpa3dError
from lpa3d.tiled.driver.budget import choose_tile
from lpa3d.tiled.driver.grid import Box, Grid
from lpa3d.tiled.driver.journal import Journal
from lpa3d.tiled.driver.outputs import Wanted, check_storage, choose_layout
from lpa3d.tiled.driver.run import TileError, open_run
from lpa3d.tiled.driver.scratch import Folder, Scratch, ScratchError, StoreFolder
from lpa3d.tiled.driver.stages import Stage
from lpa3d.tiled.driver.stored import open_source
from tests.results import open_result

zarr = pytest.importorskip("zarr")

SIDES = st.tuples(*[st.integers(1, 9)] * 3)


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, int, int]) -> Box:
    lo = tuple(draw(st.integers(0, n - 1)) for n in shape)
    hi = tuple(draw(st.integers(a + 1, n)) for a, n in zip(lo, shape, strict=True))
    return Box(lo, hi)


@given(SIDES, SIDES, st.data())
def test_tiles_cover_the_volume_once(shape: Any, tile: Any, data: st.DataObject) -> None:
    grid = Grid(shape, tile)
    count = np.zeros(shape, int)
    for index in range(len(grid)):
        count[grid.box(index).slices] += 1
        assert grid.index(grid.position(index)) == index
    assert (count == 1).all()
    box = data.draw(boxes(shape))
    met = [index for index in range(len(grid)) if grid.box(index).intersect(box) is not None]
    assert grid.tiles_in(box) == met
    grown = box.grow((1, 0, 2), shape)
    inside = np.zeros(grown.shape, int)
    inside[box.within(grown)] = 1
    assert inside.sum() == box.size


@given(SIDES, SIDES)
def test_neighbors(shape: Any, tile: Any) -> None:
    grid = Grid(shape, tile)
    for index in range(len(grid)):
        for offset in np.ndindex(3, 3, 3):
            step = [o - 1 for o in offset]
            place = [p + s for p, s in zip(grid.position(index), step, strict=True)]
            inside = all(0 <= p < n for p, n in zip(place, grid.counts, strict=True))
            assert grid.neighbor(index, step) == (grid.index(place) if inside else -1)


def folders(tmp_path: Path) -> list[Any]:
    store = zarr.storage.MemoryStore()
    return [
        Folder(tmp_path / "folder"),
        StoreFolder(store, "deep/er"),
        StoreFolder(zarr.storage.LocalStore(tmp_path / "s"), ""),
    ]


def test_scratch_gives_back_what_was_put(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(5000, dtype=np.uint64) * 2**50,
        "b": np.array(True),
        "c": np.zeros((0, 3), np.int16),
        "d": np.arange(24.0).reshape(2, 3, 4)[:, ::2].transpose(2, 0, 1),
        "e": np.random.default_rng(0).integers(0, 255, 10**5).astype(np.uint8),
    }
    for blobs in folders(tmp_path):
        scratch = Scratch(blobs)
        scratch.put("x/1", **arrays)
        found = scratch.get("x/1")
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
        assert list(scratch.get("x/1", "d", "b")) == ["d", "b"]
        scratch.put("x/1", a=np.arange(3))
        np.testing.assert_array_equal(scratch.get("x/1")["a"], np.arange(3))
        scratch.put("x/2", a=np.arange(4))
        assert sorted(scratch.keys("x")) == ["x/1", "x/2"]
        scratch.delete("x/2")
        assert not scratch.has("x/2")
        with pytest.raises(ScratchError, match=r"x/2.*is missing.*resume=False"):
            scratch.get("x/2")
        scratch.clear("x")
        assert list(scratch.keys("x")) == []


def test_a_blob_larger_than_a_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lpa3d.tiled.driver.scratch.FRAME", 1000)
    scratch = Scratch(Folder(tmp_path))
    array = np.arange(12345, dtype=np.int64).reshape(5, -1)
    scratch.put("k", a=array)
    np.testing.assert_array_equal(scratch.get("k")["a"], array)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.integers(0, 5), st.data())
def test_a_scratch_volume_reads_any_box(shape: Any, tile: Any, cut: int, data: st.DataObject) -> None:
    grid = Grid(shape, tile)
    store = zarr.storage.MemoryStore()
    volume = Scratch(StoreFolder(store, "")).volume("v", grid, np.uint16, cut)
    values = np.random.default_rng(1).integers(1, 999, shape).astype(np.uint16)
    missing = data.draw(st.sets(st.integers(0, len(grid) - 1)))
    written = [index for index in range(len(grid)) if index not in missing]
    volume = volume.scratch.volume("v", grid, np.uint16, cut, np.array(written, int) if missing else None)
    for index in range(len(grid)):
        assert volume.has(index) == (index not in missing)
        if index in missing:
            values[grid.box(index).slices] = 0
        else:
            volume.write(index, values[grid.box(index).slices])
    for _ in range(3):
        box = data.draw(boxes(shape))
        np.testing.assert_array_equal(volume.read(box), values[box.slices])


@pytest.mark.parametrize("tiles", [None, [0]])
def test_a_missing_tile_is_not_read_as_0(tmp_path: Path, tiles: Any) -> None:
    volume = Scratch(Folder(tmp_path)).volume("v", Grid((4, 4, 4), (4, 2, 4)), np.uint8, tiles=tiles)
    whole = Box((0, 0, 0), (4, 4, 4))
    with pytest.raises(ScratchError, match=r"v/0: it is missing"):
        volume.read(whole)
    volume.write(0, np.ones((4, 2, 4), np.uint8))
    if tiles is None:
        with pytest.raises(ScratchError, match=r"v/1: it is missing"):
            volume.read(whole)
    else:
        assert volume.read(whole).sum() == 32


def test_the_journal_survives_and_cuts_a_torn_row(tmp_path: Path) -> None:
    journal = Journal(Folder(tmp_path))
    for k in range(5):
        journal.append("a/b", k, 10 * k)
    journal.append("a", 7)
    journal.close()
    with open(tmp_path / "journal" / "a.b" / "rows", "ab") as file:
        file.write(b"torn")
    journal = Journal(Folder(tmp_path))
    rows = np.concatenate(list(journal.rows("a/b", 2)))
    assert rows.tolist() == [[k, 10 * k] for k in range(5)]
    journal.append("a/b", 5, 50)
    assert len(np.concatenate(list(journal.rows("a/b", 2)))) == 6
    journal.finish("a/b", found=3)
    assert journal.finished("a/b")
    assert not journal.finished("a")
    assert journal.values("a/b") == {"found": 3}
    assert list(journal.rows("a/b", 2)) == []
    assert np.concatenate(list(journal.rows("a"))).tolist() == [[7]]
    journal.close()


def test_the_journal_in_a_store_writes_segments() -> None:
    blobs = StoreFolder(zarr.storage.MemoryStore(), "run")
    journal = Journal(blobs)
    for k in range(5):
        journal.append("s", k)
    journal.close()
    again = Journal(blobs)
    again.append("s", 9)
    assert np.concatenate(list(again.rows("s"))).ravel().tolist() == [0, 1, 2, 3, 4, 9]


@pytest.mark.parametrize(
    ("text", "expected"), [("4GB", 4 * 10**9), ("1.5 MiB", 3 * 2**19), (1000, 1000), ("2tb", 2 * 10**12), ("7", 7)]
)
def test_memory_is_read(text: Any, expected: int) -> None:
    assert parse_memory(text) == expected


@pytest.mark.parametrize("text", ["four", "", "-1GB", 0, float("nan"), "4 parsecs"])
def test_memory_that_cannot_be_read(text: Any) -> None:
    with pytest.raises(InputError, match="4GB"):
        parse_memory(text)


@given(
    st.tuples(*[st.integers(1, 3000)] * 3), st.tuples(*[st.integers(1, 300)] * 3), st.integers(0, 40),
    st.sampled_from([1.0, 12.0, 40.0]), st.integers(1, 8),
)  # fmt: skip
def test_a_plan_keeps_to_its_budget(shape: Any, chunks: Any, halo: int, cost: float, workers: int) -> None:
    plan = choose_tile(shape, chunks, memory="8GB", bytes_per_voxel=cost, halo=halo, workers=workers)
    grown = [min(t + 2 * halo, n) for t, n in zip(plan.tile, shape, strict=True)]
    assert plan.workers * cost * np.prod(grown, dtype=float) <= 8e9
    assert plan.memory <= 8 * 10**9
    assert all(1 <= t <= n for t, n in zip(plan.tile, shape, strict=True))


def test_usual_chunks_make_usual_tiles() -> None:
    assert choose_tile((1024,) * 3, (128,) * 3, memory="2GB", bytes_per_voxel=12, workers=2).tile == (256,) * 3
    # Chunks of one slice: each is decoded a few times at most.
    tile = choose_tile((4000, 2048, 2048), (1, 2048, 2048), memory="8GB", bytes_per_voxel=12, workers=2).tile
    assert tile[1:] == (2048, 2048)


def test_a_tile_holds_whole_chunks_of_the_output() -> None:
    plan = choose_tile((128,) * 3, (128,) * 3, memory="8GB", bytes_per_voxel=12, workers=2, unit=(48, 128, 128))
    assert plan.tile[0] in (48, 96, 128)
    layout = choose_layout((128,) * 3, plan.tile, check_storage({"chunks": (48, 128, 128)}, 3), "out")
    assert layout.chunks == (48, 128, 128)


def test_too_small_a_budget_says_what_is_needed() -> None:
    with pytest.raises(InputError, match=r"too little.*memory='[0-9.]+GB'"):
        choose_tile((100, 100, 100), (100, 100, 100), memory="1MB", bytes_per_voxel=10)


@given(SIDES, SIDES)
def test_tiles_never_share_a_chunk(shape: Any, tile: Any) -> None:
    layout = choose_layout(shape, tile, {}, "out")
    for t, n, unit in zip(tile, shape, layout.unit, strict=True):
        assert t >= n or t % unit == 0


def test_a_tile_that_cuts_chunks_is_refused() -> None:
    with pytest.raises(InputError, match="two tiles would"):
        choose_layout((100, 100, 100), (50, 50, 50), {"chunks": (32, 50, 50)}, "out")
    with pytest.raises(InputError, match="no multiple"):
        choose_layout((100, 100, 100), (50, 50, 50), {"chunks": (20, 20, 20), "shards": (50, 50, 50)}, "out")


def test_large_outputs_have_shards() -> None:
    layout = choose_layout((10**4,) * 3, (256,) * 3, {}, "out")
    assert (layout.chunks, layout.shards) == ((128,) * 3, (256,) * 3)
    assert choose_layout((1024,) * 3, (256,) * 3, {}, "out").shards is None


# ------------------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Work:
    """What the tasks below work on."""

    source: Any
    sink: Any
    scratch: Any
    grid: Any
    folder: str
    broken: tuple[int, ...] = ()
    killer: int = -1


def double(work: Work, tile: int) -> None:
    """Write twice the input, count the calls, and break where it is told to."""
    Path(work.folder, f"{tile}-{len(os.listdir(work.folder))}").touch()
    if tile == work.killer:
        os.kill(os.getpid(), signal.SIGKILL)
    if tile in work.broken:
        raise OSError(5, "bad disk")
    box = work.grid.box(tile)
    values = work.source.read(box)
    work.sink.write(box, values * 2)
    work.scratch.put(f"sums/{tile}", total=np.array(values.sum()))


def run_double(
    volume: Any, out: Any, calls: Path, *, p: int = 1, broken: Any = (), killer: int = -1, **options: Any
) -> Any:
    """Double a volume and sum it up."""
    source = open_source(volume, "volume")
    wanted = {"out": Wanted(out, source.shape, source.ndim, source.dtype)}
    how: dict[str, Any] = {"stages": [Stage("double", keeps=("sums",)), Stage("sum")], "bytes_per_voxel": 20}
    with open_run("double", {"volume": source}, {"p": p}, wanted, Options(**options), **how) as run:
        work = Work(source, run.outputs["out"], run.scratch, run.grid, str(calls), tuple(broken), killer)
        run.map("double", double, work)
        tiles = range(len(run.grid))
        found = run.once("sum", lambda: {"total": int(sum(run.scratch.get(f"sums/{t}")["total"] for t in tiles))})
    return run.result("out"), found["total"]


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume.zarr"
    values = np.arange(20 * 18 * 16, dtype=np.uint32).reshape(20, 18, 16)
    zarr.create_array(str(path), shape=values.shape, dtype=values.dtype, chunks=(7, 5, 9))[:] = values
    return path


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    (tmp_path / "calls").mkdir()
    return tmp_path / "calls"


def test_a_run_from_end_to_end(volume: Path, calls: Path, tmp_path: Path) -> None:
    seen = []
    result, total = run_double(
        str(volume), tmp_path / "out.zarr", calls, tile=8, progress=lambda stage, done: seen.append((stage, done))
    )
    values = zarr.open_array(str(volume))[:]
    np.testing.assert_array_equal(result[:], 2 * values)
    assert total == values.sum()
    assert result.chunks == (8, 8, 8)
    about = result.attrs["lpa3d"]
    assert about["complete"] is True
    assert about["parameters"] == {"p": 1}
    assert len(about["inputs"]["volume"]["digest"]) == 64
    assert seen[0] == ("double", 0.0)
    assert seen[-1][0] == "sum"
    # Nothing is left beside it.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["calls", "out.zarr", "volume.zarr"]
    assert pickle.loads(pickle.dumps(open_source(str(volume), "v"))).shape == (20, 18, 16)


def test_existing_outputs_are_kept_unless_told(volume: Path, calls: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    run_double(volume, out, calls)
    with pytest.raises(InputError, match="exists"):
        run_double(volume, out, calls)
    assert not (tmp_path / "out.zarr.lpa3d").exists()
    # Until the new one is complete, the old one is there.
    with pytest.raises(TileError):
        run_double(volume, out, calls, overwrite=True, tile=8, broken=[3])
    assert open_result(out).attrs["lpa3d"]["complete"] is True
    result, _ = run_double(volume, out, calls, overwrite=True, tile=8)
    assert result.chunks == (8, 8, 8)


def test_a_failed_tile_is_retried_then_named(volume: Path, calls: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TileError, match=r"tile 5 \(z 0:8, y 16:18, x 8:16\) failed 3 times in stage 'double'.*bad disk"
    ):
        run_double(volume, tmp_path / "out.zarr", calls, tile=8, broken=[5])
    tried = [name.split("-")[0] for name in os.listdir(calls)]
    assert tried.count("5") == 3
    finished = set(tried) - {"5"}
    (built,) = (tmp_path / "out.zarr.lpa3d").glob("*/result/out")
    (built / "0" / "c" / "0.0123.partial").touch()  # as zarr leaves it where it is killed
    # Whoever mends it loses no finished tile.
    for name in os.listdir(calls):
        (calls / name).unlink()
    result, _ = run_double(volume, tmp_path / "out.zarr", calls, tile=8)
    again = {name.split("-")[0] for name in os.listdir(calls)}
    assert "5" in again
    assert not again & finished
    assert not list((tmp_path / "out.zarr").rglob("*.partial"))
    np.testing.assert_array_equal(result[:], 2 * zarr.open_array(str(volume))[:])


def fail_or_wait(context: Any, tile: int) -> None:
    """Be done, but for one tile, after the run has failed."""
    if tile == 0:
        raise InputError("of no use")
    time.sleep(0.1)


def leave(context: Any, tile: int) -> None:
    raise SystemExit(3)


def test_a_task_that_would_end_its_thread_is_named(volume: Path, calls: Path, tmp_path: Path) -> None:
    source = open_source(volume, "volume")
    options = Options(tile=8, scratch=tmp_path / "run")
    with (
        pytest.raises(TileError, match="failed 3 times in stage 'leave': SystemExit: 3"),
        open_run("leave", {"volume": source}, {}, {}, options, stages=[Stage("leave")], bytes_per_voxel=20) as run,
    ):
        run.map("leave", leave, None)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_a_run_that_fails_leaves_no_file_open(volume: Path, calls: Path, tmp_path: Path) -> None:
    source = open_source(volume, "volume")

    def fail() -> int:
        options = Options(tile=4, scratch=tmp_path / "run", resume=False)
        with (
            pytest.raises(InputError, match="of no use"),
            open_run("fail", {"volume": source}, {}, {}, options, stages=[Stage("s")], bytes_per_voxel=20) as run,
        ):
            run.map("s", fail_or_wait, None)
        return sum(os.path.exists(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd"))

    counts = [fail() for _ in range(4)]
    assert counts[-1] == counts[0]


def test_chunks_behind_a_link_are_part_of_an_input(volume: Path, tmp_path: Path) -> None:
    (volume / "c").rename(tmp_path / "chunks")
    (volume / "c").symlink_to(tmp_path / "chunks")
    (tmp_path / "chunks" / "circle").symlink_to(volume)
    before = open_source(volume, "volume").describe()
    assert open_source(volume, "volume").describe() == before
    chunk = tmp_path / "chunks" / "1" / "1" / "1"
    chunk.write_bytes(chunk.read_bytes() + b"x")
    assert open_source(volume, "volume").describe() != before


def test_another_run_is_not_gone_on_with(volume: Path, calls: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    with pytest.raises(TileError):
        run_double(volume, out, calls, tile=8, broken=[5])
    with pytest.raises(InputError, match=r": p was 1 and is 2.*resume=False"):
        run_double(volume, out, calls, tile=8, p=2)
    with pytest.raises(InputError, match=r"tile was \[8, 8, 8\] and is \[4, 4, 4\]"):
        run_double(volume, out, calls, tile=4)
    # Without a tile the earlier one is taken.
    before = zarr.open_array(str(volume), mode="r+")
    result, _ = run_double(volume, out, calls)
    assert result.chunks == (8, 8, 8)
    with pytest.raises(TileError):
        run_double(volume, tmp_path / "two.zarr", calls, tile=8, broken=[5])
    before[0, 0, 0] = 77
    with pytest.raises(InputError, match=r"inputs\.volume\.digest was"):
        run_double(volume, tmp_path / "two.zarr", calls, tile=8)
    result, _ = run_double(volume, tmp_path / "two.zarr", calls, tile=8, resume=False)
    assert result[0, 0, 0] == 154


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_two_processes_never_work_on_one_output(volume: Path, calls: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    with pytest.raises(TileError):
        run_double(volume, out, calls, tile=8, broken=[5])
    import fcntl

    with open(tmp_path / "out.zarr.lpa3d" / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is at work"):
            run_double(volume, out, calls, tile=8)


def test_places_of_outputs(volume: Path, calls: Path, tmp_path: Path) -> None:
    values = 2 * zarr.open_array(str(volume))[:]
    inner, _ = run_double(volume, tmp_path / "cell.zarr" / "labels" / "er", calls, tile=8)
    np.testing.assert_array_equal(inner[:], values)
    assert zarr.open_group(str(tmp_path / "cell.zarr"), mode="r")["labels/er/0"].shape == values.shape
    second, _ = run_double(volume, tmp_path / "cell.zarr" / "labels" / "golgi", calls, tile=8)
    np.testing.assert_array_equal(second[:], values)
    np.testing.assert_array_equal(open_result(tmp_path / "cell.zarr" / "labels" / "er")[:], values)
    memory, _ = run_double(volume, zarr.storage.MemoryStore(), calls, tile=8)
    np.testing.assert_array_equal(memory[:], values)
    with pytest.raises(InputError, match=r"out='out\.zarr'"):
        run_double(volume, None, calls)
    with pytest.raises(InputError, match="results of this size are zarr"):
        run_double(volume, "labels.tif", calls)
    with pytest.raises(InputTypeError, match="a path, a URL or a zarr store"):
        run_double(volume, 7, calls)


def test_urls_and_object_storage(volume: Path, calls: Path, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    values = 2 * zarr.open_array(str(volume))[:]
    result, _ = run_double(volume, f"file://{tmp_path}/url.zarr", calls, tile=8)
    np.testing.assert_array_equal(open_result(tmp_path / "url.zarr")[:], values)
    result, _ = run_double(f"file://{volume}", "memory://bucket/url.zarr", calls, tile=8)
    np.testing.assert_array_equal(result[:], values)
    again, _ = run_double("memory://bucket/url.zarr", zarr.storage.MemoryStore(), calls)
    np.testing.assert_array_equal(again[:], 2 * values)
    obstore = pytest.importorskip("obstore")
    store = zarr.storage.ObjectStore(obstore.store.LocalStore(str(tmp_path / "objects"), mkdir=True))
    result, _ = run_double(volume, store, calls, tile=8)
    np.testing.assert_array_equal(result[:], values)
    assert not [p for p in (tmp_path / "objects").rglob("*run*") if p.is_file()]


def test_a_run_in_object_storage_goes_on(volume: Path, calls: Path, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    url = "memory://unfinished/url.zarr"
    with pytest.raises(TileError):
        run_double(volume, url, calls, tile=8, broken=[17])
    assert zarr.open_array(url, mode="r").attrs["lpa3d"]["complete"] is False
    before = len(os.listdir(calls))
    result, _ = run_double(volume, url, calls, tile=8)
    assert len(os.listdir(calls)) - before < 18
    assert result.attrs["lpa3d"]["complete"] is True
    np.testing.assert_array_equal(result[:], 2 * zarr.open_array(str(volume))[:])


def test_inputs_of_all_kinds(volume: Path, calls: Path, tmp_path: Path) -> None:
    values = zarr.open_array(str(volume))[:]
    dask = pytest.importorskip("dask.array")
    result, _ = run_double(dask.from_array(values, chunks=(3, 18, 7)), tmp_path / "dask.zarr", calls, tile=8)
    assert isinstance(result, dask.Array)
    np.testing.assert_array_equal(result.compute(), 2 * values)
    zarr.create_array(str(tmp_path / "two.zarr"), shape=values.shape, dtype=">u4", chunks=(6, 6, 6), zarr_format=2)[
        :
    ] = values
    result, _ = run_double(tmp_path / "two.zarr", tmp_path / "a.zarr", calls, tile=8)
    np.testing.assert_array_equal(result[:], 2 * values)
    sharded = zarr.create_array(
        str(tmp_path / "sharded.zarr"), shape=values.shape, dtype="u8", chunks=(4, 4, 4), shards=(8, 8, 8), fill_value=3
    )
    sharded[:8] = values[:8]  # the others are missing: the fill value
    result, _ = run_double(sharded, tmp_path / "b.zarr", calls, tile=5)
    np.testing.assert_array_equal(result[:8], 2 * values[:8])
    assert (result[8:] == 6).all()
    five = zarr.create_array(
        str(tmp_path / "five.zarr"), shape=(1, 1, *values.shape), dtype="u4", chunks=(1, 1, 8, 8, 8)
    )
    five[:] = values[np.newaxis, np.newaxis]
    result, _ = run_double(five, tmp_path / "c.zarr", calls, tile=8)
    np.testing.assert_array_equal(result[:], 2 * values)
    flat = zarr.create_array(str(tmp_path / "flat.zarr"), shape=values.shape[1:], dtype="u4", chunks=(8, 8))
    flat[:] = values[0]
    result, _ = run_double(flat, tmp_path / "d.zarr", calls, tile=(8, 8))
    assert result.shape == values.shape[1:]
    np.testing.assert_array_equal(result[:], 2 * values[0])


def test_an_input_that_changes_meanwhile(volume: Path, calls: Path, tmp_path: Path) -> None:
    def meddle(stage: str, done: float) -> None:
        if stage == "sum":
            zarr.open_array(str(volume), mode="r+")[0, 0, 0] = 5

    with pytest.raises(InputError, match="changed while double read it"):
        run_double(volume, tmp_path / "out.zarr", calls, progress=meddle)
    assert not (tmp_path / "out.zarr").exists()


def test_a_mended_input_is_gone_on_with_by_force(volume: Path, calls: Path, tmp_path: Path) -> None:
    out, chunk = tmp_path / "out.zarr", volume / "c" / "1" / "1" / "1"
    whole = chunk.read_bytes()
    chunk.write_bytes(b"broken")
    with pytest.raises(TileError, match="failed 3 times"):
        run_double(volume, out, calls, tile=8)
    chunk.write_bytes(whole)
    with pytest.raises(InputError, match=r"inputs\.volume\.digest was .* pass resume='force'"):
        run_double(volume, out, calls, tile=8)
    before = len(os.listdir(calls))
    result, _ = run_double(volume, out, calls, tile=8, resume="force")
    assert len(os.listdir(calls)) - before < 18
    np.testing.assert_array_equal(result[:], 2 * zarr.open_array(str(volume))[:])


def test_an_input_may_be_named_in_other_words(volume: Path, calls: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    with pytest.raises(TileError):
        run_double(volume, out, calls, tile=8, broken=[5])
    result, _ = run_double(zarr.open_array(str(volume), mode="r"), f"file://{out}", calls)
    assert result.chunks == (8, 8, 8)


@pytest.mark.parametrize(
    "text", ["{}", "[]", '"abc"', '{"id": "x"}', '{"id": "../victim", "tile": [1, 1, 1]}', "", "null"]
)
def test_a_damaged_run_is_said_to_be_one(text: str, volume: Path, calls: Path, tmp_path: Path) -> None:
    home = tmp_path / "out.zarr.lpa3d"
    home.mkdir()
    (home / "run.json").write_text(text)
    for resume in (True, False):
        with pytest.raises(InputError, match=r"run\.json in .*out\.zarr\.lpa3d is damaged"):
            run_double(volume, tmp_path / "out.zarr", calls, resume=resume)
    assert (home / "run.json").read_text() == text


def test_a_scratch_folder_may_hold_anything(volume: Path, calls: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    (project / "run.json").write_text('{"id": "data"}')
    (project / "lock").write_text("mine")
    with pytest.raises(TileError):
        run_double(volume, tmp_path / "a.zarr", calls, tile=8, broken=[5], scratch=project)
    # Another run beside it.
    run_double(volume, tmp_path / "b.zarr", calls, tile=8, scratch=project)
    run_double(volume, tmp_path / "a.zarr", calls, tile=8, scratch=project, resume=False)
    assert sorted(p.name for p in project.iterdir()) == ["data", "lock", "run.json"]
    assert (project / "lock").read_text() == "mine"


def test_damaged_scratch_is_named(volume: Path, calls: Path, tmp_path: Path) -> None:
    with pytest.raises(TileError):
        run_double(volume, tmp_path / "out.zarr", calls, tile=8, broken=[5])
    (blob,) = (tmp_path / "out.zarr.lpa3d").glob("*/scratch/sums/4")
    blob.write_bytes(blob.read_bytes()[:-3])
    with pytest.raises(Lpa3dError, match=r"scratch of this run is damaged \(sums/4.*resume=False"):
        run_double(volume, tmp_path / "out.zarr", calls)
    run_double(volume, tmp_path / "out.zarr", calls, resume=False)


def test_storage_and_options_that_cannot_be_used(volume: Path, calls: Path, tmp_path: Path) -> None:
    def refused(match: str, **options: Any) -> None:
        with pytest.raises((InputError, InputTypeError), match=match):
            run_double(volume, tmp_path / "out.zarr", calls, **options)
        assert not (tmp_path / "out.zarr.lpa3d").exists()

    refused("'fill_value'; it may hold chunks, shards", storage={"fill_value": 1})
    refused("a mapping is needed", storage="zstd")
    refused("without 'lpa3d'", storage={"attributes": {"lpa3d": 1}})
    refused("that JSON can hold", storage={"attributes": {"a": np.int64(3)}})
    refused(r"storage\['chunks'\] is 16\.5", storage={"chunks": 16.5})
    refused("tile is 16.7", tile=16.7)
    refused("tile is True", tile=True)
    result, _ = run_double(
        volume, tmp_path / "out.zarr", calls, tile=np.array([8, 8, 8]), storage={"chunks": 4, "attributes": {"a": 1}}
    )
    assert result.chunks == (4, 4, 4)
    assert result.attrs["a"] == 1
    assert result.attrs["lpa3d"]["complete"] is True


def run_two(volume: Path, places: Any, killer: Any = None, **options: Any) -> Any:
    """Write a volume, and twice the volume, to two outputs."""
    source = open_source(volume, "volume")
    wanted = {name: Wanted(place, source.shape, 3, source.dtype) for name, place in places.items()}
    how: dict[str, Any] = {"stages": [Stage("copy")], "bytes_per_voxel": 20}
    with open_run("two", {"volume": source}, {}, wanted, Options(tile=8, **options), **how) as run:
        run.map("copy", copy_twice, (source, run.grid, *run.outputs.values()))
    return [run.result(name) for name in places]


def copy_twice(context: Any, tile: int) -> None:
    source, grid, first, second = context
    values = source.read(grid.box(tile))
    first.write(grid.box(tile), values)
    second.write(grid.box(tile), 2 * values)


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_outputs_in_one_new_group(volume: Path, tmp_path: Path, overwrite: bool) -> None:
    values = zarr.open_array(str(volume))[:]
    places = {"a": tmp_path / "r.zarr" / "x" / "a", "b": tmp_path / "r.zarr" / "b"}
    first, second = run_two(volume, places, overwrite=overwrite)
    np.testing.assert_array_equal(first[:], values)
    np.testing.assert_array_equal(second[:], 2 * values)
    group = zarr.open_group(str(tmp_path / "r.zarr"), mode="r")
    np.testing.assert_array_equal(group["x/a/0"][:], values)
    np.testing.assert_array_equal(group["b/0"][:], 2 * values)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.zarr", "volume.zarr"]


def test_places_that_would_be_lost(volume: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is the place of both a and b"):
        run_two(volume, {"a": tmp_path / "x.zarr", "b": tmp_path / "x.zarr"})
    with pytest.raises(InputError, match="is the place of both a and b"):
        run_two(volume, {"a": tmp_path / "x.zarr", "b": tmp_path / "x.zarr" / "c"})
    (tmp_path / "link.zarr").symlink_to(volume)
    for place in (volume, tmp_path / "link.zarr", zarr.storage.LocalStore(volume)):
        with pytest.raises(InputError, match=r"is also an input \(volume\)"):
            run_two(volume, {"a": place, "b": tmp_path / "b.zarr"}, overwrite=True)
    with pytest.raises(InputError, match="lies in an input"):
        run_two(volume, {"a": tmp_path / "a.zarr", "b": tmp_path / "b.zarr"}, scratch=volume)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.zarr", "volume.zarr"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("at", range(1, 9))
def test_killed_while_outputs_are_moved(volume: Path, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = zarr.open_array(str(volume))[:]
    places = {"a": tmp_path / "a.zarr", "b": tmp_path / "g.zarr" / "b"}
    run_two(volume, {"a": places["a"], "b": tmp_path / "other.zarr"})
    count = [0]

    def deadly(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    child = os.fork()
    if not child:
        for module, name in ((os, "rename"), (Path, "replace"), (shutil, "rmtree")):
            monkeypatch.setattr(module, name, deadly(getattr(module, name)))
        try:
            run_two(volume, places, overwrite=True)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    if (tmp_path / "a.zarr.lpa3d" / "run.json").exists():
        # The same call, but that what was there has been agreed to be replaced.
        first, second = run_two(volume, places)
        np.testing.assert_array_equal(first[:], values)
        np.testing.assert_array_equal(second[:], 2 * values)
    else:
        with pytest.raises(InputError, match="exists"):
            run_two(volume, places)
    np.testing.assert_array_equal(open_result(places["b"])[:], 2 * values)
    left = [p.name for p in tmp_path.iterdir() if p.name not in ("volume.zarr", "other.zarr", "a.zarr", "g.zarr")]
    assert not left


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("again", [{}, {"resume": False}])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_killed_between_renames_with_scratch_on_another_disk(
    volume: Path, tmp_path: Path, at: int, again: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lpa3d.tiled.driver import outputs

    monkeypatch.setattr(outputs, "_disk", lambda folder: "scratch" in str(folder))
    places = {"a": tmp_path / "new" / "er" / "a.zarr", "b": tmp_path / "new" / "b.zarr"}
    how = {"scratch": tmp_path / "scratch"}
    replace, count = Path.replace, [0]

    def deadly(self: Path, target: Any) -> Any:
        count[0] += 1
        if count[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        done = replace(self, target)
        if at == 3 and count[0] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    child = os.fork()
    if not child:
        monkeypatch.setattr(Path, "replace", deadly)
        try:
            run_two(volume, places, **how)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    first, second = run_two(volume, places, **how, **again)
    values = zarr.open_array(str(volume))[:]
    np.testing.assert_array_equal(first[:], values)
    np.testing.assert_array_equal(second[:], 2 * values)
    left = [path for path in tmp_path.rglob(".*")] + list((tmp_path / "scratch").iterdir())
    assert not left


def test_what_others_put_there_is_not_deleted_with_a_run(volume: Path, tmp_path: Path) -> None:
    places = {"a": tmp_path / "a.zarr", "b": tmp_path / "b.zarr"}

    def stop(stage: str, done: float) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_two(volume, places, progress=stop)
    zarr.create_array(str(places["a"]), shape=(2, 2, 2), dtype="u4", chunks=(2, 2, 2))[:] = 7
    with pytest.raises(InputError, match="exists"):
        run_two(volume, places, resume=False)
    assert (open_result(places["a"])[:] == 7).all()


def test_runs_of_different_places_have_different_folders(volume: Path, calls: Path, tmp_path: Path) -> None:
    from lpa3d.tiled.driver.run import _flat

    names = ["g.zarr/b-c", "g.zarr/b/c", "g.zarr/b+c", "g.zarr/b%2Bc", "g.zarr-b", "g.zarr+b", "g.zarr/b", "g.zarr/b%c"]
    assert len({_flat(name.split("/")) for name in names}) == len(names)
    for how in ({}, {"scratch": tmp_path / "scratch"}):
        for name in ("g.zarr/b-c", "g.zarr/b/c"):
            with pytest.raises(TileError):
                run_double(volume, tmp_path / name, calls, tile=8, broken=[5], **how)
        for name in ("g.zarr/b-c", "g.zarr/b/c"):
            run_double(volume, tmp_path / name, calls, tile=8, **how)
        shutil.rmtree(tmp_path / "g.zarr")


def fail_to_rename(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    """Let a rename to a place fail."""
    replace = Path.replace

    def fail(self: Path, to: Path) -> Path:
        if to == target:
            raise OSError(5, "Input/output error")
        return replace(self, to)

    monkeypatch.setattr(Path, "replace", fail)


def test_a_pair_that_cannot_be_published_leaves_the_former_one(
    volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"a": tmp_path / "a.zarr", "b": tmp_path / "g.zarr" / "b"}
    zarr.create_group(str(tmp_path / "g.zarr"))
    for place in places.values():
        zarr.create_array(str(place), shape=(2, 2, 2), dtype="u4", chunks=(2, 2, 2))[:] = 7
    with monkeypatch.context() as patch:
        fail_to_rename(patch, places["b"])
        with pytest.raises(OSError, match="Input/output error"):
            run_two(volume, places, overwrite=True)
    for place in places.values():
        assert (open_result(place)[:] == 7).all()
    # What was made waits, and the same call puts it into place.
    with monkeypatch.context() as patch:
        patch.setattr("tests.tiled.driver.test_run.copy_twice", None)
        first, second = run_two(volume, places)
    values = zarr.open_array(str(volume))[:]
    np.testing.assert_array_equal(first[:], values)
    np.testing.assert_array_equal(second[:], 2 * values)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "g.zarr", "volume.zarr"]
    assert sorted(p.name for p in (tmp_path / "g.zarr").iterdir()) == ["b", "zarr.json"]


def test_outputs_are_on_the_disk_before_they_are_in_place(
    volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"a": tmp_path / "a.zarr", "b": tmp_path / "new" / "er" / "b.zarr"}
    flushed: list[str] = []
    fsync, replace, rename = os.fsync, Path.replace, os.replace
    home = tmp_path / "a.zarr.lpa3d"

    def note_flush(handle: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def look_at_records(source: Any, target: Any, **how: Any) -> None:
        record = str(Path(target).relative_to(tmp_path)) if "done" in str(target) else Path(target).name
        if record == "run.json" or "/done/" in record:
            # What says that something is done is on the disk before it is there, its name before the run goes on.
            assert flushed[-1] == str(source)
            records.append((len(flushed), str(Path(target).parent)))
        rename(source, target, **how)

    records: list[tuple[int, str]] = []

    def look(self: Path, to: Path) -> Path:
        if to in places.values():
            for name in places:
                built = self.parent / name
                if built.exists():  # the first is moved before the second
                    files = {str(path) for path in [built, *built.rglob("*")]}
                    assert files <= set(flushed)
                    assert open_result(built).attrs["lpa3d"]["complete"] is True
            if to == places["b"]:  # the folders that were made for it, too
                assert {str(folder) for folder in list(to.parents)[:3]} <= set(flushed[renamed[0] :])
            assert records[-1][1].endswith("/done")
            renamed.append(len(flushed))
            assert home.is_dir()  # nothing of the run is deleted before
        return replace(self, to)

    renamed: list[int] = []
    monkeypatch.setattr(os, "replace", look_at_records)

    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(Path, "replace", look)
    run_two(volume, places)
    assert [flushed[k] for k in renamed] == [str(place.parent) for place in places.values()]
    assert len(records) == 4  # the run; outputs are made, tiles are done, outputs are whole
    assert all(flushed[at] == folder for at, folder in records)


KEYS = [{}, {"name": "default", "separator": "."}, {"name": "v2", "separator": "."}, {"name": "v2", "separator": "/"}]


@pytest.mark.parametrize("encoding", KEYS)
def test_a_run_in_a_store_begins_from_nothing(encoding: Any, volume: Path, calls: Path, tmp_path: Path) -> None:
    # Other things of the store are nobody's business.
    mine = zarr.storage.MemoryStore()
    zarr.create_array(mine, name="0/mine", shape=(4,), dtype="u1", chunks=(2,))[:] = 5
    before = {key: value for key, value in mine._store_dict.items() if "/" in key}
    assert len(before) > 3
    store = zarr.storage.MemoryStore(dict(before))
    storage = {"chunks": 4, **({"chunk_key_encoding": encoding} if encoding else {})}
    with pytest.raises(TileError):
        run_double(volume, store, calls, tile=8, broken=[5], storage=storage)
    assert len([key for key in store._store_dict if key not in before and not key.startswith(".lpa3d-run")]) > 20
    # Now nothing is written, so that all that is there is left over.
    zarr.open_array(str(volume), mode="r+")[:] = 0
    result, _ = run_double(volume, store, calls, tile=8, storage={"chunks": 4}, resume=False)
    assert not result[:].any()
    assert set(store._store_dict) == {"zarr.json", *before}
    assert all(store._store_dict[key] == value for key, value in before.items())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("at", range(6))
def test_killed_while_an_output_gets_its_dtype(volume: Path, tmp_path: Path, at: int) -> None:
    def run() -> Any:
        source = open_source(volume, "volume")
        wanted = {"a": Wanted(tmp_path / "a.zarr", source.shape, 3, np.uint64)}
        how: dict[str, Any] = {"stages": [Stage("dtype"), Stage("copy")], "bytes_per_voxel": 20}
        with open_run("narrow", {"volume": source}, {}, wanted, Options(tile=8), **how) as run:
            run.once("dtype", lambda: {})
            run.retype("a", np.dtype(np.uint16))
            run.map("copy", copy_narrow, (source, run.grid, run.outputs["a"]))
        return run.result("a")

    child = os.fork()
    if not child:
        count = [0]
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in ((os, "replace"), (os, "rename"), (os, "unlink"), (zarr.storage.LocalStore, "_set")):
                inner = getattr(owner, name)

                def counted(*args: Any, inner: Any = inner, **kwargs: Any) -> Any:
                    count[0] += 1
                    if count[0] == 8 + at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return inner(*args, **kwargs)

                patch.setattr(owner, name, counted)
            run()
        os._exit(0)
    os.waitpid(child, 0)
    if not (tmp_path / "a.zarr").exists():
        result = run()
        assert result.dtype == np.uint16
        np.testing.assert_array_equal(result[:], zarr.open_array(str(volume))[:])


def copy_narrow(context: Any, tile: int) -> None:
    source, grid, out = context
    out.write(grid.box(tile), source.read(grid.box(tile)).astype(np.uint16))


def test_a_result_that_was_taken_away_is_not_made_up(volume: Path, tmp_path: Path) -> None:
    places = {"a": tmp_path / "a.zarr", "b": tmp_path / "b.zarr"}
    child = os.fork()
    if not child:
        from lpa3d.tiled.driver import run

        run.sweep = lambda *_: os.kill(os.getpid(), signal.SIGKILL) if places["b"].exists() else None
        try:
            run_two(volume, places)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.rename(places["a"], tmp_path / "mine.zarr")
    with pytest.raises(InputError, match=r"is not at .*a\.zarr any more; pass resume=False"):
        run_two(volume, places)
    zarr.create_array(str(places["a"]), shape=(20, 18, 16), dtype="u4", chunks=(20, 18, 16))[:] = 7
    with pytest.raises(InputError, match=r"is not at .*a\.zarr any more"):
        run_two(volume, places)
    assert (open_result(places["a"])[:] == 7).all()


def test_an_unfinished_run_in_a_store_starts_anew(volume: Path, calls: Path, tmp_path: Path) -> None:
    store = zarr.storage.LocalStore(tmp_path / "store.zarr")
    with pytest.raises(TileError):
        run_double(volume, store, calls, tile=8, broken=[5])
    result, _ = run_double(volume, store, calls, tile=4, resume=False)
    np.testing.assert_array_equal(result[:], 2 * zarr.open_array(str(volume))[:])
    with pytest.raises(InputError, match="exists"):
        run_double(volume, store, calls, resume=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("killer", [0, 3, 11])
def test_kill_and_resume(volume: Path, calls: Path, tmp_path: Path, killer: int) -> None:
    out = tmp_path / "out.zarr"
    child = os.fork()
    if not child:
        run_double(volume, out, calls, tile=8, killer=killer)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not out.exists()
    home = tmp_path / "out.zarr.lpa3d"
    token = json.loads((home / "run.json").read_bytes())["id"]
    rows = home / token / "journal" / "double" / "rows"
    finished = set(np.fromfile(rows, np.int64)[2:].reshape(-1, 3)[:, 0].tolist()) if rows.exists() else set()
    for name in os.listdir(calls):
        (calls / name).unlink()
    result, _ = run_double(volume, out, calls, tile=8)
    again = {int(name.split("-")[0]) for name in os.listdir(calls)}
    assert not again & finished
    np.testing.assert_array_equal(result[:], 2 * zarr.open_array(str(volume))[:])
    assert not home.exists()


def test_a_full_disk_loses_nothing(volume: Path, calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put, count = Folder.put, [0]

    def full(self: Folder, key: str, parts: list[bytes], **how: Any) -> None:
        count[0] += 1
        if count[0] > 9:
            raise OSError(28, "No space left on device")
        put(self, key, parts, **how)

    monkeypatch.setattr(Folder, "put", full)
    with pytest.raises((TileError, OSError), match="No space left"):
        run_double(volume, tmp_path / "out.zarr", calls, tile=8)
    monkeypatch.setattr(Folder, "put", put)
    before = len(os.listdir(calls))
    result, _ = run_double(volume, tmp_path / "out.zarr", calls, tile=8)
    assert len(os.listdir(calls)) - before < 18
    np.testing.assert_array_equal(result[:], 2 * zarr.open_array(str(volume))[:])


def test_workers_in_other_processes(volume: Path, calls: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    values = zarr.open_array(str(volume))[:]
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster),
    ):
        result, _ = run_double(volume, tmp_path / "out.zarr", calls, tile=8)
        np.testing.assert_array_equal(result[:], 2 * values)
        with pytest.raises(InputError, match="memory of this process"):
            run_double(volume, zarr.storage.MemoryStore(), calls)
