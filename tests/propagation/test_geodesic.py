"""Links and the geodesic stage, against the plain restatement, scipy's shortest paths and scikit-image's watershed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from skimage.segmentation import watershed

from lpa3d.arrays.neighbors import neighbor_offsets, step_weights
from lpa3d.errors import RangeError
from lpa3d.propagation import fronts as _levels
from lpa3d.propagation import geodesic as _geodesic
from lpa3d.propagation.geodesic import LIMIT, cut_links, link_voxels, spread
from tests import naive
from tests.strategies import class_volumes, connectivities

SPACINGS = [(1.0, 1.0, 1.0), (40.0, 8.0, 8.0), (1.0, 2.0, 3.0), (5.0, 5.0, 5.0)]


@pytest.fixture(params=[(1, 0), (2, 0), (4, 0), (3, 3)], ids=["1", "2", "4", "3, alone while few"])
def threads(request, monkeypatch):
    """Run with so many threads, on slabs and tiles of a few voxels."""
    count, few = request.param
    monkeypatch.setenv("LPA3D_NUM_THREADS", str(count))
    monkeypatch.setattr(_levels, "FEW", few)
    monkeypatch.setattr(_geodesic, "TILE", (2, 3, 2))
    return count


@st.composite
def cases(draw, share=(0.02, 0.1, 0.5)):
    """Draw (volume, seeds, connectivity, spacing, cost): every id on one class only."""
    volume = draw(class_volumes(wide=draw(st.booleans())))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = 4 * random.integers(1, 5, volume.shape) + volume
    seeds = np.where((volume > 0) & (random.random(volume.shape) < draw(st.sampled_from(share))), ids, 0)
    cost = random.integers(1, draw(st.sampled_from([2, 40, 65536])), volume.shape).astype(np.uint16)
    return (
        volume,
        seeds.astype(np.uint32),
        draw(connectivities),
        draw(st.sampled_from(SPACINGS)),
        draw(st.sampled_from([None, cost])),
    )


def mask_bits(links, connectivity):
    """Return {offset: where a link leads there}."""
    return {tuple(o): (links >> k & 1).astype(bool) for k, o in enumerate(neighbor_offsets(connectivity).tolist())}


def restate_links(volume, connectivity, spacing=(1, 1, 1), cost=None):
    """Return the plain links of a volume."""
    return naive.links(volume.astype(np.int64), connectivity, spacing, None if cost is None else cost.astype(np.int64))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
@given(volume=class_volumes(wide=True), connectivity=connectivities)
@settings(max_examples=20)
def test_links_are_neighbours_of_the_same_class(dtype, volume, connectivity):
    links = link_voxels(volume.astype(dtype) * 63, connectivity)
    assert links.dtype == (np.uint8 if connectivity == 6 else np.uint32)
    bits = mask_bits(links, connectivity)
    for offset, weights, _ in restate_links(volume, connectivity):
        np.testing.assert_array_equal(bits[offset], weights > 0)
    assert not (links >> len(bits)).any()


@given(volume=class_volumes(), connectivity=connectivities, seed=st.integers(0, 99))
def test_cut_links_are_those_of_the_labelled_voxels(volume, connectivity, seed):
    labels = np.random.default_rng(seed).integers(0, 2, volume.shape, dtype=np.uint32)
    links = link_voxels(volume, connectivity)
    cut_links(links, labels, connectivity)
    np.testing.assert_array_equal(links, link_voxels(np.where(labels > 0, volume, 0).astype(np.uint8), connectivity))


@pytest.mark.interpreted
@given(case=cases(), limit=st.none() | st.integers(0, 2000), refill=st.booleans())
@settings(max_examples=40)
@pytest.mark.usefixtures("threads")
def test_spread_is_dijkstra(case, limit, refill):
    volume, seeds, connectivity, spacing, cost = case
    labels = seeds.copy()
    links = link_voxels(volume, connectivity)
    before = links.copy()
    spread(labels, links, step_weights(connectivity, spacing), connectivity, cost=cost, limit=limit, refill=refill)
    plain = restate_links(volume, connectivity, spacing, cost)
    np.testing.assert_array_equal(labels, naive.geodesic(seeds, plain, LIMIT if limit is None else limit))
    np.testing.assert_array_equal(links, before)


def measure_distances(links, weights, connectivity, cost, labels):
    """Return each label's distance to every voxel (inf where none leads there), by scipy: {label: distances}."""
    shape = links.shape
    index = np.arange(links.size).reshape(shape)
    rows, columns, values = [], [], []
    for (offset, linked), weight in zip(mask_bits(links, connectivity).items(), weights.tolist(), strict=True):
        at = np.argwhere(linked)
        there = at + offset
        if cost is not None:
            both = cost[tuple(at.T)].astype(np.int64) + cost[tuple(there.T)]
            weight = np.maximum(1, (weight * both + 16) >> 5)
        rows.append(index[tuple(at.T)])
        columns.append(index[tuple(there.T)])
        values.append(np.broadcast_to(weight, len(at)))
    graph = coo_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(links.size, links.size)
    ).tocsr()
    return {
        label: dijkstra(graph, indices=np.flatnonzero(labels == label), min_only=True).reshape(shape)
        for label in np.unique(labels[labels > 0]).tolist()
    }


@pytest.mark.each_value
@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("spacing", SPACINGS[:2])
@pytest.mark.parametrize("costly", [False, True])
@pytest.mark.usefixtures("threads")
def test_labels_are_the_nearest_by_shortest_paths(connectivity, spacing, costly):
    random = np.random.default_rng(connectivity)
    volume = (random.random((19, 23, 17)) < 0.75).astype(np.uint8)
    cost = random.integers(1, 64, volume.shape).astype(np.uint16) if costly else None
    seeds = np.where((volume > 0) & (random.random(volume.shape) < 0.004), random.integers(1, 9, volume.shape), 0)
    labels = seeds.astype(np.uint32)
    links = link_voxels(volume, connectivity)
    weights = step_weights(connectivity, spacing)
    spread(labels, links, weights, connectivity, cost=cost)
    distances = measure_distances(links, weights, connectivity, cost, seeds)
    names = np.array(list(distances))
    stack = np.stack(list(distances.values()))
    # argmin takes the first of equal ones, the smallest label.
    expected = np.where(np.isfinite(stack.min(axis=0)), names[stack.argmin(axis=0)], 0)
    np.testing.assert_array_equal(labels, expected)

    if connectivity == 6 and not costly and spacing == (1, 1, 1):
        flooded = watershed(np.zeros(volume.shape, np.uint8), seeds.astype(np.int32), mask=volume > 0, connectivity=1)
        lead = np.sort(stack, axis=0)
        unique = (lead[0] < lead[1]) & (volume > 0)
        assert unique.sum() > 1000
        np.testing.assert_array_equal(labels[unique], flooded[unique])


@pytest.mark.parametrize("spacing", SPACINGS[:2])
def test_flat_indices_of_64_bits(spacing, monkeypatch):
    monkeypatch.setenv("LPA3D_NUM_THREADS", "2")
    monkeypatch.setattr(_geodesic, "TILE", (2, 3, 2))
    for module in (_geodesic, _levels):
        monkeypatch.setattr(module, "flat_dtype", lambda size: np.int64)
    random = np.random.default_rng(5)
    volume = (random.random((6, 9, 7)) < 0.8).astype(np.uint8)
    seeds = np.where(random.random(volume.shape) < 0.05, volume * random.integers(1, 9, volume.shape), 0)
    labels = seeds.astype(np.uint32)
    spread(labels, link_voxels(volume, 6), step_weights(6, spacing), 6)
    np.testing.assert_array_equal(labels, naive.geodesic(seeds, restate_links(volume, 6, spacing)))


def make_serpentine(side):
    """Return a cube with one corridor, a voxel wide, through all of it; its ends are at the origin and returned."""
    volume = np.zeros((side, side, side), dtype=np.uint8)
    volume[::2, ::2] = 1
    x, y = 0, 0
    for z in range(0, side - 1, 2):
        for row in range(side // 2 - 1):
            x = side - 1 - x
            volume[z, y + 1 if z % 4 == 0 else y - 1, x] = 1
            y += 2 if z % 4 == 0 else -2
            assert 0 <= y < side, row
        x = side - 1 - x
        if z + 2 < side:
            volume[z + 1, y, x] = 1
    return volume, (z, y, x)


@pytest.mark.parametrize("spacing", SPACINGS[:2])
def test_a_corridor_through_a_cube_takes_linear_time(spacing):
    volume, end = make_serpentine(256)
    links = link_voxels(volume, 6)
    ends = np.array([bin(mask).count("1") for mask in range(64)])[links[volume > 0]]
    assert np.count_nonzero(ends == 1) == 2
    assert np.count_nonzero(ends == 2) == len(ends) - 2
    labels = np.zeros(volume.shape, dtype=np.uint32)
    labels[0, 0, 0] = 2
    labels[end] = 1
    spread(labels, links, step_weights(6, spacing), 6)
    assert (labels[volume > 0] > 0).all()
    if spacing == (1, 1, 1):
        ones, twos = (np.count_nonzero(labels == label) for label in (1, 2))
        assert ones - twos in (0, 1)


def test_of_equal_distances_the_smallest_label_wins_whatever_the_order():
    line = np.zeros((1, 1, 9), dtype=np.uint32)
    line[0, 0, [0, 8]] = 7, 3
    for weights in (step_weights(6, (1, 1, 1)), step_weights(6, (2, 2, 1))):
        labels = line.copy()
        spread(labels, link_voxels(np.ones((1, 1, 9), np.uint8), 6), weights, 6)
        assert labels.ravel().tolist() == [7, 7, 7, 7, 3, 3, 3, 3, 3]


@pytest.mark.parametrize(("weight", "reached"), [(LIMIT, 2), (LIMIT // 2, 3), (LIMIT - 64, 2), (LIMIT + 1, 1)])
@pytest.mark.parametrize("refill", [False, True])
@pytest.mark.usefixtures("threads")
def test_a_path_beyond_the_largest_distance_is_an_error_unless_there_is_a_limit(weight, reached, refill):
    labels = np.zeros((1, 1, 4), dtype=np.uint32)
    labels[0, 0, 0] = 1
    links = link_voxels(np.ones(labels.shape, dtype=np.uint8), 6)
    weights = np.full(6, weight, dtype=np.int64)
    limited = labels.copy()
    spread(limited, links, weights, 6, limit=2**40, refill=refill)
    assert np.count_nonzero(limited) == reached
    with pytest.raises(RangeError, match=rf"voxel \(0, 0, {reached}\)") as caught:
        spread(labels, links, weights, 6, refill=refill)
    assert isinstance(caught.value, OverflowError)


@pytest.mark.usefixtures("threads")
def test_a_longer_way_that_is_out_of_range_is_no_error():
    labels = np.zeros((1, 1, 3), dtype=np.uint32)
    labels[0, 0, [0, 2]] = 1, 2
    links = link_voxels(np.ones(labels.shape, dtype=np.uint8), 6)
    weights = np.array([1, 1, LIMIT + 1, 5, 1, 1])  # a step towards smaller x is too far
    spread(labels, links, weights, 6)
    assert labels.ravel().tolist() == [1, 1, 2]


def test_what_no_source_reaches_stays_unlabelled():
    volume = np.array([[[1, 1, 0, 1, 2, 1]]], dtype=np.uint8)
    labels = np.array([[[5, 0, 0, 0, 0, 0]]], dtype=np.uint32)
    spread(labels, link_voxels(volume, 26), step_weights(26, (1, 1, 1)), 26)
    assert labels.ravel().tolist() == [5, 5, 0, 0, 0, 0]


@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 0, 3), (3, 3, 0), (1, 1, 1)])
def test_empty_and_single_voxels(shape):
    labels = np.ones(shape, dtype=np.uint32)
    links = link_voxels(np.ones(shape, dtype=np.uint8), 18)
    spread(labels, links, step_weights(18, (1, 1, 1)), 18)
    cut_links(links, labels, 18)
    assert (labels == 1).all()
    assert (links == 0).all()
