"""`lpa3d.propagate` on device arrays: every byte is that of the same call on NumPy arrays."""

import numpy as np
import pytest
from hypothesis import given, settings

import lpa3d
from lpa3d.errors import InputError, InputTypeError, Lpa3dWarning, RangeError
from tests import emulator as cuda_emulator
from tests.strategies import annotated_blobs

pytestmark = pytest.mark.filterwarnings("ignore::lpa3d.errors.Lpa3dWarning")


def on(device, arguments):
    """Return arguments of a verb with its arrays on the device."""
    return {name: device.bring(value) if isinstance(value, np.ndarray) else value for name, value in arguments.items()}


def assert_same(device, result, expected):
    """Compare one array or several, byte for byte."""
    several = isinstance(expected, tuple)
    for array, other in zip(*(part if several else (part,) for part in (result, expected)), strict=True):
        assert device.holds(array)
        found = device.fetch(array)
        assert found.dtype == other.dtype
        np.testing.assert_array_equal(found, other)


# A whole call on emulated threads takes two seconds.
@settings(max_examples=6)
@given(annotated_blobs)
def test_equals_the_cpu(device, arguments):
    lead = arguments["sweeps"] != 0
    expected = lpa3d.propagate(**arguments, return_confidence=lead)
    assert_same(device, lpa3d.propagate(**on(device, arguments), return_confidence=lead), expected)


@pytest.fixture(scope="module")
def case():
    random = np.random.default_rng(5)
    volume = random.integers(0, 3, (7, 9, 34)).astype(np.uint8)
    seeds = np.where(random.random(volume.shape) < 0.02, random.integers(1, 2**40, volume.shape), 0) * (volume > 0)
    return volume, seeds


@cuda_emulator.any_order
@pytest.mark.parametrize(
    "options",
    [
        {"missing_slices": [2, 3], "return_confidence": True},
        {"max_distance": 2.5, "unseeded": "label", "connectivity": 26},
        {"spacing": (3, 1, 1.5), "unseeded": "label", "connectivity": 18},
        {"sweeps": 0, "slice_axis": None},
    ],
)
def test_options(device, case, options):
    expected = lpa3d.propagate(*case, **options)
    given_arrays = [device.bring(array) for array in case]
    assert_same(device, lpa3d.propagate(*given_arrays, **options), expected)
    for array, original in zip(given_arrays, case, strict=True):
        np.testing.assert_array_equal(device.fetch(array), original)


@cuda_emulator.any_order
def test_conflicts_and_seeds_on_the_background(device, case):
    volume, seeds = case
    seeds = seeds.copy()
    seeds[:, 4, ::3] = 11
    with pytest.raises(InputError, match="id 11 on classes 1, 2"):
        lpa3d.propagate(device.bring(volume), device.bring(seeds))
    with pytest.warns(Lpa3dWarning) as told_of_cpu:
        expected = lpa3d.propagate(volume, seeds, seed_conflicts="majority")
    with pytest.warns(Lpa3dWarning) as told:
        result = lpa3d.propagate(device.bring(volume), device.bring(seeds), seed_conflicts="majority")
    assert_same(device, result, expected)
    assert sorted(str(note.message) for note in told) == sorted(str(note.message) for note in told_of_cpu)


@cuda_emulator.any_order
def test_one_slice(device, case):
    volume, seeds = (array[3] for array in case)
    expected = lpa3d.propagate(volume, seeds, connectivity=18, spacing=(1, 2))
    result = lpa3d.propagate(device.bring(volume), device.bring(seeds), connectivity=18, spacing=(1, 2))
    assert_same(device, result, expected)


@cuda_emulator.any_order
def test_out(device, case):
    volume, seeds = (device.bring(array) for array in case)
    out = device.xp.empty(volume.shape, np.int64)
    assert lpa3d.propagate(volume, seeds, out=out) is out
    assert_same(device, out, lpa3d.propagate(*case))
    with pytest.raises(InputTypeError, match="CuPy array is needed"):
        lpa3d.propagate(volume, seeds, out=np.empty(volume.shape, np.int64))
    with pytest.raises(InputError, match="shares memory"):
        lpa3d.propagate(volume, seeds, out=seeds)
    with pytest.raises(InputError, match="out has shape"):
        lpa3d.propagate(volume, seeds, out=out[1:])


@cuda_emulator.any_order
def test_costs_are_checked(device, case):
    cost = np.full(case[0].shape, 2.0)
    cost[1, 2, 3] = -1
    arrays = [device.bring(array) for array in (*case, cost)]
    with pytest.raises(InputError, match="cost holds values from -1 to 2"):
        lpa3d.propagate(*arrays[:2], cost=arrays[2])


@cuda_emulator.any_order
def test_paths_out_of_range(device):
    volume = np.ones((1, 1, 1000), np.uint8)
    seeds = np.zeros(volume.shape, np.int32)
    seeds[0, 0, 0] = 1
    cost = np.full(volume.shape, 4095.0)
    arguments = {"spacing": (1, 1, 60000), "cost": cost}
    with pytest.raises(RangeError) as expected:
        lpa3d.propagate(volume, seeds, **arguments)
    with pytest.raises(RangeError) as error:
        lpa3d.propagate(device.bring(volume), device.bring(seeds), **on(device, arguments))
    assert str(error.value) == str(expected.value)
