"""Values that a file codes: decoded where that is exact, refused where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lpa3d
from lpa3d import cli, io
from lpa3d.errors import InputError
from lpa3d.files.coded import code_line, whole_numbers

h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")
tifffile = pytest.importorskip("tifffile")
Image = pytest.importorskip("PIL.Image")

COLORS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def draw() -> Any:
    labels = np.zeros((8, 20, 24), np.uint8)
    labels[:5, 2:9, 2:9], labels[3:, 11:18, 8:16], labels[2:7, 3:7, 15:22] = 1, 2, 3
    return labels


def save_png(path: Path, index: Any, colors: Any) -> None:
    image = Image.fromarray(index)
    image.putpalette(colors.ravel().tolist())
    image.save(path)


def save_tiff(path: Path, index: Any, colors: Any, *, append: bool = False) -> None:
    colormap = np.zeros((3, 256), np.uint16)
    colormap[:, : len(colors)] = 257 * colors.T.astype(np.uint16)
    with tifffile.TiffWriter(path, append=append) as file:
        file.write(index, photometric="palette", colormap=colormap, metadata=None, contiguous=False)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@given(seed=st.integers(0, 2**32 - 1))
def test_slices_with_palettes_of_their_own(suffix, seed, tmp_path_factory):
    """Where a colour has one index throughout, the index is the id; else the slices are refused."""
    folder = tmp_path_factory.mktemp("slices")
    labels, random = draw(), np.random.default_rng(seed)
    same = bool(seed % 2)  # else some permutation, but none that keeps the order
    for z, plane in enumerate(labels):
        used = np.unique(plane)
        # Palettes that end after the last colour of their slice, or are in any order.
        order = np.arange(used.max() + 1) if same else random.permutation(4)
        place = np.zeros(4, np.uint8)
        place[order] = np.arange(len(order))
        (save_png if suffix == "png" else save_tiff)(folder / f"{z}.{suffix}", place[plane], COLORS[order])
    if same:
        np.testing.assert_array_equal(io.read(folder), labels)
    else:
        with pytest.raises(InputError, match="different palettes"):
            io.read(folder)


def test_pages_of_one_file_with_palettes_of_their_own(tmp_path):
    for name, orders in (("same.tif", [[0, 1, 2, 3]] * 8), ("other.tif", [[0, 1, 2, 3]] * 7 + [[0, 2, 1, 3]])):
        for z, (plane, order) in enumerate(zip(draw(), orders, strict=True)):
            save_tiff(tmp_path / name, np.argsort(order).astype(np.uint8)[plane], COLORS[order], append=z > 0)
    np.testing.assert_array_equal(io.read(tmp_path / "same.tif"), draw())
    with pytest.raises(InputError, match="1 is the colour"):
        io.read(tmp_path / "other.tif")


def test_zero_that_is_white(tmp_path):
    plane = draw()[0]
    tifffile.imwrite(tmp_path / "a.tif", plane, photometric="miniswhite", software="scanner", metadata=None)
    with pytest.raises(InputError, match="0 is white"):
        io.read(tmp_path / "a.tif")
    (tmp_path / "slices").mkdir()
    (tmp_path / "a.tif").rename(tmp_path / "slices" / "0.tif")
    with pytest.raises(InputError, match="0 is white"):
        io.read(tmp_path / "slices")
    # tifffile and ImageJ say so of bilevel images and inverted tables, and mean the values.
    tifffile.imwrite(tmp_path / "bool.tif", plane > 0)
    np.testing.assert_array_equal(io.read(tmp_path / "bool.tif"), plane > 0)


@pytest.mark.filterwarnings("ignore:<tifffile.TiffWriter.write> data with shape:DeprecationWarning")
@pytest.mark.parametrize("count", [3, 4])
def test_few_slices_that_tifffile_stores_as_colours(count, tmp_path):
    labels = draw()[:count].astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", labels)  # as scikit-image and napari do
    with io.open_volume(tmp_path / "a.tif") as volume:
        assert f"its {count} planes, which are stored as colours, are taken for slices" in volume.note
        np.testing.assert_array_equal(volume.read(), labels)
    tifffile.imwrite(tmp_path / "photo.tif", np.zeros((10, 12, 3), np.uint8), photometric="rgb")
    with pytest.raises(InputError, match="colour image"):
        io.read(tmp_path / "photo.tif")


def test_objects_in_a_npy_file_are_not_loaded(tmp_path):
    np.save(tmp_path / "a_seg.npy", {"masks": draw()}, allow_pickle=True)
    with pytest.raises(InputError, match=r"pickled Python objects.*allow_pickle=True.*masks"):
        io.read(tmp_path / "a_seg.npy")


def test_the_pattern_that_is_proposed_matches_one_series(tmp_path):
    for number in range(-3, 6):
        Image.fromarray(draw()[0]).save(tmp_path / f"z{number}.png")
    with pytest.raises(InputError, match=r"pattern in quotes: '(.*)', or") as caught:
        io.read(tmp_path)
    assert io.read(str(caught.value).split("'")[1]).shape == (6, 20, 24)


# ---------------------------------------------------------------------------------- numbers that stand for other values


def save_array(path: Path, array: Any, attributes: Any) -> Path:
    if path.suffix == ".zarr":
        zarr.create_array(path, data=array, chunks=(3, 5, 7)).attrs.update(attributes)
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("labels", data=array, chunks=(3, 5, 7))
            file["labels"].attrs.update(
                {key: value if isinstance(value, str) else np.array([value]) for key, value in attributes.items()}
            )
    return path


@pytest.mark.parametrize("suffix", ["zarr", "h5"])
def test_numbers_on_a_line(suffix, tmp_path):
    labels = draw().astype(np.int16)
    for k, (attributes, expected) in enumerate(
        (
            ({"scale_factor": 1.0, "add_offset": 0.0}, labels),
            ({"scale_factor": 3, "add_offset": 40_000}, labels.astype(np.int32) * 3 + 40_000),
            ({"add_offset": -0.5}, labels - 0.5),
            ({"_FillValue": -1, "missing_value": 77}, labels),
            ({"_FillValue": 0}, labels),
            ({"_FillValue": "AAAAAAAA+H8="}, labels),  # NaN, as xarray writes it
            ({"_Unsigned": "true"}, labels.view(np.uint16)),
        )
    ):
        place = save_array(tmp_path / f"{k}.{suffix}", labels - (attributes == {"_Unsigned": "true"}), attributes)
        if attributes == {"_Unsigned": "true"}:
            expected = (labels - 1).view(np.uint16)
        with io.open_volume(place) as volume:
            found = volume.read()
            assert volume.dtype == found.dtype
            np.testing.assert_array_equal(found, expected)
            boxes, fill = volume.parts()
            again = np.full(volume.shape, fill, volume.dtype)
            for box in boxes:
                again[box] = volume.read_box(box)
            np.testing.assert_array_equal(again, expected)
        if suffix == "zarr" and expected.dtype.kind == "i":
            np.testing.assert_array_equal(
                lpa3d.label(place, out=tmp_path / f"o{k}.zarr", tile=(4, 10, 12))[...], lpa3d.label(found)
            )


@pytest.mark.parametrize("suffix", ["zarr", "h5"])
@pytest.mark.parametrize("key", ["_FillValue", "missing_value"])
def test_voxels_without_data(suffix, key, tmp_path):
    labels = draw()
    labels[5, 2, 3] = 77
    place = save_array(tmp_path / f"a.{suffix}", labels, {key: 77})
    message = rf"a\.{suffix} holds 77 at \(5, 2, 3\), which marks voxels without data \({key}\)"
    with pytest.raises(InputError, match=message):
        io.read(place)
    if suffix == "zarr":
        with pytest.raises(InputError, match=message):
            lpa3d.label(place, out=tmp_path / "out.zarr", tile=4)


def test_xarray_marks_voxels_without_data_by_the_fill_value_of_zarr_2(tmp_path):
    place = tmp_path / "a.zarr"
    made = zarr.create_array(place, shape=(4, 5, 6), dtype="i2", chunks=(2, 5, 6), fill_value=-1, zarr_format=2)
    np.testing.assert_array_equal(io.read(place), np.full((4, 5, 6), -1))
    made.attrs["_ARRAY_DIMENSIONS"] = ["z", "y", "x"]
    made[:2] = 1
    with io.open_volume(place) as volume:
        with pytest.raises(InputError, match=r"holds -1 at \(2, 0, 0\), which marks voxels without data"):
            volume.read()
        with pytest.raises(InputError, match="holds -1"):
            volume.parts()
    made[2:] = 2
    assert set(np.unique(io.read(place))) == {1, 2}


@pytest.mark.parametrize("suffix", ["zarr", "h5"])
def test_what_no_value_can_be_told_by(suffix, tmp_path):
    for k, (key, value) in enumerate((("scale_factor", 0.0), ("scale_factor", "two"), ("add_offset", np.inf))):
        place = save_array(tmp_path / f"{k}.h5", draw(), {key: value} if not isinstance(value, str) else {})
        if isinstance(value, str):
            with h5py.File(place, "r+") as file:
                file["labels"].attrs[key] = value
        with pytest.raises(InputError, match=f"has the attribute {key}="):
            io.read(place)
    wide = np.full((3, 5, 7), 2**60 + 1, np.int64)
    with pytest.raises(InputError, match=r"scales 1152921504606846977 at \(0, 0, 0\), where not all numbers are exact"):
        io.read(save_array(tmp_path / f"wide.{suffix}", wide, {"scale_factor": 2.0}))


@given(
    dtype=st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4"]),
    scale=st.sampled_from([1.0, 2.0, 3.0, -1.0, 0.5]),
    offset=st.sampled_from([0.0, 1.0, -32768.0, 40_000.0, 0.25]),
    seed=st.integers(0, 99),
)
def test_a_line_is_exact(dtype, scale, offset, seed):
    info = np.iinfo(dtype)
    numbers = np.random.default_rng(seed).integers(info.min, info.max, 5, dtype=dtype, endpoint=True)
    numbers[:2] = info.min, info.max
    coding = code_line("a", dtype, scale, offset)
    found = numbers if coding is None else coding.decode(numbers)
    assert [float(value) for value in found] == [int(number) * scale + offset for number in numbers]
    assert (found.dtype.kind == "f") == (not (scale.is_integer() and offset.is_integer()))


def test_bigdataviewer_means_uint16(tmp_path):
    labels = draw().astype(np.uint16) * 21_000
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for setup, kind in enumerate((None, "uint16", "int16", "float32")):
            file[f"t00000/s{setup:02}/0/cells"] = labels.view(np.int16)
            group = file.create_group(f"s{setup:02}")
            if kind:
                group.attrs["dataType"] = kind
    for setup, expected in enumerate((labels, labels, labels.view(np.int16))):
        with io.open_volume(f"{tmp_path / 'a.h5'}:/t00000/s{setup:02}/0/cells") as volume:
            assert ("BigDataViewer" in volume.note) == (setup < 2)
            np.testing.assert_array_equal(volume.read(), expected)
            assert volume.dtype == expected.dtype
    with pytest.raises(InputError, match="its set-up s03 has the dataType float32"):
        io.read(f"{tmp_path / 'a.h5'}:/t00000/s03/0/cells")


def test_values_calibrated_by_imagej(tmp_path):
    """ImageJ stores int16 as uint16, with a line that makes it of that."""
    labels = draw().astype(np.int16) - 1
    stored = (labels.astype(np.int32) + 32768).astype(np.uint16)
    line = {"cf": 0, "c0": -32768.0, "c1": 1.0}
    tifffile.imwrite(tmp_path / "a.tif", stored, imagej=True, metadata={"axes": "ZYX", **line})
    np.testing.assert_array_equal(io.read(tmp_path / "a.tif"), labels)
    (tmp_path / "slices").mkdir()
    for z, plane in enumerate(stored):
        tifffile.imwrite(tmp_path / f"slices/{z}.tif", plane, imagej=True, metadata={"axes": "YX", **line})
    np.testing.assert_array_equal(io.read(tmp_path / "slices"), labels)
    tifffile.imwrite(tmp_path / "b.tif", stored, imagej=True, metadata={"axes": "ZYX", "cf": 3, "c0": 1.0, "c1": 1.0})
    with pytest.raises(InputError, match="calibration function 3"):
        io.read(tmp_path / "b.tif")
    nodata = {"metadata": None, "photometric": "minisblack", "extratags": [(42113, "s", 0, "3", True)]}
    tifffile.imwrite(tmp_path / "c.tif", draw(), **nodata)
    with pytest.raises(InputError, match=r"holds 3 at \(2, 3, 15\), which marks voxels without data \(GDAL_NODATA\)"):
        io.read(tmp_path / "c.tif")


def test_labels_that_jpeg_changed(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", draw())
    opened = io.open_volume(tmp_path / "a.tif")
    opened.compression = "jpeg"
    with opened, pytest.raises(InputError, match="is stored as jpeg, which changes values"):
        opened.read_integers("labels")


def test_filters_of_zarr_are_undone(tmp_path):
    numcodecs = pytest.importorskip("numcodecs")
    labels = draw()
    many = {
        "delta": ([numcodecs.Delta("u1")], labels),
        "scale": ([numcodecs.FixedScaleOffset(offset=2, scale=4, dtype="f8", astype="i2")], labels * 0.25 + 2),
        "astype": ([numcodecs.AsType(encode_dtype="u1", decode_dtype="i8")], labels.astype(np.int64)),
        "bits": ([numcodecs.PackBits()], labels > 0),
    }
    for name, (filters, values) in many.items():
        place = tmp_path / f"{name}.zarr"
        made = zarr.create_array(
            place, shape=values.shape, dtype=values.dtype, chunks=(3, 20, 24), filters=filters, zarr_format=2
        )
        made[:] = values
        np.testing.assert_array_equal(io.read(place), values)
        if name != "scale":
            np.testing.assert_array_equal(
                lpa3d.label(place, out=tmp_path / f"{name}_o.zarr", tile=(4, 10, 12))[...], lpa3d.label(io.read(place))
            )


# ----------------------------------------------------------------------------------------------- floats, tile by tile


@given(
    dtype=st.sampled_from(["f2", "f4", "f8", ">f4"]),
    seed=st.integers(0, 99),
    odd=st.sampled_from([None, 0.5, np.nan, -1, 1e20]),
)
def test_whole_numbers_are_ids_tile_by_tile(dtype, seed, odd, tmp_path_factory):
    """Lazily, with the result that the file has in memory; what is no id is named with its place."""
    folder = tmp_path_factory.mktemp("floats")
    random = np.random.default_rng(seed)
    ids = random.integers(0, 4, (5, 6, 7)) * (random.random((5, 6, 7)) < 0.6) * 100
    stored = ids.astype(dtype)
    if odd is not None and not (dtype == "f2" and odd == 1e20):
        place = tuple(int(random.integers(side)) for side in stored.shape)
        stored[place] = odd
        zarr.create_array(folder / "ids.zarr", data=stored, chunks=(2, 3, 4))
        named = rf"ids\.zarr holds .*\({', '.join(map(str, place))}\)"
        # What int64 can hold is refused by the verb, as in memory.
        with pytest.raises(InputError, match="labels holds negative ids" if (dtype, odd) == ("f8", -1) else named):
            lpa3d.merge(folder / "ids.zarr", min_contact=1, out=folder / "out.zarr", tile=4)
        assert not (folder / "out.zarr").exists()
        return
    zarr.create_array(folder / "ids.zarr", data=stored, chunks=(2, 3, 4))
    found = lpa3d.merge(folder / "ids.zarr", min_contact=1, out=folder / "out.zarr", tile=4)
    with io.open_volume(folder / "ids.zarr") as volume:
        expected = lpa3d.merge(volume.read_integers("labels"), min_contact=1)
    np.testing.assert_array_equal(found[...], expected)
    assert found.dtype == (np.int64 if dtype == "f8" else expected.dtype)
    np.testing.assert_array_equal(
        lpa3d.label(folder / "ids.zarr", out=folder / "parts.zarr", tile=4)[...], lpa3d.label(ids)
    )


def test_the_command_line_says_so(tmp_path, capsys):
    zarr.create_array(tmp_path / "a.zarr", data=draw().astype(np.float32), chunks=(4, 10, 12))
    assert cli.main(["label", str(tmp_path / "a.zarr"), str(tmp_path / "o.zarr")]) == 0
    assert "a.zarr stores whole numbers as float32; they are read as integers" in capsys.readouterr().err
    np.testing.assert_array_equal(io.read(tmp_path / "o.zarr"), lpa3d.label(draw()))


def test_places_of_numbers_that_are_no_ids():
    for value, message in (
        (2.5, r"a holds float32; ids must be .*fractions, 2\.5 at \(4, 5, 7\)"),
        (-3, r"a holds negative ids, such as -3 at \(4, 5, 7\)"),
        (2**24 + 2, r"a holds float32 up to 16777218 \(at \(4, 5, 7\)\), where only numbers to 16777216 are exact"),
        (np.inf, "it holds infinity"),
    ):
        part = np.zeros((2, 3, 4), np.float32)
        part[1, 2, 3] = value
        with pytest.raises(InputError, match=message):
            whole_numbers(part, np.uint32, "a", "ids", (3, 3, 4))
