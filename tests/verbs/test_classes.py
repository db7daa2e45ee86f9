"""What classes are called changes nothing: any bits do, over the whole range of 64, in every verb that takes them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import lpa3d
from lpa3d.errors import InputError
from tests.strategies import connectivities

zarr = pytest.importorskip("zarr")

NEAR = [-1, -2, -3, 2**53 + 1, 2**60 + 1, 2**60 + 2, 2**63 - 1, -(2**63), 2**63 - 2]
"""Classes that are not what they are, or are one class, as float64."""

names = st.lists(
    st.sampled_from(NEAR) | st.integers(-(2**63), 2**63 - 1).filter(bool), min_size=3, max_size=3, unique=True
)


def quietly(verb, *args, **keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return verb(*args, **keywords)


def make_case(random):
    """Return classes 0 to 3 in touching blobs, and seeds of which some lie on two classes."""
    volume = np.repeat(np.repeat(random.integers(0, 4, (4, 4, 5)), 2, axis=1), 2, axis=2)
    seeds = np.where(random.random(volume.shape) < 0.1, random.integers(1, 5, volume.shape), 0)
    return volume, seeds


OPTIONS = [
    {"unseeded": "label"},
    {"max_distance": 2.5, "unseeded": "label"},
    {"max_distance": 2.5, "sweeps": 0},
    {"sweeps": 3, "slice_axis": 0},
]


@settings(max_examples=12)
@given(st.integers(0, 2**32 - 1), names, connectivities, st.sampled_from(OPTIONS), st.booleans())
@example(3, [-1, -2, -3], 6, OPTIONS[0], False)
@example(3, [2**60 + 1, 2**60 + 2, 2**60 + 3], 26, OPTIONS[1], True)
def test_propagate(seed, names, connectivity, options, tiled):
    random = np.random.default_rng(seed)
    volume, seeds = make_case(random)
    called = np.array([0, *names], np.int64)[volume]
    # Of classes with as many seeds of an id the smaller one keeps them, as it is called.
    options = {**options, "seed_conflicts": "majority", "connectivity": connectivity}
    bits = np.array(names, np.int64).view(np.uint64)
    volume = np.array([0, *(1 + np.argsort(np.argsort(bits)))])[volume].astype(np.uint8)
    expected = quietly(lpa3d.propagate, volume, seeds, **options)
    np.testing.assert_array_equal(quietly(lpa3d.propagate, called, seeds, **options), expected)
    if tiled:
        stored = (zarr.array(called, chunks=(2, 4, 5)), zarr.array(seeds, chunks=(2, 4, 5)))
        found = quietly(lpa3d.propagate, *stored, out=zarr.storage.MemoryStore(), tile=(3, 4, 5), **options)
        np.testing.assert_array_equal(found[...], expected)


@given(st.integers(0, 2**32 - 1), names, connectivities)
def test_the_other_verbs(seed, names, connectivity):
    random = np.random.default_rng(seed)
    volume, ids = make_case(random)
    ids = np.where(volume > 0, 1 + (np.arange(volume.size).reshape(volume.shape) // 37), 0)
    called = np.array([0, *names], np.int64)[volume]
    expected = lpa3d.label(volume, connectivity=connectivity)
    np.testing.assert_array_equal(lpa3d.label(called, connectivity=connectivity), expected)
    # Each component has one class, whatever that is called.
    parts = expected.astype(np.int64)
    merged = lpa3d.merge(parts, classes=volume, min_contact=0.1, connectivity=connectivity)
    np.testing.assert_array_equal(
        lpa3d.merge(parts, classes=called, min_contact=0.1, connectivity=connectivity), merged
    )
    order = np.argsort(np.argsort(np.array(names, np.int64)))
    ranked = np.array([0, *(1 + order)])[volume]
    np.testing.assert_array_equal(
        quietly(lpa3d.stitch, ids, classes=called), quietly(lpa3d.stitch, ids, classes=ranked)
    )
    if min(names) < 0:
        return  # `evaluate` takes no negative values
    other = np.roll(volume, 1, axis=2)
    for instances in (None, "components"):
        found = lpa3d.evaluate(called, np.array([0, *names], np.int64)[other], instances=instances)
        wanted = lpa3d.evaluate(volume, other, instances=instances)
        for metric in wanted:
            np.testing.assert_allclose(found[metric], wanted[metric], rtol=1e-12, err_msg=metric)


@given(st.integers(0, 2**32 - 1), names, st.sampled_from(["i8", "u8", ">i8"]), st.booleans(), st.integers(0, 3))
@example(1, [2**60 + 1, 2**60 + 2, 2**60 + 3], "i8", True, 0)
@example(1, [-1, -2, -3], "u8", True, 0)
def test_fuse(seed, names, dtype, mapped, memory):
    random = np.random.default_rng(seed)
    volume, instances = make_case(random)
    slices = np.where(random.random(volume.shape) < 0.6, random.integers(1, 5, volume.shape), 0)
    # Of classes that tie the smaller one is taken, so that the names are in order.
    called = np.sort(np.array([*names], np.int64).astype(dtype))
    called = np.concatenate([np.zeros(1, dtype), called]).astype(dtype)
    keywords = {"instance_classes": dict.fromkeys(range(1, 5), 1), "slice_classes": dict.fromkeys(range(1, 5), 3)}
    given = {key: {i: int(called[k]) for i, k in one.items()} for key, one in keywords.items()}
    wanted = lpa3d.fuse(classes=volume, instances=instances, slices=slices, **(keywords if mapped else {}))
    arrays, place = {"classes": called[volume], "instances": instances, "slices": slices}, {}
    if not memory:  # one time in four
        arrays = {name: zarr.array(array, chunks=(2, 4, 5)) for name, array in arrays.items()}
        stores = {name: zarr.storage.MemoryStore() for name in ("volume", "seeds", "provenance")}
        place = {"out": stores, "tile": (4, 4, 5)}
    found = lpa3d.fuse(**arrays, **(given if mapped else {}), **place)
    np.testing.assert_array_equal(found.volume[...], called[wanted.volume])
    np.testing.assert_array_equal(found.seeds[...], wanted.seeds)
    np.testing.assert_array_equal(found.provenance[...], wanted.provenance)
    columns, expected = found.conflicts.columns(), wanted.conflicts.columns()
    for name in expected:
        values = called[expected[name]] if name.endswith("_class") else expected[name]
        np.testing.assert_array_equal(columns[name], values, err_msg=name)


@pytest.mark.parametrize("dtype", ["<i2", ">i2", ">u8"])
def test_messages_name_classes_in_any_byte_order(dtype):
    volume, seeds = np.array([[[1, 1, 2]]], dtype), np.array([[[5, 0, 5]]], dtype)
    for stored in (False, True):
        arrays = [zarr.array(one, chunks=(1, 1, 1)) for one in (volume, seeds)] if stored else [volume, seeds]
        more = {"out": zarr.storage.MemoryStore()} if stored else {}
        with pytest.raises(InputError, match=r"id 5 on classes 1, 2\."):
            lpa3d.propagate(*arrays, **more)
        with pytest.raises(InputError, match=r"id 5 is on 1 and 2\."):
            lpa3d.merge(arrays[1], classes=arrays[0], **({"out": zarr.storage.MemoryStore()} if stored else {}))
    with pytest.raises(InputError, match=rf"dtype {np.dtype(dtype).name} of classes"):
        lpa3d.fuse(classes=volume, instances=seeds, instance_classes={5: 2**70})
