"""CUDA on the CPU: a `lpa3d.cuda.device.Device` whose kernels g++ builds, with arrays as strict as CuPy's.

`Emulator(mode, seed)` has the modes of ``cuda_shim.h``: "serial" runs blocks and threads in order, "shuffled" in random
order from barrier to barrier, "preempt" with several blocks at once and switches at atomics. Reads and writes beyond an
array, barriers that not all threads reach and kernels that do not end are errors. `Array` has no more than we use
of what `cupy.ndarray` has, and `Functions` no more of `cupy`; ``test_cuda_emulator.py`` compares both with CuPy.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import re
import shutil
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.mixins import NDArrayOperatorsMixin

from lpa3d import _backend
from lpa3d.cuda import device as cuda_device

MODES = ("serial", "shuffled", "preempt")
GARBAGE = 0xA5
SHIM = Path(__file__).with_name("cuda_shim.h")
COMPILER = shutil.which("g++")

cache_folder = Path(tempfile.gettempdir()) / f"lpa3d-cuda-{os.getuid() if hasattr(os, 'getuid') else 0}"
"""Where built kernels are kept."""


class Array(NDArrayOperatorsMixin):
    """A device array: CuPy's, of which only NumPy's data is known."""

    __array_priority__ = 100

    def __init__(self, data: Any) -> None:
        self._data = np.asarray(data)

    shape = property(lambda self: self._data.shape)
    dtype = property(lambda self: self._data.dtype)
    size = property(lambda self: self._data.size)
    ndim = property(lambda self: self._data.ndim)
    nbytes = property(lambda self: self._data.nbytes)
    itemsize = property(lambda self: self._data.itemsize)
    strides = property(lambda self: self._data.strides)
    flags = property(lambda self: self._data.flags)
    T = property(lambda self: Array(self._data.T))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self._data.__array_interface__, "version": 3}

    def __array__(self, *args: Any, **keywords: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to do so explicitly.")

    def __array_function__(self, function: Any, *args: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} of a device array: call that of device.xp")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **keywords: Any) -> Any:
        if method != "__call__":
            raise TypeError(f"numpy.{ufunc.__name__}.{method} of a device array")
        values = ufunc(*map(_data, inputs), out=tuple(map(_data, out)) or None, **keywords)
        if out:
            return out[0] if len(out) == 1 else out
        return tuple(map(Array, values)) if isinstance(values, tuple) else Array(values)

    def __getitem__(self, key: Any) -> Array:
        # The ellipsis makes a single item a view, as CuPy's is.
        return Array(self._data[_index(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        index = _index(key)
        value = _data(value)
        if np.ndim(value):
            # CuPy leaves open which of several values is written to one place.
            places = np.arange(self.size).reshape(self.shape)[index]
            if len(np.unique(places)) != places.size:
                raise ValueError("an assignment of several values to one place")
        self._data[index] = value

    def __len__(self) -> int:
        return len(self._data)

    __iter__ = None

    def __bool__(self) -> bool:
        return bool(self._data)

    def __int__(self) -> int:
        return int(self._data)

    def __float__(self) -> float:
        return float(self._data)

    def __repr__(self) -> str:
        return f"emulated {self._data!r}"

    def item(self) -> Any:
        return self._data.item()

    def get(self) -> Any:
        return self._data.copy()

    def set(self, arr: Any) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if (arr.shape, arr.dtype) != (self.shape, self.dtype):
            raise ValueError(f"{arr.dtype} {arr.shape} cannot be set to {self.dtype} {self.shape}")
        self._data[...] = arr

    def tolist(self) -> Any:
        return self._data.tolist()

    def fill(self, value: Any) -> None:
        self._data.fill(_scalar(value))

    def sort(self, axis: int = -1) -> None:
        self._data.sort(axis, kind="stable")

    def argsort(self, axis: int = -1) -> Array:
        return Array(self._data.argsort(axis, kind="stable"))

    def nonzero(self) -> tuple[Array, ...]:
        return tuple(map(Array, self._data.nonzero()))

    def view(self, dtype: Any) -> Array:
        return Array(self._data.view(dtype))

    def astype(self, dtype: Any, copy: bool = True) -> Array:
        return Array(self._data.astype(dtype, copy=copy))


def _forward(name: str) -> Callable[..., Array]:
    def method(self: Array, *args: Any, **keywords: Any) -> Array:
        keywords = {key: _data(value) for key, value in keywords.items()}
        return Array(getattr(self._data, name)(*map(_data, args), **keywords))

    return method


for _name in ("reshape", "ravel", "flatten", "copy", "transpose", "swapaxes", "squeeze", "take", "clip") + (
    "sum",
    "prod",
    "min",
    "max",
    "any",
    "all",
    "cumsum",
    "argmin",
    "argmax",
    "searchsorted",
):
    setattr(Array, _name, _forward(_name))


def _data(value: Any) -> Any:
    """Return what NumPy is to work on; refuse host arrays, as CuPy does."""
    if isinstance(value, Array):
        return value._data
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {np.ndarray}: a host array of shape {value.shape} where CuPy needs its own")
    if isinstance(value, list | tuple):
        return type(value)(map(_data, value))
    return value


def _scalar(value: Any) -> Any:
    return value._data[()] if isinstance(value, Array) and value.ndim == 0 else _data(value)


def _index(key: Any) -> Any:
    keys = key if isinstance(key, tuple) else (key,)
    keys = tuple(_data(part) for part in keys)
    return keys if any(part is Ellipsis for part in keys) else (*keys, Ellipsis)


FUNCTIONS = {
    **dict.fromkeys(("sum", "prod"), "a axis dtype out keepdims"),
    **dict.fromkeys(("min", "max", "amin", "amax", "any", "all"), "a axis out keepdims"),
    **dict.fromkeys(("argmin", "argmax"), "a axis"),
    **dict.fromkeys(("cumsum", "cumprod"), "a axis dtype out"),
    **dict.fromkeys(("nonzero", "flatnonzero", "argwhere"), "a"),
    **dict.fromkeys(("sort", "argsort"), "a axis"),
    **dict.fromkeys(("zeros", "ones"), "shape dtype"),
    **dict.fromkeys(("zeros_like", "ones_like"), "a dtype"),
    **dict.fromkeys(("concatenate", "stack"), "tup axis"),
    "full": "shape fill_value dtype",
    "full_like": "a fill_value dtype",
    "arange": "start stop step dtype",
    "ascontiguousarray": "a dtype",
    "array_equal": "a1 a2",
    "bincount": "x weights minlength",
    "broadcast_to": "array shape",
    "clip": "a a_min a_max out",
    "count_nonzero": "a axis",
    "diff": "a n axis prepend append",
    "expand_dims": "a axis",
    "flip": "a axis",
    "isin": "element test_elements assume_unique invert",
    "may_share_memory": "a b",
    "moveaxis": "a source destination",
    "ravel": "a",
    "repeat": "a repeats axis",
    "reshape": "a newshape",
    "searchsorted": "a v side",
    "take": "a indices axis",
    "transpose": "a axes",
    "unique": "ar return_index return_inverse return_counts",
    "where": "condition x y",
}
"""The functions of `cupy` that there are here, each with the parameters that may be given."""

UFUNCS = (
    ("add", "subtract", "multiply", "floor_divide", "true_divide", "divmod", "remainder", "minimum", "maximum", "abs")
    + ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "negative", "sign", "square", "sqrt")
    + ("logical_and", "logical_or", "logical_not", "logical_xor", "rint", "floor", "ceil", "absolute")
    + ("bitwise_and", "bitwise_or", "bitwise_xor", "invert", "left_shift", "right_shift")
)
CONSTANTS = ("newaxis", "inf", "nan", "bool_", "float32", "float64", "intp", "uintp") + tuple(
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
)
"""What stands in `cupy` as it does in NumPy."""


class Functions:
    """What stands in for the module `cupy`."""

    ndarray = Array

    def __getattr__(self, name: str) -> Any:
        if name in CONSTANTS:
            return getattr(np, name)
        if name in UFUNCS:
            return lambda *args, **keywords: _on_device(getattr(np, name)(*map(_data, args), **_host(keywords)))
        if name in FUNCTIONS:
            return _function(name, FUNCTIONS[name].split())
        raise AttributeError(f"tests/emulator.py has no {name}: see how cupy.{name} differs from NumPy's, and add it")

    def empty(self, shape: Any, dtype: Any = float) -> Array:
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[...] = GARBAGE
        return Array(array)

    def empty_like(self, a: Array, dtype: Any = None) -> Array:
        return self.empty(a.shape, a.dtype if dtype is None else dtype)

    def asarray(self, a: Any, dtype: Any = None) -> Array:
        if isinstance(a, Array):
            return a if dtype is None or a.dtype == dtype else a.astype(dtype)
        return Array(np.array(a, dtype))

    def array(self, a: Any, dtype: Any = None) -> Array:
        return Array(np.array(_data(a) if isinstance(a, Array) else a, dtype))

    def ascontiguousarray(self, a: Array, dtype: Any = None) -> Array:
        data = _device_data(a)
        return a if data.flags.c_contiguous and dtype in (None, a.dtype) else Array(np.ascontiguousarray(data, dtype))

    def asnumpy(self, a: Any) -> Any:
        return a.get() if isinstance(a, Array) else np.asarray(a)

    def lexsort(self, keys: Array) -> Array:
        return Array(np.lexsort(_device_data(keys)))


def _device_data(array: Any) -> Any:
    if not isinstance(array, Array):
        raise TypeError(f"a {type(array).__name__} where CuPy needs its own array")
    return array._data


def _host(keywords: dict[str, Any]) -> dict[str, Any]:
    return {key: _data(value) for key, value in keywords.items()}


def _on_device(result: Any) -> Any:
    return tuple(map(Array, result)) if isinstance(result, tuple) else Array(result)


def _function(name: str, parameters: list[str]) -> Callable[..., Any]:
    def function(*args: Any, **keywords: Any) -> Any:
        unknown = set(keywords) - set(parameters)
        if unknown or len(args) > len(parameters):
            raise TypeError(f"tests/emulator.py knows xp.{name}({', '.join(parameters)}): see CuPy's, and add to it")
        if name == "repeat" and isinstance(args[1], Array):
            raise TypeError("cupy.repeat takes whole numbers or a list of them as repeats")
        if name in ("sort", "argsort"):
            keywords["kind"] = "stable"
        result = getattr(np, name)(*map(_data, args), **_host(keywords))
        if name == "array_equal":
            result = np.asarray(result)
        return _on_device(result)

    return function


# ---------------------------------------------------------------------------------------------------- kernels

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_GUARD = 1 << 20
_launching = threading.Lock()


class _Placed:
    """A host buffer copied to where any access before its start, or beyond its end, faults."""

    def __init__(self, base: np.ndarray, at_end: bool) -> None:
        self.base = base
        room = -(-max(base.nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        self.length = room + 2 * _GUARD
        self.mapped = _libc.mmap(None, self.length, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, -1, 0)
        inside = self.mapped + _GUARD
        _libc.mprotect(inside, room, mmap.PROT_READ | mmap.PROT_WRITE)
        self.start = inside + room - base.nbytes if at_end else inside
        ctypes.memmove(self.start, base.ctypes.data, base.nbytes)

    def address(self, array: np.ndarray) -> int:
        return self.start + array.ctypes.data - self.base.ctypes.data

    def copy_back(self) -> None:
        ctypes.memmove(self.base.ctypes.data, self.start, self.base.nbytes)

    def free(self) -> None:
        _libc.munmap(self.mapped, self.length)


def _base(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


class BuildError(Exception):
    """A source that g++ refuses."""


def _build(source: str, options: tuple[str, ...]) -> ctypes.CDLL:
    """Return the library of a source's kernels, built unless it has been before."""
    kernels = re.findall(r'extern "C" __global__ void(?:\s+__launch_bounds__\([^)]*\))?\s+(\w+)', source)
    calls = "".join(
        f'extern "C" void call_{name}(void **values) {{ shim::call({name}, values); }}\n' for name in kernels
    )
    # g++ fuses multiplications and additions where it can, unless told not to; nvcc knows no strict aliasing.
    flags = [
        *("-std=c++17", "-O1", "-g", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-ffp-contract=off", "-w"),
        *("-fno-strict-aliasing", "-fno-gnu-unique", "-fno-exceptions", "-Wl,-Bsymbolic"),
        *(option for option in options if option.startswith("-D")),
    ]
    text = f'#include "cuda_shim.h"\n{source}\n#line 1 "calls"\n{calls}'
    shim = SHIM.read_text(encoding="utf-8")
    digest = hashlib.sha256("\0".join([*flags, shim, text]).encode()).hexdigest()[:24]
    library = cache_folder / f"{digest}.so"
    if not library.exists():
        cache_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder) as folder:
            built = Path(folder) / "kernels.so"
            command = [str(COMPILER), *flags, "-I", str(SHIM.parent), "-x", "c++", "-", "-o", str(built)]
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BuildError(done.stderr)
            built.replace(library)
    return ctypes.CDLL(str(library))


class Emulator(cuda_device.Device):
    """A device whose kernels run on the CPU.

    Parameters
    ----------
    mode
        One of `MODES`.
    seed
        Where random order starts from; each launch's own follows from it, the kernel and its arguments.
    replace
        Maps the name of a source file to (old, new): the text `old`, which is there once, is replaced by `new`.
    """

    def __init__(self, mode: str, seed: int = 0, replace: dict[str, tuple[str, str]] | None = None) -> None:
        super().__init__(Functions(), Array, self._library, lambda array: array.get(), lambda: 1 << 30)
        self.mode, self.seed, self.replace = mode, seed, replace or {}

    def _library(self, source: str, options: tuple[str, ...]) -> Callable[[str], Callable[..., None]]:
        for file, (old, new) in self.replace.items():
            source = _replace(source, file, old, new)
        library = _build(source, options)
        return lambda name: self._kernel(library, name)

    def _kernel(self, library: ctypes.CDLL, name: str) -> Callable[..., None]:
        function = ctypes.cast(library[f"call_{name}"], ctypes.c_void_p)
        seed_of_name = zlib.crc32(name.encode(), self.seed)

        def launch(grid: tuple[int, int, int], block: tuple[int, int, int], values: tuple[Any, ...]) -> None:
            with _launching:
                seed = zlib.crc32(repr((grid, block)).encode(), seed_of_name)
                bases = {}
                for value in values:
                    data = value._data if isinstance(value, Array) else np.asarray(value)
                    if isinstance(value, Array):
                        bases[id(_base(data))] = _base(data)
                    seed = zlib.crc32(data.reshape(-1).view(np.uint8), seed)
                placed = {key: _Placed(base, bool((seed >> i) & 1)) for i, (key, base) in enumerate(bases.items())}
                try:
                    self._launch(library, function, name, grid, block, values, placed, seed)
                finally:
                    for place in placed.values():
                        place.copy_back()
                        place.free()

        return launch

    def _launch(
        self,
        library: ctypes.CDLL,
        function: ctypes.c_void_p,
        name: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        values: tuple[Any, ...],
        placed: dict[int, _Placed],
        seed: int,
    ) -> None:
        cells = [
            ctypes.c_void_p(placed[id(_base(value._data))].address(value._data))
            if isinstance(value, Array)
            else np.ctypeslib.as_ctypes_type(value.dtype)(value.item())
            for value in values
        ]
        pointers = (ctypes.c_void_p * len(cells))(*map(ctypes.addressof, cells))
        text = ctypes.create_string_buffer(400)
        address = ctypes.c_void_p()
        outcome = library.shim_launch(
            function,
            pointers,
            (ctypes.c_uint * 3)(*grid),
            (ctypes.c_uint * 3)(*block),
            MODES.index(self.mode),
            ctypes.c_ulonglong(seed << 20 | self.seed),
            text,
            ctypes.c_size_t(len(text)),
            ctypes.byref(address),
        )
        if outcome == 2:
            raise IndexError(f"kernel {name} {_describe(address.value or 0, values, placed)}")
        if outcome:
            raise RuntimeError(f"kernel {name}: {text.value.decode()}")


def _describe(address: int, values: tuple[Any, ...], placed: dict[int, _Placed]) -> str:
    for number, value in enumerate(values):
        if isinstance(value, Array):
            place = placed[id(_base(value._data))]
            if place.mapped <= address < place.mapped + place.length:
                start = place.address(value._data)
                where = f"byte {address - start} of argument {number}, which has {value.nbytes}"
                return f"reads or writes {where}"
    return f"reads or writes address {address:#x}, which is in no argument"


def _replace(source: str, file: str, old: str, new: str) -> str:
    """Return a source, as `read_source` gives it, with a text replaced in one of its files."""
    texts = re.split(r'(?m)^(?=#line \d+ "[\w.]+"$)', source)
    return "".join(part.replace(old, new) if f'"{file}"' in part.partition("\n")[0] else part for part in texts)


@contextmanager
def opened(device: cuda_device.Device) -> Iterator[cuda_device.Device]:
    """Let `device` be the one that lpa3d opens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_backend, "open_device", lambda: device)
        yield device


@contextmanager
def plant(device: Emulator, file: str, old: str, new: str) -> Iterator[Emulator]:
    """Open a device of the same mode and seed in whose `file` the text `old`, found once, is replaced by `new`."""
    text = (cuda_device.FOLDER / file).read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise ValueError(f"{old!r} is not once in {file}, but {text.count(old)} times")
    broken = Emulator(device.mode, device.seed, {**device.replace, file: (old, new)})
    with opened(broken):
        yield broken
