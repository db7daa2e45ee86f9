"""Tables that add up over tiles: one blob per tile, folded in the driver in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ...arrays.pairs import flag_first, sort_pairs
from ...arrays.text import list_some

__all__ = ["Digest", "digest", "fold", "unite_rows"]

T = TypeVar("T")

BATCH = 2**18
"""Fewest rows of a batch; a larger total waits for as many rows as it has, so that each row is sorted few times."""


def fold(tables: Iterable[T], add: Callable[[Iterable[T]], T], rows: Callable[[T], int]) -> T:
    """Return the sum of `tables`, of which no more is held than the sum and a batch of at most as many rows.

    `add` sums some tables, of none too; `rows` returns the length of one.
    """
    total = add([])
    batch: list[T] = []
    waiting = 0
    for table in tables:
        batch.append(table)
        waiting += rows(table)
        if waiting > max(BATCH, rows(total)) or len(batch) > BATCH // 64:
            total, batch, waiting = add([total, *batch]), [], 0
    return add([total, *batch]) if batch else total


def unite_rows(parts: Iterable[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Return the distinct rows ``(n, 2)`` of all parts, sorted."""
    rows = np.concatenate([np.empty((0, 2), np.int64), *parts])
    rows = rows[sort_pairs(rows)]
    return rows[flag_first(rows)]


class Digest(str):
    """A few letters that differ where values do; `shown` are the first of these, for messages."""

    shown: str


def digest(value: Any) -> Digest | None:
    """Return what tells arrays, tuples of arrays, or mappings of ids apart; None of None."""
    if value is None:
        return None
    code = hashlib.sha256()
    if isinstance(value, Mapping):
        for key, item in sorted((str(key), repr(item)) for key, item in value.items()):
            code.update(f"{key}: {item}\n".encode())
    else:
        for array in value if isinstance(value, tuple) else (value,):
            code.update(f"{array.dtype} {array.shape}\n".encode())
            code.update(np.ascontiguousarray(array).data)
    found = Digest(code.hexdigest()[:16])
    if isinstance(value, Mapping):
        found.shown = list_some(value, show=lambda key: f"{key}: {value[key]}")
    else:
        rows = value if isinstance(value, tuple) else (value,)
        found.shown = list_some(
            range(len(rows[0])),
            show=lambda k: ": ".join(str(part[k].tolist()).replace("[", "(").replace("]", ")") for part in rows),
        )
    found.shown = found.shown or "none"
    return found
