"""Components over tiles: equal to those of the whole volume for any tiles, in any order."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lpa3d
from lpa3d.arrays import components
from lpa3d.arrays.call import Options
from lpa3d.arrays.components import find_components
from lpa3d.kernels import faces
from lpa3d.tiled import components as tiled
from lpa3d.tiled.driver.grid import Grid
from lpa3d.tiled.driver.run import open_run
from lpa3d.tiled.driver.scratch import Scratch
from lpa3d.tiled.driver.stages import Stage
from lpa3d.tiled.driver.stored import Source, open_source
from tests.strategies import CONNECTIVITIES, connectivities, tiled_volumes
from tests.verbs.test_label import serpentine


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

        sides = tiled.open_sides(grid, k)
        scratch.put(f"c/scan/{k}", **tiled.scan_tile(array, connectivity, sides, flags, keep=k % 2 == 0))
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
        if k % 2:
            components = find_components(np.ascontiguousarray(volume[box.slices]), connectivity)
        else:
            components = tiled.recall_components(scratch, "c", k)
        out = np.full(box.shape, 99, dtype)
        numbers = tiled.local_numbers(scratch, grid, "c", k, components, dtype, after)
        tiled.write_numbers(components, numbers, out)
        labels[box.slices] = out
    return labels, tiled.read_totals(scratch, "c")


@given(tiled_volumes, connectivities, st.randoms(use_true_random=False))
def test_numbers_are_those_of_the_whole(case, connectivity, random):
    volume, tile = case
    order = list(range(len(Grid(volume.shape, tile))))
    random.shuffle(order)
    labels, totals = label_tiles(volume, tile, connectivity, order=order)
    expected = lpa3d.label(volume, connectivity=connectivity)
    np.testing.assert_array_equal(labels, expected)
    assert totals.components == (expected.max(initial=0), 0)


@given(tiled_volumes, connectivities, st.integers(0, 2**32 - 1), st.sampled_from([0, 5, 2**40]))
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


@pytest.mark.long  # it compiles kernels for ten seconds; labels of 64 bits are in test_label.py, too
@given(tiled_volumes, connectivities)
def test_volumes_too_large_for_32_bits(case, connectivity):
    """Also tables of the join that are too large for memory."""
    volume, tile = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "WIDE", 1)
        patch.setattr(tiled, "WIDE", 1)
        patch.setattr(tiled, "TABLE_BYTES", 0)
        patch.setattr(tiled, "CHUNK", 7)
        labels, _ = label_tiles(volume, tile, connectivity, dtype=np.uint64)
    np.testing.assert_array_equal(labels, lpa3d.label(volume, connectivity=connectivity))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_classes_differ_in_one_bit(dtype):
    """Across tiles too, and of two neighbours of which a float64 would make one class."""
    highest = np.iinfo(dtype).max
    row = np.array([[[highest, highest - 1, highest - 1, 0, 1, 1, highest, highest, highest - 1]]], dtype)
    for axis in range(3):
        volume = np.ascontiguousarray(np.swapaxes(row, 2, axis))
        for size in (1, 2, 4):
            labels, _ = label_tiles(volume, (size,) * 3, 6)
            assert labels.ravel().tolist() == [1, 2, 2, 0, 3, 3, 4, 4, 5]


@pytest.mark.each_value
@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
@pytest.mark.parametrize("tile", [(4, 4, 4), (5, 3, 7), (1, 2, 40), (40, 1, 3)])
def test_corridors_cross_every_tile_many_times(connectivity, tile):
    """A corridor through the cube, and its walls; cut in the middle, it is two."""
    volume = serpentine(17).astype(np.uint8)
    for axes in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        corridor = np.ascontiguousarray(volume.transpose(axes))
        cut = corridor.copy()
        cut[tuple(np.argwhere(cut)[cut.sum() // 2])] = 0
        for case in (corridor, cut, corridor + np.uint8(1)):
            labels, _ = label_tiles(case, tile, connectivity)
            np.testing.assert_array_equal(labels, lpa3d.label(case, connectivity=connectivity))


@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
@pytest.mark.parametrize("period", [1, 2, 3])
def test_checkerboards(connectivity, period):
    volume = (np.indices((9, 10, 70)) // period).sum(axis=0) % 2
    for classes in (volume, volume + 1):
        labels, _ = label_tiles(classes.astype(np.uint16), (4, 3, 32), connectivity)
        np.testing.assert_array_equal(labels, lpa3d.label(classes, connectivity=connectivity))


@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
@pytest.mark.parametrize("density", [0.08, 0.3, 0.7])
def test_larger_noise(connectivity, density):
    random = np.random.default_rng(5)
    volume = ((random.random((40, 33, 131)) < density) * random.integers(1, 3, (40, 33, 131))).astype(np.uint8)
    labels, _ = label_tiles(volume, (16, 17, 65), connectivity)
    np.testing.assert_array_equal(labels, lpa3d.label(volume, connectivity=connectivity))


@pytest.mark.parametrize("shape", [(1, 9, 70), (9, 1, 70), (9, 70, 1), (1, 1, 70), (1, 70, 1), (70, 1, 1), (1, 1, 1)])
def test_axes_of_size_one(shape):
    random = np.random.default_rng(6)
    volume = random.integers(0, 3, shape).astype(np.uint8)
    for tile in ((1, 1, 1), (3, 3, 3), (2, 5, 67), (100, 100, 100), (8, 69, 69)):
        labels, _ = label_tiles(volume, tile, 26)
        np.testing.assert_array_equal(labels, lpa3d.label(volume, connectivity=26))


def test_only_what_touches_a_neighbour_is_kept_one_by_one():
    volume = np.zeros((4, 4, 8), np.uint8)
    volume[0, 0, 0] = volume[2, 2, 3] = volume[2, 2, 5] = volume[1, 1, 1] = 1
    found = tiled.scan_tile(np.ascontiguousarray(volume[:, :, :4]), 6, (False,) * 5 + (True,))
    assert found["counts"].tolist() == [3, 1, 2]
    assert {name for name in found if name in tiled.SIDES} == {"x_high"}
    assert found["x_high"].sum() == 1
    assert found["classes"].tolist() == [1]


def test_pairs_span_what_they_link_and_no_more():
    """Two combs that touch at many places are one pair."""
    volume = np.zeros((8, 8, 2), np.uint8)
    volume[::2] = volume[:, 0] = 1
    scratch, _ = join_tiles(volume, (8, 8, 1), 26)
    assert scratch.get("c/pairs/0")["pairs"].tolist() == [[0, 0]]


def test_numbers_beyond_32_bits():
    """The arithmetic of a volume of 2**54 voxels, for one of its last tiles."""
    box = np.array([2**18 - 4, 2**18 - 4, 2**18 - 4, 4, 4, 4, *[2**18] * 3], np.int64)
    firsts = np.array([0, 5, 63], np.uint32)
    lo = 2**18 - 4
    flat = [((lo + k // 16) * 2**18 + lo + k // 4 % 4) * 2**18 + lo + k % 4 for k in firsts.tolist()]
    sets = np.array([2, 0, 1], np.uint32)
    ends = np.full(3, np.iinfo(np.int64).max)
    ends[0] = flat[1] - 1
    flags = np.zeros(3, bool)
    faces.lower_ends(firsts, np.array([False, False, True]), sets, box, ends, flags)
    assert ends.tolist() == [flat[1] - 1, flat[2], flat[0]]
    assert flags.tolist() == [False, True, False]

    rows = np.zeros(16, np.int64)
    faces.count_roots(firsts, sets, box, ends, flags, rows)
    assert rows.tolist() == [1] + [0] * 15
    bases = 2**53 + np.arange(16)
    faces.number_roots(firsts, np.array([3, 0, 0], np.uint32), sets, box, bases, flags, ends)
    assert ends.tolist() == [flat[1] - 1, flat[2], -1 - (2**53 + 3)]

    out = np.empty(5, np.uint64)
    own = np.array([True, True, False, False, True])
    places = np.array([2, 3], np.uint32)
    local = np.array([0, 1, 2, 5, 63], np.uint32)
    faces.number_locals(local, own, places, np.array([2**53 + 2, 2**40]), 4, bases, 2**60, out)
    assert out.tolist() == [2**60 + n for n in (2**53, 2**53 + 1, 2**53 + 2, 2**40, 2**53 + 15)]


def test_pairs_of_tiles_far_down_the_list():
    parents = np.arange(10, dtype=np.int64)
    faces.unite_pairs(np.array([[1, 0], [0, 2]], np.uint32), np.int64(2), np.int64(7), parents)
    assert parents.tolist() == [0, 1, 2, 3, 4, 5, 6, 3, 8, 2]


@dataclass(frozen=True)
class Context:
    volume: Source
    grid: Grid
    scratch: Scratch


def scan(context: Any, tile: int) -> None:
    array = context.volume.read(context.grid.box(tile))
    context.scratch.put(f"c/scan/{tile}", **tiled.scan_tile(array, 26, tiled.open_sides(context.grid, tile)))


def test_as_stages_of_a_run(tmp_path):
    zarr = pytest.importorskip("zarr")
    volume = np.random.default_rng(7).integers(0, 3, (10, 20, 30)).astype(np.uint8)
    zarr.save(tmp_path / "v.zarr", volume)
    source = open_source(tmp_path / "v.zarr", "volume")
    labels = lpa3d.label(volume, connectivity=26)
    stages = [
        Stage("c scan", writes=("c/scan",)),
        *tiled.join_stages("c"),
        Stage("use", reads=tiled.component_areas("c")),
    ]
    with open_run("test", {"volume": source}, {}, {}, Options(tile=8), stages=stages, bytes_per_voxel=10) as run:
        run.map("c scan", scan, Context(source, run.grid, run.scratch))
        totals = tiled.run_join(run, "c", 26)
        assert totals.components == (labels.max(), 0)
        assert totals.mixed.tolist() == list(range(len(run.grid)))
        for k in range(len(run.grid)):
            at = run.grid.box(k).slices
            components = find_components(np.ascontiguousarray(volume[at]), 26)
            numbers = tiled.local_numbers(run.scratch, run.grid, "c", k, components, np.uint32)
            out = np.empty_like(labels[at])
            tiled.write_numbers(components, numbers, out)
            np.testing.assert_array_equal(out, labels[at])
