"""Diffusion and reattachment, against the plain restatement."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpa3d.arrays.neighbors import step_weights
from lpa3d.arrays.rounds import run_rounds
from lpa3d.propagation import diffusion as _diffuse
from lpa3d.propagation.diffusion import diffuse
from lpa3d.propagation.geodesic import cut_links, link_voxels, spread
from lpa3d.propagation.reattachment import clear_unseeded, reattach
from tests import naive
from tests.propagation.test_geodesic import cases, restate_links


@pytest.fixture(params=[1, 2, 4])
def threads(request, monkeypatch):
    """Run with so many threads, however little there is to do."""
    monkeypatch.setenv("LPA3D_NUM_THREADS", str(request.param))
    monkeypatch.setattr(_diffuse, "SMALL", -1)
    return request.param


def prepare(case):
    """Return labels of what the seeds of a case reach, links between those, path weights, conductances."""
    volume, seeds, connectivity, spacing, cost = case
    weights = step_weights(connectivity, spacing)
    labels = seeds.copy()
    links = link_voxels(volume, connectivity)
    spread(labels, links, weights, connectivity, cost=cost)
    cut_links(links, labels, connectivity)
    return labels, links, weights, np.maximum(1, np.rint(65536 * (64 / weights) ** 2)).astype(np.int64)


@pytest.mark.interpreted
@given(case=cases(share=(0.1, 0.4)), sweeps=st.integers(0, 14), mixed=st.booleans())
@settings(max_examples=40)
@pytest.mark.usefixtures("threads")
def test_diffusion_is_the_plain_average(case, sweeps, mixed):
    volume, seeds, connectivity, spacing, cost = case
    labels, links, _, conductances = prepare(case)
    plain = restate_links(np.where(labels > 0, volume, 0), connectivity, spacing, cost)
    by_label = np.full(labels.max() + 1, sweeps)
    if mixed:  # a number for each class
        by_label = np.array([0, 2, 0, 7])[np.arange(labels.max() + 1) % 4]
    expected, lead = naive.diffuse(labels.astype(np.int64), seeds, plain, np.where(labels > 0, by_label[labels], 0))
    confidence = diffuse(
        labels, links, seeds, conductances, connectivity, by_label if mixed else sweeps, cost=cost,
        return_confidence=True,
    )  # fmt: skip
    np.testing.assert_array_equal(labels, expected)
    lead[(seeds > 0) | (labels == 0)] = 65535
    np.testing.assert_array_equal(confidence, lead)


@pytest.mark.each_value
@pytest.mark.parametrize("sweeps", [1, 100, 253, 254, 255, 256, 400])
@pytest.mark.usefixtures("threads")
def test_far_from_a_border_and_many_sweeps(sweeps):
    shape = (1, 2, 700)
    seeds = np.zeros(shape, dtype=np.int8)
    labels = np.ones(shape, dtype=np.uint32)
    labels[:, :, 5:] = 2
    seeds[0, 0, 0] = 1
    seeds[0, 1, 699] = 2
    links = link_voxels(np.ones(shape, dtype=np.uint8), 6)
    plain = restate_links(np.ones(shape), 6)
    expected, _ = naive.diffuse(labels.astype(np.int64), seeds, plain, np.full(shape, sweeps))
    assert diffuse(labels, links, seeds, np.full(6, 65536), 6, sweeps) is None
    np.testing.assert_array_equal(labels, expected)


@given(case=cases(share=(0.1,)), seed=st.integers(0, 99))
@settings(max_examples=40)
@pytest.mark.usefixtures("threads")
def test_reattachment_fills_what_holds_no_seed(case, seed):
    volume, seeds, connectivity, spacing, cost = case
    labels, links, weights, _ = prepare(case)
    random = np.random.default_rng(seed)
    moved = np.where(random.random(labels.shape) < 0.3, 4 * random.integers(1, 5, labels.shape) + volume, labels)
    labels = np.where(labels > 0, np.where(seeds > 0, seeds, moved), 0).astype(np.uint32)
    kept = naive.clear(labels.astype(np.int64), seeds, connectivity)
    plain = restate_links(np.where(labels > 0, volume, 0), connectivity, spacing, cost)
    expected = naive.geodesic(kept, plain)

    cleared = labels.copy()
    count = clear_unseeded(cleared, seeds, connectivity)
    np.testing.assert_array_equal(cleared, kept)
    assert count == len(np.unique(naive.label(labels.astype(np.int64), connectivity)[kept != labels]))

    confidence = np.full(labels.shape, 9, dtype=np.uint16)
    filled = reattach(labels, links, seeds, weights, connectivity, cost=cost, confidence=confidence)
    assert filled == count
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(
        confidence, np.where(kept != cleared, 9, np.where((kept == 0) & (expected > 0), 0, 9))
    )


def test_a_tie_goes_to_the_smaller_label_and_has_no_lead():
    seeds = np.array([[[9, 0, 4]]], dtype=np.uint64)
    labels = np.array([[[9, 9, 4]]], dtype=np.uint32)
    links = link_voxels(np.ones(seeds.shape, dtype=np.uint8), 6)
    confidence = diffuse(labels, links, seeds, np.ones(6, dtype=np.int64), 6, 1, return_confidence=True)
    assert labels.ravel().tolist() == [9, 4, 4]
    assert confidence.ravel().tolist() == [65535, 32767 - 32767, 65535]


def test_a_list_that_would_be_empty_stays():
    # Far more conductance towards a label that has decayed to 0 cannot be had; a voxel between two seeds and a list of
    # neighbours at 1 of 65535 can: 1 * 1 // 2 is 0.
    shape = (1, 1, 40)
    seeds = np.zeros(shape, dtype=np.uint8)
    seeds[0, 0, [0, 39]] = 1
    labels = np.ones(shape, dtype=np.uint32)
    labels[0, 0, 20:] = 2
    links = link_voxels(np.ones(shape, dtype=np.uint8), 6)
    plain = restate_links(np.ones(shape), 6)
    expected, lead = naive.diffuse(labels.astype(np.int64), seeds, plain, np.full(shape, 2000))
    lead[seeds > 0] = 65535
    confidence = diffuse(labels, links, seeds, np.full(6, 65536), 6, 2000, return_confidence=True)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(confidence, lead)


@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 3, 0), (1, 1, 1), (1, 1, 5), (5, 1, 1), (1, 5, 1)])
def test_thin_volumes(shape):
    labels = np.ones(shape, dtype=np.uint32)
    labels[:1, :1, :1] = 2
    seeds = np.zeros(shape, dtype=np.int64)
    links = link_voxels(np.ones(shape, dtype=np.uint8), 6)
    plain = restate_links(np.ones(shape), 6)
    expected = labels.copy()
    if labels.size:
        expected, _ = naive.diffuse(labels.astype(np.int64), seeds, plain, np.full(shape, 3))
    diffuse(labels, links, seeds, np.full(6, 65536), 6, 3)
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("workers", [1, 3])
def test_rounds_stop_and_pass_on_the_first_error(workers):
    done = []

    def advance():
        done.append("turn")
        return done.count("turn") < 3

    run_rounds(done.append, advance, workers)
    assert done.count("turn") == 3
    assert sorted(item for item in done if item != "turn") == sorted(3 * list(range(workers)))

    def fail(worker):
        if worker == workers - 1:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_rounds(fail, lambda: True, workers)

    def stop():
        raise KeyError

    with pytest.raises(KeyError):
        run_rounds(lambda worker: None, stop, workers)
