"""`merge` against a plain restatement, its guarantees, and what it refuses."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import lpa3d
from lpa3d.arrays.pairs import flag_first, sort_pairs
from lpa3d.arrays.unite import check_links, unite_ids
from lpa3d.errors import InputError, InputTypeError
from tests import naive

IDS = [1, 2, 3, 4, 5, 6, 7, 2**53, 2**53 + 1, 2**63 - 1]


def volumes(ids=(0, *IDS), side=4):
    shapes = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=side)
    return shapes.flatmap(lambda shape: hnp.arrays("int64", shape, elements=st.sampled_from(ids)))


def pairs_of(labels, **bounds):
    """Lists of pairs of two ids of `labels`, in either order."""
    ids = [int(i) for i in np.unique(labels) if i]
    if len(ids) < 2:
        return st.just([])
    return st.lists(st.lists(st.sampled_from(ids), min_size=2, max_size=2, unique=True).map(tuple), **bounds)


def merged_or_none(labels, **arguments):
    try:
        return lpa3d.merge(labels, **arguments)
    except InputError as error:
        if "must_link" not in str(error):
            raise
        return None


@pytest.mark.interpreted
@given(volumes(), st.data())
def test_equals_the_plain_restatement(labels, data):
    """Areas as evidence, classes and constraints; also which constraints contradict each other."""
    spacing = data.draw(st.sampled_from([(1, 1, 1), (5, 2, 3)]))
    connectivity = data.draw(st.sampled_from([6, 18, 26]))
    min_contact = data.draw(st.integers(0, 16)) / 16
    classes = data.draw(st.none() | st.fixed_dictionaries({i: st.integers(0, 1) for i in IDS}))
    must, cannot = data.draw(pairs_of(labels, max_size=3)), data.draw(pairs_of(labels, max_size=4))
    found = merged_or_none(
        labels,
        classes=classes,
        spacing=spacing,
        connectivity=connectivity,
        min_contact=min_contact,
        must_link=must,
        cannot_link=cannot,
    )
    evidence = {pair: row[6] for pair, row in naive.contacts(labels, None, spacing, connectivity).items()}
    expected = naive.merge(labels, evidence, min_contact, classes, must, cannot)
    assert (found is None) == (expected is None)
    if found is not None:
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == labels.dtype


@pytest.mark.interpreted
@given(volumes(), st.data())
def test_scores_equal_the_plain_restatement(labels, data):
    """Scores with many ties, in every form, and a threshold of any sign."""
    rows = data.draw(pairs_of(labels, max_size=12, unique_by=lambda pair: tuple(sorted(pair))))
    scores = {pair: data.draw(st.sampled_from([-2.0, -0.5, 0.0, 0.25, 3])) for pair in rows}
    must, cannot = data.draw(pairs_of(labels, max_size=2)), data.draw(pairs_of(labels, max_size=4))
    expected = naive.merge(labels, scores, -0.5, None, must, cannot)
    assume(expected is not None)
    listed = [(a, b, score) for (a, b), score in scores.items()]
    order = data.draw(st.permutations(listed))
    for form in (scores, listed, order, tuple(order)):
        found = lpa3d.merge(labels, scores=form, min_contact=-0.5, must_link=must, cannot_link=cannot)
        np.testing.assert_array_equal(found, expected)


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1), st.integers(0, 3)), max_size=60),
            st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=12),
            st.lists(st.integers(0, 1), min_size=n, max_size=n),
        )
    )
)
def test_union_under_many_constraints(case):
    """The union-find alone, with more unions and constraints than a small volume has."""
    n, rows, cannot, classes = case
    ids = np.arange(1, n + 1) * 2**58
    scores = {tuple(sorted((int(ids[a]), int(ids[b])))): float(score) for a, b, score in rows if a != b}
    pairs = check_links(scores, "pairs")
    evidence = np.array([scores[a, b] for a, b in pairs.tolist()])
    apart = check_links([(int(ids[a]), int(ids[b])) for a, b in cannot if a != b], "cannot_link")
    none = np.empty((0, 2), np.int64)
    found = unite_ids(ids, pairs, evidence, np.array(classes), [0, 1], must_link=none, cannot_link=apart)
    named = dict(zip(ids.tolist(), classes, strict=True))
    np.testing.assert_array_equal(found, naive.merge(ids, scores, 0, named, (), apart.tolist()))


@pytest.mark.parametrize("seed", range(4))
def test_union_of_many_ties(seed):
    """More pairs of equal evidence than any sort keeps in order by chance."""
    rng = np.random.default_rng(seed)
    ids = np.arange(1, 61)
    pairs, apart = (check_links(rows[rows[:, 0] != rows[:, 1]], "") for rows in rng.integers(1, 61, (2, 300, 2)))
    apart = apart[rng.random(len(apart)) < 0.2]
    evidence = rng.integers(0, 3, len(pairs)).astype(np.float64)
    none = np.empty((0, 2), np.int64)
    found = unite_ids(ids, pairs, evidence, ids * 0, [], must_link=none, cannot_link=apart)
    scores = dict(zip(map(tuple, pairs.tolist()), evidence.tolist(), strict=True))
    np.testing.assert_array_equal(found, naive.merge(ids, scores, 0, None, (), apart.tolist()))


def test_union_of_many_ids_keeps_its_promises():
    """A hundred thousand cannot-links, some on hubs: no pair joined, and no union left out that was allowed."""
    rng = np.random.default_rng(0)
    n = 30_000
    ids = np.sort(rng.choice(2**62, n, replace=False))

    def draw(count):
        pairs = np.sort(rng.integers(0, n, (count, 2)), axis=1)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        pairs = pairs[sort_pairs(pairs)]
        return pairs[flag_first(pairs)]

    links, apart = draw(200_000), draw(100_000)
    apart[:20_000, 0] = 0
    apart = np.unique(apart[apart[:, 0] != apart[:, 1]], axis=0)
    evidence = rng.integers(0, 1000, len(links)).astype(np.float64)
    groups = rng.integers(0, 3, n)
    none = np.empty((0, 2), np.int64)
    found = unite_ids(ids, ids[links], evidence, groups, range(3), must_link=none, cannot_link=ids[apart])
    place = np.searchsorted(ids, found)
    assert (place[apart[:, 0]] != place[apart[:, 1]]).all()
    np.testing.assert_array_equal(groups[place], groups)
    assert (place <= np.arange(n)).all()
    np.testing.assert_array_equal(place[place], place)
    barred = set(map(tuple, np.sort(place[apart], axis=1).tolist()))
    split = place[links][place[links][:, 0] != place[links][:, 1]]
    same = split[groups[split[:, 0]] == groups[split[:, 1]]]
    assert all(pair in barred for pair in map(tuple, np.sort(same, axis=1).tolist()))


def test_union_of_two_sides_that_stay_apart():
    """Unions in the shape of balanced trees write the entries anew at every level, more than there was room for."""
    n = 2**10
    ids = np.arange(2 * n)
    sizes = 2 ** np.arange(10)
    halves = [(low + side, low + size + side) for size in sizes for low in range(0, n, 2 * size) for side in (0, n)]
    across = [(k, n + k) for k in range(n)]
    pairs = np.array(halves + across)
    evidence = -np.arange(len(pairs), dtype=np.float64)
    order = sort_pairs(pairs)
    partners = np.stack([ids[:n], n + np.random.default_rng(0).permutation(n)], axis=1)
    none = np.empty((0, 2), np.int64)
    found = unite_ids(ids, pairs[order], evidence[order], ids * 0, [], must_link=none, cannot_link=partners)
    np.testing.assert_array_equal(found, np.repeat([0, n], n))


@given(volumes(), st.data())
def test_constraints_hold(labels, data):
    must, cannot = data.draw(pairs_of(labels, max_size=3)), data.draw(pairs_of(labels, max_size=5))
    found = merged_or_none(labels, min_contact=0, must_link=must, cannot_link=cannot)
    assume(found is not None)
    new = dict(zip(labels.ravel().tolist(), found.ravel().tolist(), strict=True))
    assert all(new[a] == new[b] for a, b in must)
    assert all(new[a] != new[b] for a, b in cannot)
    assert new.get(0, 0) == 0
    for i in set(new) - {0}:
        assert new[i] == min(j for j in new if new[j] == new[i])


@given(volumes(), st.permutations([0, 1, 2]), st.integers(0, 8))
def test_flips_transposes_and_tiles_change_nothing(labels, axes, eighths):
    spacing = (0.3, 1.7, 40.1)
    expected = lpa3d.merge(labels, spacing=spacing, min_contact=eighths / 8)
    turned = lpa3d.merge(
        labels.transpose(axes)[::-1, :, ::-1], spacing=[spacing[axis] for axis in axes], min_contact=eighths / 8
    )
    np.testing.assert_array_equal(turned, expected.transpose(axes)[::-1, :, ::-1])


@given(volumes(), st.integers(0, 8))
def test_order_preserving_ids_change_nothing_else(labels, eighths):
    ids, ranks = np.unique(np.append(labels, 0), return_inverse=True)
    expected = lpa3d.merge(labels, min_contact=eighths / 8)
    found = lpa3d.merge(ranks[:-1].reshape(labels.shape).astype(np.uint8), min_contact=eighths / 8)
    np.testing.assert_array_equal(ids[found], expected)


@given(volumes(), st.integers(0, 8), st.data())
def test_class_map_is_the_mapping(labels, eighths, data):
    """A class map and the mapping read off it agree; background in the map says nothing."""
    of = data.draw(st.fixed_dictionaries({i: st.sampled_from([-5, 0, 3]) for i in IDS}))
    hidden = data.draw(hnp.arrays(bool, labels.shape))
    classes = np.array([of.get(i, 3) for i in labels.ravel().tolist()], np.int64).reshape(labels.shape)
    classes[hidden] = 0
    seen = {i: int(classes[(labels == i) & (classes != 0)][:1].sum()) for i in IDS}
    found = lpa3d.merge(labels, classes=classes, min_contact=eighths / 8)
    np.testing.assert_array_equal(found, lpa3d.merge(labels, classes=seen, min_contact=eighths / 8))


def test_threads_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2000, (16, 12, 16)).repeat(6, 0).repeat(6, 1).repeat(6, 2).astype(np.uint32)
    classes = (labels % 2 + 1).astype(np.uint8)
    cannot = rng.integers(1, 2000, (500, 2))
    cannot = cannot[np.isin(cannot, labels).all(axis=1) & (cannot[:, 0] != cannot[:, 1])]
    results = []
    for threads in (1, 2, 4):
        monkeypatch.setenv("LPA3D_NUM_THREADS", str(threads))
        results.append(lpa3d.merge(labels, classes=classes, min_contact=0.1, cannot_link=cannot))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    assert 1 < len(np.unique(results[0])) < len(np.unique(labels)) / 2


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4", ">u8"])
def test_any_integer_dtype(dtype):
    labels = np.random.default_rng(1).integers(0, 6, (4, 5, 6)).astype(dtype)
    expected = lpa3d.merge(labels.astype(np.int64), min_contact=0.2)
    found = lpa3d.merge(labels, min_contact=0.2)
    assert found.dtype == labels.dtype
    np.testing.assert_array_equal(found, expected)
    out = np.full(labels.shape, 1, labels.dtype)
    assert lpa3d.merge(labels, min_contact=0.2, out=out) is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", ["?", "i1", ">u2", "i4", "u8"])
def test_any_class_dtype(dtype):
    labels = np.array([[1, 1, 2, 2, 3, 3, 4]])
    classes = np.array([[1, 1, 1, 1, 0, 0, 0]]).astype(dtype)
    np.testing.assert_array_equal(lpa3d.merge(labels, classes=classes, min_contact=0), [[1, 1, 1, 1, 3, 3, 3]])


def test_any_layout():
    labels = np.random.default_rng(3).integers(0, 6, (8, 6, 10))
    part = labels[::2, ::-1, 1:7]
    expected = lpa3d.merge(np.ascontiguousarray(part), min_contact=0.2)
    frozen = np.asfortranarray(part)
    frozen.flags.writeable = False
    before = part.copy()
    for given_labels in (part, frozen):
        np.testing.assert_array_equal(lpa3d.merge(given_labels, min_contact=0.2), expected)
    np.testing.assert_array_equal(part, before)
    for slice_labels in part:
        out = np.empty(slice_labels.shape, slice_labels.dtype)
        flat = lpa3d.merge(slice_labels, min_contact=0.2, out=out)
        assert flat is out
        np.testing.assert_array_equal(flat, lpa3d.merge(slice_labels[None], min_contact=0.2)[0])


@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 3, 0), (0, 0), (1, 1, 1), (2, 3)])
@pytest.mark.parametrize("value", [0, 7])
def test_empty_and_full_volumes(shape, value):
    labels = np.full(shape, value, np.uint16)
    found = lpa3d.merge(labels, classes=labels, min_contact=0)
    np.testing.assert_array_equal(found, labels)
    assert found is not labels
    if labels.size and value:
        # The only id of a volume that it fills touches nothing and is an id all the same.
        np.testing.assert_array_equal(lpa3d.merge(labels, must_link=[(7, 7)]), labels)


def test_connectivity_finds_what_touches_at_corners_only():
    labels = np.zeros((2, 2, 2), np.uint8)
    labels[0, 0, 0], labels[1, 1, 1] = 1, 2
    for connectivity, joined in ((6, False), (18, False), (26, True)):
        found = lpa3d.merge(labels, connectivity=connectivity, min_contact=0)
        assert (found.max() == 1) == joined
        assert lpa3d.merge(labels, connectivity=connectivity).max() == 2


def test_no_rule_but_what_is_said():
    """With ``min_contact=None`` even labels that are enclosed stay as they are."""
    labels = np.array([[5, 5, 5, 0], [5, 2, 5, 7], [5, 5, 5, 7]])
    np.testing.assert_array_equal(lpa3d.merge(labels, min_contact=None), labels)
    np.testing.assert_array_equal(
        lpa3d.merge(labels, min_contact=None, must_link=[(2, 7)]), np.where(labels == 7, 2, labels)
    )


def test_must_link_alone():
    labels = np.array([[5, 5, 3, 0, 9, 8]])
    np.testing.assert_array_equal(lpa3d.merge(labels, scores={}, must_link=[(9, 5)]), [[5, 5, 3, 0, 5, 8]])
    np.testing.assert_array_equal(lpa3d.merge(labels, scores=[], must_link={(8, 9)}), [[5, 5, 3, 0, 8, 8]])
    np.testing.assert_array_equal(
        lpa3d.merge(labels, scores=np.empty((0, 3)), must_link=np.array([[3, 9], [9, 5]], np.uint64)),
        [[3, 3, 3, 0, 3, 8]],
    )
    np.testing.assert_array_equal(
        lpa3d.merge(labels, min_contact=None, must_link=((np.uint64(a), np.int64(b)) for a, b in [(8, 9)])),
        [[5, 5, 3, 0, 8, 8]],
    )


def test_scores_of_a_table():
    labels = np.array([[1, 1, 2, 2, 3, 3]])
    table = lpa3d.contacts(labels, image=np.array([[0.1, 0.2, 0.1, 0.9, 0.8, 0.1]]))
    np.testing.assert_array_equal(lpa3d.merge(labels, scores=(table, 1 - table.mean)), [[1, 1, 1, 1, 3, 3]])
    # Their own column as scores is what happens without scores.
    for value in (0, 0.2, 0.5, 1):
        np.testing.assert_array_equal(
            lpa3d.merge(labels, scores=(table, table.share), min_contact=value), lpa3d.merge(labels, min_contact=value)
        )
    rows = np.array([[2, 1, 0.5], [3, 2, 0.4]])
    np.testing.assert_array_equal(lpa3d.merge(labels, scores=rows), [[1, 1, 1, 1, 3, 3]])
    np.testing.assert_array_equal(lpa3d.merge(labels, scores=rows.astype(np.float32), min_contact=0.4), labels * 0 + 1)
    # The same pair twice with one score is no contradiction.
    np.testing.assert_array_equal(lpa3d.merge(labels, scores=[(1, 2, 1), (2, 1, 1)]), [[1, 1, 1, 1, 3, 3]])


def test_a_refused_union_is_not_the_last_word():
    """1-2 comes first and bars 3, so 3 joins 4 instead."""
    labels = np.array([[1, 2, 3, 4]])
    scores = {(1, 2): 0.9, (2, 3): 0.8, (3, 4): 0.7, (1, 4): 0.6}
    found = lpa3d.merge(labels, scores=scores, cannot_link=[(1, 3)])
    np.testing.assert_array_equal(found, [[1, 1, 3, 3]])


def test_cuts_of_a_ball_come_together_and_neighbors_do_not():
    """A speck and a cap go back to their ball; the ball that touches it stays."""
    z, y, x = np.indices((24, 24, 46))
    labels = np.zeros(z.shape, np.int32)
    for label, center in ((1, 12), (2, 33)):
        labels[(z - 12) ** 2 + (y - 12) ** 2 + (x - center) ** 2 < 11**2] = label
    truth = labels.copy()
    labels[(labels == 1) & ((z - 12) ** 2 + (y - 12) ** 2 + (x - 8) ** 2 < 5**2)] = 3
    labels[(labels == 2) & ((z - 12) ** 2 + (y - 5) ** 2 + (x - 33) ** 2 < 4**2)] = 4
    assert len(lpa3d.contacts(labels)) == 3
    np.testing.assert_array_equal(lpa3d.merge(labels), truth)


def test_contradictions_name_the_chain():
    labels = np.arange(1, 12)[None]
    must = [(9, 7), (3, 7), (9, 11), (1, 2), (11, 5)]
    with pytest.raises(InputError, match=r"keeps 3 and 11 apart.*3 - 7 - 9 - 11;"):
        lpa3d.merge(labels, must_link=must, cannot_link=[(2, 3), (11, 3)])
    with pytest.raises(InputError, match=r"4 apart from itself"):
        lpa3d.merge(labels, cannot_link=[(4, 4)])
    with pytest.raises(InputError, match=r"joins 3 \(class axon\) and 7 \(class glia\)"):
        lpa3d.merge(labels, must_link=must, classes={i: "axon" if i == 3 else "glia" for i in range(1, 12)})
    classes = np.where(labels == 11, -2, 4)
    with pytest.raises(InputError, match=r"joins 5 \(class 4\) and 11 \(class -2\).* 2 pair"):
        lpa3d.merge(labels, must_link=must, classes=classes)


def test_an_id_on_two_classes_is_named():
    labels = np.array([[1, 1, 6, 6, 6, 6, 8, 8]], np.uint8)
    classes = np.array([[1, 1, 0, -3, 1, 1, 2, 0]], np.int8)
    with pytest.raises(InputError, match=r"1 id\(s\) of labels lie on more than one class: 6; id 6 is on 1 and -3"):
        lpa3d.merge(labels, classes=classes)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": np.ones((2, 2))}, InputTypeError, "astype"),
        ({"labels": np.array([[-1, 1]])}, InputError, "negative"),
        ({"labels": np.array([1, 1])}, InputError, "1 dimensions"),
        ({"labels": "labels.tif"}, InputTypeError, "labels is a"),
        ({"connectivity": 4}, InputError, "6, 18 or 26"),
        ({"spacing": (1, -1, 1)}, InputError, "> 0"),
        ({"min_contact": 1.5}, InputError, "0 to 1"),
        ({"min_contact": float("nan")}, InputError, "0 to 1"),
        ({"min_contact": "much"}, InputTypeError, "a number"),
        ({"min_contact": np.inf, "scores": {}}, InputError, "finite"),
        ({"min_contact": None, "scores": {(1, 2): 0.9}}, InputError, "scores are not used with min_contact=None"),
        ({"scores": 0.5}, InputTypeError, "scores cannot be read"),
        ({"scores": [(1, 2)]}, InputTypeError, "rows"),
        ({"scores": {(1, 2): "high"}}, InputTypeError, "no number"),
        ({"scores": {(1, 2): np.nan}}, InputError, "finite"),
        ({"scores": {(1, 1): 0.5}}, InputError, "two different ids"),
        ({"scores": {(1, 0): 0.5}}, InputError, "from 0 to 1"),
        ({"scores": {(1.5, 2): 0.5}}, InputTypeError, "pairs of integers"),
        ({"scores": {1: 0.5}}, InputTypeError, "pairs of integers"),
        ({"scores": [(1, 2, 0.5), (2, 1, 0.6)]}, InputError, r"0.5 and 0.6 for the pair \(1, 2\)"),
        ({"scores": np.array([[1.5, 2, 0.5]])}, InputError, "exactly"),
        ({"scores": np.array([[2.0**53 + 2, 2, 0.5]])}, InputError, "exactly"),
        ({"scores": np.array([[2**24 + 2, 2, 0.5]], np.float32)}, InputError, "16777216"),
        ({"scores": np.array([[np.nan, 2, 0.5]])}, InputError, "exactly"),
        ({"scores": np.array([[1, 2]])}, InputError, r"\(1, 2\)"),
        ({"scores": np.array([["a", "b", "c"]])}, InputTypeError, "dtype"),
        ({"scores": (lpa3d.contacts(np.array([[1, 2, 3]])), [0.5])}, InputError, "2 pairs"),
        ({"scores": {(2, 99): 0.5}}, InputError, "scores names 1 .* 99"),
        ({"must_link": [(1, 99), (98, 2)]}, InputError, "must_link names 2 .* 98, 99"),
        ({"cannot_link": [(1, 99)]}, InputError, "cannot_link names 1 .* 99"),
        ({"must_link": [(1, 0)]}, InputError, "from 0 to 1"),
        ({"must_link": [(1, 2**63)]}, InputError, "9223372036854775808"),
        ({"must_link": [(1, 2, 3)]}, InputTypeError, "must_link=\\[\\(3, 7\\)"),
        ({"must_link": (1, 2)}, InputTypeError, "pairs"),
        ({"must_link": None}, InputTypeError, "pairs"),
        ({"must_link": np.array([1, 2])}, InputError, r"shape \(2,\)"),
        ({"cannot_link": np.array([[1.0, 2.0]])}, InputTypeError, "float64"),
        ({"cannot_link": np.array([[1, 2**63]], np.uint64)}, InputError, "9223372036854775808"),
        ({"classes": np.ones((1, 3), int)}, InputError, r"\(1, 3\)"),
        ({"classes": np.ones((1, 4))}, InputTypeError, "float64"),
        ({"classes": [[1, 1, 1, 1]]}, InputTypeError, "numpy.asarray"),
        ({"classes": {1: 1, 2: 1}}, InputError, "no entry for 1 id.*: 3"),
        ({"out": np.empty((1, 4), np.int32)}, InputError, "int64"),
        ({"out": [0]}, InputTypeError, "numpy.empty"),
    ],
)
def test_bad_input(arguments, error, message):
    arguments = {"labels": np.array([[1, 2, 3, 0]]), **arguments}
    with pytest.raises(error, match=message):
        lpa3d.merge(arguments.pop("labels"), **arguments)


def test_out_may_not_be_an_input():
    labels = np.array([[1, 2, 3, 0]])
    with pytest.raises(InputError, match="shares memory"):
        lpa3d.merge(labels, out=labels)
    classes = np.ones_like(labels)
    with pytest.raises(InputError, match="shares memory"):
        lpa3d.merge(labels, classes=classes, out=classes)


def cut(labels, plane, rng):
    """Return `labels` with every instance in up to two parts, by a random plane or by a ball around one voxel."""
    parts = labels.copy()
    for fresh, label in enumerate(np.unique(labels[labels > 0]), int(labels.max()) + 1):
        voxels = np.argwhere(labels == label)
        if plane:
            depth = voxels @ rng.normal(size=3)
            away = depth > np.quantile(depth, rng.uniform(0.2, 0.8))
        else:
            away = ((voxels - voxels[rng.integers(len(voxels))]) ** 2).sum(axis=1) < rng.uniform(2, 8) ** 2
            if away.all():
                continue
        parts[tuple(voxels[away].T)] = fresh
    return parts


def test_real_mitochondria(data_dir):
    """Pieces of real mitochondria, all beside and inside their own, go back; nothing else is joined."""
    nibabel = pytest.importorskip("nibabel")
    path = data_dir / "urocell" / "mito" / "instance" / "fib1-0-0-0.nii.gz"
    labels = np.asarray(nibabel.load(path).dataobj).transpose(2, 1, 0).astype(np.int32)[96:224]
    pieces = cut(labels, False, np.random.default_rng(0))
    merged = lpa3d.merge(pieces)
    owners = np.unique(np.stack([merged[labels > 0], labels[labels > 0]]), axis=1)
    assert len(np.unique(owners[0])) == owners.shape[1]  # none holds two
    whole = np.bincount(owners[1])[np.unique(labels)[1:]] == 1
    assert whole.mean() > 0.8
    halves = cut(labels, True, np.random.default_rng(0))
    merged = lpa3d.merge(halves, min_contact=0.1)
    owners = np.unique(np.stack([merged[labels > 0], labels[labels > 0]]), axis=1)
    assert len(np.unique(owners[0])) == owners.shape[1]
    assert (np.bincount(owners[1])[np.unique(labels)[1:]] == 1).mean() > 0.85


def test_touching_mitochondria_of_the_phantom():
    """Neighbours stay apart at a threshold at which their halves come together."""
    from lpa3d import phantom

    cell = phantom.cell((48, 96, 96), seed=4)
    labels = np.where(cell.classes == 2, cell.instances, 0).astype(np.int32)
    assert len(lpa3d.contacts(labels)) > 0
    np.testing.assert_array_equal(lpa3d.merge(labels, min_contact=0.2), labels)
    halves = cut(labels, True, np.random.default_rng(1))
    assert len(np.unique(halves)) > len(np.unique(labels))
    np.testing.assert_array_equal(lpa3d.merge(halves, min_contact=0.2), labels)
