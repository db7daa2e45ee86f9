"""The one switch for how kernels are compiled, and the cache of compiled ones.

Kernels are serial and release the GIL; the threads are Python's (`lpa3d.arrays.threads`). Numba's own thread layers
abort the process when two Python threads enter them at once, which napari and dask do, and a serial kernel compiles in
a third of the time. The same kernels therefore serve a whole volume and a single tile.

Numba's own cache looks at the file of a kernel only, so a kernel goes stale when a function that it calls in another
file changes; and two processes that compile different signatures of one kernel at once may each overwrite what the
other wrote. Here a compiled kernel lies in a file of its own, under a name that is the digest of all that it depends
on: the sources of all kernels, the versions of Numba, LLVM, NumPy and Python, Numba's switches, the processor, the
signature. So a stale one cannot be found, and any number of processes share one folder.
"""

import contextlib
import hashlib
import logging
import os
import pickle
import secrets
import shutil
import sys
import time
from pathlib import Path

import llvmlite
import numba
import numpy as np
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

_log = logging.getLogger("lpa3d.kernels")
"""Says once that kernels are compiled, which takes long enough to be wondered at, and at the level DEBUG of each."""

CACHE = os.environ.get("LPA3D_KERNEL_CACHE", "1") != "0"

KEPT = 30 * 86400
"""Seconds for which kernels of other sources or versions are kept after they were compiled."""


def _digest_sources() -> str:
    """Return a digest of all that every kernel depends on."""
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        code.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    config = numba.config
    switches = {name: getattr(config, name) for name in ("BOUNDSCHECK", "OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE")}
    versions = numba.__version__, llvmlite.__version__, np.__version__, sys.version
    code.update(repr((versions, sorted(switches.items()), config.CPU_NAME, config.CPU_FEATURES)).encode())
    return code.hexdigest()[:32]


_DIGEST = _digest_sources()


def _find_folder():
    """Return where compiled kernels are kept: in ``NUMBA_CACHE_DIR``, else in the user's cache.

    All environments and checkouts of a user share it, as names are digests. Where it cannot be written, for want of a
    home, kernels are kept beside the sources, and where that cannot be, they are compiled by each process.
    """
    beside = Path(__file__).parent / "__pycache__"
    top = Path(numba.config.CACHE_DIR or AppDirs("lpa3d", appauthor=False).user_cache_dir)
    try:
        top.mkdir(parents=True, exist_ok=True)
    except OSError:
        top = beside
    return (top if os.access(top, os.W_OK | os.X_OK) else beside) / f"lpa3d-{_DIGEST}"


class _Cache(FunctionCache):
    """Compiled signatures of one kernel, each in a file."""

    def __init__(self, function):
        super().__init__(function)
        self._folder = _FOLDER

    def _path(self, key):
        name = f"{self._py_func.__module__}.{self._py_func.__qualname__} {key}"
        return self._folder / f"{self._py_func.__name__}-{hashlib.sha256(name.encode()).hexdigest()[:32]}"

    _told = False

    def _load_overload(self, sig, target_context):
        found = self._find_overload(sig, target_context)
        if found is None:
            _log.log(
                logging.DEBUG if _Cache._told else logging.WARNING,
                "compiling kernels for this machine (once; some 5 to 25 s for each verb)",
            )
            _Cache._told = True
        return found

    def _find_overload(self, sig, target_context):
        key = self._index_key(sig, target_context.codegen())
        try:
            data = self._path(key).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            return None  # of a disk that was full or failed
        stored, compiled = pickle.loads(data[32:])
        return self._impl.rebuild(target_context, compiled) if stored == repr(key) else None

    def _save_overload(self, sig, data):
        _log.debug("compiled %s", self._py_func.__name__)
        if not self._impl.check_cachable(data):
            return
        key = self._index_key(sig, data.codegen)
        body = dumps((repr(key), self._impl.reduce(data)))
        path = self._path(key)
        temp = path.with_name(f".{secrets.token_hex(8)}")
        try:
            if not self._folder.is_dir():
                self._folder.mkdir(parents=True, exist_ok=True)
                self._sweep()
            temp.write_bytes(hashlib.sha256(body).digest() + body)
            os.replace(temp, path)
        except OSError:
            # A kernel that cannot be kept is compiled again the next time.
            temp.unlink(missing_ok=True)

    def _sweep(self):
        """Delete the kernels of other sources and versions that were compiled long ago."""
        for folder in self._folder.parent.glob("lpa3d-*"):
            times = [entry.stat().st_mtime for entry in os.scandir(folder)]
            if time.time() - max(times, default=time.time()) > KEPT:
                shutil.rmtree(folder, ignore_errors=True)

    def flush(self):
        shutil.rmtree(self._folder, ignore_errors=True)


_FOLDER = _find_folder()


def compile_kernel(function, **options):
    """Compile `function` with options of ``numba.njit``; keep what is compiled, unless ``LPA3D_KERNEL_CACHE=0``."""
    kernel = numba.njit(nogil=True, error_model="numpy", **options)(function)
    if CACHE and not numba.config.DISABLE_JIT:
        with contextlib.suppress(RuntimeError):  # Numba finds no folder that can be written
            kernel._cache = _Cache(function)
    return kernel


def jit(function):
    """Compile `function` as a serial kernel that releases the GIL."""
    return compile_kernel(function)
