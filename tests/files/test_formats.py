"""Each format, written by its own library with random axes, sizes and dtypes, is read as its numbers mean it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpa3d import io
from lpa3d.errors import InputError
from lpa3d.tiled.driver.grid import Box
from lpa3d.tiled.driver.stored import open_source

h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")
tifffile = pytest.importorskip("tifffile")
nibabel = pytest.importorskip("nibabel")
imageio = pytest.importorskip("imageio.v3")

SCALE = {"z": 40.0, "y": 8.0, "x": 4.0}
TYPES = {"c": "channel", "t": "time"}
INTEGERS = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", ">u2", ">i4"]


class Written:
    """An array in a file: its axes and numbers, and what of it is asked for."""

    def __init__(self, draw: Any, axes: str, dtype: str, least: int = 1) -> None:
        self.axes = axes
        self.sizes = [draw(st.integers(least if axis in "yx" else 1, 4 if axis in "zyx" else 3)) for axis in axes]
        random = np.random.default_rng(draw(st.integers(0, 99)))
        info = np.iinfo(dtype)
        self.array = random.integers(info.min, info.max, self.sizes, np.dtype(dtype).newbyteorder("="), endpoint=True)
        self.array = self.array.astype(dtype)
        self.chosen = {axis: draw(st.integers(0, n - 1)) for axis, n in self.of("ct", self.sizes) if n > 1}
        more = {axis: 0 for axis, n in self.of("ct", self.sizes) if n == 1 and draw(st.booleans())}
        typed = [f"{draw(st.sampled_from([axis, axis.upper()]))}={at}" for axis, at in (self.chosen | more).items()]
        self.choice = ":" + ",".join(typed) if typed else ""

    def of(self, axes: str, values: Any) -> list[tuple[str, Any]]:
        return [(axis, value) for axis, value in zip(self.axes, values, strict=True) if axis in axes]

    @property
    def scales(self) -> list[float]:
        return [SCALE.get(axis, 1.0) for axis in self.axes]

    @property
    def meant(self) -> Any:
        kept = [axis for axis in self.axes if axis in "zyx"]
        at = tuple(slice(None) if axis in "zyx" else self.chosen.get(axis, 0) for axis in self.axes)
        return self.array[at].transpose([kept.index(axis) for axis in "zyx" if axis in kept])

    @property
    def spacing(self) -> tuple[float, ...]:
        sizes = [SCALE[axis] for axis in "zyx" if axis in self.axes]
        return tuple([max(sizes)] * (3 - len(sizes)) + sizes)

    def check(self, place: Any, *, spacing: bool = True) -> None:
        name = f"{place}{self.choice}"
        with io.open_volume(name) as volume:
            found = volume.read()
            assert (volume.shape, volume.dtype) == (found.shape, found.dtype)
            assert found.dtype.newbyteorder("=") == self.array.dtype.newbyteorder("=")
            np.testing.assert_array_equal(found, self.meant)
            boxes, fill = volume.parts()
            again = np.full(volume.shape, fill, volume.dtype)
            for box in boxes:
                again[box] = volume.read_box(box)
            np.testing.assert_array_equal(again, self.meant)
            if spacing:
                assert volume.geometry.spacing == pytest.approx(self.spacing)
        if self.chosen:
            axis = next(iter(self.chosen))
            with pytest.raises(InputError, match=rf"{axis} is a .* axis"):
                io.read(place)


def draw_axes(draw: Any, space: tuple[str, ...] = ("zyx", "yx")) -> str:
    axes = draw(st.sampled_from(space)) + draw(st.sampled_from(["", "c", "t", "ct"]))
    return "".join(draw(st.permutations(axes)))


def check_boxes(draw: Any, written: Written, given: Any) -> None:
    """Compare a random box, as a worker on tiles reads it."""
    source = open_source(given, "volume")
    meant = written.meant
    assert source.shape[3 - meant.ndim :] == meant.shape
    meant = meant.reshape(source.shape)
    ends = [sorted(draw(st.tuples(st.integers(0, n - 1), st.integers(1, n)))) for n in source.shape]
    box = Box(tuple(lo for lo, _ in ends), tuple(max(lo + 1, hi) for lo, hi in ends))
    part = source.read(box)
    np.testing.assert_array_equal(part, meant[box.slices])
    assert part.flags.c_contiguous
    assert part.flags.writeable
    assert source.geometry.spacing == pytest.approx(written.spacing)


@given(data=st.data())
def test_zarr(data, tmp_path_factory):
    draw = data.draw
    written = Written(draw, draw_axes(draw), draw(st.sampled_from(INTEGERS)))
    path = tmp_path_factory.mktemp("zarr") / "a.zarr"
    version = draw(st.sampled_from([2, 3]))
    kind = draw(st.sampled_from(["ome", "names", "axis_names", "transform"]))
    chunks = tuple(draw(st.integers(1, n)) for n in written.sizes)
    shards = tuple(2 * n for n in chunks) if version == 3 and draw(st.booleans()) else None
    options: dict[str, Any] = {"chunks": chunks, "shards": shards, "zarr_format": version, "fill_value": 3}
    if version == 2 and kind == "names":
        options["fill_value"] = 0  # xarray takes any other one for voxels without data
    names = list(written.axes)
    if kind == "ome":
        group = zarr.open_group(path, mode="w", zarr_format=version)
        group.create_array(
            "s0", data=written.array, **{key: options[key] for key in ("chunks", "shards", "fill_value")}
        )
        step = {"type": "scale", "scale": written.scales}
        image = {
            "version": "0.4",
            "axes": [{"name": name, "type": TYPES.get(name, "space")} for name in names],
            "datasets": [{"path": "s0", "coordinateTransformations": [step]}],
        }
        group.attrs.update(
            {"multiscales": [image]} if version == 2 else {"ome": {"version": "0.5", "multiscales": [image]}}
        )
    else:
        if kind == "names" and version == 3:
            options["dimension_names"] = names
        made = zarr.create_array(path, data=written.array, **options)
        if kind == "transform":
            made.attrs["transform"] = {"axes": names, "scale": written.scales, "units": ["nm"] * len(names)}
        else:
            made.attrs["voxel_size"] = [SCALE[name] for name in names if name in SCALE]
            if "dimension_names" not in options:
                made.attrs["axis_names" if kind == "axis_names" else "_ARRAY_DIMENSIONS"] = names
    written.check(path)
    check_boxes(draw, written, f"{path}{written.choice}")
    if not written.chosen:
        check_boxes(draw, written, zarr.open_array(path / "s0" if kind == "ome" else path, mode="r"))


@given(data=st.data())
def test_hdf5(data, tmp_path_factory):
    draw = data.draw
    written = Written(draw, draw_axes(draw), draw(st.sampled_from(INTEGERS)))
    path = tmp_path_factory.mktemp("hdf5") / "a.h5"
    kind = draw(st.sampled_from(["axistags", "labels", "axes"]))
    chunks = tuple(draw(st.integers(1, n)) for n in written.sizes) if draw(st.booleans()) else None
    with h5py.File(path, "w") as file:
        made = file.create_dataset("a/volume", data=written.array, chunks=chunks)
        if kind == "axistags":
            tags = [{"key": axis, "resolution": SCALE.get(axis, 0), "description": ""} for axis in written.axes]
            made.attrs["axistags"] = json.dumps({"axes": tags})
        else:
            made.attrs["element_size_um"] = [SCALE[axis] for axis in written.axes if axis in SCALE]
            if kind == "labels":
                for dimension, axis in zip(made.dims, written.axes, strict=True):
                    dimension.label = axis
            else:
                made.attrs["axes"] = written.axes
    written.check(draw(st.sampled_from([path, f"{path}:/a/volume"])))


@given(data=st.data())
def test_tiff(data, tmp_path_factory):
    draw = data.draw
    path = tmp_path_factory.mktemp("tiff") / "a.tif"
    kind = draw(st.sampled_from(["imagej", "ome", "tifffile"]))
    dtype = draw(st.sampled_from(["u1", "u2"] if kind == "imagej" else ["u1", "i2", "u2", "i4", "u4"]))
    order = "".join(draw(st.permutations("zct"))) + "yx" if kind == "ome" else "tzcyx"
    kept = {*"yx", *draw(st.sets(st.sampled_from("zct"), min_size=0 if kind == "tifffile" else 1))}
    axes = "".join(axis for axis in order if axis in kept)
    if kind == "tifffile":
        axes = "".join(draw(st.permutations(axes)))
    # ImageJ's images are never so small that tifffile takes their axes for others.
    written = Written(draw, axes, dtype, least=2)
    upper = axes.upper()
    if kind == "imagej":
        about = {"axes": upper, "spacing": SCALE["z"], "unit": "nm"}
        tifffile.imwrite(path, written.array, imagej=True, metadata=about, resolution=(1 / SCALE["x"], 1 / SCALE["y"]))
    elif kind == "ome":
        about = {"axes": upper} | {f"PhysicalSize{axis.upper()}": size for axis, size in SCALE.items()}
        tifffile.imwrite(path, written.array, ome=True, metadata=about, photometric="minisblack")
    else:
        about = {"axes": upper, "spacing": [SCALE[axis] for axis in axes if axis in SCALE]}
        tifffile.imwrite(path, written.array, metadata=about, photometric="minisblack")
    if kind != "tifffile" and dict(zip(axes, written.sizes, strict=True)).get("z") == 1:
        # Both note all five axes, whatever there was: a z axis of length 1 is one that was not there.
        written.axes, written.sizes = (
            axes.replace("z", ""),
            [n for axis, n in zip(axes, written.sizes, strict=True) if axis != "z"],
        )
        written.array = written.array.reshape(written.sizes)
        written.check(path, spacing=False)
    else:
        written.check(path, spacing="z" in axes or kind == "tifffile")


@given(data=st.data())
def test_nifti(data, tmp_path_factory):
    draw = data.draw
    axes = draw(st.sampled_from(["xy", "xyz", "xyzt", "xyztc"]))
    written = Written(draw, axes, draw(st.sampled_from([one for one in INTEGERS if one not in ("i1", "u8")])))
    path = tmp_path_factory.mktemp("nifti") / draw(st.sampled_from(["a.nii", "a.nii.gz"]))
    image = nibabel.Nifti1Image(
        written.array, np.diag([SCALE["x"], SCALE["y"], SCALE["z"], 1]), dtype=written.array.dtype
    )
    image.to_filename(path)
    # The format has no axes of length 1 behind the last longer one.
    written.check(path, spacing="z" in axes)


@given(data=st.data())
def test_npy(data, tmp_path_factory):
    draw = data.draw
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=3))
    array = np.arange(math.prod(sizes), dtype=draw(st.sampled_from(INTEGERS))).reshape(sizes)
    lead = draw(st.integers(0, 2)) if len(sizes) == 3 else 0
    np.save(path, array.reshape([1] * lead + sizes))
    np.testing.assert_array_equal(io.read(path), array)
    np.save(path, np.stack([array + 1, array]))
    if len(sizes) == 3 and sizes[0] > 1:
        with pytest.raises(InputError, match=r"no names for its axes"):
            io.read(path)
    np.testing.assert_array_equal(io.read(f"{path}:0=1"), array)


@given(data=st.data())
def test_folders(data, tmp_path_factory):
    draw = data.draw
    folder: Path = tmp_path_factory.mktemp("folder")
    suffix = draw(st.sampled_from(["png", "tif"]))
    dtype = draw(st.sampled_from(["u1", "u2"] if suffix == "png" else ["u1", "u2", "u4", "i2"]))
    sizes = [draw(st.integers(1, n)) for n in (5, 4, 4)]
    array = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 200, sizes).astype(dtype)
    first, step = draw(st.integers(0, 99)), draw(st.integers(1, 3))
    for z, plane in enumerate(array):
        name = folder / f"slice_{first + step * z}_of_cell.{suffix}"
        if suffix == "png":
            imageio.imwrite(name, plane)
        else:
            tifffile.imwrite(name, plane, photometric="minisblack")
    whole = np.zeros((step * (sizes[0] - 1) + 1, *sizes[1:]), dtype)
    whole[::step] = array
    if step > 1 and sizes[0] > 1:
        with pytest.warns(UserWarning, match="no image"):
            found = io.read(folder)
    else:
        found = io.read(folder)
    np.testing.assert_array_equal(found, whole)
    assert found.dtype == dtype
