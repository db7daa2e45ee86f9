"""Links and the geodesic stage on a device, against the Numba kernels: masks, labels and keys, byte for byte."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpa3d.arrays.backend import on_device
from lpa3d.arrays.neighbors import step_weights
from lpa3d.cuda import geodesic as cuda_geodesic
from lpa3d.errors import RangeError
from lpa3d.propagation.geodesic import LIMIT, cut_links, has_unit_steps, link_voxels, make_keys, spread
from tests import emulator as cuda_emulator
from tests.propagation.test_geodesic import SPACINGS, make_serpentine
from tests.strategies import class_volumes, connectivities

SIDE = cuda_geodesic.SIDE

sides = st.sampled_from([1, 2, SIDE - 1, SIDE, SIDE + 1, 2 * SIDE + 1])
"""Of volumes: one tile, or a few, the last of which is full or not."""


@st.composite
def fields(draw):
    """Draw (volume, sources, connectivity, weights, cost) of a few tiles."""
    shape = draw(st.tuples(sides, sides, sides))
    connectivity = draw(connectivities)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    volume = random.integers(1, draw(st.sampled_from([2, 2, 4])), shape).astype(np.uint8)
    volume[random.random(shape) < draw(st.sampled_from([0, 0.3, 0.6, 0.8]))] = 0
    sources = random.integers(1, draw(st.sampled_from([3, 2**32])), shape).astype(np.uint32)
    sources[(volume == 0) | (random.random(shape) > draw(st.sampled_from([0.003, 0.03, 0.4, 0.97])))] = 0
    most = draw(st.sampled_from([None, 3, 300, LIMIT // 6]))
    if most is None:
        weights = step_weights(connectivity, draw(st.sampled_from(SPACINGS)))
    else:  # steps there and back weigh differently
        weights = random.integers(1, most, connectivity)
    cost = random.integers(1, draw(st.sampled_from([2, 40, 65536])), shape).astype(np.uint16)
    return volume, sources, connectivity, weights, draw(st.sampled_from([None, cost]))


def run(device, volume, sources, connectivity, weights, cost=None, **options):
    """Return the labels, and the error's text if there is one, by a device's kernels or, for None, by Numba's."""
    labels = sources.copy()
    if device is not None:
        volume, labels = device.bring(volume), device.bring(labels)
        cost = None if cost is None else device.bring(cost)
    links = link_voxels(volume, connectivity)
    error = ""
    try:
        spread(labels, links, weights, connectivity, cost=cost, **options)
    except RangeError as caught:
        error = str(caught)
    return labels if device is None else device.fetch(labels), error


def check(device, *field, **options):
    """Compare both back ends; return the labels."""
    expected, error = run(None, *field, **options)
    labels, error_there = run(device, *field, **options)
    np.testing.assert_array_equal(labels, expected)
    assert error_there == error
    return labels


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
@given(volume=class_volumes(wide=True), connectivity=connectivities)
@settings(max_examples=10)
def test_links_are_those_of_the_numba_kernels(device, dtype, volume, connectivity):
    volume = volume.astype(dtype) * 63
    expected = link_voxels(volume, connectivity)
    links = link_voxels(device.bring(volume), connectivity)
    assert links.dtype == expected.dtype
    np.testing.assert_array_equal(device.fetch(links), expected)


@given(volume=class_volumes(), connectivity=connectivities, seed=st.integers(0, 99))
@settings(max_examples=15)
def test_cut_links_are_those_of_the_numba_kernels(device, volume, connectivity, seed):
    labels = np.random.default_rng(seed).integers(0, 2, volume.shape, dtype=np.uint32)
    expected = link_voxels(volume, connectivity)
    links = device.bring(expected)
    here = expected.copy()
    cut_links(expected, labels, connectivity)
    cut_links(links, device.bring(labels), connectivity)
    np.testing.assert_array_equal(device.fetch(links), expected)
    with on_device(device):
        cut_links(here, labels, connectivity)
    np.testing.assert_array_equal(here, expected)


@given(field=fields(), limit=st.none() | st.integers(0, 2000), refill=st.booleans())
@settings(max_examples=30)
def test_labels_are_those_of_the_numba_kernels(device, field, limit, refill):
    check(device, *field, limit=limit, refill=refill)


@pytest.mark.parametrize("connectivity", [18, 26])
def test_paths_through_edges_and_corners_of_tiles(device, connectivity):
    lines = [(1, 1, 0), (1, 0, 1), (0, 1, 1)] if connectivity == 18 else [(1, 1, 1)]
    for line in lines:
        for signs in itertools.product((1, -1), repeat=3):
            check(device, *diagonal(connectivity, line, signs))


def diagonal(connectivity=26, line=(1, 1, 1), signs=(1, 1, 1)):
    """Return a field with a single path, along a diagonal, and a source at one end of it."""
    side = 2 * SIDE + 3
    volume = np.zeros((side, side, side), dtype=np.uint8)
    ahead = np.arange(side)
    # Along the other axes the path stays in the middle of a tile.
    places = [
        (ahead if sign > 0 else ahead[::-1]) if step else ahead * 0 + 3 for step, sign in zip(line, signs, strict=True)
    ]
    volume[tuple(places)] = 1
    labels = np.zeros(volume.shape, dtype=np.uint32)
    labels[tuple(int(place[0]) for place in places)] = 5
    return volume, labels, connectivity, step_weights(connectivity, (1, 1, 1))


def corridor():
    """Return a field with one path through all tiles, from both ends of which labels come."""
    volume, end = make_serpentine(2 * SIDE + 2)
    labels = np.zeros(volume.shape, dtype=np.uint32)
    labels[0, 0, 0] = 2
    labels[end] = 1
    return volume, labels, 6, step_weights(6, (1, 1, 1))


@pytest.mark.parametrize(("few", "alone"), [(4, 1024), (0, 1024), (1, 3)])
def test_a_path_that_winds_through_all_tiles(device, monkeypatch, few, alone):
    monkeypatch.setattr(cuda_geodesic, "FEW", few)
    monkeypatch.setattr(cuda_geodesic, "ALONE", alone)
    labels = check(device, *corridor())
    assert set(np.unique(labels)) == {0, 1, 2}


@pytest.mark.parametrize("connectivity", [6, 26])
def test_ties_where_tiles_meet(device, connectivity):
    shape = (2 * SIDE, SIDE, 2 * SIDE)
    weights = step_weights(connectivity, (1, 1, 1))
    for there in [(SIDE, 3, 3), (SIDE - 1, 4, SIDE), (0, SIDE - 1, 2 * SIDE - 1)]:
        labels = np.zeros(shape, dtype=np.uint32)
        for number, place in enumerate((there, tuple(n - 1 - i for n, i in zip(shape, there, strict=True)))):
            labels[place] = 9 - number
        check(device, np.ones(shape, dtype=np.uint8), labels, connectivity, weights)


def test_sources_on_both_sides_of_the_faces_of_tiles(device):
    shape = (2 * SIDE, 2 * SIDE, 5)
    labels = np.zeros(shape, dtype=np.uint32)
    labels[SIDE - 1, ::3] = 4
    labels[SIDE, 1::3] = 3
    labels[::5, SIDE] = 7
    check(device, np.ones(shape, dtype=np.uint8), labels, 6, step_weights(6, (3, 1, 1)))


@pytest.mark.parametrize("limit", [0, 63, 64, 64 * SIDE - 1, 64 * SIDE, 2**40])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_limit_is_exact(device, limit, axis):
    shape = np.ones(3, dtype=int)
    shape[axis] = 3 * SIDE
    labels = np.zeros(shape, dtype=np.uint32)
    labels.reshape(-1)[[0, 2 * SIDE]] = 1, 2
    check(device, np.ones(shape, dtype=np.uint8), labels, 6, step_weights(6, (1, 1, 1)), limit=limit)


@pytest.mark.parametrize("weight", [LIMIT, LIMIT // 2, LIMIT // 9, LIMIT // 9 + 1, LIMIT + 1])
def test_a_path_beyond_the_largest_distance_is_the_same_error(device, weight):
    # The two lines are out of reach at the same distance: the first gap is named.
    volume = np.zeros((3, 1, 2 * SIDE), dtype=np.uint8)
    volume[::2] = 1
    labels = np.zeros(volume.shape, dtype=np.uint32)
    labels[0, 0, 2] = labels[2, 0, 0] = 1
    weights = np.full(6, weight, dtype=np.int64)
    for limit in (None, 2**40):
        check(device, volume, labels, 6, weights, limit=limit)
    _, error = run(device, volume, labels, 6, weights)
    assert "can be reached only by paths longer" in error


def test_a_cost_beyond_the_largest_distance_is_the_same_error(device):
    shape = (1, SIDE + 3, 2)
    labels = np.zeros(shape, dtype=np.uint32)
    labels[0, 2, 0] = 2**32 - 1
    cost = np.full(shape, 65535, dtype=np.uint16)
    cost[:, :4] = 1
    # At (1, 2**16, 1) a step across rows weighs more than 32 bits hold.
    for spacing in [(1, 2**13, 1), (1, 2**16, 1)]:
        weights = step_weights(26, spacing)
        check(device, np.ones(shape, dtype=np.uint8), labels, 26, weights, cost)
        assert run(device, np.ones(shape, dtype=np.uint8), labels, 26, weights, cost)[1]


@cuda_emulator.any_order
@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 3, 0), (1, 1, 1)])
def test_empty_and_single_voxels(device, shape):
    check(device, np.ones(shape, dtype=np.uint8), np.ones(shape, dtype=np.uint32), 18, step_weights(18, (1, 1, 1)))


@cuda_emulator.any_order
def test_arrays_in_memory_are_worked_on_by_the_device_in_use(device):
    random = np.random.default_rng(8)
    volume = (random.random((SIDE + 2, 7, 2 * SIDE)) < 0.7).astype(np.uint8)
    sources = np.where((volume > 0) & (random.random(volume.shape) < 0.01), 3, 0).astype(np.uint32)
    weights = step_weights(18, (2, 1, 1))
    expected, _ = run(None, volume, sources, 18, weights)
    labels = sources.copy()
    with on_device(device):
        links = link_voxels(volume, 18)
        assert device.holds(links)
        spread(labels, links, weights, 18)
    np.testing.assert_array_equal(labels, expected)
    assert np.count_nonzero(labels) > np.count_nonzero(sources)


@given(field=fields(), limit=st.sampled_from([LIMIT, 700]), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_keys_of_tiles_are_those_of_the_numba_kernels(device, field, limit, seed):
    volume, sources, connectivity, weights, cost = field
    there = []
    for used in (None, device):
        with on_device(used):
            links = link_voxels(volume, connectivity)
            keys = make_keys(sources.copy(), links, weights, connectivity, cost, limit)
        there.append(keys)
    host, other = there
    assert isinstance(other, cuda_geodesic.Keys)

    def compare():
        np.testing.assert_array_equal(other.near, host.near)
        np.testing.assert_array_equal(other.labels, host.labels)
        assert other.find_gap() == host.find_gap()
        # What no device says: that a path which is too long led to a voxel that has a shorter one.
        assert host.beyond or not other.beyond
        assert other.beyond or other.find_gap() < 0

    random = np.random.default_rng(seed)
    for keys in there:
        if has_unit_steps(weights, connectivity, cost):
            keys.spread_steps()
        else:
            keys.spread(refill=bool(seed % 2))
    compare()
    for _ in range(2):
        # Better keys for some voxels, as a tile beside this one would bring.
        distance = np.where(
            host.near > 0, LIMIT + 1 - host.near.astype(np.int64), np.where(host.labels > 0, 0, limit + 1)
        )
        chosen = np.flatnonzero((volume > 0) & (distance > 1) & (random.random(volume.shape) < 0.02))
        better = random.integers(1, distance.reshape(-1)[chosen])
        label = random.integers(1, 9, len(chosen))
        for keys in there:
            keys.near.reshape(-1)[chosen] = LIMIT + 1 - better
            keys.labels.reshape(-1)[chosen] = label
            keys.improve(chosen)
        compare()


# ------------------------------------------------------------------------------------------------------- planted bugs


def two_corridors():
    """Return a field in which a block that is alone has two tiles to do in a round."""
    volume, labels, *rest = corridor()
    return np.concatenate([volume, 0 * volume, volume]), np.concatenate([labels, 0 * labels, labels]), *rest


def costly():
    """Return a field in which paths bend, from tile to tile."""
    random = np.random.default_rng(3)
    shape = (SIDE + 4, SIDE + 3, SIDE + 5)
    labels = np.zeros(shape, dtype=np.uint32)
    labels[0, 0, 0], labels[-1, -1, 0] = 1, 2
    cost = random.integers(1, 400, shape).astype(np.uint16)
    return np.ones(shape, dtype=np.uint8), labels, 26, step_weights(26, (2, 1, 1)), cost


def ties():
    """Return a field of tiles in a row, in which a label comes from the tile before where the own one is as near."""
    labels = np.zeros((1, 1, 16 * SIDE), dtype=np.uint32)
    labels[..., SIDE // 2 :: SIDE] = np.arange(16) + 1
    return np.ones(labels.shape, dtype=np.uint8), labels, 6, step_weights(6, (1, 1, 1))


def line(weights, length=SIDE + 4):
    """Return a field of a single line, with sources at its ends."""
    labels = np.zeros((1, 1, length), dtype=np.uint32)
    labels[0, 0, [0, -1]] = 3, 2
    return np.ones(labels.shape, dtype=np.uint8), labels, 6, np.array(weights)


def far():
    """Return a field whose distances are as large as any that shared memory may hold before it is set."""
    labels = np.zeros((SIDE + 4, SIDE + 3, SIDE + 5), dtype=np.uint32)
    labels[0, 0, 0] = 1
    return np.ones(labels.shape, dtype=np.uint8), labels, 6, np.full(6, LIMIT // sum(labels.shape))


def gaps():
    """Return a field of many voxels that no path within range reaches."""
    labels = np.zeros((1, 1, 1000), dtype=np.uint32)
    labels[..., ::2] = 1
    return np.ones(labels.shape, dtype=np.uint8), labels, 6, np.full(6, LIMIT + 1)


LOAD = "* SIDE + x] = own[z];\n            "
TOLD = "atomicOr(&sides, found);\n            "
NEXT = "(dz * tiles_y + dy) * tiles_x + dx), round"

BUGS = {
    "no barrier after a tile is loaded": (LOAD + "__syncthreads();", LOAD, far),
    "no barrier between the planes of a sweep": ("if (own > 1) __syncthreads();", "", diagonal),
    "no barrier before sides are told": (TOLD + "__syncthreads();", TOLD, corridor),
    "no barrier before the next tile": ("__syncthreads();  // before shared", "// before shared", two_corridors),
    "corners of tiles are forgotten": ("side != 13)", "side != 13 && distance < 3)", diagonal),
    "edges of tiles are forgotten": ("side != 13)", "side != 13 && distance < 2)", lambda: diagonal(18, (1, 0, 1))),
    "the last sweep is not made": ("while (quiet < 6)", "while (quiet < 5)", lambda: line([64] * 6)),
    "a halo that lacks a slice": ("SIDE < ROW * SLICE)", "SIDE < ROW * SLICE - SLICE)", costly),
    "a step out of the tile stays in it": ("y + dy < SIDE ? 1", "y + dy <= SIDE ? 1", lambda: diagonal(6, (0, 1, 0))),
    "a tile is queued for the round that it is in": (NEXT + " + 1);", NEXT + ");", corridor),
    "both lists are one": ("(i64)(round % 2) * queue.tiles + place", "place", corridor),
    "the queue of the round after the next is not empty": ("counts[(round + 2) % 3] = 0;", "", corridor),
    "weights of the steps there, not back": ("[CONNECTIVITY - 1 - k]", "[k]", lambda: line([1, 1, 2, 7, 1, 1])),
    "a smaller label at the same distance stays out": (
        "< tile.keys[there]) sides",
        ">> 32 < tile.keys[there] >> 32) sides",
        ties,
    ),
    "a limit off by one": ("distance <= end ?", "distance < end ?", lambda: line([LIMIT] * 6, 3)),
    "any gap is named": ("if (v < *(volatile i64*)gap) atomicMin(gap, v);", "*gap = v;", gaps),
}  # fmt: skip


@pytest.mark.each_other
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_found(emulator, bug):
    old, new, make = BUGS[bug]
    with cuda_emulator.opened(emulator("shuffled")) as device:
        check(device, *make())
    with (
        cuda_emulator.plant(emulator("shuffled"), "geodesic.cu", old, new) as broken,
        pytest.raises((AssertionError, IndexError)),
    ):
        check(broken, *make())
