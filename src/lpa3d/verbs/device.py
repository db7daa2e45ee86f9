"""NumPy arrays that a CUDA device works on: copied there and the result back, or tile by tile where they do not fit."""

from __future__ import annotations

import importlib
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..arrays import backend as _backend
from ..arrays.backend import ADVICE
from ..arrays.call import Call
from ..arrays.checks import canonical_out, check_array, max_id, result_dtype
from ..errors import Keyword, LibraryError

if TYPE_CHECKING:
    from ..cuda.device import Device

__all__ = ["run_on_device"]

Array = npt.NDArray[Any]

IMAGES = ("image", "cost")
"""Parameters whose arrays may hold floats."""


REQUIRED = ("volume", "seeds", "labels", "reference", "prediction")
"""Parameters that no verb which has them does without."""


def run_on_device(call: Call, whole: Callable[[Call], Any]) -> Any:
    """Return what a verb returns for NumPy arrays, worked out on the CUDA device.

    Parameters
    ----------
    call : Call
    whole : callable
        Does the call for arrays in memory or on the device.

    Raises
    ------
    DeviceError
        If there is no device, or its memory is full.
    """
    device = _backend.open_device()
    arrays = _find_arrays(call.arrays)
    missing = any(name in REQUIRED and name not in arrays for name in call.arrays)
    if missing or any(array.dtype.kind == "f" and name not in IMAGES for name, array in arrays.items()):
        # What is no array, and floats in the place of integers, are refused there.
        return whole(call)

    from ..tiled.driver.budget import Room, weigh
    from ..tiled.driver.stored import open_source

    shape = next(iter(arrays.values())).shape
    sources = {name: open_source(array, name) for name, array in arrays.items()}
    dtypes, cost = weigh(call.verb, sources, call.keywords)
    dtype = None
    if call.out:
        dtype = _find_dtype(call, dtypes[0], arrays)
        canonical_out(call.place, shape, dtype, tuple(arrays.values()))
    if math.prod(shape) > Room(device.free_bytes(), cost.device).voxels:
        return _run_tiles(call, dtype)
    if call.keywords.get("surfaces") or call.keywords.get("warping") is not None:
        # They are the CPU's work, on arrays in memory, of which the device's stages make copies of their own.
        with _backend.explain_memory(*ADVICE), _backend.on_device(device):
            return whole(call)
    return _run_whole(device, call, whole, dtype)


def _find_arrays(given: Mapping[str, Any]) -> dict[str, Array]:
    """Return all arrays, checked."""
    arrays: dict[str, Array] = {}
    for name, value in given.items():
        parts = {name: value}
        if isinstance(value, (tuple, list)):
            parts = {f"{name}[{k}]": part for k, part in enumerate(value)}
        arrays |= {called: check_array(part, called) for called, part in parts.items() if _is_array(part)}
    return arrays


def _is_array(value: Any) -> bool:
    # One of no dimension is a number.
    return isinstance(value, np.ndarray) and value.ndim > 0


def _find_dtype(call: Call, dtype: np.dtype[Any], arrays: Mapping[str, Array]) -> np.dtype[Any]:
    """Return the result's dtype in memory, given that of tiles."""
    if call.verb == "merge":
        return arrays["labels"].dtype  # the byte order, too
    if call.keywords.get("unseeded") == "label":
        seeds = arrays["seeds"]
        return result_dtype(dtype, max_id(seeds) + seeds.size)
    return dtype


def _run_whole(device: Device, call: Call, whole: Callable[[Call], Any], dtype: np.dtype[Any] | None) -> Any:
    """Copy all arrays to the device, work there, and copy what comes out back."""

    def bring(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(map(bring, value))
        if not _is_array(value):
            return value
        # CuPy knows native numbers only, and no long double, which is worked on as double in memory, too.
        native = np.float64 if value.dtype.kind == "f" and value.dtype.itemsize > 8 else value.dtype.newbyteorder("=")
        return device.bring(np.ascontiguousarray(value, native))

    with _backend.explain_memory(*ADVICE):
        brought = {name: bring(value) for name, value in call.arrays.items()}
        result = whole(call.on(brought, out=None) if call.out else call.on(brought))
    if dtype is None:
        return result
    first, *others = result if isinstance(result, tuple) else (result,)
    if call.place is None:
        labels = device.fetch(first).astype(dtype, copy=False)
    else:
        labels = call.place
        device.give_back(first, labels)
    return (labels, *map(device.fetch, others)) if isinstance(result, tuple) else labels


def _run_tiles(call: Call, dtype: np.dtype[Any] | None) -> Any:
    """Work tile by tile; results are kept in a temporary folder until they are whole."""
    tiled = getattr(importlib.import_module(f"lpa3d.tiled.{call.verb}"), call.verb)
    if dtype is None:
        return tiled(call)
    try:
        import zarr  # noqa: F401
    except ImportError:
        raise LibraryError(
            "the arrays do not fit on the GPU, and tile by tile the result is kept as zarr until it is whole: "
            "pip install 'lpa3d[zarr]', or leave out ",
            Keyword("device", "cuda"),
        ) from None
    with tempfile.TemporaryDirectory(prefix=f"lpa3d-{call.verb}-") as folder:
        places = Path(folder, "labels.zarr"), Path(folder, "confidence.zarr")
        several = bool(call.keywords.get("return_confidence"))
        result = tiled(call.on({}, out=places if several else places[0]))
        if not several:
            return _read(result, dtype, call.place)
        return _read(result[0], dtype, call.place), _read(result[1], np.dtype(np.uint16), None)


def _read(stored: Any, dtype: np.dtype[Any], out: Array | None) -> Array:
    """Return a zarr array in memory, in `out` if that is given."""
    result = np.empty(stored.shape, dtype) if out is None else out
    # Some slices at a time, so that not twice as much is held.
    step = (stored.shards or stored.chunks)[0]
    for z in range(0, stored.shape[0], step):
        result[z : z + step] = stored[z : z + step]
    return result
