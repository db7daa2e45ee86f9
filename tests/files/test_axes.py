"""What files say of the order of their axes: (z, y, x) is read, any other order refused, never taken for it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lpa3d
from lpa3d import io
from lpa3d.errors import InputError

h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")
tifffile = pytest.importorskip("tifffile")

SIZES = {"z": 4, "y": 5, "x": 6, "c": 1, "t": 1}


def write_ome(path: Path, axes: str, array: Any, version: str) -> Path:
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    group.create_array("0", data=array, chunks=array.shape)
    image = {
        "version": version,
        "axes": [{"name": axis, "type": "space" if axis in "zyx" else "channel"} for axis in axes],
        "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [8.0] * len(axes)}]}],
    }
    group.attrs.update({"multiscales": [image]} if version == "0.4" else {"ome": {"multiscales": [image]}})
    return path


def write_dimensions(path: Path, axes: str, array: Any) -> Path:
    zarr.create_array(path, data=array, chunks=array.shape, dimension_names=list(axes))
    return path


def write_attribute(path: Path, axes: str, array: Any, name: str) -> Path:
    zarr.create_array(path, data=array, chunks=array.shape, zarr_format=2).attrs[name] = list(axes)
    return path


def write_ilastik(path: Path, axes: str, array: Any) -> Path:
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["data"] = array
        file["data"].attrs["axistags"] = json.dumps({"axes": [{"key": axis, "typeFlags": 2} for axis in axes]})
    return path.with_suffix(".h5")


def write_scales(path: Path, axes: str, array: Any) -> Path:
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["data"] = array
        for dimension, axis in zip(file["data"].dims, axes, strict=True):
            dimension.label = axis
    return path.with_suffix(".h5")


WRITERS = {
    "OME 0.4": lambda *given: write_ome(*given, "0.4"),
    "OME 0.5": lambda *given: write_ome(*given, "0.5"),
    "dimension_names": write_dimensions,
    "_ARRAY_DIMENSIONS": lambda *given: write_attribute(*given, "_ARRAY_DIMENSIONS"),
    "axis_names": lambda *given: write_attribute(*given, "axis_names"),
    "ilastik": write_ilastik,
    "dimension scales": write_scales,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_any_order_of_axes(kind, tmp_path):
    names = ["".join(order) for order in itertools.permutations("zyx")]
    names += ["yx", "xy", "czyx", "tczyx", "cxyz", "zcyx", "zyxc"]
    for number, axes in enumerate(names):
        array = np.arange(np.prod([SIZES[axis] for axis in axes])).reshape([SIZES[axis] for axis in axes])
        place = WRITERS[kind](tmp_path / f"{number}.zarr", axes, array.astype(np.uint16))
        if axes.lstrip("tc") in ("zyx", "yx"):
            np.testing.assert_array_equal(io.read(place), array.reshape(array.shape[-len(axes.lstrip("tc")) :]))
        else:
            with pytest.raises(InputError, match=f"has the axes {', '.join(axes)}, .*z, y, x is needed"):
                io.read(place)


@pytest.mark.parametrize("kind", WRITERS)
def test_channels_and_times_are_no_slices(kind, tmp_path):
    for axis, what in (("c", "channel"), ("t", "time")):
        place = WRITERS[kind](tmp_path / f"{axis}.zarr", f"{axis}yx", np.ones((3, 5, 6), np.uint8))
        with pytest.raises(InputError, match=f"{axis} has 3, a {what} axis"):
            io.read(place)


def test_tiff_stacks_of_times(tmp_path):
    array = np.ones((3, 5, 6), np.uint8)
    tifffile.imwrite(tmp_path / "a.ome.tif", array, metadata={"axes": "TYX"}, photometric="minisblack")
    with pytest.raises(InputError, match="t has 3, a time axis"):
        io.read(tmp_path / "a.ome.tif")
    tifffile.imwrite(tmp_path / "b.tif", array, photometric="minisblack", metadata=None)
    np.testing.assert_array_equal(io.read(tmp_path / "b.tif"), array)


def test_the_same_of_paths_and_arrays_in_tiles(tmp_path):
    array = np.ones((6, 5, 4), np.uint8)
    place = write_dimensions(tmp_path / "a.zarr", "xyz", array)
    for given in (str(place), zarr.open_array(place, mode="r")):
        with pytest.raises(InputError, match="has the axes x, y, z"):
            lpa3d.label(given, out=tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()
