"""Components over tiles: equal to those of the whole volume for any tiles, in any order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lpa3d
from lpa3d import _label
from lpa3d._label import find_components
from lpa3d.kernels import faces
from lpa3d.tiled import components as tiled
from lpa3d.tiled.grid import Grid
from strategies import CONNECTIVITIES, class_volumes, connectivities


class Blobs:
    """A scratch in memory."""

    def __init__(self):
        self.kept = {}

    def put(self, key, **arrays):
        self.kept[key] = {name: array.copy() for name, array in arrays.items()}

    def get(self, key, *names):
        found = self.kept[key]
        return {name: found[name].copy() for name in names or found}


def join_tiles(volume, tile, connectivity, *, marked=None, numbers=True, order=None):
    """Return a scratch after scan, pairs and join; components with a voxel in `marked` have the flag."""
    grid = Grid(volume.shape, tile)
    scratch = Blobs()
    order = range(len(grid)) if order is None else order
    for k in order:
        at = grid.box(k).slices
        array = np.ascontiguousarray(volume[at])
        flags = None
        if marked is not None:
            seeds = np.where(marked[at], array, 0)

            def flags(components, array=array, seeds=seeds):
                return components.hold_seed(array, np.where(seeds == 0, ~array, seeds))

        scratch.put(f"c/scan/{k}", **tiled.scan_tile(array, connectivity, tiled.open_sides(grid, k), flags))
    for k in reversed(order):
        tiled.pair_tile(scratch, grid, "c", connectivity, k)
    tiled.join(scratch, grid, "c", connectivity, numbers)
    return scratch, grid


def label_tiles(volume, tile, connectivity, *, after=0, dtype=np.uint32, **more):
    """Return the numbers of all tiles put together, and the totals."""
    scratch, grid = join_tiles(volume, tile, connectivity, **more)
    labels = np.full(volume.shape, 77, dtype)
    for k in range(len(grid)):
        box = grid.box(k)
        array = np.ascontiguousarray(volume[box.slices])
        components = find_components(array, connectivity)
        out = np.full(box.shape, 99, dtype)
        numbers = tiled.local_numbers(scratch, grid, "c", k, components, dtype, after)
        tiled.write_numbers(components, numbers, out)
        labels[box.slices] = out
    return labels, tiled.read_totals(scratch, "c")


@st.composite
def tilings(draw, shape):
    """Draw a tile for a shape: from single voxels to more than the volume."""
    return tuple(draw(st.integers(1, min(side + 2, 70))) for side in shape)


@st.composite
def tiled_volumes(draw, **more):
    volume = draw(class_volumes(wide=True, **more))
    tile = draw(tilings(volume.shape))
    if np.prod([-(-n // t) for n, t in zip(volume.shape, tile, strict=True)]) > 400:
        tile = tuple(max(2, t) for t in tile)
    return volume, tile


@given(tiled_volumes(), connectivities, st.randoms(use_true_random=False))
def test_numbers_are_those_of_the_whole(case, connectivity, random):
    volume, tile = case
    order = list(range(len(Grid(volume.shape, tile))))
    random.shuffle(order)
    labels, totals = label_tiles(volume, tile, connectivity, order=order)
    expected = lpa3d.label(volume, connectivity=connectivity)
    np.testing.assert_array_equal(labels, expected)
    assert totals.components == (expected.max(initial=0), 0)


@given(tiled_volumes(), connectivities, st.integers(0, 2**32 - 1), st.sampled_from([0, 5, 2**40]))
def test_flags_and_numbers_of_the_rest(case, connectivity, seed, after):
    volume, tile = case
    marked = np.random.default_rng(seed).random(volume.shape) < 0.1
    marked &= volume > 0
    whole = lpa3d.label(volume, connectivity=connectivity)
    held = np.zeros(whole.max(initial=0) + 1, bool)
    held[whole[marked]] = True
    expected = np.where(held, 0, after + np.cumsum(~held) - 1)
    expected[0] = 0

    labels, totals = label_tiles(volume, tile, connectivity, after=after, dtype=np.int64, marked=marked)
    np.testing.assert_array_equal(labels, expected[whole])
    assert totals.components == (np.count_nonzero(~held[1:]), np.count_nonzero(held[1:]))
    assert totals.voxels == (np.count_nonzero((whole > 0) & ~held[whole]), np.count_nonzero(held[whole]))

    scratch, grid = join_tiles(volume, tile, connectivity, marked=marked, numbers=False)
    mixed = []
    cleared = volume.copy()
    for k in range(len(grid)):
        at = grid.box(k).slices
        array = np.ascontiguousarray(volume[at])
        components = find_components(array, connectivity)
        flags = tiled.local_flags(scratch, "c", k, components)
        if not flags.all():
            mixed.append(k)
        components.clear(array, flags)
        cleared[at] = array
    np.testing.assert_array_equal(cleared, np.where(held[whole], volume, 0))
    found = tiled.read_totals(scratch, "c")
    assert (found.components, found.voxels) == (totals.components, totals.voxels)
    assert found.mixed.tolist() == totals.mixed.tolist() == mixed
