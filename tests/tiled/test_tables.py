"""`contacts`, `merge` and `evaluate` of stored arrays: whatever chunks and tiles, the answers and errors of memory."""

import itertools
import json
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lpa3d
from lpa3d.errors import DeviceError, InputError, InputTypeError, Lpa3dWarning
from lpa3d.linking.contacts import Counts, add_counts, count_pairs
from lpa3d.tiled import merge as tiled_merge
from lpa3d.tiled import surfaces as tiled_surfaces
from lpa3d.tiled.driver import tables
from tests.strategies import CONNECTIVITIES

zarr = pytest.importorskip("zarr")
da = pytest.importorskip("dask.array")

FAR = 2**63 - 1

MOST_TILES = 24
"""Of a random case."""

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=12)


def draw_sides(random, shape, most=None):
    """Return sides of chunks or tiles, some of 1, some larger than the volume; at most `most` of them hold it."""
    sides = [int(random.choice([1, 2, 3, n, n + 2, random.integers(1, n + 1)])) for n in shape]
    while most and np.prod([-(-n // side) for n, side in zip(shape, sides, strict=True)]) > most:
        sides[random.integers(len(sides))] *= 2
    return tuple(sides)


def store(random, array, kind="zarr"):
    """Return an array as a zarr or dask array of chunks of its own."""
    chunks = draw_sides(random, array.shape)
    if kind == "dask":
        return da.from_array(array, chunks=tuple(min(n, side) for n, side in zip(array.shape, chunks, strict=True)))
    stored = zarr.create_array(zarr.storage.MemoryStore(), shape=array.shape, dtype=array.dtype, chunks=chunks)
    stored[...] = array
    return stored


def draw_shape(random):
    """Return a small shape, sometimes of an image."""
    shape = tuple(int(n) for n in random.integers(1, 11, 3))
    return shape[1:] if random.random() < 0.2 else shape


def draw_ids(random, shape, ids, dtypes=("uint8", "int64", "uint64")):
    """Return blocks of ids, of few widths: each takes a kernel of its own, and all have their tests in memory."""
    volume = random.choice(ids, shape)
    for axis in range(len(shape)):
        volume = np.repeat(volume, random.choice([1, 2, 4]), axis)
    volume = volume[tuple(slice(n) for n in shape)]
    wide = [dtype for dtype in dtypes if max(ids) <= np.iinfo(dtype).max]
    return volume.astype(random.choice(wide))


def draw_palette(random):
    """Return some ids, at times as large as they may be."""
    return [0, 1, 2, 3, 4, *([FAR, FAR - 1, 2**53 + 1] if random.random() < 0.3 else [])]


def how(random, shape):
    """Return options of a run: a tile."""
    return {"tile": draw_sides(random, shape, MOST_TILES)}


def either(function, *args, **kwargs):
    """Return the result, or the error's type and text."""
    try:
        return function(*args, **kwargs)
    except InputError as error:
        return type(error), str(error)


# --------------------------------------------------------------------------------------------------------- contacts


def assert_same_columns(table, other):
    assert list(table.columns()) == list(other.columns())
    for name, column in other.columns().items():
        found = table.columns()[name]
        assert found.dtype == column.dtype
        np.testing.assert_array_equal(found, column, err_msg=name)


@few
@given(seeds)
def test_contacts(seed):
    random = np.random.default_rng(seed)
    shape = draw_shape(random)
    labels = draw_ids(random, shape, draw_palette(random))
    arguments = {"connectivity": int(random.choice(CONNECTIVITIES)), "spacing": random.uniform(0.1, 9, len(shape))}
    kind = random.choice(["zarr", "zarr", "dask"])
    stored = dict(arguments)
    if random.random() < 0.6:
        image = random.normal(0, 1000, shape)
        image = image.astype(random.choice(["float64", "float32", "float16", "uint8", "bool"]))
        arguments["image"], stored["image"] = image, store(random, image, kind)
    found = lpa3d.contacts(store(random, labels, kind), **stored, **how(random, shape))
    assert_same_columns(found, lpa3d.contacts(labels, **arguments))


@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
def test_contacts_where_tiles_meet_at_corners_only(connectivity):
    """Every way to lie across a corner of eight tiles, alone."""
    for first, second in itertools.combinations(itertools.product((0, 1), repeat=3), 2):
        labels = np.zeros((4, 4, 4), np.uint8)
        labels[tuple(np.add(first, 1))], labels[tuple(np.add(second, 1))] = 1, 2
        stored = zarr.create_array(zarr.storage.MemoryStore(), data=labels, chunks=(4, 4, 4))
        found = lpa3d.contacts(stored, connectivity=connectivity, tile=2)
        assert_same_columns(found, lpa3d.contacts(labels, connectivity=connectivity))


def test_contacts_refuse_what_memory_refuses():
    stored = store(np.random.default_rng(0), np.array([[1, -2], [3, 4]]))
    with pytest.raises(InputError, match=r"labels holds negative ids, the smallest at .* is -2"):
        lpa3d.contacts(stored)
    labels = store(np.random.default_rng(0), np.ones((2, 2), np.uint8))
    with pytest.raises(InputError, match="image holds NaN"):
        lpa3d.contacts(labels, image=store(np.random.default_rng(0), np.full((2, 2), np.nan)))
    with pytest.raises(InputError, match=r"image has shape \(2, 3\) but labels has shape \(2, 2\)"):
        lpa3d.contacts(labels, image=store(np.random.default_rng(0), np.ones((2, 3))))
    with pytest.raises(InputError, match=r"labels holds float64; .* fractions, 0\.5 at \(0, 0\)"):
        lpa3d.contacts(store(np.random.default_rng(0), np.full((2, 2), 0.5)))
    with pytest.raises(InputError, match="connectivity is 5"):
        lpa3d.contacts(labels, connectivity=5)


@few
@given(seeds, st.integers(1, 40))
def test_folding_in_batches_changes_nothing(seed, batch):
    random = np.random.default_rng(seed)
    parts = [count_pairs(random.integers(0, 9, (2, 3, 4)), None, 6) for _ in range(random.integers(0, 9))]
    with mock.patch.object(tables, "BATCH", batch):
        folded = tables.fold(iter(parts), add_counts, lambda table: len(table.pairs))
    whole = add_counts(parts)
    assert isinstance(folded, Counts)
    np.testing.assert_array_equal(folded.pairs, whole.pairs)
    np.testing.assert_array_equal(folded.values, whole.values)


# ------------------------------------------------------------------------------------------------------------ merge


@few
@given(seed=seeds)
def test_merge(seed, tmp_path_factory):
    random = np.random.default_rng(seed)
    shape = draw_shape(random)
    labels = draw_ids(random, shape, draw_palette(random), ("uint8", "uint32", "uint64"))
    ids = [int(i) for i in np.unique(labels) if i]
    arguments = {
        "connectivity": int(random.choice(CONNECTIVITIES)),
        "min_contact": float(random.choice([0, 0.1, 0.3, 0.5])),
        "spacing": random.uniform(0.1, 9, len(shape)),
    }
    if len(ids) > 2 and random.random() < 0.5:
        arguments["must_link"] = [tuple(random.choice(ids, 2, replace=False).tolist())]
        arguments["cannot_link"] = [tuple(random.choice(ids, 2, replace=False).tolist())]
    if random.random() < 0.3:
        pairs = list(itertools.combinations(ids, 2))
        arguments["scores"] = {pair: float(random.random()) for pair in pairs}
    stored = dict(arguments)
    chosen = random.choice(["none", "mapping", "map", "map with conflicts"])
    if chosen == "mapping":
        stored["classes"] = arguments["classes"] = {i: "ab"[i % 2] for i in ids[: len(ids) - (random.random() < 0.2)]}
    elif chosen != "none":
        classes = (labels % 2).astype(random.choice(["int8", "uint64", "bool"]))
        if chosen == "map with conflicts":
            classes = random.integers(-3, 3, shape)
        arguments["classes"], stored["classes"] = classes, store(random, classes)
    expected = either(lpa3d.merge, labels, **arguments)
    out = tmp_path_factory.mktemp("merge") / "out.zarr"
    with mock.patch.object(tiled_merge, "PIECE", int(random.integers(1, 4))):
        found = either(lpa3d.merge, store(random, labels), **stored, out=out, **how(random, shape))
    if isinstance(expected, tuple):
        assert found == expected
        assert not out.exists()
        return
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found[...], expected)


def test_merge_of_booleans(tmp_path):
    labels = np.random.default_rng(0).random((3, 4, 5)) < 0.5
    found = lpa3d.merge(store(np.random.default_rng(0), labels), out=tmp_path / "out.zarr", tile=2)
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found[...], labels)


def test_merge_goes_on_only_with_what_it_was_asked(tmp_path):
    """A run that stopped is another one if any rule differs."""
    labels = store(np.random.default_rng(0), np.arange(1, 28).reshape(3, 3, 3))
    out = tmp_path / "out.zarr"
    with (
        mock.patch.object(tiled_merge, "relabel", side_effect=DeviceError("stop")),
        pytest.raises(DeviceError, match="stop"),
    ):
        lpa3d.merge(labels, must_link=[(1, 2)], out=out, tile=2)
    for other in (
        {"must_link": [(1, 3)]},
        {"must_link": [(1, 2)], "cannot_link": [(5, 6)]},
        {"must_link": [(1, 2)], "scores": {(1, 2): 0.5}},
        {"must_link": [(1, 2)], "classes": dict.fromkeys(range(1, 28), 1)},
    ):
        with pytest.raises(InputError, match="an unfinished run at this place was another one"):
            lpa3d.merge(labels, **other, out=out, tile=2)
    found = lpa3d.merge(labels, must_link=[(1, 2)], out=out, tile=2)
    np.testing.assert_array_equal(found[...], lpa3d.merge(labels[...], must_link=[(1, 2)]))


# --------------------------------------------------------------------------------------------------------- evaluate


def assert_same_evaluation(found, expected):
    """All that an evaluation holds, to the last bit."""
    assert json.dumps(found.to_dict()) == json.dumps(expected.to_dict())
    for one, other in ((found, expected), *zip(found.per_class.values(), expected.per_class.values(), strict=True)):
        assert one.present == other.present
        assert_same_columns(one.pairs, other.pairs)
        for name in ("splits", "merges", "missed", "spurious"):
            assert repr(getattr(one, name)) == repr(getattr(other, name))
        for name in ("pairs", "voxels", "boxes"):
            a, b = getattr(one._overlaps, name), getattr(other._overlaps, name)
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def draw_evaluation(random, mode):
    """Return volumes and keywords in memory, and the same stored."""
    shape = draw_shape(random)
    palette = draw_palette(random) if mode == "ids" else [0, 1, 2, 3]
    reference = draw_ids(random, shape, palette)
    prediction = draw_ids(random, shape, palette)
    shifted = np.roll(reference, 1, random.integers(len(shape)))
    if random.random() < 0.7:
        prediction = np.where(random.random() < 0.5, shifted, reference).astype(reference.dtype)
        prediction[random.random(shape) < 0.1] = 0
    kind = random.choice(["zarr", "zarr", "dask"])
    arguments = {
        "instances": mode,
        "connectivity": int(random.choice(CONNECTIVITIES)),
        "spacing": random.uniform(0.1, 9, len(shape)),
        "iou_thresholds": random.choice([0.1, 0.5, 0.75], random.integers(1, 4), replace=False).tolist(),
        "convention": str(random.choice(["lpa3d", "skimage", "cremi", "mitoem", "coco"])),
        "warping": random.choice([None, "2d"]),
    }
    if mode is not None:
        arguments["surfaces"] = bool(random.random() < 0.6)
        arguments["size_strata"] = (2, 9) if random.random() < 0.3 else None
    stored = dict(arguments)
    ignore = random.choice(["none", "value", "no id", "array"])
    if ignore == "value":
        stored["ignore"] = arguments["ignore"] = 3
    elif ignore == "no id":
        reference = reference.astype(np.int64)
        reference[random.random(shape) < 0.2] = -1
        stored["ignore"] = arguments["ignore"] = -1
    elif ignore == "array":
        mask = (random.random(shape) < 0.3).astype(random.choice(["bool", "int16"]))
        arguments["ignore"], stored["ignore"] = mask, store(random, mask, kind)
    classes = random.choice(["none", "none", "mapping", "map", "mixed", "conflicts"]) if mode == "ids" else "none"
    if classes != "none":
        pair, stored_pair = [], []
        for side, volume in enumerate((reference, prediction)):
            ids = [int(i) for i in np.unique(volume) if i > 0]
            if classes == "mapping" or (classes == "mixed" and side):
                pair.append({i: int(i % 2 + 1) for i in ids})
                stored_pair.append(pair[-1])
                continue
            of = np.where(volume > 0, volume % volume.dtype.type(2) + 1, 0).astype(random.choice(["int8", "uint64"]))
            if classes == "conflicts":
                of = random.integers(0, 3, shape)
            pair.append(of)
            stored_pair.append(store(random, of, kind))
        arguments["classes"], stored["classes"] = tuple(pair), tuple(stored_pair)
    if (classes != "none" or mode != "ids") and random.random() < 0.5:
        names = {1: "one", 2: "two", 77: "nobody"}
        stored["class_names"] = arguments["class_names"] = names
    if mode == "ids" and random.random() < 0.3:
        scores = {int(i): float(random.random()) for i in np.unique(prediction) if i > 0}
        stored["scores"] = arguments["scores"] = scores
    sides = reference, prediction
    return sides, arguments, [store(random, side, kind) for side in sides], stored | how(random, shape)


@pytest.mark.filterwarnings("ignore::lpa3d.errors.Lpa3dWarning")
@pytest.mark.parametrize("mode", ["ids", "components", None])
@settings(max_examples=8)
@given(seeds)
def test_evaluate(mode, seed):
    random = np.random.default_rng(seed)
    sides, arguments, stored_sides, stored = draw_evaluation(random, mode)
    # Several buckets, some of them large, even of few voxels.
    sizes = {"BUCKET": int(random.choice([1, 20, 2**22])), "LARGE": int(random.choice([3, 50, 2**24]))}
    expected = either(lpa3d.evaluate, *sides, **arguments)
    with mock.patch.multiple(tiled_surfaces, **sizes):
        found = either(lpa3d.evaluate, *stored_sides, **stored)
    if isinstance(expected, tuple):
        assert found == expected
    else:
        assert_same_evaluation(found, expected)


@few
@given(seeds)
def test_surfaces_of_winding_objects(seed):
    """Tubes that cross every tile, ignored voxels and faces of tiles in all positions."""
    random = np.random.default_rng(seed)
    shape = (6, 7, 8)
    reference = np.where(random.random(shape) < 0.7, random.integers(1, 3, shape), 0).astype(np.uint8)
    prediction = np.where(random.random(shape) < 0.2, 3 - reference, reference).astype(np.uint8)
    ignore = random.random(shape) < 0.1
    arguments = {"surfaces": True, "iou_thresholds": 0.0, "spacing": (2.5, 1.1, 0.7)}
    stored = store(random, reference), store(random, prediction)
    found = lpa3d.evaluate(*stored, ignore=store(random, ignore), **arguments, **how(random, shape))
    assert_same_evaluation(found, lpa3d.evaluate(reference, prediction, ignore=ignore, **arguments))


def test_evaluate_goes_on_where_it_stopped(tmp_path):
    random = np.random.default_rng(3)
    volume = random.integers(0, 4, (6, 6, 6))
    sides = store(random, volume), store(random, np.roll(volume, 1, 2))
    arguments = {"surfaces": True, "scratch": tmp_path / "run", "tile": 3, "iou_thresholds": 0.1}
    with (
        mock.patch.object(tiled_surfaces, "measure_lists", side_effect=DeviceError("stop")),
        pytest.raises(DeviceError, match="stop"),
    ):
        lpa3d.evaluate(*sides, **arguments)
    with pytest.raises(InputError, match="an unfinished run at this place was another one"):
        lpa3d.evaluate(*sides, **arguments | {"iou_thresholds": 0.2})
    with mock.patch("lpa3d.tiled.evaluate.count_overlaps", side_effect=AssertionError):
        found = lpa3d.evaluate(*sides, **arguments)
    expected = lpa3d.evaluate(volume, np.roll(volume, 1, 2), surfaces=True, iou_thresholds=0.1)
    assert_same_evaluation(found, expected)
    assert not any((tmp_path / "run").glob("*"))


def test_evaluate_warns_of_classes_that_nothing_has():
    volume = store(np.random.default_rng(0), np.ones((2, 3, 4), np.uint8))
    with pytest.warns(Lpa3dWarning, match="none of the classes 7 is in reference or prediction") as caught:
        found = lpa3d.evaluate(volume, volume, instances=None, class_names={7: "seven"})
    assert not found.present
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"warping": "3d"}, InputError, "cannot be done tile by tile; pass warping='2d', or read"),
        ({"instances": "classes"}, InputError, "instances is 'classes'"),
        ({"ignore": 2.5}, InputTypeError, r"ignore is 2.5; an array of bool of the shape \(2, 3, 4\)"),
        ({"classes": {1: 2}}, InputTypeError, "a pair is needed"),
        ({"classes": "ab.zarr"}, InputTypeError, "a pair is needed"),
        ({"scores": {}}, InputError, "scores has none for 1 id"),
        ({"convention": "none"}, InputError, "convention is 'none'"),
    ],
)
def test_evaluate_refuses_what_memory_refuses(options, error, message):
    volume = store(np.random.default_rng(0), np.ones((2, 3, 4), np.uint8))
    with pytest.raises(error, match=message):
        lpa3d.evaluate(volume, volume, **options)


def test_evaluate_refuses_other_shapes_and_fractions():
    random = np.random.default_rng(0)
    volume = store(random, np.ones((2, 3, 4), np.uint8))
    with pytest.raises(InputError, match=r"prediction has shape \(2, 3, 5\) but reference has shape \(2, 3, 4\)"):
        lpa3d.evaluate(volume, store(random, np.ones((2, 3, 5), np.uint8)))
    with pytest.raises(InputError, match=r"ignore has shape"):
        lpa3d.evaluate(volume, volume, ignore=store(random, np.ones((2, 3, 5), np.uint8)))
    with pytest.raises(InputError, match=r"ignore holds float64.*fractions, 0\.5 at \(0, 0, 0\)"):
        lpa3d.evaluate(volume, volume, ignore=store(random, np.full((2, 3, 4), 0.5)))
    with pytest.raises(InputError, match=r"classes\[1\] has shape"):
        lpa3d.evaluate(volume, volume, classes=(volume, store(random, np.ones((2, 3, 5), np.uint8))))
    with pytest.raises(InputError, match=r"prediction holds float64.*NaN"):
        lpa3d.evaluate(volume, store(random, np.full((2, 3, 4), np.nan)))
    with pytest.raises(InputError, match="prediction holds ids up to"):
        lpa3d.evaluate(volume, store(random, np.full((2, 3, 4), 2**63, np.uint64)))
