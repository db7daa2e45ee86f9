"""Tables of results: columns of arrays, shown aligned, and given to pandas where that is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar

import numpy.typing as npt

from ..errors import LibraryError

__all__ = ["SHOWN", "Table", "format_columns", "to_frame"]

SHOWN = 10
"""Rows that a repr shows."""


def format_columns(columns: Mapping[str, npt.NDArray[Any]], length: int, shown: int = SHOWN) -> list[str]:
    """Return the lines of an aligned table: the names, the first rows, and how many more there are."""
    cells = []
    for name, column in columns.items():
        texts = [name, *(f"{value:.6g}" if isinstance(value, float) else str(value) for value in column[:shown])]
        width = max(map(len, texts))
        cells.append([text.rjust(width) for text in texts])
    lines = ["  ".join(row).rstrip() for row in zip(*cells, strict=True)] if length and shown else []
    if length > shown:
        lines.append(f"... {length - shown} more")
    return lines


def to_frame(columns: Mapping[str, Any], index: list[str] | None = None) -> Any:
    """Return a `pandas.DataFrame`."""
    try:
        import pandas
    except ImportError:
        raise LibraryError("to_pandas() needs pandas; install it: pip install 'lpa3d[pandas]'") from None
    return pandas.DataFrame(dict(columns), index=index)


class Table:
    """Base of frozen dataclasses whose fields are columns of one length; those that are None are left out."""

    TITLE: ClassVar[str]
    """What a row is, in the singular."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))  # type: ignore[arg-type]

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Return the columns by name, without those that are None, as `pandas.DataFrame` takes them."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: column for name, column in columns.items() if column is not None}

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame` of the columns (``pip install 'lpa3d[pandas]'``)."""
        return to_frame(self.columns())

    def __repr__(self) -> str:
        title = f"{type(self).__name__}: {len(self)} {self.TITLE}{'' if len(self) == 1 else 's'}"
        return "\n".join([title, *format_columns(self.columns(), len(self))])
