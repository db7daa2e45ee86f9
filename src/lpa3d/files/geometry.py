"""What files say of the size of their voxels: zarr attributes, OME-NGFF, OME-TIFF, ImageJ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .places import LIBRARIES, load_library, zarr_kind

__all__ = ["NANOMETRES", "Geometry", "attribute_geometry", "tiff_geometry", "zarr_geometry"]

NANOMETRES = {
    "pm": 1e-3, "picometer": 1e-3, "Å": 0.1, "angstrom": 0.1, "nm": 1.0, "nanometer": 1.0, "nanometre": 1.0,
    "um": 1e3, "µm": 1e3, "μm": 1e3, "micron": 1e3, "microns": 1e3, "micrometer": 1e3, "micrometre": 1e3,
    "mm": 1e6, "millimeter": 1e6, "millimetre": 1e6, "cm": 1e7, "centimeter": 1e7, "m": 1e9, "meter": 1e9, "metre": 1e9,
}  # fmt: skip


@dataclass(frozen=True)
class Geometry:
    """What a file says of the size and place of its voxels.

    Attributes
    ----------
    spacing : tuple of float or None
        Voxel size (z, y, x); None where the file does not say.
    unit : str
        Unit of `spacing` as the file spells it, or empty.
    nifti : object or None
        The whole NIfTI header, kept for an output of the same kind.
    """

    spacing: tuple[float, float, float] | None = None
    unit: str = ""
    nifti: Any = None


def _common_unit(spacing: Sequence[float], units: Sequence[str]) -> tuple[tuple[float, float, float] | None, str]:
    """Return three voxel sizes in one unit: as they are where it is the same, else in nanometres, else None."""
    z, y, x = (float(size) for size in spacing)
    if len(set(units)) == 1:
        return (z, y, x), units[0]
    if len(units) != 3 or any(unit not in NANOMETRES for unit in units):
        return None, ""
    a, b, c = (NANOMETRES[unit] for unit in units)
    return (z * a, y * b, x * c), "nm"


def attribute_geometry(attributes: Mapping[str, Any]) -> Geometry:
    """Read the voxel size from the attributes that zarr and HDF5 writers of this field use, all (z, y, x)."""
    for key, unit in (("spacing", ""), ("voxel_size", "nm"), ("resolution", "nm"), ("element_size_um", "um")):
        if key in attributes:
            try:
                sizes = [float(size) for size in attributes[key]]
            except (TypeError, ValueError):
                continue
            if len(sizes) == 2:
                sizes = [max(sizes), *sizes]
            if len(sizes) == 3:
                said = attributes.get("unit", attributes.get("units", unit))
                if isinstance(said, bytes):
                    said = said.decode()
                if not isinstance(said, str):
                    # One unit for each axis, as funlib writes them.
                    spacing, said = _common_unit(sizes, [str(each) for each in said][-3:])
                    return Geometry(spacing, said)
                return Geometry((sizes[0], sizes[1], sizes[2]), said)
    return Geometry()


def zarr_geometry(path: Path, attributes: Mapping[str, Any]) -> Geometry:
    """Read the voxel size of a zarr array: its own attributes, else OME-NGFF metadata of a group around it."""
    own = attribute_geometry(attributes)
    if own.spacing is not None:
        return own
    zarr = load_library(*LIBRARIES["zarr"])
    for parent in path.parents:
        if not zarr_kind(parent).startswith("group"):
            break
        group = zarr.open_group(str(parent), mode="r").attrs.asdict()
        found = _ome_geometry(group, path.relative_to(parent).as_posix())
        if found.spacing is not None:
            return found
    return Geometry()


def _ome_geometry(attributes: Mapping[str, Any], inner: str) -> Geometry:
    """Read the voxel size of the dataset `inner` from the OME-NGFF metadata of its group."""
    for image in attributes.get("ome", attributes).get("multiscales", []):
        axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in image.get("axes", [])]
        names = [str(axis.get("name", "")).lower() for axis in axes]
        if not {"z", "y", "x"} <= set(names):
            continue
        for dataset in image.get("datasets", []):
            if dataset.get("path") != inner:
                continue
            scale = np.ones(len(axes))
            steps = [*dataset.get("coordinateTransformations", []), *image.get("coordinateTransformations", [])]
            scales = [step["scale"] for step in steps if step.get("type") == "scale"]
            for factors in scales:
                scale *= factors
            if scales:
                order = [names.index(axis) for axis in "zyx"]
                units = [str(axes[i].get("unit", "")) for i in order]
                return Geometry(*_common_unit(scale[order].tolist(), units))
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
                return Geometry(*_common_unit([float(z), float(sizes["Y"]), float(sizes["X"])], units))
    if tiff.is_imagej:
        metadata = tiff.imagej_metadata or {}
        tags = tiff.pages[0].tags
        if "spacing" in metadata and "XResolution" in tags and "YResolution" in tags:
            (nx, dx), (ny, dy) = tags["XResolution"].value, tags["YResolution"].value
            if nx and ny:
                return Geometry((float(metadata["spacing"]), dy / ny, dx / nx), _imagej_unit(metadata))
    if tiff.is_shaped:
        return attribute_geometry(dict(tiff.shaped_metadata[0]))
    return Geometry()


def _imagej_unit(metadata: Mapping[str, Any]) -> str:
    """Return ImageJ's unit; it writes µ as an escape."""
    unit = str(metadata.get("unit", "")).replace("\\u00B5", "µ")
    return "" if unit.startswith("pixel") else unit
