"""COCO files: masks of every form against pycocotools, as slices by name, and which one is on top."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lpa3d
from lpa3d import cli, io
from lpa3d.errors import InputError, Lpa3dWarning
from lpa3d.files.coco import decode_mask

SIZE = (5, 7)

old_arrays = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""pycocotools makes arrays in a way that NumPy gives up."""


def runs_of(mask: Any) -> dict[str, Any]:
    """Return the run lengths of a mask, as numbers."""
    flat = np.concatenate(([False], mask.T.ravel()))
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]), [mask.size]))
    return {"size": list(mask.shape), "counts": np.diff(starts).tolist()}


@old_arrays
@given(data=st.data())
def test_run_lengths(data):
    coco = pytest.importorskip("pycocotools.mask")
    shape = (data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40)))
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    mask = random.random(shape) < data.draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
    packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    plain = runs_of(mask)
    np.testing.assert_array_equal(coco.decode(coco.frPyObjects(plain, *shape)), mask)
    for stored in (packed, packed | {"counts": packed["counts"].decode()}, plain):
        np.testing.assert_array_equal(decode_mask(stored, shape), mask)


@old_arrays
def test_long_runs():
    coco = pytest.importorskip("pycocotools.mask")
    mask = np.zeros((3000, 2000), np.uint8, order="F")
    mask[1, 1] = mask[2999, 1999] = mask[5, 900] = 1
    np.testing.assert_array_equal(decode_mask(coco.encode(mask), mask.shape), mask)


@old_arrays
@given(data=st.data())
def test_polygons(data):
    coco = pytest.importorskip("pycocotools.mask")
    height, width = data.draw(st.integers(1, 25)), data.draw(st.integers(1, 25))
    number = st.floats(-3, 28, allow_nan=False) | st.integers(-2, 27)
    polygons = [
        [float(data.draw(number)) for _ in range(2 * data.draw(st.integers(3, 6)))]
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    want = coco.decode(coco.merge(coco.frPyObjects(polygons, height, width)))
    np.testing.assert_array_equal(decode_mask(polygons, (height, width)), want)


@pytest.mark.parametrize(
    ("stored", "what"),
    [
        ({"size": [5, 7], "counts": [3, 4]}, "its runs have 7 pixels, and the image 35"),
        ({"size": [5, 7], "counts": [-3, 38]}, "negative"),
        ({"size": [7, 5], "counts": [35]}, "is not that of the image"),
        ({"size": [5, 7], "counts": "o"}, "cut off"),
        ({"size": [5, 7], "counts": "#"}, "characters"),
        ([[0, 0, 1, 1]], "fewer than three corners"),
        ([], "neither"),
        ("text", "neither"),
    ],
)
def test_masks_that_are_damaged(tmp_path, stored, what):
    with pytest.raises(ValueError, match=what):
        decode_mask(stored, SIZE)
    found = {"images": [{"id": 0, "file_name": "a0.png", "height": 5, "width": 7}]}
    found["annotations"] = [{"image_id": 0, "category_id": 1, "segmentation": stored}]
    (tmp_path / "a.json").write_text(json.dumps(found))
    with pytest.raises(InputError):
        io.read(tmp_path / "a.json")


def box(y: slice, x: slice) -> Any:
    mask = np.zeros(SIZE, bool)
    mask[y, x] = True
    return mask


LEFT, RIGHT, SMALL = box(slice(0, 4), slice(0, 4)), box(slice(0, 4), slice(3, 7)), box(slice(1, 3), slice(3, 4))


def write(path: Path, masks: list[tuple[int, Any, dict[str, Any]]], names: list[str] | None = None) -> Path:
    """Write masks of images 0, 1, ...; with the names of these a whole data set, else a list of results."""
    annotations = [
        {"image_id": image, "category_id": 1, "segmentation": runs_of(mask), **more} for image, mask, more in masks
    ]
    found: Any = annotations
    if names is not None:
        images = [{"id": k, "file_name": name, "height": 5, "width": 7} for k, name in enumerate(names)]
        found = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "mito"}]}
    path.write_text(json.dumps(found))
    return path


def read_warned(name: Any) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        array = io.read(name)
    return array, [str(one.message) for one in found if issubclass(one.category, Lpa3dWarning)]


@pytest.mark.parametrize(
    ("scores", "order"),
    [([0.9, 0.5, 0.1], "LRS"), ([0.1, 0.5, 0.9], "SRL"), ([0.5, 0.5, 0.5], "SLR"), ([None] * 3, "SLR")],
)
def test_what_is_on_top(tmp_path, scores, order):
    masks = [LEFT, RIGHT, SMALL]
    more = [{} if score is None else {"score": score} for score in scores]
    path = write(tmp_path / "a.json", [(0, mask, one) for mask, one in zip(masks, more, strict=True)])
    want = np.zeros(SIZE, int)
    for letter in reversed(order):
        want[masks["LRS".index(letter)]] = "LRS".index(letter) + 1
    found, said = read_warned(path)
    np.testing.assert_array_equal(found, want[None])
    assert len(said) == 1
    assert "4 pixels of 1 slices are in several masks" in said[0]


def test_slices_by_the_numbers_in_names(tmp_path):
    names = ["em/cell_0012.png", "em/cell_0010.png", "em/cell_0013.png"]
    path = write(tmp_path / "a.json", [(0, LEFT, {"id": 70}), (1, RIGHT, {"id": 5})], names)
    found, said = read_warned(path)
    assert found.shape == (4, *SIZE)
    np.testing.assert_array_equal(found[2], LEFT * 70)
    np.testing.assert_array_equal(found[0], RIGHT * 5)
    assert not found[1].any()
    assert not found[3].any()
    assert len(said) == 1
    assert "1 of 4 slices have no image and are read as empty (0): 11" in said[0]
    found, _ = read_warned(f"{path}:9-12")
    assert found.shape == (4, *SIZE)
    np.testing.assert_array_equal(found[3], LEFT * 70)


def test_results_without_images(tmp_path):
    path = write(tmp_path / "a.json", [(3, LEFT, {"score": 0.4}), (4, SMALL, {"score": 0.9})])
    with io.open_volume(path) as volume:
        assert volume.shape == (2, *SIZE)
        assert "scores from 0.4 to 0.9, all are read" in volume.note
        np.testing.assert_array_equal(volume.read(), [LEFT * 1, SMALL * 2])
    with io.open_volume(f"{path}:score=0.5") as volume:
        assert "1 masks with a score below 0.5 are left out" in volume.note
        np.testing.assert_array_equal(volume.read(), [LEFT * 0, SMALL])
    write(path, [("one", LEFT, {})])
    with pytest.raises(InputError, match="has no list of them"):
        io.read(path)


def test_sam_masks_of_one_image(tmp_path):
    """Its automatic masks have neither an image nor a class; a larger one is below."""
    masks = [{"segmentation": runs_of(mask), "predicted_iou": 0.9, "area": int(mask.sum())} for mask in (LEFT, SMALL)]
    (tmp_path / "a.json").write_text(json.dumps(masks))
    found, _ = read_warned(tmp_path / "a.json")
    np.testing.assert_array_equal(found[0], np.where(SMALL, 2, LEFT))
    with pytest.raises(InputError, match="have no category_id"):
        io.read(f"{tmp_path}/a.json:classes")
    whole = {"image": {"image_id": 7, "file_name": "z_7.jpg", "height": 5, "width": 7}, "annotations": masks}
    (tmp_path / "b.json").write_text(json.dumps(whole))
    found, _ = read_warned(tmp_path / "b.json")
    assert found.shape == (1, *SIZE)


def test_classes(tmp_path):
    path = write(tmp_path / "a.json", [(0, LEFT, {"category_id": 2}), (0, SMALL, {})], ["s0.png"])
    with io.open_volume(f"{path}:classes") as volume:
        assert "1 is mito, 2 is not named" in volume.note
        found = volume.read()
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found[0], np.where(SMALL, 1, LEFT * 2))
        with pytest.warns(Lpa3dWarning):
            volume.close()
    path = write(tmp_path / "b.json", [(0, LEFT, {"category_id": 0}), (0, RIGHT & ~LEFT, {})], ["s0.png"])
    with pytest.raises(InputError, match=r"category 0, which would be background; .*:classes,shift=1 adds 1"):
        io.read(f"{path}:classes")
    np.testing.assert_array_equal(io.read(f"{path}:classes,shift=1")[0], np.where(LEFT, 1, RIGHT * 2))


def test_crowds_are_several_objects(tmp_path):
    path = write(tmp_path / "a.json", [(0, LEFT & ~SMALL, {"iscrowd": 1}), (0, SMALL, {"iscrowd": 0})], ["s0.png"])
    with io.open_volume(path) as volume:
        assert "1 crowds, which are several objects, are left out" in volume.note
        np.testing.assert_array_equal(volume.read()[0], SMALL)
    np.testing.assert_array_equal(io.read(f"{path}:classes")[0], LEFT | SMALL)


@pytest.mark.parametrize(
    ("found", "what"),
    [
        ("[1, 2]", "is no COCO file"),
        ('{"a": 1}', "is no COCO file"),
        ("[{", "cannot read"),
        ('[{"image_id": 1, "bbox": [1, 2, 3, 4]}]', "boxes only"),
        ('{"images": [], "annotations": []}', "no slices|how large"),
        ('[{"image_id": 0, "segmentation": [[0, 0, 3, 0, 3, 3]]}]', "how large its images are"),
        ('{"images": [{"id": 1, "file_name": "a1.png", "height": 2, "width": 2}, {"id": 2, "file_name": "a2.png", '
         '"height": 3, "width": 2}], "annotations": []}', "different sizes"),
        ('{"images": [{"id": 1, "file_name": "a1.png", "height": 2, "width": 2}, {"id": 2, "file_name": "b1.png", '
         '"height": 2, "width": 2}], "annotations": []}', "differ in more than one number"),
        ('{"images": [{"id": 1, "file_name": "a1.png", "height": 2, "width": 2}], "annotations": [{"image_id": 4, '
         '"segmentation": {"size": [2, 2], "counts": [4]}}]}', "which it does not list"),
    ],
)  # fmt: skip
def test_other_json_files(tmp_path, found, what):
    (tmp_path / "a.json").write_text(found)
    with pytest.raises(InputError, match=what):
        io.read(tmp_path / "a.json")


def test_options_that_are_none(tmp_path):
    path = write(tmp_path / "a.json", [(0, LEFT, {})])
    for option in ("class", "score=", "score=high", "3-", "shift=x", "classes=1", "c=2"):
        with pytest.raises(InputError, match="none of what may stand behind a COCO file"):
            io.read(f"{path}:{option}")
    with pytest.raises(InputError, match="masks have no score"):
        io.read(f"{path}:score=1")


def test_stitch_takes_it(tmp_path, capsys):
    path = write(tmp_path / "a.json", [(z, LEFT, {"score": 0.9}) for z in range(3)], [f"s{z}.png" for z in range(3)])
    assert cli.main(["stitch", str(path), str(tmp_path / "out.npy"), "--classes", f"{path}:classes"]) == 0
    np.testing.assert_array_equal(io.read(tmp_path / "out.npy"), lpa3d.stitch(io.read(path)))
    assert "3 masks of 3 images as slices 0 to 2, by the numbers in their names" in capsys.readouterr().err
