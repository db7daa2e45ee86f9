"""The one place that decides where a verb works: in memory, on a CUDA device, or tile by tile.

What its arrays are decides, and for arrays that are not on a device the keyword `device`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from ..arrays.backend import ADVICE, TWINS, check_device, explain_memory, is_on_device
from ..errors import InputError, InputTypeError, Keyword

__all__ = ["DEFAULTS", "accepts_stored"]

F = TypeVar("F", bound=Callable[..., Any])

DEFAULTS: dict[str, Any] = {
    "tile": None,
    "memory": None,
    "scratch": None,
    "storage": None,
    "resume": True,
    "overwrite": False,
    "progress": None,
    "device": None,
}
"""Keywords of every verb. All but `device` are for stored arrays only."""


def _kind(value: Any) -> str:
    """Return "memory", "cuda", "stored", or "" for what is no array."""
    if isinstance(value, np.ndarray):
        return "memory"
    if is_on_device(value):
        return "cuda"
    if isinstance(value, (str, os.PathLike)):
        # Files of other formats are read whole, which the verb's own check says.
        return "stored" if ".zarr" in os.fspath(value).lower() or "://" in os.fspath(value) else ""
    module = type(value).__module__.partition(".")[0]
    if module == "zarr" or (module == "dask" and hasattr(value, "chunks")):
        return "stored"
    return ""


def accepts_stored(verb: str, *arrays: str) -> Callable[[F], F]:
    """Let a verb take zarr and dask arrays, which `lpa3d.tiled.VERB` works on, and let a CUDA device do the work.

    Parameters
    ----------
    verb : str
        Module and function below `lpa3d.tiled`.
    arrays : str
        Parameters that are, or hold, arrays. Anything else they may be (a mapping, a number, None) decides nothing.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        own = set(signature.parameters)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            options = {key: kwargs.pop(key) for key in DEFAULTS if key in kwargs and key not in own}
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{verb}() {error}") from None
            kinds = _find_kinds(bound.arguments, arrays)
            _check_kinds(verb, kinds, bound.arguments.get("out"))
            device = check_device(verb, options.get("device"))
            if "stored" in kinds:
                from ..tiled.driver.run import Options

                chosen = DEFAULTS | options
                for key in DEFAULTS:
                    if key in own and key in bound.arguments:
                        chosen[key] = bound.arguments.pop(key)
                tiled = importlib.import_module(f"lpa3d.tiled.{verb}")
                return getattr(tiled, verb)(*bound.args, **bound.kwargs, options=Options(**chosen))
            used = [key for key, value in options.items() if key != "device" and value is not DEFAULTS[key]]
            if used:
                given = next(iter(kinds.values()), "the input is no array")
                raise InputError(
                    *[part for key in used for part in (", ", Keyword(key))][1:],
                    f" {'is' if len(used) == 1 else 'are'} for zarr or dask arrays, and {given}; leave out, or store "
                    "the input as zarr",
                )
            if device is not None and "memory" in kinds:
                from .device import run_on_device

                return run_on_device(verb, function, bound, arrays)
            with explain_memory(*ADVICE):
                return function(*args, **kwargs)

        extra = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=value)
            for key, value in DEFAULTS.items()
            if key not in own
        ]
        call.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *extra])  # type: ignore[attr-defined]
        return call  # type: ignore[return-value]

    return decorate


def _find_kinds(arguments: Mapping[str, Any], arrays: Sequence[str]) -> dict[str, str]:
    """Return which kinds of arrays there are, and of each what the first one is, in words."""
    kinds: dict[str, str] = {}
    for name in arrays:
        value = arguments.get(name)
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if (kind := _kind(part)) and kind not in kinds:
                kinds[kind] = f"{name} is a {type(part).__module__}.{type(part).__qualname__}"
    return kinds


def _check_kinds(verb: str, kinds: Mapping[str, str], out: Any) -> None:
    """Refuse arrays of several kinds, and arrays on a device where the verb cannot work on them."""
    if "cuda" in kinds and verb not in TWINS:
        raise InputTypeError(
            f"{kinds['cuda']}, and {verb} cannot work on a CUDA device ({', '.join(TWINS)} can): pass "
            f"cupy.asnumpy(...) of it"
        )
    if is_on_device(out) and "memory" in kinds:
        kinds = {**kinds, "cuda": f"out is a {type(out).__module__}.{type(out).__qualname__}"}
    if len(kinds) < 2:
        return
    advice = "pass all arrays stored (zarr, dask) or all in memory (lpa3d.io.read)"
    if "stored" not in kinds:
        advice = "pass all arrays on the device, cupy.asarray(...), or all in memory, cupy.asnumpy(...)"
    elif "cuda" in kinds:
        advice = "pass all arrays stored (zarr, dask), or all on the device (cupy.asarray of lpa3d.io.read)"
    first, second = [kinds[kind] for kind in ("stored", "cuda", "memory") if kind in kinds][:2]
    raise InputTypeError(f"{first}, but {second}; {advice}")
