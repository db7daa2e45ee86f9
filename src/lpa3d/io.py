"""Reading and writing volumes: zarr, NumPy, NIfTI, TIFF and HDF5 files, told apart by their suffix, and image folders.

Arrays are ``(Z, Y, X)`` in memory whatever the file's own order is. Each file library is imported when a file of its
kind is opened, never before. What a file says of its voxel size travels with it as a `Geometry`.

======================  ===========================================================================================
suffix                  what is read and written
======================  ===========================================================================================
``.zarr`` folder        an array, of zarr format 3 (format 2 is read too); ``name.zarr/inner/array`` names an array in
                        a group; spacing from OME-NGFF metadata or from the array's attributes
``.npy``                memory-mapped on reading; no spacing
``.nii``, ``.nii.gz``   axes (x, y, z) in the file; the header with the affine is kept from the input to the output
``.tif``, ``.tiff``     a stack of pages; spacing from OME or ImageJ metadata
``.h5``, ``.hdf5``      ``name.h5:/dataset``; the only dataset of a file need not be named
folder                  read only: one PNG or TIFF image for each slice, in the order of the numbers in their names;
                        ``folder/*.png`` chooses among them, ``folder:0-255`` gives the first and the last number
======================  ===========================================================================================
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib
import itertools
import json
import math
import os
import re
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays.backend import is_on_device
from .arrays.threads import num_threads, run_all
from .errors import InputError, InputTypeError, LibraryError, Lpa3dError, Lpa3dWarning
from .files.outputs import ASIDE, TEMPORARY, Output, Outputs

__all__ = [
    "FileError",
    "Geometry",
    "LibraryError",
    "Target",
    "Volume",
    "locate",
    "open_volume",
    "plan",
    "read",
    "write",
    "zarr_target",
]

Array = npt.NDArray[Any]
Progress = Callable[[float], None]

SLAB_BYTES = 2**26
"""Bytes that are read or written at once where the file may be taken in slabs."""

ZARR_CHUNK, ZARR_CHUNK_2D, HDF5_CHUNK = 128, 1024, 64

# Values above are no longer all distinct in these types, so ids may have been united before they came here.
EXACT = {2: 2**11, 4: 2**24, 8: 2**53}

NANOMETRES = {
    "pm": 1e-3, "picometer": 1e-3, "Å": 0.1, "angstrom": 0.1, "nm": 1.0, "nanometer": 1.0, "nanometre": 1.0,
    "um": 1e3, "µm": 1e3, "μm": 1e3, "micron": 1e3, "microns": 1e3, "micrometer": 1e3, "micrometre": 1e3,
    "mm": 1e6, "millimeter": 1e6, "millimetre": 1e6, "cm": 1e7, "centimeter": 1e7, "m": 1e9, "meter": 1e9, "metre": 1e9,
}  # fmt: skip


class FileError(Lpa3dError, OSError):
    """A file could not be written."""


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


@dataclass
class Volume:
    """A file that was opened but not read yet; use it in a ``with`` block.

    Attributes
    ----------
    name : str
        As the caller typed it.
    path : Path
        File or folder that holds the data.
    format : str
        ``"zarr"``, ``"npy"``, ``"nifti"``, ``"tiff"``, ``"hdf5"`` or ``"images"``.
    shape, dtype
        Of the array in memory: ``(Z, Y, X)`` or ``(Y, X)``.
    geometry : Geometry
        Voxel size and the like.
    chunks : tuple of int or None
        Chunks along the same axes, None where the file is not chunked.
    compression : str
        Short name, or empty.
    note : str
        What a user should be told of how the files were understood (the order of the slices), or empty.
    """

    name: str
    path: Path
    format: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fetch: Callable[[int, int], Array] = field(repr=False)
    geometry: Geometry = Geometry()
    chunks: tuple[int, ...] | None = None
    compression: str = ""
    rows: int = 0
    note: str = ""
    close: Callable[[], None] = field(default=lambda: None, repr=False)

    def __enter__(self) -> Volume:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def slabs(self) -> Iterator[tuple[int, int, Array]]:
        """Yield ``(lo, hi, array[lo:hi])`` along the first axis, in slabs that the file is quick to give."""
        length = self.shape[0]
        rows = self.rows or max(length, 1)
        for lo in range(0, length, rows):
            hi = min(lo + rows, length)
            with _reading(self.name):
                slab = self.fetch(lo, hi)
            yield lo, hi, slab

    def read(self, progress: Progress | None = None) -> Array:
        """Return the whole array; a ``.npy`` or plain ``.nii`` file is mapped into memory, not copied."""
        if not self.rows or self.rows >= self.shape[0] or self.format == "npy":
            with _reading(self.name):
                return self.fetch(0, self.shape[0])
        array = np.empty(self.shape, self.dtype)
        for lo, hi, slab in self.slabs():
            array[lo:hi] = slab
            if progress is not None:
                progress(hi / self.shape[0])
        return array

    def check_integers(self, role: str) -> None:
        """Refuse, before anything is read, a file that cannot hold labels.

        Raises
        ------
        InputTypeError
            For complex numbers, text and the like; for floats, but in a NIfTI file, whose writers often store labels
            so: there `read_integers` looks at the values.
        """
        if self.dtype.kind == "f" and self.format != "nifti":
            raise InputTypeError(
                f"{self.name} holds {self.dtype}; {role} must be bool or integers: threshold the image first "
                f"(image > 0.5), or pass it to propagate with --cost"
            )
        if self.dtype.kind not in "buif":
            raise InputTypeError(f"{self.name} holds {self.dtype}; {role} must be bool or integers")

    def read_integers(self, role: str, progress: Progress | None = None) -> Array:
        """Return the array as bool or integers; whole numbers that a NIfTI file stores as floats become integers.

        Such numbers become uint32, or int64 where uint32 cannot hold them.

        Raises
        ------
        InputTypeError
            As `check_integers`.
        InputError
            If a NIfTI file holds a fraction, NaN, or floats so large that neighbouring ids coincide.
        """
        self.check_integers(role)
        array = self.read(progress)
        if array.dtype.kind != "f":
            return array
        return _whole_numbers(array, self.name, role)


def _whole_numbers(array: Array, name: str, role: str) -> Array:
    """Return the floats of `array` as uint32, or int64 where that cannot hold them; nothing else than whole ones."""
    low = float(array.min()) if array.size else 0.0
    high = float(array.max()) if array.size else 0.0
    advice = f"{role} must be whole numbers: threshold the image first, or pass it to propagate with --cost"
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"{name} holds {array.dtype} with NaN or infinity; {advice}")
    exact = EXACT[min(array.dtype.itemsize, 8)]
    if max(-low, high) > exact:
        raise InputError(
            f"{name} holds {array.dtype} up to {max(-low, high):.0f}, where only numbers to {exact} are exact and "
            f"ids may have been united; save it as integers"
        )
    whole = np.empty(array.shape, np.uint32 if low >= 0 and high < 2**32 else np.int64)
    for i, part in enumerate(array):
        whole[i] = part
        if not np.array_equal(whole[i], part):
            raise InputError(f"{name} holds {array.dtype} with fractions; {advice}")
    return whole


# ---------------------------------------------------------------------------------------------------------- places


@dataclass(frozen=True)
class Location:
    """A name taken apart: the format, the file or folder, and what is meant inside of it.

    `inner` is the dataset in an HDF5 file, or a pattern for the images in a folder; `numbers` are the first and the
    last slice of such a folder, where the user gave them.
    """

    name: str
    format: str
    path: Path
    inner: str = ""
    numbers: tuple[int, int] | None = None


SUFFIXES = {".npy": "npy", ".nii": "nifti", ".nii.gz": "nifti", ".tif": "tiff", ".tiff": "tiff"}
KNOWN = (
    ".zarr, .npy, .nii, .nii.gz, .tif, .tiff, .h5 (file.h5:/dataset) and .hdf5; a folder with a PNG or TIFF image for "
    "each slice can be read"
)


def locate(name: str) -> Location:
    """Take a file name apart.

    Raises
    ------
    InputError
        If its suffix is not known.
    """
    name = os.fspath(name)
    if "://" in name:
        raise InputError(f"{name} is a URL; copy it to a local file first")
    hdf5 = re.fullmatch(r"(.*\.(?:h5|hdf5|hdf))(?::(.*))?", name, re.IGNORECASE | re.DOTALL)
    if hdf5:
        return Location(name, "hdf5", Path(hdf5[1]), (hdf5[2] or "").strip("/"))
    path = Path(name)
    lower = name.lower()
    for suffix, kind in SUFFIXES.items():
        if lower.endswith(suffix) and not _is_pattern(path):
            return Location(name, kind, path)
    if any(part.lower().endswith(".zarr") for part in path.parts) or _zarr_kind(path):
        return Location(name, "zarr", path)
    # A folder may itself have a name that looks like a range of slices.
    ranged = None if path.is_dir() else re.fullmatch(r"(.+):([0-9]+)-([0-9]+)", name, re.DOTALL)
    folder = ranged[1] if ranged else name
    numbers = (int(ranged[2]), int(ranged[3])) if ranged else None
    path = Path(folder)
    if _is_pattern(path):
        return Location(name, "images", path.parent, path.name, numbers)
    if path.is_dir() or folder.endswith(("/", os.sep)):
        return Location(name, "images", path, "", numbers)
    what = "has no suffix" if path.suffix else "is no folder and has no suffix"
    raise InputError(f"{name!r} {what} that is known; known are {KNOWN}")


def _is_pattern(path: Path) -> bool:
    """Return whether a name stands for several files; brackets alone are common in the names of single ones."""
    return any(sign in path.name for sign in "*?") and not path.exists()


def _library(module: str, extra: str) -> Any:
    """Import the file library `module`, or say which extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise LibraryError(
            f"{module} is needed for this kind of file and cannot be imported ({error}); "
            f"install it: pip install 'lpa3d[{extra}]'"
        ) from error


LIBRARIES = {
    "zarr": ("zarr", "zarr"),
    "nifti": ("nibabel", "nifti"),
    "tiff": ("tifffile", "tiff"),
    "hdf5": ("h5py", "hdf5"),
    "png": ("PIL.PngImagePlugin", "png"),
}


def _reason(error: BaseException) -> str:
    """Return one line of what went wrong, for a person."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    if "imagecodecs" in text:
        text += "; install it: pip install imagecodecs"
    return text


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn what a file library raises into an error that names the file."""
    try:
        yield
    except (Lpa3dError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"cannot read {name}: {_reason(error)}") from error


@contextlib.contextmanager
def _writing(name: str) -> Iterator[None]:
    """Turn what a file library raises into an error that names the output."""
    try:
        yield
    except (Lpa3dError, MemoryError):
        raise
    except Exception as error:
        raise FileError(f"cannot write {name}: {_reason(error)}") from error


def open_volume(name: str | os.PathLike[str]) -> Volume:
    """Open a file and read its shape, dtype and geometry, but not its voxels.

    Raises
    ------
    InputError
        If there is no such file, its suffix is unknown, it cannot be read, or it holds several arrays and `name` does
        not say which one. For a folder also if the names of its images give no clear order, or if the images differ
        in size or kind, are in colour or hold several pages.
    LibraryError
        If the library that reads it is not installed.

    Warns
    -----
    Lpa3dWarning
        If the numbers of the images in a folder have holes: slices without an image are read as 0.
    """
    location = locate(os.fspath(name))
    if not location.path.exists() and location.format != "zarr":
        raise InputError(f"{location.path} does not exist")
    if location.format == "images" and not location.path.is_dir():
        raise InputError(f"{location.path} is no folder")
    if location.path.is_dir() and location.format not in ("zarr", "images"):
        raise InputError(f"{location.path} is a folder, not a {location.format} file")
    with _reading(location.name):
        volume = OPENERS[location.format](location)
    if len(volume.shape) not in (2, 3):
        volume.close()
        raise InputError(f"{location.name} has shape {volume.shape}; (Z, Y, X) or (Y, X) is needed")
    if volume.geometry.spacing is None:
        return volume
    if not all(math.isfinite(size) and size > 0 for size in volume.geometry.spacing):
        # A header that was never filled in says nothing about the voxels.
        volume.geometry = Geometry(None, "", volume.geometry.nifti)
    return volume


def read(name: str | os.PathLike[str]) -> Array:
    """Return the array in a file, axes ``(Z, Y, X)``.

    Parameters
    ----------
    name : str or path
        See the module's table.

    Returns
    -------
    ndarray
        ``(Z, Y, X)`` or ``(Y, X)``; the file's dtype. A ``.npy`` file comes memory-mapped and read-only. A folder of
        images has the integer dtype that holds all of theirs; slices whose number has no image are 0.

    Raises
    ------
    InputError, LibraryError
        As `open_volume`.

    Warns
    -----
    Lpa3dWarning
        As `open_volume`.

    See Also
    --------
    open_volume : shape, dtype and spacing without reading.
    write : the way back.
    """
    with open_volume(name) as volume:
        return volume.read()


# ---------------------------------------------------------------------------------------------------------- reading


def _drop_leading(shape: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """Return how many leading axes of length 1 go, until 3 are left, and the shape without them."""
    lead = 0
    while len(shape) - lead > 3 and shape[lead] == 1:
        lead += 1
    return lead, tuple(int(size) for size in shape[lead:])


def _rows(shape: tuple[int, ...], dtype: np.dtype[Any], chunk: int = 1) -> int:
    """Return how many rows of the first axis make a slab: whole chunks, near `SLAB_BYTES`."""
    row = max(math.prod(shape[1:]) * dtype.itemsize, 1)
    return max(SLAB_BYTES // row // chunk, 1) * chunk


def _common_unit(spacing: Sequence[float], units: Sequence[str]) -> tuple[tuple[float, float, float] | None, str]:
    """Return three voxel sizes in one unit: as they are where it is the same, else in nanometres, else None."""
    z, y, x = (float(size) for size in spacing)
    if len(set(units)) == 1:
        return (z, y, x), units[0]
    if len(units) != 3 or any(unit not in NANOMETRES for unit in units):
        return None, ""
    a, b, c = (NANOMETRES[unit] for unit in units)
    return (z * a, y * b, x * c), "nm"


def _attribute_geometry(attributes: Mapping[str, Any]) -> Geometry:
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


def _zarr_kind(path: Path) -> str:
    """Return ``"array3"``, ``"array2"``, ``"group3"`` or ``"group2"``, or empty for any other file or folder."""
    if (path / "zarr.json").is_file():
        try:
            node = json.loads((path / "zarr.json").read_bytes()).get("node_type")
        except (ValueError, AttributeError):
            return ""
        return f"{node}3" if node in ("array", "group") else ""
    if (path / ".zarray").is_file():
        return "array2"
    return "group2" if (path / ".zgroup").is_file() else ""


def _zarr_arrays(path: Path) -> dict[str, Any]:
    """Return the arrays in a group, at any depth, by their inner names."""
    zarr = _library(*LIBRARIES["zarr"])
    members = zarr.open_group(str(path), mode="r").members(max_depth=None)
    # A run that was killed may have left an unfinished output in the group.
    hidden = tuple(f"/{prefix}" for prefix in (TEMPORARY, ASIDE))
    return {
        name: node
        for name, node in sorted(members, key=lambda member: str(member[0]))
        if isinstance(node, zarr.Array) and not any(prefix in f"/{name}" for prefix in hidden)
    }


def _choose(location: Location, arrays: Sequence[str], joint: str) -> str:
    """Return the only one of several names, or say that one must be named."""
    if len(arrays) == 1:
        return arrays[0]
    if not arrays:
        raise InputError(f"{location.name} holds no array")
    listed = ", ".join(f"{location.path}{joint}{name}" for name in arrays[:8]) + (", ..." if len(arrays) > 8 else "")
    raise InputError(f"{location.name} holds {len(arrays)} arrays; name one of them: {listed}")


def _open_zarr(location: Location) -> Volume:
    path = location.path
    kind = _zarr_kind(path)
    if not kind:
        for parent in path.parents:
            if _zarr_kind(parent).startswith("group"):
                _library(*LIBRARIES["zarr"])
                inside = ", ".join(_zarr_arrays(parent)) or "no array"
                raise InputError(f"{path} does not exist; {parent} holds {inside}")
        raise InputError(f"{path} is no zarr array" if path.exists() else f"{path} does not exist")
    zarr = _library(*LIBRARIES["zarr"])
    if kind.startswith("group"):
        path = path / _choose(location, list(_zarr_arrays(path)), "/")
    array = zarr.open_array(str(path), mode="r")
    lead, shape = _drop_leading(array.shape)
    chunks = tuple(int(size) for size in (array.shards or array.chunks))[lead:]
    compressors = ", ".join(_codec_name(codec) for codec in array.compressors)

    def fetch(lo: int, hi: int) -> Array:
        return np.asarray(array[(0,) * lead + (slice(lo, hi),)])

    return Volume(
        location.name,
        path,
        "zarr",
        shape,
        np.dtype(array.dtype),
        fetch,
        _zarr_geometry(path, array.attrs.asdict()),
        chunks,
        compressors,
        _rows(shape, np.dtype(array.dtype), max(chunks[0], 1)) if shape else 0,
    )


def _codec_name(codec: Any) -> str:
    """Return what a person calls a compressor, of either zarr format."""
    settings = codec.to_dict() if hasattr(codec, "to_dict") else codec.get_config()
    inner = settings.get("configuration") or settings
    name = str(settings.get("name") or settings.get("id"))
    return f"{name} {inner['cname']}" if "cname" in inner else name


def _zarr_geometry(path: Path, attributes: Mapping[str, Any]) -> Geometry:
    """Read the voxel size of a zarr array: its own attributes, else OME-NGFF metadata of a group around it."""
    own = _attribute_geometry(attributes)
    if own.spacing is not None:
        return own
    zarr = _library(*LIBRARIES["zarr"])
    for parent in path.parents:
        if not _zarr_kind(parent).startswith("group"):
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


def _open_npy(location: Location) -> Volume:
    array = np.load(location.path, mmap_mode="r", allow_pickle=False)
    lead, shape = _drop_leading(array.shape)
    plain = np.asarray(array)[(0,) * lead]
    return Volume(
        location.name,
        location.path,
        "npy",
        shape,
        plain.dtype,
        lambda lo, hi: plain[lo:hi],
        rows=_rows(shape, plain.dtype) if shape else 0,
    )


def _open_nifti(location: Location) -> Volume:
    nibabel = _library(*LIBRARIES["nifti"])
    image = nibabel.load(location.path)
    proxy, header = image.dataobj, image.header
    scaled = (proxy.slope, proxy.inter) != (1.0, 0.0)
    # Without a scale the numbers in the file are the values; asking for scaled ones would turn integers into floats.
    dtype = np.dtype(np.float64) if scaled else np.dtype(proxy.dtype)
    lead, shape = _drop_leading(image.shape[::-1])
    sizes = [float(str(size)) for size in header.get_zooms()[:3]]
    sizes += [max(sizes, default=1.0)] * (3 - len(sizes))
    unit = header.get_xyzt_units()[0]

    def fetch(lo: int, hi: int) -> Array:
        if not math.prod(shape):
            return np.empty(shape, dtype)  # nibabel loses the shape of some
        array = np.asarray(proxy) if scaled else np.asarray(proxy.get_unscaled())
        return np.asarray(array.T[(0,) * lead][lo:hi])

    return Volume(
        location.name,
        location.path,
        "nifti",
        shape,
        dtype,
        fetch,
        Geometry((sizes[2], sizes[1], sizes[0]), "" if unit == "unknown" else unit, header),
        None,
        "gzip" if location.name.lower().endswith(".gz") else "",
    )


def _open_tiff(location: Location) -> Volume:
    tifffile = _library(*LIBRARIES["tiff"])
    tiff = tifffile.TiffFile(location.path)
    try:
        series = list(tiff.series)
        first = series[0]
        axes, full = first.get_axes(False), first.get_shape(False)
        # tifffile notes the shape as it was; OME and ImageJ always name all axes, the unused ones with length 1.
        exact = first.kind == "shaped"
        _, shape = _drop_leading([n for axis, n in zip(axes, full, strict=True) if exact or n > 1 or axis in "YX"])
        if any(axis == "S" and n > 1 for axis, n in zip(axes, full, strict=True)):
            raise InputError(f"{location.path} is a colour image, axes {axes}, shape {full}; one channel is needed")
        if len(series) > 1:
            if any(each.shape != first.shape or each.dtype != first.dtype for each in series) or len(shape) != 2:
                shapes = ", ".join(str(each.shape) for each in series[:8])
                raise InputError(f"{location.path} holds {len(series)} images, of shapes {shapes}; one stack is needed")
            shape = (len(series), *shape)
        page = first.keyframe
        compression = "" if page.compression == 1 else page.compression.name.lower()
        geometry = _tiff_geometry(tiff)
    except BaseException:
        tiff.close()
        raise

    def fetch(lo: int, hi: int) -> Array:
        array = np.asarray(first.asarray()) if len(series) == 1 else np.stack([each.asarray() for each in series])
        return array.reshape(shape)[lo:hi]

    return Volume(
        location.name,
        location.path,
        "tiff",
        shape,
        np.dtype(first.dtype),
        fetch,
        geometry,
        None,
        compression,
        close=tiff.close,
    )


def _tiff_geometry(tiff: Any) -> Geometry:
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
        return _attribute_geometry(dict(tiff.shaped_metadata[0]))
    return Geometry()


def _imagej_unit(metadata: Mapping[str, Any]) -> str:
    """Return ImageJ's unit; it writes µ as an escape."""
    unit = str(metadata.get("unit", "")).replace("\\u00B5", "µ")
    return "" if unit.startswith("pixel") else unit


def _open_hdf5(location: Location) -> Volume:
    h5py = _library(*LIBRARIES["hdf5"])
    file = h5py.File(location.path, "r")
    try:
        inner = location.inner
        node = file.get(inner) if inner else file
        arrays = _hdf5_arrays(h5py, file)
        if node is None:
            raise InputError(f"{location.path} has no dataset /{inner}; it holds {', '.join(arrays) or 'none'}")
        if not isinstance(node, h5py.Dataset):
            below = [name for name in arrays if not inner or name.startswith(f"/{inner}/")]
            node = file[_choose(location, below, ":")]
        lead, shape = _drop_leading(node.shape)
        dtype = np.dtype(node.dtype)
        geometry = _attribute_geometry({key: node.attrs[key] for key in node.attrs})
    except BaseException:
        file.close()
        raise
    chunks = node.chunks[lead:] if node.chunks else None

    def fetch(lo: int, hi: int) -> Array:
        return np.asarray(node[(0,) * lead + (slice(lo, hi),)])

    return Volume(
        location.name,
        location.path,
        "hdf5",
        shape,
        dtype,
        fetch,
        geometry,
        chunks,
        node.compression or "",
        _rows(shape, dtype, chunks[0] if chunks else 1) if shape else 0,
        close=file.close,
    )


def _hdf5_arrays(h5py: Any, file: Any) -> list[str]:
    """Return the names of the datasets that could be volumes."""
    found: list[str] = []

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "buif" and node.ndim >= 2:
            found.append(f"/{name}")

    file.visititems(visit)
    return found


# --------------------------------------------------------------------------------------------------- image folders


IMAGE_SUFFIXES = {".png": "png", ".tif": "tiff", ".tiff": "tiff"}
LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")
SPARSEST = 100
"""Slices for each image from which on the numbers in the names are taken for something else, such as times."""


@dataclass(frozen=True)
class Image:
    """What the header of one image says; in a palette image the index is the value."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    palette: bool


def _open_images(location: Location) -> Volume:
    kind, names, others = _list_images(location)
    scan, load = IMAGE_READERS[kind]
    _library(*LIBRARIES[kind])
    numbered = dict(sorted(zip(_find_numbers(location, names), names, strict=True)))
    first, last = location.numbers or (min(numbered), max(numbered))
    if first > last:
        raise InputError(f"{location.name} asks for slices {first} to {last}; the first number must not be the larger")
    chosen = {number: location.path / name for number, name in numbered.items() if first <= number <= last}
    if not chosen:
        raise InputError(
            f"{location.name}: no image has a number from {first} to {last}; they have {min(numbered)} to "
            f"{max(numbered)}"
        )
    length = last - first + 1
    if location.numbers is None and length > SPARSEST * len(chosen):
        raise InputError(
            f"{location.name} holds {_images(kind, len(names))} with numbers from {first} to {last}, of which hardly "
            f"any has an image; number the slices 0, 1, 2 ..., or say that they are meant: "
            f"'{location.name}:{first}-{last}'"
        )
    shape, dtype, remarks = _agree(location, list(chosen.values()), run_all(scan, chosen.values()))
    if len(chosen) < length:
        warnings.warn(
            _say_missing(location, [n for n in range(first, last + 1) if n not in chosen], length), Lpa3dWarning, 3
        )
    if len(chosen) < len(names):
        remarks.append(f"{len(names) - len(chosen)} images with other numbers are left out")
    if others:
        remarks.append(f"other files are ignored: {_some(others)}")
    paths = list(chosen.values())
    ordered = f"{paths[0].name} to {paths[-1].name}, by their numbers" if len(paths) > 1 else paths[0].name
    # Options name slices by position, whatever the names begin with.
    numbers = f" (numbers {first} to {last}; options count slices from 0)" if first else ""
    note = f"{location.name}: {_images(kind, len(paths))} as slices 0 to {length - 1}{numbers}: {ordered}"

    def fetch(lo: int, hi: int) -> Array:
        slab = np.zeros((hi - lo, *shape), dtype)

        def fill(z: int) -> None:
            path = chosen[first + z]
            with _reading(str(path)):
                image = load(path)
                if image.shape != shape:
                    raise InputError(f"{path} has changed since it was opened: its shape is now {image.shape}")
                slab[z - lo] = image

        run_all(fill, [z for z in range(lo, hi) if first + z in chosen])
        return slab

    return Volume(
        location.name,
        location.path,
        "images",
        (length, *shape),
        dtype,
        fetch,
        chunks=(1, *shape),
        # Slices too large for several in a slab are still decoded by all threads.
        rows=max(_rows((length, *shape), dtype), num_threads()),
        note="; ".join([note, *remarks]),
    )


def _images(kind: str, count: int) -> str:
    """Return a number of images in words."""
    return f"{count} {kind.upper()} image{'' if count == 1 else 's'}"


def _some(items: Sequence[object], most: int = 4) -> str:
    """Return the first of many items, separated by commas."""
    return ", ".join(map(str, items[:most])) + (f", ... ({len(items)})" if len(items) > most else "")


def _list_images(location: Location) -> tuple[str, list[str], list[str]]:
    """Return the kind and the names of the images in a folder, and the names of everything else."""
    groups: dict[str, list[str]] = {"png": [], "tiff": [], "": []}
    with os.scandir(location.path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            # Hidden files are nobody's slices; macOS leaves ._name.png beside name.png.
            if entry.name.startswith(".") or not fnmatch.fnmatch(entry.name, location.inner or "*"):
                continue
            kind = "" if entry.is_dir() else IMAGE_SUFFIXES.get(Path(entry.name).suffix.lower(), "")
            groups[kind].append(entry.name)
    others = groups.pop("")
    kinds = [kind for kind, names in groups.items() if names]
    if len(kinds) == 1:
        return kinds[0], groups[kinds[0]], others
    if kinds:
        raise InputError(
            f"{location.name} holds {_images('png', len(groups['png']))} and {_images('tiff', len(groups['tiff']))}; "
            f"choose one kind with a pattern in quotes: '{location.path / '*.png'}' or "
            f"'{location.path / ('*' + Path(groups['tiff'][0]).suffix)}'"
        )
    what = f"{location.path} holds no PNG or TIFF image" + (f" named {location.inner}" if location.inner else "")
    if not others:
        raise InputError(f"{what}{'' if location.inner else ': it is empty'}")
    advice = ""
    if any(name.lower().endswith(LOSSY_SUFFIXES) for name in others):
        advice = "; JPEG and WebP change the values of labels: export PNG or TIFF"
    elif len(others) == 1:
        advice = f"; if that is the volume, pass {location.path / others[0]}"
    raise InputError(f"{what}, but {_some(others)}{advice}")


def _find_numbers(location: Location, names: Sequence[str]) -> list[int]:
    """Return the slice number of each name: the one place where all names differ, in names that are else the same."""
    parts = [re.split("([0-9]+)", Path(name).stem) for name in names]
    texts = Counter(tuple(part[::2]) for part in parts)
    if len(names) > 1 and all(len(text) == 1 for text in texts):
        raise InputError(
            f"{location.name} holds images without a number, such as {_some(names, 2)}; name them by their slices: "
            f"0001{Path(names[0]).suffix}, 0002{Path(names[0]).suffix}, ..."
        )
    if len(texts) > 1:
        examples = [
            f"{next(name for name, part in zip(names, parts, strict=True) if tuple(part[::2]) == text)} ({count})"
            for text, count in texts.most_common()
        ]
        common = "*[0-9]".join(texts.most_common()[0][0]) + Path(names[0]).suffix
        raise InputError(
            f"{location.name} holds images whose names differ in more than numbers: {_some(examples)}; choose one "
            f"series with a pattern in quotes: '{location.path / common}', or name all images alike"
        )
    numbers = [[int(digits) for digits in part[1::2]] for part in parts]
    if len(names) == 1:
        return [numbers[0][-1] if numbers[0] else 0]
    columns = [column for column in zip(*numbers, strict=True) if len(set(column)) == len(names)]
    orders = {tuple(sorted(range(len(names)), key=column.__getitem__)) for column in columns}
    if not orders:
        best = max(zip(*numbers, strict=True), key=lambda column: len(set(column)))
        number = Counter(best).most_common()[0][0]
        again = [name for name, each in zip(names, best, strict=True) if each == number]
        raise InputError(
            f"{location.name} holds {len(again)} images for slice {number}: {_some(again)}; choose one series with a "
            f"pattern in quotes, such as '{location.path}/*_labels{Path(again[0]).suffix}'"
        )
    if len(orders) > 1:
        raise InputError(
            f"{location.name} holds images with several numbers in their names, which give different orders, such as "
            f"{_some(names, 2)}; name them by the slice number alone"
        )
    # Of several numbers that agree (slice_0001_z=0.0080um) the one that counts in the smallest steps is the slice's.
    return list(min(columns, key=lambda column: max(column) - min(column)))


def _agree(
    location: Location, paths: Sequence[Path], images: Sequence[Image]
) -> tuple[tuple[int, int], np.dtype[Any], list[str]]:
    """Return the shape and dtype that all slices have, and remarks; refuse slices that do not belong together."""

    def refuse(what: str, values: Sequence[object], advice: str) -> None:
        counts = Counter(values)
        if len(counts) > 1:
            most = counts.most_common()[0][0]
            usual = next(path for path, value in zip(paths, values, strict=True) if value == most)
            odd = [f"{p.name} ({value})" for p, value in zip(paths, values, strict=True) if value != most]
            raise InputError(
                f"{location.name} holds images of different {what}: {counts[most]} as {usual.name} ({most}), but "
                f"{_some(odd)}; {advice}"
            )

    sizes = [f"{image.shape[0]} x {image.shape[1]}" for image in images]
    refuse("sizes", sizes, "all slices must have the same number of rows and columns")
    dtypes = {image.dtype for image in images}
    common = np.result_type(*dtypes)
    mixed = [
        "palette" if image.palette else "integers" if image.dtype.kind in "iu" and common.kind in "iu" else image.dtype
        for image in images
    ]
    refuse("kinds", mixed, "what a value means could differ too; save all slices in the same way")
    remarks = ["palette images: the index of a colour is the value"] if images[0].palette else []
    if len(dtypes) > 1:
        remarks.append(f"{' and '.join(sorted(map(str, dtypes)))} are read as {common}")
    return images[0].shape, common, remarks


def _say_missing(location: Location, missing: Sequence[int], length: int) -> str:
    """Return the warning about slices whose number no image has."""
    cuts = [0, *(i for i in range(1, len(missing)) if missing[i] != missing[i - 1] + 1), len(missing)]
    runs = [(missing[lo], missing[hi - 1]) for lo, hi in itertools.pairwise(cuts)]
    listed = ", ".join(f"{lo}" if lo == hi else f"{lo}-{hi}" for lo, hi in runs[:8]) + (
        ", ..." if len(runs) > 8 else ""
    )
    verbs = "has no image and is" if len(missing) == 1 else "have no image and are"
    return (
        f"{location.name}: {len(missing)} of {length} slices {verbs} read as empty (0): {listed}; if no slice is "
        f"missing, number the images without holes"
    )


def _colour_error(path: Path, channels: str) -> InputError:
    return InputError(
        f"{path} is a colour image ({channels}), but labels need one number for each pixel. If each colour is an id, "
        f"make numbers of them and save those as TIFF: ids = rgb[..., :3].astype('uint32') @ "
        f"np.array([65536, 256, 1], 'uint32'); tifffile.imwrite('name.tif', ids). If all channels are the same, save "
        f"one: rgb[..., 0]"
    )


def _scan_png(path: Path) -> Image:
    with _reading(str(path)):
        with open(path, "rb") as file:
            start = file.read(26)
        if len(start) < 26 or start[:8] != b"\x89PNG\r\n\x1a\n" or start[12:16] != b"IHDR":
            raise InputError(f"{path} is no PNG image, whatever its suffix says")
        width, height, bits, colours = struct.unpack(">IIBB", start[16:])
        if colours not in (0, 3):
            raise _colour_error(path, {2: "RGB", 4: "gray and transparency", 6: "RGBA"}.get(colours, "unknown"))
        palette = colours == 3
        if not palette and bits in (2, 4):
            # Some programs write the numbers themselves, most read them multiplied by 85 or 17.
            raise InputError(f"{path} has {bits} bits a pixel, whose values are ambiguous; save it with 8 or 16")
        return Image((height, width), np.dtype("u1" if palette else {1: "?", 8: "u1", 16: "u2"}[bits]), palette)


def _load_png(path: Path) -> Array:
    # Not Image.open, which takes a slice of 200 megapixels for an attack.
    with _library(*LIBRARIES["png"]).PngImageFile(path) as image:
        return np.asarray(image)


def _scan_tiff(path: Path) -> Image:
    tifffile = _library(*LIBRARIES["tiff"])
    with _reading(str(path)), tifffile.TiffFile(path) as tiff:
        # Pages, not series: a file that is part of an OME data set knows of the others and would open them.
        page, count = tiff.pages[0], len(tiff.pages)
        if tiff.is_imagej:
            # A stack of more than 4 GB has one page only.
            count = max(count, int((tiff.imagej_metadata or {}).get("images", 1)))
        if count > 1:
            raise InputError(
                f"{path} holds {count} images, but in a folder each file must be one slice; if it is the whole volume, "
                f"pass the file itself"
            )
        if page.samplesperpixel > 1:
            raise _colour_error(path, f"{page.samplesperpixel} channels")
        if len(page.shape) != 2:
            raise InputError(f"{path} has shape {page.shape}; a slice must be (Y, X)")
        return Image(page.shape, np.dtype(page.dtype).newbyteorder("="), page.photometric.name == "PALETTE")


def _load_tiff(path: Path) -> Array:
    with _library(*LIBRARIES["tiff"]).TiffFile(path) as tiff:
        return np.asarray(tiff.pages[0].asarray())


IMAGE_READERS: dict[str, tuple[Callable[[Path], Image], Callable[[Path], Array]]] = {
    "png": (_scan_png, _load_png),
    "tiff": (_scan_tiff, _load_tiff),
}


OPENERS: dict[str, Callable[[Location], Volume]] = {
    "zarr": _open_zarr,
    "npy": _open_npy,
    "nifti": _open_nifti,
    "tiff": _open_tiff,
    "hdf5": _open_hdf5,
    "images": _open_images,
}


# ---------------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class Target:
    """An output that was checked: `write` fills its temporary file, the outputs' ``commit`` puts it into place."""

    location: Location
    output: Output
    outputs: Outputs

    def write(self, array: Array, geometry: Geometry, progress: Progress | None = None) -> None:
        """Write `array` to the temporary file; bool is stored as uint8, every other dtype as it is."""
        if array.dtype.kind == "b":
            array = array.view(np.uint8)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)

        def said(fraction: float) -> None:
            self.outputs.check()
            if progress is not None:
                progress(fraction)

        self.outputs.writing = True
        try:
            with _writing(self.location.name):
                WRITERS[self.location.format](self, array, geometry, said)
        except FileError:
            # Deleting under a writer's feet makes it fail in many ways; the cause is the interruption.
            self.outputs.check()
            raise
        finally:
            self.outputs.writing = False


def plan(outputs: Outputs, name: str | os.PathLike[str], shape: Sequence[int], inputs: Sequence[Path] = ()) -> Target:
    """Check, before any work, that an array of `shape` can be written to `name`.

    Raises
    ------
    InputError
        If the suffix is unknown, the folder is missing or not writable, the output exists and may not be
        overwritten, holds more than the array that would replace it, is one of `inputs`, or cannot hold `shape`.
    LibraryError
        If the library that writes it is not installed.
    """
    location = locate(os.fspath(name))
    if location.format == "images":
        raise InputError(
            f"cannot write {location.name}: folders of images are only read; write a .tif, which holds all slices, or "
            f"a .zarr"
        )
    if location.format in LIBRARIES:
        _library(*LIBRARIES[location.format])
    if location.format == "tiff" and not math.prod(shape):
        raise InputError(f"a TIFF file cannot hold the empty shape {tuple(shape)}; write a .npy or a .zarr")
    if location.format == "zarr":
        target = zarr_target(location)
        return Target(location, outputs.add(location.name, target, ".zarr", inputs, folder=True), outputs)
    target = Path(os.path.realpath(location.path))
    suffix = ".nii.gz" if location.name.lower().endswith(".nii.gz") else target.suffix
    output = outputs.add(location.name, target, suffix, inputs)
    if location.format == "hdf5" and target.exists():
        _check_hdf5_loss(location)
    return Target(location, output, outputs)


def zarr_target(location: Location) -> Path:
    """Return the folder that a new zarr array makes appear: itself, or the first missing group around it."""
    path = Path(os.path.realpath(location.path))
    depth = next((i for i, part in enumerate(path.parts) if part.lower().endswith(".zarr")), len(path.parts) - 1)
    for i in range(depth + 1, len(path.parts)):
        group = Path(*path.parts[:i])
        kind = _zarr_kind(group)
        if not group.exists():
            return group
        if kind != "group3":
            what = {"group2": "a group of zarr format 2", "array2": "an array", "array3": "an array"}.get(kind)
            raise InputError(
                f"cannot write {location.name}: {group} is {what or 'no zarr group'}, and an array of zarr format 3 "
                f"cannot lie in it; choose another .zarr"
            )
        if "consolidated_metadata" in json.loads((group / "zarr.json").read_bytes()):
            raise InputError(
                f"cannot write {location.name}: {group} has consolidated metadata, in which the new array would be "
                f"missing; choose another .zarr"
            )
    if path.exists() and not _zarr_kind(path).startswith("array"):
        what = "a zarr group" if _zarr_kind(path) else "no zarr array"
        raise InputError(f"{location.name} exists and is {what}, so it is never replaced; choose another output")
    return path


def _check_hdf5_loss(location: Location) -> None:
    """Refuse to replace an HDF5 file that holds anything but the dataset that is written anew."""
    h5py = _library(*LIBRARIES["hdf5"])
    found: list[str] = []
    with _reading(str(location.path)), h5py.File(location.path, "r") as file:
        file.visititems(lambda name, node: found.append(name) if isinstance(node, h5py.Dataset) else None)
    others = [name for name in found if name != (location.inner or HDF5_DEFAULT)]
    if others:
        raise InputError(
            f"{location.path} also holds /{', /'.join(others[:8])}, and an HDF5 file is replaced as a whole; choose "
            f"another file"
        )


def write(
    name: str | os.PathLike[str],
    array: Array,
    *,
    spacing: Sequence[float] | None = None,
    unit: str = "",
    like: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write `array` to a file, which appears only when it is complete.

    Parameters
    ----------
    name : str or path
        See the module's table. Labels are compressed in every format but ``.npy`` and plain ``.nii``.
    array : ndarray
        ``(Z, Y, X)`` or ``(Y, X)`` of bool (stored as uint8) or any integer dtype, which is kept.
    spacing : sequence of float, optional
        Voxel size (z, y, x) to note in the file; by default that of `like`.
    unit : str, optional
        Unit of `spacing`, e.g. ``"nm"``.
    like : str or path, optional
        File whose voxel size, and NIfTI header where both are NIfTI, is taken over.
    overwrite : bool, optional
        Replace an existing output, at the very end.

    Raises
    ------
    InputError
        If the output exists, its folder does not, or its suffix is unknown.
    InputTypeError
        If `array` is on a CUDA device.
    LibraryError
        If the library that writes it is not installed.
    FileError
        If writing fails; nothing is left behind.

    Examples
    --------
    >>> import numpy, tempfile, lpa3d.io
    >>> folder = tempfile.TemporaryDirectory()
    >>> name = folder.name + "/labels.npy"
    >>> lpa3d.io.write(name, numpy.array([[[0, 7]]], dtype="uint32"))
    >>> lpa3d.io.read(name)
    array([[[0, 7]]], dtype=uint32)
    >>> folder.cleanup()
    """
    if is_on_device(array):
        raise InputTypeError(
            f"array is a {type(array).__module__}.{type(array).__qualname__} on a CUDA device; a NumPy array is "
            "needed: pass cupy.asnumpy(array)"
        )
    geometry = Geometry()
    inputs: list[Path] = []
    if like is not None:
        with open_volume(like) as volume:
            geometry, inputs = volume.geometry, [volume.path]
    if spacing is not None:
        z, y, x = (float(size) for size in spacing)
        geometry = Geometry((z, y, x), unit, geometry.nifti)
    with Outputs(overwrite=overwrite) as outputs:
        plan(outputs, name, array.shape, inputs).write(array, geometry)
        outputs.commit()


def _write_zarr(target: Target, array: Array, geometry: Geometry, progress: Progress) -> None:
    zarr = _library(*LIBRARIES["zarr"])
    path = Path(os.path.realpath(target.location.path))
    inner = path.relative_to(target.output.target).parts
    group = target.output.temp
    for part in inner:
        zarr.create_group(str(group), zarr_format=3)
        group = group / part
    size = ZARR_CHUNK if array.ndim == 3 else ZARR_CHUNK_2D
    attributes: dict[str, Any] = {"axes": list("zyx"[-array.ndim :])}
    if geometry.spacing is not None:
        attributes["spacing"] = list(geometry.spacing)
        attributes["unit"] = geometry.unit
    stored = zarr.create_array(
        str(group),
        shape=array.shape,
        dtype=array.dtype,
        chunks=tuple(min(size, max(length, 1)) for length in array.shape),
        compressors=[zarr.codecs.ZstdCodec(level=3)],
        fill_value=0,
        attributes=attributes,
        dimension_names=attributes["axes"],
        zarr_format=3,
    )
    rows = _rows(array.shape, array.dtype, size)
    for lo in range(0, len(array), rows):
        stored[lo : lo + rows] = array[lo : lo + rows]
        progress(min((lo + rows) / len(array), 1.0))


def _write_npy(target: Target, array: Array, geometry: Geometry, progress: Progress) -> None:
    with open(target.output.temp, "xb") as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
    progress(1.0)


def _write_nifti(target: Target, array: Array, geometry: Geometry, progress: Progress) -> None:
    nibabel = _library(*LIBRARIES["nifti"])
    large = max(array.shape) > np.iinfo(np.int16).max
    header = geometry.nifti
    if header is None:
        z, y, x = geometry.spacing or (1.0, 1.0, 1.0)
        # NIfTI knows no nanometres.
        factor = NANOMETRES.get(geometry.unit, 0.0) / 1e3
        affine = np.diag([x, y, z, 1.0] * (np.array([factor] * 3 + [1.0]) if factor else 1))
        kind = nibabel.Nifti2Image if large else nibabel.Nifti1Image
        image = kind(array.T, affine, dtype=array.dtype)
        image.header.set_xyzt_units("micron" if factor else "unknown")
    else:
        kind = nibabel.Nifti2Image if large or header["sizeof_hdr"] == 540 else nibabel.Nifti1Image
        header = kind.header_class.from_header(header)
        affine = header.get_best_affine()
        # Display limits of the image that the header comes from would hide labels.
        header["cal_min"] = header["cal_max"] = 0
        image = kind(array.T, affine, header, dtype=array.dtype)
    nibabel.save(image, target.output.temp)
    progress(1.0)


def _write_tiff(target: Target, array: Array, geometry: Geometry, progress: Progress) -> None:
    tifffile = _library(*LIBRARIES["tiff"])
    axes = "ZYX"[-array.ndim :]
    # OME is what most viewers take the voxel size from. It has no 64-bit integers, and cannot tell a stack of one
    # slice from a single image; for those the axes and the voxel size go into tifffile's own description.
    ome = array.dtype.itemsize <= 4 and array.shape[0] > 1
    metadata: dict[str, Any] = {"axes": axes}
    if geometry.spacing is not None and ome:
        for axis, size in zip("ZYX", geometry.spacing, strict=True):
            metadata[f"PhysicalSize{axis}"] = size
            metadata[f"PhysicalSize{axis}Unit"] = OME_UNITS.get(geometry.unit, geometry.unit) or "pixel"
    elif geometry.spacing is not None:
        metadata |= {"spacing": list(geometry.spacing), "unit": geometry.unit}
    pages = array[np.newaxis] if array.ndim == 2 else array

    def each() -> Iterator[Array]:
        for i, page in enumerate(pages):
            progress(i / len(pages))
            yield np.ascontiguousarray(page)

    tifffile.imwrite(
        target.output.temp,
        # Axes of length 1 change what tifffile takes for a page.
        each() if min(array.shape) > 1 else array,
        shape=array.shape,
        dtype=array.dtype,
        bigtiff=array.nbytes > 2**32 - 2**25,
        ome=ome,
        photometric="minisblack",
        compression="zlib",
        metadata=metadata,
    )


OME_UNITS = {
    "picometer": "pm", "angstrom": "Å", "nanometer": "nm", "nanometre": "nm", "um": "µm", "μm": "µm", "micron": "µm",
    "microns": "µm", "micrometer": "µm", "micrometre": "µm", "millimeter": "mm", "millimetre": "mm", "centimeter": "cm",
    "meter": "m", "metre": "m",
}  # fmt: skip

HDF5_DEFAULT = "labels"


def _write_hdf5(target: Target, array: Array, geometry: Geometry, progress: Progress) -> None:
    h5py = _library(*LIBRARIES["hdf5"])
    with h5py.File(target.output.temp, "x") as file:
        stored = file.create_dataset(
            target.location.inner or HDF5_DEFAULT,
            array.shape,
            array.dtype,
            chunks=tuple(min(HDF5_CHUNK, length) for length in array.shape) if array.size else None,
            compression="gzip" if array.size else None,
            shuffle=bool(array.size),
        )
        if geometry.spacing is not None:
            stored.attrs["spacing"] = geometry.spacing
            stored.attrs["unit"] = geometry.unit
        rows = _rows(array.shape, array.dtype, HDF5_CHUNK)
        for lo in range(0, len(array), rows):
            stored[lo : lo + rows] = array[lo : lo + rows]
            progress(min((lo + rows) / len(array), 1.0))


WRITERS: dict[str, Callable[[Target, Array, Geometry, Progress], None]] = {
    "zarr": _write_zarr,
    "npy": _write_npy,
    "nifti": _write_nifti,
    "tiff": _write_tiff,
    "hdf5": _write_hdf5,
}
