"""`score_partition` against plain restatements, scikit-image, scikit-learn and worked examples of other packages."""

import dataclasses
import math

import numpy as np
import pytest
import skimage.metrics
import sklearn.metrics
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lpa3d.arrays.overlap import Overlaps, add_overlaps
from lpa3d.evaluation.conventions import CONVENTIONS, Convention
from lpa3d.evaluation.partition import score_partition
from tests import naive

NAMES = ["rand_index", "rand_error", "arand", "rand_split", "rand_merge"]
NAMES += ["voi_split", "voi_merge", "voi", "nvi", "v_rand", "v_info", "cremi"]
ERRORS = {"rand_error", "arand", "voi_split", "voi_merge", "voi", "nvi", "cremi"}
PERFECT = {name: 0.0 if name in ERRORS else 1.0 for name in NAMES}
EXCHANGED = {"rand_split": "rand_merge", "rand_merge": "rand_split", "voi_split": "voi_merge", "voi_merge": "voi_split"}
FAR = 2**63 - 1
OWN = ["lpa3d", "skimage", "sklearn", "snemi3d", "cremi", "gala", "funlib", "isbi"]

close = pytest.approx
convention_names = st.sampled_from(OWN)


def table_of(reference, prediction):
    """Return the table of two arrays; reference id -1 is void."""
    (ids, rows), (others, columns) = (np.unique(side, return_inverse=True) for side in (reference, prediction))
    cells, voxels = np.unique(rows.ravel() * len(others) + columns.ravel(), return_counts=True)
    rows, columns = np.divmod(cells, max(len(others), 1))
    return table_from(np.stack([ids[rows], others[columns]], 1), voxels)


def table_from(pairs, voxels):
    pairs = np.array(pairs, np.int64).reshape(-1, 2)
    return Overlaps(pairs, np.array(voxels, np.int64), np.zeros((len(pairs), 2, 3), np.int64))


def score(reference, prediction, convention="lpa3d"):
    return score_partition(table_of(reference, prediction), CONVENTIONS[convention])


@st.composite
def array_pairs(draw, reference=(-1, 0, 1, 2, FAR), prediction=(0, 1, 2, FAR), min_side=0):
    shape = draw(st.integers(min_side, 14))
    return tuple(draw(hnp.arrays("int64", shape, elements=st.sampled_from(ids))) for ids in (reference, prediction))


small_pairs = array_pairs((0, 1, 2, 3, 4), (0, 1, 2, 3), min_side=1)


def expected_scores(reference, prediction, convention):
    """Return the scores of a convention from the naive counts; of the adapted Rand error only with its plain pairs."""
    singletons = convention.predicted_background == "singletons"

    def voxels(zeros):
        return naive.counted(reference, prediction, zeros)

    both, of_reference, of_prediction, pairs = naive.voxel_pairs(voxels(convention.rand_zeros), singletons, True)
    wrong = of_reference + of_prediction - 2 * both
    scores = {"rand_index": 1 - wrong / pairs if pairs else 1.0, "rand_error": wrong / pairs if pairs else 0.0}
    distinct = convention.arand_pairs == "distinct"
    both, of_reference, of_prediction, _ = naive.voxel_pairs(voxels(convention.arand_zeros), singletons, distinct)
    mean = (of_reference + of_prediction) / 2
    scores["arand"] = 1 - both / mean if mean else 0.0
    scores["rand_split"] = both / of_reference if of_reference else 1.0
    scores["rand_merge"] = both / of_prediction if of_prediction else 1.0
    joint, h_reference, h_prediction = naive.entropies(voxels(convention.voi_zeros), singletons)
    scores["voi_split"], scores["voi_merge"] = joint - h_reference, joint - h_prediction
    scores["voi"] = scores["voi_split"] + scores["voi_merge"]
    scores["nvi"] = scores["voi"] / joint if joint else 0.0
    both, of_reference, of_prediction, _ = naive.voxel_pairs(voxels(convention.v_zeros), singletons, False)
    scores["v_rand"] = 2 * both / (of_reference + of_prediction) if of_reference else 1.0
    joint, h_reference, h_prediction = naive.entropies(voxels(convention.v_zeros), singletons)
    mean = (h_reference + h_prediction) / 2
    scores["v_info"] = (h_reference + h_prediction - joint) / mean if mean else 1.0
    scores["cremi"] = math.sqrt(scores["arand"] * max(scores["voi"], 0))
    return scores


@pytest.mark.interpreted
@given(array_pairs(), convention_names)
def test_equals_every_pair_of_voxels(arrays, name):
    # The pairs of the SNEMI3D script are tested on their own.
    convention = CONVENTIONS[name]
    if convention.arand_pairs == "snemi3d":
        convention = dataclasses.replace(convention, arand_pairs="all")
    scores = score_partition(table_of(*arrays), convention)
    assert list(scores) == NAMES
    assert {type(value) for value in scores.values()} == {float}
    cremi = scores.pop("cremi")
    expected = expected_scores(*arrays, convention)
    assert cremi == close(expected.pop("cremi"), abs=1e-7)  # the root of an error in the last bits
    assert scores == close(expected, abs=1e-12)


@given(small_pairs)
def test_equals_scikit_image(arrays):
    scores = score(*arrays, "skimage")
    split, merge = skimage.metrics.variation_of_information(*arrays)
    assert (scores["voi_split"], scores["voi_merge"]) == close((split, merge), abs=1e-9)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = skimage.metrics.adapted_rand_error(*arrays)[0]
    assert scores["arand"] == close(0.0 if np.isnan(error) else error, abs=1e-9)
    assume(arrays[0].any())
    split, merge = skimage.metrics.variation_of_information(*arrays, ignore_labels=[0])
    scores = score(*arrays)
    assert (scores["voi_split"], scores["voi_merge"]) == close((split, merge), abs=1e-9)


@pytest.mark.filterwarnings("ignore:.*single label.*:UserWarning", "ignore:The number of unique classes:UserWarning")
@given(small_pairs)
def test_equals_scikit_learn(arrays):
    scores = score(*arrays, "sklearn")
    assert scores["rand_index"] == close(sklearn.metrics.rand_score(*arrays), abs=1e-9)
    assert scores["v_info"] == close(sklearn.metrics.normalized_mutual_info_score(*arrays), abs=1e-9)
    assert scores["v_info"] == close(sklearn.metrics.v_measure_score(*arrays), abs=1e-9)
    own = [sklearn.metrics.mutual_info_score(side, side) for side in arrays]
    voi = (sum(own) - 2 * sklearn.metrics.mutual_info_score(*arrays)) / math.log(2)
    assert scores["voi"] == close(voi, abs=1e-9)
    _, joined, cut, both = sklearn.metrics.cluster.pair_confusion_matrix(*arrays).ravel().tolist()
    assert scores["rand_split"] == close(both / (both + cut) if both + cut else 1.0, abs=1e-9)
    assert scores["rand_merge"] == close(both / (both + joined) if both + joined else 1.0, abs=1e-9)


@pytest.mark.interpreted
@given(small_pairs, st.sampled_from(["snemi3d", "cremi"]))
@example((np.array([1, 1, 2]), np.array([0, 0, 0])), "cremi")
def test_equals_the_snemi3d_script(arrays, name):
    assume(arrays[0].any())
    scores = score(*arrays, name)
    assert (scores["arand"], scores["rand_split"], scores["rand_merge"]) == close(naive.snemi3d(*arrays), abs=1e-9)
    assert scores["cremi"] == math.sqrt(scores["arand"] * scores["voi"])


@given(small_pairs)
def test_gala_counts_all_voxels(arrays):
    scores = score(*arrays, "gala")
    with np.errstate(invalid="ignore", divide="ignore"):
        error, precision, recall = skimage.metrics.adapted_rand_error(*arrays, ignore_labels=())
    assume(np.isfinite([error, precision, recall]).all())
    assert scores["arand"] == close(error, abs=1e-9)
    # It calls them the other way round.
    assert (scores["rand_split"], scores["rand_merge"]) == close((precision, recall), abs=1e-9)


def test_figure_of_gala():
    """Of its own test."""
    assert score([1, 2, 0, 1], [0, 1, 1, 0], "gala")["arand"] == close(1 / 3, abs=1e-15)


@given(small_pairs)
def test_background_of_the_prediction_may_be_left_out(arrays):
    """It is that of the reference, with both sides exchanged."""
    left_out = {f"{name}_zeros": "prediction" for name in ("rand", "arand", "voi", "v")}
    scores = score_partition(table_of(*arrays), Convention(**left_out))
    other = score(*arrays[::-1])
    for name, mirrored in (("rand_split", "rand_merge"), ("voi_merge", "voi_split"), ("arand", "arand")):
        assert scores[name] == other[mirrored]
    assert scores["v_info"] == close(other["v_info"], abs=1e-12)


@pytest.mark.interpreted
@given(small_pairs)
def test_equals_the_isbi_plugin(arrays):
    reference = arrays[0]
    scores = score(*arrays, "isbi")
    assume(scores["v_info"] not in (0, 1))  # where the plugin divides 0 by 0
    assume(len(np.unique(reference[reference > 0])) > 1)
    assert (scores["v_rand"], scores["v_info"]) == close(naive.isbi(*arrays), abs=1e-9)
    assert scores["arand"] == close(1 - scores["v_rand"], abs=1e-15)


def test_example_of_the_conventions():
    reference, prediction = [1, 2, 2, 2], [3, 3, 4, 4]
    assert score(reference, prediction)["arand"] == 0.6
    assert score(reference, prediction, "funlib")["arand"] == close(1 / 3, abs=1e-15)


def test_examples_of_funlib():
    """The figures of its own tests."""
    a, b = [1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4], [3, 3, 3, 3, 4, 5, 6, 6, 5, 5, 5]
    figures = {
        "rand_split": 0.6363636363636364,
        "rand_merge": 0.5675675675675675,
        "voi_split": 0.6140806820148608,
        "voi_merge": 0.7272727272727271,
        "nvi": 0.2407837822280942 + 0.2851668894867314,
    }
    scores = score(a, b, "funlib")
    assert {name: scores[name] for name in figures} == close(figures, abs=1e-9)
    # Reference 0 does not count, predicted 0 is a segment.
    assert score([*a, 0, 0], [*b, 3, 9], "funlib") == scores
    scores = score([1, 1, 2, 2], [0, 0, 0, 0], "funlib")
    assert [scores[name] for name in ("rand_split", "rand_merge", "voi_split", "voi_merge")] == [1, 0.5, 0, 1]


def test_conventions_differ_in_zeros():
    """One object cut, one missed, one invented: what each package says."""
    reference = [1] * 4 + [2] * 3 + [0] * 3
    prediction = [5] * 2 + [6] * 2 + [0] * 3 + [7, 7, 0]
    arand = {name: score(reference, prediction, name)["arand"] for name in OWN}
    assert arand["lpa3d"] == arand["skimage"] == 4 / 14
    assert arand["funlib"] == 8 / 42
    assert arand["snemi3d"] == arand["cremi"] == close(16.7 / 33.3)
    assert arand["gala"] == arand["sklearn"] == close(3 / 7)
    assert arand["isbi"] == 14 / 36
    voi = {name: score(reference, prediction, name)["voi"] for name in OWN}
    assert voi["lpa3d"] == voi["cremi"] == voi["funlib"] == close(4 / 7)
    assert voi["gala"] == 1
    assert voi["skimage"] == voi["sklearn"] > voi["lpa3d"]
    assert voi["isbi"] == close((4 + 3 * math.log2(3)) / 7)


@given(array_pairs(), convention_names)
def test_identity_is_perfect(arrays, name):
    reference, _ = arrays
    assert score(reference, np.where(reference == -1, 0, reference), name) == PERFECT


@given(array_pairs(), convention_names, st.tuples(*[st.permutations([1, 2, 3, FAR])] * 2))
def test_relabelling_changes_nothing(arrays, name, permutations):
    renamed = []
    for side, ids in zip(arrays, permutations, strict=True):
        new = side.copy()
        for old, other in zip([1, 2, 3, FAR], ids, strict=True):
            new[side == old] = other
        renamed.append(new)
    assert score(*renamed, name) == score(*arrays, name)


@given(array_pairs((0, 1, 2, FAR)))
def test_exchange_of_sides_exchanges_split_and_merge(arrays):
    reference, prediction = arrays
    one, other = score(reference, prediction, "sklearn"), score(prediction, reference, "sklearn")
    assert other == {name: one[EXCHANGED.get(name, name)] for name in NAMES}


@given(array_pairs(), convention_names)
def test_order_of_rows_and_parts_do_not_matter(arrays, name):
    reference, prediction = arrays
    half = len(reference) // 2
    parts = [table_of(reference[half:], prediction[half:]), table_of(reference[:half], prediction[:half])]
    assert score_partition(add_overlaps(parts), CONVENTIONS[name]) == score(*arrays, name)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(
    ("reference", "prediction"),
    [([], []), ([-1, -1, -1], [0, 1, 2]), ([1], [1]), ([7], [2**63 - 1])],
    ids=["empty", "void", "voxel", "far id"],
)
def test_nothing_to_be_wrong_about(reference, prediction, name):
    reference, prediction = np.array(reference, np.int64), np.array(prediction, np.int64)
    assert score(reference, prediction, name) == PERFECT


def test_background():
    nothing, one, two = [0] * 4, [5] * 4, [5, 5, 6, 6]
    for name in OWN:
        assert score(nothing, nothing, name) == PERFECT
    # Reference background does not count, so what is invented there is no error.
    for prediction in (one, two):
        assert score(nothing, prediction) == PERFECT
    # Predicted background is a segment: a single object that was missed stays in one piece.
    assert score(one, nothing) == PERFECT
    assert score(two, nothing)["rand_split"] == 1
    assert score(two, nothing)["rand_merge"] == 1 / 3
    assert score(two, nothing)["v_info"] == 0
    assert score(two, nothing)["nvi"] == 1
    # Of singletons, none of the object's pairs is kept, and none is wrong.
    missed = score(one, nothing, "isbi")
    assert (missed["voi_split"], missed["voi_merge"], missed["v_info"], missed["rand_index"]) == (2, 0, 0, 0)
    assert missed["rand_split"] == 1 / 4
    # The script counts the background's pairs as its share of all voxels: 1 of 16 here.
    assert score(one, nothing, "cremi")["rand_split"] == 1 / 16


def test_no_pairs_on_one_side():
    scores = score([1, 2, 3], [4, 4, 4])
    assert (scores["arand"], scores["rand_split"], scores["rand_merge"]) == (1, 1, 0)
    scores = score([4, 4, 4], [1, 2, 3])
    assert (scores["arand"], scores["rand_split"], scores["rand_merge"]) == (1, 0, 1)
    assert (scores["nvi"], scores["v_info"], scores["rand_index"]) == (1, 0, 0)
    assert score([1, 2, 3], [4, 5, 6]) == PERFECT


@pytest.mark.parametrize("name", OWN)
def test_huge_counts(name):
    """Squares above 2**63; only the pairs of a voxel with itself, or alone, tell the sizes apart."""
    pairs = [(1, 3), (2, 3), (2, 4)]
    small = score_partition(table_from(pairs, [10**6, 10**6, 2 * 10**6]), CONVENTIONS[name])
    huge = score_partition(table_from(pairs, [10**13, 10**13, 2 * 10**13]), CONVENTIONS[name])
    assert huge == close(small, rel=1e-6)
    n = 10**13
    wrong = 2 * (n * n + n * 2 * n)
    assert huge["rand_error"] == wrong / (4 * n * (4 * n - 1))
    identity = score_partition(table_from([(k, k) for k in range(1, 9)], range(n, n + 8)), CONVENTIONS[name])
    assert identity == PERFECT


def test_one_wrong_voxel_in_a_huge_volume():
    scores = score_partition(table_from([(1, 1), (2, 1), (2, 2)], [10**13, 1, 10**13]), CONVENTIONS["lpa3d"])
    assert 0 < scores["rand_error"] < 1e-12
    assert 0 < scores["voi_split"] < 1e-10
    assert scores["rand_split"] < 1


def real_pairs(data_dir):
    """Yield vesicles against their mask's components, and a dense segmentation against a corrupted copy."""
    nibabel, zarr = pytest.importorskip("nibabel"), pytest.importorskip("zarr")
    folder = data_dir / "urocell" / "fv"
    instance, binary = (
        np.asarray(nibabel.load(folder / kind / "fib1-3-2-1.nii.gz").dataobj).T[96:112].astype(np.int64)
        for kind in ("instance", "binary")
    )
    yield instance, skimage.measure.label(binary > 0, connectivity=1).astype(np.int64)
    dense = np.asarray(zarr.open(data_dir / "connectomics.zarr", mode="r")[100:148:2, ::4, ::4])
    dense = np.unique(dense, return_inverse=True)[1].reshape(dense.shape).astype(np.int64)
    corrupted = dense.copy()
    corrupted[corrupted % 7 == 3] += 1
    corrupted[12:][corrupted[12:] % 5 == 1] += dense.max() + 1
    corrupted[corrupted % 11 == 5] = 0
    corrupted[:, ::9] = 0
    yield dense, corrupted


@pytest.mark.filterwarnings("ignore:The number of unique classes:UserWarning")
def test_real_data(data_dir):
    for reference, prediction in real_pairs(data_dir):
        flat = reference.ravel(), prediction.ravel()
        scores = score(*flat, "skimage")
        assert 0.001 < scores["arand"] < 0.9
        assert scores["arand"] == close(skimage.metrics.adapted_rand_error(reference, prediction)[0], abs=1e-9)
        voi = skimage.metrics.variation_of_information(reference, prediction)
        assert (scores["voi_split"], scores["voi_merge"]) == close(tuple(voi), abs=1e-9)
        voi = skimage.metrics.variation_of_information(reference, prediction, ignore_labels=[0])
        scores = score(*flat, "cremi")
        assert (scores["voi_split"], scores["voi_merge"]) == close(tuple(voi), abs=1e-9)
        assert scores["arand"] == close(naive.snemi3d(*flat)[0], abs=1e-9)
        scores = score(*flat, "sklearn")
        assert scores["rand_index"] == close(sklearn.metrics.rand_score(*flat), abs=1e-9)
        assert scores["v_info"] == close(sklearn.metrics.normalized_mutual_info_score(*flat), abs=1e-9)
        scores = score(*flat, "isbi")
        assert (scores["v_rand"], scores["v_info"]) == close(naive.isbi(*flat), abs=1e-9)
