"""The command ``lpa3d convert``: the same voxels, size and place in another format, or an error that says why not."""

from __future__ import annotations

from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from lpa3d import cli, io
from lpa3d.files import volume, writers
from lpa3d.files.ngff import reduce_level

SUFFIXES = {
    "zarr": "zarr", "h5": "h5py", "nii": "nibabel", "nii.gz": "nibabel", "tif": "tifffile", "npy": "numpy",
    "npz": "numpy", "nrrd": "nrrd", "mha": "numpy", "mrc": "mrcfile", "n5": "tensorstore", "precomputed": "tensorstore",
}  # fmt: skip
WITHOUT_PLACE = ("tif", "npy", "npz")


def write(path: Any, array: Any, **more: Any) -> Any:
    io.write(path, array, **({"spacing": (40, 8, 4), "unit": "nm"} | more))
    return path


@given(data=st.data())
def test_any_format_to_any(data, tmp_path_factory):
    """In slabs as thin as can be; sizes survive whatever the formats' units."""
    draw, folder = data.draw, tmp_path_factory.mktemp("convert")
    first, second = (draw(st.sampled_from(sorted(SUFFIXES))) for _ in range(2))
    for suffix in (first, second):
        pytest.importorskip(SUFFIXES[suffix])
    shape = tuple(draw(st.integers(1, 4)) for _ in "zyx")
    array = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 2**15, shape).astype(np.int16)
    write(folder / f"a.{first}", array)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(volume, "SLAB_BYTES", 16)
        assert cli.main(["convert", "-q", f"{folder}/a.{first}", f"{folder}/b.{second}"]) == 0
    with io.open_volume(folder / f"b.{second}") as found:
        np.testing.assert_array_equal(found.read(), array)
        if not {first, second} & {"npy", "npz"}:
            size = {"nm": 1, "angstrom": 0.1, "Å": 0.1, "um": 1e3, "µm": 1e3, "micron": 1e3}[found.geometry.unit]
            assert [size * one for one in found.geometry.spacing] == pytest.approx([40, 8, 4])


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix not in WITHOUT_PLACE])
def test_the_place_is_kept(tmp_path, suffix):
    pytest.importorskip(SUFFIXES[suffix])
    (tmp_path / "a.mhd").write_text(
        "NDims = 3\nDimSize = 4 3 2\nElementSpacing = 4 8 40\nOffset = -8 -16 80\nDistanceUnits = nm\n"
        "ElementType = MET_UCHAR\nElementDataFile = a.raw\n"
    )
    np.arange(24, dtype=np.uint8).tofile(tmp_path / "a.raw")
    assert cli.main(["convert", "-q", f"{tmp_path}/a.mhd", f"{tmp_path}/b.{suffix}"]) == 0
    assert cli.main(["convert", "-q", f"{tmp_path}/b.{suffix}", f"{tmp_path}/c.nrrd"]) == 0
    with io.open_volume(tmp_path / "c.nrrd") as found:
        size = {"nm": 1, "angstrom": 0.1, "micron": 1e3}[found.geometry.unit]
        assert [size * one for one in found.geometry.offset] == pytest.approx([80, 16, 8])
        if suffix in ("nii", "nii.gz", "nrrd", "mha"):
            # ITK's x and y point to the left and the back.
            assert np.diag(found.geometry.directions).tolist() == [-1, -1, 1]


def test_a_nifti_header_is_kept(tmp_path):
    affine = np.array([[0.0, 2, 0, 5], [3, 0, 0, 6], [0, 0, -4, 7], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 3, 2), np.uint8), affine), tmp_path / "a.nii")
    assert cli.main(["convert", "-q", f"{tmp_path}/a.nii", f"{tmp_path}/b.nii.gz", "--dtype", "uint16"]) == 0
    found = nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(found.affine, affine)
    assert found.get_data_dtype() == np.uint16


def test_imagej(tmp_path, capsys):
    array = np.random.default_rng(0).integers(0, 300, (3, 4, 5)).astype(np.uint32)
    write(tmp_path / "a.zarr", array)
    convert = ["convert", "-q", f"{tmp_path}/a.zarr", f"{tmp_path}/b.tif", "--imagej"]
    assert cli.main(convert) == 2
    assert "ImageJ has no uint32" in (said := capsys.readouterr().err)
    assert "--dtype uint16 or --dtype float32" in said
    for dtype in ("uint16", "float32"):
        assert cli.main([*convert, "--dtype", dtype, "--overwrite"]) == 0
        with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
            assert tiff.is_imagej
            assert tiff.imagej_metadata["spacing"] == 40
            assert tiff.imagej_metadata["unit"] == "nm"
            assert tiff.imagej_metadata["slices"] == 3
            assert tiff.pages[0].tags["XResolution"].value == (1, 4)
            assert tiff.pages[0].tags["YResolution"].value == (1, 8)
            assert tiff.asarray().dtype == dtype
        with io.open_volume(tmp_path / "b.tif") as found:
            np.testing.assert_array_equal(found.read(), array)
            assert found.geometry.spacing == (40, 8, 4)
    assert cli.main(["convert", "-q", f"{tmp_path}/a.zarr", f"{tmp_path}/b.nrrd", "--imagej"]) == 2
    assert "--imagej is for TIFF files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "dtype", "what"),
    [
        ([0, 256], "uint8", "values from 0 to 256, and uint8 only 0 to 255"),
        ([-1, 3], "uint32", "values from -1 to 3"),
        ([0, 2**24 + 1], "float32", "beyond 16,777,216"),
        ([0.0, 0.5], "uint16", "fractions"),
        ([0.0, np.nan], "uint16", "NaN"),
        ([0.0, 1e30], "uint64", "values from 0 to"),
        ([0.0, 1e300], "float32", "too large for float32"),
        ([0, 2**63], "int64", "9,223,372,036,854,775,808"),
    ],
)
def test_values_that_do_not_fit(tmp_path, capsys, values, dtype, what):
    array = np.array([[[0, 0], [0, 0]], [[0, 0], values]], np.uint64 if 2**63 in values else None)
    np.save(tmp_path / "a.npy", array)
    assert cli.main(["convert", "-q", f"{tmp_path}/a.npy", f"{tmp_path}/b.zarr", "--dtype", dtype]) == 2
    assert what in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_floats_that_are_whole_become_integers(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[[0.0, 70_000.0]]], np.float32))
    assert cli.main(["convert", "-q", f"{tmp_path}/a.npy", f"{tmp_path}/b.npy", "--dtype", "uint32"]) == 0
    assert io.read(tmp_path / "b.npy").dtype == np.uint32
    assert io.read(tmp_path / "b.npy").tolist() == [[[0, 70_000]]]


def test_sizes_that_the_user_gives(tmp_path, capsys):
    write(tmp_path / "a.zarr", np.ones((2, 3, 4), np.uint8))
    convert = ["convert", "-q", f"{tmp_path}/a.zarr", f"{tmp_path}/b.nrrd", "--overwrite"]
    for more, spacing, unit in (
        (["--unit", "um"], (40, 8, 4), "um"),
        (["--spacing", "1", "2", "3", "--unit", "nm"], (1, 2, 3), "nm"),
        (["--spacing", "1,2,3"], (1, 2, 3), ""),
    ):
        assert cli.main([*convert, *more]) == 0
        with io.open_volume(tmp_path / "b.nrrd") as found:
            assert (found.geometry.spacing, found.geometry.unit) == (spacing, unit)
    assert "--spacing has no unit" in capsys.readouterr().err
    assert cli.main([*convert, "--unit", "furlong"]) == 2
    assert "--unit furlong is not known" in capsys.readouterr().err
    np.save(tmp_path / "a.npy", np.ones((2, 3, 4), np.uint8))
    assert cli.main(["convert", f"{tmp_path}/a.npy", f"{tmp_path}/c.nrrd", "--unit", "nm"]) == 2
    assert "does not say how large its voxels are" in capsys.readouterr().err
    assert cli.main(["convert", "-q", f"{tmp_path}/a.zarr", f"{tmp_path}/d.npy"]) == 0
    assert "cannot hold a voxel size" in capsys.readouterr().err


def test_outputs_that_cannot_be(tmp_path, capsys):
    write(tmp_path / "a.zarr", np.ones((2, 3, 4), np.uint8))
    (tmp_path / "slices").mkdir()
    for out, what in {
        "a.zarr": "is also an input",
        "b.mhd": "write a .mha",
        "b.nhdr": "write a .nrrd",
        "b.mrc.gz": "write a .mrc",
        "b.json": "only read",
        "slices": "only read",
        "b.xyz": "known are",
        "b.zarr:c=1": "outputs are written whole",
        "no/b.tif": "does not exist",
    }.items():
        assert cli.main(["convert", f"{tmp_path}/a.zarr", f"{tmp_path}/{out}", "--overwrite"]) == 2
        assert what in capsys.readouterr().err
    write(tmp_path / "b.tif", np.zeros((2, 3, 4), np.uint8))
    assert cli.main(["convert", f"{tmp_path}/a.zarr", f"{tmp_path}/b.tif"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert not io.read(tmp_path / "b.tif").any()


@pytest.mark.parametrize("image", [False, True])
def test_levels(tmp_path, image):
    """Read again box by box, they are those of the whole array."""
    array = np.random.default_rng(0).integers(0, 9, (5, 9, 7)).astype(np.uint8)
    np.save(tmp_path / "a.npy", array)
    convert = ["convert", "-q", f"{tmp_path}/a.npy", f"{tmp_path}/b.zarr", "--levels", "3", *["--image"] * image]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(volume, "SLAB_BYTES", 16)
        patch.setattr(writers, "ZARR_CHUNK", 2)
        assert cli.main(convert) == 0
    np.testing.assert_array_equal(io.read(tmp_path / "b.zarr"), array)
    level = array
    for k in (1, 2):
        level = reduce_level(level, (2, 2, 2), image=image)
        np.testing.assert_array_equal(io.read(tmp_path / "b.zarr" / str(k)), level)
