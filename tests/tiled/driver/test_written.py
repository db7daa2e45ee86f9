"""What was written to an output is there before it is published; who does not see its place writes nothing."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpa3d.arrays.call import Options
from lpa3d.errors import InputError
from lpa3d.tiled.driver import locks
from lpa3d.tiled.driver import run as driver
from lpa3d.tiled.driver.outputs import Sink, Wanted, pack_written, unpack_written
from lpa3d.tiled.driver.run import open_run
from lpa3d.tiled.driver.schedulers import Threads
from lpa3d.tiled.driver.scratch import Folder, ScratchError
from lpa3d.tiled.driver.stages import Stage
from lpa3d.tiled.driver.stored import open_source

zarr = pytest.importorskip("zarr")


def copy(context: Any, tile: int) -> None:
    source, grid, outputs, scratch = context
    scratch.put(f"seen/{tile}", tile=np.array(tile))
    for output in outputs:
        output.write(grid.box(tile), source.read(grid.box(tile)))


def run(volume: Any, places: list[Any], **options: Any) -> list[Any]:
    """Copy a volume to some places."""
    source = open_source(volume, "volume")
    wanted = {f"out{k}": Wanted(place, source.shape, source.ndim, source.dtype) for k, place in enumerate(places)}
    how: dict[str, Any] = {"stages": [Stage("copy", keeps=("seen",))], "bytes_per_voxel": 20}
    options = {"tile": 4, "storage": {"chunks": 2}, **options}
    with open_run("copy", {"volume": source}, {}, wanted, Options(**options), **how) as one:
        one.map("copy", copy, (source, one.grid, list(one.outputs.values()), one.scratch))
    return [one.result(name) for name in wanted]


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    values = np.arange(8 * 6 * 6, dtype=np.uint16).reshape(8, 6, 6)
    values[2:4] = 0
    zarr.create_array(str(tmp_path / "volume.zarr"), shape=values.shape, dtype="u2", chunks=(4, 4, 4))[:] = values
    return tmp_path / "volume.zarr"


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 300))))
def test_rows_tell_what_was_written(written: list[tuple[int, int]]) -> None:
    rows = np.array([*pack_written(written)], np.int64).reshape(-1, 3)
    for number in range(3):
        flags = unpack_written([rows[:2], rows[2:]], number, 301)
        assert np.flatnonzero(flags).tolist() == sorted({unit for which, unit in written if which == number})


def places(tmp_path: Path, kind: str) -> tuple[list[Any], Any]:
    """Return two places of a kind, and what deletes a chunk of the second while it is built."""
    if kind == "folders":
        return [tmp_path / "a.zarr", tmp_path / "b.zarr"], lambda key: next(
            (tmp_path / "a.zarr.lpa3d").glob(f"*/result/out1/0/{key}")
        ).unlink()
    if kind == "memory":
        stores = [zarr.storage.MemoryStore(), zarr.storage.MemoryStore()]
        zarr.create_array(stores[0], name="mine", shape=(1,), dtype="u1")  # or the two would be equal
        del stores[0]._store_dict["zarr.json"]
        return stores, lambda key: stores[1]._store_dict.pop(key)
    stores = [zarr.storage.LocalStore(tmp_path / name) for name in "ab"]
    return stores, lambda key: (tmp_path / "b" / key).unlink()


@pytest.mark.parametrize("storage", [{"chunks": 2}, {"chunks": 2, "shards": 4}])
@pytest.mark.parametrize("kind", ["folders", "memory", "store"])
def test_a_chunk_that_is_lost(kind: str, storage: Any, volume: Path, tmp_path: Path) -> None:
    outs, delete = places(tmp_path, kind)
    lost = "c/1/0/1"
    if "shards" not in storage:
        lost = "c/2/1/1"

    def lose(stage: str, done: float) -> None:
        if done == 1.0 and not gone:
            gone.append(lost)
            delete(lost)

    gone: list[str] = []
    for _ in range(2):  # the same call finds the same
        with pytest.raises(ScratchError, match=rf"{lost} of .* was written, but is not at .*resume=False"):
            run(volume, outs, progress=lose, storage=storage)
        if kind != "folders":
            assert zarr.open_array(outs[0]).attrs["lpa3d"]["complete"] is False
        else:
            assert not any(out.exists() for out in outs)
    for result in run(volume, outs, resume=False, storage=storage):
        np.testing.assert_array_equal(result[:], zarr.open_array(str(volume))[:])
        assert "run" not in result.attrs["lpa3d"]


def test_a_chunk_that_is_empty(volume: Path, tmp_path: Path) -> None:
    def empty(stage: str, done: float) -> None:
        if done == 1.0:
            (chunk,) = (tmp_path / "a.zarr.lpa3d").glob("*/result/out0/0/c/0/1/2")
            chunk.write_bytes(b"")

    with pytest.raises(ScratchError, match="c/0/1/2 of"):
        run(volume, [tmp_path / "a.zarr"], progress=empty)


class Elsewhere(Threads):
    """Workers that see another disk in the place of the driver's: what they make there is their own."""

    seen: tuple[Path, Path]
    made: bool

    def prepare(self, task: Any, context: Any) -> Any:
        source, grid, outputs, scratch = context

        def other(path: Any) -> Path:
            return self.seen[1] / Path(path).relative_to(self.seen[0])

        moved = []
        for output in outputs:
            place = other(output.array.store.root)
            if self.made:  # it was copied there
                shutil.copytree(output.array.store.root, place)
            moved.append(replace(output, array=_at(output.array, place)))
        blobs = replace(scratch.blobs, root=other(scratch.blobs.root)) if not self.made else scratch.blobs
        return pickle.loads(pickle.dumps((task, (source, grid, moved, replace(scratch, blobs=blobs)))))


def _at(array: Any, place: Path) -> Any:
    """Return an array as if its folder was elsewhere, where it may not be."""
    made = place.exists()
    if not made:
        shutil.copytree(array.store.root, place)
    try:
        return zarr.open_array(str(place), mode="r+").with_config({"write_empty_chunks": True})
    finally:
        if not made:
            shutil.rmtree(place)


@pytest.mark.parametrize("made", [False, True])
def test_workers_that_see_another_disk(
    made: bool, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "driver").mkdir()
    (tmp_path / "worker").mkdir()
    Elsewhere.seen, Elsewhere.made = (tmp_path / "driver", tmp_path / "worker"), made
    monkeypatch.setattr(driver, "choose_scheduler", Elsewhere)
    monkeypatch.setattr(driver, "PAUSE", 0)
    text = "is not at .* any more|was written, but is not at" if made else "is not there.* does not see the folder"
    with pytest.raises(ScratchError, match=text):
        run(volume, [tmp_path / "driver" / "out.zarr"])
    assert not (tmp_path / "driver" / "out.zarr").exists()
    if not made:
        assert not [path for path in (tmp_path / "worker").rglob("*") if path.is_file()]


def test_who_does_not_see_an_output_makes_none(volume: Path, tmp_path: Path) -> None:
    array = zarr.create_array(str(tmp_path / "there"), shape=(4, 4, 4), dtype="u1", chunks=(2, 2, 2))
    values = np.ones((4, 4, 4), np.uint8)
    box = open_source(array, "a").shape
    from lpa3d.tiled.driver.grid import Box

    shutil.rmtree(tmp_path / "there")
    with pytest.raises(ScratchError, match=r"made for out\.zarr is not at .*there.*pass one that all workers share"):
        Sink(array, (4, 4, 4), 3, shown="out.zarr").write(Box((0, 0, 0), box), values)
    assert not (tmp_path / "there").exists()


def test_a_late_worker_does_not_write_into_the_run_that_follows(volume: Path) -> None:
    store = zarr.storage.MemoryStore()
    late: list[Sink] = []

    def stop(stage: str, done: float) -> None:
        if done:
            raise KeyboardInterrupt

    def look(stage: str, done: float) -> None:
        """Let the worker of the earlier run write."""
        if done == 1.0:
            with pytest.raises(ScratchError, match="another one took its place"):
                late[0].write(open_box, np.full((4, 4, 4), 9, np.uint16))

    from lpa3d.tiled.driver.grid import Box

    open_box = Box((0, 0, 0), (4, 4, 4))
    with pytest.raises(KeyboardInterrupt):
        run(volume, [store], progress=stop)
    array = zarr.open_array(store, mode="r+")
    late.append(Sink(array, array.shape, 3, 0, array.attrs["lpa3d"]["run"]))
    (result,) = run(volume, [store], resume=False, progress=look)
    np.testing.assert_array_equal(result[:], zarr.open_array(str(volume))[:])


def test_scratch_is_not_made_where_the_driver_made_none(tmp_path: Path) -> None:
    with pytest.raises(ScratchError, match="is not there"):
        Folder(tmp_path / "gone", made=True).put("a/b", [b"x"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["memory", "store"])
def test_two_runs_at_once_on_one_store(
    kind: str, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store, *_), _ = places(tmp_path, kind)
    monkeypatch.setattr(locks, "WAIT", 0)
    seen = []

    def second(stage: str, done: float) -> None:
        if done == 1.0 and not seen:
            for resume in (True, False):
                with pytest.raises(InputError, match="another process is at work on this output"):
                    run(volume, [store], resume=resume)
            seen.append(done)

    (result,) = run(volume, [store], progress=second)
    assert seen
    np.testing.assert_array_equal(result[:], zarr.open_array(str(volume))[:])


def test_a_run_whose_claim_is_taken_stops(volume: Path, tmp_path: Path) -> None:
    store = zarr.storage.MemoryStore()

    def take(stage: str, done: float) -> None:
        if done == 1.0:
            for key in [key for key in store._store_dict if key.startswith(locks.CLAIMS)]:
                del store._store_dict[key]

    with pytest.raises(locks.LockError, match="so this one stops"):
        run(volume, [store], progress=take)
    assert zarr.open_array(store).attrs["lpa3d"]["complete"] is False
    (result,) = run(volume, [store])  # nothing was deleted
    np.testing.assert_array_equal(result[:], zarr.open_array(str(volume))[:])
