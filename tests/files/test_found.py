"""Faults at the border of files that somebody found by trying: a wrong answer, or lost data, without a word."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import lpa3d
from lpa3d import cli, io
from lpa3d.errors import InputError, Lpa3dWarning
from lpa3d.files.ngff import reduce_level

VOLUME = np.arange(5 * 6 * 7, dtype=np.uint16).reshape(5, 6, 7)


def test_combined_ids_do_not_wrap(tmp_path, capsys):
    first, second = np.zeros((2, 4, 4, 4), np.uint64)
    first[2], first[3], second[0], second[1] = 1, 4, 5, 2**64 - 1
    np.save(tmp_path / "a.npy", first)
    np.save(tmp_path / "b.npy", second)
    out = tmp_path / "out.npy"
    assert cli.main(["combine", f"a={tmp_path}/a.npy", f"b={tmp_path}/b.npy", "--out-instances", str(out)]) == 2
    assert "b.npy has ids to 18446744073709551615" in capsys.readouterr().err
    assert not out.exists()


def list_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("what", ["nested", "two images", "notes", "beside chunks"])
def test_what_lies_beside_an_output_is_not_overwritten(what, tmp_path):
    zarr = pytest.importorskip("zarr")
    place = tmp_path / "a.zarr"
    names = {"nested": ["volumes/raw", "volumes/expert"], "two images": ["em", "lab"]}.get(what, ["0"])
    if what == "beside chunks":
        zarr.create_array(str(place), shape=VOLUME.shape, dtype="u2")[...] = VOLUME
        (place / "tables").mkdir()
    else:
        group = zarr.create_group(str(place))
        for name in names:
            group.create_array(name, shape=VOLUME.shape, dtype="u2")[...] = VOLUME
        axes = [{"name": axis, "type": "space"} for axis in "zyx"]
        listed = names if what == "two images" else names[:1]
        images = [{"axes": axes, "datasets": [{"path": name, "coordinateTransformations": []}]} for name in listed]
        group.attrs["ome"] = {"version": "0.5", "multiscales": images}
    if what == "notes":
        (place / "notes.csv").write_text("mine")
    before = list_files(place)
    with pytest.raises(InputError, match="never replaced"):
        io.write(place, VOLUME, overwrite=True)
    with pytest.raises(InputError, match="never replaced"):
        lpa3d.label(zarr.create_array(zarr.storage.MemoryStore(), data=VOLUME), out=place, overwrite=True)
    assert list_files(place) == before


@pytest.mark.parametrize("what", ["attribute", "group"])
def test_what_else_a_hdf5_file_holds_is_not_overwritten(what, tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["labels"] = VOLUME
        (file if what == "attribute" else file.create_group("meta")).attrs["who"] = "me"
    with pytest.raises(InputError, match="replaced as a whole"):
        io.write(tmp_path / "a.h5", VOLUME, overwrite=True)


def test_virtual_datasets_of_virtual_datasets(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "src.h5", "w") as file:
        file["d"] = VOLUME
    for out, source in (("mid.h5", "src.h5"), ("top.h5", "mid.h5")):
        with h5py.File(tmp_path / out, "w") as file:
            layout = h5py.VirtualLayout(VOLUME.shape, VOLUME.dtype)
            layout[:] = h5py.VirtualSource(source, "d", VOLUME.shape)
            file.create_virtual_dataset("d", layout)
    np.testing.assert_array_equal(io.read(tmp_path / "top.h5"), VOLUME)
    (tmp_path / "src.h5").unlink()
    with pytest.raises(InputError, match=r"src\.h5:d is missing"):
        io.read(tmp_path / "top.h5")


def test_external_voxels_that_were_cut_off(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "raw.bin"
    raw.write_bytes(VOLUME.tobytes())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("d", VOLUME.shape, VOLUME.dtype, external=[("raw.bin", 0, h5py.h5f.UNLIMITED)])
    np.testing.assert_array_equal(io.read(tmp_path / "a.h5"), VOLUME)
    raw.write_bytes(VOLUME.tobytes()[:100])
    with pytest.raises(InputError, match=r"raw\.bin is incomplete: it has 100 bytes"):
        io.read(tmp_path / "a.h5")


def test_nifti_whose_affine_is_another_size(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(VOLUME.T.copy(), np.diag([8, 8, 40, 1.0]))
    image.header.set_xyzt_units("micron")
    image.header["pixdim"][1:4] = 1
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.warns(Lpa3dWarning, match="by its affine voxels are 40 8 8 large, by pixdim 1 1 1"):
        volume = io.open_volume(tmp_path / "a.nii")
    with volume:
        assert volume.geometry.spacing == (40, 8, 8)


def test_units_of_imagej_differ(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    about = {"spacing": 0.04, "unit": "nm", "zunit": "um", "axes": "ZYX"}
    tifffile.imwrite(tmp_path / "a.tif", VOLUME, imagej=True, resolution=(1 / 8, 1 / 8), metadata=about)
    with io.open_volume(tmp_path / "a.tif") as volume:
        assert volume.geometry.spacing == pytest.approx((40, 8, 8))
        assert volume.geometry.unit == "nm"


def test_a_scale_of_zero_is_refused(tmp_path):
    text = "ObjectType = Image\nNDims = 3\nDimSize = 7 6 5\nElementType = MET_USHORT\nElementByteOrderMSB = False\n"
    text += "ElementToIntensityFunctionSlope = 0\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(text.encode() + VOLUME.tobytes())
    with pytest.raises(InputError, match="tells nothing"):
        io.read(tmp_path / "a.mha")


def test_a_level_of_n5_has_its_own_size(tmp_path):
    pytest.importorskip("tensorstore")
    io.write(tmp_path / "a.n5/em/s1", VOLUME)
    file = tmp_path / "a.n5/em/s1/attributes.json"
    about = json.loads(file.read_bytes()) | {"downsamplingFactors": [2, 2, 1]}
    size = {"axes": ["z", "y", "x"], "scale": [40, 16, 16], "translate": [0, 4, 4], "units": ["nm"] * 3}
    file.write_text(json.dumps(about | {"transform": size}))
    with io.open_volume(tmp_path / "a.n5/em/s1") as volume:
        assert volume.geometry.spacing == (40, 16, 16)


def test_choices_of_coco_are_given_once(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(InputError, match="score is given twice"):
        io.read(f"{tmp_path}/a.json:score=0.5,score=0.9")


def test_mean_of_numbers_of_64_bits():
    for dtype in (np.uint64, np.int64):
        high = np.iinfo(dtype).max
        volume = np.full((2, 2, 2), high, dtype)
        assert reduce_level(volume, (2, 2, 2), image=True).tolist() == [[[high]]]


def test_a_place_that_is_lost_is_told_of(tmp_path, capsys):
    nibabel = pytest.importorskip("nibabel")
    affine = np.diag([8, 8, 40, 1.0])
    for name, at in (("here", 0.0), ("there", 800.0)):
        affine[0, 3] = at
        image = nibabel.Nifti1Image(VOLUME.T.copy(), affine)
        image.header.set_xyzt_units("micron")
        nibabel.save(image, tmp_path / f"{name}.nii")
    for name, out, lost in (
        ("here.nii", "a.zarr", ""),
        ("there.nii", "b.zarr", "the place of the first voxel of"),
        ("there.nii", "c.nii", ""),
        ("there.nii", "d.nrrd", ""),
        ("d.nrrd", "e.tif", "the place of the first voxel of"),
    ):
        assert cli.main(["convert", str(tmp_path / name), str(tmp_path / out)]) == 0
        said = capsys.readouterr().err
        assert ("is not kept" in said) == (lost != "")
        assert lost in said
