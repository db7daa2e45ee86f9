"""The sections stage on a device, against the Numba kernels: tables, potentials, motions and labels, byte for byte."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpa3d.arrays.backend import on_device
from lpa3d.cuda import sections as cuda_sections
from lpa3d.propagation import motions, sections
from lpa3d.propagation.drawing import draw_intervals
from lpa3d.propagation.motions import match_lone
from lpa3d.propagation.pieces import (
    ITEM,
    LONE,
    Geometry,
    Interval,
    find_all_pieces,
    find_pieces,
    find_potentials,
    list_all_overlaps,
    list_intervals,
    list_overlaps,
)
from tests import emulator as cuda_emulator
from tests import naive
from tests.strategies import annotated_blobs, class_volumes, moving_blobs
from tests.tiled.test_sections import every_class, one_of, rank, turn  # noqa: F401

SPACINGS = ((1, 1, 1), (5, 1, 1.6), (1, 2.3, 1), (0.4, 1, 1))
CLASSES = np.array([0, 1, 1, 2, 200, 2], dtype=np.uint8)

seeds_of_random = st.integers(0, 2**32 - 1)


def same_pieces(found, expected):
    for field in dataclasses.fields(expected):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        np.testing.assert_array_equal(a, b, err_msg=field.name)
        assert np.asarray(a).dtype == np.asarray(b).dtype


def find_both(device, labels):
    """Return the pieces of all slices and their images, after comparing what both back ends find."""
    expected = [find_pieces(z, plane, CLASSES) for z, plane in enumerate(labels)]
    planes, images = find_all_pieces(list(range(len(labels))), device.bring(labels), CLASSES)
    for z, (pieces, image) in enumerate(expected):
        same_pieces(planes[z], pieces)
        np.testing.assert_array_equal(device.fetch(images[z]), image)
        with on_device(device):
            own, own_image = find_pieces(z, labels[z], CLASSES)
        same_pieces(own, pieces)
        np.testing.assert_array_equal(own_image, image)
    return planes, [image for _, image in expected]


def check_overlaps(device, labels):
    """Compare the pieces of all slices, and the overlaps of each with the next."""
    planes, images = find_both(device, labels)
    expected = list_all_overlaps(planes, images)
    found = list_all_overlaps(planes, device.bring(np.stack(images).astype(np.uint32)))
    for i, rows in enumerate(expected):
        np.testing.assert_array_equal(found[i], rows)
        with on_device(device):
            np.testing.assert_array_equal(list_overlaps(planes[i], planes[i + 1], images[i], images[i + 1]), rows)


@given(labels=class_volumes(wide=True, max_classes=5, dtype="uint32"))
@settings(max_examples=20)
def test_pieces_and_overlaps(device, labels):
    check_overlaps(device, np.concatenate([labels, labels[:1]]))


def weave():
    """Return two planes of one label, on one stripes and on the other columns: far more overlaps than pieces."""
    labels = np.zeros((2, 60, 60), dtype=np.uint32)
    labels[0, ::2] = labels[1, :, ::2] = 1
    return labels


def edges():
    """Return two planes whose pieces go on where a row ends and the next begins, and stop where a warp does."""
    labels = np.zeros((2, 5, 33), dtype=np.uint32)
    labels[0, :, -1] = labels[0, :, :2] = labels[1, 1:3] = 1
    labels[1, 3:, :30] = 1
    return labels


@pytest.mark.parametrize("labels", [weave(), edges(), np.zeros((2, 3, 3), np.uint32)], ids=["weave", "edges", "empty"])
def test_overlaps_of_planes(device, labels):
    check_overlaps(device, labels)


def some_plane(random, shape):
    """Return labels of a plane: rectangles over each other, from single voxels to more than a tile, and noise."""
    labels = np.zeros(shape, dtype=np.uint32)
    for _ in range(random.integers(1, 12)):
        height, width = one_of(random, (1, 1), (2, 3), (9, 12), (40, 3), (3, 70), (36, 40))
        y, x = random.integers(-2, shape[0]), random.integers(-2, shape[1])
        labels[max(y, 0) : y + height, max(x, 0) : x + width] = random.integers(0, len(CLASSES))
    labels[random.random(shape) < one_of(random, 0, 0, 0.03)] = 0
    return labels


def check_potentials(device, random):
    """Compare potentials of whole and of clipped pieces, in a part of a plane."""
    shape = tuple(random.integers(1, 75, 2))
    pieces, image = find_pieces(0, some_plane(random, shape), CLASSES)
    geometry = Geometry(one_of(random, *SPACINGS), 0)
    numbers = np.flatnonzero(random.random(len(pieces.labels)) < 0.7)[:20]
    boxes = pieces.boxes[numbers].copy()
    if random.random() < 0.5:
        lo = random.integers(0, np.array(shape) + 1)
        hi = random.integers(lo, np.array(shape) + 1)
        boxes[:, :2], boxes[:, 2:] = (np.clip(boxes[:, 2 * k : 2 * k + 2], lo[k], hi[k]) for k in range(2))
    expected = find_potentials(numbers, boxes, image, geometry)
    # The image stands behind another one, and places are counted from somewhere else.
    corner = np.array([7, -3])
    parts = np.tile([5, *corner, *shape], (len(numbers), 1))
    flat = np.concatenate([np.ones(5), image.reshape(-1)]).astype(np.uint32)
    found = cuda_sections.open_windows(
        device, device.bring(flat), parts, numbers + 1, boxes + np.repeat(corner, 2), geometry.margins, geometry.keys
    )
    np.testing.assert_array_equal(found.table["start"], expected.starts[:-1])
    np.testing.assert_array_equal(device.fetch(found.potentials), expected.potentials)


@given(seed=seeds_of_random)
@settings(max_examples=15)
def test_potentials(device, seed):
    check_potentials(device, np.random.default_rng(seed))


def compare_motions(device, *args, dtype=np.uint8):
    """Compare what `match_lone` finds in memory and, with classes of another type, on the device; return it."""
    *rest, block, image, corner, geometry = args
    expected = match_lone(*args)
    block = block.astype(dtype)
    with on_device(device):
        np.testing.assert_array_equal(match_lone(*rest, block, image, corner, geometry), expected)
    found = match_lone(*rest, device.bring(block), device.bring(image), corner, geometry)
    np.testing.assert_array_equal(found, expected)
    return expected


def check_wide(device):
    """Compare the motion of a piece that is wider than a word, which runs aside, or its slices all are the same."""
    volume = np.zeros((7, 30, 150), dtype=np.uint8)
    for z in range(7):
        volume[z, 9:20, 12 + 3 * z : 120 + 3 * z] = 1
    geometry = Geometry((1, 1, 1), 0)
    interval = Interval(0, 1, 6, range(5), 0)
    motion = 16 * 18
    for side, z in ((0, 0), (1, 6)):
        pieces, image = find_pieces(z, volume[z].astype(np.uint32), CLASSES)
        lone = np.zeros(1, dtype=LONE)
        lone["box"], lone["trust"], lone["kind"] = pieces.boxes, 1, 1
        for expected in (0, 200, 500, 2000):
            lone["expected"] = 0, expected
            found = compare_motions(device, lone, interval, side, z, volume, image, (0, 0, 0), geometry)
            assert expected > 200 or abs(found - [0, motion]).max() <= 16


def check_motions(device, random):
    """Compare the motions of lone pieces of either end, in a box whose slices are noise, stripes or all the same."""
    shape = (12, *random.integers(1, one_of(random, 30, 75), 2))
    corner = tuple(random.integers(0, 9, 3).tolist())
    y, x = np.indices(shape[1:])
    volume = one_of(
        random,
        np.ones(shape),
        random.random(shape) < 0.7,
        random.integers(0, 3, shape),
        np.stack([(y + x + z) // 3 % 3 for z in range(12)]),
    ).astype(np.uint8)
    volume[volume == 2] = 200
    z = int(random.integers(1, 11))
    pieces, image = find_pieces(z, some_plane(random, shape[1:]), CLASSES)
    side = int(random.integers(2))
    beside = int(random.integers(1, (12 - z if side == 0 else z + 1)))
    interval = Interval(0, 1, int(random.integers(beside + 1, 25)), range(beside), 0)
    chosen = np.flatnonzero(random.random(len(pieces.labels)) < 0.5)[:8]
    lone = np.zeros(len(chosen), dtype=LONE)
    lone["piece"], lone["box"] = chosen, pieces.boxes[chosen] + np.repeat(corner[1:], 2)
    # The last is further than pieces move: what is tried next to it is clipped, and ties.
    lone["expected"] = random.integers(-1, 2, (len(chosen), 2)) * one_of(random, 0, random.integers(40), 400, 1200)
    lone["trust"] = one_of(random, 1, 41, 820)
    lone["kind"] = random.choice([1, 2, 200], len(chosen))
    geometry = Geometry(one_of(random, *SPACINGS), 0)
    dtype = one_of(random, "uint8", "uint64")
    compare_motions(device, lone, interval, side, z + corner[0], volume, image, corner, geometry, dtype=dtype)


def test_motions_of_a_wide_piece(device):
    check_wide(device)


@given(seed=seeds_of_random)
@settings(max_examples=15)
def test_motions(device, seed):
    check_motions(device, np.random.default_rng(seed))


def check_drawing(device, random):
    """Compare what is drawn in a box by any items, many of which tie: pairs, and lone pieces of either end."""
    annotated, shape = [2, 6, 11], (14, *random.integers(1, 75, 2).tolist())
    found = [find_pieces(z, some_plane(random, shape[1:]), CLASSES) for z in annotated]
    still = random.random() < 0.5
    if still:
        found = found[:1] * 3
    geometry = Geometry(one_of(random, *SPACINGS), 0)
    work = []
    for interval in list_intervals(annotated, shape[0]):
        items = np.zeros(random.integers(0, one_of(random, 6, 30)), dtype=ITEM)
        items["pieces"] = -1
        ends = [(side, found[at][0]) for side, at in enumerate(interval.ends) if at is not None]
        ends = [(side, pieces) for side, pieces in ends if len(pieces.labels)]
        for item in items if ends else items[:0]:
            for side, pieces in [ends, [ends[random.integers(len(ends))]]][random.integers(2)]:
                item["pieces"][side] = item["pieces"].max() if still and side else -1
                if item["pieces"][side] < 0:
                    item["pieces"][side] = random.integers(len(pieces.labels))
                item["boxes"][side] = pieces.boxes[item["pieces"][side]]
        items = items[(items["pieces"] >= 0).any(axis=1)]
        items["motion"] = random.integers(-1, 2, (len(items), 2)) * random.integers(0, geometry.clamp + 1)
        items["motion"][random.random(len(items)) < 0.5] = 0
        items["kind"] = random.choice([1, 1, 200], len(items))
        # The same again under other labels: every voxel ties.
        items = np.concatenate([items, items])
        items["label"] = random.permutation(len(items)) + np.uint32(one_of(random, 1, 2**32 - 100))
        work.append((interval, items))
    volume = one_of(random, np.ones(shape), random.integers(0, 3, shape)).astype(np.uint8)
    volume[volume == 2] = 200
    labels = np.where(random.random(shape) < 0.1, 7, 0).astype(np.uint32)
    lo = [int(random.integers(0, one_of(random, 1, side))) for side in shape]
    hi = [int(random.integers(first + 1, side + 1)) for first, side in zip(lo, shape, strict=True)]
    part = tuple(slice(*ends) for ends in zip(lo, hi, strict=True))

    def read_image(plane, box):
        y0, y1, x0, x1 = box
        return found[plane][1][y0:y1, x0:x1]

    args = (work, read_image, shape[1:], tuple(lo))
    expected = labels[part].copy()
    draw_intervals(*args, volume[part], expected, geometry)
    drawn = labels.copy()
    with on_device(device):
        draw_intervals(*args, volume[part].astype(one_of(random, "uint8", "uint64")), drawn[part], geometry)
    np.testing.assert_array_equal(drawn[part], expected)
    drawn[part] = labels[part]
    np.testing.assert_array_equal(drawn, labels)


@given(seed=seeds_of_random)
@settings(max_examples=15)
def test_drawing(device, seed):
    check_drawing(device, np.random.default_rng(seed))


def label_both(device, volume, ranks, classes, axis, annotated, spacing):
    """Compare `label_sections` of arrays on the device, and of arrays in memory that it works on; return the labels."""
    args = (classes, axis, annotated, spacing)
    expected = ranks.copy()
    took_part = sections.label_sections(volume, expected, *args)
    labels = device.bring(ranks.copy())
    np.testing.assert_array_equal(sections.label_sections(device.bring(volume), labels, *args), took_part)
    np.testing.assert_array_equal(device.fetch(labels), expected)
    own = ranks.copy()
    with on_device(device):
        np.testing.assert_array_equal(sections.label_sections(volume, own, *args), took_part)
    np.testing.assert_array_equal(own, expected)
    return expected


@cuda_emulator.any_order
def test_volumes_across_any_axis(device, every_class):  # noqa: F811
    drawn = []

    @settings(max_examples=6)
    @given(annotated_blobs)
    def compare(arguments):
        volume, seeds, spacing = (arguments[name] for name in ("volume", "seeds", "spacing"))
        planar = naive.annotated(volume, seeds, range(3))
        if planar is not None:
            ranks, classes = rank(volume, seeds)
            drawn.append((label_both(device, volume, ranks, classes, *planar, spacing) != ranks).any())

    compare()
    assert np.mean(drawn) > 0.5, "too few examples had sections to draw"


@pytest.mark.each_value
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_volumes_in_several_batches(device, axis, every_class, monkeypatch):  # noqa: F811
    # Two intervals at a time, or a few pieces; ids that have many pieces; ends of the volume beyond the slices.
    monkeypatch.setattr("lpa3d.propagation.pieces.BATCH", 10_000)
    volume, seeds = moving_blobs(np.random.default_rng(2), classes=2, pooled=True, depth=15, side=30, gap=4)
    annotated = [2, 3, 7, 11]
    seeds[np.setdiff1d(np.arange(15), annotated)] = 0
    seeds[7, 15:] = 0
    seeds[11, 5, 5] = 9
    volume, seeds = turn(axis, volume, seeds)
    ranks, classes = rank(volume, seeds)
    spacing = tuple(np.insert([1.0, 1.0], axis, 2.0).tolist())
    labels = label_both(device, volume, ranks, classes, axis, annotated, spacing)
    assert np.count_nonzero(labels) > 1.5 * np.count_nonzero(ranks)


@cuda_emulator.any_order
def test_where_no_class_takes_part_nothing_changes(device, monkeypatch):
    monkeypatch.setattr(motions, "EXPLAINED", (0, 1))
    volume, seeds = moving_blobs(np.random.default_rng(2), depth=9, side=20)
    seeds[np.arange(9) % 4 > 0] = 0
    ranks, classes = rank(volume, seeds)
    np.testing.assert_array_equal(label_both(device, volume, ranks, classes, 0, [0, 4, 8], (1, 1, 1)), ranks)


def check_all(device):
    """Compare both back ends on what the planted errors below are found by."""
    for labels in (edges(), weave()):
        check_overlaps(device, labels)
    check_wide(device)
    for check, seeds in ((check_potentials, (1, 4)), (check_motions, (1, 11, 8)), (check_drawing, (21, 23, 13))):
        for seed in seeds:
            check(device, np.random.default_rng(seed))


def test_cases_that_find_planted_errors(device):
    check_all(device)


@pytest.mark.each_other
@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("__syncthreads();\n\n    const int bit", "const int bit", id="barrier in potentials"),
        pytest.param("__syncthreads();\n        if (part", "if (part", id="barrier after a slice is packed"),
        pytest.param("__syncthreads();\n        for (int i", "for (int i", id="barrier before items are read"),
        pytest.param(
            "__syncthreads();\n    }\n    for (int k", "}\n    for (int k", id="barrier before the next items"
        ),
        pytest.param("SIDE + 2 * margin_y; row", "SIDE + 2 * margin_y - 2; row", id="margin of rows"),
        pytest.param("bits << (63 - bit)", "bits << (62 - bit)", id="columns to the left"),
        pytest.param("x == 0 || number", "number", id="runs end with rows"),
        pytest.param("a != a_before ||", "", id="runs of the first plane"),
        pytest.param("atomicOr(flags, FULL)", "(void)flags", id="a full table"),
        pytest.param("(u32)d.label < winner[k]", "(u32)d.label > winner[k]", id="ties of labels"),
        pytest.param("winner[k] == 0 ||", "", id="the least potential that draws"),
        pytest.param("r2 < best_r2", "r2 > best_r2", id="ties of scores"),
        pytest.param("sum_x += dx;", "", id="the mean of what ties"),
        pytest.param("(twice == b && (q & 1))", "twice == b", id="ties to even"),
        pytest.param("inside & ~same", "~same", id="outside the plane"),
        pytest.param("row[word + 1] <<", "row[word] <<", id="words that straddle"),
    ],
)
def test_planted_errors_are_found(emulator, old, new):
    with (
        cuda_emulator.plant(emulator("shuffled"), "sections.cu", old, new) as broken,
        pytest.raises((AssertionError, IndexError)),
    ):
        check_all(broken)
