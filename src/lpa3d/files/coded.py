"""Values that a file codes: decoded where that is exact, else refused, never taken for what they are not."""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError, Keyword

__all__ = [
    "EXACT",
    "Coding",
    "attribute_coding",
    "bdv_coding",
    "code_line",
    "imagej_coding",
    "refuse_floats",
    "whole_numbers",
    "zarr_coding",
]

Array = npt.NDArray[Any]

# Values above are no longer all distinct in these types, so ids may have been united before they came here.
EXACT = {2: 2**11, 4: 2**24, 8: 2**53}


SMALLEST = ("u1", "i1", "u2", "i2", "u4", "i4", "i8")
"""Integers of which the first that hold all values are taken."""


@dataclass(frozen=True)
class Coding:
    """How the numbers that are stored become values. Picklable.

    Attributes
    ----------
    name : str
        What messages call the file.
    dtype : dtype
        Of the values.
    scale, offset : float
        A value is ``number * scale + offset``.
    missing : mapping of str to number
        Numbers that mark voxels without data, by what says so. Such voxels have no value.
    note : str
        What a user should be told, or empty.
    """

    name: str
    dtype: np.dtype[Any]
    scale: float = 1.0
    offset: float = 0.0
    missing: tuple[tuple[str, float], ...] = ()
    note: str = ""

    def decode(self, part: Array, start: Sequence[int] = ()) -> Array:
        """Return the values of a part that begins at the voxel `start`, of an array of any shape.

        Raises
        ------
        InputError
            If a voxel has no value, or one that cannot be told exactly.
        """
        for key, number in self.missing:
            if (marked := part == number).any():
                raise InputError(
                    f"{self.name} holds {number:g} at {find_place(marked, start)}, which marks voxels without data "
                    f"({key}); store there what they are to be, such as 0, and leave {key} out"
                )
        if (self.scale, self.offset) == (1.0, 0.0):
            return part.astype(self.dtype)  # the same bits
        if part.dtype.kind in "iu" and part.dtype.itemsize == 8 and (wide := np.abs(part.astype("f8")) > 2**53).any():
            raise InputError(
                f"{self.name} scales {part[wide].flat[0]} at {find_place(wide, start)}, where not all numbers are "
                "exact; store the values themselves"
            )
        if self.dtype.kind == "f":
            return part.astype(self.dtype) * self.scale + self.offset
        return (part.astype(np.int64) * int(self.scale) + int(self.offset)).astype(self.dtype)


def find_place(marked: Array, start: Sequence[int] = ()) -> tuple[int, ...]:
    """Return where the first voxel that is marked lies, in a part that begins at `start`."""
    place = np.argwhere(marked)[0].tolist()
    return tuple(at + lo for at, lo in zip(place, start or [0] * len(place), strict=True))


def code_line(
    name: str,
    dtype: npt.DTypeLike,
    scale: float,
    offset: float,
    missing: Mapping[str, float] | None = None,
    note: str = "",
) -> Coding | None:
    """Return the coding of values that are a straight line of the numbers; None where both are the same.

    Whole numbers stay integers where the line's numbers are whole, else they become float64.
    """
    dtype = np.dtype(dtype)
    if scale == 0 or not (math.isfinite(scale) and math.isfinite(offset)):
        raise InputError(
            f"{name} says that its values are {scale:g} * number + {offset:g}, which tells nothing; mend the file"
        )
    found = tuple(
        (key, number)
        for key, number in (missing or {}).items()
        # 0 is what voxels without data are read as anyway, and NaN is no number that could be taken for one.
        if number and not math.isnan(number)
    )
    if (scale, offset) == (1.0, 0.0):
        return Coding(name, dtype, missing=found, note=note) if found or note else None
    result: np.dtype[Any] = np.dtype(np.float64)
    if dtype.kind in "iu" and dtype.itemsize < 8 and scale.is_integer() and offset.is_integer():
        info = np.iinfo(dtype)
        ends = [int(number) * int(scale) + int(offset) for number in (info.min, info.max)]
        fits = (
            one for one in map(np.dtype, SMALLEST) if np.iinfo(one).min <= min(ends) <= max(ends) <= np.iinfo(one).max
        )
        result = next(fits, result)
    return Coding(name, result, scale, offset, found, note)


def attribute_coding(name: str, attributes: Mapping[str, Any], dtype: npt.DTypeLike) -> Coding | None:
    """Return how the conventions of netCDF (CF) code the values of a zarr or HDF5 array; None where they do not.

    Raises
    ------
    InputError
        If an attribute says what cannot be decoded.
    """
    dtype = np.dtype(dtype)
    line = {
        key: _read_number(name, key, attributes[key]) for key in ("scale_factor", "add_offset") if key in attributes
    }
    missing = {
        key if k == 0 else f"{key}[{k}]": number
        for key in ("_FillValue", "missing_value")
        if key in attributes
        for k, number in enumerate(_read_numbers(name, key, attributes[key]))
    }
    note = ""
    signs = attributes.get("_Unsigned")
    signs = signs.decode(errors="replace") if isinstance(signs, bytes) else str(signs)
    if dtype.kind in "iu" and signs.lower() in ("true", "false"):
        unsigned = np.dtype(f"{'u' if signs.lower() == 'true' else 'i'}{dtype.itemsize}")
        if unsigned != dtype.newbyteorder("="):
            if line:
                raise InputError(f"{name} has _Unsigned with {' and '.join(line)}; store the values themselves")
            note = f"{name}: its {dtype.name} is read as {unsigned.name}, as _Unsigned says"
            dtype = unsigned
    if attributes.get("IMAGE_WHITE_IS_ZERO") is not None and np.any(attributes["IMAGE_WHITE_IS_ZERO"]):
        raise InputError(
            f"{name} says that 0 is white (IMAGE_WHITE_IS_ZERO), so that it is not clear what is background; store it "
            "with values that mean what they are"
        )
    return code_line(name, dtype, line.get("scale_factor", 1.0), line.get("add_offset", 0.0), missing, note)


def zarr_coding(name: str, array: Any) -> Coding | None:
    """Return how the conventions of netCDF code the values of a zarr array; None where they do not."""
    attributes = array.attrs.asdict()
    if array.metadata.zarr_format == 2 and "_ARRAY_DIMENSIONS" in attributes and array.fill_value is not None:
        # In format 2 xarray has no other place for it.
        attributes.setdefault("_FillValue", array.fill_value)
    return attribute_coding(name, attributes, array.dtype)


def _read_numbers(name: str, key: str, said: Any) -> list[float]:
    """Return the numbers of an attribute, which may be those of xarray, a float64 as base64."""
    if isinstance(said, (str, bytes)):
        try:
            return list(struct.unpack("<d", base64.b64decode(said, validate=True)))
        except (ValueError, struct.error):
            pass
    try:
        return [float(number) for number in np.ravel(np.asarray(said))]
    except (TypeError, ValueError):
        raise InputError(
            f"{name} has the attribute {key}={said!r}, which is no number; mend it or leave it out"
        ) from None


def _read_number(name: str, key: str, said: Any) -> float:
    numbers = _read_numbers(name, key, said)
    if len(numbers) != 1 or not math.isfinite(numbers[0]) or (key == "scale_factor" and not numbers[0]):
        raise InputError(
            f"{name} has the attribute {key}={said!r}, by which no value can be told; mend it or leave it out"
        )
    return numbers[0]


BDV = re.compile(r"/t[0-9]+/(s[0-9]+)/[0-9]+/cells")
"""The name of a dataset of BigDataViewer, and of its set-up."""


def bdv_coding(name: str, node: Any) -> Coding | None:
    """Return how BigDataViewer codes the values of an HDF5 dataset; None if it does not, or is none of its datasets.

    It stores uint16 as int16 unless an attribute of the set-up says otherwise.
    """
    match = BDV.fullmatch(node.name or "")
    if not match or np.dtype(node.dtype).newbyteorder("=") != np.int16:
        return None
    said = node.file[match[1]].attrs.get("dataType", "uint16") if match[1] in node.file else "uint16"
    said = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    if said == "int16":
        return None
    if said != "uint16":
        raise InputError(
            f"{name} holds int16, but its set-up {match[1]} has the dataType {said}; store it as it is meant"
        )
    return Coding(name, np.dtype(np.uint16), note=f"{name}: its int16 is read as uint16, as BigDataViewer means it")


def imagej_coding(name: str, metadata: Mapping[str, Any], dtype: npt.DTypeLike) -> Coding | None:
    """Return how ImageJ's calibration codes the values of a TIFF file: so it stores int16; None where it does not."""
    function, line = metadata.get("cf"), [metadata.get(key, "") for key in ("c0", "c1")]
    if function is None or function == 20:  # none
        return None
    if function != 0 or not all(isinstance(number, (int, float)) for number in line):
        raise InputError(
            f"{name} has values that ImageJ's calibration function {function} makes of the stored numbers; remove it "
            "(Analyze, Calibrate) and save the file again"
        )
    offset, scale = (float(number) for number in line)
    return code_line(
        name, dtype, scale, offset, note=f"{name}: its values are calibrated by ImageJ, {scale:g} * number + {offset:g}"
    )


def whole_numbers(part: Array, dtype: npt.DTypeLike, name: str, role: str, start: Sequence[int] = ()) -> Array:
    """Return floats that are whole numbers as the integers `dtype`.

    Parameters
    ----------
    part : ndarray
    dtype : dtype
        Which need not hold all that floats of the dtype of `part` can be.
    name, role : str
        What messages call the file, and what its values are to be.
    start : sequence of int
        Where the part begins.

    Raises
    ------
    InputError
        If a number is not whole, or does not fit, or is so large that the dtype of `part` lacks others near it.
    """
    out = np.empty(part.shape, dtype)
    exact = EXACT[min(part.dtype.itemsize, 8)]
    for k, plane in enumerate(part):
        with np.errstate(invalid="ignore"):
            out[k] = plane
            wrong = (out[k] != plane) | (np.abs(plane) > exact)
        if wrong.any():
            first = (k, *find_place(wrong))
            place = tuple(at + lo for at, lo in zip(first, start or [0] * len(first), strict=True))
            raise _refuse_number(float(part[first]), exact, part.dtype, name, role, place)
    return out


def _refuse_number(
    value: float, exact: int, dtype: np.dtype[Any], name: str, role: str, place: tuple[int, ...]
) -> InputError:
    """Return the error about a float that is no id."""
    if value.is_integer() and abs(value) > exact:
        return InputError(
            f"{name} holds {dtype} up to {abs(value):.0f} (at {place}), where only numbers to {exact} are exact and "
            "ids may have been united; save it as integers"
        )
    if value.is_integer():
        return InputError(
            f"{name} holds negative ids, such as {value:.0f} at {place}; 0 is none, ids are > 0; if it marks voxels "
            "that do not count, set them to 0"
        )
    what = "fractions" if math.isfinite(value) else "NaN" if math.isnan(value) else "infinity"
    return refuse_floats(dtype, name, role, f"{what}, {value:g} at {place}")


def refuse_floats(dtype: npt.DTypeLike, name: str, role: str, what: str) -> InputError:
    """Return the error about floats that are no ids."""
    return InputError(
        f"{name} holds {dtype}; {role} must be bool or integers: threshold the image first (image > 0.5), or pass it "
        "to propagate with ",
        Keyword("cost"),
        f" (whole numbers that are stored as floats are read, but it holds {what})",
    )
