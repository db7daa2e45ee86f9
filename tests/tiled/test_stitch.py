"""`stitch` of stored arrays: whatever the tiles, the answer, the warnings and the errors of `stitch` in memory."""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lpa3d
from lpa3d.errors import InputError, InputTypeError
from lpa3d.tiled import stitch as tiled
from lpa3d.verbs.stitch import stitch
from tests.verbs.test_stitch import BIG, draw_case, shuffle

zarr = pytest.importorskip("zarr")
da = pytest.importorskip("dask.array")

MOST_TILES = 30
"""Of a random case."""


def store(array, chunks, kind="zarr"):
    """Return an array as a zarr or dask array of some chunks."""
    if kind == "dask":
        return da.from_array(array, chunks=chunks)
    stored = zarr.create_array(zarr.storage.MemoryStore(), shape=array.shape, dtype=array.dtype, chunks=chunks)
    stored[...] = array
    return stored


def draw_sides(random, shape, most=None):
    """Return sides of chunks or tiles, some of 1, some larger than the volume; at most so many that `most` hold."""
    sides = [int(random.choice([1, 2, 3, n + 1, random.integers(1, n + 2)])) for n in shape]
    while most and np.prod([-(-n // side) for n, side in zip(shape, sides, strict=True)]) > most:
        axis = random.integers(3)
        sides[axis] = 2 * sides[axis]
    return tuple(sides)


def run(function, *args, **kwargs):
    """Return the result, or the error's type and text, and the texts of all warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = function(*args, **kwargs)
        except InputError as error:
            result = type(error), str(error)
    return result, [str(one.message) for one in caught]


def stitch_tiled(slices, random, tile=None, kind="zarr", **arguments):
    """Stitch a stored copy with random chunks and tiles."""
    arguments = dict(arguments)
    if "classes" in arguments:
        arguments["classes"] = store(arguments["classes"], draw_sides(random, slices.shape))
    source = store(slices, draw_sides(random, slices.shape), kind)
    tile = tile or draw_sides(random, slices.shape, MOST_TILES)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.zarr")
        found = lpa3d.stitch(source, **arguments, out=out, tile=tile)
        assert [path.name for path in Path(folder).iterdir()] == ["out.zarr"]
        assert isinstance(found, da.Array) == (kind == "dask")
        return np.asarray(found)


def assert_same(slices, random, arguments, **how):
    expected, told = run(stitch, slices, **arguments)
    found, said = run(stitch_tiled, slices, random, **how, **arguments)
    if isinstance(expected, tuple):
        assert found == expected
    else:
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    assert said == told


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equals_stitch_in_memory(seed):
    """Any tiles and chunks, every axis, gaps, bad slices, branches, constraints, classes; errors and warnings too."""
    slices, arguments = draw_case(seed)
    random = np.random.default_rng(seed)
    if "classes" in arguments and random.random() < 0.5:
        noise = random.random(slices.shape) < 0.1
        arguments["classes"] = np.where(noise, random.integers(0, 200, slices.shape), arguments["classes"])
        arguments["classes"] = arguments["classes"].astype(random.choice(["uint8", "int64", "uint16"]))
    assert_same(slices, random, arguments)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["uint64", "int64"]))
def test_large_ids(seed, dtype):
    slices, arguments = draw_case(seed)
    for name in ("must_link", "cannot_link"):
        arguments.pop(name, None)
    random = np.random.default_rng(seed)
    ids = [*range(1, 200), *range(BIG - 300, BIG), 2**53, 2**53 + 1, BIG]
    slices = shuffle(slices, random, arguments["axis"], ids).astype(dtype)
    assert_same(slices, random, arguments, kind="dask")


@pytest.mark.each_value
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("tile", [(1, 2, 1), (2, 3, 50), (4, 4, 4), (64, 64, 64)])
def test_discs_that_move_over_gaps(axis, tile):
    """Discs move fast, over missing slices, out of the volume and from tile to tile."""
    random = np.random.default_rng(3)
    side = 9 if tile == (1, 2, 1) else 30
    slices = np.zeros((9, side, side), np.uint16)
    y, x = np.indices(slices.shape[1:])
    for z in (0, 1, 2, 5, 6, 8):
        for k, (row, column) in enumerate([(3, 2 + 2 * z), (side - 3 - z, side - 4), (side // 2 + 2 * z, side // 2)]):
            slices[z][(y - row) ** 2 + (x - column) ** 2 < (4 if side == 9 else 16)] = 7 + (k + z) % 3
    slices = np.ascontiguousarray(np.moveaxis(slices, 0, axis))
    assert_same(slices, random, {"axis": axis, "max_gap": 4}, tile=tile)
    assert_same(slices, random, {"axis": axis, "max_gap": 10**6, "bad_slices": [1, 6]}, tile=tile)


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5)])
def test_nothing_to_stitch(shape):
    assert_same(np.zeros(shape, np.uint8), np.random.default_rng(0), {}, tile=(2, 2, 2))


def test_tiles_of_one_voxel():
    random = np.random.default_rng(1)
    slices = random.integers(0, 3, (5, 4, 4))
    slices[2] = 0
    assert_same(slices, random, {}, tile=(1, 1, 1))


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint32", "uint64"])
def test_slices_of_2d_and_of_nothing(dtype, tmp_path):
    flat = np.zeros((5, 7), dtype)
    for number in range(2):
        flat[1:3, 2:5] = number
        source = store(flat, (2, 3))
        found = lpa3d.stitch(source, out=tmp_path / f"{number}.zarr", tile=(3, 3))
        np.testing.assert_array_equal(np.asarray(found), stitch(flat))
        assert found.shape == (5, 7)


@pytest.mark.parametrize(
    "arguments",
    [
        {"axis": 3},
        {"max_gap": 0},
        {"bad_slices": [9]},
        {"must_link": [((0, 1), (1, 99))]},
        {"must_link": [((0, 1), (1, 1))], "cannot_link": [((0, 1), (1, 1))]},
        {"classes": np.zeros((2, 4, 4), np.uint8)},
        {"classes": np.zeros((3, 4, 4), np.uint8)},
    ],
)
def test_refuses_what_stitch_refuses(arguments):
    assert_same(np.ones((3, 4, 4), np.int32), np.random.default_rng(0), arguments)


@pytest.mark.parametrize("arguments", [{"branching": 1}, {"classes": {1: 2}}, {"max_gap": 1.5}])
def test_refuses_types(arguments, tmp_path):
    slices = np.ones((3, 4, 4), np.int32)
    with pytest.raises(InputTypeError) as expected:
        stitch(slices, **arguments)
    with pytest.raises(InputTypeError) as found:
        lpa3d.stitch(store(slices, (2, 2, 2)), **arguments, out=tmp_path / "out.zarr", tile=None)
    assert str(found.value) == str(expected.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("dtype", "value"), [("int16", -3), ("uint64", 2**63)])
def test_refuses_ids(dtype, value, tmp_path):
    slices = np.ones((3, 4, 4), dtype)
    slices[2, 3, 3] = value
    with pytest.raises(InputError, match=rf"z 2:3.*{value}|{value}.*z 2:3"):
        lpa3d.stitch(store(slices, (2, 2, 2)), out=tmp_path / "out.zarr", tile=(2, 2, 2))


def test_goes_on_after_any_failure(tmp_path, monkeypatch):
    """Every task of every stage fails once for good; the same call goes on and ends in the same result."""
    slices, arguments = next(
        case for case in map(draw_case, range(100)) if not {"must_link", "cannot_link"} & case[1].keys()
    )
    expected = stitch(slices, **arguments)
    random = np.random.default_rng(0)
    if "classes" in arguments:
        arguments["classes"] = store(arguments["classes"], draw_sides(random, slices.shape))
    source = store(slices, (4, 4, 4))
    calls = []
    for name in (
        "_list_tile",
        "_fold_layer",
        "_count_tile",
        "_cross_tile",
        "_add_pairs",
        "_count_moved",
        "_write_tile",
    ):
        task = getattr(tiled, name)

        def fail(context, item, task=task, name=name):
            calls.append(name)
            if calls.count(name) == 2:
                raise InputError(name)
            task(context, item)

        monkeypatch.setattr(tiled, name, fail)
    failures = set()
    for _ in range(9):
        try:
            found = lpa3d.stitch(source, **arguments, out=tmp_path / "out.zarr", tile=(3, 5, 4))
            break
        except InputError as error:
            failures.add(str(error))
    np.testing.assert_array_equal(np.asarray(found), expected)
    assert failures >= {"_list_tile", "_fold_layer", "_count_tile", "_add_pairs", "_write_tile"}
