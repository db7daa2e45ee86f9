"""Threads over slabs: the one place that decides how many cores a whole volume gets."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from ..errors import InputError

__all__ = ["num_threads", "run_all", "serial", "split"]

T = TypeVar("T")
R = TypeVar("R")


_state = threading.local()


@contextmanager
def serial() -> Iterator[None]:
    """Let `num_threads` be 1 on this thread: tiles run side by side, so each of them is worked on by one thread."""
    before = getattr(_state, "serial", False)
    _state.serial = True
    try:
        yield
    finally:
        _state.serial = before


def num_threads() -> int:
    """Return the number of threads: ``LPA3D_NUM_THREADS``, or every core that this process may use."""
    if getattr(_state, "serial", False):
        return 1
    text = os.environ.get("LPA3D_NUM_THREADS", "").strip()
    if not text:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"LPA3D_NUM_THREADS is {text!r}; a positive whole number is needed, e.g. LPA3D_NUM_THREADS=4")
    return int(text)


def split(length: int, parts: int) -> list[tuple[int, int]]:
    """Cut ``range(length)`` into at most `parts` non-empty runs of nearly equal length."""
    parts = max(1, min(parts, length))
    bounds = [length * i // parts for i in range(parts + 1)]
    return [(lo, hi) for lo, hi in itertools.pairwise(bounds) if hi > lo]


def run_all(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return ``[function(item) for item in items]``, on `num_threads()` threads; the first error is raised."""
    work = list(items)
    workers = min(num_threads(), len(work))
    if workers <= 1:
        return [function(item) for item in work]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, work))
