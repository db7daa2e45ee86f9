"""The census and the sections stage, through `propagate`: against a plain restatement, and on made cases."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lpa3d
from tests import naive
from tests.strategies import annotate_blobs, annotated_blobs, moving_blobs

pytestmark = pytest.mark.filterwarnings("ignore::lpa3d.errors.Lpa3dWarning")


def drawn_across(caplog, volume, seeds, **options):
    """Run the sections stage only; return (labels, the axis and number of annotated slices, None where not planar)."""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="lpa3d"):
        labels = lpa3d.propagate(volume, seeds, sweeps=0, **options)
    found = [record.args for record in caplog.records if "annotated slices" in record.msg]
    return labels, (found[0][1], found[0][0]) if found else None


def squares(n=9, side=6, count=7, motion=(0, 1), gap=2):
    """Return (volume, instances) of a full mask tiled by squares that move together, `motion` voxels a slice."""
    size = side * count
    y, x = np.indices((size, size))
    instances = np.zeros((n, size, size), dtype=np.int64)
    for z in range(n):
        row, column = ((grid - step * z) // side for grid, step in ((y, motion[0]), (x, motion[1])))
        instances[z] = 1 + (row + 20) + 50 * (column + 20)
    return np.ones(instances.shape, dtype=np.uint8), instances


def every(instances, k, first=0, axis=0):
    seeds = np.zeros_like(instances)
    at = (slice(None),) * axis + (slice(first, None, k),)
    seeds[at] = instances[at]
    return seeds


def share_right(labels, instances):
    inside = instances > 0
    return (labels == instances)[inside].mean()


@pytest.mark.long  # the restatement takes seconds; there are examples below in which sections are drawn
@settings(max_examples=2)
@given(annotated_blobs)
def test_equals_the_plain_restatement(arguments):
    expected, confidence, _ = naive.propagate(**arguments)
    if arguments["sweeps"] == 0:
        np.testing.assert_array_equal(lpa3d.propagate(**arguments), expected)
    else:
        labels, lead = lpa3d.propagate(**arguments, return_confidence=True)
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_array_equal(lead, confidence)


@pytest.mark.parametrize(
    ("seed", "sweeps"), [(0, 1), *(pytest.param(seed, 0, marks=pytest.mark.long) for seed in (0, 3, 5, 6, 7))]
)
def test_drawn_sections_equal_the_plain_restatement(seed, sweeps):
    # Examples in which the switch passes, whatever hypothesis draws.
    arguments = annotate_blobs(seed) | {"sweeps": sweeps}
    expected, confidence, drawn = naive.propagate(**arguments)
    assert drawn
    if sweeps == 0:
        np.testing.assert_array_equal(lpa3d.propagate(**arguments), expected)
    else:
        labels, lead = lpa3d.propagate(**arguments, return_confidence=True)
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_array_equal(lead, confidence)


@pytest.mark.parametrize("motion", [(0, 1), (-1, 1), (2, 0)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sections_follow_common_motion(motion, axis):
    volume, instances = squares(motion=motion)
    volume, instances = (np.ascontiguousarray(np.moveaxis(array, 0, axis)) for array in (volume, instances))
    # Squares that come in from the margin between two slices cannot be known.
    inner = np.zeros(volume.shape, dtype=bool)
    np.moveaxis(inner, axis, 0)[:, 12:-12, 12:-12] = True
    seeds = every(instances, 8, axis=axis)
    still, moved, smoothed = (
        share_right(lpa3d.propagate(volume, seeds, **options)[inner], instances[inner])
        for options in ({"slice_axis": None}, {"sweeps": 0}, {})
    )
    assert moved > 0.99
    assert smoothed > still + 0.2


def test_sections_before_the_first_and_after_the_last_slice():
    volume, instances = squares(n=13, motion=(0, 1), count=9)
    labels = lpa3d.propagate(volume, every(instances, 4, first=3), sweeps=0)
    inner = np.s_[:, 14:-14, 14:-14]
    np.testing.assert_array_equal(labels[:3][inner], instances[:3][inner])
    np.testing.assert_array_equal(labels[12:][inner], instances[12:][inner])


def test_a_blob_seen_once_follows_the_mask():
    # It turns off where its neighbours do not; only the mask tells.
    volume = np.zeros((9, 40, 60), dtype=np.uint8)
    instances = np.zeros(volume.shape, dtype=np.int64)
    y, x = np.indices(volume.shape[1:])
    for z in range(9):
        for i, row in enumerate((6, 18, 30)):
            for j, column in enumerate((8, 22)):
                instances[z][np.hypot(y - row, x - column - z) < 4.5] = 1 + 2 * i + j
        if z < 8:
            instances[z][np.hypot(y - 8 - 2.5 * z, x - 44) < 4.5] = 9
    volume[instances > 0] = 1
    seeds = every(instances, 8)
    assert share_right(lpa3d.propagate(volume, seeds), instances) == 1
    assert (seeds[-1] == 9).sum() == 0


def test_a_class_without_common_motion_is_not_drawn(caplog):
    # Squares of class 1 move together, and every other row of squares of class 2 the other way.
    volume, instances = squares(count=8)
    _, back = squares(count=8, motion=(0, -1))
    instances = np.concatenate([instances, back + 5000], axis=1)
    rows = (np.indices(volume.shape)[1] // 6) % 2 == 0
    _, forth = squares(count=8)
    volume = np.concatenate([volume, np.full(volume.shape, 2, np.uint8)], axis=1)
    half = instances.shape[1] // 2
    instances[:, half:][rows] = forth[rows] + 10_000
    seeds = every(instances, 4)
    with caplog.at_level(logging.INFO, logger="lpa3d"):
        both = lpa3d.propagate(volume, seeds)
    assert len([record for record in caplog.records if record.msg.startswith("class")]) == 2
    alone = lpa3d.propagate(volume[:, half:], np.ascontiguousarray(seeds[:, half:]), slice_axis=None)
    np.testing.assert_array_equal(both[:, half:], alone)
    assert share_right(both[:, :half], instances[:, :half]) > 0.9


def test_classes_together_or_one_by_one_are_the_same():
    random = np.random.default_rng(5)
    volume, instances = moving_blobs(random, classes=2, depth=13, side=40)
    seeds = every(instances, 4)
    together = lpa3d.propagate(volume, seeds)
    for value in (1, 2):
        of_class = volume == value
        alone = lpa3d.propagate(of_class, np.where(of_class, seeds, 0), slice_axis=0)
        np.testing.assert_array_equal(np.where(of_class, together, 0), alone)


def test_census_finds_the_axis(caplog):
    volume, instances = squares(n=17)
    for axis in range(3):
        turned, ids = (np.ascontiguousarray(np.moveaxis(array, 0, axis)) for array in (volume, instances))
        assert drawn_across(caplog, turned, every(ids, 4, axis=axis))[1] == (axis, 5)


def test_census_of_what_is_not_planar(caplog):
    volume, instances = squares(n=17)
    random = np.random.default_rng(0)
    scattered = np.where(random.random(instances.shape) < 0.01, instances, 0)
    one_slice = every(instances, 17, first=8)
    dense = np.where(np.arange(17)[:, None, None] % 5 > 0, instances, 0)
    oblique = np.where(np.add(*np.indices(volume.shape)[:2]) % 8 == 0, instances, 0)
    for seeds in (scattered, one_slice, instances, dense, oblique, np.zeros_like(instances)):
        for slice_axis in ("auto", 0):
            assert drawn_across(caplog, volume, seeds, slice_axis=slice_axis)[1] is None
    planar = every(instances, 4)
    assert drawn_across(caplog, volume, planar, slice_axis=None)[1] is None
    assert drawn_across(caplog, volume, planar, slice_axis=1)[1] is None
    # Two axes that tie: neither.
    cube = np.ones((16, 16, 16), dtype=np.uint8)
    crossed = np.zeros(cube.shape, dtype=np.int64)
    crossed[::5], crossed[:, ::5] = 1, 1
    assert drawn_across(caplog, cube, crossed)[1] is None


def test_an_integer_picks_the_axis(caplog):
    # Slices across z, and a few whole ones across x, which hold a larger share of themselves.
    volume, instances = squares(n=17, count=3)
    seeds = every(instances, 4)
    assert drawn_across(caplog, volume, seeds, slice_axis=0)[1] == (0, 5)
    assert drawn_across(caplog, volume, seeds, slice_axis=-3)[1] == (0, 5)


def test_partly_labelled_slices_are_annotated(caplog):
    volume, instances = squares(n=17)
    seeds = every(instances, 4)
    seeds[4, 30:] = 0
    seeds[8, :, 14:] = 0
    assert drawn_across(caplog, volume, seeds)[1] == (0, 5)


def test_a_stray_click_does_not_cut_an_interval(caplog):
    volume, instances = squares(n=17)
    seeds = every(instances, 8)
    labels, found = drawn_across(caplog, volume, seeds)
    assert found == (0, 3)
    seeds[4, 20, 20] = instances[4, 20, 20]
    clicked, found = drawn_across(caplog, volume, seeds)
    assert found == (0, 3)
    assert clicked[4, 20, 20] == instances[4, 20, 20]
    assert share_right(clicked, instances) > share_right(labels, instances) - 1e-3


def test_unlabelled_voxels_of_annotated_slices_are_filled_by_the_next_stages():
    volume, instances = squares(n=9)
    seeds = every(instances, 4)
    seeds[4][instances[4] == instances[4, 20, 20]] = 0
    labels = lpa3d.propagate(volume, seeds)
    assert (labels > 0).all()
    assert (labels[seeds > 0] == seeds[seeds > 0]).all()


def test_a_template_may_leave_the_plane():
    # Fast blobs at the margin: candidates of their motion lie outside, on either side.
    random = np.random.default_rng(1)
    for _ in range(3):
        volume, instances = moving_blobs(random, depth=11, side=18, gap=5)
        seeds = every(instances, 5)
        expected, _, _ = naive.propagate(volume, seeds, sweeps=0)
        np.testing.assert_array_equal(lpa3d.propagate(volume, seeds, sweeps=0), expected)


def test_a_slice_is_one_row_in_2d():
    # Annotated rows of an image: an interval of an image is as good as one of a volume.
    _, instances = squares(n=17, count=8)
    image = np.ascontiguousarray(instances[:, 20])
    seeds = every(image, 4)
    labels = lpa3d.propagate(np.ones(image.shape, np.uint8), seeds)
    assert share_right(labels, image) > 0.85
    np.testing.assert_array_equal(
        lpa3d.propagate(np.ones(image.T.shape, np.uint8), np.ascontiguousarray(seeds.T)), labels.T
    )


@given(st.data())
@settings(max_examples=20)
def test_few_voxels_on_planes(data):
    # Shrinks well: small volumes in which pieces tie, touch the border and have no partner.
    n = data.draw(st.integers(3, 6))
    shape = (n, data.draw(st.integers(1, 5)), data.draw(st.integers(3, 6)))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    volume = (random.random(shape) < 0.8).astype(np.uint8)
    seeds = np.zeros(shape, dtype=np.int64)
    for z in (0, n - 1):
        seeds[z] = volume[z] * random.integers(0, 4, shape[1:])
    expected, _, _ = naive.propagate(volume, seeds)
    np.testing.assert_array_equal(lpa3d.propagate(volume, seeds), expected)
