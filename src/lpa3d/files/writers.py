"""Writing volumes: one function for each format."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.backend import is_on_device
from ..arrays.checks import check_flag, refuse_mask
from ..arrays.text import list_some
from ..errors import InputError, InputTypeError, Keyword
from .geometry import Geometry, nanometres
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
from .outputs import Beside, Outputs
from .places import LIBRARIES, FileError, Location, load_library, locate, reading, writing
from .readers import open_volume
from .volume import choose_rows

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

    def write(self, array: Array, geometry: Geometry, progress: Progress | None = None) -> None:
        """Write an array to the temporary file.

        Parameters
        ----------
        array : ndarray of bool, integers or floats
            Of the shape that `plan` was told. bool is stored as uint8, every other dtype as it is.
        geometry : Geometry
            The size of its voxels.
        progress : callable, optional
            Called as ``progress(fraction)`` after each slab.

        Raises
        ------
        FileError
            If it cannot be written.
        """
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
    location = locate(os.fspath(name))
    location.refuse_choice()
    if location.format == "images":
        raise InputError(
            f"cannot write {location.name}: folders of images are only read; write a .tif, which holds all slices, or "
            f"a .zarr"
        )
    if location.format in LIBRARIES:
        load_library(*LIBRARIES[location.format])
    if location.format == "tiff" and not math.prod(shape):
        raise InputError(f"a TIFF file cannot hold the empty shape {tuple(shape)}; write a .npy or a .zarr")
    storage = {key: value for key, value in (storage or {}).items() if value is not None}
    if location.format == "zarr":
        target = check_target(location)
        # What the voxels are is not known yet; what the groups around it say is.
        form = choose_form(target, shape, Geometry(), storage, image=image)
        make = functools.partial(Placed, form=form)
        folder = Path(*target.parts[: find_top(target)])
        output = outputs.add(location.name, target, ".zarr", inputs, folder=folder, make=make)
        return Target(location, output, outputs, storage, image)
    if storage:
        raise InputError(
            *[part for key in storage for part in (", ", Keyword(f"storage[{key!r}]"))][1:],
            f" {'are' if len(storage) > 1 else 'is'} for zarr, and {location.name} is none; leave "
            f"{'them' if len(storage) > 1 else 'it'} out",
        )
    target = Path(os.path.realpath(location.path))
    suffix = ".nii.gz" if location.name.lower().endswith(".nii.gz") else target.suffix
    output = outputs.add(location.name, target, suffix, inputs)
    if location.format == "hdf5" and target.exists():
        _check_hdf5_loss(location)
    return Target(location, output, outputs)


def _check_hdf5_loss(location: Location) -> None:
    """Refuse to replace an HDF5 file that holds anything but the dataset that is written anew."""
    h5py = load_library(*LIBRARIES["hdf5"])
    found: list[str] = []
    with reading(str(location.path)), h5py.File(location.path, "r") as file:
        file.visititems(lambda name, node: found.append(name) if isinstance(node, h5py.Dataset) else None)
    others = [name for name in found if name != (location.inner or HDF5_DEFAULT)]
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


def _write_zarr(target: Target, array: Array, geometry: Geometry, progress: Progress) -> None:
    zarr = load_library(*LIBRARIES["zarr"])
    output = target.output
    image = target.image or array.dtype.kind == "f"
    geometry = adopt_geometry(output.target, array.shape, geometry)
    form = choose_form(output.target, array.shape, geometry, target.storage, image=image)
    three = form.zarr_format == 3
    side = ZARR_CHUNK if array.ndim == 3 else ZARR_CHUNK_2D
    axes = list("zyx"[-array.ndim :])
    level = array.reshape((1,) * (3 - array.ndim) + array.shape)
    shapes = form.shapes(level.shape)
    total, done, largest = sum(map(math.prod, shapes)), 0, None
    for k, (path, step) in enumerate(zip(form.paths, ((1, 1, 1), *form.steps), strict=True)):
        if k:
            level = reduce_level(level, step, image=image)
        flat = level.reshape(level.shape[3 - array.ndim :])
        stored = zarr.create_array(
            str(output.temp / path),
            shape=flat.shape,
            dtype=flat.dtype,
            chunks=tuple(min(side, max(length, 1)) for length in flat.shape),
            compressors=[zarr.codecs.ZstdCodec(level=3)] if three else _load_zstd(),
            fill_value=0,
            attributes=describe_array(axes, geometry if k == 0 else Geometry()),
            dimension_names=axes if three else None,
            chunk_key_encoding=None if three else {"name": "v2", "separator": "/"},
            zarr_format=form.zarr_format,
        )
        rows = choose_rows(flat.shape, flat.dtype, side)
        for lo in range(0, len(flat), rows):
            stored[lo : lo + rows] = flat[lo : lo + rows]
            done += flat[lo : lo + rows].size
            progress(min(done / max(total, 1), 1.0))
    if form.is_group:
        if not image and array.size:
            largest = int(array.max()) if array.min() >= 0 else None
        attributes = describe_image(output.target.stem, form, array.ndim, geometry, largest)
        write_group(output.temp, form.zarr_format, attributes)


def _load_zstd() -> Any:
    import numcodecs

    return numcodecs.Zstd(level=3)


def _write_npy(target: Target, array: Array, geometry: Geometry, progress: Progress) -> None:
    with open(target.output.temp, "xb") as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
    progress(1.0)


def _write_nifti(target: Target, array: Array, geometry: Geometry, progress: Progress) -> None:
    nibabel = load_library(*LIBRARIES["nifti"])
    large = max(array.shape) > np.iinfo(np.int16).max
    header = geometry.nifti
    if header is None:
        z, y, x = geometry.spacing or (1.0, 1.0, 1.0)
        # NIfTI knows no nanometres.
        factor = (nanometres(geometry.unit) or 0.0) / 1e3
        affine = np.diag([x, y, z, 1.0] * (np.array([factor] * 3 + [1.0]) if factor else 1))
        kind = nibabel.Nifti2Image if large else nibabel.Nifti1Image
        image = kind(array.T, affine, dtype=array.dtype)
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
        image = kind(array.T, affine, header, dtype=array.dtype)
    nibabel.save(image, target.output.temp)
    progress(1.0)


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
        rows = choose_rows(array.shape, array.dtype, HDF5_CHUNK)
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
