"""The sections stage over tiles equals the one in core, for any tiles."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpa3d import phantom
from lpa3d.propagation import motions, sections
from lpa3d.tiled import sections as tiled
from lpa3d.tiled.driver.grid import Grid
from lpa3d.tiled.driver.scratch import Folder, Scratch, ScratchError
from tests.strategies import moving_blobs


class Held:
    """An array that is read by boxes."""

    def __init__(self, array):
        self.array = array

    def read(self, box):
        return self.array[box.slices].copy()


class SerialRun:
    """What `run_sections` needs of a run; tasks and contexts travel as to another process, items in any order."""

    def __init__(self, grid, folder, random):
        self.grid, self.scratch, self.random = grid, Scratch(Folder(folder)), random

    def map(self, stage, task, context, items):
        items = list(range(items)) if isinstance(items, int) else list(items)
        sent = pickle.dumps((task, context))
        # Some run twice, as after a crash.
        for item in self.random.permutation(items + items[:2]):
            task, context = pickle.loads(sent)
            task(context, int(item))

    def once(self, stage, function, *args):
        return function(*args)


@pytest.fixture
def every_class(monkeypatch):
    # Whatever the pieces do: all classes in which anything moves.
    monkeypatch.setattr(motions, "EXPLAINED", (10**6, 1))


def draw_both(folder, volume, ranks, classes, axis, annotated, spacing, tile, random):
    """Check that both ways give the same; return how many voxels were drawn."""
    expected = ranks.copy()
    took_part = sections.label_sections(volume, expected, classes, axis, annotated, spacing)
    run = SerialRun(Grid(volume.shape, tile), folder, random)
    found = tiled.run_sections(run, Held(volume), Held(ranks), classes, axis, annotated, spacing)
    np.testing.assert_array_equal(found.took_part, took_part)
    labels = ranks.copy()
    assert (found.drawing is None) == (not took_part.any())
    if found.drawing is not None:
        drawing = pickle.loads(pickle.dumps(found.drawing))
        for index in random.permutation(len(run.grid)):
            at = run.grid.box(index).slices
            part = labels[at].copy()
            tiled.draw_tile(drawing, int(index), volume[at], part)
            labels[at] = part
    np.testing.assert_array_equal(labels, expected)
    return int(np.count_nonzero(labels != ranks))


def rank(volume, seeds):
    """Return (ranks, class of each rank)."""
    ids, ranks = np.unique(seeds, return_inverse=True)
    ranks = ranks.reshape(seeds.shape).astype(np.uint32) + np.uint32(ids[0] != 0)
    classes = np.zeros(int(ranks.max()) + 1, dtype=volume.dtype)
    classes[ranks[ranks > 0]] = volume[ranks > 0]
    return ranks, classes


def turn(axis, *arrays):
    """Return arrays with their first axis at `axis`."""
    return [np.ascontiguousarray(np.moveaxis(array, 0, axis)) for array in arrays]


def one_of(random, *choices):
    return choices[random.integers(len(choices))]


def cut(random, shape):
    """Return a tile's shape: whole axes, single voxels, anything between, larger than the volume."""
    tile = [int(one_of(random, random.integers(2, n + 1), max(2, n // 3), n, n + 3)) for n in shape]
    if random.random() < 0.3:
        tile[random.integers(3)] = 1
    while np.prod([-(-n // t) for n, t in zip(shape, tile, strict=True)]) > 150:
        tile[int(np.argmin(tile))] *= 2
    return tuple(tile)


def blobs(seed):
    """Blobs that drift and fade, some left out on some slices."""
    random = np.random.default_rng(seed)
    gap = int(random.integers(2, 6))
    volume, instances = moving_blobs(
        random, classes=one_of(random, 1, 2), pooled=one_of(random, False, True), depth=int(random.integers(7, 14)),
        side=22, gap=gap,
    )  # fmt: skip
    annotated = list(range(int(random.integers(0, min(gap, len(volume) - gap))), len(volume), gap))
    seeds = np.zeros_like(instances)
    seeds[annotated] = instances[annotated]
    seeds[(instances + np.arange(len(seeds))[:, None, None]) % 5 == 0] = 0
    spacing = one_of(random, (1, 1, 1), (5, 1, 1.6), (1, 2.3, 1), (0.4, 1, 1))
    return random, volume, seeds, annotated, spacing


def scattered(seed):
    """Rectangles, stripes and a comb at random places, of a few labels: pieces far apart, large, and all at odds."""
    random = np.random.default_rng(seed)
    shape = (int(random.integers(6, 20)), 90, 110)
    annotated = np.flatnonzero(random.random(shape[0]) < 0.25).tolist()
    annotated = sorted({*annotated, 1, shape[0] - 3})
    volume = np.ones(shape, dtype=np.uint8)
    volume[:, :, 60:] = 2
    volume[random.random(shape) < 0.1] = 0
    seeds = np.zeros(shape, dtype=np.int64)
    places = random.integers(0, 90, (12, 2))
    for z in annotated:
        for label, (y, x) in enumerate(places + random.integers(-45, 46, places.shape), 1):
            height, width = one_of(random, (3, 4), (9, 7), (2, 70), (60, 3), (1, 1))
            y, x = max(0, y), max(0, x)
            seeds[z, y : y + height, x : x + width] = label
    comb = seeds[annotated[0]]
    comb[80:84], comb[::4, ::9] = 13, 13
    seeds[volume == 2] += 50 * (seeds[volume == 2] > 0)
    seeds[volume == 0] = 0
    return random, volume, seeds, annotated, one_of(random, (1, 1, 1), (1, 1, 2), (3, 1.5, 1))


@pytest.mark.parametrize("make", [blobs, scattered])
def test_any_tiles_give_the_same(make, every_class, tmp_path_factory):
    drawn = []

    @settings(max_examples=settings.default.max_examples // 3)
    @given(st.integers(0, 2**32 - 1))
    def compare(seed):
        random, volume, seeds, annotated, spacing = make(seed)
        axis = int(random.integers(3))
        spacing = tuple(np.insert(spacing[1:], axis, spacing[0]).tolist())
        volume, seeds = turn(axis, volume, seeds)
        ranks, classes = rank(volume, seeds)
        folder = tmp_path_factory.mktemp("run")
        tile = cut(random, volume.shape)
        drawn.append(draw_both(folder, volume, ranks, classes, axis, annotated, spacing, tile, random))

    compare()
    assert np.mean(np.array(drawn) > 50) > 0.8


def test_tiles_of_one_voxel(every_class, tmp_path):
    # And a class that is no int64.
    random = np.random.default_rng(0)
    volume = np.full((7, 5, 6), 2**63 + 5, dtype=np.uint64)
    seeds = np.zeros(volume.shape, dtype=np.int64)
    for z in (1, 5):
        seeds[z, 1:3, z // 2 : z // 2 + 2] = 3
        seeds[z, 4, z // 2 : z // 2 + 3] = 4
    seeds[1, 1, 5] = 9
    ranks, classes = rank(volume, seeds)
    assert draw_both(tmp_path, volume, ranks, classes, 0, [1, 5], (1, 1, 1), (1, 1, 1), random) > 20


def test_the_switch_is_that_of_the_whole_volume(tmp_path):
    # Without setting it: vesicles of the phantom drift together, its other classes do not.
    random = np.random.default_rng(3)
    cell = phantom.cell((48, 128, 128), seed=2)
    annotated = list(range(2, 48, 8))
    seeds = np.zeros_like(cell.instances)
    seeds[annotated] = cell.instances[annotated]
    ranks, classes = rank(cell.classes, seeds)
    drawn = draw_both(tmp_path, cell.classes, ranks, classes, 0, annotated, (1, 1, 1), (20, 31, 40), random)
    assert drawn > 1000


def test_nothing_takes_part(tmp_path):
    volume = np.ones((5, 6, 7), dtype=np.uint8)
    seeds = np.zeros(volume.shape, dtype=np.int64)
    seeds[[0, 4], 2:4, 2:4] = 5
    ranks, classes = rank(volume, seeds)
    assert draw_both(tmp_path, volume, ranks, classes, 0, [0, 4], (1, 1, 1), (2, 3, 4), np.random.default_rng(0)) == 0


def test_a_class_map_too_large_to_read_at_once(every_class, tmp_path, monkeypatch):
    random, volume, seeds, annotated, spacing = scattered(5)
    ranks, classes = rank(volume, seeds)
    monkeypatch.setattr(tiled, "MOST_READ", 2000)
    assert draw_both(tmp_path, volume, ranks, classes, 0, annotated, spacing, (4, 50, 50), random) > 1000


@pytest.mark.parametrize("width", [149, 152, 155, 160])
def test_a_potential_that_is_cut_far_from_the_tile(width, every_class, tmp_path):
    # After the last slice label 1 goes on by 64 pixels, as far as anything moves, and meets label 2, which stays. Which
    # of them lies deeper in a tile's first columns depends on where label 1 began, 72 pixels away.
    volume = np.ones((9, 20, 220), dtype=np.uint8)
    seeds = np.zeros(volume.shape, dtype=np.int64)
    seeds[0, :, 20:60], seeds[4, :, 84:124] = 1, 1
    seeds[0, :, 130:180], seeds[4, :, 130:180] = 2, 2
    ranks, classes = rank(volume, seeds)
    random = np.random.default_rng(0)
    for axis in range(2):
        turned, turned_ranks = turn(axis, volume, ranks)
        for flip in (np.s_[:], np.s_[..., ::-1]):
            arrays = [np.ascontiguousarray(array[flip]) for array in (turned, turned_ranks)]
            start = width if flip == np.s_[:] else 220 - width
            folder = tmp_path / f"{axis}{start}"
            drawn = draw_both(folder, *arrays, classes, axis, [0, 4], (1, 1, 1), (20, 20, start), random)
            assert drawn > 1000


def test_a_task_that_comes_late_fails(every_class, tmp_path):
    # Zeros for what was deleted would be drawn, and written, as a tile of the result.
    random, volume, seeds, annotated, spacing = scattered(5)
    ranks, classes = rank(volume, seeds)
    run = SerialRun(Grid(volume.shape, (8, 40, 40)), tmp_path, random)
    drawing = tiled.run_sections(run, Held(volume), Held(ranks), classes, 0, annotated, spacing).drawing
    at = run.grid.box(0).slices
    for folder in ("sections/images", "sections/items"):
        run.scratch.clear(folder)
        with pytest.raises(ScratchError, match="it is missing"):
            tiled.draw_tile(drawing, 0, volume[at], ranks[at].copy())
