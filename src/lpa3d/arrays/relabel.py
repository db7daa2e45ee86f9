"""Put new ids in the place of old ones, slab by slab."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels.relabel import index_ids, replace_ids
from .backend import array_module, device_of
from .checks import as_bits, seal
from .threads import num_threads, run_all, split

__all__ = ["relabel"]

SLAB_VOXELS = 2**18
"""Smallest slab that is worth a thread of its own."""

Ids = npt.NDArray[np.int64]


def relabel(
    labels: npt.NDArray[Any], ids: Ids, new_ids: Ids, dtype: np.dtype[Any], out: npt.NDArray[Any] | None
) -> npt.NDArray[Any]:
    """Return canonical `labels` with ``ids[k]`` replaced by ``new_ids[k]``, as `dtype`, in `out` if given.

    `ids` are distinct; other ids and 0 stay as they are. `dtype` is that of `labels`, but for byte order and bool.
    """
    target = array_module(labels).empty(labels.shape, dtype) if out is None else out
    slots = index_ids(ids)
    device = device_of(labels)
    if device is not None:
        from ..cuda import relabel as cuda

        cuda.replace_ids(device, as_bits(labels), slots, ids, new_ids, as_bits(target))
        return target
    # Kernels write native integers only; elsewhere the result is converted at the end.
    native = target if dtype.isnative else np.empty(labels.shape, labels.dtype)
    source, result = seal(as_bits(labels)).reshape(-1), as_bits(native).reshape(-1)

    def replace(bounds: tuple[int, int]) -> None:
        at = slice(*bounds)
        replace_ids(source[at], slots, ids, new_ids, result[at])

    run_all(replace, _slabs(source.size))
    if native is not target:
        target[...] = native
    return target


def _slabs(size: int) -> list[tuple[int, int]]:
    """Cut a flat array for the threads."""
    return split(size, min(2 * num_threads(), size // SLAB_VOXELS))
