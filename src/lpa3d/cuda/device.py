"""The CUDA device: its arrays, and the one loader of the kernels in this folder's ``.cu`` files.

A kernel is compiled from its file when it is first asked for, once for each set of defines. ``#include "x.cuh"`` is
replaced by that file's text here, so that whoever compiles sees (and caches) all of the source. The parameters that a
kernel declares decide what it is given: plain numbers are converted, arrays must fit.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DeviceError, InputError, Keyword

__all__ = ["BLOCK", "Device", "Kernel", "ceil_div", "open_device", "read_source"]

BLOCK = 256
"""Threads of a block where nothing speaks for another number."""

OLDEST = (7, 5)
"""The oldest compute capability that the kernels are compiled for."""

FOLDER = Path(__file__).parent

C_TYPES: dict[str, np.dtype[Any]] = {
    "unsigned char": np.dtype(np.uint8),
    "unsigned short": np.dtype(np.uint16),
    "unsigned int": np.dtype(np.uint32),
    "unsigned long long": np.dtype(np.uint64),
    "signed char": np.dtype(np.int8),
    "short": np.dtype(np.int16),
    "int": np.dtype(np.int32),
    "long long": np.dtype(np.int64),
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
}
"""What a kernel's parameters may be, or point to; `long` differs between systems."""

C_NAMES = {dtype: name for name, dtype in C_TYPES.items()}

SHORT = {"u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64, "i32": np.int32, "i64": np.int64}
"""Names that ``common.cuh`` gives to some of them."""

Build = Callable[[str, tuple[str, ...]], Callable[[str], Callable[..., None]]]
"""``build(source, options)(name)(grid, block, args)``: what `cupy.RawModule` does."""


def ceil_div(a: int, b: int) -> int:
    """Return a / b, rounded up: the blocks of b that hold a."""
    return -(-a // b)


@cache
def read_source(name: str) -> str:
    """Return the text of ``name.cu`` with the files that it includes, each once, in their places."""
    seen: set[str] = set()

    def read(file: str) -> str:
        if file in seen:
            return ""
        seen.add(file)
        lines = []
        for number, line in enumerate((FOLDER / file).read_text(encoding="utf-8").splitlines(), start=1):
            included = re.fullmatch(r'\s*#include "([\w.]+)"\s*', line)
            lines.append(f'{read(included[1])}#line {number + 1} "{file}"' if included else line)
        return f'#line 1 "{file}"\n' + "\n".join(lines) + "\n"

    return read(f"{name}.cu")


def _parameters(source: str, name: str, types: dict[str, np.dtype[Any]]) -> list[tuple[np.dtype[Any], bool, str]]:
    """Return the type of each parameter of a kernel, whether it is a pointer to it, and its name."""
    found = re.search(rf'extern "C" __global__ void(?:\s+__launch_bounds__\([^)]*\))?\s+{name}\s*\(([^)]*)\)', source)
    if found is None:
        raise KeyError(f"no kernel {name}")
    parameters = []
    for text in found[1].split(","):
        words = re.sub(r"\b(const|volatile|__restrict__)\b", " ", text)
        parameter = re.fullmatch(r"\s*([\w ]+?)\s*(\*?)\s*(\w+)\s*", words)
        if parameter is None:
            raise TypeError(f"{name}: cannot read the parameter {text.strip()!r}")
        kind = " ".join(parameter[1].split())
        dtype = types.get(kind) or C_TYPES.get(kind) or np.dtype(SHORT[kind])
        parameters.append((dtype, bool(parameter[2]), parameter[3]))
    return parameters


class Kernel:
    """A compiled kernel; calling it launches it."""

    def __init__(
        self,
        label: str,
        function: Callable[..., None],
        parameters: list[tuple[np.dtype[Any], bool, str]],
        array_type: type[Any],
    ) -> None:
        self.label, self.function, self.parameters, self.array_type = label, function, parameters, array_type

    def __call__(self, grid: int, block: int | tuple[int, int, int], *args: Any) -> None:
        """Launch `grid` blocks (none: nothing) with one argument for each parameter, an array or a number.

        Raises
        ------
        TypeError
            If an array is not on the device, not contiguous or of another dtype than the parameter points to.
        OverflowError
            If a number does not fit.
        """
        if len(args) != len(self.parameters):
            raise TypeError(f"{self.label} takes {len(self.parameters)} arguments, not {len(args)}")
        values = []
        for value, (dtype, pointer, name) in zip(args, self.parameters, strict=True):
            if pointer:
                if not isinstance(value, self.array_type):
                    raise TypeError(f"{self.label}: {name} is a {type(value).__qualname__}; a device array is needed")
                if value.dtype != dtype or not value.flags.c_contiguous:
                    raise TypeError(f"{self.label}: {name} is {value.dtype}; contiguous {dtype} is needed")
                values.append(value)
            elif dtype.kind == "f":
                values.append(dtype.type(value))
            else:
                number = int(value)
                if not np.iinfo(dtype).min <= number <= np.iinfo(dtype).max:
                    raise OverflowError(f"{self.label}: {name} is {number}, which {dtype} cannot hold")
                values.append(dtype.type(number))
        if grid > 0:
            self.function((grid, 1, 1), (block, 1, 1) if isinstance(block, int) else block, tuple(values))


class Device:
    """A CUDA device.

    Parameters
    ----------
    xp
        CuPy, or what stands in for it in the tests.
    array_type
        The type of its arrays.
    build
        Compiles a source.
    fetch
        Copies a device array to the host.
    free_bytes
        Tells how much of the device's memory can be taken now.
    check_place
        Refuses an array in the memory of another device than the one that kernels run on now.
    """

    def __init__(
        self,
        xp: Any,
        array_type: type[Any],
        build: Build,
        fetch: Callable[[Any], npt.NDArray[Any]],
        free_bytes: Callable[[], int],
        check_place: Callable[[Any], None] = lambda array: None,
    ) -> None:
        self.xp, self.array_type, self.fetch, self.free_bytes = xp, array_type, fetch, free_bytes
        self.check_place = check_place
        self._build = build
        self._modules: dict[Any, Callable[[str], Callable[..., None]]] = {}
        self._kernels: dict[Any, Kernel] = {}
        self._lock = threading.Lock()

    def kernel(self, source: str, name: str, **defines: Any) -> Kernel:
        """Return the kernel `name` of the file ``source.cu``, compiled with `defines`: dtypes, and whole numbers."""
        values = {key: int(value) if isinstance(value, int) else np.dtype(value) for key, value in defines.items()}
        module_key = (source, *sorted(values.items()))
        key = (name, *module_key)
        with self._lock:
            if key not in self._kernels:
                text = read_source(source)
                if module_key not in self._modules:
                    options = ["-std=c++17", "--fmad=false"]
                    for define, value in sorted(values.items()):
                        options.append(f"-D{define}={value if isinstance(value, int) else C_NAMES[value]}")
                    self._modules[module_key] = self._build(text, tuple(options))
                types = {key: value for key, value in values.items() if not isinstance(value, int)}
                parameters = _parameters(text, name, types)
                function = self._modules[module_key](name)
                self._kernels[key] = Kernel(f"{source}.cu {name}", function, parameters, self.array_type)
            return self._kernels[key]

    def holds(self, array: Any) -> bool:
        """Return whether an array is on the device."""
        return isinstance(array, self.array_type)

    def bring(self, array: Any) -> Any:
        """Return an array on the device, C-ordered: itself if it is there, else a copy."""
        if self.holds(array):
            return self.xp.ascontiguousarray(array)
        host = np.ascontiguousarray(array)
        copy = self.xp.empty(host.shape, host.dtype)
        if host.size:
            # CuPy's `asarray` copies by way of page-locked memory, of which it keeps the next power of two bytes.
            copy.set(host)
        return copy

    def give(self, array: Any, like: Any) -> Any:
        """Return a device array where `like` is: itself, or a copy on the host."""
        return array if self.holds(like) else self.fetch(array)

    def give_back(self, array: Any, target: Any) -> None:
        """Copy a device array that `bring` made from `target` to where that is; nothing if it is the same."""
        if not self.holds(target):
            target[...] = self.fetch(array).reshape(target.shape)
        elif array is not target:
            target[...] = array.reshape(target.shape)


@cache
def open_device() -> Device:
    """Return the CUDA device that CuPy uses.

    Raises
    ------
    DeviceError
        If there is no CuPy, no driver, no device, or an older one than the kernels can be compiled for.
    """
    needed = Keyword("device", "cuda")
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(
            needed,
            f" needs CuPy, which cannot be imported ({error}): pip install 'lpa3d[cuda13]', or 'lpa3d[cuda12]' for a "
            "driver of CUDA 12",
        ) from None
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        raise DeviceError(
            needed,
            f" needs an NVIDIA GPU and its driver, and CuPy finds none ({error}): see what nvidia-smi says; a driver "
            "older than CuPy's CUDA needs lpa3d[cuda12] in place of lpa3d[cuda13]",
        ) from None
    if count == 0:
        raise DeviceError(needed, " needs an NVIDIA GPU, and there is none: CUDA_VISIBLE_DEVICES may hide it")
    capability = cupy.cuda.Device().compute_capability
    if (int(capability[:-1]), int(capability[-1])) < OLDEST:
        raise DeviceError(
            f"the GPU has compute capability {capability[:-1]}.{capability[-1]}; "
            f"{OLDEST[0]}.{OLDEST[1]} or newer is needed"
        )
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:
        raise DeviceError(
            f"CuPy cannot load NVRTC, which compiles the kernels ({error}): pip install 'lpa3d[cuda13]' brings it"
        ) from error

    def build(source: str, options: tuple[str, ...]) -> Callable[[str], Callable[..., None]]:
        get: Callable[[str], Callable[..., None]] = cupy.RawModule(code=source, options=options).get_function
        return get

    def free_bytes() -> int:
        free, _ = runtime.memGetInfo()
        pool = cupy.get_default_memory_pool()
        # What CuPy's pool holds unused can be taken, too; if the pool has a limit, no more than that.
        room = int(free) + int(pool.free_bytes())
        limit = int(pool.get_limit())
        return min(room, max(limit - int(pool.used_bytes()), 0)) if limit else room

    def check_place(array: Any) -> None:
        there, here = array.device.id, cupy.cuda.Device().id
        if there != here:
            # Kernels of our own would read what is no memory of theirs: an error that ends the use of the GPU.
            raise InputError(
                f"an array is on GPU {there}, but the current one is {here}: call this in "
                f"`with cupy.cuda.Device({there}):`"
            )

    return Device(cupy, cupy.ndarray, build, cupy.asnumpy, free_bytes, check_place)
