"""`label` on stored arrays: the labels of the volume in memory, whatever tiles, chunks and workers."""

import itertools
import os
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lpa3d
from lpa3d.errors import InputError
from lpa3d.tiled import components
from lpa3d.tiled import label as tiled
from tests.strategies import CONNECTIVITIES, INTEGER_DTYPES, connectivities, tiled_volumes

zarr = pytest.importorskip("zarr")


def kill_at(module, name, count):
    """Make the `count`-th call of a function kill this process."""
    function = getattr(module, name)
    calls = itertools.count(1)

    def call(*args, **kwargs):
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(module, name, call)


def store(path, volume, **more):
    """Return a zarr array of a volume."""
    array = zarr.create_array(path, shape=volume.shape, dtype=volume.dtype, **{"chunks": volume.shape, **more})
    array[...] = volume
    return array


@settings(max_examples=15)
@given(tiled_volumes, connectivities, st.sampled_from(INTEGER_DTYPES), st.integers(1, 3), st.data())
def test_equals_the_labels_in_memory(tmp_path_factory, case, connectivity, dtype, workers, data):
    volume, tile = case
    volume = volume.astype(dtype)
    if np.prod([-(-n // t) for n, t in zip(volume.shape, tile, strict=True)]) > 60:
        tile = tuple(3 * t for t in tile)
    chunks = tuple(data.draw(st.integers(max(1, side // 3), side)) for side in volume.shape)
    folder = tmp_path_factory.mktemp("label")
    array = store(folder / "v.zarr", volume, chunks=chunks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LPA3D_NUM_THREADS", str(workers))
        labels = lpa3d.label(array, connectivity=connectivity, out=folder / "labels.zarr", tile=tile)
    assert labels.dtype == np.uint32
    np.testing.assert_array_equal(labels[...], lpa3d.label(volume, connectivity=connectivity))
    assert labels.attrs["lpa3d"]["complete"]
    assert not (folder / "labels.zarr.lpa3d").exists()


@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
def test_two_dimensions(tmp_path, connectivity):
    volume = np.random.default_rng(1).integers(0, 3, (40, 70)).astype(np.int16)
    store(tmp_path / "v.zarr", volume, chunks=(16, 16))
    labels = lpa3d.label(str(tmp_path / "v.zarr"), connectivity=connectivity, out=tmp_path / "o.zarr", tile=(16, 32))
    np.testing.assert_array_equal(labels[...], lpa3d.label(volume, connectivity=connectivity))


def test_volumes_too_large_for_32_bits(tmp_path, monkeypatch):
    volume = np.random.default_rng(2).integers(0, 2, (9, 20, 30)).astype(np.uint8)
    array = store(tmp_path / "v.zarr", volume)
    expected = lpa3d.label(volume)
    monkeypatch.setattr("lpa3d.arrays.components.WIDE", 1)
    labels = lpa3d.label(array, out=tmp_path / "o.zarr", tile=8)
    assert labels.dtype == np.uint64
    np.testing.assert_array_equal(labels[...], expected)


def test_chunks_that_were_never_written_are_background(tmp_path):
    array = zarr.create_array(
        tmp_path / "v.zarr", shape=(30, 30, 30), chunks=(10, 10, 10), dtype="uint64", fill_value=0
    )
    array[10:20, 5:25, 12] = 2**64 - 1
    labels = lpa3d.label(array, out=tmp_path / "o.zarr", tile=10)
    np.testing.assert_array_equal(labels[...], lpa3d.label(array[...]))
    ones = zarr.create_array(tmp_path / "w.zarr", shape=(30, 30, 30), chunks=(10, 10, 10), dtype="uint8", fill_value=1)
    ones[15] = 0
    np.testing.assert_array_equal(lpa3d.label(ones, out=tmp_path / "p.zarr", tile=10)[...], lpa3d.label(ones[...]))


@pytest.mark.parametrize("kind", ["zarr 2", "shards", "big endian"])
def test_other_stores(tmp_path, kind):
    volume = np.random.default_rng(3).integers(0, 3, (24, 24, 24)).astype(">u4" if kind == "big endian" else "u4")
    more = {"zarr 2": {"zarr_format": 2}, "shards": {"shards": (16, 16, 16)}, "big endian": {}}[kind]
    array = store(tmp_path / "v.zarr", volume, chunks=(8, 8, 8), **more)
    labels = lpa3d.label(array, connectivity=18, out=tmp_path / "o.zarr", tile=8)
    np.testing.assert_array_equal(labels[...], lpa3d.label(volume, connectivity=18))


def test_dask_arrays(tmp_path):
    dask = pytest.importorskip("dask.array")
    volume = np.random.default_rng(4).integers(0, 3, (20, 21, 22))
    labels = lpa3d.label(dask.from_array(volume, chunks=7), out=tmp_path / "o.zarr", tile=(8, 9, 10))
    assert isinstance(labels, dask.Array)
    np.testing.assert_array_equal(labels.compute(), lpa3d.label(volume))


@pytest.mark.parametrize("shape", [(0, 5, 5), (4, 0), (0, 0, 0)])
def test_empty(tmp_path, shape):
    array = zarr.create_array(tmp_path / "v.zarr", shape=shape, chunks=(1,) * len(shape), dtype="uint8")
    assert lpa3d.label(array, out=tmp_path / "o.zarr", tile=4).shape == shape


def test_refusals(tmp_path):
    array = store(tmp_path / "v.zarr", np.full((4, 4, 4), 0.5, np.float32))
    with pytest.raises(InputError, match=r"volume holds float32; .*threshold.*fractions, 0\.5 at \(0, 0, 0\)"):
        lpa3d.label(array, out=tmp_path / "o.zarr")
    array = store(tmp_path / "w.zarr", np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(InputError, match="connectivity is 5"):
        lpa3d.label(array, connectivity=5, out=tmp_path / "o.zarr")
    with pytest.raises(InputError, match="pass out="):
        lpa3d.label(array)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.zarr", "w.zarr"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_killed_run_goes_on(tmp_path):
    """Killed at every stage, one after the other; other parameters are refused in between."""
    volume = np.random.default_rng(5).integers(0, 2, (16, 24, 24)).astype(np.uint8)
    array = store(tmp_path / "v.zarr", volume, chunks=(8, 8, 8))
    whole = lpa3d.label(array, connectivity=26, out=tmp_path / "whole.zarr", tile=8)
    for module, function, calls in (
        (tiled, "scan_tile", 7),
        (components, "pair_tile", 3),
        (components, "rank_sets", 1),
        (tiled, "write_numbers", 11),
    ):
        child = os.fork()
        if not child:
            kill_at(module, function, calls)
            lpa3d.label(array, connectivity=26, out=tmp_path / "o.zarr", tile=8)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert not (tmp_path / "o.zarr").exists()
    with pytest.raises(InputError, match="connectivity was 26 and is 6"):
        lpa3d.label(array, out=tmp_path / "o.zarr", tile=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(tiled, "scan_tile")
        labels = lpa3d.label(array, connectivity=26, out=tmp_path / "o.zarr", tile=8)
    np.testing.assert_array_equal(labels[...], lpa3d.label(volume, connectivity=26))
    for path in (tmp_path / "whole.zarr" / "c").rglob("*"):
        if path.is_file():
            other = tmp_path / "o.zarr" / path.relative_to(tmp_path / "whole.zarr")
            assert other.read_bytes() == path.read_bytes()
    assert labels.shape == whole.shape
