"""CUDA on the CPU: a `lpa3d.cuda.device.Device` whose kernels g++ builds, with arrays as strict as CuPy's.

`Emulator(mode, seed)` has the modes of ``cuda_shim.cpp``. "serial" runs blocks and threads in order, "shuffled" in
random order from barrier to barrier; accesses beyond an array's end fault there. "preempt" has several blocks at once,
may stop a thread at each access to memory, and finds accesses beyond an array, accesses that are not aligned, and
races. Barriers that not all threads reach and kernels that do not end are errors in all modes.

`Array` has what we use of `cupy.ndarray`, and `Functions` of `cupy`; ``cuda/test_emulator.py`` compares both with CuPy.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import re
import shutil
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.lib.mixins import NDArrayOperatorsMixin

from lpa3d.arrays import backend as _backend
from lpa3d.cuda import device as cuda_device

MODES = ("serial", "shuffled", "preempt")
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
any_order = pytest.mark.parametrize("device", ["shuffled", CUDA], indirect=True, scope="module")
"""For tests whose outcome is the same in whatever order threads run: of what is done before and after kernels."""

GARBAGE = 0xA5
FOLDER = Path(__file__).parent
COMPILER = shutil.which("g++")

LONGEST = 60
"""Seconds of CPU time that a launch may take."""

cache_folder = Path(tempfile.gettempdir())
"""Where built kernels are kept; the fixture `emulator` sets it."""


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
    T = property(lambda self: Array(self._data.T))

    @property
    def flags(self) -> SimpleNamespace:
        return SimpleNamespace(c_contiguous=self._data.flags.c_contiguous, f_contiguous=self._data.flags.f_contiguous)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self._data.__array_interface__, "version": 3}

    def __array__(self, *args: Any, **keywords: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to do so explicitly.")

    def __array_function__(self, function: Any, *args: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} of a device array: call that of device.xp")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **keywords: Any) -> Any:
        if method != "__call__" or ufunc.__name__ not in UFUNCS.split() or keywords.keys() - {"dtype"}:
            raise TypeError(f"tests/emulator.py knows no {ufunc.__name__}.{method}({', '.join(keywords)}): see CuPy's")
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
        if np.ndim(value) and any(isinstance(part, np.ndarray) and part.dtype.kind in "iu" for part in index):
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

    def astype(self, dtype: Any, *, copy: bool = True) -> Array:
        return Array(self._data.astype(dtype, copy=copy))


def _forward(name: str) -> Callable[..., Array]:
    def method(self: Array, *args: Any, **keywords: Any) -> Array:
        if keywords.keys() - {"axis", "dtype", "out", "keepdims", "side"}:
            raise TypeError(f"tests/emulator.py knows no {name}({', '.join(keywords)}) of an array: see CuPy's")
        return Array(getattr(self._data, name)(*map(_data, args), **_host(keywords)))

    return method


METHODS = """
    reshape ravel flatten copy transpose swapaxes squeeze take clip
    sum prod min max any all cumsum argmin argmax searchsorted
"""

for _name in METHODS.split():
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
    **dict.fromkeys(("min", "max", "any", "all"), "a axis out keepdims"),
    **dict.fromkeys(("nonzero", "flatnonzero"), "a"),
    **dict.fromkeys(("sort", "argsort", "count_nonzero"), "a axis"),
    **dict.fromkeys(("zeros", "ones"), "shape dtype"),
    **dict.fromkeys(("zeros_like", "ones_like"), "a dtype"),
    **dict.fromkeys(("concatenate", "stack"), "tup axis"),
    "arange": "start stop step dtype",
    "clip": "a a_min a_max out",
    "cumsum": "a axis dtype out",
    "full": "shape fill_value dtype",
    "full_like": "a fill_value dtype",
    "may_share_memory": "a b",
    "searchsorted": "a v side",
    "unique": "ar return_index return_inverse return_counts",
    "where": "condition x y",
}
"""The functions of `cupy` that there are here, each with the parameters that may be given."""

UFUNCS = """
    add subtract multiply floor_divide divide divmod remainder power negative absolute abs sign square sqrt
    minimum maximum rint floor ceil equal not_equal less less_equal greater greater_equal
    logical_and logical_or logical_not logical_xor
    bitwise_and bitwise_or bitwise_xor invert left_shift right_shift
"""

CONSTANTS = """
    newaxis inf nan bool_ int8 int16 int32 int64 intp uint8 uint16 uint32 uint64 uintp float32 float64
"""
"""What stands in `cupy` as it does in NumPy."""


class Functions:
    """What stands in for the module `cupy`."""

    ndarray = Array

    def __getattr__(self, name: str) -> Any:
        if name in CONSTANTS.split():
            return getattr(np, name)
        if name in UFUNCS.split():
            return lambda *args, **keywords: _on_device(getattr(np, name)(*map(_data, args), **_host(keywords)))
        if name in FUNCTIONS:
            return _function(name, FUNCTIONS[name].split())
        raise AttributeError(f"tests/emulator.py has no {name}: see how cupy.{name} differs from NumPy's, and add it")

    def empty(self, shape: Any, dtype: Any = float) -> Array:
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[...] = GARBAGE
        return Array(array)

    def empty_like(self, prototype: Array, dtype: Any = None) -> Array:
        return self.empty(prototype.shape, prototype.dtype if dtype is None else dtype)

    def asarray(self, a: Any, dtype: Any = None) -> Array:
        if isinstance(a, Array):
            return a if dtype is None or a.dtype == dtype else a.astype(dtype)
        return Array(np.array(a, dtype))

    def ascontiguousarray(self, a: Array, dtype: Any = None) -> Array:
        data = _device_data(a)
        return a if data.flags.c_contiguous and dtype in (None, a.dtype) else Array(np.ascontiguousarray(data, dtype))

    def asnumpy(self, a: Any) -> Any:
        return a.get() if isinstance(a, Array) else np.asarray(a)


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
        if len(args) > len(parameters) or keywords.keys() - set(parameters):
            raise TypeError(f"tests/emulator.py knows xp.{name}({', '.join(parameters)}): see CuPy's, and add to it")
        given = {**dict(zip(parameters, args, strict=False)), **keywords}
        for parameter in {"a", "ar", "b", "v", "condition"} & given.keys():
            _device_data(given[parameter])
        for array in given.get("tup", ()):
            _device_data(array)
        kind = {"kind": "stable"} if name in ("sort", "argsort") else {}
        return _on_device(getattr(np, name)(*map(_data, args), **_host(keywords), **kind))

    return function


# ---------------------------------------------------------------------------------------------------- kernels

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
GUARD = 1 << 20
_launching = threading.Lock()


class _Memory:
    """Copies of host buffers for a launch, each with what is on no device around it.

    Where they lie at the end of their pages, any access beyond that faults. Elsewhere there is garbage, and what is
    written to it is found after the launch.
    """

    def __init__(self, bases: list[np.ndarray], at_end: bool) -> None:
        self.bases = bases
        rooms = [-(-max(base.nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE for base in bases]
        self.length = sum(rooms) + (len(rooms) + 1) * GUARD
        self.begin = _libc.mmap(None, self.length, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        self.starts, self.around = [], []
        at = self.begin + GUARD
        for base, room in zip(bases, rooms, strict=True):
            _libc.mprotect(at, room, mmap.PROT_READ | mmap.PROT_WRITE)
            spare = room - base.nbytes
            start = at + spare if at_end else at
            ctypes.memmove(start, base.ctypes.data, base.nbytes)
            self.around.append((ctypes.c_ubyte * spare).from_address(at if at_end else at + base.nbytes))
            ctypes.memset(self.around[-1], GARBAGE, spare)
            self.starts.append(start)
            at += room + GUARD

    def address(self, array: Array) -> int:
        base = _base(array._data)
        start = next(start for start, other in zip(self.starts, self.bases, strict=True) if other is base)
        return start + array._data.ctypes.data - base.ctypes.data

    def find_written(self) -> int | None:
        """Return the address of something that was written beside a buffer."""
        for part in self.around:
            written = np.flatnonzero(np.frombuffer(part, np.uint8) != GARBAGE)
            if len(written):
                return ctypes.addressof(part) + int(written[0])
        return None

    def give_back(self) -> None:
        for start, base in zip(self.starts, self.bases, strict=True):
            ctypes.memmove(base.ctypes.data, start, base.nbytes)
        _libc.munmap(self.begin, self.length)


def _base(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _compile(command: list[str], text: str, suffix: str, *inputs: Path) -> Path:
    """Return what g++ makes of a text and some files, made unless it has been before."""
    digest = hashlib.sha256("\0".join([*command, text, *map(str, inputs)]).encode()).hexdigest()[:24]
    built = cache_folder / f"{digest}{suffix}"
    if not built.exists():
        cache_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder) as folder:
            output = Path(folder) / "built"
            whole = [str(COMPILER), *command, *map(str, inputs), "-o", str(output)]
            done = subprocess.run(whole, input=text, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ValueError(f"g++ refuses it:\n{done.stderr}")
            output.replace(built)
    return built


def _build(source: str, options: tuple[str, ...], watched: bool) -> ctypes.CDLL:
    """Return the library of a source's kernels; `watched`: with a call before each access to memory."""
    kernels = re.findall(r'extern "C" __global__ void(?:\s+__launch_bounds__\([^)]*\))?\s+(\w+)', source)
    calls = [f'extern "C" void call_{name}(void **values) {{ shim::call({name}, values); }}' for name in kernels]
    shim = (FOLDER / "cuda_shim.h").read_text(encoding="utf-8")
    runtime = (FOLDER / "cuda_shim.cpp").read_text(encoding="utf-8").replace('#include "cuda_shim.h"', shim)
    flags = ["-std=c++17", "-g1", "-fPIC", "-U_FORTIFY_SOURCE", "-fno-exceptions", "-fno-gnu-unique"]
    # g++ fuses multiplications and additions where it can, unless told not to; CUDA knows no strict aliasing.
    defines = [option for option in options if option.startswith("-D")]
    flags_of_kernels = [*flags, "-O1", "-w", "-ffp-contract=off", "-fno-strict-aliasing", *defines]
    if watched:
        flags_of_kernels += ["-fsanitize=thread", "--param=tsan-distinguish-volatile=1"]
        flags_of_kernels += ["--param=tsan-instrument-func-entry-exit=0"]
    text = "\n".join([shim, '#line 1 "source"', source, *calls, ""])
    from_text = ["-c", "-x", "c++", "-"]
    objects = [
        _compile([*flags_of_kernels, *from_text], text, ".o"),
        _compile([*flags, "-O2", *from_text], runtime, ".o"),
    ]
    return ctypes.CDLL(str(_compile(["-shared", "-Wl,-Bsymbolic"], "", ".so", *objects)))


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
        library = _build(source, options, watched=self.mode == "preempt")
        return lambda name: partial(self._launch, library, name)

    def _launch(self, library: ctypes.CDLL, name: str, grid: Any, block: Any, values: tuple[Any, ...]) -> None:
        if max(grid) >= 2**31:
            raise ValueError(f"kernel {name}: a grid of {grid}; a device has blocks up to 2**31 - 1")
        arrays = [value for value in values if isinstance(value, Array)]
        bases = list({id(base): base for base in (_base(array._data) for array in arrays)}.values())
        # So that a launch is repeated exactly where its arguments are.
        seed = zlib.crc32(repr((name, grid, block, self.seed)).encode())
        for value in values:
            data = value._data if isinstance(value, Array) else value
            seed = zlib.crc32(np.asarray(data).reshape(-1).view(np.uint8), seed)
        text = ctypes.create_string_buffer(400)
        fault = ctypes.c_void_p()
        with _launching:
            memory = _Memory(bases, at_end=self.mode != "preempt")
            bounds = [
                at for start, base in zip(memory.starts, bases, strict=True) for at in (start, start + base.nbytes)
            ]
            cells = [
                ctypes.c_void_p(memory.address(value))
                if isinstance(value, Array)
                else np.ctypeslib.as_ctypes_type(value.dtype)(value.item())
                for value in values
            ]
            outcome = library.shim_launch(
                ctypes.cast(library[f"call_{name}"], ctypes.c_void_p),
                (ctypes.c_void_p * len(cells))(*map(ctypes.addressof, cells)),
                (ctypes.c_uint * 3)(*grid),
                (ctypes.c_uint * 3)(*block),
                ctypes.c_void_p(memory.begin),
                ctypes.c_void_p(memory.begin + memory.length),
                (ctypes.c_void_p * len(bounds))(*bounds),
                ctypes.c_uint(len(bounds)),
                MODES.index(self.mode),
                ctypes.c_ulonglong(seed),
                ctypes.c_int(LONGEST),
                text,
                ctypes.c_size_t(len(text)),
                ctypes.byref(fault),
            )
            written = memory.find_written()
            starts = {number: memory.address(value) for number, value in enumerate(values) if isinstance(value, Array)}
            memory.give_back()
        if outcome:
            message = re.sub(r"code (0x[0-9a-f]+)", lambda found: _find_line(library, found[1]), text.value.decode())
            if outcome == 1:
                raise RuntimeError(f"kernel {name}: {message}")
            raise IndexError(f"kernel {name}: {_describe(fault.value or 0, starts, values)}, {message}")
        if written is not None:
            raise IndexError(f"kernel {name}: {_describe(written, starts, values)}, was written")


def _find_line(library: ctypes.CDLL, code: str) -> str:
    """Return file and line of a place in a library."""
    command = ["addr2line", "-s", "-e", library._name, code]
    if shutil.which(command[0]) is None:
        return code
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]


def _describe(address: int, starts: dict[int, int], values: tuple[Any, ...]) -> str:
    """Return in which argument an address is, or outside which."""
    for number, start in starts.items():
        size = values[number].nbytes
        if start - GUARD <= address < start + size + GUARD:
            return f"byte {address - start} of argument {number}, which has {size}"
    return f"address {address:#x}, which is in no argument"


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


def expect_caught(
    emulator: Callable[..., Emulator], file: str, old: str, new: str, check: Callable[[Any], Any]
) -> None:
    """Fail unless `check` of a device with a planted bug (see `plant`) fails in one of eight orders of the threads."""
    for seed in range(8):
        with plant(emulator("preempt", seed), file, old, new) as broken:
            try:
                check(broken)
            except (AssertionError, IndexError, RuntimeError):
                return
    pytest.fail("no order of the threads shows the error")
