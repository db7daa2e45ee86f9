"""Where inputs lie: no kind of store hides that an input is also an output, or that it changed."""

import functools
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lpa3d
from lpa3d.errors import InputError
from lpa3d.tiled.driver.origins import find_origins, find_target
from lpa3d.tiled.driver.stored import open_source

zarr = pytest.importorskip("zarr")
obstore = pytest.importorskip("obstore")
pytest.importorskip("fsspec")
dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

VALUES = (np.random.default_rng(0).random((8, 8, 8)) < 0.5).astype(np.uint8)


def store_values(place: Any, values: Any = VALUES, **more: Any) -> Any:
    array = zarr.create_array(place, shape=values.shape, dtype=values.dtype, chunks=(4, 4, 4), overwrite=True, **more)
    array[:] = values
    return array


def store_zip(path: Path, values: Any) -> None:
    with zarr.storage.ZipStore(path, mode="w") as store:
        array = zarr.create_array(store, shape=values.shape, dtype=values.dtype, chunks=(4, 4, 4))
        array[:] = values


class Lazy:
    """An array that nothing is known of."""

    shape, dtype, ndim = VALUES.shape, VALUES.dtype, 3

    def __init__(self, array: Any) -> None:
        self.array = array

    def __getitem__(self, place: Any) -> Any:
        return self.array[place]


def read_path(path: Path) -> Any:
    return zarr.open_array(str(path), mode="r")


def read_object(path: Path) -> Any:
    return zarr.open_array(zarr.storage.ObjectStore(obstore.store.LocalStore(path)), mode="r")


FOLDERS: dict[str, Callable[[Path], Any]] = {
    "path": str,
    "relative": lambda path: os.path.relpath(path),
    "file://": lambda path: f"file://{path}",
    "local://": lambda path: f"local://{path}",
    "cached": lambda path: zarr.open_array(f"simplecache::local://{path}", mode="r"),
    "obstore": read_object,
    "obstore above": lambda path: zarr.open_array(
        zarr.storage.ObjectStore(obstore.store.LocalStore(path.parent)), path=path.name, mode="r"
    ),
    "obstore without prefix": lambda path: zarr.open_array(
        zarr.storage.ObjectStore(obstore.store.LocalStore()), path=str(path).lstrip("/"), mode="r"
    ),
    "wrapped": lambda path: zarr.open_array(
        zarr.storage.WrapperStore(zarr.storage.LocalStore(path, read_only=True)), mode="r"
    ),
    "dask": lambda path: da.from_zarr(str(path)),
    "dask of a path": lambda path: da.from_zarr(read_path(path)),
    "dask of obstore": lambda path: da.from_zarr(read_object(path)),
    "dask in the tasks": lambda path: da.from_array(read_path(path), chunks=4, inline_array=True),
    "derived": lambda path: (da.from_zarr(str(path))[::-1] + 0).rechunk(3),
    "stacked": lambda path: da.stack([da.from_zarr(str(path))[z] for z in range(8)]),
    "delayed": lambda path: da.from_delayed(dask.delayed(np.asarray, pure=True)(read_path(path)), (8, 8, 8), np.uint8),
    "partial": lambda path: (
        da.zeros((8, 8, 8), chunks=4, dtype="u1").map_blocks(
            functools.partial(np.add, zarr.open_array(str(path), mode="r")[:4, :4, :4])
        )
        + da.from_zarr(str(path))
    ),
}
"""Ways to an array in a folder that can be told apart."""

STRANGE: dict[str, Callable[[Path], Any]] = {
    "foreign": lambda path: da.from_array(Lazy(read_path(path)), chunks=4),
    "function": lambda path: da.from_zarr(str(path)).map_blocks(lambda block: block > 0),
    "closure": lambda path: da.map_blocks(
        lambda block_info: np.asarray(read_path(path)), chunks=((8,), (8,), (8,)), dtype="u1"
    ),
}
"""And that cannot."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    store_values(tmp_path / "a.zarr")
    return tmp_path / "a.zarr"


@pytest.mark.parametrize("kind", [*FOLDERS, *(kind for kind in STRANGE if kind != "closure")])
def test_an_input_is_no_output(folder: Path, kind: str) -> None:
    array = {**FOLDERS, **STRANGE}[kind](folder)
    for out in (folder, f"file://{folder}/", zarr.storage.LocalStore(folder), zarr.storage.LocalStore(folder / "c")):
        with pytest.raises(InputError, match=r"is also an input \(volume\)"):
            lpa3d.label(array, out=out, overwrite=True, tile=4)
    with pytest.raises(InputError, match=r"lies in an input"):
        lpa3d.label(array, out=folder.parent / "out.zarr", scratch=folder, tile=4)
    with pytest.raises(InputError, match=r"lies in an input"):
        lpa3d.evaluate(array, array, scratch=folder / "c", tile=4)
    np.testing.assert_array_equal(read_path(folder)[:], VALUES)
    assert os.listdir(folder.parent) == ["a.zarr"]


def test_the_file_of_an_input_lies_in_an_output(tmp_path: Path) -> None:
    out = store_values(tmp_path / "out.zarr")
    assert out.shape == VALUES.shape
    store_zip(tmp_path / "out.zarr" / "c" / "in.zip", VALUES)
    zipped = zarr.open_array(zarr.storage.ZipStore(tmp_path / "out.zarr" / "c" / "in.zip", mode="r"), mode="r")
    np.save(tmp_path / "out.zarr" / "c" / "in.npy", VALUES)
    # dask takes a copy of what is mapped into memory, but what is made of it is none.
    mapped = da.from_delayed(
        dask.delayed(np.add)(np.load(tmp_path / "out.zarr" / "c" / "in.npy", mmap_mode="r")[1:], 0), (7, 8, 8), np.uint8
    )
    named = da.from_delayed(dask.delayed(np.load)(tmp_path / "out.zarr" / "c" / "in.npy"), (8, 8, 8), np.uint8)
    for array in (zipped, da.from_zarr(zipped), mapped, named):
        with pytest.raises(InputError, match=r"is also an input \(volume\)"):
            lpa3d.label(array, out=tmp_path / "out.zarr", overwrite=True, tile=4)
    # Chunks of the input are links to those of what would be replaced.
    linked = store_values(tmp_path / "linked.zarr")
    for chunk in (tmp_path / "linked.zarr" / "c" / "0" / "0").iterdir():
        chunk.unlink()
        chunk.symlink_to(tmp_path / "out.zarr" / "c" / "0" / "0" / chunk.name)
    np.testing.assert_array_equal(linked[:], VALUES)
    with pytest.raises(InputError, match=r"is also an input \(volume\)"):
        lpa3d.label(tmp_path / "linked.zarr", out=tmp_path / "out.zarr", overwrite=True, tile=4)


def test_places_in_stores_overlap() -> None:
    memory = zarr.storage.MemoryStore()
    inside = store_values(memory, name="a")
    objects = zarr.storage.ObjectStore(obstore.store.MemoryStore())
    inner = store_values(objects)
    url = store_values("memory://origins/a.zarr")
    for array, out in (
        (inside, memory),
        (da.from_zarr(inside) + 0, memory),
        (inner, objects),
        (url, "memory://origins/a.zarr/"),
        (url, "memory:///origins/a.zarr/labels"),
        (da.from_zarr("memory://origins/a.zarr"), "memory://origins"),
    ):
        with pytest.raises(InputError, match=r"is also an input \(volume\)"):
            lpa3d.label(array, out=out, tile=4)
    for one, other, same in (
        ("memory://b/a", "memory://b/ab", False),
        ("memory://b/a", "memory://b//a/", True),
        ("memory://b", "memory://b/a", True),
    ):
        stores = [zarr.storage.FsspecStore.from_url(place) for place in (one, other)]
        assert find_target(stores[0]).overlaps(find_target(stores[1])) is same
    # One bucket, through two libraries.
    fsspec = zarr.storage.FsspecStore(url.store.fs, path="bucket/cells/a.zarr")
    s3 = zarr.storage.ObjectStore(obstore.store.S3Store("bucket", prefix="cells", region="x", skip_signature=True))
    theirs = find_target(s3)
    assert (theirs.service, theirs.parts) == ("s3", ("bucket", "cells"))
    assert find_target(fsspec).parts[:2] == theirs.parts
    assert not find_target(fsspec).overlaps(theirs)


def describe(array: Any) -> Any:
    about = open_source(array, "volume").describe()
    return about["digest"], about.get("unknown")


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_change_of_files_is_seen(folder: Path, kind: str) -> None:
    before = describe(FOLDERS[kind](folder))
    assert before == describe(FOLDERS[kind](folder))
    assert before[1] is None
    store_values(folder, 1 - VALUES)
    assert before[0] != describe(FOLDERS[kind](folder))[0]


def test_a_change_in_other_stores_is_seen(tmp_path: Path) -> None:
    path, real = tmp_path / "in.zip", tmp_path / "real.zarr"
    store_values(real)
    (tmp_path / "link.zarr").mkdir()
    (tmp_path / "link.zarr" / "c").symlink_to("../real.zarr/c")
    (tmp_path / "link.zarr" / "zarr.json").write_bytes((real / "zarr.json").read_bytes())
    memory, objects = zarr.storage.MemoryStore(), zarr.storage.ObjectStore(obstore.store.MemoryStore())
    url = "memory://origins/changes.zarr"
    kinds: tuple[tuple[Callable[[Any], Any], Callable[[], Any]], ...] = (
        (
            lambda values: store_zip(path, values),
            lambda: zarr.open_array(zarr.storage.ZipStore(path, mode="r"), mode="r"),
        ),
        (lambda values: store_values(real, values), lambda: tmp_path / "link.zarr"),
        (lambda values: store_values(memory, values), lambda: zarr.open_array(memory, mode="r")),
        (lambda values: store_values(objects, values), lambda: zarr.open_array(objects, mode="r")),
        (lambda values: store_values(url, values), lambda: url),
    )
    for make, get in kinds:
        digests = []
        for values in (VALUES, 1 - VALUES):
            make(values)
            digests += [describe(get()), describe(get())]
            array = get() if hasattr(get(), "shape") else zarr.open_array(str(get()), mode="r")
            # The name tells nothing: dask makes it of the metadata.
            derived = da.from_zarr(array, name="volume") + 1
            digests += [describe(derived), describe(derived)]
        assert {unknown for _, unknown in digests} == {None}
        first, first_again, derived, derived_again, second, _, derived_second, _ = digests
        assert (first, derived) == (first_again, derived_again)
        assert first != second
        assert derived != derived_second
    # What is in memory counts by its values, whatever it was computed from.
    values = VALUES.copy()
    held = da.from_delayed(dask.delayed(np.add, pure=True)(values, 0), VALUES.shape, VALUES.dtype)
    before = describe(held)
    values[0, 0, 0] += 1
    assert describe(held) != before


class Stopped(BaseException):
    pass


def stop(stage: str, fraction: float) -> None:
    if fraction > 0.3:
        raise Stopped


@pytest.mark.parametrize("kind", STRANGE)
def test_what_cannot_be_told_apart_is_not_gone_on_with(folder: Path, kind: str) -> None:
    array, out = STRANGE[kind](folder), folder.parent / "out.zarr"
    with pytest.raises(Stopped):
        lpa3d.label(array, out=out, tile=4, progress=stop)
    with pytest.raises(InputError, match=r"volume is read from .*, which .* resume='force'.* resume=False"):
        lpa3d.label(array, out=out, tile=4)
    result = lpa3d.label(array, out=out, tile=4, resume="force")
    np.testing.assert_array_equal(result, lpa3d.label(VALUES))


@pytest.mark.parametrize("kind", ["dask", "zip"])
def test_inputs_of_all_kinds_that_change_meanwhile(folder: Path, kind: str) -> None:
    path = folder.parent / "in.zip"
    store_zip(path, VALUES)
    array = da.from_zarr(str(folder)) + 0
    if kind == "zip":
        array = zarr.open_array(zarr.storage.ZipStore(path, mode="r"), mode="r")

    def meddle(stage: str, fraction: float) -> None:
        if stage == "label write":
            store_values(folder, 1 - VALUES)
            os.utime(path, ns=(0, 0))

    with pytest.raises(InputError, match="changed while label read it"):
        lpa3d.label(array, out=folder.parent / "out.zarr", tile=4, progress=meddle)
    assert not (folder.parent / "out.zarr").exists()


def test_what_other_processes_do_not_see(folder: Path) -> None:
    memory = zarr.storage.MemoryStore()
    for store, private in (
        (memory, True),
        (zarr.storage.WrapperStore(memory), True),
        (zarr.storage.ObjectStore(obstore.store.MemoryStore()), True),
        (zarr.storage.FsspecStore.from_url("memory://origins"), True),
        (zarr.storage.FsspecStore.from_url(f"local://{folder}"), False),
        (zarr.storage.LocalStore(folder), False),
        (zarr.storage.ObjectStore(obstore.store.S3Store("b", region="x", skip_signature=True)), False),
    ):
        assert find_target(store).is_private is private
    # Workers in other processes get a source without what it was found to be read from.
    source = open_source(da.from_zarr(str(folder)).map_blocks(np.negative), "volume")
    assert source.origins
    assert "origins" not in vars(pickle.loads(pickle.dumps(source)))


GLOBAL: dict[str, Any] = {}


def test_what_functions_name_is_no_output(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GLOBAL, "a", read_path(folder))
    monkeypatch.setitem(globals(), "max", read_path(folder))
    zeros = da.zeros((8, 8, 8), chunks=8, dtype="u1")

    def deep(block: Any) -> Any:
        return (lambda: block + GLOBAL["a"][:])()

    for function, found in (
        (deep, True),
        (lambda block: block + zarr.open_array("a.zarr", mode="r")[:], True),
        (lambda block: block * block.max(), False),
    ):
        origins = find_origins(zeros.map_blocks(function, dtype="u1", meta=np.empty(0, "u1")))
        assert any(find_target(folder).overlaps(origin) for origin in origins) is found
        assert any(origin.contents is None for origin in origins)


def test_names_that_look_like_files_are_none(folder: Path) -> None:
    array = da.overlap.overlap(da.zeros((4, 4, 4), chunks=2), 1, "reflect")
    assert find_origins(da.where(array > 0, array, 3).sum(0)) == ()
    assert find_origins(da.random.default_rng(0).random((4, 4), chunks=2)) == ()
