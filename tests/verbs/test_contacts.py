"""`contacts` against a plain restatement, scikit-image, and itself on parts of the volume."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import lpa3d
from lpa3d.arrays.checks import as_numbers, as_raw
from lpa3d.arrays.neighbors import neighbor_offsets
from lpa3d.errors import InputError, InputTypeError
from lpa3d.kernels.contacts import count_contacts
from lpa3d.linking.contacts import Counts, add_counts, count_pairs, tabulate
from tests import naive

COUNTS = ["faces_z", "faces_y", "faces_x", "edges", "corners"]
FAR_IDS = [2**53, 2**53 + 1, 2**63 - 1]


def volumes(ids=(0, 1, 2, 3, *FAR_IDS), dtype="int64", side=5):
    shapes = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=side)
    return shapes.flatmap(lambda shape: hnp.arrays(dtype, shape, elements=st.sampled_from(ids)))


def assert_same(table, other):
    for (name, column), (other_name, other_column) in zip(
        table.columns().items(), other.columns().items(), strict=True
    ):
        assert name == other_name
        np.testing.assert_array_equal(column, other_column, err_msg=name)


def counts_of(table):
    rows = zip(table.id_a, table.id_b, *(getattr(table, name) for name in COUNTS), strict=True)
    return {(int(a), int(b)): np.array(row) for a, b, *row in rows}


@pytest.mark.interpreted
@given(
    volumes(),
    st.sampled_from([6, 18, 26]),
    st.sampled_from([(1, 1, 1), (40, 8, 8), (3, 2, 5)]),
    st.sampled_from([None, "uint8", "int64", "float32", "float64", "bool"]),
    st.data(),
)
def test_equals_the_plain_restatement(labels, connectivity, spacing, image_dtype, data):
    image = None
    if image_dtype is not None:
        # Also fractions finer than the sums can hold, half-way cases among them.
        kinds = {"float32": st.floats(-(2.0**20), 2.0**20, width=32), "float64": st.floats(-(2.0**29), 2.0**29)}
        kinds["int64"] = st.integers(1 - 2**53, 2**53 - 1)
        image = data.draw(hnp.arrays(image_dtype, labels.shape, elements=kinds.get(image_dtype)))
    table = lpa3d.contacts(labels, image=image, spacing=spacing, connectivity=connectivity)
    expected = naive.contacts(labels, image, spacing, connectivity)
    assert list(zip(table.id_a.tolist(), table.id_b.tolist(), strict=True)) == list(expected)
    rows = np.stack([getattr(table, name) for name in COUNTS], axis=1).tolist()
    for k, (*counts, area, share, mean) in enumerate(expected.values()):
        assert rows[k] == counts
        # Whole numbers: every float64 expression is exact but for one rounding.
        assert table.area[k] == area
        assert table.share[k] == float(share)
        if mean is not None:
            assert table.mean[k] == float(mean)
    assert (table.mean is None) == (image is None)


@given(volumes(), st.sampled_from([6, 18, 26]), st.data())
def test_counts_add_up_over_any_boxes(labels, connectivity, data):
    """The rows of disjoint boxes, whatever their shape, sum to those of the volume."""
    image = data.draw(hnp.arrays("int32", labels.shape))
    cuts = [
        [0, *sorted(data.draw(st.sets(st.integers(1, n - 1), max_size=3) if n > 1 else st.just(set()))), n]
        for n in labels.shape
    ]
    forward = neighbor_offsets(connectivity)[{6: 3, 18: 9, 26: 13}[connectivity] :]
    parts = []
    for corner in itertools.product(*(itertools.pairwise(cut) for cut in cuts)):
        box = np.array(corner, dtype=np.int64).T.copy()
        rows = count_contacts(as_raw(labels), as_numbers(image), labels.shape, 1.0, forward, box)
        parts.append(Counts(rows[:, :2], rows[:, 2:]))
    total = add_counts(data.draw(st.permutations(parts)))
    expected = lpa3d.contacts(labels, image=image, spacing=(3, 2, 1), connectivity=connectivity)
    assert_same(tabulate(total, (3.0, 2.0, 1.0), 1), expected)
    whole = count_pairs(labels, image, connectivity)
    np.testing.assert_array_equal(total.pairs, whole.pairs)
    np.testing.assert_array_equal(total.values, whole.values)


@given(volumes(), st.sampled_from([6, 18, 26]), st.integers(0, 2), st.data())
def test_two_halves_and_their_seam_are_the_whole(labels, connectivity, axis, data):
    at = data.draw(st.integers(1, labels.shape[axis])) if labels.shape[axis] else 0
    table = {}

    def add(start, stop, sign):
        part = np.moveaxis(np.moveaxis(labels, axis, 0)[start:stop], 0, axis)
        for pair, row in counts_of(lpa3d.contacts(part, connectivity=connectivity)).items():
            table[pair] = table.get(pair, 0) + sign * row

    add(0, at, 1)
    add(at, None, 1)
    add(at - 1, at + 1, 1)  # two slices: the seam, and what lies within each of them
    add(at - 1, at, -1)
    add(at, at + 1, -1)
    whole = counts_of(lpa3d.contacts(labels, connectivity=connectivity))
    found = {pair: row.tolist() for pair, row in table.items() if row.any()}
    assert found == {pair: row.tolist() for pair, row in whole.items()}


@given(volumes(), st.permutations([0, 1, 2]), st.tuples(*[st.booleans()] * 3), st.sampled_from([6, 18, 26]))
def test_flips_and_transposes_change_no_bit(labels, axes, flips, connectivity):
    spacing = (0.3, 1.7, 40.1)
    turned = labels.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    table = lpa3d.contacts(labels, spacing=spacing, connectivity=connectivity)
    other = lpa3d.contacts(turned, spacing=[spacing[axis] for axis in axes], connectivity=connectivity)
    for name in ("id_a", "id_b", "edges", "corners", "area", "share"):
        np.testing.assert_array_equal(getattr(table, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize("shape", [(40, 50, 60), (1, 3000, 20), (2, 2, 5000), (3000, 1, 2)])
def test_threads_change_nothing(shape, monkeypatch):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 40, shape).astype(np.uint16)
    image = rng.random(shape).astype(np.float32)
    tables = []
    for threads in (1, 2, 4):
        monkeypatch.setenv("LPA3D_NUM_THREADS", str(threads))
        tables.append(lpa3d.contacts(labels, image=image, connectivity=26))
    assert_same(tables[0], tables[1])
    assert_same(tables[0], tables[2])


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4", ">u8", ">i8"])
def test_any_integer_dtype(dtype):
    labels = np.random.default_rng(1).integers(0, 5, (4, 5, 6)).astype(dtype)
    assert_same(lpa3d.contacts(labels), lpa3d.contacts(labels.astype(np.int64)))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "g", ">f4", ">f8", ">i2", "u8", "?"])
def test_any_image_dtype(dtype):
    labels = np.random.default_rng(1).integers(0, 5, (4, 5, 6))
    image = (np.random.default_rng(2).integers(0, 5, labels.shape) / 4).astype(dtype)
    expected = lpa3d.contacts(labels, image=image.astype(np.float64))
    assert_same(lpa3d.contacts(labels, image=image), expected)


def test_any_layout():
    labels = np.random.default_rng(3).integers(0, 4, (8, 6, 10)).astype(np.int32)
    image = labels * 7 % 5
    part = labels[::2, ::-1, 1:7]
    expected = lpa3d.contacts(np.ascontiguousarray(part), image=np.ascontiguousarray(image[::2, ::-1, 1:7]))
    frozen = part.copy(order="F")
    frozen.flags.writeable = False
    for given_labels in (part, np.asfortranarray(part), frozen):
        before = given_labels.copy()
        assert_same(lpa3d.contacts(given_labels, image=image[::2, ::-1, 1:7]), expected)
        np.testing.assert_array_equal(given_labels, before)


def test_2d_is_one_slice():
    labels = np.random.default_rng(4).integers(0, 4, (9, 11))
    for connectivity in (6, 18, 26):
        flat = lpa3d.contacts(labels, image=labels / 2, spacing=(3, 5), connectivity=connectivity)
        assert_same(
            flat, lpa3d.contacts(labels[None], image=labels[None] / 2, spacing=(5, 3, 5), connectivity=connectivity)
        )
    assert_same(lpa3d.contacts(labels, connectivity=18), lpa3d.contacts(labels, connectivity=26))


@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 0, 3), (3, 3, 0), (1, 1, 1), (0, 0)])
def test_nothing_touches_in_no_voxels(shape):
    table = lpa3d.contacts(np.ones(shape, np.uint8), image=np.ones(shape))
    assert len(table) == 0
    assert table.mean.shape == (0,)
    assert repr(table) == "Contacts: 0 touching pairs"


def test_areas_and_surfaces_of_boxes():
    """Two bricks of 4 x 6 x 10 and 2 x 6 x 10 voxels on each other, the lower one on the floor of the volume."""
    labels = np.zeros((9, 10, 14), np.uint8)
    labels[:4, 2:8, 2:12] = 1
    labels[4:6, 2:8, 2:12] = 2
    table = lpa3d.contacts(labels, spacing=(40, 8, 4))
    assert (table.faces_z[0], table.faces_y[0], table.faces_x[0]) == (60, 0, 0)
    assert table.area[0] == 60 * 8 * 4
    # The lower brick has no surface at the floor, so it is 60 tops, and 4 slices of sides; the upper one is smaller.
    upper = 2 * 60 * 8 * 4 + 2 * 2 * (6 * 40 * 8 + 10 * 40 * 4)
    assert table.share[0] == 60 * 8 * 4 / upper


@pytest.mark.long
def test_many_distinct_far_ids():
    labels = np.arange(10**6, dtype=np.int64).reshape(100, 100, 100) * 9_000_000_000_000 + 1
    table = lpa3d.contacts(labels)
    assert len(table) == 3 * 99 * 100 * 100
    assert (table.faces_z + table.faces_y + table.faces_x == 1).all()
    assert table.id_b.max() == labels[-1, -1, -1]


def test_sums_have_no_limit_and_no_order():
    """Values near both ends of the range cancel exactly, where floats would lose the small ones."""
    labels = np.repeat([[[1], [2]]], 4, axis=0)
    huge = 2**53 - 1
    image = np.array([[[huge], [huge]], [[huge], [huge]], [[1 - huge], [-huge]], [[-huge], [-huge]]])
    assert lpa3d.contacts(labels, image=image).mean.tolist() == [1 / 8]
    many = np.tile([[1], [2]], (1, 10_000))
    assert lpa3d.contacts(many, image=np.full(many.shape, huge)).mean.tolist() == [float(huge)]
    tenth = np.full(many.shape, 0.1)
    assert lpa3d.contacts(many, image=tenth).mean[0] == float(Fraction(round(Fraction(0.1) * 2**32), 2**32))


@pytest.mark.parametrize(("connectivity", "steps"), [(6, 1), (18, 2), (26, 3)])
def test_same_pairs_as_scikit_image(connectivity, steps):
    from skimage.graph import RAG

    labels = np.random.default_rng(5).integers(1, 40, (8, 9, 10))
    labels[labels < 20] = 1
    table = lpa3d.contacts(labels, connectivity=connectivity)
    edges = {tuple(sorted(edge)) for edge in RAG(labels, connectivity=steps).edges}
    assert set(zip(table.id_a.tolist(), table.id_b.tolist(), strict=True)) == edges


def test_table_is_readable_and_read_only():
    labels = np.arange(1, 31).reshape(5, 6)
    table = lpa3d.contacts(labels)
    lines = repr(table).splitlines()
    assert lines[0] == "Contacts: 49 touching pairs"
    assert lines[1].split() == list(table.columns())
    assert lines[-1] == "... 39 more"
    with pytest.raises(ValueError, match="read-only"):
        table.id_a[0] = 5
    with pytest.raises(AttributeError):
        table.id_a = None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": [[1, 2]]}, InputTypeError, "numpy.asarray"),
        ({"labels": np.ones((2, 2, 2))}, InputTypeError, "astype"),
        ({"labels": np.ones((2, 2, 2), complex)}, InputTypeError, "complex"),
        ({"labels": np.ones((2, 2), object)}, InputTypeError, "object"),
        ({"labels": np.ones(3, int)}, InputError, "1 dimensions"),
        ({"labels": np.ones((1, 1, 1, 1), int)}, InputError, "4 dimensions"),
        ({"labels": np.array([[1, -1]])}, InputError, "negative"),
        ({"labels": np.array([[1, 2**63]], np.uint64)}, InputError, "2\\*\\*63 - 1"),
        ({"connectivity": 8}, InputError, "6, 18 or 26"),
        ({"spacing": (1, 1)}, InputError, "2 values"),
        ({"spacing": (1, 0, 1)}, InputError, "> 0"),
        ({"spacing": (1, 1e200, 1)}, InputError, "1e70"),
        ({"image": np.ones((2, 2, 2))}, InputError, r"\(2, 2, 2\).*\(2, 3, 4\)"),
        ({"image": np.ones((2, 3, 4), complex)}, InputTypeError, "complex"),
        ({"image": np.full((2, 3, 4), np.nan)}, InputError, "NaN"),
        ({"image": np.full((2, 3, 4), -np.inf, np.float32)}, InputError, "infinite"),
        ({"image": np.full((2, 3, 4), 2.0**30)}, InputError, "1073741824"),
        ({"image": np.full((2, 3, 4), -(2**53))}, InputError, "divide"),
        ({"image": "membrane.tif"}, InputTypeError, "image is a"),
    ],
)
def test_bad_input(arguments, error, message):
    arguments = {"labels": np.ones((2, 3, 4), np.int32), **arguments}
    with pytest.raises(error, match=message):
        lpa3d.contacts(arguments.pop("labels"), **arguments)


def test_real_neighbours_share_less_than_half(data_dir):
    """The default of `merge` rests on this; the packed vesicles are the hardest case."""
    nibabel = pytest.importorskip("nibabel")
    path = data_dir / "urocell" / "fv" / "instance" / "fib1-3-2-1.nii.gz"
    labels = np.asarray(nibabel.load(path).dataobj).transpose(2, 1, 0).astype(np.uint16)
    table = lpa3d.contacts(labels)
    assert len(table) == 231
    assert table.share.max() < 0.5
    pairs = np.stack([labels[1:].ravel(), labels[:-1].ravel()])
    pairs = pairs[:, (pairs[0] != pairs[1]) & (pairs > 0).all(axis=0)]
    assert table.faces_z.sum() == pairs.shape[1]
