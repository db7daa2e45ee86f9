"""New ids on a device, against the Numba kernels, byte for byte."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpa3d.arrays.backend import on_device
from lpa3d.arrays.relabel import relabel
from lpa3d.cuda import relabel as cuda_relabel
from tests import emulator as cuda_emulator
from tests.strategies import INTEGER_DTYPES, shapes

BLOCK_ITEMS = 256 * cuda_relabel.ITEMS


def check(device, labels, ids, new_ids):
    """Compare both back ends, with and without a place for the result."""
    ids, new_ids = np.array(ids, np.int64), np.array(new_ids, np.int64)
    expected = relabel(labels, ids, new_ids, labels.dtype, None)
    found = relabel(device.bring(labels), ids, new_ids, labels.dtype, None)
    assert device.holds(found)
    assert (found.dtype, found.shape) == (labels.dtype, labels.shape)
    np.testing.assert_array_equal(device.fetch(found), expected)
    out = device.xp.empty(labels.shape, labels.dtype)
    assert relabel(device.bring(labels), ids, new_ids, labels.dtype, out) is out
    np.testing.assert_array_equal(device.fetch(out), expected)


@st.composite
def problems(draw):
    """Draw labels of any width, which of their ids change, and what to."""
    dtype = np.dtype(draw(st.sampled_from(INTEGER_DTYPES)))
    most = 1 if dtype.kind == "b" else min(int(np.iinfo(dtype).max), 2**63 - 1)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    names = np.unique(random.integers(1, most, draw(st.sampled_from([1, 5, 200])), endpoint=True))
    labels = random.choice(np.concatenate([[0], names, [most]]), draw(shapes(wide=True))).astype(dtype)
    ids = random.permutation(names)[: draw(st.integers(0, len(names)))]
    return labels, ids, random.integers(0, most, len(ids), endpoint=True)


@given(problem=problems())
@settings(max_examples=40)
def test_the_answer_is_that_of_the_numba_kernels(device, problem):
    check(device, *problem)


def crowded():
    """Return ids whose search in the table begins in one slot, and goes on from its end to its start, and new ids."""
    hashes = (np.arange(1, 20000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)) & np.uint64(63)
    ids = 1 + np.flatnonzero(hashes == 63)[:20]
    return ids, ids[::-1].copy()


def test_ids_that_meet_in_the_table(device):
    ids, new_ids = crowded()
    check(device, np.arange(20000).reshape(1, 1, -1), ids, new_ids)


@cuda_emulator.any_order
@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_large_ids(device, dtype):
    """Ids that are equal as float64, and up to the largest."""
    ids = [2**53 + 1, 2**62 + 1, 2**63 - 1]
    labels = np.array([[[0, 2**53, 2**53 + 1, 2**53 + 2, 2**62, 2**62 + 1, 2**63 - 2, 2**63 - 1]]], dtype)
    check(device, labels, ids, [7, 2**63 - 1, 2**62 + 1])


@cuda_emulator.any_order
@pytest.mark.parametrize("shape", [(0, 3, 4), (1, 1, 1), (1, 1, BLOCK_ITEMS - 1), (BLOCK_ITEMS, 1, 1), (1, 257, 9)])
def test_sizes_around_a_block(device, shape):
    labels = (np.arange(np.prod(shape)) % 5).astype(np.uint16).reshape(shape)
    check(device, labels, [1, 4], [3, 1])


@cuda_emulator.any_order
def test_without_ids_nothing_changes(device):
    check(device, np.arange(60, dtype=np.uint8).reshape(3, 4, 5), [], [])


@cuda_emulator.any_order
def test_arrays_in_memory_stay_there(device):
    labels = np.arange(60).reshape(3, 4, 5)
    with on_device(device):
        found = relabel(labels, np.array([3]), np.array([7]), labels.dtype, None)
    np.testing.assert_array_equal(found, np.where(labels == 3, 7, labels))


PLANTED = {
    "other ids become 0": ("relabel.cu", ": old[k];", ": 0;"),
    "no look at the id in a slot": ("relabel.cu", "ids[slots[slot]] != value", "false"),
    "the search ends with the table": (
        "relabel.cu",
        "slot = (slot + 1) & (count - 1)",
        "slot = slot + 1",
    ),
    "ids of 32 bits": ("relabel.cu", "(i64)old[k])", "(i64)(u32)old[k])"),
    "half of the voxels": ("maps.cuh", "#define ITEMS 4", "#define ITEMS 2"),
    "one voxel too many": ("relabel.cu", "if (v < size) out[v]", "if (v <= size) out[v]"),
}


@pytest.mark.each_other
@pytest.mark.parametrize("name", PLANTED)
def test_planted_bugs_are_caught(emulator, name):
    with cuda_emulator.plant(emulator("shuffled"), *PLANTED[name]) as broken:
        try:
            test_ids_that_meet_in_the_table(broken)
            check(broken, np.arange(2**32 - 500, 2**32 + 1000).reshape(1, 1, -1), *crowded())
            test_sizes_around_a_block(broken, (1, 4, BLOCK_ITEMS // 4))
        except (AssertionError, IndexError):
            return
    pytest.fail(f"{name}: not caught")
