"""`propagate` on stored arrays: the answer, the warnings and the errors of memory, whatever the tiles."""

from __future__ import annotations

import itertools
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lpa3d
from lpa3d.errors import InputError, InputTypeError, Lpa3dWarning
from tests import naive
from tests.strategies import annotate_blobs, annotated_blobs, connectivities, moving_blobs
from tests.verbs.test_propagate import SPACINGS, seeded

zarr = pytest.importorskip("zarr")

SIDES = st.tuples(*[st.integers(1, 14)] * 3)
MOST_TILES = 8


def store(array, chunks):
    """Return a zarr array in memory."""
    stored = zarr.create_array(
        zarr.storage.MemoryStore(),
        shape=array.shape,
        dtype=array.dtype,
        chunks=tuple(chunks[-array.ndim :]),
    )
    stored[...] = array
    return stored


def fit(tile, shape):
    """Return a tile that cuts a volume into few tiles."""
    tile = list(tile)[-len(shape) :]
    for axis in itertools.cycle(range(len(shape))):
        if np.prod([-(-n // t) for n, t in zip(shape, tile, strict=True)]) <= MOST_TILES:
            return tuple(tile)
        tile[axis] *= 2


def collect(function, *args, **options):
    """Return what a function returns, and the messages of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Lpa3dWarning)
        result = function(*args, **options)
    return result, [str(warning.message) for warning in caught]


def in_tiles(arguments, tile, chunks=(4, 5, 3), **options):
    """Call `propagate` on stored arrays; return NumPy arrays, the warnings and the stages."""
    stored = {}
    for number, (name, value) in enumerate(arguments.items()):
        # Inputs have different chunks.
        stored[name] = store(value, [c + number for c in chunks]) if isinstance(value, np.ndarray) else value
    stages = []
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/labels.zarr"
        if arguments.get("return_confidence"):
            out = (out, f"{folder}/confidence.zarr")
        options = {"tile": tile, "out": out, "progress": lambda stage, _: stages.append(stage)} | options
        result, messages = collect(lpa3d.propagate, **stored, **options)
        result = tuple(array[...] for array in result) if isinstance(result, tuple) else result[...]
        assert {path.name for path in Path(folder).iterdir()} <= {"labels.zarr", "confidence.zarr"}
    return result, messages, set(stages)


def check(arguments, tile, **options):
    """Compare with memory; return the stages."""
    tile = fit(tile, arguments["volume"].shape)
    arguments = {"return_confidence": arguments.get("sweeps") != 0} | arguments
    expected, told = collect(lpa3d.propagate, **arguments)
    result, messages, stages = in_tiles(arguments, tile, **options)
    if not arguments["return_confidence"]:
        expected, result = (expected,), (result,)
    for one, other in zip(result, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert messages == told
    return stages


# ------------------------------------------------------------------------------------------------------------ memory


@settings(max_examples=12)
@given(
    seeded(),
    SIDES,
    connectivities,
    st.sampled_from(SPACINGS),
    st.sampled_from([None, 0, 1, 5]),
    st.sampled_from([None, None, 0, 1.0, 2.5]),
    st.booleans(),
    st.sampled_from(["drop", "label"]),
    st.sampled_from(["int8", "uint8", "int32", "uint64"]),
    st.data(),
)
def test_equals_memory(case, tile, connectivity, spacing, sweeps, distance, costly, unseeded, dtype, data):
    volume, seeds = case
    arguments = {
        "volume": volume, "seeds": seeds.astype(dtype), "connectivity": connectivity, "spacing": spacing,
        "sweeps": sweeps, "unseeded": unseeded,
    }  # fmt: skip
    if distance is not None:
        arguments["max_distance"] = distance * min(spacing)
    if costly:
        arguments["cost"] = np.random.default_rng(volume.size).choice([0, 0.3, 1, 20], volume.shape)
    if data.draw(st.booleans()):
        arguments["missing_slices"] = data.draw(st.sets(st.integers(0, len(volume) - 1), max_size=3))
    if data.draw(st.booleans()):
        # Ids on two classes.
        arguments["seeds"] = np.where(seeds > 0, 1 + seeds // 10, 0).astype(dtype)
        arguments["seed_conflicts"] = "majority"
    check(arguments, tile)


@settings(max_examples=6)
@given(annotated_blobs, SIDES)
def test_equals_memory_where_sections_are_drawn(arguments, tile):
    check(arguments, [t + 2 for t in tile])


def blobs():
    """Return blobs that drift together, annotated on every fourth slice, in noise that cuts some of them up."""
    volume, instances = moving_blobs(np.random.default_rng(3), classes=2, depth=17, side=30, gap=4)
    volume[np.random.default_rng(1).random(volume.shape) < 0.08] = 0
    return volume, np.where((np.arange(17)[:, None, None] % 4 == 1) & (volume > 0), instances, 0)


@pytest.mark.each_other
@pytest.mark.parametrize("tile", [(5, 8, 13), (17, 30, 30), (40, 40, 40), (3, 30, 30), (17, 6, 30)])
def test_all_stages(tile):
    volume, seeds = blobs()
    stages = check({"volume": volume, "seeds": seeds, "unseeded": "label"}, tile)
    assert {"drawing", "drawn join", "refilling", "fresh ids"} <= stages


def test_every_stage_changes_something(monkeypatch):
    """The examples of `test_all_stages` reach what they are there for: counted where it happens."""
    from lpa3d.tiled import propagate

    counts = {"cleared when drawn": 0, "cleared after diffusion": 0, "fresh": 0}
    flags, fresh = propagate.local_flags, propagate.local_numbers

    def count_flags(scratch, name, tile, components):
        keep = flags(scratch, name, tile, components)
        counts["cleared when drawn" if name == propagate.DRAWN else "cleared after diffusion"] += int((~keep).sum())
        return keep

    def count_fresh(*args):
        numbers = fresh(*args)
        counts["fresh"] += int(np.count_nonzero(numbers))
        return numbers

    monkeypatch.setattr(propagate, "local_flags", count_flags)
    monkeypatch.setattr(propagate, "local_numbers", count_fresh)
    test_all_stages((5, 8, 13))
    assert min(counts.values()) > 5, counts


@pytest.mark.each_value
@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("tile", [(1, 1, 5), (2, 3, 4), (3, 7, 2)])
def test_a_corridor_crosses_every_tile_many_times(connectivity, tile):
    volume = np.zeros((6, 7, 11), np.uint8)
    volume[::2, ::2] = 1
    for z in range(0, 6, 2):
        for y in range(1, 7, 2):
            volume[z, y, 0 if y % 4 == 1 else -1] = 1
        if z:
            volume[z - 1, 0 if z % 4 else -1, 0 if z % 4 else -1] = 1
    seeds = np.zeros(volume.shape, np.int32)
    seeds[0, 0, 0], seeds[4, -1, -1] = 3, 9
    for options in ({}, {"sweeps": 2, "spacing": (3, 1, 2)}, {"max_distance": 31, "unseeded": "label", "sweeps": 1}):
        check({"volume": volume, "seeds": seeds, "connectivity": connectivity, **options}, tile)


# ------------------------------------------------------------------------------------------------------------ options


@settings(max_examples=6)
@given(seeded(), SIDES, connectivities, st.sampled_from([0, 1, 2, 4]), st.sampled_from(["drop", "label"]))
def test_what_lies_beyond_the_distance_is_no_component_without_a_seed(case, tile, connectivity, distance, unseeded):
    volume, seeds = case
    seeds[:, :, 2:] = 0
    options = {"connectivity": connectivity, "max_distance": distance, "unseeded": unseeded, "slice_axis": None}
    check({"volume": volume, "seeds": seeds, "sweeps": 1, **options}, tile)


def test_dropped_seeds_beyond_the_distance_annotate_no_slice():
    # Most of id 1 is on class 1; its seeds on class 2 are dropped, and nothing there is reached.
    volume = np.ones((9, 6, 6), np.uint8)
    volume[6:, :, 3:] = 2
    seeds = np.zeros(volume.shape, np.int16)
    seeds[::4, :, :3] = 1
    seeds[8, :, 3:] = 1
    for distance in (0, 1, 3):
        options = {"seed_conflicts": "majority", "max_distance": distance}
        check({"volume": volume, "seeds": seeds, **options}, (4, 4, 4))
        labels, _ = collect(lpa3d.propagate, volume, seeds, **options)
        np.testing.assert_array_equal(labels, naive.propagate(volume, seeds, **options)[0])


@pytest.mark.each_value
@pytest.mark.parametrize("missing", [[0], [8], [3, 4], [0, 2, 5, 8], range(9)])
@pytest.mark.parametrize("unseeded", ["drop", "label"])
def test_missing_slices(missing, unseeded):
    arguments = annotate_blobs(1)
    volume, seeds = (np.resize(arguments[name], (9, 14, 12)) for name in ("volume", "seeds"))
    seeds[volume == 0] = 0
    options = {"missing_slices": list(missing), "unseeded": unseeded, "seed_conflicts": "majority"}
    check({"volume": volume, "seeds": seeds, **options}, (4, 6, 7))


@pytest.mark.each_other
@pytest.mark.parametrize(
    ("dtype", "largest", "result"),
    [
        ("uint8", 3, "uint16"),
        ("int8", 100, "int16"),
        ("uint16", 2**16 - 200, "uint32"),
        ("uint32", 2**32 - 1, "uint64"),
        ("uint32", 7, "uint32"),
        ("int32", 2**31 - 10, "int64"),
        ("int64", 2**62, "int64"),
        ("uint64", 2**63 - 400, "uint64"),
        ("bool", 1, "uint16"),
    ],
)
def test_dtypes_with_fresh_ids(dtype, largest, result):
    volume = np.random.default_rng(0).integers(0, 3, (5, 8, 9)).astype(np.int8) - 1
    seeds = np.zeros(volume.shape, dtype)
    seeds[0, 0, 0] = seeds[3, 5, 5] = largest
    seeds[volume == 1] = 0
    arguments = {"volume": volume, "seeds": seeds, "unseeded": "label", "seed_conflicts": "majority"}
    check(arguments, (3, 4, 5))
    assert in_tiles(arguments, (3, 4, 5))[0].dtype == result


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", "uint64"])
def test_every_class_is_a_class(dtype):
    random = np.random.default_rng(3)
    values = [0, 1] if dtype == "bool" else [0, 1, np.iinfo(dtype).min, np.iinfo(dtype).max]
    volume = np.array(values, dtype)[random.integers(0, len(values), (6, 7, 8))]
    seeds = np.where(random.random(volume.shape) < 0.1, 1 + random.integers(0, 2, volume.shape), 0)
    # Where the classes tie, the smaller bit pattern is taken.
    check({"volume": volume, "seeds": seeds, "seed_conflicts": "majority"}, (4, 3, 5))


def test_ids_above_2_to_53_next_to_each_other():
    seeds = np.zeros((4, 4, 12), np.uint64)
    seeds[0, 0, [0, 5, 11]] = [2**63 - 1, 2**63 - 2, 2**63 - 3]
    check({"volume": np.ones(seeds.shape, np.uint8), "seeds": seeds}, (2, 4, 4))


@pytest.mark.parametrize("shape", [(1, 9, 8), (9, 1, 8), (9, 8, 1), (1, 1, 20), (30, 1, 1), (1, 1, 1), (9, 8)])
def test_axes_of_size_one_and_slices(shape):
    random = np.random.default_rng(len(shape))
    volume = (random.random(shape) < 0.8).astype(np.uint8)
    seeds = np.where(random.random(shape) < 0.2, random.integers(1, 4, shape), 0)
    for options in ({"connectivity": 26}, {"spacing": (2,) * len(shape), "unseeded": "label"}):
        check({"volume": volume, "seeds": seeds, **options}, (4, 3, 5))


def test_no_seeds_and_no_foreground():
    for volume, seeds in itertools.product((0, 1), repeat=2):
        arrays = {"volume": np.full((5, 4, 6), volume, np.uint8), "seeds": np.full((5, 4, 6), seeds)}
        for unseeded in ("drop", "label"):
            check({**arrays, "unseeded": unseeded}, (2, 4, 3))


def test_many_sweeps_reach_over_many_tiles():
    volume, instances = moving_blobs(np.random.default_rng(7), depth=9, side=14)
    seeds = np.where(np.random.default_rng(0).random(volume.shape) < 0.05, instances, 0)
    for sweeps in (1, 2, 13, 300):
        check({"volume": volume, "seeds": seeds, "sweeps": sweeps, "connectivity": 26}, (4, 5, 5))


def test_other_places_and_inputs(tmp_path):
    dask = pytest.importorskip("dask.array")
    volume, seeds = blobs()
    expected, _ = collect(lpa3d.propagate, volume, seeds)
    stored = [store(array, (7, 9, 30)) for array in (volume, seeds)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Lpa3dWarning)
        lazy = lpa3d.propagate(*map(dask.from_zarr, stored), out=tmp_path / "a.zarr", tile=(6, 10, 20))
        memory = zarr.storage.MemoryStore()
        kept = lpa3d.propagate(*stored, out=memory, tile=(6, 10, 20))
    np.testing.assert_array_equal(lazy.compute(), expected)
    np.testing.assert_array_equal(kept[...], expected)


# --------------------------------------------------------------------------------------------------------------- runs


class StopError(Exception):
    """The run is stopped here."""


@pytest.mark.parametrize("options", [{}, {"max_distance": 6, "missing_slices": [3], "spacing": (1, 2, 1)}])
def test_a_run_that_was_stopped_goes_on(tmp_path, options):
    # At the beginning and in the middle of every stage: what later stages read must still be there.
    volume, seeds = blobs()
    arrays = store(volume, (4, 8, 10)), store(seeds, (5, 8, 10))
    options = {"unseeded": "label", "return_confidence": True, **options}
    expected, told = collect(lpa3d.propagate, volume, seeds, **options)
    seen = []
    after = 0
    for number in range(200):
        calls = itertools.count()

        def stop(stage, fraction, calls=calls):
            seen.append(stage)
            if next(calls) == after:  # noqa: B023
                raise StopError

        out = tmp_path / "a.zarr", tmp_path / "b.zarr"
        try:
            result, messages = collect(lpa3d.propagate, *arrays, **options, out=out, tile=(6, 8, 15), progress=stop)
        except StopError:
            # Every third try gets no further than the one before.
            after += number % 3 > 0
            continue
        break
    assert len(set(seen)) > 15
    for one, other in zip(result, expected, strict=True):
        np.testing.assert_array_equal(one[...], other)
    assert messages == told


# -------------------------------------------------------------------------------------------------------------- errors

VOLUME = np.ones((3, 4, 5), dtype=np.uint8)
SEEDS = np.zeros((3, 4, 5), dtype=np.int64)
SEEDS[1, 1, 1] = 1


def filled(value, dtype=None):
    return np.full(VOLUME.shape, value, dtype=dtype)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"seeds": SEEDS[:2]}, InputError),
        ({"seeds": filled(-4)}, InputError),
        ({"seeds": filled(2**63, np.uint64)}, InputError),
        ({"volume": 1 + filled(1).cumsum(0), "seeds": filled(3)}, InputError),
        ({"cost": filled(1.0)[:2]}, InputError),
        ({"cost": filled(np.nan)}, InputError),
        ({"cost": np.where(SEEDS, -np.inf, 2.0)}, InputError),
        ({"cost": np.where(SEEDS, 4096, -0.5)}, InputError),
        ({"spacing": (0, 1, 1)}, InputError),
        ({"connectivity": 8}, InputError),
        ({"slice_axis": 3}, InputError),
        ({"sweeps": -1}, InputError),
        ({"max_distance": np.nan}, InputError),
        ({"missing_slices": [3]}, InputError),
        ({"missing_slices": 1}, InputTypeError),
        ({"unseeded": "keep"}, InputError),
        ({"sweeps": 0, "return_confidence": True}, InputError),
        ({"volume": SEEDS | (np.arange(5) == 4), "seeds": SEEDS * (2**63 - 1), "unseeded": "label"}, InputError),
    ],
)  # fmt: skip
def test_bad_input(wrong, error):
    arguments = {"volume": VOLUME, "seeds": SEEDS} | wrong
    with pytest.raises(error) as expected:
        lpa3d.propagate(**arguments)
    with pytest.raises(error) as raised:
        in_tiles(arguments, (2, 2, 3))
    assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"volume": filled(0.7)}, "volume holds float64; .*fractions, 0.7 at "),
        ({"seeds": filled(-1.0)}, "seeds holds negative ids"),
    ],
)
def test_floats(wrong, message):
    with pytest.raises(InputError, match=message):
        in_tiles({"volume": VOLUME, "seeds": SEEDS} | wrong, (2, 2, 3))


def test_confidence_needs_a_place_of_its_own(tmp_path):
    arrays = store(VOLUME, (2, 2, 2)), store(SEEDS, (2, 2, 2))
    with pytest.raises(InputError, match="two places: out="):
        lpa3d.propagate(*arrays, return_confidence=True, out=tmp_path / "a.zarr")
