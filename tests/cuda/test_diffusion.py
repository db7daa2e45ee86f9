"""Diffusion on a device, against the Numba kernels: labels and confidence, byte for byte."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpa3d.arrays.backend import on_device
from lpa3d.arrays.neighbors import step_weights
from lpa3d.cuda import diffusion as cuda_diffuse
from lpa3d.propagation.diffusion import conductances, diffuse
from lpa3d.propagation.geodesic import link_voxels, spread
from tests import emulator as cuda_emulator
from tests.propagation.test_geodesic import SPACINGS
from tests.strategies import class_volumes, connectivities


def make(volume, labels, seeds, connectivity, sweeps, spacing=(1, 1, 1), cost=None):
    """Return the arguments of `diffuse`, labels and links first."""
    links = link_voxels(volume, connectivity)
    return labels, links, seeds, conductances(step_weights(connectivity, spacing)), connectivity, sweeps, cost


def run(labels, links, seeds, weights, connectivity, sweeps, cost, device=None):
    """Return labels and confidence after diffusion on a device, or by the Numba kernels."""
    labels = labels.copy()
    if device is None:
        return labels, diffuse(labels, links, seeds, weights, connectivity, sweeps, cost=cost, return_confidence=True)
    on = device.bring(labels)
    lead = diffuse(
        on, device.bring(links), device.bring(seeds), weights, connectivity, sweeps,
        cost=None if cost is None else device.bring(cost), return_confidence=True,
    )  # fmt: skip
    assert device.holds(lead)
    return device.fetch(on), device.fetch(lead)


def check(device, problem):
    """Compare both back ends."""
    labels, lead = run(*problem)
    on_labels, on_lead = run(*problem, device)
    assert on_lead.dtype == np.uint16
    np.testing.assert_array_equal(on_labels, labels)
    np.testing.assert_array_equal(on_lead, lead)


@st.composite
def problems(draw):
    """Draw classes with labels that are nearest to a few voxels, or any, and some seeds."""
    volume = draw(class_volumes(wide=draw(st.booleans())))
    connectivity = draw(connectivities)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = np.where(volume > 0, 4 * random.integers(1, draw(st.sampled_from([3, 200])), volume.shape) + volume, 0)
    labels = labels.astype(np.uint32)
    if draw(st.booleans()):
        labels[random.random(volume.shape) < draw(st.sampled_from([0.9, 0.98]))] = 0
        spread(labels, link_voxels(volume, connectivity), step_weights(connectivity, (1, 1, 1)), connectivity)
        volume[labels == 0] = 0
    sweeps = draw(st.integers(1, 40))
    if draw(st.booleans()):  # a number for each class
        sweeps = np.array([0, 2, 0, sweeps])[np.arange(int(labels.max()) + 1) % 4]
    cost = random.integers(1, draw(st.sampled_from([2, 40, 65536])), volume.shape).astype(np.uint16)
    seeds = np.where(random.random(volume.shape) < 0.1, labels, 0).astype(np.uint8)
    spacing = draw(st.sampled_from(SPACINGS))
    return make(volume, labels, seeds, connectivity, sweeps, spacing, draw(st.sampled_from([None, cost])))


@given(problem=problems())
@settings(max_examples=40)
def test_the_answer_is_that_of_the_numba_kernels(device, problem):
    check(device, problem)


def line(sweeps):
    """Return a problem with a border far from most voxels."""
    shape = (1, 2, 700)
    labels = np.ones(shape, dtype=np.uint32)
    labels[:, :, 5:] = 2
    seeds = np.zeros(shape, dtype=np.uint8)
    seeds[0, 0, 0] = 1
    seeds[0, 1, 699] = 2
    return make(np.ones(shape, dtype=np.uint8), labels, seeds, 6, sweeps)


def crowd(connectivity, sweeps, side=5):
    """Return a problem in which every voxel has a label of its own."""
    labels = np.random.default_rng(side).permutation(side**3).astype(np.uint32).reshape(side, side, side) + 1
    labels[labels % 2 == 0] += np.uint32(2**32 - 1000)
    return make(np.ones(labels.shape, dtype=np.uint8), labels, np.zeros_like(labels), connectivity, sweeps)


@pytest.mark.each_value
@pytest.mark.parametrize("sweeps", [1, 254, 255, 256, 300])
def test_far_from_a_border_and_many_sweeps(device, sweeps):
    check(device, line(sweeps))


@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_many_labels_meet(device, connectivity):
    for sweeps in range(1, 7):
        check(device, crowd(connectivity, sweeps))


def test_a_tie_goes_to_the_smaller_label(device):
    labels = np.array([[[9, 9, 4], [3, 7, 7], [8, 8, 2]]], dtype=np.uint32)
    for seeds in (np.array([[[9, 0, 4], [3, 0, 7], [8, 0, 2]]]), np.zeros_like(labels)):
        check(device, make(np.ones(labels.shape, dtype=np.uint8), labels, seeds, 6, 1))


@cuda_emulator.any_order
@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 3, 0), (1, 1, 1), (1, 1, 50), (50, 1, 1), (1, 50, 1), (1, 9, 9)])
def test_thin_volumes(device, shape):
    labels = np.ones(shape, dtype=np.uint32)
    labels[:1, :1, :1] = 2
    check(device, make(np.ones(shape, dtype=np.uint8), labels, np.zeros(shape, dtype=np.int64), 6, 3))


@cuda_emulator.any_order
def test_without_borders_or_sweeps_nothing_changes(device):
    labels = np.ones((4, 5, 6), dtype=np.uint32)
    volume, seeds = np.ones(labels.shape, dtype=np.uint8), np.zeros_like(labels)
    check(device, make(volume, labels, seeds, 26, 5))
    labels[2:] = 2
    check(device, make(volume, labels, seeds, 26, 0))


@cuda_emulator.any_order
def test_indices_of_large_volumes(device, monkeypatch):
    monkeypatch.setattr(cuda_diffuse, "NARROW", 0)
    check(device, crowd(6, 3))


@cuda_emulator.any_order
def test_arrays_in_memory_are_brought_and_given_back(device):
    for place in (np.asarray, device.bring):  # links may be on the device already
        labels, links, *rest, cost = crowd(18, 3)
        expected, lead = run(labels, links, *rest, cost)
        with on_device(device):
            found = diffuse(labels, place(links), *rest, cost=cost, return_confidence=True)
            assert diffuse(labels.copy(), place(links), *rest) is None
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_array_equal(found, lead)


def layers(sweeps):
    """Return a problem of thick layers, some of them noisy, with seeds and a cost that leaves some links hardly any."""
    random = np.random.default_rng(3)
    shape = (5, 7, 40)
    z, y, x = np.indices(shape)
    labels = np.array([7, 3, 5, 1, 9])[x // 9] + 10 * random.integers(0, 2, shape) * (z < 2)
    seeds = np.where(random.random(shape) < 0.05, labels, 0)
    cost = np.where(y > 4, 65535, random.integers(1, 60, shape)).astype(np.uint16)
    volume = np.ones(shape, dtype=np.uint8)
    return make(volume, labels.astype(np.uint32), seeds, 18, sweeps, spacing=(40, 8, 8), cost=cost)


def column():
    """Return a problem with a border across z."""
    labels = np.array([2, 2, 1, 1], dtype=np.uint32).reshape(4, 1, 1)
    return make(np.ones(labels.shape, dtype=np.uint8), labels, np.zeros_like(labels), 6, 1)


def faded():
    """Return a problem in which the smaller of two labels fades to 0, and the other is not certain."""
    volume = np.array([[[1, 1]], [[1, 0]]], dtype=np.uint8)
    labels = np.array([[[1, 2]], [[1, 0]]], dtype=np.uint32)
    cost = np.array([[[1, 1]], [[65535, 1]]], dtype=np.uint16)
    return make(volume, labels, np.zeros_like(labels), 6, 1, spacing=(40, 8, 8), cost=cost)


def check_empty(device):
    """Average three voxels in a row that hold a label each, at 1 of 65535: of the middle one nothing is left."""
    defines = {"CONNECTIVITY": 6, "LINKS": np.uint8, "SEED": np.uint8, "INDEX": np.uint32, "COST": 0}
    labels, links, _, weights, _, _, _ = make(*np.ones((2, 1, 1, 3), dtype=np.uint8), None, 6, 1)
    voxels, depths, bits, ends, labels, links, cost, strides, weights, names, odds = (
        device.bring(np.array(values, dtype))
        for values, dtype in (
            (range(3), np.uint32), ([0, 0, 0], np.uint8), ([7], np.uint32), ([3], np.uint32), (labels, np.uint32),
            (links, np.uint8), ([], np.uint16), ([-3, -3, -1, 1, 3, 3], np.int64), (weights, np.uint32),
            ([5, 6, 7], np.uint64), ([1, 1, 1], np.uint32),
        )
    )  # fmt: skip
    new_names, new_odds = device.xp.empty(3, np.uint64), device.xp.empty(3, np.uint32)
    device.kernel("diffusion", "average_list", **defines)(
        1, 32, 3, 1, voxels, depths, bits, ends, labels, links, cost, strides, weights, names, odds, new_names, new_odds
    )
    # The outer two have one link each, and keep their own label as a hint.
    assert new_names.tolist() == [5 | 6 << 32, 6, 6 | 7 << 32]
    assert new_odds.tolist() == [1 << 16, 1, 1]


def check_all(device):
    """Compare both back ends on what the planted errors below are found by."""
    check_empty(device)
    for problem in (column(), faded(), crowd(26, 1), crowd(26, 5), layers(1), layers(12)):
        check(device, problem)


def test_borders_crowds_layers_and_a_list_that_would_be_empty(device):
    check_all(device)


@pytest.mark.each_other
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("old_names[b]", "new_names[b]"),
        ("old_odds[b]", "new_odds[b]"),
        ("side < 2", "side < 1"),
        ("- __popc(rest)", "- __popc(rest >> 1)"),
        ("rest & 1 ?", "rest != 0 ?"),
        ("b < 0 ? CERTAIN", "b < 0 ? 0"),
        ("depths[a] >= min", "depths[a] + 1 >= min"),
        ("k < CONNECTIVITY", "k < CONNECTIVITY - 1"),
        (
            "mask = links[v]; mask != 0; mask &= mask - 1) {\n        int",
            "mask = links[v] & 15; mask != 0; mask &= mask - 1) {\n        int",
        ),
        ("any && threadIdx.x == 0", "any && threadIdx.x == 1000"),
        ("seeds[v] != 0 ? FIXED", "0 ? FIXED"),
        ("p == high_p && name < high", "0"),
        ("high_p == low_p && high < low)", "0)"),
        ("empty ? own", "0 ? own"),
        ("empty ? old_odds[a]", "0 ? old_odds[a]"),
        ("if (high != 0 && high < low) {", "if (0) {"),
        ("> (odds[a] & 65535)", ">= (odds[a] & 65535)"),
        ("low_p > 0 && high_p > 0", "high_p > 0"),
        ("max((u64)1, ", "max((u64)0, "),
    ],
)
def test_planted_errors_are_found(emulator, old, new):
    with (
        cuda_emulator.plant(emulator("shuffled"), "diffusion.cu", old, new) as broken,
        pytest.raises((AssertionError, IndexError)),
    ):
        check_all(broken)
