"""The phantom: what it promises about its truth."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from lpa3d import phantom
from lpa3d.errors import InputError

SHAPE = (64, 128, 128)


@pytest.fixture(scope="module")
def cell() -> phantom.Cell:
    return phantom.cell(SHAPE, seed=2)


def touching_pairs(labels: np.ndarray) -> set[tuple[int, int]]:
    """Pairs of ids that share a face."""
    pairs = set()
    for axis in range(3):
        a = np.take(labels, range(labels.shape[axis] - 1), axis).astype(np.int64)
        b = np.take(labels, range(1, labels.shape[axis]), axis).astype(np.int64)
        face = (a != b) & (a > 0) & (b > 0)
        low, high = np.minimum(a[face], b[face]), np.maximum(a[face], b[face])
        pairs.update(zip(low.tolist(), high.tolist(), strict=True))
    return pairs


def is_one_piece(mask: np.ndarray) -> bool:
    return ndimage.label(mask)[1] == 1


def test_shapes_and_dtypes(cell):
    assert cell.classes.shape == cell.instances.shape == cell.image.shape == SHAPE
    assert (cell.classes.dtype, cell.instances.dtype, cell.image.dtype) == (np.uint8, np.uint32, np.uint8)
    assert len(cell.spacing) == 3
    assert sorted(cell.class_names) == [1, 2, 3, 4, 5]


def test_same_seed_same_cell_other_seed_another(cell):
    again, other = phantom.cell(SHAPE, seed=2), phantom.cell(SHAPE, seed=3)
    for name in ("classes", "instances", "image"):
        np.testing.assert_array_equal(getattr(cell, name), getattr(again, name))
        assert not np.array_equal(getattr(cell, name), getattr(other, name))


def test_classes_and_instances_agree(cell):
    np.testing.assert_array_equal(cell.classes > 0, cell.instances > 0)
    ids = np.unique(cell.instances)
    np.testing.assert_array_equal(ids, np.arange(len(ids)))
    kinds = [np.unique(cell.classes[cell.instances == i]) for i in ids[1:]]
    assert all(len(kind) == 1 for kind in kinds)
    # Numbered class by class.
    assert sorted(int(kind[0]) for kind in kinds) == [int(kind[0]) for kind in kinds]


def test_every_instance_is_one_piece(cell):
    for number, box in enumerate(ndimage.find_objects(cell.instances.astype(np.int32)), start=1):
        mine = cell.instances[box] == number
        assert is_one_piece(mine), f"instance {number}"
        assert mine.sum() >= 200


def test_number_of_instances(cell):
    counts = {name: len(np.unique(cell.instances[cell.classes == kind])) for kind, name in cell.class_names.items()}
    assert counts["nucleus"] == counts["endoplasmic reticulum"] == 1
    assert counts["mitochondrion"] >= 3
    assert counts["fusiform vesicle"] >= 6
    assert counts["lipid droplet"] >= 2


def test_touching_instances_share_a_component_but_classes_keep_apart(cell):
    kind = np.zeros(int(cell.instances.max()) + 1, int)
    kind[cell.instances.ravel()] = cell.classes.ravel()
    pairs = touching_pairs(cell.instances)
    assert all(kind[a] == kind[b] for a, b in pairs)
    vesicles = cell.classes == 4
    assert ndimage.label(vesicles)[1] < len(np.unique(cell.instances[vesicles]))
    assert sum(kind[a] == 4 for a, _ in pairs) >= 3


def test_objects_begin_and_end_between_annotated_slices(cell):
    boxes = ndimage.find_objects(cell.instances.astype(np.int32))
    assert len({box[0].start for box in boxes}) > 5


def test_image_shows_the_classes(cell):
    mean = {kind: cell.image[cell.classes == kind].mean() for kind in cell.class_names}
    assert mean[5] < mean[2] < mean[1]
    assert mean[4] > mean[2] + 20
    assert cell.image.min() > 10
    assert cell.image.std() > 15


@pytest.mark.parametrize("seed", range(3))
def test_smallest_shape_holds_all_classes(seed):
    small = phantom.cell((32, 64, 64), seed=seed)
    assert set(np.unique(small.classes)) == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("seed", range(4))
def test_trees_touch_along_their_branches(seed):
    mask, instances = phantom.trees((48, 96, 96), seed=seed)
    assert mask.dtype == np.uint8
    assert instances.dtype == np.uint32
    np.testing.assert_array_equal(mask > 0, instances > 0)
    np.testing.assert_array_equal(np.unique(instances), [0, 1, 2])
    assert all(is_one_piece(instances == i) for i in (1, 2))
    assert is_one_piece(mask)
    again = phantom.trees((48, 96, 96), seed=seed)[1]
    np.testing.assert_array_equal(instances, again)
    # They touch on most slices that hold both.
    both = [z for z, s in enumerate(instances) if {1, 2} <= set(np.unique(s))]
    touching = [z for z in both if touching_pairs(instances[z : z + 1])]
    assert len(touching) > 0.6 * len(both) > 20


def test_radius_of_trees():
    thin = phantom.trees((32, 64, 64), seed=1, radius=(3, 4))[1]
    thick = phantom.trees((32, 64, 64), seed=1, radius=(7, 8))[1]
    assert np.count_nonzero(thin) < np.count_nonzero(thick)


@pytest.mark.parametrize("shape", [(31, 64, 64), (64, 64), (32, 64, 63), (1, 2, 3, 4)])
def test_too_small_shapes_are_refused(shape):
    for make in (phantom.cell, phantom.trees):
        with pytest.raises(InputError, match=r"three sizes \(Z, Y, X\)"):
            make(shape)


@pytest.mark.parametrize("radius", [(0, 5), (8, 5), (5, 100)])
def test_bad_radius_is_refused(radius):
    with pytest.raises(InputError, match="radius"):
        phantom.trees((32, 64, 64), radius=radius)


def test_import_is_light():
    code = (
        "import sys, lpa3d.phantom; print([m for m in ('scipy.ndimage', 'skimage', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
