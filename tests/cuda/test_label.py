"""Connected components on a device, against the Numba kernels, byte for byte."""

import itertools
from contextlib import contextmanager

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

import lpa3d
from lpa3d.arrays import components
from lpa3d.arrays.backend import on_device
from lpa3d.arrays.components import find_components
from lpa3d.arrays.neighbors import step_weights
from lpa3d.cuda import label as cuda_label
from lpa3d.errors import InputError, InputTypeError
from lpa3d.propagation.geodesic import cut_links, link_voxels, spread
from lpa3d.propagation.reattachment import reattach
from lpa3d.tiled.components import scan_tile
from tests import emulator as cuda_emulator
from tests.strategies import CONNECTIVITIES, class_volumes, connectivities
from tests.verbs.test_label import serpentine

OWN_TILES = (cuda_label.TILE_Z, cuda_label.TILE_Y)
SMALL_TILES = (2, 3)
"""So that small volumes have many borders; a tile is 32 voxels wide in any case."""

tile_sides = st.sampled_from([OWN_TILES, SMALL_TILES])


@contextmanager
def tiles(sides):
    """Let tiles have other sides along z and y."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_label, "TILE_Z", sides[0])
        patch.setattr(cuda_label, "TILE_Y", sides[1])
        yield


def check(device, volume, connectivity, sides=SMALL_TILES, same=None):
    """Compare `label` on both back ends; return the labels. Numba labels `same` if given, the same map of classes."""
    expected = lpa3d.label(volume if same is None else same, connectivity=connectivity)
    with tiles(sides):
        labels = lpa3d.label(device.bring(volume), connectivity=connectivity)
    assert device.holds(labels)
    assert (labels.dtype, labels.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(device.fetch(labels), expected)
    return expected


@given(volume=class_volumes(wide=True), connectivity=connectivities, sides=tile_sides)
def test_the_answer_is_that_of_the_numba_kernels(device, volume, connectivity, sides):
    check(device, volume, connectivity, sides)


@given(volume=class_volumes(wide=True), connectivity=connectivities)
@settings(max_examples=15)
def test_numbers_of_64_bits(device, volume, connectivity):
    """As volumes of 2**32 voxels and more have them."""
    expected = find_components(volume, connectivity)
    labels = lpa3d.label(volume, connectivity=connectivity)
    with pytest.MonkeyPatch.context() as patch, tiles(SMALL_TILES):
        patch.setattr(components, "WIDE", 1)
        found = lpa3d.label(device.bring(volume), connectivity=connectivity)
        with on_device(device):
            runs = find_components(volume, connectivity)
    assert found.dtype == np.uint64
    np.testing.assert_array_equal(device.fetch(found), labels)
    assert (runs.numbers.dtype, runs.slabs[0].runs.dtype) == (np.int64, np.int64)
    np.testing.assert_array_equal(
        np.concatenate([slab.of(runs.numbers)[slab.runs] for slab in runs.slabs]),
        np.concatenate([slab.of(expected.numbers)[slab.runs] for slab in expected.slabs]),
    )


def sized(shape, density=0.45, classes=2):
    """Return noise, as dense as to have components of all sizes."""
    random = np.random.default_rng(shape)
    return (random.integers(1, classes + 1, shape) * (random.random(shape) < density)).astype(np.uint8)


@pytest.mark.each_value
@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
def test_sizes_around_a_tile(device, connectivity):
    depth, height = OWN_TILES
    for z, y, x in itertools.product((-1, 0, 1), repeat=3):
        check(device, sized((depth + z, height + y, 32 + x)), connectivity, OWN_TILES)
    # Axes of size one, and arrays that are empty.
    for shape in [(1, 1, 1), (1, 40, 70), (20, 40, 1), (9, 1, 70), (1, 70, 1), (300, 1, 1), (1, 1, 300)]:
        check(device, sized(shape), connectivity, OWN_TILES)
    for shape in [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 1)]:
        check(device, np.zeros(shape, np.uint8), connectivity)


@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
def test_uniform_volumes(device, connectivity):
    for value in (0, 3):
        labels = check(device, np.full((9, 17, 70), value, np.uint8), connectivity, OWN_TILES)
        assert labels.max() == (value > 0)


@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
def test_checkerboards(device, connectivity):
    """No voxel that is set has a neighbour across a face, or none across a face or an edge."""
    z, y, x = np.indices((5, 8, 67))
    for sides in (OWN_TILES, SMALL_TILES):
        edges = check(device, (z + y + x) % 2 == 0, connectivity, sides)
        assert edges.max() == (edges.size // 2 if connectivity == 6 else 1)
        corners = check(device, (z % 2 == y % 2) & (y % 2 == x % 2), connectivity, sides)
        assert corners.max() == (1 if connectivity == 26 else np.count_nonzero(corners))
        # Two classes, each in the gaps of the other.
        check(device, 1 + ((z + y + x) % 2).astype(np.uint8), connectivity, sides)


def cubes():
    """Return all 256 patterns of a cube of 8 voxels, each around a corner of 8 small tiles, far from each other."""
    depth, height = 2 * SMALL_TILES[0], 2 * SMALL_TILES[1]
    volume = np.zeros((16 * depth, 16 * height, 34), bool)
    patterns = (np.arange(256)[:, None] >> np.arange(8) & 1).astype(bool).reshape(16, 16, 2, 2, 2)
    for (a, b), (z, y, x) in itertools.product(np.ndindex(16, 16), np.ndindex(2, 2, 2)):
        volume[a * depth + SMALL_TILES[0] - z, b * height + SMALL_TILES[1] - y, 32 - x] = patterns[a, b, z, y, x]
    return volume


@pytest.mark.each_value
@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
def test_paths_through_faces_edges_and_corners_of_tiles(device, connectivity):
    check(device, cubes(), connectivity)


def diagonals():
    """Return two paths that step from one to the next only through corners, and through edges."""
    volume = np.zeros((40, 40, 40), np.uint8)
    i = np.arange(40)
    volume[i, i, i] = 1
    volume[i, 39 - i, i] = 1
    z, y, x = (i + 1) // 2, np.minimum(20 + i // 2, 39), 39 - i // 2
    volume[z, y, x] = 2
    return volume


@pytest.mark.each_value
@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
def test_diagonal_paths(device, connectivity):
    for sides in (OWN_TILES, SMALL_TILES):
        check(device, diagonals(), connectivity, sides)


def spiral(side):
    """Return a path, one voxel wide, that winds from the border of a square to its middle."""
    square = np.zeros((side, side), bool)
    y, x, step, turn = 0, -1, 0, ((0, 1), (1, 0), (0, -1), (-1, 0))
    lengths = [side, *itertools.chain.from_iterable((n, n) for n in range(side - 1, 0, -2))]
    for step, length in enumerate(lengths):
        for _ in range(length):
            y, x = y + turn[step % 4][0], x + turn[step % 4][1]
            square[y, x] = True
    return square


def test_a_component_that_winds_through_every_tile(device):
    for connectivity in (6, 26):
        assert check(device, serpentine(19), connectivity).max() == 1
    assert check(device, serpentine(33), 6, OWN_TILES).max() == 1
    # Twice the same path, and once more the other way round.
    path = spiral(35)
    assert check(device, path, 6).max() == 1
    check(device, np.stack([path, ~path, path, path[::-1], ~path]), 6)


@cuda_emulator.any_order
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int32", "uint64", "int64"])
def test_classes_of_any_width(device, dtype):
    classes = sized((5, 9, 40), 0.7, 1 if dtype == "bool" else 3)
    volume = classes.astype(dtype)
    check(device, -volume if volume.dtype.kind == "i" else volume, 18, same=classes)


HIGH_WORDS = 1 + sized((5, 9, 40), 1).astype(np.uint64) << np.uint64(32)
"""Classes of which only the higher 32 bits differ."""


def check_high_words(device):
    check(device, HIGH_WORDS, 18, same=(HIGH_WORDS >> np.uint64(32)).astype(np.uint8))


def test_classes_that_differ_in_the_high_word_alone(device):
    check_high_words(device)


def test_many_classes(device):
    random = np.random.default_rng(3)
    check(device, random.integers(0, 256, (6, 20, 70)).astype(np.uint8), 26, OWN_TILES)
    # Touching boxes, each of its own class.
    z, y, x = np.indices((9, 20, 70))
    check(device, (1 + z // 3 * 40 + y // 4 * 8 + x // 9).astype(np.uint8), 26, OWN_TILES)


@cuda_emulator.any_order
def test_numbers_are_scipys(device):
    for connectivity, rank in zip(CONNECTIVITIES, (1, 2, 3), strict=True):
        volume = sized((11, 18, 70), 0.3, 1) > 0
        labels = check(device, volume, connectivity, OWN_TILES)
        structure = scipy.ndimage.generate_binary_structure(3, rank)
        np.testing.assert_array_equal(labels, scipy.ndimage.label(volume, structure)[0])


@cuda_emulator.any_order
def test_layouts_and_out(device):
    volume = sized((5, 9, 40))
    here = device.bring(volume)
    expected = lpa3d.label(volume)
    flipped = lpa3d.label(here[::-1, :, ::2])
    np.testing.assert_array_equal(device.fetch(flipped), lpa3d.label(volume[::-1, :, ::2]))
    flat = lpa3d.label(here[2], connectivity=2)
    assert flat.shape == (9, 40)
    np.testing.assert_array_equal(device.fetch(flat), lpa3d.label(volume[2], connectivity=2))
    np.testing.assert_array_equal(device.fetch(here), volume)

    out = device.xp.full(volume.shape, 9, np.uint32)
    assert lpa3d.label(here, out=out) is out
    np.testing.assert_array_equal(device.fetch(out), expected)
    with pytest.raises(InputTypeError, match="out is a ndarray; a CuPy array is needed"):
        lpa3d.label(here, out=np.empty(volume.shape, np.uint32))
    with pytest.raises(InputError, match="uint32"):
        lpa3d.label(here, out=device.xp.empty(volume.shape, np.uint64))
    with pytest.raises(InputTypeError, match="float64"):
        lpa3d.label(here.astype(np.float64))


@cuda_emulator.any_order
@given(volume=class_volumes(wide=True), connectivity=connectivities, sides=tile_sides)
@settings(max_examples=20)
def test_arrays_in_memory_are_labelled_on_the_device_in_use(device, volume, connectivity, sides):
    expected = lpa3d.label(volume, connectivity=connectivity)
    with on_device(device), tiles(sides):
        labels = lpa3d.label(volume, connectivity=connectivity)
        out = np.full(volume.shape, 9, np.uint32)
        assert lpa3d.label(volume, connectivity=connectivity, out=out) is out
    assert labels.dtype == np.uint32
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(out, expected)


@cuda_emulator.any_order
@given(volume=class_volumes(wide=True, max_classes=2), connectivity=connectivities)
@settings(max_examples=15)
def test_runs_of_a_tile(device, volume, connectivity):
    """What a stage on stored volumes keeps of a tile does not depend on who found the components."""

    def scan():
        return scan_tile(volume, connectivity, (True,) * 6, lambda found: found.flag_seeds(volume > 1), keep=True)

    expected = scan()
    with on_device(device), tiles(SMALL_TILES):
        found = scan()
        assert len(find_components(volume, connectivity).slabs) == 1
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@given(data=st.data(), connectivity=connectivities)
@settings(max_examples=15)
def test_what_stages_do_with_components(device, data, connectivity):
    labels = data.draw(class_volumes())
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    seeds = (labels * (random.random(labels.shape) < 0.1)).astype(np.int64)
    other = np.where(random.random(labels.shape) < 0.5, labels, random.integers(0, 3, labels.shape)).astype(np.uint8)
    host = find_components(labels, connectivity)
    here = device.bring(labels)
    with tiles(SMALL_TILES):
        there = find_components(here, connectivity)
    assert there.count == host.count

    held = host.hold_seed(labels, other)
    keep = host.flag_seeds(seeds)
    found = there.flag_seeds(device.bring(seeds))
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(device.fetch(there.hold_seed(here, device.bring(other))), held)
    np.testing.assert_array_equal(device.fetch(found), keep)

    values = random.integers(0, 2**31, host.count)
    for clear, table in itertools.product((False, True), (None, values)):
        start = np.full(labels.shape, 7, np.uint32)
        out = device.bring(start)
        expected = np.where(labels == 0, 0, start)
        host.write_labels(expected, clear=clear, values=table)
        there.write_labels(out, clear=clear, values=None if table is None else device.bring(table))
        np.testing.assert_array_equal(device.fetch(out)[labels > 0], expected[labels > 0])
        assert (device.fetch(out)[labels == 0] == (0 if clear else 7)).all()

    cleared = labels.copy()
    host.clear(cleared, keep)
    there.clear(here, found)
    np.testing.assert_array_equal(device.fetch(here), cleared)


@given(volume=class_volumes(max_classes=1), connectivity=connectivities, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_what_is_cut_off_is_filled_again(device, volume, connectivity, seed):
    random = np.random.default_rng(seed)
    seeds = (volume * random.integers(1, 5, volume.shape) * (random.random(volume.shape) < 0.2)).astype(np.uint16)
    labels, links, weights = (
        seeds.astype(np.uint32),
        link_voxels(volume, connectivity),
        step_weights(connectivity, (1, 1, 1)),
    )
    spread(labels, links, weights, connectivity)
    cut_links(links, labels, connectivity)
    other = (random.random(volume.shape) < 0.3) & (seeds == 0) & (labels > 0)
    labels[other] = random.integers(1, 5, volume.shape)[other]
    confidence = random.integers(1, 65536, volume.shape).astype(np.uint16)

    arrays = [labels, links, seeds, confidence]
    here = [device.bring(array) for array in arrays]
    with tiles(SMALL_TILES):
        found = reattach(*here[:3], weights, connectivity, confidence=here[3])
    assert found == reattach(*arrays[:3], weights, connectivity, confidence=confidence)
    for array, expected in zip(here, arrays, strict=True):
        np.testing.assert_array_equal(device.fetch(array), expected)


def crowd():
    """Return stripes that one plane across them unites: many threads hang the same roots at once."""
    volume = np.zeros((8, 12, 96), bool)
    volume[:, ::2] = True
    volume[:, :, 31:33] = True
    return volume


TRAPS = {
    "crowd": (crowd(), 6),
    "cubes": (cubes(), 26),
    "noise": (sized((9, 17, 70), 0.3), 26),
    "dense noise": (sized((9, 17, 70), 0.6), 6),
    "diagonals": (diagonals(), 26),
    "full": (np.ones((5, 7, 70), bool), 26),
}

BARRIER, ROW_OF_THREAD, ROW_OF_WARP = (
    "    __syncthreads();\n\n",
    "    for (int row = threadIdx.x;",
    "    for (int row = warp;",
)

PLANTED = {
    "no second try to unite": ("unionfind.cuh", "if (parent == a) return;", "return;"),
    "a root that is not the smallest": ("unionfind.cuh", "if (a < b) {", "if (a > b) {"),
    "no barrier before rows are united": ("label.cu", BARRIER + ROW_OF_THREAD, ROW_OF_THREAD),
    "no barrier before roots are written": ("label.cu", BARRIER + ROW_OF_WARP, ROW_OF_WARP),
    "no corners": ("label.cu", "if (CONNECTIVITY == 18) return;", "return;"),
    "a corner that another class implies": ("label.cu", "d.x | c.left_y | b.left_z", "d.solid | c.left_y | b.left_z"),
    "an edge that another class implies": ("label.cu", "~(a.x | a.y | b.x | a.left_y)", "~(a.x | a.y | b.solid)"),
    "faces that imply each other in a circle": ("label.cu", "~(a.x & b.x), X", "~(a.x & b.x) & ~(a.z & c.y), X"),
    "faces implied across a border": ("label.cu", "(cut_y | ~(a.y & b.x))", "~(a.y & b.x)"),
    "the row before, of a tile's first": ("label.cu", "row % TILE_Y > 0", "row > 0"),
    "links across borders within a tile": ("label.cu", "lane == 1 ? ALL - 1", "lane == 1 ? ALL"),
    "the slice before, one too far": ("label.cu", "here[-slice]", "here[0]"),
    "no carry from word to word": ("label.cu", "found.left_solid |= solid[i - 1] >> (WARP - 1);", ""),
    "borders of other tiles": ("label.cu", "y % TILE_Y == 0 ? Y", "y % TILE_Y == 1 ? Y"),
    "no borders along x": ("label.cu", "cut_y | 1", "cut_y"),
    "diagonals of any class": ("label.cu", "!is_diagonal(p, q) || ", "true || "),
    "old roots are counted": ("label.cu", "if (root == node) top |= bit;", "top |= bit;\n        if (root == node) {}"),
    "numbers from 0": ("label.cu", ">> x % WARP) + 1", ">> x % WARP)"),
    "numbers of the wrong bit": ("label.cu", "tops[place] >> x % WARP", "tops[place] >> (x + 1) % WARP"),
    "numbers of roots are replaced": ("label.cu", "(solid[word] & ~roots[word])", "solid[word]"),
    "classes of 32 bits": ("label.cu", "typedef decltype((VOLUME)0 + 0u) Class;", "typedef u32 Class;"),
}  # fmt: skip


@pytest.mark.each_other
@pytest.mark.parametrize("name", PLANTED)
def test_planted_bugs_are_caught(emulator, name):
    for mode in ("shuffled", "preempt"):
        with cuda_emulator.plant(emulator(mode), *PLANTED[name]) as broken:
            try:
                for volume, connectivity in TRAPS.values():
                    check(broken, volume, connectivity)
                check_high_words(broken)
            except (AssertionError, IndexError, RuntimeError):
                return
    pytest.fail(f"{name}: not caught")
