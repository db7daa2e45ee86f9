"""The demo: its table, and the whole of it on tiny volumes."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from skimage.segmentation import watershed

from lpa3d import cli, demo, io, phantom, plot
from lpa3d.demo import case, parts, slices


@pytest.fixture
def in_process(monkeypatch):
    """Run the command line in this process, where its kernels are compiled already."""

    def run(command, check):
        assert command[:3] == [sys.executable, "-m", "lpa3d"]
        return subprocess.CompletedProcess(command, cli.main([*command[3:], "--quiet"]))

    monkeypatch.setattr(parts.subprocess, "run", run)


@pytest.fixture(scope="module")
def small() -> phantom.Cell:
    return phantom.cell((32, 64, 64), seed=1)


# ---------------------------------------------------------------------------------------------------------- measures


def case_of(classes, truth, names):
    file = Path("nowhere")
    return case.Case("case", file, file, file, classes, truth, truth, classes, "", (1.0, 1.0, 1.0), "", names)


def test_wrong_voxels_are_those_outside_the_match():
    truth = np.array([[[1, 1, 1, 2, 2, 0]]], np.uint16)
    merged = np.array([[[9, 9, 9, 9, 9, 0]]], np.uint16)
    [e] = parts.evaluate_all(truth, [parts.Result("merged", merged, 0.0)])
    np.testing.assert_array_equal(parts.find_wrong(truth, merged, e.pairs), [[[0, 0, 0, 1, 1, 0]]])
    for labels in (truth, (truth + 7) * (truth > 0), (truth + np.uint64(2**40)) * (truth > 0)):
        [e] = parts.evaluate_all(truth, [parts.Result("same", labels, 0.0)])
        assert not parts.find_wrong(truth, labels, e.pairs).any()
    [e] = parts.evaluate_all(truth, [parts.Result("none", truth * 0, 0.0)])
    np.testing.assert_array_equal(parts.find_wrong(truth, truth * 0, e.pairs), truth > 0)


def test_an_instance_has_the_class_of_most_of_its_voxels():
    classes = np.array([[[-1, -1, 3, 0, 0, 3]]], np.int8)
    truth = np.array([[[5, 5, 5, 5, 6, 7]]])
    given = case_of(classes, truth, {-1: "one", 3: "three"})
    assert demo._class_of(truth, given) == {5: 1, 6: -1, 7: 2}
    [per_class] = demo._evaluate_classes(given, [parts.Result("same", truth, 0.0)])
    assert {name: (e["tp"], e["fp"], e["fn"]) for name, e in per_class.items()} == {
        "one": (1, 0, 0),
        "three": (1, 0, 0),
    }


def test_the_table_names_the_costliest_errors():
    truth = np.array([[[1, 1, 1, 2, 2, 2, 0, 3, 3, 3, 3, 3]]], np.uint16)
    labels = np.array([[[4, 4, 4, 4, 4, 4, 0, 5, 5, 5, 6, 6]]], np.uint16)
    results = [parts.Result("ours", labels, 1.0), parts.Result("theirs", truth, 2.0)]
    scores = parts.evaluate_all(truth, results)
    said = demo._table(case_of(truth, truth, {1: "mask"}), results, scores)
    assert "instance 4 of the result joins 1 + 2, at z 0:1, y 0:1, x 0:6" in said
    assert "instance 3 is cut into 5 + 6, at z 0:1, y 0:1, x 7:12" in said
    assert re.search(r"ours +1 +33 % +0\.200 .* 1 +1 +0 +1\.00 s", said)
    assert re.search(r"theirs +3 +100 % +1\.000 +0\.000 +0 +0 +0 +2\.00 s", said)
    assert "look first" not in demo._table(case_of(truth, truth, {1: "mask"}), results[1:], scores[1:])


# -------------------------------------------------------------------------------------------------------------- peers


def test_watershed_is_scikit_images_where_classes_are_apart(small):
    seeds = case.keep_every(small.instances, 8)
    assert not demo._classes_touch(small.classes)
    mask = small.classes > 0
    theirs = watershed(np.zeros(mask.shape), seeds.astype(np.int32), mask=mask, connectivity=1)
    np.testing.assert_array_equal(demo._watershed(small.classes, seeds), theirs)


def test_watershed_stays_in_its_class_and_keeps_large_ids():
    classes = np.array([[[1, 1, 1, 2, 2, 0]]], np.uint8)
    seeds = np.array([[[2**40, 0, 0, 0, 7, 0]]], np.int64)
    assert demo._classes_touch(classes)
    np.testing.assert_array_equal(demo._watershed(classes, seeds), [[[2**40, 2**40, 2**40, 7, 7, 0]]])


@given(arrays(st.sampled_from([np.bool_, np.int8, np.uint16, np.int64]), array_shapes(min_side=0)))
def test_ids_are_those_of_numpy(labels):
    ids, places = parts.find_ids(labels)
    expected, inverse = np.unique(labels, return_inverse=True)
    np.testing.assert_array_equal(ids, expected)
    assert ids.dtype == labels.dtype
    np.testing.assert_array_equal(places, inverse.reshape(labels.shape))


# ------------------------------------------------------------------------------------------------------------ 2D labels


def test_labels_of_slices_are_sections_with_errors(small):
    predicted = slices.predict_slices(small.instances, small.classes)
    np.testing.assert_array_equal(predicted, slices.predict_slices(small.instances, small.classes))
    assert (predicted != slices.predict_slices(small.instances, small.classes, seed=1)).any()
    assert predicted.dtype == np.uint16
    assert np.count_nonzero(~predicted.any(axis=(1, 2))) == 3
    found = predicted[predicted.any(axis=(1, 2))]
    assert np.unique(found[:, 30, 10]).size > 3
    assert min(np.unique(plane, return_counts=True)[1].min() for plane in found) >= slices.SMALLEST
    truth = small.instances[predicted.any(axis=(1, 2))]
    assert 0.9 < np.count_nonzero((found > 0) & (truth > 0)) / np.count_nonzero(truth) < 1
    assert not slices.predict_slices(*np.zeros((2, 3, 8, 8), np.uint16)).any()


def test_sections_that_touch_are_pairs_of_ids():
    sections = np.array([[1, 1, 0, 4], [2, 1, 3, 4], [2, 2, 3, 0]])
    np.testing.assert_array_equal(slices._find_touching(sections), [[1, 2], [1, 3], [2, 3], [3, 4]])


def test_sections_keep_to_the_class_of_most_of_them():
    sections = np.array([[1, 1, 1, 1, 0, 2, 2, 3, 3, 3]])
    slices._cut_to_class(sections, np.array([[0, 0, 0, -4, 7, 7, 7, 7, -4, -4]]))
    np.testing.assert_array_equal(sections, [[1, 1, 1, 1, 0, 2, 2, 0, 3, 3]])


def test_greedy_links_take_the_best_pair_first():
    given = np.array(
        [
            [[5, 5, 5, 0, 9, 9, 9, 9]],
            [[2, 2, 7, 0, 7, 7, 7, 7]],  # 7 is closer to 9, 2 to 5
            [[0, 0, 0, 0, 0, 0, 0, 0]],
            [[2, 2, 7, 0, 7, 7, 7, 7]],
            [[3, 3, 3, 3, 3, 3, 3, 3]],  # 3 continues one of them
            [[3, 0, 0, 0, 0, 0, 0, 6]],  # too little of it
        ],
        np.uint16,
    )
    expected = [
        [[1, 1, 1, 0, 2, 2, 2, 2]],
        [[1, 1, 2, 0, 2, 2, 2, 2]],
        [[0, 0, 0, 0, 0, 0, 0, 0]],
        [[3, 3, 4, 0, 4, 4, 4, 4]],
        [[4, 4, 4, 4, 4, 4, 4, 4]],
        [[4, 0, 0, 0, 0, 0, 0, 5]],
    ]
    np.testing.assert_array_equal(slices.link_greedily(given), expected)
    assert not slices.link_greedily(given[:0]).size


def test_act_two_needs_the_truth_on_most_slices():
    truth = np.ones((20, 4, 4), np.uint16)
    names = {1: "mask"}
    assert slices.why_not(case_of(truth, truth, names)) == ""
    sparse = case.keep_every(truth, 5)
    assert "labels less than half of the class map on 16 of 20 slices" in slices.why_not(case_of(truth, sparse, names))
    assert "no labels" in slices.why_not(case_of(truth * 0, truth, names))
    without = dataclasses.replace(case_of(truth, truth, names), truth=None, truth_file=None)
    assert "it needs instances" in slices.why_not(without)


# ---------------------------------------------------------------------------------------------------------- the whole


def assert_is_a_picture(path, width):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] == width
    assert pixels.shape[0] > width / 8
    assert pixels.std() > 20


def test_demo_on_a_phantom(tmp_path, capfd, in_process):
    folder = tmp_path / "out"
    arguments = ["demo", "--shape", "32", "64", "64", "--every", "8", "--output", str(folder)]
    assert cli.main([*arguments, "--thumbnail", str(tmp_path / "small.png")]) == 0
    out, err = capfd.readouterr()
    assert f"$ lpa3d propagate {folder}/classes.tif {folder}/seeds.tif {folder}/lpa3d.tif" in out
    for words in ("lpa3d propagate", "scikit-image's watershed", "connected components", "all instances", "nucleus"):
        assert words in out
    assert f"$ lpa3d stitch {folder}/slices.tif {folder}/stitched.tif" in out
    assert f"$ lpa3d fuse --classes {folder}/classes.tif --slices {folder}/stitched.tif" in out
    act = out[out.index("Act 2: from") :]
    qualities = [float(found) for found in re.findall(r"(?:stitch|slice|gaps) +\d+ +\d+ % +([.\d]+)", act)]
    assert len(qualities) == 3
    assert qualities[0] > 0.9 > qualities[2] > qualities[1]
    assert "error" not in err
    result, truth, classes = (io.read(folder / f"{name}.tif") for name in ("lpa3d", "instances", "classes"))
    assert result.dtype == truth.dtype
    seeds = io.read(folder / "seeds.tif")
    np.testing.assert_array_equal(seeds[::8], truth[::8])
    assert np.count_nonzero(seeds) == np.count_nonzero(seeds[::8])
    np.testing.assert_array_equal(result[::8], truth[::8])
    assert not result[classes == 0].any()
    assert_is_a_picture(folder / "demo.png", 2700)
    assert_is_a_picture(tmp_path / "small.png", 1500)
    assert_is_a_picture(folder / "demo_slices.png", 2700)
    assert_is_a_picture(tmp_path / "small_slices.png", 1500)
    filled = io.read(folder / "lpa3d_slices.tif")
    np.testing.assert_array_equal(filled > 0, classes > 0)


def test_demo_on_a_folder_with_truth(tmp_path, capsys, small, in_process):
    data = tmp_path / "mine"
    data.mkdir()
    io.write(data / "volume.nii.gz", small.classes, spacing=(40, 8, 8), unit="nm")
    io.write(data / "instances.nii.gz", small.instances, spacing=(40, 8, 8), unit="nm")
    io.write(data / "raw.npy", small.image.astype(np.uint16) * 100)
    out = tmp_path / "out"
    before = sorted(data.iterdir())
    assert cli.main(["demo", "--data", str(data), "--output", str(out), "--every", "8"]) == 0
    assert sorted(data.iterdir()) == before
    np.testing.assert_array_equal(io.read(out / "seeds.nii.gz"), case.keep_every(small.instances, 8))
    assert_is_a_picture(out / "demo.png", 2700)
    said = capsys.readouterr().out
    assert re.search(r"all instances \(\d+\)", said)
    assert "class 4" in said
    assert_is_a_picture(out / "demo_slices.png", 2700)
    assert io.read(out / "slices.nii.gz").shape == small.classes.shape
    # Again: what the demo made before is replaced.
    assert cli.main(["demo", "--data", str(data), "--output", str(out), "--every", "8"]) == 0


def test_demo_on_a_folder_with_seeds_alone(tmp_path, capsys, small, in_process, monkeypatch):
    data = tmp_path / "mine"
    data.mkdir()
    np.save(data / "classes.npy", small.classes == 4)
    np.save(data / "seeds.npy", np.where(small.classes == 4, case.keep_every(small.instances, 8), 0))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--data", "mine"]) == 0
    assert_is_a_picture(tmp_path / "demo" / "mine" / "demo.png", 2700)
    said = capsys.readouterr().out
    assert "recovered" not in said
    assert "Act 2, from 2D labels of every slice, is left out: it needs instances.*" in said
    assert not (tmp_path / "demo" / "mine" / "demo_slices.png").exists()
    assert "Picture: " in said


# ------------------------------------------------------------------------------------------------------------ messages


def folder_with(path, **arrays):
    path.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)
    return path


VOLUME = np.ones((4, 5, 6), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, r"no class map; needed are classes\.\* .* found: nothing"),
        ({"instances": VOLUME, "notes": VOLUME}, r"no class map.*found: instances\.npy, notes\.npy"),
        ({"classes": VOLUME}, "no instances or seeds; needed are"),
        ({"classes": VOLUME, "volume": VOLUME, "seeds": VOLUME}, r"classes\.npy, volume\.npy, of which only one"),
        ({"classes": VOLUME, "seeds": VOLUME[1:]}, r"seeds\.npy has shape \(3, 5, 6\) but .*\(4, 5, 6\)"),
        ({"classes": VOLUME, "instances": VOLUME, "raw": VOLUME[0]}, r"raw\.npy has shape \(5, 6\)"),
        ({"classes": VOLUME[0], "seeds": VOLUME[0]}, "several slices"),
        ({"classes": VOLUME + 0.5, "seeds": VOLUME}, r"classes\.npy"),
    ],
)
def test_wrong_folders(tmp_path, capsys, arrays, message):
    data = folder_with(tmp_path / "mine", **arrays)
    assert cli.main(["demo", "--data", str(data), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert re.search(message, said.err)
    assert said.err.startswith("lpa3d: error: ")


def test_wrong_options(tmp_path, capsys):
    data = folder_with(tmp_path / "mine", classes=VOLUME, seeds=VOLUME)
    for arguments, message in (
        (["--data", str(tmp_path / "nowhere")], "is no folder"),
        (["--data", str(data), "--output", str(data)], "choose another"),
        (["--every", "0"], "--every is 0"),
        (["--shape", "8", "8", "8"], "three sizes"),
    ):
        assert cli.main(["demo", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(io.LibraryError, match=r"the demo needs skimage.*pip install 'lpa3d\[demo\]'"):
        demo._require("skimage.segmentation")


def test_a_failing_command_ends_the_demo(tmp_path, capfd):
    """Here the command line runs in a process of its own, as it does for a user."""
    data = folder_with(tmp_path / "mine", classes=VOLUME, seeds=VOLUME * 0)
    np.save(data / "seeds.npy", np.full(VOLUME.shape, -1))
    assert cli.main(["demo", "--data", str(data), "--output", str(tmp_path / "out")]) == 2
    assert "lpa3d propagate ended with exit code 2" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------------------------ pictures


def test_colors_are_distinct():
    colors = plot.distinct_colors(400)
    assert ((colors >= 0) & (colors <= 1)).all()
    assert len(np.unique(np.round(colors * 255), axis=0)) == 400
    for step in (1, 2, 3, 4):
        assert np.linalg.norm(colors[1:-step] - colors[1 + step :], axis=1).min() > 0.12


def test_borders_are_dark_unless_all_is_border():
    grey, colors = np.full((12, 12), 200, np.uint8), plot.distinct_colors(14)
    one = np.ones((12, 12), np.int32)
    one[:, 6:] = 2
    lines = np.arange(1, 13)[:, None] + np.zeros((12, 12), np.int32)
    shaded = plot._overlay(grey, one, colors)
    np.testing.assert_allclose(shaded[:, 5], 0.55 * shaded[:, 4], rtol=1e-5)
    np.testing.assert_allclose(
        plot._overlay(grey, lines, colors)[:, 0], colors[1:13] * (0.68 + 0.32 * 200 / 255), rtol=1e-5
    )


def test_the_detail_is_where_instances_touch():
    labels = np.zeros((40, 60), np.uint16)
    labels[5:30, 2:10] = 9
    labels[20:36:2, 40:50] = 1
    labels[21:36:2, 40:50] = 2
    down, across = parts.find_crowd(labels, 16)
    assert (down.stop - down.start, across.stop - across.start) == (16, 16)
    assert set(np.unique(labels[down, across])) >= {1, 2}


def test_image_of_any_kind_becomes_grey():
    rng = np.random.default_rng(0)
    classes = np.ones((2, 3, 4), np.uint8)
    for raw in (rng.normal(size=classes.shape), rng.integers(0, 2**16, classes.shape), np.zeros(classes.shape), None):
        grey = case.make_grey(raw, classes)
        assert (grey.shape, grey.dtype) == (classes.shape, np.uint8)
    raw = rng.normal(size=classes.shape)
    raw[0, 0, 0] = np.nan
    assert case.make_grey(raw, classes).std() > 0
