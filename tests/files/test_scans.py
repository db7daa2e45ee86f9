"""MRC, NRRD, MetaImage and .npz files, written by their own libraries, are read as their numbers mean it."""

from __future__ import annotations

import gzip
import itertools
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpa3d import io
from lpa3d.errors import InputError, Lpa3dWarning

SPACING = {"z": 40.0, "y": 8.0, "x": 4.0}
ORDERS = ["".join(order) for order in itertools.permutations("zyx")]


def draw_array(draw: Any, dtypes: list[str], ndim: int = 3) -> Any:
    shape = [draw(st.integers(1, 4)) for _ in range(ndim)]
    random = np.random.default_rng(draw(st.integers(0, 99)))
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    if dtype.kind == "f":
        return random.integers(0, 1000, shape).astype(dtype)
    info = np.iinfo(dtype)
    return random.integers(info.min, info.max, shape, dtype.newbyteorder("="), endpoint=True).astype(dtype)


def as_zyx(array: Any, axes: str) -> Any:
    """Return an array whose axes are in that order as (z, y, x)."""
    return array.transpose([axes.index(axis) for axis in "zyx"])


def check(path: Any, meant: Any, spacing: Any = (40.0, 8.0, 4.0), unit: str | None = None) -> None:
    with io.open_volume(path) as volume:
        found = volume.read()
        assert (volume.shape, volume.dtype) == (found.shape, found.dtype)
        np.testing.assert_array_equal(found, meant)
        if spacing is not None:
            assert volume.geometry.spacing == pytest.approx(spacing)
        if unit is not None:
            assert volume.geometry.unit == unit
        for box in volume.parts()[0]:
            np.testing.assert_array_equal(volume.read_box(box), meant[box])
        inner = tuple(slice(side // 2, side) for side in meant.shape)
        np.testing.assert_array_equal(volume.read_box(inner), meant[inner])


# --------------------------------------------------------------------------------------------------------------- MRC


def write_mrc(path: Any, array: Any, axes: str = "zyx", size: dict[str, float] = SPACING) -> Any:
    mrcfile = pytest.importorskip("mrcfile")
    new = mrcfile.new(path, compression="gzip" if str(path).endswith("gz") else None)
    with new as file:
        file.set_data(array)
        file.set_volume()
        file.header.maps, file.header.mapr, file.header.mapc = (" xyz".index(axis) for axis in axes)
        for axis in "xyz":
            file.header[f"m{axis}"] = array.shape[axes.index(axis)]
            file.header.cella[axis] = size[axis] * array.shape[axes.index(axis)]
    return path


@given(data=st.data())
def test_mrc(data, tmp_path_factory):
    array = draw_array(data.draw, ["i1", "i2", "u2", "f4"])
    axes, suffix = data.draw(st.sampled_from(ORDERS)), data.draw(st.sampled_from(["mrc", "mrc.gz", "rec"]))
    path = write_mrc(tmp_path_factory.mktemp("mrc") / f"a.{suffix}", array, axes)
    check(path, as_zyx(array, axes), unit="angstrom")


def patch_mrc(path: Any, **words: int) -> Any:
    """Change words of the header: the stamp of IMOD, its flags, the version, the bytes of the extended header."""
    places = {"stamp": 152, "flags": 156, "version": 108, "extended": 92, "mode": 12}
    raw = bytearray(path.read_bytes())
    for name, value in words.items():
        raw[places[name] : places[name] + 4] = int(value).to_bytes(4, "little")
    path.write_bytes(raw)
    return path


def test_mrc_bytes_with_and_without_a_sign(tmp_path):
    array = np.array([[[0, 1, -1, -128]]], np.int8)
    path = write_mrc(tmp_path / "a.mrc", array)
    check(path, array)
    check(patch_mrc(path, stamp=1146047817, flags=1), array)
    check(patch_mrc(path, flags=0), array.view(np.uint8))
    patch_mrc(path, stamp=0, version=0)
    with pytest.raises(InputError, match="whether they have a sign: -128 may be 128"):
        io.read(path)
    path = patch_mrc(write_mrc(tmp_path / "b.mrc", np.abs(array[..., :3])), version=0)
    check(path, np.array([[[0, 1, 1]]]))


def test_mrc_that_is_incomplete_or_of_another_kind(tmp_path):
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    path = write_mrc(tmp_path / "a.mrc", array)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match="is incomplete: it has 1,070 bytes, but its voxels reach to 1,072"):
        io.read(path)
    path = write_mrc(tmp_path / "b.mrc.gz", array)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-2]))
    with pytest.raises(InputError, match=r"cannot read .*b\.mrc\.gz"):
        io.read(path)
    path = write_mrc(tmp_path / "c.mrc", array)
    with pytest.raises(InputError, match="4-bit numbers"):
        io.read(patch_mrc(path, mode=101))
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"cannot read .*c\.mrc"):
        io.read(path)


def test_mrc_extended_header_and_place(tmp_path):
    mrcfile = pytest.importorskip("mrcfile")
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    path = write_mrc(tmp_path / "a.mrc", array)
    with mrcfile.open(path, "r+") as file:
        file.set_extended_header(np.zeros(256, "V1"))
        file.header.origin = (1.0, 2.0, 3.0)
    check(path, array)
    assert io.open_volume(path).geometry.offset == (3.0, 2.0, 1.0)
    path = write_mrc(tmp_path / "b.mrc", array)
    with mrcfile.open(path, "r+") as file:
        file.nstart = (5, 0, 1)
    assert io.open_volume(path).geometry.offset == (40.0, 0.0, 20.0)


@pytest.mark.parametrize(("high", "dtype"), [(100, "i2"), (40_000, "u2"), (70_000, "f4")])
def test_mrc_holds_ids_where_it_can(tmp_path, high, dtype):
    ids = np.array([[[0, high]]], np.uint32)
    io.write(tmp_path / "a.mrc", ids, spacing=(40, 8, 4), unit="nm")
    check(tmp_path / "a.mrc", ids, (400, 80, 40), "angstrom")
    assert io.read(tmp_path / "a.mrc").dtype == dtype
    with pytest.raises(InputError, match=r"exact to 16,777,216.*write a \.zarr"):
        io.write(tmp_path / "b.mrc", ids * 1000 + 2**24)
    assert not (tmp_path / "b.mrc").exists()


def test_a_unit_that_is_not_known_is_told_of(tmp_path):
    with pytest.warns(Lpa3dWarning, match="an MRC file has its voxel size in angstrom, and that of 3 2 1"):
        io.write(tmp_path / "a.mrc", np.ones((2, 3, 4), np.int8), spacing=(3, 2, 1))


# -------------------------------------------------------------------------------------------------------------- NRRD

NRRD = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", ">u2", ">i4"]


@given(data=st.data())
def test_nrrd(data, tmp_path_factory):
    nrrd = pytest.importorskip("nrrd")
    draw = data.draw
    array, axes = draw_array(draw, NRRD), draw(st.sampled_from(ORDERS))
    form = draw(st.sampled_from(["directions", "labels", "spacings"]))
    sign = {axis: draw(st.sampled_from([1, -1])) if form == "directions" else 1 for axis in axes}
    files = axes[::-1]  # the fastest first
    # The last digits of text that pynrrd writes of 64-bit integers are lost.
    exact = array.dtype.kind == "f" or array.dtype.itemsize <= 4
    header: dict[str, Any] = {"encoding": draw(st.sampled_from(["raw", "gzip", "bz2", *["ascii"] * exact]))}
    channel = draw(st.booleans())
    if form == "directions":
        steps = [[sign[axis] * SPACING[axis] * (axis == way) for way in "xyz"] for axis in files]
        header |= {"space dimension": 3, "space directions": np.array(steps), "space units": ["nm", "nm", "nm"]}
        header["space origin"] = np.array([1.0, 2.0, 3.0])
        if channel:
            header["space directions"] = np.array([[np.nan] * 3, *steps])
            header["kinds"] = ["vector", "domain", "domain", "domain"]
    else:
        files = files if form == "labels" else "xyz"
        axes = files[::-1]
        header |= {"spacings": [SPACING[axis] for axis in files], "units": ["nm"] * 3}
        if form == "labels":
            header["labels"] = list(files)
        if channel:
            header["spacings"] = [np.nan, *header["spacings"]]
            header["units"] = ["", *header["units"]]
            header["kinds"] = ["list", "domain", "domain", "domain"]
            if form == "labels":
                header["labels"] = ["channel", *header["labels"]]
    stored = np.stack([array, array[::-1]], axis=-1) if channel else array
    folder = tmp_path_factory.mktemp("nrrd")
    detached = draw(st.booleans())
    path = folder / ("a.nhdr" if detached else "a.nrrd")
    nrrd.write(str(path), stored, header, detached_header=detached, index_order="C")
    place = f"{path}:c=0" if channel else path
    check(place, as_zyx(array, axes), unit="nm")
    with io.open_volume(place) as volume:
        if form == "directions":
            assert volume.geometry.offset == (3.0, 2.0, 1.0)
            assert np.diag(volume.geometry.directions).tolist() == [sign[axis] for axis in "xyz"]
    if channel:
        with pytest.raises(InputError, match="c is a channel axis"):
            io.read(path)


def test_nrrd_that_is_incomplete(tmp_path):
    nrrd = pytest.importorskip("nrrd")
    array = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    for number, encoding in enumerate(("raw", "gzip", "bz2", "ascii")):
        path = tmp_path / f"{number}.nrrd"
        nrrd.write(str(path), array, {"encoding": encoding})
        path.write_bytes(path.read_bytes()[:-5])
        with pytest.raises(InputError, match=r"is incomplete|cannot read"):
            io.read(path)
    nrrd.write(str(tmp_path / "a.nhdr"), array, {"encoding": "raw"}, detached_header=True)
    (tmp_path / "a.raw").unlink()
    with pytest.raises(InputError, match=r"has its voxels in .*a\.raw, which does not exist"):
        io.read(tmp_path / "a.nhdr")
    (tmp_path / "b.nrrd").write_bytes(b"")
    with pytest.raises(InputError, match=r"b\.nrrd is empty, so it is no nrrd file; known are"):
        io.read(tmp_path / "b.nrrd")


def test_nrrd_that_is_written_is_read_by_its_library(tmp_path):
    nrrd = pytest.importorskip("nrrd")
    for number, array in enumerate((np.arange(24, dtype=np.int64).reshape(2, 3, 4), np.arange(6, dtype="f4")[None])):
        io.write(tmp_path / f"{number}.nrrd", array, spacing=(40, 8, 4), unit="nm")
        found, header = nrrd.read(str(tmp_path / f"{number}.nrrd"), index_order="C")
        np.testing.assert_array_equal(found, array)
        if array.ndim == 3:
            assert header["space directions"].tolist() == np.diag([4.0, 8.0, 40.0]).tolist()
            assert header["space units"] == ["nm"] * 3


# --------------------------------------------------------------------------------------------------------- MetaImage

META = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]


@given(data=st.data())
def test_metaimage(data, tmp_path_factory):
    itk = pytest.importorskip("SimpleITK")
    draw = data.draw
    array, axes = draw_array(draw, META), draw(st.sampled_from(ORDERS))
    sign = {axis: draw(st.sampled_from([1, -1])) for axis in axes}
    image = itk.GetImageFromArray(array)
    image.SetSpacing([SPACING[axis] for axis in axes[::-1]])
    # The columns say where the axes point to.
    image.SetDirection(np.array([[sign[a] * (a == way) for a in axes[::-1]] for way in "xyz"], float).ravel().tolist())
    image.SetOrigin([1.0, 2.0, 3.0])
    path = tmp_path_factory.mktemp("meta") / draw(st.sampled_from(["a.mha", "a.mhd"]))
    itk.WriteImage(image, str(path), draw(st.booleans()))
    check(path, as_zyx(array, axes))
    with io.open_volume(path) as volume:
        # To the right and to the front, where ITK has left and back.
        assert volume.geometry.offset == (3.0, -2.0, -1.0)
        assert np.diag(volume.geometry.directions).tolist() == [-sign["x"], -sign["y"], sign["z"]]


def test_metaimage_that_is_written_is_read_by_itk(tmp_path):
    itk = pytest.importorskip("SimpleITK")
    random = np.random.default_rng(0)
    for dtype in META:
        array = random.integers(0, 100, (2, 3, 4)).astype(dtype)
        io.write(tmp_path / f"{dtype}.mha", array, spacing=(40, 8, 4), unit="nm")
        image = itk.ReadImage(str(tmp_path / f"{dtype}.mha"))
        found = itk.GetArrayFromImage(image)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
        assert image.GetSpacing() == (4.0, 8.0, 40.0)


META_HEAD = "ObjectType = Image\nNDims = 3\nDimSize = 4 3 2\nElementSpacing = 4 8 40\nElementType = {kind}\n"


def test_metaimage_by_hand(tmp_path):
    """What ITK does not write: one file a slice, text, big endian, a header that is skipped, values that are coded."""
    array = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    head = META_HEAD.format(kind="MET_USHORT")
    for z in range(2):
        array[z].tofile(tmp_path / f"s{z + 1:02}.raw")
    array.astype(">u2").tofile(tmp_path / "big.raw")
    (tmp_path / "late.raw").write_bytes(b"12345" + array.tobytes())
    (tmp_path / "text.raw").write_text(" ".join(map(str, array.ravel())))
    ends = {
        "list": "ElementDataFile = LIST\ns01.raw\ns02.raw\n",
        "pattern": "ElementDataFile = s%02d.raw 1 2 1\n",
        "big": "ElementByteOrderMSB = True\nElementDataFile = big.raw\n",
        "late": "HeaderSize = -1\nElementDataFile = late.raw\n",
        "skip": "HeaderSize = 5\nElementDataFile = late.raw\n",
        "text": "BinaryData = False\nElementDataFile = text.raw\n",
    }
    for name, end in ends.items():
        (tmp_path / f"{name}.mhd").write_text(head + end)
        check(tmp_path / f"{name}.mhd", array)
    slope = "ElementToIntensityFunctionSlope = 2\nElementToIntensityFunctionOffset = 1\n"
    (tmp_path / "coded.mhd").write_text(head + slope + ends["pattern"])
    check(tmp_path / "coded.mhd", array * 2 + 1)


def test_metaimage_that_is_incomplete(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / "a.mha"
    io.write(path, array)
    whole = path.read_bytes()
    path.write_bytes(whole[:-6])
    with pytest.raises(InputError, match=r"incomplete|cannot read"):
        io.read(path)
    path.write_bytes(whole[:40])
    with pytest.raises(InputError, match="its header was cut off"):
        io.read(path)
    head = META_HEAD.format(kind="MET_UCHAR")
    path.write_bytes((head + "ElementDataFile = LOCAL\n").encode() + array.tobytes()[:-1])
    with pytest.raises(InputError, match="is incomplete"):
        io.read(path)
    (tmp_path / "b.mhd").write_text(head + "ElementDataFile = LIST\ns01.raw\ns02.raw\n")
    with pytest.raises(InputError, match=r"voxels in .*s01\.raw, which does not exist"):
        io.read(tmp_path / "b.mhd")
    (tmp_path / "c.mhd").write_text(META_HEAD.format(kind="MET_LONG") + "ElementDataFile = s01.raw\n")
    with pytest.raises(InputError, match="MET_LONG, which is not read"):
        io.read(tmp_path / "c.mhd")


# --------------------------------------------------------------------------------------------------------------- npz


@given(data=st.data())
def test_npz(data, tmp_path_factory):
    array = draw_array(data.draw, NRRD, data.draw(st.integers(2, 3)))
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    save = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
    save(path, ids=np.asfortranarray(array) if data.draw(st.booleans()) else array, names=np.arange(3))
    check(path, array, None)
    check(f"{path}:ids", array, None)


def test_npz_of_several_arrays(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.ones((2, 3)), b=np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"holds 2 arrays; name one of them: .*a\.npz:a, .*a\.npz:b"):
        io.read(path)
    with pytest.raises(InputError, match="has no array c; it holds a, b"):
        io.read(f"{path}:c")
    with pytest.raises(InputError, match=r"also holds a\.npy, and a \.npz file is replaced as a whole"):
        io.write(f"{path}:b", np.ones((2, 3), np.uint8), overwrite=True)
    np.savez(path, a=np.array([{1: 2}, None], object)[None])
    with pytest.raises(InputError, match="pickled Python objects"):
        io.read(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="cannot read"):
        io.read(path)


@pytest.mark.parametrize("suffix", ["mrc", "nrrd", "mha", "npz", "n5", "precomputed", "tif", "nii.gz", "h5", "zarr"])
def test_round_trip(tmp_path, suffix):
    pytest.importorskip({"mrc": "mrcfile", "nrrd": "nrrd"}.get(suffix, "tensorstore"))
    random = np.random.default_rng(0)
    for number, shape in enumerate([(3, 4, 5), (1, 4, 5), (3, 1, 5), (70, 3, 66)]):
        array = random.integers(0, 2**15, shape).astype(np.uint32)
        name = tmp_path / f"{number}.{suffix}"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            io.write(name, array, spacing=(40, 8, 4), unit="nm")
        np.testing.assert_array_equal(io.read(name), array)
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
