"""What a run keeps: where it is damaged or missing, that is an error that names it, or does no harm."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lpa3d
from lpa3d.errors import InputError, Lpa3dError
from lpa3d.tiled.driver import run as driver
from lpa3d.tiled.driver.journal import Journal
from lpa3d.tiled.driver.scratch import Folder, Scratch, ScratchError, StoreFolder, pack_record, read_record

zarr = pytest.importorskip("zarr")


def kinds(tmp_path: Path) -> Iterator[Any]:
    """Yield blobs in a folder and in a store, and what changes their bytes."""
    folder = Folder(tmp_path)
    yield (
        folder,
        lambda key: bytearray((tmp_path / key).read_bytes()),
        lambda key, data: (tmp_path / key).write_bytes(data),
    )
    store = zarr.storage.MemoryStore()
    buffers = zarr.core.buffer.default_buffer_prototype().buffer

    def change(key: str, data: bytes) -> None:
        store._store_dict[f"s/{key}"] = buffers.from_bytes(bytes(data))

    yield StoreFolder(store, "s"), lambda key: bytearray(store._store_dict[f"s/{key}"].to_bytes()), change


ARRAYS = {"a": np.arange(24, dtype=np.int16), "b": np.array(True), "c": np.zeros((0, 3), np.int16)}


def test_every_bit_of_a_blob_counts(tmp_path: Path) -> None:
    for blobs, read, change in kinds(tmp_path):
        scratch = Scratch(blobs)
        scratch.put("x/1", **ARRAYS)
        whole = read("x/1")
        damaged = [whole[:k] for k in range(0, len(whole), 7)] + [bytearray(len(whole))]
        for at in range(len(whole)):
            damaged.append(whole.copy())
            damaged[-1][at] ^= 1 << at % 8
        for data in damaged:
            change("x/1", data)
            with pytest.raises(ScratchError, match=r"damaged \(x/1, in .*x/1.*resume=False"):
                scratch.get("x/1")
        # Of what is damaged elsewhere an array is read all the same.
        change("x/1", whole[:-1] + bytes([whole[-1] ^ 1]))
        assert len(scratch.get("x/1", "a")["a"]) == 24


def test_blobs_that_were_exchanged(tmp_path: Path) -> None:
    for blobs, read, change in kinds(tmp_path):
        scratch = Scratch(blobs)
        scratch.put("x/1", **ARRAYS)
        scratch.put("x/2", **ARRAYS)
        change("x/2", read("x/1"))
        scratch.get("x/1")
        with pytest.raises(ScratchError, match="x/2"):
            scratch.get("x/2")


@settings(max_examples=30)
@given(
    st.dictionaries(st.text(), st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists)), st.data()
)
def test_records(values: dict[str, Any], data: st.DataObject) -> None:
    values.pop("checksum", None)
    packed = pack_record("k", values)
    assert repr(read_record("k", packed)) == repr(json.loads(json.dumps(values)))
    with pytest.raises(ValueError, match="checksum"):
        read_record("l", packed)
    at = data.draw(st.integers(0, len(packed) - 1))
    changed = packed[:at] + bytes([packed[at] ^ 1 << data.draw(st.integers(0, 7))]) + packed[at + 1 :]
    try:
        found = read_record("k", changed)
    except ValueError:
        return
    assert repr(found) == repr(read_record("k", packed))  # 1e5 and 1E5


def rows(blobs: Any, columns: int = 2) -> list[list[int]]:
    return [row for part in Journal(blobs).rows("s", columns) for row in part.tolist()]


@settings(max_examples=20)
@given(st.integers(1, 6), st.data())
def test_a_journal_that_is_damaged(tmp_path_factory: pytest.TempPathFactory, count: int, data: st.DataObject) -> None:
    expected = [[k, -k] for k in range(count)]
    for blobs, read, change in kinds(tmp_path_factory.mktemp("journal")):
        journal = Journal(blobs)
        for k in range(count):
            journal.append("s", k, -k)
        journal.close()
        (key,) = blobs.keys("journal/s")
        whole = read(key)
        at = data.draw(st.integers(0, len(whole) - 1))
        damaged = whole.copy()
        kind = data.draw(st.sampled_from(["bit", "zeros", "cut", "other stage", "shift"]))
        if kind == "bit":
            damaged[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "zeros":
            damaged[at:] = bytes(len(whole) - at)
        elif kind == "cut":
            del damaged[at:]
        elif kind == "shift":
            del damaged[at : at + 24]
        else:
            journal.append("t", 7, 7)
            journal.close()
            damaged = read(next(iter(blobs.keys("journal/t"))))
        change(key, damaged)
        try:
            found = rows(blobs)
        except ScratchError as error:
            text = str(error)
        else:
            text = ""
        if text:
            assert re.search(r"journal of this run is damaged \(s, in .*resume=False", text)
            assert kind != "cut" or isinstance(blobs, StoreFolder)
            continue
        assert found == expected[: len(found)]
        if isinstance(blobs, Folder) and kind == "bit":
            assert len(found) >= count - 1
        # And it goes on where it ended.
        again = Journal(blobs)
        again.append("s", 9, 9)
        again.close()
        assert rows(blobs) == [*found, [9, 9]]


def test_a_lost_segment(tmp_path: Path) -> None:
    blobs = StoreFolder(zarr.storage.MemoryStore(), "s")
    for k in range(3):
        journal = Journal(blobs)
        journal.append("s", k)
        journal.close()
    keys = sorted(blobs.keys("journal/s"))
    assert len(keys) == 3
    blobs.delete(keys[1])
    with pytest.raises(ScratchError, match="it is missing"):
        rows(blobs, 1)


def test_the_end_of_a_stage_that_is_damaged(tmp_path: Path) -> None:
    for blobs, read, change in kinds(tmp_path):
        Journal(blobs).finish("s", found=3)
        Journal(blobs).finish("t", found=4)
        change("done/s", read("done/t"))
        for ask in (Journal(blobs).finished, Journal(blobs).values):
            with pytest.raises(ScratchError, match=r"done/s.*resume=False"):
                ask("s")


class Stop(BaseException):
    """Ends a run as a signal would."""


VERBS: dict[str, tuple[str, Any]] = {
    "label": ("label write", lambda inputs, out, **how: lpa3d.label(inputs["volume"], out=out, tile=6, **how)),
    "propagate": (
        "writing",
        lambda inputs, out, **how: lpa3d.propagate(
            inputs["volume"], inputs["seeds"], out=out, tile=6, unseeded="label", sweeps=2, **how
        ),
    ),
    "stitch": ("write", lambda inputs, out, **how: lpa3d.stitch(inputs["seeds"], max_gap=2, out=out, tile=6, **how)),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_file_of_a_run_that_is_damaged(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    coarse = rng.random((4, 4, 4)).repeat(3, 0).repeat(3, 1).repeat(3, 2)
    volume = ((coarse > 0.3) & (rng.random((12, 12, 12)) > 0.2)).astype(np.uint8)
    seeds = np.where(rng.random((12, 12, 12)) > 0.97, lpa3d.label(volume), 0).astype(np.int32)
    if verb == "stitch":
        seeds = np.where(np.arange(12)[:, None, None] % 3 > 0, lpa3d.label(volume, connectivity=6), 0).astype(np.int32)
    inputs = {"volume": tmp_path / "v.zarr", "seeds": tmp_path / "s.zarr"}
    for place, array in zip(inputs.values(), (volume, seeds), strict=True):
        zarr.create_array(str(place), shape=array.shape, dtype=array.dtype, chunks=(6, 6, 6))[:] = array
    last, call = VERBS[verb]
    out = tmp_path / "out.zarr"
    monkeypatch.setattr(driver, "PAUSE", 0)

    def stop(stage: str, done: float) -> None:
        if stage == last and done > 0:
            raise Stop

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = call(inputs, tmp_path / "whole.zarr")[:]
        with pytest.raises(Stop):
            call(inputs, out, progress=stop)
        kept, home = tmp_path / "kept", tmp_path / "out.zarr.lpa3d"
        home.rename(kept)
        files = [path.relative_to(kept) for path in sorted(kept.rglob("*")) if path.is_file()]
        files = [path for path in files if "result" not in path.parts]
        told: list[str] = []
        for k, path in enumerate(files[:: max(1, len(files) // 50)]):
            shutil.rmtree(home, ignore_errors=True)
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(kept, home)
            data = bytearray((home / path).read_bytes())
            if k % 3 == 0:
                data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
                (home / path).write_bytes(data)
            elif k % 3 == 1:
                (home / path).write_bytes(bytes(len(data)))
            else:
                (home / path).unlink()
            try:
                result = call(inputs, out)[:]
            except Lpa3dError as error:
                told.append(str(error))
                # Without the end of a stage the stage is done again, and misses what was deleted after it.
                assert path.name in told[-1] or (path.parent.name == "done" and "missing" in told[-1])
            else:
                np.testing.assert_array_equal(result, expected)
    assert told
    assert all("resume=False" in text or "run.json" in text for text in told)


def test_a_run_of_an_earlier_format(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "v.zarr"), shape=(8, 8, 8), dtype="u1", chunks=(4, 4, 4))[:] = 1

    def stop(stage: str, done: float) -> None:
        if done:
            raise Stop

    with pytest.raises(Stop):
        lpa3d.label(tmp_path / "v.zarr", out=tmp_path / "o.zarr", tile=4, progress=stop)
    file = tmp_path / "o.zarr.lpa3d" / "run.json"
    about = json.loads(file.read_bytes())
    for key in ("format", "checksum", "built", "shown"):
        del about[key]
    file.write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"in another form; go on with that version, or pass resume=False"):
        lpa3d.label(tmp_path / "v.zarr", out=tmp_path / "o.zarr", tile=4)
    assert lpa3d.label(tmp_path / "v.zarr", out=tmp_path / "o.zarr", tile=4, resume=False)[:].all()
