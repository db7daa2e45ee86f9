"""The one place that decides where a verb works: in memory, on a CUDA device, or tile by tile.

What its arrays are decides, and for arrays that are not on a device the keyword `device`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays.backend import ADVICE, TWINS, check_device, explain_memory, is_on_device
from ..arrays.call import Call, Options
from ..arrays.checks import check_flag, refuse_mask
from ..errors import InputError, InputTypeError, Keyword, Lpa3dError
from ..files.places import split_choice, zarr_kind

__all__ = ["OPTIONS", "check_flags", "run"]

_log = logging.getLogger("lpa3d")

OPTIONS = tuple(option.name for option in fields(Options))
"""Keywords of every verb. All but `device` are for stored arrays only."""

FEW = 16
"""Most arrays that one argument holds."""


def run(call: Call, whole: Callable[[Call], Any], *, takes: tuple[str, ...] = ()) -> Any:
    """Do what a call asks for, where its arrays are.

    Parameters
    ----------
    call : Call
    whole : callable
        Does it in memory, or on a device; the function of the verb's name in `lpa3d.tiled` does it for stored
        arrays.
    takes : tuple of str
        Options besides `device` that `whole` knows, too.
    """
    call = _check(call)
    kinds = _find_kinds(call.arrays)
    _check_kinds(call.verb, kinds, call.place)
    check_device(call.verb, call.options.device)
    if "stored" in kinds:
        call = _take_spacing(call)
        tiled = importlib.import_module(f"lpa3d.tiled.{call.verb}")
        return getattr(tiled, call.verb)(call)
    known = (*takes, "device")
    used = [one.name for one in fields(Options) if one.name not in known and _is_given(call.options, one.name)]
    if used:
        given = next(iter(kinds.values()), "the input is no array")
        raise InputError(
            *[part for name in used for part in (", ", Keyword(name))][1:],
            f" {'is' if len(used) == 1 else 'are'} for zarr or dask arrays, and {given}; leave out, or store the input "
            "as zarr",
        )
    if call.options.device is not None and "memory" in kinds:
        from .device import run_on_device

        return run_on_device(call, whole)
    with explain_memory(*ADVICE):
        return whole(call)


@functools.cache
def _find_flags(verb: str) -> frozenset[str]:
    """Return the keywords of a verb that are True or False: those whose default is; `resume` may be more."""
    function = getattr(importlib.import_module(f"lpa3d.verbs.{verb}"), verb)
    parameters = inspect.signature(function).parameters.values()
    return frozenset(one.name for one in parameters if isinstance(one.default, bool))


def check_flags(verb: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords that are given, of which those that are True or False are checked.

    Raises
    ------
    InputTypeError
        If one has another value, which would be taken by its truth.
    """
    found = dict(given)
    for name in _find_flags(verb) & given.keys():
        if name != "resume":
            found[name] = check_flag(given[name], name)
        elif not (isinstance(given[name], str) and given[name] == "force"):
            if not isinstance(given[name], (bool, np.bool_)):
                raise InputTypeError(Keyword(name), f" is {given[name]!r}; True, False or 'force' is needed")
            found[name] = bool(given[name])
    return found


def _check(call: Call) -> Call:
    """Check what is the same for all verbs: flags, and that no argument is a masked array."""
    for name, value in {**call.arrays, **call.keywords, **call.out}.items():
        # Pairs and lists of arrays; the elements of what is longer are none.
        for part in (value, *value) if isinstance(value, (tuple, list)) and len(value) <= FEW else (value,):
            refuse_mask(part, name)
    progress = call.options.progress
    if progress is not None and not callable(progress):
        raise InputTypeError(Keyword("progress"), f" is {progress!r}; a function (stage, fraction) is needed")
    options = check_flags(call.verb, {name: getattr(call.options, name) for name in OPTIONS})
    return replace(call, keywords=check_flags(call.verb, call.keywords), options=Options(**options))


def _take_spacing(call: Call) -> Call:
    """Return the call with the voxel size that the first array states which states one, if it is not given."""
    if call.keywords.get("spacing", ()) is not None:
        return call
    from ..tiled.driver.stored import open_source

    for name, value in call.arrays.items():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            try:
                geometry = open_source(part, name).geometry
            except Lpa3dError:
                continue  # it is none, or the verb says what is wrong with it
            if geometry.spacing is not None:
                sizes = " ".join(f"{size:g}" for size in geometry.spacing)
                _log.info("%s: spacing %s %s (z y x), from %s", call.verb, sizes, geometry.unit, name)
                return replace(call, keywords={**call.keywords, "spacing": geometry.spacing})
    _log.info("%s: no array states the size of its voxels; spacing 1 1 1 is used", call.verb)
    return call


def _is_given(options: Options, name: str) -> bool:
    return getattr(options, name) is not getattr(Options, name)


def _kind(value: Any) -> str:
    """Return "memory", "cuda", "stored", or "" for what is no array."""
    if isinstance(value, np.ndarray):
        return "memory"
    if is_on_device(value):
        return "cuda"
    if isinstance(value, (str, os.PathLike)):
        # Files of other formats are read whole, which the verb's own check says.
        place = split_choice(os.fspath(value))[0]
        return (
            "stored" if ".zarr" in place.lower() or "://" in place or zarr_kind(Path(os.path.expanduser(place))) else ""
        )
    module = type(value).__module__.partition(".")[0]
    if module == "zarr" or (module == "dask" and hasattr(value, "chunks")):
        return "stored"
    return ""


def _find_kinds(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Return which kinds of arrays there are, and of each what the first one is, in words."""
    kinds: dict[str, str] = {}
    for name, value in arrays.items():
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
