"""`surface_distances` against all pairs of surface voxels, MedPy's formulas restated with SciPy, and known shifts."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

import lpa3d
from lpa3d.evaluation import surfaces as _surfaces
from lpa3d.evaluation.surfaces import surface_distances
from tests import naive
from tests.strategies import INTEGER_DTYPES, shapes

spacings = st.tuples(*[st.sampled_from([0.5, 1, 1.3, 8, 40])] * 3)
FAR = 2**63 - 1


def boxes_of(volume, ids, ignore=None):
    """Return the box of each id, without ignored voxels."""
    found = []
    for one in ids:
        places = np.argwhere((volume == one) & (True if ignore is None else ~ignore))
        found.append([places.min(axis=0), places.max(axis=0) + 1])
    return np.array(found, np.int64).reshape(-1, 2, 3)


def measure(reference, prediction, pairs, spacing=(1, 1, 1), ignore=None):
    pairs = np.array(pairs, np.int64).reshape(-1, 2)
    boxes = boxes_of(reference, pairs[:, 0], ignore), boxes_of(prediction, pairs[:, 1], ignore)
    return surface_distances(reference, prediction, pairs, *boxes, spacing, ignore)


def medpy(first, second, spacing):
    """Return what MedPy's hd, hd95, assd, and assd before 2022 do: distance transforms from the eroded borders."""
    footprint = ndimage.generate_binary_structure(first.ndim, 1)
    borders = [mask ^ ndimage.binary_erosion(mask, footprint) for mask in (first, second)]
    there, back = (ndimage.distance_transform_edt(~borders[1 - k], sampling=spacing)[borders[k]] for k in range(2))
    both = np.hstack([there, back])
    return both.max(), np.percentile(both, 95), both.mean(), (there.mean() + back.mean()) / 2


@st.composite
def volumes(draw):
    shape = draw(shapes())
    elements = st.integers(0, draw(st.integers(1, 2)))
    reference, prediction = (draw(hnp.arrays("uint8", shape, elements=elements)) for _ in range(2))
    ignore = draw(st.none() | hnp.arrays(bool, shape))
    return reference, prediction, ignore


@pytest.mark.interpreted
@given(volumes(), spacings)
def test_equals_all_pairs_of_surface_voxels(arrays, spacing):
    reference, prediction, ignore = arrays
    known = np.ones(reference.shape, bool) if ignore is None else ~ignore
    sides = [np.unique(volume[known]) for volume in (reference, prediction)]
    pairs = [(a, b) for a in sides[0] if a for b in sides[1] if b]
    found = measure(reference, prediction, pairs, spacing, ignore)
    assert found.shape == (len(pairs), 3)
    assert found.dtype == np.float64
    for row, (a, b) in zip(found, pairs, strict=True):
        expected = naive.surface_distances((reference == a) & known, (prediction == b) & known, spacing)
        assert row == pytest.approx(expected, rel=1e-12)


def test_means_of_both_directions():
    """One voxel, and a row of five that begins at it."""
    first, second = np.zeros((2, 1, 1, 7), np.uint8)
    first[..., 1], second[..., 1:6] = 1, 1
    assert medpy(first[0] > 0, second[0] > 0, (1, 1))[2:] == (10 / 6, 1)
    boxes = boxes_of(first, [1]), boxes_of(second, [1])
    for pooled, expected in ((True, 10 / 6), (False, 1.0)):
        found = surface_distances(first, second, np.array([[1, 1]]), *boxes, (1, 1, 1), pooled=pooled)
        assert found[0, 2] == expected
        convention = "lpa3d" if pooled else "panoptica"
        assert lpa3d.evaluate(first, second, iou_thresholds=0, surfaces=True, convention=convention)["assd"] == expected


def blobs(seed, shape=(14, 18, 20)):
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.random(shape), 2)
    return smooth > np.quantile(smooth, 0.7)


@pytest.mark.interpreted
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spacing", [(1, 1, 1), (40, 8, 7.5)])
def test_equals_medpy(seed, spacing):
    first, second = blobs(seed), blobs(seed + 10)
    ((hausdorff, hd95, assd),) = measure(first.astype(np.uint8), second.astype(np.uint8), [(1, 1)], spacing)
    *expected, pooled, of_directions = medpy(first, second, spacing)
    assert (hausdorff, hd95, assd) == pytest.approx((*expected, pooled), rel=1e-12)
    boxes = boxes_of(first, [1]), boxes_of(second, [1])
    found = surface_distances(
        first.astype(np.uint8), second.astype(np.uint8), np.array([[1, 1]]), *boxes, spacing, pooled=False
    )
    assert found[0, 2] == pytest.approx(of_directions, rel=1e-12)


@given(st.data(), spacings)
def test_identity_is_zero(data, spacing):
    volume = data.draw(hnp.arrays("uint8", shapes(), elements=st.integers(0, 3)))
    ids = [i for i in np.unique(volume) if i]
    assert not measure(volume, volume.copy(), [(i, i) for i in ids], spacing).any()


@given(volumes(), spacings)
def test_an_exchange_changes_nothing(arrays, spacing):
    reference, prediction, ignore = arrays
    known = np.ones(reference.shape, bool) if ignore is None else ~ignore
    if 1 in reference[known] and 1 in prediction[known]:
        there = measure(reference, prediction, [(1, 1)], spacing, ignore)
        np.testing.assert_array_equal(there, measure(prediction, reference, [(1, 1)], spacing, ignore))


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("by", [1, 3])
def test_a_shifted_box_is_as_far_as_the_shift(axis, by):
    spacing = (40, 8, 4)
    first, second = np.zeros((2, 14, 15, 16), np.uint8)
    at = [slice(2, 8), slice(3, 9), slice(1, 7)]
    first[tuple(at)] = 1
    at[axis] = slice(at[axis].start + by, at[axis].stop + by)
    second[tuple(at)] = 1
    ((hausdorff, hd95, assd),) = measure(first, second, [(1, 1)], spacing)
    assert hausdorff == by * spacing[axis]
    assert 0 < assd < hd95 <= hausdorff


def test_single_voxels_are_as_far_apart_as_they_are():
    first, second = np.zeros((2, 5, 9, 9), np.uint8)
    first[0, 0, 0] = second[2, 3, 8] = 1
    expected = math.sqrt((2 * 40) ** 2 + (3 * 8) ** 2 + (8 * 7.5) ** 2)
    assert measure(first, second, [(1, 1)], (40, 8, 7.5)).tolist() == [[expected] * 3]


def test_the_end_of_the_volume_is_a_surface():
    first = np.ones((7, 7, 7), np.uint8)
    second = np.zeros_like(first)
    second[3, 3, 3] = 1
    # From the corners, which are surface only if what lies outside is outside.
    assert measure(first, second, [(1, 1)])[0, 0] == pytest.approx(math.sqrt(27))


def test_the_border_of_an_ignored_region_is_a_surface():
    volume = np.ones((9, 9, 9), np.uint8)
    ignore = np.zeros(volume.shape, bool)
    ignore[4, 4, 4] = True
    lone = np.zeros_like(volume)
    lone[4, 4, 3] = 1
    with_hole = measure(volume, lone, [(1, 1)], ignore=ignore)
    cleared = np.where(ignore, 0, volume).astype(np.uint8)
    np.testing.assert_array_equal(with_hole, measure(cleared, lone, [(1, 1)]))
    assert with_hole[0, 2] < measure(volume, lone, [(1, 1)])[0, 2]


def test_one_slice_is_an_image():
    first, second = blobs(1)[3], blobs(2)[3]
    found = measure(first[None].astype(np.uint8), second[None].astype(np.uint8), [(1, 1)], (1000, 8, 5))
    assert found[0, :2] == pytest.approx(medpy(first, second, (8, 5))[:2], rel=1e-12)
    # One slice of an object in a volume has surfaces on both sides, so the middle of a square is near.
    square = np.zeros((1, 9, 9), np.uint8)
    square[0, 1:8, 1:8] = 1
    dot = np.zeros_like(square)
    dot[0, 4, 4] = 1
    thick = [np.concatenate([array, np.zeros_like(array)]) for array in (square, dot)]
    assert measure(square, dot, [(1, 1)])[0, 2] > measure(*thick, [(1, 1)])[0, 2]


@pytest.mark.parametrize("dtype", INTEGER_DTYPES)
def test_any_dtype(dtype):
    first, second = blobs(1).astype(dtype), blobs(2).astype(dtype)
    first, second = (a.view(np.uint8) if dtype == "bool" else a for a in (first, second))
    expected = measure(blobs(1).astype(np.uint8), blobs(2).astype(np.uint8), [(1, 1)])
    np.testing.assert_array_equal(measure(first, second, [(1, 1)]), expected)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_large_ids(dtype):
    masks = blobs(1), blobs(2)
    expected = measure(*(mask.astype(np.uint8) for mask in masks), [(1, 1)])
    # Objects in others whose ids float64 cannot tell apart.
    first, second = (np.where(mask, FAR, FAR - 1).astype(dtype) for mask in masks)
    np.testing.assert_array_equal(measure(first, second, [(FAR, FAR)]), expected)


def test_no_pairs():
    assert measure(np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3, 4), np.uint8), []).shape == (0, 3)


@pytest.mark.parametrize(("small", "large"), [(0, 10**9), (0, 1), (10**9, 10**9)])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_neither_threads_nor_sizes_matter(monkeypatch, small, large, threads):
    spacing = (40, 8, 7.5)
    random = np.random.default_rng(0)
    reference = np.kron(random.integers(0, 6, (2, 4, 4)), np.ones((4, 4, 4), np.int64))
    prediction = np.roll(reference, 1, axis=1)
    pairs = [(a, b) for a in range(1, 6) for b in range(1, 6)]
    expected = measure(reference, prediction, pairs, spacing)
    monkeypatch.setattr(_surfaces, "SMALL_BOX", small)
    monkeypatch.setattr(_surfaces, "LARGE_BOX", large)
    monkeypatch.setenv("LPA3D_NUM_THREADS", threads)
    np.testing.assert_array_equal(measure(reference, prediction, pairs, spacing), expected)


def test_a_winding_surface_is_longer_than_the_faces_of_its_box():
    comb = np.zeros((9, 20, 20), np.uint8)
    comb[:, ::2] = comb[4] = 1
    other = np.roll(comb, 1, axis=2)
    other[:, :, 0] = 0
    found = measure(comb, other, [(1, 1)], (2, 1, 3))
    assert found[0, :2] == pytest.approx(medpy(comb > 0, other > 0, (2, 1, 3))[:2], rel=1e-12)


def test_real_vesicles_against_medpy(data_dir):
    nibabel = pytest.importorskip("nibabel")
    path = data_dir / "urocell" / "fv" / "instance" / "fib1-0-0-0.nii.gz"
    volume = np.ascontiguousarray(np.asarray(nibabel.load(path).dataobj).T[:64]).astype(np.uint32)
    moved = np.roll(volume, (1, 2), axis=(0, 2))
    ids = [i for i in np.unique(volume)[1:] if i in moved][:6]
    found = measure(volume, moved, [(i, i) for i in ids], (15, 16, 16))
    for row, i in zip(found, ids, strict=True):
        places = np.argwhere((volume == i) | (moved == i))
        window = tuple(slice(low, high + 1) for low, high in zip(places.min(0), places.max(0), strict=True))
        expected = medpy(volume[window] == i, moved[window] == i, (15, 16, 16))
        assert row[:2] == pytest.approx(expected[:2], rel=1e-12)
