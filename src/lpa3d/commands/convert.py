"""The command ``lpa3d convert``: a volume in another format, or with another dtype or voxel size."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.checks import canonical_spacing
from ..errors import InputError, Keyword
from ..files.coded import EXACT
from ..files.geometry import NANOMETRES, Geometry, nanometres, state_place
from ..files.volume import Box, Lazy, Volume
from ..files.writers import plan
from .inputs import add_spacing, format_sizes
from .job import Job
from .tiling import add_storage

__all__ = ["add_convert_arguments", "run_convert"]

Array = npt.NDArray[Any]

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.add_argument("volume", metavar="IN", help="any file or folder that lpa3d reads")
    parser.add_argument("out", metavar="OUT", help="the same voxels; its suffix says the format")
    parser.add_argument(
        "--dtype", choices=DTYPES, metavar="DTYPE", help="dtype to write, if it holds all values exactly"
    )
    add_spacing(parser)
    parser.add_argument("--unit", metavar="UNIT", help="unit of the voxel size, e.g. nm (default: what the file says)")
    parser.add_argument(
        "--imagej", action="store_true", help="write a .tif as ImageJ does: not compressed, with its voxel size"
    )
    parser.add_argument(
        "--image",
        action="store_true",
        help="it is an image, not labels: levels of a .zarr are means (default: of floats)",
    )
    add_storage(parser)


def run_convert(job: Job) -> None:
    """Read, cast and write, slab by slab."""
    args = job.args
    source = job.open(args.volume)
    if source.dtype.kind not in "buif":
        raise InputError(f"{source.name} holds {source.dtype}; integers or floats are needed")
    geometry = _choose_geometry(job, source)
    target = plan(
        job.outputs, args.out, source.shape, [source.path], imagej=args.imagej, storage=job.storage, image=args.image
    )
    if target.location.format in ("npy", "npz") and geometry.spacing is not None:
        job.terminal.message(f"warning: {args.out} cannot hold a voxel size, and that of {source.name} is lost")
    elif lost := _find_lost(geometry, target.location.format):
        job.terminal.message(f"warning: {lost} of {source.name} is not kept in {args.out}")
    dtype = np.dtype(args.dtype or ("uint8" if source.dtype.kind == "b" else source.dtype.newbyteorder("=")))

    def read(box: Box) -> Array:
        return _cast(source.read_box(box), dtype, source.name, box[0].start)

    job.write(target, Lazy(source.shape, dtype, read), geometry)
    size = format_sizes(geometry.spacing) if geometry.spacing else "of unknown size"
    told = f"{' '.join(map(str, source.shape))} voxels of {dtype}, {f'{size} {geometry.unit}'.strip()}"
    job.finish(told)


def _choose_geometry(job: Job, source: Volume) -> Geometry:
    """Return the geometry to write: the file's, but for what the user says of it."""
    args, geometry = job.args, source.geometry
    if args.unit is not None and nanometres(args.unit) is None:
        raise InputError(Keyword("unit"), f" {args.unit} is not known; known are {', '.join(NANOMETRES)}")
    if args.spacing is not None:
        spacing = canonical_spacing(args.spacing, 3)
        if args.unit is None and geometry.unit:
            job.terminal.message(
                f"warning: --spacing has no unit, and that of {source.name} ({geometry.unit}) is not taken for it; say "
                "which it is, e.g. --unit nm"
            )
        return replace(geometry, spacing=spacing, unit=args.unit or "", offset=None)
    if args.unit is not None:
        if geometry.spacing is None:
            raise InputError(
                f"{source.name} does not say how large its voxels are, so that there is nothing that ",
                Keyword("unit"),
                " belongs to; pass ",
                Keyword("spacing"),
                ", too",
            )
        if nanometres(geometry.unit) not in (None, nanometres(args.unit)):
            job.terminal.message(
                f"warning: {source.name} says that its numbers are {geometry.unit}; they are written as {args.unit}, "
                "unchanged"
            )
        return replace(geometry, unit=args.unit)
    return geometry


PLACELESS = ("tiff", "imagej")
"""Formats that hold a size, but no place."""

DIRECTED = ("nifti", "nrrd", "metaimage")
"""Formats that hold where axes point to."""


def _find_lost(geometry: Geometry, target: str) -> str:
    """Return what a format does not keep of where a volume lies, in words; empty where it keeps all, or all is 0."""
    if target in DIRECTED:
        return ""
    stated = state_place(geometry)
    # That of a NIfTI header is written to formats with directions only.
    place = stated.offset is not None and any(stated.offset) and (target in PLACELESS or geometry.offset is None)
    straight = stated.directions is None or np.allclose(stated.directions, np.eye(3), atol=1e-4)
    turned = stated.frame == "LPS" or not straight
    return " and ".join(["the place of the first voxel"] * place + ["where the axes point to"] * turned)


def _cast(part: Array, dtype: np.dtype[Any], name: str, first: int) -> Array:
    """Return values in another dtype; refuse those that it does not hold."""
    if part.dtype == dtype:
        return part
    what = f"{name}, in the slices from {first} on,"
    if part.dtype.kind == "f" and dtype.kind in "ui" and part.size:
        if not np.isfinite(part).all():
            raise InputError(f"{what} holds NaN or infinity, which {dtype} cannot hold")
        if not np.array_equal(part, np.rint(part)):
            raise InputError(f"{what} holds fractions, which {dtype} cannot hold; leave out ", Keyword("dtype"))
    if dtype.kind in "ui" and part.size:
        low, high = int(part.min()), int(part.max())
        bounds = np.iinfo(dtype)
        if low < bounds.min or high > bounds.max:
            raise InputError(
                f"{what} holds values from {low:,} to {high:,}, and {dtype} only {bounds.min:,} to {bounds.max:,}; "
                "choose another ",
                Keyword("dtype"),
            )
    with np.errstate(over="ignore"):
        cast = part.astype(dtype)
    if dtype.kind == "f" and part.dtype.kind in "ui" and part.size:
        exact = EXACT[dtype.itemsize]
        if max(-int(part.min()), int(part.max())) > exact:
            raise InputError(
                f"{what} holds values beyond {exact:,}, up to which {dtype} is exact; choose another ", Keyword("dtype")
            )
    if dtype.kind == "f" and part.dtype.kind == "f" and not np.array_equal(np.isfinite(cast), np.isfinite(part)):
        raise InputError(f"{what} holds values that are too large for {dtype}")
    return cast
