"""The one switch for how kernels are compiled.

Kernels are serial and release the GIL; the threads are Python's (`lpa3d._threads`). Numba's own thread layers abort
the process when two Python threads enter them at once, which napari and dask do, and a serial kernel compiles in a
third of the time. The same kernels therefore serve a whole volume and a single tile.
"""

import os

import numba

# A cached kernel goes stale when a function that it calls in another file changes, so the tests switch the cache off.
CACHE = os.environ.get("LPA3D_KERNEL_CACHE", "1") != "0"


def jit(function):
    """Compile `function` as a serial kernel that releases the GIL."""
    return numba.njit(nogil=True, cache=CACHE, error_model="numpy")(function)
