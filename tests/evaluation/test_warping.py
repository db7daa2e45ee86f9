"""The warping error against a plain queue, every deformation of tiny masks, and scikit-image's topology."""

import nibabel
import numba
import numpy as np
import pytest
import scipy.ndimage
import skimage.measure
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lpa3d.evaluation.warping import count_unwarped, warp_reference
from lpa3d.kernels.warping import is_simple, tabulate_squares, warp_mask
from tests import naive
from tests.strategies import CONNECTIVITIES, connectivities, shapes

DUAL = {6: 26, 18: 6, 26: 6}
RANK = {6: 1, 18: 2, 26: 3}
cubes = hnp.arrays(bool, (3, 3, 3))


@st.composite
def pairs(draw, shapes=shapes()):  # noqa: B008
    """Draw a reference, a prediction that differs from it here or anywhere, and voxels to ignore, or None."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(shapes)
    reference = random.random(shape) < draw(st.sampled_from([0.3, 0.5, 0.7]))
    if draw(st.booleans()):
        reference = scipy.ndimage.median_filter(reference, 3)
    prediction = reference ^ (random.random(shape) < draw(st.sampled_from([0.1, 0.5, 0.9])))
    ignore = random.random(shape) < 0.3 if draw(st.booleans()) else None
    return reference, prediction, ignore


def as_cube(mask):
    """Return the 27 voxels of a mask as the bits of an integer."""
    return sum(1 << i for i, inside in enumerate(mask.flat) if inside)


def topology(mask, connectivity):
    """Return the number of foreground and of background components and, but for 18, the Euler number."""
    framed = np.pad(mask, 1)
    rank, dual = (min(RANK[c], mask.ndim) for c in (connectivity, DUAL[connectivity]))
    numbers = [
        skimage.measure.label(part, connectivity=rank, return_num=True)[1]
        for part, rank in ((framed, rank), (~framed, dual))
    ]
    if connectivity != 18 or mask.ndim == 2:
        numbers.append(skimage.measure.euler_number(framed, connectivity=rank))
    return numbers


def count(reference, prediction, ignore=None, connectivity=6, per_slice=False):
    """Return the number of voxels that still disagree."""
    return count_unwarped(reference, prediction, ignore, connectivity=connectivity, per_slice=per_slice)[0]


def box(shape, *spans):
    """Return a mask that is true in one box, given as (first, one after the last) for each axis."""
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*span) for span in spans)] = True
    return mask


# Simple points.


def list_touching(connectivity):
    """Return which voxels of a cube touch each, as bits."""
    at = np.indices((3, 3, 3)).reshape(3, 27).T
    gaps = np.abs(at[:, None] - at)
    touch = (gaps.max(axis=2) == 1) & (gaps.sum(axis=2) <= RANK[connectivity])
    return touch @ (np.int64(1) << np.arange(27))


@numba.njit
def count_parts(voxels, touching, steps):
    """Count the components of `voxels` that a path of at most `steps` from the centre reaches, voxel by voxel."""
    reached = voxels & touching[13]
    for _ in range(steps - 1):
        front = reached
        while front:
            bit = front & -front
            front ^= bit
            reached |= voxels & touching[place(bit)]
    count = 0
    while reached:
        count += 1
        front = reached & -reached
        reached ^= front
        while front:
            bit = front & -front
            front ^= bit
            near = reached & touching[place(bit)]
            reached ^= near
            front |= near
    return count


@numba.njit
def place(bit):
    """Return the position of a single bit."""
    k = 0
    for step in (16, 8, 4, 2, 1):
        if bit >> step:
            bit >>= step
            k += step
    return k


@numba.njit
def compare_cubes(middles, connectivity, inner, inner_steps, outer, outer_steps):
    """Compare all cubes with some patterns around the centre in the middle slice; return their number and one wrong."""
    count = 0
    for middle in middles:
        for lower in range(512):
            # Upside down, the others are the same.
            for upper in range(lower, 512):
                inside = lower | middle << 9 | upper << 18
                outside = ~inside & (1 << 27) - 1 & ~(1 << 13)
                count += 1
                expected = (
                    count_parts(inside, inner, inner_steps) == 1 and count_parts(outside, outer, outer_steps) == 1
                )
                if is_simple(inside, connectivity) != expected or is_simple(inside | 1 << 13, connectivity) != expected:
                    return count, inside
    return count, -1


def list_middles():
    """Return the patterns of 8 pixels around a centre, one of each that turned or mirrored are the same."""
    found = set()
    for pattern in range(256):
        bits = [pattern >> k & 1 for k in range(8)]
        square = np.array([*bits[:4], 0, *bits[4:]]).reshape(3, 3)
        same = [np.rot90(side, k) for side in (square, square.T) for k in range(4)]
        found.add(min(int(side.ravel() @ (1 << np.arange(9))) for side in same))
    return np.array(sorted(found))


@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
def test_simple_by_topological_numbers(connectivity):
    """Every neighbourhood, but for those that are another one turned about z, mirrored or upside down."""
    middles = list_middles()
    assert len(middles) == 51
    steps = {6: (2, 1), 18: (2, 3), 26: (1, 2)}[connectivity]
    inner, outer = (list_touching(c) for c in (connectivity, DUAL[connectivity]))
    count, wrong = compare_cubes(middles, connectivity, inner, steps[0], outer, steps[1])
    assert wrong == -1, np.array([wrong >> k & 1 for k in range(27)]).reshape(3, 3, 3)
    assert count == 51 * 512 * 513 // 2


@pytest.mark.interpreted
@given(cubes, connectivities)
def test_simple_by_its_definition(mask, connectivity):
    assert is_simple(as_cube(mask), connectivity) == naive.is_simple(mask, connectivity)


@given(cubes)
@settings(max_examples=100)
def test_simple_by_components_and_euler_number(mask):
    """A voxel is simple where it touches one component and changes no Euler number (26); 6 is the complement's."""
    present, absent = mask.copy(), mask.copy()
    present[1, 1, 1], absent[1, 1, 1] = True, False
    parts = scipy.ndimage.label(absent, np.ones((3, 3, 3)))[1]
    same = skimage.measure.euler_number(present, 3) == skimage.measure.euler_number(absent, 3)
    assert is_simple(as_cube(mask), 26) == (parts == 1 and same)
    assert is_simple(as_cube(~mask), 6) == is_simple(as_cube(mask), 26)


@given(cubes, connectivities, st.permutations([0, 1, 2]), st.sets(st.sampled_from([0, 1, 2])))
def test_simple_whichever_way_round(mask, connectivity, axes, flipped):
    turned = np.flip(mask.transpose(axes), tuple(flipped))
    assert is_simple(as_cube(turned), connectivity) == is_simple(as_cube(mask), connectivity)


@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
def test_squares(connectivity):
    """All 256 neighbourhoods of the plane, with the pixel and without it."""
    table = np.zeros(512, dtype=bool)
    tabulate_squares(connectivity, table)
    for square in range(512):
        mask = np.array([square >> i & 1 for i in range(9)], dtype=bool).reshape(1, 3, 3)
        assert table[square] == naive.is_simple(mask, connectivity)
        present, absent = mask[0].copy(), mask[0].copy()
        present[1, 1], absent[1, 1] = True, False
        assert table[square] == (topology(present, connectivity) == topology(absent, connectivity))


@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
@pytest.mark.parametrize(
    ("around", "simple"),
    [
        ([], False),  # isolated
        ("all", False),  # interior: a cavity would open
        ([(1, 1, 0)], True),  # the end of a line
        ([(1, 1, 0), (1, 1, 2)], False),  # a bridge
        ([(1, y, x) for y in range(3) for x in range(3)], False),  # a tunnel through a plate would open or close
        ([(z, y, x) for z in range(2) for y in range(3) for x in range(3)], True),  # a smooth surface
        ([(z, y, x) for z in range(3) for y in range(3) for x in range(3) if (y, x) != (1, 0)], True),  # a groove
        ([(z, y, x) for z in range(3) for y in range(3) for x in range(3) if (z, y, x) != (0, 1, 1)], True),  # a pit
        ([(0, 1, 1), (1, 0, 1)], None),  # two faces that share an edge
        ([(0, 0, 0)], None),  # a corner
        ([(1, 0, 0)], None),  # an edge
    ],
)
def test_known_neighborhoods(around, simple, connectivity):
    mask = np.ones((3, 3, 3), dtype=bool)
    if around != "all":
        mask[...] = False
        for at in around:
            mask[at] = True
    if simple is None:
        # What touches by an edge touches for 18 and 26, what touches by a corner for 26.
        simple = {"faces": connectivity > 6, "corner": connectivity == 26, "edge": connectivity > 6}[
            {(0, 1, 1): "faces", (0, 0, 0): "corner", (1, 0, 0): "edge"}[around[0]]
        ]
    assert is_simple(as_cube(mask), connectivity) == simple


# Warping.


@pytest.mark.interpreted
@given(pairs(st.tuples(*[st.integers(1, 5)] * 3)), connectivities, st.booleans())
def test_equals_a_plain_queue(pair, connectivity, per_slice):
    reference, prediction, ignore = pair
    warped = warp_reference(reference, prediction, ignore, connectivity=connectivity, per_slice=per_slice)
    np.testing.assert_array_equal(warped, naive.warp(*pair, connectivity, per_slice))
    counts = np.ones(reference.shape, dtype=bool) if ignore is None else ~ignore
    wrong, counted = count_unwarped(*pair, connectivity=connectivity, per_slice=per_slice)
    assert (wrong, counted) == (np.sum((warped != prediction) & counts), counts.sum())
    assert wrong <= np.sum((reference != prediction) & counts)


@given(pairs(), connectivities)
def test_a_volume_keeps_its_topology(pair, connectivity):
    warped = warp_reference(*pair, connectivity=connectivity, per_slice=False)
    assert topology(warped, connectivity) == topology(pair[0], connectivity)
    # Nothing moves away from the prediction.
    assert np.all((warped == pair[0]) | (warped == pair[1]))


@given(pairs(), connectivities)
def test_every_slice_keeps_its_topology(pair, connectivity):
    warped = warp_reference(*pair, connectivity=connectivity, per_slice=True)
    for before, after in zip(pair[0], warped, strict=True):
        assert topology(after, connectivity) == topology(before, connectivity)


@given(pairs(st.sampled_from([(1, 3, 3), (1, 2, 5), (2, 2, 2)])), connectivities)
@settings(max_examples=25)
def test_is_an_upper_bound(pair, connectivity):
    """The best of all deformations leaves no more."""
    assert naive.fewest_unwarped(*pair, connectivity, False) <= count(*pair, connectivity)


@given(pairs(), connectivities)
def test_one_slice_is_a_plane(pair, connectivity):
    """Between slices of background, a slice of a volume warps as an image does."""
    single = [None if array is None else array[:1] for array in pair]
    warped = warp_reference(*single, connectivity=connectivity, per_slice=False)
    np.testing.assert_array_equal(warped, warp_reference(*single, connectivity=connectivity, per_slice=True))


@given(pairs(), connectivities, st.booleans(), st.integers(2, 5))
def test_threads_change_nothing(pair, connectivity, per_slice, threads):
    results = []
    for number in (1, threads):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LPA3D_NUM_THREADS", str(number))
            results.append(warp_reference(*pair, connectivity=connectivity, per_slice=per_slice))
    np.testing.assert_array_equal(*results)


@given(pairs(), connectivities, st.booleans())
def test_identity(pair, connectivity, per_slice):
    mask = pair[0]
    assert count_unwarped(mask, mask, None, connectivity=connectivity, per_slice=per_slice) == (0, mask.size)


@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
class TestByHand:
    """What each kind of error costs."""

    def test_split(self, connectivity):
        """A bar 9 long and 3 wide is cut by a gap of 2: a bridge of 2 voxels remains."""
        for depth, per_slice in ((1, True), (1, False), (3, False)):
            bar = box((depth, 5, 11), (0, depth), (1, 4), (1, 10))
            cut = bar.copy()
            cut[:, :, 5:7] = False
            assert count(bar, cut, None, connectivity, per_slice) == 2

    def test_merge(self, connectivity):
        """Two blocks 2 apart are joined by a bridge 3 wide: a wall across it remains."""
        for depth, per_slice in ((1, True), (1, False), (3, False)):
            joined = box((depth, 5, 12), (0, depth), (1, 4), (1, 11))
            apart = joined.copy()
            apart[:, :, 5:7] = False
            assert count(apart, joined, None, connectivity, per_slice) == 3 * depth

    def test_holes(self, connectivity):
        """A hole that the prediction fills shrinks to a voxel; one that it adds cannot begin."""
        for shape in ((1, 8, 8), (8, 8, 8)):
            depth = (0, 1) if shape[0] == 1 else (3, 5)
            solid = box(shape, (0, 1) if shape[0] == 1 else (1, 7), (1, 7), (1, 7))
            hollow = solid & ~box(shape, depth, (3, 5), (3, 5))
            assert count(hollow, solid, None, connectivity, shape[0] == 1) == 1
            assert count(solid, hollow, None, connectivity, shape[0] == 1) == (solid ^ hollow).sum()

    def test_tunnel(self, connectivity):
        """A tunnel of 2 x 2 through a plate 2 thick shrinks to a line; one that the prediction adds cannot begin."""
        plate = box((4, 8, 8), (1, 3), (1, 7), (1, 7))
        ring = plate & ~box(plate.shape, (1, 3), (3, 5), (3, 5))
        assert count(ring, plate, None, connectivity) == 2
        # Dug as a pit from one side, all but its last layer.
        assert count(plate, ring, None, connectivity) == 4

    def test_objects(self, connectivity):
        """A missing object shrinks to a voxel; a spurious one cannot begin."""
        for shape, size in (((1, 5, 5), 9), ((5, 5, 5), 27)):
            block = box(shape, (0, 1) if shape[0] == 1 else (1, 4), (1, 4), (1, 4))
            none = np.zeros(shape, dtype=bool)
            for per_slice in (True, False)[size > 9 :]:
                assert count(block, none, None, connectivity, per_slice) == 1
                assert count(none, block, None, connectivity, per_slice) == size

    def test_moved_borders_cost_nothing(self, connectivity):
        block = box((9, 9, 9), (2, 6), (2, 6), (2, 6))
        for other in (
            np.roll(block, (1, 1, 1), (0, 1, 2)),
            scipy.ndimage.binary_dilation(block),
            scipy.ndimage.binary_erosion(block),
        ):
            assert count(block, other, None, connectivity) == 0
            assert count(other, block, None, connectivity) == 0
        for other in (np.roll(block, (1, 1), (1, 2)), scipy.ndimage.binary_erosion(block, np.ones((1, 3, 3)))):
            assert count(block, other, None, connectivity, True) == 0

    def test_the_frame_is_background(self, connectivity):
        """A dent from the border is no hole, and an object that crosses the image parts no background."""
        solid = np.ones((1, 6, 6), dtype=bool)
        dented = solid & ~box(solid.shape, (0, 1), (0, 3), (2, 4))
        assert count(solid, dented, None, connectivity, True) == 0
        crossing = box(solid.shape, (0, 1), (2, 4), (0, 6))
        ending = box(solid.shape, (0, 1), (2, 4), (0, 3))
        assert count(crossing, ending, None, connectivity, True) == 0
        assert count(ending, crossing, None, connectivity, True) == 0

    def test_ignored_voxels_take_what_remains(self, connectivity):
        """Of a bridge one column is ignored, of a cut bar one row: the wall and the bridge end up there."""
        joined = box((1, 5, 12), (0, 1), (1, 4), (1, 11))
        apart = joined.copy()
        apart[:, :, 5:7] = False
        column, row = np.zeros((2, *joined.shape), dtype=bool)
        column[:, :, 6] = True
        row[:, 1] = True
        assert count(apart, joined, column, connectivity, True) == 0
        assert count(joined, apart, row, connectivity, True) == 0
        # A voxel behind ignored ones is reached through them.
        near, far = joined[:, :, :6].copy(), joined[:, :, :6].copy()
        near[:, :, 3:] = False
        behind = box(near.shape, (0, 1), (0, 5), (3, 5))
        assert count(near, far, behind, connectivity, True) == 0

    def test_corner_cases(self, connectivity):
        empty, full = np.zeros((2, 3, 4), dtype=bool), np.ones((2, 3, 4), dtype=bool)
        for per_slice in (False, True):
            assert count(empty, empty, None, connectivity, per_slice) == 0
            assert count(full, full, None, connectivity, per_slice) == 0
            assert count(empty, full, None, connectivity, per_slice) == 24
            assert count(full, empty, None, connectivity, per_slice) == (2 if per_slice else 1)
            one, none = full[:1, :1, :1], empty[:1, :1, :1]
            assert count(one, none, None, connectivity, per_slice) == 1
            assert count(none, one, None, connectivity, per_slice) == 1
            options = {"connectivity": connectivity, "per_slice": per_slice}
            assert count_unwarped(empty, full, full, **options) == (0, 0)
            assert count_unwarped(empty[:0], full[:0], None, **options) == (0, 0)
            assert count_unwarped(empty[:, :0], full[:, :0], None, **options) == (0, 0)


def test_any_value_is_foreground_and_nothing_is_written():
    random = np.random.default_rng(0)
    masks = [random.random((4, 9, 9)) < 0.5 for _ in range(3)]
    expected = count_unwarped(*masks, connectivity=26, per_slice=False)
    values = [mask * random.integers(1, 256, mask.shape).astype(np.uint8) for mask in masks]
    for array in values:
        array.flags.writeable = False
    assert count_unwarped(*values, connectivity=26, per_slice=False) == expected
    # Compiled once.
    assert len(warp_mask.signatures) == 1


def test_vesicles(data_dir):
    """Real vesicles, of which few touch, with borders that moved: little is left, and no topology is lost."""
    path = sorted((data_dir / "urocell" / "fv" / "binary").glob("*.nii.gz"))[0]
    volume = np.asarray(nibabel.load(path).dataobj).T[:48, :96, :96] > 0
    reference = np.ascontiguousarray(volume)
    prediction = scipy.ndimage.binary_dilation(reference)
    for connectivity in (6, 26):
        warped = warp_reference(reference, prediction, None, connectivity=connectivity, per_slice=False)
        assert topology(warped, connectivity) == topology(reference, connectivity)
        assert 0 < np.sum(warped != prediction) < 0.2 * np.sum(reference != prediction)
