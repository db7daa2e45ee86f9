"""Writing volumes: one function for each format."""

from __future__ import annotations

import functools
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ..arrays.backend import is_on_device
from ..arrays.checks import check_flag, refuse_mask
from ..arrays.text import list_some
from ..errors import InputError, InputTypeError, Keyword
from .geometry import Geometry, nanometres
from .metaimage import write_metaimage
from .mrc import write_mrc
from .ngff import (
    Placed,
    adopt_geometry,
    check_storage,
    check_target,
    choose_form,
    describe_array,
    describe_image,
    find_top,
    reduce_level,
    write_group,
)
from .nrrd import write_nrrd
from .outputs import Beside, Outputs
from .places import LIBRARIES, FileError, Location, load_library, locate, reading, writing
from .readers import open_volume
from .tensors import tensor_target, write_n5, write_precomputed
from .volume import Box, Lazy, choose_rows, cut_boxes, cut_slabs, find_bounds

__all__ = ["Target", "plan", "write"]

Array = npt.NDArray[Any]
Progress = Callable[[float], None]

ZARR_CHUNK, ZARR_CHUNK_2D, HDF5_CHUNK = 128, 1024, 64


# ---------------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class Target:
    """An output that was checked: `write` fills its temporary file, the outputs' ``commit`` puts it into place."""

    location: Location
    output: Beside
    outputs: Outputs
    storage: Mapping[str, Any] = field(default_factory=dict)
    image: bool = False
    names: Mapping[int, str] = field(default_factory=dict)

    def write(self, array: Array | Lazy, geometry: Geometry, progress: Progress | None = None) -> None:
        """Write an array to the temporary file.

        Parameters
        ----------
        array : ndarray or Lazy of bool, integers or floats
            Of the shape that `plan` was told. bool is stored as uint8, every other dtype as it is; a `Lazy` one is not
            of bool.
        geometry : Geometry
            The size of its voxels.
        progress : callable, optional
            Called as ``progress(fraction)`` after each slab.

        Raises
        ------
        FileError
            If it cannot be written.
        """
        if isinstance(array, np.ndarray):
            if array.dtype.kind == "b":
                array = array.view(np.uint8)
            array = array.astype(array.dtype.newbyteorder("="), copy=False)

        def said(fraction: float) -> None:
            self.outputs.check()
            if progress is not None:
                progress(fraction)

        self.outputs.writing = True
        try:
            with writing(self.location.name):
                WRITERS[self.location.format](self, array, geometry, said)
        except FileError:
            # Deleting under a writer's feet makes it fail in many ways; the cause is the interruption.
            self.outputs.check()
            raise
        finally:
            self.outputs.writing = False


def plan(
    outputs: Outputs,
    name: str | os.PathLike[str],
    shape: Sequence[int],
    inputs: Sequence[Path] = (),
    *,
    storage: Mapping[str, Any] | None = None,
    image: bool = False,
    imagej: bool = False,
    names: Mapping[int, str] | None = None,
) -> Target:
    """Check, before any work, that an array of `shape` can be written to `name`.

    Parameters
    ----------
    outputs : Outputs
        The outputs of the run, which it becomes one of.
    name : str or path
        Where it goes; the suffix decides the format.
    shape : sequence of int
        Of the array.
    inputs : sequence of Path, optional
        Files and folders that are read, and so must not be written.
    storage : mapping, optional
        ``layout`` and ``levels`` of a zarr output; see `write`.
    image : bool
        Whether it is an image rather than labels, whose levels are made in another way. Floats always are.
    imagej : bool, optional
        Write a TIFF file as ImageJ does.
    names : mapping of int to str, optional
        The names of classes, which zarr, HDF5, N5 and NRRD files keep.

    Returns
    -------
    Target
        To `Target.write` the array to; committing `outputs` puts it into place.

    Raises
    ------
    InputError
        If the suffix is unknown, the folder is missing or not writable, the output exists and may not be
        overwritten, holds more than the array that would replace it, is one of `inputs`, or cannot hold `shape`.
    LibraryError
        If the library that writes it is not installed.
    """
    location, known = locate(os.fspath(name)), dict(names or {})
    location.refuse_choice()
    only = READ_ONLY.get(location.format) or READ_ONLY.get((location.format, location.path.suffix.lower()))
    if only:
        raise InputError(f"cannot write {location.name}: {only}")
    if location.url:
        if not outputs.stores:
            raise InputError(
                f"cannot write {location.name}: only work tile by tile writes to a URL, for which all inputs are zarr "
                "(lpa3d convert makes them); write a local file, and copy it"
            )
        return Target(location, Beside(location.name, Path(), Path(), Path(), False), outputs, names=known)
    if imagej:
        if location.format != "tiff":
            raise InputError(Keyword("imagej"), f" is for TIFF files, and {location.name} is none; name it .tif")
        location = replace(location, format="imagej")
        load_library(*LIBRARIES["tiff"])
    if location.format in LIBRARIES:
        load_library(*LIBRARIES[location.format])
    if location.format in ("tiff", "imagej") and not math.prod(shape):
        raise InputError(f"a TIFF file cannot hold the empty shape {tuple(shape)}; write a .npy or a .zarr")
    storage = {key: value for key, value in (storage or {}).items() if value is not None}
    if location.format == "zarr":
        target = check_target(location)
        # What the voxels are is not known yet; what the groups around it say is.
        form = choose_form(target, shape, Geometry(), storage, image=image)
        make = functools.partial(Placed, form=form)
        folder = Path(*target.parts[: find_top(target)])
        output = outputs.add(location.name, target, ".zarr", inputs, folder=folder, make=make)
        return Target(location, output, outputs, storage, image, known)
    if storage:
        raise InputError(
            *[part for key in storage for part in (", ", Keyword(f"storage[{key!r}]"))][1:],
            f" {'are' if len(storage) > 1 else 'is'} for zarr, and {location.name} is none; leave "
            f"{'them' if len(storage) > 1 else 'it'} out",
        )
    if location.format in ("n5", "precomputed"):
        target = tensor_target(location)
        output = outputs.add(location.name, target, target.suffix, inputs, folder=target.parent)
        return Target(location, output, outputs, names=known)
    target = Path(os.path.realpath(location.path))
    suffix = ".nii.gz" if location.name.lower().endswith(".nii.gz") else target.suffix
    output = outputs.add(location.name, target, suffix, inputs)
    if location.format == "hdf5" and target.exists():
        _check_hdf5_loss(location)
    if location.format == "npz" and target.exists():
        with reading(str(location.path)), zipfile.ZipFile(target) as file:
            others = [one for one in file.namelist() if one != f"{location.inner or NPZ_DEFAULT}.npy"]
        if others:
            raise InputError(
                f"{location.path} also holds {list_some(others, 8)}, and a .npz file is replaced as a whole; choose "
                "another file"
            )
    return Target(location, output, outputs, names=known)


READ_ONLY: dict[str | tuple[str, str], str] = {
    "images": "folders of images are only read; write a .tif, which holds all slices, or a .zarr",
    "coco": "COCO files are only read; write a .tif or a .zarr",
    ("metaimage", ".mhd"): "the header and the voxels would be two files; write a .mha, which holds both",
    ("nrrd", ".nhdr"): "the header and the voxels would be two files; write a .nrrd, which holds both",
    ("mrc", ".gz"): "MRC files are written without compression; write a .mrc",
    ("mrc", ".bz2"): "MRC files are written without compression; write a .mrc",
}
"""What cannot be written, by its format, or by its format and suffix."""


def _check_hdf5_loss(location: Location) -> None:
    """Refuse to replace an HDF5 file that holds anything but the dataset that is written anew."""
    h5py = load_library(*LIBRARIES["hdf5"])
    own = (location.inner or HDF5_DEFAULT).strip("/")
    others: list[str] = []

    def look(name: str, node: Any) -> None:
        around = not isinstance(node, h5py.Dataset) and own.startswith(f"{name}/") and not len(node.attrs)
        if name != own and not around:
            others.append(name)

    with reading(str(location.path)), h5py.File(location.path, "r") as file:
        file.visititems(look)
        others += [f"attribute {name}" for name in file.attrs]
    if others:
        raise InputError(
            f"{location.path} also holds {list_some(others, 8, show='/{}'.format)}, and an HDF5 file is replaced as a "
            f"whole; choose another file"
        )


def write(
    name: str | os.PathLike[str],
    array: Array,
    *,
    spacing: Sequence[float] | None = None,
    unit: str = "",
    like: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    storage: Mapping[str, Any] | None = None,
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
    storage : mapping, optional
        Of a zarr output: ``layout``, the version of OME-Zarr (``"0.5"``, or ``"0.4"``), or ``"array"`` for a plain
        array, and ``levels``, how many resolutions are stored, by default until one has 256 cubed voxels.

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
    refuse_mask(array, "array")
    check_flag(overwrite, "overwrite")
    geometry = Geometry()
    inputs: list[Path] = []
    if like is not None:
        with open_volume(like) as volume:
            geometry, inputs = volume.geometry, [volume.path]
    if spacing is not None:
        z, y, x = (float(size) for size in spacing)
        geometry = Geometry((z, y, x), unit, geometry.nifti)
    with Outputs(overwrite=overwrite) as outputs:
        image = array.dtype.kind == "f"
        plan(outputs, name, array.shape, inputs, storage=check_storage(storage), image=image).write(array, geometry)
        outputs.commit()


def _name_classes(target: Target) -> dict[str, str]:
    return {str(number): name for number, name in target.names.items()}


def _write_zarr(target: Target, array: Array, geometry: Geometry, progress: Progress) -> None:
    zarr = load_library(*LIBRARIES["zarr"])
    output = target.output
    image = target.image or array.dtype.kind == "f"
    geometry = adopt_geometry(output.target, array.shape, geometry)
    form = choose_form(output.target, array.shape, geometry, target.storage, image=image)
    three = form.zarr_format == 3
    side = ZARR_CHUNK if array.ndim == 3 else ZARR_CHUNK_2D
    axes = list("zyx"[-array.ndim :])
    names = {"class_names": _name_classes(target)} if target.names else {}
    shapes = form.shapes((1,) * (3 - array.ndim) + array.shape)
    total, done, largest = sum(map(math.prod, shapes)), 0, None
    flat: Any = array
    stored: list[Any] = []

    def said(fraction: float) -> None:
        progress(min((done + fraction * flat.size) / max(total, 1), 1.0))

    for k, (path, step) in enumerate(zip(form.paths, ((1, 1, 1), *form.steps), strict=True)):
        if k:
            # What was written is read again, box by box.
            flat = _reduce(stored[-1], shapes[k], step, image=image)
        made = zarr.create_array(
            str(output.temp / path),
            shape=flat.shape,
            dtype=flat.dtype,
            chunks=tuple(min(side, max(length, 1)) for length in flat.shape),
            compressors=[zarr.codecs.ZstdCodec(level=3)] if three else _load_zstd(),
            fill_value=0,
            attributes=describe_array(axes, geometry if k == 0 else Geometry()) | names,
            dimension_names=axes if three else None,
            chunk_key_encoding=None if three else {"name": "v2", "separator": "/"},
            zarr_format=form.zarr_format,
        )
        for box, part in cut_boxes(flat, side, said):
            made[box] = part
        stored.append(made)
        done += flat.size
    if form.is_group:
        if not image and array.size:
            low, high = find_bounds(array)
            largest = int(high) if low >= 0 else None
        attributes = describe_image(output.target.stem, form, array.ndim, geometry, largest)
        write_group(output.temp, form.zarr_format, attributes)


def _load_zstd() -> Any:
    import numcodecs

    return numcodecs.Zstd(level=3)


def _reduce(fine: Any, shape: Sequence[int], step: tuple[int, int, int], *, image: bool) -> Lazy:
    """Return a coarser level of a stored array, which is read and reduced where it is asked for."""
    flat = 3 - fine.ndim

    def reduce_part(box: Box) -> Array:
        sides = tuple(
            slice(side.start * size, min(side.stop * size, length))
            for side, size, length in zip(box, step[flat:], fine.shape, strict=True)
        )
        part = np.asarray(fine[sides])
        level = reduce_level(part.reshape((1,) * flat + part.shape), step, image=image)
        return level.reshape(level.shape[flat:])

    def read(box: Box) -> Array:
        # Each voxel is one of several finer ones, so that fewer rows are held at once.
        out = np.empty([side.stop - side.start for side in box], fine.dtype)
        rows = max(1, choose_rows(out.shape, out.dtype) // (2 * math.prod(step)))
        for lo in range(0, len(out), rows):
            hi = min(lo + rows, len(out))
            out[lo:hi] = reduce_part((slice(box[0].start + lo, box[0].start + hi), *box[1:]))
        return out

    return Lazy(tuple(shape[flat:]), np.dtype(fine.dtype), read)


def _write_npy(target: Target, array: Array, geometry: Geometry, progress: Progress) -> None:
    with open(target.output.temp, "xb") as file:
        _write_npy_stream(file, array, progress)


def _write_npy_stream(file: IO[bytes], array: Array, progress: Progress) -> None:
    head = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(file, head)
    for _, _, part in cut_slabs(array, progress):
        file.write(np.ascontiguousarray(part).data)


NPZ_DEFAULT = "labels"


def _write_npz(target: Target, array: Array, geometry: Geometry, progress: Progress) -> None:
    with (
        zipfile.ZipFile(target.output.temp, "x", zipfile.ZIP_DEFLATED, compresslevel=5) as file,
        file.open(f"{target.location.inner or NPZ_DEFAULT}.npy", "w", force_zip64=True) as member,
    ):
        _write_npy_stream(member, array, progress)


def _write_nifti(target: Target, array: Array, geometry: Geometry, progress: Progress) -> None:
    nibabel = load_library(*LIBRARIES["nifti"])
    large = max(array.shape) > np.iinfo(np.int16).max
    header = geometry.nifti
    # It has the shape, and takes no memory.
    empty = np.broadcast_to(np.zeros((), array.dtype), array.shape[::-1])
    if header is None:
        z, y, x = geometry.spacing or (1.0, 1.0, 1.0)
        # NIfTI knows no nanometres.
        factor = (nanometres(geometry.unit) or 0.0) / 1e3
        affine = np.eye(4)
        ways = np.eye(3) if geometry.directions is None or geometry.frame != "RAS" else np.array(geometry.directions).T
        affine[:3, :3] = ways * np.array([x, y, z]) * (factor or 1.0)
        affine[:3, 3] = np.array((geometry.offset or (0.0, 0.0, 0.0))[::-1]) * (factor or 1.0)
        kind = nibabel.Nifti2Image if large else nibabel.Nifti1Image
        image = kind(empty, affine, dtype=array.dtype)
        image.header.set_xyzt_units("micron" if factor else "unknown")
    else:
        kind = nibabel.Nifti2Image if large or header["sizeof_hdr"] == 540 else nibabel.Nifti1Image
        header = kind.header_class.from_header(header)
        affine = header.get_best_affine()
        if geometry.spacing is not None:
            # As it is where it says this already; else the voxels have another size, in the same directions.
            sizes = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
            units = nanometres(geometry.unit), nanometres(header.get_xyzt_units()[0])
            wanted = np.array(geometry.spacing[::-1]) * (units[0] / units[1] if units[0] and units[1] else 1.0)
            if not np.allclose(sizes, wanted, rtol=1e-5) and sizes.all():
                affine = affine @ np.diag([*(wanted / sizes), 1.0])
                header.set_zooms([*wanted, *header.get_zooms()[3:]][: len(header.get_zooms())])
                header.set_sform(affine, code=int(header["sform_code"]))
                header.set_qform(affine, code=int(header["qform_code"]))
        # Display limits of the image that the header comes from would hide labels.
        header["cal_min"] = header["cal_max"] = 0
        image = kind(empty, affine, header, dtype=array.dtype)
    image.update_header()
    head, opener = image.header, nibabel.openers.ImageOpener
    head.set_slope_inter(1.0, 0.0)
    with opener(os.fspath(target.output.temp), "wb") as file:
        head.write_to(file)
        file.write(bytes(head.get_data_offset() - file.tell()))
        # Its first axis is x and varies fastest, as the last one of the array does.
        for _, _, part in cut_slabs(array, progress):
            file.write(np.ascontiguousarray(part, dtype=head.get_data_dtype()).data)


def _write_tiff(target: Target, array: Array, geometry: Geometry, progress: Progress) -> None:
    tifffile = load_library(*LIBRARIES["tiff"])
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
    tifffile.imwrite(
        target.output.temp,
        # Axes of length 1 change what tifffile takes for a page.
        _each_page(array, progress) if min(array.shape) > 1 else np.asarray(array[:]),
        shape=array.shape,
        dtype=array.dtype,
        bigtiff=math.prod(array.shape) * array.dtype.itemsize > 2**32 - 2**25,
        ome=ome,
        photometric="minisblack",
        compression="zlib",
        metadata=metadata,
    )


def _each_page(array: Array, progress: Progress) -> Iterator[Array]:
    """Yield the slices of a volume, or one image."""
    for _, _, part in cut_slabs(array, progress):
        yield from map(np.ascontiguousarray, part if part.ndim == 3 else part[np.newaxis])


def _write_imagej(target: Target, array: Array, geometry: Geometry, progress: Progress) -> None:
    """Write a stack as ImageJ does: not compressed, with the size of its voxels."""
    tifffile = load_library(*LIBRARIES["tiff"])
    if array.dtype.str[1:] not in ("u1", "u2", "f4"):
        raise InputError(
            f"ImageJ has no {array.dtype}: it takes uint8, uint16 (up to 65,535 ids) and float32 (ids up to "
            "16,777,216 are exact); convert with ",
            Keyword("dtype", "uint16"),
            " or ",
            Keyword("dtype", "float32"),
        )
    if math.prod(array.shape) * array.dtype.itemsize > 2**32 - 2**25:
        raise InputError("a TIFF file of ImageJ cannot be larger than 4 GB; leave out ", Keyword("imagej"))
    low, high = find_bounds(array)
    metadata: dict[str, Any] = {"axes": "ZYX"[-array.ndim :], "min": float(low), "max": float(high)}
    resolution = None
    if geometry.spacing is not None:
        z, y, x = geometry.spacing
        unit = OME_UNITS.get(geometry.unit, geometry.unit)
        # The only letter of a unit that is not ASCII is that of micrometres.
        metadata |= {"spacing": z, "unit": "micron" if unit == "µm" else unit.replace("Å", "angstrom") or "pixel"}
        resolution = (1.0 / x, 1.0 / y)
    tifffile.imwrite(
        target.output.temp,
        _each_page(array, progress) if min(array.shape) > 1 else np.asarray(array[:]),
        shape=array.shape,
        dtype=array.dtype,
        imagej=True,
        metadata=metadata,
        resolution=resolution,
    )


OME_UNITS = {
    "picometer": "pm", "angstrom": "Å", "nanometer": "nm", "nanometre": "nm", "um": "µm", "μm": "µm", "micron": "µm",
    "microns": "µm", "micrometer": "µm", "micrometre": "µm", "millimeter": "mm", "millimetre": "mm", "centimeter": "cm",
    "meter": "m", "metre": "m",
}  # fmt: skip

HDF5_DEFAULT = "labels"


def _write_hdf5(target: Target, array: Array, geometry: Geometry, progress: Progress) -> None:
    h5py = load_library(*LIBRARIES["hdf5"])
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
            if geometry.offset is not None:
                stored.attrs["offset"] = geometry.offset[-array.ndim :]
        if target.names:
            stored.attrs["class_names"] = json.dumps(_name_classes(target))
        for box, part in cut_boxes(array, HDF5_CHUNK, progress):
            stored[box] = part


def _write_nrrd(target: Target, array: Array, geometry: Geometry, progress: Progress) -> None:
    write_nrrd(target.output.temp, array, geometry, progress, target.names)


def _write_n5(target: Target, array: Array, geometry: Geometry, progress: Progress) -> None:
    folder = Path(os.path.realpath(target.location.path / target.location.inner))
    inner = folder.relative_to(target.output.target).as_posix()
    about = {"class_names": _name_classes(target)} if target.names else {}
    write_n5(target.output.temp, "" if inner == "." else inner, array, geometry, progress, about)


WRITERS: dict[str, Callable[[Target, Any, Geometry, Progress], None]] = {
    "zarr": _write_zarr,
    "npy": _write_npy,
    "npz": _write_npz,
    "mrc": lambda target, *given: write_mrc(target.output.temp, *given),
    "nrrd": _write_nrrd,
    "metaimage": lambda target, *given: write_metaimage(target.output.temp, *given),
    "precomputed": lambda target, *given: write_precomputed(target.output.temp, *given),
    "n5": _write_n5,
    "nifti": _write_nifti,
    "tiff": _write_tiff,
    "imagej": _write_imagej,
    "hdf5": _write_hdf5,
}
