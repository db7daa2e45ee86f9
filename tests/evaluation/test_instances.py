"""Instance metrics against plain restatements, scipy, stardist, torchmetrics, pycocotools and worked examples."""

import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment

from lpa3d.arrays.overlap import VOID, Overlaps
from lpa3d.evaluation import instances as _instances
from lpa3d.evaluation.conventions import CONVENTIONS, Convention
from lpa3d.evaluation.instances import (
    list_matches,
    match,
    score_aggregated,
    score_matching,
    score_ranking,
    tabulate_instances,
)
from lpa3d.kernels.matching import match_rows
from tests import naive

DEFAULT = CONVENTIONS["lpa3d"]
LOOSE = Convention(strict=False)
RATIOS = ("pq", "sq", "rq", "f1", "precision_instance", "recall_instance")

close = pytest.approx


def tabulate(reference, prediction, void=None):
    reference = np.asarray(reference, np.int64)
    if void is not None:
        reference = np.where(void, VOID, reference)
    rows = np.stack([reference.ravel(), np.asarray(prediction, np.int64).ravel()], axis=1)
    pairs, voxels = np.unique(rows, axis=0, return_counts=True)
    return tabulate_instances(Overlaps(pairs, voxels, np.zeros((len(pairs), 2, 3), np.int64)))


def row(*runs):
    """Return a row of ids from runs ``(id, length)``."""
    return np.concatenate([np.full(length, i, np.int64) for i, length in runs])


def score(reference, prediction, threshold=0.5, convention=DEFAULT, void=None):
    table = tabulate(reference, prediction, void)
    return score_matching(table, match(table, threshold, convention), convention)


def rank(reference, prediction, scores=None, convention=DEFAULT, strata=None, void=None):
    return score_ranking(tabulate(reference, prediction, void), scores, convention, strata)


def matched_ids(table, matched):
    columns = list_matches(table, matched)
    return list(zip(columns["reference"].tolist(), columns["prediction"].tolist(), strict=True))


@st.composite
def scenes(draw, most=4, side=24, voids=True):
    """Draw (reference, prediction, void): runs of ids, the prediction often a damaged reference."""
    size = draw(st.integers(0, side))
    ids = st.integers(0, most)
    reference = np.sort(draw(hnp.arrays(np.int64, size, elements=ids)))
    prediction = draw(hnp.arrays(np.int64, size, elements=ids))
    if draw(st.booleans()):
        prediction = np.where(draw(hnp.arrays(bool, size)), prediction, reference)
    void = draw(hnp.arrays(bool, size, elements=st.sampled_from([False, False, False, True]))) if voids else None
    return reference, prediction, void


thresholds = st.sampled_from([0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.9, 1])


@given(scenes())
def test_the_table_holds_sizes_and_overlaps(scene):
    references, predictions, voids, shared = naive.instances(*scene)
    table = tabulate(*scene)
    assert dict(zip(table.reference.tolist(), table.reference_sizes.tolist(), strict=True)) == references
    assert dict(zip(table.predicted.tolist(), table.predicted_sizes.tolist(), strict=True)) == predictions
    assert dict(zip(table.predicted.tolist(), table.void_voxels.tolist(), strict=True)) == voids
    pairs = list(zip(table.reference[table.pairs[:, 0]], table.predicted[table.pairs[:, 1]], strict=True))
    assert pairs == sorted(shared)
    assert table.voxels.tolist() == [shared[pair] for pair in pairs]
    exact = naive.iou(references, predictions, shared)
    assert table.iou.tolist() == [float(exact[pair]) for pair in pairs]


@given(scenes(most=3), thresholds, st.booleans())
def test_matching_is_the_best_one_to_one_choice(scene, threshold, strict):
    convention = Convention(strict=strict)
    table = tabulate(*scene)
    matched = match(table, threshold, convention)
    (count, total), choices = naive.matchings(*scene, threshold, strict)
    assert (matched == np.sort(matched)).all()
    assert frozenset(matched_ids(table, matched)) in choices
    scores = score_matching(table, matched, convention)
    assert (scores["tp"], scores["fn"]) == (count, len(table.reference) - count)
    assert scores["sq"] * count == close(float(total), abs=1e-12) or not count + scores["fp"] + scores["fn"]


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 0.05, 0.1, 0.2, 0.3, 0.5]))
def test_matching_agrees_with_scipy_on_the_dense_matrix(seed, threshold):
    random = np.random.default_rng(seed)
    size = random.integers(50, 600)
    reference, prediction = np.sort(random.integers(0, 25, (2, size)), axis=1)
    prediction = np.roll(prediction, random.integers(0, 30))
    table = tabulate(reference, prediction)
    dense = np.zeros((len(table.reference), len(table.predicted)))
    dense[tuple(table.pairs.T)] = table.iou
    passes = (dense >= threshold) & (dense > 0)
    rows, columns = linear_sum_assignment(np.where(passes, 100 + dense, 0), maximize=True)
    best = dense[rows, columns][passes[rows, columns]]
    matched = match(table, threshold, LOOSE)
    assert len(matched) == len(best)
    assert math.fsum(table.iou[matched]) == close(math.fsum(best), abs=1e-9)
    rows, columns = linear_sum_assignment(dense, maximize=True)
    chosen = _instances._assign(table, np.arange(len(table.iou)), 0)
    assert math.fsum(table.iou[chosen]) == close(dense[rows, columns].sum(), abs=1e-9)
    np.testing.assert_array_equal(match(table, 0, CONVENTIONS["cellmap"]), chosen)


def test_one_good_match_or_two_poor_ones():
    """The prediction 1 lies on both references; with it on the first, 2 has none."""
    reference, prediction = [1, 1, 1, 1, 2, 2, 0], [1, 1, 1, 2, 1, 0, 0]
    table = tabulate(reference, prediction)
    matched = {name: matched_ids(table, match(table, 0, CONVENTIONS[name])) for name in ("lpa3d", "cellmap")}
    assert set(matched["lpa3d"]) == {(1, 2), (2, 1)}
    assert set(matched["cellmap"]) == {(1, 1)}


@given(hnp.arrays(np.int64, st.tuples(st.integers(0, 6), st.integers(0, 6)), elements=st.integers(0, 5)), st.booleans())
def test_the_kernel_finds_the_largest_sum_of_gains(gains, large):
    rows, columns = np.nonzero(gains)
    if large:
        gains = gains * (2**60 // 5)
    starts = np.searchsorted(rows, np.arange(len(gains) + 1))
    mates = np.empty(len(gains), np.int64)
    match_rows(starts, columns, gains[rows, columns], gains.shape[1], mates)
    taken = mates[mates >= 0]
    assert (rows[taken] == np.flatnonzero(mates >= 0)).all()
    assert len(set(columns[taken].tolist())) == len(taken)
    pairs = {(a, b): int(gains[a, b]) for a, b in zip(rows.tolist(), columns.tolist(), strict=True)}
    assume(len(pairs) <= 16)
    (_, best), _ = naive.assignments(pairs, lambda pair: (0, pairs[pair]))
    assert sum(gains[rows[taken], columns[taken]].tolist()) == best


@given(scenes())
def test_panoptic_quality_counts_as_panopticapi_does(scene):
    total, tp, fp, fn = naive.panoptic(*scene)
    scores = score(*scene[:2], 0.5, CONVENTIONS["panopticapi"], scene[2])
    assert (scores["tp"], scores["fp"], scores["fn"]) == (tp, fp, fn)
    assert all(type(scores[name]) is int for name in ("tp", "fp", "fn"))
    errors = (fp + fn) / 2
    expected = [total / (tp + errors) if tp + errors else 0, total / tp if tp else 0]
    assert [scores["pq"], scores["sq"]] == close([float(x) for x in expected], abs=1e-9)
    assert scores["pq"] == close(scores["sq"] * scores["rq"], abs=1e-12)
    assert scores["f1"] == scores["rq"]


@given(scenes(most=6, voids=False), st.sampled_from([0.125, 0.25, 0.5, 0.75, 1]))
def test_scores_agree_with_stardist(scene, threshold):
    stardist = pytest.importorskip("stardist.matching")
    reference, prediction, _ = scene
    assume(reference.size)
    theirs = stardist.matching(reference[np.newaxis], prediction[np.newaxis], threshold)
    ours = score(reference, prediction, threshold, CONVENTIONS["stardist"])
    assert [ours[k] for k in ("tp", "fp", "fn")] == [theirs.tp, theirs.fp, theirs.fn]
    assert [ours["precision_instance"], ours["recall_instance"], ours["f1"]] == close(
        [theirs.precision, theirs.recall, theirs.f1], abs=1e-9
    )
    # It computes IoU in float32 and, below 0.5, also weighs pairs that do not pass.
    if threshold >= 0.5:
        assert [ours["pq"], ours["sq"]] == close([theirs.panoptic_quality, theirs.mean_matched_score], abs=1e-6)
    else:
        assert ours["pq"] >= theirs.panoptic_quality - 1e-6


@given(scenes(most=6))
def test_panoptic_quality_agrees_with_torchmetrics(scene):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.detection")
    reference, prediction, void = scene
    assume(reference.size)
    sides = []
    for ids, hidden in ((prediction, np.zeros_like(void)), (reference, void)):
        category = np.where(hidden, 7, ids > 0)
        sides.append(torch.from_numpy(np.stack([category, ids], -1)[np.newaxis, np.newaxis]))
    theirs = functional.panoptic_quality(
        *sides, things={1}, stuffs={0}, return_sq_and_rq=True, return_per_class=True, allow_unknown_preds_category=True
    )
    ours = score(reference, prediction, 0.5, CONVENTIONS["torchmetrics"], void)
    # Theirs is rounded to float32.
    assert [ours["pq"], ours["sq"], ours["rq"]] == close(theirs[0].tolist(), abs=1e-6)


def test_iou_of_exactly_one_half_is_what_conventions_differ_on():
    reference, prediction = row((1, 4)), row((1, 2), (0, 2))
    for name, tp in {"lpa3d": 0, "panopticapi": 0, "torchmetrics": 0, "stardist": 1, "panoptica": 1}.items():
        assert score(reference, prediction, 0.5, CONVENTIONS[name])["tp"] == tp
    assert rank(reference, prediction)["ap50"] == 1
    assert rank(reference, prediction)["map"] == close(0.1)


def test_halves_that_compete_leave_the_match_to_the_smaller_id():
    table = tabulate(row((5, 4)), row((9, 2), (7, 2)))
    assert matched_ids(table, match(table, 0.5, LOOSE)) == [(5, 7)]
    table = tabulate(row((9, 2), (7, 2)), row((5, 4)))
    assert matched_ids(table, match(table, 0.5, LOOSE)) == [(7, 5)]


def test_more_matches_come_before_better_ones():
    # 1 and 11 share most, but leave 2 and 12 without partner: 1-12 and 2-11 are two matches.
    reference = row((1, 12), (2, 2))
    prediction = row((11, 9), (12, 3), (11, 2))
    table = tabulate(reference, prediction)
    assert matched_ids(table, match(table, 0, DEFAULT)) == [(1, 12), (2, 11)]
    assert matched_ids(table, match(table, 0.5, DEFAULT)) == [(1, 11)]
    assert matched_ids(table, match(table, 0.2, DEFAULT)) == [(1, 11)]


def test_thresholds_at_the_ends():
    same = row((1, 3), (2, 2), (0, 1))
    for threshold in (0, 0.5, 1):
        assert score(same, same, threshold, LOOSE)["pq"] == 1
    assert score(same, same, 0)["tp"] == 2
    assert score(same, same, 1)["tp"] == 0
    # Instances without a common voxel never match.
    assert score(row((1, 2), (0, 2)), row((0, 2), (1, 2)), 0, LOOSE)["tp"] == 0


@pytest.mark.parametrize("convention", sorted(CONVENTIONS))
def test_identity_is_perfect(convention):
    labels = row((0, 3), (4, 2), (2, 5), (2**63 - 1, 1), (2**53 + 1, 1))
    decisions = CONVENTIONS[convention]
    scores = score(labels, labels, 0.5, decisions)
    assert [scores[name] for name in RATIOS] == [1.0] * len(RATIOS)
    assert (scores["tp"], scores["fp"], scores["fn"]) == (4, 0, 0)
    ranking = rank(labels, labels, None, decisions)
    assert [ranking[name] for name in ("ap50", "ap75", "map")] == [1.0] * 3
    assert score_aggregated(tabulate(labels, labels), decisions) == {"aji": 1.0, "aji_plus": 1.0}


NOTHING, SOMETHING = np.zeros(4, np.int64), row((1, 3), (0, 1))


@pytest.mark.parametrize(
    ("reference", "prediction", "void", "value"),
    [
        (NOTHING[:0], NOTHING[:0], None, "empty"),
        (NOTHING, NOTHING, None, "empty"),
        (NOTHING, SOMETHING, None, 0.0),
        (SOMETHING, NOTHING, None, 0.0),
        (SOMETHING, SOMETHING, np.ones(4, bool), "empty"),
        (SOMETHING, SOMETHING, SOMETHING > 0, "empty"),
        (NOTHING[:1], SOMETHING[:1], None, 0.0),
        (SOMETHING[:1], SOMETHING[:1], None, 1.0),
    ],
)
@pytest.mark.parametrize("convention", ["lpa3d", "stardist", "coco"])
def test_nothing_against_nothing_and_against_something(reference, prediction, void, value, convention):
    decisions = CONVENTIONS[convention]
    expected = decisions.empty if value == "empty" else value
    for threshold in (0.5, 0.3):
        scores = score(reference, prediction, threshold, decisions, void)
        assert [scores[name] for name in RATIOS] == [expected] * len(RATIOS)
    assert score_aggregated(tabulate(reference, prediction, void), decisions) == dict.fromkeys(
        ("aji", "aji_plus"), expected
    )
    absent = not len(tabulate(reference, prediction, void).reference) and decisions.ap_absent is not None
    ranking = rank(reference, prediction, None, decisions, (2, 9), void)
    assert len(ranking) == 12
    assert ranking["map"] == (-1.0 if absent else 1.0 if value == "empty" else value)
    assert all(type(x) is float for x in ranking.values())


def test_mostly_void_predictions_are_not_counted():
    void = row((0, 4), (1, 2), (0, 2), (1, 3)).astype(bool)
    #             matched | half void | mostly void
    reference = row((1, 4), (0, 7))
    prediction = row((1, 3), (0, 1), (2, 4), (3, 3))
    scores = score(reference, prediction, void=void)
    assert (scores["tp"], scores["fp"], scores["fn"]) == (1, 1, 0)
    prediction = row((1, 3), (0, 1), (2, 3), (3, 4))
    scores = score(reference, prediction, void=void)
    assert (scores["tp"], scores["fp"], scores["fn"]) == (1, 0, 0)
    assert score_aggregated(tabulate(reference, prediction, void), DEFAULT)["aji"] == 0.75
    assert rank(reference, prediction, np.array([0.1, 0.5, 0.9]), void=void)["ap50"] == 1
    # Most of it is void, but it matches.
    assert score(row((1, 2), (0, 5)), row((1, 7)), void=row((0, 2), (1, 5)) > 0)["tp"] == 1


@given(scenes(most=5), st.lists(st.integers(0, 3), min_size=5, max_size=5), st.sampled_from([(1, 4), (2, 2), (4, 9)]))
def test_average_precision_agrees_with_the_loops_of_coco(scene, levels, limits):
    scores = dict(enumerate(levels, 1))
    table = tabulate(*scene)
    given_scores = np.array([scores[i] for i in table.predicted.tolist()], np.float64)
    for convention in (DEFAULT, CONVENTIONS["coco"]):
        ours = score_ranking(table, given_scores, convention, limits)
        ranges = {"": (0, 99), "_small": (0, limits[0]), "_medium": limits, "_large": (limits[1], 99)}
        for suffix, (low, high) in ranges.items():
            theirs = naive.rank_coco(*scene, scores, low, high)
            if theirs[0] >= 0 or convention is not DEFAULT:
                expected = [theirs[0], theirs[5], sum(theirs) / 10]
                assert [ours[f"{name}{suffix}"] for name in ("ap50", "ap75", "map")] == close(expected, abs=1e-9)
            else:
                # 1 or 0 at each threshold.
                assert ours[f"ap50{suffix}"] in (0.0, 1.0)
                assert 10 * ours[f"map{suffix}"] == close(round(10 * ours[f"map{suffix}"]))


@given(scenes(most=5, voids=False), st.none() | st.permutations(range(5)), st.sampled_from([(1, 4), (2, 3), (4, 9)]))
def test_average_precision_agrees_with_the_loops_of_mitoem(scene, levels, limits):
    reference, prediction, _ = scene
    table = tabulate(reference, prediction)
    if levels is None:
        scores, given_scores = dict(zip(table.predicted.tolist(), table.predicted_sizes.tolist(), strict=True)), None
    else:
        scores = dict(enumerate(levels, 1))
        given_scores = np.array([scores[i] for i in table.predicted.tolist()], np.float64)
    ours = score_ranking(table, given_scores, CONVENTIONS["mitoem"], limits)
    ranges = {"": (0, 1e10), "_small": (0, limits[0]), "_medium": limits, "_large": (limits[1], 1e10)}
    for suffix, (low, high) in ranges.items():
        theirs = naive.rank_mitoem(reference, prediction, scores, low, high)
        expected = [theirs[0], theirs[5], sum(theirs) / 10]
        assert [ours[f"{name}{suffix}"] for name in ("ap50", "ap75", "map")] == close(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_agrees_with_pycocotools(seed, capsys):
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    masks = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(seed)
    coarse = random.permutation(np.arange(64)).reshape(8, 8)
    reference = np.kron(coarse, np.ones((12, 9), np.int64))
    reference[:, :20] = coarse[:, :1].repeat(12, 0)
    prediction = np.roll(np.where(random.random(reference.shape) < 0.08, 0, reference), random.integers(0, 3), axis=0)
    prediction[40:60, 30:50] = 99
    prediction[:6] //= 2
    table = tabulate(reference, prediction)
    scores = random.integers(0, 12, len(table.predicted)) / 8

    def annotations(labels, values):
        for i, value in zip(np.unique(labels[labels > 0]).tolist(), values, strict=True):
            encoded = masks.encode(np.asfortranarray(labels == i, np.uint8))
            yield {
                "id": i, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": encoded, "score": value,
                "area": int((labels == i).sum()), "bbox": [0, 0, 1, 1],
            }  # fmt: skip

    truth = coco.COCO()
    height, width = reference.shape
    truth.dataset = {
        "images": [{"id": 1, "height": height, "width": width}],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": list(annotations(reference, np.zeros(len(table.reference)))),
    }
    truth.createIndex()
    found = coco.COCO()
    found.dataset = truth.dataset | {"annotations": list(annotations(prediction, scores))}
    found.createIndex()
    judge = evaluation.COCOeval(truth, found, "segm")
    judge.params.maxDets = [1000]
    judge.params.areaRng = [[0, 1e10], [0, 90], [90, 108], [108, 1e10]]
    judge.evaluate()
    judge.accumulate()
    capsys.readouterr()
    precision = judge.eval["precision"][:, :, 0, :, 0]
    ours = score_ranking(table, scores, CONVENTIONS["coco"], (90, 108))
    for k, suffix in enumerate(["", "_small", "_medium", "_large"]):
        expected = [precision[0, :, k].mean(), precision[5, :, k].mean(), precision[..., k].mean()]
        assert [ours[f"{name}{suffix}"] for name in ("ap50", "ap75", "map")] == close(expected, abs=1e-9)
    assert 0 < ours["map"] < 1


def test_average_precision_of_a_ranking_by_hand():
    # In this order: found, spurious, found; the third reference is missed.
    reference = row((1, 4), (2, 4), (3, 4), (0, 4))
    prediction = row((1, 4), (2, 4), (0, 4), (3, 4))
    scores = np.array([0.9, 0.1, 0.5])
    # Recalls up to 1/3 (34 of the points) at precision 1, up to 2/3 (33 points) at 2/3.
    assert rank(reference, prediction, scores)["map"] == close((34 + 33 * 2 / 3) / 101)
    # By size all are equal, and ids decide: found, found, spurious.
    assert rank(reference, prediction)["map"] == close(67 / 101)


def test_mitoem_lets_two_halves_match_one_reference():
    reference, prediction = row((1, 4), (2, 4)), row((1, 2), (2, 2), (3, 3), (0, 1))
    scores = np.array([0.9, 0.8, 0.7])
    # COCO: found, spurious, found; MitoEM: found three times, two references.
    assert rank(reference, prediction, scores, CONVENTIONS["coco"])["ap50"] == close((51 + 50 * 2 / 3) / 101)
    assert rank(reference, prediction, scores, CONVENTIONS["mitoem"])["ap50"] == 1
    # An IoU of exactly 17/20 does not reach MitoEM's 0.5 + 0.05 * 7.
    reference, prediction = row((1, 20)), row((1, 17), (0, 3))
    assert rank(reference, prediction)["map"] == close(0.8)
    assert rank(reference, prediction, None, CONVENTIONS["mitoem"])["map"] == close(0.7)


def test_mitoem_strata():
    # Limits belong to the smaller stratum; in COCO to both.
    reference = row((1, 2), (2, 3), (3, 6))
    prediction = row((1, 2), (2, 2), (0, 1), (3, 5), (0, 1))
    keys = ("ap75_small", "ap75_medium", "ap75_large")
    mitoem = rank(reference, prediction, None, CONVENTIONS["mitoem"], (2, 6))
    assert [mitoem[key] for key in keys] == [1, 0.504950495049505, -1]
    # Its own limits are 5,000 and 15,000 voxels.
    reference = row((1, 5000), (2, 15000), (3, 15001))
    mitoem = rank(reference, np.where(reference == 2, 0, reference), None, CONVENTIONS["mitoem"])
    assert [mitoem[key] for key in keys] == [1, 0, 1]
    reference = row((1, 2), (2, 3), (3, 6))
    default = rank(reference, prediction, None, DEFAULT, (2, 6))
    assert [default[key] for key in keys] == [1, close((34 * 1 + 33) / 101), 1]


@pytest.mark.interpreted
@given(scenes(most=3))
def test_aggregated_jaccard_agrees_with_its_definition(scene):
    aji, aji_plus = naive.aji(*scene)
    ours = score_aggregated(tabulate(*scene), DEFAULT)
    assert ours["aji"] == float(aji)
    assert ours["aji_plus"] in {float(x) for x in aji_plus}


def test_aggregated_jaccard_by_hand():
    # One prediction over two references: AJI counts its union twice, AJI+ once and the other reference alone.
    reference, prediction = row((1, 4), (2, 2), (3, 2)), row((1, 6), (0, 2))
    ours = score_aggregated(tabulate(reference, prediction), CONVENTIONS["hovernet"])
    assert ours == {"aji": 6 / (6 + 6 + 2), "aji_plus": 4 / (6 + 2 + 2)}
    # Equal IoU of 1/3 and 2/6: the larger overlap, as hover_net's constant in the denominator has it.
    reference, prediction = row((1, 3), (0, 3)), row((5, 1), (6, 2), (6, 3))
    assert score_aggregated(tabulate(reference, prediction), DEFAULT)["aji"] == 2 / (6 + 1)


def test_aggregated_unions_may_exceed_int64():
    # 10**6 references of 2 * 10**13 voxels in all, joined by one prediction.
    count, size = 10**6, 2 * 10**7
    pairs = np.stack([np.arange(1, count + 1), np.ones(count, np.int64)], axis=1)
    table = Overlaps(pairs, np.full(count, size), np.zeros((count, 2, 3), np.int64))
    assert score_aggregated(tabulate_instances(table), DEFAULT) == {
        "aji": 1 / count,
        "aji_plus": 1 / (2 * count - 1),
    }


@given(scenes(most=5), st.integers(0, 2**32 - 1), thresholds)
@example((row((1, 4)), row((1, 2), (2, 2)), np.zeros(4, bool)), 0, 0.5)
def test_ids_matter_only_by_their_order(scene, seed, threshold):
    random = np.random.default_rng(seed)
    lut = np.concatenate([[0], np.sort(random.choice(2**62, (2, 5), replace=True), axis=1)[0] + 1])
    other = np.concatenate([[0], np.sort(random.integers(1, 2**63 - 1, 5))])
    assume(len(np.unique(lut)) == len(np.unique(other)) == 6)
    scores = None if seed % 2 else np.sort(random.integers(0, 3, 6)).astype(np.float64)

    def everything(reference, prediction):
        table = tabulate(reference, prediction, scene[2])
        matched = match(table, threshold, LOOSE)
        ranks = None if scores is None else scores[: len(table.predicted)]
        return [
            matched.tolist(),
            score_matching(table, matched, LOOSE),
            score_ranking(table, ranks, LOOSE, (2, 5)),
            score_aggregated(table, LOOSE),
        ]

    assert everything(*scene[:2]) == everything(lut[scene[0]], other[scene[1]])


def corrupt(labels, seed):
    """Return labels with neighbours joined, pieces cut off, planes erased, and all shifted by two voxels."""
    random = np.random.default_rng(seed)
    ids = np.unique(labels)
    lut = np.where(random.random(len(ids)) < 0.1, np.roll(ids, 1), ids)
    damaged = np.where(labels > 0, lut[np.searchsorted(ids, labels)], 0)
    stripes = (np.arange(labels.shape[1]) % 40 < 20)[:, np.newaxis]
    cut = np.isin(labels, ids[1:][random.random(len(ids) - 1) < 0.2]) & stripes & (damaged > 0)
    damaged[cut] += int(ids.max()) + 1
    damaged[::2, 5::9] = 0
    return np.roll(damaged, 2, axis=2)


def check_real(reference, prediction):
    stardist = pytest.importorskip("stardist.matching")
    table = tabulate(reference, prediction)
    for threshold in (0.25, 0.5, 0.75):
        theirs = stardist.matching(reference, prediction, threshold)
        ours = score_matching(table, match(table, threshold, LOOSE), LOOSE)
        assert [ours[k] for k in ("tp", "fp", "fn")] == [theirs.tp, theirs.fp, theirs.fn]
        assert ours["pq"] == close(theirs.panoptic_quality, abs=1e-6)
        assert threshold > 0.5 or 0 < ours["tp"] < len(table.reference)
    dense, shared = np.zeros((2, len(table.reference), len(table.predicted)))
    dense[tuple(table.pairs.T)], shared[tuple(table.pairs.T)] = table.iou, table.voxels
    rows, columns = linear_sum_assignment(dense, maximize=True)
    both = shared[rows, columns].sum()
    union = table.reference_sizes.sum() + table.predicted_sizes.sum() - both
    aggregated = score_aggregated(table, DEFAULT)
    assert aggregated["aji_plus"] == close(both / union, abs=1e-9)
    assert 0 < aggregated["aji"] < 1


def test_real_neurites(data_dir):
    zarr = pytest.importorskip("zarr")
    labels = zarr.open_array(data_dir / "connectomics.zarr", mode="r")[:24, :200, :200].astype(np.int64)
    check_real(labels, corrupt(labels, 0))


def test_real_vesicles(data_dir):
    nibabel = pytest.importorskip("nibabel")
    path = data_dir / "urocell" / "fv" / "instance" / "fib1-3-2-1.nii.gz"
    labels = np.asarray(nibabel.load(path).dataobj).T[:80, :160, :160].astype(np.int64)
    check_real(labels, corrupt(labels, 1))
