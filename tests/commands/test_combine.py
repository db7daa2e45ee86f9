"""The command ``lpa3d combine``: files of one class each to a class map and instances, against a naive oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from lpa3d import cli, io
from lpa3d.files import volume


def naive(files: list[Any], order: list[int]) -> tuple[Any, Any]:
    """Return classes and instances voxel by voxel."""
    offsets, largest = [], 0
    masks = [len(set(file.ravel().tolist()) - {0}) == 1 for file in files]
    for file, mask in zip(files, masks, strict=True):
        offsets.append(largest)
        largest += 1 if mask else int(file.max())
    classes, instances = np.zeros(files[0].shape, int), np.zeros(files[0].shape, int)
    for place in np.ndindex(files[0].shape):
        k = next((k for k in order if files[k][place]), None)
        if k is not None:
            classes[place] = k + 1
            instances[place] = offsets[k] + (1 if masks[k] else int(files[k][place]))
    return classes, instances


@given(data=st.data())
def test_against_naive(data, tmp_path_factory):
    draw, folder = data.draw, tmp_path_factory.mktemp("combine")
    shape = tuple(draw(st.integers(1, 4)) for _ in "zyx")
    random = np.random.default_rng(draw(st.integers(0, 99)))
    names = ["mito", "er", "lyso"][: draw(st.integers(1, 3))]
    files = []
    for name in names:
        high = draw(st.sampled_from([1, 2, 300]))
        file = random.integers(0, high + 1, shape) * (random.random(shape) < draw(st.sampled_from([0, 0.5, 1])))
        dtype = draw(st.sampled_from(["uint16", "int32", "float32"]))
        files.append(file)
        io.write(folder / f"{name}.{draw(st.sampled_from(['npy', 'zarr', 'nii']))}", file.astype(dtype))
    order = draw(st.permutations(range(len(names))))
    parts = [f"{name}={next(folder.glob(f'{name}.*'))}" for name in names]
    priority = ["--priority", *(names[k] for k in order)] if draw(st.booleans()) else []
    outs = ["--out-classes", f"{folder}/c.zarr", "--out-instances", f"{folder}/i.npy"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(volume, "SLAB_BYTES", 64)
        assert cli.main(["combine", "-q", *parts, *priority, *outs]) == 0
    classes, instances = naive(files, list(order) if priority else list(range(len(names))))
    np.testing.assert_array_equal(io.read(folder / "c.zarr"), classes)
    np.testing.assert_array_equal(io.read(folder / "i.npy"), instances)


def write(folder: Path) -> list[str]:
    """A mask, labels that overlap it, and a class that lies wholly in them."""
    mito, er, lyso = (np.zeros((2, 3, 4), dtype) for dtype in (np.uint8, np.uint16, np.uint8))
    mito[0] = 255
    er[:, 0], er[:, 1, :2] = 7, 9
    lyso[0, 0, 0] = 3
    for name, array in (("mito", mito), ("er", er), ("lyso", lyso)):
        io.write(folder / f"{name}.nii.gz", array, spacing=(40, 8, 4), unit="nm")
    return [f"{name}={folder}/{name}.nii.gz" for name in ("mito", "er", "lyso")]


def test_what_is_said(tmp_path, capsys):
    parts = write(tmp_path)
    assert cli.main(["combine", *parts, "--out-classes", f"{tmp_path}/c.zarr"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "class  name  ids  voxels",
        "1  mito  1 (a mask: one object; lpa3d label makes one of each component)  12 of 24 voxels (50.0 %)",
        "2  er  8 to 10  6 of 24 voxels (25.0 %)",
        "3  lyso  11 (a mask: one object; lpa3d label makes one of each component)  0 of 24 voxels (0.0 %)",
        "6 voxels of er are also mito, and stay that",
        "1 voxel of lyso are also mito, and stay that",
    ]
    assert "1 id of" in said.err
    assert "lie wholly in other classes" in said.err
    with io.open_volume(tmp_path / "c.zarr") as found:
        assert found.geometry.unit in ("nm", "micron", "nanometer", "micrometer")


@pytest.mark.parametrize("suffix", ["zarr", "h5", "n5", "nrrd"])
def test_names_are_kept(tmp_path, suffix):
    parts, out = write(tmp_path), tmp_path / f"c.{suffix}"
    assert cli.main(["combine", "-q", *parts, "--out-classes", str(out)]) == 0
    if suffix == "zarr":
        assert zarr.open_array(io.open_volume(out).path).attrs["class_names"]["2"] == "er"
    elif suffix == "n5":
        assert json.loads((out / "attributes.json").read_text())["class_names"]["2"] == "er"
    elif suffix == "nrrd":
        assert b"Segment1_Name:=er\nSegment1_LabelValue:=2\n" in out.read_bytes()
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(out) as file:
            assert json.loads(file["labels"].attrs["class_names"])["2"] == "er"


def test_files_without_a_name(tmp_path, capsys):
    files = [part.partition("=")[2] for part in write(tmp_path)]
    assert cli.main(["combine", *files, "--priority", "lyso", "er", "--out-instances", f"{tmp_path}/i.tif"]) == 0
    said = capsys.readouterr().out
    assert "1 voxel of er are also lyso, and stay that" in said
    assert "2  er" in said


def test_mistakes(tmp_path, capsys):
    parts, out = write(tmp_path), ["--out-classes", f"{tmp_path}/c.npy"]
    np.save(tmp_path / "small.npy", np.ones((2, 3, 3), np.uint8))
    np.save(tmp_path / "minus.npy", np.full((2, 3, 4), -1))
    np.save(tmp_path / "image.npy", np.full((2, 3, 4), 0.5))
    turned = nibabel.Nifti1Image(np.ones((4, 3, 2), np.uint8), np.diag([1, -1, 1, 1]))
    nibabel.save(turned, tmp_path / "turned.nii")
    for words, what in (
        ([*parts, parts[0], *out], "mito is given twice"),
        (parts, "--out-classes or --out-instances is needed"),
        ([*parts, f"a={tmp_path}/small.npy", *out], "they must be the same"),
        ([f"a={tmp_path}/minus.npy", *out], "holds -1; ids are positive"),
        ([f"a={tmp_path}/image.npy", *out], "must be bool or integers"),
        ([*parts, f"a={tmp_path}/turned.nii", *out], "y in the opposite direction"),
        ([*parts, *out, "--priority", "mitto"], "did you mean mito?"),
        ([*parts, *out, "--priority", "er", "er"], "names a class twice"),
        (["=a.npy", *out], "is no class with its file"),
        ([*parts, *out, *out], "--out-classes: it is given twice"),
        ([*parts, "--out-classes", f"{tmp_path}/mito.nii.gz", "--overwrite"], "is also an input"),
    ):
        try:
            code = cli.main(["combine", *words])
        except SystemExit as error:
            code = error.code
        assert code == 2
        assert what in capsys.readouterr().err
        assert not (tmp_path / "c.npy").exists()


def test_uint64_where_it_is_needed(tmp_path):
    combine = ["combine", f"{tmp_path}/a.npy", f"{tmp_path}/b.npy", "--out-instances", f"{tmp_path}/i.npy"]
    np.save(tmp_path / "b.npy", np.array([[[9, 0, 1]]], np.uint32))
    for high, dtype in ((2**32 - 11, np.uint32), (2**32 - 2, np.uint64)):
        np.save(tmp_path / "a.npy", np.array([[[0, 1, high]]], np.uint32))
        assert cli.main([*combine, "--overwrite"]) == 0
        found = io.read(tmp_path / "i.npy")
        assert found.dtype == dtype
        assert found.tolist() == [[[high + 9, 1, high]]]


def test_urocell(data_dir, tmp_path, capsys):
    """Files whose headers say nothing of directions beside others that do; what both claim is counted."""
    for name in ("mito", "fv"):
        image = nibabel.load(data_dir / "urocell" / name / "instance" / "fib1-0-0-0.nii.gz")
        part = nibabel.Nifti1Image(np.asarray(image.dataobj[:, :, 208:212]), None, image.header)
        nibabel.save(part, tmp_path / f"{name}.nii")
    mito, fv = (io.read(tmp_path / f"{name}.nii").astype(int) for name in ("mito", "fv"))
    parts = [f"{tmp_path}/{name}.nii" for name in ("mito", "fv")]
    assert cli.main(["combine", *parts, "--out-instances", f"{tmp_path}/i.npy"]) == 0
    np.testing.assert_array_equal(
        io.read(tmp_path / "i.npy"), np.where(mito > 0, mito, np.where(fv > 0, fv + mito.max(), 0))
    )
    both = np.count_nonzero((mito > 0) & (fv > 0))
    assert (f"{both} voxels of fv are also mito" in capsys.readouterr().out) == (both > 0)
