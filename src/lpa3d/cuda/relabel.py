"""New ids in the place of old ones, on a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .device import BLOCK, Device, ceil_div

__all__ = ["replace_ids"]

ITEMS = 4
"""What maps.cuh says of a thread's voxels."""

Ids = npt.NDArray[np.int64]


def replace_ids(device: Device, labels: Any, slots: Ids, ids: Ids, new_ids: Ids, out: Any) -> None:
    """Write `labels` to `out`, device arrays of one dtype, with ``ids[k]`` replaced by ``new_ids[k]``.

    `slots` is the hash table of the positions of `ids`. One pass; no memory but for the tables.
    """
    table, old, new = (device.bring(array) for array in (slots, ids, new_ids))
    device.kernel("relabel", "replace_ids", LABEL=labels.dtype)(
        ceil_div(labels.size, BLOCK * ITEMS), BLOCK, labels, labels.size, table, table.size, old, new, out
    )
