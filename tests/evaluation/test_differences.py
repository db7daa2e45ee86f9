"""The lists of errors against a plain restatement, and against corruptions of real objects that are known."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from lpa3d.arrays.overlap import Overlaps, count_overlaps
from lpa3d.errors import LibraryError
from lpa3d.evaluation.differences import Difference, Differences, list_merges, list_missed, list_splits, list_spurious
from tests import naive
from tests.strategies import shapes

LISTS = {"splits": list_splits, "merges": list_merges, "missed": list_missed, "spurious": list_spurious}
FAR = 2**63 - 1


def list_all(reference, prediction, ignore=None, **options):
    overlaps = count_overlaps(reference, prediction, ignore)
    return {kind: one(overlaps, **options) for kind, one in LISTS.items()}


def tuples(found):
    return [(e.id, e.size, e.cost, e.box, e.parts, e.overlaps) for e in found]


@st.composite
def volumes(draw):
    """Draw two volumes of a few ids, often those of one another, and what is ignored."""
    shape = draw(shapes())
    elements = st.integers(0, draw(st.integers(1, 6)))
    reference = draw(hnp.arrays("int64", shape, elements=elements))
    prediction = draw(hnp.arrays("int64", shape, elements=elements))
    if draw(st.booleans()):
        prediction = np.where(draw(hnp.arrays(bool, shape)), reference, prediction)
    ignore = draw(st.none() | hnp.arrays(bool, shape))
    return reference, prediction, ignore


@given(volumes(), st.sampled_from([0.1, 0.25, 0.3, 0.5, 1.0]))
def test_equal_a_plain_restatement(arrays, share):
    found = list_all(*arrays, share=share)
    # The share that is meant, not the float next to it.
    expected = naive.differences(*arrays, share=naive.Fraction(str(share)))
    assert {kind: tuples(entries) for kind, entries in found.items()} == expected


@given(volumes())
def test_identity_has_no_errors(arrays):
    reference, _, ignore = arrays
    assert [len(entries) for entries in list_all(reference, reference.copy(), ignore).values()] == [0] * 4


@given(volumes())
def test_an_exchange_exchanges_the_lists(arrays):
    reference, prediction, _ = arrays
    there, back = list_all(reference, prediction), list_all(prediction, reference)
    for one, other in (("splits", "merges"), ("merges", "splits"), ("missed", "spurious"), ("spurious", "missed")):
        assert tuples(there[one]) == tuples(back[other])


@given(volumes())
def test_relabelling_changes_only_the_ids(arrays):
    reference, prediction, ignore = arrays

    def lift(volume):
        return np.where(volume > 0, FAR - 10 + volume, 0)

    plain, far = list_all(reference, prediction, ignore), list_all(lift(reference), lift(prediction), ignore)
    for kind, entries in plain.items():
        moved = [(e[0] - FAR + 10, *e[1:4], tuple(part - FAR + 10 for part in e[4]), e[5]) for e in tuples(far[kind])]
        assert moved == tuples(entries)


def row(*ids):
    return np.array([[ids]], np.int64)


def test_a_split_costs_all_but_its_largest_part():
    found = list_all(row(1, 1, 1, 1, 1, 1, 0), row(5, 5, 5, 3, 3, 7, 7))
    box = (slice(0, 1), slice(0, 1), slice(0, 6))
    assert list(found["splits"]) == [Difference(1, 6, 3, box, (5, 3, 7), (3, 2, 1))]
    assert not found["merges"]
    assert not found["missed"]
    assert not found["spurious"]


def test_half_of_a_small_fragment_is_a_part_of_a_large_object():
    reference = row(*[1] * 98, *[0] * 2)
    prediction = row(*[1] * 96, *[2] * 4)
    (split,) = list_all(reference, prediction)["splits"]
    assert split.parts == (1, 2)
    assert split.cost == 2


def test_a_border_that_is_off_by_a_voxel_is_no_error():
    reference, prediction = np.zeros((2, 6, 6, 20), np.int64)
    for volume, border in ((reference, 10), (prediction, 11)):
        volume[..., :border], volume[..., border:] = 1, 2
    assert not any(map(len, list_all(reference, prediction).values()))


def test_an_object_that_is_found_to_a_speck_is_missed():
    reference, prediction = row(*[1] * 20), row(*[0] * 9, 4, *[0] * 10)
    found = list_all(reference, prediction)
    assert [(e.id, e.cost, e.parts) for e in found["missed"]] == [(1, 20, (4,))]
    assert not found["spurious"]


def test_mostly_void_predictions_are_not_spurious():
    reference, ignore = row(*[0] * 8), row(1, 1, 0, 0, 0, 1, 1, 0) > 0
    prediction = row(1, 1, 1, 0, 2, 2, 3, 3)
    found = list_all(reference, prediction, ignore)
    # Of 2 and 3 just half is void; size and box are those of what is not.
    assert [(e.id, e.size, e.box[2]) for e in found["spurious"]] == [(2, 1, slice(4, 5)), (3, 1, slice(7, 8))]


def test_all_void():
    everything = np.ones((1, 1, 4), bool)
    assert [len(e) for e in list_all(row(1, 1, 2, 2), row(1, 2, 2, 0), everything).values()] == [0] * 4


def test_an_empty_table():
    empty = Overlaps(np.empty((0, 2), np.int64), np.empty(0, np.int64), np.empty((0, 2, 3), np.int64))
    for kind, one in LISTS.items():
        found = one(empty)
        assert list(found) == []
        assert found.to_dicts() == []
        assert repr(found).startswith(f"{kind.capitalize()}: 0 ")
        assert found.columns()["id"].dtype == np.int64


def test_a_box_indexes_the_volume():
    reference = np.zeros((7, 8), np.int64)
    reference[2:5, 3:6] = 9
    (missed,) = list_missed(count_overlaps(reference[None], np.zeros_like(reference)[None]), ndim=2)
    assert missed.box == (slice(2, 5), slice(3, 6))
    assert (reference[missed.box] == 9).all()


def many(count=23):
    """Return the splits of `count` objects into 2 to 6 voxels each, one prediction per voxel."""
    sizes = [2 + k % 5 for k in range(count)]
    reference = np.repeat(np.arange(1, count + 1), sizes)[None, None]
    return list_splits(count_overlaps(reference, np.arange(1, reference.size + 1)[None, None]), ndim=2)


def test_a_sequence():
    found = many()
    entries = list(found)
    assert len(found) == len(entries) == 23
    assert [e.cost for e in entries] == sorted((e.cost for e in entries), reverse=True)
    assert found[-1] == entries[-1]
    assert entries[3] in found
    for cut in (slice(2, 7), slice(None, None, -2), slice(30, 40), slice(None)):
        part = found[cut]
        assert isinstance(part, Differences)
        assert list(part) == entries[cut]
    for index in (23, -24):
        with pytest.raises(IndexError):
            found[index]
    with pytest.raises(TypeError):
        found["a"]


def test_is_read_only():
    found = many()
    with pytest.raises(ValueError, match="read-only"):
        found.ids[0] = 1
    with pytest.raises(AttributeError):
        found.ids = None
    with pytest.raises(AttributeError):
        found[0].id = 3


def test_columns_hold_what_the_entries_do():
    found = many()
    columns, parts = found.columns(), found.part_columns()
    assert list(columns) == ["id", "size", "cost", "parts", "y_start", "y_stop", "x_start", "x_stop"]
    for place, entry in enumerate(found):
        assert [column[place] for column in columns.values()][:4] == [
            entry.id,
            entry.size,
            entry.cost,
            len(entry.parts),
        ]
        assert columns["x_start"][place] == entry.box[1].start
        own = parts["id"] == entry.id
        assert tuple(parts["part"][own]) == entry.parts
        assert tuple(parts["overlap"][own]) == entry.overlaps


def test_dictionaries_go_through_json():
    found = list_splits(count_overlaps(row(1, 1, 1), row(4, 4, 5)))
    expected = {
        "id": 1,
        "size": 3,
        "cost": 1,
        "box": [[0, 1], [0, 1], [0, 3]],
        "parts": [{"id": 4, "overlap": 2}, {"id": 5, "overlap": 1}],
    }
    assert json.loads(json.dumps(found.to_dicts())) == [expected]
    assert len(many().to_dicts(limit=4)) == 4


def test_pandas(monkeypatch):
    found = many()
    pandas = pytest.importorskip("pandas")
    frame = found.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["cost"].tolist() == found.costs.tolist()
    assert found.to_pandas(parts=True)["overlap"].sum() == found.overlaps.sum()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(LibraryError, match=r"pip install 'lpa3d\[pandas\]'"):
        found.to_pandas()


def test_repr_shows_the_first_ten():
    lines = repr(many()).split("\n")
    assert lines[0] == "Splits: 23 reference objects cut into several predictions"
    assert lines[1].split() == ["id", "size", "cost", "box", "parts", "(overlap)"]
    assert lines[2].endswith("0:1, 14:20  15 (1), 16 (1), 17 (1), 3 more")
    assert len(lines) == 13
    assert len(set(map(len, lines[1:12]))) == 1
    assert lines[-1] == "... 13 more"
    page = many()._repr_html_()
    assert page.count("<tr>") == 11
    assert "... 13 more" in page


def grow(labels, ids):
    """Return `labels` with `ids` grown by one voxel across faces, over background and neighbours."""
    grown = labels.copy()
    for axis in range(3):
        for step in (1, -1):
            moved = np.roll(labels, step, axis)
            moved[(slice(None),) * axis + (0 if step == 1 else -1,)] = 0
            here = np.isin(moved, ids) & (moved != labels)
            grown[here] = moved[here]
    return grown


def shrink(labels, ids):
    """Return `labels` with `ids` without their voxels at faces to anything else."""
    flat = ndimage.minimum_filter(labels, footprint=ndimage.generate_binary_structure(3, 1), mode="nearest")
    steep = ndimage.maximum_filter(labels, footprint=ndimage.generate_binary_structure(3, 1), mode="nearest")
    return np.where((flat != steep) & np.isin(labels, ids), 0, labels)


def touching(labels):
    """Return the pairs of ids that share a face."""
    pairs = set()
    for axis in range(3):
        first, second = (np.delete(labels, end, axis).ravel() for end in (-1, 0))
        there = (first != second) & (first > 0) & (second > 0)
        pairs |= set(zip(*np.sort([first[there], second[there]], axis=0).tolist(), strict=True))
    return sorted(pairs)


def corrupt(labels, random):
    """Return corrupted labels, and which ids each list must hold."""
    labels = labels.astype(np.int64)
    corrupted = labels.copy()
    ids = np.unique(labels)[1:]
    count, fresh = len(ids) // 12, int(ids[-1])
    wanted = {kind: set() for kind in LISTS}
    used = set()
    pairs = touching(labels)
    for one in random.permutation(len(pairs)):
        if len(wanted["merges"]) < count and not used & set(pairs[one]):
            corrupted[labels == pairs[one][1]] = pairs[one][0]
            wanted["merges"].add(pairs[one][0])
            used |= set(pairs[one])
    rest = [i for i in random.permutation(ids).tolist() if i not in used]
    for i in rest[:count]:
        places = np.argwhere(labels == i)
        along = places[:, np.ptp(places, axis=0).argmax()]
        piece = places[along <= np.quantile(along, random.uniform(0.2, 0.5))]
        fresh += 1
        corrupted[tuple(piece.T)] = fresh
        wanted["splits"].add(i)
    wanted["missed"] = set(rest[count : 2 * count])
    corrupted[np.isin(labels, list(wanted["missed"]))] = 0
    empty = np.argwhere(labels == 0)
    for at in empty[random.integers(len(empty), size=count)]:
        reach = random.integers(2, 6)
        window = tuple(slice(max(0, x - reach), x + reach + 1) for x in at)
        free = (labels[window] == 0) & (corrupted[window] == 0)
        if np.count_nonzero(free) >= 10:
            fresh += 1
            corrupted[window][free] = fresh
            wanted["spurious"].add(fresh)
    others = rest[2 * count :]
    third = len(others) // 3
    return grow(shrink(corrupted, others[:third]), others[third : 2 * third]), wanted


def test_known_errors_of_real_vesicles_are_found(data_dir):
    nibabel = pytest.importorskip("nibabel")
    path = data_dir / "urocell" / "fv" / "instance" / "fib1-3-2-1.nii.gz"
    labels = np.ascontiguousarray(np.asarray(nibabel.load(path).dataobj).T[128:]).astype(np.int64)
    corrupted, wanted = corrupt(labels, np.random.default_rng(0))
    for kind, found in list_all(labels, corrupted).items():
        hits = len(wanted[kind] & set(found.ids.tolist()))
        assert len(wanted[kind]) > 10
        assert hits >= 0.95 * len(wanted[kind]), kind
        assert hits >= 0.9 * len(found), kind
