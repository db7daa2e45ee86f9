"""Which labels touch, counted on a device, and `contacts` and `merge`, against the Numba kernels: byte for byte."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lpa3d
from lpa3d.arrays.backend import on_device
from lpa3d.arrays.checks import as_bits
from lpa3d.arrays.neighbors import neighbor_offsets
from lpa3d.cuda import contacts as cuda
from lpa3d.errors import InputError, InputTypeError
from lpa3d.linking.contacts import add_counts, count_box, count_pairs
from tests import emulator as cuda_emulator
from tests.strategies import connectivities

FAR_IDS = [2**32, 2**32 + 1, 2**33, 2**53, 2**53 + 1, 2**63 - 1]
"""Ids that differ in one half only, or that a float64 does not hold."""

DTYPES = (("uint8", None), ("int64", None), ("uint32", "float32"), ("uint16", "int64"), ("int64", "float64"))
"""Dtypes of labels and image."""


def assert_same(counts, expected):
    for name in ("pairs", "values"):
        column, other = getattr(counts, name), getattr(expected, name)
        assert column.dtype == other.dtype
        np.testing.assert_array_equal(column, other, err_msg=name)


def check(device, labels, image, connectivity):
    """Compare both back ends."""
    on = [None if array is None else device.bring(array) for array in (labels, image)]
    assert_same(count_pairs(*on, connectivity), count_pairs(labels, image, connectivity))


def check_capacity(device, labels, image, connectivity, capacity):
    """Compare both back ends, with a first table of few rows on the device."""
    offsets = neighbor_offsets(connectivity)
    forward = offsets[len(offsets) // 2 :]
    box = np.array([(0, 0, 0), labels.shape])
    on = device.bring(as_bits(labels)), device.bring(image)
    rows = cuda.count_contacts(device, *on, 1.0, forward, box, capacity)
    rows = rows[np.lexsort(rows.T[1::-1])]
    expected = count_pairs(labels, image, connectivity)
    np.testing.assert_array_equal(rows[:, :2], expected.pairs)
    np.testing.assert_array_equal(rows[:, 2:], expected.values)


def draw_image(random, dtype, shape):
    """Return an image of large and small values of either sign, and of such as lie between two units of the sums."""
    if dtype is None:
        return None
    if np.dtype(dtype).kind == "f":
        return (random.normal(size=shape) * random.choice([2.0**28, 1, 2.0**-33], shape)).astype(dtype)
    return random.choice([0, 1, -1, 2**53 - 1, 1 - 2**53, 12345], shape).astype(dtype)


@st.composite
def volumes(draw):
    """Draw labels, of few voxels each or of many, and an image."""
    dtype, image_dtype = draw(st.sampled_from(DTYPES))
    shape = draw(
        st.tuples(st.integers(1, 19), st.integers(1, 5), st.integers(1, 5))
        | st.tuples(st.integers(1, 2), st.integers(1, 10), st.integers(25, 70))
    )
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = draw(st.sampled_from([2, 4, 60]))
    known = np.arange(kinds)
    if np.dtype(dtype).itemsize == 8 and draw(st.booleans()):
        known = np.array([0, 1, *FAR_IDS])
    size = draw(st.integers(1, 4))
    coarse = random.choice(known, [-(-side // size) for side in shape])
    labels = np.kron(coarse, np.ones((size,) * 3, np.int64))[tuple(map(slice, shape))].astype(dtype)
    return np.ascontiguousarray(labels), draw_image(random, image_dtype, shape)


@given(arrays=volumes(), connectivity=connectivities)
def test_the_answer_is_that_of_the_numba_kernels(device, arrays, connectivity):
    check(device, *arrays, connectivity)


@cuda_emulator.any_order
@given(arrays=volumes(), connectivity=connectivities, data=st.data())
def test_boxes_of_arrays_in_memory_are_counted_on_a_device_in_use(device, arrays, connectivity, data):
    """Any box, and some of the forward offsets, as for the seams of tiles."""
    labels, image = arrays
    forward = neighbor_offsets(connectivity)
    forward = forward[len(forward) // 2 :]
    ends = [sorted(data.draw(st.tuples(*[st.integers(0, side)] * 2))) for side in labels.shape]
    box = np.array(ends).T.copy()
    axis = data.draw(st.integers(0, 2))
    offsets = forward[forward[:, axis] == data.draw(st.sampled_from([1, 0]))]
    tables = []
    for used in (None, device):
        with on_device(used):
            tables.append((add_counts([count_box(labels, image, offsets, box)]), count_pairs(*arrays, connectivity)))
    for table, expected in zip(*tables, strict=True):
        assert_same(table, expected)


@cuda_emulator.any_order
@pytest.mark.each_other
@pytest.mark.parametrize("dtype", ["i4", "bool", "u2", "i1", "f2", "f4", "u8", "f8"])
def test_any_image(device, dtype):
    random = np.random.default_rng(1)
    labels = random.integers(0, 4, (3, 4, 40))
    image = random.integers(-3 if np.dtype(dtype).kind in "if" else 0, 2, labels.shape).astype(dtype)
    table = lpa3d.contacts(device.bring(labels), image=device.bring(image), connectivity=26, spacing=(3, 2, 1))
    expected = lpa3d.contacts(labels, image=image, connectivity=26, spacing=(3, 2, 1))
    for name, column in expected.columns().items():
        np.testing.assert_array_equal(table.columns()[name], column)


@cuda_emulator.any_order
@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 0, 3), (3, 3, 0), (1, 1, 1), (1, 1, 70), (70, 1, 1), (2, 3)])
def test_shapes(device, shape):
    labels = (np.arange(np.prod(shape)) // 2 % 5).reshape(shape).astype(np.uint16)
    table = lpa3d.contacts(device.bring(labels), image=device.bring(labels), connectivity=26)
    assert repr(table) == repr(lpa3d.contacts(labels, image=labels, connectivity=26))


def crowd():
    """Return noise: a block has more pairs than its table, and meets each from all sides."""
    random = np.random.default_rng(2)
    return random.integers(0, 30, (18, 9, 34)).astype(np.uint32), random.integers(1 - 2**53, 2**53, (18, 9, 34))


def corners():
    """Return single voxels and all forward neighbours of each, some of them across the borders of blocks."""
    labels = np.zeros((19, 10, 35), np.uint32)
    for k, (z, y, x) in enumerate([(1, 1, 1), (15, 3, 4), (3, 7, 4), (4, 3, 31), (15, 7, 4), (15, 7, 31)]):
        for d, (dz, dy, dx) in enumerate(neighbor_offsets(26)[13:]):
            labels[z, y, x] = 100 * k + 50
            labels[z + dz, y + dy, x + dx] = 100 * k + d + 1
    return labels, np.arange(labels.size).reshape(labels.shape) * (2**40 + 1) - 2**52


def wide_sums():
    """Return an image whose sums need more than 64 bits in any order."""
    labels = np.tile(np.array([[1], [2]], np.uint32), (1, 20, 35))
    return labels, np.full(labels.shape, 1 - 2**53)


def check_all(device):
    """Compare both back ends on what the planted errors below are found by."""
    for volume_of in (corners, wide_sums, crowd):
        check(device, *volume_of(), 26)
    check_capacity(device, *corners(), 26, 2)


def test_borders_crowds_and_sums(device):
    check_all(device)


@pytest.mark.each_other
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("pairs.cuh", "if (second == empty || second == b) return row;", "return row;"),
        (
            "pairs.cuh",
            "if (first == empty) first = atomicCAS(ids, empty, a);",
            "if (first == empty && (first = atomicCAS(ids, empty, a)) == empty) { ids[1] = b; return row; }",
        ),
        ("contacts.cu", "y + dy < 0 ||", ""),
        ("contacts.cu", "x + dx >= n_x", "x + dx > n_x"),
        ("contacts.cu", "if (a == 0 && steps > 1) continue;", ""),
        ("contacts.cu", "min(z_lo + TILE_Z, box[3])", "min(z_lo + TILE_Z - 1, box[3])"),
        ("contacts.cu", "steps > 1 ? steps + 1", "steps > 1 ? 3"),
        ("contacts.cu", "(i64)rint((double)image[j] * scale)", "(i64)rint((double)image[i] * scale)"),
        ("contacts.cu", "if (high) atomicAdd(limbs, high);", "if (high > 0 && !(high >> 63)) atomicAdd(limbs, high);"),
        ("contacts.cu", "*(volatile u32*)flags;\n    __syncthreads();", "*(volatile u32*)flags;"),
        ("contacts.cu", "__syncthreads();\n\n    for (int slot", "for (int slot"),
    ],
)
def test_planted_errors_are_found(emulator, file, old, new):
    cuda_emulator.expect_caught(emulator, file, old, new, check_all)


@cuda_emulator.any_order
def test_bad_images_are_refused(device):
    labels = device.bring(np.ones((2, 3, 4), np.int32))
    for values, message in ((np.nan, "NaN"), (2.0**30, "1073741824")):
        with pytest.raises(InputError, match=message):
            lpa3d.contacts(labels, image=device.bring(np.full((2, 3, 4), values)))
    with pytest.raises(InputTypeError, match="asnumpy"):
        lpa3d.contacts(labels, image=np.ones((2, 3, 4)))


def fragments():
    """Return labels cut into pieces, and the class of each voxel."""
    random = np.random.default_rng(3)
    labels = np.kron(np.arange(1, 25).reshape(2, 3, 4), np.ones((3, 3, 9), np.int64))
    labels[random.random(labels.shape) < 0.05] = 30
    labels[0, 0, 0] = 0
    return labels, labels % 2 + 1


@cuda_emulator.any_order
@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_merge(device, dtype):
    labels, classes = fragments()
    labels = labels.astype(dtype)
    on = device.bring(labels)
    table = lpa3d.contacts(labels, image=labels / 100)
    for arguments in (
        {"min_contact": 0.2},
        {"min_contact": 0.1, "classes": classes},
        {"min_contact": 0.1, "classes": {i: i % 3 for i in range(31)}, "connectivity": 26},
        {"scores": (table, table.mean), "min_contact": 0.1, "cannot_link": [(1, 2)], "must_link": [(3, 24)]},
    ):
        expected = lpa3d.merge(labels, **arguments)
        if isinstance(arguments.get("classes"), np.ndarray):
            arguments["classes"] = device.bring(arguments["classes"])
        out = device.xp.empty(labels.shape, labels.dtype)
        for target in (None, out):
            result = lpa3d.merge(on, **arguments, out=target)
            assert device.holds(result)
            assert result.dtype == labels.dtype
            np.testing.assert_array_equal(device.fetch(result), expected)
        assert result is out
    np.testing.assert_array_equal(device.fetch(on), labels)


@cuda_emulator.any_order
@pytest.mark.parametrize("labels", [np.full((2, 3, 4), 7), np.zeros((2, 0, 3), np.int64), np.array([[1, 1, 2]])])
def test_merge_of_labels_without_contacts(device, labels):
    np.testing.assert_array_equal(device.fetch(lpa3d.merge(device.bring(labels))), lpa3d.merge(labels))
