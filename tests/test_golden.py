"""The bytes of a few small results, one for each stage: a change of them must be meant.

If it is, raise `algorithm` in docs/algorithm.md, run ``python tests/test_golden.py`` and put what it prints in place of
the table. The input is made of integers alone, so that no other library's release changes it.
"""

import hashlib
import warnings

import numpy as np
import pytest

import lpa3d
from lpa3d.errors import Lpa3dWarning

GOLDEN = {
    "label 6": "e660e9ad2ac1bfb0",
    "label 26": "82c08b799ec572ee",
    "geodesic 6": "7630759eaafe572e",
    "geodesic 18, spacing": "a216571e815c2882",
    "geodesic 26, cost": "922432cc02588617",
    "sections": "7ada39eef9e0eda4",
    "sections across x, spacing": "668c01d5b3791724",
    "diffusion 6": "cc5b474d4bc01895",
    "diffusion 26, spacing, cost": "7b2ac3749f6b81da",
    "all stages": "e0295d10702add8c",
    "max_distance, unseeded": "cfd5bb55eb376684",
    "missing_slices": "4fc0d6364d40c6f6",
}


def moving_discs(depth=14, side=44):
    """Return (volume, instances): touching discs of two classes that drift together; some end on the way."""
    z, y, x = np.indices((depth, side, side))
    volume = np.zeros(z.shape, dtype=np.uint8)
    instances = np.zeros(z.shape, dtype=np.int64)
    for i in range(-2, 9):
        for j in range(-3, 9):
            label = 100 + 12 * i + j
            row, column = 7 * i + 3 + z + (label % 3), 7 * j + 3 * (i % 2) + z * (3 + label % 2) // 4
            inside = ((y - row) ** 2 + (x - column) ** 2 <= 15) & ((label % 5 > 0) | (z < 6)) & (instances == 0)
            instances[inside] = label
            volume[inside] = 1 + (i + 2) // 6
    return volume, instances


def noise(shape, one_in):
    """Return a mask of about one voxel in so many."""
    bits = np.arange(np.prod(shape), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits ^= bits >> np.uint64(29)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    return ((bits >> np.uint64(40)) % np.uint64(one_in) == 0).reshape(shape)


def cases():
    """Yield (name, arrays)."""
    volume, instances = moving_discs()
    slices = np.where(np.arange(len(volume))[:, None, None] % 4 == 1, instances, 0)
    points = np.where(noise(volume.shape, 50), instances, 0)
    cost = (np.arange(volume.size) % 37).reshape(volume.shape) / 8
    speckled = np.where(noise(volume.shape, 3), 0, 1 + noise(volume.shape, 7)).astype(np.uint8)
    yield "label 6", (lpa3d.label(speckled),)
    yield "label 26", (lpa3d.label(speckled, connectivity=26),)
    yield "geodesic 6", (lpa3d.propagate(volume, points, sweeps=0),)
    yield "geodesic 18, spacing", (lpa3d.propagate(volume, points, sweeps=0, connectivity=18, spacing=(40, 8, 9)),)
    yield "geodesic 26, cost", (lpa3d.propagate(volume, points, sweeps=0, connectivity=26, cost=cost),)
    yield "sections", (lpa3d.propagate(volume, slices, sweeps=0),)
    turned = lpa3d.propagate(volume.T, slices.T, sweeps=0, spacing=(8, 9, 20))
    yield "sections across x, spacing", (turned,)
    yield "diffusion 6", lpa3d.propagate(volume, points, return_confidence=True)
    weighed = lpa3d.propagate(volume, points, connectivity=26, spacing=(3, 1, 1), cost=cost, return_confidence=True)
    yield "diffusion 26, spacing, cost", weighed
    yield "all stages", lpa3d.propagate(volume, slices, return_confidence=True)
    yield "max_distance, unseeded", (lpa3d.propagate(volume, slices, max_distance=2, unseeded="label"),)
    yield "missing_slices", (lpa3d.propagate(volume, slices, missing_slices=[3, 8]),)


def digests():
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Lpa3dWarning)
        for name, arrays in cases():
            digest = hashlib.sha256()
            for array in arrays:
                digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
            found[name] = digest.hexdigest()[:16]
    return found


@pytest.fixture(scope="module")
def found():
    return digests()


@pytest.mark.parametrize("name", GOLDEN)
def test_bytes(name, found):
    assert found[name] == GOLDEN[name], f"{name}: the result changed; the module's first lines say what to do"


def test_the_table_is_complete(found):
    assert set(found) == set(GOLDEN)


def test_the_cases_reach_their_stages():
    volume, instances = moving_discs()
    slices = np.where(np.arange(len(volume))[:, None, None] % 4 == 1, instances, 0)
    drawn, still = (lpa3d.propagate(volume, slices, sweeps=0, slice_axis=axis) for axis in ("auto", None))
    for value in np.unique(volume[volume > 0]):
        assert (drawn != still)[volume == value].any()


if __name__ == "__main__":
    print("GOLDEN = {")
    for name, digest in digests().items():
        print(f'    "{name}": "{digest}",')
    print("}")
