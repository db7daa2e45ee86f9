"""`evaluate` as a whole: the table, classes, components, the result; each metric has a test file of its own."""

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
import skimage.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import lpa3d
from lpa3d.arrays.overlap import VOID, Overlaps, add_overlaps, count_overlaps, find_boxes
from lpa3d.evaluation.classified import Sides, count_components
from lpa3d.evaluation.instances import match, tabulate_instances
from lpa3d.evaluation.metrics import LESS_IS_BETTER, PARTITION, SEMANTIC
from tests.strategies import INTEGER_DTYPES, class_volumes, connectivities, laid_out, shapes

FAR = 2**63 - 1


def assert_same_table(table, other):
    np.testing.assert_array_equal(table.pairs, other.pairs)
    np.testing.assert_array_equal(table.voxels, other.voxels)
    np.testing.assert_array_equal(table.boxes, other.boxes)


def naive_table(reference, prediction, ignore=None):
    """Return {pair: [voxels, first corner, one after the last]}."""
    rows = {}
    for at in np.ndindex(reference.shape):
        a = VOID if ignore is not None and ignore[at] else int(reference[at])
        row = rows.setdefault((a, int(prediction[at])), [0, list(at), [0, 0, 0]])
        row[0] += 1
        row[1] = [min(pair) for pair in zip(row[1], at, strict=True)]
        row[2] = [max(low, i + 1) for low, i in zip(row[2], at, strict=True)]
    return rows


@st.composite
def pairs_of_ids(draw, ids=(0, 1, 2, 3, 7), wide=True, ignore=True):
    """Draw two volumes of one shape, blocky so that runs are long, and a mask or None."""
    shape = draw(shapes(wide=wide))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sides = []
    for _ in range(2):
        volume = random.choice(ids, shape)
        for axis, length in enumerate(draw(st.tuples(*[st.sampled_from([1, 2, 5])] * 3))):
            volume = np.repeat(volume, length, axis)
        sides.append(volume[tuple(slice(n) for n in shape)])
    mask = random.random(shape) < 0.2 if ignore and draw(st.booleans()) else None
    return sides[0], sides[1], mask


# ------------------------------------------------------------------------------------------------------- the table


@given(pairs_of_ids())
def test_table_against_a_plain_count(case):
    reference, prediction, ignore = case
    table = count_overlaps(reference, prediction, ignore)
    rows = naive_table(reference, prediction, ignore)
    assert list(map(tuple, table.pairs.tolist())) == sorted(rows)
    for pair, voxels, box in zip(table.pairs.tolist(), table.voxels.tolist(), table.boxes.tolist(), strict=True):
        assert [voxels, *box] == rows[tuple(pair)]


@given(st.sampled_from(["uint8", "uint16", "uint32", "int64"]), st.sampled_from(["uint8", "int64"]), st.data())
def test_table_of_any_width(first, second, data):
    """Every kernel width meets another one, with the largest ids that it can hold."""
    shape = data.draw(shapes(wide=True))
    sides = []
    for dtype in (first, second):
        ids = [0, 1, np.iinfo(dtype).max - 1, np.iinfo(dtype).max]
        sides.append(data.draw(hnp.arrays(dtype, shape, elements=st.sampled_from(ids), fill=st.just(0))))
    rows = naive_table(*sides)
    table = count_overlaps(*sides)
    assert {tuple(pair): n for pair, n in zip(table.pairs.tolist(), table.voxels.tolist(), strict=True)} == {
        pair: row[0] for pair, row in rows.items()
    }


@given(shapes(), st.sets(st.sampled_from([-(2**63), -(2**40), -5, -1, 1, 2**40, FAR])), st.integers(0, 2**32 - 1))
def test_table_of_codes_of_any_sign(shape, codes, seed):
    """Class maps of eight bytes are counted by their bits, which may be negative numbers."""
    random = np.random.default_rng(seed)
    labels, classes = random.integers(0, 4, shape), random.choice([0, *codes], shape).astype("int64")
    table = count_overlaps(labels, classes)
    rows = naive_table(labels, classes)
    assert list(map(tuple, table.pairs.tolist())) == sorted(rows)
    assert table.voxels.tolist() == [rows[pair][0] for pair in sorted(rows)]


@given(pairs_of_ids(), st.data())
def test_table_adds_up_over_any_cut(case, data):
    reference, prediction, ignore = case
    cuts = []
    for n in reference.shape:
        inner = st.sets(st.integers(1, n - 1), max_size=3) if n > 1 else st.just(set())
        cuts.append(list(itertools.pairwise([0, *sorted(data.draw(inner)), n])))
    parts = []
    for corner in itertools.product(*cuts):
        at = tuple(slice(*bounds) for bounds in corner)
        part = count_overlaps(
            *(np.ascontiguousarray(side[at]) for side in (reference, prediction)),
            None if ignore is None else np.ascontiguousarray(ignore[at]),
        )
        start = np.array([bounds[0] for bounds in corner])
        parts.append(Overlaps(part.pairs, part.voxels, part.boxes + start))
    assert_same_table(add_overlaps(data.draw(st.permutations(parts))), count_overlaps(reference, prediction, ignore))


def test_table_grows_and_does_not_depend_on_threads(monkeypatch):
    """More pairs than a new table has room for, in slabs for several threads."""
    random = np.random.default_rng(1)
    sides = [random.integers(0, 3000, (40, 100, 131)) for _ in range(2)]
    monkeypatch.setenv("LPA3D_NUM_THREADS", "1")
    one = count_overlaps(*sides)
    monkeypatch.setenv("LPA3D_NUM_THREADS", "5")
    assert_same_table(count_overlaps(*sides), one)
    counts = Counter(zip(*(side.ravel().tolist() for side in sides), strict=True))
    assert dict(zip(map(tuple, one.pairs.tolist()), one.voxels.tolist(), strict=True)) == counts


@given(pairs_of_ids())
def test_boxes_of_ids(case):
    reference, prediction, ignore = case
    table = count_overlaps(reference, prediction, ignore)
    counted = np.ones(reference.shape, bool) if ignore is None else ~ignore
    for side, volume in enumerate((reference, prediction)):
        ids = np.unique(volume[counted & (volume > 0)])
        boxes = find_boxes(table, side, ids)
        for label, (low, high) in zip(ids, boxes, strict=True):
            places = np.argwhere((volume == label) & counted)
            np.testing.assert_array_equal(low, places.min(axis=0))
            np.testing.assert_array_equal(high, places.max(axis=0) + 1)


# --------------------------------------------------------------------------------------------- classes and components


@given(pairs_of_ids(), st.sampled_from(["lpa3d", "skimage", "stardist", "mitoem"]))
def test_class_is_the_evaluation_of_its_ids_alone(case, convention):
    """Each class scores as if the ids of the others had been set to 0, the whole is their mean."""
    reference, prediction, ignore = case
    of = ({1: "a", 2: "a", 3: "b", 7: "c"}, {1: "a", 2: "b", 3: "b", 7: "b"})
    e = lpa3d.evaluate(reference, prediction, ignore=ignore, classes=of, convention=convention)
    for name, one in e.per_class.items():
        alone = []
        for side, classes in zip((reference, prediction), of, strict=True):
            chosen = [label for label, value in classes.items() if value == name]
            alone.append(np.where(np.isin(side, chosen), side, 0))
        expected = lpa3d.evaluate(*alone, ignore=ignore, convention=convention)
        assert dict(one) == dict(expected)
        np.testing.assert_array_equal(one.pairs.reference, expected.pairs.reference)
        assert [(d.id, d.cost) for d in one.splits] == [(d.id, d.cost) for d in expected.splits]
        assert [(d.id, d.cost) for d in one.spurious] == [(d.id, d.cost) for d in expected.spurious]
    present = [one for one in e.per_class.values() if one.present]
    for key in ("tp", "fp", "fn"):
        assert e[key] == sum(one[key] for one in present)
    for key in ("pq", "iou", "arand", "aji"):
        if present:
            assert e[key] == pytest.approx(sum(one[key] for one in present) / len(present), abs=1e-12)
    assert sorted(e.pairs.reference) == sorted(
        itertools.chain.from_iterable(one.pairs.reference for one in e.per_class.values())
    )
    for kind in ("splits", "merges", "missed", "spurious"):
        found = [(d.id, d.cost) for d in getattr(e, kind)]
        assert sorted(found) == sorted((d.id, d.cost) for one in present for d in getattr(one, kind))


@given(pairs_of_ids(ids=(0, 0, 1, 2)), connectivities)
def test_components_are_labelled_by_the_library(case, connectivity):
    reference, prediction, ignore = case
    options = {"ignore": ignore, "connectivity": connectivity}
    e = lpa3d.evaluate(reference, prediction, instances="components", **options)
    for value, one in e.per_class.items():
        labels = [lpa3d.label(side == value, connectivity=connectivity) for side in (reference, prediction)]
        expected = lpa3d.evaluate(*labels, ignore=ignore)
        assert dict(one) == dict(expected)
    semantic = lpa3d.evaluate(reference, prediction, instances=None, **options)
    assert set(semantic) == set(SEMANTIC)
    assert {value: dict(one) for value, one in semantic.per_class.items()} == {
        value: {key: one[key] for key in semantic} for value, one in e.per_class.items()
    }


@pytest.mark.parametrize("shape", [(9, 1, 70), (1, 80, 9), (300, 1, 1), (1, 1, 300), (40, 90, 120), (0, 3, 3)])
@pytest.mark.parametrize("connectivity", [6, 26])
def test_ids_of_components_are_those_of_label(shape, connectivity):
    """Volumes in slabs, and those whose axes of size one `label` moves out of the way."""
    random = np.random.default_rng(3)
    sides = Sides(*(random.integers(0, 3, shape).astype("uint8") for _ in range(2)), ignore=random.random(shape) < 0.1)
    table, _ = count_components(sides, connectivity)
    labels = [lpa3d.label(side, connectivity=connectivity) for side in (sides.reference, sides.prediction)]
    assert_same_table(table.overlaps, count_overlaps(*labels, sides.ignore))


def test_organelle_table():
    """Five classes, in the order and with the names that were asked for; one is absent from both sides."""
    reference = np.array([[1, 1, 1, 1, 0, 2, 2, 0, 3, 3, 0, 4, 4]])
    prediction = np.array([[1, 1, 1, 0, 0, 2, 2, 0, 0, 0, 0, 4, 3]])
    names = {4: "golgi", 1: "mitochondria", 2: "er", 3: "lysosome", 5: "peroxisome"}
    e = lpa3d.evaluate(reference, prediction, instances="components", class_names=names)
    assert list(e.per_class) == list(names.values())
    assert [one.present for one in e.per_class.values()] == [True, True, True, True, False]
    assert e.per_class["mitochondria"]["dice"] == 6 / 7
    assert e.per_class["er"]["iou"] == 1
    assert e.per_class["lysosome"]["f1"] == 0
    assert e.per_class["golgi"]["iou"] == 0.5
    assert e["iou"] == pytest.approx((0.75 + 1 + 0 + 0.5) / 4, abs=1e-15)
    frame = e.to_pandas()
    assert list(frame.index) == [*names.values(), "mean"]
    assert frame.loc["mitochondria", "dice"] == 6 / 7
    assert frame.loc["mean", "tp"] == 2
    assert math.isnan(frame.loc["peroxisome", "dice"])
    assert "peroxisome" in repr(e)
    # A name that is left out leaves its class out.
    few = lpa3d.evaluate(reference, prediction, instances="components", class_names={1: "mitochondria", 2: "er"})
    assert few["iou"] == (0.75 + 1) / 2
    assert len(few.missed) == 0
    assert len(e.missed) == 1


def test_classes_from_maps_and_mappings():
    reference = np.array([[5, 5, 0, 6, 6, 9]])
    maps = np.array([[1, 1, 0, 2, 2, 2]], "int8"), np.array([[2, 0, 0, 2, 2, 1]], "uint64")
    e = lpa3d.evaluate(reference, reference, classes=maps)
    other = lpa3d.evaluate(reference, reference, classes=({5: 1, 6: 2, 9: 2, 77: 3}, {5: 2, 6: 2, 9: 1}))
    assert list(e.per_class) == [1, 2]
    assert e.to_dict() == other.to_dict()
    assert (e["tp"], e["fp"], e["fn"]) == (1, 2, 2)
    assert [d.id for d in e.missed] == [5, 9]


def test_class_map_under_ignored_objects():
    """A reference object that is all ignored is in no table, but on the class map."""
    reference, prediction = np.array([[1, 1, 0, 5, 5, 9]]), np.array([[1, 1, 0, 3, 3, 9]])
    maps = np.array([[1, 1, 0, 2, 2, 1]]), np.array([[1, 1, 0, 2, 2, 1]])
    for ignored, names in ((5, [1, 2]), (9, [1, 2])):
        e = lpa3d.evaluate(reference, prediction, ignore=ignored, classes=maps)
        assert list(e.per_class) == names
        assert e.per_class[2].present == (ignored != 5)
        assert (e["fp"], e["fn"]) == (0, 0)
    # The class of an id that is left out is not handed to another one.
    with pytest.raises(lpa3d.errors.InputError, match=r"1 id\(s\) of reference have class 0"):
        lpa3d.evaluate(reference, prediction, ignore=5, classes=(np.array([[1, 1, 0, 2, 2, 0]]), maps[1]))


def test_a_class_may_be_called_mean():
    reference, prediction = np.array([[1, 1, 2]]), np.array([[1, 1, 0]])
    e = lpa3d.evaluate(reference, prediction, instances=None, class_names={1: "mean", 2: "b"})
    assert e.to_pandas()["iou"].tolist() == [1, 0, 0.5]


def test_slips_are_told():
    """A class that nobody has, a value that is nowhere: the numbers would look right."""
    reference = np.array([[1, 1, 2, 0]])
    with pytest.warns(lpa3d.errors.Lpa3dWarning, match="none of the classes mito is in .*; they have 1, 2"):
        e = lpa3d.evaluate(reference, reference, instances="components", class_names={"mito": 1})
    assert math.isnan(e["pq"])
    assert (e["tp"], e.present) == (0, False)
    assert e.to_dict()["metrics"]["pq"] is None
    e = lpa3d.evaluate(reference, reference, ignore=7)
    assert "0 voxels ignored" in repr(e)
    assert "1 voxel ignored" in repr(lpa3d.evaluate(reference, reference, ignore=2))
    assert "ignored" not in repr(lpa3d.evaluate(reference, reference))


def test_empty_classes_have_no_mark_in_the_mean():
    """COCO's -1 of a class without references is no precision to average."""
    reference, prediction = np.array([[1, 1, 0, 0]]), np.array([[1, 1, 0, 2]])
    options = {"classes": ({1: "a"}, {1: "a", 2: "b"})}
    coco = lpa3d.evaluate(reference, prediction, convention="coco", **options)
    assert [one["map"] for one in coco.per_class.values()] == [1.0, -1.0]
    assert coco["map"] == 1.0
    assert lpa3d.evaluate(reference, prediction, **options)["map"] == 0.5


# --------------------------------------------------------------------------------------------------------- properties


@given(pairs_of_ids())
def test_identity_is_perfect(case):
    reference, _, ignore = case
    e = lpa3d.evaluate(reference, reference, ignore=ignore, surfaces=True, iou_thresholds=(0.5, 0.9), warping="3d")
    for key, value in e.items():
        name = key.partition("@")[0]
        if name in ("hausdorff", "hd95", "assd"):
            assert value == 0 or (math.isnan(value) and not len(e.pairs))
        elif name != "tp":
            assert value == (0 if name in LESS_IS_BETTER else 1), key
    for kind in (e.splits, e.merges, e.missed, e.spurious):
        assert len(kind) == 0


@given(pairs_of_ids(), st.permutations([1, 2, 3, 4, 2**40, FAR]))
def test_new_ids_change_nothing(case, ids):
    reference, prediction, ignore = case
    table = np.zeros(8, np.int64)
    table[[1, 2, 3, 7]] = ids[:4]
    before = lpa3d.evaluate(reference, prediction, ignore=ignore, surfaces=True)
    after = lpa3d.evaluate(table[reference], table[prediction], ignore=ignore, surfaces=True)
    # Ties between ids may go another way in what takes the smaller one of two.
    tied = {"ap50", "ap75", "map", "aji", "aji_plus"}
    assert {k: v for k, v in before.items() if k not in tied and v == v} == {
        k: v for k, v in after.items() if k not in tied and v == v
    }
    ranks = np.zeros(8, np.int64)
    ranks[[1, 2, 3, 7]] = sorted(ids[:4])
    order_kept = lpa3d.evaluate(ranks[reference], ranks[prediction], ignore=ignore)
    assert {k: v for k, v in before.items() if k in order_kept} == dict(order_kept)


@given(pairs_of_ids(ignore=False))
def test_exchange_of_sides_exchanges_splits_and_merges(case):
    reference, prediction, _ = case
    e = lpa3d.evaluate(reference, prediction, convention="sklearn")
    swapped = lpa3d.evaluate(prediction, reference, convention="sklearn")
    for key, other in [
        ("voi_split", "voi_merge"),
        ("rand_split", "rand_merge"),
        ("precision", "recall"),
        ("precision_instance", "recall_instance"),
        ("fp", "fn"),
    ]:
        assert (e[key], e[other]) == (swapped[other], swapped[key])
    for key in ("arand", "voi", "pq", "f1", "iou", "dice", "rand_index", "tp"):
        assert e[key] == swapped[key]
    for kind, other in (("splits", "merges"), ("missed", "spurious")):
        mine, theirs = getattr(e, kind), getattr(swapped, other)
        assert mine.to_dicts() == theirs.to_dicts()


@given(pairs_of_ids(ignore=False))
def test_ignored_voxels_count_nowhere(case):
    """What lies under the mask does not matter, but for how much of a prediction is ignored."""
    reference, prediction, _ = case
    ignore = np.zeros(reference.shape, bool)
    ignore[: len(ignore) // 2 + 1] = True
    e = lpa3d.evaluate(reference, prediction, ignore=ignore)
    other = np.where(ignore, 99, reference)
    assert dict(lpa3d.evaluate(other, prediction, ignore=ignore)) == dict(e)
    assert dict(lpa3d.evaluate(other, prediction, ignore=99)) == dict(e)
    signed = np.where(ignore, -1, reference)
    assert dict(lpa3d.evaluate(signed, prediction, ignore=-1)) == dict(e)
    assert dict(lpa3d.evaluate(reference, prediction, ignore=ignore.astype("uint8") * 7)) == dict(e)
    half = len(ignore) // 2 + 1
    rest = lpa3d.evaluate(reference[half:], prediction[half:])
    for key in (*SEMANTIC, *PARTITION, "tp", "fn"):
        assert e[key] == rest[key]
    if rest["tp"] + rest["fn"]:
        assert e["recall_instance"] == rest["recall_instance"]
    assert e["fp"] <= rest["fp"]


def test_mostly_ignored_predictions_are_no_errors():
    reference = np.array([[1, 1, 0, 0, 0, 0]])
    prediction = np.array([[1, 1, 0, 2, 2, 2]])
    ignore = np.array([[0, 0, 0, 0, 1, 1]])
    assert lpa3d.evaluate(reference, prediction)["fp"] == 1
    e = lpa3d.evaluate(reference, prediction, ignore=ignore)
    assert (e["fp"], e["pq"], len(e.spurious)) == (0, 1, 0)
    ignore = np.array([[0, 0, 0, 0, 0, 1]])
    e = lpa3d.evaluate(reference, prediction, ignore=ignore)
    assert (e["fp"], len(e.spurious)) == (1, 1)


def test_ignored_value_need_not_be_an_id():
    """CREMI marks ignored voxels 2**64 - 1."""
    reference = np.array([[1, 1, 2**64 - 1, 2]], "uint64")
    e = lpa3d.evaluate(reference, np.array([[1, 1, 3, 2]]), ignore=2**64 - 1)
    assert (e["tp"], e["fp"], e["fn"], e.parameters["ignored"]) == (2, 0, 0, 1)


@given(laid_out(class_volumes(wide=True)), laid_out(class_volumes(wide=True)), st.sampled_from(INTEGER_DTYPES))
def test_layouts_and_dtypes(first, second, dtype):
    (reference, other_reference), (prediction, other_prediction) = first, second
    at = tuple(slice(min(pair)) for pair in zip(reference.shape, prediction.shape, strict=True))
    before = other_reference.copy(), other_prediction.copy()
    expected = lpa3d.evaluate(reference[at], prediction[at])
    e = lpa3d.evaluate(other_reference[at], other_prediction[at])
    assert dict(e) == dict(expected)
    np.testing.assert_array_equal(other_reference, before[0])
    np.testing.assert_array_equal(other_prediction, before[1])
    if dtype != "bool":
        assert dict(lpa3d.evaluate(reference[at].astype(dtype), prediction[at])) == dict(expected)


def test_images_are_volumes_of_one_slice():
    random = np.random.default_rng(0)
    reference, prediction = random.integers(0, 4, (2, 9, 11))
    options = {"surfaces": True, "warping": "2d"}
    flat = lpa3d.evaluate(reference, prediction, spacing=(3, 4), **options)
    deep = lpa3d.evaluate(reference[np.newaxis], prediction[np.newaxis], spacing=(9, 3, 4), **options)
    np.testing.assert_equal(dict(flat), dict(deep))
    for kind in ("splits", "missed"):
        for mine, theirs in zip(getattr(flat, kind), getattr(deep, kind), strict=True):
            assert mine.box == theirs.box[1:]
            assert reference[mine.box].size == (theirs.box[1].stop - theirs.box[1].start) * (
                theirs.box[2].stop - theirs.box[2].start
            )


# --------------------------------------------------------------------------------------------------------- edge cases

ONE, NONE, FULL = np.ones((1, 1, 1), int), np.zeros((2, 2, 2), int), np.ones((2, 2, 2), int)
PERFECT = {"iou": 1, "dice": 1, "accuracy": 1, "pixel_error": 0, "arand": 0, "voi": 0, "rand_index": 1, "v_info": 1}
PERFECT |= {"pq": 1, "sq": 1, "f1": 1, "map": 1, "aji": 1, "aji_plus": 1, "fp": 0, "fn": 0, "conformity": 1}
WRONG = {"iou": 0, "dice": 0, "precision": 0, "recall": 0, "pq": 0, "f1": 0, "sq": 0, "map": 0, "aji": 0, "tp": 0}


@pytest.mark.parametrize(
    ("reference", "prediction", "ignore", "expected"),
    [
        (ONE, ONE, None, PERFECT | {"tp": 1, "specificity": 1}),
        (NONE, NONE, None, PERFECT | {"tp": 0, "precision": 1, "recall": 1, "specificity": 1}),
        (NONE, FULL, None, WRONG | {"fp": 1, "fn": 0, "pixel_error": 1, "specificity": 0, "conformity": -math.inf}),
        (FULL, NONE, None, WRONG | {"fp": 0, "fn": 1, "pixel_error": 1, "accuracy": 0}),
        (FULL, FULL, None, PERFECT | {"tp": 1}),
        (FULL, NONE, FULL, PERFECT | {"tp": 0}),
        (NONE, FULL, FULL, PERFECT | {"tp": 0}),
        (NONE[:0], NONE[:0], None, PERFECT | {"tp": 0}),
    ],
    ids=["voxel", "empty", "empty-full", "full-empty", "full", "ignored", "ignored-prediction", "no-voxels"],
)
@pytest.mark.parametrize("convention", ["lpa3d", "skimage", "sklearn", "isbi", "cremi"])
def test_edges(reference, prediction, ignore, expected, convention):
    e = lpa3d.evaluate(reference, prediction, ignore=ignore, convention=convention, warping="3d", surfaces=True)
    assert {key: e[key] for key in expected if convention == "lpa3d" or key not in PARTITION} == {
        key: value for key, value in expected.items() if convention == "lpa3d" or key not in PARTITION
    }
    unknown = {key for key, value in e.items() if math.isnan(value)}
    assert unknown == (set() if len(e.pairs) else {"hausdorff", "hd95", "assd"})
    json.loads(json.dumps(e.to_dict(), allow_nan=False))


def test_values_are_built_in_numbers():
    e = lpa3d.evaluate(np.array([[True, False]]), np.array([[True, True]]))
    assert {type(value) for key, value in e.items() if key not in ("tp", "fp", "fn")} == {float}
    assert {type(e[key]) for key in ("tp", "fp", "fn")} == {int}


# ------------------------------------------------------------------------------------------------ options and results


def test_thresholds():
    reference = np.array([[1, 1, 1, 1, 2, 2, 2, 2]])
    prediction = np.array([[1, 1, 1, 0, 2, 2, 0, 0]])
    e = lpa3d.evaluate(reference, prediction, iou_thresholds=(0.75, 0.5, 0.1))
    assert (e["tp"], e["tp@0.5"], e["tp@0.1"]) == (0, 1, 2)
    assert len(e.pairs) == 0
    e = lpa3d.evaluate(reference, prediction, iou_thresholds=0.75, convention="stardist")
    assert e["tp"] == 1
    np.testing.assert_array_equal(e.pairs.iou, [0.75])
    loose = lpa3d.Convention(strict=False)
    assert dict(lpa3d.evaluate(reference, prediction, iou_thresholds=0.75, convention=loose))["tp"] == 1


def test_scores_rank_predictions():
    reference = np.array([[1, 1, 1, 0, 0, 0]])
    prediction = np.array([[1, 1, 1, 0, 2, 0]])
    good = lpa3d.evaluate(reference, prediction, scores={1: 0.9, 2: 0.1, 99: 5})
    bad = lpa3d.evaluate(reference, prediction, scores=[(1, 0.1), (2, 0.9)])
    assert (good["ap50"], bad["ap50"]) == (1.0, 0.5)
    assert lpa3d.evaluate(reference, prediction, scores=np.array([[1, 0.1], [2, 0.9]]))["ap50"] == 0.5
    classes = ({1: "a"}, {1: "a", 2: "a"})
    assert lpa3d.evaluate(reference, prediction, scores={1: 0.1, 2: 0.9}, classes=classes)["ap50"] == 0.5


def test_strata():
    reference = np.array([[1, 0, 2, 2, 2, 2, 2]])
    prediction = np.array([[1, 0, 2, 2, 0, 0, 0]])
    e = lpa3d.evaluate(reference, prediction, size_strata=(1, 3))
    assert (e["ap50_small"], e["ap50_large"]) == (1, 0)
    assert "ap50_small" not in lpa3d.evaluate(reference, prediction)
    assert "map_large" in lpa3d.evaluate(reference, prediction, convention="mitoem")


def test_surfaces_have_units_and_means():
    reference, prediction = np.zeros((2, 1, 9, 9), int)
    reference[0, 1:4, 2:6], prediction[0, 1:4, 3:7] = 4, 5
    reference[0, 8, 0:4], prediction[0, 8, 0:3] = 9, 1
    e = lpa3d.evaluate(reference, prediction, spacing=(40, 8, 8), surfaces=True)
    np.testing.assert_array_equal(e.pairs.hausdorff, [8, 8])
    assert e["hausdorff"] == 8
    assert e["assd"] == np.mean(e.pairs.assd)
    parts = lpa3d.evaluate(
        reference, prediction, spacing=(40, 8, 8), surfaces=True, classes=({4: "a", 9: "b"}, {5: "a", 1: "b"})
    )
    np.testing.assert_array_equal(parts.pairs.hd95, e.pairs.hd95)
    assert parts["assd"] == e["assd"]
    components = lpa3d.evaluate(
        reference > 0, prediction > 0, instances="components", surfaces=True, spacing=(40, 8, 8)
    )
    assert components["hausdorff"] == 8


def test_warping_error_sees_touching_instances():
    """A line between touching ids makes a split an error of topology, a moved border none."""
    reference = np.zeros((12, 12), int)
    reference[2:10, 2:6], reference[2:10, 6:10] = 1, 2
    moved = np.zeros_like(reference)
    moved[2:10, 2:7], moved[2:10, 7:10] = 1, 2
    cut = reference.copy()
    cut[6:, 2:6][reference[6:, 2:6] == 1] = 3
    joined = np.where(reference > 0, 1, 0)
    scores = [lpa3d.evaluate(reference, side, warping="2d")["warping_error"] for side in (moved, cut, joined)]
    assert scores[0] == 0
    assert scores[1] > 0
    assert scores[2] > 0
    classes = ({1: "a", 2: "b"}, {1: "a", 2: "b"})
    assert lpa3d.evaluate(reference, moved, warping="3d", classes=classes)["warping_error"] == 0
    semantic = lpa3d.evaluate(reference, moved, warping="2d", instances=None)
    assert semantic["warping_error"] == 0
    with pytest.raises(KeyError, match="warping_error; there are accuracy"):
        lpa3d.evaluate(reference, moved)["warping_error"]


@given(pairs_of_ids(), st.sampled_from(["2d", "3d"]), connectivities)
def test_warping_error_is_nothing_where_only_ignored_voxels_differ(case, warping, connectivity):
    """The line between two objects is drawn in ignored voxels where they meet there."""
    volume, other, ignore = case
    ignore = np.zeros(volume.shape, bool) if ignore is None else ignore
    reference, prediction = volume, np.where(ignore, other, volume)
    for sides in ((reference, prediction), (prediction, reference)):
        e = lpa3d.evaluate(*sides, ignore=ignore, warping=warping, connectivity=connectivity)
        assert e["warping_error"] == 0
    if ignore.any():
        marked = np.where(ignore, 99, volume)
        e = lpa3d.evaluate(marked, volume, ignore=99, warping=warping, connectivity=connectivity)
        assert e["warping_error"] == 0


def test_result_is_a_read_only_mapping():
    reference = np.array([[1, 1, 2, 2, 0, 3]])
    prediction = np.array([[1, 1, 1, 1, 0, 0]])
    e = lpa3d.evaluate(reference, prediction)
    assert len(e) == len(list(e)) == len(dict(e))
    assert "pq" in e
    assert "nonsense" not in e
    with pytest.raises(TypeError, match="item assignment"):
        e["pq"] = 1
    with pytest.raises(ValueError, match="read-only"):
        e.pairs.iou[:] = 1
    assert [(d.id, d.size, d.parts) for d in e.merges] == [(1, 4, (1, 2))]
    assert [(d.id, d.cost) for d in e.missed] == [(3, 1)]
    assert e.merges is e.merges


def test_repr_and_html():
    reference = np.array([[1, 1, 2, 2, 0, 3]])
    e = lpa3d.evaluate(reference, reference, iou_thresholds=0.75, convention="stardist")
    text = repr(e)
    assert text.splitlines()[0] == "Evaluation, IoU >= 0.75, convention stardist"
    for line in ("semantic", "partition", "instances"):
        assert line in text.splitlines()
    assert "  pq                  1.0000" in text
    assert "  tp                       3" in text
    assert "<td>pq</td><td>1.0000</td>" in e._repr_html_()
    named = lpa3d.evaluate(reference, reference, instances=None, class_names={1: "<b>", 2: "c"})
    assert "&lt;b&gt;" in named._repr_html_()
    assert named._repr_html_().count("<tr>") == 1 + 1 + len(named)
    assert "pq" not in named


def test_dict_is_json():
    reference = np.array([[1, 1, 0, 0, 3]], "uint16")
    e = lpa3d.evaluate(reference, reference * 0, instances=None, ignore=3, class_names={1: "a", 2: "b"}, spacing=(2, 1))
    d = json.loads(json.dumps(e.to_dict(), allow_nan=False))
    assert d == e.to_dict()
    assert d["metrics"]["conformity"] is None
    assert d["per_class"]["a"] == {"present": True, "metrics": {**dict(e.per_class["a"]), "conformity": None}}
    assert d["per_class"]["b"]["present"] is False
    assert d["parameters"]["ignored"] == 1
    assert d["parameters"]["connectivity"] == 6


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((np.ones((2, 2), int), np.ones((2, 3), int)), {}, ValueError, r"prediction has shape \(2, 3\) but reference"),
        ((np.ones((2, 2)), np.ones((2, 2), int)), {}, TypeError, r"reference .* pass reference.astype\('int64'\)"),
        ((np.ones((2, 2)) / 2, np.ones((2, 2), int)), {}, TypeError, r"no whole numbers.*lpa3d.label\(reference > 0.5"),
        (
            ("a.npy", np.ones((2, 2), int)),
            {},
            TypeError,
            r"builtins.str; .* pass lpa3d.io.read\(reference\)",
        ),
        ((np.ones((2, 2), int), np.ones((2, 2))), {"instances": None}, TypeError, r"prediction .* Threshold it"),
        ((np.ones((2, 2), int), [[1, 2]]), {}, TypeError, r"prediction is a builtins.list; a NumPy array is needed"),
        ((-np.ones((2, 2), int), np.ones((2, 2), int)), {}, ValueError, "reference holds negative ids"),
        ((), {"ignore": np.ones((1, 2))}, TypeError, "ignore has dtype float64"),
        ((), {"ignore": np.ones((1, 2), bool)}, ValueError, r"ignore has shape \(1, 2\) but reference"),
        ((), {"ignore": 0.5}, TypeError, "ignore is 0.5; an array of bool"),
        ((), {"ignore": False}, TypeError, "ignore is False; an array of bool"),
        ((), {"iou_thresholds": 1.5}, ValueError, "iou_thresholds is 1.5; numbers from 0 to 1"),
        ((), {"iou_thresholds": ()}, ValueError, r"iou_thresholds is \(\)"),
        ((), {"iou_thresholds": "a"}, TypeError, "iou_thresholds is 'a'"),
        ((), {"iou_thresholds": (0.5, 0.5)}, ValueError, "each may be given once"),
        ((), {"iou_thresholds": math.nan}, ValueError, "iou_thresholds is nan"),
        ((), {"instances": "objects"}, ValueError, "instances is 'objects'; 'ids', 'components' or None is needed"),
        ((), {"warping": 3}, ValueError, "warping is 3; '2d', '3d' or None is needed"),
        ((), {"convention": "best"}, ValueError, "convention is 'best'; one of 'lpa3d', 'skimage'"),
        ((), {"connectivity": 8}, ValueError, "connectivity is 8"),
        ((), {"spacing": (1, 1, 1, 1)}, ValueError, "spacing"),
        ((), {"classes": {1: 2}}, TypeError, "classes is a dict; a pair is needed"),
        ((), {"classes": ({1: 2}, None)}, TypeError, "classes holds None"),
        ((), {"classes": 3}, TypeError, "classes cannot be read as two"),
        ((), {"classes": ({2: 2}, {1: 1})}, ValueError, r"classes\[0\] has no entry for 1 id\(s\) of reference: 1"),
        ((), {"classes": (np.zeros((2, 2), int), {1: 1})}, ValueError, r"1 id\(s\) of reference have class 0"),
        (
            (),
            {"classes": ({1: 1}, np.zeros((2, 3), int))},
            ValueError,
            r"classes\[1\] has shape \(2, 3\) but prediction",
        ),
        ((), {"classes": ({1: 1}, np.array([[1, 2], [1, 1]]))}, ValueError, r"prediction lie on more than one class"),
        ((), {"classes": ({1: 1}, {1: 1}), "instances": None}, ValueError, "classes are those of instance ids"),
        ((), {"class_names": {1: "a"}}, ValueError, "class_names needs classes"),
        ((), {"class_names": ["a"], "instances": None}, TypeError, "class_names is .* a mapping is needed"),
        ((), {"class_names": {1: "a", 2: "a"}, "instances": None}, ValueError, "one name to several classes"),
        ((), {"scores": {1: math.nan}}, ValueError, "scores has nan for the id 1"),
        ((), {"scores": {0: 1}}, ValueError, "scores has 1.0 for the id 0"),
        ((), {"scores": {2: 1}}, ValueError, r"scores has none for 1 id\(s\) of prediction: 1"),
        ((), {"scores": [(1, 2), (1, 3)]}, ValueError, r"more than one score for 1 id\(s\): 1"),
        ((), {"scores": [1, 2]}, TypeError, "scores cannot be read"),
        ((), {"scores": {1: 1}, "instances": None}, ValueError, "scores is about instances"),
        ((), {"surfaces": True, "instances": None}, ValueError, "surfaces is about instances"),
        ((), {"size_strata": (3, 1)}, ValueError, r"size_strata is \(3, 1\)"),
        ((), {"size_strata": 3}, TypeError, "size_strata is 3"),
    ],
)
def test_bad_input(arguments, options, error, message):
    sides = arguments or (np.ones((2, 2), int), np.ones((2, 2), int))
    with pytest.raises(error, match=message) as caught:
        lpa3d.evaluate(*sides, **options)
    assert isinstance(caught.value, lpa3d.errors.Lpa3dError)


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        ({"rand_zeros": "all"}, "rand_zeros is 'all'; 'none' or 'reference' or 'prediction' or 'both' is needed"),
        ({"ap_strata": None}, "ap_strata is None; 'closed' or"),
        ({"ap_thresholds": (0.5,)}, r"ap_thresholds is \(0.5,\); ten numbers"),
        ({"ap_thresholds": (0.1,) * 10}, "ten numbers from 0.5 to 1"),
        ({"size_strata": (9, 1)}, r"size_strata is \(9, 1\)"),
    ],
)
def test_bad_conventions(decisions, message):
    with pytest.raises(lpa3d.errors.InputError, match=message):
        lpa3d.evaluate(ONE, ONE, convention=lpa3d.Convention(**decisions))


def test_pandas_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    e = lpa3d.evaluate(np.ones((2, 2), int), np.ones((2, 2), int))
    for table in (e, e.pairs, e.splits):
        with pytest.raises(ImportError, match=r"pip install 'lpa3d\[pandas\]'"):
            table.to_pandas()


# ---------------------------------------------------------------------------------------------------------- real data


@pytest.fixture(scope="module")
def cortex(data_dir):
    """Part of a dense segmentation, and a copy with merged, split, shrunk and removed labels."""
    zarr = pytest.importorskip("zarr")
    reference = np.asarray(zarr.open(data_dir / "connectomics.zarr", mode="r")[200:328, 200:360, 100:292])
    prediction = reference.copy()
    ids = np.unique(reference)
    prediction[np.isin(prediction, ids[::7])] = ids[3]
    prediction[(prediction % 5 == 0) & (np.arange(128)[:, None, None] > 60)] += 10**6
    border = np.zeros(reference.shape, bool)
    border[:, :, 1:] = reference[:, :, 1:] != reference[:, :, :-1]
    prediction[border] = 0
    prediction[np.isin(reference, ids[5::50])] = 0
    return reference, prediction


def test_real_pair_against_scikit_image(cortex):
    e = lpa3d.evaluate(*cortex, convention="skimage")
    # Whose tables have a row for each number up to the largest id, here 94 million.
    sides = [np.unique(side, return_inverse=True)[1].reshape(side.shape) for side in cortex]
    assert e["arand"] == pytest.approx(skimage.metrics.adapted_rand_error(*sides)[0], abs=1e-9)
    split, merge = skimage.metrics.variation_of_information(*sides)
    assert (e["voi_split"], e["voi_merge"]) == pytest.approx((split, merge), abs=1e-9)


def test_real_pair_against_stardist(cortex):
    stardist = pytest.importorskip("stardist.matching")
    sides = [np.unique(side, return_inverse=True)[1].reshape(side.shape) for side in cortex]
    for threshold in (0.3, 0.5, 0.75):
        e = lpa3d.evaluate(*sides, convention="stardist", iou_thresholds=threshold)
        expected = stardist.matching(*sides, thresh=threshold)
        assert (e["tp"], e["fp"], e["fn"]) == (expected.tp, expected.fp, expected.fn)
        # stardist keeps IoU in single precision.
        assert e["pq"] == pytest.approx(expected.panoptic_quality, abs=1e-6)


def test_real_pair_lists_its_corruption(cortex):
    reference, prediction = cortex
    e = lpa3d.evaluate(reference, prediction)
    joined = np.unique(reference)[3]
    assert e.merges[0].id == joined
    assert len(e.merges[0].parts) > 30
    box = e.splits[0].box
    assert (reference[box] == e.splits[0].id).sum() == (reference == e.splits[0].id).sum()
    removed = np.unique(reference)[5::50]
    assert set(removed) <= {d.id for d in e.missed}


def test_real_pair_does_not_depend_on_threads(cortex, monkeypatch):
    sides = [side % 5 for side in cortex]
    results = []
    for threads in ("1", "3"):
        monkeypatch.setenv("LPA3D_NUM_THREADS", threads)
        results.append(lpa3d.evaluate(*sides, instances="components", connectivity=26).to_dict())
    assert results[0] == results[1]


def test_matching_of_a_real_pair_is_exact(cortex):
    """No other assignment has a larger sum: the dense solver on the whole matrix."""
    scipy = pytest.importorskip("scipy.optimize")
    instances = tabulate_instances(count_overlaps(*cortex))
    dense = np.zeros((len(instances.reference), len(instances.predicted)))
    passes = instances.iou > 0.1
    dense[tuple(instances.pairs[passes].T)] = 1e3 + instances.iou[passes]
    best = dense[scipy.linear_sum_assignment(dense, maximize=True)].sum()
    matched = match(instances, 0.1, lpa3d.Convention())
    assert len(matched) * 1e3 + instances.iou[matched].sum() == pytest.approx(best, abs=1e-6)
