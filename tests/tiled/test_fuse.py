"""`fuse` of stored arrays: whatever the tiles, the answer, the conflicts and the errors of `fuse` in memory."""

import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lpa3d
from lpa3d.errors import InputError, InputTypeError
from lpa3d.linking.fused import Fused
from lpa3d.tiled import fuse as tiled
from lpa3d.verbs.fuse import fuse
from tests.results import open_result
from tests.tiled.test_stitch import draw_sides, run, store
from tests.verbs.test_fuse import SOURCES, cases

zarr = pytest.importorskip("zarr")
da = pytest.importorskip("dask.array")


def fuse_tiled(random, arguments, tile=None, kind="zarr"):
    """Fuse stored copies with random chunks and tiles; the result is in memory."""
    arrays = {name: value for name, value in arguments.items() if name in SOURCES}
    shape = next(iter(arrays.values())).shape
    stored = {
        name: store(array, draw_sides(random, array.shape)[-array.ndim :], kind) for name, array in arrays.items()
    }
    tile = tile or draw_sides(random, (1, *shape)[-3:], 30)
    with tempfile.TemporaryDirectory() as folder:
        found = lpa3d.fuse(**{**arguments, **stored}, out=Path(folder, "all"), tile=tile)
        assert {path.name for path in Path(folder, "all").iterdir()} == {
            f"{name}.zarr" for name in ("volume", "seeds", "provenance")
        }
        assert isinstance(found.seeds, da.Array) == (kind == "dask")
        return Fused(*map(np.asarray, found[:3]), found.conflicts)


def assert_same(random, arguments, **how):
    expected, told = run(fuse, **arguments)
    found, said = run(fuse_tiled, random, arguments, **how)
    assert said == told
    if not isinstance(expected, Fused):
        assert found == expected
        return
    for one, other in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    columns = found.conflicts.columns()
    assert columns.keys() == expected.conflicts.columns().keys()
    for name, column in expected.conflicts.columns().items():
        np.testing.assert_array_equal(columns[name], column, name)
        assert columns[name].dtype == column.dtype
        assert not columns[name].flags.writeable


@settings(max_examples=15, deadline=None)
@given(cases(), st.integers(0, 2**32 - 1))
def test_equals_fuse_in_memory(arguments, seed):
    """Any sources, order, mappings, complete slices, axis, tiles and chunks; objects without a class, too."""
    assert_same(np.random.default_rng(seed), arguments)


@settings(max_examples=10, deadline=None)
@given(cases(needed=("instances", "slices")), st.integers(0, 2**32 - 1))
def test_two_label_sources(arguments, seed):
    with mock.patch.object(tiled, "BATCH", 2):
        assert_same(np.random.default_rng(seed), arguments, kind="dask")


@settings(max_examples=6, deadline=None)
@given(cases(needed=("instances", "slices", "classes")), st.integers(0, 2**32 - 1))
def test_tiles_of_one_voxel(arguments, seed):
    for name in SOURCES:
        arguments[name] = arguments[name][:3, :3, :3].copy()
    shape = arguments["classes"].shape
    depth = shape[arguments["axis"]]
    arguments["complete_slices"] = [z for z in arguments["complete_slices"] if z < depth]
    assert_same(np.random.default_rng(seed), arguments, tile=(1, 1, 1))
    assert_same(np.random.default_rng(seed), arguments, tile=(9, 9, 9))


@pytest.mark.each_value
@pytest.mark.parametrize(
    ("lead", "other"),
    [("uint8", "uint8"), ("bool", "uint16"), ("int16", "uint64"), ("uint64", "int8"), ("int8", "bool")],
)
@pytest.mark.parametrize("most", [1, 100])
def test_dtypes(lead, other, most):
    """Seeds have the dtype that they need, which is known in the end."""
    random = np.random.default_rng(most)
    shape = (3, 5, 4)
    instances = (random.integers(0, most + 1, shape) * (random.random(shape) < 0.3)).astype(lead)
    slices = random.integers(0, most + 1, shape).astype(other)
    classes = random.integers(-1, 3, shape).astype("int32")
    assert_same(random, {"instances": instances, "slices": slices})
    arguments = {"instances": instances, "slices": slices, "classes": classes}
    assert_same(random, {**arguments, "priority": ("slices", "instances", "classes")})
    assert_same(random, {"classes": random.integers(0, 2, shape).astype(bool)})


def test_2d():
    random = np.random.default_rng(0)
    arguments = {name: random.integers(0, 3, (7, 9)).astype("uint16") for name in SOURCES}
    assert_same(random, {**arguments, "instance_classes": {1: 1, 2: 2}, "slice_classes": {2: 1}}, tile=(1, 3, 4))


CASE = {name: np.ones((3, 4, 4), np.int32) for name in SOURCES}


@pytest.mark.parametrize(
    "arguments",
    [
        {**CASE, "axis": 3},
        {**CASE, "priority": ("classes", "slices")},
        {**CASE, "complete_slices": [3]},
        {**CASE, "slice_classes": {1: 0}},
        {"classes": CASE["classes"], "slice_classes": {1: 1}},
        {**CASE, "classes": np.ones((3, 4, 5), np.uint8)},
        {"classes": CASE["classes"] * [1, 1, 2, 0], "instances": CASE["slices"] * [0, 0, 0, 1]},
        {"instances": np.full((1, 1, 1), 2**63 - 1), "slices": np.ones((1, 1, 1), np.int8)},
    ],
)
def test_refuses_what_fuse_refuses(arguments):
    assert_same(np.random.default_rng(0), arguments)


@pytest.mark.parametrize(
    ("out", "error", "text"),
    [
        (None, InputError, "folder"),
        ({"volume": "a.zarr"}, InputError, "provenance"),
        ("a.zarr", InputError, "three results"),
        (7, InputTypeError, "int"),
    ],
)
def test_refuses_places(out, error, text):
    with pytest.raises(error, match=text):
        lpa3d.fuse(slices=store(CASE["slices"], (2, 2, 2)), out=out, tile=None)


def test_out_is_for_stored_arrays():
    with pytest.raises(InputError, match="out is for zarr"):
        fuse(**CASE, out="somewhere")


def test_places_of_each_and_negative_ids(tmp_path):
    places = {name: tmp_path / name / f"{name}.zarr" for name in ("provenance", "volume", "seeds")}
    stored = {name: store(array, (2, 2, 2)) for name, array in CASE.items()}
    found = lpa3d.fuse(**stored, out=places, tile=2)
    expected = fuse(**CASE)
    for name, place in places.items():
        np.testing.assert_array_equal(open_result(place)[:], getattr(expected, name))
        np.testing.assert_array_equal(getattr(found, name)[:], getattr(expected, name))
    stored["slices"][2, 3, 3] = -4
    with pytest.raises(InputError, match=r"slices holds negative ids.*z 2:3"):
        lpa3d.fuse(**stored, out=tmp_path / "other", tile=2)


def test_goes_on_after_any_failure(tmp_path, monkeypatch):
    """Every task of every stage fails once for good, and the driver between; the same call goes on."""
    random = np.random.default_rng(5)
    arrays = {name: random.integers(0, 4, (5, 6, 7)).astype("uint8") for name in SOURCES}
    expected = fuse(**arrays)
    stored = {name: store(array, (2, 2, 3)) for name, array in arrays.items()}
    calls = []
    for name in ("_mark_tile", "_count_tile", "_decide", "_write_tile"):
        task = getattr(tiled, name)

        def fail(*args, task=task, name=name):
            calls.append(name)
            if calls.count(name) == (1 if name == "_decide" else 3):
                raise InputError(name)
            return task(*args)

        monkeypatch.setattr(tiled, name, fail)
    failures = []
    for _ in range(5):
        try:
            found = lpa3d.fuse(**stored, out=tmp_path / "out", tile=(3, 3, 7))
            break
        except InputError as error:
            failures.append(str(error))
    assert failures == ["_mark_tile", "_count_tile", "_decide", "_write_tile"]
    for one, other in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_array_equal(np.asarray(one), other)
    np.testing.assert_array_equal(found.conflicts.voxels, expected.conflicts.voxels)
