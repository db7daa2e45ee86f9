"""The one door: every argument is checked here, before any work, and made canonical.

Behind it arrays are ``(Z, Y, X)``, C-ordered, in native byte order, of an unsigned dtype (class maps, where only
equality counts) or of int64 or narrower (ids). A copy is made only where the input is not canonical already. Arrays on
a CUDA device pass the same checks and stay there.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import Example, InputError, InputTypeError, Keyword, Part
from .backend import array_module, find_device, is_on_device

__all__ = [
    "MAX_ID",
    "MOST_SLICES",
    "advise_floats",
    "as_bits",
    "as_numbers",
    "as_raw",
    "canonical_axis",
    "canonical_connectivity",
    "canonical_out",
    "canonical_slices",
    "canonical_spacing",
    "check_array",
    "check_flag",
    "check_id_values",
    "check_index",
    "class_map",
    "instance_ids",
    "is_integral",
    "max_id",
    "refuse_mask",
    "result_dtype",
    "same_shape",
    "seal",
    "stack_axis",
]


def result_dtype(dtype: np.dtype[Any], most: int) -> np.dtype[Any]:
    """Return the narrowest dtype of the same signedness, at least `dtype`, that holds `most`."""
    for size in (1, 2, 4, 8):
        wider = np.dtype(f"{dtype.kind}{size}")
        if size >= dtype.itemsize and np.iinfo(wider).max >= most:
            return wider
    return np.dtype(f"{dtype.kind}8")


MAX_ID = 2**63 - 1

MOST_SLICES = 2**20
"""More slices than any volume has, so that what lists more is a mistake."""

_CONNECTIVITY = {1: 6, 2: 18, 3: 26, 6: 6, 18: 18, 26: 26}


def is_integral(dtype: np.dtype[Any]) -> bool:
    """Return whether `dtype` holds booleans or integers."""
    return dtype.kind in "bui"


def refuse_mask(array: Any, name: str) -> None:
    """Refuse a masked array."""
    if isinstance(array, np.ma.MaskedArray):
        raise InputTypeError(Keyword(name), f" is a masked array, whose mask would be lost; pass {name}.filled(0)")


def check_flag(value: Any, name: str) -> bool:
    """Return True or False, and refuse what is merely one of them by its truth."""
    if not isinstance(value, (bool, np.bool_)):
        raise InputTypeError(Keyword(name), f" is {value!r}; True or False is needed")
    return bool(value)


def check_array(array: Any, name: str) -> npt.NDArray[Any]:
    """Refuse anything but a 2D or 3D array of booleans, integers or floats, NumPy's (masked ones lose their mask) or
    CuPy's."""
    refuse_mask(array, name)
    if is_on_device(array):
        find_device(array)
    elif not isinstance(array, np.ndarray):
        raise InputTypeError(
            Keyword(name),
            f" is a {type(array).__module__}.{type(array).__qualname__}; a NumPy array is needed: pass "
            + (f"lpa3d.io.read({name})" if isinstance(array, (str, Path)) else f"numpy.asarray({name})"),
        )
    if array.dtype.kind not in "buif":
        raise InputTypeError(Keyword(name), f" has dtype {array.dtype}; an array of bool or integers is needed")
    if array.ndim not in (2, 3):
        raise InputError(
            Keyword(name), f" has {array.ndim} dimensions, shape {array.shape}; (Z, Y, X) or (Y, X) is needed"
        )
    return array if is_on_device(array) else np.asarray(array)


def _canonical(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return `array` as 3D, C-ordered and in native byte order, copied only where it is not."""
    if array.ndim == 2:
        array = array[np.newaxis]
    contiguous: npt.NDArray[Any] = array_module(array).ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return contiguous


def advise_floats(dtype: np.dtype[Any], threshold: str, convert: str) -> tuple[Part, ...]:
    """Return what a message says of a class map of floats: an image is none, but whole numbers are classes or ids."""
    return (
        f" has dtype {dtype}; a class map is bool or integer. Threshold it ({threshold}), or pass the image as ",
        Keyword("cost"),
        f" of propagate; if its values are whole numbers, classes or ids, pass {convert}",
    )


def class_map(volume: Any, name: str = "volume") -> npt.NDArray[Any]:
    """Return a class map as canonical uint8, uint16, uint32 or uint64 of the same bits (0 stays background)."""
    array = check_array(volume, name)
    if array.dtype.kind == "f":
        raise InputTypeError(
            Keyword(name),
            *advise_floats(array.dtype, f"{name} > 0.5", f"{name}.astype('int64')"),
        )
    array = _canonical(array)
    return array.view(np.dtype(f"u{array.dtype.itemsize}"))


def max_id(ids: npt.NDArray[Any]) -> int:
    """Return the largest value of `ids`, 0 where it is empty."""
    return int(ids.max()) if ids.size else 0


def instance_ids(array: Any, name: str, *, spare: str = "") -> npt.NDArray[Any]:
    """Return instance ids as canonical integers of their own dtype, none negative, none above 2**63 - 1.

    `spare` is a parameter that leaves voxels of a value out.
    """
    ids = check_array(array, name)
    if ids.dtype.kind == "f":
        if bool((ids == array_module(ids).rint(ids)).all()):
            raise InputTypeError(
                Keyword(name), f" has dtype {ids.dtype}; ids are integers: pass {name}.astype('int64')"
            )
        raise InputTypeError(
            Keyword(name),
            f" has dtype {ids.dtype} and values that are no whole numbers; ids are integers: label what it shows, "
            f"e.g. lpa3d.label({name} > 0.5)",
        )
    ids = _canonical(ids)
    if ids.dtype.kind == "b":
        return ids.view(np.uint8)
    check_id_values(ids, name, spare=spare)
    return ids


def check_id_values(ids: npt.NDArray[Any], name: str, at: Any = "", *, spare: str = "") -> None:
    """Refuse ids that are negative or above 2**63 - 1.

    `at` says which part of the argument `ids` are; `spare` is as in `instance_ids`.
    """
    # One look at most: what the dtype cannot hold is not looked for.
    low = int(ids.min()) if ids.dtype.kind == "i" and ids.size else 0
    high = max_id(ids) if ids.dtype == np.uint64 else 0
    if low >= 0 and high <= MAX_ID:
        return
    odd = low if low < 0 else high
    marks = "if it marks voxels that do not count, "
    place = (f" at {at}" if odd < 0 else f" (at {at})") if at else ""
    if odd < 0:
        need = f" holds negative ids, the smallest{place} is {low}; ", "0 is none, ids are > 0"
    else:
        need = f" holds ids up to {high}{place}; ", "at most 2**63 - 1 is possible"
    if spare:
        raise InputError(Keyword(name), need[0], f"{marks}pass ", Keyword(spare, odd), f"; {need[1]}")
    raise InputError(Keyword(name), *need, f"; {marks}set them to 0")


def as_bits(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a view of integers or booleans as uint8, uint16, uint32 or int64: one compiled kernel for each width."""
    return array.view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.int64}[array.dtype.itemsize])


def as_raw(array: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], int]:
    """Return ids as their bytes, flat and read-only, and the size of each: one compiled kernel serves all dtypes."""
    return seal(np.ascontiguousarray(array).reshape(-1).view(np.uint8)), array.dtype.itemsize


def as_numbers(array: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], int]:
    """Return integers or floats as `as_raw`, with the kind of their dtype (see `lpa3d.kernels._bits`)."""
    data, size = as_raw(array)
    return data, {"i": -size, "f": 16 + size}.get(array.dtype.kind, size)


def seal(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a read-only view: Numba compiles anew for writeable and read-only arrays."""
    view = array.view()
    view.flags.writeable = False
    return view


def same_shape(array: npt.NDArray[Any], name: str, other: npt.NDArray[Any], other_name: str) -> None:
    """Refuse two arrays of different shapes; call it before either is made canonical."""
    if array.shape != other.shape:
        raise InputError(
            Keyword(name),
            f" has shape {array.shape} but ",
            Keyword(other_name),
            f" has shape {other.shape}; they must be the same",
        )


def canonical_connectivity(connectivity: Any) -> int:
    """Return 6, 18 or 26 for one of those or for scikit-image's 1, 2, 3."""
    try:
        return _CONNECTIVITY[check_index(connectivity)]
    except (TypeError, KeyError):
        raise InputError(
            Keyword("connectivity"),
            f" is {connectivity!r}; 6, 18 or 26 is needed (or 1, 2, 3 for the same); in 2D 6 are the 4 neighbours at "
            "edges, and 18 and 26 all 8",
        ) from None


def check_index(value: Any) -> int:
    """Return a whole number; True and False are none here."""
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def canonical_axis(axis: Any, name: str, count: int, need: str) -> int:
    """Return one of `count` axes; negative ones count from the last. `need` says what the argument `name` may be."""
    try:
        value = check_index(axis)
    except TypeError:
        raise InputTypeError(Keyword(name), f" is {axis!r}; {need} is needed") from None
    if not -count <= value < count:
        raise InputError(Keyword(name), f" is {axis!r}; {need} is needed")
    return value % count


def stack_axis(axis: Any, ndim: int) -> int:
    """Return the axis of ``(Z, Y, X)`` that slices lie across."""
    value = canonical_axis(axis, "axis", 3, "0, 1 or 2")
    if ndim == 2 and value != 0:
        raise InputError(Keyword("axis"), f" is {axis!r}; a 2D array is one slice, across ", Keyword("axis", 0))
    return value


def canonical_slices(slices: Any, name: str, depth: int, example: Any) -> list[int]:
    """Return positions of slices, ascending, each once; `example` is what the argument `name` may be.

    Nothing is kept beyond the first that a volume of `depth` slices does not have, however many are listed.
    """
    given, need = Keyword(name), (f"; positions from 0 to {depth - 1} are needed, e.g. ", Keyword(name, example))
    found = set()
    try:
        for z in slices:
            if isinstance(z, (bool, np.bool_)):
                break
            position = operator.index(z)
            if not 0 <= position < depth:
                raise InputError(given, f" holds {position}", *need)
            found.add(position)
        else:
            return sorted(found)
    except TypeError:
        raise InputTypeError(given, f" is {slices!r}", *need) from None
    raise InputTypeError(given, " holds True or False", *need, " (numpy.flatnonzero makes them of a mask)")


def canonical_spacing(spacing: Any, ndim: int) -> tuple[float, float, float]:
    """Return `spacing` as three positive floats ``(z, y, x)``, 1 for None; two suffice for a 2D array."""
    if spacing is None:
        return 1.0, 1.0, 1.0
    try:
        values = tuple(float(value) for value in spacing)
    except (TypeError, ValueError):
        raise InputTypeError(
            Keyword("spacing"), f" is {spacing!r}; three numbers (z, y, x) are needed, e.g. (40, 8, 8)"
        ) from None
    if ndim == 2 and len(values) == 2:
        # The one slice has no neighbours along z; its thickness only must not become the smallest side.
        values = (max(values), *values)
    if len(values) != 3:
        needed = "two or three" if ndim == 2 else "three"
        raise InputError(
            Keyword("spacing"), f" {spacing!r} has {len(values)} values; {needed} are needed for a {ndim}D array"
        )
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise InputError(Keyword("spacing"), f" is {spacing!r}; every value must be finite and > 0")
    return values[0], values[1], values[2]


def _find_map(array: Any) -> Any:
    """Return the whole array, mapped from a file, that an array is a part of; None if there is none."""
    found = None
    while isinstance(array, np.ndarray):
        if getattr(array, "filename", None) is not None:
            found = array
        array = array.base
    return found


def _share_file(out: Any, array: Any) -> bool:
    """Return whether two arrays are mapped from the same part of a file, which has two places in memory then."""
    one, other = _find_map(out), _find_map(array)
    if one is None or other is None or not os.path.samefile(one.filename, other.filename):
        return False
    return bool(one.offset < other.offset + other.nbytes and other.offset < one.offset + one.nbytes)


def canonical_out(
    out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], inputs: Sequence[Any]
) -> npt.NDArray[Any] | None:
    """Check `out` against the result's shape and dtype and return it as 3D; None stays None.

    Raises
    ------
    InputTypeError, InputError
        If `out` is no array of the kind of `inputs` (NumPy, CuPy), has another shape or dtype, is not C-ordered or
        writeable, or shares memory with one of `inputs`.
    """
    if out is None:
        return None
    on_device = is_on_device(inputs[0])
    library = "CuPy" if on_device else "NumPy"
    need = Keyword("out", Example(f"{library.lower()}.empty({shape}, {dtype.name!r})"))
    if not (is_on_device(out) if on_device else isinstance(out, np.ndarray)):
        raise InputTypeError(Keyword("out"), f" is a {type(out).__qualname__}; a {library} array is needed: ", need)
    if out.shape != shape or out.dtype != dtype:
        raise InputError(Keyword("out"), f" has shape {out.shape} and dtype {out.dtype}; needed is ", need)
    if not (out.flags.c_contiguous and (on_device or out.flags.writeable)):
        raise InputError(Keyword("out"), " must be C-contiguous and writeable: ", need)
    kind, may_share = (type(out) if on_device else np.ndarray), array_module(out).may_share_memory
    if any(isinstance(array, kind) and (may_share(out, array) or _share_file(out, array)) for array in inputs):
        raise InputError(
            Keyword("out"), " shares memory with an input, which would be overwritten; pass a new array: ", need
        )
    target: npt.NDArray[Any] = out[np.newaxis] if out.ndim == 2 else out
    return target
