"""What files say of the size of their voxels: zarr attributes, OME-NGFF, OME-TIFF, ImageJ."""

from __future__ import annotations

import contextlib
import json
import math
import os
import posixpath
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError, Keyword, Lpa3dWarning
from .axes import SPACE, Choice, View, choose_view, read_axes, read_axistags, read_transform, split_names
from .places import LIBRARIES, load_library, zarr_kind

__all__ = [
    "NANOMETRES",
    "Geometry",
    "array_geometry",
    "attribute_geometry",
    "convert_unit",
    "directed_geometry",
    "in_nanometres",
    "measure_steps",
    "named_geometry",
    "nanometres",
    "state_place",
    "tiff_geometry",
    "zarr_geometry",
    "zarr_view",
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
    frame : str
        To what `directions` belong: ``"RAS"`` for axes that point to the right, to the front and up, as NIfTI has it;
        empty for a frame without a name.
    directions : tuple or None
        Where the axes x, y and z point to in `frame`, as three vectors of length 1; None where the file does not say.
    """

    spacing: Sizes | None = None
    unit: str = ""
    nifti: Any = None
    offset: Sizes | None = None
    frame: str = ""
    directions: tuple[Sizes, ...] | None = None


def in_nanometres(geometry: Geometry) -> tuple[Sizes | None, Sizes | None]:
    """Return the voxel size and the offset in nanometres; as they are where the unit is not known."""
    factor = nanometres(geometry.unit) or 1.0

    def scale(sizes: Sizes | None) -> Sizes | None:
        return None if sizes is None else (sizes[0] * factor, sizes[1] * factor, sizes[2] * factor)

    return scale(geometry.spacing), scale(geometry.offset)


def convert_unit(geometry: Geometry, unit: str, name: str) -> tuple[Sizes | None, Sizes | None]:
    """Return the voxel size and the offset in the unit of a format that has only one, with a warning where they change
    their meaning."""
    factor = nanometres(geometry.unit)
    if geometry.spacing is None:
        return None, None
    if factor is None:
        sizes = " ".join(f"{size:g}" for size in geometry.spacing)
        warnings.warn(
            f"{name} has its voxel size in {unit}, and that of {sizes} {geometry.unit or 'has no unit and'} is written "
            "as if it were; say its unit",
            Lpa3dWarning,
            2,
        )
        return geometry.spacing, geometry.offset
    scale = factor / (nanometres(unit) or 1.0)
    place = geometry.offset

    def convert(sizes: Sizes) -> Sizes:
        return sizes[0] * scale, sizes[1] * scale, sizes[2] * scale

    return convert(geometry.spacing), None if place is None else convert(place)


def measure_steps(affine: Any) -> npt.NDArray[np.float64]:
    """Return how long a step along each of the three axes is by an affine of NIfTI."""
    steps: npt.NDArray[np.float64] = np.sqrt((np.asarray(affine, np.float64)[:3, :3] ** 2).sum(axis=0))
    return steps


def state_place(geometry: Geometry) -> Geometry:
    """Return a geometry that says for itself where the axes point to and where the first voxel is, if a NIfTI header
    does."""
    header = geometry.nifti
    if header is None or not (int(header["sform_code"]) or int(header["qform_code"])):
        return geometry
    affine = header.get_best_affine()
    lengths = measure_steps(affine)
    if not lengths.all() or not np.isfinite(affine).all():
        return geometry
    ways = tuple((float(a), float(b), float(c)) for a, b, c in (affine[:3, :3] / lengths).T)
    # The place of the first voxel is in the unit of the header, the size may be one that the user gave.
    unit, other = nanometres(header.get_xyzt_units()[0]), nanometres(geometry.unit)
    factor = unit / other if unit and other else 1.0
    x, y, z = (float(at) * factor for at in affine[:3, 3])
    return replace(geometry, frame="RAS", directions=ways, offset=(z, y, x))


def directed_geometry(
    names: Sequence[str],
    vectors: Sequence[Sequence[float]],
    units: str | Sequence[str],
    origin: Sequence[float] | None,
    frame: str,
) -> tuple[list[str], Geometry]:
    """Return which axes of space some stored axes lie along, and the geometry that follows from it.

    Parameters
    ----------
    names : sequence of str
        What the stored axes are called if their directions do not tell.
    vectors : sequence of three numbers
        For each stored axis the step from one voxel to the next along x, y and z.
    units : str or sequence of str
        Of x, y and z.
    origin : sequence of three numbers, optional
        Place of the first voxel.
    frame : str
        As `Geometry.frame`; vectors and origin are given in it.
    """
    steps = np.array(vectors, float).reshape(len(names), 3)
    lengths = np.sqrt((steps**2).sum(axis=1))
    along = ["xyz"[int(k)] for k in np.abs(steps).argmax(axis=1)]
    if len(names) < 2 or not (np.isfinite(lengths).all() and lengths.all()) or len(set(along)) < len(along):
        along = list(names)
    if set(along) not in ({"x", "y", "z"}, {"x", "y"}) or not (np.isfinite(lengths).all() and lengths.all()):
        return along, Geometry()
    order = [along.index(axis) for axis in "zyx" if axis in along]
    sizes = lengths[order].tolist()
    listed = [units] * 3 if isinstance(units, str) else list(units)[::-1]
    place = None if origin is None else list(origin)[::-1]
    if len(order) == 2:
        # A plane is as thick as its pixels are long.
        return along, replace(_common_unit([max(sizes), *sizes], [listed[-1]] * 3, place), frame=frame)
    turned = (steps / lengths[:, None])[order[::-1]]
    directions = tuple((float(a), float(b), float(c)) for a, b, c in turned)
    return along, replace(_common_unit(sizes, listed, place), frame=frame, directions=directions)


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


def turn_geometry(
    view: View, sizes: Sequence[float], units: Sequence[str], offset: Sequence[float] | None = None
) -> Geometry:
    """Return the geometry of what is seen of an array, of sizes, units and offsets of its stored axes.

    Parameters
    ----------
    view : View
    sizes, units, offset
        One for each stored axis, or for each of space; one unit alone is that of all. Of an array of two axes of space
        that are not turned there may be three.
    """
    seen = _see(view, sizes)
    if seen is None or not all(map(_is_number, seen)):
        return Geometry()
    named = list(units) if len(units) == 1 else _see(view, units)
    place = None if offset is None else _see(view, offset)
    if len(seen) == 2:
        # A plane is as thick as its pixels are long.
        thick = int(float(seen[1]) > float(seen[0]))
        seen = [seen[thick], *seen]
        if named is not None and len(named) == 2:
            named = [named[thick], *named]
        place = [0.0, *place] if place is not None and len(place) == 2 else place
    if place is not None and not (len(place) == 3 and all(map(_is_number, place))):
        place = None
    return _common_unit(seen, [str(unit) for unit in named or ()], place)


def _see(view: View, values: Sequence[Any]) -> list[Any] | None:
    """Return the values of what is seen; three of a plane that is not turned are those of z, y and x."""
    found = view.match(values)
    return list(values) if found is None and len(values) == 3 and view.is_plain else found


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _list_numbers(values: Any) -> list[Any] | None:
    """Return what an attribute lists; None if it lists nothing."""
    return list(values) if isinstance(values, (list, tuple, np.ndarray)) and np.ndim(values) == 1 else None


def _read_units(said: Any, unit: str) -> list[str]:
    """Return the unit, or that of each axis as funlib writes them; `unit` where nothing is said."""
    if said is None:
        return [unit]
    if isinstance(said, (bytes, str)):
        return [said.decode() if isinstance(said, bytes) else said]
    return [each.decode() if isinstance(each, bytes) else str(each) for each in said]


def attribute_geometry(attributes: Mapping[str, Any], view: View) -> Geometry:
    """Read size and place of the voxels from the attributes that zarr and HDF5 writers of this field use.

    Numbers are in the order of the array's axes, which `view` turns, but those of N5's ``pixelResolution`` (x, y, z),
    and of ``transform`` and ``axistags``, which name their axes.
    """
    said, found = attributes.get("unit", attributes.get("units")), Geometry()
    for key, unit in (("spacing", ""), ("voxel_size", "nm"), ("resolution", "nm"), ("element_size_um", "um")):
        sizes = _list_numbers(attributes.get(key))
        if sizes is not None:
            found = turn_geometry(view, sizes, _read_units(said, unit), _list_numbers(attributes.get("offset")))
            if found.spacing is not None:
                return found
    transform = read_transform(attributes)
    if "scale" in transform:
        scale, axes = transform["scale"], transform.get("axes")
        units = transform.get("units", [""] * len(scale))
        if axes is None:
            found = turn_geometry(view, scale, units, transform.get("translate"))
        elif len(axes) == len(scale) == len(units):
            found = named_geometry([str(axis) for axis in axes], scale, units, transform.get("translate"))
        if found.spacing is not None:
            return found
    with contextlib.suppress(ValueError, KeyError, TypeError):
        tags = read_axistags(attributes)
        if tags and all(float(tag.get("resolution", 0)) > 0 for tag in tags if SPACE.get(str(tag["key"]).lower())):
            sizes, units = ([tag.get(key, other) for tag in tags] for key, other in (("resolution", 1), ("unit", "")))
            return named_geometry([str(tag["key"]) for tag in tags], sizes, units, None)
    said = attributes.get("pixelResolution")
    sizes = _list_numbers(said.get("dimensions") if isinstance(said, Mapping) else said)
    if sizes is not None and len(sizes) > 1:
        sizes = sizes[:3]
        unit = str(said.get("unit", "")) if isinstance(said, Mapping) else ""
        return named_geometry("xyz"[: len(sizes)], sizes, [unit] * len(sizes), None)
    return Geometry()


def named_geometry(
    axes: Sequence[str], sizes: Sequence[Any], units: Sequence[str], offset: Sequence[Any] | None
) -> Geometry:
    """Return the geometry of an array, of sizes, units and offsets for each of some axes that have names."""
    try:
        view = choose_view("", axes, (1,) * len(axes))
    except InputError:
        return Geometry()
    place = offset if offset is not None and len(offset) == len(axes) else None
    return turn_geometry(view, sizes, units, place)


def _list_groups(array: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name of a zarr array in each group around it, from the inside, and the group's OME-NGFF metadata."""
    for inner, attributes in _find_groups(array):
        yield inner, attributes.get("ome", attributes)


def _read_group(path: Path) -> Mapping[str, Any]:
    """Return the attributes of a local group, also of one whose format is text, as WEBKNOSSOS wrote it."""
    found: Any = {}
    if (path / "zarr.json").is_file():
        found = json.loads((path / "zarr.json").read_bytes()).get("attributes", {})
    elif (path / ".zattrs").is_file():
        found = json.loads((path / ".zattrs").read_bytes())
    return found if isinstance(found, Mapping) else {}


def _find_groups(array: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name of a zarr array in each group around it, from the inside, and the group's attributes.

    The store of an array that was opened by its path, or URL, begins with the array itself.
    """
    zarr = load_library(*LIBRARIES["zarr"])
    store = array.store
    while isinstance(store, zarr.storage.WrapperStore):
        store = store._store
    kind = type(store).__name__
    if kind == "LocalStore":
        path = Path(os.path.abspath(store.root), array.path)
        for parent in path.parents:
            if not zarr_kind(parent).startswith("group"):
                return
            yield path.relative_to(parent).as_posix(), _read_group(parent)
    outside = kind == "FsspecStore"
    place, inner = (f"{store.path.rstrip('/')}/{array.path}".rstrip("/") if outside else f"/{array.path}"), ""
    while "/" in place.strip("/" if outside else ""):
        place, _, last = place.rpartition("/")
        inner = f"{last}/{inner}".rstrip("/")
        at = zarr.storage.FsspecStore(store.fs, read_only=True, path=place) if outside else store
        try:
            group = zarr.open_group(at, path="" if outside else place.strip("/"), mode="r")
        except (OSError, KeyError, ValueError):
            return  # services also say that one may not look at what is not there
        yield inner, group.attrs.asdict()


def _name_axes(image: Mapping[str, Any], ndim: int) -> list[str]:
    """Return the names of the axes of an image of OME-NGFF, those that are none of space with a mark."""
    if "axes" not in image:
        # Before version 0.3 they were always these.
        return list("tczyx") if ndim == 5 and str(image.get("version", "0.1")) in ("0.1", "0.2") else []
    return [one or "" for one in split_names(image["axes"])]


def _list_images(array: Any) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Yield the images of OME-NGFF of which a zarr array is a resolution, and what each says of this one."""
    for inner, about in _list_groups(array):
        for image in about.get("multiscales", []):
            for dataset in image.get("datasets", []):
                path = posixpath.normpath(str(dataset.get("path", ""))).strip("/")
                if path == inner or _shorten(path) == _shorten(inner):
                    yield image, dataset


def _shorten(path: Any) -> str:
    """Return the name of a magnification as WEBKNOSSOS lists it: ``1`` of a folder ``1-1-1``."""
    parts = str(path).split("-")
    return parts[0] if parts[0].isdecimal() and len(set(parts)) == 1 else str(path)


def zarr_view(array: Any, name: str | Keyword, chosen: Choice = ()) -> View:
    """Return how a zarr array is seen, by OME-NGFF metadata of a group around it, else by its own metadata."""
    ome = next((names for image, _ in _list_images(array) if (names := _name_axes(image, array.ndim))), None)
    dimensions = getattr(array.metadata, "dimension_names", None)
    try:
        axes = read_axes(array.attrs.asdict(), array.ndim, dimensions, ome)
    except InputError as error:
        raise InputError(name, ": ", *error.args) from None
    return choose_view(name, axes, array.shape, chosen)


def zarr_geometry(array: Any, view: View) -> Geometry:
    """Read the voxel size of a zarr array: its own attributes, else OME-NGFF metadata of a group around it."""
    own = attribute_geometry(array.attrs.asdict(), view)
    if own.spacing is None:
        found = (_ome_geometry(image, dataset) for image, dataset in _list_images(array))
        own = next((geometry for geometry in found if geometry.spacing is not None), Geometry())
    return drop_unfilled(own)


def array_geometry(array: Any) -> Geometry:
    """Read the voxel size of a zarr array, wherever it is stored; that of other arrays is not known."""
    return zarr_geometry(array, zarr_view(array, "the array")) if hasattr(array, "store_path") else Geometry()


def drop_unfilled(geometry: Geometry) -> Geometry:
    """Return a geometry without sizes that were never filled in, which say nothing about the voxels."""
    sizes = geometry.spacing
    if sizes is not None and not all(math.isfinite(size) and size > 0 for size in sizes):
        return Geometry(None, "", geometry.nifti)
    return geometry


def _ome_geometry(image: Mapping[str, Any], dataset: Mapping[str, Any]) -> Geometry:
    """Read size and place of the voxels of a resolution of an image from OME-NGFF metadata."""
    axes = [axis if isinstance(axis, Mapping) else {"name": axis} for axis in image.get("axes", [])]
    scale, place, scaled = np.ones(len(axes)), np.zeros(len(axes)), False
    for step in [*dataset.get("coordinateTransformations", []), *image.get("coordinateTransformations", [])]:
        if step.get("type") == "scale":
            scale, place, scaled = scale * step["scale"], place * step["scale"], True
        elif step.get("type") == "translation":
            place = place + step["translation"]
    # Ones of no unit are what is written where the size is not known.
    if not scaled or not (any(axis.get("unit") for axis in axes) or (scale != 1).any()):
        return Geometry()
    units = [str(axis.get("unit", "")) for axis in axes]
    return named_geometry(_name_axes(image, len(axes)), scale.tolist(), units, place.tolist())


def tiff_geometry(tiff: Any, view: View) -> Geometry:
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
        tags, unit = tiff.pages[0].tags, _imagej_unit(metadata, "unit")
        # ImageJ leaves out slices that are 1 unit apart. Without a unit nothing was calibrated.
        if ("spacing" in metadata or unit) and "XResolution" in tags and "YResolution" in tags:
            (nx, dx), (ny, dy) = tags["XResolution"].value, tags["YResolution"].value
            if nx and ny:
                # Of an axis that has another unit than x it says so.
                units = [_imagej_unit(metadata, key) for key in ("zunit", "yunit", "unit")]
                return _common_unit((float(metadata.get("spacing", 1.0)), dy / ny, dx / nx), units)
    if tiff.is_shaped:
        return attribute_geometry(dict(tiff.shaped_metadata[0]), view)
    return Geometry()


def _imagej_unit(metadata: Mapping[str, Any], key: str) -> str:
    """Return one of ImageJ's units, that of x where it has none of its own; it writes µ as an escape."""
    unit = str(metadata.get(key, metadata.get("unit", ""))).replace("\\u00B5", "µ")
    return "" if unit.startswith("pixel") else unit
