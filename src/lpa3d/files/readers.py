"""Opening volumes: one function for each format; folders of images stand in `files.images`."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.text import list_some
from ..errors import InputError, Lpa3dWarning
from .axes import View, read_axes
from .coco import open_coco
from .coded import attribute_coding, bdv_coding, zarr_coding
from .geometry import (
    Geometry,
    attribute_geometry,
    drop_unfilled,
    measure_steps,
    nanometres,
    tiff_geometry,
    zarr_geometry,
    zarr_view,
)
from .images import check_palettes, check_photometric, open_images, read_colormap, tiff_coding
from .metaimage import open_metaimage
from .mrc import open_mrc
from .ngff import choose_array, list_arrays
from .nrrd import open_nrrd
from .places import (
    INTERRUPTED,
    KNOWN,
    LIBRARIES,
    TILED,
    Location,
    load_library,
    locate,
    reaching,
    reading,
    refuse_short,
    zarr_kind,
)
from .tensors import open_n5, open_precomputed
from .volume import Box, Volume, choose_rows, cut_box

__all__ = ["open_volume", "read"]

Array = npt.NDArray[Any]

DEEPEST = 32
"""Steps from a virtual dataset of HDF5 to the voxels."""

SMALLEST, LARGEST = 1e-3, 1e8
"""Sides of a voxel in nanometres, beyond which its unit must be wrong: a picometre, and ten centimetres."""


def open_volume(name: str | os.PathLike[str]) -> Volume:
    """Open a file and read its shape, dtype and geometry, but not its voxels.

    Parameters
    ----------
    name : str or path
        A file, a zarr folder or a folder of images, with the array inside where there are several: ``a.zarr/labels``,
        ``a.h5:/labels``. Behind it an index along each axis that is none of space and longer than 1: ``a.zarr:c=2``,
        ``a.h5:/labels:c=0,t=3``.

    Returns
    -------
    Volume
        To be used in a ``with`` block, or closed.

    Raises
    ------
    InputError
        If there is no such file, its suffix is unknown, it cannot be read, or it holds several arrays, or channels or
        times, and `name` does not say which one. For a folder also if the names of its images give no clear order, or
        if the images differ in size or kind, are in colour or hold several pages.
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
    if location.path.is_dir() and location.format not in ("images", *TILED):
        raise InputError(f"{location.path} is a folder, not a {location.format} file")
    if location.path.is_file() and not location.path.stat().st_size:
        raise InputError(f"{location.path} is empty, so it is no {location.format} file; known are {KNOWN}")
    with reading(location.name):
        volume = OPENERS[location.format](location)
    volume.geometry = drop_unfilled(volume.geometry)
    said, unit = volume.geometry.spacing, nanometres(volume.geometry.unit)
    if said is not None and unit is not None and not SMALLEST <= unit * min(said) <= unit * max(said) <= LARGEST:
        sizes = " ".join(f"{size:g}" for size in said)
        warnings.warn(
            f"{location.name} says that its voxels are {sizes} {volume.geometry.unit} large, which no microscope has; "
            "if the unit is wrong, pass the true spacing",
            Lpa3dWarning,
            2,
        )
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


def _choose(location: Location, arrays: Sequence[str], joint: str) -> str:
    """Return the only one of several names, or say that one must be named."""
    if len(arrays) == 1:
        return arrays[0]
    if not arrays:
        raise InputError(f"{location.name} holds no array")
    listed = list_some([f"{location.path}{joint}{name}" for name in arrays], 8)
    raise InputError(f"{location.name} holds {len(arrays)} arrays; name one of them: {listed}")


def _find_array(location: Location) -> tuple[Any, str]:
    """Return the zarr array that is meant, the only one of a group, and where it is."""
    zarr = load_library(*LIBRARIES["zarr"])
    if location.url:
        with reaching(location.url):
            try:
                node = zarr.open(location.url, mode="r")
            except (OSError, KeyError) as error:
                raise InputError(f"{location.url} is no zarr array that can be opened: {error}") from error
            if isinstance(node, zarr.Array):
                return node, location.url
            url = f"{location.url.rstrip('/')}/{choose_array(location.url, node)}"
            return zarr.open_array(url, mode="r"), url
    path = location.path
    kind = zarr_kind(path)
    if not kind:
        for parent in path.parents:
            if zarr_kind(parent).startswith("group"):
                inside = ", ".join(list_arrays(str(parent), zarr.open_group(str(parent), mode="r"))) or "no array"
                raise InputError(f"{path} does not exist; {parent} holds {inside}")
        raise InputError(f"{path} is no zarr array" if path.exists() else f"{path} does not exist")
    if kind.startswith("group"):
        path = path / choose_array(str(path), zarr.open_group(str(path), mode="r"))
        if not zarr_kind(path).startswith("array"):
            raise InputError(f"{location.name} says that its voxels are in {path}, which is no zarr array")
    return zarr.open_array(str(path), mode="r"), str(path)


def _open_zarr(location: Location) -> Volume:
    array, place = _find_array(location)
    about = array.attrs.get("lpa3d")
    if isinstance(about, dict) and about.get("complete") is False:
        raise InputError(
            f"{location.name} is an unfinished result of lpa3d {about.get('verb')}; make the call that began it again"
        )
    view = zarr_view(array, location.base, location.chosen)
    shape, stored = view.shape, tuple(int(size) for size in (array.shards or array.chunks))
    chunks, unit = (tuple(max(int(size), 1) for size in view.pick(sizes)) for sizes in (stored, array.chunks))
    compressors = ", ".join(_codec_name(codec) for codec in array.compressors)

    def fetch(lo: int, hi: int) -> Array:
        return np.asarray(view.read(array, view.cut_rows(lo, hi)))

    def fetch_box(box: Box) -> Array:
        return np.asarray(view.read(array, box))

    def list_stored() -> tuple[list[Box], Any]:
        if location.url:
            return list(cut_box(tuple(slice(0, size) for size in shape), unit, array.dtype.itemsize)), 0
        corners = [[at * size for at, size in zip(chunk, stored, strict=True)] for chunk in _list_chunks(array)]
        starts = [view.pick(corner) for corner in corners if view.holds(corner, stored)]
        fill = array.fill_value
        return _box_chunks(starts, chunks, shape, unit, array.dtype.itemsize), 0 if fill is None else fill

    return Volume(
        location.name,
        Path(place),
        "zarr",
        shape,
        np.dtype(array.dtype),
        fetch,
        zarr_geometry(array, view),
        chunks,
        compressors,
        choose_rows(shape, np.dtype(array.dtype), chunks[0]),
        list_stored=list_stored,
        fetch_box=fetch_box,
        view=view,
        url=place if location.url else "",
        coding=zarr_coding(location.base, array),
    )


def _list_chunks(array: Any) -> list[tuple[int, ...]]:
    """Return the places in their grid of the chunks (shards) of a local zarr array that are stored."""
    grid = [-(-side // max(size, 1)) for side, size in zip(array.shape, array.shards or array.chunks, strict=True)]
    root = Path(array.store.root, array.path)
    found = []
    for folder, _, files in os.walk(root, followlinks=True):
        for file in files:
            key = Path(folder, file).relative_to(root).as_posix()
            place = tuple(map(int, re.findall(r"[0-9]+", key)))
            inside = len(place) == len(grid) and all(at < count for at, count in zip(place, grid, strict=True))
            if inside and array.metadata.encode_chunk_key(place) == key:
                found.append(place)
    return sorted(found)


def _box_chunks(
    starts: Sequence[Sequence[int]],
    chunks: Sequence[int],
    shape: Sequence[int],
    unit: Sequence[int],
    itemsize: int,
) -> list[Box]:
    """Return the boxes of chunks, cut into parts that may be read alone."""
    boxes = [
        tuple(slice(at, min(at + size, side)) for at, size, side in zip(start, chunks, shape, strict=True))
        for start in starts
    ]
    return [part for box in boxes for part in cut_box(box, unit, itemsize)]


def _codec_name(codec: Any) -> str:
    """Return what a person calls a compressor, of either zarr format."""
    settings = codec.to_dict() if hasattr(codec, "to_dict") else codec.get_config()
    inner = settings.get("configuration") or settings
    name = str(settings.get("name") or settings.get("id"))
    return f"{name} {inner['cname']}" if "cname" in inner else name


PICKLED = (
    "holds no array but pickled Python objects, which can do anything when they are loaded, so they are not. Where you "
    "trust the file, save the array that is in it: found = numpy.load(name, allow_pickle=True).item(); "
    "numpy.save('masks.npy', found['masks']) for what cellpose writes"
)


def _open_npy(location: Location) -> Volume:
    try:
        array = np.load(location.path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        if "Python objects" not in str(error):
            raise
        raise InputError(f"{location.path} {PICKLED}") from error
    view = location.choose(None, array.shape)
    plain = view.read(np.asarray(array))
    return Volume(
        location.name,
        location.path,
        "npy",
        view.shape,
        plain.dtype,
        lambda lo, hi: plain[lo:hi],
        rows=choose_rows(view.shape, plain.dtype),
        view=view,
        at_once=True,
    )


NIFTI_AXES = ("x", "y", "z", "t", "c", "u", "v")
"""What the format says that its axes are; the fifth is for several values of one voxel."""


def _open_nifti(location: Location) -> Volume:
    nibabel = load_library(*LIBRARIES["nifti"])
    image = nibabel.load(location.path)
    proxy, header = image.dataobj, image.header
    scaled = (proxy.slope, proxy.inter) != (1.0, 0.0)
    # Without a scale the numbers in the file are the values; asking for scaled ones would turn integers into floats.
    dtype = np.dtype(np.float64) if scaled else np.dtype(proxy.dtype)
    view = location.choose(NIFTI_AXES[: len(image.shape)], image.shape)
    shape = view.shape
    sizes = [float(str(size)) for size in header.get_zooms()[:3]]
    sizes += [max(sizes, default=1.0)] * (3 - len(sizes))
    unit = header.get_xyzt_units()[0]
    if int(header.get("sform_code", 0)) > 0:
        said = measure_steps(image.affine).tolist()
        count = min(3, len(image.shape))
        if not np.allclose(said[:count], sizes[:count], rtol=1e-3):
            shown = [" ".join(f"{size:g}" for size in reversed(each[:count])) for each in (said, sizes)]
            warnings.warn(
                f"{location.name} contradicts itself: by its affine voxels are {shown[0]} large, by pixdim {shown[1]}; "
                "the affine is believed, and the spacing that you pass counts more",
                Lpa3dWarning,
                2,
            )
            sizes[:count] = said[:count]
    packed = location.path.name.lower().endswith(".gz")

    def fetch(lo: int, hi: int) -> Array:
        if not math.prod(shape):
            return np.empty(shape, dtype)  # nibabel loses the shape of some
        array = np.asarray(proxy) if scaled else np.asarray(proxy.get_unscaled())
        return np.asarray(view.read(array)[lo:hi])

    return Volume(
        location.name,
        location.path,
        "nifti",
        shape,
        dtype,
        fetch,
        Geometry((sizes[2], sizes[1], sizes[0]), "" if unit == "unknown" else unit, header),
        None,
        "gzip" if packed else "",
        0 if packed or scaled else choose_rows(shape, dtype),
        view=view,
        at_once=True,
    )


def _open_tiff(location: Location) -> Volume:
    tifffile = load_library(*LIBRARIES["tiff"])
    with _watching("tifffile") as messages:
        tiff = tifffile.TiffFile(location.path)
        try:
            series = list(tiff.series)
            _check_tiff(location, tiff, series, messages)
            first = series[0]
            axes, full, note = first.get_axes(False), first.get_shape(False), ""
            if first.kind == "shaped" and axes[:1] == "S" and len(full) == 3:
                # Of three or four slices tifffile makes the planes of a colour image, unless it is told otherwise.
                axes = "Z" + axes[1:]
                note = f"{location.name}: its {full[0]} planes, which are stored as colours, are taken for slices"
            if any(axis == "S" and n > 1 for axis, n in zip(axes, full, strict=True)) and not location.chosen:
                raise InputError(
                    f"{location.path} is a colour image, axes {axes}, shape {full}; one channel is needed: choose by "
                    f"typing {location.base}:s=0 (s is 0 to {full[axes.index('S')] - 1})"
                )
            view = location.choose(_name_tiff_axes(axes, full, whole=first.kind == "shaped"), full)
            shape = view.shape
            if len(series) > 1:
                # Images of OME are not slices of one: they may be of several places.
                same = all(each.shape == first.shape and each.dtype == first.dtype for each in series)
                if not same or len(shape) != 2 or first.kind == "ome":
                    shapes = ", ".join(str(each.shape) for each in series[:8])
                    raise InputError(
                        f"{location.path} holds {len(series)} images, of shapes {shapes}; one stack is needed"
                    )
                shape = (len(series), *shape)
            page = first.keyframe
            check_photometric(location.path, tiff)
            if page.photometric.name == "PALETTE":
                pages = (
                    (f"image {k}", each.aspage()) for k, each in enumerate(part for one in series for part in one.pages)
                )
                check_palettes(location.name, ((name, read_colormap(each) or ()) for name, each in pages))
            compression = "" if page.compression == 1 else page.compression.name.lower()
            geometry = tiff_geometry(tiff, view)
            coding = tiff_coding(location.base, tiff, first.dtype)
        except BaseException:
            tiff.close()
            raise

    slabs = _read_pages(tiff, first, view) if len(series) == 1 and shape and shape[0] else None

    def fetch(lo: int, hi: int) -> Array:
        if slabs is not None and hi - lo < shape[0]:
            return slabs(lo, hi)
        planes = [view.read(np.asarray(each.asarray()).reshape(full)) for each in series]
        return (planes[0] if len(planes) == 1 else np.stack(planes))[lo:hi]

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
        choose_rows(shape, np.dtype(first.dtype)) if slabs is not None else 0,
        note=note,
        close=tiff.close,
        view=view,
        at_once=True,
        coding=coding,
    )


def _read_pages(tiff: Any, series: Any, view: View) -> Callable[[int, int], Array] | None:
    """Return how some slices of a stack are read alone; None where a page is no slice of it."""
    full = series.get_shape(False)
    if not view.is_plain or math.prod(full) != math.prod(view.shape):
        return None
    if series.dataoffset is not None and all(page.parent is tiff for page in series.pages):
        # Also of stacks of ImageJ that are larger than 4 GB and have one page only.
        dtype = np.dtype(series.dtype).newbyteorder(tiff.byteorder)
        return lambda lo, hi: np.asarray(
            np.memmap(tiff.filehandle.path, dtype, "r", series.dataoffset, view.shape)[lo:hi]
        ).astype(series.dtype, copy=False)
    if len(view.shape) < 3 or len(series.pages) != view.shape[0]:
        return None
    return lambda lo, hi: np.asarray(tiff.asarray(key=slice(lo, hi), series=0)).reshape(hi - lo, *view.shape[1:])


def _name_tiff_axes(axes: str, shape: Sequence[int], *, whole: bool) -> list[str]:
    """Return the names of the axes of a TIFF file.

    Images in a row of which nothing else is said are slices. Where the shape is not noted as it was (OME and ImageJ
    always name all axes), a z axis of length 1 is one that is not used.
    """
    names: list[str] = list(axes.lower())
    rows = [k for k, axis in enumerate(axes) if axis in "IQ"]
    slices = [k for k in rows if shape[k] > 1] or (rows[-1:] if whole else [])
    if "z" not in names and len(slices) == 1:
        names[slices[0]] = "z"
    elif "z" not in names and slices:
        # Nobody can say which of several are slices.
        names = ["" if axis in "IQYX" else axis.lower() for axis in axes]
    return [f"{axis}^" if axis == "z" and n == 1 and not whole else axis for axis, n in zip(names, shape, strict=True)]


class _Said(logging.Handler):
    """Collects the messages of a library's logger."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextlib.contextmanager
def _watching(library: str) -> Iterator[list[str]]:
    """Collect what a library logs instead of raising an error."""
    logger, handler = logging.getLogger(library), _Said()
    logger.addHandler(handler)
    try:
        yield handler.texts
    finally:
        logger.removeHandler(handler)


BROKEN = re.compile(
    "TiffPages.* invalid|invalid value offset|corrupted|truncated|failed to re|Missing data", re.IGNORECASE
)
"""What tifffile logs, and goes on with fewer images, or with zeros."""


def _check_tiff(location: Location, tiff: Any, series: Sequence[Any], said: Sequence[str]) -> None:
    """Refuse a file that lacks something of what it says that it holds."""
    advice = INTERRUPTED
    if not series:
        raise InputError(f"{location.path} holds no image{advice}")
    first = series[0]
    pages = [page for each in series for page in each.pages]
    if any(page is None for page in pages):
        gone = [text for text in said if "failed to read '" in text]
        files = {text.partition("failed to read '")[2].partition("'")[0] for text in gone}
        missing = f": {list_some(sorted(files))} cannot be read" if files else ""
        lost = sum(page is None for page in pages)
        raise InputError(
            f"{location.path} lacks {lost} of the {len(pages)} images that it says it holds{missing}; put all files of "
            "the data set into one folder"
        )
    there = math.prod(first.shape) // max(1, math.prod(first.keyframe.shape))
    claimed = there
    if tiff.is_imagej:
        claimed = int((tiff.imagej_metadata or {}).get("images", 1))
    elif tiff.is_shaped and "shape" in tiff.shaped_metadata[0] and first.index == 0:
        claimed = there * math.prod(tiff.shaped_metadata[0]["shape"]) // max(1, math.prod(first.shape))
    if there < claimed:
        raise InputError(
            f"{location.path} is incomplete: it says that it holds {claimed} images, but has {there}{advice}"
        )
    ends = [(page.parent.filehandle, _find_end(page)) for page in pages]
    if first.dataoffset is not None:
        # A stack of ImageJ that is larger than 4 GB has one page, and all slices behind its first.
        ends.append((first.parent.filehandle, first.dataoffset + first.nbytes))
    for file, end in ends:
        if end > file.size:
            raise InputError(
                f"{file.path} is incomplete: it has {file.size:,} bytes, but its images reach to {end:,}{advice}"
            )
    broken = next((text for text in said if BROKEN.search(text)), None)
    if broken is not None:
        raise InputError(f"{location.path} is incomplete or damaged ({re.sub('<[^>]*> ?', '', broken)}){advice}")


def _find_end(page: Any) -> int:
    """Return where the last byte of a page's voxels lies."""
    return max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True)), default=0)


def _open_hdf5(location: Location) -> Volume:
    h5py = load_library(*LIBRARIES["hdf5"])
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
        _check_parts(h5py, location.name, location.path, node)
        attributes = {key: node.attrs[key] for key in node.attrs}
        view = location.choose(read_axes(attributes, node.ndim, _name_dimensions(node)), node.shape)
        shape, dtype = view.shape, np.dtype(node.dtype)
        geometry = attribute_geometry(attributes, view)
        coding = bdv_coding(location.base, node) or attribute_coding(location.base, attributes, dtype)
    except BaseException:
        file.close()
        raise
    stored = node.chunks
    chunks = None if stored is None else tuple(view.pick(stored))

    def fetch(lo: int, hi: int) -> Array:
        return np.asarray(view.read(node, view.cut_rows(lo, hi)))

    def fetch_box(box: Box) -> Array:
        return np.asarray(view.read(node, box))

    def list_stored() -> tuple[list[Box], Any]:
        if chunks is None:
            whole = tuple(slice(0, side) for side in shape)
            return list(cut_box(whole, (1,) * len(shape), dtype.itemsize)), 0
        corners = [node.id.get_chunk_info(k).chunk_offset for k in range(node.id.get_num_chunks())]
        starts = [view.pick(corner) for corner in corners if view.holds(corner, stored)]
        return _box_chunks(starts, chunks, shape, chunks, dtype.itemsize), node.fillvalue

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
        choose_rows(shape, dtype, chunks[0] if chunks else 1),
        list_stored=list_stored,
        fetch_box=fetch_box,
        close=file.close,
        view=view,
        coding=coding,
    )


def _name_dimensions(node: Any) -> list[str | None]:
    """Return what HDF5 calls the axes: the labels of dimensions, or the names of the scales that netCDF gives them."""
    if "IMAGE_TRUECOLOR" in str(node.attrs.get("IMAGE_SUBCLASS")) and node.ndim == 3:
        # Colours of one image, as HDF5's own specification of images has them.
        return list("syx" if "PLANE" in str(node.attrs.get("INTERLACE_MODE")) else "yxs")
    return [
        dimension.label or next((name.rpartition("/")[2] for scale in dimension.values() if (name := scale.name)), None)
        for dimension in node.dims
    ]


def _check_parts(h5py: Any, name: str, path: Path, node: Any, depth: int = 0) -> None:
    """Refuse a dataset of the file `path` that is made of other files where one, or a part of one, is missing.

    It would be read as the fill value.
    """
    needed = int(node.nbytes)
    for file_name, offset, size in node.external or ():
        taken = min(needed, int(size))
        needed -= taken
        for raw in (Path(file_name), path.parent / file_name):
            if raw.is_file():
                refuse_short(raw, raw.stat().st_size, int(offset) + taken)
                break
    if depth > DEEPEST:
        raise InputError(f"{name} is made of other datasets, one below another without an end; copy its voxels")
    for source in node.virtual_sources() if node.is_virtual else ():
        if "%" in source.file_name:
            continue  # a pattern, of as many files as there are
        other = path if source.file_name == "." else path.parent / source.file_name
        there = other.is_file()
        if there:
            with h5py.File(other, "r") as file:
                there = source.dset_name in file
                if there:
                    _check_parts(h5py, name, other, file[source.dset_name], depth + 1)
        if not there:
            raise InputError(
                f"{name} is made of other files, of which {other}:{source.dset_name} is missing; put it back"
            )


def _hdf5_arrays(h5py: Any, file: Any) -> list[str]:
    """Return the names of the datasets that could be volumes."""
    found: list[str] = []

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "buif" and node.ndim >= 2:
            found.append(f"/{name}")

    file.visititems(visit)
    return found


def _open_npz(location: Location) -> Volume:
    with zipfile.ZipFile(location.path) as file:
        names = [name.removesuffix(".npy") for name in file.namelist()]
        heads = {}
        for name in names if not location.inner else [location.inner] if location.inner in names else []:
            with file.open(f"{name}.npy" if f"{name}.npy" in file.namelist() else name) as member:
                heads[name] = _read_npy_head(np.lib.format, member)
        if location.inner and location.inner not in names:
            raise InputError(f"{location.path} has no array {location.inner}; it holds {list_some(names, 8) or 'none'}")
    key = location.inner or _choose(location, [name for name in names if len(heads[name][0]) >= 2], ":")
    shape, dtype = heads[key]
    if dtype.hasobject:
        raise InputError(f"{location.path}:{key} {PICKLED}")
    view = location.choose(None, shape)

    def fetch(lo: int, hi: int) -> Array:
        with np.load(location.path, allow_pickle=False) as file:
            return np.asarray(view.read(file[key])[lo:hi])

    return Volume(location.name, location.path, "npz", view.shape, dtype, fetch, compression="zip", view=view)


def _read_npy_head(form: Any, file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and the dtype of an array in a .npy file."""
    read = {(1, 0): form.read_array_header_1_0}.get(form.read_magic(file), form.read_array_header_2_0)
    shape, _, dtype = read(file)
    return shape, dtype


OPENERS: dict[str, Callable[[Location], Volume]] = {
    "zarr": _open_zarr,
    "npy": _open_npy,
    "npz": _open_npz,
    "mrc": open_mrc,
    "nrrd": open_nrrd,
    "metaimage": open_metaimage,
    "n5": open_n5,
    "precomputed": open_precomputed,
    "coco": open_coco,
    "nifti": _open_nifti,
    "tiff": _open_tiff,
    "hdf5": _open_hdf5,
    "images": open_images,
}
