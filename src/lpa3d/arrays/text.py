"""Amounts and lists as people write them: what messages and tables say, and what the argument `memory` takes."""

from __future__ import annotations

import itertools
import math
import numbers
import re
from collections.abc import Callable, Collection
from typing import Any

from ..errors import InputError, InputTypeError, Keyword

__all__ = ["format_bytes", "list_some", "parse_memory"]

UNITS = {name: 1000**power for power, name in enumerate(("B", "kB", "MB", "GB", "TB", "PB"))}
"""Bytes of each unit, in powers of 1000, as disks are sold; so memory is asked for and shown, too."""

READ = {name.lower(): size for name, size in UNITS.items()}
READ |= {f"{name[0]}ib": 1024**power for power, name in enumerate(READ) if power} | {"": 1}
"""Units that are understood: powers of 1024, which are KiB and so on, as well."""


def format_bytes(size: float) -> str:
    """Return a number of bytes for a person."""
    unit = max((name for name in UNITS if UNITS[name] <= size), key=UNITS.__getitem__, default="B")
    return f"{size / UNITS[unit]:.{0 if unit == 'B' else 1}f} {unit}"


def parse_memory(memory: Any) -> int:
    """Return a budget such as ``"4GB"``, ``"512 MiB"`` or a number of bytes."""
    given = Keyword("memory")
    if isinstance(memory, bool) or not isinstance(memory, (numbers.Real, str)):
        raise InputTypeError(given, f" is {memory!r}; a budget is needed, e.g. ", Keyword("memory", "4GB"))
    size: Any = memory
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", memory)
        if not match or match[2].lower() not in READ:
            raise InputError(
                given, f" is {memory!r}; a budget is needed, e.g. ", Keyword("memory", "4GB"), " or '512MiB'"
            )
        size = float(match[1]) * READ[match[2].lower()]
    if not (math.isfinite(size) and size > 0):
        raise InputError(given, f" is {memory!r}; a budget > 0 is needed, e.g. ", Keyword("memory", "4GB"))
    return int(size)


def list_some(items: Collection[Any], most: int = 5, *, show: Callable[[Any], str] = str, joint: str = ", ") -> str:
    """Return the first of many items as text, and how many more there are."""
    more = len(items) - most
    return joint.join(map(show, itertools.islice(items, most))) + (f" and {more} more" if more > 0 else "")
