"""`stitch` against a plain restatement, hand-made cases, its guarantees, real slices, and what it refuses."""

import os
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lpa3d
from lpa3d.errors import InputError, InputTypeError, Lpa3dWarning
from lpa3d.linking import stitch as linking
from lpa3d.verbs.stitch import stitch
from tests import naive
from tests.strategies import laid_out, moving_blobs

BIG = 2**63 - 1


def shuffle(slices, random, axis=0, ids=None):
    """Give the sections of every slice other ids, of `ids` or of 1 to 999, without meaning from slice to slice."""
    result = np.zeros(slices.shape, np.int64)
    for here, there in zip(np.moveaxis(slices, axis, 0), np.moveaxis(result, axis, 0), strict=True):
        known, places = np.unique(here, return_inverse=True)
        pool = np.arange(1, 1000) if ids is None else np.array(ids)
        names = random.choice(pool, len(known), replace=False)
        there[...] = np.where(known == 0, 0, names)[places.reshape(here.shape)]
    return result


def split_slices(instances, axis=0):
    """Give each 8-connected part of an instance on a slice an id of its own."""
    result = np.zeros(instances.shape, np.int64)
    for here, there in zip(np.moveaxis(instances, axis, 0), np.moveaxis(result, axis, 0), strict=True):
        there[...] = lpa3d.label(np.ascontiguousarray(here), connectivity=26)
    return result


def draw_case(seed):
    """Return (slices, classes, keywords): noise, or blobs that move, with sections lost, cut and fused."""
    random = np.random.default_rng(seed)
    if random.random() < 0.4:
        shape = random.integers(1, 8, 3)
        slices = random.integers(0, random.integers(2, 6), shape)
        slices[random.random(shape) < random.choice([0, 0.4])] = 0
        classes = random.integers(1, 3, shape[0])[:, None, None] * np.ones(shape, np.int64)
    else:
        classes, instances = moving_blobs(random, classes=int(random.integers(1, 3)), depth=8, side=15)
        slices = split_slices(instances)
        for here in slices:
            known = np.unique(here[here > 0])
            for one in known[random.random(len(known)) < 0.15]:
                rows = np.flatnonzero((here == one).any(axis=1))
                part = (here == one) & (np.arange(here.shape[0])[:, None] >= rows[len(rows) // 2])
                here[part] = random.choice([0, 500])
    classes = classes.astype(np.uint8)
    arguments = {
        "axis": 0,
        "max_gap": int(random.integers(1, 7)),
        "branching": bool(random.random() < 0.8),
        "bad_slices": np.flatnonzero(random.random(len(slices)) < random.choice([0, 0.25])).tolist(),
    }
    if random.random() < 0.3:
        slices[random.random(len(slices)) < 0.3] = 0
    for z, here in enumerate(slices):
        for one in np.unique(here[here > 0]):
            # One class to a section.
            classes[z][here == one] = classes[z][here == one].max()
    order = random.permutation(3)
    slices = shuffle(slices, random)
    named = [
        (z, int(i)) for z in range(len(slices)) for i in np.unique(slices[z]) if i and z not in arguments["bad_slices"]
    ]
    for name in ("must_link", "cannot_link"):
        if named and random.random() < 0.4:
            some = random.integers(0, len(named), (random.integers(1, 4), 2))
            arguments[name] = [(named[a], named[b]) for a, b in some]
    arguments["axis"] = int(np.flatnonzero(order == 0)[0])
    slices, classes = (np.ascontiguousarray(array.transpose(order)) for array in (slices, classes))
    if random.random() < 0.5:
        arguments["classes"] = classes
    return slices, arguments


@pytest.mark.interpreted
@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1).map(draw_case))
def test_equals_the_plain_restatement(case):
    """Any axis, gaps, classes, constraints, and which constraints contradict each other."""
    slices, arguments = case
    expected = naive.stitch(slices, **arguments)
    if expected is None:
        with pytest.raises(InputError, match=r"must_link joins|apart from itself"):
            stitch(slices, **arguments)
        return
    found = stitch(slices, **arguments)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint32


@given(st.integers(0, 2**32 - 1).map(draw_case), st.integers(0, 2**32 - 1))
def test_ids_on_a_slice_mean_nothing(case, seed):
    """Ids reused on every slice, ids above 2**53 and up to 2**63 - 1: the same result."""
    slices, arguments = case
    for name in ("must_link", "cannot_link"):
        arguments.pop(name, None)
    ids = [*range(1, 200), *range(BIG - 300, BIG), 2**53, 2**53 + 1, BIG]
    other = shuffle(slices, np.random.default_rng(seed), arguments["axis"], ids)
    np.testing.assert_array_equal(stitch(other, **arguments), stitch(slices, **arguments))


@given(st.integers(0, 2**32 - 1).map(draw_case), st.integers(2, 9))
def test_threads_and_cut_change_nothing(case, threads):
    slices, arguments = case
    for name in ("must_link", "cannot_link"):
        arguments.pop(name, None)
    expected = stitch(slices, **arguments)
    with mock.patch.object(linking, "SLAB_VOXELS", 1), mock.patch.dict(os.environ, LPA3D_NUM_THREADS=str(threads)):
        np.testing.assert_array_equal(stitch(slices, **arguments), expected)


@given(laid_out(st.integers(0, 99).map(lambda seed: draw_case(seed)[0].astype(np.int32))))
def test_memory_layouts(arrays):
    array, other = arrays
    before = other.copy()
    np.testing.assert_array_equal(stitch(other), stitch(array))
    np.testing.assert_array_equal(other, before)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "uint16", "int32", "uint32", "int64", "uint64"])
def test_dtypes(dtype):
    slices = np.zeros((3, 4, 5), dtype)
    slices[:, 1:3, 1:4] = 1
    found = stitch(slices)
    np.testing.assert_array_equal(found, slices.astype(np.uint32))
    assert found.dtype == np.uint32


def tube(shape, path, radius):
    """Return the discs of a radius around ``path[z]`` (y, x), nothing where that is None."""
    y, x = np.indices(shape[1:])
    mask = np.zeros(shape, bool)
    for z, at in path.items():
        mask[z] = (y - at[0]) ** 2 + (x - at[1]) ** 2 <= radius**2
    return mask


def pieces(labels):
    """Return how many results the slices have become."""
    return len(np.unique(labels[labels > 0]))


@pytest.mark.parametrize("turned", [False, True])
def test_branch_holds_together(turned):
    """A trunk that forks, either way up; not without `branching`."""
    shape = (16, 24, 40)
    fork = tube(shape, {z: (12, 20) for z in range(8)}, 5)
    for side in (-1, 1):
        fork |= tube(shape, {z: (12, 20 + side * (z - 3)) for z in range(4, 16)}, 4)
    slices = split_slices(fork[::-1] if turned else fork)
    assert pieces(stitch(slices)) == 1
    assert pieces(stitch(slices, branching=False)) == 2


def two_vesicles(covered):
    """Return slices of two vesicles side by side, and the same with one big section over both on some slices."""
    shape = (14, 20, 40)
    slices = np.zeros(shape, np.int64)
    slices[tube(shape, {z: (10, 12) for z in range(14)}, 6)] = 1
    slices[tube(shape, {z: (10, 26) for z in range(14)}, 7)] = 2
    broken = slices.copy()
    for z in covered:
        broken[z, 3:18, 6:34] = 9
    return slices, shuffle(broken, np.random.default_rng(0))


@pytest.mark.parametrize("covered", [[6], [13], [0]])
def test_vesicles_under_a_big_section_do_not_fuse(covered):
    """Whether the big section is between their sections, or the last or first one."""
    slices, broken = two_vesicles(covered)
    found = stitch(broken)
    assert pieces(found) == 2
    rest = [z for z in range(14) if z not in covered]
    np.testing.assert_array_equal(found[rest] == found[rest[0], 10, 12], slices[rest] == 1)


def test_speck_does_not_tie_two_objects():
    """A speck that lies between two objects joins one of them."""
    slices = np.zeros((9, 12, 12), np.int64)
    slices[:4, 2:10, 2:10] = 1
    slices[5:, 2:10, 4:12] = 2
    slices[4, 5:7, 5:7] = 3
    slices[3:6, 0:12, 0:2] = 5
    assert pieces(stitch(slices, max_gap=1)) >= 2


def test_motion_across_a_gap():
    """Packed sections that move as far as they are wide over a gap are told apart by their motion."""
    shape = (14, 60, 60)
    slices = np.zeros(shape, np.int64)
    for i in range(-4, 9):
        for j in range(9):
            path = {z: (7 * i + 3 * z, 7 * j + 3) for z in range(14)}
            slices[tube(shape, path, 3)] = 10 * (i + 5) + j
    inside = [k for k in np.unique(slices[slices > 0]) if (slices == k).any(axis=(1, 2)).all()]
    found = stitch(shuffle(slices, np.random.default_rng(1)), bad_slices=[6, 7])
    assert inside
    for k in inside:
        names = np.unique(found[slices == k])
        assert len(names[names > 0]) == 1
        assert (slices[found == names[-1]] == k).all()


def test_section_that_is_missing():
    """A chain leaps one slice that has other sections, not two."""
    slices = np.zeros((9, 8, 12), np.int64)
    slices[:, 2:6, 1:5] = 1
    slices[:, 2:6, 7:11] = 2
    slices[4, :, :6] = 0
    assert pieces(stitch(slices)) == 2
    assert pieces(stitch(slices, max_gap=1)) == 3
    slices[5, :, :6] = 0
    assert pieces(stitch(slices)) == 3


def test_missing_and_bad_slices():
    """Both are left out, come out 0, and part nobody up to `max_gap`."""
    slices = np.zeros((10, 8, 8), np.int64)
    slices[:, 2:6, 2:6] = 7
    slices[[3, 4]] = 0
    found = stitch(slices)
    np.testing.assert_array_equal(found, (slices > 0).astype(np.uint32))
    assert pieces(stitch(slices, max_gap=2)) == 2
    slices[[3, 4]] = 99  # one blob
    np.testing.assert_array_equal(stitch(slices, bad_slices=[3, 4]), found)
    np.testing.assert_array_equal(stitch(slices, bad_slices=np.array([4, 3, 3])), found)


def test_links_of_sections():
    slices = np.zeros((6, 4, 12), np.int64)
    slices[:, 1:3, 1:4] = 5
    slices[:, 1:3, 8:11] = 6
    plain = stitch(slices)
    assert pieces(plain) == 2
    assert pieces(stitch(slices, must_link=[((0, 5), (5, 6))])) == 1
    assert pieces(stitch(slices, must_link=np.array([((2, 5), (2, 6))]))) == 1
    parted = stitch(slices, cannot_link=[((2, 5), (3, 5))], max_gap=1)
    assert pieces(parted) == 3
    assert (parted[:3, 1, 1] == 1).all()
    assert (parted[3:, 1, 1] == 3).all()
    # Not even through a third section.
    far = stitch(slices, cannot_link=[((0, 5), (5, 5))])
    assert far[0, 1, 1] != far[5, 1, 1]
    # A branch is not joined against it.
    both = stitch(slices, must_link=[((2, 5), (2, 6))], cannot_link=[((0, 5), (0, 6))])
    assert both[0, 1, 1] != both[0, 1, 9]


def test_classes_do_not_join():
    slices = np.ones((6, 4, 4), np.uint8)
    classes = np.ones_like(slices)
    classes[3:] = 2
    found = stitch(slices, classes=classes)
    np.testing.assert_array_equal(found, classes)
    # Class 0 is none: a section has the class of its other voxels.
    classes[:, 0] = 0
    np.testing.assert_array_equal(stitch(slices, classes=classes), found)
    with pytest.raises(InputError, match=r"must_link joins \(2, 1\) \(class 1\) and \(3, 1\) \(class 2\)"):
        stitch(slices, classes=classes, must_link=[((2, 1), (3, 1))])


def test_numbers_follow_the_first_voxels():
    """In raster order of the volume, whatever the axis."""
    slices = np.zeros((4, 6, 6), np.int64)
    slices[2:, 0:2, 4:] = 8
    slices[1:, 4:, :2] = 3
    slices[0, 2, 3] = 1
    for axis in range(3):
        found = stitch(slices, axis=axis)
        first = [int(np.flatnonzero(found == k)[0]) for k in range(1, pieces(found) + 1)]
        assert pieces(found) == 3
        assert first == sorted(first)
        np.testing.assert_array_equal(found, stitch(slices, axis=axis - 3))


@pytest.mark.parametrize("shape", [(0, 4, 4), (4, 0, 4), (3, 4, 4)])
def test_nothing_to_stitch(shape):
    assert not stitch(np.zeros(shape, np.int32)).any()
    assert not stitch(np.ones(shape, np.int32), bad_slices=range(shape[0])).any()


def test_one_slice():
    """Its sections are numbered; a 2D array is one slice. A section need not be connected."""
    image = np.array([[0, 9, 9, 4], [7, 0, 0, 4], [7, 9, 0, 0]])
    expected = [[0, 1, 1, 2], [3, 0, 0, 2], [3, 1, 0, 0]]
    np.testing.assert_array_equal(stitch(image), expected)
    np.testing.assert_array_equal(stitch(image[None])[0], expected)


def test_thousands_of_sections_on_a_slice():
    slices = np.zeros((5, 200, 200), np.int64)
    slices[:] = np.arange(10_000).reshape(100, 100).repeat(2, axis=0).repeat(2, axis=1) + 1
    found = stitch(shuffle(slices, np.random.default_rng(0), ids=range(1, 20_000)))
    np.testing.assert_array_equal(found, slices)


def test_one_blob_among_many():
    """A slice whose labels are one blob joins one object, and parts no other."""
    slices = np.zeros((9, 40, 40), np.int64)
    slices[:] = np.arange(100).reshape(10, 10).repeat(4, axis=0).repeat(4, axis=1) + 1
    expected = slices.copy()
    slices[4] = 1
    found = stitch(slices)
    np.testing.assert_array_equal(found[[0, 8]], expected[[0, 8]])
    assert pieces(found) == 100


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flips_commute(axis):
    """Turned round along any axis, blobs without ties become the same objects."""
    random = np.random.default_rng(5)
    _, instances = moving_blobs(random, depth=12, side=26)
    slices = split_slices(instances)
    slices[[4, 5, 9]] = 0
    found, turned = stitch(slices), np.flip(stitch(np.flip(slices, axis)), axis)
    pairs = np.unique(np.stack([found.ravel(), turned.ravel()]), axis=1)
    assert pairs.shape[1] == pieces(found) + 1 == pieces(turned) + 1


def test_out():
    slices = np.ones((3, 4, 4), np.uint8)
    out = np.full(slices.shape, 7, np.uint32)
    assert stitch(slices, out=out) is out
    assert (out == 1).all()
    flat = np.empty((4, 4), np.uint32)
    assert stitch(slices[0], out=flat) is flat
    with pytest.raises(InputError, match="needed is out="):
        stitch(slices, out=np.empty(slices.shape, np.uint64))


FLOORS = {
    ("fv", "0-0-0", 0): 0.985,
    ("fv", "3-2-1", 0): 0.98,
    ("mito", "3-2-1", 0): 0.995,
    ("fv", "0-0-0", 0.1): 0.96,
    ("fv", "3-2-1", 0.1): 0.96,
    ("mito", "3-2-1", 0.1): 0.99,
}


@pytest.mark.each_value
@pytest.mark.parametrize(("kind", "name", "missing"), FLOORS)
def test_real_slices(data_dir, kind, name, missing):
    """Sections of what an expert drew, shuffled, put together again; some with a tenth of the slices missing."""
    pytest.importorskip("nibabel")
    path = data_dir / "urocell" / kind / "instance" / f"fib1-{name}.nii.gz"
    if not path.exists():
        pytest.skip(f"no {path.name}")
    instances = np.ascontiguousarray(lpa3d.io.read(path)).astype(np.int32)
    random = np.random.default_rng(0)
    slices = split_slices(instances)
    kept = np.ones(len(slices), bool)
    kept[random.choice(len(slices), round(missing * len(slices)), replace=False)] = False
    slices[~kept] = 0
    slices = shuffle(slices, random)
    found = stitch(slices)
    assert (found[~kept] == 0).all()
    result = lpa3d.evaluate(instances[kept], found[kept])
    assert result["pq"] >= FLOORS[kind, name, missing]
    assert result["arand"] < 0.01


SLICES = np.ones((3, 4, 4), np.int64)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"slices": SLICES.astype(float)}, InputTypeError, "slices has dtype float64"),
        ({"slices": SLICES.tolist()}, InputTypeError, "numpy.asarray"),
        ({"slices": -SLICES}, InputError, "negative"),
        ({"slices": np.full((2, 2, 2), 2**63, np.uint64)}, InputError, "at most"),
        ({"slices": SLICES[0], "axis": 1}, InputError, "one slice"),
        ({"axis": 3}, InputError, "0, 1 or 2"),
        ({"axis": "z"}, InputTypeError, "0, 1 or 2"),
        ({"max_gap": 0}, InputError, "at least 1"),
        ({"max_gap": 1.5}, InputTypeError, "whole number"),
        ({"branching": "no"}, InputTypeError, "True or False"),
        ({"bad_slices": 3}, InputTypeError, "positions from 0 to 2"),
        ({"bad_slices": [-1]}, InputError, "positions from 0 to 2"),
        ({"bad_slices": [3]}, InputError, "positions from 0 to 2"),
        ({"classes": np.ones((3, 4))}, InputTypeError, "classes has dtype float64"),
        ({"classes": np.ones((3, 4), int)}, InputError, "classes has shape"),
        ({"classes": {1: 2}}, InputTypeError, "class map"),
        ({"bad_slices": [False, True, False]}, InputTypeError, "bad_slices holds True or False.*flatnonzero"),
        ({"axis": True}, InputTypeError, "axis is True"),
        ({"max_gap": True}, InputTypeError, "max_gap is True"),
        ({"must_link": [(1, 2)]}, InputTypeError, "pairs of sections"),
        ({"must_link": 3}, InputTypeError, "pairs of sections"),
        ({"must_link": np.ones((1, 2, 2))}, InputTypeError, "dtype float64"),
        ({"must_link": [((0, 1), (3, 1))]}, InputError, "from 0 to 2"),
        ({"must_link": [((0, 0), (1, 1))]}, InputError, "ids from 1"),
        ({"cannot_link": [((0, 1), (1, 2))]}, InputError, r"does not hold: \(1, 2\)"),
        ({"cannot_link": [((0, 1), (1, 1))], "bad_slices": [1]}, InputError, "one of bad_slices"),
        ({"cannot_link": [((0, 1), (0, 1))]}, InputError, "apart from itself"),
        (
            {"must_link": [((0, 1), (1, 1)), ((2, 1), (1, 1))], "cannot_link": [((2, 1), (0, 1))]},
            InputError,
            r"\(0, 1\) - \(1, 1\) - \(2, 1\)",
        ),
    ],
)
def test_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        stitch(**{"slices": SLICES, **arguments})


def test_section_on_two_classes_has_that_of_most_voxels():
    """Networks for classes and for instances rarely agree on every voxel; a warning counts where they do not."""
    slices = np.zeros((3, 1, 6), int)
    slices[:, 0, :5] = 1
    classes = np.ones(slices.shape, np.int16)
    classes[1, 0, 3:] = -4
    classes[2, 0, 2:] = -4
    with pytest.warns(Lpa3dWarning, match=r"2 of 3 sections .* 4 voxels lie on others: .* \(1, 1\), \(2, 1\)"):
        found = stitch(slices, classes=classes)
    np.testing.assert_array_equal(found[:, 0, 0], [1, 1, 2])
    # A tie goes to the smaller bits, that is 1 rather than -4.
    classes[2, 0, :] = [0, 1, 1, -4, -4, -4]
    with pytest.warns(Lpa3dWarning, match="2 of 3 sections"):
        np.testing.assert_array_equal(stitch(slices, classes=classes)[:, 0, 0], [1, 1, 1])
