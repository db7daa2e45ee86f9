"""`label` against a plain flood fill, scipy, scikit-image and cc3d, and what other verbs use of its components."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import cc3d
import nibabel
import numpy as np
import pytest
import scipy.ndimage
import skimage.measure
import zarr
from hypothesis import given
from hypothesis import strategies as st

import lpa3d
from lpa3d.arrays import components
from lpa3d.arrays.components import find_components
from lpa3d.errors import InputError, InputTypeError
from lpa3d.kernels.unionfind import rank_sets, unite_sets
from tests import naive
from tests.strategies import CONNECTIVITIES, INTEGER_DTYPES, class_volumes, connectivities, laid_out

RANK = {6: 1, 18: 2, 26: 3}


@contextmanager
def slabs(threads):
    """Cut even a tiny volume into slabs, for as many threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "SLAB_VOXELS", 1)
        patch.setenv("LPA3D_NUM_THREADS", str(threads))
        yield


def in_raster_order(labels):
    """Return `labels` with each positive number replaced by the rank of its first voxel."""
    ids, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(first[ids > 0])
    numbers = np.zeros(len(ids), dtype=np.uint32)
    numbers[np.flatnonzero(ids > 0)[order]] = np.arange(1, len(order) + 1)
    return numbers[inverse].reshape(labels.shape)


def serpentine(side):
    """Return one corridor, one voxel wide, that fills a cube: along x, back and forth in y, back and forth in z."""
    volume = np.zeros((side, side, side), dtype=bool)
    volume[::2, ::2, :] = True
    for k, y in enumerate(range(1, side - 1, 2)):
        volume[::2, y, -1 if k % 2 == 0 else 0] = True
    rows = len(range(0, side, 2))
    last = (rows - 1) * 2, -1 if (rows - 1) % 2 == 0 else 0
    for k, z in enumerate(range(1, side - 1, 2)):
        volume[z, *((last) if k % 2 == 0 else (0, 0))] = True
    return volume


@pytest.mark.interpreted
@given(class_volumes(wide=True), connectivities, st.sampled_from([1, 2, 4]))
def test_equals_a_flood_fill(volume, connectivity, threads):
    with slabs(threads):
        labels = lpa3d.label(volume, connectivity=connectivity)
    assert labels.dtype == np.uint32
    np.testing.assert_array_equal(labels, naive.label(volume, connectivity))


@pytest.mark.interpreted
@given(class_volumes(wide=True, max_classes=1, dtype="bool"), connectivities)
def test_equals_scipy_on_binary_volumes(volume, connectivity):
    structure = scipy.ndimage.generate_binary_structure(3, RANK[connectivity])
    with slabs(2):
        labels = lpa3d.label(volume, connectivity=connectivity)
    np.testing.assert_array_equal(labels, scipy.ndimage.label(volume, structure)[0])


@pytest.mark.interpreted
@given(class_volumes(wide=True), connectivities)
def test_equals_cc3d_and_skimage_but_for_the_numbers(volume, connectivity):
    with slabs(2):
        labels = lpa3d.label(volume, connectivity=connectivity)
    theirs = cc3d.connected_components(volume, connectivity=connectivity)
    np.testing.assert_array_equal(labels, in_raster_order(theirs))
    theirs = skimage.measure.label(volume, background=0, connectivity=RANK[connectivity])
    np.testing.assert_array_equal(labels, in_raster_order(theirs))


@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
@pytest.mark.parametrize("density", [0.08, 0.3, 0.7])
def test_larger_noise_for_any_number_of_threads(connectivity, density, monkeypatch):
    """Rows of two words and a bit, some at the very end of the array; more runs than the scan makes room for."""
    monkeypatch.setattr(components, "SLAB_VOXELS", 1000)
    random = np.random.default_rng(3)
    volume = (random.random((40, 33, 131)) < density) * random.integers(1, 3, (40, 33, 131), dtype=np.uint16)
    results = []
    for threads in (1, 2, 4):
        monkeypatch.setenv("LPA3D_NUM_THREADS", str(threads))
        results.append(lpa3d.label(volume, connectivity=connectivity))
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])
    theirs = cc3d.connected_components(volume, connectivity=connectivity)
    np.testing.assert_array_equal(results[0], in_raster_order(theirs))


@given(st.sampled_from(INTEGER_DTYPES), st.data())
def test_layouts_and_dtypes(dtype, data):
    array, other = data.draw(laid_out(class_volumes(min_side=0, max_classes=1 if dtype == "bool" else 3, dtype=dtype)))
    before = other.copy()
    np.testing.assert_array_equal(lpa3d.label(other), naive.label(array))
    np.testing.assert_array_equal(other, before)


@pytest.mark.parametrize("dtype", INTEGER_DTYPES[1:])
def test_extreme_values_are_classes(dtype):
    lowest, highest = np.iinfo(dtype).min, np.iinfo(dtype).max
    # Two neighbours of which a float64 would make one class.
    row = [highest, highest - 1, highest - 1, 0, lowest, lowest, highest, 1, 0, 1]
    expected = [1, 2, 2, 0, 3, 3, 4, 5, 0, 6] if lowest else [1, 2, 2, 0, 0, 0, 3, 4, 0, 5]
    labels = lpa3d.label(np.array([[row]], dtype=dtype))
    assert labels[0, 0].tolist() == expected


@given(class_volumes(wide=True), connectivities, st.integers(0, 2))
def test_size_one_axes_and_2d(volume, connectivity, axis):
    flat = np.ascontiguousarray(volume.take([0], axis))
    with slabs(2):
        np.testing.assert_array_equal(lpa3d.label(flat, connectivity=connectivity), naive.label(flat, connectivity))
        plane = flat.squeeze(axis)
        labels = lpa3d.label(plane, connectivity=connectivity)
    np.testing.assert_array_equal(labels, naive.label(plane[np.newaxis], connectivity)[0])


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (0, 0, 0), (3, 0, 4), (0, 3, 4), (3, 4, 0), (1, 1, 1), (1, 1)])
def test_empty_and_single(shape):
    labels = lpa3d.label(np.ones(shape, dtype=bool))
    assert labels.shape == shape
    assert labels.dtype == np.uint32
    assert (labels == 1).all()


@pytest.mark.parametrize("value", [0, 7])
def test_one_value_everywhere(value):
    labels = lpa3d.label(np.full((5, 6, 70), value, dtype=np.int32))
    assert (labels == (value > 0)).all()


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_serpentine(axes):
    """A corridor as long as a quarter of the cube: no recursion, no quadratic time."""
    volume = serpentine(256).transpose(axes)
    labels = lpa3d.label(volume)
    np.testing.assert_array_equal(labels, volume)
    volume = volume.copy()
    volume[tuple(np.argwhere(volume)[volume.sum() // 2])] = False
    assert lpa3d.label(volume).max() == 2


@given(class_volumes(wide=True), connectivities, st.integers(0, 2**32 - 1))
def test_out(volume, connectivity, old):
    out = np.full(volume.shape, old, dtype=np.uint32)
    with slabs(2):
        assert lpa3d.label(volume, connectivity=connectivity, out=out) is out
    np.testing.assert_array_equal(out, naive.label(volume, connectivity))


def test_out_in_2d():
    volume = np.array([[1, 1, 0], [0, 0, 2]])
    out = np.ones((2, 3), dtype=np.uint32)
    assert lpa3d.label(volume, out=out) is out
    assert out.tolist() == [[1, 1, 0], [0, 0, 2]]


@given(class_volumes(wide=True), connectivities)
def test_volumes_too_large_for_32_bits(volume, connectivity):
    with slabs(2), pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "WIDE", 1)
        labels = lpa3d.label(volume, connectivity=connectivity)
    assert labels.dtype == np.uint64
    np.testing.assert_array_equal(labels, naive.label(volume, connectivity))


def test_called_from_several_threads():
    volume = (np.random.default_rng(5).random((40, 64, 64)) < 0.3).astype(np.uint8)
    expected = lpa3d.label(volume)
    with ThreadPoolExecutor(4) as pool, slabs(2):
        for labels in pool.map(lpa3d.label, [volume] * 8):
            np.testing.assert_array_equal(labels, expected)


VOLUME = np.zeros((3, 4, 5), dtype=np.uint8)


@pytest.mark.parametrize(
    ("volume", "keywords", "error", "message"),
    [
        (VOLUME.astype(np.float32), {}, InputTypeError, r"volume has dtype float32.*volume > 0.5"),
        (VOLUME.astype(complex), {}, InputTypeError, "volume has dtype complex128"),
        (VOLUME.astype(object), {}, InputTypeError, "volume has dtype object"),
        (VOLUME.tolist(), {}, InputTypeError, r"numpy.asarray\(volume\)"),
        (np.ma.masked_equal(VOLUME, 1), {}, InputTypeError, "masked array"),
        (VOLUME[0, 0], {}, InputError, r"1 dimensions, shape \(5,\)"),
        (VOLUME[np.newaxis], {}, InputError, r"4 dimensions, shape \(1, 3, 4, 5\)"),
        (VOLUME, {"connectivity": 8}, InputError, "connectivity is 8; 6, 18 or 26"),
        (VOLUME, {"connectivity": "6"}, InputError, "connectivity is '6'"),
        (VOLUME, {"out": VOLUME.tolist()}, InputTypeError, r"out=numpy.empty\(\(3, 4, 5\), 'uint32'\)"),
        (VOLUME, {"out": np.zeros((3, 4, 5), np.int32)}, InputError, "dtype int32"),
        (VOLUME, {"out": np.zeros((3, 5, 4), np.uint32)}, InputError, r"shape \(3, 5, 4\)"),
        (VOLUME, {"out": np.zeros((3, 4, 5), np.uint32, order="F")}, InputError, "C-contiguous"),
    ],
)
def test_bad_input(volume, keywords, error, message):
    with pytest.raises(error, match=message):
        lpa3d.label(volume, **keywords)


def test_out_that_is_the_input():
    volume = np.ones((3, 4, 5), dtype=np.uint32)
    with pytest.raises(InputError, match="shares memory"):
        lpa3d.label(volume, out=volume)


@given(st.data())
def test_connectivity_names(data):
    volume = data.draw(class_volumes())
    for name, connectivity in ((1, 6), (2, 18), (3, 26)):
        np.testing.assert_array_equal(
            lpa3d.label(volume, connectivity=name), lpa3d.label(volume, connectivity=connectivity)
        )


@given(class_volumes(min_side=0, wide=True, dtype="uint32"), connectivities, st.data())
def test_components_hold_seeds_and_are_cleared(labels, connectivity, data):
    """What is left are the components with a voxel whose seed is their own label, not just any."""
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    seeds = np.where(random.random(labels.shape) < 0.1, random.integers(0, 4, labels.shape), 0).astype(np.uint32)
    numbers = naive.label(labels, connectivity)
    expected = [bool((seeds == labels)[numbers == n].any()) for n in range(1, int(numbers.max(initial=0)) + 1)]
    with slabs(2):
        components = find_components(labels, connectivity)
        held = components.hold_seed(labels, seeds)
        kept = labels.copy()
        components.clear(kept, held)
    assert components.count == len(expected)
    assert held.tolist() == expected
    np.testing.assert_array_equal(kept, np.where(np.array([False, *expected])[numbers], labels, 0))


@given(st.integers(1, 40), st.data())
def test_unions_in_any_order(size, data):
    """Sets are numbered by their smallest element, whatever the order of the unions."""
    pairs = data.draw(st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)), max_size=60))
    sets = {i: {i} for i in range(size)}
    parents = np.arange(size, dtype=np.uint32)
    for a, b in pairs:
        unite_sets(parents, a, b)
        sets[a] |= sets[b]
        for i in sets[a]:
            sets[i] = sets[a]
    roots = sorted({min(group) for group in sets.values()})
    assert rank_sets(parents, size, 5) == len(roots)
    assert parents.tolist() == [5 + roots.index(min(sets[i])) for i in range(size)]


@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
def test_real_data(data_dir, connectivity):
    binary = np.asarray(nibabel.load(data_dir / "urocell" / "fv" / "binary" / "fib1-0-0-0.nii.gz").dataobj).T[:96] > 0
    dense = np.asarray(zarr.open(data_dir / "connectomics.zarr", mode="r")[100:180, 128:256, 128:256])
    for volume in (binary, dense):
        theirs = cc3d.connected_components(volume, connectivity=connectivity)
        np.testing.assert_array_equal(lpa3d.label(volume, connectivity=connectivity), in_raster_order(theirs))
