"""NumPy arrays that a CUDA device works on: copied there and the result back, or tile by tile where they do not fit."""

from __future__ import annotations

import importlib
import inspect
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..arrays import backend as _backend
from ..arrays.backend import ADVICE
from ..arrays.checks import canonical_out, check_array, max_id
from ..errors import Keyword, LibraryError

if TYPE_CHECKING:
    from ..cuda.device import Device

__all__ = ["run_on_device"]

Array = npt.NDArray[Any]

IMAGES = ("image", "cost")
"""Parameters whose arrays may hold floats."""


def run_on_device(verb: str, function: Callable[..., Any], call: inspect.BoundArguments, names: Sequence[str]) -> Any:
    """Return what a verb returns for NumPy arrays, worked out on the CUDA device.

    Parameters
    ----------
    verb : str
    function : callable
        The verb for arrays in memory or on the device.
    call
        Its arguments.
    names : sequence of str
        Parameters that are, or hold, arrays.

    Raises
    ------
    DeviceError
        If there is no device, or its memory is full.
    """
    device = _backend.open_device()
    arrays = _find_arrays(call.arguments, names)
    parameters = call.signature.parameters
    missing = any(parameters[name].default is inspect.Parameter.empty and name not in arrays for name in names)
    if missing or any(array.dtype.kind == "f" and name not in IMAGES for name, array in arrays.items()):
        # What is no array, and floats in the place of integers, are refused there.
        return function(*call.args, **call.kwargs)

    from ..tiled.driver.budget import Room, weigh
    from ..tiled.driver.stored import open_source

    shape = next(iter(arrays.values())).shape
    dtypes, cost = weigh(verb, {name: open_source(array, name) for name, array in arrays.items()}, call.arguments)
    out = call.arguments.get("out")
    dtype = None
    if "out" in parameters:
        dtype = _find_dtype(verb, dtypes[0], arrays, call.arguments)
        canonical_out(out, shape, dtype, tuple(arrays.values()))
    if math.prod(shape) > Room(device.free_bytes(), cost.device).voxels:
        return _run_tiles(verb, call, dtype)
    if call.arguments.get("surfaces") or call.arguments.get("warping") is not None:
        # They are the CPU's work, on arrays in memory, of which the device's stages make copies of their own.
        with _backend.explain_memory(*ADVICE), _backend.on_device(device):
            return function(*call.args, **call.kwargs)
    return _run_whole(device, function, call, names, dtype)


def _find_arrays(arguments: Mapping[str, Any], names: Sequence[str]) -> dict[str, Array]:
    """Return all arrays, checked."""
    arrays: dict[str, Array] = {}
    for name in names:
        value = arguments.get(name)
        parts = {name: value}
        if isinstance(value, (tuple, list)):
            parts = {f"{name}[{k}]": part for k, part in enumerate(value)}
        arrays |= {called: check_array(part, called) for called, part in parts.items() if _is_array(part)}
    return arrays


def _is_array(value: Any) -> bool:
    # One of no dimension is a number.
    return isinstance(value, np.ndarray) and value.ndim > 0


def _find_dtype(
    verb: str, dtype: np.dtype[Any], arrays: Mapping[str, Array], arguments: Mapping[str, Any]
) -> np.dtype[Any]:
    """Return the result's dtype in memory, given that of tiles."""
    if verb == "merge":
        return arrays["labels"].dtype  # the byte order, too
    if arguments.get("unseeded") == "label":
        from ..arrays.checks import result_dtype

        seeds = arrays["seeds"]
        return result_dtype(dtype, max_id(seeds) + seeds.size)
    return dtype


def _run_whole(
    device: Device,
    function: Callable[..., Any],
    call: inspect.BoundArguments,
    names: Sequence[str],
    dtype: np.dtype[Any] | None,
) -> Any:
    """Copy all arrays to the device, work there, and copy what comes out back."""

    def bring(value: Any) -> Any:
        if not _is_array(value):
            return value
        # CuPy knows native numbers only, and no long double, which is worked on as double in memory, too.
        native = np.float64 if value.dtype.kind == "f" and value.dtype.itemsize > 8 else value.dtype.newbyteorder("=")
        return device.bring(np.ascontiguousarray(value, native))

    out = call.arguments.pop("out", None)
    with _backend.explain_memory(*ADVICE):
        for name in names:
            value = call.arguments.get(name)
            call.arguments[name] = type(value)(map(bring, value)) if isinstance(value, (tuple, list)) else bring(value)
        result = function(*call.args, **call.kwargs)
    if dtype is None:
        return result
    first, *others = result if isinstance(result, tuple) else (result,)
    if out is None:
        labels = device.fetch(first).astype(dtype, copy=False)
    else:
        labels = out
        device.give_back(first, out)
    return (labels, *map(device.fetch, others)) if isinstance(result, tuple) else labels


def _run_tiles(verb: str, call: inspect.BoundArguments, dtype: np.dtype[Any] | None) -> Any:
    """Work tile by tile; results are kept in a temporary folder until they are whole."""
    from ..tiled.driver.run import Options

    tiled = getattr(importlib.import_module(f"lpa3d.tiled.{verb}"), verb)
    options = Options(device="cuda", progress=call.arguments.pop("progress", None))
    if dtype is None:
        return tiled(*call.args, **call.kwargs, options=options)
    try:
        import zarr  # noqa: F401
    except ImportError:
        raise LibraryError(
            "the arrays do not fit on the GPU, and tile by tile the result is kept as zarr until it is whole: "
            "pip install 'lpa3d[zarr]', or leave out ",
            Keyword("device", "cuda"),
        ) from None
    out = call.arguments.pop("out", None)
    with tempfile.TemporaryDirectory(prefix=f"lpa3d-{verb}-") as folder:
        places = Path(folder, "labels.zarr"), Path(folder, "confidence.zarr")
        several = bool(call.arguments.get("return_confidence"))
        call.arguments["out"] = places if several else places[0]
        result = tiled(*call.args, **call.kwargs, options=options)
        if not several:
            return _read(result, dtype, out)
        return _read(result[0], dtype, out), _read(result[1], np.dtype(np.uint16), None)


def _read(stored: Any, dtype: np.dtype[Any], out: Array | None) -> Array:
    """Return a zarr array in memory, in `out` if that is given."""
    result = np.empty(stored.shape, dtype) if out is None else out
    # Some slices at a time, so that not twice as much is held.
    step = (stored.shards or stored.chunks)[0]
    for z in range(0, stored.shape[0], step):
        result[z : z + step] = stored[z : z + step]
    return result
