"""What files say of their axes: read as (z, y, x) whatever their order; those that are none of space are asked for."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lpa3d
from lpa3d import cli, io
from lpa3d.errors import InputError
from lpa3d.files.axes import choose_view, read_axes
from lpa3d.files.places import locate

h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")
tifffile = pytest.importorskip("tifffile")

SIZES = {"z": 4, "y": 5, "x": 6, "c": 1, "t": 1}
SCALE = {"z": 40.0, "y": 8.0, "x": 4.0}
TYPES = {"c": "channel", "t": "time"}


def write_ome(path: Path, axes: str, array: Any, version: str) -> Path:
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    group.create_array("0", data=array, chunks=tuple(min(side, 3) for side in array.shape))
    image = {
        "version": version,
        "axes": [{"name": axis, "type": TYPES.get(axis, "space")} for axis in axes],
        "datasets": [
            {
                "path": "0",
                "coordinateTransformations": [{"type": "scale", "scale": [SCALE.get(axis, 1.0) for axis in axes]}],
            }
        ],
    }
    group.attrs.update({"multiscales": [image]} if version == "0.4" else {"ome": {"multiscales": [image]}})
    return path


def write_dimensions(path: Path, axes: str, array: Any) -> Path:
    made = zarr.create_array(
        path, data=array, chunks=tuple(min(side, 3) for side in array.shape), dimension_names=list(axes)
    )
    made.attrs["voxel_size"] = [SCALE[axis] for axis in axes if axis in SCALE]
    return path


def write_attribute(path: Path, axes: str, array: Any, name: str) -> Path:
    made = zarr.create_array(path, data=array, chunks=array.shape, zarr_format=2)
    made.attrs[name] = list(axes)
    made.attrs["resolution"] = [SCALE.get(axis, 1.0) for axis in axes]
    return path


def write_transform(path: Path, axes: str, array: Any) -> Path:
    made = zarr.create_array(path, data=array, chunks=array.shape, zarr_format=2)
    made.attrs["transform"] = {"axes": list(axes), "scale": [SCALE.get(axis, 1.0) for axis in axes]}
    return path


def write_ilastik(path: Path, axes: str, array: Any) -> Path:
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["data"] = array
        file["data"].attrs["axistags"] = json.dumps(
            {"axes": [{"key": axis, "typeFlags": 2, "resolution": SCALE.get(axis, 0)} for axis in axes]}
        )
    return path.with_suffix(".h5")


def write_scales(path: Path, axes: str, array: Any) -> Path:
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file.create_dataset("data", data=array, chunks=tuple(min(side, 3) for side in array.shape))
        for dimension, axis in zip(file["data"].dims, axes, strict=True):
            dimension.label = axis
        file["data"].attrs["element_size_um"] = [SCALE[axis] for axis in axes if axis in SCALE]
    return path.with_suffix(".h5")


def write_netcdf(path: Path, axes: str, array: Any) -> Path:
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["data"] = array
        for k, axis in enumerate(axes):
            file[axis] = np.arange(array.shape[k]).astype(np.float64)
            file[axis].make_scale(axis)
            file["data"].dims[k].attach_scale(file[axis])
        file["data"].attrs["spacing"] = [SCALE[axis] for axis in axes if axis in SCALE]
    return Path(f"{path.with_suffix('.h5')}:/data")


WRITERS = {
    "OME 0.4": lambda *given: write_ome(*given, "0.4"),
    "OME 0.5": lambda *given: write_ome(*given, "0.5"),
    "dimension_names": write_dimensions,
    "_ARRAY_DIMENSIONS": lambda *given: write_attribute(*given, "_ARRAY_DIMENSIONS"),
    "axis_names": lambda *given: write_attribute(*given, "axis_names"),
    "transform": write_transform,
    "ilastik": write_ilastik,
    "dimension labels": write_scales,
    "dimension scales": write_netcdf,
}


def number(sizes: Any) -> Any:
    return np.arange(np.prod(sizes)).reshape(sizes).astype(np.uint16)


def turn(array: Any, axes: str, **chosen: int) -> Any:
    """Return what is meant: the array in the order z, y, x, of the places chosen along the other axes."""
    kept = [axis for axis in axes if axis in "zyx"]
    part = array[tuple(slice(None) if axis in "zyx" else chosen.get(axis, 0) for axis in axes)]
    return part.transpose([kept.index(axis) for axis in sorted(kept, reverse=True)])


@pytest.mark.parametrize("kind", WRITERS)
def test_any_order_of_axes(kind, tmp_path):
    names = ["".join(order) for order in itertools.permutations("zyx")]
    names += ["yx", "xy", "zx", "czyx", "tczyx", "cxyz", "zcyx", "zyxc", "xcyt", "cyx"]
    for k, axes in enumerate(names):
        array = number([SIZES[axis] for axis in axes])
        place = WRITERS[kind](tmp_path / f"{k}.zarr", axes, array)
        with io.open_volume(place) as volume:
            expected = turn(array, axes)
            np.testing.assert_array_equal(volume.read(), expected, axes)
            seen = [axis for axis in "zyx" if axis in axes]
            sizes = [SCALE[axis] for axis in seen]
            assert volume.geometry.spacing == tuple([max(sizes)] * (3 - len(sizes)) + sizes), axes
            np.testing.assert_array_equal(sum_boxes(volume), expected, axes)


def sum_boxes(volume: Any) -> Any:
    boxes, fill = volume.parts()
    found = np.full(volume.shape, fill, volume.dtype)
    for box in boxes:
        found[box] = volume.read_box(box)
    return found


@pytest.mark.parametrize("kind", WRITERS)
def test_channels_and_times_are_no_slices(kind, tmp_path):
    for axes, what in (
        ("cyx", "channel"),
        ("tyx", "time"),
        ("xyc", "channel"),
        ("czyx", "channel"),
        ("ayx", "none of"),
    ):
        array = number([{**SIZES, axes.strip("zyx"): 3}[axis] for axis in axes])
        place = WRITERS[kind](tmp_path / f"{axes}.zarr", axes, array)
        own = axes.strip("zyx")
        with pytest.raises(InputError, match=rf"{own} is (a )?{what}.*: .*:{own}=0 \({own} from 0 to 2\)") as caught:
            io.read(place)
        typed = str(caught.value).rpartition(": ")[2].partition(" (")[0]
        np.testing.assert_array_equal(io.read(typed), turn(array, axes))
        np.testing.assert_array_equal(io.read(f"{place}:{own.upper()}=2"), turn(array, axes, **{own: 2}))


def test_a_channel_by_another_name():
    assert choose_view("a", ["channel", "y", "x"], (3, 5, 6), (("C", 2),)).index == (2, None, None)
    for chosen in ((("c", 0), ("channel", 1)), (("q", 0),)):
        with pytest.raises(InputError, match="has no axis"):
            choose_view("a", ["channel", "y", "x"], (3, 5, 6), chosen)


def test_what_cannot_be_chosen(tmp_path):
    place = write_dimensions(tmp_path / "a.zarr", "tczyx", number((2, 3, 4, 5, 6)))
    for choice, message in {
        "": r"t is a time axis and c is a channel axis.*a\.zarr:t=0,c=0 \(t from 0 to 1, c from 0 to 2\)",
        ":c=1": r"t is a time axis, .*a\.zarr:t=0,c=1 \(t from 0 to 1\)",
        ":t=2,c=0": r"no t=2: t is 0 to 1; its axes are t \(2\), c \(3\), z \(4\), y \(5\), x \(6\)",
        ":c=0,t=0,q=1": "has no axis q; its axes are t",
        ":c=0,t=0,z=1": "z is an axis of space and read whole",
        ":c=two": "is no choice along axes, such as c=2",
        ":c=-1": "is no choice along axes",
        ":c=": "is no choice along axes",
        ":c=1,C=2": "is no choice along axes",
    }.items():
        with pytest.raises(InputError, match=message):
            io.read(f"{place}{choice}")
    np.testing.assert_array_equal(io.read(f"{place}:c=2,t=1"), number((2, 3, 4, 5, 6))[1, 2])
    with pytest.raises(InputError, match="outputs are written whole; leave :c=2 out"):
        io.write(tmp_path / "out.tif:c=2", number((4, 5, 6)))
    (tmp_path / "slices").mkdir()
    with pytest.raises(InputError, match="a folder of images has the axes z, y, x; leave :c=2 out"):
        io.read(f"{tmp_path / 'slices'}:c=2")
    np.save(tmp_path / "b.npy", number((4, 5, 6)))
    (tmp_path / "b.npy").rename(tmp_path / "b:c=2.npy")
    assert io.read(tmp_path / "b:c=2.npy").shape == (4, 5, 6)


@pytest.mark.parametrize("suffix", ["npy", "zarr", "h5"])
def test_axes_without_names(suffix, tmp_path):
    array = number((3, 4, 5, 6))
    name = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(name, array)
    elif suffix == "zarr":
        zarr.create_array(name, data=array, chunks=(1, 2, 5, 6))
    else:
        with h5py.File(name, "w") as file:
            file["data"] = array
    with pytest.raises(InputError, match=r"no names for its axes.*:0=0 \(0 from 0 to 2\)"):
        io.read(name)
    np.testing.assert_array_equal(io.read(f"{name}:0=1"), array[1])
    np.testing.assert_array_equal(io.read(f"{name}:0=1,3=5"), array[1, :, :, 5])
    np.save(tmp_path / "b.npy", array[:1])
    np.testing.assert_array_equal(io.read(tmp_path / "b.npy"), array[0])


def test_tiff_stacks_of_times(tmp_path):
    array = number((3, 5, 6))
    tifffile.imwrite(tmp_path / "a.ome.tif", array, metadata={"axes": "TYX"}, photometric="minisblack")
    with pytest.raises(InputError, match="t is a time axis"):
        io.read(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(io.read(f"{tmp_path / 'a.ome.tif'}:t=1"), array[1])
    tifffile.imwrite(tmp_path / "b.tif", array, photometric="minisblack", metadata=None)
    np.testing.assert_array_equal(io.read(tmp_path / "b.tif"), array)
    tifffile.imwrite(tmp_path / "c.tif", number((2, 4, 3, 5, 6)), imagej=True, metadata={"axes": "TZCYX"})
    np.testing.assert_array_equal(io.read(f"{tmp_path / 'c.tif'}:c=2,t=1"), number((2, 4, 3, 5, 6))[1, :, 2])
    tifffile.imwrite(tmp_path / "d.tif", number((5, 6, 3)), photometric="rgb")
    with pytest.raises(InputError, match=r"colour image.*d\.tif:s=0"):
        io.read(tmp_path / "d.tif")
    np.testing.assert_array_equal(io.read(f"{tmp_path / 'd.tif'}:s=1"), number((5, 6, 3))[..., 1])


def test_images_of_ome_are_no_slices(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        for plane in number((2, 5, 6)):
            file.write(plane, photometric="minisblack", metadata={"axes": "YX"})
    with pytest.raises(InputError, match=r"holds 2 images, .*; one stack is needed"):
        io.read(tmp_path / "a.ome.tif")


def test_rows_of_images_of_which_nothing_is_said(tmp_path):
    array = number((2, 4, 5, 6))
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack")
    with pytest.raises(InputError, match=r"no names for its axes.*a\.tif:0=0 \(0 from 0 to 1\)"):
        io.read(tmp_path / "a.tif")
    np.testing.assert_array_equal(io.read(f"{tmp_path / 'a.tif'}:0=1"), array[1])
    tifffile.imwrite(tmp_path / "b.tif", array[None, :1], photometric="minisblack")
    np.testing.assert_array_equal(io.read(tmp_path / "b.tif"), array[0])


def test_a_colour_image_in_hdf5(tmp_path):
    array = number((5, 6, 3)).astype(np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["pixel"], file["plane"] = array, array.transpose(2, 0, 1)
        for name, mode in (("pixel", "INTERLACE_PIXEL"), ("plane", "INTERLACE_PLANE")):
            said = {"CLASS": "IMAGE", "IMAGE_SUBCLASS": "IMAGE_TRUECOLOR", "INTERLACE_MODE": mode}
            file[name].attrs.update({key: np.bytes_(value) for key, value in said.items()})
        file["white"] = array[..., 0]
        file["white"].attrs["IMAGE_WHITE_IS_ZERO"] = 1
    for name in ("pixel", "plane"):
        with pytest.raises(InputError, match="s is a colour axis"):
            io.read(f"{tmp_path / 'a.h5'}:/{name}")
        np.testing.assert_array_equal(io.read(f"{tmp_path / 'a.h5'}:/{name}:s=1"), array[..., 1])
    with pytest.raises(InputError, match="0 is white"):
        io.read(f"{tmp_path / 'a.h5'}:/white")


def test_a_nifti_file_of_times(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    array = number((6, 5, 4, 3))
    nibabel.Nifti1Image(array, np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=r"t is a time axis.*a\.nii\.gz:t=0"):
        io.read(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(io.read(f"{tmp_path / 'a.nii.gz'}:t=2"), array[..., 2].T)


@pytest.mark.parametrize("kind", [name for name in WRITERS if "." in name or "_" in name or name == "transform"])
def test_tiles_are_read_as_files_say(kind, tmp_path):
    random = np.random.default_rng(3)
    for k, (axes, choice) in enumerate((("xyz", ""), ("cxyz", ":c=1"), ("yxct", ":c=1,t=0"))):
        sizes = [{"z": 5, "y": 6, "x": 7, "c": 2, "t": 1}[axis] for axis in axes]
        array = random.integers(0, 3, sizes).astype(np.uint8)
        place = WRITERS[kind](tmp_path / f"{k}.zarr", axes, array)
        meant = turn(array, axes, c=1)
        found = lpa3d.label(f"{place}{choice}", out=tmp_path / f"out{k}.zarr", tile=4)
        np.testing.assert_array_equal(found[...], lpa3d.label(meant), axes)
        with io.open_volume(tmp_path / f"out{k}.zarr") as volume, io.open_volume(f"{place}{choice}") as first:
            assert volume.geometry.spacing == first.geometry.spacing is not None
        assert cli.main(["label", f"{place}{choice}", str(tmp_path / f"shell{k}.zarr"), "-q", "--tile", "4"]) == 0
        np.testing.assert_array_equal(io.read(tmp_path / f"shell{k}.zarr"), lpa3d.label(meant))
        if not choice:
            inner = place / "0" if kind.startswith("OME") else place
            given = zarr.open_array(inner, mode="r")
            np.testing.assert_array_equal(lpa3d.label(given, out=tmp_path / f"given{k}.zarr")[...], lpa3d.label(meant))


def test_groups_are_looked_at_in_every_store(tmp_path):
    """An array in a group, opened from it or by its own URL, has the axes that the group's metadata say."""
    pytest.importorskip("fsspec")
    array = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint8)
    memory = zarr.storage.MemoryStore()
    group = zarr.open_group(memory, mode="w", path="some/cell")
    remote = "memory://axes/cell.zarr"
    for one in (group, zarr.open_group(remote, mode="w")):
        one.create_array("0", data=array, chunks=(2, 2, 2))
        image = {"axes": [{"name": axis} for axis in "xyz"], "datasets": [{"path": "0"}]}
        image["datasets"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [4, 8, 40]}]
        one.attrs["multiscales"] = [image]
    expected = lpa3d.label(array.T)
    given = [group["0"], zarr.open_array(memory, path="some/cell/0"), f"{remote}/0", zarr.open_group(remote)["0"]]
    for k, one in enumerate(given):
        found = lpa3d.label(one, out=tmp_path / f"{k}.zarr", tile=4)
        np.testing.assert_array_equal(found[...], expected)
        assert found.attrs["spacing"] == [40, 8, 4]


def test_a_long_axis_of_an_array_is_asked_for(tmp_path):
    place = write_dimensions(tmp_path / "a.zarr", "czyx", number((3, 4, 5, 6)))
    with pytest.raises(InputError, match=r"volume has shape.*c is a channel axis.*:c=0 behind it"):
        lpa3d.label(zarr.open_array(place, mode="r"), out=tmp_path / "out.zarr")
    with pytest.raises(InputError, match=r"^volume: .*a\.zarr has shape.*a\.zarr:c=0"):
        lpa3d.label(str(place), out=tmp_path / "out.zarr")
    for out in (place, tmp_path / "a.zarr/inner"):
        with pytest.raises(InputError, match=r"a\.zarr"):
            lpa3d.label(f"{place}:c=0", out=out, overwrite=True)
    with pytest.raises(InputError, match="outputs are written whole"):
        lpa3d.label(f"{place}:c=0", out=f"{tmp_path / 'out.zarr'}:c=0")
    assert not (tmp_path / "out.zarr").exists()


def test_files_that_contradict_themselves(tmp_path):
    place = write_dimensions(tmp_path / "a.zarr", "xyz", number((4, 5, 6)))
    zarr.open_array(place, mode="r+").attrs["axes"] = ["z", "y", "x"]
    with pytest.raises(InputError, match="contradicts itself: its axes are x, y, z by dimensions, but z, y, x by axes"):
        io.read(place)
    place = write_ome(tmp_path / "c.zarr", "cyx", number((1, 5, 6)), "0.5")
    made = zarr.create_array(place / "0", data=number((1, 5, 6)), dimension_names=["z", "y", "x"], overwrite=True)
    with pytest.raises(InputError, match=r"its axes are c, y, x by OME-NGFF, but z, y, x by dimensions"):
        lpa3d.label(made, out=tmp_path / "out.zarr")
    place = write_attribute(tmp_path / "b.zarr", "czyx", number((4, 5, 6)), "axis_names")
    with pytest.raises(InputError, match="names 4 axes"):
        io.read(place)


@pytest.mark.parametrize(
    ("attributes", "axes"),
    [
        ({"axis_names": ["c^", "z", "y", "x"]}, "c^zyx"),
        ({"axis_names": ["c", "z", "y", "x"], "types": ["channel", "space", "space", "space"]}, "c^zyx"),
        ({"axes": "xyzc"}, "xyzc"),
        ({"transform": {"axes": ["x", "y", "z", "c"], "ordering": "F"}}, "czyx"),
        ({"axes": b"c,z,y,x"}, "czyx"),
        ({"axes": ["phi", "theta"]}, ""),
        ({"transform": {"axes": ["z", "y", "x"]}, "axis_names": ["c", "z", "y", "x"]}, "czyx"),
        ({"_ARRAY_DIMENSIONS": ["dim_0", "dim_1", "dim_2", "dim_3"], "axes": list("cxyz")}, "cxyz"),
        ({"axistags": "no json"}, ""),
        (
            {"axes": [{"name": "c", "type": "channel"}, {"name": "x"}, {"name": "y", "type": None}, {"name": "z"}]},
            "c^xyz",
        ),
    ],
)
def test_attributes_that_name_axes(attributes, axes):
    assert "".join(map(str, read_axes(attributes, 4) or ())) == axes


def test_a_run_goes_on_with_the_same_choice_only(tmp_path):
    array = np.random.default_rng(1).integers(0, 3, (2, 7, 6, 5)).astype(np.uint8)
    place = write_dimensions(tmp_path / "a.zarr", "cxyz", array)

    def stop(stage: str, fraction: float) -> None:
        if fraction > 0.3:
            raise KeyboardInterrupt

    out = tmp_path / "out.zarr"
    with pytest.raises(KeyboardInterrupt):
        lpa3d.label(f"{place}:c=0", out=out, tile=4, progress=stop)
    with pytest.raises(InputError, match="volume"):
        lpa3d.label(f"{place}:c=1", out=out, tile=4)
    np.testing.assert_array_equal(lpa3d.label(f"{place}:c=0", out=out, tile=4)[...], lpa3d.label(array[0].T))


def test_sizes_of_axes_that_have_names_elsewhere(tmp_path):
    array = number((6, 5, 4))
    for k, (attributes, spacing) in enumerate(
        (
            ({"transform": {"scale": [4, 8, 40]}}, (40, 8, 4)),
            ({"transform": {"scale": [40, 8, 4], "axes": ["z", "y", "x"], "ordering": "F"}}, (40, 8, 4)),
            ({"spacing": [4, 8, 40], "offset": [1, 2, 3], "units": ["nm", "nm", "um"]}, (40_000, 8, 4)),
            ({"voxel_size": [8, 8]}, None),  # of which axes?
            ({"resolution": [4, 8, 40, 1]}, None),
            ({"pixelResolution": [4, 8, 40]}, (40, 8, 4)),
            ({"element_size_um": ["a", "b", "c"]}, None),
        )
    ):
        made = zarr.create_array(tmp_path / f"{k}.zarr", data=array, chunks=array.shape, dimension_names=list("xyz"))
        made.attrs.update(attributes)
        with io.open_volume(tmp_path / f"{k}.zarr") as volume:
            assert volume.geometry.spacing == spacing
            assert volume.geometry.offset == ((3000, 2, 1) if "offset" in attributes else None)


def test_names_that_say_little():
    def order(axes: Any, shape: Any) -> tuple[int, ...]:
        return choose_view("a", axes, shape).order

    assert order(["d0", "d1", "d2"], (4, 5, 6)) == (0, 1, 2)
    assert order(["c0^", "d0", "d1", "d2"], (1, 4, 5, 6)) == (1, 2, 3)
    assert order(["width", "height", "depth"], (6, 5, 4)) == (2, 1, 0)
    assert order(["channel", None, None, None], (1, 4, 5, 6)) == (1, 2, 3)
    assert order(["z", "z", "x"], (4, 5, 6)) == (0, 1, 2)
    assert order(["z", "y", "x"], (1, 1, 4, 5, 6)) == (2, 3, 4)
    assert choose_view("a", ["y", "x", "c"], (5, 6, 1)).shape == (5, 6)
    with pytest.raises(InputError, match="time is a time axis"):
        choose_view("a", ["time", "lat", "lon"], (9, 5, 6))


def test_names_with_a_choice():
    found = locate("a.h5:/data:c=1,t=0")
    assert (found.format, found.inner, found.chosen, found.base) == ("hdf5", "data", (("c", 1), ("t", 0)), "a.h5:/data")
    assert locate("a.h5:/c=1").inner == "c=1"
    assert locate("a.h5:c=1").inner == ""
    assert locate("slices/*:0-255").chosen == ()


def test_info_says_how_axes_are_read(tmp_path, capsys):
    place = write_dimensions(tmp_path / "a.zarr", "cxyz", number((2, 6, 5, 4)))
    assert cli.main(["info", f"{place}:c=1"]) == 0
    text = capsys.readouterr().out
    assert "shape:       4 5 6 (z y x)" in text
    assert "spacing:     40 8 4" in text
    assert "axes:        c (2), x (6), y (5), z (4) in the file, read as z y x, c=1" in text
    np.save(tmp_path / "b.npy", number((5, 6)))
    assert cli.main(["info", str(tmp_path / "b.npy")]) == 0
    assert "axes:        not in the file, taken for y x" in capsys.readouterr().out
