"""What classes are called changes nothing: any bits do, over the whole range of 64, in every verb that takes them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import lpa3d
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
