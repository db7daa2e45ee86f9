"""Files: every format gives back what it was given, says what it knows, and is never half-written."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lpa3d import io
from lpa3d.errors import InputError, InputTypeError, Lpa3dError, Lpa3dWarning
from lpa3d.files.geometry import NANOMETRES
from lpa3d.files.images import _scan_png
from lpa3d.files.outputs import ASIDE, TEMPORARY, Cancelled, Outputs
from lpa3d.files.places import locate
from lpa3d.files.writers import WRITERS

DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
SUFFIXES = ["zarr", "npy", "nii", "nii.gz", "tif", "tiff", "h5", "hdf5"]
SHAPES = [(3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 1), (4, 5), (1, 5), (5, 1), (4, 5, 3), (4, 3)]


def ids(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Random values over the dtype's whole range, its ends included."""
    rng = np.random.default_rng(1)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    info = np.iinfo(dtype)
    array = rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    array.flat[0], array.flat[-1] = info.min, info.max
    return array


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_of_every_dtype(tmp_path, suffix, dtype):
    array = ids((3, 4, 5), dtype)
    name = tmp_path / f"a.{suffix}"
    io.write(name, array)
    back = io.read(name)
    assert back.dtype == (np.uint8 if dtype == "bool" else np.dtype(dtype))
    np.testing.assert_array_equal(back, array)
    assert names(tmp_path) == [name.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int64"])
def test_round_trip_of_every_shape(tmp_path, suffix, shape, dtype):
    array = ids(shape, dtype)
    io.write(tmp_path / f"a.{suffix}", array, spacing=(40, 8, 8), unit="nm")
    np.testing.assert_array_equal(io.read(tmp_path / f"a.{suffix}"), array)


@pytest.mark.parametrize("suffix", ["zarr", "npy", "nii", "nii.gz", "h5"])
@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (3, 4, 0), (0, 0)])
def test_round_trip_of_empty_axes(tmp_path, suffix, shape):
    io.write(tmp_path / f"a.{suffix}", np.zeros(shape, "uint32"))
    assert io.read(tmp_path / f"a.{suffix}").shape == shape


def test_tiff_refuses_empty_axes(tmp_path):
    with pytest.raises(InputError, match=r"empty shape \(0, 4, 5\)"):
        io.write(tmp_path / "a.tif", np.zeros((0, 4, 5), "uint8"))
    assert names(tmp_path) == []


@given(data=st.data())
def test_round_trip_of_any_layout(tmp_path_factory, data):
    suffix = data.draw(st.sampled_from(SUFFIXES))
    dtype = data.draw(st.sampled_from(DTYPES[1:]))
    shape = data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=3))
    array = ids(tuple(shape), dtype)
    layout = data.draw(st.sampled_from(["fortran", "strided", "reversed", "big-endian", "read-only"]))
    if layout == "fortran":
        array = np.asfortranarray(array)
    elif layout == "strided":
        array = np.repeat(array, 2, axis=-1)[..., ::2]
    elif layout == "reversed":
        array = array[::-1]
    elif layout == "big-endian":
        array = array.astype(array.dtype.newbyteorder(">"))
    else:
        array.flags.writeable = False
    name = tmp_path_factory.mktemp("layout") / f"a.{suffix}"
    io.write(name, array)
    np.testing.assert_array_equal(io.read(name), array)


def test_slabs_cover_the_array(tmp_path, monkeypatch):
    monkeypatch.setattr("lpa3d.files.volume.SLAB_BYTES", 2 * 4 * 5 * 4)
    monkeypatch.setattr("lpa3d.files.writers.ZARR_CHUNK", 2)
    monkeypatch.setattr("lpa3d.files.writers.HDF5_CHUNK", 2)
    array = ids((7, 4, 5), "uint32")
    for suffix in SUFFIXES:
        io.write(tmp_path / f"a.{suffix}", array)
        with io.open_volume(tmp_path / f"a.{suffix}") as volume:
            done: list[float] = []
            np.testing.assert_array_equal(volume.read(done.append), array)
            assert done == sorted(done)
            parts = [(lo, hi, part.copy()) for lo, hi, part in volume.slabs()]
        assert [lo for lo, _, _ in parts] == [0, *(hi for _, hi, _ in parts)][:-1]
        np.testing.assert_array_equal(np.concatenate([part for _, _, part in parts]), array)
        if suffix in ("zarr", "npy", "h5"):
            assert len(parts) == 4


def test_npy_is_mapped_not_copied(tmp_path):
    io.write(tmp_path / "a.npy", ids((3, 4, 5), "uint32"))
    array = io.read(tmp_path / "a.npy")
    assert not array.flags.writeable
    while isinstance(array, np.ndarray) and not isinstance(array, np.memmap):
        array = array.base
    assert isinstance(array, np.memmap)


def test_labels_are_compressed(tmp_path):
    array = np.zeros((64, 64, 64), "uint32")
    array[10:40] = 7
    for suffix in ("zarr", "tif", "h5", "nii.gz"):
        io.write(tmp_path / f"a.{suffix}", array)
        with io.open_volume(tmp_path / f"a.{suffix}") as volume:
            assert volume.compression
        path = tmp_path / f"a.{suffix}"
        files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
        assert sum(file.stat().st_size for file in files) < array.nbytes / 20


# ---------------------------------------------------------------------------------------------- what other tools write


def test_nifti_axes_are_reversed(tmp_path):
    array = ids((2, 3, 4), "uint16")
    io.write(tmp_path / "a.nii", array)
    stored = nibabel.load(tmp_path / "a.nii")
    assert stored.shape == (4, 3, 2)
    assert int(stored.dataobj[3, 1, 0]) == array[0, 1, 3]


def test_nifti_header_is_kept(tmp_path):
    affine = np.array([[0, -0.5, 0, 11], [-0.25, 0, 0, 22], [0, 0, 2, -33], [0, 0, 0, 1.0]])
    image = nibabel.Nifti1Image(np.zeros((4, 3, 2), "int16"), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"a scan"
    image.header["cal_max"] = 300
    nibabel.save(image, tmp_path / "in.nii.gz")
    array = ids((2, 3, 4), "uint32")
    io.write(tmp_path / "out.nii", array, like=tmp_path / "in.nii.gz")
    out = nibabel.load(tmp_path / "out.nii")
    np.testing.assert_allclose(out.affine, affine, rtol=1e-6)
    assert out.header.get_zooms() == (0.25, 0.5, 2.0)
    assert out.header["descrip"].item() == b"a scan"
    assert out.header["cal_max"] == 0
    assert (out.header["qform_code"], out.header["sform_code"]) == (
        image.header["qform_code"],
        image.header["sform_code"],
    )
    assert out.get_data_dtype() == np.uint32
    np.testing.assert_array_equal(np.asarray(out.dataobj).T, array)
    with io.open_volume(tmp_path / "out.nii") as volume:
        assert volume.geometry.spacing == (2.0, 0.5, 0.25)
        assert volume.geometry.unit == "mm"


def test_a_spacing_that_is_given_counts_more_than_the_header(tmp_path):
    """The directions stay those of the header."""
    affine = np.array([[0, -0.5, 0, 11], [-0.25, 0, 0, 22], [0, 0, 2, -33], [0, 0, 0, 1.0]])
    image = nibabel.Nifti1Image(np.zeros((4, 3, 2), "int16"), affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "in.nii.gz")
    array = ids((2, 3, 4), "uint32")
    for unit, spacing in (("", (40, 8, 4)), ("mm", (40, 8, 4)), ("um", (40_000, 8_000, 4_000))):
        io.write(tmp_path / "out.nii", array, like=tmp_path / "in.nii.gz", spacing=spacing, unit=unit, overwrite=True)
        out = nibabel.load(tmp_path / "out.nii")
        assert out.header.get_zooms() == (4, 8, 40)
        expected = [[0, -8, 0, 11], [-4, 0, 0, 22], [0, 0, 40, -33], [0, 0, 0, 1]]
        np.testing.assert_allclose(out.affine, expected, rtol=1e-6)
        with io.open_volume(tmp_path / "out.nii") as volume:
            assert volume.geometry.spacing == (40, 8, 4)
            assert volume.geometry.unit == "mm"


def test_nifti_of_long_axes_is_version_2(tmp_path):
    array = np.zeros((1, 1, 40_000), "uint8")
    array[0, 0, -1] = 5
    io.write(tmp_path / "a.nii", array)
    assert isinstance(nibabel.load(tmp_path / "a.nii"), nibabel.Nifti2Image)
    assert io.read(tmp_path / "a.nii")[0, 0, -1] == 5


def test_nifti_trailing_axes_of_length_one_go(tmp_path):
    array = ids((2, 3, 4), "int32")
    nibabel.save(nibabel.Nifti1Image(array.T[..., np.newaxis], np.eye(4)), tmp_path / "a.nii")
    np.testing.assert_array_equal(io.read(tmp_path / "a.nii"), array)


def test_nifti_big_endian_and_unit_scale(tmp_path):
    array = ids((2, 3, 4), "int16")
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    image = nibabel.Nifti1Image(array.T, np.eye(4), header)
    image.header.set_slope_inter(1, 0)
    nibabel.save(image, tmp_path / "a.nii")
    with io.open_volume(tmp_path / "a.nii") as volume:
        assert volume.dtype == np.dtype(">i2")
        np.testing.assert_array_equal(volume.read_integers("labels"), array)


@pytest.mark.parametrize(
    ("stored", "highest", "expected"),
    [
        ("float32", 2**24, "uint32"),
        ("float64", 2**32 - 1, "uint32"),
        ("float64", 2**53, "int64"),
    ],
)
def test_nifti_whole_numbers_in_floats_are_integers(tmp_path, stored, highest, expected):
    array = np.arange(24.0).reshape(2, 3, 4)
    array[1, 2, 3] = highest
    nibabel.save(nibabel.Nifti1Image(array.T.astype(stored), np.eye(4)), tmp_path / "a.nii.gz")
    with io.open_volume(tmp_path / "a.nii.gz") as volume:
        read = volume.read_integers("seeds")
    assert read.dtype == expected
    np.testing.assert_array_equal(read, array.astype(np.int64))


@pytest.mark.parametrize("value", [0.5, -0.25, np.nan, np.inf, 2.0**25])
def test_nifti_other_floats_are_refused(tmp_path, value):
    array = np.zeros((4, 3, 2), "float32")
    array[1, 1, 1] = value
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii")
    with io.open_volume(tmp_path / "a.nii") as volume, pytest.raises(InputError, match=r"a\.nii holds float32"):
        volume.read_integers("seeds")


def test_nifti_scaled_integers_are_floats(tmp_path):
    image = nibabel.Nifti1Image(np.arange(24, dtype="int16").reshape(4, 3, 2), np.eye(4))
    image.header.set_slope_inter(0.5, 0)
    nibabel.save(image, tmp_path / "a.nii")
    with io.open_volume(tmp_path / "a.nii") as volume:
        assert volume.dtype == np.float64
        np.testing.assert_allclose(volume.read(), np.asarray(nibabel.load(tmp_path / "a.nii").dataobj).T)


@pytest.mark.parametrize("suffix", ["zarr", "npy", "tif", "h5"])
def test_whole_numbers_stored_as_floats_are_ids(tmp_path, suffix):
    """As ImageJ stores more than 65,535 labels; an image with fractions is refused."""
    ids = np.array([[[0, 1, 2], [70_000, 0, 5]]])
    io.write(tmp_path / f"a.{suffix}", ids.astype("float32"))
    with io.open_volume(tmp_path / f"a.{suffix}") as volume:
        found = volume.read_integers("labels")
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found, ids)
    for odd, why in ((0.5, "fractions"), (np.nan, "NaN")):
        io.write(tmp_path / f"b.{suffix}", ids + np.float32(odd), overwrite=True)
        with io.open_volume(tmp_path / f"b.{suffix}") as volume:
            message = rf"holds float..; a class map must be bool or integers: threshold .* it holds {why}"
            with pytest.raises(InputError, match=message):
                volume.read_integers("a class map")


def test_arrays_on_a_device_are_not_written(tmp_path):
    class Array:
        __cuda_array_interface__ = None

    for name in ("a.npy", "a.zarr"):
        with pytest.raises(InputTypeError, match=r"Array on a CUDA device; .* pass cupy\.asnumpy\(array\)"):
            io.write(tmp_path / name, Array())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_imagej_stack(tmp_path, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    tifffile.imwrite(
        tmp_path / "a.tif",
        array,
        imagej=True,
        resolution=(1 / 0.008, 1 / 0.016),
        metadata={"axes": "ZYX", "spacing": 0.04, "unit": "um"},
    )
    with io.open_volume(tmp_path / "a.tif") as volume:
        np.testing.assert_allclose(volume.geometry.spacing, (0.04, 0.016, 0.008), rtol=1e-6)
        assert volume.geometry.unit == "um"
        np.testing.assert_array_equal(volume.read(), array)


def test_ome_units_are_made_common(tmp_path):
    array = ids((2, 3, 4), "uint16")
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        array,
        photometric="minisblack",
        metadata={
            "axes": "ZYX",
            "PhysicalSizeZ": 40.0,
            "PhysicalSizeZUnit": "nm",
            "PhysicalSizeY": 0.016,
            "PhysicalSizeX": 0.008,
        },
    )
    with io.open_volume(tmp_path / "a.ome.tif") as volume:
        np.testing.assert_allclose(volume.geometry.spacing, (40, 16, 8))
        assert volume.geometry.unit == "nm"


def test_plain_tiff_pages(tmp_path):
    array = ids((3, 4, 5), "uint8")
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for page in array:
            tiff.write(page)
    with tifffile.TiffWriter(tmp_path / "b.tif") as tiff:
        for page in array:
            tiff.write(page, metadata=None)
    for name in ("a.tif", "b.tif"):
        with io.open_volume(tmp_path / name) as volume:
            assert volume.geometry.spacing is None
            np.testing.assert_array_equal(volume.read(), array)


def test_tiff_of_colours_or_of_different_images_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5, 3), "uint8"), photometric="rgb")
    with pytest.raises(InputError, match="colour image"):
        io.read(tmp_path / "a.tif")
    with tifffile.TiffWriter(tmp_path / "b.tif") as tiff:
        tiff.write(np.zeros((4, 5), "uint8"), metadata=None)
        tiff.write(np.zeros((6, 5), "uint8"), metadata=None)
    with pytest.raises(InputError, match=r"holds 2 images, of shapes \(4, 5\), \(6, 5\)"):
        io.read(tmp_path / "b.tif")


def test_hdf5_datasets(tmp_path):
    array = ids((2, 3, 4), "uint64")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = array
        file["raw"].attrs["element_size_um"] = (0.04, 0.008, 0.008)
        file["a/b/seg"] = array + np.uint64(1)
        file["a/b/seg"].attrs["resolution"] = (40, 8, 8)
        file["table"] = np.arange(3)
    with io.open_volume(f"{tmp_path}/a.h5:/raw") as volume:
        assert volume.geometry == io.Geometry((0.04, 0.008, 0.008), "um")
    with io.open_volume(f"{tmp_path}/a.h5:a/b/seg") as volume:
        assert volume.geometry == io.Geometry((40.0, 8.0, 8.0), "nm")
        np.testing.assert_array_equal(volume.read(), array + np.uint64(1))
    np.testing.assert_array_equal(io.read(f"{tmp_path}/a.h5:/a"), array + np.uint64(1))
    with pytest.raises(InputError, match=r"holds 2 arrays; name one of them: .*a\.h5:/a/b/seg, .*a\.h5:/raw"):
        io.read(tmp_path / "a.h5")
    with pytest.raises(InputError, match=r"has no dataset /x; it holds /a/b/seg, /raw"):
        io.read(f"{tmp_path}/a.h5:/x")


def test_hdf5_output_has_the_name_asked_for(tmp_path):
    io.write(f"{tmp_path}/a.h5:/volumes/seg", ids((2, 3, 4), "uint32"), spacing=(40, 8, 8), unit="nm")
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["volumes/seg"].compression == "gzip"
    io.write(f"{tmp_path}/b.h5", ids((2, 3, 4), "uint32"))
    with h5py.File(tmp_path / "b.h5") as file:
        assert list(file) == ["labels"]


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_versions_and_groups(tmp_path, version):
    array = ids((5, 6, 7), "uint32")
    group = zarr.create_group(str(tmp_path / "a.zarr"), zarr_format=version)
    group.create_array("x/y", data=array, chunks=(2, 6, 7))
    np.testing.assert_array_equal(io.read(tmp_path / "a.zarr/x/y"), array)
    np.testing.assert_array_equal(io.read(f"{tmp_path}/a.zarr/x/y/"), array)
    np.testing.assert_array_equal(io.read(tmp_path / "a.zarr"), array)
    group.create_array("z", data=array)
    with pytest.raises(InputError, match=r"holds 2 arrays; name one of them: .*a\.zarr/x/y, .*a\.zarr/z"):
        io.read(tmp_path / "a.zarr")
    with pytest.raises(InputError, match=r"a\.zarr/w does not exist; .*a\.zarr holds x/y, z"):
        io.read(tmp_path / "a.zarr/w")


def test_zarr_leftovers_of_a_killed_run_are_not_offered(tmp_path):
    array = ids((2, 3, 4), "uint8")
    io.write(tmp_path / "a.zarr/x", array)
    os.rename(tmp_path / "a.zarr/x", tmp_path / f"a.zarr/{TEMPORARY}01.zarr")
    io.write(tmp_path / "a.zarr/x", array)
    np.testing.assert_array_equal(io.read(tmp_path / "a.zarr"), array)


def test_zarr_missing_chunks_sharding_and_order(tmp_path):
    array = np.zeros((8, 6, 4), "uint16")
    array[5] = 3
    sharded = zarr.create_array(
        str(tmp_path / "s.zarr"), shape=array.shape, dtype="uint16", chunks=(2, 3, 4), shards=(4, 6, 4)
    )
    sharded[5] = 3
    fortran = zarr.create_array(str(tmp_path / "f.zarr"), data=array, chunks=(3, 3, 3), order="F", zarr_format=2)
    assert fortran.order == "F"
    for name in ("s.zarr", "f.zarr"):
        np.testing.assert_array_equal(io.read(tmp_path / name), array)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_zarr_ome_spacing(tmp_path, version):
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    axes.insert(0, {"name": "c", "type": "channel"})
    image = {
        "axes": axes,
        "datasets": [
            {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 40, 8, 8]}]},
            {"path": "1", "coordinateTransformations": [{"type": "scale", "scale": [1, 40, 16, 16]}]},
        ],
        "coordinateTransformations": [{"type": "scale", "scale": [1, 2, 1, 1]}],
    }
    attributes = {"multiscales": [image]} if version == "0.4" else {"ome": {"version": "0.5", "multiscales": [image]}}
    group = zarr.create_group(
        str(tmp_path / "a.ome.zarr"), zarr_format=2 if version == "0.4" else 3, attributes=attributes
    )
    array = ids((2, 3, 4), "uint8")
    for name in ("0", "1"):
        group.create_array(name, data=array[np.newaxis])
    with io.open_volume(tmp_path / "a.ome.zarr/1") as volume:
        assert volume.geometry == io.Geometry((80.0, 16.0, 16.0), "nanometer", offset=(0.0, 0.0, 0.0))
        assert volume.shape == (2, 3, 4)
        np.testing.assert_array_equal(volume.read(), array)


@pytest.mark.parametrize("source", ["zarr", "nii.gz", "tif", "h5"])
@pytest.mark.parametrize("target", ["zarr", "nii", "tif", "h5"])
@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
def test_spacing_travels_between_formats(tmp_path, source, target, dtype):
    array = ids((2, 3, 4), dtype)
    io.write(tmp_path / f"a.{source}", array, spacing=(40, 8.5, 8), unit="nm")
    io.write(tmp_path / f"b.{target}", array, like=tmp_path / f"a.{source}")
    with io.open_volume(tmp_path / f"b.{target}") as volume:
        factor = NANOMETRES[volume.geometry.unit]
        np.testing.assert_allclose(np.multiply(volume.geometry.spacing, factor), (40, 8.5, 8), rtol=1e-6)


def test_spacing_that_was_never_filled_in_is_none(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = ids((2, 3, 4), "uint8")
        file["raw"].attrs["spacing"] = (0, 0, np.nan)
    with io.open_volume(tmp_path / "a.h5") as volume:
        assert volume.geometry.spacing is None


def test_real_data(data_dir):
    with io.open_volume(data_dir / "urocell/fv/instance/fib1-0-0-0.nii.gz") as volume:
        instances = volume.read_integers("seeds")
    assert instances.shape == (256, 256, 256)
    assert instances.dtype == np.uint32
    assert instances.max() == 253
    assert instances.flags.c_contiguous
    with io.open_volume(data_dir / "connectomics.zarr") as volume:
        assert volume.geometry == io.Geometry((40.0, 32.0, 32.0), "nanometer")
        assert volume.chunks == (128, 128, 128)
        assert volume.dtype == np.uint32


# ---------------------------------------------------------------------------------------------------- image folders


def save(path: Path, image: np.ndarray, **options: object) -> None:
    """Write one image as other tools do, by its suffix."""
    if path.suffix.lower() == ".png":
        Image.fromarray(image).save(path, **options)
    else:
        tifffile.imwrite(path, image, **options)


def folder_of(folder: Path, images: dict[str, np.ndarray]) -> str:
    folder.mkdir(exist_ok=True)
    for name, image in images.items():
        save(folder / name, image)
    return f"{folder}/"


def note_of(name: str) -> str:
    with io.open_volume(name) as volume:
        return volume.note


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [("png", dtype) for dtype in ("bool", "uint8", "uint16")]
    + [("tif", dtype) for dtype in (*DTYPES, "float32")]
    + [("TIFF", "uint32"), ("PNG", "uint8")],
)
def test_folder_of_every_dtype(tmp_path, suffix, dtype):
    array = ids((12, 5, 9), dtype if dtype != "float32" else "int16").astype(dtype)
    name = folder_of(tmp_path / "s", {f"z{i}.{suffix}": image for i, image in enumerate(array)})
    with io.open_volume(name) as volume:
        assert (volume.format, volume.shape, volume.dtype) == ("images", array.shape, np.dtype(dtype))
        assert volume.chunks == (1, 5, 9)
        assert volume.geometry == io.Geometry()
        back = volume.read()
    assert back.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(back, array)


def test_folder_is_in_the_order_of_its_numbers(tmp_path):
    array = ids((12, 4, 5), "uint16")
    name = folder_of(tmp_path / "s", {f"fib1_slice_{i + 1}.png": image for i, image in enumerate(array)})
    for same in (
        name,
        name[:-1],
        Path(name),
        f"{name}*.png",
        f"{name}fib1_slice_*",
        f"{name}:1-12",
        f"{name[:-1]}:1-12",
    ):
        np.testing.assert_array_equal(io.read(same), array)
    assert note_of(name) == (
        f"{name}: 12 PNG images as slices 0 to 11 (numbers 1 to 12; options count slices from 0): fib1_slice_1.png to "
        "fib1_slice_12.png, by their numbers"
    )


@given(data=st.data())
def test_folder_of_any_numbers(tmp_path_factory, data):
    numbers = data.draw(st.lists(st.integers(0, 120), min_size=2, max_size=6, unique=True))
    width = data.draw(st.integers(0, 4))
    folder = tmp_path_factory.mktemp("s")
    for number in numbers:
        save(folder / f"s{number:0{width}d}.png", np.full((2, 3), number + 1, "uint8"))
    expected = np.zeros((max(numbers) - min(numbers) + 1, 2, 3), "uint8")
    for number in numbers:
        expected[number - min(numbers)] = number + 1
    if len(expected) == len(numbers):
        np.testing.assert_array_equal(io.read(folder), expected)
    else:
        empty = len(expected) - len(numbers)
        with pytest.warns(Lpa3dWarning, match=f"{empty} of {len(expected)} slices ha"):
            np.testing.assert_array_equal(io.read(folder), expected)


def test_folder_with_holes_says_which(tmp_path):
    array = ids((12, 4, 5), "uint8")
    name = folder_of(tmp_path / "s", {f"{i:03}.tif": array[i] for i in (2, 3, 4, 6, 7, 11)})
    with pytest.warns(
        Lpa3dWarning, match=r"s/: 4 of 10 slices have no image and are read as empty \(0\): 5, 8-10; if no"
    ):
        back = io.read(name)
    expected = array.copy()
    expected[[0, 1, 5, 8, 9, 10]] = 0
    np.testing.assert_array_equal(back, expected[2:])
    with pytest.warns(Lpa3dWarning, match=r"s/:0-12: 7 of 13 slices have no image .*: 0-1, 5, 8-10, 12; if no"):
        back = io.read(f"{name}:0-12")
    np.testing.assert_array_equal(back, np.concatenate([expected, np.zeros((1, 4, 5), "uint8")]))
    with pytest.warns(Lpa3dWarning, match="1 of 3 slices has no image and is read as empty"):
        np.testing.assert_array_equal(io.read(f"{name}:4-6"), expected[4:7])
    np.testing.assert_array_equal(io.read(f"{name}:2-4"), array[2:5])
    assert note_of(f"{name}:2-4").endswith("by their numbers; 3 images with other numbers are left out")
    with pytest.raises(InputError, match="asks for slices 4 to 2; the first number must not be the larger"):
        io.read(f"{name}:4-2")
    with pytest.raises(InputError, match="no image has a number from 20 to 30; they have 2 to 11"):
        io.read(f"{name}:20-30")


def test_folder_of_times_instead_of_numbers(tmp_path):
    image = ids((4, 5), "uint8")
    name = folder_of(tmp_path / "s", {f"t{103305 + 500 * i}.png": image for i in range(3)})
    with pytest.raises(
        InputError, match=r"numbers from 103305 to 104305, of which hardly any has an image; .*:103305-104305'"
    ):
        io.read(name)
    with pytest.warns(Lpa3dWarning, match="998 of 1001 slices"):
        assert io.read(f"{name}:103305-104305").shape == (1001, 4, 5)


def test_folder_with_several_numbers_in_its_names(tmp_path):
    array = ids((12, 4, 5), "uint8")
    names = [f"slice_{i:05}_z={i * 0.008:.4f}um.png" for i in range(12)]
    np.testing.assert_array_equal(io.read(folder_of(tmp_path / "a", dict(zip(names, array, strict=True)))), array)
    two = folder_of(tmp_path / "b", {f"z{z}_c{c}.png": array[z] for z in range(3) for c in range(2)})
    with pytest.raises(InputError, match=r"holds 2 images for slice 0: z0_c0\.png, z0_c1\.png; choose one series"):
        io.read(two)
    np.testing.assert_array_equal(io.read(f"{two}*_c1.png"), array[:3])
    with pytest.raises(InputError, match=r"which give different orders, such as s1_z2\.png, s2_z1\.png"):
        io.read(folder_of(tmp_path / "c", {"s1_z2.png": array[0], "s2_z1.png": array[1]}))
    with pytest.raises(InputError, match=r"holds 2 images for slice 1: 01\.png, 1\.png"):
        io.read(folder_of(tmp_path / "d", {"1.png": array[0], "01.png": array[1]}))
    with pytest.raises(InputError, match=r"images without a number, such as a\.png, b\.png; name them .* 0001\.png"):
        io.read(folder_of(tmp_path / "e", {"a.png": array[0], "b.png": array[1]}))


def test_folder_of_two_series(tmp_path):
    array = ids((3, 4, 5), "uint8")
    name = folder_of(tmp_path / "s", {f"z{i}.png": image for i, image in enumerate(array)})
    folder_of(tmp_path / "s", {f"z{i}_mask.png": image for i, image in enumerate(array[:2])})
    with pytest.raises(
        InputError, match=r"differ in more than numbers: z0\.png \(3\), z0_mask\.png \(2\); .*"
    ) as error:
        io.read(name)
    pattern = str(error.value).split("'")[1]
    assert pattern.endswith("s/z*[0-9].png")
    np.testing.assert_array_equal(io.read(pattern), array)
    np.testing.assert_array_equal(io.read(f"{name}*_mask.png"), array[:2])
    (tmp_path / "s/z0.tif").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"5 PNG images and 1 TIFF image; choose one kind .*s/\*\.png' or .*s/\*\.tif'"
    ):
        io.read(name)


@pytest.mark.parametrize("name", ["slice.png", "slice_7.png", "fib1_007.tif"])
def test_folder_of_one_image(tmp_path, name):
    image = ids((4, 5), "uint8")
    folder = folder_of(tmp_path / "s", {name: image})
    np.testing.assert_array_equal(io.read(folder), image[np.newaxis])
    if "7" in name:
        with pytest.warns(Lpa3dWarning, match="2 of 3 slices have no image"):
            np.testing.assert_array_equal(io.read(f"{folder}:6-8")[1], image)


def test_folder_with_other_files(tmp_path):
    array = ids((2, 4, 5), "uint8")
    name = folder_of(tmp_path / "s", {f"z{i}.png": image for i, image in enumerate(array)})
    (tmp_path / "s/z2.png").mkdir()
    for other in ("Thumbs.db", "meta.json", ".DS_Store", "._z0.png", "z0.jpg", "zz.txt"):
        (tmp_path / "s" / other).write_bytes(b"no image")
    np.testing.assert_array_equal(io.read(name), array)
    assert note_of(name).endswith("; other files are ignored: Thumbs.db, meta.json, z0.jpg, z2.png, zz.txt")
    for image in ("z0.png", "z1.png"):
        (tmp_path / "s" / image).unlink()
    with pytest.raises(
        InputError, match=r"holds no PNG or TIFF image, but Thumbs\.db, .* JPEG and WebP change the values"
    ):
        io.read(name)
    (tmp_path / "outer").mkdir()
    io.write(tmp_path / "outer/a.zarr", array)
    with pytest.raises(InputError, match=r"but a\.zarr; if that is the volume, pass .*outer/a\.zarr"):
        io.read(tmp_path / "outer")


def test_folder_that_is_a_store_is_read_as_one(tmp_path):
    array = ids((2, 4, 5), "uint8")
    io.write(tmp_path / "a.zarr", array)
    os.rename(tmp_path / "a.zarr", tmp_path / "store")
    save(tmp_path / "store/z0.png", array[0])
    with io.open_volume(tmp_path / "store") as volume:
        assert volume.format == "zarr"


def test_folder_of_different_sizes_or_kinds(tmp_path):
    small, large = np.zeros((4, 5), "uint8"), np.zeros((4, 6), "uint8")
    with pytest.raises(InputError, match=r"different sizes: 2 as z0\.png \(4 x 5\), but z1\.png \(4 x 6\); all slices"):
        io.read(folder_of(tmp_path / "a", {"z0.png": small, "z1.png": large, "z2.png": small}))
    for other in (small.astype(bool), small.astype("float32"), small.astype("int64")):
        name = folder_of(tmp_path / "b", {"z0.tif": small.astype("uint64"), "z1.tif": other})
        if other.dtype.kind == "b":
            folder_of(tmp_path / "b", {"z0.tif": small})
        with pytest.raises(InputError, match=rf"of different kinds: 1 as z0\.tif .* but z1\.tif .*{other.dtype}"):
            io.read(name)
    name = folder_of(tmp_path / "c", {"z0.png": small, "z1.png": small})
    Image.fromarray(small).convert("P").save(tmp_path / "c/z1.png")
    with pytest.raises(InputError, match=r"z0\.png \(integers\), but z1\.png \(palette\)"):
        io.read(name)


@pytest.mark.parametrize(
    ("suffix", "dtypes", "common"),
    [
        ("png", ("uint8", "uint16"), "uint16"),
        ("tif", ("uint16", "uint32", "uint8"), "uint32"),
        ("tif", ("uint32", "int32"), "int64"),
    ],
)
def test_folder_of_integers_of_different_widths(tmp_path, suffix, dtypes, common):
    images = {f"{i}.{suffix}": ids((4, 5), dtype) for i, dtype in enumerate(dtypes)}
    name = folder_of(tmp_path / "s", images)
    back = io.read(name)
    assert back.dtype == common
    for got, image in zip(back, images.values(), strict=True):
        np.testing.assert_array_equal(got, image)
    assert note_of(name).endswith(f"; {' and '.join(sorted(dtypes))} are read as {common}")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_images_hold_indices(tmp_path, bits):
    index = (np.arange(15).reshape(3, 5) % 2**bits).astype("uint8")
    image = Image.fromarray(index).convert("P")
    image.putdata(index.ravel().tolist())
    image.putpalette([(37 * i) % 256 for i in range(3 * min(2**bits, 256))])
    image.save(tmp_path / "a1.png", bits=bits, transparency=0)
    assert _scan_png(tmp_path / "a1.png").palette
    np.testing.assert_array_equal(io.read(tmp_path), index[np.newaxis])
    assert "palette images: the index of a colour is the value" in note_of(str(tmp_path))


def test_palette_tiff_holds_indices(tmp_path):
    index = ids((4, 5), "uint8")
    save(tmp_path / "a1.tif", index, photometric="palette", colormap=np.zeros((3, 256), "uint16"))
    np.testing.assert_array_equal(io.read(tmp_path), index[np.newaxis])
    assert "palette" in note_of(str(tmp_path))


def test_gray_of_few_bits_is_refused(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes([0, 0x12])))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))
    with pytest.raises(
        InputError, match=r"a\.png has 4 bits a pixel, whose values are ambiguous; save it with 8 or 16"
    ):
        io.read(tmp_path)


@pytest.mark.parametrize(
    ("suffix", "channels", "said"),
    [
        ("png", 2, "gray and transparency"),
        ("png", 3, "RGB"),
        ("png", 4, "RGBA"),
        ("tif", 3, "3 channels"),
        ("tif", 4, "4 channels"),
    ],
)
def test_colour_images_are_refused(tmp_path, suffix, channels, said):
    rgb = ids((4, 5, channels), "uint8")
    options = {"photometric": "rgb"} if suffix == "tif" else {}
    save(tmp_path / f"z0.{suffix}", np.zeros((4, 5), "uint8"))
    save(tmp_path / f"z1.{suffix}", rgb, **options)
    with pytest.raises(InputError, match=rf"z1\.{suffix} is a colour image \({said}\), but labels .*tifffile\.imwrite"):
        io.read(tmp_path)


def test_colours_become_ids_as_the_message_says(tmp_path):
    rgb = np.zeros((2, 2, 3), "uint8")
    rgb[0, 0], rgb[0, 1], rgb[1, 0] = (1, 2, 3), (255, 255, 255), (3, 2, 1)
    save(tmp_path / "z0.png", rgb)
    with pytest.raises(InputError) as error:
        io.read(tmp_path)
    code = str(error.value).partition("ids = ")[2].partition(";")[0]
    found = eval(code, {"np": np, "rgb": rgb})
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found, [[0x010203, 0xFFFFFF], [0x030201, 0]])


@pytest.mark.parametrize(
    "options", [{"photometric": "minisblack"}, {"imagej": True}, {"photometric": "minisblack", "ome": True}]
)
def test_stack_in_a_folder_is_refused(tmp_path, options):
    save(tmp_path / "a1.tif", ids((3, 4, 5), "uint8"), **options)
    with pytest.raises(InputError, match=r"a1\.tif holds 3 images, but in a folder each file must be one slice"):
        io.read(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_broken_image_is_named(tmp_path, suffix):
    array = ids((3, 40, 50), "uint8")
    name = folder_of(tmp_path / "s", {f"z{i}.{suffix}": image for i, image in enumerate(array)})
    broken = tmp_path / f"s/z1.{suffix}"
    whole = broken.read_bytes()
    with io.open_volume(name) as volume:
        save(broken, array[1, :1])
        with pytest.raises(
            InputError, match=rf"z1\.{suffix} has changed since it was opened: its shape is now \(1, 50\)"
        ):
            volume.read()
    broken.write_bytes(whole[:1000])
    with pytest.raises(InputError, match=rf"(cannot read .*)?z1\.{suffix}"):
        io.read(name)
    broken.write_bytes(b"GIF89a or whatever else it is")
    with pytest.raises(InputError, match=rf"z1\.{suffix}"):
        io.read(name)
    broken.unlink()
    broken.symlink_to("nowhere")
    with pytest.raises(InputError, match=rf"cannot read .*z1\.{suffix}: No such file"):
        io.read(name)


def test_large_image_is_no_attack(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    image = ids((4, 5), "uint8")
    save(tmp_path / "z0.png", image)
    np.testing.assert_array_equal(io.read(tmp_path), image[np.newaxis])


def test_folder_is_read_in_slabs(tmp_path, monkeypatch):
    monkeypatch.setattr("lpa3d.files.volume.SLAB_BYTES", 1)
    monkeypatch.setenv("LPA3D_NUM_THREADS", "2")
    array = ids((7, 4, 5), "uint16")
    name = folder_of(tmp_path / "s", {f"z{i}.png": image for i, image in enumerate(array) if i != 4})
    array[4] = 0
    with pytest.warns(Lpa3dWarning, match="1 of 7 slices"):
        volume = io.open_volume(name)
    with volume:
        done: list[float] = []
        np.testing.assert_array_equal(volume.read(done.append), array)
        assert done == [2 / 7, 4 / 7, 6 / 7, 1.0]
        assert [hi for _, hi, _ in volume.slabs()] == [2, 4, 6, 7]


def test_images_are_not_written(tmp_path):
    image = ids((4, 5), "uint8")
    for name in (folder_of(tmp_path / "s", {"z0.png": image}), f"{tmp_path}/new/", f"{tmp_path}/out_*.tif"):
        with pytest.raises(InputError, match=r"folders of images are only read; write a \.tif, .* or a \.zarr"):
            io.write(name, image, overwrite=True)
    io.write(tmp_path / "cell[1].tif", image)
    np.testing.assert_array_equal(io.read(tmp_path / "cell[1].tif"), image)
    (tmp_path / "t:0-1").mkdir()
    save(tmp_path / "t:0-1/z0.png", image)
    assert io.read(tmp_path / "t:0-1").shape == (1, 4, 5)


def test_pillow_is_needed_for_png_only(tmp_path, monkeypatch):
    image = ids((4, 5), "uint8")
    png, tif = folder_of(tmp_path / "p", {"0.png": image}), folder_of(tmp_path / "t", {"0.tif": image})
    monkeypatch.setitem(sys.modules, "PIL.PngImagePlugin", None)
    with pytest.raises(io.LibraryError, match=r"pip install 'lpa3d\[png\]'"):
        io.open_volume(png)
    assert io.read(tif).shape == (1, 4, 5)


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.npy", "does not exist"),
        ("missing.zarr", "does not exist"),
        ("missing.h5:/a", r"missing\.h5 does not exist"),
        ("a.png", "has no suffix that is known; known are"),
        ("folder.tif", "is a folder"),
        ("folder", "holds no PNG or TIFF image: it is empty"),
        ("folder/*.png", r"holds no PNG or TIFF image named \*\.png$"),
        ("nothing", "is no folder and has no suffix that is known"),
        ("nothing/", "nothing does not exist"),
        ("nothing/*.png", "nothing does not exist"),
        ("line.npy/", r"line\.npy is no folder"),
        ("broken.npy", r"cannot read .*broken\.npy: "),
        ("broken.nii.gz", r"cannot read .*broken\.nii\.gz: "),
        ("broken.tif", r"cannot read .*broken\.tif: "),
        ("broken.h5", r"cannot read .*broken\.h5: "),
        ("broken.zarr", "is no zarr array"),
        ("empty.zarr", "is no zarr array"),
        ("objects.npy", "Python objects"),
        ("line.npy", r"has shape \(3,\); \(Z, Y, X\) or \(Y, X\) is needed"),
        ("four.npy", r"has shape \(2, 1, 1, 1\)"),
    ],
)
def test_unreadable_inputs(tmp_path, name, message):
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.zarr").mkdir()
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr/zarr.json").write_text("{")
    for suffix in ("npy", "nii.gz", "tif", "h5"):
        (tmp_path / f"broken.{suffix}").write_bytes(b"no such thing")
    np.save(tmp_path / "objects.npy", np.array([[None]]), allow_pickle=True)
    np.save(tmp_path / "line.npy", np.arange(3))
    np.save(tmp_path / "four.npy", np.zeros((2, 1, 1, 1)))
    with pytest.raises(InputError, match=message):
        io.read(f"{tmp_path}/{name}")


def test_truncated_file(tmp_path):
    io.write(tmp_path / "a.nii.gz", ids((20, 30, 40), "uint32"))
    whole = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cannot read .*a\.nii\.gz: "):
        io.read(tmp_path / "a.nii.gz")


def test_url_is_refused():
    with pytest.raises(InputError, match="is a URL"):
        io.read("s3://bucket/a.nii.gz")


@pytest.mark.parametrize(
    ("suffix", "module", "extra"),
    [("zarr", "zarr", "zarr"), ("nii.gz", "nibabel", "nifti"), ("tif", "tifffile", "tiff"), ("h5", "h5py", "hdf5")],
)
def test_missing_library_says_what_to_install(tmp_path, monkeypatch, suffix, module, extra):
    array = ids((2, 3, 4), "uint8")
    io.write(tmp_path / f"a.{suffix}", array)
    monkeypatch.setitem(sys.modules, module, None)
    for call in (lambda: io.read(tmp_path / f"a.{suffix}"), lambda: io.write(tmp_path / f"b.{suffix}", array)):
        with pytest.raises(io.LibraryError, match=rf"pip install 'lpa3d\[{extra}\]'"):
            call()
    assert names(tmp_path) == [f"a.{suffix}"]


def test_import_loads_no_file_library():
    code = (
        "import sys, lpa3d.io; print([m for m in ('zarr', 'nibabel', 'tifffile', 'h5py', 'PIL') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# ----------------------------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_existing_output(tmp_path, suffix):
    old, new = ids((2, 3, 4), "uint8"), ids((3, 4, 5), "uint32")
    name = tmp_path / f"a.{suffix}"
    io.write(name, old)
    with pytest.raises(InputError, match=r"exists; pass overwrite=True"):
        io.write(name, new)
    np.testing.assert_array_equal(io.read(name), old)
    io.write(name, new, overwrite=True)
    np.testing.assert_array_equal(io.read(name), new)
    assert names(tmp_path) == [name.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_failed_write_leaves_the_old_output(tmp_path, suffix, monkeypatch):
    old = ids((2, 3, 4), "uint8")
    name = tmp_path / f"a.{suffix}"
    io.write(name, old)

    def fail(target, array, geometry, progress):
        writer(target, array, geometry, progress)
        raise OSError(28, "No space left on device")

    kind = locate(str(name)).format
    writer = WRITERS[kind]
    monkeypatch.setitem(WRITERS, kind, fail)
    for target in (name, tmp_path / f"b.{suffix}"):
        with pytest.raises(io.FileError, match=r"cannot write .*: No space left on device"):
            io.write(target, ids((3, 4, 5), "uint32"), overwrite=True)
    assert names(tmp_path) == [name.name]
    np.testing.assert_array_equal(io.read(name), old)


@pytest.mark.parametrize("suffix", ["zarr", "npy"])
def test_failed_rename_brings_the_old_output_back(tmp_path, suffix, monkeypatch):
    old = ids((2, 3, 4), "uint8")
    io.write(tmp_path / f"a.{suffix}", old)
    rename = Path.rename

    def fail(self, target):
        if self.name.startswith(TEMPORARY):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="Input/output error"):
        io.write(tmp_path / f"a.{suffix}", ids((3, 4, 5), "uint8"), overwrite=True)
    monkeypatch.undo()
    assert names(tmp_path) == [f"a.{suffix}"]
    np.testing.assert_array_equal(io.read(tmp_path / f"a.{suffix}"), old)


@pytest.mark.parametrize("suffix", ["zarr", "npy"])
def test_a_complete_output_exists_at_every_step(tmp_path, suffix, monkeypatch):
    """Whatever call on the file system is the last before a crash, the old or the new labels are on the disk whole."""
    old, new = ids((2, 3, 4), "uint8"), ids((3, 4, 5), "uint8")
    io.write(tmp_path / f"a.{suffix}", old)
    seen = []

    def look():
        whole = []
        for path in tmp_path.iterdir():
            if path.name == f"a.{suffix}" or path.name.startswith((TEMPORARY, ASIDE)):
                try:
                    found = io.read(path)
                except InputError:
                    continue
                whole.append(np.array_equal(found, old) or np.array_equal(found, new))
        seen.append(any(whole))

    def spied(function):
        def spy(*args, **kwargs):
            look()
            result = function(*args, **kwargs)
            look()
            return result

        return spy

    for name in ("rename", "replace"):
        monkeypatch.setattr(Path, name, spied(getattr(Path, name)))
    io.write(tmp_path / f"a.{suffix}", new, overwrite=True)
    monkeypatch.undo()
    assert len(seen) >= 2
    assert all(seen)
    np.testing.assert_array_equal(io.read(tmp_path / f"a.{suffix}"), new)


def test_output_that_appears_meanwhile_is_not_replaced(tmp_path):
    mine, theirs = ids((2, 3, 4), "uint8"), ids((3, 4, 5), "uint8")
    with Outputs() as outputs:
        io.plan(outputs, tmp_path / "a.npy", mine.shape).write(mine, io.Geometry())
        np.save(tmp_path / "a.npy", theirs)
        with pytest.raises(Lpa3dError, match="appeared while the work ran; the result was kept as") as error:
            outputs.commit()
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), theirs)
    np.testing.assert_array_equal(np.load(str(error.value).rpartition(" ")[2]), mine)


def test_folder_is_checked(tmp_path):
    with pytest.raises(InputError, match=r"does not exist; make it with: mkdir -p"):
        io.write(tmp_path / "no/a.npy", ids((2, 3, 4), "uint8"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not a folder"):
        io.write(tmp_path / "file/a.npy", ids((2, 3, 4), "uint8"))
    (tmp_path / "a.npy").mkdir()
    with pytest.raises(InputError, match="exists and is no file"):
        io.write(tmp_path / "a.npy", ids((2, 3, 4), "uint8"), overwrite=True)


def test_read_only_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="is not writable"):
        io.write(tmp_path / "a.npy", ids((2, 3, 4), "uint8"))


def test_devices_are_never_replaced():
    with pytest.raises(InputError, match="has no suffix"):
        io.write("/dev/null", ids((2, 3, 4), "uint8"), overwrite=True)


@pytest.mark.parametrize("how", ["same", "symbolic", "hard", "dataset"])
def test_output_is_no_input(tmp_path, how):
    source = tmp_path / "a.h5"
    io.write(source, ids((2, 3, 4), "uint8"))
    name = str(tmp_path / "b.h5")
    if how == "same":
        name = f"{tmp_path}/../{tmp_path.name}/a.h5"
    elif how == "symbolic":
        os.symlink(source, name)
    elif how == "hard":
        os.link(source, name)
    else:
        name = f"{source}:/other"
    before = source.read_bytes()
    with pytest.raises(InputError, match="is also an input"):
        io.write(name, ids((2, 3, 4), "uint8"), like=source, overwrite=True)
    assert source.read_bytes() == before


def test_symbolic_link_is_followed(tmp_path):
    (tmp_path / "far").mkdir()
    os.symlink(tmp_path / "far/a.npy", tmp_path / "a.npy")
    io.write(tmp_path / "a.npy", ids((2, 3, 4), "uint8"))
    assert (tmp_path / "a.npy").is_symlink()
    assert names(tmp_path / "far") == ["a.npy"]


def test_zarr_output_in_groups(tmp_path):
    array = ids((2, 3, 4), "uint8")
    io.write(tmp_path / "a.zarr/x/y", array, spacing=(40, 8, 8), unit="nm")
    assert names(tmp_path) == ["a.zarr"]
    io.write(tmp_path / "a.zarr/x/z", array)
    io.write(tmp_path / "a.zarr/v/w", array, like=tmp_path / "a.zarr/x/y")
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="r")
    assert sorted(name for name, _ in group.members(max_depth=None)) == [
        *("v", "v/w", "v/w/0", "x", "x/y", "x/y/0", "x/z", "x/z/0")
    ]
    assert group["v/w/0"].attrs.asdict() == {"axes": ["z", "y", "x"], "spacing": [40, 8, 8], "unit": "nm"}
    assert group["x/y/0"].metadata.zarr_format == 3
    with pytest.raises(InputError, match="is a zarr group, so it is never replaced"):
        io.write(tmp_path / "a.zarr", array, overwrite=True)
    with pytest.raises(InputError, match="is an array, in which no zarr array can lie"):
        io.write(tmp_path / "a.zarr/x/y/0/z", array, overwrite=True)


def test_zarr_output_spares_what_it_does_not_know(tmp_path):
    array = ids((2, 3, 4), "uint8")
    (tmp_path / "thesis.zarr").mkdir()
    (tmp_path / "thesis.zarr/chapter1").write_text("precious")
    with pytest.raises(InputError, match="is no zarr array, so it is never replaced"):
        io.write(tmp_path / "thesis.zarr", array, overwrite=True)
    with pytest.raises(InputError, match="is no zarr group"):
        io.write(tmp_path / "thesis.zarr/a", array)
    zarr.create_group(str(tmp_path / "old.zarr"), zarr_format=2)
    io.write(tmp_path / "old.zarr/a", array)
    assert zarr.open_array(str(tmp_path / "old.zarr/a/0")).metadata.zarr_format == 2


def test_hdf5_output_spares_other_datasets(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = ids((2, 3, 4), "uint8")
    with pytest.raises(InputError, match="also holds /raw, and an HDF5 file is replaced as a whole"):
        io.write(f"{tmp_path}/a.h5:/labels", ids((2, 3, 4), "uint8"), overwrite=True)
    io.write(f"{tmp_path}/a.h5:/raw", ids((3, 4, 5), "uint8"), overwrite=True)
    assert io.read(tmp_path / "a.h5").shape == (3, 4, 5)


def test_two_outputs_appear_together(tmp_path):
    array = ids((2, 3, 4), "uint8")
    with Outputs() as outputs:
        one = io.plan(outputs, tmp_path / "a.npy", array.shape)
        two = io.plan(outputs, tmp_path / "b.zarr", array.shape)
        for again in ("a.npy", "b.zarr"):
            with pytest.raises(InputError, match="would be one new file or store"):
                io.plan(outputs, tmp_path / again, array.shape)
        one.write(array, io.Geometry())
        two.write(array, io.Geometry())
        assert not (tmp_path / "a.npy").exists()
        outputs.commit()
    assert names(tmp_path) == ["a.npy", "b.zarr"]


@pytest.mark.parametrize("suffixes", [("npy", "tif"), ("zarr", "npy"), ("npy", "zarr")])
def test_a_pair_that_cannot_be_published_leaves_the_former_one(tmp_path, suffixes, monkeypatch):
    old, new = ids((2, 3, 4), "uint8"), ids((3, 4, 5), "uint8")
    paths = [tmp_path / f"{name}.{suffix}" for name, suffix in zip("ab", suffixes, strict=True)]
    for path in paths:
        io.write(path, old)
    replace = Path.replace

    def fail(self, target):
        if target == paths[1]:
            # What the first replaced is there until the second is in place.
            np.testing.assert_array_equal(io.read(paths[0]), new)
            raise OSError(5, "Input/output error")
        return replace(self, target)

    with Outputs(overwrite=True) as outputs:
        for path in paths:
            io.plan(outputs, path, new.shape).write(new, io.Geometry())
        monkeypatch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="Input/output error"):
            outputs.commit()
    monkeypatch.undo()
    assert names(tmp_path) == [path.name for path in paths]
    for path in paths:
        np.testing.assert_array_equal(io.read(path), old)


def test_of_a_pair_one_appears_meanwhile(tmp_path):
    mine, theirs = ids((2, 3, 4), "uint8"), ids((3, 4, 5), "uint8")
    with Outputs() as outputs:
        for name in "ab":
            io.plan(outputs, tmp_path / f"{name}.npy", mine.shape).write(mine, io.Geometry())
        np.save(tmp_path / "b.npy", theirs)
        with pytest.raises(Lpa3dError, match=r"b\.npy appeared while the work ran") as error:
            outputs.commit()
    assert not (tmp_path / "a.npy").exists()
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), theirs)
    for path in tmp_path.glob(f"{TEMPORARY}*"):
        assert str(path) in str(error.value)
        np.testing.assert_array_equal(np.load(path), mine)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_cancelled_output_is_removed(tmp_path, suffix):
    array = ids((2, 3, 4), "uint8")
    with Outputs() as outputs:
        target = io.plan(outputs, tmp_path / f"a.{suffix}", array.shape)
        target.write(array, io.Geometry())
        outputs.cancel()
        with pytest.raises(Cancelled):
            target.write(array, io.Geometry())
        with pytest.raises(Cancelled):
            outputs.commit()
    assert names(tmp_path) == []
