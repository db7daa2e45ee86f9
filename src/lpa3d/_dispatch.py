"""The one place that decides whether a verb works in memory or tile by tile: by what its arrays are."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from .errors import InputError, InputTypeError

__all__ = ["accepts_stored"]

F = TypeVar("F", bound=Callable[..., Any])

DEFAULTS: dict[str, Any] = {
    "tile": None,
    "memory": None,
    "scratch": None,
    "storage": None,
    "resume": True,
    "overwrite": False,
    "progress": None,
}
"""Keywords of every verb that only stored arrays use."""


def _kind(value: Any) -> str:
    """Return "memory", "stored", or "" for what is no array."""
    if isinstance(value, np.ndarray):
        return "memory"
    if isinstance(value, (str, os.PathLike)):
        # Files of other formats are read whole, which the verb's own check says.
        return "stored" if ".zarr" in os.fspath(value).lower() or "://" in os.fspath(value) else ""
    module = type(value).__module__.partition(".")[0]
    if module == "zarr" or (module == "dask" and hasattr(value, "chunks")):
        return "stored"
    return ""


def accepts_stored(verb: str, *arrays: str) -> Callable[[F], F]:
    """Let a verb take zarr and dask arrays, which `lpa3d.tiled.VERB` works on.

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
            kinds: dict[str, str] = {}
            for name in arrays:
                value = bound.arguments.get(name)
                parts = value if isinstance(value, (tuple, list)) else (value,)
                for part in parts:
                    if (kind := _kind(part)) and kind not in kinds:
                        kinds[kind] = f"{name} is a {type(part).__module__}.{type(part).__qualname__}"
            if "stored" not in kinds:
                used = [key for key, value in options.items() if value is not DEFAULTS[key]]
                if used:
                    raise InputError(
                        f"{', '.join(used)} {'is' if len(used) == 1 else 'are'} for zarr or dask arrays, and "
                        f"{kinds.get('memory', 'the input is no array')}; leave out, or store the input as zarr"
                    )
                return function(*args, **kwargs)
            if "memory" in kinds:
                raise InputTypeError(
                    f"{kinds['stored']}, but {kinds['memory']}; pass all arrays stored (zarr, dask) or all in memory "
                    f"(lpa3d.io.read)"
                )
            from .tiled.run import Options

            chosen = DEFAULTS | options
            for key in DEFAULTS:
                if key in own and key in bound.arguments:
                    chosen[key] = bound.arguments.pop(key)
            tiled = importlib.import_module(f"lpa3d.tiled.{verb}")
            return getattr(tiled, verb)(*bound.args, **bound.kwargs, options=Options(**chosen))

        extra = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=value)
            for key, value in DEFAULTS.items()
            if key not in own
        ]
        call.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *extra])  # type: ignore[attr-defined]
        return call  # type: ignore[return-value]

    return decorate
