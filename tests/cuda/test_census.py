"""The census of seeds, and maps of class maps and labels, on a device, against the Numba kernels, byte for byte."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpa3d.arrays.backend import on_device
from lpa3d.cuda import census as cuda_census
from lpa3d.propagation import census
from lpa3d.propagation.geodesic import link_voxels
from tests import emulator as cuda_emulator
from tests.strategies import class_volumes, connectivities

WIDTHS = (("uint8", "int64"), ("uint16", "int8"), ("uint32", "int32"), ("uint64", "uint16"))
"""Dtypes of classes and ids: not all combinations, each of which is compiled."""

BLOCK_ITEMS = 256 * cuda_census.ITEMS


def same_slices(found, expected):
    """Compare counts per slice across each axis."""
    for counts, others in zip(found, expected, strict=True):
        assert counts.dtype == np.int64
        np.testing.assert_array_equal(counts, others)


def check_counts(device, volume, seeds, capacity=None):
    """Compare the counts of seeds and of the mask; return the rows."""
    here, there = device.bring(volume), device.bring(seeds)
    expected = census.count_seeds(volume, seeds)
    found = census.count_seeds(here, there)
    assert found.rows.dtype == np.int64
    np.testing.assert_array_equal(found.rows, expected.rows)
    same_slices(found.seeded, expected.seeded)
    same_slices(census.count_mask(here), census.count_mask(volume))
    # Tables that are too small at first.
    rows, slices = cuda_census.count_seeds(device, here, there, capacity=2)
    np.testing.assert_array_equal(census.add_rows([rows]), expected.rows)
    same_slices(slices, expected.seeded)
    return expected.rows


def check_ranks(device, volume, seeds, rows):
    """Compare the ranks of the seeds in every second of `rows`, and what is left of the seeds."""
    kept = rows[::2]
    # Tiles mark seeds with the highest bit.
    ranks = census.rank_table(kept[:, 0].copy(), kept[:, 1].copy(), np.arange(1, len(kept) + 1) | 2**31)
    labels = np.zeros(volume.shape, np.uint32)
    on = device.bring(labels)
    census.rank_labels(volume, seeds, ranks, labels)
    census.rank_labels(device.bring(volume), device.bring(seeds), ranks, on)
    np.testing.assert_array_equal(device.fetch(on), labels)

    rest, on_rest = seeds.copy(), device.bring(seeds.copy())
    census.restrict_seeds(labels, rest)
    census.restrict_seeds(on, on_rest)
    np.testing.assert_array_equal(device.fetch(on_rest), rest)


def check_maps(device, volume, labels, connectivity):
    """Compare what is selected by labels, and where there are none."""
    here, on = device.bring(volume), device.bring(labels)
    assert census.any_unlabelled(here, on) == census.any_unlabelled(volume, labels)
    for labelled in (False, True):
        selected = census.select(here, on, labelled=labelled)
        assert device.holds(selected)
        assert selected.dtype == volume.dtype
        np.testing.assert_array_equal(device.fetch(selected), census.select(volume, labels, labelled=labelled))
    links = link_voxels(volume, connectivity)
    beyond = census.list_beyond(volume, labels, links, connectivity)
    on_links = device.bring(links)
    np.testing.assert_array_equal(device.fetch(census.list_beyond(here, on, on_links, connectivity)), beyond)
    np.testing.assert_array_equal(census.list_beyond(volume, labels, on_links, connectivity), beyond)


def check_ids(device, labels, values, in_place=False):
    """Compare the ids of labels."""
    out = labels.view(values.dtype).copy() if in_place else np.empty(labels.shape, values.dtype)
    on = device.bring(out)
    census.apply_ids(out.view(np.uint32) if in_place else labels, values, out)
    census.apply_ids(on.view(np.uint32) if in_place else device.bring(labels), values, on)
    np.testing.assert_array_equal(device.fetch(on), out)


@st.composite
def problems(draw):
    """Draw classes of any width with ids of any width, some on the background and some on several classes."""
    classes, ids = draw(st.sampled_from(WIDTHS))
    volume, dtype = draw(class_volumes(wide=True, dtype=classes)), np.dtype(ids)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):  # classes that differ in their highest bits only, and the one that stands for none
        size = 8 * volume.dtype.itemsize
        volume = np.array([0, 1, 1 + (1 << (size - 1)), 1 << (size - 1)], volume.dtype)[volume]
    most = min(int(np.iinfo(dtype).max), 2**63 - 1)
    names = np.unique(random.integers(1, most, draw(st.sampled_from([1, 6, 300])), endpoint=True))
    seeds = random.choice(np.concatenate([names, [most]]), volume.shape).astype(dtype)
    if draw(st.booleans()):  # pieces of rows and of columns rather than single voxels
        seeds = np.repeat(np.repeat(seeds, 5, axis=2), 4, axis=1)[:, : volume.shape[1], : volume.shape[2]]
    seeds = np.ascontiguousarray(seeds)
    seeds[random.random(seeds.shape) < draw(st.sampled_from([0, 0.5, 0.95, 1]))] = 0
    return volume, seeds


@given(problem=problems())
@settings(max_examples=30)
def test_seeds_are_those_of_the_numba_kernels(device, problem):
    volume, seeds = problem
    check_ranks(device, volume, seeds, check_counts(device, volume, seeds))


@given(volume=class_volumes(wide=True), dtypes=st.sampled_from(WIDTHS), connectivity=connectivities, data=st.data())
@settings(max_examples=20)
def test_maps_are_those_of_the_numba_kernels(device, volume, dtypes, connectivity, data):
    volume = volume.astype(dtypes[0])
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    labels = np.where(volume > 0, random.integers(1, 20, volume.shape), 0).astype(np.uint32)
    values = random.integers(0, 2**63, 20, dtype=np.int64).astype(dtypes[1])
    check_ids(device, labels, values)
    check_maps(device, volume, labels, connectivity)
    labels[random.random(labels.shape) < data.draw(st.sampled_from([0.01, 0.5, 0.97, 1]))] = 0
    check_maps(device, volume, labels, connectivity)
    for wide in (np.int32, np.uint32):
        check_ids(device, labels, values.astype(wide), in_place=True)


def bricks():
    """Return classes and seeds over several bricks of warps: columns of ids that go on from brick to brick."""
    shape = (11, 37, 70)
    z, y, x = np.indices(shape)
    volume = ((x // 9 + y // 5 + z // 4) % 3).astype(np.uint8)
    seeds = np.where((z % 5 == 3) | (x == 69) | (y == 36), 1 + x // 7 + 10 * (y // 7), 0)
    return volume, seeds.astype(np.uint8)


def test_bricks_of_warps(device):
    volume, seeds = bricks()
    check_ranks(device, volume, seeds, check_counts(device, volume, seeds))


@cuda_emulator.any_order
@pytest.mark.parametrize(
    "shape", [(0, 3, 3), (3, 0, 3), (3, 3, 0), (1, 1, 1), (1, 1, 33), (9, 1, 1), (1, 33, 1), (8, 32, 32), (1, 1, 1025)]
)
def test_thin_and_empty_volumes(device, shape):
    volume = (np.arange(np.prod(shape)) % 3).astype(np.uint8).reshape(shape)
    seeds = (np.arange(np.prod(shape)) % 4).astype(np.int64).reshape(shape)
    check_ranks(device, volume, seeds, check_counts(device, volume, seeds))
    labels = seeds.astype(np.uint32)
    check_maps(device, volume, labels, 26)
    check_ids(device, labels, np.arange(10, 14))


@cuda_emulator.any_order
@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_large_ids_and_classes(device, dtype):
    """Ids that are equal as float64, up to the largest; classes that differ in their high words only."""
    ids = np.array([2**53, 2**53 + 1, 2**62, 2**62 + 1, 2**63 - 2, 2**63 - 1], dtype)
    kinds = np.array([0, 1, 2**32 + 1, 2**33 + 1, 2**63, 2**63 + 1, 2**64 - 1], np.uint64)
    seeds, volume = (np.ascontiguousarray(a) for a in np.broadcast_arrays(ids[:, None, None], kinds[None, :, None]))
    rows = check_counts(device, volume, seeds)
    assert len(rows) == seeds.size
    check_ranks(device, volume, seeds, rows)


def test_an_id_on_every_class(device):
    """One half of a pair is the same everywhere, so that threads race for the other half."""
    volume = np.arange(2048, dtype=np.uint16).reshape(8, 8, 32)
    seeds = np.full(volume.shape, 5, np.uint8)
    rows = check_counts(device, volume, seeds)
    assert len(rows) == 2048
    check_ranks(device, volume, seeds, rows)
    check_counts(device, volume // 200, seeds)


def test_a_single_voxel_without_label(device):
    for place in (0, 1, 255, 256, BLOCK_ITEMS - 1, BLOCK_ITEMS, 2 * BLOCK_ITEMS + 1):
        volume = np.ones((1, 1, 2 * BLOCK_ITEMS + 2), np.uint8)
        labels = np.ones(volume.shape, np.uint32)
        labels[0, 0, place] = 0
        assert census.any_unlabelled(device.bring(volume), device.bring(labels)) is True
        volume[0, 0, place] = 0
        assert census.any_unlabelled(device.bring(volume), device.bring(labels)) is False


@cuda_emulator.any_order
def test_arrays_in_memory_stay_there(device):
    """A pass over arrays in memory is not worth their copies, though a device is in use."""
    volume, seeds = bricks()
    labels = seeds.astype(np.uint32)
    expected = census.count_seeds(volume, seeds), census.count_mask(volume)
    with on_device(device), pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "bring", None)
        count = census.count_seeds(volume, seeds)
        masked = census.count_mask(volume)
        assert census.any_unlabelled(volume, labels)
        assert isinstance(census.select(volume, labels, labelled=True), np.ndarray)
        census.rank_labels(volume, seeds, census.rank_table(*np.ones((3, 1), np.int64)), labels)
        census.restrict_seeds(labels, seeds)
        census.apply_ids(labels, np.arange(100), np.empty(labels.shape, np.int64))
    np.testing.assert_array_equal(count.rows, expected[0].rows)
    same_slices(masked, expected[1])


PLANTED = {
    "a run that is not added": ("census.cu", "    add_pair();\n    tally", "    tally"),
    "a run goes on over classes": ("census.cu", "ids[j] != id || here != kind", "ids[j] != id"),
    "a run is not begun anew": ("census.cu", "                        voxels = 0;\n", ""),
    "seeds on the background per slice": ("census.cu", "tally.add(here != 0", "tally.add(ids[j] != 0"),
    "a table that is too small": ("census.cu", "atomicOr(flags, FULL)", "atomicOr(flags, 0u)"),
    "no look at what is met": ("census.cu", "if (kind == empty)", "if (kind == 0 && voxels == 0)"),
    "a sum in two steps": ("census.cu", "atomicAdd(&table[3 * row + 2], (u64)voxels)",
                           "atomicExch(&table[3 * row + 2], table[3 * row + 2] + voxels)"),
    "one row too few": ("census.cu", "rows = (i32)min((i64)SIDE, ny - y)", "rows = (i32)min((i64)SIDE, ny - y - 1)"),
    "one slice too many": ("census.cu", "min((i64)DEPTH, nz - z)", "min((i64)DEPTH, nz - z + 1)"),
    "one column too many": ("census.cu", "column < nx ?", "column <= nx ?"),
    "bricks that overlap": ("census.cu", "y = number % down * SIDE", "y = number % down * (SIDE - 1)"),
    "columns for rows": ("census.cu", "y += lane == j", "y += lane == k"),
    "the second half of a pair": ("pairs.cuh", "if (second == empty || second == b)", "if (second != 0 || b != 0)"),
    "ranks of other classes": ("census.cu", "ranks[3 * slot] != a || ranks[3 * slot + 1] != b", "ranks[3 * slot] != a"),
    "no next slot": ("census.cu", "slot = (slot + 1) & (rows - 1);", "break;"),
    "only labelled borders": ("census.cu", "ranks[k] == 0 ? masks[k] : 0", "masks[k]"),
    "a link too few": ("census.cu", "mask != 0 && !border; mask &= mask - 1", "(mask &= mask - 1) != 0 && !border;"),
    "some voxels of a thread": ("maps.cuh", "items[k] = v < size", "items[k] = k > 0 && v < size"),
}  # fmt: skip


@pytest.mark.each_other
@pytest.mark.parametrize("name", PLANTED)
def test_planted_bugs_are_caught(emulator, name):
    for mode in ("shuffled", "preempt"):
        with cuda_emulator.plant(emulator(mode), *PLANTED[name]) as broken:
            try:
                test_bricks_of_warps(broken)
                check_maps(broken, bricks()[0], bricks()[1].astype(np.uint32), 6)
                test_an_id_on_every_class(broken)
                test_large_ids_and_classes(broken, np.uint64)
            except (AssertionError, IndexError, RuntimeError):
                return
    pytest.fail(f"{name}: not caught")
