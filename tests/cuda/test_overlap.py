"""The table of overlaps on a device, and `evaluate`, against the Numba kernels: the same numbers, byte for byte."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lpa3d
from lpa3d.arrays.backend import on_device
from lpa3d.arrays.checks import as_bits
from lpa3d.arrays.overlap import add_overlaps, count_overlaps, count_rows
from lpa3d.cuda import overlap as cuda
from lpa3d.errors import InputError, InputTypeError
from tests import emulator as cuda_emulator

FAR_IDS = [2**32, 2**32 + 1, 2**33, 2**53, 2**53 + 1, 2**63 - 1]
"""Ids that differ in one half only, or that a float64 does not hold."""

DTYPES = (("uint8", "uint8"), ("int16", "uint32"), ("uint32", "uint32"), ("int64", "uint16"), ("uint64", "int64"))
NOTHING = np.empty(0, np.uint8)


def assert_same(table, expected):
    for name in ("pairs", "voxels", "boxes"):
        column, other = getattr(table, name), getattr(expected, name)
        assert column.dtype == other.dtype
        np.testing.assert_array_equal(column, other, err_msg=name)


def check(device, reference, prediction, ignore=None):
    """Compare both back ends."""
    arrays = [None if array is None else device.bring(array) for array in (reference, prediction, ignore)]
    assert_same(count_overlaps(*arrays), count_overlaps(reference, prediction, ignore))


def sort_rows(rows):
    return rows[np.lexsort(rows.T[::-1])]


def check_capacity(device, reference, prediction, capacity):
    """Compare both back ends, with a first table of few rows on the device."""
    parts = [device.bring(as_bits(array)).reshape(-1) for array in (reference, prediction)]
    rows = cuda.count_overlaps(device, *parts, device.bring(NOTHING), reference.shape, 0, capacity)
    expected = count_overlaps(reference, prediction)
    columns = (expected.pairs, expected.voxels[:, None], expected.boxes.reshape(-1, 6))
    np.testing.assert_array_equal(sort_rows(rows), sort_rows(np.concatenate(columns, axis=1)))


shapes = (
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 140))
    | st.tuples(st.integers(1, 5), st.integers(1, 70), st.integers(1, 9))
    | st.tuples(st.just(1), st.integers(1, 3), st.integers(1000, 2100))
)
"""Shapes of rows of less and more than a warp and a tile, and of several slices in a tile."""


@st.composite
def ids(draw, shape, dtype):
    """Draw ids that stay the same for some voxels, few of them or all different."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = draw(st.sampled_from([1, 2, 4, 60]))
    known = np.arange(kinds)
    if np.dtype(dtype).itemsize == 8 and draw(st.booleans()):
        known = np.array([0, 1, *FAR_IDS])
    size = int(np.prod(shape))
    runs = random.choice(known, size)
    lengths = random.integers(1, draw(st.sampled_from([2, 8, 100])), size)
    return np.repeat(runs, lengths)[:size].reshape(shape).astype(dtype)


@st.composite
def volumes(draw):
    """Draw reference, prediction and what is ignored."""
    shape = draw(shapes)
    reference, prediction = (draw(ids(shape, dtype)) for dtype in draw(st.sampled_from(DTYPES)))
    ignore = draw(st.none() | ids(shape, "uint8"))
    return reference, prediction, None if ignore is None else ignore == 1


@given(arrays=volumes())
def test_the_answer_is_that_of_the_numba_kernels(device, arrays):
    check(device, *arrays)


@cuda_emulator.any_order
@given(arrays=volumes(), data=st.data())
def test_arrays_in_memory_are_counted_on_a_device_in_use(device, arrays, data):
    """Whole volumes, and a part that begins and ends within a slice."""
    shape = (arrays[0].shape[0] + 2, *arrays[0].shape[1:])
    first = data.draw(st.integers(0, 2 * shape[1]))
    rows = data.draw(st.integers(1, (shape[0] - 2) * shape[1]))
    parts = [None if array is None else array.reshape(-1)[: rows * shape[2]] for array in arrays]
    tables = []
    for used in (None, device):
        with on_device(used):
            tables.append((count_overlaps(*arrays), add_overlaps([count_rows(*parts, shape, first)])))
    for table, expected in zip(*tables, strict=True):
        assert_same(table, expected)


@given(arrays=volumes(), capacity=st.sampled_from([1, 2, 8]))
def test_a_table_that_is_too_small_grows(device, arrays, capacity):
    check_capacity(device, *arrays[:2], capacity)


def mix(a, b):
    """Return the hash of a pair."""
    bits = 2**64 - 1
    mixed = a * 0x9E3779B97F4A7C15 & bits
    mixed = (mixed ^ (mixed >> 32)) + b * 0xC2B2AE3D27D4EB4F & bits
    mixed = (mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B9 & bits
    return mixed ^ (mixed >> 32)


def as_sides(reference, prediction):
    """Return volumes of the dtypes that the planted errors below are built for, too."""
    return reference.astype(np.uint32), prediction.astype(np.int64)


@functools.cache
def colliding(count, rows):
    """Return volumes of `count` pairs that belong in the same one of the `rows` of a table, half of them of one id."""
    first = [(1, b) for b in range(1, 400_000) if mix(1, b) % rows == 0][: count // 2]
    others = ((a, a) for a in range(2, 800_000) if mix(a, a) % rows == 0)
    pairs = np.array(first + [next(others) for _ in range(count - len(first))])
    pairs = np.concatenate([pairs, pairs[::-1], pairs])
    return as_sides(*(np.ascontiguousarray(pairs[:, side].reshape(1, -1, count)) for side in range(2)))


@functools.cache
def crowd():
    """Return noise: every voxel is a run, and a tile has more pairs than its table."""
    random = np.random.default_rng(1)
    return as_sides(*(random.integers(0, 40, (1, 9, 700)) for _ in range(2)))


@functools.cache
def bricks():
    """Return runs that end where rows, warps, rounds and tiles do; where a row ends the next may go on."""
    reference = np.zeros((2, 37, 1100))
    reference[:, :, 32:64] = 1
    reference[1:, 5:, 128:1024] = 2
    reference[:, ::2, 1024:] = 3
    prediction = np.ones(reference.shape)
    prediction[1, :, 500:] = 2
    prediction[:, 30:, :1] = 7
    return as_sides(reference, prediction)


@functools.cache
def slices():
    """Return volumes with several slices in a tile: boxes in y come from rows of which some lie in the next slice."""
    reference = np.zeros((9, 5, 3))
    reference[1:4, 3] = 1
    reference[2, 0, 1] = 1
    reference[4:6, 1:4] = 2
    return as_sides(reference, np.ones_like(reference))


@functools.cache
def threads_that_meet():
    """Return volumes whose warps enter pairs of the same reference id at the same time."""
    prediction = np.arange(64)[:, None, None] // 2 % 8 + np.arange(8)[None, :, None]
    return as_sides(np.full((64, 8, 2), 5), np.broadcast_to(prediction, (64, 8, 2)))


@functools.cache
def lowest_class():
    """Return a class map that holds what stands for no id, and another class whose pair belongs in the same row."""
    other = next(b for b in range(2**63 - 1, 0, -1) if (mix(1, b) - mix(1, 2**63)) % 1024 == 0)
    return as_sides(
        np.ones((1, 2, 300)), np.array([-(2**63), other, 1 - 2**63])[np.arange(600) // 3 % 3].reshape(1, 2, 300)
    )


def check_all(device):
    """Compare both back ends on what the planted errors below are found by."""
    for volumes_of in (bricks, slices, crowd, lowest_class, threads_that_meet):
        check(device, *volumes_of())
    check(device, *colliding(40, 1024))
    check_capacity(device, *colliding(150, 512), 512)
    check_capacity(device, *threads_that_meet(), 1)


def test_borders_collisions_and_crowds(device):
    check_all(device)


@pytest.mark.parametrize("value", [0, 1, 2**63 - 1])
def test_one_pair_everywhere(device, value):
    reference = np.full((2, 70, 40), value, np.int64)
    check(device, reference, reference)
    check(device, reference, reference, np.ones(reference.shape, np.bool_))


@cuda_emulator.any_order
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 1, 2049), (2000, 1, 1), (1, 2000, 1), (0, 3, 4), (3, 0, 4), (3, 4, 0)]
)
def test_shapes(device, shape):
    reference = (np.arange(np.prod(shape)) // 3 % 5).reshape(shape).astype(np.int32)
    check(device, reference, reference // 2)


@pytest.mark.each_other
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        # A thread that does not see that the row was taken by another one half way.
        ("pairs.cuh", "if (second == empty || second == b) return row;", "return row;"),
        (
            "pairs.cuh",
            "if (first == empty) first = atomicCAS(ids, empty, a);",
            "if (first == empty && (first = atomicCAS(ids, empty, a)) == empty) { ids[1] = b; return row; }",
        ),
        # One that gives up, or takes what it found for its own.
        ("pairs.cuh", "if (first == empty || first == a) {", "{"),
        ("pairs.cuh", "if (second == empty) second = atomicCAS(ids + 1, empty, b);", ""),
        # A table that is too small, or an id that stands for none, and nobody says so.
        ("overlap.cu", "atomicOr(flags, FULL);", ";"),
        ("overlap.cu", "if (a == empty || b == empty) {", "if (a == empty) {"),
        # Rows: joined with the next one, cut at the end of a round, cut off at the end of a tile.
        ("overlap.cu", "LANES + lane, length - 1);", "LANES + lane, length);"),
        ("overlap.cu", "i64 start = (row_lo + row) * width + x_lo;", "i64 start = (row_lo + row) * width;"),
        ("overlap.cu", "last_a = rolled_a;", ""),
        ("overlap.cu", "if (begin_word) begin =", "begin ="),
        ("overlap.cu", "if (lane == 0) add_run(last_a, last_b, begin, length);", ""),
        ("overlap.cu", "(1u << lane) - 1)", "(2u << lane) - 1)"),
        # Boxes.
        ("overlap.cu", "if (z_lo < z_hi) {", "if (false) {"),
        ("overlap.cu", "y + 1 == height ? 0 : y + 1", "y + 1"),
        ("overlap.cu", "- __clz((int)rows);", "- __clz((int)rows) - 1;"),
        # Barriers.
        ("overlap.cu", "*(volatile u32*)flags;\n    __syncthreads();", "*(volatile u32*)flags;"),
        ("overlap.cu", "__syncthreads();\n\n    for (int slot", "for (int slot"),
    ],
)
def test_planted_errors_are_found(emulator, file, old, new):
    cuda_emulator.expect_caught(emulator, file, old, new, check_all)


def bring_all(device, value):
    """Return an argument with its arrays on the device."""
    if isinstance(value, tuple):
        return tuple(bring_all(device, part) for part in value)
    return device.bring(value) if isinstance(value, np.ndarray) else value


def segmentations():
    """Return two segmentations, and their class map."""
    random = np.random.default_rng(0)
    instances = np.kron(np.arange(1, 28).reshape(3, 3, 3), np.ones((3, 4, 5), np.int64))
    prediction = instances.copy()
    prediction[:, :2] = np.where(instances[:, :2] > 9, 40, prediction[:, :2])
    instances[random.random(instances.shape) < 0.1] = 0
    return instances, prediction, (instances % 3 + 1) * (instances > 0)


@cuda_emulator.any_order
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"iou_thresholds": (0.3, 0.7), "connectivity": 18, "size_strata": (20, 50)},
        {"ignore": 5},
        {"ignore": -1},
        {"ignore": np.random.default_rng(1).random((9, 12, 15)) < 0.2},
        {"instances": None, "ignore": np.random.default_rng(1).integers(0, 2, (9, 12, 15))},
        {"instances": "components"},
        {"instances": "components", "connectivity": 26, "ignore": 2},
    ],
)
def test_evaluate(device, arguments):
    instances, prediction, classes = segmentations()
    sides = [instances, prediction]
    if "instances" in arguments:
        sides = [classes.astype(np.uint8), (prediction % 4).astype(np.uint8)]
    expected = lpa3d.evaluate(*sides, **arguments)
    on = {key: bring_all(device, value) for key, value in arguments.items()}
    found = lpa3d.evaluate(*map(device.bring, sides), **on)
    assert found.to_dict() == expected.to_dict()
    for table in ("pairs", "splits", "merges", "missed", "spurious"):
        assert repr(getattr(found, table)) == repr(getattr(expected, table))


@cuda_emulator.any_order
def test_evaluate_with_classes(device):
    instances, prediction, classes = segmentations()
    one_class = instances * 0 + 1
    several = {i: "abc"[i % 3] for i in range(1, 41)}
    for pair in ((classes, one_class.astype(np.int16)), (several, one_class), (several, several)):
        expected = lpa3d.evaluate(instances, prediction, classes=pair)
        found = lpa3d.evaluate(device.bring(instances), device.bring(prediction), classes=bring_all(device, pair))
        assert found.to_dict() == expected.to_dict()
    mixed = np.indices(instances.shape).sum(axis=0) % 2 + 1
    on = [device.bring(array) for array in (instances, prediction, classes, mixed)]
    with pytest.raises(InputError, match="lie on more than one class"):
        lpa3d.evaluate(on[0], on[1], classes=(on[2], on[3]))


@cuda_emulator.any_order
def test_the_mark_of_no_id_is_ignored(device):
    """CREMI marks voxels with 2**64 - 1, which is no id."""
    reference = np.array([[1, 1, 2, 2**64 - 1]], np.uint64)
    expected = lpa3d.evaluate(reference, reference.astype(np.int8) & 3, ignore=2**64 - 1)
    on = [device.bring(array) for array in (reference, reference.astype(np.int8) & 3)]
    assert lpa3d.evaluate(*on, ignore=2**64 - 1).to_dict() == expected.to_dict()


@cuda_emulator.any_order
@pytest.mark.parametrize("arguments", [{"surfaces": True}, {"warping": "2d"}])
def test_what_needs_the_voxels_again_is_refused(device, arguments):
    labels = device.bring(np.ones((2, 3, 4), np.int32))
    with pytest.raises(InputTypeError, match=rf"{next(iter(arguments))} goes back to .*cupy.asnumpy"):
        lpa3d.evaluate(labels, labels, **arguments)
