"""The geodesic stage over tiles, against the same on the whole volume: any tiles, any order of activations."""

import contextlib
import itertools
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpa3d.arrays.call import Options
from lpa3d.arrays.neighbors import step_weights
from lpa3d.errors import RangeError
from lpa3d.propagation.geodesic import LIMIT, link_voxels, spread
from lpa3d.tiled import geodesic
from lpa3d.tiled.driver.grid import Grid
from lpa3d.tiled.driver.run import open_run
from lpa3d.tiled.driver.stages import Stage
from lpa3d.tiled.driver.stored import Source, open_source
from lpa3d.tiled.geodesic import settle, spread_stage, spread_tiles
from tests.propagation.test_geodesic import cases, make_serpentine

zarr = pytest.importorskip("zarr")

NAME = "reach"


class Memory:
    """Scratch in memory."""

    def __init__(self):
        self.blobs = {}

    def put(self, key, **arrays):
        self.blobs[key] = {name: np.array(array) for name, array in arrays.items()}

    def get(self, key, *names):
        blob = self.blobs[key]
        return {name: blob[name].copy() for name in names or blob}

    def delete(self, key):
        self.blobs.pop(key, None)


class Rows:
    """A journal in memory."""

    def __init__(self):
        self.rows_of, self.done = [], False

    def append(self, stage, *row):
        assert stage == NAME
        self.rows_of.append(row)

    def rows(self, stage, columns):
        assert stage == NAME
        yield np.array(self.rows_of, np.int64).reshape(-1, columns)

    def flush(self):
        """Do nothing: all is there."""

    def finished(self, stage):
        return self.done

    def finish(self, stage):
        self.done = True


class Killed(Exception):
    """The run was killed."""


class Disorder:
    """A run that activates in any order, late, twice, and again after later versions were written."""

    def __init__(self, grid, scratch, journal, random, workers=3, zombies=0.0, lives=None):
        self.grid, self.scratch, self.journal, self.random = grid, scratch, journal, random
        self.workers, self.zombies, self.lives = workers, zombies, lives
        self.calls, self.late = [], []
        self.activations = 0

    @property
    def free(self):
        return self.workers - len(self.calls)

    def begin(self, stage):
        return not self.journal.finished(stage)

    def end(self, stage):
        self.journal.finish(stage)

    def tell(self, stage, fraction):
        assert stage == NAME
        assert 0 <= fraction <= 1

    def start(self, stage, task, spread, tile, *args):
        assert stage == NAME
        assert tile not in [call[2] for call in self.calls]
        self.calls.append((task, spread, tile, *args))

    def wait(self):
        if self.lives is not None and self.random.random() < self.lives:
            self.run_late(1.0)
            raise Killed
        task, *args = self.calls.pop(self.random.integers(len(self.calls)))
        if self.random.random() < self.zombies:
            self.late.append((task, *args))
        self.activations += 1
        value = task(*args)
        self.run_late(0.3)
        return args[1], value

    def run_late(self, share):
        """Run some of the activations that nobody waits for any more; most of what they read is still there."""
        kept = []
        for task, *args in self.late:
            if self.random.random() < share:
                with contextlib.suppress(KeyError):  # what it wants to read has been deleted
                    task(*args[:-1], [])
            else:
                kept.append((task, *args))
        self.late = kept


@dataclass(frozen=True)
class Arrays:
    """A field of arrays."""

    grid: Grid
    volume: Any
    labels: Any
    cost: Any

    def load(self, tile):
        return self.read(self.grid.box(tile))

    def load_border(self, box):
        return self.read(box)[1:]

    def read(self, box):
        cost = None if self.cost is None else self.cost[box.slices].copy()
        return self.volume[box.slices].copy(), self.labels[box.slices].copy(), cost


def class_table(volume, labels):
    """Return the class of each label."""
    table = np.zeros(int(labels.max(initial=0)) + 1, np.uint64)
    table[labels] = np.where(labels > 0, volume, 0)
    return table


@contextlib.contextmanager
def one_thread():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LPA3D_NUM_THREADS", "1")
        yield


def spread_disorderly(run, field, volume, labels, weights, connectivity, limit, active=None):
    """Run until it is not killed any more; return all labels."""
    deaths = 0
    while True:
        try:
            done = spread_tiles(run, NAME, field, class_table(volume, labels), weights, connectivity, limit, active)
            break
        except Killed:
            deaths += 1
            # Of what was in flight some goes on, and is late.
            run.late += [call for call in run.calls if run.random.random() < 0.5]
            run.calls = []
            if deaths == 5:
                run.lives = None
    run.run_late(1.0)
    out = labels.copy()
    for tile in range(len(run.grid)) if active is None else active:
        out[run.grid.box(tile).slices] = settle(done, tile)
    return out


tiles = st.tuples(*[st.integers(1, 6)] * 3) | st.tuples(*[st.integers(1, 2)] * 3) | st.just((20, 9, 200))


@given(
    case=cases(),
    tile=tiles,
    limit=st.none() | st.integers(0, 2000),
    seed=st.integers(0, 2**32 - 1),
    workers=st.integers(1, 6),
    zombies=st.sampled_from([0.0, 0.3]),
    lives=st.sampled_from([None, 0.1]),
    garbage=st.sampled_from([0, 3, 64]),
)
@settings(max_examples=50)
def test_any_order_of_activations_gives_the_labels_of_the_whole_volume(
    case, tile, limit, seed, workers, zombies, lives, garbage
):
    volume, labels, connectivity, spacing, cost = case
    weights = step_weights(connectivity, spacing)
    expected = labels.copy()
    spread(expected, link_voxels(volume, connectivity), weights, connectivity, cost=cost, limit=limit)
    grid = Grid(volume.shape, tile)
    run = Disorder(grid, Memory(), Rows(), np.random.default_rng(seed), workers, zombies, lives)
    with one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(geodesic, "GARBAGE", garbage)
        found = spread_disorderly(run, Arrays(grid, volume, labels, cost), volume, labels, weights, connectivity, limit)
    np.testing.assert_array_equal(found, expected)


@given(case=cases(share=(0.5, 0.9)), tile=tiles, seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.02, 0.3]))
@settings(max_examples=30)
def test_tiles_that_are_not_active_are_sources(case, tile, seed, share):
    """A volume is filled, some of its voxels are cleared, and only the tiles that hold these are activated."""
    volume, labels, connectivity, spacing, cost = case
    random = np.random.default_rng(seed)
    weights = step_weights(connectivity, spacing)
    links = link_voxels(volume, connectivity)
    spread(labels, links, weights, connectivity, cost=cost)
    volume = np.where(labels > 0, volume, 0).astype(np.uint8)
    labels = np.where(random.random(labels.shape) < share, 0, labels).astype(np.uint32)
    grid = Grid(volume.shape, tile)
    active = [i for i in range(len(grid)) if ((labels == 0) & (volume > 0))[grid.box(i).slices].any()]
    expected = labels.copy()
    spread(expected, link_voxels(volume, connectivity), weights, connectivity, cost=cost)
    run = Disorder(grid, Memory(), Rows(), random, lives=0.05)
    with one_thread():
        found = spread_disorderly(
            run, Arrays(grid, volume, labels, cost), volume, labels, weights, connectivity, None, active
        )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.each_value
@pytest.mark.parametrize("tile", [(3, 5, 4), (32, 1, 1), (1, 7, 32)])
@pytest.mark.parametrize(("connectivity", "spacing"), [(6, (1, 1, 1)), (6, (2, 1, 1)), (26, (1, 1, 1))])
def test_a_corridor_that_crosses_every_tile_many_times(tile, connectivity, spacing):
    volume, end = make_serpentine(16)
    labels = np.zeros(volume.shape, np.uint32)
    labels[0, 0, 0], labels[end] = 2, 1
    weights = step_weights(connectivity, spacing)
    expected = labels.copy()
    spread(expected, link_voxels(volume, connectivity), weights, connectivity)
    assert (expected > 0).sum() == (volume > 0).sum()
    grid = Grid(volume.shape, tile)
    run = Disorder(grid, Memory(), Rows(), np.random.default_rng(1), workers=2)
    with one_thread():
        found = spread_disorderly(run, Arrays(grid, volume, labels, None), volume, labels, weights, connectivity, None)
    np.testing.assert_array_equal(found, expected)


def test_only_keys_that_are_outdated_are_deleted(monkeypatch):
    monkeypatch.setattr(geodesic, "GARBAGE", 1)
    volume, end = make_serpentine(12)
    labels = np.zeros(volume.shape, np.uint32)
    labels[0, 0, 0], labels[end] = 2, 1
    grid = Grid(volume.shape, (6, 6, 6))
    run = Disorder(grid, Memory(), Rows(), np.random.default_rng(1), workers=2)
    spread_disorderly(run, Arrays(grid, volume, labels, None), volume, labels, step_weights(6, (1, 1, 1)), 6, None)
    versions = sum(version > 0 for tile, version in run.journal.rows_of if tile >= 0)
    kept = sum(key.startswith(f"{NAME}/keys/") for key in run.scratch.blobs)
    assert versions > 30
    assert kept <= len(grid) + 3


@pytest.mark.parametrize("tile", [(1, 1, 1), (1, 1, 2), (1, 1, 3), (1, 1, 9)])
@pytest.mark.parametrize(("weight", "reached"), [(LIMIT, 2), (LIMIT // 2, 3), (LIMIT - 64, 2), (LIMIT + 1, 1)])
def test_a_path_beyond_the_largest_distance_is_an_error_unless_there_is_a_limit(tile, weight, reached):
    volume = np.ones((1, 1, 4), np.uint8)
    labels = np.zeros(volume.shape, np.uint32)
    labels[0, 0, 0] = 1
    weights = np.full(6, weight)
    grid = Grid(volume.shape, tile)
    field = Arrays(grid, volume, labels, None)
    run = Disorder(grid, Memory(), Rows(), np.random.default_rng(1))
    limited = spread_disorderly(run, field, volume, labels, weights, 6, 2**40)
    assert np.count_nonzero(limited) == reached
    run = Disorder(grid, Memory(), Rows(), np.random.default_rng(1))
    with pytest.raises(RangeError, match=rf"voxel \(0, 0, {reached}\)"):
        spread_disorderly(run, field, volume, labels, weights, 6, None)


def test_a_longer_way_that_is_out_of_range_is_no_error():
    volume = np.ones((1, 1, 3), np.uint8)
    labels = np.array([[[1, 0, 2]]], np.uint32)
    weights = np.array([1, 1, LIMIT + 1, 5, 1, 1])  # a step towards smaller x is too far
    for tile in ((1, 1, 1), (1, 1, 2)):
        grid = Grid(volume.shape, tile)
        run = Disorder(grid, Memory(), Rows(), np.random.default_rng(1))
        found = spread_disorderly(run, Arrays(grid, volume, labels, None), volume, labels, weights, 6, None)
        assert found.ravel().tolist() == [1, 1, 2]


def test_tiles_are_solved_less_than_twice_where_sources_are_near(monkeypatch):
    random = np.random.default_rng(3)
    volume = (random.random((24, 32, 32)) < 0.9).astype(np.uint8)
    labels = np.zeros(volume.shape, np.uint32)
    labels[::4] = volume[::4] * random.integers(1, 40, (6, 32, 32))
    grid = Grid(volume.shape, (8, 8, 8))
    solved = []
    solve = geodesic._solve
    monkeypatch.setattr(geodesic, "_solve", lambda *args: solved.append(args[1]) or solve(*args))
    field = Arrays(grid, volume, labels, None)
    run = Disorder(grid, Memory(), Rows(), np.random.default_rng(1), workers=1)
    for _ in range(2):
        spread_tiles(run, NAME, field, class_table(volume, labels), step_weights(6, (1, 1, 1)), 6)
        assert len(solved) < 1.7 * len(grid)
        run.journal.done = False  # all borders are looked at again, and nothing is solved


@dataclass(frozen=True)
class Stored:
    """A field of stored arrays."""

    grid: Grid
    volume: Source
    labels: Source

    def load(self, tile):
        box = self.grid.box(tile)
        return self.volume.read(box), self.labels.read(box), None

    def load_border(self, box):
        raise AssertionError(box)


def write_settled(spread, tile):
    """Settle a tile and keep its labels."""
    spread.scratch.put(f"settled/{tile}", labels=settle(spread, tile))


@pytest.mark.parametrize("connectivity", [6, 26])
def test_a_run_on_threads_that_keeps_files_goes_on_where_it_failed(tmp_path, connectivity, monkeypatch):
    volume, end = make_serpentine(12)
    labels = np.zeros(volume.shape, np.uint32)
    labels[0, 0, 0], labels[end] = 2, 1
    for name, array in {"volume": volume, "labels": labels}.items():
        zarr.create_array(str(tmp_path / name), shape=array.shape, dtype=array.dtype, chunks=(5, 7, 6))[:] = array
    volume_source, labels_source = (open_source(tmp_path / name, name) for name in ("volume", "labels"))
    weights = step_weights(connectivity, (1, 1, 1))
    monkeypatch.setattr(geodesic, "GARBAGE", 5)

    def run_once(fails_after):
        options = Options(tile=(4, 4, 6), scratch=tmp_path / "run")
        stages = [spread_stage(NAME), Stage("settled", reads=(NAME,), keeps=("settled",))]
        how = {"stages": stages, "bytes_per_voxel": 20}
        with open_run("reach", {"volume": volume_source}, {}, {}, options, **how) as run:
            field = Stored(run.grid, volume_source, labels_source)
            wait, count = run.wait, itertools.count(1)

            def wait_and_fail():
                if next(count) > fails_after:
                    raise Killed
                return wait()

            run.wait = wait_and_fail
            done = spread_tiles(run, NAME, field, class_table(volume, labels), weights, connectivity)
            run.map("settled", write_settled, pickle.loads(pickle.dumps(done)))
            out = np.zeros_like(labels)
            for tile in range(len(run.grid)):
                out[run.grid.box(tile).slices] = run.scratch.get(f"settled/{tile}")["labels"]
            return out

    for _ in range(3):
        with pytest.raises(Killed):
            run_once(20)
    found = run_once(10**9)
    spread(labels, link_voxels(volume, connectivity), weights, connectivity)
    np.testing.assert_array_equal(found, labels)


@pytest.mark.each_value
@pytest.mark.parametrize(
    ("connectivity", "steps"), [(18, (0, 1, 1)), (18, (1, 0, 1)), (18, (1, 1, 0)), (26, (1, 1, 1))]
)
@pytest.mark.parametrize("tile", [1, 2])
@pytest.mark.parametrize("flip", [0, 1, 2])
@pytest.mark.parametrize("end", [0, 9])
def test_a_diagonal_way_leads_from_tile_to_tile_across_edges_and_corners(connectivity, steps, tile, flip, end):
    way = np.arange(10)
    places = np.stack([way * step for step in steps])
    volume = np.zeros(places.max(axis=1) + 1, np.uint8)
    labels = np.zeros(volume.shape, np.uint32)
    volume[tuple(places)] = 1
    labels[tuple(places[:, end])] = 5
    volume, labels = (np.ascontiguousarray(np.flip(array, flip)) for array in (volume, labels))
    grid = Grid(volume.shape, (tile,) * 3)
    run = Disorder(grid, Memory(), Rows(), np.random.default_rng(1), workers=1)
    field = Arrays(grid, volume, labels, None)
    found = spread_disorderly(run, field, volume, labels, step_weights(connectivity, (1, 1, 1)), connectivity, None)
    np.testing.assert_array_equal(found, 5 * volume)
