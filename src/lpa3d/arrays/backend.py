"""The one place that decides which back end works on arrays: the Numba kernels or their CUDA twins.

Arrays on a CUDA device are worked on there. So are arrays in memory while a device is in use (`on_device`), as in the
tiles of a stored volume: an operation then copies them to the device and its result back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DeviceError, InputError, InputTypeError, Keyword, Part

if TYPE_CHECKING:
    from ..cuda.device import Device

__all__ = [
    "ADVICE",
    "TWINS",
    "array_module",
    "check_device",
    "device_of",
    "explain_memory",
    "find_device",
    "is_on_device",
    "on_device",
    "open_device",
]

TWINS = ("label", "propagate", "merge", "contacts", "evaluate")
"""Verbs that a CUDA device can work on."""

ADVICE: tuple[Part, ...] = (
    "free some of it, or store the arrays as zarr and pass ",
    Keyword("device", "cuda"),
    " and a tile that fits, such as ",
    Keyword("tile", 256),
)


def check_device(verb: str, device: Any) -> str | None:
    """Return `device`, None or "cuda"."""
    if device is None:
        return None
    if not isinstance(device, str) or device != "cuda":
        raise InputError(Keyword("device"), f" is {device!r}; 'cuda' is needed, or None to work where the arrays are")
    if verb not in TWINS:
        raise InputError(
            f"{verb} cannot work on a CUDA device, only {', '.join(TWINS)} can: leave out ", Keyword("device", "cuda")
        )
    return device


_state = threading.local()


def open_device() -> Device:
    """Return the CUDA device; a `DeviceError` says what is missing."""
    from ..cuda import device

    return device.open_device()


def is_on_device(array: Any) -> bool:
    """Return whether an array is in a CUDA device's memory, whatever its type."""
    # Of the array, not of its type: PyTorch has one type for both kinds of memory.
    return hasattr(array, "__cuda_array_interface__")


def device_of(*arrays: Any) -> Device | None:
    """Return the device that some arrays are on, None for arrays in memory.

    It is to work on them; a single pass over arrays in memory is not worth their copies to a device in use.
    """
    for array in arrays:
        if is_on_device(array):
            device = open_device()
            if not device.holds(array):
                raise InputTypeError(
                    f"an array is a {type(array).__module__}.{type(array).__qualname__}; on a CUDA device a CuPy array "
                    "is needed: pass cupy.asarray(array)"
                )
            device.check_place(array)
            return device
    return None


def find_device(*arrays: Any) -> Device | None:
    """Return the device that is to work on some arrays, None if that is the Numba kernels' job."""
    device = device_of(*arrays)
    return getattr(_state, "device", None) if device is None else device


def array_module(array: Any) -> ModuleType | Any:
    """Return NumPy, or CuPy for an array on a device."""
    return open_device().xp if is_on_device(array) else np


@contextmanager
def on_device(device: Device | None) -> Iterator[None]:
    """Let operations on this thread work on a device; None changes nothing."""
    before = getattr(_state, "device", None)
    _state.device = device if device is not None else before
    try:
        yield
    finally:
        _state.device = before


@contextmanager
def explain_memory(*advice: Part) -> Iterator[None]:
    """Say in a `DeviceError` what to do where CuPy runs out of the device's memory."""
    try:
        yield
    except MemoryError as error:
        # Known by its name, as CuPy may not be there: then it was the host's memory.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        raise DeviceError(f"the GPU's memory is full ({error}); ", *advice) from error
