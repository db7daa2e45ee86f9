"""What files say of the size of their voxels: zarr attributes, OME-NGFF, OME-TIFF, ImageJ."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .places import LIBRARIES, load_library, zarr_kind

__all__ = [
    "NANOMETRES",
    "Geometry",
    "array_geometry",
    "attribute_geometry",
    "in_nanometres",
    "nanometres",
    "tiff_geometry",
    "zarr_geometry",
]

NANOMETRES = {
    "pm": 1e-3, "picometer": 1e-3, "Å": 0.1, "angstrom": 0.1, "nm": 1.0, "nanometer": 1.0, "nanometre": 1.0,
    "um": 1e3, "µm": 1e3, "μm": 1e3, "micron": 1e3, "microns": 1e3, "micrometer": 1e3, "micrometre": 1e3,
    "mm": 1e6, "millimeter": 1e6, "millimetre": 1e6, "cm": 1e7, "centimeter": 1e7, "m": 1e9, "meter": 1e9, "metre": 1e9,
}  # fmt: skip


Sizes = tuple[float, float, float]


def nanometres(unit: str) -> float | None:
    """Return the length of a unit, whatever its spelling; None of one that is not known."""
    return NANOMETRES.get(unit) or NANOMETRES.get(unit.strip().lower().removesuffix("s"))


@dataclass(frozen=True)
class Geometry:
    """What a file says of the size and place of its voxels.

    Attributes
    ----------
    spacing : tuple of float or None
        Voxel size (z, y, x); None where the file does not say.
    unit : str
        Unit of `spacing` and `offset` as the file spells it, or empty.
    nifti : object or None
        The whole NIfTI header, kept for an output of the same kind.
    offset : tuple of float or None
        Place of the first voxel (z, y, x); None where the file does not say.
    """

    spacing: Sizes | None = None
    unit: str = ""
    nifti: Any = None
    offset: Sizes | None = None


def in_nanometres(geometry: Geometry) -> tuple[Sizes | None, Sizes | None]:
    """Return the voxel size and the offset in nanometres; as they are where the unit is not known."""
    factor = nanometres(geometry.unit) or 1.0

    def scale(sizes: Sizes | None) -> Sizes | None:
        return None if sizes is None else (sizes[0] * factor, sizes[1] * factor, sizes[2] * factor)

    return scale(geometry.spacing), scale(geometry.offset)


def _common_unit(spacing: Sequence[float], units: Sequence[str], offset: Sequence[float] | None = None) -> Geometry:
    """Return three voxel sizes in one unit: as they are where it is the same, else in nanometres, else none."""
    z, y, x = (float(size) for size in spacing)
    place = None if offset is None else (float(offset[0]), float(offset[1]), float(offset[2]))
    if len(set(units)) == 1:
        return Geometry((z, y, x), units[0], offset=place)
    factors = [nanometres(unit) for unit in units]
    if len(units) != 3 or None in factors:
        return Geometry()
    a, b, c = (factor or 0.0 for factor in factors)
    place = None if place is None else (place[0] * a, place[1] * b, place[2] * c)
    return Geometry((z * a, y * b, x * c), "nm", offset=place)


def _three(values: Any) -> list[float] | None:
    """Return three numbers (z, y, x), of which two are those of a plane, as thick as its pixels are long; else None."""
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError):
        return None
    if len(found) == 2:
        found = [max(found), *found]
    return found if len(found) == 3 else None


def _read_units(said: Any, unit: str) -> list[str]:
    """Return the unit, or that of each axis as funlib writes them; `unit` where nothing is said."""
    if said is None:
        return [unit]
    if isinstance(said, (bytes, str)):
        return [said.decode() if isinstance(said, bytes) else said]
    return [each.decode() if isinstance(each, bytes) else str(each) for each in said][-3:]


def attribute_geometry(attributes: Mapping[str, Any]) -> Geometry:
    """Read size and place of the voxels from the attributes that zarr and HDF5 writers of this field use.

    Numbers are (z, y, x), but those of N5's ``pixelResolution``, and of ``transform``, which names its axes.
    """
    said = attributes.get("unit", attributes.get("units"))
    for key, unit in (("spacing", ""), ("voxel_size", "nm"), ("resolution", "nm"), ("element_size_um", "um")):
        sizes = _three(attributes.get(key))
        if sizes is not None:
            return _common_unit(sizes, _read_units(said, unit), _three(attributes.get("offset")))
    transform = attributes.get("transform")
    if isinstance(transform, Mapping):
        axes = [str(axis).lower() for axis in transform.get("axes", "zyx")]
        scale, units = transform.get("scale", ()), transform.get("units", [""] * len(axes))
        if sorted(axes) == ["x", "y", "z"] and len(scale) == len(units) == 3:
            order = [axes.index(axis) for axis in "zyx"]
            place = transform.get("translate")
            offset = [place[i] for i in order] if place is not None and len(place) == 3 else None
            return _common_unit([scale[i] for i in order], [str(units[i]) for i in order], offset)
    said = attributes.get("pixelResolution")
    sizes = _three(said.get("dimensions") if isinstance(said, Mapping) else said)
    if sizes is not None:
        unit = str(said.get("unit", "")) if isinstance(said, Mapping) else ""
        return _common_unit(sizes[::-1], [unit])
    return Geometry()


def check_axes(name: str, axes: Sequence[str] | None, shape: Sequence[int]) -> None:
    """Refuse an array whose axes, as the file names them, are others than (z, y, x) once leading ones of length 1 go.

    Parameters
    ----------
    name : str
        What the message calls the array.
    axes : sequence of str or None
        A name for each axis, as the file spells it; None where it names none.
    shape : sequence of int
        Of the stored array.
    """
    if axes is None or len(axes) != len(shape):
        return
    names = [axis.strip().lower() for axis in axes]
    lead = 0
    while len(names) - lead > 2 and shape[lead] == 1 and names[lead] not in ("z", "y", "x"):
        lead += 1
    kept = names[lead:]
    if kept in (["z", "y", "x"], ["y", "x"]) or not {"x", "y"} <= set(kept) or len(set(kept)) < len(kept):
        return  # as it is needed; or names of its own, which say nothing of the order
    listed = ", ".join(names)
    others = [axis for axis, n in zip(names, shape, strict=True) if axis not in ("z", "y", "x") and n > 1]
    if others:
        lengths = " and ".join(f"{axis} has {shape[names.index(axis)]}" for axis in others)
        kinds = {"c": "channel", "t": "time", "channel": "channel", "time": "time"}
        what = " and ".join(dict.fromkeys(kinds.get(axis, "other") for axis in others))
        raise InputError(
            f"{name} has the axes {listed}, shape {tuple(shape)}: {lengths}, a {what} axis, which is not taken for z; "
            "store one of them by itself, with axes z, y, x"
        )
    order = [names.index(axis) for axis in ("z", "y", "x") if axis in names]
    turned = f"numpy.squeeze(array).transpose({tuple(sorted(order).index(k) for k in order)})"
    raise InputError(
        f"{name} has the axes {listed}, shape {tuple(shape)}; the order z, y, x is needed: store it as {turned}, with "
        "its axes and its voxel size in that order"
    )


def read_axes(attributes: Mapping[str, Any], dimensions: Sequence[str | None] | None = None) -> list[str] | None:
    """Return the names of an array's axes, by zarr's `dimensions`, or by attributes that writers of this field use."""
    if dimensions is not None and all(isinstance(one, str) for one in dimensions):
        return [str(one) for one in dimensions]
    tags = attributes.get("axistags")
    if isinstance(tags, (str, bytes)):
        # ilastik's.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return [str(axis["key"]) for axis in json.loads(tags)["axes"]]
    transform = attributes.get("transform")
    for said in (
        attributes.get("_ARRAY_DIMENSIONS"),
        attributes.get("axis_names"),
        attributes.get("axes"),
        transform.get("axes") if isinstance(transform, Mapping) else None,
    ):
        if isinstance(said, (list, tuple, np.ndarray)):
            return [one.decode() if isinstance(one, bytes) else str(one).rstrip("^") for one in said]
    return None


def _list_groups(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name of a zarr array in each group around it, from the inside, and the group's OME-NGFF metadata."""
    zarr = load_library(*LIBRARIES["zarr"])
    for parent in path.parents:
        if not zarr_kind(parent).startswith("group"):
            break
        attributes = zarr.open_group(str(parent), mode="r").attrs.asdict()
        yield path.relative_to(parent).as_posix(), attributes.get("ome", attributes)


def _name_axes(image: Mapping[str, Any]) -> list[str]:
    """Return the names of the axes of an image of OME-NGFF."""
    return [str(axis.get("name", "") if isinstance(axis, Mapping) else axis) for axis in image.get("axes", [])]


def zarr_axes(path: Path, attributes: Mapping[str, Any], dimensions: Sequence[str | None] | None) -> list[str] | None:
    """Return the names of the axes of a zarr array: by OME-NGFF metadata of a group around it, else its own."""
    for inner, about in _list_groups(path):
        for image in about.get("multiscales", []):
            if any(one.get("path") == inner for one in image.get("datasets", [])):
                return _name_axes(image) or None
    return read_axes(attributes, dimensions)


def zarr_geometry(path: Path, attributes: Mapping[str, Any]) -> Geometry:
    """Read the voxel size of a zarr array: its own attributes, else OME-NGFF metadata of a group around it."""
    own = attribute_geometry(attributes)
    if own.spacing is not None:
        return own
    found = (_ome_geometry(about, inner) for inner, about in _list_groups(path))
    return next((geometry for geometry in found if geometry.spacing is not None), Geometry())


def array_geometry(array: Any) -> Geometry:
    """Read the voxel size of a zarr array, wherever it is stored; that of other arrays is not known."""
    if not hasattr(array, "store_path"):
        return Geometry()
    attributes = array.attrs.asdict()
    root = getattr(array.store, "root", None)
    if type(array.store).__name__ == "LocalStore" and isinstance(root, (str, Path)):
        return drop_unfilled(zarr_geometry(Path(root) / array.path, attributes))
    return drop_unfilled(attribute_geometry(attributes))


def drop_unfilled(geometry: Geometry) -> Geometry:
    """Return a geometry without sizes that were never filled in, which say nothing about the voxels."""
    sizes = geometry.spacing
    if sizes is not None and not all(math.isfinite(size) and size > 0 for size in sizes):
        return Geometry(None, "", geometry.nifti)
    return geometry


def _ome_geometry(attributes: Mapping[str, Any], inner: str) -> Geometry:
    """Read size and place of the voxels of the dataset `inner` from OME-NGFF metadata."""
    for image in attributes.get("multiscales", []):
        axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in image.get("axes", [])]
        names = [name.lower() for name in _name_axes(image)]
        if not {"y", "x"} <= set(names):
            continue
        for dataset in image.get("datasets", []):
            if dataset.get("path") != inner:
                continue
            scale, place, scaled = np.ones(len(axes)), np.zeros(len(axes)), False
            steps = [*dataset.get("coordinateTransformations", []), *image.get("coordinateTransformations", [])]
            for step in steps:
                if step.get("type") == "scale":
                    scale, place, scaled = scale * step["scale"], place * step["scale"], True
                elif step.get("type") == "translation":
                    place = place + step["translation"]
            # Ones of no unit are what is written where the size is not known.
            if scaled and (any(axis.get("unit") for axis in axes) or (scale != 1).any()):
                order = [names.index(axis) for axis in "zyx" if axis in names]
                units = [str(axes[i].get("unit", "")) for i in order]
                offset = place[order].tolist()
                sizes = scale[order].tolist()
                if len(order) == 2:
                    # A plane is as thick as its pixels are long.
                    thick = int(np.argmax(sizes))
                    sizes, units = [sizes[thick], *sizes], [units[thick], *units]
                    offset = [0.0, *offset]
                return _common_unit(sizes, units, offset)
    return Geometry()


def tiff_geometry(tiff: Any) -> Geometry:
    """Read the voxel size from OME, ImageJ or this library's own metadata."""
    if tiff.is_ome and tiff.ome_metadata:
        from xml.etree import ElementTree

        for element in ElementTree.fromstring(tiff.ome_metadata).iter():
            if element.tag.rpartition("}")[2] == "Pixels":
                # A stack of one slice often has no PhysicalSizeZ: its thickness plays no part.
                sizes = {axis: element.get(f"PhysicalSize{axis}") for axis in "ZYX"}
                if sizes["Y"] is None or sizes["X"] is None or (sizes["Z"] is None and element.get("SizeZ") != "1"):
                    break
                z = sizes["Z"] or str(max(float(sizes["Y"]), float(sizes["X"])))
                # µm is the schema's default.
                units = [element.get(f"PhysicalSize{axis}Unit", "µm") for axis in "ZYX"]
                if sizes["Z"] is None:
                    units[0] = units[2]
                units = ["" if unit == "pixel" else unit for unit in units]
                return _common_unit([float(z), float(sizes["Y"]), float(sizes["X"])], units)
    if tiff.is_imagej:
        metadata = tiff.imagej_metadata or {}
        tags, unit = tiff.pages[0].tags, _imagej_unit(tiff.imagej_metadata or {})
        # ImageJ leaves out slices that are 1 unit apart. Without a unit nothing was calibrated.
        if ("spacing" in metadata or unit) and "XResolution" in tags and "YResolution" in tags:
            (nx, dx), (ny, dy) = tags["XResolution"].value, tags["YResolution"].value
            if nx and ny:
                return Geometry((float(metadata.get("spacing", 1.0)), dy / ny, dx / nx), unit)
    if tiff.is_shaped:
        return attribute_geometry(dict(tiff.shaped_metadata[0]))
    return Geometry()


def _imagej_unit(metadata: Mapping[str, Any]) -> str:
    """Return ImageJ's unit; it writes µ as an escape."""
    unit = str(metadata.get("unit", "")).replace("\\u00B5", "µ")
    return "" if unit.startswith("pixel") else unit
