"""`fuse` against a plain restatement, its guarantees, each kind of conflict, and what it refuses."""

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lpa3d
from lpa3d.errors import InputError, InputTypeError, Lpa3dWarning
from lpa3d.linking.fused import KINDS, Provenance
from lpa3d.verbs.fuse import fuse
from tests import naive
from tests.strategies import INTEGER_DTYPES, laid_out, shapes

FAR = 2**63 - 9
SOURCES = ("classes", "instances", "slices")
ORDERS = list(itertools.permutations(SOURCES))


@st.composite
def cases(draw, needed=(), orders=ORDERS):
    """Draw keywords of `fuse`: sources made of one truth, each with errors of its own."""
    shape = draw(shapes())
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    names = draw(st.lists(st.sampled_from(SOURCES), min_size=1, unique=True))
    names = {*names, *needed}
    axis = draw(st.integers(0, 2))
    n = draw(st.integers(1, 5))
    ids = np.array([0, 3, 1, 2**40, FAR, 2])[: n + 1]
    truth = random.integers(0, n + 1, shape)
    for side in range(3):
        # Longer along each axis now and then, so that objects are more than single voxels.
        if draw(st.booleans()):
            truth = truth.repeat(3, side)[tuple(slice(length) for length in shape)]
    kinds = np.array([0, *random.integers(1, draw(st.integers(1, 3)) + 1, n)])

    def spoil(array, most):
        wrong = random.random(shape) < draw(st.sampled_from([0, 0.1, 0.4]))
        return np.where(wrong, random.integers(0, most + 1, shape), array)

    arguments = {"axis": axis, "priority": draw(st.sampled_from(orders))}
    on = random.random(shape[axis]) < draw(st.sampled_from([0.4, 0.8, 1]))
    on = np.expand_dims(on, [side for side in range(3) if side != axis])
    if "classes" in names:
        arguments["classes"] = spoil(kinds[truth], 3).astype("uint8")
    if "instances" in names:
        arguments["instances"] = ids[np.where(on, spoil(truth, n), 0)]
    if "slices" in names:
        # Other ids for the same objects, some of them together, some cut in two.
        together = random.integers(1, n + 1, n + 1) if draw(st.booleans()) else np.arange(n + 1)
        together[0] = 0
        cut = np.where(random.random(shape) < draw(st.sampled_from([0, 0.3])), n + 1, 0)
        made = spoil(together[truth], n)
        arguments["slices"] = np.where(made > 0, made + cut, 0).astype("uint16")
    for name, given_ids in (("instance", ids), ("slice", range(1, 12))):
        if f"{name}s" in names and draw(st.booleans()):
            arguments[f"{name}_classes"] = {
                int(i): int(random.integers(1, 4)) for i in given_ids if i > 0 and random.random() < 0.5
            }
    if {"instances", "slices"} & names:
        arguments["complete_slices"] = draw(st.lists(st.integers(0, shape[axis] - 1), max_size=3))
    return arguments


def restate(arguments):
    sources = {name: arguments[name] for name in SOURCES if name in arguments}
    mappings = {f"{name}s": arguments.get(f"{name}_classes", {}) for name in ("instance", "slice")}
    return naive.fuse(sources, arguments.get("complete_slices", ()), arguments["axis"], arguments["priority"], mappings)


def fused_or_none(arguments):
    """Fuse; None where an object has no class, or a restatement says so."""
    try:
        return fuse(**arguments)
    except InputError as error:
        if "have no class" not in str(error):
            raise
        return None


def same(first, second):
    for one, other in zip(first[:3], second[:3], strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    assert first.conflicts.columns().keys() == second.conflicts.columns().keys()
    for name, column in first.conflicts.columns().items():
        np.testing.assert_array_equal(column, second.conflicts.columns()[name], name)


@pytest.mark.interpreted
@given(cases())
def test_equals_the_plain_restatement(arguments):
    copies = {name: a.copy() if isinstance(a, np.ndarray) else a for name, a in arguments.items()}
    found = fused_or_none(arguments)
    volume, seeds, provenance, conflicts = restate(arguments)
    assert (found is None) == any(c is None for c in volume.flat)
    for name, value in copies.items():
        np.testing.assert_array_equal(arguments[name], value)
    if found is None:
        return
    np.testing.assert_array_equal(found.volume, volume)
    np.testing.assert_array_equal(found.seeds, seeds)
    np.testing.assert_array_equal(found.provenance, provenance)
    rows = []
    for key, voxels in conflicts.items():
        sides = [(min(side), max(side) + 1) for side in zip(*voxels, strict=True)]
        rows.append((*key, len(voxels), *itertools.chain(*sides)))
    names = ("", *SOURCES)
    rows.sort(key=lambda r: (-r[7], KINDS.index(r[0]), names.index(r[1]), names.index(r[4]), r[2], r[3], r[5], r[6]))
    columns = found.conflicts.columns().values()
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == rows


@given(cases(needed=("classes",)))
def test_agreed_voxels_do_not_depend_on_the_trust_in_classes(arguments):
    """Nor does it depend on it which voxels are in conflict."""
    labels = [name for name in arguments["priority"] if name != "classes"]
    results, marked = [], []
    for place in range(3):
        case = {**arguments, "priority": [*labels[:place], "classes", *labels[place:]]}
        results.append(fused_or_none(case))
        marked.append({at for voxels in restate(case)[3].values() for at in voxels})
    assert marked[0] == marked[1] == marked[2]
    free = np.ones(arguments["classes"].shape, bool)
    free[tuple(np.array(sorted(marked[0]), int).reshape(-1, 3).T)] = False
    found = [result for result in results if result is not None]
    for result in found[1:]:
        for one, other in zip(found[0][:3], result[:3], strict=True):
            np.testing.assert_array_equal(one[free], other[free])


@given(cases(needed=("instances", "slices")), st.permutations(range(12)))
def test_names_of_the_less_trusted_do_not_matter(arguments, permutation):
    other = [name for name in arguments["priority"] if name != "classes"][1]
    ids = np.unique(arguments[other])
    new = dict(zip(ids[ids > 0].tolist(), np.array(permutation) * 1000 + 1, strict=False))
    renamed = np.zeros(arguments[other].shape, np.int64)
    for old, label in new.items():
        renamed[arguments[other] == old] = label
    mapping = arguments.get(f"{other[:-1]}_classes", {})
    known = {int(new[i]): c for i, c in mapping.items() if i in new}
    # Classes that no object has count as classes that there are.
    known |= {10**6 + k: c for k, (i, c) in enumerate(mapping.items()) if i not in new}
    one = fused_or_none(arguments)
    two = fused_or_none({**arguments, other: renamed} | ({f"{other[:-1]}_classes": known} if known else {}))
    assert (one is None) == (two is None)
    if one is not None:
        for first, second in zip(one[:3], two[:3], strict=True):
            np.testing.assert_array_equal(first, second)
        assert sorted(one.conflicts.voxels) == sorted(two.conflicts.voxels)


@given(cases())
def test_every_overruled_voxel_is_counted_once(arguments):
    """Against what can be seen in the result: where a source says something else."""
    found = fused_or_none({**arguments, "instance_classes": None, "slice_classes": None})
    if found is None:
        return
    counted = {name: found.conflicts.voxels[found.conflicts.loser == name].sum() for name in SOURCES}
    if "classes" in arguments:
        assert counted["classes"] == np.count_nonzero(arguments["classes"] != found.volume)
    labels = [name for name in arguments["priority"] if name in arguments and name != "classes"]
    for name in labels[:1]:
        given_ids = arguments[name]
        assert counted[name] == np.count_nonzero((given_ids > 0) & (given_ids != found.seeds))


@given(cases())
def test_propagate_goes_on_with_it(arguments):
    found = fused_or_none(arguments)
    if found is None:
        return
    assert found.volume[found.seeds > 0].all()
    assert ((found.volume > 0) <= (found.provenance > 0)).all()
    assert set(np.unique(found.provenance)) <= {int(code) for code in Provenance}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Lpa3dWarning)
        labels = lpa3d.propagate(found.volume, found.seeds)
    assert not [warning for warning in caught if "seed voxels" in str(warning.message)]
    np.testing.assert_array_equal(labels[found.seeds > 0], found.seeds[found.seeds > 0])


@given(cases(), st.sampled_from(["instances", "slices"]))
def test_one_source_of_labels_is_kept(arguments, name):
    if name not in arguments:
        return
    found = fuse(**{name: arguments[name]})
    np.testing.assert_array_equal(found.seeds, arguments[name])
    assert found.seeds.dtype == arguments[name].dtype
    np.testing.assert_array_equal(found.volume, arguments[name] > 0)
    assert found.volume.dtype == np.uint8
    np.testing.assert_array_equal(found.provenance, Provenance[name.upper()] * (arguments[name] > 0))
    assert len(found.conflicts) == 0


@given(cases(needed=("classes", "instances", "slices")), st.data())
def test_any_layout(arguments, data):
    other = dict(arguments)
    for name in SOURCES:
        _, other[name] = data.draw(laid_out(st.just(arguments[name])))
    one, two = fused_or_none(arguments), fused_or_none(other)
    assert (one is None) == (two is None)
    if one is not None:
        same(one, two)


def test_any_dtype():
    """And every kernel is compiled for a few of them only."""
    from lpa3d.kernels import fuse as kernels

    random = np.random.default_rng(0)
    classes, instances, slices = random.integers(0, 2, (3, 5, 6, 70))
    expected = fuse(classes=classes, instances=instances, slices=slices, complete_slices=[1])
    for class_dtype, first, second in itertools.product(INTEGER_DTYPES, repeat=3):
        if class_dtype not in ("bool", "int16", "uint64") and first != second:
            continue
        found = fuse(
            classes=classes.astype(class_dtype),
            instances=instances.astype(first),
            slices=slices.astype(second),
            complete_slices=[1],
        )
        assert found.volume.dtype == class_dtype
        assert found.seeds.dtype == ("uint8" if first == "bool" else first)
        for one, other in zip(expected[:3], found[:3], strict=True):
            np.testing.assert_array_equal(one, other)
    for kernel in (kernels.count_combinations, kernels.find_combinations):
        assert len(kernel.signatures) <= 4


def test_threads_change_nothing(monkeypatch):
    random = np.random.default_rng(0)
    truth = random.integers(0, 300, (8, 12, 12)).repeat(10, 0).repeat(10, 1).repeat(10, 2)
    sources = {
        "classes": (truth % 2 + 1).astype(np.uint8),
        "instances": np.where(np.arange(80)[:, None, None] % 8 == 3, truth, 0),
        "slices": np.roll(truth, 3, 1).astype(np.uint32),
    }
    results = []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("LPA3D_NUM_THREADS", threads)
        results.append(fuse(**sources, complete_slices=[3, 11]))
    assert len(results[0].conflicts) > 300
    same(results[0], results[1])
    same(results[0], results[2])


def line(*values):
    return np.array([[values]]).swapaxes(0, 2)


def listed(found, columns=8):
    return [tuple(c[:columns]) for c in zip(*(c.tolist() for c in found.conflicts.columns().values()), strict=True)]


def test_labels():
    """The less trusted object keeps what is left of it, under a fresh id."""
    instances, slices = line(9, 9, 9, 9, 0, 0, 0), line(0, 0, 0, 5, 5, 5, 5)
    # One slice per voxel: they share a slice of theirs each, so that all of both counts as seen by both.
    found = fuse(instances=instances, slices=slices, axis=1)
    np.testing.assert_array_equal(found.seeds, line(9, 9, 9, 9, 10, 10, 10))
    assert listed(found) == [("labels", "instances", 9, 1, "slices", 5, 1, 1)]
    assert found.conflicts.box(0) == (slice(3, 4), slice(0, 1), slice(0, 1))
    np.testing.assert_array_equal(found.provenance, line(2, 2, 2, 2, 3, 3, 3))
    turned = fuse(instances=instances, slices=slices, axis=1, priority=["slices", "instances"])
    np.testing.assert_array_equal(turned.seeds, line(6, 6, 6, 5, 5, 5, 5))
    # Across z they are compared where they meet, and there they are one.
    agreed = fuse(instances=instances, slices=slices)
    np.testing.assert_array_equal(agreed.seeds, line(9, 9, 9, 9, 9, 9, 9))
    assert len(agreed.conflicts) == 0


def test_half_of_the_smaller_is_enough():
    instances = line(4, 4, 4, 4, 4, 4)
    for common, seeds in ((2, 4), (1, 5)):
        slices = line(*[0] * (6 - common), *[3] * 4)
        padded = np.concatenate([instances, np.zeros((4 - common, 1, 1), int)])
        found = fuse(instances=padded, slices=slices, axis=2)
        assert (found.seeds[6:] == seeds).all()


def test_joins():
    """An object over two others is no object; what only it labels is left to propagate."""
    classes = np.ones((3, 1, 6), np.uint8)
    instances = np.zeros((3, 1, 6), int)
    instances[0, 0] = [3, 3, 3, 8, 8, 8]
    slices = np.ones((3, 1, 6), int)
    found = fuse(classes=classes, instances=instances, slices=slices)
    np.testing.assert_array_equal(found.seeds, instances)
    assert found.volume.all()
    np.testing.assert_array_equal(found.provenance[:, 0, 0], [2, 3, 3])
    assert listed(found) == [
        ("joins", "instances", 0, 1, "slices", 1, 1, 12),
        ("joins", "instances", 3, 1, "slices", 1, 1, 3),
        ("joins", "instances", 8, 1, "slices", 1, 1, 3),
    ]
    whole = lpa3d.propagate(found.volume, found.seeds)
    np.testing.assert_array_equal(whole, np.broadcast_to(instances[:1], whole.shape))


def test_one_that_is_covered_by_parts_of_larger_ones_joins_them():
    """It shares less than half with each of three, yet is no object of its own."""
    instances = np.zeros((4, 1, 9), int)
    instances[:3, 0] = [1, 1, 1, 2, 2, 2, 3, 3, 3]
    slices = np.zeros((4, 1, 9), int)
    slices[2:] = 7
    slices[0, 0, 0] = slices[1, 0, 0] = 8
    found = fuse(instances=instances, slices=slices)
    np.testing.assert_array_equal(found.seeds, instances)
    assert {row[0] for row in listed(found)} == {"joins"}
    assert sum(row[7] for row in listed(found)) == 18


def test_fragments_take_one_id():
    instances = line(0, 6, 6, 6, 0, 0)
    slices = line(1, 1, 0, 2, 2, 3)
    found = fuse(instances=instances, slices=slices)
    np.testing.assert_array_equal(found.seeds, line(6, 6, 6, 6, 6, 7))
    assert len(found.conflicts) == 0


def test_background_and_class():
    classes, instances = line(0, 1, 1, 2, 2, 1), line(5, 5, 5, 5, 0, 0)
    found = fuse(classes=classes, instances=instances)
    np.testing.assert_array_equal(found.volume, line(1, 1, 1, 1, 2, 1))
    assert listed(found) == [
        ("class", "instances", 5, 1, "classes", 0, 2, 1),
        ("background", "instances", 5, 1, "classes", 0, 0, 1),
    ]
    turned = fuse(classes=classes, instances=instances, priority=("classes", "instances"))
    np.testing.assert_array_equal(turned.volume, classes)
    np.testing.assert_array_equal(turned.seeds, line(0, 5, 5, 0, 0, 0))
    np.testing.assert_array_equal(turned.provenance, line(1, 2, 2, 1, 1, 1))
    assert listed(turned) == [
        ("class", "classes", 0, 2, "instances", 5, 1, 1),
        ("background", "classes", 0, 0, "instances", 5, 1, 1),
    ]


def test_unlabelled():
    classes, instances, slices = line(1, 1, 1), line(0, 4, 0), line(2, 2, 2)
    found = fuse(classes=classes, instances=instances, slices=slices, complete_slices=[0, 1])
    np.testing.assert_array_equal(found.volume, line(0, 1, 1))
    np.testing.assert_array_equal(found.seeds, line(0, 4, 4))
    np.testing.assert_array_equal(found.provenance, line(4, 2, 3))
    assert listed(found) == [
        ("unlabelled", "instances", 0, 0, "classes", 0, 1, 1),
        ("unlabelled", "instances", 0, 0, "slices", 2, 1, 1),
    ]
    # The most trusted class map has no say there either.
    other = fuse(classes=classes, instances=instances, complete_slices=[0], priority=("classes", "instances"))
    np.testing.assert_array_equal(other.volume, line(0, 1, 1))


def test_classes_of_objects():
    """A mapping of the more trusted, of the less trusted, the class map, the smaller of two, the only one."""
    classes = np.array([[[3, 3, 2, 2, 0, 0]]])
    objects = np.array([[[1, 1, 1, 1, 0, 2]]])

    def of_first(**arguments):
        return fuse(**{"classes": classes, "instances": objects, "instance_classes": {2: 3}, **arguments}).volume[
            0, 0, 0
        ]

    assert of_first() == 2
    assert of_first(classes=-classes, instance_classes={2: -3}) == -3
    assert of_first(slices=objects, slice_classes={1: 3}) == 3
    assert of_first(slices=objects, slice_classes={1: 3}, instance_classes={1: 2, 2: 2}) == 2
    assert of_first(classes=classes > 0, instance_classes=None) == 1
    assert fuse(instances=objects, instance_classes={1: 300}).volume.tolist() == [[[300] * 4 + [0, 300]]]
    with pytest.raises(InputError, match=r"1 object\(s\) of instances have no class: 2.*instance_classes=\{2: 2"):
        fuse(classes=classes, instances=objects)
    # It is overruled anyway.
    assert not fuse(classes=classes, instances=objects, priority=("classes", "instances")).seeds[0, 0, 5]
    # What a mapping of the less trusted said and did not get is a conflict.
    found = fuse(instances=objects, slices=objects, instance_classes={1: 1, 2: 1}, slice_classes={1: 4})
    assert listed(found) == [("class", "instances", 1, 1, "slices", 1, 4, 4)]


def test_seeds_are_made_wider_for_fresh_ids():
    instances = np.array([[250, 0, 0, 0, 0, 0]], np.uint8)
    slices = np.array([[0, 1, 2, 3, 4, 5]], np.int64)
    assert fuse(instances=instances, slices=slices).seeds.tolist() == [[250, 251, 252, 253, 254, 255]]
    assert fuse(instances=instances, slices=slices).seeds.dtype == np.uint8
    assert fuse(instances=instances + np.uint8(1), slices=slices).seeds.dtype == np.uint16
    assert fuse(instances=(instances // 2).astype(np.int8), slices=slices + 2).seeds.dtype == np.int16
    top = np.where(instances > 0, 2**63 - 1, 0)
    with pytest.raises(InputError, match="5 objects need fresh ids after the largest"):
        fuse(instances=top, slices=slices)
    assert fuse(instances=top.astype(np.uint64), slices=np.where(instances, 1, 0)).seeds.max() == 2**63 - 1


@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 0, 3), (3, 3, 0), (0, 0), (1, 1, 1), (1, 5, 5), (5, 5), (3, 1, 4)])
def test_empty_and_small(shape):
    empty = np.zeros(shape, np.uint16)
    found = fuse(classes=empty, instances=empty, slices=empty)
    assert found.volume.shape == found.seeds.shape == found.provenance.shape == shape
    assert len(found.conflicts) == 0
    assert not found.seeds.any()
    full = fuse(instances=empty, slices=empty + 5)
    assert (full.seeds == 1).all()
    alone = fuse(classes=empty + 1)
    assert not alone.seeds.any()
    assert (alone.provenance == 1).all()


def test_2d():
    classes, instances = np.array([[1, 1, 0]]), np.array([[0, 2, 2]])
    found = fuse(classes=classes, instances=instances, complete_slices=[0])
    assert found.volume.tolist() == [[0, 1, 1]]
    assert "z_start" not in found.conflicts.columns()
    assert found.conflicts.box(1) == (slice(0, 1), slice(0, 1))
    assert "Conflicts: 2 conflicts" in repr(found.conflicts)


ONES = np.ones((2, 3, 4), int)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, InputError, "no source; pass at least one of classes, instances and slices"),
        (
            {"instances": ONES, "slices": ONES[:1]},
            InputError,
            r"slices has shape \(1, 3, 4\) but instances has shape \(2, ",
        ),
        ({"instances": [[1]]}, InputTypeError, "instances is a builtins.list"),
        ({"instances": ONES * 1.0}, InputTypeError, "ids are integers"),
        ({"classes": ONES * 0.5}, InputTypeError, "Threshold it"),
        ({"slices": -ONES}, InputError, "slices holds negative ids"),
        ({"slices": ONES.astype("uint64") << np.uint64(63)}, InputError, r"at most 2\*\*63 - 1"),
        ({"instances": ONES, "axis": 3}, InputError, "axis is 3; 0, 1 or 2"),
        ({"instances": ONES, "axis": "z"}, InputTypeError, "axis is 'z'"),
        ({"instances": ONES[0], "axis": 1}, InputError, "a 2D array is one slice"),
        ({"instances": ONES, "complete_slices": [-1]}, InputError, "holds -1; positions from 0 to 1"),
        ({"instances": ONES, "complete_slices": [2]}, InputError, "complete_slices holds 2; "),
        ({"instances": ONES, "complete_slices": [True, False]}, InputTypeError, "complete_slices holds True or False"),
        ({"instances": ONES, "complete_slices": np.array([True, False])}, InputTypeError, "holds True or False"),
        ({"instances": ONES, "complete_slices": 1}, InputTypeError, "complete_slices is 1"),
        ({"classes": ONES, "complete_slices": [1]}, InputError, "pass instances or slices"),
        ({"instances": ONES, "priority": "instances"}, InputTypeError, "priority is 'instances'"),
        ({"instances": ONES, "priority": 3}, InputTypeError, "priority is 3"),
        ({"instances": ONES, "priority": {"instances"}}, InputTypeError, "in the order of trust"),
        ({"instances": ONES, "priority": ["slices"]}, InputError, "without 'instances', which is given"),
        ({"instances": ONES, "priority": ["instances", "sam"]}, InputError, "unknown: 'sam'"),
        ({"instances": ONES, "priority": ["instances"] * 2}, InputError, "stands twice"),
        ({"instances": ONES, "slice_classes": {1: 1}}, InputError, "pass slices too"),
        ({"instances": ONES, "instance_classes": [1]}, InputTypeError, "instance_classes is a list"),
        ({"instances": ONES, "instance_classes": {1: "er"}}, InputTypeError, "no integer"),
        ({"instances": ONES, "instance_classes": {1: 0}}, InputError, "the class 0, which is background"),
        ({"instances": ONES, "instance_classes": {1: -1}}, InputError, "classes from 0 to"),
        ({"instances": ONES, "instance_classes": {0: 1}}, InputError, "a class to id 0; ids are from 1"),
        (
            {"classes": -ONES.astype("int8"), "instances": ONES, "instance_classes": {1: 200}},
            InputError,
            r"classes.astype\('int16'\)",
        ),
        (
            {"classes": ONES.astype("uint64"), "instances": ONES, "instance_classes": {1: -1}},
            InputError,
            "in the dtype uint64 of classes$",
        ),
        (
            {"classes": ONES.astype("uint8"), "instances": ONES, "instance_classes": {1: 300}},
            InputError,
            r"the class 300; .* classes.astype\('uint16'\)",
        ),
        (
            {"classes": ONES > 0, "instances": ONES, "instance_classes": {1: 2}},
            InputError,
            r"classes.astype\('uint8'\)",
        ),
        ({"instances": ONES, "slices": 2 * ONES, "instance_classes": {7: 1, 8: 2}}, InputError, "have no class: 1"),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        fuse(**arguments)


def test_vesicles(data_dir):
    """A class map, an expert on every 16th slice, and components of each slice that nobody stitched."""
    nibabel = pytest.importorskip("nibabel")
    from scipy import ndimage

    def load(kind):
        image = nibabel.load(data_dir / "urocell" / "fv" / kind / "fib1-3-2-1.nii.gz")
        return np.ascontiguousarray(np.asarray(image.dataobj).T[:100])

    classes, truth = (load("binary") > 0).astype(np.uint8), load("instance").astype(np.uint16)
    instances, slices, count = np.zeros_like(truth), np.zeros(truth.shape, np.uint32), 0
    instances[::16] = truth[::16]
    for z in range(len(truth)):
        here, n = ndimage.label(classes[z])
        slices[z] = np.where(here > 0, here + count, 0)
        count += n
    complete = range(0, len(truth), 16)
    found = fuse(classes=classes, instances=instances, slices=slices, complete_slices=complete)
    np.testing.assert_array_equal(found.seeds[::16], truth[::16])
    np.testing.assert_array_equal(found.volume[::16] > 0, truth[::16] > 0)
    others = np.arange(len(truth)) % 16 > 0
    np.testing.assert_array_equal(found.volume[others], classes[others])
    # All of the components off the annotated slices are objects of their own, as they meet no labels.
    np.testing.assert_array_equal(found.seeds[others] > 0, slices[others] > 0)
    table = found.conflicts
    assert {"labels", "joins"} <= set(table.kind)
    assert table.voxels[table.loser == "classes"].sum() == np.count_nonzero(classes != found.volume)
    labels = lpa3d.propagate(found.volume, found.seeds)
    np.testing.assert_array_equal(labels[found.seeds > 0], found.seeds[found.seeds > 0])
